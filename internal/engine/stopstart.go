package engine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"holdfast/internal/durable"
	"holdfast/internal/repo"
)

// StopOptions says what is to stop. Stop files concern one host: the one whose LockDir it is.
type StopOptions struct {
	LockDir string // of lock and stop files, shared with pgbackrest
	// LockOwner owns LockDir when it is made (nil: we do). Archiving, which PostgreSQL's user does, has to look into it for
	// ever after.
	LockOwner *durable.Owner
	Stanza    string // "" = all stanzas
	Force     bool   // also end the processes that work now
}

// StopResult says what Stop or Start found and did.
type StopResult struct {
	File       string `json:"file"`                 // the stop file
	Already    bool   `json:"already"`              // it was there before Stop, or not there before Start
	Terminated []int  `json:"terminated,omitempty"` // processes that were sent SIGTERM
	Also       string `json:"also,omitempty"`       // after Start: a stop file that still forbids to work
}

var lockName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(.+)-(archive|backup|restore)(?:-([0-9]+))?\.lock$`)
})

// Stop makes push, backup, expire and the verbs on the stanza refuse with ErrStopped, until Start. Processes that work
// already go on unless Force: then those that hold a lock of the stanza are sent SIGTERM. A holder that has not said its
// process id is an error, after the others were told.
func Stop(o StopOptions) (*StopResult, error) {
	r, err := stopFile(o.LockDir, o.Stanza)
	if err != nil {
		return nil, err
	}
	if !r.Already {
		if err := durable.MkdirAllOwned(o.LockDir, 0o770, o.LockOwner); err != nil {
			return nil, fmt.Errorf("stop %s: make the lock directory: %w", stanzaText(o.Stanza), err)
		}
		if err := durable.WriteFile(r.File, nil, 0o640); err != nil {
			return nil, fmt.Errorf("stop %s: write the stop file: %w", stanzaText(o.Stanza), err)
		}
	}
	if o.Force {
		err = r.terminate(o)
	}
	return r, wrap(err, "stop %s", stanzaText(o.Stanza))
}

// Start takes back what Stop did, with the same LockDir and Stanza. A stop file for all stanzas is not removed by starting
// one: Also then names it.
func Start(lockDir, stanza string) (*StopResult, error) {
	r, err := stopFile(lockDir, stanza)
	if err != nil {
		return nil, err
	}
	if r.Already = !r.Already; !r.Already {
		if err := removeDurably(lockDir, r.File); err != nil {
			return nil, fmt.Errorf("start %s: remove the stop file: %w", stanzaText(stanza), err)
		}
	}
	if stanza != "" {
		if r.Also, _, err = repo.Stopped(lockDir, stanza); err != nil {
			return nil, fmt.Errorf("start %s: %w", stanzaText(stanza), err)
		}
	}
	return r, nil
}

func stanzaText(stanza string) string {
	if stanza == "" {
		return "all stanzas"
	}
	return "stanza " + stanza
}

// stopFile names the stop file and says in Already whether it is there.
func stopFile(lockDir, stanza string) (*StopResult, error) {
	if lockDir == "" {
		return nil, errors.New("no lock directory is set, where stop files are kept")
	}
	if stanza != "" {
		if err := CheckStanzaName(stanza); err != nil {
			return nil, err
		}
	}
	r := &StopResult{File: repo.StopPath(lockDir, stanza)}
	_, err := os.Lstat(r.File)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("look for the stop file of %s: %w", stanzaText(stanza), err)
	}
	r.Already = err == nil
	return r, nil
}

// terminate tells the holders of locks to end. Only a lock that is held counts: a stale file's process id may be anyone's.
func (r *StopResult) terminate(o StopOptions) error {
	files, err := os.ReadDir(o.LockDir)
	if err != nil {
		return fmt.Errorf("list the lock files: %w", err)
	}
	var errs []error
	for _, entry := range files {
		m := lockName().FindStringSubmatch(entry.Name())
		if m == nil || o.Stanza != "" && m[1] != o.Stanza {
			continue
		}
		file := filepath.Join(o.LockDir, entry.Name())
		key, _ := strconv.Atoi(m[3]) // none: 0, whose own file does not exist
		holder, held, err := repo.ReadLock(o.LockDir, m[1], m[2], key)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !held || holder.PID == os.Getpid() || slices.Contains(r.Terminated, holder.PID):
		case holder.PID <= 1:
			errs = append(errs, fmt.Errorf("%s is held by a process that has not written its id; see who has it with: fuser %s", file, file))
		default:
			if err := syscall.Kill(holder.PID, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
				errs = append(errs, fmt.Errorf("send SIGTERM to process %d, which holds %s: %w", holder.PID, file, err))
				continue
			}
			r.Terminated = append(r.Terminated, holder.PID)
		}
	}
	return errors.Join(errs...)
}
