// Package script goes through the examples of pgBackRest's user guide with nothing but its configuration file: the
// program is run through a symbolic link named pgbackrest, as PostgreSQL's user, and never told anything that the
// original would not know.
package script

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg/pgtest"
)

// rig is a cluster that archives with our program, a configuration file and a place for repositories.
type rig struct {
	t    *testing.T
	dir  string
	name string // the symbolic link
	conf string
	c    *pgtest.Cluster
	env  []string
}

// newRig starts a cluster. lines are written into the configuration file, as they are, after those that every test has;
// @ is the rig's directory. The last section is that of the stanza demo.
func newRig(t *testing.T, lines string) *rig {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	r := &rig{t: t, dir: ownDir(t)}
	r.name, r.conf = filepath.Join(r.dir, "pgbackrest"), filepath.Join(r.dir, "pgbackrest.conf")
	bin, err := built()
	if err == nil {
		err = os.Symlink(bin, r.name)
	}
	if err == nil {
		err = errors.Join(os.Mkdir(filepath.Join(r.dir, "log"), 0o777), os.Chmod(filepath.Join(r.dir, "log"), 0o777))
	}
	if err != nil {
		t.Fatal(err)
	}
	r.c = pgtest.New(t, pgtest.Options{Checksums: true, WALSegMB: 1, Settings: map[string]string{"archive_mode": "on", "wal_level": "replica",
		"archive_command": r.name + " --config=" + r.conf + " --stanza=demo archive-push %p", "checkpoint_timeout": "1h"}})
	r.configure(lines)
	return r
}

// configure writes the configuration file anew.
func (r *rig) configure(lines string) {
	r.t.Helper()
	text := "[global]\nlock-path=@/lock\nlog-path=@/log\nspool-path=@/spool\narchive-timeout=30\n"
	if !strings.Contains(lines, "log-level-file") {
		text += "log-level-file=detail\n"
	}
	if !strings.Contains(lines, "repo1-path") {
		text += "repo1-path=@/repo\n"
	}
	text += lines + fmt.Sprintf("\n[demo]\npg1-path=%s\npg1-socket-path=%s\npg1-port=%d\n", r.c.DataDir(), r.c.SocketDir(), r.c.Port())
	if err := os.WriteFile(r.conf, []byte(strings.ReplaceAll(text, "@", r.dir)), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hf-script-bin-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-trimpath", "-o", bin, "holdfast/cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("build: %w\n%s", err, out), os.RemoveAll(dir))
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if !testing.Short() {
		if bin, err := built(); err == nil {
			os.RemoveAll(filepath.Dir(bin)) // a left-over program harms nobody
		}
	}
	os.Exit(code)
}

// ownDir is a directory that the server's user can use.
func ownDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "hf-script-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if cred := postgres(t); cred != nil {
		if err := os.Chown(dir, int(cred.Uid), int(cred.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// postgres is the server's user; nil: we are it.
func postgres(t *testing.T) *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Fatalf("%v: run make setup", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// said is what a command printed, and its exit code.
type said struct {
	out, errs string
	code      int
}

// program runs any program as the server's user.
func (r *rig) program(name string, args ...string) said {
	r.t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = r.dir, &out, &errs
	cmd.Env = append([]string{"PATH=/usr/bin:/bin"}, r.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgres(r.t)}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return said{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// run runs a command line of the guide and wants it to succeed; args is one string of words.
func (r *rig) run(args string) string {
	r.t.Helper()
	return r.want(0, args)
}

// want runs one and wants this exit code. The result is all that was printed.
func (r *rig) want(code int, args string) string {
	r.t.Helper()
	s := r.program(r.name, append([]string{"--config=" + r.conf}, strings.Fields(args)...)...)
	if s.code != code {
		r.t.Fatalf("pgbackrest %s: exit code %d, want %d\n%s%s", args, s.code, code, s.out, s.errs)
	}
	return s.out + s.errs
}

// original runs Debian's pgbackrest on the same configuration.
func (r *rig) original(args string) string {
	r.t.Helper()
	s := r.program("/usr/bin/pgbackrest", append([]string{"--config=" + r.conf}, strings.Fields(args)...)...)
	if s.code != 0 {
		r.t.Fatalf("Debian's pgbackrest %s: exit code %d\n%s%s", args, s.code, s.out, s.errs)
	}
	return s.out + s.errs
}

// logFile is what is in one of the log files.
func (r *rig) logFile(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.dir, "log", name))
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// has wants every text in what was said.
func has(t *testing.T, said string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(said, w) {
			t.Errorf("want %q in:\n%s", w, said)
		}
	}
}

// hasNot wants none of them.
func hasNot(t *testing.T, said string, never ...string) {
	t.Helper()
	for _, w := range never {
		if strings.Contains(said, w) {
			t.Errorf("unwanted %q in:\n%s", w, said)
		}
	}
}

var newLabel = regexp.MustCompile(`new backup label = (\S+)`)

// backup makes one and returns its label.
func (r *rig) backup(args string) string {
	r.t.Helper()
	return r.backup0("--stanza=demo --start-fast --log-level-console=info " + args + " backup")
}

// backup0 is backup with nothing added to the command line.
func (r *rig) backup0(args string) string {
	r.t.Helper()
	out := r.run(args)
	m := newLabel.FindStringSubmatch(out)
	if m == nil {
		r.t.Fatalf("no label in:\n%s", out)
	}
	return m[1]
}

// lose stops the server at once and empties its data directory.
func (r *rig) lose() {
	r.t.Helper()
	r.c.Kill(r.t)
	entries, err := os.ReadDir(r.c.DataDir())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(r.c.DataDir(), e.Name())); err != nil {
			r.t.Fatal(err)
		}
	}
}

// start starts the server and waits until it has left recovery.
func (r *rig) start() {
	r.t.Helper()
	r.c.Start(r.t)
	for end := time.Now().Add(time.Minute); r.c.QueryString(r.t, "select pg_is_in_recovery()::text") != "false"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("still in recovery\n%s", r.c.LogTail(2<<10))
		}
	}
}

// rows is what the table of the examples holds.
func (r *rig) rows() string {
	r.t.Helper()
	return r.c.QueryString(r.t, "select coalesce(string_agg(message, ' ' order by message), '') from important_table")
}

// insert adds a row.
func (r *rig) insert(message string) {
	r.t.Helper()
	r.c.Exec(r.t, "create table if not exists important_table (message text)", "insert into important_table values ('"+message+"')")
}

// archive moves everything that was written so far into the archive.
func (r *rig) archive() {
	r.t.Helper()
	r.c.Exec(r.t, "select pg_create_restore_point('switch')") // without any WAL there would be nothing to switch
	segment := r.c.QueryString(r.t, "select pg_walfile_name(pg_switch_wal())")
	for end := time.Now().Add(time.Minute); r.c.QueryString(r.t, "select coalesce((select last_archived_wal >= '"+segment+"' from pg_stat_archiver), false)::text") != "true"; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("%s was not archived\n%s", segment, r.c.LogTail(4<<10))
		}
	}
}
