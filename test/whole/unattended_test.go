//go:build unattended

// This test takes as long as it is told, and wants the machine for itself: scripts/unattended MINUTES. TestDaemonKilledAnywhere
// and its like have in `make test` what it is made of.

package whole

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"

	"holdfast/internal/eventbus/kafkatest"
	"holdfast/test/stores"
	"holdfast/test/tally"
	"holdfast/test/world"
)

// unattendedMinutes is the environment variable with the length of TestUnattended in minutes; scripts/unattended sets it. Below
// leastMinutes the daemon's clock goes faster than ours, so that its runs follow each other more closely.
const (
	unattendedMinutes = "HOLDFAST_UNATTENDED"
	leastMinutes      = 8
)

// What stays, and how often a run is full: chains begin and go several times.
const (
	setsKept  = 8
	fullEvery = 4
)

// unattended is an instance that is left alone, with everything that is done to it meanwhile.
type unattended struct {
	*testing.T
	w       *world.World
	server  *stores.S3
	minutes int
	clock   int // how much faster than ours the daemon's clock goes
	base    time.Time
	tail    tail
	errs    bytes.Buffer // the daemon's standard error, of all its lives
	addr    string       // of metrics

	mu    sync.Mutex
	cmd   *exec.Cmd
	lives int
	told  bool // to end
	ended chan struct{}

	written  map[int]world.Token
	peak     map[string]*atomic.Int64 // most bytes of pg_wal seen, by stanza
	ready    atomic.Int64             // most segments that waited for the archive
	storyLog []string
}

// tail reads a log that only grows, for what comes next.
type tail struct {
	path string
	at   int64
}

// TestUnattended leaves an instance alone with one run a minute, under write load on everything that it has: two clusters, files,
// an event bus; PostgreSQL apart, in chains of a full and three incremental backups, copied to an S3 server, with the last eight
// sets kept. Meanwhile the server is away for a while, PostgreSQL is restarted twice in the middle of a run, and the daemon is
// killed in the middle of another and started again as systemd does. Afterwards every set that the catalogue calls good restores,
// the newest one from the bucket alone, too; no run happened twice; nothing piled up; and the log tells each of these things.
// Told to take less than eight minutes it lets the daemon's clock go faster.
func TestUnattended(t *testing.T) {
	text := os.Getenv(unattendedMinutes)
	u := &unattended{T: t, clock: 1, addr: freeListen(t), written: map[int]world.Token{}, peak: map[string]*atomic.Int64{}, ended: make(chan struct{})}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: a number of minutes", unattendedMinutes, text)
	}
	u.minutes = n
	if n < leastMinutes {
		u.minutes, u.clock = leastMinutes, max(leastMinutes/n, 1)
	}
	u.make()
	began := time.Now()
	stop := u.load()
	u.start()
	u.happenings()
	u.end()
	stop()
	u.say("left alone for %s, in which the daemon had %d lives", time.Since(began).Round(time.Second), u.lives)
	u.quiet()
	good := u.runs()
	u.tells()
	u.restores(good)
	u.fromBucket(good[len(good)-1])
	t.Log("\n" + strings.Join(u.storyLog, "\n"))
}

func (u *unattended) say(format string, a ...any) {
	line := time.Now().UTC().Format("15:04:05 ") + fmt.Sprintf(format, a...)
	u.storyLog = append(u.storyLog, line)
	if u.clock == 1 { // somebody watches
		fmt.Println(line)
	}
}

// make makes the instance.
func (u *unattended) make() {
	if testing.Short() {
		u.Skip("needs PostgreSQL; run make test")
	}
	u.server = stores.StartS3(u, "versitygw")
	var o world.Options
	o.Apart = true
	if u.clock == 1 {
		o.Brokers = kafkatest.Start(u).Brokers()
	}
	u.w = newTwo(u.T, o, "metrics.listen", "-s", u.addr, "schedule.backup", "-s", "* * * * *", "schedule.copy_every", "-s", "30", "pgsql.pgbackrest.archive_timeout", "-s", "30",
		"alation.backup.chef_timeout", "-s", "300", "alation.backup_v2.incremental.enabled", "-s", "True", "alation.backup_v2.incremental.full_every", "-s", strconv.Itoa(fullEvery),
		"alation.backup_v2.retention.sets", "-s", strconv.Itoa(setsKept))
	bucketConf(u.T, u.w, u.server)
	rows := 200_000
	if u.clock == 1 {
		rows = 1_000_000
	}
	for stanza, s := range u.w.Servers() {
		u.peak[stanza] = &atomic.Int64{}
		must(u.T, s.Exec(u.Context(), "alter system set max_wal_size = '64MB'", "alter system set min_wal_size = '32MB'", "select pg_reload_conf()",
			fmt.Sprintf("create table accounts as select g as id, 0::bigint as balance, repeat('.', 80) as filler from generate_series(1, %d) g", rows),
			"alter table accounts add primary key (id)", "create table history (id int, delta int, at timestamptz default now())"))
	}
	u.tail.path = filepath.Join(u.w.Root, "opt/alation/site/logs/alation_backup.log")
}

