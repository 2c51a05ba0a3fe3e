package action

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
)

// The places of a restore: which directories it replaces, and whether it may.

// target notes a directory that the restore will make, and what an undone restore left beside it.
func (p *RestorePlan) target(dir string) {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		p.Replaces = append(p.Replaces, dir)
	} else {
		p.Creates = append(p.Creates, dir)
	}
	old, _ := filepath.Glob(globEscape(dir+undoneMark) + "*") // the pattern is well-formed
	for _, o := range old {
		p.Notes = append(p.Notes, fmt.Sprintf("%s is left from a restore that was undone; remove it when you do not need it", o))
	}
}

// files checks where the set's trees go and what of the present ones would be lost.
func (p *RestorePlan) files() {
	f := p.Set.Recovery.Files
	if f == nil {
		return
	}
	var dirs []string
	for _, t := range f.Trees {
		dir, err := p.a.treeDir(t)
		if err != nil {
			p.missing("files: %v", err)
			continue
		}
		for _, other := range dirs {
			if below(dir, other) || below(other, dir) {
				p.missing("files: %s and %s of the set lie in each other", other, dir)
			}
		}
		dirs = append(dirs, dir)
		p.target(dir)
		for _, s := range p.a.skipDirs() { // never captured, so it would be lost with the old tree
			if s != dir && below(s, dir) {
				p.missing("files: %s lies inside %s, which is replaced as a whole: set files.paths so that it does not", s, dir)
			}
		}
	}
	if len(p.a.o.Files.Exclude) > 0 && len(dirs) > 0 {
		p.Notes = append(p.Notes, "files that files.exclude leaves out of backups stay as they are here: "+strings.Join(p.a.o.Files.Exclude, ", "))
	}
	// What was read counts more than what the set says; it is a little more where files changed during the backup.
	p.NeedBytes += max(f.Bytes, p.appSums.totals["files"].Bytes)
}

// below says whether path is dir or lies in it.
func below(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}

// skipDirs are directories that the files component never enters: other components and Holdfast's own.
func (a *App) skipDirs() []string {
	skip := append([]string{a.o.DumpDir, a.o.TempDir, a.o.RepoDir}, a.o.Files.SkipDirs...)
	if pb := a.o.Probackup; pb != nil {
		skip = append(skip, pb.ApartDir, pb.StagingDir)
	}
	for _, c := range a.o.Clusters {
		skip = append(skip, c.DataDir)
	}
	return skip
}

// treeDir is where a tree of the set goes here: the same place below this instance's root, provided that it is one of this
// instance's own places for files. A set from elsewhere does not decide what is replaced on this host.
func (a *App) treeDir(t catalog.Tree) (string, error) {
	var own []string
	for _, o := range a.o.Files.Trees {
		own = append(own, o.Path)
	}
	own = append(own, a.o.Files.Absent...)
	for i, o := range own {
		own[i] = "/" + strings.Trim(filepath.ToSlash(filepath.Clean(o)), "/")
	}
	want := filepath.Clean("/" + t.Path)
	if slices.Contains(own, want) && filepath.IsLocal(strings.TrimPrefix(t.Path, "/")) {
		return filepath.Join(a.o.Root, want), nil
	}
	return "", fmt.Errorf("the set holds %q, which is not among this instance's files.paths, so it is not replaced; if it is to be: alation_conf files.paths -s %s", t.Path, strings.Join(append(own, want), ","))
}

// mounts refuses directories that a mount makes impossible to replace: one that is a mount point can't be renamed, and what is
// mounted inside would be emptied with what was replaced.
func (p *RestorePlan) mounts() {
	points, err := mountPoints("/proc/self/mountinfo")
	if err != nil {
		p.missing("%v", err)
		return
	}
	for _, dir := range p.Replaces {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			p.missing("%v", err)
			continue
		}
		for _, m := range points {
			if m == real {
				p.missing("%s is a mount point, which can't be moved aside: unmount it, or use a directory below it", dir)
			} else if below(m, real) {
				p.missing("%s is mounted inside %s, which is replaced as a whole: unmount it first", m, dir)
			}
		}
	}
}

// mountPoints reads the mount points of this process (proc(5), "mountinfo": the fifth field, octal escapes).
func mountPoints(path string) ([]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close() // opened for reading: nothing to lose
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var points []string
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if fields := strings.Fields(sc.Text()); len(fields) > 4 {
			points = append(points, unescape.Replace(fields[4]))
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return points, nil
}

func (p *RestorePlan) space() {
	free := ^uint64(0)
	dirs := append([]string{}, p.Replaces...)
	dirs = append(dirs, p.Creates...)
	for _, d := range append(dirs, p.a.o.TempDir) {
		n, err := freeBytes(d)
		if err != nil {
			p.missing("%v", err)
			return
		}
		free = min(free, n)
	}
	p.FreeBytes = free
	if p.NeedBytes > 0 && uint64(p.NeedBytes) > free {
		p.missing("not enough space: %s are needed beside what is there now (it is kept until the restore has passed its checks), %s are free on the tightest file system",
			engine.Size(p.NeedBytes), engine.Size(int64(min(free, 1<<62))))
	}
}
