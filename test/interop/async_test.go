package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestAsynchronousArchiving: PostgreSQL archives through our program under the name pgbackrest with archive-async=y, into
// two repositories; every segment arrives, and recovery reads ahead.
func TestAsynchronousArchiving(t *testing.T) {
	r := newRig(t, 15, "zst")
	name := filepath.Join(r.dir, "pgbackrest-ours")
	if err := os.Mkdir(name, 0o755); err != nil {
		t.Fatal(err)
	}
	name = filepath.Join(name, "pgbackrest")
	if err := os.Symlink(r.bin, name); err != nil {
		t.Fatal(err)
	}
	second := r.dirFor("second")
	text, err := os.ReadFile(r.conf)
	if err != nil {
		t.Fatal(err)
	}
	conf := strings.Replace(string(text), "[global]\n", fmt.Sprintf("[global]\narchive-async=y\nprocess-max=2\nrepo2-path=%s\narchive-get-queue-max=8MiB\n", second), 1)
	if err := os.WriteFile(r.conf, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	r.dirFor("spool")
	r.dirFor("log")
	ours := func(args ...string) string {
		return r.run(name, append([]string{"--config=" + r.conf, "--stanza=" + stanza}, args...)...)
	}
	ours("stanza-create")
	r.archiveWith(fmt.Sprintf("%s --config=%s --stanza=%s archive-push %%p", name, r.conf, stanza))
	r.fill()
	ours("--type=full", "--repo=1", "backup")
	r.c.Exec(t, "create table after as select g from generate_series(1, 200000) g", "select pg_switch_wal()")
	ours("check")
	// One repository is away: the other gets all WAL that comes meanwhile, not only the segment that PostgreSQL is told about.
	archive, away := filepath.Join(second, "archive"), filepath.Join(second, "away")
	if err := os.Rename(archive, away); err != nil {
		t.Fatal(err)
	}
	var last string
	for range 3 {
		r.c.Exec(t, "insert into after select g from generate_series(200001, 200100) g", "delete from after where g > 200000")
		last = r.c.QueryString(t, "select pg_walfile_name(pg_switch_wal())")
	}
	r.awaitFile(filepath.Join(r.repo, "archive", stanza, "15-1", last[:16], last+"-*"))
	if err := os.Rename(away, archive); err != nil {
		t.Fatal(err)
	}
	ours("check")
	for _, repo := range []string{r.repo, second} {
		segments, err := filepath.Glob(filepath.Join(repo, "archive", stanza, "15-1", "0*", "0*"))
		if err != nil || len(segments) < 15 {
			t.Errorf("%s holds %d segments: %v", repo, len(segments), err)
		}
	}
	if out := r.backrest("--log-level-console=info", "verify"); strings.Contains(out, "missing") || strings.Contains(out, "invalid") {
		t.Errorf("pgbackrest verify:\n%s", out)
	}
	dir, spaces := r.dirFor("restored"), r.dirFor("restored-spaces")
	ours("--pg1-path="+dir, "--tablespace-map-all="+spaces, "--archive-mode=off", "restore")
	conn := r.start(dir)
	if n := queryInt(t, conn, "select count(*) from after"); n != 200000 {
		t.Errorf("after has %d rows", n)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "spool", "archive", stanza, "in")); err != nil {
		t.Errorf("recovery did not go through the spool: %v", err)
	}
	logs, err := filepath.Glob(filepath.Join(r.dir, "log", "*"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("logs: %v", logs)
}

// awaitFile waits until a file appears.
func (r *rig) awaitFile(pattern string) {
	r.t.Helper()
	for range 1200 {
		if found, err := filepath.Glob(pattern); err != nil || len(found) > 0 {
			if err != nil {
				r.t.Fatal(err)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.t.Fatalf("there is no %s", pattern)
}
