package engine_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// scratch is a directory that ends with the test, in memory where the machine offers that: a restore syncs the file
// system that it wrote to, which on a busy disk takes a second. Its path is short enough for a socket.
func scratch(t testing.TB) string {
	t.Helper()
	base := os.TempDir()
	if info, err := os.Stat("/dev/shm"); err == nil && info.IsDir() && !strings.HasPrefix(base, "/dev/shm/") {
		base = "/dev/shm"
	}
	dir, err := os.MkdirTemp(base, "engine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

func mkdir(t testing.TB, dir string) {
	t.Helper()
	must(t, os.MkdirAll(dir, 0o700))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// rig is a stanza for a fake server.
type rig struct {
	t       testing.TB
	server  *fakeServer
	control pg.Control
	pass    repo.Secret // of the repository
	began   time.Time

	archiving func(file string) error // archive_command, when it is not Push

	clock    func() time.Time // nil: see stanzaAt
	looks    atomic.Int64     // at the clock
	mu       sync.Mutex
	warnings []string
}

func newRig(t testing.TB, version pg.Version) *rig {
	r := &rig{t: t, server: newFakeServer(t, version), pass: "rig-pass", began: time.Now()}
	c, _, err := pg.ReadControl(t.Context(), r.server.dir)
	must(t, err)
	r.control = c
	return r
}

// stanza opens "demo" on st.
func (r *rig) stanza(st storage.Storage) *engine.Stanza { return r.stanzaAt(st, nil) }

// stanzaAt opens it with a clock; nil: the rig's, and if it has none one that is a second later whenever it is looked at, so that a
// backup finds the second of its label over when it has ended, and need not wait for it.
func (r *rig) stanzaAt(st storage.Storage, now func() time.Time) *engine.Stanza {
	r.t.Helper()
	if now == nil {
		now = r.clock
	}
	if now == nil {
		now = func() time.Time { return time.Now().Add(time.Duration(r.looks.Add(1)) * time.Second) }
	}
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: st, Pass: r.pass, Local: time.UTC, Now: now, Events: func(e engine.Event) {
		if w, ok := e.(engine.Warning); ok {
			r.mu.Lock()
			r.warnings = append(r.warnings, w.Text)
			r.mu.Unlock()
		}
	}})
	must(r.t, err)
	return s
}

// warned returns the warnings since the last call, as one text.
func (r *rig) warned() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() { r.warnings = nil }()
	return strings.Join(r.warnings, "\n")
}

// create makes the stanza.
func (r *rig) create(ctx context.Context, st storage.Storage) error {
	_, err := r.stanza(st).Create(ctx, r.control)
	return err
}

// backup makes one full backup through st, while archive_command reaches archive (the same store without its faults).
func (r *rig) backup(ctx context.Context, st, archive storage.Storage) (*engine.BackupResult, error) {
	return r.backupWith(ctx, st, archive, engine.BackupOptions{Compress: repo.GZ, Level: 1})
}

func (r *rig) backupWith(ctx context.Context, st, archive storage.Storage, o engine.BackupOptions) (*engine.BackupResult, error) {
	keeper := r.stanza(archive)
	r.server.mu.Lock()
	r.server.archive = func(file string) error {
		if r.archiving != nil {
			return r.archiving(file)
		}
		_, err := keeper.Push(context.Background(), engine.PushOptions{Path: file, DataDir: r.server.dir, HeaderCheck: true, Compress: repo.LZ4})
		return err
	}
	r.server.mu.Unlock()
	o.Conn, o.DataDir, o.Fast, o.ArchiveCheck = r.server.conn(), r.server.dir, true, true
	o.ArchiveTimeout = cmp.Or(o.ArchiveTimeout, 20*time.Second)
	o.Compress = cmp.Or(o.Compress, repo.GZ)
	plan, err := r.stanza(st).PlanBackup(ctx, o)
	if err != nil {
		return nil, err
	}
	return plan.Run(ctx)
}

func (r *rig) restoreOptions(dir string, set repo.Label) engine.RestoreOptions {
	return engine.RestoreOptions{Set: set, DataDir: dir, RestoreCommand: "holdfast archive-get %f \"%p\"", LinkAll: true, TablespaceMapAll: dir + "-spaces"}
}

// fixedClock is the time of all restores: it is written into postgresql.auto.conf.
func fixedClock() time.Time { return time.Date(2026, 4, 1, 8, 30, 0, 0, time.UTC) }

