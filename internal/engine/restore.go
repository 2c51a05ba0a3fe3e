package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/durable"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// RestoreResult is what a finished restore says of itself.
type RestoreResult struct {
	Label    repo.Label    `json:"label"`
	Files    int           `json:"files"`
	Bytes    int64         `json:"bytes"`
	Kept     int           `json:"kept"`    // files that were right already
	Removed  int           `json:"removed"` // files, links and directory trees that were not in the backup
	Duration time.Duration `json:"duration_ns"`
}

// restoreRun is one run of a plan.
type restoreRun struct {
	*RestorePlan
	own      *restoreOwners
	rate     *rate
	syncEach bool       // the kernel does not report write errors of syncfs
	disks    []*os.File // a directory on each file system written to, open from the begin so that all its write errors are learned
	devices  map[uint64]bool
	removed  int
	kept     atomic.Int64
}

// Run restores. Every file's SHA-1 is compared with the manifest. On error or cancellation the directories hold a part of
// the files and no pg_control, so that nothing can start on them, and the manifest as backup.manifest: a restore with Delta
// goes on from there.
func (p *RestorePlan) Run(ctx context.Context) (*RestoreResult, error) {
	s := p.s
	began := s.o.Now()
	release, err := s.lock("restore")
	if err != nil {
		return nil, err
	}
	r := &restoreRun{RestorePlan: p, rate: newRate(p.o.Rate, s.o.Now), syncEach: !durable.ReliableSyncFS(), devices: map[uint64]bool{}}
	err = r.run(ctx)
	if err = errors.Join(err, r.closeRoots(), release()); err != nil {
		return nil, fmt.Errorf("restore of backup %s to %s: %w", p.Label, p.DataDir, err)
	}
	return &RestoreResult{Label: p.Label, Files: p.Files, Bytes: p.Bytes, Kept: int(r.kept.Load()), Removed: r.removed,
		Duration: s.o.Now().Sub(began)}, nil
}

func (r *restoreRun) run(ctx context.Context) error {
	s := r.s
	if err := r.checkTarget(ctx); err != nil { // again: time has passed since the plan was shown
		return err
	}
	s.step("restore", "directories", r.DataDir)
	r.own = r.owners()
	if err := r.openRoots(); err != nil {
		return err
	}
	if err := r.saveManifest(); err != nil {
		return err
	}
	if err := r.clean(ctx); err != nil {
		return err
	}
	if err := r.makeDirs(); err != nil {
		return err
	}
	s.step("restore", "files", string(r.Label))
	if err := r.restoreFiles(ctx); err != nil {
		return err
	}
	s.step("restore", "settings", string(r.Type))
	if err := r.writeRecovery(r.own); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.finish()
}

// finish makes everything durable, and pg_control appear as the last thing.
func (r *restoreRun) finish() error {
	control, err := r.prepareControl()
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(r.DataDir, manifestLeft)); err != nil {
		return err
	}
	for _, d := range r.disks {
		r.s.step("restore", "sync", filepath.Clean(d.Name()))
		if err := durable.SyncFSFile(d); err != nil {
			return err
		}
	}
	r.s.step("restore", "control", r.DataDir)
	return durable.Rename(control+controlSuffix, control)
}

// prepareControl changes the restored pg_control, still under its temporary name, so that the cluster can't start without
// backup_label; it returns the final path.
func (r *restoreRun) prepareControl() (string, error) {
	root, rel := r.place(controlName)
	control := filepath.Join(root.dir, rel)
	if r.m.ArchiveStart == "" || !r.m.HasFile("pg_data/backup_label") {
		return control, nil
	}
	data, err := readRoot(root.root, rel+controlSuffix)
	if err != nil {
		return "", err
	}
	// Recovery starts from backup_label. Should that get lost, this checkpoint keeps the cluster from starting.
	if err := pg.InvalidateCheckpoint(data, r.s.o.PGVersion); err != nil {
		return "", fmt.Errorf("%s: %w", controlName, err)
	}
	f, err := root.root.OpenFile(rel+controlSuffix, os.O_WRONLY, 0)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	mtime := time.Unix(r.m.File(controlName).Timestamp, 0)
	return control, root.root.Chtimes(rel+controlSuffix, mtime, mtime)
}

