package action

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/tarball"
)

// RestoreResult is what a finished restore says of itself.
type RestoreResult struct {
	Set      string          `json:"set"`
	Postgres []PostgresProof `json:"postgres"`
	RDS      []RDSProof      `json:"rds,omitempty"`
	Files    int64           `json:"files"`
	Bus      *BusProof       `json:"eventbus,omitempty"`
	Params   []string        `json:"parameters,omitempty"`
	Kept     []string        `json:"kept,omitempty"` // what was replaced and still stands aside
	// Unkept are owners, groups, set-id bits and attributes of files that only root could have restored; 1000 at most.
	Unkept     []tarball.Issue    `json:"unkept,omitempty"`
	Collations []ClusterCollation `json:"collations,omitempty"` // sorted otherwise here; each is among Warnings, too
	Warnings   []string           `json:"warnings,omitempty"`
	Interval   catalog.Interval   `json:"took"`
}

// PostgresProof is what was seen of one restored cluster.
type PostgresProof struct {
	Stanza    string   `json:"stanza"`
	Reached   string   `json:"reached"` // as the timeline history says it
	LSN       string   `json:"lsn"`
	Timeline  uint32   `json:"timeline"`
	Databases []string `json:"databases"`
}

// BusProof is what was seen of the event bus.
type BusProof struct {
	Topics  int      `json:"topics"`
	Records int64    `json:"records"`
	Left    int64    `json:"left_out"` // records after Until
	Notes   []string `json:"notes,omitempty"`
}

// restoreRun is one restore in progress.
type restoreRun struct {
	*RestorePlan
	a       *App
	staging string
	j       *journal
	dest    map[string]string // tree name → new directory beside its final place
	index   string            // file of the set's index
	params  string            // directory of the set's parameters
	repoDir string            // repository to restore PostgreSQL from
	res     RestoreResult
	started bool     // something that existed was touched
	made    []string // DB instances begun

	catalogOut *catalogDir // pg_probackup's, unpacked into staging
}

// Run restores. Everything is unpacked and verified first; then servers are stopped, what exists is moved aside, and the
// new is put in its place, started, recovered and checked. If anything fails, or ctx is cancelled, what was moved aside is
// given back and the servers that ran are started again.
func (p *RestorePlan) Run(ctx context.Context) (*RestoreResult, error) {
	if len(p.Missing) > 0 {
		return nil, fmt.Errorf("nothing was changed: %s", strings.Join(p.Missing, "; "))
	}
	unlock, err := p.a.lock(ctx, "destructive_restore_all")
	if err != nil {
		return nil, err
	}
	r := &restoreRun{RestorePlan: p, a: p.a, dest: map[string]string{}}
	err = r.run(ctx)
	if err != nil {
		err = fmt.Errorf("restore of set %s: %w", p.Set.ID, err)
	}
	if err != nil && r.started {
		// The cancelled context must not keep the operator's data aside.
		if gerr := p.a.giveBack(context.WithoutCancel(ctx), r.j, true); gerr != nil {
			err = errors.Join(err, fmt.Errorf("what was replaced could not all be given back: %w; the rest is kept, directories as *%s%s and topics in %s; mend the cause and run: holdfast restore --give-back", gerr, asideMark, r.j.Run, r.staging))
		} else {
			err = fmt.Errorf("%w; what was there before has been given back", err)
		}
	} else if err != nil && r.j != nil && r.j.State == journalMoving {
		err = fmt.Errorf("%w; nothing was changed", err)
	}
	err = errors.Join(r.keepMade(err), r.cleanup(), unlock())
	if err != nil {
		return nil, err
	}
	return &r.res, nil
}

func (r *restoreRun) run(ctx context.Context) error {
	r.res.Set, r.res.Interval.From = r.Set.ID, r.a.o.Now().UTC()
	gave, err := r.a.settleJournal(ctx)
	if err != nil {
		return err
	}
	if gave {
		r.a.warn("an interrupted restore was undone first")
	}
	if err := r.a.clearStaging(); err != nil {
		return err
	}
	run := strings.ReplaceAll(r.a.o.ExecID, "-", "")
	if r.staging, _, err = r.a.newStaging("restore-" + run); err != nil {
		return err
	}
	r.j = &journal{Run: run, Set: r.Set.ID, State: journalMoving}
	if err := r.unpack(ctx); err != nil {
		return err
	}
	if err := r.restoreRDS(ctx); err != nil {
		return err
	}
	if err := r.stageWAL(ctx); err != nil {
		return err
	}
	if err := r.restorePostgres(ctx); err != nil {
		return err
	}
	if err := r.swapFiles(ctx); err != nil {
		return err
	}
	if err := r.loadBus(ctx); err != nil {
		return err
	}
	return r.commit(ctx)
}

