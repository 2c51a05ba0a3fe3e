package action

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/engine"
)

// lockApp is an application that is only good for its lock.
func lockApp(path, exec string, yields bool, steps func(engine.Event)) *App {
	return New(Options{LockPath: path, ExecID: exec, Yields: yields, Events: steps})
}

// TestGivesWay: who finds the instance held by a job that gives way asks it to, waits, and has the instance.
func TestGivesWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock", "instance.lock")
	copying := lockApp(path, "1-copy", true, nil)
	unlock, err := copying.lock(t.Context(), "sets copy")
	if err != nil {
		t.Fatal(err)
	}
	if who, wanted := Wanted(path); wanted {
		t.Error(who)
	}
	gave := make(chan string, 1)
	go func() { // the daemon
		for {
			if who, wanted := Wanted(path); wanted {
				gave <- who
				if err := unlock(); err != nil {
					t.Error(err)
				}
				return
			}
			time.Sleep(yieldPoll)
		}
	}()
	var said []string
	done, err := lockApp(path, "2-backup", false, func(e engine.Event) { said = append(said, e.String()) }).lock(t.Context(), "backup_all")
	if err != nil {
		t.Fatal(err)
	}
	if who := <-gave; who != "backup_all (process 2-backup)" {
		t.Error(who)
	}
	if len(said) != 1 || !strings.Contains(said[0], "sets copy (process 1-copy)") {
		t.Errorf("%q", said)
	}
	if _, err := copying.lock(t.Context(), "sets copy"); !errors.Is(err, ErrBusy) { // it does not ask in its turn
		t.Error(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("%v %v", left, err)
	}
	if err := done(); err != nil {
		t.Error(err)
	}
}

// TestDoesNotGiveWay: who does not say that he gives way is not asked, and one who takes the instance in between is not either. A
// wait ends with its context.
func TestDoesNotGiveWay(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock", "instance.lock")
	unlock, err := lockApp(path, "1-restore", false, nil).lock(t.Context(), "destructive_restore_all")
	if err != nil {
		t.Fatal(err)
	}
	var busy *BusyError
	if _, err := lockApp(path, "2-backup", false, nil).lock(t.Context(), "backup_all"); !errors.As(err, &busy) || busy.Verb != "destructive_restore_all" {
		t.Error(err)
	}
	if err := unlock(); err != nil {
		t.Fatal(err)
	}
	if unlock, err = lockApp(path, "3-copy", true, nil).lock(t.Context(), "sets copy"); err != nil {
		t.Fatal(err)
	}
	cause := errors.New("too late")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 3*yieldPoll, cause)
	defer cancel()
	if _, err := lockApp(path, "4-backup", false, nil).lock(ctx, "backup_all"); !errors.Is(err, cause) {
		t.Error(err)
	}
	go func() { // another backup is first
		for {
			if _, wanted := Wanted(path); wanted {
				break
			}
			time.Sleep(yieldPoll / 10)
		}
		text, err := json.Marshal(holder{Verb: "backup_all", Exec: "5-backup"})
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Error(err)
		}
	}()
	if _, err := lockApp(path, "6-backup", false, nil).lock(t.Context(), "backup_all"); !errors.As(err, &busy) || busy.Exec != "5-backup" {
		t.Error(err)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
}

// TestWantedByNobody: a request of a process that died, or something else under its name, is none.
func TestWantedByNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "instance.lock")
	text, err := json.Marshal(holder{Verb: "backup_all", Exec: "1-x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := durable.WriteFile(wantedPath(path), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, wanted := Wanted(path); !wanted {
		t.Error("a fresh request is none")
	}
	for _, age := range []time.Duration{2 * yieldFresh, -2 * yieldFresh} {
		if err := os.Chtimes(wantedPath(path), time.Now().Add(-age), time.Now().Add(-age)); err != nil {
			t.Fatal(err)
		}
		if who, wanted := Wanted(path); wanted {
			t.Errorf("%s: %s", age, who)
		}
	}
	if err := durable.WriteFile(wantedPath(path), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if who, wanted := Wanted(path); wanted {
		t.Error(who)
	}
}