// openRoots makes the top directories and opens them.
func (r *restoreRun) openRoots() error {
	var owner *durable.Owner
	if r.own.apply {
		uid, gid := r.own.resolve(r.m.PathDefault)
		owner = &durable.Owner{UID: uid, GID: gid}
	}
	for i := range r.roots {
		t := &r.roots[i]
		if err := durable.MkdirAllOwned(t.dir, 0o700, owner); err != nil {
			return err
		}
		var err error
		if t.root, err = os.OpenRoot(t.dir); err != nil {
			return err
		}
		if err := r.reach(t, "."); err != nil {
			return err
		}
	}
	return nil
}

// reach notes the file system of a directory for the final sync: parts of a data directory may be mounted from elsewhere.
func (r *restoreRun) reach(t *restoreRoot, rel string) error {
	info, err := t.root.Stat(rel)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && r.devices[st.Dev] {
		return nil
	}
	d, err := t.root.Open(rel)
	if err != nil {
		return err
	}
	r.disks = append(r.disks, d)
	if ok {
		r.devices[st.Dev] = true
	}
	return nil
}

func (r *restoreRun) closeRoots() error {
	var errs []error
	for i := range r.roots {
		t := &r.roots[i]
		if t.root != nil {
			errs = append(errs, t.root.Close())
		}
		t.root = nil
	}
	for _, d := range r.disks {
		errs = append(errs, d.Close())
	}
	r.disks = nil
	return errors.Join(errs...)
}

// saveManifest leaves the manifest in the data directory while the restore is under way. It says that the directory is this
// restore's, which PG_VERSION may not yet do. The passphrase stays out of it.
func (r *restoreRun) saveManifest() error {
	var owner *durable.Owner
	if r.own.apply {
		uid, gid := r.own.resolve(r.m.FileDefault)
		owner = &durable.Owner{UID: uid, GID: gid}
	}
	f, err := durable.CreateOwned(filepath.Join(r.DataDir, manifestLeft), 0o600, owner)
	if err != nil {
		return err
	}
	defer f.Abort() // after Commit it does nothing
	m := *r.m
	m.CipherPass = ""
	if err := m.EncodeTo(f); err != nil {
		return err
	}
	return f.Commit()
}

// restoreOwners decides uid and gid of what is restored.
type restoreOwners struct {
	apply              bool
	names              *ownerNames
	defaultUID, defGID int
}

func (p *RestorePlan) owners() *restoreOwners {
	o := &restoreOwners{apply: p.o.Owners, names: newOwnerNames(), defaultUID: p.o.DefaultUID, defGID: p.o.DefaultGID}
	if o.apply { // resolve every name now: restoreOwners is read by all workers
		for _, w := range []repo.Owner{p.m.PathDefault, p.m.FileDefault, p.m.LinkDefault} {
			o.resolve(w)
		}
		for i := range p.m.Files {
			o.resolve(p.m.Files[i].Owner)
		}
		for i := range p.m.Paths {
			o.resolve(p.m.Paths[i].Owner)
		}
		for i := range p.m.Links {
			o.resolve(p.m.Links[i].Owner)
		}
	}
	return o
}

// resolve looks a name up (or finds it remembered).
func (o *restoreOwners) resolve(w repo.Owner) (uid, gid int) {
	uid, gid = -1, -1
	if w.User != "" {
		uid = o.names.uid(w.User)
	}
	if w.Group != "" {
		gid = o.names.gid(w.Group)
	}
	if uid < 0 {
		uid = o.defaultUID
	}
	if gid < 0 {
		gid = o.defGID
	}
	return uid, gid
}

func (o *restoreOwners) lchown(r *os.Root, name string, w repo.Owner) error {
	if !o.apply {
		return nil
	}
	uid, gid := o.resolve(w)
	return r.Lchown(name, uid, gid)
}

