package schedule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// memStore keeps a State as it would be on disk. dead: the process was killed, nothing reaches the disk any more.
type memStore struct {
	mu    sync.Mutex
	b     []byte
	dead  bool
	fails error
}

func (m *memStore) Load() (State, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var s State
	if m.b == nil {
		return s, nil
	}
	return s, json.Unmarshal(m.b, &s)
}

func (m *memStore) Save(s State) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead || m.fails != nil {
		return m.fails
	}
	var err error
	m.b, err = json.Marshal(s)
	return err
}

// rig is a loop in a bubble of synctest.
type rig struct {
	t      *testing.T
	store  *memStore
	events []Event
	ids    int
	stop   context.CancelFunc
	done   chan struct{}
	look   chan struct{}
	tick   time.Duration
	status func() []JobStatus
}

func (r *rig) start(jobs ...Job) {
	ctx, cancel := context.WithCancel(context.Background())
	r.stop, r.done = cancel, make(chan struct{})
	l := NewLoop(Options{Jobs: jobs, Store: r.store, Tick: r.tick, Look: r.look, NewID: func() string { r.ids++; return fmt.Sprint("run", r.ids) },
		Events: func(e Event) { r.events = append(r.events, e) }})
	r.status = l.Status
	go func() {
		if err := l.Run(ctx); err != nil {
			r.t.Error(err)
		}
		close(r.done)
	}()
}

// end is SIGTERM, kill is SIGKILL: what the job does after it reaches no disk.
func (r *rig) end() { r.stop(); <-r.done }
func (r *rig) kill() {
	r.store.mu.Lock()
	r.store.dead = true
	r.store.mu.Unlock()
	r.end()
	r.store.dead = false
}

// story is the events in short.
func (r *rig) story() string {
	var lines []string
	for _, e := range r.events {
		line := fmt.Sprintf("%s %s", e.Job, e.Kind)
		switch e.Kind {
		case Changed:
			line += " " + e.Spec
		case Problem:
			line += " " + e.Err.Error()
		case Overlapped:
			line += fmt.Sprintf(" %d", e.Count)
		default:
			line += e.Run.Due.UTC().Format(" 2 Jan 15:04")
			if e.Run.Missed > 0 {
				line += fmt.Sprintf(" missed %d", e.Run.Missed)
			}
			if e.Run.Try > 1 {
				line += fmt.Sprintf(" try %d", e.Run.Try)
			}
			if e.Kind != Started {
				line += " " + string(e.Run.Outcome)
			}
		}
		lines = append(lines, line)
	}
	r.events = nil
	return strings.Join(lines, "\n")
}

func (r *rig) want(lines ...string) {
	r.t.Helper()
	synctest.Wait()
	if got, want := r.story(), strings.Join(lines, "\n"); got != want {
		r.t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
}

func bubble(t *testing.T, f func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, store: &memStore{}, tick: time.Minute, look: make(chan struct{}, 1)}
		defer func() {
			if r.stop != nil {
				r.end()
			}
		}()
		f(r)
	})
}

func always(s Spec) func() (Spec, error) { return func() (Spec, error) { return s, nil } }

// takes makes a Run that takes its time and is ended by its context.
func takes(d time.Duration) func(context.Context, Run) error {
	return func(ctx context.Context, _ Run) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
}

// hours lets the fake clock run.
func hours(n float64) { time.Sleep(time.Duration(n * float64(time.Hour))); synctest.Wait() }

