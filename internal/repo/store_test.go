package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"reflect"
	"strings"
	"testing"

	"holdfast/internal/storage"
)

func newStore(t *testing.T) *storage.Posix {
	t.Helper()
	s, err := storage.NewPosix(t.TempDir(), storage.PosixOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s storage.Storage, name string, b []byte) {
	t.Helper()
	if err := storage.WriteAll(t.Context(), s, name, b); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s storage.Storage, name string) []byte {
	t.Helper()
	b, err := storage.ReadAll(t.Context(), s, name, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var errDisk = errors.New("no space left")

// faulty fails the n-th call of Create, Open, Stat or List whose name contains match.
type faulty struct {
	storage.Storage
	op, match string
	n         int
	log       []string
}

func (f *faulty) hit(op, name string) error {
	f.log = append(f.log, op+" "+name)
	if op == f.op && strings.Contains(name, f.match) {
		if f.n--; f.n == 0 {
			return errDisk
		}
	}
	return nil
}

func (f *faulty) Create(ctx context.Context, name string, o storage.CreateOptions) (storage.Writer, error) {
	if err := f.hit("create", name); err != nil {
		return nil, err
	}
	return f.Storage.Create(ctx, name, o)
}

func (f *faulty) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := f.hit("open", name); err != nil {
		return nil, err
	}
	return f.Storage.Open(ctx, name, offset, length)
}

func (f *faulty) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := f.hit("stat", name); err != nil {
		return storage.Info{}, err
	}
	return f.Storage.Stat(ctx, name)
}

func (f *faulty) Sync(ctx context.Context) error {
	if err := f.hit("sync", ""); err != nil {
		return err
	}
	return f.Storage.Sync(ctx)
}

func (f *faulty) List(ctx context.Context, dir string, o storage.ListOptions) iter.Seq2[storage.Info, error] {
	if err := f.hit("list", dir); err != nil {
		return func(yield func(storage.Info, error) bool) { yield(storage.Info{}, err) }
	}
	return f.Storage.List(ctx, dir, o)
}

func TestInfoFallback(t *testing.T) {
	const name = "archive/demo/archive.info"
	for _, pass := range []Secret{"", "words"} {
		s := newStore(t)
		ctx := t.Context()
		load := func() (*ArchiveInfo, error) { return LoadArchiveInfo(ctx, s, "demo", pass) }
		if _, err := load(); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("nothing there: %v", err)
		}
		want, err := ParseArchiveInfo([]byte(archiveExample))
		if err != nil {
			t.Fatal(err)
		}
		want.CipherPass = pass
		if err := SaveArchiveInfo(ctx, s, "demo", want, pass); err != nil {
			t.Fatal(err)
		}
		whole := get(t, s, name)
		if string(whole) != string(get(t, s, name+".copy")) {
			t.Error("main and copy differ")
		}
		if sealed := !strings.Contains(string(whole), "backrest"); sealed != (pass != "") {
			t.Errorf("encrypted: %v", sealed)
		}
		for what, damage := range map[string]func(){
			"intact":    func() {},
			"cut":       func() { put(t, s, name, whole[:len(whole)-20]) },
			"cut short": func() { put(t, s, name, whole[:5]) },
			"empty":     func() { put(t, s, name, nil) },
			"missing":   func() { _ = os.Remove(s.Root() + "/" + name) },
		} {
			damage()
			got, err := load()
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %+v %v", what, got, err)
			}
			put(t, s, name, whole)
		}
		// Both bad: never "not there", which a caller answers by making a new one.
		if err := s.Remove(ctx, name); err != nil {
			t.Fatal(err)
		}
		put(t, s, name+".copy", whole[:len(whole)-1-16])
		if _, err := load(); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("main missing, copy damaged: %v", err)
		}
		put(t, s, name, whole)
		if _, err := LoadArchiveInfo(ctx, s, "demo", pass+"x"); err == nil || !strings.Contains(err.Error(), "is the cipher pass right?") {
			t.Errorf("wrong pass: %v", err)
		}
		if _, err := LoadArchiveInfo(ctx, s, "demo", ""); pass != "" && (!errors.Is(err, ErrFormat) || !strings.Contains(err.Error(), "encrypted")) {
			t.Errorf("no pass: %v", err)
		}
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := LoadArchiveInfo(cancelled, s, "demo", pass); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		want.Current = 1
		if err := SaveArchiveInfo(cancelled, s, "demo", want, pass); err == nil || string(get(t, s, name)) != string(whole) {
			t.Errorf("cancelled save: %v", err)
		}
	}
}

