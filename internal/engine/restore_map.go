package engine

import (
	"cmp"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/repo"
)

// restoreRoot maps a manifest directory, or a file that is behind a link, to its place on disk.
type restoreRoot struct {
	prefix string // "pg_data", "pg_data/<link>", "pg_tblspc/<oid>"
	dir    string // absolute; of a file: the directory that it is in
	file   string // the last element, for a file behind a link; else empty
	fresh  bool   // the directory was empty or missing when the target was last checked

	root *os.Root // while Run works
}

func (r *restoreRoot) tablespace() bool { return strings.HasPrefix(r.prefix, "pg_tblspc/") }

// path is the file or directory that the prefix stands for.
func (r *restoreRoot) path() string { return filepath.Join(r.dir, r.file) }

// Files which a restore writes itself, or never.
const (
	manifestLeft   = "backup.manifest" // in the data directory while a restore is under way
	autoConfName   = "pg_data/postgresql.auto.conf"
	tablespaceMap  = "pg_data/tablespace_map"
	leftName       = "pg_data/" + manifestLeft
	lostAndFound   = "lost+found"
	controlSuffix  = ".holdfast.tmp" // pg_control bears it until everything else is on disk
	controlTemp    = "global/pg_control" + controlSuffix
	controlTmpName = "pg_data/" + controlTemp
)

// checkManifest refuses what ParseManifest lets pass and a restore must not do: to write beside PostgreSQL's own directory
// in a tablespace, or to end without pg_control.
func (p *RestorePlan) checkManifest() error {
	if !p.m.HasFile(controlName) {
		return fmt.Errorf("the manifest has no %s: nothing could start on what it restores", controlName)
	}
	if p.m.HasFile(controlTmpName) {
		return fmt.Errorf("the manifest has a file %s, which a restore makes itself", controlTmpName)
	}
	own := p.spaceDir()
	inside := func(name string) error {
		rest, ok := strings.CutPrefix(name, "pg_tblspc/")
		if !ok {
			return nil
		}
		_, rest, deeper := strings.Cut(rest, "/")
		if first, _, _ := strings.Cut(rest, "/"); deeper && first != own {
			return fmt.Errorf("%.200q does not lie in %s: the manifest is not one of PostgreSQL %s", name, own, p.Version)
		}
		return nil
	}
	for i := range p.m.Files {
		if err := inside(p.m.Files[i].Name); err != nil {
			return err
		}
	}
	for i := range p.m.Paths {
		if err := inside(p.m.Paths[i].Name); err != nil {
			return err
		}
	}
	return nil
}

// mapTargets decides where each manifest directory goes.
func (p *RestorePlan) mapTargets() error {
	p.Tablespaces, p.Links, p.links = map[string]string{}, map[string]string{}, map[string]string{}
	p.roots = []restoreRoot{{prefix: "pg_data", dir: p.o.DataDir}}
	usedSpaces, usedLinks := map[string]bool{}, map[string]bool{}
	left := 0
	for i := range p.m.Targets {
		t := &p.m.Targets[i]
		switch {
		case !t.Link:
		case t.TablespaceID != "":
			dir, err := p.tablespaceDir(t, usedSpaces)
			if err != nil {
				return err
			}
			p.Tablespaces[t.TablespaceName] = dir
			p.links["pg_data/"+t.Name] = dir
			p.roots = append(p.roots, restoreRoot{prefix: t.Name, dir: dir})
		default:
			rel := strings.TrimPrefix(t.Name, "pg_data/")
			dest, mapped := p.o.LinkMap[rel]
			if !mapped && !p.o.LinkAll {
				left++
				continue
			}
			usedLinks[rel] = true
			if !mapped {
				dest = filepath.Join(t.Path, t.File)
			}
			p.addLink(t.Name, dest, t.File != "")
		}
	}
	if left > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%d link(s) of the data directory become plain files and directories in it; use --link-all or --link-map to keep them", left))
	}
	for k := range p.o.TablespaceMap {
		if !usedSpaces[k] {
			return fmt.Errorf("%w: it has no tablespace %q", ErrTablespaceMap, k)
		}
	}
	for rel, dest := range p.o.LinkMap { // what was no link becomes one
		name := "pg_data/" + rel
		switch {
		case usedLinks[rel]:
		case p.m.HasFile(name):
			p.addLink(name, dest, true)
		case name != "pg_data/" && p.m.Path(name) != nil:
			p.addLink(name, dest, false)
		default:
			return fmt.Errorf("%w: it has no file, directory or link %q", ErrLinkMap, rel)
		}
	}
	for i := range p.m.Links {
		name := p.m.Links[i].Name
		if strings.HasPrefix(name, "pg_data/pg_tblspc/") && p.links[name] == "" {
			return fmt.Errorf("link %.200q has no tablespace among the manifest's targets", name)
		}
	}
	slices.SortFunc(p.roots, func(a, b restoreRoot) int {
		if d := len(b.prefix) - len(a.prefix); d != 0 {
			return d
		}
		return strings.Compare(a.prefix, b.prefix)
	})
	return p.checkOverlap()
}

