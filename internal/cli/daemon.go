package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/instance"
	"holdfast/internal/schedule"
	"holdfast/internal/web"
)

// daemon does the jobs of one instance at their times. It holds no parameter longer than for one look or one run.
type daemon struct {
	env    *Env
	in     *instance.Instance
	store  *conf.Store
	log    *runLog
	loop   *schedule.Loop
	notify *notifier
	began  time.Time

	// Of the goroutine of the loop.
	server *web.Server
	said   map[string]string // the last text of each kind of complaint
	ready  func() error      // called after the first look, when everything works; then nil

	mu   sync.Mutex
	runs map[string]map[string]int // job → outcome → how often
}

// newDaemon prepares the daemon of an instance.
func newDaemon(env *Env, in *instance.Instance, n *notifier, ready func() error) (*daemon, error) {
	st, err := store(in)
	if err != nil {
		return nil, err
	}
	file, err := newStateFile(in)
	if err != nil {
		return nil, err
	}
	d := &daemon{env: env, in: in, store: st, log: newRunLog(env, in.LogDir(), file.owner), notify: n, ready: ready, began: env.Now(), said: map[string]string{}, runs: map[string]map[string]int{}}
	var looks <-chan struct{}
	if env.Hangups != nil {
		looks, _ = env.Hangups() // for the rest of the process
	}
	var jobs []schedule.Job
	for _, name := range []string{jobBackup, jobLogs, jobVerify, jobCopy} {
		j := schedule.Job{Name: name, Yields: givesWay(name),
			When: func() (schedule.Spec, error) { return d.when(name) },
			Run:  func(ctx context.Context, r schedule.Run) error { return d.run(ctx, name, r) }}
		if name == jobBackup {
			j.Finished = d.finished
		}
		jobs = append(jobs, j)
	}
	d.loop = schedule.NewLoop(schedule.Options{Jobs: jobs, Store: file, NewID: newRunID, Tick: env.Tick, Look: looks, Looked: d.looked, Events: d.event, Now: env.Now})
	return d, nil
}

// when asks the parameters as they are now.
func (d *daemon) when(job string) (schedule.Spec, error) {
	v, err := d.store.Load()
	if err != nil {
		return schedule.Spec{}, err
	}
	return jobSpec(v, job)
}

// open wires the application anew, with the parameters as they are now, for one run. The caller calls end when it is over.
func (d *daemon) open(id, job string) (w *wired, l *listener, end func(), err error) {
	env := *d.env
	env.ExecID, env.Terminal, env.Stdout, env.Yields = id, false, io.Discard, givesWay(job)
	var mu sync.Mutex
	var connections []io.Closer
	env.Connected = func(c io.Closer) {
		mu.Lock()
		defer mu.Unlock()
		connections = append(connections, c)
	}
	l = newListener(&env, false, nil)
	w, err = openApp(&env, d.in.Dir(), l)
	return w, l, func() {
		mu.Lock()
		defer mu.Unlock()
		for _, c := range connections {
			_ = c.Close() // what was written has been acknowledged
		}
	}, err
}

// run does one run of a job.
func (d *daemon) run(ctx context.Context, job string, r schedule.Run) error {
	if givesWay(job) {
		given, done, err := giveWay(ctx, instanceLock(d.in))
		if err != nil {
			return schedule.Later(err)
		}
		defer done()
		ctx = given
	}
	w, l, end, err := d.open(r.ID, job)
	if err != nil {
		return err
	}
	defer end()
	text := ""
	var warned error
	if job == jobBackup {
		var set *catalog.Set
		var warnings []string
		if set, warnings, err = makeBackup(ctx, w, l); err == nil {
			text = "set " + set.ID
			if warned = backupWarned(set, warnings); warned != nil {
				text += ": " + warned.Error()
			}
		}
	} else {
		text, err = doJob(ctx, w, job)
		l.done()
	}
	if err == nil {
		w.log.line(job + ": " + text)
		return schedule.Warn(warned)
	}
	if verb, busy := busyWith(err); busy {
		if job == jobBackup && verb == "backup_all" {
			return schedule.Refuse(err)
		}
		return schedule.Later(err)
	}
	return afterGivingWay(ctx, err)
}