// makeDirs makes every path of the manifest, and the links to tablespaces and to what is behind other links.
func (r *restoreRun) makeDirs() error {
	for i := range r.m.Paths {
		p := &r.m.Paths[i]
		t, rel := r.place(p.Name)
		if t == nil {
			continue // the entry "pg_tblspc", parent of the tablespaces' names
		}
		if err := t.root.MkdirAll(rel, 0o700); err != nil {
			return err
		}
		if err := r.reach(t, rel); err != nil {
			return err
		}
		if rel == "." && t.tablespace() && !r.tablespaceAlone(t) {
			continue // a directory that others use too keeps its mode
		}
		mode := fs.FileMode(p.Mode)
		if mode == 0 {
			mode = 0o700
		}
		if err := t.root.Chmod(rel, mode); err != nil {
			return err
		}
		if err := r.own.lchown(t.root, rel, p.Owner); err != nil {
			return err
		}
	}
	owner := map[string]repo.Owner{}
	for i := range r.m.Links {
		owner[r.m.Links[i].Name] = r.m.Links[i].Owner
	}
	for name, dest := range r.links {
		t, rel := r.linkPlace(name)
		if err := t.root.MkdirAll(path.Dir(rel), 0o700); err != nil {
			return err
		}
		err := t.root.Symlink(dest, rel)
		if errors.Is(err, fs.ErrExist) && r.Overwrites { // clean has removed everything but the right link
			err = nil
		}
		if err != nil {
			return err
		}
		w, ok := owner[name]
		if !ok {
			w = r.m.PathDefault
		}
		if err := r.own.lchown(t.root, rel, w); err != nil {
			return err
		}
	}
	return nil
}

// tablespaceAlone says that a tablespace's directory holds nothing but what PostgreSQL puts there.
func (r *restoreRun) tablespaceAlone(t *restoreRoot) bool {
	entries, err := os.ReadDir(t.dir)
	return err == nil && !slices.ContainsFunc(entries, func(e fs.DirEntry) bool {
		return !strings.HasPrefix(e.Name(), "PG_") && e.Name() != lostAndFound
	})
}

// How much of a bundle one worker takes at a time, in stored bytes, and how large a hole between two wanted slices is
// read over instead of asking the store once more.
const (
	restoreChunk = 32 << 20
	restoreGap   = 64 << 10
)

// restoreJob is what one worker does in one go: slices of one bundle in their order, or one file.
type restoreJob struct {
	files []int32 // indexes in the manifest
	bytes int64   // original
}

// jobs cuts the work up, the largest first: these decide when the last worker is done. Empty files need no reading and
// come last.
func (r *restoreRun) jobs() []restoreJob {
	files := r.m.Files
	order := make([]int32, len(files))
	for i := range files {
		order[i] = int32(i)
	}
	bundle := func(f *repo.File) int64 {
		if f.Size == 0 || r.isEmptied(f.Name) {
			return -1 // nothing is read
		}
		return f.BundleID
	}
	slices.SortFunc(order, func(a, b int32) int {
		x, y := &files[a], &files[b]
		switch bx, by := bundle(x), bundle(y); {
		case bx != by:
			return int(min(max(bx-by, -1), 1))
		case bx > 0 && x.Reference != y.Reference:
			return strings.Compare(string(x.Reference), string(y.Reference))
		case bx > 0 && x.BundleOffset != y.BundleOffset:
			return int(min(max(x.BundleOffset-y.BundleOffset, -1), 1))
		}
		return int(a - b)
	})
	var all []restoreJob
	for from := 0; from < len(order); {
		first := &files[order[from]]
		id := bundle(first)
		job := restoreJob{}
		var stored int64
		to := from
		for ; to < len(order); to++ {
			f := &files[order[to]]
			if to > from && (bundle(f) != id || id == 0 || id > 0 && f.Reference != first.Reference || stored+f.RepoSize > restoreChunk || to-from >= 1000) {
				break
			}
			if id >= 0 {
				stored += f.RepoSize
				job.bytes += f.Size
			}
		}
		job.files = order[from:to]
		all = append(all, job)
		from = to
	}
	slices.SortStableFunc(all, func(a, b restoreJob) int { return int(min(max(b.bytes-a.bytes, -1), 1)) })
	return all
}

// restoreFiles writes every file with ProcessMax workers.
func (r *restoreRun) restoreFiles(ctx context.Context) error {
	r.s.o.Events(Amount{"restore", len(r.m.Files), r.Bytes})
	all := r.jobs()
	queue := make(chan restoreJob)
	g, ctx := errgroup.WithContext(ctx)
	workers, t := r.s.crewOf(r.o.ProcessMax)
	ctx = t.with(ctx) // before any goroutine looks at it
	g.Go(func() error {
		defer close(queue)
		for _, j := range all {
			select {
			case queue <- j:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			w := &restoreWorker{restoreRun: r, buf: make([]byte, copyBuffer)}
			for j := range queue {
				t.take()
				err := w.do(ctx, j)
				t.give()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}