// bucketConf points an instance at a new bucket of a server, for both kinds of copies.
func bucketConf(t *testing.T, w *world.World, server *stores.S3, bucket ...string) string {
	t.Helper()
	if len(bucket) == 0 {
		bucket = []string{server.Bucket(t)}
	}
	pem, err := os.ReadFile(server.CA.File)
	must(t, err, os.MkdirAll(filepath.Join(w.Root, "etc/ssl"), 0o755), os.WriteFile(filepath.Join(w.Root, "etc/ssl/store.pem"), pem, 0o644))
	const key = "pgsql.pgbackrest.redundancy."
	ok(t, w, "alation_conf", key+"s3.ca_file", "-s", "/etc/ssl/store.pem", key+"s3.uri_style", "-s", "path", key+"enabled", "-s", "True", key+"s3.endpoint", "-s", server.Endpoint,
		key+"s3.bucket", "-s", bucket[0], key+"s3.region", "-s", server.Region, key+"s3.key", "-s", server.Key, key+"s3.secret", "-s", server.Secret, "alation.backup.redundancy.enabled", "-s", "True")
	return bucket[0]
}

// start keeps a daemon running, as systemd does with the unit's Restart=on-failure and RestartSec=10.
func (u *unattended) start() {
	bin, err := built()
	must(u.T, err)
	self, err := os.Executable()
	must(u.T, err)
	u.base = time.Now()
	go func() {
		defer close(u.ended)
		for {
			u.mu.Lock()
			if u.told {
				u.mu.Unlock()
				return
			}
			if u.clock == 1 {
				u.cmd = exec.Command(bin, "daemon", "--root", u.w.Root)
			} else {
				u.cmd = exec.Command(self, unattendedWord, u.w.Root, bin, strconv.FormatInt(u.base.UnixMilli(), 10), strconv.Itoa(u.clock))
			}
			u.cmd.Stderr = &u.errs
			u.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			err := u.cmd.Start()
			u.lives++
			u.mu.Unlock()
			if err == nil {
				err = u.cmd.Wait()
			}
			if err == nil {
				return
			}
			time.Sleep(10 * time.Second / time.Duration(u.clock))
		}
	}()
	u.Cleanup(func() {
		u.mu.Lock()
		u.told = true
		if u.cmd != nil && u.cmd.Process != nil {
			_ = u.cmd.Process.Kill() // it may have ended
		}
		u.mu.Unlock()
		<-u.ended
	})
}

// end waits for a moment without a run and ends the daemon, which has to end well.
func (u *unattended) end() {
	u.Helper()
	u.skip()
	u.next(`schedule: backup of .*: run \S+: `)
	checkMetrics(u.T, u.addr, `component="postgres/lineage"`, `stanza="rosemeta"}`, `stanza="lineage"}`)
	u.mu.Lock()
	u.told = true
	err := u.cmd.Process.Signal(unix.SIGTERM)
	u.mu.Unlock()
	must(u.T, err)
	select {
	case <-u.ended:
	case <-time.After(2 * time.Minute):
		u.Fatalf("the daemon does not end\n%s", u.errs.String())
	}
	if state := u.cmd.ProcessState; !state.Success() {
		u.Errorf("the daemon ended with %s\n%s", state, u.errs.String())
	}
}

// at waits until that many minutes of the daemon's clock have passed since it was first started.
func (u *unattended) at(minute float64) {
	time.Sleep(time.Until(u.base.Add(time.Duration(minute * float64(time.Minute) / float64(u.clock)))))
}

// next waits until the log gets a line that matches, from where it looked last.
func (u *unattended) next(pattern string) string {
	u.Helper()
	re := regexp.MustCompile(pattern)
	rest := ""
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		select {
		case <-u.ended:
			u.Fatalf("the daemon has ended\n%s", u.errs.String())
		default:
		}
		rest += u.tail.more(u)
		for {
			line, after, whole := strings.Cut(rest, "\n")
			if !whole {
				break
			}
			rest = after
			if re.MatchString(line) {
				u.tail.at -= int64(len(rest))
				return line
			}
		}
	}
	u.Fatalf("no line %q in the log:\n%s", pattern, u.log())
	return ""
}

