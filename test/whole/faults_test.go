package whole

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFullDisk gives the dump directory a file system of 2 MiB: a clear error, nothing half published, and a run with
// space works.
func TestFullDisk(t *testing.T) {
	w := newWorld(t, false)
	first := backup(t, w)
	small := filepath.Join(w.Dir, "backup", "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", small, "tmpfs", 0, "size=2m,mode=0777"); err != nil {
		if os.Geteuid() != 0 {
			t.Logf("only root may mount a small file system: %v", err)
			return
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(small, 0); err != nil {
			t.Error(err)
		}
	})
	ok(t, w, "alation_conf", "alation.backup.data_dump_dir", "-s", "/data2/small")
	fails(t, w, 1, "no space left on device", "alation_action", "backup_all")
	entries, err := os.ReadDir(small)
	if err != nil || len(entries) != 0 {
		t.Errorf("the full disk holds %v %v", entries, err)
	}
	ok(t, w, "alation_conf", "--unset", "alation.backup.data_dump_dir")
	want := prove(t, w)
	last := backup(t, w)
	ok(t, w, "holdfast", "sets", "verify", first.ID)
	restore(t, w, last.ID)
	same(t, "after the full disk", want, prove(t, w))
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
