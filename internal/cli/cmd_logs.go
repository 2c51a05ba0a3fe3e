package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/instance"
	"holdfast/internal/runlog"
)

// logsFlags are what holdfast logs takes.
type logsFlags struct {
	follow             bool
	level, since, verb string
	number             int
}

func (r *root) logsCommand() *cobra.Command {
	var f logsFlags
	c := &cobra.Command{Use: "logs [RUN]", Short: "list the runs that the log tells of, or print the lines of one", Args: cobra.MaximumNArgs(1),
		Long: `Without RUN: the newest runs, newest first. With RUN, the id of a run, the id of the set that it made, or last: the lines
of that run. With --follow and no RUN: the lines of every run as they are written. It reads alation_backup.log and the files
rotated away from it, compressed ones (.gz, .bz2) too.

With --json a list is one document; lines are one object a line, as in alation_backup.jsonl.`,
		RunE: func(cmd *cobra.Command, args []string) error { return r.logs(cmd.Context(), f, args) }}
	fl := c.Flags()
	fl.BoolVarP(&f.follow, "follow", "f", false, "go on as lines are written, until interrupted")
	fl.StringVar(&f.level, "level", "info", "only lines of this level or a higher one: info, warning, error")
	fl.StringVar(&f.since, "since", "", "only what is not older: a time YYYY-MM-DD HH:MM:SS[+zone], or how long ago: 90m, 36h, 7d")
	fl.StringVar(&f.verb, "verb", "", "only runs of this verb: backup_all, copy, restore, …; also for last")
	fl.IntVarP(&f.number, "number", "n", 30, "how many runs are listed at most")
	return c
}

// logs is the command.
func (r *root) logs(ctx context.Context, f logsFlags, args []string) error {
	level := runlog.Level(f.level)
	switch {
	case !validLevel(level):
		return &usageError{fmt.Sprintf("--level=%s: info, warning or error", f.level)}
	case f.number < 1 || f.number > 10000:
		return &usageError{fmt.Sprintf("--number=%d: from 1 to 10000", f.number)}
	case len(args) > 0 && args[0] == "":
		return &usageError{"an empty word stands where a run is expected"}
	}
	since, err := parseSince(f.since, r.env.Now())
	if err != nil {
		return err
	}
	in, err := openInstance(r.env, r.f.root)
	if err != nil {
		return err
	}
	v := &logView{env: r.env, json: r.f.json, in: in, level: level, since: since}
	v.log = runlog.Log{Path: logPath(in.LogDir()), Problem: v.problem}
	switch {
	case len(args) > 0:
		err = v.one(ctx, args[0], f)
	case f.follow:
		err = v.log.Follow(ctx, since, v.print)
	default:
		err = v.list(ctx, f)
	}
	if err == nil && v.problems > 0 {
		err = &warningsError{v.problems}
	}
	return err
}

func validLevel(l runlog.Level) bool {
	for _, k := range runlog.Levels() {
		if k == l {
			return true
		}
	}
	return false
}

