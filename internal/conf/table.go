package conf

import "strings"

// Type is the kind of a parameter's value.
type Type int

const (
	Bool     Type = iota // True or False
	Int                  // a whole number between Min and Max
	Seconds              // a whole number of seconds between Min and Max
	String               // one line of text
	Enum                 // one of Allowed
	Path                 // a file or directory, seen from the instance's root
	List                 // elements separated by commas; each one of Allowed if Allowed is set
	SecretT              // one line of text that is sealed at rest and never printed
	URL                  // an http or https address with a host
	Version              // four numbers, major.minor.patch.build
	Clusters             // PostgreSQL clusters, see ParseClusters
	Cron                 // the five fields of a crontab line
	Zone                 // the name of a time zone
	Listen               // an address and a port to listen on
)

// String returns the word that the manual uses for t.
func (t Type) String() string {
	names := [...]string{"bool", "int", "seconds", "string", "enum", "path", "list", "secret", "url", "version", "clusters", "cron", "zone", "listen"}
	if t < 0 || int(t) >= len(names) {
		return "unknown"
	}
	return names[t]
}

// followEnable is the follow-up of every parameter that PostgreSQL's archiving or the stanza depends on.
const followEnable = "run `alation_action enable_backupv2`"

// Key describes one parameter.
type Key struct {
	Name     string
	Type     Type
	Default  string   // canonical form; "" = empty
	Min, Max int64    // inclusive, for Int and Seconds
	Allowed  []string // for Enum and List, in the order in which they are printed
	Required bool     // the empty value is refused
	Unit     string   // of a number
	Since    string   // first version that has it: a year and number of the product, or "holdfast"
	After    string   // what to run so that a change takes effect; "" = nothing, the next run reads it
	Help     string   // sentences for the manual
}

// Secret reports whether the value must never be shown.
func (k *Key) Secret() bool { return k.Type == SecretT }

// weekdays in the order in which a list of days is printed.
var weekdays = []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}

