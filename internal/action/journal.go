package action

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/internal/durable"
	"holdfast/internal/eventbus"
	"holdfast/internal/pg"
)

// journal is the restore's memory across a crash. Every change to what exists is written here before it happens.
type journal struct {
	Run    string      `json:"run"`
	Set    string      `json:"set"`
	State  string      `json:"state"`
	Moves  []move      `json:"moves"`
	Starts []string    `json:"starts"` // stanzas whose server ran before and is started again when all is given back
	Bus    *busJournal `json:"bus,omitempty"`
}

// move is one directory that was renamed aside. New says that something of the restore may stand at From.
type move struct {
	From  string `json:"from"`
	Aside string `json:"aside"` // empty: nothing was there; giving back removes From
}

// busJournal says that the topics of the set are being replaced; Dump (may be empty) holds what they were.
type busJournal struct {
	Dump   string   `json:"dump"`
	Topics []string `json:"topics"`
}

const (
	journalMoving    = "moving"    // give back on failure
	journalCommitted = "committed" // the restore passed its checks: what was moved aside may go
)

func (a *App) readJournal() (*journal, error) {
	b, err := os.ReadFile(a.o.JournalPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("restore journal: %w", err)
	}
	var j journal
	if err := json.Unmarshal(b, &j); err != nil {
		return nil, fmt.Errorf("restore journal %s: %w: look at the directories named *%s*, rename back what belongs, then remove the journal", a.o.JournalPath, err, asideMark)
	}
	return &j, nil
}

func (a *App) writeJournal(j *journal) error {
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return wrap(durable.WriteFileOwned(a.o.JournalPath, append(b, '\n'), 0o600, a.o.Owner), "restore journal")
}

func (a *App) removeJournal() error {
	if err := os.Remove(a.o.JournalPath); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("restore journal: %w", err)
	}
	return durable.SyncDir(filepath.Dir(a.o.JournalPath))
}

// asideMark is in the name of everything that a restore moved aside.
const asideMark = ".holdfast-replaced-"

// moveAside renames dir out of the way, or notes that nothing was there. The journal knows before it happens.
func (a *App) moveAside(j *journal, dir string) error {
	m := move{From: dir}
	if _, err := os.Lstat(dir); err == nil {
		m.Aside = dir + asideMark + j.Run
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	j.Moves = append(j.Moves, m)
	if err := a.writeJournal(j); err != nil {
		return err
	}
	if m.Aside == "" {
		return durable.MkdirAllOwned(filepath.Dir(dir), 0o755, nil)
	}
	if err := durable.Rename(dir, m.Aside); err != nil {
		return fmt.Errorf("move %s aside: %w (a mount point can't be renamed: restore to a directory below it)", dir, err)
	}
	return nil
}

// giveBack undoes what the journal lists, newest first, and starts the servers that ran before. It can be repeated.
func (a *App) giveBack(ctx context.Context, j *journal) error {
	a.step("restore", "give-back", j.Run)
	var errs []error
	for i := range a.o.Clusters {
		c := &a.o.Clusters[i]
		if _, running, err := pg.Running(c.DataDir); err != nil {
			errs = append(errs, err)
		} else if running && j.moved(c.DataDir) {
			errs = append(errs, pg.Stop(ctx, c.server(nil), "immediate"))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("give back: %w", err)
	}
	for i := len(j.Moves) - 1; i >= 0; i-- {
		if err := j.Moves[i].undo(); err != nil {
			return fmt.Errorf("give back %s: %w", j.Moves[i].From, err)
		}
		// What is back is the operator's again: a repeated call must not undo it once more.
		j.Moves = j.Moves[:i]
		if err := a.writeJournal(j); err != nil {
			return fmt.Errorf("give back: %w", err)
		}
	}
	for _, stanza := range j.Starts {
		c := a.cluster(stanza)
		if c == nil {
			continue
		}
		if _, running, err := pg.Running(c.DataDir); err != nil {
			return err
		} else if !running {
			if err := a.startServer(ctx, c); err != nil {
				return fmt.Errorf("the replaced data of cluster %s is back, but its server does not start: %w", stanza, err)
			}
		}
	}
	// Last: a bus that is away must not keep PostgreSQL down.
	if err := a.giveBackBus(ctx, j); err != nil {
		return fmt.Errorf("data and files are back, the event bus is not: %w", err)
	}
	return a.removeJournal()
}

func (j *journal) moved(dir string) bool {
	for _, m := range j.Moves {
		if m.From == dir {
			return true
		}
	}
	return false
}

// undo puts one directory back. What stands at From is the restore's own as soon as Aside exists (or nothing was there).
func (m move) undo() error {
	if m.Aside == "" {
		return os.RemoveAll(m.From)
	}
	if _, err := os.Lstat(m.Aside); errors.Is(err, fs.ErrNotExist) {
		return nil // given back before, or never moved
	} else if err != nil {
		return err
	}
	if err := os.RemoveAll(m.From); err != nil {
		return err
	}
	return durable.Rename(m.Aside, m.From)
}

// giveBackBus loads what the topics held before the restore replaced them.
func (a *App) giveBackBus(ctx context.Context, j *journal) error {
	if j.Bus == nil || a.o.Bus == nil {
		return nil
	}
	o := *a.o.Bus
	o.Topics = nil
	b, err := eventbus.Open(ctx, o)
	if err != nil {
		return err
	}
	defer b.Close()
	src, err := newDirSource(j.Bus.Dump)
	if err != nil {
		return err
	}
	_, err = b.Load(ctx, src, eventbus.LoadOptions{Replace: true})
	return err
}

// GiveBack undoes an interrupted restore. done is false when there is none.
func (a *App) GiveBack(ctx context.Context) (done bool, err error) {
	unlock, err := a.lock("give back")
	if err != nil {
		return false, err
	}
	done, err = a.settleJournal(ctx)
	return done, errors.Join(err, unlock())
}

// settleJournal gives back an interrupted restore, or completes the removal of what a finished one replaced.
func (a *App) settleJournal(ctx context.Context) (bool, error) {
	j, err := a.readJournal()
	if err != nil || j == nil {
		return false, err
	}
	if j.State == journalCommitted {
		return false, a.dropReplaced(j)
	}
	return true, a.giveBack(ctx, j)
}

// dropReplaced removes what was moved aside, then the journal.
func (a *App) dropReplaced(j *journal) error {
	for _, m := range j.Moves {
		if m.Aside != "" {
			if err := os.RemoveAll(m.Aside); err != nil {
				return fmt.Errorf("remove what was replaced: %w", err)
			}
		}
	}
	return a.removeJournal()
}
