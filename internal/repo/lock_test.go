package repo

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// TestMain lets the test binary play the other process that holds a lock: it takes it, says so, and holds it until its
// standard input ends.
func TestMain(m *testing.M) {
	if dir := os.Getenv("REPO_TEST_HOLD_LOCK"); dir != "" {
		os.Exit(holdLock(dir))
	}
	os.Exit(m.Run())
}

func holdLock(dir string) int {
	content, err := LockContent{PID: os.Getpid(), ExecID: fmt.Sprintf("%d-0123abcd", os.Getpid())}.Encode()
	if err == nil {
		_, err = AcquireLock(dir, "demo", LockBackup, 1, content)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("held")
	_, err = bufio.NewReader(os.Stdin).ReadByte() // until EOF
	return map[bool]int{true: 0, false: 2}[err != nil]
}

// TestLockOtherProcess: the other holds it and dies without releasing; then the lock is free although its files are there.
func TestLockOtherProcess(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "REPO_TEST_HOLD_LOCK="+dir)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "held\n" {
		t.Fatalf("holder says %q, %v", line, err)
	}
	_, err = AcquireLock(dir, "demo", LockBackup, 1, nil)
	var locked *LockedError
	if !errors.Is(err, ErrLocked) || !errors.As(err, &locked) || locked.PID != cmd.Process.Pid {
		t.Errorf("error %v, want one that names process %d", err, cmd.Process.Pid)
	}
	if content, held, err := ReadLock(dir, "demo", LockBackup, 1); err != nil || !held || content.PID != cmd.Process.Pid {
		t.Errorf("ReadLock: %+v, %t, %v", content, held, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if _, held, err := ReadLock(dir, "demo", LockBackup, 1); err != nil || held {
		t.Errorf("stale lock is read as held: %t, %v", held, err)
	}
	l, err := AcquireLock(dir, "demo", LockBackup, 1, []byte("{}\n"))
	if err != nil {
		t.Fatalf("over a stale file: %v", err)
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}

func TestLockNamesAndRelease(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "missing", "lock")
	done, percent := int64(10), 5000
	content, err := LockContent{ExecID: "7-89abcdef", PID: 7, PercentDone: &percent, SizeComplete: &done}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	l, err := AcquireLock(dir, "demo", LockBackup, 2, content)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"demo-backup.lock", "demo-backup-2.lock"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if want := `{"execId":"7-89abcdef","pctCplt":5000,"pid":7,"szCplt":10}` + "\n"; err != nil || string(b) != want {
			t.Errorf("%s holds %q (%v), want %q", name, b, err, want)
		}
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm()&^0o640 != 0 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	// flock belongs to the open file, so a second attempt of the same process is refused too.
	if _, err := AcquireLock(dir, "demo", LockBackup, 2, nil); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), "process id 7") {
		t.Errorf("second lock: %v", err)
	}
	if _, err := AcquireLock(dir, "demo", LockBackup, 1, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("other repository, same stanza: %v", err)
	}
	for _, other := range []struct{ stanza, typ string }{{"demo", LockArchive}, {"demo2", LockBackup}} {
		o, err := AcquireLock(dir, other.stanza, other.typ, 2, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := o.Release(); err != nil {
			t.Error(err)
		}
	}
	if err := l.Update([]byte("{\"pid\":8}\n")); err != nil {
		t.Error(err)
	}
	if c, held, err := ReadLock(dir, "demo", LockBackup, 2); err != nil || !held || c.PID != 8 {
		t.Errorf("after Update: %+v, %t, %v", c, held, err)
	}
	if err := errors.Join(l.Release(), l.Release()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left in the lock path: %v, %v", left, err)
	}
}

// TestLockHalf: pgbackrest from 2.53 on locks only the file with the key; then we hold nothing either.
func TestLockHalf(t *testing.T) {
	dir := t.TempDir()
	theirs, err := lockFile(filepath.Join(dir, "demo-backup-1.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if _, err := AcquireLock(dir, "demo", LockBackup, 1, nil); !errors.Is(err, ErrLocked) {
		t.Fatalf("locked by 2.53: %v", err)
	}
	f, err := lockFile(filepath.Join(dir, "demo-backup.lock"))
	if err != nil {
		t.Fatalf("the other file is still held: %v", err)
	}
	f.Close()
	for _, bad := range []string{"", "..", "a/b"} {
		if _, err := AcquireLock(dir, bad, LockBackup, 1, nil); err == nil {
			t.Errorf("stanza %q is accepted", bad)
		}
		if _, _, err := Stopped(dir, bad); err == nil {
			t.Errorf("stanza %q is accepted", bad)
		}
	}
	if _, err := AcquireLock(dir, "demo", "stop", 1, nil); err == nil {
		t.Error("lock type stop is accepted")
	}
}

// TestLockRace lets many take and release, where each removes the file that others have already opened: never two at once.
func TestLockRace(t *testing.T) {
	dir := t.TempDir()
	var holders, got atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 300 {
				l, err := AcquireLock(dir, "demo", LockBackup, 1, []byte("{}"))
				if errors.Is(err, ErrLocked) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold the lock", n)
				}
				got.Add(1)
				holders.Add(-1)
				if err := l.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got.Load() == 0 {
		t.Error("nobody ever got the lock")
	}
}

func TestStopped(t *testing.T) {
	dir := t.TempDir()
	check := func(stanza, want string) {
		t.Helper()
		path, stopped, err := Stopped(dir, stanza)
		if err != nil || stopped != (want != "") || path != want {
			t.Errorf("Stopped(%s) = %q, %t, %v; want %q", stanza, path, stopped, err, want)
		}
	}
	check("demo", "")
	if err := os.WriteFile(StopPath(dir, "demo"), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	check("demo", filepath.Join(dir, "demo.stop"))
	check("other", "")
	if err := os.WriteFile(StopPath(dir, ""), nil, 0o640); err != nil {
		t.Fatal(err)
	}
	check("other", filepath.Join(dir, "all.stop"))
	// A lock path that is no directory is not "not stopped".
	if _, _, err := Stopped(StopPath(dir, "demo"), "demo"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock path is a file: %v", err)
	}
}

// TestLockOwner: a lock file that outlives a killed root process belongs to the lock path's owner, another's link does not.
func TestLockOwner(t *testing.T) {
	server := os.Geteuid()
	if server == 0 { // nobody else can give files away
		server = 70001
	}
	dir := filepath.Join(t.TempDir(), "lock")
	other := filepath.Join(filepath.Dir(dir), "other")
	paths := LockPaths(dir, "main", LockBackup, 1)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chown(dir, server, -1), os.WriteFile(other, nil, 0o600), os.Link(other, paths[1])); err != nil {
		t.Fatal(err)
	}
	l, err := AcquireLock(dir, "main", LockBackup, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]int{paths[0]: server, other: os.Geteuid()} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if uid := int(info.Sys().(*syscall.Stat_t).Uid); uid != want {
			t.Errorf("%s belongs to %d, want %d", path, uid, want)
		}
	}
	if err := l.Release(); err != nil {
		t.Error(err)
	}
}
