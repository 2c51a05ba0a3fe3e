package cli

import (
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"holdfast/internal/engine"
)

// listener turns events into the progress line, log lines and the list of warnings.
type listener struct {
	env    *Env
	json   bool // one JSON object a line on standard error instead of the progress line
	quiet  bool // nothing at all
	logs   func(line string)
	pgLogs func(line string) // of what is done to PostgreSQL; may be nil
	killAt string            // a step, "verb:name", at which the process dies; for tests
	stopAt string            // a step at which the process stops until it gets SIGCONT; for tests

	total, moved atomic.Int64
	began        atomic.Int64 // Unix nanoseconds
	files        atomic.Int64 // complete since the last step

	mu       sync.Mutex
	step     string
	warnings []string
	last     time.Time
	shown    bool
	seen     map[string]int // steps and how often each has come; for tests
}

// newListener listens for one command. Tests that die at a step set HOLDFAST_TEST_KILL_AT=verb:name, those that change the
// world at a step HOLDFAST_TEST_STOP_AT=verb:name. verb:file-N is when N files of a step are complete; verb:name#N is the Nth
// time that there is such a step, with several clusters.
func newListener(env *Env, json bool, logs func(string)) *listener {
	if logs == nil {
		logs = func(string) {}
	}
	return &listener{env: env, json: json, logs: logs, killAt: env.Getenv("HOLDFAST_TEST_KILL_AT"), stopAt: env.Getenv("HOLDFAST_TEST_STOP_AT")}
}

func (l *listener) on(e engine.Event) {
	switch e := e.(type) {
	case engine.Moved:
		l.moved.Add(e.Bytes)
		l.draw(false)
	case engine.Amount:
		l.total.Store(e.Bytes)
		l.moved.Store(0)
		l.began.Store(l.env.Now().UnixNano())
		l.logs(e.String())
		l.line(progressLine{Event: "amount", Verb: e.Verb, Files: e.Files, Total: e.Bytes})
	case engine.Step:
		l.onStep(e)
	case engine.FileDone:
		if n := l.files.Add(1); l.killAt != "" || l.stopAt != "" {
			l.at(fmt.Sprintf("%s:file-%d", e.Verb, n))
		}
	case engine.Warning:
		l.mu.Lock()
		l.warnings = append(l.warnings, e.Text)
		l.clear()
		l.mu.Unlock()
		l.logs(e.String())
		if l.pgLogs != nil {
			l.pgLogs(e.String())
		}
		l.line(progressLine{Event: "warning", Text: e.Text})
		if !l.quiet && !l.json {
			fmt.Fprintln(l.env.Stderr, e)
		}
	}
}

func (l *listener) onStep(e engine.Step) {
	l.logs(e.String())
	if l.pgLogs != nil && pgVerb(e.Verb) {
		l.pgLogs(e.String())
	}
	l.mu.Lock()
	l.step = e.Verb + " " + e.Name
	l.total.Store(0)
	l.mu.Unlock()
	l.line(progressLine{Event: "step", Verb: e.Verb, Name: e.Name, Detail: e.Detail})
	l.files.Store(0)
	l.at(e.Verb + ":" + e.Name)
	l.draw(true)
}

// at is where a test may want the process to die or to stand still.
func (l *listener) at(step string) {
	if l.killAt == "" && l.stopAt == "" {
		return
	}
	l.mu.Lock()
	if l.seen == nil {
		l.seen = map[string]int{}
	}
	l.seen[step]++
	nth := fmt.Sprintf("%s#%d", step, l.seen[step])
	l.mu.Unlock()
	switch {
	case step == l.killAt || nth == l.killAt:
		l.env.Kill()
	case step == l.stopAt || nth == l.stopAt:
		l.env.Stop()
	}
}

// draw rewrites the progress line, at most five times a second.
func (l *listener) draw(now bool) {
	if l.json && !now {
		l.drawJSON()
		return
	}
	if l.quiet || l.json || !l.env.Terminal {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	t := l.env.Now()
	if !now && t.Sub(l.last) < 200*time.Millisecond {
		return
	}
	l.last, l.shown = t, true
	line := l.step
	if total := l.total.Load(); total > 0 {
		moved := l.moved.Load()
		line += fmt.Sprintf("  %s of %s", engine.Size(moved), engine.Size(total))
		if secs := t.Sub(time.Unix(0, l.began.Load())).Seconds(); secs > 0.5 && moved > 0 {
			rate := float64(moved) / secs
			left := time.Duration(float64(max(total-moved, 0)) / rate * float64(time.Second)).Round(time.Second)
			line += fmt.Sprintf("  %s/s  %s left", engine.Size(int64(rate)), left)
		}
	}
	fmt.Fprintf(l.env.Stderr, "\r\x1b[K%s", line)
}

// progressLine is one line of JSON on standard error. The result of the command is on standard output.
type progressLine struct {
	Time    string  `json:"time"`  // RFC 3339, UTC
	Event   string  `json:"event"` // step, amount, progress, warning
	Verb    string  `json:"verb,omitempty"`
	Name    string  `json:"name,omitempty"`
	Detail  string  `json:"detail,omitempty"`
	Text    string  `json:"text,omitempty"`
	Files   int     `json:"files,omitempty"`
	Moved   int64   `json:"moved_bytes,omitempty"`
	Total   int64   `json:"total_bytes,omitempty"`
	PerSec  float64 `json:"bytes_per_second,omitempty"`
	Seconds float64 `json:"seconds_left,omitempty"`
}

// line writes one line of JSON, if that is what was asked for.
func (l *listener) line(p progressLine) {
	if !l.json || l.quiet {
		return
	}
	p.Time = l.env.Now().UTC().Format(time.RFC3339Nano)
	b, err := json.Marshal(p)
	if err != nil {
		return // a struct of texts and numbers
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.env.Stderr, "%s\n", b)
}

// drawJSON reports how far the work is, at most once a second.
func (l *listener) drawJSON() {
	total, moved := l.total.Load(), l.moved.Load()
	l.mu.Lock()
	t := l.env.Now()
	due := total > 0 && t.Sub(l.last) >= time.Second
	if due {
		l.last = t
	}
	l.mu.Unlock()
	if !due {
		return
	}
	p := progressLine{Event: "progress", Moved: moved, Total: total}
	if secs := t.Sub(time.Unix(0, l.began.Load())).Seconds(); secs > 0 && moved > 0 {
		p.PerSec = math.Round(float64(moved) / secs)
		p.Seconds = math.Round(float64(max(total-moved, 0))/(float64(moved)/secs)*10) / 10
	}
	l.line(p)
}

// clear takes the progress line away; l.mu is held.
func (l *listener) clear() {
	if l.shown {
		fmt.Fprint(l.env.Stderr, "\r\x1b[K")
		l.shown = false
	}
}

// done ends the progress line and returns the warnings.
func (l *listener) done() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clear()
	return l.warnings
}

// table prints rows in columns, the first row as the head.
func table(rows [][]string) string {
	var width []int
	for _, r := range rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(c))
		}
	}
	var b strings.Builder
	for _, r := range rows {
		for i, c := range r {
			if i == len(r)-1 {
				b.WriteString(c)
				break
			}
			fmt.Fprintf(&b, "%-*s  ", width[i], c)
		}
		b.WriteString("\n")
	}
	return b.String()
}
