package pg

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"sync"
)

// maxBackupHistory bounds what CheckBackupHistory reads, in bytes. PostgreSQL writes ten lines, one with a label of at most 1 KiB.
const maxBackupHistory = 64 << 10

// backupHistory is what PostgreSQL 13 to 18 write into a backup history file; only the label may be any text.
var backupHistory = sync.OnceValue(func() *regexp.Regexp {
	const location, at, when = `([0-9A-F]{1,8}/[0-9A-F]{1,8})`, ` \(file ([0-9A-F]{24})\)\n`, `[0-9]{4,}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} [^\n]+\n`
	return regexp.MustCompile(`^START WAL LOCATION: ` + location + at + `STOP WAL LOCATION: ` + location + at + `CHECKPOINT LOCATION: ` + location + `\n` +
		`BACKUP METHOD: (?:streamed|pg_start_backup)\nBACKUP FROM: (?:primary|master|standby)\nSTART TIME: ` + when + `LABEL: (?s:.*)\n` +
		`START TIMELINE: ([0-9]+)\nSTOP TIME: ` + when + `STOP TIMELINE: ([0-9]+)\n(?:INCREMENTAL FROM LSN: ` + location + `\nINCREMENTAL FROM TLI: [0-9]+\n)?$`)
})

// CheckBackupHistory reads a backup history file, which PostgreSQL archives at the end of a backup, and says what in it is not
// as it should be or does not fit its name (PostgreSQL manual, 26.3.3 Making a Base Backup Using the Low Level API). Nothing
// needs the file for a recovery. Errors of r are passed on.
func CheckBackupHistory(name string, r io.Reader) error {
	if !IsBackupHistoryName(name) {
		return fmt.Errorf("%q is not the name of a backup history file", name)
	}
	b, err := io.ReadAll(io.LimitReader(r, maxBackupHistory+1))
	switch {
	case err != nil:
		return err
	case len(b) == 0:
		return errors.New("it is empty")
	case len(b) > maxBackupHistory:
		return fmt.Errorf("it is longer than %d bytes", maxBackupHistory)
	}
	m := backupHistory().FindStringSubmatch(string(b))
	if m == nil {
		return errors.New("it has not the lines of a backup history file")
	}
	start, err1 := ParseLSN(m[1])
	stop, err2 := ParseLSN(m[3])
	offset, err3 := strconv.ParseUint(name[25:33], 16, 32)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	const smallest = 1 << 20 // the size of segments is a multiple of it
	switch timeline, err := strconv.ParseUint(name[:8], 16, 32); {
	case err != nil:
		return err
	case m[2] != name[:24] || uint64(start)%smallest != offset%smallest || m[6] != strconv.FormatUint(timeline, 10):
		return fmt.Errorf("it is of a backup that began at %s in %s on timeline %s", m[1], m[2], m[6])
	case stop < start || m[4] < m[2]:
		return fmt.Errorf("its backup ends at %s, before it began at %s", m[3], m[1])
	}
	return nil
}
