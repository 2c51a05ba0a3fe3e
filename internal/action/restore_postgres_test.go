package action

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/pg/pgtest"
	"holdfast/internal/storage"
)

// pgWorld is an application of one cluster with a tablespace; bin is the program for its archive_command.
func pgWorld(t *testing.T, bin string, mode catalog.Mode) (*pgtest.Cluster, string, *Options) {
	t.Helper()
	c := pgtest.New(t, pgtest.Options{Settings: map[string]string{"archive_mode": "on", "archive_command": "false", "wal_level": "replica"}})
	dir := openTempDir(t)
	var owner *durable.Owner
	if os.Geteuid() == 0 {
		uid, gid := ownerOf(c.DataDir(), nil)
		owner = &durable.Owner{UID: uid, GID: gid}
	}
	repoDir, locks := filepath.Join(dir, "repo"), filepath.Join(dir, "locks")
	if err := durable.MkdirAllOwned(locks, 0o755, owner); err != nil {
		t.Fatal(err)
	}
	cluster := Cluster{Stanza: "main", DataDir: c.DataDir(), Conn: c.ConnOptions(), BinDir: c.BinDir(), LogFile: c.LogFile(),
		ArchiveCommand: fmt.Sprintf(`%s pg archive-push --stanza=main --repo1-path=%s --pg1-path=%s --lock-path=%s "%%p"`, bin, repoDir, c.DataDir(), locks),
		RestoreCommand: func(dirs ...string) string {
			words := []string{bin, "pg archive-get --stanza=main --lock-path=" + locks + " --pg1-path=" + c.DataDir()}
			for i, d := range dirs {
				words = append(words, fmt.Sprintf("--repo%d-path=%s", i+1, d))
			}
			return strings.Join(words, " ") + ` %f "%p"`
		}}
	o := &Options{Root: "/", DumpDir: filepath.Join(dir, "dump"), TempDir: filepath.Join(dir, "tmp"), LockPath: filepath.Join(dir, "lock/instance.lock"),
		JournalPath: filepath.Join(dir, "lock/restore.json"), Catalog: catalog.NewStore(storage.NewMem(nil)), AppVersion: "1-0", Program: "holdfast test", Host: "here",
		ExecID: "1-abcdef01", Mode: mode, RepoDir: repoDir, PGLockDir: locks, ProcessMax: 1, Compress: "none", Owner: owner, Clusters: []Cluster{cluster},
		OpenRepo: func(d string) (storage.Storage, error) {
			return storage.NewPosix(d, storage.PosixOptions{Owner: owner})
		},
	}
	space := c.AddTablespace(t, "side")
	c.Exec(t, "create table t as select g as n from generate_series(1, 1000) g", "create table s (n int) tablespace side", "insert into s select n from t")
	if _, err := New(*o).EnableArchiving(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c, space, o
}

// openTempDir is a temporary directory that the server's user gets through.
func openTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-action-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // what is left of a temporary directory harms nobody
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// rows fails unless the server runs and both tables have want rows.
func rows(t *testing.T, c *pgtest.Cluster, want int64) {
	t.Helper()
	if _, running, err := pg.Running(c.DataDir()); err != nil || !running {
		t.Fatalf("the server does not run: %v", err)
	}
	c.Restart(t) // the session of before is gone
	if n, m := c.QueryInt(t, "select count(*) from t"), c.QueryInt(t, "select count(*) from s"); n != want || m != want {
		t.Errorf("%d and %d rows, want %d", n, m, want)
	}
}

// leftovers are what a restore may leave beside the cluster's directories.
func leftovers(t *testing.T, dirs ...string) []string {
	t.Helper()
	var found []string
	for _, d := range dirs {
		for _, mark := range []string{asideMark, undoneMark, newMark} {
			names, err := filepath.Glob(d + mark + "*")
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, names...)
		}
	}
	return found
}

// TestRestoreOfPostgres: in both modes the plan names the tablespace's directory, and a restored server that can't take its
// port gives everything back, the old server running.
func TestRestoreOfPostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	bin := filepath.Join(openTempDir(t), "holdfast")
	build := exec.Command("go", "build", "-o", bin, "holdfast/cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	for _, mode := range []catalog.Mode{catalog.Included, catalog.Apart} {
		t.Run(string(mode), func(t *testing.T) {
			c, space, o := pgWorld(t, bin, mode)
			at := map[string]func(){}
			o.Events = func(e engine.Event) {
				if s, ok := e.(engine.Step); ok && at[s.Name] != nil {
					at[s.Name]()
				}
			}
			a := New(*o)
			set, err := a.BackupAll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			ro := RestoreOptions{RestoreFile: set.Piece(catalog.Application).Path}
			c.Exec(t, "insert into t values (0)", "insert into s values (0)")
			plan, err := a.PlanRestoreAll(t.Context(), ro)
			if err != nil {
				t.Fatal(err)
			}
			inSpace := filepath.Join(space, c.Version().TablespaceDirName())
			if len(plan.Missing) > 0 || !slices.Contains(plan.Replaces, inSpace) || !slices.Contains(plan.Replaces, c.DataDir()) || plan.Tablespaces["main/side"] != space || len(plan.StopsServer) != 1 {
				t.Fatalf("replaces %q, tablespaces %v, stops %q; missing %q", plan.Replaces, plan.Tablespaces, plan.StopsServer, plan.Missing)
			}
			if mode == catalog.Included {
				missingWAL(t, a, ro)
			}
			taken := takePort(t, c)
			at["recover"], at["give-back"] = taken.take, taken.free
			if _, err := plan.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "given back") {
				t.Fatalf("the port is taken: %v", err)
			}
			rows(t, c, 1001)
			if left := leftovers(t, c.DataDir(), inSpace); len(left) > 0 || exists(o.JournalPath) {
				t.Errorf("left over: %q, journal %t", left, exists(o.JournalPath))
			}
			clear(at)
			if plan, err = a.PlanRestoreAll(t.Context(), ro); err != nil {
				t.Fatal(err)
			}
			if _, err := plan.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			rows(t, c, 1000)
			if left := leftovers(t, c.DataDir(), inSpace); len(left) > 0 {
				t.Errorf("left over: %q", left)
			}
			foreignTablespace(t, c, a, ro, inSpace)
		})
	}
}