// restore puts one backup into dir.
func (r *rig) restore(ctx context.Context, st storage.Storage, dir string, set repo.Label) error {
	plan, err := r.stanzaAt(st, fixedClock).PlanRestore(ctx, r.restoreOptions(dir, set))
	if err != nil {
		return err
	}
	_, err = plan.Run(ctx)
	return err
}

// manifest loads one backup's manifest.
func (r *rig) manifest(st storage.Storage, l repo.Label) *repo.Manifest {
	r.t.Helper()
	bi, err := repo.LoadBackupInfo(r.t.Context(), st, "demo", r.pass)
	must(r.t, err)
	m, err := repo.LoadManifest(r.t.Context(), st, "demo", l, bi.CipherPass)
	must(r.t, err)
	return m
}

// labels lists the backups that backup.info names.
func (r *rig) labels(st storage.Storage) []repo.Label {
	r.t.Helper()
	bi, err := repo.LoadBackupInfo(r.t.Context(), st, "demo", r.pass)
	must(r.t, err)
	var out []repo.Label
	for _, l := range bi.Backups {
		out = append(out, l.Label)
	}
	return out
}

// verified reports everything that is wrong with a repository.
func (r *rig) verified(st storage.Storage) error {
	return errors.Join(r.verify(st, ""), r.tidy(st, ""))
}

// verify gives Verify's findings on one backup, or all, as an error.
func (r *rig) verify(st storage.Storage, set repo.Label) error {
	r.t.Helper()
	res, err := r.stanza(st).Verify(r.t.Context(), engine.VerifyOptions{Set: set})
	if err != nil {
		return err
	}
	var errs []error
	for _, f := range res.Findings {
		errs = append(errs, errors.New(f.String()))
	}
	return errors.Join(errs...)
}

// tidy names what is in label directories, except one, and belongs to no backup, and info files that have no copy.
func (r *rig) tidy(st storage.Storage, unfinished repo.Label) error {
	r.t.Helper()
	ctx := r.t.Context()
	var errs []error
	known := map[string]bool{}
	for _, l := range r.labels(st) {
		m := r.manifest(st, l)
		known[repo.ManifestPath("demo", l)], known[repo.ManifestPath("demo", l)+".copy"] = true, true
		for i := range m.Files {
			object, _, _, _ := m.Object("demo", &m.Files[i])
			known[object] = true
		}
	}
	for info, err := range st.List(ctx, repo.BackupDir("demo"), storage.ListOptions{Recursive: true}) {
		must(r.t, err)
		first, _, _ := strings.Cut(strings.TrimPrefix(info.Name, "backup/demo/"), "/")
		if _, err := repo.ParseLabel(first); err == nil && !known[info.Name] && first != string(unfinished) {
			errs = append(errs, fmt.Errorf("%s: belongs to no backup", info.Name))
		}
	}
	for _, name := range []string{"archive/demo/archive.info", "backup/demo/backup.info"} {
		for _, n := range []string{name, name + ".copy"} {
			if _, err := st.Stat(ctx, n); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// contents reads a whole repository.
func contents(t testing.TB, st storage.Storage) map[string]string {
	t.Helper()
	all := map[string]string{}
	for info, err := range st.List(t.Context(), "", storage.ListOptions{Recursive: true}) {
		must(t, err)
		b, err := storage.ReadAll(t.Context(), st, info.Name, 8<<20)
		must(t, err)
		all[info.Name] = string(b)
	}
	return all
}

// lost says which of the objects of a backup and its archive, as they were in before, are gone or changed. The info files
// are left out: verbs write them anew.
func lost(t testing.TB, before map[string]string, st storage.Storage) error {
	t.Helper()
	var errs []error
	for name, was := range before {
		if strings.HasPrefix(path.Base(name), "archive.info") || strings.HasPrefix(path.Base(name), "backup.info") {
			continue
		}
		b, err := storage.ReadAll(t.Context(), st, name, 8<<20)
		if err == nil && string(b) != was {
			err = fmt.Errorf("%s changed", name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// tree reads a directory: path → content, "dir" or "-> destination".
func tree(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			all[rel] = "dir"
		case d.Type()&os.ModeSymlink != 0:
			dest, err := os.Readlink(p)
			all[rel] = "-> " + dest
			return err
		default:
			b, err := os.ReadFile(p)
			all[rel] = string(b)
			return err
		}
		return nil
	}))
	return all
}
