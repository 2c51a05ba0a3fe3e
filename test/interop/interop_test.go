// Package interop holds Holdfast and the real pgbackrest against each other: each restores what the other wrote, file for
// file, and PostgreSQL starts from it. Needs Debian's pgbackrest and the servers of make setup.
package interop

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/pg/pgtest"
)

// rig is a cluster, a repository and both programs.
type rig struct {
	t    *testing.T
	dir  string
	bin  string
	repo string
	c    *pgtest.Cluster
	conf string

	encrypted, bundled bool
	pass               string // of the repository; "": passphrase

	churned int // workloads started: each names its tables apart
}

const stanza = "demo"

// passphrase is that of encrypted repositories.
const passphrase = "correct horse battery staple"

func newRig(t *testing.T, version pg.Version, compress string) *rig {
	return newRigFor(t, pgtest.Options{Version: version, Checksums: true, WALSegMB: 1}, compress)
}

// newRigFor makes a rig with a cluster of a kind; it archives, and checkpoints only when told.
func newRigFor(t *testing.T, o pgtest.Options, compress string) *rig {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL and pgbackrest; run make test")
	}
	r := &rig{t: t, dir: ownDir(t)}
	r.bin = filepath.Join(r.dir, "holdfast")
	b, err := os.ReadFile(program(t))
	if err == nil {
		err = os.WriteFile(r.bin, b, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.repo = filepath.Join(r.dir, "pgbackrest") // pgbackrest's check wants its name in archive_command
	o.Settings = map[string]string{"archive_mode": "on", "wal_level": "replica", "archive_command": "false", "checkpoint_timeout": "1h", "log_min_error_statement": "panic"}
	r.c = pgtest.New(t, o)
	r.conf = filepath.Join(r.dir, "pgbackrest.conf")
	r.configure(compress)
	return r
}

// configure writes pgbackrest's configuration file, and the passphrase's for us.
func (r *rig) configure(compress string) {
	r.t.Helper()
	text := fmt.Sprintf("[global]\nrepo1-path=%s\nlock-path=%s/lock\nlog-path=%s/log\nspool-path=%s/spool\nstart-fast=y\nlog-level-file=off\ncompress-type=%s\narchive-timeout=30\n[%s]\npg1-path=%s\npg1-socket-path=%s\npg1-port=%d\n",
		r.repo, r.dir, r.dir, r.dir, compress, stanza, r.c.DataDir(), r.c.SocketDir(), r.c.Port())
	if r.encrypted {
		text = strings.Replace(text, "[global]\n", "[global]\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass="+cmp.Or(r.pass, passphrase)+"\n", 1)
	}
	if r.bundled {
		text = strings.Replace(text, "[global]\n", "[global]\nrepo1-bundle=y\n", 1)
	}
	if err := os.WriteFile(r.conf, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.passFile(), []byte(cmp.Or(r.pass, passphrase)+"\n"), 0o640); err != nil {
		r.t.Fatal(err)
	}
	if cred := postgres(r.t); cred != nil {
		if err := os.Chown(r.passFile(), int(cred.Uid), int(cred.Gid)); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *rig) passFile() string { return filepath.Join(r.dir, "passphrase") }

// secret is the option that names the passphrase file, if there is one.
func (r *rig) secret() []string {
	if !r.encrypted {
		return nil
	}
	return []string{"--repo1-cipher-pass-file=" + r.passFile()}
}

// backup makes one with either program.
func (r *rig) backup(typ, by, compress string, more ...string) {
	r.t.Helper()
	if by == "theirs" {
		r.backrest(append([]string{"--type=" + typ, "--log-level-console=error", "backup"}, more...)...)
		return
	}
	args := append(r.server(), "--start-fast", "--type="+typ, "--compress-type="+compress)
	if r.bundled {
		args = append(args, "--repo1-bundle")
	}
	r.holdfast("backup", append(args, more...)...)
}

// agree: both programs find nothing wrong with the repository and say the same of it.
func (r *rig) agree() {
	r.t.Helper()
	if theirs, ours := r.backrest("info", "--output=json"), r.holdfast("info", "--output=json"); strings.TrimSpace(theirs) != strings.TrimSpace(ours) {
		r.t.Errorf("info JSON\npgbackrest %s\nholdfast   %s", theirs, ours)
	}
	if theirs, ours := r.backrest("info"), r.holdfast("info"); theirs != ours {
		r.t.Errorf("info\npgbackrest\n%s\nholdfast\n%s", theirs, ours)
	}
	if out := r.backrest("--log-level-console=info", "verify"); strings.Contains(out, "ERROR") || strings.Contains(out, "WARN") || strings.Contains(out, "invalid") || strings.Contains(out, "missing") {
		r.t.Errorf("pgbackrest verify:\n%s", out)
	}
	r.holdfast("verify")
}

// labels are the backups in the repository, oldest first.
func (r *rig) labels() []string {
	r.t.Helper()
	entries, err := os.ReadDir(filepath.Join(r.repo, "backup", stanza))
	if err != nil {
		r.t.Fatal(err)
	}
	var labels []string
	for _, e := range entries {
		if e.IsDir() && e.Name() != "backup.history" {
			labels = append(labels, e.Name())
		}
	}
	return labels
}

// restoreAlike restores one backup with either program and compares.
func (r *rig) restoreAlike(label string) {
	r.t.Helper()
	ours, ourSpaces := r.dirFor("o-"+label), r.dirFor("os-"+label)
	theirs, theirSpaces := r.dirFor("t-"+label), r.dirFor("ts-"+label)
	r.holdfast("restore", "--set="+label, "--pg1-path="+ours, "--tablespace-map-all="+ourSpaces, "--type=none")
	r.backrest("--set="+label, "--pg1-path="+theirs, "--tablespace-map-all="+theirSpaces, "--type=none", "--log-level-console=warn", "restore")
	r.sameTrees(r.tree(ours, ourSpaces), r.tree(theirs, theirSpaces))
	for _, dir := range []string{ours, ourSpaces, theirs, theirSpaces} {
		if err := os.RemoveAll(dir); err != nil {
			r.t.Fatal(err)
		}
	}
}

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hf-interop-bin-")
	if err != nil {
		return "", err
	}
	bin := filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-trimpath", "-o", bin, "holdfast/cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return bin, nil
})

