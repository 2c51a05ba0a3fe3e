package whole

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/cli"
	"holdfast/internal/runlog"
	"holdfast/test/stores"
	"holdfast/test/world"
)

// daemonWord makes this test program a daemon whose clock goes faster than the world's: a minute of the schedule is three
// seconds. Everything else in it is holdfast daemon.
const (
	daemonWord = "daemon-on-a-fast-clock"
	fast       = 20
)

// daemonHelper is the daemon: root, program, and when the fast clock was right.
func daemonHelper(args []string) int {
	began, err := strconv.ParseInt(args[2], 10, 64)
	if err != nil {
		return 99
	}
	base := time.UnixMilli(began)
	env := cli.Process()
	env.Args, env.Exe = []string{"holdfast", "daemon", "--root", args[0]}, args[1]
	env.Tick = 100 * time.Millisecond
	env.Now = func() time.Time { return base.Add(fast * time.Since(base)) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return cli.Main(ctx, env)
}

// fastDaemon starts daemons of one world, one after another.
type fastDaemon struct {
	t     *testing.T
	w     *world.World
	base  time.Time
	extra []string // environment

	cmd  *exec.Cmd
	errs *bytes.Buffer
	mu   sync.Mutex
}

func newFastDaemon(t *testing.T, w *world.World) *fastDaemon {
	d := &fastDaemon{t: t, w: w, base: time.Now()}
	t.Cleanup(d.kill)
	return d
}

func (d *fastDaemon) start() {
	d.t.Helper()
	bin, err := built()
	if err != nil {
		d.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		d.t.Fatal(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cmd = exec.Command(self, daemonWord, d.w.Root, bin, strconv.FormatInt(d.base.UnixMilli(), 10))
	d.cmd.Env = append(os.Environ(), d.extra...)
	d.errs = &bytes.Buffer{}
	d.cmd.Stderr = d.errs
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
}

// kill is kill -9.
func (d *fastDaemon) kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.cmd != nil {
		_ = d.cmd.Process.Kill() // it may have ended
		_ = d.cmd.Wait()         // killed
		d.cmd = nil
	}
}

// end is SIGTERM; the daemon has to end well.
func (d *fastDaemon) end() {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	err := errors.Join(d.cmd.Process.Signal(unix.SIGTERM), d.cmd.Wait())
	if err != nil {
		d.t.Errorf("the daemon ended with %v\n%s", err, d.errs)
	}
	d.cmd = nil
}

// log is all that was logged, with what went into another file at a midnight of the fast clock.
func (d *fastDaemon) log() string {
	d.t.Helper()
	name := filepath.Join(d.w.Root, "opt/alation/site/logs/alation_backup.log")
	rotated, err := runlog.RotatedOf(name)
	must(d.t, err)
	var all strings.Builder
	for _, r := range rotated {
		f, err := r.Open()
		must(d.t, err)
		_, err = io.Copy(&all, f)
		must(d.t, err, f.Close())
	}
	text, err := os.ReadFile(name)
	if err != nil && !os.IsNotExist(err) {
		d.t.Fatal(err)
	}
	return all.String() + string(text)
}

// awaitMore waits until the log matches once more than it does now.
func (d *fastDaemon) awaitMore(what string) {
	d.t.Helper()
	d.await(what, len(regexp.MustCompile(what).FindAllString(d.log(), -1))+1)
}

// await waits until the log matches n times.
func (d *fastDaemon) await(what string, n int) {
	d.t.Helper()
	pattern := regexp.MustCompile(what)
	for range 3000 {
		if len(pattern.FindAllString(d.log(), n)) == n {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	d.t.Fatalf("no %q (%d times) in the log:\n%s", what, n, d.log())
}

// cleanlyOut looks at what a run that was ended must not leave: a session of PostgreSQL, files in staging, hidden tarballs.
func cleanlyOut(t *testing.T, w *world.World) {
	t.Helper()
	conn, err := w.DB(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	others := 1
	for try := 0; err == nil && others > 0 && try < 300; try++ { // a server process notices the end of its client a moment later
		time.Sleep(100 * time.Millisecond)
		err = conn.QueryRow(t.Context(), "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() and application_name <> 'load'").Scan(&others)
	}
	if err != nil || others > 0 {
		t.Errorf("%d sessions are left, %v", others, err)
	}
	if left, err := os.ReadDir(filepath.Join(w.Root, "data2/tmp")); err != nil || len(left) > 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
	hidden, err1 := w.Tarballs(true)
	shown, err2 := w.Tarballs(false)
	if len(hidden) != len(shown) || err1 != nil || err2 != nil {
		t.Errorf("hidden tarballs are left: %v", hidden)
	}
}

// load writes into the database until the test ends.
func load(t *testing.T, w *world.World) {
	t.Helper()
	conn, err := w.DB(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close(context.Background())
		_, err := conn.Exec(ctx, "set application_name = 'load'")
		for n := 0; err == nil && ctx.Err() == nil; n++ {
			_, err = conn.Exec(ctx, "insert into ledger values ($1)", n)
			time.Sleep(50 * time.Millisecond)
		}
		if err != nil && ctx.Err() == nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-done })
}

// freeListen is an address for metrics.
func freeListen(t *testing.T) string {
	t.Helper()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(stores.FreePort(t)))
}

// TestDaemonKilledAnywhere lets the daemon make a backup every (fast) minute under write load and kills it thirty times, some of
// them gently. Afterwards every set that the catalogue calls good verifies, no time has two sets, none was tried more than
// twice, and the daemon goes on as if nothing had been.
func TestDaemonKilledAnywhere(t *testing.T) {
	w := newWorld(t, false, "schedule.backup", "-s", "* * * * *")
	t.Parallel()
	addr := freeListen(t) // only now: a parallel test begins when all others have ended
	ok(t, w, "alation_conf", "metrics.listen", "-s", addr)
	load(t, w)
	d := newFastDaemon(t, w)
	rnd := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 7))
	for i := range 30 {
		d.start()
		gently := rnd.IntN(4) == 0
		switch {
		case i%3 == 0: // let one get to its end, and be there in that moment
			d.awaitMore("backup_all: publish")
			time.Sleep(time.Duration(rnd.IntN(1000)) * time.Millisecond)
		case gently: // what the one before left is settled by then
			d.awaitMore("schedule: backup of .*: started")
			time.Sleep(time.Duration(rnd.IntN(5000)) * time.Millisecond)
		default:
			time.Sleep(time.Duration(300+rnd.IntN(5000)) * time.Millisecond)
		}
		if gently {
			d.end()
			cleanlyOut(t, w)
		} else {
			d.kill()
		}
	}
	d.start()
	d.awaitMore(`backup: set \S+\n`)
	checkMetrics(t, addr)
	d.end()
	cleanlyOut(t, w)
	checkStory(t, w, d.log())
}

func checkMetrics(t *testing.T, addr string, further ...string) {
	t.Helper()
	res, err := http.Get("http://" + addr + "/metrics")
	if err != nil {
		t.Error(err)
		return
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	for _, want := range append([]string{`holdfast_last_good_age_seconds{component="postgres/` + world.Stanza + `"}`, `holdfast_last_good_size_bytes{component="files"}`, "holdfast_last_good_duration_seconds ",
		`holdfast_job_next_run_timestamp_seconds{job="logs"}`, `holdfast_sets{state="complete"}`}, further...) {
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("no %s in\n%s%v", want, text, err)
		}
	}
}

// checkStory compares what the log says was started with what the catalogue has.
func checkStory(t *testing.T, w *world.World, log string) {
	t.Helper()
	due, tries := map[string]string{}, map[string]int{}
	for _, m := range regexp.MustCompile(`schedule: backup of (.*?): started as run (\S+?)[;\n]`).FindAllStringSubmatch(log, -1) {
		due[m[2]] = m[1]
		if tries[m[1]]++; tries[m[1]] > 2 {
			t.Errorf("%s was tried %d times", m[1], tries[m[1]])
		}
	}
	made, states := map[string]int{}, map[string]int{}
	for _, s := range sets(t, w) {
		states[s.State]++
		at := due[s.Run]
		if at == "" {
			t.Errorf("set %s of run %s is not in the log", s.ID, s.Run)
		}
		if s.State == "running" || s.State == "publishing" {
			t.Errorf("set %s is %s", s.ID, s.State)
		}
		if s.State != "complete" {
			continue
		}
		if made[at]++; made[at] > 1 {
			t.Errorf("%s has %d sets", at, made[at])
		}
		ok(t, w, "holdfast", "sets", "verify", s.ID)
	}
	t.Logf("%d runs for %d times: %v", len(due), len(tries), states)
	if states["complete"] == 0 {
		t.Error("no set was made at all")
	}
}

// TestDaemonTimeout: a run that takes longer than chef_timeout is ended with PostgreSQL out of backup mode and staging empty,
// and the next one makes a set. Then, with the schedule of backups off, WAL goes on to the copy and the set is verified.
func TestDaemonTimeout(t *testing.T) {
	w := newWorld(t, true, "schedule.backup", "-s", "* * * * *", "alation.backup.chef_timeout", "-s", "60", "schedule.copy_every", "-s", "60",
		"pgsql.pgbackrest.redundancy.type", "-s", "posix", "pgsql.pgbackrest.redundancy.posix.path", "-s", "/data1/far", "pgsql.pgbackrest.redundancy.enabled", "-s", "True")
	t.Parallel()
	addr := freeListen(t)
	ok(t, w, "alation_conf", "metrics.listen", "-s", addr)
	d := newFastDaemon(t, w)
	d.extra = []string{"HOLDFAST_TEST_STOP_AT=backup:stop"} // when everything is copied
	d.start()
	pid := d.cmd.Process.Pid
	for stopped := false; !stopped; time.Sleep(50 * time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		_, state, _ := strings.Cut(string(stat), ") ")
		stopped = strings.HasPrefix(state, "T")
	}
	time.Sleep(61 * time.Second)
	ok(t, w, "alation_conf", "snapshot.enabled", "-s", "False") // no next one before we have looked
	must(t, unix.Kill(pid, unix.SIGCONT))
	d.await("run .*: failed: the run exceeded alation.backup.chef_timeout", 1)
	d.kill()
	cleanlyOut(t, w)
	d.extra = nil
	ok(t, w, "alation_conf", "snapshot.enabled", "-s", "True")
	d.start()
	d.await(`backup: set \S+\n`, 1)
	never := regexp.MustCompile(`schedule: backup: never`)
	before := len(never.FindAllString(d.log(), -1))
	ok(t, w, "alation_conf", "snapshot.enabled", "-s", "False", "schedule.verify", "-s", "* * * * *")
	d.await(never.String(), before+1)
	shipped := regexp.MustCompile(`copy: .* is up to date: .* [1-9][0-9]* WAL segments`)
	for try := 0; !shipped.MatchString(d.log()); try++ { // a backup that still goes on may take one along
		if try == 300 {
			t.Fatalf("no WAL is copied:\n%s", d.log())
		}
		must(t, w.Exec(t.Context(), "insert into ledger values (1)", "select pg_switch_wal()"))
		time.Sleep(time.Second)
	}
	d.awaitMore(`verify: set \S+ is verified`)
	checkMetrics(t, addr, "holdfast_copy_wal_lag_seconds ", `holdfast_copy_wal_info{segment="`, `holdfast_last_verify_ok 1`)
	d.end()
	states := map[string]int{}
	for _, s := range sets(t, w) {
		states[s.State]++
	}
	if states["failed"] == 0 || states["complete"] == 0 || len(states) != 2 {
		t.Errorf("%v", states)
	}
}

// TestInitScriptKeepsTheDaemon starts, asks and stops the daemon as init does.
func TestInitScriptKeepsTheDaemon(t *testing.T) {
	w := newWorld(t, false, "snapshot.enabled", "-s", "False")
	script := filepath.Join(w.Root, "etc/init.d/alation")
	init := func(code int, want string, verb ...string) {
		t.Helper()
		out, err := world.Run(exec.CommandContext(t.Context(), script, verb...), "")
		if out.Code != code || !strings.Contains(out.Stdout+out.Stderr, want) {
			t.Fatalf("%v: code %d, want %d and %q: %v\n%s%s", verb, out.Code, code, want, err, out.Stdout, out.Stderr)
		}
	}
	t.Cleanup(func() { _, _ = w.As(context.Background(), "holdfast", "", "daemon", "stop") }) // it is stopped below already
	init(0, "daemon: not running", "status")
	init(0, "the daemon is started: process", "start")
	init(0, "the daemon is running: process", "start")
	init(0, "daemon: process", "status")
	fails(t, w, 4, "runs already", "holdfast", "daemon")
	init(0, "", "reload")
	init(0, "the daemon is started", "restart")
	init(0, "", "stop")
	init(0, "daemon: not running", "status")
	init(0, "no daemon is running", "stop")
}
