package action

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"holdfast/internal/durable"
)

// A job of the daemon's that may be ended at any time (a copy, a verification) says so in the instance's lock. Who finds the instance
// held by such a one writes a request beside the lock and waits; the daemon sees it and ends its job, which goes on later. A request
// is renewed while somebody waits: one that is not was left by a process that died, and is passed over.
const (
	yieldWait  = 2 * time.Minute // how long a job may take to get out of what it does, as when the daemon is told to end
	yieldPoll  = 100 * time.Millisecond
	yieldRenew = time.Second
	yieldFresh = 15 * time.Second // the age of a request that nobody renews any more
)

// wantedPath is the file of requests for the instance that lockPath locks.
func wantedPath(lockPath string) string { return lockPath + ".wanted" }

// Wanted reports whether somebody waits for the instance that lockPath locks, and who: a verb and a process.
func Wanted(lockPath string) (who string, wanted bool) {
	info, err := os.Lstat(wantedPath(lockPath))
	if err != nil || !info.Mode().IsRegular() || info.Size() > 4096 {
		return "", false
	}
	if age := time.Since(info.ModTime()); age > yieldFresh || age < -yieldFresh {
		return "", false
	}
	b, err := os.ReadFile(wantedPath(lockPath))
	var h holder
	if err != nil || json.Unmarshal(b, &h) != nil || h.Verb == "" {
		return "", false
	}
	return fmt.Sprintf("%s (process %s)", h.Verb, h.Exec), true
}

// awaitYield asks the holder to give way and waits until it has. Another BusyError: it did not within yieldWait, or somebody who
// does not give way was first.
func (a *App) awaitYield(ctx context.Context, verb string, busy *BusyError) (func() error, error) {
	a.step(verb, "wait", fmt.Sprintf("until %s (process %s) gives way", busy.Verb, busy.Exec))
	text, err := json.Marshal(holder{Verb: verb, Exec: a.o.ExecID, Since: a.o.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return nil, err
	}
	path := wantedPath(a.o.LockPath)
	defer os.Remove(path) // what stays is too old to be taken for a request soon
	poll := time.NewTicker(yieldPoll)
	defer poll.Stop()
	began := time.Now()
	for renewed := (time.Time{}); ; {
		if time.Since(renewed) >= yieldRenew {
			if err := durable.WriteFileOwned(path, text, 0o640, a.o.Owner); err != nil {
				return nil, errors.Join(busy, fmt.Errorf("it can't be asked to give way: %w", err))
			}
			renewed = time.Now()
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("waiting for %s (process %s): %w", busy.Verb, busy.Exec, context.Cause(ctx))
		case <-poll.C:
		}
		unlock, err := a.tryLock(verb)
		var now *BusyError
		if !errors.As(err, &now) {
			return unlock, err
		}
		if now.Verb == "" { // in the instant between two holders
			now.Verb, now.Exec, now.Since, now.Yields = busy.Verb, busy.Exec, busy.Since, busy.Yields
		}
		if busy = now; !busy.Yields || time.Since(began) >= yieldWait {
			return nil, busy
		}
	}
}
