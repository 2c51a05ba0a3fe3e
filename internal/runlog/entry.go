package runlog

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Level is how much an entry matters.
type Level string

// Levels, from the least.
const (
	Info    Level = "info"
	Warning Level = "warning"
	Error   Level = "error"
)

// Levels lists them in order.
func Levels() []Level { return []Level{Info, Warning, Error} }

// AtLeast reports whether l matters as much as m.
func (l Level) AtLeast(m Level) bool { return l.rank() >= m.rank() }

func (l Level) rank() int {
	for i, k := range Levels() {
		if k == l {
			return i
		}
	}
	return 0
}

// Event is what an entry means for its run.
type Event string

const (
	Begin Event = "begin"
	End   Event = "end"
)

// Outcomes of an End, besides those of package schedule, which the log has as it says them.
const (
	Done        = "done"
	Warned      = "warnings" // the work is done, and something needs attention
	Failed      = "failed"
	Interrupted = "interrupted"
)

// Entry is one line of a log.
type Entry struct {
	Time    time.Time `json:"time"` // UTC, to the millisecond
	Run     string    `json:"run"`  // "<pid>-<8 hex>"; empty: it can't be told
	Level   Level     `json:"level"`
	Verb    string    `json:"verb,omitempty"`
	Event   Event     `json:"event,omitempty"`
	Outcome string    `json:"outcome,omitempty"` // of an End
	Set     string    `json:"set,omitempty"`     // the set that the run made, where the text says so
	Text    string    `json:"text"`
}

const timeLayout = "2006-01-02T15:04:05.000Z"

// New makes an entry of what a run has to say: one line, whatever the text holds.
func New(at time.Time, run, text string) Entry {
	e := Entry{Time: at.UTC().Truncate(time.Millisecond), Run: run, Level: Info, Text: oneLine(text)}
	e.read()
	return e
}

// oneLine makes one printable line of a text: a log has one entry a line, and a terminal shows it.
func oneLine(text string) string {
	text = strings.ReplaceAll(strings.TrimRight(text, "\r\n"), "\n", "; ")
	return printable(text)
}

func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError {
			return '?'
		}
		if unicode.IsPrint(r) || r == '\t' {
			return r
		}
		return '?'
	}, text)
}

// Line is the entry for people, with its line break.
func (e Entry) Line() string {
	return e.Time.UTC().Format(timeLayout) + " " + e.Run + " " + e.Text + "\n"
}

// JSON is the entry for programs, with its line break.
func (e Entry) JSON() []byte {
	b, err := json.Marshal(struct {
		Time string `json:"time"`
		plain
	}{e.Time.UTC().Format(timeLayout), plain(e)})
	if err != nil { // texts only
		return fmt.Appendf(nil, "{\"text\":%q}\n", err)
	}
	return append(b, '\n')
}

// plain is an Entry whose time JSON writes itself.
type plain Entry

// Parse reads one line as Line writes it, without its line break. false: it is none, but perhaps the rest of the one before.
func Parse(line string) (Entry, bool) {
	stamp, rest, _ := strings.Cut(line, " ")
	at, err := time.Parse(timeLayout, stamp)
	if err != nil {
		return Entry{}, false
	}
	run, text, found := strings.Cut(rest, " ")
	if !found || run == "" {
		return Entry{}, false
	}
	return New(at, printable(run), text), true
}

// read finds what the text says.
func (e *Entry) read() {
	text := e.Text
	if rest, ok := strings.CutPrefix(text, "warning: "); ok {
		e.Level = Warning
		text = rest
	}
	verb, rest, found := strings.Cut(text, ": ")
	if !found || !isVerb(verb) {
		return
	}
	e.Verb = verb
	if e.Level == Warning {
		return
	}
	switch {
	case verb == "schedule":
		e.readSchedule(rest)
	case verb == "daemon" && rest == "ended":
		e.Event, e.Outcome = End, Done
	case verb == "daemon" && strings.HasPrefix(rest, "Holdfast "):
		e.Event = Begin
	case verb == "backup" && strings.HasPrefix(rest, "set "): // what the daemon's job made
		e.Set = word(rest[len("set "):])
	case rest == "began":
		e.Event = Begin
	default:
		e.readEnd(rest)
	}
}

// readEnd reads how a verb ended: the texts of Ended.
func (e *Entry) readEnd(rest string) {
	how := ""
	for _, h := range []struct{ text, outcome string }{{"ended well", Done}, {"ended with warnings", Warned}, {"ended with an error", Failed}, {"was interrupted", Interrupted}} {
		if rest == h.text || strings.HasPrefix(rest, h.text+": ") {
			how, e.Outcome = h.text, h.outcome
		}
	}
	if how == "" {
		return
	}
	e.Event, e.Level = End, levelOf(e.Outcome)
	if e.Outcome == Done || e.Outcome == Warned {
		if after, ok := strings.CutPrefix(rest[len(how):], ": set "); ok {
			e.Set = word(after)
		}
	}
}

// readSchedule reads what the daemon says of a run: "JOB of TIME: started as run …", "JOB of TIME: run ID: OUTCOME…".
func (e *Entry) readSchedule(rest string) {
	job, rest, found := strings.Cut(rest, " of ")
	if !found || !isVerb(job) {
		return
	}
	_, rest, found = strings.Cut(rest, ": ")
	switch {
	case !found:
	case strings.HasPrefix(rest, "started as run "):
		e.Verb, e.Event = job, Begin
	case strings.HasPrefix(rest, "run "):
		_, outcome, found := strings.Cut(rest, ": ")
		if !found {
			return
		}
		e.Verb, e.Event, e.Outcome = job, End, word(outcome)
		e.Level = levelOf(e.Outcome)
	}
}

// levelOf is how much an outcome matters. "refused" is a time of the schedule that was passed over.
func levelOf(outcome string) Level {
	switch outcome {
	case Failed:
		return Error
	case Warned, Interrupted, "refused":
		return Warning
	}
	return Info
}

// Ended is the text of a verb's end. err decides how it ended; warned, that something needs attention all the same; set may be
// empty.
func Ended(verb string, err error, interrupted bool, warned int, set string) string {
	switch {
	case err != nil && interrupted:
		return verb + ": was interrupted: " + err.Error()
	case err != nil:
		return verb + ": ended with an error: " + err.Error()
	}
	text := verb + ": ended well"
	if warned > 0 {
		text = verb + ": ended with warnings"
	}
	if set != "" {
		text += ": set " + set
	}
	if warned > 0 {
		text += fmt.Sprintf(": %d", warned)
	}
	return text
}

// Began is the text of a verb's begin.
func Began(verb string) string { return verb + ": began" }

// isVerb tells "sets copy" and "backup_all" from the beginning of a sentence that has a colon.
func isVerb(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && r != '_' && r != '-' && r != ' ' {
			return false
		}
	}
	return s != "" && strings.Count(s, " ") <= 1
}

// word is the first word of s, up to a blank or a colon.
func word(s string) string {
	if i := strings.IndexAny(s, " :;"); i >= 0 {
		return s[:i]
	}
	return s
}
