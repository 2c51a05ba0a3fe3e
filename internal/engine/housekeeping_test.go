package engine_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

func TestAnnotate(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(2)
	s := r.stanza(m)
	notes := func(i int) map[string]string {
		bi, err := repo.LoadBackupInfo(t.Context(), m, "demo", r.pass)
		must(t, err)
		return bi.Find(made[i].Label).Annotations
	}
	for _, c := range []struct{ set, want map[string]string }{
		{map[string]string{"why": "before the move", "who": "ä=\"\\"}, map[string]string{"why": "before the move", "who": "ä=\"\\"}},
		{map[string]string{"why": "", "ticket": "4711"}, map[string]string{"who": "ä=\"\\", "ticket": "4711"}},
		{map[string]string{"never": ""}, map[string]string{"who": "ä=\"\\", "ticket": "4711"}},
		{map[string]string{"who": "", "ticket": ""}, map[string]string{}},
	} {
		must(t, s.Annotate(t.Context(), made[0].Label, c.set))
		if got := notes(0); !maps.Equal(got, c.want) {
			t.Errorf("after %v: %v, want %v", c.set, got, c.want)
		}
	}
	if len(notes(1)) != 0 {
		t.Errorf("the other backup got %v", notes(1))
	}
	must(t, r.verified(m))
	failsWith(t, "no such backup", s.Annotate(t.Context(), "20200101-000000F", map[string]string{"a": "b"}), engine.ErrNoBackup, "20200101-000000F")
	failsWith(t, "nothing", s.Annotate(t.Context(), made[0].Label, nil), nil, "at least one")
	failsWith(t, "no name", s.Annotate(t.Context(), made[0].Label, map[string]string{"": "b"}), nil, "with a name")
	failsWith(t, "no stanza", r.stanza(storage.NewMem(nil)).Annotate(t.Context(), made[0].Label, map[string]string{"a": "b"}), engine.ErrStanzaMissing)
}

func TestFaultsAnnotate(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(1)
	faultTest{base: base, calls: 12, keep: r.keeps(contents(t, base), base, made[0].Label),
		run: func(ctx context.Context, st, _ storage.Storage) error {
			return r.stanza(st).Annotate(ctx, made[0].Label, map[string]string{"why": "fault"})
		},
		right: func(st storage.Storage) error {
			bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", r.pass)
			if err == nil && bi.Find(made[0].Label).Annotations["why"] != "fault" {
				err = errors.New("the note is missing")
			}
			return errors.Join(err, r.verified(st))
		},
	}.each(t)
}

// locked opens the stanza with a lock directory.
func (r *rig) locked(st storage.Storage, locks string) *engine.Stanza {
	r.t.Helper()
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: st, Pass: r.pass, LockDir: locks, ExecID: "1-0123abcd"})
	must(r.t, err)
	return s
}

func TestDelete(t *testing.T) {
	r := newRig(t, 15)
	dir, locks := scratch(t), scratch(t)
	st := posix(t, dir)
	must(t, r.create(t.Context(), st))
	_, err := r.backup(t.Context(), st, st)
	must(t, err)
	must(t, storage.WriteAll(t.Context(), st, "backup/other/backup.info", []byte("x")))
	s := r.locked(st, locks)
	down := scratch(t) // a data directory without a server
	before := contents(t, st)
	failsWith(t, "no lock directory", r.stanza(st).Delete(t.Context(), engine.DeleteOptions{Force: true}), nil, "lock directory")
	failsWith(t, "not stopped", s.Delete(t.Context(), engine.DeleteOptions{Force: true}), nil, "holdfast pg stop --stanza=demo")
	must(t, os.WriteFile(repo.StopPath(locks, ""), nil, 0o600))
	failsWith(t, "all stopped", s.Delete(t.Context(), engine.DeleteOptions{Force: true}), nil, "demo.stop is missing")
	_, err = engine.Stop(engine.StopOptions{LockDir: locks, Stanza: "demo"})
	must(t, err)
	failsWith(t, "which server", s.Delete(t.Context(), engine.DeleteOptions{}), nil, "--pg1-path")
	up := scratch(t) // this test stands for a server: it lives, and works in the directory
	t.Chdir(up)
	must(t, os.WriteFile(filepath.Join(up, "postmaster.pid"), []byte(fmt.Sprintln(os.Getpid())), 0o600))
	failsWith(t, "server up", s.Delete(t.Context(), engine.DeleteOptions{DataDir: up}), engine.ErrTargetRunning, up)
	held, err := repo.AcquireLock(locks, "demo", "archive", 1, []byte("{}\n"))
	must(t, err)
	failsWith(t, "push at work", s.Delete(t.Context(), engine.DeleteOptions{DataDir: down}), repo.ErrLocked, "archive lock")
	must(t, held.Release())
	if !maps.Equal(before, contents(t, st)) {
		t.Error("something changed")
	}
	must(t, s.Delete(t.Context(), engine.DeleteOptions{DataDir: down}))
	if left := contents(t, st); len(left) != 1 || left["backup/other/backup.info"] != "x" {
		t.Errorf("left: %v", slices.Collect(maps.Keys(left)))
	}
	for _, d := range []string{"backup/demo", "archive/demo"} {
		if _, err := os.Lstat(filepath.Join(dir, d)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", d, err)
		}
	}
	if _, stopped, err := repo.Stopped(locks, "demo"); err != nil || !stopped {
		t.Errorf("the stop file for all is gone: %v", err)
	}
	if _, err := os.Lstat(repo.StopPath(locks, "demo")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the stop file of what is no more stayed: %v", err)
	}
}

