package engine

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// scan walks a data directory and fills the manifest's targets, paths, links and files (format page, section 14).
type scan struct {
	ctx      context.Context
	m        *repo.Manifest
	root     string // the data directory
	version  pg.Version
	spaceDir string // of this version inside a tablespace
	online   bool
	exclude  map[string]bool // manifest names relative to pg_data; a trailing slash means contents only
	names    *ownerNames
	warn     func(format string, a ...any)
	spaces   map[string]pg.Tablespace // by oid; nil when offline
	linked   []string                 // destinations of links met, absolute
	real     map[string]string        // manifest directory → where it really is, for linked directories and tablespaces
}

var (
	tempRelation = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^t[0-9]+_[0-9]+(_(fsm|vm))?(\.[0-9]+)?$`) })
	relationFork = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^([0-9]+)(_(fsm|vm|init))?(\.[0-9]+)?$`) })
	databaseDir  = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^(pg_data/global|pg_data/base/[0-9]+|pg_tblspc/[0-9]+/[^/]+/[0-9]+)$`)
	})
)

// Root files and directories that a backup leaves out.
var (
	skipRootFile = map[string]bool{"postmaster.pid": true, "postmaster.opts": true, "backup_label": true, "backup_label.old": true,
		"postgresql.auto.conf.tmp": true, "recovery.signal": true, "standby.signal": true, "backup_manifest": true,
		"backup_manifest.tmp": true, "backup.manifest": true, "tablespace_map": true, "tablespace_map.old": true}
	skipContents = map[string]bool{"pg_data/pg_dynshmem": true, "pg_data/pg_notify": true, "pg_data/pg_replslot": true,
		"pg_data/pg_serial": true, "pg_data/pg_snapshots": true, "pg_data/pg_stat_tmp": true, "pg_data/pg_subtrans": true}
)

const tempPrefix = "pgsql_tmp"

// run fills the manifest. Files that vanish while it looks are no error; an unreadable directory is.
func (s *scan) run() error {
	info, err := os.Stat(s.root)
	if err != nil {
		return err
	}
	s.real = map[string]string{"pg_data": s.root}
	s.m.Targets = append(s.m.Targets, repo.Target{Name: "pg_data", Path: s.root})
	owner := s.owner(info)
	s.m.PathDefault = owner
	s.m.LinkDefault = repo.Owner{User: owner.User, Group: owner.Group}
	s.m.FileDefault = repo.Owner{User: owner.User, Group: owner.Group, Mode: owner.Mode & 0o640}
	if err := s.dir("pg_data", s.root, info); err != nil {
		return err
	}
	slices.SortFunc(s.m.Files, func(a, b repo.File) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.m.Paths, func(a, b repo.Path) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.m.Links, func(a, b repo.Link) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.m.Targets, func(a, b repo.Target) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// dir records one directory and what is in it.
func (s *scan) dir(name, real string, info fs.FileInfo) error {
	if err := s.ctx.Err(); err != nil {
		return err
	}
	s.m.Paths = append(s.m.Paths, repo.Path{Name: name, Owner: s.owner(info)})
	if s.exclude[name+"/"] || skipContents[name] || s.online && name == "pg_data/pg_wal/archive_status" {
		return nil
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		if os.IsNotExist(err) && name != "pg_data" {
			s.m.Paths = s.m.Paths[:len(s.m.Paths)-1]
			return nil // dropped meanwhile, with a database or a tablespace
		}
		return err
	}
	inDatabase := databaseDir().MatchString(name)
	var unlogged map[string]bool
	if inDatabase {
		unlogged = unloggedRelations(entries)
	}
	for _, e := range entries {
		child := name + "/" + e.Name()
		if s.skip(name, e, inDatabase, unlogged) || s.exclude[child] {
			continue
		}
		if err := s.entry(child, filepath.Join(real, e.Name()), e); err != nil {
			return err
		}
	}
	return nil
}

// skip applies the rules of section 14 that look at a name and its directory only.
func (s *scan) skip(dir string, e fs.DirEntry, inDatabase bool, unlogged map[string]bool) bool {
	n := e.Name()
	switch {
	case strings.HasPrefix(n, tempPrefix):
		return true
	case dir == "pg_data" && skipRootFile[n]:
		return true
	case s.online && dir == "pg_data/pg_wal" && e.Type().IsRegular():
		return true
	case !inDatabase:
		return false
	case n == "pg_internal.init" || strings.HasPrefix(n, "pg_internal.init."):
		return true
	case tempRelation().MatchString(n):
		return true
	}
	if m := relationFork().FindStringSubmatch(n); m != nil && unlogged[m[1]] && m[3] != "init" {
		return true
	}
	return false
}

// unloggedRelations are the file nodes that have an init fork.
func unloggedRelations(entries []fs.DirEntry) map[string]bool {
	var set map[string]bool
	for _, e := range entries {
		if node, ok := strings.CutSuffix(e.Name(), "_init"); ok {
			if _, err := strconv.ParseUint(node, 10, 32); err == nil {
				if set == nil {
					set = make(map[string]bool)
				}
				set[node] = true
			}
		}
	}
	return set
}

func (s *scan) entry(name, real string, e fs.DirEntry) error {
	info, err := os.Lstat(real)
	if os.IsNotExist(err) {
		return nil // removed since ReadDir; WAL replays the removal
	}
	if err != nil {
		return err
	}
	if strings.ContainsAny(name, "\n\r\x00") {
		return fmt.Errorf("%q: the repository format can't hold a line break in a file name; rename or exclude it", real)
	}
	if path.Dir(name) == "pg_data/pg_tblspc" {
		if info.Mode()&fs.ModeSymlink == 0 {
			return fmt.Errorf("%s: only symbolic links to tablespaces belong in pg_tblspc", real)
		}
		return s.tablespace(name, real, info)
	}
	switch {
	case info.IsDir():
		return s.dir(name, real, info)
	case storage.IsTemp(name) || name == controlTmpName:
		// No object can have such a name, and the restore writes under the second itself.
		s.warn("%s is an unfinished file of pgbackrest or Holdfast: left out; it can be removed", real)
	case info.Mode().IsRegular():
		s.file(name, info)
	case info.Mode()&fs.ModeSymlink != 0:
		return s.link(name, real, info)
	default:
		s.warn("%s is neither file, directory nor link: left out", real)
	}
	return nil
}

func (s *scan) file(name string, info fs.FileInfo) {
	s.m.Files = append(s.m.Files, repo.File{Name: name, Owner: s.owner(info), Size: info.Size(), SizeOrig: -1,
		Timestamp: info.ModTime().Unix()})
}

// link records a symbolic link and what it leads to, under the link's name.
func (s *scan) link(name, real string, linkInfo fs.FileInfo) error {
	dest, err := os.Readlink(real)
	if err != nil {
		return err
	}
	abs, info, err := s.resolve(real, dest)
	if err != nil {
		return err
	}
	o := s.owner(linkInfo)
	s.m.Links = append(s.m.Links, repo.Link{Name: name, Destination: dest, Owner: repo.Owner{User: o.User, Group: o.Group}})
	t := repo.Target{Name: name, Path: dest, Link: true}
	if info.IsDir() {
		s.m.Targets = append(s.m.Targets, t)
		s.real[name] = abs
		return s.dir(name, abs, info)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s: the link leads to neither a file nor a directory", real)
	}
	t.Path, t.File = path.Dir(dest), path.Base(dest)
	s.m.Targets = append(s.m.Targets, t)
	s.real[name] = abs
	s.file(name, info)
	return nil
}

// resolve follows one link and refuses what a restore could not rebuild: a link to a link, into the data directory, or
// into another link's destination.
func (s *scan) resolve(real, dest string) (string, fs.FileInfo, error) {
	from, err := filepath.EvalSymlinks(filepath.Dir(real)) // a relative way begins where the link really is
	if err != nil {
		return "", nil, fmt.Errorf("follow the link %s: %w", real, err)
	}
	to := dest
	if !filepath.IsAbs(to) {
		to = from + "/" + dest
	}
	info, err := os.Lstat(to)
	if err != nil {
		return "", nil, fmt.Errorf("follow the link %s: %w", real, err)
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return "", nil, fmt.Errorf("%s is a link to a link (%s): point it at the final directory", real, to)
	}
	abs, err := filepath.EvalSymlinks(to)
	if err != nil {
		return "", nil, fmt.Errorf("follow the link %s: %w", real, err)
	}
	root := realPath(s.root)
	for _, other := range append([]string{root}, s.linked...) {
		if within(abs, other) || within(other, abs) && other != root {
			return "", nil, fmt.Errorf("%s leads to %s, which overlaps with %s", real, abs, other)
		}
	}
	if within(root, abs) {
		return "", nil, fmt.Errorf("%s leads to %s, which contains the data directory", real, abs)
	}
	s.linked = append(s.linked, abs)
	return abs, info, nil
}

// within says whether p is dir or below it.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// tablespace records pg_tblspc/<oid>: a target, a link, and the files of this PostgreSQL version below it.
func (s *scan) tablespace(name, real string, linkInfo fs.FileInfo) error {
	oid := path.Base(name)
	if _, err := strconv.ParseUint(oid, 10, 32); err != nil {
		return fmt.Errorf("%s: the name is not a tablespace number", real)
	}
	dest, err := os.Readlink(real)
	if err != nil {
		return err
	}
	tsName := "ts" + oid
	if s.spaces != nil {
		ts, ok := s.spaces[oid]
		if !ok {
			return fmt.Errorf("tablespace %s (%s) is in the data directory but not in the database: it was created or dropped during the backup; run the backup again", oid, dest)
		}
		tsName = ts.Name
	}
	abs, _, err := s.resolve(real, dest)
	if err != nil {
		return err
	}
	o := s.owner(linkInfo)
	s.m.Links = append(s.m.Links, repo.Link{Name: name, Destination: dest, Owner: repo.Owner{User: o.User, Group: o.Group}})
	key := "pg_tblspc/" + oid
	s.m.Targets = append(s.m.Targets, repo.Target{Name: key, Path: dest, Link: true, TablespaceID: oid, TablespaceName: tsName})
	parent, err := os.Stat(filepath.Dir(real))
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(s.m.Paths, func(p repo.Path) bool { return p.Name == "pg_tblspc" }) {
		s.m.Paths = append(s.m.Paths, repo.Path{Name: "pg_tblspc", Owner: s.owner(parent)})
	}
	s.m.Paths = append(s.m.Paths, repo.Path{Name: key, Owner: s.owner(parent)})
	s.real[key] = abs
	versionDir := s.spaceDir
	info, err := os.Stat(filepath.Join(abs, versionDir))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.dir(key+"/"+versionDir, filepath.Join(abs, versionDir), info)
}

// path is where a manifest file is on disk.
func (s *scan) path(name string) string {
	dir, rest := name, ""
	for {
		if real, ok := s.real[dir]; ok {
			return filepath.Join(real, rest)
		}
		i := strings.LastIndexByte(dir, '/')
		if i < 0 {
			return filepath.Join(s.root, rest)
		}
		rest, dir = dir[i+1:]+"/"+rest, dir[:i]
		rest = strings.TrimSuffix(rest, "/")
	}
}

func (s *scan) owner(info fs.FileInfo) repo.Owner {
	o := repo.Owner{Mode: uint32(info.Mode().Perm())}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		o.User, o.Group = s.names.user(st.Uid), s.names.group(st.Gid)
	}
	return o
}
