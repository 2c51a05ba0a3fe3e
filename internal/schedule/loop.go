package schedule

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// Job is one thing that a Loop does.
type Job struct {
	Name string

	// When is asked at every look. While it answers with an error the job goes by what it said before.
	When func() (Spec, error)

	// Run does it. ctx ends when the loop is told to end, or when the job is to yield (Cause is then ErrYield); Run has to
	// return soon after. An error made by Later or Refuse says that nothing was done.
	Run func(ctx context.Context, r Run) error

	// Finished says of a run whose process died whether it had done its work all the same. nil: it had not.
	Finished func(ctx context.Context, r Run) (bool, error)

	// Yields: it is ended when a job that does not yield is due, and runs again afterwards.
	Yields bool
}

// Options is what a Loop needs.
type Options struct {
	Jobs  []Job // when several are due, the first of them
	Store Store
	NewID func() string // of a run

	Tick   time.Duration   // how often it looks at least: at Specs, at the clock (which may be set); 0 = 10 seconds
	Retry  time.Duration   // how long a job that said Later waits; 0 = a minute
	Look   <-chan struct{} // look now; may be nil
	Looked func()          // called after each look, by the goroutine of Run: it goes on. May be nil
	Events func(Event)     // from the goroutine of Run; may be nil
	Now    func() time.Time
}

// Kind is what happened.
type Kind string

const (
	Started    Kind = "started"
	Ended      Kind = "ended"
	Changed    Kind = "changed"    // a job has another Spec
	Overlapped Kind = "overlapped" // times came while the job's earlier run went on
	Recovered  Kind = "recovered"  // a run of a dead process was found
	Problem    Kind = "problem"    // Err says it; the loop goes on
)

// Event is something that happened to a job.
type Event struct {
	Kind  Kind
	Job   string
	Run   Run    // Started, Ended, Recovered, Overlapped (the run that goes on)
	Spec  string // Changed
	Count int    // Overlapped: how many times
	Err   error  // Problem
}

// ErrYield is the cause of the end of a job's context when another is due that does not wait.
var ErrYield = errors.New("another job is due")

// unavailable says that a run could not begin.
type unavailable struct {
	err   error
	later bool
}

func (u *unavailable) Error() string { return u.err.Error() }
func (u *unavailable) Unwrap() error { return u.err }

// Later makes the error of a Run that did nothing because what it needs is in use: it is tried again until its next time.
func Later(err error) error { return &unavailable{err, true} }

// Refuse makes the error of a Run that did nothing because its like is going on elsewhere: this time is passed over.
func Refuse(err error) error { return &unavailable{err, false} }

// warning says that a run did its work.
type warning struct{ err error }

func (w *warning) Error() string { return w.err.Error() }
func (w *warning) Unwrap() error { return w.err }

// Warn makes the error of a Run that did its work, with something that needs attention; nil of nil.
func Warn(err error) error {
	if err == nil {
		return nil
	}
	return &warning{err}
}

// JobStatus is one job as Status shows it.
type JobStatus struct {
	Name    string
	Spec    Spec
	Next    time.Time // zero: never. Not after now: it is owed and waits
	Last    *Run      // as it was started, while it goes on
	Good    *Run      // the last that did its work
	Since   time.Time // when the job was switched on; zero: it is off
	Running bool
}

// Loop runs jobs at their times, one at a time.
type Loop struct {
	o     Options
	state State
	specs map[string]Spec
	said  map[[2]string]string // the last Problem of each job, by what it is about
	wait  map[string]time.Time // jobs that said Later, until when

	running *running
	unsaved bool // the state says how a run ended, and could not be saved since

	mu     sync.Mutex
	status []JobStatus
}

type running struct {
	job    *Job
	run    Run
	ctx    context.Context
	cancel context.CancelCauseFunc
	done   chan error
}

// NewLoop returns a Loop that has not begun.
func NewLoop(o Options) *Loop {
	if o.Tick <= 0 {
		o.Tick = 10 * time.Second
	}
	if o.Retry <= 0 {
		o.Retry = time.Minute
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	clock := o.Now
	o.Now = func() time.Time { return clock().Round(0) } // what it shows: a monotonic reading would hide that it was set
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Looked == nil {
		o.Looked = func() {}
	}
	return &Loop{o: o, specs: map[string]Spec{}, said: map[[2]string]string{}, wait: map[string]time.Time{}}
}

// Run goes on until ctx ends; the job that runs then is told to end and waited for. The error is nil, or says why the state
// could not be read.
func (l *Loop) Run(ctx context.Context) error {
	var err error
	if l.state, err = l.o.Store.Load(); err != nil {
		return fmt.Errorf("what was done so far: %w", err)
	}
	if l.state.Jobs == nil {
		l.state.Jobs = map[string]JobState{}
	}
	l.recover(ctx)
	for {
		now := l.o.Now()
		l.look(ctx, now)
		l.o.Looked()
		var done chan error
		if l.running != nil {
			done = l.running.done
		}
		timer := time.NewTimer(l.pause(now))
		select {
		case <-ctx.Done():
			timer.Stop()
			if l.running != nil {
				l.end(ctx, <-l.running.done)
			}
			return nil
		case err := <-done:
			l.end(ctx, err)
		case <-timer.C:
		case <-l.o.Look:
		}
		timer.Stop()
	}
}

// Status shows the jobs in the order of Options. It may be called from any goroutine.
func (l *Loop) Status() []JobStatus {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.status)
}