// skip passes over what is in the log by now.
func (u *unattended) skip() { u.tail.more(u) }

func (t *tail) more(u *unattended) string {
	f, err := os.Open(t.path)
	if os.IsNotExist(err) {
		return ""
	}
	must(u.T, err)
	defer f.Close()
	b, err := io.ReadAll(io.NewSectionReader(f, t.at, 1<<40))
	must(u.T, err)
	t.at += int64(len(b))
	return string(b)
}

func (u *unattended) log() string {
	b, err := os.ReadFile(u.tail.path)
	must(u.T, err)
	return string(b)
}

// happenings is what is done to the instance, at parts of its time.
func (u *unattended) happenings() {
	part := float64(u.minutes) / 20
	copying := func() { u.skip(); u.next(`backup: copy`) }

	failed := func() { // and the next is good
		u.next(`schedule: backup of .*: run \S+: failed`)
		u.next(`backup: set \S+`)
	}

	u.at(3 * part)
	u.server.Stop()
	u.say("the S3 server is gone")
	u.next(`is behind by \d+ set\(s\)`)
	u.at(7 * part)
	u.server.Start(u)
	u.say("the S3 server is back")
	u.next(`copy: caught-up`)

	u.at(9 * part)
	copying()
	must(u.T, u.w.StopServer(u.Context(), "immediate"), u.w.StartServer(u.Context()))
	u.say("rosemeta was stopped immediately during a run, and started")
	failed()

	u.at(11 * part)
	copying()
	must(u.T, u.w.StopServer(u.Context(), "fast"), u.w.StartServer(u.Context()))
	u.say("rosemeta was restarted fast during a run")
	failed()

	u.at(13 * part)
	copying()
	u.mu.Lock()
	err := u.cmd.Process.Kill()
	u.mu.Unlock()
	must(u.T, err)
	u.say("the daemon was killed during a run")
	u.next(`the run before was interrupted`)
	u.next(`backup: set \S+`)
	u.at(float64(u.minutes))
}

// load writes into everything until the returned function is called.
func (u *unattended) load() (stop func()) {
	ctx, cancel := context.WithCancel(u.Context())
	var wg sync.WaitGroup
	var count struct{ transactions, files, events atomic.Int64 }
	var mu sync.Mutex
	wg.Go(func() {
		err := u.w.KeepLedger(ctx, prefilledTwo+1, 20*time.Millisecond, func(n int, tok world.Token) {
			mu.Lock()
			defer mu.Unlock()
			u.written[n] = tok
		})
		if err != nil {
			u.Errorf("the ledger: %v", err)
		}
	})
	for _, s := range u.w.Servers() {
		for client := range 2 {
			wg.Go(func() { transactions(ctx, s, client, &count.transactions) })
		}
	}
	wg.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			name := filepath.Join(u.w.Files, fmt.Sprintf("part%d", n%7), fmt.Sprintf("load %d", n%300))
			err := os.WriteFile(name, bytes.Repeat([]byte(fmt.Sprintf("%d\n", n)), 1+n%2000), 0o644)
			if n%5 == 0 {
				err = errors.Join(err, os.Remove(name))
			}
			if err != nil {
				u.Errorf("files: %v", err)
				return
			}
			count.files.Add(1)
			time.Sleep(10 * time.Millisecond)
		}
	})
	wg.Go(func() {
		for n := 200; ctx.Err() == nil; n += 50 {
			if err := produceSome(ctx, u.w, n, 50); err != nil && ctx.Err() == nil {
				u.Errorf("events: %v", err)
				return
			}
			count.events.Add(50)
			time.Sleep(200 * time.Millisecond)
		}
	})
	wg.Go(func() { u.watch(ctx) })
	u.Cleanup(func() { cancel(); wg.Wait() })
	return func() {
		cancel()
		wg.Wait()
		u.say("load: %d numbers in the ledger, %d transactions, %d files written, %d events", len(u.written), count.transactions.Load(), count.files.Load(), count.events.Load())
	}
}

