// Package repo is the repository format, bytes only: what pgBackRest (format 5) stores and where. It names objects, reads
// and writes info files and manifests, builds the chains that store and read back a file, and takes the locks that both
// tools respect. It runs no backup: packages above decide what to store, storage decides how an object becomes durable.
// Nothing here starts a goroutine or reads a clock.
//
// The page that this package follows is docs/format (pgBackRest repository format); sections are cited in the docstrings.
//
//	archive/<stanza>/archive.info(.copy)                     ArchiveInfo    cluster history, pass of WAL
//	                 15-1/0000000100000000/<segment>-<sha1>.zst             SegmentPath
//	                 15-1/00000002.history
//	backup/<stanza>/backup.info(.copy)                       BackupInfo     list of backups, pass of manifests
//	                backup.history/2026/<label>.manifest.gz                 HistoryManifestPath
//	                <label>/backup.manifest(.copy)           Manifest       all about one backup, pass of its files
//	                        pg_data/…  pg_tblspc/…  bundle/<N>              Manifest.Object
//
// A label says what a backup is and stands on; labels sort in time:
//
//	20261122-212241F                       full
//	20261122-212241F_20261122-212245D      diff: changes since the full
//	20261122-212241F_20261122-212249I      incr: changes since its prior, named after the full too
//
// The three kinds of info file are one container (ini.go): sections of key=JSON lines, all in byte order, between two
// [backrest] sections, the second of which seals the rest with a SHA-1:
//
//	[backrest]
//	backrest-format=5
//	backrest-version="2.45"
//
//	[db]                                   hashed as
//	db-id=1                                {"backrest":{"backrest-format":5,"backrest-version":"2.45"},
//	                                        "db":{"db-id":1}}
//	[backrest]                             without line ends
//	backrest-checksum="…"
//
// A manifest has one line per file; what is equal to the section's default, or can be computed, is left out:
//
//	pg_data/base/1/1247={"bi":1,"bim":100,"bni":1,"bno":1898426,"checksum":"547d…","rck":"dc74…","repo-size":11053,
//	                     │       │         │       └ offset      └ of the original           └ of the stored bytes
//	                     │       │         └ bundle number
//	                     │       └ bytes of the block map at the end of the image
//	                     └ block size in 8 KiB           "size":122880,"timestamp":1795382625}
//
// backup.info and the WAL's archive.info are written main file first, copy second; a manifest copy first, because its main
// file is what makes the backup exist. Readers take the copy when the main file fails in any way.
package repo