// change edits a job's state and saves. The error is reported, too.
func (l *Loop) change(name string, edit func(*JobState)) error {
	before := l.state.Jobs[name]
	j := before
	edit(&j)
	l.state.Jobs[name] = j
	err := l.o.Store.Save(State{Jobs: maps.Clone(l.state.Jobs)})
	if err != nil {
		l.state.Jobs[name] = before
		err = fmt.Errorf("what is done can't be noted, so nothing is begun: %w", err)
	} else {
		l.unsaved = false
	}
	l.problem(name, "note", err)
	return err
}

// noteEnd notes how a run ended. It has: where that can't be saved it is known all the same, and saved at a later look.
func (l *Loop) noteEnd(name string, r Run) {
	edit := func(j *JobState) { j.ended(r) }
	if l.change(name, edit) != nil {
		j := l.state.Jobs[name]
		edit(&j)
		l.state.Jobs[name], l.unsaved = j, true
	}
}

// problem reports an error of a job once, until it is another; nil: it is over.
func (l *Loop) problem(job, what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	key := [2]string{job, what}
	if l.said[key] == text {
		return
	}
	l.said[key] = text
	if err != nil {
		l.o.Events(Event{Kind: Problem, Job: job, Err: err})
	}
}

// recover looks at the runs that were going on when the process before this one died, or that it was told to end.
func (l *Loop) recover(ctx context.Context) {
	for i := range l.o.Jobs {
		job := &l.o.Jobs[i]
		s := l.state.Jobs[job.Name]
		r := s.Last
		told := r != nil && r.Outcome == Interrupted && s.Owed != nil && s.Owed.Due.Equal(r.Due) // noted as such, and to be made up
		if r == nil || !r.Ended.IsZero() && !told {
			continue
		}
		finished := l.hasFinished(ctx, job, *r)
		if ctx.Err() != nil || told && !finished {
			continue
		}
		found := *r
		if !told {
			found.Ended = l.o.Now()
		}
		found.Outcome, found.Error = Done, ""
		if !finished {
			found.Outcome, found.Error = Interrupted, "the process died during the run"
		}
		if told {
			s.Owed = nil
			l.state.Jobs[job.Name] = s
		}
		l.noteEnd(job.Name, found)
		l.o.Events(Event{Kind: Recovered, Job: job.Name, Run: found})
	}
}

// hasFinished asks the job whether the run had done its work, which may take long. Looked goes on meanwhile.
func (l *Loop) hasFinished(ctx context.Context, job *Job, r Run) (finished bool) {
	if job.Finished == nil {
		return false
	}
	done := make(chan error, 1)
	go func() {
		var err error
		finished, err = job.Finished(ctx, r)
		done <- err
	}()
	for {
		timer := time.NewTimer(l.o.Tick)
		select {
		case err := <-done:
			timer.Stop()
			if err != nil {
				l.problem(job.Name, "recover", fmt.Errorf("whether run %s had done its work: %w", r.ID, err))
			}
			return finished
		case <-timer.C:
			l.o.Looked()
		}
	}
}

// look takes changed Specs over, notes times that passed during a run, and starts what is due: what yields comes last.
func (l *Loop) look(ctx context.Context, now time.Time) {
	if l.unsaved {
		_ = l.change(l.o.Jobs[0].Name, func(*JobState) {}) // reported by change; the next look does it again
	}
	var due []*Job
	for i := range l.o.Jobs {
		job := &l.o.Jobs[i]
		l.refresh(job, now)
		if l.due(job, now) {
			due = append(due, job)
		}
	}
	slices.SortStableFunc(due, func(a, b *Job) int {
		switch {
		case a.Yields == b.Yields:
			return 0
		case b.Yields:
			return -1
		}
		return 1
	})
	if r := l.running; r != nil && r.job.Yields && len(due) > 0 && !due[0].Yields {
		r.cancel(ErrYield)
	}
	for _, job := range due {
		if l.running != nil || ctx.Err() != nil || l.start(ctx, job, now) {
			break
		}
	}
	l.show()
}

