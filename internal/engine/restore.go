package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
	Duration time.Duration `json:"duration_ns"`
}

// controlTemp holds pg_control until everything else is on disk: without global/pg_control PostgreSQL does not start.
const controlTemp = "global/pg_control.holdfast.tmp"

// Run restores. Every file's SHA-1 is compared with the manifest. On error or cancellation the directories hold a part of
// the files and no pg_control, so that nothing can start on them; empty them and restore again.
func (p *RestorePlan) Run(ctx context.Context) (*RestoreResult, error) {
	s := p.s
	began := s.o.Now()
	release, err := s.lock("restore")
	if err != nil {
		return nil, err
	}
	err = p.run(ctx)
	if err = errors.Join(err, p.closeRoots(), release()); err != nil {
		return nil, fmt.Errorf("restore of backup %s to %s: %w", p.Label, p.DataDir, err)
	}
	return &RestoreResult{Label: p.Label, Files: p.Files, Bytes: p.Bytes, Duration: s.o.Now().Sub(began)}, nil
}

func (p *RestorePlan) run(ctx context.Context) error {
	s := p.s
	if err := p.checkEmpty(); err != nil { // again: time has passed since the plan was shown
		return err
	}
	s.step("restore", "directories", p.DataDir)
	own := p.owners()
	if err := p.makeDirs(own); err != nil {
		return err
	}
	s.step("restore", "files", string(p.Label))
	if err := p.restoreFiles(ctx, own); err != nil {
		return err
	}
	s.step("restore", "settings", string(p.Type))
	if err := p.writeRecovery(own); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.step("restore", "sync", p.DataDir)
	for _, r := range p.roots {
		if err := durable.SyncFS(r.dir); err != nil {
			return err
		}
	}
	s.step("restore", "control", p.DataDir)
	global := filepath.Join(p.DataDir, "global")
	return durable.Rename(filepath.Join(p.DataDir, controlTemp), filepath.Join(global, "pg_control"))
}

func (p *RestorePlan) closeRoots() error {
	var errs []error
	for i := range p.roots {
		if p.roots[i].root != nil {
			errs = append(errs, p.roots[i].root.Close())
			p.roots[i].root = nil
		}
	}
	return errors.Join(errs...)
}

// owner decides uid and gid of what is restored; -1 = leave as created.
type restoreOwners struct {
	apply              bool
	names              *ownerNames
	defaultUID, defGID int
}

