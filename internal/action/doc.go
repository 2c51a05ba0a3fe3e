// Package action does the verbs on the whole application: backup_all, destructive_restore_all, enable_backupv2, and what is
// done with backup sets. It knows the three components (postgres, files, eventbus) and the one thing that none of them
// knows: the recovery point that they share.
//
// # One recovery point
//
// A run takes its time over the bulk and is quick at the point that counts:
//
//	PostgreSQL: pg_backup_start … copy … pg_backup_stop        minutes to hours
//	files: first pass, everything                              minutes to hours
//	─ recovery point ─────────────────────────────────────     milliseconds to seconds
//	  pg_create_restore_point on every cluster
//	  high-water marks of every topic partition, group offsets
//	  files: final pass, what changed since the first
//	───────────────────────────────────────────────────────
//	pg_switch_wal, wait for the WAL up to the restore point
//	event bus: every record below the marks
//
// Each step's clock before and after is recorded; the span from the first to the last is the set's skew, the honest
// answer to "how far apart may the components be".
//
// # What a run leaves
//
// Tarballs are written under hidden names in the dump directory. When all pieces are complete and synced, the catalogue
// says "publishing", both are renamed, and the catalogue says "complete". A run that dies before "publishing" leaves a
// failed set and nothing under a final name; one that dies after it is completed by the next run.
//
// # Incremental backups
//
// The type of each cluster's backup is chosen in incremental.go, from the repository's own list of backups. With PostgreSQL apart the
// chain stands in the repository, and sets need each other: chains.go says which. With PostgreSQL in the tarball the backup is made in
// the staging repository, which keeps the chain that the next run builds on, and the whole chain is packed into the tarball
// (closure.go): sets of that mode need nobody.
//
// # Copies elsewhere
//
// When the set is complete, and not before, what is to be copied to external storage is: tarballs, then (after the program of
// post_script.path, which may take them away) the separate PostgreSQL backup with its WAL, as engine copies it. Archiving knows
// nothing of this. Whatever goes wrong is a warning and noted in the catalogue; the next run copies what is missing, oldest first.
//
// # Retention
//
// Last of all a run removes what the retention does not keep (docs/retention.md). look finds out what is where and what is built on
// what, RetentionRule.choose decides and looks at nothing else, RetentionPlan.run removes: sets newest first, so that none goes before what is
// built on it, each with its entry failed first and removed last; then WAL that no backup needs; then the external storage. Deleting
// one set takes the same way. What can't be asked is never taken for gone.
//
// # Restore
//
// Everything is unpacked and verified beside its destination before anything that exists is touched. What is replaced is
// renamed aside, and every rename is in a journal before it happens, so that a restore that fails or dies is given back.
// PostgreSQL's files may come straight from external storage; the WAL is brought into staging first.
package action
