package engine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"holdfast/internal/durable"
	"holdfast/internal/pg"
)

// warnOnce adds to the plan's warnings what is not in them.
func (p *RestorePlan) warnOnce(text string) {
	if !slices.Contains(p.Warnings, text) {
		p.Warnings = append(p.Warnings, text)
	}
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// checkTarget looks at the directories that will be written to, decides whether what they hold may be replaced, and refuses
// otherwise: a running server, files where none are expected, another cluster.
func (p *RestorePlan) checkTarget(ctx context.Context) error {
	dir := p.o.DataDir
	if pid, running, err := pg.Running(dir); err != nil {
		return err
	} else if running {
		return fmt.Errorf("%w: %s (process %d): stop it first: pg_ctl stop -D %s", ErrTargetRunning, dir, pid, dir)
	}
	left := exists(filepath.Join(dir, manifestLeft))
	known := left || exists(filepath.Join(dir, "PG_VERSION"))
	p.Overwrites = known && (p.o.Delta || p.o.Force)
	p.Delta = known && p.o.Delta
	// What an interrupted restore left was perhaps not on disk when the machine went down: its time stamps prove nothing.
	p.trust = p.Delta && p.o.Force && !left && exists(filepath.Join(dir, "global/pg_control"))
	if (p.o.Delta || p.o.Force) && !known {
		p.warnOnce(fmt.Sprintf("--delta and --force have no effect: %s has neither PG_VERSION nor %s, so it is no data directory", dir, manifestLeft))
	}
	var full []string
	for i := range p.roots {
		r := &p.roots[i]
		if err := syscall.Access(r.dir, 7); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s can't be written to: %w", r.dir, err)
		}
		if info, err := os.Stat(r.dir); err == nil && os.Geteuid() != 0 && r.file == "" {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
				return fmt.Errorf("%w: %s belongs to user %d, and we are %d: PostgreSQL would not start on it; run the restore as its owner, or remove the directory", ErrTargetOwner, r.dir, st.Uid, os.Geteuid())
			}
		}
		names, err := p.contents(r)
		if err != nil {
			return err
		}
		if r.fresh = len(names) == 0; !r.fresh {
			full = append(full, filepath.Join(p.contentDir(r), r.file))
		}
	}
	if len(full) == 0 {
		return nil
	}
	if !p.Overwrites {
		hint := "move it away, or restore to another directory"
		switch {
		case left:
			hint = "a restore was interrupted here: repeat it with --delta, or empty it"
		case known:
			hint = "move it away, restore to another directory, or let --delta keep what is right in it and replace the rest"
		}
		return fmt.Errorf("%w: %s: %s; nothing was changed", ErrTargetNotEmpty, strings.Join(full, ", "), hint)
	}
	if exists(filepath.Join(dir, "postmaster.pid")) {
		return fmt.Errorf("%w: %s has a postmaster.pid, and its process is not among this host's; when no server works on it elsewhere either, remove the file", ErrTargetRunning, dir)
	}
	return p.checkForeign(ctx)
}