func (p *RestorePlan) owners() *restoreOwners {
	o := &restoreOwners{apply: p.o.Owners, names: newOwnerNames(), defaultUID: p.o.DefaultUID, defGID: p.o.DefaultGID}
	if o.apply { // resolve every name now: restoreOwners is read by all workers
		o.resolve(p.m.PathDefault)
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

// makeDirs makes the top directories, every path of the manifest, and the links to tablespaces and linked directories.
func (p *RestorePlan) makeDirs(own *restoreOwners) error {
	for i := range p.roots {
		r := &p.roots[i]
		if err := os.MkdirAll(r.dir, 0o700); err != nil {
			return err
		}
		root, err := os.OpenRoot(r.dir)
		if err != nil {
			return err
		}
		r.root = root
	}
	for _, path := range p.m.Paths {
		r, rel := p.place(path.Name)
		if r == nil {
			continue // the entry "pg_tblspc", parent of the tablespaces' names
		}
		// A linked directory's parents are made through the root of pg_data before it: Paths is sorted.
		if err := r.root.MkdirAll(rel, 0o700); err != nil {
			return err
		}
		mode := fs.FileMode(path.Mode)
		if mode == 0 {
			mode = 0o700
		}
		if err := r.root.Chmod(rel, mode); err != nil {
			return err
		}
		if err := own.lchown(r.root, rel, path.Owner); err != nil {
			return err
		}
	}
	data := p.roots[len(p.roots)-1].root // pg_data has the shortest prefix
	for _, l := range p.m.Links {
		rel := strings.TrimPrefix(l.Name, "pg_data/")
		dest, ok := p.Links[rel]
		if oid, isSpace := strings.CutPrefix(rel, "pg_tblspc/"); isSpace {
			r, _ := p.place("pg_tblspc/" + oid)
			if r == nil {
				return fmt.Errorf("link %s has no tablespace target in the manifest", l.Name)
			}
			dest, ok = r.dir, true
		}
		if !ok {
			continue
		}
		if err := data.MkdirAll(filepath.Dir(rel), 0o700); err != nil {
			return err
		}
		if err := data.Symlink(dest, rel); err != nil {
			return err
		}
		if err := own.lchown(data, rel, l.Owner); err != nil {
			return err
		}
	}
	return nil
}

// restoreFiles writes every file, the largest first, with ProcessMax workers.
func (p *RestorePlan) restoreFiles(ctx context.Context, own *restoreOwners) error {
	files := p.m.Files
	order := make([]int, len(files))
	for i := range files {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(min(max(files[b].Size-files[a].Size, -1), 1)) })
	p.s.o.Events(Amount{"restore", len(files), p.Bytes})
	jobs := make(chan int)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(jobs)
		for _, i := range order {
			select {
			case jobs <- i:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	for range p.o.ProcessMax {
		g.Go(func() error {
			buf := make([]byte, copyBuffer)
			for i := range jobs {
				if err := p.restoreFile(ctx, &files[i], own, buf); err != nil {
					return fmt.Errorf("%s: %w", files[i].Name, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func (p *RestorePlan) restoreFile(ctx context.Context, f *repo.File, own *restoreOwners, buf []byte) error {
	r, rel := p.place(f.Name)
	if r == nil {
		return errors.New("the manifest has no target for this file")
	}
	switch {
	case f.Name == controlName:
		rel = controlTemp
	case f.Name == "pg_data/tablespace_map": // the links are made already
		return nil
	case f.Name == "pg_data/postgresql.auto.conf" && p.Type == TargetPreserve:
		return nil
	}
	if dest, ok := p.Links[strings.TrimPrefix(f.Name, "pg_data/")]; ok { // a linked file: written at its destination
		return p.writeLinkedFile(ctx, f, dest, own, buf)
	}
	return p.writeFile(ctx, f, r.root, rel, own, buf)
}

func (p *RestorePlan) writeLinkedFile(ctx context.Context, f *repo.File, dest string, own *restoreOwners, buf []byte) error {
	if !filepath.IsAbs(dest) {
		dest = filepath.Join(p.DataDir, filepath.Dir(strings.TrimPrefix(f.Name, "pg_data/")), dest)
	}
	if err := os.MkdirAll(filepath.Dir(dest), 0o700); err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(dest))
	if err != nil {
		return err
	}
	return errors.Join(p.writeFile(ctx, f, root, filepath.Base(dest), own, buf), durable.SyncFS(filepath.Dir(dest)), root.Close())
}

// writeFile is the read chain of a restore: object → decrypt → decompress → SHA-1 → file.
func (p *RestorePlan) writeFile(ctx context.Context, f *repo.File, root *os.Root, rel string, own *restoreOwners, buf []byte) (err error) {
	out, err := root.OpenFile(rel, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	if f.Size > 0 {
		if err := p.writeContent(ctx, f, out, buf); err != nil {
			return err
		}
	}
	mode := fs.FileMode(f.Mode)
	if mode == 0 {
		mode = 0o600
	}
	if err := out.Chmod(mode); err != nil {
		return err
	}
	if own.apply {
		uid, gid := own.resolve(f.Owner)
		if err := out.Chown(uid, gid); err != nil {
			return err
		}
	}
	mtime := time.Unix(f.Timestamp, 0)
	if err := root.Chtimes(rel, mtime, mtime); err != nil {
		return err
	}
	p.s.o.Events(FileDone{"restore", f.Name, f.Size, f.RepoSize, f.SHA1})
	return nil
}

func (p *RestorePlan) writeContent(ctx context.Context, f *repo.File, out *os.File, buf []byte) error {
	object, offset, length, spec := p.m.Object(p.s.o.Stanza, f)
	in, err := p.s.o.Storage.Open(ctx, object, offset, length)
	if err != nil {
		return err
	}
	defer in.Close()
	sr, err := repo.NewStreamReader(in, spec)
	if err != nil {
		return fmt.Errorf("%s: %w", object, err)
	}
	defer sr.Close()
	var data []byte // pg_control is changed before it is written
	isControl := f.Name == controlName
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, rerr := io.ReadFull(sr, buf)
		if isControl {
			if len(data)+n > 64<<10 {
				return errors.New("pg_control is too large")
			}
			data = append(data, buf[:n]...)
		} else if _, err := out.Write(buf[:n]); err != nil {
			return err
		}
		p.s.o.Events(Moved{int64(n)})
		if rerr == io.EOF || rerr == io.ErrUnexpectedEOF {
			break
		}
		if rerr != nil {
			return fmt.Errorf("%s: %w", object, rerr)
		}
	}
	if sums := sr.Sums(); sums.SHA1 != f.SHA1 || sums.Size != f.Size {
		return fmt.Errorf("%w: object %s gives SHA-1 %s and %d bytes, the manifest says %s and %d; run: holdfast pg verify --stanza=%s --set=%s",
			ErrCorrupt, object, sums.SHA1, sums.Size, f.SHA1, f.Size, p.Stanza, p.Label)
	}
	if isControl {
		if p.m.ArchiveStart != "" && p.m.HasFile("pg_data/backup_label") {
			// Recovery starts from backup_label. Should that get lost, this checkpoint keeps the cluster from starting.
			if err := pg.InvalidateCheckpoint(data); err != nil {
				return err
			}
		}
		_, err := out.Write(data)
		return err
	}
	return nil
}