// TestLoopYear runs a year of a schedule with runs of any length: each time of the oracle is run once, at that time, or
// passed over because the run before was still going on.
func TestLoopYear(t *testing.T) {
	for text, c := range map[string]struct {
		rule rule
		most time.Duration
	}{
		"30 2 * * * Europe/Zurich": {rule{minute: set(30), hour: set(2)}, 5 * time.Hour},
		"*/20 * * * *":             {rule{minute: set(0, 20, 40)}, 50 * time.Minute},
	} {
		t.Run(text, func(t *testing.T) {
			bubble(t, func(r *rig) {
				r.tick = 6 * time.Hour
				spec, rnd := parse(t, text), rand.New(rand.NewPCG(3, 4))
				from := time.Now()
				to := from.AddDate(1, 0, 0)
				r.start(Job{Name: "b", When: always(spec), Run: func(ctx context.Context, run Run) error {
					if !time.Now().Equal(run.Due) {
						t.Errorf("%v runs at %v", run.Due, time.Now())
					}
					return takes(rand.N(c.most)*time.Duration(rnd.IntN(2)))(ctx, run)
				}})
				time.Sleep(to.Sub(from) + 30*time.Second)
				r.end()
				due := oracle([]rule{c.rule}, from.Add(time.Minute), to.Add(time.Minute), specZone(spec))[0]
				for _, e := range r.events {
					switch e.Kind {
					case Started:
						if len(due) == 0 || !e.Run.Due.Equal(due[0]) {
							t.Fatalf("run of %v, want %v", e.Run.Due, due)
						}
						due = due[1:]
					case Overlapped:
						due = due[min(e.Count, len(due)):]
					}
				}
				if len(due) > 0 {
					t.Errorf("%d times were not run, from %v", len(due), due[0])
				}
			})
		})
	}
}

func specZone(s Spec) *time.Location { return s.zone }

func TestMissed(t *testing.T) {
	bubble(t, func(r *rig) {
		job := Job{Name: "b", When: always(parse(t, "0 4 * * *")), Run: takes(time.Hour)}
		r.start(job)
		r.want("b changed 0 4 * * *")
		hours(2)
		r.end()
		hours(1) // back before the time
		r.start(job)
		hours(4)
		r.want("b started 1 Jan 04:00", "b ended 1 Jan 04:00 done")
		r.end()
		hours(3*24 + 5) // the host is down for three days
		r.start(job)
		hours(2)
		r.want("b started 4 Jan 04:00 missed 2", "b ended 4 Jan 04:00 missed 2 done") // once
		hours(24)
		r.want("b started 5 Jan 04:00", "b ended 5 Jan 04:00 done")
		r.end()
	})
}

func TestInterrupted(t *testing.T) {
	bubble(t, func(r *rig) {
		finished := false
		job := Job{Name: "b", When: always(parse(t, "0 4 * * *")), Run: takes(2 * time.Hour), Finished: func(context.Context, Run) (bool, error) { return finished, nil }}
		r.start(job)
		hours(5)
		r.kill()
		r.want("b changed 0 4 * * *", "b started 1 Jan 04:00", "b ended 1 Jan 04:00 interrupted") // of which the disk knows nothing
		r.start(job)
		hours(1)
		r.want("b recovered 1 Jan 04:00 interrupted", "b started 1 Jan 04:00 try 2")
		r.kill() // again: it is not tried for ever
		r.want("b ended 1 Jan 04:00 try 2 interrupted")
		r.start(job)
		hours(12)
		r.want("b recovered 1 Jan 04:00 try 2 interrupted")
		hours(10.5) // 2 Jan 04:30
		r.end()     // told to end: the same
		r.want("b started 2 Jan 04:00", "b ended 2 Jan 04:00 interrupted")
		r.start(job)
		hours(3)
		r.want("b started 2 Jan 04:00 try 2", "b ended 2 Jan 04:00 try 2 done")
		hours(21)
		r.kill() // after its work was done, before that was noted
		finished = true
		r.want("b started 3 Jan 04:00", "b ended 3 Jan 04:00 interrupted")
		r.start(job)
		hours(12)
		r.want("b recovered 3 Jan 04:00 done")
		r.end()
	})
}