func TestFaultsDelete(t *testing.T) {
	r := newRig(t, 15)
	base, _ := r.withTypes(repo.Full, repo.Incr)
	must(t, storage.WriteAll(t.Context(), base, "backup/other/backup.info", []byte("x")))
	locks := scratch(t)
	other := map[string]string{"backup/other/backup.info": "x"}
	faultTest{base: base, calls: 30, every: 2,
		run: func(ctx context.Context, st, _ storage.Storage) error {
			if _, err := engine.Stop(engine.StopOptions{LockDir: locks, Stanza: "demo"}); err != nil {
				return err
			}
			return r.locked(st, locks).Delete(ctx, engine.DeleteOptions{Force: true})
		},
		failed: func() error {
			_, err := os.Lstat(repo.StopPath(locks, "demo"))
			return err // without it nothing could complete what was begun
		},
		keep: func(left storage.Storage) error {
			return errors.Join(lost(t, other, left), r.restorable(left, func(string) bool { return true }))
		},
		right: func(st storage.Storage) error {
			if left := contents(t, st); len(left) != 1 {
				return fmt.Errorf("left: %v", slices.Collect(maps.Keys(left)))
			}
			return nil
		},
	}.each(t)
}

func TestStopStart(t *testing.T) {
	locks := filepath.Join(scratch(t), "new", "locks")
	check := func(what string, r *engine.StopResult, err error, file string, already bool, also string) {
		t.Helper()
		must(t, err)
		if r.File != filepath.Join(locks, file) || r.Already != already || r.Also != also && r.Also != filepath.Join(locks, also) {
			t.Errorf("%s: %+v", what, r)
		}
	}
	for i, stanza := range []string{"demo", ""} {
		file := []string{"demo.stop", "all.stop"}[i]
		r, err := engine.Stop(engine.StopOptions{LockDir: locks, Stanza: stanza})
		check("stop", r, err, file, false, "")
		r, err = engine.Stop(engine.StopOptions{LockDir: locks, Stanza: stanza})
		check("stop again", r, err, file, true, "")
		if path, stopped, err := repo.Stopped(locks, "demo"); err != nil || !stopped || (i == 0) != (path == filepath.Join(locks, "demo.stop")) && i == 0 {
			t.Errorf("stopped: %s, %t, %v", path, stopped, err)
		}
	}
	r, err := engine.Start(locks, "demo")
	check("start", r, err, "demo.stop", false, "all.stop")
	r, err = engine.Start(locks, "")
	check("start all", r, err, "all.stop", false, "")
	r, err = engine.Start(locks, "")
	check("start again", r, err, "all.stop", true, "")
	_, err = engine.Stop(engine.StopOptions{Stanza: "demo"})
	failsWith(t, "no directory", err, nil, "lock directory")
	_, err = engine.Start(locks, "../x")
	failsWith(t, "no name", err, nil, "stanza name")
}