// transactions is what pgbench does, a hundred times a second, whatever happens to the server.
func transactions(ctx context.Context, s *world.World, client int, count *atomic.Int64) {
	for ctx.Err() == nil {
		conn, err := s.DB(ctx)
		for n := client; err == nil && ctx.Err() == nil; n += 7919 {
			id := n*104729%100_000 + 1
			_, err = conn.Exec(ctx, fmt.Sprintf("begin; update accounts set balance = balance + %d where id = %d; insert into history values (%[2]d, %[1]d); commit", n%100, id))
			if err == nil {
				count.Add(1)
			}
			time.Sleep(10 * time.Millisecond)
		}
		if conn != nil {
			_ = conn.Close(context.WithoutCancel(ctx)) // the server may be gone
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// watch looks at what must not pile up.
func (u *unattended) watch(ctx context.Context) {
	for ; ctx.Err() == nil; time.Sleep(time.Second) {
		for stanza, s := range u.w.Servers() {
			var bytes, ready int64
			segments, _ := os.ReadDir(filepath.Join(s.Data, "pg_wal")) // files come and go
			for _, e := range segments {
				if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
					bytes += info.Size()
				}
			}
			states, _ := os.ReadDir(filepath.Join(s.Data, "pg_wal/archive_status"))
			for _, e := range states {
				if strings.HasSuffix(e.Name(), ".ready") {
					ready++
				}
			}
			u.peak[stanza].Store(max(u.peak[stanza].Load(), bytes))
			u.ready.Store(max(u.ready.Load(), ready))
		}
	}
}

// quiet: nothing is left of the runs, and nothing piled up meanwhile.
func (u *unattended) quiet() {
	for _, s := range u.w.Servers() {
		noSession(u.T, s)
	}
	leftOvers(u.T, u.w)
	hidden, err1 := u.w.Tarballs(true)
	shown, err2 := u.w.Tarballs(false)
	if len(hidden) != len(shown) || err1 != nil || err2 != nil {
		u.Errorf("hidden tarballs are left: %v", hidden)
	}
	const most = 64<<20 + 5*16<<20 // max_wal_size, and what is written until a checkpoint has ended
	for stanza, peak := range u.peak {
		u.say("pg_wal of %s: at most %d MiB", stanza, peak.Load()>>20)
		if peak.Load() > most {
			u.Errorf("pg_wal of %s grew to %d MiB", stanza, peak.Load()>>20)
		}
	}
	u.say("at most %d segments waited for the archive", u.ready.Load())
	if u.ready.Load() > 8 {
		u.Errorf("%d segments waited for the archive", u.ready.Load())
	}
}

// runs compares the log with the catalogue and returns the good sets, oldest first.
func (u *unattended) runs() (good []set) {
	checkStory(u.T, u.w, u.log())
	states := map[string]int{}
	for _, s := range sets(u.T, u.w) {
		states[s.State]++
		if s.State == "complete" {
			good = append(good, s)
		}
	}
	u.say("sets: %v", states)
	if len(good) < u.minutes/4 { // on a machine that is busy otherwise; on one that is not nearly all of the times
		u.Fatalf("%d good sets in %d minutes\n%s", len(good), u.minutes, u.log())
	}
	if len(good) > setsKept+fullEvery-1 { // and what the oldest kept one is built on
		u.Errorf("%d sets are kept", len(good))
	}
	removed, log := 0, u.log()
	for _, m := range regexp.MustCompile(` backup: set ([^\s:]+)`).FindAllStringSubmatch(log, -1) {
		if slices.ContainsFunc(good, func(s set) bool { return s.ID == m[1] }) {
			continue
		}
		removed++
		if !regexp.MustCompile(` expire: [^\n]*` + m[1]).MatchString(log) {
			u.Errorf("set %s is gone, and the log does not tell why", m[1])
		}
	}
	u.say("the retention removed %d sets", removed)
	if removed == 0 && u.clock == 1 && u.minutes >= 20 {
		u.Error("no set was removed")
	}
	for _, c := range copies(u.T, u.w) {
		if slices.ContainsFunc(good, func(s set) bool { return s.ID == c.ID }) && (c.Copy == nil || !c.Copy.Postgres || !c.Copy.Tarballs || c.Copy.Error != "") {
			u.Errorf("the copy of set %s: %+v", c.ID, c.Copy)
		}
	}
	return good
}

// tells looks for what happened in the log, in its order.
func (u *unattended) tells() {
	u.tail.at = 0
	log := u.log()
	for _, c := range []struct{ what, line string }{
		{"a run", `backup: set \S+`},
		{"the outage", `warning: .*the copy on s3://bucket1\S* is behind by \d+ set\(s\), the newest set there is \S+; .*`},
		{"the catching up", `copy: caught-up: s3://bucket1.* sets that it lacked: \S+`},
		{"the restart of PostgreSQL", `schedule: backup of .*: run \S+: failed: .*stanza rosemeta.*`},
		{"a good run after it", `backup: set \S+`},
		{"the second restart", `schedule: backup of .*: run \S+: failed: .*stanza rosemeta.*`},
		{"a good run after it", `backup: set \S+`},
		{"the next life", `daemon: Holdfast .*`},
		{"the kill", `schedule: backup of .*: run \S+: interrupted: the process died during the run`},
		{"the run made up", `schedule: backup of .*: started as run \S+.*; the run before was interrupted`},
		{"a good run after it", `backup: set \S+`},
		{"the end", `daemon: ended`},
	} {
		at := regexp.MustCompile(`(?m)` + c.line).FindStringIndex(log)
		if at == nil {
			u.Errorf("the log does not tell of %s: no %q after what was found before:\n%s", c.what, c.line, u.log())
			return
		}
		begin := strings.LastIndexByte(log[:at[0]], '\n') + 1
		u.say("the log tells of %s: %s", c.what, strings.TrimSpace(log[begin:at[1]]))
		log = log[at[1]:]
	}
}

// restores restores every good set, the newest first, and compares it with what was written and when.
func (u *unattended) restores(good []set) {
	began := time.Now()
	for i := len(good) - 1; i >= 0; i-- {
		restore(u.T, u.w, good[i].ID)
		u.check(u.w, good[i])
	}
	u.say("%d sets restored in %s", len(good), time.Since(began).Round(time.Second))
	tally.Count(u, "sets of an instance left alone restored", len(good))
}

// check compares a restored set with what was written.
func (u *unattended) check(w *world.World, s set) {
	u.Helper()
	have, err := w.ReadLedger(u.Context())
	must(u.T, err)
	for n, tok := range u.written {
		u.one(s, n, tok, have)
	}
	for stanza, c := range w.Servers() {
		odd, err := c.Text(u.Context(), "select (select sum(balance) from accounts) - (select coalesce(sum(delta), 0) from history)")
		if err != nil || odd != "0" {
			u.Errorf("set %s: in %s the accounts differ from their history by %s, %v", s.ID, stanza, odd, err)
		}
	}
	if u.Failed() {
		u.Fatalf("set %s: the ledger has %+v", s.ID, have)
	}
}

// one is checkTimes for one number. The daemon's clock may not be ours; files and event bus are looked at by the one that stamps them.
func (u *unattended) one(s set, n int, tok world.Token, have world.Numbers) {
	real := func(at time.Time) time.Time { return u.base.Add(at.Sub(u.base) / time.Duration(u.clock)) }
	p := s.Recovery.Postgres
	for _, c := range []struct {
		name         string
		last         int
		begun, acked time.Time
		from, to     time.Time
	}{
		{"rosemeta", have.Postgres, tok.Begun, tok.Postgres, real(p[0].Taken.From), real(p[0].Taken.To)},
		{"lineage", have.Lineage, tok.Postgres, tok.Lineage, real(p[1].Taken.From), real(p[1].Taken.To)},
		{"the file", have.File, tok.Lineage, tok.File, s.Recovery.Files.Taken.From, s.Recovery.Files.Taken.To},
		{"the bus", have.Bus, tok.File, tok.Bus, s.Recovery.EventBus.Taken.From, s.Recovery.EventBus.Taken.To},
	} {
		if c.acked.Before(c.from) && n > c.last {
			u.Errorf("set %s: %s lacks number %d, acknowledged %s before", s.ID, c.name, n, c.from.Sub(c.acked))
		}
		if c.begun.After(c.to) && n <= c.last {
			u.Errorf("set %s: %s has number %d, begun %s later", s.ID, c.name, n, c.begun.Sub(c.to))
		}
	}
}

// fromBucket restores a set on a new instance that has nothing but the bucket.
func (u *unattended) fromBucket(s set) {
	must(u.T, u.w.Close(u.Context()))
	n := newTwo(u.T, world.Options{Apart: true}, "pgsql.pgbackrest.restore.source", "-s", "s3")
	bucketConf(u.T, n, u.server, "bucket1")
	ok(u.T, n, "holdfast", "sets", "fetch", s.ID)
	restore(u.T, n, s.ID)
	u.check(n, s)
	u.say("set %s restored on a new instance from the bucket alone", s.ID)
	tally.Count(u, "restores from external storage alone", 1)
}

// produceSome sends events of a producer that goes on for long: numbered from first, in both partitions.
func produceSome(ctx context.Context, w *world.World, first, count int) error {
	cl, err := w.Kafka()
	if err != nil {
		return err
	}
	defer cl.Close()
	var events []*kgo.Record
	for i := first; i < first+count; i++ {
		events = append(events, &kgo.Record{Topic: "events", Partition: int32(i % 2), Key: []byte{byte(i)}, Value: []byte(strings.Repeat("v", i%100))})
	}
	return cl.ProduceSync(ctx, events...).FirstErr()
}