// contents names what stands where the restore will write, except for what it expects there.
func (p *RestorePlan) contents(r *restoreRoot) ([]string, error) {
	if r.file != "" {
		if exists(r.path()) {
			return []string{r.file}, nil
		}
		return nil, nil
	}
	entries, err := os.ReadDir(p.contentDir(r))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if !p.stays(r.prefix, e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// stays says of an entry of a root's top directory that a restore leaves it alone.
func (p *RestorePlan) stays(prefix, name string) bool {
	if name == lostAndFound {
		return true
	}
	if prefix != "pg_data" {
		return false
	}
	switch name {
	case manifestLeft:
		return true
	case "postgresql.auto.conf", "recovery.signal", "standby.signal":
		return p.Type == TargetPreserve
	}
	return false
}

// checkForeign refuses, unless forced, to overwrite what seems to be another cluster's.
func (p *RestorePlan) checkForeign(ctx context.Context) error {
	var why []string
	id, version, err := p.targetCluster(ctx)
	switch {
	case err != nil:
		return err
	case id != 0 && id != p.SystemID:
		why = append(why, fmt.Sprintf("%s holds the cluster with system identifier %d, the backup is of %d", p.DataDir, id, p.SystemID))
	case id == 0 && version != "" && version != p.Version:
		why = append(why, fmt.Sprintf("%s is of PostgreSQL %s, the backup of %s", p.DataDir, version, p.Version))
	}
	for i := range p.roots {
		r := &p.roots[i]
		if r.prefix == "pg_data" || r.fresh {
			continue
		}
		link := filepath.Join(p.DataDir, strings.TrimPrefix(r.prefix, "pg_data/")) // a tablespace's prefix is the link's path already
		here, err1 := os.Stat(link)
		there, err2 := os.Stat(r.path())
		if err1 != nil || err2 != nil || !os.SameFile(here, there) {
			why = append(why, fmt.Sprintf("%s holds files and is not linked from %s", filepath.Join(p.contentDir(r), r.file), link))
		}
	}
	if len(why) == 0 {
		return nil
	}
	text := strings.Join(why, "; ")
	if !p.o.Force {
		return fmt.Errorf("%w: %s: restore to another directory, or overwrite it with --force; nothing was changed", ErrTargetNotEmpty, text)
	}
	p.trust = false // equal sizes and times prove nothing across clusters
	p.warnOnce(text + ": it is overwritten because of --force")
	return nil
}

// targetCluster reads which cluster stands at the target: from pg_control, or from the manifest that an interrupted restore
// left. 0 when neither can be read.
func (p *RestorePlan) targetCluster(ctx context.Context) (id uint64, version string, err error) {
	if v, err := pg.ReadVersionFile(p.DataDir); err == nil {
		version = v.String()
	}
	c, err := p.s.readControl(ctx, p.DataDir)
	if ctx.Err() != nil {
		return 0, "", ctx.Err()
	}
	if err == nil {
		return c.SystemID, version, nil
	}
	f, err := os.Open(filepath.Join(p.DataDir, manifestLeft))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, version, nil
	}
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	section := ""
	for lines := bufio.NewScanner(f); lines.Scan() && section != "[backup:target]"; {
		line := lines.Text()
		if strings.HasPrefix(line, "[") {
			section = line
		}
		if v, ok := strings.CutPrefix(line, "db-system-id="); ok && section == "[backup:db]" {
			id, _ = strconv.ParseUint(v, 10, 64) // 0 for what is no number
		}
	}
	return id, version, nil // a left-over that can't be read tells nothing
}

// clean makes the target unusable and then removes what is not in the backup, in the directories of this cluster only.
func (r *restoreRun) clean(ctx context.Context) error {
	if r.o.SpoolDir != "" {
		if err := os.RemoveAll(filepath.Join(r.o.SpoolDir, "archive", r.Stanza)); err != nil {
			return err
		}
	}
	if !r.Overwrites {
		return nil
	}
	if err := r.removeControl(); err != nil {
		return err
	}
	for i := range r.roots {
		t := &r.roots[i]
		name, rel := t.prefix, "."
		switch {
		case t.file != "":
			continue
		case t.tablespace():
			rel = r.spaceDir()
			name += "/" + rel
			if info, err := t.root.Lstat(rel); errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			} else if !info.IsDir() || r.m.Path(name) == nil {
				if err := t.root.RemoveAll(rel); err != nil {
					return err
				}
				r.removed++
				continue
			}
		}
		if err := r.cleanDir(ctx, t, name, rel); err != nil {
			return err
		}
	}
	r.s.step("restore", "clean", fmt.Sprintf("%d removed", r.removed))
	return nil
}

// removeControl takes pg_control away, durably: from here on nothing can start on the directory. Where a link stands in the
// place of its directory, the link goes and what is behind it stays.
func (r *restoreRun) removeControl() error {
	t, rel := r.place(controlName)
	dir := path.Dir(rel)
	info, err := t.root.Lstat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case !info.IsDir():
		rel, dir = dir, path.Dir(dir)
		r.removed++
	}
	if err := t.root.Remove(rel); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(filepath.Join(t.dir, dir))
}

// cleanDir removes what is in one directory and not in the backup, or of another kind there.
func (r *restoreRun) cleanDir(ctx context.Context, t *restoreRoot, name, rel string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := t.root.Open(rel)
	if err != nil {
		return err
	}
	entries, err := d.ReadDir(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return err
	}
	for _, e := range entries {
		child, childRel := name+"/"+e.Name(), path.Join(rel, e.Name())
		if rel == "." && r.stays(t.prefix, e.Name()) {
			continue
		}
		right := false
		if dest, ok := r.links[child]; ok {
			if e.Type()&fs.ModeSymlink != 0 {
				got, err := t.root.Readlink(childRel)
				if err != nil {
					return err
				}
				right = got == dest
			}
		} else if e.IsDir() && r.m.Path(child) != nil {
			if err := r.cleanDir(ctx, t, child, childRel); err != nil {
				return err
			}
			right = true
		} else if e.Type().IsRegular() {
			right = r.m.HasFile(child) && child != tablespaceMap
		}
		if right {
			continue
		}
		if err := t.root.RemoveAll(childRel); err != nil {
			return err
		}
		r.removed++
	}
	return nil
}

func linkCount(info fs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}

// keep finds out whether the file stands at the target already, and corrects mode, owner and time of one that does.
func (w *restoreWorker) keep(ctx context.Context, t restoreTarget) (kept bool, err error) {
	info, err := t.root.Lstat(t.rel)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	longer := info.Size() > t.Size
	if !info.Mode().IsRegular() || info.Size() < t.Size || linkCount(info) > 1 { // another name's mode is not ours to change
		return false, nil
	}
	if w.trust && (longer || info.ModTime().Unix() != t.Timestamp || t.Timestamp >= w.m.TimeCopyStart) {
		return false, nil
	}
	flags := os.O_RDONLY | syscall.O_NOFOLLOW
	if longer {
		flags = os.O_RDWR | syscall.O_NOFOLLOW
	}
	f, err := t.root.OpenFile(t.rel, flags, 0)
	if errors.Is(err, fs.ErrPermission) {
		return false, nil // its directory may be written to: it is replaced
	}
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if !w.trust {
		if sum, err := w.hashFile(ctx, f, t.Size); err != nil || sum != t.SHA1 {
			return false, err
		}
	}
	if longer {
		if err := f.Truncate(t.Size); err != nil {
			return false, err
		}
	}
	w.kept.Add(1)
	w.s.o.Events(Moved{t.Size})
	return true, w.complete(t, f)
}
