package engine_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// shelf is a repository that a test fills by hand: every layout that a restore must read, whatever our own backup writes.
type shelf struct {
	t        testing.TB
	st       *storage.Mem
	pass     repo.Secret
	compress repo.CompressType
	bundle   bool
	block    int64 // block size; 0: no block incremental
	superMax int64

	owner     string // of everything
	version   string // of the program that made the backups; empty: none of pgbackrest
	offline   bool   // backups of a stopped cluster
	system    uint64
	control   string
	databases []repo.Database
	links     []repo.Link
	targets   []repo.Target
	archive   repo.ArchiveInfo
	info      repo.BackupInfo
	maps      map[string]*repo.BlockMap // of the newest backup
	newest    *repo.Manifest
}

const spaceDir = "PG_15_202209061"

// fileTime is the time stamp of every stored file.
var fileTime = time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)

func newShelf(t testing.TB, pass repo.Secret) *shelf {
	b, err := os.ReadFile("../pg/testdata/control-15")
	must(t, err)
	b = append(b, make([]byte, pg.ControlFileSize-len(b))...)
	c, err := pg.ParseControl(b)
	must(t, err)
	s := &shelf{t: t, st: storage.NewMem(nil), pass: pass, compress: repo.ZST, superMax: 64 << 10, owner: "postgres", system: c.SystemID, control: string(b),
		databases: []repo.Database{{Name: "app", OID: 16385, LastSystemID: 4}, {Name: "other", OID: 16390, LastSystemID: 4}, {Name: "postgres", OID: 5, LastSystemID: 4},
			{Name: "template0", OID: 4, LastSystemID: 4}, {Name: "template1", OID: 1, LastSystemID: 4}},
		targets: []repo.Target{{Name: "pg_data", Path: "/old/data"}, {Name: "pg_tblspc/16384", Path: "/old/space", Link: true, TablespaceID: "16384", TablespaceName: "fast"}},
		links:   []repo.Link{{Name: "pg_data/pg_tblspc/16384", Destination: "/old/space"}},
		maps:    map[string]*repo.BlockMap{}}
	if pass != "" {
		s.archive.CipherPass, s.info.CipherPass = "archive-pass", "manifest-pass"
	}
	db := repo.DB{ID: 1, SystemID: s.system, Version: "15", ControlVersion: c.ControlVersion, CatalogVersion: c.CatalogVersion}
	s.archive.Current, s.archive.History, s.archive.BackrestVersion = 1, []repo.DB{{ID: 1, SystemID: s.system, Version: "15"}}, "test"
	s.info.Current, s.info.History, s.info.BackrestVersion = 1, []repo.DB{db}, "test"
	return s
}

// cluster is a small data directory: what every backup here holds.
func (s *shelf) cluster() map[string]string {
	return map[string]string{
		"pg_data/PG_VERSION": "15\n", "pg_data/global/pg_control": s.control, "pg_data/backup_label": "START WAL LOCATION: 0/2000028\n",
		"pg_data/tablespace_map": "16384 /old/space\n", "pg_data/postgresql.auto.conf": "# by hand\nwork_mem = '4MB'\n", "pg_data/pg_hba.conf": "local all all trust\n",
		"pg_data/base/1/PG_VERSION": "15\n", "pg_data/base/5/PG_VERSION": "15\n", "pg_data/base/16385/PG_VERSION": "15\n", "pg_data/base/16390/PG_VERSION": "15\n",
		"pg_data/base/1/1": filler(1, 20_000), "pg_data/base/16385/100": filler(2, 300_000), "pg_data/base/16385/101": filler(3, 8192), "pg_data/base/16385/102": "",
		"pg_data/base/16385/103": filler(4, 100_001), "pg_data/base/16390/200": filler(5, 50_000), "pg_data/pg_xact/0000": strings.Repeat("x", 256),
		"pg_tblspc/16384/" + spaceDir + "/16385/300": filler(6, 70_000), "pg_tblspc/16384/" + spaceDir + "/16390/301": filler(7, 9000),
	}
}

// filler is n bytes that compress a little, always the same for one seed.
func filler(seed uint64, n int) string {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte('a' + r.IntN(16))
	}
	return string(b)
}