// TestSaveFails: whichever write fails, a whole file remains to be read.
func TestSaveFails(t *testing.T) {
	s := newStore(t)
	old, err := ParseBackupInfo(seal(backupExample))
	if err != nil {
		t.Fatal(err)
	}
	if err := SaveBackupInfo(t.Context(), s, "demo", old, ""); err != nil {
		t.Fatal(err)
	}
	changed := *old
	changed.Backups = changed.Backups[:1]
	for n, want := range map[int]int{1: 2, 2: 1} {
		f := &faulty{Storage: s, op: "create", match: "backup.info", n: n}
		if err := SaveBackupInfo(t.Context(), f, "demo", &changed, ""); !errors.Is(err, errDisk) {
			t.Fatal(err)
		}
		got, err := LoadBackupInfo(t.Context(), s, "demo", "")
		if err != nil || len(got.Backups) != want {
			t.Errorf("write %d failed: %d backups, %v", n, len(got.Backups), err)
		}
		if err := SaveBackupInfo(t.Context(), s, "demo", old, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPublishManifest(t *testing.T) {
	for _, pass := range []Secret{"", "words"} {
		m := testManifest()
		s := newStore(t)
		ctx := t.Context()
		if _, err := SaveManifestCopy(ctx, s, "demo", m, pass); err != nil {
			t.Fatal(err)
		}
		got, err := LoadManifestCopy(ctx, s, "demo", m.Label, pass)
		if err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%v\n%+v", err, got)
		}
		f := &faulty{Storage: s}
		if err := PublishManifest(ctx, f, "demo", m, pass); err != nil {
			t.Fatal(err)
		}
		path := ManifestPath("demo", m.Label)
		want := []string{"sync ", "create " + path + ".copy", "create " + path, "create " + HistoryManifestPath("demo", m.Label)}
		if !reflect.DeepEqual(f.log, want) {
			t.Errorf("order of writes: %q", f.log)
		}
		if got, err := LoadManifest(ctx, s, "demo", m.Label, pass); err != nil || !reflect.DeepEqual(got, m) {
			t.Fatalf("%v\n%+v", err, got)
		}
		history, err := readObject(ctx, s, HistoryManifestPath("demo", m.Label), StreamSpec{Compress: GZ, Pass: pass}, parseManifest)
		if err != nil || !reflect.DeepEqual(history, m) {
			t.Errorf("history: %v", err)
		}
	}
}

func TestPublishFails(t *testing.T) {
	m := testManifest()
	path := ManifestPath("demo", m.Label)
	for step, exists := range map[string]bool{"sync ": false, "create " + path + ".copy": false, "create " + path: false, "create backup/demo/backup.history": true} {
		s := newStore(t)
		op, match, _ := strings.Cut(step, " ")
		n := 1
		if match == path {
			n = 2 // the first match is .copy
		}
		f := &faulty{Storage: s, op: op, match: match, n: n}
		if err := PublishManifest(t.Context(), f, "demo", m, ""); !errors.Is(err, errDisk) {
			t.Fatalf("%s: %v", step, err)
		}
		if _, err := s.Stat(t.Context(), path); (err == nil) != exists {
			t.Errorf("%s failed: backup exists: %v", step, err)
		}
		if err := PublishManifest(t.Context(), s, "demo", m, ""); err != nil {
			t.Errorf("%s: again: %v", step, err)
		}
	}
	s := newStore(t)
	m.TimeStop = 0
	if err := PublishManifest(t.Context(), s, "demo", m, ""); !errors.Is(err, ErrFormat) {
		t.Errorf("incomplete: %v", err)
	}
	if _, err := SaveManifestCopy(t.Context(), s, "demo", m, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadManifest(t.Context(), s, "demo", m.Label, ""); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a running backup's copy was taken for a backup: %v", err)
	}
	// A manifest in another backup's directory.
	put(t, s, ManifestPath("demo", "20261122-212347F"), mustEncode(t, testManifest()))
	if _, err := LoadManifest(t.Context(), s, "demo", "20261122-212347F", ""); !errors.Is(err, ErrFormat) {
		t.Errorf("wrong directory: %v", err)
	}
}

func TestLabels(t *testing.T) {
	s := newStore(t)
	for _, name := range []string{"20261122-000000F/backup.manifest", "20261122-000000F/backup.manifest.copy", "20261122-000001F/backup.manifest.copy",
		"20261122-000002F/pg_data/x", "20261122-000003F", "backup.info", "note/backup.manifest", "20261122-000004F/bundle/backup.manifest",
		"backup.history/2025/20251122-000000F.manifest.gz", "backup.history/2026/20261123-000000F.manifest.gz", "backup.history/latest/20291123-000000F.manifest.gz"} {
		put(t, s, "backup/demo/"+name, nil)
	}
	var got []LabelDir
	for d, err := range Labels(t.Context(), s, "demo") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, d)
	}
	want := []LabelDir{{"20261122-000000F", true, true}, {"20261122-000001F", false, true}, {"20261122-000002F", false, false}, {"20261122-000004F", false, false}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v", got)
	}
	if l, err := NewestLabel(t.Context(), s, "demo", ""); l != "20261123-000000F" || err != nil {
		t.Errorf("newest %s %v", l, err)
	}
	if l, err := NewestLabel(t.Context(), s, "demo", "20261122-000001F"); l != "20261122-000001F" || err != nil {
		t.Errorf("newest of the set %s %v", l, err)
	}
	if l, err := NewestLabel(t.Context(), s, "other", ""); l != "" || err != nil {
		t.Errorf("newest of nothing %s %v", l, err)
	}
	for n := 1; n <= 3; n++ {
		if _, err := NewestLabel(t.Context(), &faulty{Storage: s, op: "list", n: n}, "demo", ""); !errors.Is(err, errDisk) {
			t.Errorf("list %d: %v", n, err)
		}
		var last error
		for _, err := range Labels(t.Context(), &faulty{Storage: s, op: "list", n: n}, "demo") {
			last = err
			if err != nil && !errors.Is(err, errDisk) {
				t.Errorf("list %d: %v", n, err)
			}
			if err != nil {
				break
			}
		}
		if last == nil {
			t.Errorf("list %d: error lost", n)
		}
	}
}

