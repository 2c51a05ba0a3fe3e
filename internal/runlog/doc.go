// Package runlog is the log of runs as lines: what a line is, what it says of its run, and how the lines of a log and of the
// files rotated away from it are read while others write and rotate.
//
// A line of alation_backup.log, and the same entry in alation_backup.jsonl:
//
//	2026-11-27T04:00:00.123Z 4711-0badcafe backup_all: ended well: set 202611270400_10-0-0-147420
//	{"time":"2026-11-27T04:00:00.123Z","run":"4711-0badcafe","level":"info","verb":"backup_all","event":"end","outcome":"done","set":"202611270400_10-0-0-147420","text":"backup_all: ended well: set …"}
//
// The text alone decides everything else of an entry (New), so that both files and everything read from either agree. The first
// is for people and is what this package reads; the second is for programs that collect logs.
//
// Rotation renames LOG to LOG.YYYY-MM-DD, a second one of a day to LOG.YYYY-MM-DD.2, and so on. Such a file may have been
// compressed since: LOG.YYYY-MM-DD.gz or .bz2. Memory does not grow with a log: a line is cut after lineMax bytes, and Runs keeps
// as many as it is asked for.
package runlog
