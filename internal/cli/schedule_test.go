package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/schedule"
)

// cronRig is an instance on a host whose crontab program is a script that keeps the text in a file.
type cronRig struct {
	*rig
	program, file string
}

func newCronRig(t *testing.T) *cronRig {
	t.Helper()
	dir := t.TempDir()
	c := &cronRig{rig: newRig(t), program: filepath.Join(dir, "crontab"), file: filepath.Join(dir, "tab")}
	script := fmt.Sprintf("#!/bin/sh\ncase $1 in\n-l) cat %[1]s 2>/dev/null || { echo 'no crontab for you' >&2; exit 1; } ;;\n-) cat > %[1]s ;;\n*) exit 9 ;;\nesac\n", c.file)
	if err := os.WriteFile(c.program, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *cronRig) run(words ...string) said {
	c.t.Helper()
	env, out, errs := bareEnv(strings.NewReader(""), words...)
	env.Getenv = func(name string) string { return map[string]string{"HOLDFAST_ROOT": c.root}[name] }
	env.Environ = func() []string { return []string{"PATH=/usr/bin:/bin"} }
	env.Crontab = c.program
	code := Main(c.t.Context(), env)
	return said{out.String(), errs.String(), code}
}

func (c *cronRig) tab() string {
	c.t.Helper()
	b, err := os.ReadFile(c.file)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

func TestScheduleCron(t *testing.T) {
	c := newCronRig(t)
	c.run("holdfast", "schedule", "show").has(t, exitWarnings, "backups at 0 4 * * * UTC: on", "daemon: not running", "no backup runs by itself: no daemon is running")
	line := "0 4 * * * '" + c.root + "/etc/init.d/alation' shell -c 'alation_action backup_all'"
	c.run("holdfast", "schedule", "cron").has(t, exitOK, line+"\n")
	theirs := "0 4 * * * source " + c.root + `/opt/alation/ops/alation_constants; sudo chroot  /bin/su -  -c alation_action backup_all`
	if err := os.WriteFile(c.file, []byte("# mine\n* * * * * something\n"+theirs+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.run("holdfast", "schedule", "show").has(t, exitWarnings, "crontab, line 3: "+theirs, "the line of cron does not work: what comes after -c is not quoted", "chroot gets no directory")
	c.run("alation_conf", "alation.backup.scheduled_day", "-s", "sun", "alation.backup.scheduled_hour", "-s", "9", "alation.backup.scheduled_minute", "-s", "30").has(t, exitOK)
	line = strings.Replace(line, "0 4 * * *", "30 9 * * sun", 1)
	c.run("holdfast", "schedule", "cron", "--install").has(t, exitOK, "removed: "+theirs, "installed: "+line)
	if got := c.tab(); got != "# mine\n* * * * * something\n"+line+"\n" {
		t.Errorf("crontab:\n%s", got)
	}
	c.run("holdfast", "schedule", "cron", "--install").has(t, exitOK, "installed: "+line) // again: nothing changes
	c.run("holdfast", "schedule", "show", "--json").has(t, exitOK, `"ours": true`, `"warnings": []`)
	lock, err := durable.TryLock(daemonLock(c.in), []byte(`{"pid":4711,"since":"2026-11-24T00:00:00Z"}`)) // a daemon
	if err != nil {
		t.Fatal(err)
	}
	c.run("holdfast", "schedule", "show").has(t, exitWarnings, "daemon: process 4711 since 2026-11-24", "backups run twice, by the daemon and by cron")
	c.run("alation_conf", "snapshot.enabled", "-s", "False").has(t, exitOK)
	c.run("holdfast", "schedule", "show").has(t, exitOK, "off (snapshot.enabled)")
	c.run("holdfast", "schedule", "cron", "--remove").has(t, exitWarnings, "removed: "+line, "no backup runs by itself: snapshot.enabled is False")
	if got := c.tab(); got != "# mine\n* * * * * something\n" {
		t.Errorf("crontab:\n%s", got)
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	c.run("holdfast", "schedule", "cron", "--remove", "--install").has(t, exitUsage)
	more := "0 4 * * * holdfast --root " + c.root + " backup && rsync -a /b far:\n"
	if err := os.WriteFile(c.file, []byte(more), 0o600); err != nil {
		t.Fatal(err)
	}
	c.run("holdfast", "schedule", "cron", "--install").has(t, exitRefused, "line 1 of the crontab does more", "crontab -e")
	if got := c.tab(); got != more {
		t.Errorf("crontab:\n%s", got)
	}
	c.program = filepath.Join(t.TempDir(), "none")
	c.run("holdfast", "schedule", "cron", "--install").has(t, exitFailed, "no program crontab on this host")
	c.run("holdfast", "schedule", "cron").has(t, exitOK, line)
}

func TestScheduleNext(t *testing.T) {
	r := newRig(t)
	r.run("holdfast", "schedule", "next", "2").has(t, exitOK, "Tue 2026-11-24 04:00:00 UTC\nWed 2026-11-25 04:00:00 UTC\n")
	r.run("alation_conf", "schedule.backup", "-s", "30 2 * * sun", "schedule.zone", "-s", "Europe/Zurich").has(t, exitOK, "schedule.backup = 30 2 * * sun")
	r.run("holdfast", "schedule", "next", "1").has(t, exitOK, "Sun 2026-11-29 02:30:00 CET  2026-11-29 01:30:00 UTC\n")
	r.run("holdfast", "schedule", "next", "2", "--json").has(t, exitOK, `"2026-11-29T02:30:00+01:00"`)
	r.run("alation_conf", "snapshot.enabled", "-s", "False").has(t, exitOK)
	r.run("holdfast", "schedule", "next", "1").has(t, exitOK, "snapshot.enabled is False")
	for _, n := range []string{"0", "x", "-1", "10001"} {
		r.run("holdfast", "schedule", "next", "--", n).has(t, exitUsage)
	}
	r.run("holdfast", "schedule", "run", "dance").has(t, exitUsage, "there are backup, copy, verify, logs")
	r.run("alation_conf", "schedule.backup", "-s", "0 0 30 2 *").has(t, exitUsage, "schedule.backup", "never comes")
	r.run("alation_conf", "schedule.zone", "-s", "CET+1").has(t, exitUsage, "schedule.zone")
	r.run("alation_conf", "metrics.listen", "-s", "9876").has(t, exitUsage, "metrics.listen")
}

func TestHostTimes(t *testing.T) {
	r := newRig(t)
	zone := func(name string) *time.Location {
		z, err := schedule.Zone(name)
		if err != nil {
			t.Fatal(err)
		}
		return z
	}
	now := time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		set, host, want string
		exact           bool
	}{
		{"alation.backup.scheduled_hour -s 4", "UTC", "0 4 * * *", true},
		{"alation.backup.scheduled_hour -s 4", "Europe/Zurich", "0 6 * * *", false},
		{"alation.backup.scheduled_hour -s 23 alation.backup.scheduled_day -s sun,tue", "Asia/Kolkata", "30 4 * * mon,wed", true},
		{"alation.backup.scheduled_hour -s 2", "America/New_York", "0 22 * * mon,sat", false}, // of the day before
		{"schedule.zone -s America/New_York", "America/New_York", "0 2 * * tue,sun", true},
		{"schedule.backup -s */5~4~*~*~*", "America/New_York", "*/5 4 * * *", true},
		{"schedule.zone -s UTC", "America/New_York", "*/5 4 * * *", false},
	} {
		words := strings.Fields(c.set)
		for i := range words {
			words[i] = strings.ReplaceAll(words[i], "~", " ")
		}
		r.run(append([]string{"alation_conf"}, words...)...).has(t, exitOK)
		st, err := store(r.in)
		if err != nil {
			t.Fatal(err)
		}
		v, err := st.Load()
		if err != nil {
			t.Fatal(err)
		}
		if got, exact, err := hostTimes(v, zone(c.host), now); err != nil || got != c.want || exact != c.exact {
			t.Errorf("%s on a host in %s: %q, %v, %v; want %q, %v", c.set, c.host, got, exact, err, c.want, c.exact)
		}
	}
}

func TestRotate(t *testing.T) {
	dir := t.TempDir()
	env, _, errs := bareEnv(nil, "holdfast")
	day := time.Date(2026, 11, 24, 0, 0, 0, 0, time.UTC)
	env.Now = func() time.Time { return day }
	l := newRunLog(env, filepath.Join(dir, "a[b]*"), nil)
	if name, err := l.rotate(3); err != nil || name != "" {
		t.Errorf("%q, %v", name, err)
	}
	for range 6 {
		l.line("something of " + day.Format("2006-01-02"))
		if name, err := l.rotate(3); err != nil || !strings.HasSuffix(name, "alation_backup.log."+day.AddDate(0, 0, -1).Format("2006-01-02")) {
			t.Errorf("%q, %v", name, err)
		}
		day = day.AddDate(0, 0, 1)
	}
	day = day.AddDate(0, 0, -1)
	l.line("once more on that day")
	if name, err := l.rotate(3); err != nil || !strings.HasSuffix(name, "2026-11-28.2") {
		t.Errorf("%q, %v", name, err)
	}
	l.line("today's")
	var names []string
	entries, err := os.ReadDir(filepath.Dir(l.path))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := "alation_backup.jsonl alation_backup.jsonl.2026-11-27 alation_backup.jsonl.2026-11-28 alation_backup.jsonl.2026-11-28.2 alation_backup.log alation_backup.log.2026-11-27 alation_backup.log.2026-11-28 alation_backup.log.2026-11-28.2"; err != nil || strings.Join(names, " ") != want {
		t.Errorf("%v, %v", names, err)
	}
	if errs.Len() > 0 {
		t.Error(errs)
	}
}

func TestStateFile(t *testing.T) {
	r := newRig(t)
	f, err := newStateFile(r.in)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := f.Load(); err != nil || s.Jobs != nil {
		t.Errorf("%+v, %v", s, err)
	}
	at := time.Date(2026, 11, 24, 4, 0, 0, 0, time.UTC)
	want := schedule.State{Jobs: map[string]schedule.JobState{"backup": {Spec: "0 4 * * *", Settled: at, Last: &schedule.Run{ID: "x", Due: at, Try: 1, Started: at}}}}
	if err := f.Save(want); err != nil {
		t.Fatal(err)
	}
	got, err := f.Load()
	a, _ := json.Marshal(want)
	b, _ := json.Marshal(got)
	if err != nil || !bytes.Equal(a, b) {
		t.Errorf("%s, %v", b, err)
	}
	if err := os.WriteFile(f.path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Load(); err == nil || !strings.Contains(err.Error(), "rm "+f.path) {
		t.Error(err)
	}
	r.run("holdfast", "schedule", "show").has(t, exitWarnings, "to begin anew")
}

// daemonRun is a daemon in this process.
type daemonRun struct {
	said chan said
	end  context.CancelFunc
	look chan struct{}
	ear  *net.UnixConn
	errs *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *lockedBuffer) text() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.String()
}

func (r *rig) daemon(t *testing.T) *daemonRun {
	t.Helper()
	d := &daemonRun{said: make(chan said, 1), look: make(chan struct{}), errs: &lockedBuffer{}}
	socket := filepath.Join(t.TempDir(), "n")
	var err error
	if d.ear, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	env, out, _ := bareEnv(strings.NewReader(""), "holdfast", "daemon")
	env.Getenv = func(name string) string {
		return map[string]string{"HOLDFAST_ROOT": r.root, "NOTIFY_SOCKET": socket, "WATCHDOG_USEC": "30000000"}[name]
	}
	env.Stderr, env.Now, env.Tick = d.errs, time.Now, time.Hour
	env.Hangups = func() (<-chan struct{}, func()) { return d.look, func() {} }
	ctx, cancel := context.WithCancel(t.Context())
	d.end = cancel
	go func() { d.said <- said{out.String(), "", Main(ctx, env)} }()
	t.Cleanup(func() { cancel(); d.ear.Close() })
	return d
}

// hear waits for a line of sd_notify.
func (d *daemonRun) hear(t *testing.T, want string) {
	t.Helper()
	buf := make([]byte, 4096)
	for {
		if err := d.ear.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		n, err := d.ear.Read(buf)
		if err != nil {
			t.Fatalf("waiting for %s: %v\n%s", want, err, d.errs.text())
		}
		if strings.Contains("\n"+string(buf[:n])+"\n", "\n"+want+"\n") {
			return
		}
	}
}

// freeAddr is an address that nobody listens on.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// TestDaemonLives: readiness, watchdog, one daemon for an instance, parameters taken over while it runs, a clean end, and a
// run that fails (there is no PostgreSQL here) in log, health and state.
func TestDaemonLives(t *testing.T) {
	r := newRig(t)
	d := r.daemon(t)
	d.hear(t, "WATCHDOG=1")
	d.hear(t, "READY=1")
	r.run("holdfast", "daemon").has(t, exitBusy, "runs already, process "+fmt.Sprint(os.Getpid()))
	addr := freeAddr(t)
	r.run("alation_conf", "metrics.listen", "-s", addr, "schedule.backup", "-s", "0 0 1 1 *", "eventbus.enabled", "-s", "False").has(t, exitOK)
	d.look <- struct{}{}
	d.look <- struct{}{} // the first look is over when the second is taken
	if code, body := fetch(t, "http://"+addr+"/healthz"); code != http.StatusOK {
		t.Error(code, body)
	}
	_, metrics := fetch(t, "http://"+addr+"/metrics")
	if !strings.Contains(metrics, `holdfast_job_next_run_timestamp_seconds{job="backup"}`) || !strings.Contains(metrics, `holdfast_sets{state="complete"} 0`) {
		t.Error(metrics)
	}
	r.run("holdfast", "schedule", "show").has(t, exitOK, "daemon: process", "0 0 1 1 * UTC: on")
	other := freeAddr(t)
	r.run("alation_conf", "metrics.listen", "-s", other).has(t, exitOK)
	d.look <- struct{}{}
	d.look <- struct{}{}
	if code, _ := fetch(t, "http://"+other+"/metrics"); code != http.StatusOK {
		t.Error(code)
	}
	if c, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
		c.Close()
		t.Error("the old address still answers")
	}
	d.end()
	d.hear(t, "STOPPING=1")
	(<-d.said).has(t, exitOK)
	log, err := os.ReadFile(filepath.Join(r.in.LogDir(), "alation_backup.log"))
	for _, want := range []string{"daemon: Holdfast", "schedule: backup: 0 4 * * *", "schedule: backup: 0 0 1 1 *", "metrics: on " + addr, "metrics: on " + other, "daemon: ended"} {
		if err != nil || !strings.Contains(string(log), want) {
			t.Errorf("no %q in\n%s%v", want, log, err)
		}
	}
}

// TestDaemonMakesUp: a time that was missed is made up when the daemon comes; what fails is in state, log and health.
func TestDaemonMakesUp(t *testing.T) {
	r := newRig(t)
	addr := freeAddr(t)
	r.run("alation_conf", "metrics.listen", "-s", addr, "eventbus.enabled", "-s", "False", "pgsql.clusters", "-s", "a:data=/nowhere,host=/nowhere").has(t, exitOK)
	f, err := newStateFile(r.in)
	if err != nil {
		t.Fatal(err)
	}
	long := time.Now().Add(-72 * time.Hour)
	if err := f.Save(schedule.State{Jobs: map[string]schedule.JobState{jobBackup: {Spec: "0 4 * * *", Settled: long}}}); err != nil {
		t.Fatal(err)
	}
	d := r.daemon(t)
	d.hear(t, "READY=1")
	var state schedule.State
	for state.Jobs[jobBackup].Last == nil || state.Jobs[jobBackup].Last.Ended.IsZero() {
		d.look <- struct{}{}
		if state, err = f.Load(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	d.look <- struct{}{} // what is shown is renewed after what is kept
	last := state.Jobs[jobBackup].Last
	if last.Outcome != schedule.Failed || last.Missed != 2 && last.Missed != 3 || last.Error == "" { // 3: it is just past four
		t.Errorf("%+v", last)
	}
	if code, body := fetch(t, "http://"+addr+"/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(body, last.ID) {
		t.Error(code, body)
	}
	if _, body := fetch(t, "http://"+addr+"/metrics"); !strings.Contains(body, `holdfast_job_runs_total{job="backup",outcome="failed"} 1`) || !strings.Contains(body, "holdfast_healthy 0") {
		t.Error(body)
	}
	d.end()
	(<-d.said).has(t, exitOK)
	if text := d.errs.text(); !strings.Contains(text, fmt.Sprintf("started as run %s; it makes up %d earlier times", last.ID, last.Missed)) {
		t.Error(text)
	}
}

func TestJobSpecs(t *testing.T) {
	r := newRig(t)
	st, err := store(r.in)
	if err != nil {
		t.Fatal(err)
	}
	spec := func(job string) string {
		v, err := st.Load()
		if err != nil {
			t.Fatal(err)
		}
		s, err := jobSpec(v, job)
		if err != nil {
			t.Fatal(err)
		}
		return s.String()
	}
	for job, want := range map[string]string{jobBackup: "0 4 * * *", jobVerify: "0 12 * * sun", jobCopy: "never", jobLogs: "0 0 * * *"} {
		if got := spec(job); got != want {
			t.Errorf("%s: %s", job, got)
		}
	}
	set := func(name, value string) {
		t.Helper()
		if _, err := st.Set(t.Context(), []conf.Pair{{Name: name, Value: conf.NewSecret(value)}}); err != nil {
			t.Fatal(err)
		}
	}
	set("schedule.verify", "")
	set("alation.backup.redundancy.enabled", "True")
	set("schedule.zone", "Asia/Tokyo")
	set("alation.backup.scheduled_day", "tue,sat")
	for job, want := range map[string]string{jobBackup: "0 4 * * tue,sat Asia/Tokyo", jobVerify: "never", jobCopy: "every 5m0s", jobLogs: "0 0 * * *"} {
		if got := spec(job); got != want {
			t.Errorf("%s: %s", job, got)
		}
	}
	set("snapshot.enabled", "False")
	set("schedule.copy_every", "0")
	if spec(jobBackup) != "never" || spec(jobCopy) != "never" {
		t.Error(spec(jobBackup), spec(jobCopy))
	}
}
