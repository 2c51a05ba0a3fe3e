package engine

import "fmt"

// Event is one fact about a running job. Listeners (progress line, log, metrics, history) switch on the type.
type Event interface{ String() string }

// Step says that a job enters its next named step. The names are stable: logs, tests that kill the program and the manual
// use them.
type Step struct {
	Verb   string // "backup", "restore", …
	Name   string // "start", "copy", "stop", "wal", "publish", …
	Detail string
}

func (e Step) String() string {
	if e.Detail == "" {
		return e.Verb + ": " + e.Name
	}
	return e.Verb + ": " + e.Name + ": " + e.Detail
}

// Amount announces how much a job is going to move, in original bytes.
type Amount struct {
	Verb  string
	Files int
	Bytes int64
}

func (e Amount) String() string {
	return fmt.Sprintf("%s: %d files, %d bytes", e.Verb, e.Files, e.Bytes)
}

// Moved says that n more original bytes went through.
type Moved struct{ Bytes int64 }

func (e Moved) String() string { return fmt.Sprintf("moved %d bytes", e.Bytes) }

// FileDone says that one file is complete.
type FileDone struct {
	Verb     string
	Name     string
	Size     int64 // original bytes
	RepoSize int64 // stored bytes
	SHA1     string
}

func (e FileDone) String() string { return fmt.Sprintf("%s: %s (%d bytes)", e.Verb, e.Name, e.Size) }

// Warning is something that the operator should know and that did not stop the job.
type Warning struct{ Text string }

func (e Warning) String() string { return "warning: " + e.Text }

func (s *Stanza) step(verb, name, detail string) { s.o.Events(Step{verb, name, detail}) }
func (s *Stanza) warn(format string, a ...any)   { s.o.Events(Warning{fmt.Sprintf(format, a...)}) }
