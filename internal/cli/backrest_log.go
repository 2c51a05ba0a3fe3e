package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
)

// Levels of pgBackRest's log, in the order in which log-level-… lets them through.
const (
	logOff = iota
	logError
	logWarn
	logInfo
	logDetail
	logDebug
	logTrace
)

var logLevels = [...]string{"off", "error", "warn", "info", "detail", "debug", "trace"}

// logLevel is the level of that name.
func logLevel(name string) int {
	for i, n := range logLevels {
		if n == name {
			return i
		}
	}
	return logOff
}

// backrestLog writes what happens the way pgBackRest does: a message goes to standard error if log-level-stderr lets it
// through, else to standard output if log-level-console does, and in any case to the log file if log-level-file does.
type backrestLog struct {
	env                   *Env
	console, stderr, file int
	stamp                 bool

	dryRun bool   // every line says so
	fast   bool   // of a backup, for its first line
	first  func() // once, before the first step that changes something

	mu     sync.Mutex
	target *os.File // nil: no log file
	head   string   // goes before the first message in target
	broken bool     // the log file could not be written, and this was said
	warned []string // warnings so far: a plan and its run may say the same
}

// newBackrestLog is the log before any configuration is known.
func newBackrestLog(env *Env) *backrestLog {
	return &backrestLog{env: env, console: logWarn, stderr: logWarn, stamp: true}
}

// configure takes the levels of c and opens the log file. That it cannot be opened is a warning.
func (l *backrestLog) configure(c *backrest.Config) {
	l.console, l.stderr = logLevel(c.String("log-level-console", 0)), logLevel(c.String("log-level-stderr", 0))
	l.stamp = c.Bool("log-timestamp", 0)
	l.dryRun, l.fast = c.Bool("dry-run", 0), c.Bool("start-fast", 0)
	command := c.Command.String()
	if l.env.Getenv(asyncChild) != "" {
		command += "-async" // unlike the foreground, it has one
	} else if strings.Contains(withoutLogFile, " "+command+" ") {
		return
	}
	if l.file = logLevel(c.String("log-level-file", 0)); l.file == logOff {
		return
	}
	stanza := c.String("stanza", 0)
	if stanza == "" {
		stanza = "all"
	}
	name := filepath.Join(c.String("log-path", 0), stanza+"-"+command+".log")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		l.file = logOff
		l.at(logWarn, "unable to open log file '"+name+"': "+err.Error()+"\nNOTE: process will continue without log file.")
		return
	}
	l.target = f
	l.head = "-------------------PROCESS START-------------------\n"
	if info, err := f.Stat(); err == nil && info.Size() > 0 {
		l.head = "\n" + l.head
	}
}

// withoutLogFile are the commands that never have a log file.
const withoutLogFile = " annotate archive-get archive-push check help info manifest repo-get repo-ls server-ping version "

func (l *backrestLog) close() error {
	if l.target == nil {
		return nil
	}
	return l.target.Close()
}

// ownName names the command to run next by the name that we were run under, but for one that only we have.
var ownName = strings.NewReplacer("holdfast pg stanza-create --rebuild", "holdfast pg stanza-create --rebuild", "holdfast pg ", "pgbackrest ")

// at logs one message of a level; its further lines are indented below its first.
func (l *backrestLog) at(level int, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text = ownName.Replace(text)
	if prefix, rest, coded := strings.Cut(text, ": "); l.dryRun && coded && level == logError {
		text = prefix + ": [DRY-RUN] " + rest
	} else if l.dryRun {
		text = "[DRY-RUN] " + text
	}
	head := strings.ToUpper(logLevels[level]) + ": "
	long := "P00 " + strings.Repeat(" ", 8-len(head)) + head
	if l.stamp {
		long = l.env.Now().In(time.Local).Format("2006-01-02 15:04:05.000 ") + long
	}
	message := func(head string) string {
		return head + strings.ReplaceAll(text, "\n", "\n"+strings.Repeat(" ", len(head))) + "\n"
	}
	switch {
	case level <= l.stderr:
		fmt.Fprint(l.env.Stderr, message(head))
	case level <= l.console:
		fmt.Fprint(l.env.Stdout, message(long))
	}
	if level <= l.file && l.target != nil {
		l.write(message(long))
	}
}

func (l *backrestLog) write(text string) {
	text, l.head = l.head+text, ""
	if _, err := l.target.WriteString(text); err != nil && !l.broken {
		l.broken = true
		fmt.Fprintf(l.env.Stderr, "WARN: write log file: %v\n", err)
	}
}

func (l *backrestLog) logf(level int, format string, a ...any) {
	l.at(level, fmt.Sprintf(format, a...))
}

// warn logs a warning, once.
func (l *backrestLog) warn(text string) {
	l.mu.Lock()
	again := slices.Contains(l.warned, text)
	if !again {
		l.warned = append(l.warned, text)
	}
	l.mu.Unlock()
	if !again {
		l.at(logWarn, text)
	}
}

// on logs an event of the engine.
func (l *backrestLog) on(e engine.Event) {
	switch e := e.(type) {
	case engine.Warning:
		l.warn(e.Text)
	case engine.Step:
		l.onStep(e)
	case engine.FileDone:
		l.logf(logDetail, "%s file %s (%s) checksum %s", e.Verb, e.Name, engine.Size(e.Size), e.SHA1)
	case engine.Amount:
		l.at(logDetail, e.String())
	}
}

// onStep logs a step of the engine: in the original's words, where it has any for it.
func (l *backrestLog) onStep(e engine.Step) {
	if f := l.first; f != nil && e.Verb == "expire" {
		l.first = nil
		f()
	}
	level, text := logDetail, e.String()
	switch e.Verb + " " + e.Name {
	case "backup start":
		when := "the next regular checkpoint completes"
		if l.fast {
			when = "the requested immediate checkpoint completes"
		}
		level, text = logInfo, "execute non-exclusive backup start: backup begins after "+when
	case "backup started":
		level, text = logInfo, "backup start archive = "+e.Detail
	case "backup stopped":
		level, text = logInfo, "backup stop archive = "+e.Detail
	case "backup stop":
		level, text = logInfo, "execute non-exclusive backup stop and wait for all WAL segments to archive"
	case "backup standby":
		level, text = logInfo, "wait for replay on the standby to reach the start of the backup"
	case "backup wal":
		level, text = logInfo, "check archive for segment(s) "+strings.Replace(e.Detail, " to ", ":", 1)
	case "restore settings":
		if e.Detail != "none" && e.Detail != "preserve" {
			level, text = logInfo, "write updated postgresql.auto.conf"
		}
	case "restore control":
		level, text = logInfo, "restore global/pg_control (performed last to ensure aborted restores cannot be started)"
	default:
		if strings.HasPrefix(e.Verb, "archive-") { // a line for each segment is enough
			level = logDebug
		}
	}
	if own := e.String(); text != own { // by its own name as well, for whoever looks closely
		l.at(logDebug, own)
	}
	l.at(level, text)
}