func TestOneAtATime(t *testing.T) {
	bubble(t, func(r *rig) {
		r.start(Job{Name: "backup", When: always(parse(t, "0 4,6 * * *")), Run: takes(150 * time.Minute)},
			Job{Name: "verify", When: always(parse(t, "30 3 * * *")), Run: takes(time.Hour), Yields: true},
			Job{Name: "logs", When: always(parse(t, "10 4 * * *")), Run: takes(0)})
		hours(9)
		r.want("backup changed 0 4,6 * * *", "verify changed 30 3 * * *", "logs changed 10 4 * * *",
			"verify started 1 Jan 03:30", "verify ended 1 Jan 03:30 yielded",
			"backup started 1 Jan 04:00", "backup overlapped 1", "backup ended 1 Jan 04:00 done",
			"logs started 1 Jan 04:10", "logs ended 1 Jan 04:10 done",
			"verify started 1 Jan 03:30", "verify ended 1 Jan 03:30 done")
		r.end()
	})
}

func TestUnavailable(t *testing.T) {
	bubble(t, func(r *rig) {
		held := Later(errors.New("sets verify holds the instance"))
		var answer atomic.Pointer[error]
		answer.Store(&held)
		r.start(Job{Name: "b", When: always(parse(t, "0 4 * * *")), Run: func(context.Context, Run) error { return *answer.Load() }})
		hours(4)
		time.Sleep(90 * time.Second)
		r.want("b changed 0 4 * * *", "b started 1 Jan 04:00", "b ended 1 Jan 04:00 waiting", "b started 1 Jan 04:00", "b ended 1 Jan 04:00 waiting")
		held2 := Refuse(errors.New("backup_all holds the instance"))
		answer.Store(&held2)
		hours(1)
		r.want("b started 1 Jan 04:00", "b ended 1 Jan 04:00 refused") // passed over
		failed := errors.New("broken")
		answer.Store(&failed)
		hours(24)
		r.want("b started 2 Jan 04:00", "b ended 2 Jan 04:00 failed") // not made up: nothing has changed since
		if last := r.status()[0].Last; last.Error != "broken" || last.Ended.IsZero() {
			t.Errorf("%+v", last)
		}
		r.end()
	})
}

func TestChanges(t *testing.T) {
	bubble(t, func(r *rig) {
		var mu sync.Mutex
		spec, bad := parse(t, "0 4 * * *"), error(nil)
		change := func(text string, err error) {
			mu.Lock()
			if err == nil {
				spec = parse(t, text)
			}
			bad = err
			mu.Unlock()
			r.look <- struct{}{}
			synctest.Wait()
		}
		job := Job{Name: "b", When: func() (Spec, error) { mu.Lock(); defer mu.Unlock(); return spec, bad }, Run: takes(time.Hour)}
		r.start(job)
		hours(3)
		change("0 2 * * *", nil) // a time of the new one that is over is not made up
		hours(2)
		r.want("b changed 0 4 * * *", "b changed 0 2 * * *")
		change("", errors.New("unreadable"))
		hours(21.5) // goes by what it knew
		r.want("b problem unreadable", "b started 2 Jan 02:00")
		change("30 3 * * *", nil) // while it runs
		hours(1.5)
		r.want("b changed 30 3 * * *", "b ended 2 Jan 02:00 done", "b started 2 Jan 03:30")
		hours(2)
		r.want("b ended 2 Jan 03:30 done")
		change("never", nil)
		hours(24)
		r.want("b changed never")
		change("0 3 * * *", nil) // what it was off for is nobody's miss
		hours(10)
		r.want("b changed 0 3 * * *")
		r.end()
		hours(24)
		spec = parse(t, "0 5 * * *") // changed while nobody ran, but the old one still owes
		r.start(job)
		hours(2)
		r.want("b changed 0 5 * * *", "b started 4 Jan 03:00", "b ended 4 Jan 03:00 done")
		r.end()
		hours(24)
		spec = Spec{} // and when it is switched off nothing is owed
		r.start(job)
		hours(2)
		r.want("b changed never")
		if s := r.status()[0]; !s.Next.IsZero() {
			t.Errorf("%+v", s)
		}
		r.end()
	})
}

