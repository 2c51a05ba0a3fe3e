package runlog

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"
)

// Run is one run as the log tells it.
type Run struct {
	ID       string    `json:"id"`
	Verb     string    `json:"verb"`
	Began    time.Time `json:"began"`
	Last     time.Time `json:"last"`              // of its last line
	Ended    bool      `json:"ended"`             // false: it goes on, or its process died
	Outcome  string    `json:"outcome,omitempty"` // empty while it has not ended
	Error    string    `json:"error,omitempty"`
	Warnings int       `json:"warnings"` // lines of this level
	Set      string    `json:"set,omitempty"`

	said bool // the verb was said by its begin or end
	own  bool // and by the verb itself, not by the schedule
}

// Duration is from the first line to the last.
func (r *Run) Duration() time.Duration { return r.Last.Sub(r.Began) }

// Runs are the runs that began at since or later and that want accepts (nil: all), newest first, at most n.
func (l Log) Runs(ctx context.Context, since time.Time, n int, want func(*Run) bool) ([]Run, error) {
	c := collector{runs: map[string]*Run{}, max: 2*n + runsSlack, want: want}
	if err := l.Scan(ctx, since, c.add); err != nil {
		return nil, err
	}
	all := c.sorted()
	all = slices.DeleteFunc(all, func(r *Run) bool { return want != nil && !want(r) })
	out := make([]Run, 0, min(n, len(all)))
	for _, r := range all[:min(n, len(all))] {
		out = append(out, *r)
	}
	return out, nil
}

// runsSlack is how many runs more than asked for are kept while reading: a run is known only when its last line is.
const runsSlack = 256

// collector puts entries together to runs, and forgets the oldest when there are too many.
type collector struct {
	runs map[string]*Run
	max  int
	want func(*Run) bool
}

func (c *collector) add(e Entry) error {
	if e.Run == "" {
		return nil
	}
	r := c.runs[e.Run]
	if r == nil {
		if len(c.runs) >= c.max {
			c.forget()
		}
		r = &Run{ID: e.Run, Began: e.Time}
		c.runs[e.Run] = r
	}
	r.add(e)
	return nil
}

// forget makes room: first of what nobody asked for and has ended, then of the oldest.
func (c *collector) forget() {
	all := c.sorted()
	if c.want != nil {
		for _, r := range all {
			if r.Ended && !c.want(r) {
				delete(c.runs, r.ID)
			}
		}
	}
	for _, r := range all[min(len(all), c.max*3/4):] {
		delete(c.runs, r.ID)
	}
}

// sorted is what there is, newest first.
func (c *collector) sorted() []*Run {
	all := make([]*Run, 0, len(c.runs))
	for _, r := range c.runs {
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b *Run) int {
		return cmp.Or(b.Began.Compare(a.Began), strings.Compare(b.ID, a.ID))
	})
	return all
}

func (r *Run) add(e Entry) {
	if e.Time.After(r.Last) {
		r.Last = e.Time
	}
	if strings.HasPrefix(e.Text, "warning: ") {
		r.Warnings++
	}
	if e.Set != "" {
		r.Set = e.Set
	}
	scheduled := strings.HasPrefix(e.Text, "schedule: ")
	switch {
	case e.Event != "" && !r.own: // what the verb calls itself wins over the name of the daemon's job
		if !scheduled || !r.said {
			r.Verb, r.said, r.own = e.Verb, true, !scheduled
		}
	case r.Verb == "" && e.Verb != "" && e.Level != Warning:
		r.Verb = e.Verb
	}
	switch e.Event {
	case Begin:
		r.Ended, r.Outcome, r.Error = false, "", ""
	case End:
		if r.Ended && r.Outcome == Warned && e.Outcome == Done { // of the same end, and it says more
			return
		}
		r.Ended, r.Outcome, r.Error = true, e.Outcome, ""
		if _, why, found := strings.Cut(e.Text, e.endMark()); found && e.Outcome != Done && e.Outcome != Warned {
			r.Error = why
		}
	}
}

// endMark is what stands before the reason in the text of an End.
func (e Entry) endMark() string {
	switch {
	case strings.HasPrefix(e.Text, "schedule: "):
		return ": " + e.Outcome + ": "
	case e.Outcome == Interrupted:
		return ": was interrupted: "
	}
	return ": ended with an error: "
}
