package interop

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestFixturesRecover restores every backup that the real pgbackrest wrote and lets PostgreSQL replay all WAL: the rows of
// the largest table must be those that its server had in the end.
func TestFixturesRecover(t *testing.T) {
	for _, fix := range fixtures {
		t.Run(fix.name, func(t *testing.T) {
			version := pg.Version(15)
			if strings.HasSuffix(fix.name, "pg18") {
				version = 18
			}
			r := newRig(t, version, "none")
			dir, unpacked := fixture(t, fix.name)
			r.repo = filepath.Join(r.dir, "fixture")
			if out, err := run("cp", "-a", unpacked, r.repo); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			if cred := postgres(t); cred != nil {
				if out, err := run("chown", "-R", fmt.Sprintf("%d:%d", cred.Uid, cred.Gid), r.repo); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			if r.encrypted = fix.pass != ""; r.encrypted {
				if err := os.WriteFile(r.passFile(), []byte(passOf(t, filepath.Join(dir, "pgbackrest.conf"))+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			final, err := os.ReadFile(filepath.Join(dir, "final-big.txt"))
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Split(strings.TrimSpace(string(final)), "|")
			for i, label := range r.labels() {
				data := r.dirFor(fmt.Sprintf("data%d", i))
				r.holdfast("restore", "--set="+label, "--pg1-path="+data, "--tablespace-map-all="+r.dirFor(fmt.Sprintf("spaces%d", i)), "--archive-mode=off")
				conn := r.start(data)
				for j, what := range []string{"count(*)", "sum(hashtext(h)::bigint)", "sum(hashtext(pad)::bigint)"} {
					if got := queryInt(t, conn, "select ("+what+")::bigint from big"); fmt.Sprint(got) != want[j] {
						t.Errorf("%s: %s is %d, want %s", label, what, got, want[j])
					}
				}
			}
		})
	}
}

// TestDeltaOverCluster brings a cluster that went on working back to its backup in place: what is right stays, the tablespace
// too. Then once more, with one database only.
func TestDeltaOverCluster(t *testing.T) {
	for _, block := range []bool{false, true} {
		t.Run(fmt.Sprintf("block=%v", block), func(t *testing.T) {
			r := newRig(t, 15, "zst")
			r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
			r.ourArchive("zst")
			r.fill()
			r.c.Exec(t, "create database app", "create database other")
			args := append(r.server(), "--start-fast")
			if block {
				args = append(args, "--repo1-bundle", "--repo1-block")
			}
			r.holdfast("backup", args...)
			sums := func() string {
				return r.c.QueryString(t, "select count(*)||' '||sum(hashtext(h)::bigint)||' '||(select count(*) from side_t) from big")
			}
			before := sums()
			restore := func(include ...string) *engine.RestoreResult {
				r.c.Exec(t, "update big set h = md5(h) where id % 1000 = 0", "delete from side_t", "insert into big select * from big where id < 2000",
					"create table later as select * from big", "drop table empty_t", "checkpoint", "select pg_switch_wal()")
				r.c.Stop(t, "fast")
				o := r.restoreOptions()
				o.DataDir, o.Delta, o.DBInclude = r.c.DataDir(), true, include
				res := r.engineRestore(o)
				r.c.Start(t)
				r.awaitRecovered()
				return res
			}
			res := restore()
			if got := sums(); got != before {
				t.Errorf("after the restore %s, before %s", got, before)
			}
			if res.Kept < 500 || res.Kept == res.Files || res.Removed == 0 {
				t.Errorf("kept %d of %d files, removed %d", res.Kept, res.Files, res.Removed)
			}
			restore("app")
			if got := sums(); got != before {
				t.Errorf("after the second restore %s, before %s", got, before)
			}
			if out, err := run(filepath.Join(r.c.BinDir(), "psql"), "-h", r.c.SocketDir(), "-p", fmt.Sprint(r.c.Port()), "-U", r.c.ConnOptions().User, "-c", "select 1", "app"); err != nil {
				t.Errorf("the included database: %v %s", err, out)
			}
			r.c.Exec(t, "drop database other")
		})
	}
}

// run runs a program as it is, and returns what it says.
func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

// awaitRecovered waits until the rig's own server takes writes.
func (r *rig) awaitRecovered() {
	r.t.Helper()
	for range 3600 {
		if recovered(r.t.Context(), r.c.ConnOptions()) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.t.Fatal("recovery did not end")
}

// restoreOptions recover to the end of the backup, as the server's user.
func (r *rig) restoreOptions() engine.RestoreOptions {
	o := engine.RestoreOptions{Type: engine.TargetImmediate, Action: "promote", ProcessMax: 2,
		RestoreCommand: fmt.Sprintf("%s pg archive-get --stanza=%s --repo1-path=%s --pg1-path=%s %%f %%p", r.bin, stanza, r.repo, r.c.DataDir())}
	if cred := postgres(r.t); cred != nil {
		o.Owners, o.DefaultUID, o.DefaultGID = true, int(cred.Uid), int(cred.Gid)
	}
	return o
}

// engineRestore restores in this process, with options that have no place on a command line.
func (r *rig) engineRestore(o engine.RestoreOptions) *engine.RestoreResult {
	r.t.Helper()
	st, err := storage.NewPosix(r.repo, storage.PosixOptions{})
	if err != nil {
		r.t.Fatal(err)
	}
	s, err := engine.New(engine.Options{Stanza: stanza, Storage: st, Pass: repo.Secret("")})
	if err != nil {
		r.t.Fatal(err)
	}
	plan, err := s.PlanRestore(r.t.Context(), o)
	if err != nil {
		r.t.Fatal(err)
	}
	res, err := plan.Run(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	return res
}
