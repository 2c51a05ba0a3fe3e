package engine_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// failsWith reports an error that is not want or whose message lacks one of the words.
func failsWith(t *testing.T, what string, err, want error, words ...string) {
	t.Helper()
	if err == nil || want != nil && !errors.Is(err, want) {
		t.Errorf("%s: %v", what, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s: the message lacks %q: %v", what, word, err)
		}
	}
}

func TestCreate(t *testing.T) {
	r, other := newRig(t, 15), newRig(t, 16)
	m := storage.NewMem(nil)
	create := func(r *rig) (engine.CreateOutcome, error) { return r.stanza(m).Create(t.Context(), r.control) }
	want := func(step string, outcome engine.CreateOutcome) {
		t.Helper()
		if out, err := create(r); out != outcome || err != nil {
			t.Errorf("%s: %q, %v, want %q", step, out, err, outcome)
		}
		if err := r.verified(m); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
	want("nothing there", engine.Created)
	want("again", engine.Existed)
	_, err := create(other)
	failsWith(t, "another cluster", err, engine.ErrStanzaMismatch, "version 15", "version 16", "stanza-upgrade --stanza=demo")
	for _, name := range []string{"archive/demo/archive.info", "backup/demo/backup.info.copy", "archive/demo/archive.info.copy"} {
		must(t, m.Remove(t.Context(), name))
		want("without "+name, engine.Repaired)
	}
	must(t, m.Remove(t.Context(), "backup/demo/backup.info", "backup/demo/backup.info.copy"))
	_, err = create(other)
	failsWith(t, "half of another cluster's", err, engine.ErrStanzaMismatch)
	want("without backup.info", engine.Repaired)
	file, err := r.server.segment(segmentA)
	must(t, err)
	_, err = r.push(m, file, repo.GZ)
	must(t, err)
	must(t, m.Remove(t.Context(), "backup/demo/backup.info", "backup/demo/backup.info.copy"))
	_, err = create(r)
	failsWith(t, "without backup.info, with WAL", err, nil, "backup.info is missing", "pg stanza-create --rebuild")
	must(t, m.Remove(t.Context(), "archive/demo/archive.info", "archive/demo/archive.info.copy"))
	_, err = create(r)
	failsWith(t, "remains without info files", err, nil, segmentA, "remainder of another stanza")
	for _, name := range []string{"", ".hidden", "-dash", "with/slash", "with space", "ü", strings.Repeat("x", 129)} {
		if _, err := engine.New(engine.Options{Stanza: name, Storage: m}); err == nil {
			t.Errorf("stanza name %q was accepted", name)
		}
	}
}

// TestLocks: what changes a stanza holds its lock, names who holds it, and respects a stop file.
func TestLocks(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(2)
	locks := scratch(t)
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: m, Pass: r.pass, LockDir: locks, ExecID: "1-0123abcd"})
	must(t, err)
	removal, err := s.PlanRemove(t.Context(), made[0].Label, false)
	must(t, err)
	verbs := map[string]func() error{
		"create": func() error { _, err := s.Create(t.Context(), r.control); return err },
		"remove": func() error { return removal.Run(t.Context()) },
		"trim":   func() error { return s.TrimWAL(t.Context(), made[0].DB, made[0].ArchiveStart) },
		"backup": func() error {
			p, err := s.PlanBackup(t.Context(), engine.BackupOptions{Conn: r.server.conn(), DataDir: r.server.dir, Compress: repo.GZ})
			if err != nil {
				return err
			}
			_, err = p.Run(t.Context())
			return err
		},
	}
	before := contents(t, m)
	content, err := (repo.LockContent{ExecID: "4711-0123abcd", PID: os.Getpid()}).Encode()
	must(t, err)
	held, err := repo.AcquireLock(locks, "demo", "backup", 1, content)
	must(t, err)
	for name, verb := range verbs {
		failsWith(t, name+" while another works", verb(), repo.ErrLocked, "demo", "backup lock")
	}
	must(t, held.Release())
	stop := repo.StopPath(locks, "demo")
	must(t, os.WriteFile(stop, nil, 0o600))
	verbs["push"] = func() error {
		_, err := s.Push(t.Context(), engine.PushOptions{Path: filepath.Join(r.server.dir, "pg_wal", made[0].ArchiveStart)})
		return err
	}
	for name, verb := range verbs {
		failsWith(t, name+" while stopped", verb(), engine.ErrStopped, stop, "pg start --stanza=demo")
	}
	if err := lost(t, before, m); err != nil || len(before) != len(m.Names()) {
		t.Errorf("a verb that was refused changed the repository: %v", err)
	}
	must(t, os.Remove(stop))
	for _, name := range []string{"create", "remove", "trim", "backup"} {
		if err := verbs[name](); err != nil {
			t.Errorf("%s, with nothing in the way: %v", name, err)
		}
	}
}