func TestSpans(t *testing.T) {
	bubble(t, func(r *rig) {
		job := Job{Name: "copy", When: always(Every(time.Hour)), Run: takes(10 * time.Minute), Yields: true}
		r.start(job, Job{Name: "b", When: always(parse(t, "5 2 * * *")), Run: takes(time.Minute)})
		hours(2.4)
		r.want("copy changed every 1h0m0s", "b changed 5 2 * * *", "copy started 1 Jan 00:00", "copy ended 1 Jan 00:00 done", "copy started 1 Jan 01:10", "copy ended 1 Jan 01:10 done",
			"b started 1 Jan 02:05", "b ended 1 Jan 02:05 done", "copy started 1 Jan 02:20")
		r.kill()
		r.events = nil
		hours(5)
		r.start(job)
		hours(0.5)
		r.want("copy recovered 1 Jan 02:20 interrupted") // the span counts from when that was found
		hours(1)
		r.want("copy started 1 Jan 08:24", "copy ended 1 Jan 08:24 done")
		r.end()
	})
}

// TestNothingWithoutNote: what can't be noted is not begun, and begun as soon as it can.
func TestNothingWithoutNote(t *testing.T) {
	bubble(t, func(r *rig) {
		r.start(Job{Name: "b", When: always(parse(t, "0 4 * * *")), Run: takes(time.Minute)})
		hours(3)
		r.store.fails = errors.New("disk full")
		hours(2)
		r.want("b changed 0 4 * * *", "b problem what is done can't be noted, so nothing is begun: disk full")
		r.store.fails = nil
		hours(1)
		r.want("b started 1 Jan 04:00", "b ended 1 Jan 04:00 done")
		r.end()
	})
}