// unpack reads the application tarball again, now writing: files beside their final places, the repository and the
// parameters into staging. Nothing that exists is touched.
func (r *restoreRun) unpack(ctx context.Context) error {
	r.a.step("restore", "unpack", r.o.RestoreFile)
	if err := r.prepareTrees(); err != nil {
		return err
	}
	ex, err := tarball.NewExtractor(tarball.ExtractOptions{Dest: r.dest, Owners: os.Geteuid() == 0, UserID: r.a.o.Files.UserID, GroupID: r.a.o.Files.GroupID,
		MaxBytes: max(1, r.appSums.totals["files"].Bytes)})
	if err != nil {
		return err
	}
	defer ex.Close() // directories open for reading: nothing to lose
	r.index = filepath.Join(r.staging, tarball.IndexName)
	r.params = filepath.Join(r.staging, "params")
	if err := os.Mkdir(r.params, 0o700); err != nil {
		return err
	}
	repoOut, err := r.openStagedRepo()
	if err != nil {
		return err
	}
	f, err := os.Open(r.o.RestoreFile)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading: nothing to lose
	var sha string
	err = eachMember(ctx, f, func(m *tarball.Member) error {
		switch {
		case m.Name == tarball.IndexName:
			return writeStream(r.index, m)
		case strings.HasPrefix(m.Name, "files/"):
			return ex.Add(m)
		case strings.HasPrefix(m.Name, paramsPrefix):
			return writeStream(filepath.Join(r.params, filepath.Base(m.Name)), m)
		case strings.HasPrefix(m.Name, repoPrefix):
			return repoOut(ctx, strings.TrimPrefix(m.Name, repoPrefix), m)
		case strings.HasPrefix(m.Name, probackupPrefix):
			return r.stageProbackup(strings.TrimPrefix(m.Name, probackupPrefix), m)
		}
		return nil
	}, func(_ int64, s string) { sha = s })
	if err := r.appSums.same(r.o.RestoreFile, sha, wrap(err, "%s", r.o.RestoreFile)); err != nil {
		return err
	}
	if r.o.EBRestoreFile != "" {
		now, err := inspect(ctx, r.o.EBRestoreFile, nil)
		if err := r.busSums.same(r.o.EBRestoreFile, now.sha256, err); err != nil {
			return err
		}
	}
	r.a.step("restore", "verify-files", "")
	index, err := os.Open(r.index)
	if err != nil {
		return fmt.Errorf("the tarball has no index of its files: %w", err)
	}
	defer index.Close() // opened for reading: nothing to lose
	got, err := ex.Finish(ctx, index)
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	if want := r.Set.Recovery.Files; want != nil && got.Files != want.Files {
		return fmt.Errorf("files: the tarball gives %d files, the set says %d", got.Files, want.Files)
	}
	if want := r.Set.Recovery.Files; want != nil && got.IndexSHA256 != want.IndexSHA256 {
		return fmt.Errorf("files: the tarball's index has the SHA-256 %s, the set says %s", got.IndexSHA256, want.IndexSHA256)
	}
	r.res.Files = got.Files
	r.res.noteUnkept(got)
	return r.checkLogs()
}

// noteUnkept names what this user was not allowed to restore.
func (res *RestoreResult) noteUnkept(got *tarball.ExtractResult) {
	if got.UnkeptCount == 0 {
		return
	}
	res.Unkept = got.Unkept
	var names []string
	for _, is := range got.Unkept {
		names = append(names, fmt.Sprintf("%q: %s", is.Path, is.Reason))
	}
	res.Warnings = append(res.Warnings, fmt.Sprintf("%d files and directories are restored without what only root may give them; as root they would have it: %s",
		got.UnkeptCount, firstFew(names)))
}

// checkLogs refuses trees whose log directory is a symbolic link: a backup does not decide where this host's logs are
// written, and they are written as soon as a tree has its place.
func (r *restoreRun) checkLogs() error {
	for name, fresh := range r.dest {
		dir, _, _ := strings.Cut(fresh, newMark)
		rel, err := filepath.Rel(dir, r.a.o.LogDir)
		if r.a.o.LogDir == "" || err != nil || !filepath.IsLocal(rel) {
			continue
		}
		if err := noLinks(fresh, rel); err != nil {
			return fmt.Errorf("files: the set's directory of logs in %s: %w; logs must be in a directory", name, err)
		}
	}
	return nil
}

// newMark is in the name of a directory that a restore fills before it takes its place.
const newMark = ".holdfast-new-"

// prepareTrees makes the fresh directories, beside where they belong so that a rename puts them there.
func (r *restoreRun) prepareTrees() error {
	if r.Set.Recovery.Files == nil {
		return nil
	}
	for _, t := range r.Set.Recovery.Files.Trees {
		dir, err := r.a.treeDir(t)
		if err != nil {
			return err
		}
		if err := durable.MkdirAllOwned(filepath.Dir(dir), 0o755, r.a.o.Owner); err != nil {
			return err
		}
		if err := removeOldNew(dir); err != nil {
			return err
		}
		fresh := dir + newMark + r.j.Run
		if err := os.Mkdir(fresh, 0o700); err != nil {
			return err
		}
		r.dest[t.Name] = fresh
	}
	return nil
}

// removeOldNew removes half-filled directories of earlier restores that died.
func removeOldNew(dir string) error {
	old, err := filepath.Glob(globEscape(dir+newMark) + "*")
	for _, d := range old {
		err = errors.Join(err, os.RemoveAll(d))
	}
	return err
}