// missingWAL: the plan reads which WAL the tarball has, and names what a recovery would miss.
func missingWAL(t *testing.T, a *App, ro RestoreOptions) {
	t.Helper()
	p := &RestorePlan{a: a, o: ro, Tablespaces: map[string]string{}}
	p.application(t.Context())
	segment := p.Set.Recovery.Postgres[0].Segment
	for _, name := range p.outline.Names() {
		if strings.Contains(name, segment+"-") {
			if err := p.outline.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
	p.postgres(t.Context())
	if all := strings.Join(p.Missing, "\n"); !strings.Contains(all, "WAL segment "+segment) {
		t.Errorf("segment %s is gone: %q", segment, all)
	}
}

// foreignTablespace: files where the set's tablespace goes, of nobody's cluster here, are refused by the plan already.
func foreignTablespace(t *testing.T, c *pgtest.Cluster, a *App, ro RestoreOptions, inSpace string) {
	t.Helper()
	c.Exec(t, "drop table s", "drop tablespace side")
	if err := errors.Join(os.MkdirAll(inSpace, 0o700), os.WriteFile(filepath.Join(inSpace, "16384"), []byte("page"), 0o600)); err != nil {
		t.Fatal(err)
	}
	plan, err := a.PlanRestoreAll(t.Context(), ro)
	if all := strings.Join(plan.Missing, "\n"); err != nil || !strings.Contains(all, inSpace) {
		t.Errorf("another cluster's tablespace: %q %v", all, err)
	}
}

// port is a claim on a cluster's socket by another process of its user.
type port struct{ take, free func() }

func takePort(t *testing.T, c *pgtest.Cluster) port {
	t.Helper()
	lock := fmt.Sprintf("%s/.s.PGSQL.%d.lock", c.SocketDir(), c.Port())
	uid, gid := ownerOf(c.DataDir(), nil)
	cmd := exec.Command("sleep", "600")
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	free := func() {
		if cmd.ProcessState != nil {
			return
		}
		if err := errors.Join(os.Remove(lock), cmd.Process.Kill()); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait() // killed
	}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_, _ = cmd.Process.Kill(), cmd.Wait() // the test has failed before
		}
	})
	return port{free: free, take: func() {
		text := fmt.Sprintf("%d\n%s\n%d\n%d\n%s\n", cmd.Process.Pid, c.DataDir(), time.Now().Unix(), c.Port(), c.SocketDir())
		if err := os.WriteFile(lock, []byte(text), 0o600); err != nil {
			t.Error(err)
		}
		if err := os.Chown(lock, uid, gid); err != nil {
			t.Error(err)
		}
	}}
}

// TestGiveBackAndHandStartedServers: giving back stops a server that somebody started meanwhile only where it must, and then
// starts it again.
func TestGiveBackAndHandStartedServers(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{})
	dir := t.TempDir()
	a := New(Options{JournalPath: filepath.Join(dir, "restore.json"), Clusters: []Cluster{{Stanza: "main", DataDir: c.DataDir(), Conn: c.ConnOptions(), BinDir: c.BinDir(), LogFile: c.LogFile()}}})
	giveBack := func(j *journal) error {
		t.Helper()
		j.Run, j.State = "1", journalMoving
		if err := a.writeJournal(j); err != nil {
			t.Fatal(err)
		}
		_, err := a.settleJournal(t.Context())
		return err
	}
	pid := func() int {
		t.Helper()
		n, running, err := pg.Running(c.DataDir())
		if err != nil || !running {
			t.Fatalf("the server does not run: %v", err)
		}
		return n
	}
	c.Exec(t, "create table old (n int)")
	before := pid()
	if err := giveBack(&journal{Moves: []move{{From: c.DataDir(), Aside: c.DataDir() + asideMark + "1"}}}); err != nil || pid() != before {
		t.Errorf("the data had not been moved yet: %v", err)
	}
	if err := giveBack(&journal{Moves: []move{{From: c.DataDir()}}}); err == nil || !strings.Contains(err.Error(), "pg_ctl stop") || pid() != before {
		t.Errorf("a server on what the restore made, started by hand: %v", err)
	}
	c.Stop(t, "fast")
	if out, err := exec.Command("cp", "-a", c.DataDir(), c.DataDir()+asideMark+"1").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c.Start(t)
	c.Exec(t, "drop table old")
	c.Stop(t, "fast")
	c.Start(t) // by hand
	if err := giveBack(&journal{Moves: []move{{From: c.DataDir(), Aside: c.DataDir() + asideMark + "1"}}}); err != nil {
		t.Fatal(err)
	}
	pid()
	c.Restart(t) // the session of before is gone
	if n := c.QueryInt(t, "select count(*) from old"); n != 0 {
		t.Errorf("%d rows", n)
	}
	if !exists(filepath.Join(c.DataDir()+undoneMark+"1", "PG_VERSION")) {
		t.Error("what somebody worked on since is gone")
	}
}