// chain stores a full, a diff and an incr and returns their labels and the backup.info that lists them.
func chain(t *testing.T, s storage.Storage) ([]Label, *BackupInfo) {
	t.Helper()
	labels := []Label{"20261122-212347F", "20261122-212347F_20261122-212351D", "20261122-212347F_20261122-212353I"}
	info := &BackupInfo{BackrestVersion: "x", CipherPass: "sub", Current: 1, History: []DB{testManifest().DB}}
	for i, l := range labels {
		m := testManifest()
		m.Label, m.Type, m.References, m.Prior = l, l.Type(), labels[:i+1], ""
		if i > 0 {
			m.Prior = labels[i-1]
		} else {
			m.Files[0].Reference = ""
		}
		if err := PublishManifest(t.Context(), s, "demo", m, "sub"); err != nil {
			t.Fatal(err)
		}
		info.Put(m.BackupLine())
	}
	return labels, info
}

func TestReconcile(t *testing.T) {
	for what, c := range map[string]struct {
		damage func(t *testing.T, s *storage.Posix, l []Label, b *BackupInfo)
		want   []int // labels left
		warns  []string
	}{
		"nothing to do": {func(*testing.T, *storage.Posix, []Label, *BackupInfo) {}, []int{0, 1, 2}, nil},
		"lines lost":    {func(_ *testing.T, _ *storage.Posix, _ []Label, b *BackupInfo) { b.Backups = nil }, []int{0, 1, 2}, []string{"added", "added", "added"}},
		"middle line lost": {func(_ *testing.T, _ *storage.Posix, _ []Label, b *BackupInfo) {
			b.Backups = append(b.Backups[:1:1], b.Backups[2])
		},
			[]int{0, 1, 2}, []string{"added"}},
		"full gone": {func(t *testing.T, s *storage.Posix, l []Label, _ *BackupInfo) { remove(t, s, l[0]) }, nil, []string{"missing", "depends", "depends"}},
		"diff gone, copy left": {func(t *testing.T, s *storage.Posix, l []Label, _ *BackupInfo) {
			if err := s.Remove(t.Context(), ManifestPath("demo", l[1])); err != nil {
				t.Fatal(err)
			}
		}, []int{0}, []string{"missing", "depends"}},
		"line lost, prior gone": {func(t *testing.T, s *storage.Posix, l []Label, b *BackupInfo) {
			remove(t, s, l[1])
			b.Backups = b.Backups[:1]
		}, []int{0}, []string{"not added"}},
		"of another cluster": {func(_ *testing.T, _ *storage.Posix, _ []Label, b *BackupInfo) {
			b.Backups, b.History = b.Backups[:2], []DB{{ID: 1, SystemID: 5, Version: "15"}}
		}, []int{0, 1}, []string{"history"}},
		"unreadable": {func(t *testing.T, s *storage.Posix, l []Label, b *BackupInfo) {
			b.Backups = b.Backups[:2]
			put(t, s, ManifestPath("demo", l[2]), []byte("x"))
			put(t, s, ManifestPath("demo", l[2])+".copy", []byte("y"))
		}, []int{0, 1}, []string{"not added"}},
	} {
		t.Run(what, func(t *testing.T) {
			s := newStore(t)
			labels, info := chain(t, s)
			before := fmt.Sprint(info.Backups)
			c.damage(t, s, labels, info)
			start := len(info.Backups)
			changed, warnings, err := Reconcile(t.Context(), s, "demo", info, "repository pass")
			if err != nil {
				t.Fatal(err)
			}
			var want []Label
			for _, i := range c.want {
				want = append(want, labels[i])
			}
			var got []Label
			for _, line := range info.Backups {
				got = append(got, line.Label)
			}
			if !reflect.DeepEqual(got, want) || changed != (start != len(want)) || len(warnings) != len(c.warns) {
				t.Fatalf("%v, changed %v, %q", got, changed, warnings)
			}
			for i, w := range c.warns {
				if !strings.Contains(warnings[i], w) {
					t.Errorf("%q does not say %q", warnings[i], w)
				}
			}
			if after := fmt.Sprint(info.Backups); len(want) == 3 && len(before) != len(after) {
				t.Errorf("lines were rebuilt differently:\n%s\n%s", before, after)
			}
			if changed, _, err := Reconcile(t.Context(), s, "demo", info, ""); changed || err != nil {
				t.Errorf("second run: %v %v", changed, err)
			}
		})
	}
}

func remove(t *testing.T, s storage.Storage, l Label) {
	t.Helper()
	if err := s.Remove(t.Context(), ManifestPath("demo", l), ManifestPath("demo", l)+".copy"); err != nil {
		t.Fatal(err)
	}
}

// TestReconcileFails: what cannot be asked is not taken for "gone".
func TestReconcileFails(t *testing.T) {
	s := newStore(t)
	labels, info := chain(t, s)
	for n := 1; n <= 4; n++ {
		if changed, _, err := Reconcile(t.Context(), &faulty{Storage: s, op: "list", n: n}, "demo", info, ""); changed || !errors.Is(err, errDisk) || len(info.Backups) != 3 {
			t.Errorf("list %d fails: %v %v", n, changed, err)
		}
	}
	remove(t, s, labels[2])
	if changed, _, err := Reconcile(t.Context(), &faulty{Storage: s, op: "stat", n: 1}, "demo", info, ""); changed || !errors.Is(err, errDisk) || len(info.Backups) != 3 {
		t.Errorf("stat fails: %v %v", changed, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if changed, _, err := Reconcile(ctx, s, "demo", info, ""); changed || err == nil || len(info.Backups) != 3 {
		t.Errorf("cancelled: %v %v", changed, err)
	}
}