func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func writeStream(path string, r io.Reader) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}

// swapFiles renames the trees into place.
func (r *restoreRun) swapFiles(ctx context.Context) error {
	r.a.step("restore", "swap-files", "")
	if r.Set.Recovery.Files == nil {
		return nil
	}
	for _, t := range r.Set.Recovery.Files.Trees {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir, err := r.a.treeDir(t)
		if err != nil {
			return err
		}
		r.started = true
		if err := r.a.moveAside(r.j, move{From: dir, Tree: true}); err != nil {
			return fmt.Errorf("files: %w", err)
		}
		if err := durable.Rename(r.dest[t.Name], dir); err != nil {
			return fmt.Errorf("files: %w", err)
		}
		if err := r.keepLogs(r.j.Moves[len(r.j.Moves)-1], dir); err != nil {
			return fmt.Errorf("files: %w", err)
		}
	}
	return nil
}

// keepLogs copies the log directory of a replaced tree into the new one: logs are of this host, are in no backup, and tell
// what happened until now.
func (r *restoreRun) keepLogs(m move, dir string) error {
	rel, err := filepath.Rel(dir, r.a.o.LogDir)
	if m.Aside == "" || r.a.o.LogDir == "" || err != nil || !filepath.IsLocal(rel) {
		return nil
	}
	from, to := filepath.Join(m.Aside, rel), filepath.Join(dir, rel)
	if _, err := os.Stat(from); err != nil {
		return nil // there is no log yet
	}
	if _, err := os.Stat(to); err == nil {
		return nil // the set brought its own
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return fmt.Errorf("keep the logs: %w", err)
	}
	return filepath.WalkDir(to, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || r.a.o.Owner == nil || os.Geteuid() != 0 {
			return err
		}
		return os.Lchown(path, r.a.o.Owner.UID, r.a.o.Owner.GID)
	})
}

// noLinks refuses symbolic links on the way from dir to rel, as far as it exists.
func noLinks(dir, rel string) error {
	for part := range strings.SplitSeq(rel, string(filepath.Separator)) {
		dir = filepath.Join(dir, part)
		info, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSymlink != 0 {
			return fmt.Errorf("%s is a symbolic link", dir)
		}
	}
	return nil
}

// commit makes the restore final: the journal says so, the catalogue gets a verdict, and what is left to do is done.
func (r *restoreRun) commit(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r.a.step("restore", "commit", r.Set.ID)
	r.markRestored(ctx)
	r.j.State, r.j.Keep, r.j.Params = journalCommitted, r.KeepsAside, r.params
	if err := r.a.writeJournal(r.j); err != nil {
		r.j.State = journalMoving
		return err
	}
	r.started = false
	r.res.Interval.To = r.a.o.Now().UTC()
	ctx = context.WithoutCancel(ctx) // there is nothing to go back to any more
	r.note(ctx)
	for _, m := range r.j.Moves {
		if r.j.Keep && m.Aside != "" {
			r.res.Kept = append(r.res.Kept, m.Aside)
		}
	}
	var err error
	r.res.Params, err = r.a.finish(ctx, r.j)
	return wrap(err, "the restore is complete, what follows it is not; mend the cause, the next backup_all or restore goes on with it")
}

// note records in the catalogue that the set was restored; failing at that is a warning, the restore stands.
func (r *restoreRun) note(ctx context.Context) {
	set, err := r.a.o.Catalog.Get(ctx, r.Set.ID)
	if errors.Is(err, catalog.ErrUnknown) {
		set, err = r.Set, nil
		set.Pieces = nil
		for _, p := range r.From {
			if p.Kind == catalog.Postgres && !p.OnRDS() {
				for _, point := range pointsOf(set) {
					set.Pieces = append(set.Pieces, catalog.Piece{Kind: p.Kind, Tool: point.Tool, Path: p.Path, Stanza: point.Stanza, Label: point.Label, Size: point.RepoBytes})
				}
				continue
			}
			set.Pieces = append(set.Pieces, p)
		}
	}
	if err == nil {
		set.Verdicts = append(set.Verdicts, catalog.Verdict{At: r.res.Interval.To, Check: "restore", OK: true, Findings: r.collationFindings()})
		err = r.a.o.Catalog.Put(ctx, set)
	}
	if err != nil {
		r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("the catalogue could not be told of the restore: %v", err))
	}
}

// cleanup empties staging and removes fresh directories that did not get their place.
func (r *restoreRun) cleanup() error {
	var errs []error
	if r.catalogOut != nil {
		errs = append(errs, r.catalogOut.Close())
	}
	for _, d := range r.dest {
		if err := os.RemoveAll(d); err != nil {
			errs = append(errs, err)
		}
	}
	if j, err := r.a.readJournal(); err != nil || j != nil {
		return errors.Join(append(errs, err)...) // the safety copy of the event bus, or the parameters, are still needed
	}
	if r.staging != "" {
		errs = append(errs, removeMarked(r.staging))
	}
	return errors.Join(errs...)
}