// TestStopForce: those who hold a lock of the stanza are told to end; those of a stale file, or of another stanza, are not.
func TestStopForce(t *testing.T) {
	locks := scratch(t)
	holder := func(file string) (cmd *exec.Cmd, release func()) {
		t.Helper()
		file = filepath.Join(locks, file)
		cmd = exec.Command("flock", "-o", file, "cat") // flock holds the lock, cat ends with the pipe
		pipe, err := cmd.StdinPipe()
		must(t, err)
		must(t, cmd.Start())
		release = func() { pipe.Close(); cmd.Wait() } // how it ended is asked of ProcessState
		t.Cleanup(release)
		f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o640)
		must(t, err)
		defer f.Close()
		for range 6000 {
			if err = syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
				break
			}
			must(t, syscall.Flock(int(f.Fd()), syscall.LOCK_UN))
			time.Sleep(5 * time.Millisecond)
		}
		if err == nil {
			t.Fatal("flock did not lock")
		}
		return cmd, release
	}
	say := func(file string, pid int) {
		t.Helper()
		text, err := (repo.LockContent{ExecID: "x", PID: pid}).Encode()
		must(t, err)
		must(t, os.WriteFile(filepath.Join(locks, file), text, 0o640))
	}
	one, _ := holder("demo-backup.lock")
	say("demo-backup.lock", one.Process.Pid)
	two, _ := holder("demo-archive-2.lock")
	say("demo-archive-2.lock", two.Process.Pid)
	other, releaseOther := holder("demo-x-backup.lock")
	say("demo-x-backup.lock", other.Process.Pid)
	say("demo-restore-1.lock", other.Process.Pid) // nobody holds it
	r, err := engine.Stop(engine.StopOptions{LockDir: locks, Stanza: "demo", Force: true})
	must(t, err)
	slices.Sort(r.Terminated)
	want := []int{one.Process.Pid, two.Process.Pid}
	slices.Sort(want)
	if !slices.Equal(r.Terminated, want) {
		t.Errorf("terminated %v, want %v", r.Terminated, want)
	}
	for _, p := range []*exec.Cmd{one, two} {
		p.Process.Wait() // the state says it
	}
	for _, file := range []string{"demo-backup.lock", "demo-archive-2.lock"} {
		f, err := os.Open(filepath.Join(locks, file))
		must(t, err)
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB); err != nil {
			t.Errorf("%s is still held: %v", file, err)
		}
		f.Close()
	}
	say("demo-x-backup.lock", 0)
	_, err = engine.Stop(engine.StopOptions{LockDir: locks, Force: true})
	failsWith(t, "a holder without a number", err, nil, "demo-x-backup.lock", "fuser")
	releaseOther()
	if !other.ProcessState.Success() {
		t.Errorf("the holder of another stanza's lock: %v", other.ProcessState)
	}
}

func TestRepoLs(t *testing.T) {
	r := newRig(t, 15)
	m, _ := r.withBackups(1)
	for _, c := range []struct {
		o    engine.RepoLsOptions
		want []string
	}{
		{engine.RepoLsOptions{}, []string{".", "archive", "backup"}},
		{engine.RepoLsOptions{Path: "backup", Descending: true}, []string{"demo", "."}},
		{engine.RepoLsOptions{Path: "/archive/demo/", Filter: regexp.MustCompile(`^archive\.info`)}, []string{"archive.info", "archive.info.copy"}},
		{engine.RepoLsOptions{Path: "backup/demo/backup.info"}, []string{"."}},
		{engine.RepoLsOptions{Path: "nothing"}, []string{"."}},
		{engine.RepoLsOptions{Recurse: true, Filter: regexp.MustCompile(`^archive/demo(/[^/]*)?$|^archive$`)}, []string{"archive", "archive/demo", "archive/demo/15-1", "archive/demo/archive.info", "archive/demo/archive.info.copy"}},
	} {
		list, err := engine.RepoLs(t.Context(), m, c.o)
		must(t, err)
		var got []string
		for _, e := range list {
			got = append(got, e.Name)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v: %v, want %v", c.o, got, c.want)
		}
	}
	faulty, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpList, Name: "archive/demo"})
	must(t, err)
	_, err = engine.RepoLs(t.Context(), faulty, engine.RepoLsOptions{Recurse: true})
	failsWith(t, "a fault", err, storage.ErrInjected, "archive/demo")
}

// TestRepoTheirs: of an encrypted repository without links, repo-ls and repo-get give the same as pgbackrest's.
func TestRepoTheirs(t *testing.T) {
	if testing.Short() {
		t.Skip("needs pgbackrest; run make test")
	}
	dir := filepath.Join(scratch(t), "repo")
	st := posix(t, dir)
	r := newRig(t, 15)
	m, _ := r.withBackups(1)
	objects := contents(t, m)
	for name, text := range objects {
		must(t, storage.WriteAll(t.Context(), st, name, []byte(text)))
	}
	theirs := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("pgbackrest", append([]string{"--config=" + os.DevNull, "--repo1-path=" + dir, "--repo1-cipher-type=aes-256-cbc", "--log-level-file=off"}, args...)...)
		cmd.Env = []string{"TZ=UTC", "PGBACKREST_REPO1_CIPHER_PASS=" + string(r.pass)}
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("pgbackrest %v: %v %s", args, err, out)
		}
		return string(out)
	}
	for _, c := range []struct {
		o    engine.RepoLsOptions
		args []string
	}{
		{engine.RepoLsOptions{}, nil},
		{engine.RepoLsOptions{Path: "backup/demo"}, []string{"backup/demo"}},
		{engine.RepoLsOptions{Recurse: true}, []string{"--recurse"}},
		{engine.RepoLsOptions{Path: "archive", Recurse: true, Descending: true, Filter: regexp.MustCompile("info")}, []string{"archive", "--recurse", "--sort=desc", "--filter=info"}},
		{engine.RepoLsOptions{Path: "backup/demo/backup.info"}, []string{"backup/demo/backup.info"}},
		{engine.RepoLsOptions{Path: "nothing"}, []string{"nothing"}},
	} {
		list, err := engine.RepoLs(t.Context(), st, c.o)
		must(t, err)
		ours, err := json.Marshal(list)
		must(t, err)
		if want := strings.TrimSpace(theirs(append([]string{"--output=json", "repo-ls"}, c.args...)...)); want != string(ours) {
			t.Errorf("%v\npgbackrest %s\nours       %s", c.args, want, ours)
		}
	}
	for name := range objects {
		for _, o := range []engine.RepoGetOptions{{}, {Raw: true}} {
			var ours bytes.Buffer
			must(t, engine.RepoGet(t.Context(), st, r.pass, name, o, &ours))
			args := []string{"repo-get", name}
			if o.Raw {
				args = append(args, "--raw")
			}
			if theirs(args...) != ours.String() {
				t.Errorf("%s %+v: not what pgbackrest gives", name, o)
			}
		}
	}
	t.Logf("%d objects alike", len(objects))
}

