package repo

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// maxName bounds a name: PATH_MAX, beyond which no system could create it.
const maxName = 4096

// manifestError names the key that is wrong.
func manifestError(section, key, format string, args ...any) error {
	return fmt.Errorf("%w: [%s] %.200q: %s", ErrFormat, section, key, fmt.Sprintf(format, args...))
}

// check is what ParseManifest demands of a file and Encode of its caller. The lists must be sorted.
func (m *Manifest) check() error {
	for _, f := range []func() error{m.checkBackup, m.checkTargets, m.checkFiles, m.checkPaths, m.checkTree} {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

func (m *Manifest) checkBackup() error {
	fail := func(key, format string, args ...any) error { return manifestError(sectionBackup, key, format, args...) }
	if _, err := ParseLabel(string(m.Label)); err != nil {
		return fail("backup-label", "%v", err)
	}
	full := m.Label.FullLabel()
	switch {
	case m.Type != m.Label.Type():
		return fail("backup-type", "%.20q does not fit label %s", m.Type, m.Label)
	case m.Type == Full && m.Prior != "":
		return fail("backup-prior", "a full backup has none")
	case m.Type != Full && (m.Prior.FullLabel() != full || m.Prior >= m.Label):
		return fail("backup-prior", "%.60q is no earlier backup of the same set", m.Prior)
	case m.TimeStart < 0 || m.TimeStop < 0 || m.TimeCopyStart < 0:
		return fail("backup-timestamp-start", "a time is negative")
	case len(m.References) == 0 || m.References[len(m.References)-1] != m.Label:
		return fail("backup-reference", "the list does not end with %s", m.Label)
	}
	seen := map[Label]bool{}
	for _, ref := range m.References {
		if ref.FullLabel() != full || ref > m.Label {
			return fail("backup-reference", "%.60q is not of this backup's set", ref)
		}
		if seen[ref] {
			return fail("backup-reference", "%s appears twice", ref)
		}
		seen[ref] = true
	}
	if !isVersion(m.DB.Version) || m.DB.ID < 0 {
		return manifestError(sectionBackupDB, "db-version", "%.20q is not a PostgreSQL version", m.DB.Version)
	}
	switch m.Options.CompressType {
	case None, GZ, LZ4, ZST, BZ2:
		return nil
	}
	return manifestError(sectionOption, "option-compress-type", "%.20q is not known", m.Options.CompressType)
}

// isOID reports whether s is a tablespace's oid as PostgreSQL writes it.
func isOID(s string) bool {
	n, err := strconv.ParseUint(s, 10, 32)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

func (m *Manifest) checkTargets() error {
	for i := range m.Targets {
		t := &m.Targets[i]
		fail := func(format string, args ...any) error { return manifestError(sectionTarget, t.Name, format, args...) }
		oid, tablespace := strings.CutPrefix(t.Name, "pg_tblspc/")
		switch {
		case i > 0 && t.Name == m.Targets[i-1].Name:
			return fail("target appears twice")
		case strings.ContainsAny(t.Path, "\x00\n") || (t.Path == "" && t.File == ""):
			return fail("%.60q is not a path", t.Path)
		case strings.ContainsAny(t.File, "/\x00\n") || t.File == "." || t.File == "..":
			return fail("%.60q is not the name of a file", t.File)
		case t.Name == baseTarget && (t.Link || t.File != "" || t.TablespaceID != ""):
			return fail("the data directory must be a path")
		case t.Name != baseTarget && !t.Link:
			return fail("only the data directory is a path")
		case tablespace && (!isOID(oid) || t.TablespaceID != oid || t.File != ""):
			return fail("tablespace-id %.20q does not fit", t.TablespaceID)
		case !tablespace && t.TablespaceID != "":
			return fail("only pg_tblspc/<oid> is a tablespace")
		case !tablespace && t.Name != baseTarget:
			if err := checkName(t.Name); err != "" {
				return fail("%s", err)
			}
		}
	}
	return nil
}

// checkName says what is wrong with the name of a file, path or link, "" for nothing: it must lie below pg_data/ or
// pg_tblspc/<oid>/ and must not be able to climb out.
func checkName(name string) string {
	root, rest, _ := strings.Cut(name, "/")
	if root == "pg_tblspc" {
		var oid string
		if oid, rest, _ = strings.Cut(rest, "/"); !isOID(oid) {
			return "not a tablespace's oid"
		}
	} else if root != baseTarget {
		return "name is not below pg_data/ or pg_tblspc/<oid>/"
	}
	if len(name) > maxName {
		return "name is too long"
	}
	if strings.IndexByte(name, 0) >= 0 || strings.IndexByte(name, '\n') >= 0 {
		return "name holds a byte that no file name can have or the format cannot write"
	}
	for {
		elem, more, found := strings.Cut(rest, "/")
		if elem == "" || elem == "." || elem == ".." {
			return "name is not a clean path"
		}
		if !found {
			return ""
		}
		rest = more
	}
}

// tablespaceOf returns the target that a name below pg_tblspc/<oid> belongs to, "" for the data directory.
func tablespaceOf(name string) string {
	rest, ok := strings.CutPrefix(name, "pg_tblspc/")
	if !ok {
		return ""
	}
	oid, _, _ := strings.Cut(rest, "/")
	return name[:len("pg_tblspc/")+len(oid)]
}

func (m *Manifest) checkFiles() error {
	known := map[Label]bool{"": true}
	for _, ref := range m.References {
		known[ref] = true
	}
	spaces := map[string]bool{"": true}
	for i := range m.Targets {
		spaces[m.Targets[i].Name] = true
	}
	var size, repoSize, mapSize int64
	for i := range m.Files {
		f := &m.Files[i]
		what := checkName(f.Name)
		switch {
		case what != "":
		case i > 0 && m.Files[i-1].Name == f.Name:
			what = "name appears twice"
		case !spaces[tablespaceOf(f.Name)]:
			what = "its tablespace is not among the targets"
		case !known[f.Reference]:
			what = fmt.Sprintf("reference %.60q is not in backup-reference", f.Reference)
		default:
			what = f.check()
		}
		if what == "" && (f.Size > math.MaxInt64-size || f.RepoSize > math.MaxInt64-repoSize || f.BlockMapSize > math.MaxInt64-mapSize) {
			what = "the sizes of all files together are more than can be"
		}
		if what != "" {
			return manifestError(sectionFile, f.Name, "%s", what)
		}
		size, repoSize, mapSize = size+f.Size, repoSize+f.RepoSize, mapSize+f.BlockMapSize
	}
	return nil
}

// check says what is wrong with a file's values, "" for nothing.
func (f *File) check() string {
	switch {
	case f.Size < 0 || f.RepoSize < 0 || f.SizeOrig < -1:
		return "a size is negative"
	case f.SHA1 != "" && !isSHA1(f.SHA1):
		return "checksum is not a SHA-1"
	case f.Size == 0 && f.SHA1 != "" && f.SHA1 != emptySHA1:
		return "an empty file has another checksum"
	case f.RepoSHA1 != "" && !isSHA1(f.RepoSHA1):
		return "rck is not a SHA-1"
	case f.Mode > 0o7777:
		return "mode is out of range"
	case f.BundleID < 0 || f.BundleOffset < 0 || f.BundleID == 0 && f.BundleOffset != 0:
		return "bundle offset without a bundle, or negative"
	case f.RepoSize > math.MaxInt64-f.BundleOffset:
		return "bundle offset and size reach beyond every file"
	case f.BlockSize < 0 || f.BlockSize > maxBlock || f.BlockSize%blockUnit != 0:
		return "block size is impossible"
	case f.BlockSize > 0 && (f.BlockSumSize < defaultBlockSum || f.BlockSumSize > 16):
		return "size of the block checksums is impossible"
	case f.BlockMapSize < 0 || f.BlockMapSize > f.RepoSize || f.BlockMapSize > 0 && f.BlockSize == 0:
		return "block map is larger than what is stored, or has no block size"
	}
	for _, r := range f.PageErrors {
		if r.First > r.Last {
			return "a range of pages ends before it begins"
		}
	}
	return ""
}

func (m *Manifest) checkPaths() error {
	spaces := map[string]bool{"": true}
	for i := range m.Targets {
		spaces[m.Targets[i].Name] = true
	}
	for i := range m.Paths {
		p := &m.Paths[i]
		space := tablespaceOf(p.Name)
		switch root := p.Name == baseTarget || p.Name == "pg_tblspc" || p.Name == space && space != ""; {
		case i > 0 && m.Paths[i-1].Name == p.Name:
			return manifestError(sectionPath, p.Name, "name appears twice")
		case !spaces[space]:
			return manifestError(sectionPath, p.Name, "its tablespace is not among the targets")
		case !root:
			if what := checkName(p.Name); what != "" {
				return manifestError(sectionPath, p.Name, "%s", what)
			}
		}
		if p.Mode > 0o7777 {
			return manifestError(sectionPath, p.Name, "mode is out of range")
		}
	}
	for i := range m.Links {
		l := &m.Links[i]
		if what := checkName(l.Name); what != "" {
			return manifestError(sectionLink, l.Name, "%s", what)
		}
		if i > 0 && m.Links[i-1].Name == l.Name {
			return manifestError(sectionLink, l.Name, "name appears twice")
		}
		if l.Destination == "" || strings.ContainsAny(l.Destination, "\x00\n") {
			return manifestError(sectionLink, l.Name, "%.60q is not a destination", l.Destination)
		}
	}
	if m.FileDefault.Mode > 0o7777 || m.PathDefault.Mode > 0o7777 {
		return manifestError(sectionPathDefault, "mode", "mode is out of range")
	}
	return nil
}

// checkTree refuses what could not be in one tree: something below a file, a directory and a file of one name, a file
// behind the link of a tablespace. A link may share its name with what is reached through it.
func (m *Manifest) checkTree() error {
	spaceLinks := map[string]bool{}
	for i := range m.Links {
		if strings.HasPrefix(m.Links[i].Name, "pg_data/pg_tblspc/") {
			spaceLinks[m.Links[i].Name] = true
		}
	}
	last := ""
	below := func(section, name string) error {
		dir := name[:max(0, strings.LastIndexByte(name, '/'))]
		if dir == last {
			return nil
		}
		last = dir
		for ; dir != ""; dir = dir[:max(0, strings.LastIndexByte(dir, '/'))] {
			if spaceLinks[dir] {
				return manifestError(section, name, "lies behind the link of a tablespace")
			}
			if m.File(dir) != nil {
				return manifestError(section, name, "lies below the file %.200q", dir)
			}
		}
		return nil
	}
	for i := range m.Files {
		if err := below(sectionFile, m.Files[i].Name); err != nil {
			return err
		}
	}
	for i := range m.Paths {
		if err := below(sectionPath, m.Paths[i].Name); err != nil {
			return err
		}
		if m.File(m.Paths[i].Name) != nil {
			return manifestError(sectionPath, m.Paths[i].Name, "is also a file")
		}
	}
	for i := range m.Links {
		if err := below(sectionLink, m.Links[i].Name); err != nil {
			return err
		}
	}
	return nil
}