// tablespaceDir says where a tablespace goes: where its map says, below the base of all, or where it was.
func (p *RestorePlan) tablespaceDir(t *repo.Target, used map[string]bool) (string, error) {
	byName, named := p.o.TablespaceMap[t.TablespaceName]
	byID, numbered := p.o.TablespaceMap[t.TablespaceID]
	if named && numbered && t.TablespaceName != t.TablespaceID {
		return "", fmt.Errorf("%w: %s and %s are the same tablespace", ErrTablespaceMap, t.TablespaceName, t.TablespaceID)
	}
	var dir string
	switch {
	case numbered:
		dir, used[t.TablespaceID] = byID, true
	case named:
		dir, used[t.TablespaceName] = byName, true
	case p.o.TablespaceMapAll != "":
		if !filepath.IsLocal(t.TablespaceName) { // a name may hold anything
			return "", fmt.Errorf("%w: the name %q is no directory; map %s=<directory>", ErrTablespaceMap, t.TablespaceName, t.TablespaceID)
		}
		dir = filepath.Join(p.o.TablespaceMapAll, t.TablespaceName)
	default:
		dir = p.relocate(t.Path)
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(p.o.DataDir, "pg_tblspc", dir)
	}
	return filepath.Clean(dir), nil
}

// addLink makes name a link to dest, which may be relative to the directory that the link is in.
func (p *RestorePlan) addLink(name, dest string, file bool) {
	rel := strings.TrimPrefix(name, "pg_data/")
	p.Links[rel], p.links[name] = dest, dest
	abs := dest
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(realDir(p.o.DataDir), filepath.Dir(rel), dest) // the link will lead on from its real place
	}
	r := restoreRoot{prefix: name, dir: filepath.Clean(abs)}
	if file {
		r.dir, r.file = filepath.Dir(r.dir), filepath.Base(r.dir)
	}
	p.roots = append(p.roots, r)
}

// realDir is where a path leads to, also when the last part of it is not there yet.
func realDir(p string) string {
	if real, err := filepath.EvalSymlinks(p); err == nil || p == filepath.Dir(p) {
		return cmp.Or(real, p)
	}
	return filepath.Join(realDir(filepath.Dir(p)), filepath.Base(p))
}

// checkOverlap refuses destinations that lie in each other: the one would be restored into, or removed with, the other.
func (p *RestorePlan) checkOverlap() error {
	at := make([]string, len(p.roots))
	for i := range p.roots {
		at[i] = filepath.Join(realDir(p.roots[i].dir), p.roots[i].file)
	}
	for i := range p.roots {
		for j := i + 1; j < len(p.roots); j++ {
			a, b := &p.roots[i], &p.roots[j]
			if a.file == "" && within(at[j], at[i]) || b.file == "" && within(at[i], at[j]) || at[i] == at[j] {
				return fmt.Errorf("%w: %s in %s and %s in %s; use --tablespace-map or --link-map", ErrLinkInside, a.prefix, a.path(), b.prefix, b.path())
			}
		}
	}
	return nil
}

// relocate moves a path from below RootFrom to below RootTo.
func (p *RestorePlan) relocate(dir string) string {
	if p.o.RootFrom != "" && p.o.RootTo != "" && within(dir, p.o.RootFrom) {
		return filepath.Join(p.o.RootTo, strings.TrimPrefix(dir, p.o.RootFrom))
	}
	return dir
}

// TablespaceDirs are the directories, one per tablespace, that the restore will fill: what stands there must be moved
// away before.
func (p *RestorePlan) TablespaceDirs() []string {
	var dirs []string
	for i := range p.roots {
		if p.roots[i].tablespace() {
			dirs = append(dirs, p.contentDir(&p.roots[i]))
		}
	}
	slices.Sort(dirs)
	return dirs
}

// spaceDir is the directory of the restored cluster's version inside a tablespace.
func (p *RestorePlan) spaceDir() string {
	if p.m.DB.CatalogVersion == 0 {
		return p.version.TablespaceDirName()
	}
	return p.version.TablespaceDirOf(p.m.DB.CatalogVersion)
}

// contentDir is the directory that belongs to the restored cluster alone: in a tablespace, other versions' may stand
// beside.
func (p *RestorePlan) contentDir(r *restoreRoot) string {
	if r.tablespace() {
		return filepath.Join(r.dir, p.spaceDir())
	}
	return r.dir
}

// place is the root and the path below it of a manifest name, nil for the entry "pg_tblspc", which is no directory.
func (p *RestorePlan) place(name string) (*restoreRoot, string) {
	for i := range p.roots {
		r := &p.roots[i]
		if name == r.prefix {
			if r.file != "" {
				return r, r.file
			}
			return r, "."
		}
		if rest, ok := strings.CutPrefix(name, r.prefix+"/"); ok && r.file == "" {
			return r, rest
		}
	}
	return nil, ""
}

// linkPlace is where the link of that name is: below the root of its directory.
func (p *RestorePlan) linkPlace(name string) (*restoreRoot, string) {
	r, dir := p.place(path.Dir(name))
	return r, path.Join(dir, path.Base(name))
}

// warnOwners says which names of the manifest are given up because only root could apply them.
func (p *RestorePlan) warnOwners() {
	if p.o.Owners {
		return
	}
	names := newOwnerNames()
	seen := map[string]bool{"u:": true, "g:": true, "u:" + names.user(uint32(os.Geteuid())): true, "g:" + names.group(uint32(os.Getegid())): true}
	check := func(o *repo.Owner) {
		for _, n := range [...]struct{ key, what, name string }{{"u:", "user", o.User}, {"g:", "group", o.Group}} {
			if !seen[n.key+n.name] {
				seen[n.key+n.name] = true
				p.Warnings = append(p.Warnings, fmt.Sprintf("files of %s %q will belong to the current %s: only root can give them away", n.what, n.name, n.what))
			}
		}
	}
	for i := range p.m.Files {
		check(&p.m.Files[i].Owner)
	}
	for i := range p.m.Paths {
		check(&p.m.Paths[i].Owner)
	}
}