func TestBackupRefuses(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(1)
	before := contents(t, m)
	other := newRig(t, 16)
	for _, c := range []struct {
		name  string
		lay   func(f *fakeServer)
		o     engine.BackupOptions
		is    error
		words []string
	}{
		{"server of another cluster", func(f *fakeServer) { f.saysSystem = 7 }, engine.BackupOptions{}, nil, []string{"system identifier 7", "port or socket"}},
		{"other directory", func(f *fakeServer) { f.saysDir = other.server.dir }, engine.BackupOptions{}, nil, []string{other.server.dir, r.server.dir}},
		{"standby", func(f *fakeServer) { f.standby = true }, engine.BackupOptions{}, nil, []string{"standby"}},
		{"no archiving", func(f *fakeServer) { f.archiveMode = "off" }, engine.BackupOptions{}, nil, []string{"archive_mode is off", "pg check"}},
		{"WAL that never comes", func(f *fakeServer) {}, engine.BackupOptions{ArchiveTimeout: 50 * time.Millisecond}, engine.ErrArchiveTimeout, []string{"archive_command", "pg check --stanza=demo"}},
	} {
		f := r.server
		f.mu.Lock()
		f.saysSystem, f.saysDir, f.standby, f.archiveMode = 0, "", false, ""
		c.lay(f)
		f.mu.Unlock()
		r.archiving = func(string) error { return nil } // says that it has stored the segment
		_, err := r.backupWith(t.Context(), m, m, c.o)
		failsWith(t, c.name, err, c.is, append(c.words, "demo")...)
		if err := errors.Join(f.waitIdle(), lost(t, before, m)); err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r.archiving = func(string) error { return errors.New("no space left") }
	_, err := r.backup(t.Context(), m, m)
	failsWith(t, "archive_command fails", err, nil, "demo")
	r.archiving = nil
	res, err := r.backup(t.Context(), m, m)
	must(t, err)
	if got := r.labels(m); !slices.Equal(got, []repo.Label{made[0].Label, res.Label}) {
		t.Errorf("backups %v", got)
	}
	must(t, r.verified(m))
	// A cluster that the stanza does not know.
	other.pass = r.pass
	_, err = other.backup(t.Context(), m, m)
	failsWith(t, "cluster of another stanza", err, engine.ErrStanzaMismatch, "stanza-upgrade")
}

// TestBackupLosesServer: PostgreSQL ends while files are copied. There is no backup, and the next one works.
func TestBackupLosesServer(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(1)
	before := contents(t, m)
	_, err := r.backupWith(t.Context(), &hooked{m, "backup.manifest.copy", r.server.dropBackups}, m, engine.BackupOptions{Compress: repo.GZ})
	failsWith(t, "server lost", err, nil, "demo", "run the backup again")
	if err := errors.Join(lost(t, before, m), r.server.waitIdle()); err != nil || len(r.labels(m)) != 1 {
		t.Errorf("after the loss: %v, backups %v", err, r.labels(m))
	}
	_, err = r.backup(t.Context(), m, m)
	must(t, err)
	if err := errors.Join(lost(t, before, m), r.verified(m)); err != nil || r.labels(m)[0] != made[0].Label {
		t.Error(err)
	}
}

func TestVerifyFinds(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(2)
	man := r.manifest(base, made[1].Label)
	object, _, _, _ := man.Object("demo", man.File("pg_data/base/16384/16385"))
	segment := ""
	for name := range contents(t, base) {
		if strings.HasPrefix(path.Base(name), made[1].ArchiveStart) {
			segment = name
		}
	}
	for _, c := range []struct {
		name   string
		damage func(m *storage.Mem) error
		object string
		what   string
	}{
		{"file missing", func(m *storage.Mem) error { return m.Remove(t.Context(), object) }, object, "missing"},
		{"file of another", func(m *storage.Mem) error {
			return errors.Join(copyObject(t, m, "backup/demo/"+string(made[0].Label)+"/pg_data/PG_VERSION.gz", object))
		}, object, ""},
		{"segment missing", func(m *storage.Mem) error { return m.Remove(t.Context(), segment) }, path.Dir(segment) + "/" + made[1].ArchiveStart, "missing"},
		{"segment twice", func(m *storage.Mem) error {
			return copyObject(t, m, segment, path.Dir(segment)+"/"+made[1].ArchiveStart+"-"+strings.Repeat("0", 40)+".gz")
		}, path.Dir(segment) + "/" + made[1].ArchiveStart, "2 different copies"},
		{"manifests missing", func(m *storage.Mem) error {
			p := repo.ManifestPath("demo", made[1].Label)
			return m.Remove(t.Context(), p, p+".copy")
		}, repo.ManifestPath("demo", made[1].Label), "not exist"},
	} {
		m := base.CrashClone()
		must(t, c.damage(m))
		res, err := r.stanza(m).Verify(t.Context(), engine.VerifyOptions{ProcessMax: 3})
		must(t, err)
		if len(res.Findings) != 1 || res.Findings[0].Object != c.object || res.Findings[0].Label != made[1].Label && res.Findings[0].Label != "" || !strings.Contains(res.Findings[0].What, c.what) {
			t.Errorf("%s: findings %v, want one on %s: %s", c.name, res.Findings, c.object, c.what)
		}
		// The other backup is whole, and says so when asked alone.
		res, err = r.stanza(m).Verify(t.Context(), engine.VerifyOptions{Set: made[0].Label})
		if err != nil || len(res.Findings) != 0 || res.Files == 0 || res.Segments == 0 || !slices.Equal(res.Backups, []repo.Label{made[0].Label}) {
			t.Errorf("%s: the other backup: %+v, %v", c.name, res, err)
		}
	}
	_, err := r.stanza(base).Verify(t.Context(), engine.VerifyOptions{Set: "20200101-000000F"})
	failsWith(t, "no such backup", err, engine.ErrNoBackup, "20200101-000000F")
}

func copyObject(t *testing.T, m *storage.Mem, from, to string) error {
	b, err := storage.ReadAll(t.Context(), m, from, 8<<20)
	if err != nil {
		return err
	}
	return storage.WriteAll(t.Context(), m, to, b)
}

func TestRemove(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(3)
	s := r.stanza(m)
	plan := func(i int, last bool) *engine.RemovePlan {
		t.Helper()
		p, err := s.PlanRemove(t.Context(), made[i].Label, last)
		must(t, err)
		return p
	}
	_, err := s.PlanRemove(t.Context(), "20200101-000000F", true)
	failsWith(t, "no such backup", err, engine.ErrNoBackup, "20200101-000000F")
	newest, oldest := plan(2, false), plan(0, false)
	if newest.Segments != 0 || oldest.Segments != 2 || oldest.WALBytes == 0 || !slices.Equal(oldest.Backups, []repo.Label{made[0].Label}) {
		t.Errorf("plans: %+v, %+v", newest, oldest)
	}
	must(t, newest.Run(t.Context()))
	must(t, r.verified(m))
	failsWith(t, "an old plan", newest.Run(t.Context()), nil, "plan again")
	must(t, oldest.Run(t.Context()))
	must(t, r.verified(m))
	_, err = s.PlanRemove(t.Context(), made[1].Label, false)
	failsWith(t, "the last", err, engine.ErrLastBackup, string(made[1].Label))
	segments := func() (n int) {
		for _, name := range m.Names() {
			if _, _, _, ok := repo.ParseSegmentObject(path.Base(name)); ok {
				n++
			}
		}
		return n
	}
	was := segments()
	must(t, plan(1, true).Run(t.Context()))
	if len(r.labels(m)) != 0 || segments() != was {
		t.Errorf("after the last: %v; %d segments of %d: the WAL may be needed by the next backup", r.labels(m), segments(), was)
	}
	for _, keep := range []string{"", "0000000200000000", strings.ToLower(segmentA)} {
		failsWith(t, fmt.Sprintf("trim before %q", keep), s.TrimWAL(t.Context(), made[0].DB, keep), nil, "WAL segment")
	}
	// Timelines do not matter: the position does.
	file, err := r.server.segment("000000030000000000000001")
	must(t, err)
	_, err = r.push(m, file, repo.GZ)
	must(t, err)
	must(t, s.TrimWAL(t.Context(), made[0].DB, "0000000100000000000000FF"))
	if segments() != 0 {
		t.Errorf("%d segments stayed", segments())
	}
}

func TestFaultsUpgrade(t *testing.T) {
	r, next := newRig(t, 15), newRig(t, 16)
	base, made := r.withBackups(1)
	faultTest{base: base, calls: 15, keep: r.keeps(contents(t, base), base, made[0].Label),
		run: func(ctx context.Context, st, _ storage.Storage) error {
			_, err := r.stanza(st).Upgrade(ctx, next.control)
			return err
		},
		right: func(st storage.Storage) error {
			ai, err := repo.LoadArchiveInfo(t.Context(), st, "demo", r.pass)
			if err != nil {
				return err
			}
			bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", r.pass)
			if err != nil {
				return err
			}
			for _, db := range []repo.DB{ai.DB(), bi.DB()} {
				if db.ID != 2 || db.SystemID != next.control.SystemID || db.Version != "16" || len(ai.History) != 2 || len(bi.History) != 2 {
					return fmt.Errorf("the current cluster is %+v", db)
				}
			}
			return r.verified(st)
		},
	}.each(t)
}
