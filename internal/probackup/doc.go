// Package probackup drives the operator's pg_probackup: the command lines of its version 2.5, what it prints, and the layout of
// its backup catalog.
//
//	DIR/backups/INSTANCE/pg_probackup.conf          settings of the instance
//	DIR/backups/INSTANCE/ID/backup.control          one backup, its status and parent
//	DIR/backups/INSTANCE/ID/database/…              its files
//	DIR/wal/INSTANCE/SEGMENT[.gz]                   the WAL archive; a name that ends in .part is being written
//
// ID is the second of the backup's beginning in base 36. The program is not ours and not part of Debian; docs/pg_probackup.md
// lists everything that is assumed of it.
package probackup