func TestRepoGet(t *testing.T) {
	r := newRig(t, 15)
	r.touch("base/16384/not.info", "no text that Holdfast knows", 9*time.Hour)
	m, made := r.withBackups(1)
	res, err := r.backupWith(t.Context(), m, m, engine.BackupOptions{Bundle: true})
	must(t, err)
	get := func(name string, raw bool) (string, error) {
		var b bytes.Buffer
		err := engine.RepoGet(t.Context(), m, r.pass, name, engine.RepoGetOptions{Raw: raw, Decompress: !raw}, &b)
		return b.String(), err
	}
	segment, err := os.ReadFile(filepath.Join(r.server.dir, "pg_wal", made[0].ArchiveStart))
	must(t, err)
	label := string(made[0].Label)
	seen := map[string]bool{}
	for name, stored := range contents(t, m) {
		raw, err := get("/"+name, true)
		if err != nil || raw != stored {
			t.Errorf("%s as stored: %d bytes, %v; want %d", name, len(raw), err, len(stored))
		}
		text, err := get(name, false)
		base := path.Base(name)
		if strings.Contains(name, "/bundle/") {
			failsWith(t, name, err, nil, "--raw")
			seen["bundle"] = true
			continue
		}
		if err != nil {
			t.Error(err)
		}
		kind, starts := "", ""
		switch {
		case strings.HasPrefix(base, "archive.info"), strings.HasPrefix(base, "backup.info"), strings.HasPrefix(base, "backup.manifest"), strings.HasSuffix(base, ".manifest.gz"):
			kind, starts = strings.TrimSuffix(base, ".copy"), "["
		case strings.HasPrefix(base, made[0].ArchiveStart+"-"):
			kind, starts = "segment", string(segment)
		case name == "backup/demo/"+label+"/pg_data/PG_VERSION.gz":
			kind, starts = "file", "15\n"
		}
		if !strings.HasPrefix(text, starts) {
			t.Errorf("%s gives %.40q", name, text)
		}
		seen[kind] = true
	}
	for _, kind := range []string{"archive.info", "backup.info", "backup.manifest", string(made[0].Label) + ".manifest.gz", "segment", "file", "bundle"} {
		if !seen[kind] {
			t.Errorf("no %s was read", kind)
		}
	}
	if text, err := get("backup/demo/"+label+"/pg_data/base/16384/not.info.gz", false); err != nil || text != "no text that Holdfast knows" {
		t.Errorf("a file named like an info file: %q, %v", text, err)
	}
	var packed bytes.Buffer
	must(t, engine.RepoGet(t.Context(), m, r.pass, "backup/demo/backup.history/"+label[:4]+"/"+label+".manifest.gz", engine.RepoGetOptions{}, &packed))
	if !strings.HasPrefix(packed.String(), "\x1f\x8b") {
		t.Errorf("a history manifest, decrypted and not decompressed: %.10q", packed.String())
	}
	_, err = get("backup/demo/nothing", false)
	failsWith(t, "nothing", err, fs.ErrNotExist, "backup/demo/nothing")
	for i := range 1000 { // decrypted with the wrong key, one text in 256 ends as if it were whole
		var shown bytes.Buffer
		err = engine.RepoGet(t.Context(), m, repo.Secret(fmt.Sprint("wrong", i)), "backup/demo/backup.info", engine.RepoGetOptions{}, &shown)
		failsWith(t, "wrong passphrase", err, repo.ErrCipher, "backup.info")
		if shown.Len() > 0 {
			t.Fatalf("wrong passphrase: %q is shown", shown.String())
		}
	}
	if res.Label == made[0].Label {
		t.Error("one label twice")
	}
}