func TestClockSetBack(t *testing.T) {
	bubble(t, func(r *rig) {
		var shift atomic.Int64
		ctx, cancel := context.WithCancel(context.Background())
		var ran []string
		l := NewLoop(Options{Store: r.store, Tick: time.Minute, NewID: func() string { return "x" }, Now: func() time.Time { return time.Now().Add(time.Duration(shift.Load())) },
			Events: func(e Event) {
				if e.Kind == Started || e.Kind == Problem {
					ran = append(ran, string(e.Kind))
				}
			},
			Jobs: []Job{{Name: "b", When: always(parse(t, "0 4 * * *")), Run: takes(0)}}})
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		hours(4.2)
		shift.Store(int64(-30 * time.Minute)) // 03:42 again: four o'clock comes twice, the run doesn't
		hours(1)
		if !slices.Equal(ran, []string{"started"}) {
			t.Errorf("%v", ran)
		}
		shift.Store(int64(-50 * time.Hour)) // it had been wrong by two days
		hours(24)
		if !slices.Equal(ran, []string{"started", "problem", "started"}) {
			t.Errorf("%v", ran)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// TestKilledAnywhere kills and ends the process at random moments for a month: no time is done twice, none is tried more than
// twice, and after each pause what was missed is made up exactly once.
func TestKilledAnywhere(t *testing.T) {
	bubble(t, func(r *rig) {
		rnd := rand.New(rand.NewPCG(5, 6))
		tries, complete, byID := map[time.Time]int{}, map[time.Time]int{}, map[string]bool{}
		for range 400 {
			alive := &atomic.Bool{}
			alive.Store(true)
			took := time.Duration(rnd.IntN(90)) * time.Minute
			r.start(Job{Name: "b", When: always(parse(t, "0 * * * *")), Finished: func(_ context.Context, run Run) (bool, error) { return byID[run.ID], nil },
				Run: func(ctx context.Context, run Run) error {
					tries[run.Due]++
					err := takes(took)(ctx, run)
					if err == nil && alive.Load() {
						complete[run.Due]++
						byID[run.ID] = true
						err = takes(time.Minute)(ctx, run) // it may die between its work and the note of it
					}
					return err
				}})
			time.Sleep(time.Duration(rnd.IntN(300)) * time.Minute)
			synctest.Wait()
			alive.Store(false)
			if rnd.IntN(2) == 0 {
				r.kill()
			} else {
				r.end()
			}
			time.Sleep(time.Duration(rnd.IntN(100)) * time.Minute)
		}
		for due, n := range complete {
			if n > 1 {
				t.Errorf("%v was done %d times", due, n)
			}
		}
		for due, n := range tries {
			if n > maxTries {
				t.Errorf("%v was tried %d times", due, n)
			}
		}
		if len(complete) < 200 {
			t.Errorf("only %d times were done", len(complete))
		}
		// Nothing is lost: between two runs that were tried lie only times that a run made up or that overlapped.
		accounted := len(tries)
		for _, e := range r.events {
			switch e.Kind {
			case Overlapped:
				accounted += e.Count
			case Started:
				accounted += e.Run.Missed
			}
		}
		var first, last time.Time
		for due := range tries {
			if first.IsZero() || due.Before(first) {
				first = due
			}
			if due.After(last) {
				last = due
			}
		}
		if hours := int(last.Sub(first)/time.Hour) + 1; accounted < hours {
			t.Errorf("%d of %d times are accounted for", accounted, hours)
		}
	})
}

// TestToldToEndAfterItsWork: a run that was told to end when its work was done already is not done again, by this process's
// successor neither.
func TestToldToEndAfterItsWork(t *testing.T) {
	bubble(t, func(r *rig) {
		job := Job{Name: "b", When: always(parse(t, "0 4 * * *")), Run: takes(2 * time.Hour), Finished: func(context.Context, Run) (bool, error) { return true, nil }}
		r.start(job)
		hours(5)
		r.end()
		r.want("b changed 0 4 * * *", "b started 1 Jan 04:00", "b ended 1 Jan 04:00 interrupted")
		r.start(job)
		hours(12)
		r.want("b recovered 1 Jan 04:00 done")
		r.end()
		r.start(job)
		hours(12) // 2 Jan 05:00
		r.want("b started 2 Jan 04:00")
		r.end()
	})
}

// TestNotedLater: how a run went is known, and noted as soon as it can be, when the disk was full at its end.
func TestNotedLater(t *testing.T) {
	bubble(t, func(r *rig) {
		job := Job{Name: "b", When: always(parse(t, "0 4 * * *")), Run: func(ctx context.Context, run Run) error {
			return errors.Join(takes(time.Hour)(ctx, run), errors.New("no space"))
		}}
		r.start(job)
		hours(4.5)
		r.store.fails = errors.New("disk full")
		hours(1)
		if last := r.status()[0].Last; last.Outcome != Failed || last.Ended.IsZero() {
			t.Errorf("%+v", last)
		}
		r.store.fails = nil
		hours(1)
		r.end()
		r.want("b changed 0 4 * * *", "b started 1 Jan 04:00", "b problem what is done can't be noted, so nothing is begun: disk full", "b ended 1 Jan 04:00 failed")
		r.start(job)
		hours(12)
		r.want() // a run that failed is not made up
		r.end()
	})
}

// TestClockAhead: what was owed by a clock that was a year ahead is done when the clock is right, and does not wait for that year.
func TestClockAhead(t *testing.T) {
	bubble(t, func(r *rig) {
		var shift atomic.Int64
		shift.Store(int64(365 * 24 * time.Hour))
		busy := atomic.Bool{}
		busy.Store(true)
		ctx, cancel := context.WithCancel(context.Background())
		starts := 0
		l := NewLoop(Options{Store: r.store, Tick: time.Minute, NewID: func() string { return "x" }, Now: func() time.Time { return time.Now().Add(time.Duration(shift.Load())) },
			Events: func(e Event) {
				if e.Kind == Started {
					starts++
				}
				if run := e.Run; run.Started != run.Started.Round(0) {
					t.Error("a moment that does not follow the clock when it is set")
				}
			},
			Jobs: []Job{{Name: "b", When: always(parse(t, "0 4 * * *")), Run: func(context.Context, Run) error {
				if busy.Load() {
					return Later(errors.New("in use"))
				}
				return nil
			}}}})
		done := make(chan error)
		go func() { done <- l.Run(ctx) }()
		hours(4.2)
		if starts == 0 {
			t.Error("it did not start")
		}
		starts = 0
		shift.Store(0)
		busy.Store(false)
		hours(1)
		if starts != 1 {
			t.Errorf("%d starts in the hour after the clock was set right", starts)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