// Lookup returns the parameter called name, or nil.
func Lookup(name string) *Key {
	lo, hi := 0, len(table)
	for lo < hi {
		mid := (lo + hi) / 2
		switch c := strings.Compare(table[mid].Name, name); {
		case c == 0:
			return &table[mid]
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return nil
}

// Table returns every parameter, sorted by name. The caller must not change it.
func Table() []Key { return table }

// table is sorted by name; the registry test holds it to that.
var table = []Key{
	{Name: "alation.backup.chef_timeout", Type: Seconds, Default: "21600", Min: 60, Max: 2592000, Unit: "seconds", Since: "2020.3",
		Help: "Time limit of a whole backup run. A run that exceeds it is ended and cleaned up; earlier sets stay."},
	{Name: "alation.backup.data_dump_dir", Type: Path, Default: "/data2/backup", Required: true, Since: "2020.3",
		Help: "Directory where the finished tarballs appear, under their final name only when complete."},
	{Name: "alation.backup.data_temp_dir", Type: Path, Default: "/data2/tmp", Required: true, Since: "2020.3",
		Help: "Staging directory of a run. Only what Holdfast itself created there is removed; foreign files stop the run."},
	{Name: "alation.backup.eb_restore_file", Type: Path, Since: "2023.3",
		Help: "Event Bus tarball that `alation_action destructive_restore_all` restores. Empty: the one of the same set beside `restore_file`."},
	{Name: "alation.backup.post_script.path", Type: Path, Since: "2020.3",
		Help: "Program that relocates the two tarballs after a run. Empty: none. It is called with their paths, the Alation tarball's first. Its failure is a warning " +
			"with an exit code of its own. The separate PostgreSQL backup is not passed to it."},
	{Name: "alation.backup.post_script.timeout", Type: Seconds, Default: "3600", Min: 1, Max: 2592000, Unit: "seconds", Since: "holdfast",
		Help: "Time limit of the program that `alation.backup.post_script.path` names. It is ended when it takes longer."},
	{Name: "alation.backup.recovery_kit.passphrase", Type: SecretT, Since: "holdfast",
		Help: "Passphrase of the recovery kit that each run then writes beside the tarballs, of at least 12 characters. `holdfast recover` asks for it: keep it where the instance " +
			"is not. It is not in the tarballs, whose reader it would give all secrets. Without it and `recovery_kit.recipient` no kit is written."},
	{Name: "alation.backup.recovery_kit.recipient", Type: List, Since: "holdfast",
		Help: "Public keys of age (`age1…`, as `age-keygen` prints them), separated by commas, to which the recovery kit is encrypted that each run then writes beside the tarballs. " +
			"Whoever has the secret key of one can open it with `holdfast recover --identity`. The secret keys do not belong on this host."},
	{Name: "alation.backup.redundancy.enabled", Type: Bool, Default: "False", Since: "holdfast",
		Help: "Copy the two tarballs, too, to the external storage that `pgsql.pgbackrest.redundancy.*` describes, on every run. They hold the instance's parameters and " +
			"their key: with `pgsql.pgbackrest.cipher_pass` they are encrypted there."},
	{Name: "alation.backup.restore_file", Type: Path, Since: "2023.3",
		Help: "Alation tarball that `alation_action destructive_restore_all` restores."},
	{Name: "alation.backup.scheduled_day", Type: List, Allowed: weekdays, Since: "2020.3",
		Help: "Days of the scheduled run, in UTC unless `schedule.zone` says otherwise, separated by commas without spaces. Empty: every day."},
	{Name: "alation.backup.scheduled_hour", Type: Int, Default: "4", Min: 0, Max: 23, Unit: "hour of the day, UTC", Since: "2020.3",
		Help: "Hour of the scheduled run, in UTC unless `schedule.zone` says otherwise."},
	{Name: "alation.backup.scheduled_minute", Type: Int, Default: "0", Min: 0, Max: 59, Unit: "minute of the hour", Since: "2020.3",
		Help: "Minute of the scheduled run."},
	{Name: "alation.backup_v2.incremental.enabled", Type: Bool, Default: "False", Since: "holdfast",
		Help: "True: between two full backups of PostgreSQL only what changed is stored. False: each run makes a full backup. With PostgreSQL in the tarball a staging repository " +
			"beside the tarballs then keeps the last full backup and what was built on it, and each tarball still has all that it needs."},
	{Name: "alation.backup_v2.incremental.full_day", Type: List, Allowed: weekdays, Since: "holdfast",
		Help: "Days of full backups, in UTC unless `schedule.zone` says otherwise, separated by commas without spaces: the first run since such a day began makes one, also when that is " +
			"on a later day. Set, `full_every` is not looked at. Empty: `full_every` decides."},
	{Name: "alation.backup_v2.incremental.full_every", Type: Int, Default: "7", Min: 1, Max: 365, Unit: "runs", Since: "holdfast",
		Help: "Runs from one full backup to the next, the full one counted: 7 is one full backup, then six that are incremental; 1 makes every run full. Counted for each " +
			"cluster by the backups in its repository; those of failed runs do not count."},
	{Name: "alation.backup_v2.incremental.type", Type: Enum, Default: "incr", Allowed: []string{"incr", "diff"}, Required: true, Since: "holdfast",
		Help: "What the runs between two full backups store: `incr` what changed since the run before, `diff` what changed since the full backup, which takes more space and needs " +
			"no more than two backups for a restore."},
	{Name: "alation.backup_v2.pgbackup_compression", Type: Bool, Default: "True", Since: "2022.2",
		Help: "True: the PostgreSQL backup goes into the Alation tarball. False: it is kept apart, in the repository that `pgsql.pgbackrest.repo_dir_name` names."},
	{Name: "alation.backup_v2.retention.days", Type: Int, Default: "0", Min: 0, Max: 36500, Unit: "days", Since: "holdfast",
		Help: "Sets younger than this are kept whatever their number; a day is 24 hours from when the set was complete. A set goes only when it is neither among the newest `retention.sets` nor younger than this. 0: age keeps no set."},
	{Name: "alation.backup_v2.retention.sets", Type: Int, Default: "7", Min: 0, Max: 100000, Unit: "sets", Since: "holdfast",
		Help: "Number of backup sets kept: the newest that restore, as far as is known. Each run removes at its end the older ones that nothing else keeps, here and on external storage; see retention.md. 0: sets are never removed."},
	{Name: "alation.feature_flags.enable_pgbackrest", Type: Bool, Default: "True", Since: "2022.2", After: followEnable,
		Help: "True: PostgreSQL is backed up in the pgBackRest format. False: by pg_probackup, the earlier tool, which `pgsql.pg_probackup.path` names. One tool's chain of backups can't be " +
			"continued by the other: after a change the next backup is a full one. Sets of before stay restorable."},
	{Name: "alation.install.base_url", Type: URL, Since: "2020.3",
		Help: "Address under which the application is reached. A restore onto another host brings back the old one; set it again there."},
	{Name: "alation.version", Type: Version, Since: "holdfast",
		Help: "Version of the application, part of the tarballs' names. Empty: taken from the instance."},
	{Name: "eventbus.brokers", Type: List, Default: "localhost:9092", Since: "holdfast",
		Help: "Addresses (`host:port`) of the event bus's brokers; one suffices to find the others."},
	{Name: "eventbus.enabled", Type: Bool, Default: "True", Since: "holdfast",
		Help: "True: the event bus is part of every set, and a run fails if it cannot be reached. False: the instance has no event bus."},
	{Name: "eventbus.security.ca_file", Type: Path, Since: "holdfast",
		Help: "Certificates (PEM) that sign the brokers' certificates. Empty: those of the system."},
	{Name: "eventbus.security.protocol", Type: Enum, Default: "plaintext", Allowed: []string{"plaintext", "ssl", "sasl_plaintext", "sasl_ssl"}, Required: true, Since: "holdfast",
		Help: "How the brokers are reached: in clear or through TLS (`ssl`), with or without a login (`sasl`)."},
	{Name: "eventbus.security.sasl_mechanism", Type: Enum, Default: "plain", Allowed: []string{"plain", "scram-sha-256", "scram-sha-512"}, Required: true, Since: "holdfast",
		Help: "How the login is made, for the two `sasl` protocols."},
	{Name: "eventbus.security.sasl_password", Type: SecretT, Since: "holdfast", Help: "Password of the login."},
	{Name: "eventbus.security.sasl_user", Type: String, Since: "holdfast", Help: "User of the login."},
	{Name: "eventbus.topics", Type: List, Since: "holdfast",
		Help: "Patterns (`*`, `?`) of the topics that are backed up. Empty: every topic that is not internal to the bus."},
	{Name: "files.exclude", Type: List, Default: "logs/**", Since: "holdfast",
		Help: "Patterns of files left out, relative to each of `files.paths`; `**` crosses directories."},
	{Name: "files.paths", Type: List, Default: "/opt/alation/site,/data1/site_data", Since: "holdfast",
		Help: "Files and directories of the application, seen from the instance's root."},
	{Name: "logs.keep", Type: Int, Default: "14", Min: 1, Max: 3650, Unit: "files", Since: "holdfast",
		Help: "Number of earlier `alation_backup.log` that the daemon keeps, of `backup.log` below `/var/lib/pgsql`, and of the `.jsonl` beside each: it begins new ones every night at 0:00 UTC."},
	{Name: "metrics.listen", Type: Listen, Since: "holdfast",
		Help: "Address and port on which the daemon serves `/healthz` and `/metrics`, such as `127.0.0.1:9876`. Whoever reaches it can read them: names, times and " +
			"sizes of sets, no secrets. Empty: it serves nothing."},
	{Name: "pgsql.backup.tool_path", Type: Path, Since: "holdfast", After: followEnable,
		Help: "Program of an external `pgbackrest` to use in place of the built-in engine. Empty: the built-in engine. It needs the server's socket directory as host in " +
			"`pgsql.clusters`. A PostgreSQL backup that goes into the tarball passes through a staging repository beside it and needs that space during the run."},
	{Name: "pgsql.clusters", Type: Clusters, Default: "rosemeta:data=/data1/pgsql/data,host=/tmp,port=5432,user=alation", Required: true, Since: "holdfast", After: followEnable,
		Help: "PostgreSQL clusters of the application: `stanza:data=DIR,host=HOST,port=PORT,user=USER,bin=DIR;stanza2:…`, or a JSON list of objects with " +
			"these members. `data` is required and, like `bin` and a `host` that begins with `/` (a socket directory), seen from the instance's root. " +
			"Defaults: host `/tmp`, port 5432, user `alation`, bin found by PostgreSQL's version. A DB instance of Amazon RDS is " +
			"`stanza:kind=rds,id=IDENTIFIER,region=REGION,host=HOST,port=PORT,user=USER`: without `region` it is in that of `pgsql.rds.region`, without `host` " +
			"the instance's own address and port count, without `user` it is not asked by SQL."},
	{Name: "pgsql.pg_probackup.dir_name", Type: Path, Default: "data2/pg_probackup", Required: true, Since: "holdfast", After: followEnable,
		Help: "Backup catalog of pg_probackup for the separate PostgreSQL backup, seen from the instance's root, when `alation.feature_flags.enable_pgbackrest` is False. " +
			"A directory of its own: not the one of `pgsql.pgbackrest.repo_dir_name`, nor below it."},
	{Name: "pgsql.pg_probackup.path", Type: Path, Since: "holdfast", After: followEnable,
		Help: "Program of pg_probackup, version 2.5 or later of 2, for the clusters' version of PostgreSQL. Empty: `pg_probackup-VERSION`, else `pg_probackup`, is looked for in the " +
			"directories of PATH. Sets that were made with it need it to be verified, deleted and restored."},
	{Name: "pgsql.pgbackrest.archive_timeout", Type: Seconds, Default: "60", Min: 1, Max: 86400, Unit: "seconds", Since: "holdfast",
		Help: "How long a backup or check waits for a WAL segment to reach the archive."},
	{Name: "pgsql.pgbackrest.block", Type: Bool, Default: "False", Since: "holdfast",
		Help: "Store changed blocks rather than changed files in incremental backups of the separate PostgreSQL backup. Needs `bundle`. pgbackrest 2.46 or later reads it."},
	{Name: "pgsql.pgbackrest.bundle", Type: Bool, Default: "False", Since: "holdfast",
		Help: "Store many small files of the separate PostgreSQL backup in one object: fewer files in the repository. pgbackrest 2.39 or later reads it."},
	{Name: "pgsql.pgbackrest.cipher_pass", Type: SecretT, Since: "holdfast", After: followEnable,
		Help: "Passphrase of the repository (aes-256-cbc). Empty: not encrypted. It applies to a new repository only. Without it the backups cannot be read: " +
			"keep it in a place of its own. It is not in the tarballs, so set it on a new instance before restoring there."},
	{Name: "pgsql.pgbackrest.compress_level", Type: Int, Default: "1", Min: -7, Max: 22, Unit: "level", Since: "holdfast",
		Help: "Compression level: gz 0 to 9, lz4 -5 to 12, zst -7 to 22."},
	{Name: "pgsql.pgbackrest.compress_type", Type: Enum, Default: "zst", Allowed: []string{"none", "gz", "lz4", "zst"}, Required: true, Since: "holdfast",
		Help: "Compression of the PostgreSQL backup and of archived WAL."},
	{Name: "pgsql.pgbackrest.process_max", Type: Int, Default: "0", Min: 0, Max: 999, Unit: "workers", Since: "holdfast",
		Help: "Number of files copied at the same time. 0: as many as there are CPUs."},
	{Name: "pgsql.pgbackrest.redundancy.append_only", Type: Bool, Default: "False", Since: "holdfast",
		Help: "True: this instance's credentials add to the external storage and remove nothing from it. What the retention would remove there is only named in the run's report; " +
			"`holdfast sets expire-store` removes it, with credentials that the instance does not have."},
	{Name: "pgsql.pgbackrest.redundancy.azure.account", Type: String, Since: "holdfast", Help: "Storage account that receives the copy when the type is `azure`."},
	{Name: "pgsql.pgbackrest.redundancy.azure.ca_file", Type: Path, Since: "holdfast",
		Help: "Certificates (PEM) that sign the endpoint's certificate. Empty: those of the system."},
	{Name: "pgsql.pgbackrest.redundancy.azure.container", Type: String, Since: "holdfast", Help: "Container of the account."},
	{Name: "pgsql.pgbackrest.redundancy.azure.endpoint", Type: String, Since: "holdfast",
		Help: "Endpoint, as a host with or without a port, or an address. Empty: `blob.core.windows.net`."},
	{Name: "pgsql.pgbackrest.redundancy.azure.key", Type: SecretT, Since: "holdfast",
		Help: "Key of the account, or a shared access signature, as `key_type` says. Empty: the managed identity of the machine."},
	{Name: "pgsql.pgbackrest.redundancy.azure.key_type", Type: Enum, Default: "shared", Allowed: []string{"shared", "sas"}, Required: true, Since: "holdfast",
		Help: "What `key` is: a key of the account, or a shared access signature."},
	{Name: "pgsql.pgbackrest.redundancy.azure.uri_style", Type: Enum, Default: "host", Allowed: []string{"host", "path"}, Required: true, Since: "holdfast",
		Help: "Where the account stands in an address: in the host name, or in the path as other servers than Azure's want it."},
	{Name: "pgsql.pgbackrest.redundancy.enabled", Type: Bool, Default: "False", Since: "2022.2",
		Help: "Copy the separate PostgreSQL backup to external storage on every run."},
	{Name: "pgsql.pgbackrest.redundancy.gcs.bucket", Type: String, Since: "holdfast", Help: "Bucket that receives the copy when the type is `gcs`."},
	{Name: "pgsql.pgbackrest.redundancy.gcs.ca_file", Type: Path, Since: "holdfast",
		Help: "Certificates (PEM) that sign the endpoint's certificate. Empty: those of the system."},
	{Name: "pgsql.pgbackrest.redundancy.gcs.endpoint", Type: String, Since: "holdfast",
		Help: "Endpoint, as a host with or without a port, or an address. Empty: `storage.googleapis.com`."},
	{Name: "pgsql.pgbackrest.redundancy.gcs.key_file", Type: Path, Since: "holdfast",
		Help: "JSON key file of a service account, readable by the user that runs the backup and nobody else. Empty: the service account of the machine."},
	{Name: "pgsql.pgbackrest.redundancy.gcs.user_project", Type: String, Since: "holdfast", Help: "Project that pays for the requests. Empty: the bucket's."},
	{Name: "pgsql.pgbackrest.redundancy.posix.path", Type: Path, Since: "holdfast",
		Help: "Directory that receives the copy when the type is `posix` or `cifs`: a mounted file system of another machine."},
	{Name: "pgsql.pgbackrest.redundancy.prefix", Type: String, Default: "holdfast", Since: "holdfast",
		Help: "Path in the bucket or directory below which the copy is: PostgreSQL's repository in `pgbackrest`, tarballs in `sets`. Instances that share a bucket need one each."},
	{Name: "pgsql.pgbackrest.redundancy.s3.bucket", Type: String, Since: "2022.2", Help: "Bucket that receives the copy."},
	{Name: "pgsql.pgbackrest.redundancy.s3.ca_file", Type: Path, Since: "holdfast",
		Help: "Certificates (PEM) that sign the endpoint's certificate. Empty: those of the system."},
	{Name: "pgsql.pgbackrest.redundancy.s3.endpoint", Type: String, Since: "2022.2", Help: "Endpoint, as a host with or without a port, or an address. Empty: that of AWS for the region."},
	{Name: "pgsql.pgbackrest.redundancy.s3.key", Type: SecretT, Since: "2022.2",
		Help: "API key. Empty together with `secret`: the credentials of the machine's role, profile or environment."},
	{Name: "pgsql.pgbackrest.redundancy.s3.kms_key_id", Type: String, Since: "holdfast", Help: "Key of the key service, with `sse` `aws:kms`. Empty: the bucket's own."},
	{Name: "pgsql.pgbackrest.redundancy.s3.object_lock_days", Type: Int, Default: "0", Min: 0, Max: 3650, Unit: "days", Since: "holdfast",
		Help: "How long nobody may remove or replace what is written, from the moment of writing. Not longer than the retention keeps sets: what is locked can't be expired."},
	{Name: "pgsql.pgbackrest.redundancy.s3.object_lock_mode", Type: Enum, Default: "none", Allowed: []string{"none", "governance", "compliance"}, Required: true, Since: "holdfast",
		Help: "Object lock on what is written, in a bucket made for it: `governance` can be lifted by credentials with a right of their own, `compliance` by nobody. " +
			"`none`: what the bucket does by default."},
	{Name: "pgsql.pgbackrest.redundancy.s3.region", Type: String, Since: "2022.2", Help: "Region of the bucket."},
	{Name: "pgsql.pgbackrest.redundancy.s3.requester_pays", Type: Bool, Default: "False", Since: "holdfast", Help: "True: this instance's account pays for the requests, not the bucket's."},
	{Name: "pgsql.pgbackrest.redundancy.s3.secret", Type: SecretT, Since: "2022.2", Help: "API secret that belongs to `key`."},
	{Name: "pgsql.pgbackrest.redundancy.s3.sse", Type: Enum, Default: "none", Allowed: []string{"none", "AES256", "aws:kms"}, Required: true, Since: "holdfast",
		Help: "Encryption by the storage itself. `none`: what the bucket does by default."},
	{Name: "pgsql.pgbackrest.redundancy.s3.sse_customer_key", Type: SecretT, Since: "holdfast",
		Help: "Key of 32 bytes in base64 with which the storage encrypts and which it forgets (SSE-C); with `sse` `none`. Without it nothing can be read."},
	{Name: "pgsql.pgbackrest.redundancy.s3.storage_class", Type: String, Since: "holdfast", Help: "Storage class of the objects, such as `STANDARD_IA`. Empty: the bucket's default."},
	{Name: "pgsql.pgbackrest.redundancy.s3.tags", Type: List, Since: "holdfast", Help: "Tags on what is written, `NAME=VALUE` separated by commas."},
	{Name: "pgsql.pgbackrest.redundancy.s3.uri_style", Type: Enum, Default: "host", Allowed: []string{"host", "path"}, Required: true, Since: "holdfast",
		Help: "Where the bucket stands in an address: in the host name, or in the path as many S3-compatible stores want it."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.fingerprint", Type: String, Since: "holdfast",
		Help: "SHA-256 fingerprint that the server's key must have, as `ssh-keygen -l` prints it. Empty: the server must be in `known_hosts_file`."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.host", Type: String, Since: "holdfast", Help: "SSH server that receives the copy when the type is `sftp`."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.known_hosts_file", Type: Path, Since: "holdfast",
		Help: "Known-hosts file with the server's key. Empty: those of the user that runs the backup and of the host. A server that is in none is refused."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.passphrase", Type: SecretT, Since: "holdfast", Help: "Passphrase of the private key. Empty: it has none."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.path", Type: String, Since: "holdfast",
		Help: "Directory on the server, from its root, below which the copy is at `prefix`; the user must be allowed to write there."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.port", Type: Int, Default: "22", Min: 1, Max: 65535, Unit: "port", Since: "holdfast", Help: "Port of the server."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.private_key_file", Type: Path, Since: "holdfast",
		Help: "Private key, readable by the user that runs the backup and nobody else. Empty: the keys of the SSH agent."},
	{Name: "pgsql.pgbackrest.redundancy.sftp.user", Type: String, Since: "holdfast", Help: "User on the server."},
	{Name: "pgsql.pgbackrest.redundancy.type", Type: Enum, Default: "s3", Allowed: []string{"s3", "gcs", "azure", "sftp", "posix", "cifs"}, Required: true, Since: "2022.2",
		Help: "Kind of external storage. `cifs` is `posix` on a mount that knows no links and decides on owners itself."},
	{Name: "pgsql.pgbackrest.repo_dir_name", Type: Path, Default: "data2/pgbackrest", Required: true, Since: "2022.2", After: followEnable,
		Help: "Directory of the separate PostgreSQL backup, seen from the instance's root."},
	{Name: "pgsql.pgbackrest.restore.source", Type: Enum, Default: "local", Allowed: []string{"local", "s3"}, Required: true, Since: "holdfast",
		Help: "Where `alation_action destructive_restore_all` takes the separate PostgreSQL backup from: the repository of this host, or the external storage that " +
			"`pgsql.pgbackrest.redundancy.*` describes, of whatever type it is."},
	{Name: "pgsql.rds.ca_file", Type: Path, Since: "holdfast",
		Help: "Certificates (PEM) that sign the certificate of `pgsql.rds.endpoint`. Empty: those of the system."},
	{Name: "pgsql.rds.endpoint", Type: URL, Since: "holdfast", Help: "Address at which the API of Amazon RDS is reached, such as that of a VPC endpoint. Empty: AWS's for the region."},
	{Name: "pgsql.rds.key", Type: SecretT, Since: "holdfast",
		Help: "API key for Amazon RDS. Empty together with `secret`: the credentials of the machine's role, profile or environment."},
	{Name: "pgsql.rds.password", Type: SecretT, Since: "holdfast",
		Help: "Password of the PostgreSQL roles that `pgsql.clusters` names for DB instances of Amazon RDS, to note at backup what the database says of itself and to look at it after a restore."},
	{Name: "pgsql.rds.region", Type: String, Since: "holdfast", Help: "Region of the DB instances of Amazon RDS for which `pgsql.clusters` names none."},
	{Name: "pgsql.rds.restore.class", Type: String, Since: "holdfast",
		Help: "Class of the DB instance that a restore makes, such as `db.m6g.large`. Empty: as that of the backed up one was."},
	{Name: "pgsql.rds.restore.parameter_group", Type: String, Since: "holdfast",
		Help: "DB parameter group of the DB instance that a restore makes. Empty: as that of the backed up one was."},
	{Name: "pgsql.rds.restore.security_groups", Type: List, Since: "holdfast",
		Help: "VPC security groups (`sg-…`) of the DB instance that a restore makes, separated by commas. Empty: as those of the backed up one were."},
	{Name: "pgsql.rds.restore.subnet_group", Type: String, Since: "holdfast",
		Help: "DB subnet group of the DB instance that a restore makes. Empty: as that of the backed up one was."},
	{Name: "pgsql.rds.restore.suffix", Type: String, Since: "holdfast",
		Help: "What a restore appends, after a hyphen, to the identifier of a DB instance to name the new one. Empty: `restored-` and the set's date and time."},
	{Name: "pgsql.rds.secret", Type: SecretT, Since: "holdfast", Help: "API secret that belongs to `pgsql.rds.key`."},
	{Name: "pgsql.rds.server_ca_file", Type: Path, Since: "holdfast",
		Help: "Certificates (PEM) that sign those of the DB instances, which are then checked at each SQL connection. Empty: connections are encrypted, and not checked."},
	{Name: "pgsql.rds.snapshot_prefix", Type: String, Default: "holdfast", Required: true, Since: "holdfast",
		Help: "Begins the names of DB snapshots: at most 40 letters, digits and single hyphens, a letter first. Instances that back up the same DB instance need one each."},
	{Name: "pgsql.rds.timeout", Type: Seconds, Default: "14400", Min: 60, Max: 604800, Unit: "seconds", Since: "holdfast",
		Help: "How long a run waits for its DB snapshots, and a restore for its DB instances, to become available."},
	{Name: "schedule.backup", Type: Cron, Since: "holdfast",
		Help: "Times of the scheduled run where a minute, an hour and days of the week do not suffice: `0 1,13 * * mon-fri`. It is used in place of " +
			"`alation.backup.scheduled_minute`, `_hour` and `_day`."},
	{Name: "schedule.copy_every", Type: Seconds, Default: "300", Min: 0, Max: 86400, Unit: "seconds", Since: "holdfast",
		Help: "How often the daemon brings the copy on external storage up to date between runs: WAL, and sets that are not there yet. 0: only runs do."},
	{Name: "schedule.lag_warning", Type: Seconds, Default: "3600", Min: 60, Max: 2592000, Unit: "seconds", Since: "holdfast",
		Help: "How old the last complete copying of WAL to external storage may become before the daemon warns."},
	{Name: "schedule.verify", Type: Cron, Default: "0 12 * * sun", Since: "holdfast",
		Help: "Times at which the daemon reads the newest complete set and compares it with what the run wrote. Empty: never."},
	{Name: "schedule.zone", Type: Zone, Default: "UTC", Required: true, Since: "holdfast",
		Help: "Time zone of the schedule. A time that the clock jumps over happens when it has jumped, a time that it shows twice happens the first time."},
	{Name: "snapshot.enabled", Type: Bool, Default: "True", Since: "2020.3", Help: "The schedule on or off. The daemon goes by it; a crontab line of yours does not."},
}