// backup stores files as one more backup, a reference for what did not change, and returns its label.
func (s *shelf) backup(typ repo.BackupType, at time.Time, files map[string]string) repo.Label {
	s.t.Helper()
	m := &repo.Manifest{BackrestVersion: cmp.Or(s.version, "test"), Type: typ, TimeStart: at.Unix(), TimeCopyStart: at.Unix() + 1, TimeStop: at.Unix() + 2,
		ArchiveStart: "000000010000000000000002", ArchiveStop: "000000010000000000000002", LSNStart: "0/2000028", LSNStop: "0/2000100",
		BlockIncr: s.block > 0, Bundle: s.bundle, DB: s.info.History[0], Targets: s.targets, Links: s.links, Databases: s.databases,
		FileDefault: repo.Owner{User: s.owner, Group: s.owner, Mode: 0o600}, PathDefault: repo.Owner{User: s.owner, Group: s.owner, Mode: 0o700},
		LinkDefault: repo.Owner{User: s.owner, Group: s.owner}}
	m.Options.CompressType, m.Options.Online, m.Options.CompressLevel = s.compress, true, repo.DefaultLevel(s.compress)
	if s.offline {
		m.ArchiveStart, m.ArchiveStop, m.LSNStart, m.LSNStop, m.Options.Online = "", "", "", "", false
	}
	full := repo.Label("")
	if typ != repo.Full {
		m.Prior, m.References, full = s.newest.Label, slices.Clone(s.newest.References), s.newest.Label.FullLabel()
	} else {
		s.newest, s.maps = nil, map[string]*repo.BlockMap{}
	}
	var err error
	m.Label, err = repo.NewLabel(at, typ, full, m.Prior)
	must(s.t, err)
	m.References = append(m.References, m.Label)
	if s.pass != "" {
		m.CipherPass = "set-pass"
	}
	dirs := map[string]bool{"pg_data": true, "pg_data/pg_tblspc": true, "pg_data/pg_wal": true}
	if len(s.targets) > 1 {
		dirs["pg_tblspc"] = true
	}
	var bundle bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(files)) {
		for d := filepath.Dir(name); d != "."; d = filepath.Dir(d) {
			dirs[d] = true
		}
		m.Files = append(m.Files, s.store(m, name, files[name], &bundle))
	}
	if bundle.Len() > 0 {
		must(s.t, storage.WriteAll(s.t.Context(), s.st, "backup/demo/"+string(m.Label)+"/bundle/1", bundle.Bytes()))
	}
	for d := range dirs {
		m.Paths = append(m.Paths, repo.Path{Name: d, Owner: m.PathDefault})
	}
	s.publish(m)
	return m.Label
}

// publish writes the manifest and the info files; also a manifest that a test has damaged.
func (s *shelf) publish(m *repo.Manifest) {
	s.t.Helper()
	must(s.t, repo.PublishManifest(s.t.Context(), s.st, "demo", m, s.info.CipherPass))
	s.info.Put(m.BackupLine())
	must(s.t, repo.SaveBackupInfo(s.t.Context(), s.st, "demo", &s.info, s.pass))
	must(s.t, repo.SaveArchiveInfo(s.t.Context(), s.st, "demo", &s.archive, s.pass))
	s.newest = m
}

// store stores one file.
func (s *shelf) store(m *repo.Manifest, name, content string, bundle *bytes.Buffer) repo.File {
	s.t.Helper()
	sum := sha1.Sum([]byte(content))
	f := repo.File{Name: name, Owner: m.FileDefault, Size: int64(len(content)), SizeOrig: -1, Timestamp: fileTime.Unix(), SHA1: hex.EncodeToString(sum[:])}
	if s.newest != nil {
		if p := s.newest.File(name); p != nil && p.SHA1 == f.SHA1 {
			f = *p
			if f.Reference == "" && f.Size > 0 {
				f.Reference = s.newest.Label
			}
			return f
		}
	}
	if f.Size == 0 {
		return f
	}
	out := io.Writer(&bytes.Buffer{})
	if s.bundle {
		out, f.BundleID, f.BundleOffset = bundle, 1, int64(bundle.Len())
	}
	if s.block > 0 && f.Size >= 2*s.block {
		f.BlockSize, f.BlockSumSize, f.BlockMapSize = s.block, 6, 1 // the map's size is not known yet
		_, _, _, spec := m.Object("demo", &f)
		w, err := repo.NewBlockWriter(func() (io.Writer, error) { return out, nil }, repo.BlockWriterOptions{BlockSize: s.block, ChecksumSize: 6, SuperSize: s.superMax,
			Prior: s.maps[name], Reference: len(m.References) - 1, BundleID: uint64(f.BundleID), Offset: f.BundleOffset, Spec: spec})
		must(s.t, err)
		_, err = io.WriteString(w, content)
		must(s.t, err)
		sums, err := w.Close()
		must(s.t, err)
		f.BlockMapSize, f.RepoSize, f.RepoSHA1 = sums.MapSize, sums.RepoSize, sums.RepoSHA1
		stored := bundle.Bytes()
		if b, ok := out.(*bytes.Buffer); ok {
			stored = b.Bytes()
		}
		s.maps[name], err = repo.ReadBlockMap(bytes.NewReader(stored[int64(len(stored))-f.BlockMapSize:]), s.block, 6, spec.Pass)
		must(s.t, err)
	} else {
		_, _, _, spec := m.Object("demo", &f)
		w, err := repo.NewStreamWriter(out, spec)
		must(s.t, err)
		_, err = io.WriteString(w, content)
		must(s.t, err)
		must(s.t, w.Close())
		f.RepoSize, f.RepoSHA1 = w.Sums().RepoSize, w.Sums().RepoSHA1
	}
	if !s.bundle {
		object, _, _, _ := m.Object("demo", &f)
		must(s.t, storage.WriteAll(s.t.Context(), s.st, object, out.(*bytes.Buffer).Bytes()))
	}
	return f
}