// finished settles what a dead run left, and says whether its set is complete all the same.
func (d *daemon) finished(ctx context.Context, r schedule.Run) (bool, error) {
	w, l, end, err := d.open(r.ID, jobBackup)
	if err != nil {
		return false, err
	}
	defer end()
	_, err = w.app.Settle(ctx)
	l.done()
	if errors.Is(err, action.ErrBusy) { // whoever holds the instance does it
		err = nil
	}
	sets, _, lerr := w.app.Sets(ctx)
	return setMade(sets, r.ID, err), errors.Join(err, lerr)
}

// setMade reports whether the run made its set. One that lacks only its final names is made if they are going to be given: not where
// that has just failed.
func setMade(sets []*catalog.Set, run string, settled error) bool {
	for _, s := range sets {
		if s.Run == run && (s.State == catalog.Complete || s.State == catalog.Publishing && settled == nil) {
			return true
		}
	}
	return false
}

// say writes a line into the log, and on standard error for the journal.
func (d *daemon) say(id, text string) {
	env := *d.env
	env.ExecID = cmp.Or(id, d.env.ExecID)
	(&runLog{env: &env, path: d.log.path, owner: d.log.owner}).line(text)
	fmt.Fprintln(d.env.Stderr, text)
}

// complain says something once, until it is something else; empty: it is over.
func (d *daemon) complain(kind, text string) {
	if d.said[kind] == text {
		return
	}
	d.said[kind] = text
	if text != "" {
		d.say("", "warning: "+text)
	}
}

// event writes down what the loop does.
func (d *daemon) event(e schedule.Event) {
	due := e.Run.Due.Format("2006-01-02 15:04:05 MST")
	switch e.Kind {
	case schedule.Started:
		text := fmt.Sprintf("schedule: %s of %s: started as run %s", e.Job, due, e.Run.ID)
		if e.Run.Missed > 0 {
			text += fmt.Sprintf("; it makes up %d earlier times", e.Run.Missed)
		}
		if e.Run.Try > 1 {
			text += "; the run before was interrupted"
		}
		d.say(e.Run.ID, text)
	case schedule.Ended, schedule.Recovered:
		d.mu.Lock()
		if d.runs[e.Job] == nil {
			d.runs[e.Job] = map[string]int{}
		}
		d.runs[e.Job][string(e.Run.Outcome)]++
		d.mu.Unlock()
		text := fmt.Sprintf("schedule: %s of %s: run %s: %s", e.Job, due, e.Run.ID, e.Run.Outcome)
		if e.Run.Error != "" {
			text += ": " + e.Run.Error
		}
		d.say(e.Run.ID, text)
	case schedule.Overlapped:
		d.say(e.Run.ID, fmt.Sprintf("warning: schedule: %s: %d times are passed over: run %s still holds the instance since %s", e.Job, e.Count, e.Run.ID, e.Run.Started.UTC().Format("2006-01-02 15:04:05 MST")))
	case schedule.Changed:
		d.say("", fmt.Sprintf("schedule: %s: %s", e.Job, e.Spec))
	case schedule.Problem:
		d.say("", fmt.Sprintf("warning: schedule: %s: %v", e.Job, e.Err))
	}
}

// looked runs after each look of the loop: it shows that the daemon is alive.
func (d *daemon) looked() {
	v, err := d.store.Load()
	if err != nil {
		d.complain("parameters", err.Error())
	} else {
		d.complain("parameters", "")
		d.serve(v.String(conf.KeyMetricsListen))
		d.lag(v)
	}
	d.complain("watchdog", errorText(d.notify.alive(d.env.Now())))
	if d.ready != nil {
		if err := d.ready(); err != nil {
			d.complain("ready", err.Error())
		}
		d.ready = nil
	}
}

// serve answers HTTP where the parameter says.
func (d *daemon) serve(addr string) {
	if d.server != nil {
		if d.server.Died() != nil {
			d.say("", fmt.Sprintf("warning: metrics: nothing answers on %s any more, it is tried again: %v", d.server.Addr(), d.server.Close()))
			d.server = nil
		}
	}
	if d.server != nil && d.server.Addr() == addr || d.server == nil && addr == "" {
		return
	}
	if d.server != nil {
		if err := d.server.Close(); err != nil {
			d.say("", fmt.Sprintf("warning: metrics: %v", err))
		}
		d.server = nil
	}
	if addr == "" {
		d.say("", "metrics: off")
		return
	}
	server, err := web.Listen(addr, d.status)
	if err != nil {
		d.complain("listen", "metrics: "+err.Error())
		return
	}
	d.complain("listen", "")
	d.server = server
	d.say("", "metrics: on "+addr)
}

