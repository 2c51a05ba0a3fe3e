// Package engine does the verbs of one stanza: create, archive-push, archive-get, backup, restore, info, check, verify,
// expire, and the copy of its backups to another repository (see copy.go).
//
// A verb with consequences comes in two steps: Plan… looks and decides without side effects and returns a value that can be
// printed or sent as JSON; Run on that value acts. Jobs say what they do through Options.Events and nothing else: the engine
// prints nothing, reads no environment and takes its clock from Options.
//
// What goes where in the repository is package repo's knowledge, what PostgreSQL's files and server mean is package pg's,
// and where bytes rest is package storage's. The engine decides order. The order that matters for a backup:
//
//	lock → pg_backup_start → walk the data directory → copy files (workers) ┐ the first WAL segment is awaited meanwhile
//	  → pg_backup_stop → backup_label, tablespace_map → Sync                ┘
//	  → every WAL segment from start to stop is in the archive
//	  → backup.manifest.copy → backup.manifest (from here on the backup exists) → history, latest → backup.info
//
// and for a restore:
//
//	every check and the plan → backup.manifest into the data directory → over an old cluster: global/pg_control away, then
//	  what is not in the backup → directories and links → files (workers, SHA-1 verified) → recovery settings
//	  → backup.manifest away → one syncfs per file system → global/pg_control by rename, last (before that nothing can
//	  start on the directory; a restore with Delta goes on from there)
//
// A run that dies in between leaves a label directory without backup.manifest, which no reader takes for a backup and which
// the next backup removes; or a data directory without pg_control, which PostgreSQL refuses to start.
package engine