// open opens the stanza on st, which is the shelf's or a decorator of it.
func (s *shelf) open(st storage.Storage) *engine.Stanza {
	s.t.Helper()
	e, err := engine.New(engine.Options{Stanza: "demo", Storage: st, Pass: s.pass, Local: time.UTC, Now: fixedClock})
	must(s.t, err)
	return e
}

// restore runs one restore with what every test needs filled in.
func (s *shelf) restore(ctx context.Context, st storage.Storage, o engine.RestoreOptions) (*engine.RestoreResult, *engine.RestorePlan, error) {
	if o.Type == "" {
		o.Type = engine.TargetNone
	}
	if o.TablespaceMapAll == "" && o.TablespaceMap == nil {
		o.TablespaceMapAll = o.DataDir + "-spaces"
	}
	o.RestoreCommand, o.ProcessMax = "get %f %p", 2
	plan, err := s.open(st).PlanRestore(ctx, o)
	if err != nil {
		return nil, nil, err
	}
	res, err := plan.Run(ctx)
	return res, plan, err
}

// wantTree is what a restore of files to dir gives, in the form of tree; links says what links there are.
func (s *shelf) compare(dir string, files map[string]string) error {
	want := map[string]string{}
	for name, content := range files {
		switch {
		case name == "pg_data/tablespace_map":
			continue
		case name == "pg_data/global/pg_control":
			b := []byte(content)
			must(s.t, pg.InvalidateCheckpoint(b, 0))
			content = string(b)
		}
		want[s.place(dir, name)] = content
	}
	for _, d := range []string{"pg_data/pg_tblspc", "pg_data/pg_wal"} {
		want[s.place(dir, d)] = "dir"
	}
	for name := range want {
		for d := filepath.Dir(name); len(d) >= len(dir); d = filepath.Dir(d) {
			want[d] = "dir"
		}
	}
	want[filepath.Join(dir, "pg_tblspc/16384")] = "-> " + dir + "-spaces/fast"
	got := map[string]string{}
	for _, top := range []string{dir, dir + "-spaces"} {
		for rel, content := range tree(s.t, top) {
			got[filepath.Join(top, rel)] = content
		}
	}
	for name, content := range want {
		if got[name] != content {
			return fmt.Errorf("%s: %.40q of %d bytes, want %.40q of %d", name, got[name], len(got[name]), content, len(content))
		}
		info, err := os.Lstat(name)
		must(s.t, err)
		if info.Mode().IsRegular() && (info.Mode().Perm() != 0o600 || !info.ModTime().Equal(fileTime)) {
			return fmt.Errorf("%s: mode %v, time %v", name, info.Mode(), info.ModTime())
		}
		if info.IsDir() && info.Mode().Perm() != 0o700 {
			return fmt.Errorf("%s: mode %v", name, info.Mode())
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			return fmt.Errorf("%s is not in the backup", name)
		}
	}
	return nil
}

// place is where a manifest name is, in a restore to dir by restore.
func (s *shelf) place(dir, name string) string {
	if rest, ok := strings.CutPrefix(name, "pg_tblspc/16384/"); ok {
		return filepath.Join(dir+"-spaces/fast", rest)
	}
	return filepath.Join(dir, strings.TrimPrefix(name, "pg_data"))
}