// program builds holdfast once.
func program(t *testing.T) string {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return bin
}

func TestMain(m *testing.M) {
	code := m.Run()
	if testing.Short() {
		os.Exit(code)
	}
	if bin, err := built(); err == nil {
		os.RemoveAll(filepath.Dir(bin)) // a left-over program harms nobody
	}
	os.Exit(code)
}

// ownDir is a directory that the server's user can use.
func ownDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "hf-interop-")
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
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// run runs a program as the server's user.
func (r *rig) run(name string, args ...string) string {
	r.t.Helper()
	out, err := r.try(name, args...)
	if err != nil {
		r.t.Fatalf("%s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return out
}

// try runs a program that may fail.
func (r *rig) try(name string, args ...string) (string, error) {
	r.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgres(r.t)}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (r *rig) backrest(args ...string) string {
	r.t.Helper()
	return r.run("pgbackrest", append([]string{"--config=" + r.conf, "--stanza=" + stanza}, args...)...)
}

func (r *rig) holdfast(verb string, args ...string) string {
	r.t.Helper()
	return r.run(r.bin, r.command(verb, args)...)
}

func (r *rig) command(verb string, args []string) []string {
	return append(append([]string{"pg", verb, "--stanza=" + stanza, "--repo1-path=" + r.repo, "--lock-path=" + filepath.Join(r.dir, "lock")}, r.secret()...), args...)
}

// warns runs a verb of ours that has to succeed with a warning.
func (r *rig) warns(warning, verb string, args ...string) {
	r.t.Helper()
	out, err := r.try(r.bin, r.command(verb, args)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(out, warning) {
		r.t.Fatalf("%s %s: %v, without the warning %q:\n%s", verb, strings.Join(args, " "), err, warning, out)
	}
}

func (r *rig) server() []string { return serverArgs("pg1", r.c.DataDir(), r.c.ConnOptions()) }

// serverArgs lead to a server: pg1 or pg2.
func serverArgs(as, dir string, o pg.ConnOptions) []string {
	args := []string{"--" + as + "-path=" + dir, "--" + as + "-socket-path=" + o.Host, "--" + as + "-port=" + strconv.Itoa(o.Port)}
	if as == "pg1" {
		args = append(args, "--pg1-user="+o.User, "--archive-timeout=30s")
	}
	return args
}

// archiveWith points archive_command at one of the programs.
func (r *rig) archiveWith(command string) {
	r.t.Helper()
	r.c.Exec(r.t, "alter system set archive_command = '"+strings.ReplaceAll(command, "'", "''")+"'", "select pg_reload_conf()")
}

func (r *rig) ourArchive(compress string) { r.archiveWith(r.pushCommand(r.c.DataDir(), compress)) }

// pushCommand is our archive_command for a data directory.
func (r *rig) pushCommand(dir, compress string) string {
	return fmt.Sprintf("%s pg archive-push --stanza=%s --repo1-path=%s --pg1-path=%s --lock-path=%s/lock --compress-type=%s %s %%p", r.bin, stanza, r.repo, dir, r.dir, compress, strings.Join(r.secret(), " "))
}

func (r *rig) fill() {
	r.t.Helper()
	r.c.AddTablespace(r.t, "side")
	r.c.Exec(r.t, "create table big as select g as id, md5(g::text) as h, repeat(md5((g%97)::text), 4) as pad from generate_series(1, 30000) g", "create index on big(id)",
		"create table side_t tablespace side as select * from big where id % 10 = 0", "create unlogged table scratch as select 1 as n", "create table empty_t (i int)", "checkpoint")
}

// busy writes, creates and drops tables until the returned function is called, which returns how often it did.
func (r *rig) busy() func() int {
	conn := r.c.ConnOptions()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan int)
	first := r.churned * 100_000
	r.churned++
	go func() {
		n := 0
		for ctx.Err() == nil {
			if err := churn(ctx, conn, first+n); err != nil && ctx.Err() == nil {
				r.t.Errorf("workload: %v", err)
				break
			}
			n++
			time.Sleep(20 * time.Millisecond) // archive_command starts a process for each segment and has to keep up
		}
		done <- n
	}()
	return func() int { cancel(); return <-done }
}

// tree is every file below a directory with its hash; what differs by design is left out: pg_control (its checkpoint is
// made unusable on purpose) and the empty recovery.signal that pgbackrest 2.45 leaves with --type=none.
func (r *rig) tree(dirs ...string) map[string]string {
	r.t.Helper()
	files := map[string]string{}
	for i, dir := range dirs {
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(dir, p)
			if err != nil || rel == "global/pg_control" || rel == "recovery.signal" {
				return err
			}
			b, err := os.ReadFile(p)
			files[fmt.Sprintf("%d/%s", i, rel)] = fmt.Sprintf("%x", sha256.Sum256(b))
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return files
}

func (r *rig) sameTrees(a, b map[string]string) {
	r.t.Helper()
	if len(a) < 500 {
		r.t.Errorf("only %d files", len(a))
	}
	for k, v := range a {
		if b[k] != v {
			r.t.Errorf("%s: %s, %s", k, v, b[k])
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			r.t.Errorf("%s: only in the second", k)
		}
	}
}

// restoreBoth restores the newest backup with either program and compares.
func (r *rig) restoreBoth() {
	r.t.Helper()
	ours, ourSpaces := r.dirFor("ours"), r.dirFor("ours-spaces")
	theirs, theirSpaces := r.dirFor("theirs"), r.dirFor("theirs-spaces")
	r.holdfast("restore", "--pg1-path="+ours, "--tablespace-map-all="+ourSpaces, "--type=none")
	r.backrest("--pg1-path="+theirs, "--tablespace-map-all="+theirSpaces, "--type=none", "--log-level-console=warn", "restore")
	r.sameTrees(r.tree(ours, ourSpaces), r.tree(theirs, theirSpaces))
}

// dirFor makes an empty directory for a restore.
func (r *rig) dirFor(name string) string {
	r.t.Helper()
	dir := filepath.Join(r.dir, name)
	r.run("mkdir", "-m", "700", "-p", dir)
	return dir
}

func TestPgbackrestReadsOurs(t *testing.T) {
	for _, compress := range []string{"none", "gz", "lz4", "zst"} {
		t.Run(compress, func(t *testing.T) {
			r := newRig(t, 15, compress)
			r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
			r.ourArchive(compress)
			r.fill()
			stop := r.busy()
			r.holdfast("backup", append(r.server(), "--start-fast", "--compress-type="+compress)...)
			if n := stop(); n == 0 {
				t.Error("the workload did nothing")
			}
			r.holdfast("check", r.server()...) // from here on no WAL is on its way
			if out := r.backrest("info"); !strings.Contains(out, "status: ok") {
				t.Errorf("pgbackrest info:\n%s", out)
			}
			theirs, ours := r.backrest("info", "--output=json"), r.holdfast("info", "--output=json")
			if strings.TrimSpace(theirs) != strings.TrimSpace(ours) {
				t.Errorf("info JSON\npgbackrest %s\nholdfast   %s", theirs, ours)
			}
			if out := r.backrest("--log-level-console=info", "verify"); strings.Contains(out, "ERROR") || strings.Contains(out, "WARN") || strings.Contains(out, "invalid") || strings.Contains(out, "missing") {
				t.Errorf("pgbackrest verify:\n%s", out)
			}
			r.backrest("check")
			r.holdfast("verify")
			r.restoreBoth()
			r.startsWith(30000)
		})
	}
}

func TestWeReadPgbackrests(t *testing.T) {
	for _, compress := range []string{"none", "gz", "lz4", "zst"} {
		t.Run(compress, func(t *testing.T) {
			r := newRig(t, 15, compress)
			r.backrest("stanza-create")
			r.archiveWith(fmt.Sprintf("pgbackrest --config=%s --stanza=%s archive-push %%p", r.conf, stanza))
			r.fill()
			stop := r.busy()
			r.backrest("--type=full", "--log-level-console=error", "backup")
			stop()
			r.holdfast("check", r.server()...) // from here on no WAL is on its way
			if theirs, ours := r.backrest("info", "--output=json"), r.holdfast("info", "--output=json"); strings.TrimSpace(theirs) != strings.TrimSpace(ours) {
				t.Errorf("info JSON\npgbackrest %s\nholdfast   %s", theirs, ours)
			}
			if theirs, ours := r.backrest("info"), r.holdfast("info"); theirs != ours {
				t.Errorf("info\npgbackrest\n%s\nholdfast\n%s", theirs, ours)
			}
			r.holdfast("verify")
			r.restoreBoth()
			r.startsWith(30000)
		})
	}
}

// startsWith recovers a fresh restore to the end of the archive and counts the rows of big.
func (r *rig) startsWith(rows int64) {
	r.t.Helper()
	dir, spaces := r.dirFor("start"), r.dirFor("start-spaces")
	r.holdfast("restore", "--pg1-path="+dir, "--tablespace-map-all="+spaces, "--type=immediate", "--target-action=promote", "--archive-mode=off")
	conn := r.start(dir)
	if n := queryInt(r.t, conn, "select count(*) from big"); n != rows {
		r.t.Errorf("big has %d rows, not %d", n, rows)
	}
	if n := queryInt(r.t, conn, "select count(*) from side_t"); n != 3000 {
		r.t.Errorf("side_t has %d rows, not 3000", n)
	}
}

// start starts a server on a restored directory, on a socket of its own, and waits until recovery has ended.
func (r *rig) start(dir string) pg.ConnOptions {
	r.t.Helper()
	s := r.server2(dir)
	s.start(r.t)
	r.t.Cleanup(func() { s.stop(r.t, "immediate") })
	s.await(r.t, "select not pg_is_in_recovery()")
	return s.conn
}
