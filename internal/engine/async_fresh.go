package engine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/pg"
)

// What is found in a spool may be of before: of the machine's last boot, of a cluster that was rolled back or made anew under
// the same stanza. Asking again costs a moment, believing it costs WAL.

// clockSlack is how far apart the time stamps of two file systems may lie for the same moment.
const clockSlack = 2 * time.Second

// outdated: the status is older than PostgreSQL's request, so that it is not about this file. Without a request (nobody
// but PostgreSQL leaves one) every status counts.
func outdated(walDir, out, file string) bool {
	if walDir == "" {
		return false
	}
	ready, rerr := os.Stat(filepath.Join(walDir, "archive_status", file+".ready"))
	status, serr := os.Stat(filepath.Join(out, file+".ok"))
	return rerr == nil && serr == nil && status.ModTime().Add(clockSlack).Before(ready.ModTime())
}

// done writes the status of a file that was dealt with. PostgreSQL's request may be of the future, where the clock was put
// back: the status gets that time, or it would look older than what it answers.
func done(out, walDir, file, text string) error {
	if err := put(out, file+".ok", text); err != nil || !outdated(walDir, out, file) {
		return err
	}
	ready, err := os.Stat(filepath.Join(walDir, "archive_status", file+".ready"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it has asked no more meanwhile
	}
	if err != nil {
		return err
	}
	return os.Chtimes(filepath.Join(out, file+".ok"), ready.ModTime(), ready.ModTime())
}

// bootName is the file in the read-ahead that says since which boot it was filled.
const bootName = "boot.id"

// sinceBoot empties the read-ahead when the machine was started since: nothing in it is synced, so that a file may have its
// name and size and hold zeros.
func (s *Spool) sinceBoot(in string) error {
	if s.BootID == "" {
		return nil
	}
	if b, err := os.ReadFile(filepath.Join(in, bootName)); err == nil && string(b) == s.BootID {
		return nil
	}
	entries, err := os.ReadDir(in)
	if err != nil {
		return fmt.Errorf("spool: %w", err)
	}
	for _, e := range entries {
		if err := removeFiles(in, e.Name()); err != nil {
			return fmt.Errorf("spool: %w", err)
		}
	}
	return wrap(put(in, bootName, s.BootID), "spool")
}

// usable tells whether a fetched segment is in the spool, as long as it has to be and of this cluster; another one is
// removed.
func (s *Spool) usable(in, name string) (bool, error) {
	f, err := os.Open(filepath.Join(in, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("spool: %w", err)
	}
	defer f.Close() // opened for reading: nothing to lose
	var b [8192]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return false, fmt.Errorf("spool: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("spool: %w", err)
	}
	wrong := s.SegmentSize != 0 && info.Size() != int64(s.SegmentSize)
	if h, err := pg.ParseWALHeader(b[:n]); err == nil && s.SystemID != 0 && h.SystemID != s.SystemID {
		wrong = true
	}
	if !wrong {
		return true, nil
	}
	s.warn("%s in %s is cut short or of another cluster: it is fetched again", name, in)
	return false, wrap(removeFiles(in, name), "spool")
}

// takenName is the file in the read-ahead that names the segment that recovery was given last.
const takenName = "taken"

// took notes that recovery was given the segment.
func (s *Spool) took(in, name string) {
	if err := put(in, takenName, name); err != nil {
		s.warn("what was taken from the read-ahead could not be noted; it may be fetched once more: %v", err)
	}
}

// wasTaken tells whether recovery has had the segment or a later one of the timeline. A background process that had to
// wait for another one would fetch those again, for nobody.
func wasTaken(in, name string) bool {
	b, err := os.ReadFile(filepath.Join(in, takenName))
	last := string(b)
	return err == nil && len(last) == len(name) && len(name) > 8 && last[:8] == name[:8] && name <= last
}