// lag warns when the copy on external storage gets too old.
func (d *daemon) lag(v *conf.Values) {
	text := ""
	if behind := d.behind(); behind > v.Duration(conf.KeyScheduleLagWarning) {
		text = "the copy on external storage is behind since " + d.env.Now().Add(-behind).UTC().Format("2006-01-02 15:04 MST") + ": see schedule.copy_every, and the errors of copy in this log"
	}
	d.complain("lag", text)
}

// behind is the time since the last complete copying began, or since copying was switched on; 0 when nothing is to be copied.
func (d *daemon) behind() time.Duration {
	for _, j := range d.loop.Status() {
		if j.Name != jobCopy || j.Spec.Never() {
			continue
		}
		since := j.Since
		if since.IsZero() {
			since = d.began
		}
		if j.Good != nil && j.Good.Started.After(since) {
			since = j.Good.Started
		}
		return d.env.Now().Sub(since)
	}
	return 0
}

// status is what the web shows; from any goroutine.
func (d *daemon) status() web.Status {
	s := web.Status{Now: d.env.Now(), Version: Version}
	problem := func(err error) {
		if err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	}
	v, err := d.store.Load()
	problem(err)
	st, err := openPosix(d.in.CatalogDir(), d.log.owner)
	if err == nil {
		var damaged []error
		s.Sets, damaged, err = catalog.NewStore(st).List(context.Background())
		problem(errors.Join(damaged...))
	}
	problem(err)
	if p := scriptFailed(s.Sets); p != "" {
		s.Problems = append(s.Problems, p)
	}
	if behind := d.behind(); behind > 0 && v != nil {
		s.Copy = &web.Copy{Lag: behind}
		if n := len(s.Sets); n > 0 && s.Sets[n-1].Copy != nil {
			s.Copy.Last = s.Sets[n-1].Copy.WAL
		}
		if behind > v.Duration(conf.KeyScheduleLagWarning) {
			s.Problems = append(s.Problems, fmt.Sprintf("the copy on external storage is %s behind", behind.Round(time.Second)))
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, j := range d.loop.Status() {
		s.Jobs = append(s.Jobs, web.Job{Name: j.Name, Next: j.Next, Running: j.Running, Last: webRun(j.Last), Good: webRun(j.Good), Runs: maps.Clone(d.runs[j.Name])})
		if p := unwell(j); p != "" {
			s.Problems = append(s.Problems, p)
		}
	}
	return s
}

// scriptFailed says that the tarballs of the newest complete set are not where the post script was to bring them; empty: nothing
// is wrong with it.
func scriptFailed(sets []*catalog.Set) string {
	for i := len(sets) - 1; i >= 0; i-- {
		s := sets[i]
		if s.State != catalog.Complete {
			continue
		}
		if s.PostScript == nil || s.PostScript.Error == "" {
			return ""
		}
		return fmt.Sprintf("the post script of set %s failed: %s", s.ID, s.PostScript.Error)
	}
	return ""
}

func webRun(r *schedule.Run) *web.Run {
	if r == nil {
		return nil
	}
	return &web.Run{ID: r.ID, Started: r.Started, Ended: r.Ended, Outcome: string(r.Outcome)}
}

// unwell says why a job makes the instance unhealthy; empty: it does not. A copy that fails does when its lag does.
func unwell(j schedule.JobStatus) string {
	if j.Name == jobCopy || j.Last == nil || j.Spec.Never() || j.Running {
		return ""
	}
	switch j.Last.Outcome {
	case schedule.Failed, schedule.Interrupted:
		return fmt.Sprintf("%s of %s: run %s: %s", j.Name, j.Last.Due.Format("2006-01-02 15:04:05 MST"), j.Last.ID, outcome(j.Last))
	}
	return ""
}

// live is the daemon's life: until ctx ends.
func (d *daemon) live(ctx context.Context) error {
	err := d.loop.Run(ctx)
	if d.server != nil {
		err = errors.Join(err, d.server.Close())
	}
	return err
}
