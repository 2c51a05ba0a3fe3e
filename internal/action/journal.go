package action

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"holdfast/internal/durable"
	"holdfast/internal/pg"
)

// journal is the restore's memory across a crash. Every change to what exists is written here before it happens.
type journal struct {
	Run    string      `json:"run"`
	Set    string      `json:"set"`
	State  string      `json:"state"`
	Moves  []move      `json:"moves"`
	Starts []string    `json:"starts"`           // stanzas whose server ran before and is started again when all is given back
	Ran    []string    `json:"ran,omitempty"`    // stanzas whose server the restore itself started
	Bus    *busJournal `json:"bus,omitempty"`    // nil: the bus has not been touched
	Params string      `json:"params,omitempty"` // committed: directory of the set's parameters, still to be taken over
	Keep   bool        `json:"keep,omitempty"`   // committed: what was moved aside stays
}

// move is one directory that was renamed aside, or that was not there.
type move struct {
	From  string `json:"from"`
	Aside string `json:"aside"`          // empty: nothing was there
	Tree  bool   `json:"tree,omitempty"` // of the files component
}

// busJournal says that the topics of the set are being replaced; Dump (empty when none existed) holds what they were.
type busJournal struct {
	Dump    string   `json:"dump"`
	Topics  []string `json:"topics"`  // that existed
	Creates []string `json:"creates"` // that did not
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

// undoneMark is in the name of what stood in the place of something given back, when it may not be the restore's any more.
const undoneMark = ".holdfast-undone-"

// moveAside renames m.From out of the way, or notes that nothing was there. The journal knows before it happens.
func (a *App) moveAside(j *journal, m move) error {
	dir := m.From
	if _, err := os.Lstat(dir); err == nil {
		m.Aside = dir + asideMark + j.Run
		if exists(m.Aside) { // giving back would take it for the old one
			return fmt.Errorf("move %s aside: %s is there already; move it away", dir, m.Aside)
		}
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

// giveBack undoes what the journal lists, newest first, and starts the servers that ran before. It can be repeated. own says
// that this very process put in place what is undone, so that it may be removed; otherwise time has passed, and what stands
// there may have become somebody's: it is renamed.
func (a *App) giveBack(ctx context.Context, j *journal, own bool) error {
	a.step("restore", "give-back", j.Run)
	if err := a.stopForGiveBack(ctx, j); err != nil {
		return fmt.Errorf("give back: %w", err)
	}
	for i := len(j.Moves) - 1; i >= 0; i-- {
		if err := a.undo(j, j.Moves[i], own); err != nil {
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
			a.warn("cluster %s ran before the restore and is not among pgsql.clusters any more: start it yourself", stanza)
			continue
		}
		if _, running, err := pg.Running(c.DataDir); err != nil {
			return err
		} else if !running {
			if err := a.startServer(ctx, c, ""); err != nil {
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

// stopForGiveBack stops the servers whose data directory is about to be undone. One that somebody has started since will run
// afterwards too, on what is given back; where there is nothing to give back, its data would be taken from it: refused.
func (a *App) stopForGiveBack(ctx context.Context, j *journal) error {
	var errs []error
	for i := range a.o.Clusters {
		c := &a.o.Clusters[i]
		m := j.moveOf(c.DataDir)
		if m == nil || m.Aside != "" && !exists(m.Aside) {
			continue // not touched: whoever runs on it goes on
		}
		_, running, err := pg.Running(c.DataDir)
		if err != nil || !running {
			errs = append(errs, err)
			continue
		}
		mode := "immediate"
		if !slices.Contains(j.Ran, c.Stanza) {
			if m.Aside == "" {
				errs = append(errs, fmt.Errorf("cluster %s: somebody has started the server on what the interrupted restore put in %s, and nothing was there before: to undo the restore, stop it first: pg_ctl stop -D %s", c.Stanza, c.DataDir, c.DataDir))
				continue
			}
			a.warn("cluster %s: somebody has started its server since the restore was interrupted; it is started again on what is given back", c.Stanza)
			mode = "fast"
			if !slices.Contains(j.Starts, c.Stanza) {
				j.Starts = append(j.Starts, c.Stanza)
				errs = append(errs, a.writeJournal(j))
			}
		}
		errs = append(errs, pg.Stop(ctx, c.server(nil), mode))
	}
	return errors.Join(errs...)
}

func (j *journal) moveOf(dir string) *move {
	for i := range j.Moves {
		if j.Moves[i].From == dir {
			return &j.Moves[i]
		}
	}
	return nil
}

// exists says whether something is there; what can't be looked at is.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// undo puts one directory back. What stands at From is the restore's, or was.
func (a *App) undo(j *journal, m move, own bool) error {
	if m.Tree { // half filled, and never named anything else
		if err := os.RemoveAll(m.From + newMark + j.Run); err != nil {
			return err
		}
	}
	if m.Aside != "" && !exists(m.Aside) {
		return nil // given back before, or never moved
	}
	kept, err := clearPlace(j, m.From, own)
	if err == nil && m.Aside != "" {
		err = durable.Rename(m.Aside, m.From)
	}
	if kept != "" { // said last: a listener may write a log below the place that has just been cleared
		a.warn("what the interrupted restore had put in %s, with everything that was done to it since, is kept as %s; remove it when you do not need it", m.From, kept)
	}
	return err
}

// clearPlace removes dir if it is ours, and otherwise renames it and returns the new name.
func clearPlace(j *journal, dir string, own bool) (kept string, err error) {
	info, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if own {
		return "", os.RemoveAll(dir)
	}
	if info.IsDir() && os.Remove(dir) == nil {
		return "", nil // it was empty
	}
	to := dir + undoneMark + j.Run
	for n := 2; exists(to); n++ {
		to = fmt.Sprintf("%s%s%s-%d", dir, undoneMark, j.Run, n)
	}
	return to, durable.Rename(dir, to)
}

// GiveBack undoes an interrupted restore. done is false when there is none.
func (a *App) GiveBack(ctx context.Context) (done bool, err error) {
	unlock, err := a.lock(ctx, "give back")
	if err != nil {
		return false, err
	}
	done, err = a.settleJournal(ctx)
	if err == nil && done {
		if cerr := a.clearStaging(); cerr != nil { // of the copy of the event bus; what was replaced is back
			a.warn("%v", cerr)
		}
	}
	return done, errors.Join(err, unlock())
}

// settleJournal gives back an interrupted restore, or completes the removal of what a finished one replaced.
func (a *App) settleJournal(ctx context.Context) (bool, error) {
	j, err := a.readJournal()
	if err != nil || j == nil {
		return false, err
	}
	if j.State == journalCommitted {
		a.warn("the restore of set %s had ended well; what it left to do is done now", j.Set)
		_, err := a.finish(ctx, j)
		return false, err
	}
	return true, a.giveBack(ctx, j, false)
}

// refuseInterrupted finishes a restore that has passed its checks; one that has not stands in the way of a backup.
func (a *App) refuseInterrupted(ctx context.Context) error {
	j, err := a.readJournal()
	if err != nil || j == nil {
		return err
	}
	if j.State != journalCommitted {
		return errInterrupted
	}
	_, err = a.settleJournal(ctx)
	return err
}

var errInterrupted = errors.New("a restore was interrupted and has not been given back: run alation_action destructive_restore_all again, or: holdfast restore --give-back")

// finish does what is left of a committed restore: excluded files come over from the old trees, the set's parameters are
// taken over (their names are returned), what was replaced goes, then the journal. It can be repeated.
func (a *App) finish(ctx context.Context, j *journal) ([]string, error) {
	a.step("restore", "drop-replaced", j.Set)
	for _, m := range j.Moves {
		if m.Tree && m.Aside != "" && exists(m.Aside) {
			if err := a.carryOver(m); err != nil {
				return nil, fmt.Errorf("files that files.exclude names, from %s: %w", m.Aside, err)
			}
		}
	}
	var names []string
	if j.Params != "" && a.o.ImportParams != nil {
		var err error
		if names, err = a.o.ImportParams(ctx, j.Params); err != nil {
			a.warn("the parameters of the set were not taken over: %v; set them with alation_conf", err)
		}
		j.Params = ""
		if err := a.writeJournal(j); err != nil {
			return names, err
		}
	}
	for _, m := range j.Moves {
		if m.Aside != "" && !j.Keep {
			if err := os.RemoveAll(m.Aside); err != nil {
				return names, fmt.Errorf("remove what was replaced: %w", err)
			}
		}
	}
	return names, a.removeJournal()
}
