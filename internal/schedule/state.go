package schedule

import "time"

// Outcome is how a run ended.
type Outcome string

const (
	Done        Outcome = "done"
	Warned      Outcome = "warnings" // the run did its work, and something needs attention
	Failed      Outcome = "failed"
	Interrupted Outcome = "interrupted" // the process died, or was told to end
	Yielded     Outcome = "yielded"     // ended for a job that does not wait
	Waiting     Outcome = "waiting"     // what it needs is in use; it is tried again
	Refused     Outcome = "refused"     // what it needs is in use by its own like; this time is passed over
)

// Run is one run of a job.
type Run struct {
	ID      string    `json:"id"`
	Due     time.Time `json:"due"`
	Missed  int       `json:"missed,omitempty"` // earlier times that this run makes up, at most maxMissed are counted
	Try     int       `json:"try"`              // 1, or 2 when it makes up an interrupted run
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"` // zero: it goes on, or its process died
	Outcome Outcome   `json:"outcome,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// JobState is what is known of one job.
type JobState struct {
	Spec    string    `json:"spec"`           // by which Settled was reckoned
	Since   time.Time `json:"since,omitzero"` // when the job was switched on; zero: it is off, or that is not known
	Settled time.Time `json:"settled"`        // every time up to this one has been dealt with
	Owed    *Run      `json:"owed,omitempty"` // a time that was not, although Settled is past it: Due, Missed and Try of it
	Last    *Run      `json:"last,omitempty"` // the run that was started last
	Good    *Run      `json:"good,omitempty"` // the last one that did its work
}

// State is what a Loop keeps, by the names of jobs.
type State struct {
	Jobs map[string]JobState `json:"jobs"`
}

// Store keeps a State. Save must be durable: when it has returned, what was saved survives a power cut.
type Store interface {
	Load() (State, error) // the zero State before the first Save
	Save(State) error
}

// maxMissed bounds the counting of missed times.
const maxMissed = 1000

// maxTries is how often one time is tried: a run that takes the host down with it must not do so for ever.
const maxTries = 2

// backwards is how far the clock may be set back without a time happening twice. Farther than that it was wrong before.
const backwards = time.Hour

// owe notes a time that is still to be dealt with; the latest one stands for all.
func (j *JobState) owe(r Run) {
	if j.Owed != nil {
		r.Missed += j.Owed.Missed + 1
	}
	j.Owed = &Run{Due: r.Due, Missed: min(r.Missed, maxMissed), Try: max(r.Try, 1)}
}

// passed moves Settled over the times up to now and returns the last of them and how many there were; n = 0: none.
func (j *JobState) passed(s Spec, now time.Time) (last time.Time, n int) {
	for t := s.Next(j.Settled); !t.IsZero() && !t.After(now); t = s.Next(t) {
		last = t
		if n++; n == maxMissed { // nobody needs to know how many more
			j.Settled = now
			return last, n
		}
	}
	if n > 0 {
		j.Settled = last
	}
	return last, n
}

// turn is what is owed or has come by now; nil: nothing. A span is not made up: it begins anew when the run has ended.
func (j *JobState) turn(s Spec, now time.Time) *Run {
	if s.every > 0 {
		if j.Settled.Add(s.every).After(now) {
			return nil
		}
		r := &Run{Due: j.Settled.Add(s.every), Try: 1}
		j.Settled, j.Owed = now, nil
		return r
	}
	if last, n := j.passed(s, now); n > 0 {
		j.owe(Run{Due: last, Missed: n - 1})
	}
	r := j.Owed
	j.Owed = nil
	return r
}

// adopt takes a Spec over. What the old one owed up to now stays owed; the new one counts from now on. A span begins with
// a run.
func (j *JobState) adopt(s Spec, now time.Time) {
	old, err := Parse(j.Spec)
	switch {
	case s.Never() || s.every > 0 || err != nil || old.Never():
		j.Owed = nil
	case !j.Settled.IsZero() && old.every == 0:
		if last, n := j.passed(old, now); n > 0 {
			j.owe(Run{Due: last, Missed: n - 1})
		}
	}
	switch {
	case s.Never():
		j.Since = time.Time{}
	case j.Since.IsZero() || err != nil || old.Never():
		j.Since = now
	}
	j.Spec, j.Settled = s.String(), now.Add(-s.every)
}

// Next is when the job is to run next by the Spec: a time that is not after now is owed, and due as soon as it can be. The zero time: never.
func (j JobState) Next(s Spec) time.Time {
	if j.Owed != nil && !s.Never() {
		return j.Owed.Due
	}
	return s.Next(j.Settled)
}

// ended notes how a run ended and what is owed because of that.
func (j *JobState) ended(r Run) {
	last := r
	j.Last = &last
	if r.Outcome == Done || r.Outcome == Warned {
		j.Good = &last
	}
	spec, err := Parse(j.Spec)
	span := err == nil && spec.every > 0
	switch {
	case r.Outcome == Waiting, r.Outcome == Yielded:
		if span {
			j.Settled = r.Due.Add(-spec.every)
		} else {
			j.owe(r)
		}
	case span:
		j.Settled = r.Ended
	case r.Outcome == Interrupted && r.Try < maxTries:
		r.Try++
		j.owe(r)
	}
}