// parseSince reads a time, or how long ago it was; the zero time for nothing.
func parseSince(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n >= 0 && n < 100000 {
			return now.Add(-time.Duration(n) * 24 * time.Hour), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.ParseInLocation("2006-01-02", text, time.Local); err == nil {
		return t, nil
	}
	t, err := engine.ParseTargetTime(text, time.Local)
	if err != nil {
		return t, &usageError{fmt.Sprintf("--since=%s is no time and no span: write 2026-11-27 04:00:00+00, 2026-11-27, 90m, 36h or 7d", text)}
	}
	return t, nil
}

// logView is one look at the log.
type logView struct {
	env   *Env
	json  bool
	in    *instance.Instance
	log   runlog.Log
	level runlog.Level
	since time.Time
	run   string // only lines of this run; empty: of all

	problems int
}

// problem says that a file can't be read; the others are.
func (v *logView) problem(err error) {
	v.problems++
	fmt.Fprintf(v.env.Stderr, "warning: %v\n", err)
}

// print prints one line, if it is asked for.
func (v *logView) print(e runlog.Entry) error {
	if v.run != "" && e.Run != v.run || !e.Level.AtLeast(v.level) {
		return nil
	}
	if v.json {
		_, err := v.env.Stdout.Write(e.JSON())
		return err
	}
	_, err := fmt.Fprint(v.env.Stdout, e.Line())
	return err
}

// one prints the lines of one run.
func (v *logView) one(ctx context.Context, name string, f logsFlags) error {
	run, err := v.find(ctx, name, f.verb)
	if err != nil {
		return err
	}
	v.run = run.ID
	since := v.since
	if since.Before(run.Began) {
		since = run.Began // whole days need not be read
	}
	if f.follow {
		return v.log.Follow(ctx, since, v.print)
	}
	return v.log.Scan(ctx, since, v.print)
}

// find finds a run by its id, by the set that it made, or the newest.
func (v *logView) find(ctx context.Context, name, verb string) (*runlog.Run, error) {
	want := func(r *runlog.Run) bool { return r.ID == name || r.Set == name }
	if name == "last" {
		want = func(r *runlog.Run) bool { return isVerb(r, verb) && (verb != "" || r.Verb != "daemon") }
	} else if run := v.runOfSet(ctx, name); run != "" {
		want = func(r *runlog.Run) bool { return r.ID == run }
	}
	runs, err := v.log.Runs(ctx, time.Time{}, 1, want)
	switch {
	case err != nil:
		return nil, err
	case len(runs) > 0:
		return &runs[0], nil
	case name == "last" && verb != "":
		return nil, &usageError{fmt.Sprintf("the log %s tells of no run of %s", v.log.Path, verb)}
	case name == "last":
		return nil, &usageError{fmt.Sprintf("the log %s tells of no run yet", v.log.Path)}
	}
	return nil, &usageError{fmt.Sprintf("the log %s and what was rotated away from it tell of no run or set %s; see: holdfast logs", v.log.Path, name)}
}

// isVerb reports whether a run is of a verb; empty: of any. backup is the daemon's name for backup_all.
func isVerb(r *runlog.Run, verb string) bool {
	return verb == "" || r.Verb == verb || verb == "backup_all" && r.Verb == "backup" || verb == "backup" && r.Verb == "backup_all"
}

// runOfSet is the run that the catalogue names for a set; empty: it has none of that name.
func (v *logView) runOfSet(ctx context.Context, id string) string {
	if catalog.CheckID(id) != nil {
		return ""
	}
	st, err := openPosix(v.in.CatalogDir(), nil)
	if err != nil {
		return ""
	}
	set, err := catalog.NewStore(st).Get(ctx, id)
	if err != nil {
		return "" // the log may know it
	}
	return set.Run
}

// runRow is one run as --json lists it.
type runRow struct {
	runlog.Run
	Seconds float64 `json:"seconds"`
}

// list prints the newest runs.
func (v *logView) list(ctx context.Context, f logsFlags) error {
	want := func(r *runlog.Run) bool {
		return isVerb(r, f.verb) && (v.level == runlog.Info || levelOf(r).AtLeast(v.level)) && !r.Began.Before(v.since)
	}
	runs, err := v.log.Runs(ctx, v.since, f.number, want)
	if err != nil {
		return err
	}
	working := v.working()
	rows := []runRow{}
	for _, r := range runs {
		if !r.Ended {
			r.Outcome = runlog.Interrupted
			if working[r.ID] {
				r.Outcome, r.Last = "running", v.env.Now().UTC()
			}
		}
		rows = append(rows, runRow{r, r.Duration().Seconds()})
	}
	if v.json {
		return v.env.printJSON(rows)
	}
	text := [][]string{{"RUN", "VERB", "BEGAN", "TOOK", "OUTCOME", "SET", "ERROR"}}
	for _, r := range rows {
		outcome := r.Outcome
		if r.Warnings > 0 && outcome == runlog.Done {
			outcome = runlog.Warned
		}
		text = append(text, []string{r.ID, dash(r.Verb), r.Began.Format("2006-01-02 15:04:05 MST"), r.Duration().Round(time.Second).String(), outcome, dash(r.Set), cut(r.Error)})
	}
	_, err = fmt.Fprint(v.env.Stdout, table(text))
	return err
}

// levelOf is how much a run matters.
func levelOf(r *runlog.Run) runlog.Level {
	switch {
	case r.Outcome == runlog.Failed:
		return runlog.Error
	case r.Warnings > 0 || !r.Ended || r.Outcome != runlog.Done:
		return runlog.Warning
	}
	return runlog.Info
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// errorWidth bounds an error in a table, in characters.
const errorWidth = 100

func cut(s string) string {
	if r := []rune(s); len(r) > errorWidth {
		return string(r[:errorWidth-1]) + "…"
	}
	return s
}

// working are the runs that hold the instance, and the daemon: what their lock files say, if that process is there. The locks
// themselves are not touched: who looks must not be in the way.
func (v *logView) working() map[string]bool {
	found := map[string]bool{}
	for _, name := range []string{instanceLock(v.in), daemonLock(v.in)} {
		b, err := os.ReadFile(name)
		var h struct {
			Exec string `json:"exec"`
			PID  int    `json:"pid"`
			Run  string `json:"run"`
		}
		if err != nil || json.Unmarshal(b, &h) != nil {
			continue
		}
		id := h.Exec
		if id == "" {
			id = h.Run
		}
		pid, _, _ := strings.Cut(id, "-")
		if n, err := strconv.Atoi(pid); err == nil && alive(n) {
			found[id] = true
		}
	}
	return found
}

// alive reports whether there is a process of that number.
func alive(pid int) bool {
	err := unix.Kill(pid, 0)
	return pid > 0 && (err == nil || errors.Is(err, unix.EPERM))
}