// refresh asks a job for its Spec and brings its state up to it.
func (l *Loop) refresh(job *Job, now time.Time) {
	spec, err := job.When()
	l.problem(job.Name, "when", err)
	if err != nil {
		return
	}
	l.specs[job.Name] = spec
	state := l.state.Jobs[job.Name]
	if state.Spec != spec.String() || state.Settled.IsZero() {
		if l.change(job.Name, func(j *JobState) { j.adopt(spec, now) }) == nil {
			delete(l.wait, job.Name)
			l.o.Events(Event{Kind: Changed, Job: job.Name, Spec: spec.String()})
		}
		return
	}
	if state.Since.IsZero() && !spec.Never() { // noted by a version that did not
		_ = l.change(job.Name, func(j *JobState) { j.Since = now }) // reported by change; the next look does it again
		state = l.state.Jobs[job.Name]
	}
	if state.Settled.Sub(now) > backwards || spec.every > 0 && state.Settled.After(now) {
		l.problem(job.Name, "clock", fmt.Errorf("the clock was set back to %s, before what is done already (%s): times count from now on", now.UTC().Format(time.RFC3339), state.Settled.UTC().Format(time.RFC3339)))
		_ = l.change(job.Name, func(j *JobState) { // reported by change; the next look does it again
			j.Settled = now
			if j.Owed != nil && j.Owed.Due.After(now) {
				owed := *j.Owed
				owed.Due, j.Owed = now, &owed
			}
		})
		return
	}
	if r := l.running; r != nil && r.job == job && spec.every == 0 {
		if _, n := state.passed(spec, now); n > 0 && l.change(job.Name, func(j *JobState) { j.passed(spec, now) }) == nil {
			l.o.Events(Event{Kind: Overlapped, Job: job.Name, Run: r.run, Count: n})
		}
	}
}

// due says whether a job is to start.
func (l *Loop) due(job *Job, now time.Time) bool {
	if until := l.wait[job.Name]; until.After(now) && until.Sub(now) <= l.o.Retry || l.running != nil && l.running.job == job {
		return false
	}
	next := l.next(job.Name)
	return !next.IsZero() && !next.After(now)
}

// next is when a job is to run next; the zero time for never.
func (l *Loop) next(name string) time.Time { return l.state.Jobs[name].Next(l.specs[name]) }

// start notes that a run begins, and begins it. false: it can't.
func (l *Loop) start(ctx context.Context, job *Job, now time.Time) bool {
	var run *Run
	spec := l.specs[job.Name]
	err := l.change(job.Name, func(j *JobState) {
		if run = j.turn(spec, now); run != nil {
			run.ID, run.Started = l.o.NewID(), now
			noted := *run
			j.Last = &noted
		}
	})
	if err != nil || run == nil {
		return false
	}
	delete(l.wait, job.Name)
	l.o.Events(Event{Kind: Started, Job: job.Name, Run: *run})
	r := &running{job: job, run: *run, done: make(chan error, 1)}
	r.ctx, r.cancel = context.WithCancelCause(ctx)
	l.running = r
	go func() { r.done <- job.Run(r.ctx, r.run) }()
	return true
}

// end notes how the run went.
func (l *Loop) end(ctx context.Context, err error) {
	r := l.running
	l.running = nil
	defer r.cancel(nil)
	run := r.run
	run.Ended = l.o.Now()
	var u *unavailable
	var w *warning
	switch {
	case err == nil:
		run.Outcome = Done
	case errors.As(err, &w):
		run.Outcome = Warned
	case errors.As(err, &u) && u.later:
		run.Outcome = Waiting
		l.wait[r.job.Name] = run.Ended.Add(l.o.Retry)
	case errors.As(err, &u):
		run.Outcome = Refused
	case errors.Is(context.Cause(r.ctx), ErrYield):
		run.Outcome = Yielded
	case ctx.Err() != nil:
		run.Outcome = Interrupted
	default:
		run.Outcome = Failed
	}
	if err != nil {
		run.Error = err.Error()
	}
	l.noteEnd(r.job.Name, run)
	l.o.Events(Event{Kind: Ended, Job: r.job.Name, Run: run})
}

// pause is how long there is nothing to look at.
func (l *Loop) pause(now time.Time) time.Duration {
	d := l.o.Tick
	for i := range l.o.Jobs {
		name := l.o.Jobs[i].Name
		if next := l.next(name); next.After(now) {
			d = min(d, next.Sub(now))
		}
		if until := l.wait[name]; until.After(now) {
			d = min(d, until.Sub(now))
		}
	}
	return d
}

// show renews what Status shows.
func (l *Loop) show() {
	var all []JobStatus
	for i := range l.o.Jobs {
		name := l.o.Jobs[i].Name
		all = append(all, JobStatus{Name: name, Spec: l.specs[name], Next: l.next(name), Last: l.state.Jobs[name].Last, Good: l.state.Jobs[name].Good, Since: l.state.Jobs[name].Since, Running: l.running != nil && l.running.job.Name == name})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status = all
}
