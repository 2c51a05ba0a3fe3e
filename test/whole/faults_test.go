package whole

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/test/world"
)

// smallDisk mounts a file system of 64 MiB on /data2/small of the instance. false: this user may not.
func smallDisk(t *testing.T, w *world.World) (string, bool) {
	t.Helper()
	dir := filepath.Join(w.Dir, "backup", "small")
	must(t, os.Mkdir(dir, 0o755))
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64m,mode=0777"); err != nil {
		if os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Logf("only root may mount a small file system: %v", err)
		return "", false
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir, true
}

// ballast fills a file system until that many bytes are free; the returned file is what to remove to free the rest.
func ballast(t *testing.T, dir string, leave int64) string {
	t.Helper()
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	file := filepath.Join(dir, ".ballast")
	must(t, os.WriteFile(file, make([]byte, int64(st.Bavail)*st.Bsize-leave), 0o600))
	return file
}

// TestFullDisk fills the disk that holds the tarballs, the staging directory or the repository: a clear error, PostgreSQL out
// of backup mode, nothing half published, the earlier set good; and with space the next run works.
func TestFullDisk(t *testing.T) {
	const full = "no space left on device"
	for _, c := range []struct {
		name  string
		apart bool
		conf  []string
		leave int64
		what  string
	}{
		{"dump directory", false, []string{"alation.backup.data_dump_dir", "-s", "/data2/small/dump"}, 1 << 20, full},
		{"staging", false, []string{"alation.backup.data_temp_dir", "-s", "/data2/small/tmp"}, 100 << 10, full},
		{"repository", true, []string{"pgsql.pgbackrest.repo_dir_name", "-s", "data2/small/repo"}, 1 << 20, full},
		{"repository without room for WAL", true, []string{"pgsql.pgbackrest.repo_dir_name", "-s", "data2/small/repo", "pgsql.pgbackrest.archive_timeout", "-s", "10"}, 0, full},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.apart)
			small, mounted := smallDisk(t, w)
			if !mounted {
				return
			}
			ok(t, w, "alation_conf", c.conf...)
			ok(t, w, "alation_action", "enable_backupv2")
			want := prove(t, w)
			first := backup(t, w)
			before := tarballsOf(t, w, first)
			weight := ballast(t, small, c.leave)
			if c.leave > 0 && !strings.Contains(c.name, "staging") { // too little for what the set before took: refused before anything is begun
				fails(t, w, 5, "not enough space for the backup", "alation_action", "backup_all")
			}
			fails(t, w, 1, c.what, "alation_action", "backup_all", "--skip-preflight")
			const sessions = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
			n, err := w.Int(t.Context(), sessions)
			for wait := 0; err == nil && n > 0 && wait < 100; wait++ { // a server that has little time notices a moment later that one has ended
				time.Sleep(100 * time.Millisecond)
				n, err = w.Int(t.Context(), sessions)
			}
			if err != nil || n != 0 {
				t.Errorf("%d sessions are left open, and with one the backup mode: %v", n, err)
			}
			if now := tarballsOf(t, w, first); !slices.Equal(now, before) {
				t.Errorf("before the full disk %v, after it %v", before, now)
			}
			leftOvers(t, w)
			all := sets(t, w)
			if last := all[len(all)-1]; last.ID != first.ID && last.State != "failed" {
				t.Errorf("set %s is %s", last.ID, last.State)
			}
			ok(t, w, "holdfast", "sets", "verify", first.ID)
			if c.apart { // the other restores need space in staging
				change(t, w)
				restore(t, w, first.ID)
				same(t, "the earlier set, restored on a full disk", want, prove(t, w))
			}
			must(t, os.Remove(weight))
			ok(t, w, "alation_conf", "pgsql.pgbackrest.archive_timeout", "-s", "60")
			last := backup(t, w)
			ok(t, w, "holdfast", "sets", "verify", last.ID)
			for _, s := range []set{first, last} {
				change(t, w)
				restore(t, w, s.ID)
				same(t, "after the full disk", want, prove(t, w))
			}
		})
	}
}

// tarballsOf lists the directory of a set's tarballs, with what is hidden.
func tarballsOf(t *testing.T, w *world.World, s set) []string {
	t.Helper()
	for _, p := range s.Pieces {
		if p.Kind == "application" {
			names, err := filepath.Glob(filepath.Join(filepath.Dir(p.Path), "*.tar.gz"))
			hidden, herr := filepath.Glob(filepath.Join(filepath.Dir(p.Path), ".*.tar.gz"))
			must(t, err, herr)
			return append(names, hidden...)
		}
	}
	t.Fatalf("set %s has no application piece", s.ID)
	return nil
}

// TestServerDies kills PostgreSQL under a run, at each step that needs it and amid those that take long: copying, and waiting
// for WAL. The run says so, and the next one works.
func TestServerDies(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart)
			want := prove(t, w)
			first := backup(t, w)
			ok(t, w, "alation_conf", "pgsql.pgbackrest.archive_timeout", "-s", "5")
			for _, step := range []string{"backup:start", "backup:copy", "backup:file-10", "backup:file-500", "backup:stop", "backup:wal", "backup_all:recovery-point", "backup_all:wal"} {
				p := paused(t, w, step, "alation_action", "backup_all")
				must(t, w.StopServer(t.Context(), "immediate"))
				out, err := p.Resume()
				failed(t, out, err, 1, world.Stanza)
				t.Logf("%s: %s", step, out.Stderr)
				if names := tarballsOf(t, w, first); len(names) != 2 {
					t.Errorf("%s: there is %v", step, names)
				}
				leftOvers(t, w)
				must(t, w.StartServer(t.Context()))
			}
			ok(t, w, "alation_conf", "pgsql.pgbackrest.archive_timeout", "-s", "60")
			ok(t, w, "holdfast", "sets", "verify", first.ID)
			last := backup(t, w)
			for _, s := range []set{last, first} {
				change(t, w)
				restore(t, w, s.ID)
				same(t, "after the deaths", want, prove(t, w))
			}
		})
	}
}

// TestDamagedPage: a page with a bad checksum is named, the set is made all the same, with exit code 3.
func TestDamagedPage(t *testing.T) {
	w := newWorld(t, true)
	rel, err := w.Text(t.Context(), "select pg_relation_filepath('t')")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Exec(t.Context(), "checkpoint"), w.StopServer(t.Context(), "fast")); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(w.Data, rel), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte{0xff, 0x00, 0xff}, 8192+5000)
	if err := errors.Join(err, f.Close(), w.StartServer(t.Context())); err != nil {
		t.Fatal(err)
	}
	out, err := w.As(t.Context(), "alation_action", "", "backup_all")
	if err != nil || out.Code != 3 || !strings.Contains(out.Stderr, filepath.Base(rel)) {
		t.Fatalf("code %d, %v:\n%s%s", out.Code, err, out.Stdout, out.Stderr)
	}
	all := sets(t, w)
	ok(t, w, "holdfast", "sets", "verify", all[len(all)-1].ID)
}

// TestServerDown: without PostgreSQL a run says so and leaves nothing; with it the next works.
func TestServerDown(t *testing.T) {
	w := newWorld(t, false)
	if err := w.StopServer(t.Context(), "immediate"); err != nil {
		t.Fatal(err)
	}
	fails(t, w, 1, "rosemeta", "alation_action", "backup_all")
	if names, err := w.Tarballs(true); err != nil || len(names) > 0 {
		t.Errorf("%v %v", names, err)
	}
	if err := w.StartServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	ok(t, w, "holdfast", "sets", "verify", backup(t, w).ID)
}
