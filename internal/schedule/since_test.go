package schedule

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestWarned: a run that did its work with something to say is a good one, and says it.
func TestWarned(t *testing.T) {
	if Warn(nil) != nil {
		t.Error("a warning of nothing")
	}
	bubble(t, func(r *rig) {
		cause := errors.New("the script failed")
		r.start(Job{Name: "b", When: always(parse(t, "0 4 * * *")), Run: func(context.Context, Run) error { return Warn(cause) }})
		hours(24)
		r.want("b changed 0 4 * * *", "b started 1 Jan 04:00", "b ended 1 Jan 04:00 warnings")
		s := r.status()[0]
		if s.Good == nil || s.Good.Outcome != Warned || s.Good.Error != cause.Error() || s.Last.ID != s.Good.ID {
			t.Errorf("%+v", s.Good)
		}
	})
}

// TestSince: when a job was switched on stays known through new times and new processes, until it is switched off.
func TestSince(t *testing.T) {
	bubble(t, func(r *rig) {
		spec := parse(t, "0 4 * * *")
		job := Job{Name: "b", When: func() (Spec, error) { return spec, nil }, Run: takes(0)}
		began := time.Now()
		since := func(want time.Time) {
			t.Helper()
			if got := r.status()[0].Since; !got.Equal(want) {
				t.Errorf("since %v, want %v", got, want)
			}
		}
		r.start(job)
		hours(1)
		since(began)
		spec = Every(time.Hour)
		hours(1)
		since(began)
		r.end()
		hours(1)
		r.start(job)
		hours(1)
		since(began)
		spec = Spec{}
		hours(1)
		since(time.Time{})
		spec = parse(t, "0 4 * * *")
		hours(1)
		if got := r.status()[0].Since; !got.After(began.Add(4 * time.Hour)) {
			t.Errorf("since %v", got)
		}
		r.end()
		state, err := r.store.Load()
		if err != nil {
			t.Fatal(err)
		}
		j := state.Jobs["b"]
		j.Since = time.Time{} // as an earlier version left it
		state.Jobs["b"] = j
		if err := r.store.Save(state); err != nil {
			t.Fatal(err)
		}
		again := time.Now()
		r.start(job)
		hours(1)
		since(again)
		r.events = nil
	})
}
