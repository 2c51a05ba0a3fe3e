// Package conf is the instance's parameter store: one table of every parameter, the parsing and printing of values, a
// crash-safe file that holds the values that were set, the sealing of secrets, and the grammar of alation_conf.
//
// A parameter is known by its Key in Table; nothing else defines one. A value travels as text in its canonical form
// ("True", "21600", "tue,sat"), is checked by Key.Parse on the way in, and leaves through the typed getters of Values.
// Packages below the command line never see this package: the command line reads Values and fills Options.
//
// The file (conf.json, mode 0644, it holds no secret in clear):
//
//	{
//	  "format": 1,
//	  "values": {
//	    "alation.backup.scheduled_hour": "6",
//	    "pgsql.pgbackrest.cipher_pass": {"sealed": "v1:<base64 of nonce, ciphertext and tag>"}
//	  }
//	}
//
// Only what was set is in the file; all else has the default of the table. Members and values that this version does
// not know (a newer one wrote them) are kept as they are. A secret is sealed with AES-256-GCM by the 32 bytes of the
// key file (mode 0600), with the parameter's name as additional data, so that a sealed value cannot be moved to another
// parameter.
//
// Writers take a lock beside the file (conf.json.lock), read, change, and replace the file with durable.WriteFile:
// concurrent setters lose nothing, a crash leaves the old file or the new one.
package conf
