package whole

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"holdfast/test/world"
)

// TestRepositoryOfAnother: a repository that PostgreSQL's user can't use, because somebody copied it or made it as root, is
// named before a run, with the command that mends it; archive_command would fail there until the database's disk is full.
func TestRepositoryOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		return // to an ordinary user PostgreSQL's user is himself, or somebody he can't try as
	}
	w := newWorld(t, true)
	backup(t, w)
	archive := filepath.Join(w.Repo, "archive", world.Stanza)
	newest, err := w.Text(t.Context(), "select substr(last_archived_wal, 1, 16) from pg_stat_archiver")
	if err != nil {
		t.Fatal(err)
	}
	segments, err := filepath.Glob(filepath.Join(archive, "15-1", newest, "*"))
	if err != nil || len(segments) == 0 {
		t.Fatalf("no segments: %v", err)
	}
	for _, c := range []struct {
		path string
		mode fs.FileMode
		what string
	}{
		{w.Repo, 0o700, "cannot enter " + w.Repo},
		{archive, 0o700, "cannot enter " + archive},
		{filepath.Join(archive, "15-1"), 0o755, "cannot write into " + filepath.Join(archive, "15-1")},
		{filepath.Join(archive, "15-1", newest), 0o755, "cannot write into " + filepath.Join(archive, "15-1", newest)},
		{filepath.Join(archive, "archive.info"), 0o600, "cannot read " + filepath.Join(archive, "archive.info")},
		{segments[len(segments)-1], 0o600, "cannot read " + segments[len(segments)-1]},
	} {
		back := lend(t, c.path, c.mode)
		var said string
		for _, words := range [][]string{{"holdfast", "backup", "--dry-run"}, {"alation_action", "backup_all"}, {"alation_action", "enable_backupv2"}} {
			out, err := w.As(t.Context(), words[0], "", words[1:]...)
			if said = out.Stdout + out.Stderr; err == nil || !strings.Contains(said, c.what) {
				t.Errorf("%v: code %d, want %q in:\n%s", words, out.Code, c.what, said)
			}
		}
		if m := regexp.MustCompile(`run: (ch[a-z]+ .*)`).FindStringSubmatch(said); m == nil {
			t.Errorf("no command to run in:\n%s", said)
		} else if out, err := exec.CommandContext(t.Context(), "sh", "-c", m[1]).CombinedOutput(); err != nil {
			t.Errorf("%s: %v %s", m[1], err, out)
		} else {
			ok(t, w, "holdfast", "backup", "--dry-run")
		}
		must(t, back())
	}
	backup(t, w)
}

// lend gives an object to root; back returns it with its mode.
func lend(t *testing.T, path string, mode fs.FileMode) (back func() error) {
	t.Helper()
	uid, gid, was := ownerOf(t, path)
	must(t, os.Chown(path, 0, 0), os.Chmod(path, mode))
	return func() error { return errors.Join(os.Chown(path, uid, gid), os.Chmod(path, was)) }
}

func ownerOf(t *testing.T, path string) (uid, gid int, mode fs.FileMode) {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	st := info.Sys().(*syscall.Stat_t)
	return int(st.Uid), int(st.Gid), info.Mode().Perm()
}
