package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/conf"
	"holdfast/internal/instance"
	"holdfast/internal/schedule"
)

func (r *root) scheduleCommand() *cobra.Command {
	c := &cobra.Command{Use: "schedule", Short: "when backups run by themselves: show, next, run, cron"}
	c.AddCommand(r.scheduleShow(), r.scheduleNext(), r.scheduleRun(), r.scheduleCron())
	return group(c)
}

// scheduled opens what the schedule's commands need: the instance and its parameters.
func (r *root) scheduled() (*instance.Instance, *conf.Values, error) {
	in, err := openInstance(r.env, r.f.root)
	if err != nil {
		return nil, nil, err
	}
	st, err := store(in)
	if err != nil {
		return nil, nil, err
	}
	v, err := st.Load()
	return in, v, err
}

// scheduleView is what schedule show prints.
type scheduleView struct {
	Enabled  bool          `json:"enabled"` // snapshot.enabled
	Times    string        `json:"times"`   // as package schedule reads them
	Daemon   *daemonInfo   `json:"daemon"`
	Unit     string        `json:"unit,omitempty"` // systemd's, if it is enabled
	Jobs     []jobView     `json:"jobs"`
	Cron     []foundInCron `json:"cron"`
	Unseen   bool          `json:"root_crontab_unseen,omitempty"` // who asks may not read root's crontab, where the line would be
	Warnings []string      `json:"warnings"`
}

type jobView struct {
	Name  string        `json:"name"`
	Times string        `json:"times"`
	Next  time.Time     `json:"next,omitzero"` // not after now: it is owed, and done as soon as it can be
	Last  *schedule.Run `json:"last,omitempty"`
}

type foundInCron struct {
	File string `json:"file"` // empty: the user's crontab
	instance.CronEntry
}

// view collects everything, and what is wrong with it.
func (r *root) view(ctx context.Context) (*scheduleView, error) {
	in, values, err := r.scheduled()
	if err != nil {
		return nil, err
	}
	return r.viewOf(ctx, in, values)
}

func (r *root) viewOf(ctx context.Context, in *instance.Instance, values *conf.Values) (*scheduleView, error) {
	var err error
	v := &scheduleView{Enabled: values.Bool(conf.KeySnapshotEnabled), Times: backupTimes(values), Cron: []foundInCron{}, Warnings: []string{}}
	if v.Daemon, err = runningDaemon(in); err != nil {
		return nil, err
	}
	if unit := in.UnitName(); unitEnabled(unit) {
		v.Unit = unit
	}
	file, err := newStateFile(in)
	if err != nil {
		return nil, err
	}
	state, err := file.Load()
	if err != nil {
		v.Warnings = append(v.Warnings, err.Error())
	}
	for _, name := range []string{jobBackup, jobCopy, jobVerify, jobLogs} {
		spec, err := jobSpec(values, name)
		if err != nil {
			return nil, err
		}
		j := jobView{Name: name, Times: spec.String(), Last: state.Jobs[name].Last}
		if v.Daemon != nil {
			j.Next = nextRun(state.Jobs[name], spec, r.env.Now())
		}
		v.Jobs = append(v.Jobs, j)
	}
	v.Unseen = cronUnseen(in.Dir(), os.Geteuid())
	if err := r.lookAtCron(ctx, in, v); err != nil {
		v.Warnings = append(v.Warnings, err.Error())
	}
	v.bothOrNeither()
	return v, nil
}

// nextRun is when a job runs next: a time that is owed is not after now. What was noted of another Spec says nothing of this one.
func nextRun(j schedule.JobState, spec schedule.Spec, now time.Time) time.Time {
	if j.Spec == spec.String() && !j.Settled.IsZero() && !j.Settled.After(now) {
		return j.Next(spec)
	}
	return spec.Next(now)
}

// cronUnseen reports whether the crontab that uid may read is not the one in which the instance's line would be: an instance that is
// root's is backed up from root's.
func cronUnseen(dir string, uid int) bool {
	info, err := os.Stat(dir)
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && st.Uid == 0 && uid != 0
}

// lookAtCron finds the lines of cron that back the instance up.
func (r *root) lookAtCron(ctx context.Context, in *instance.Instance, v *scheduleView) error {
	tab := crontab{r.env}
	text, err := tab.read(ctx)
	if errors.Is(err, errNoCron) {
		err = nil
	}
	for _, e := range in.CronEntries(text) {
		v.Cron = append(v.Cron, foundInCron{"", e})
	}
	system := systemCrontabs(in)
	for name, entries := range system {
		for _, e := range entries {
			v.Cron = append(v.Cron, foundInCron{name, e})
		}
	}
	slices.SortStableFunc(v.Cron, func(a, b foundInCron) int { return strings.Compare(a.File, b.File) })
	for i := range v.Cron {
		e := &v.Cron[i]
		e.Problems = tab.cronProblems(ctx, e.CronEntry)
		for _, p := range e.Problems {
			v.Warnings = append(v.Warnings, fmt.Sprintf("the line of cron does not work: %s; holdfast schedule cron --install writes one that does: %s", p, e.Text))
		}
	}
	return err
}

// bothOrNeither warns when backups would run twice, or not at all.
func (v *scheduleView) bothOrNeither() {
	daemon := v.Daemon != nil || v.Unit != ""
	switch {
	case v.Enabled && daemon && len(v.Cron) > 0:
		v.Warnings = append(v.Warnings, "backups run twice, by the daemon and by cron: take the line out with holdfast schedule cron --remove, or switch the daemon's schedule off with alation_conf snapshot.enabled -s False")
	case len(v.Cron) > 1:
		v.Warnings = append(v.Warnings, fmt.Sprintf("cron has %d lines that back this instance up: holdfast schedule cron --install leaves one", len(v.Cron)))
	case len(v.Cron) > 0:
	case v.Unseen && !(v.Enabled && daemon):
		v.Warnings = append(v.Warnings, "whether cron has a line for it can't be told: it would be in root's crontab, which this user may not read; see: sudo holdfast schedule show")
	case v.Enabled && v.Daemon == nil && v.Unit != "":
		v.Warnings = append(v.Warnings, fmt.Sprintf("no backup runs by itself: %s is enabled, but no daemon is running: systemctl status %[1]s", v.Unit))
	case !v.Enabled:
		v.Warnings = append(v.Warnings, "no backup runs by itself: snapshot.enabled is False, and cron has no line for it: alation_conf snapshot.enabled -s True, or holdfast schedule cron --install")
	case !daemon:
		v.Warnings = append(v.Warnings, "no backup runs by itself: no daemon is running, and cron has no line for it: holdfast daemon unit --install, or holdfast schedule cron --install")
	}
}

// warn prints what is wrong; the error is for the exit code.
func (r *root) warnings(list []string) error {
	for _, w := range list {
		if !r.f.json {
			fmt.Fprintf(r.env.Stderr, "warning: %s\n", w)
		}
	}
	if len(list) > 0 {
		return &warningsError{len(list)}
	}
	return nil
}

func (r *root) scheduleShow() *cobra.Command {
	return &cobra.Command{Use: "show", Short: "show the schedule, the last and the next runs, who does them, and what is wrong", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v, err := r.view(cmd.Context())
			if err != nil {
				return err
			}
			if r.f.json {
				err = r.env.printJSON(v)
			} else {
				err = r.env.printSchedule(v)
			}
			return errors.Join(err, r.warnings(v.Warnings))
		}}
}

func (e *Env) printSchedule(v *scheduleView) error {
	var p page
	state := "on"
	if !v.Enabled {
		state = "off (snapshot.enabled)"
	}
	p.f("backups at %s: %s\n", zoned(v.Times), state)
	if v.Daemon != nil {
		p.f("daemon: %s\n", v.Daemon)
	} else {
		p.f("daemon: not running\n")
	}
	rows := [][]string{{"JOB", "TIMES", "NEXT", "LAST", "OUTCOME"}}
	for _, j := range v.Jobs {
		row := []string{j.Name, j.Times, "-", "-", "-"}
		if !j.Next.IsZero() {
			row[2] = j.Next.Format("2006-01-02 15:04:05 MST")
			if !j.Next.After(e.Now()) {
				row[2] += ", owed"
			}
		}
		if j.Last != nil {
			row[3], row[4] = j.Last.Started.UTC().Format("2006-01-02 15:04:05 MST"), outcome(j.Last)
		}
		rows = append(rows, row)
	}
	p.WriteString(table(rows))
	for _, c := range v.Cron {
		where := "crontab"
		if c.File != "" {
			where = c.File
		}
		p.f("%s, line %d: %s\n", where, c.Number, c.Text)
	}
	return p.to(e.Stdout)
}

// zoned says in which zone times are.
func zoned(times string) string {
	if len(strings.Fields(times)) == 5 {
		return times + " UTC"
	}
	return times
}

func outcome(r *schedule.Run) string {
	switch {
	case r.Ended.IsZero():
		return "running"
	case r.Error != "":
		return string(r.Outcome) + ": " + strings.SplitN(r.Error, "\n", 2)[0]
	}
	return string(r.Outcome)
}

func (r *root) scheduleNext() *cobra.Command {
	return &cobra.Command{Use: "next [N]", Short: "print the next N times of the schedule (default 5)", Args: cobra.MaximumNArgs(1),
		Long: `Prints the next times at which the parameters schedule a backup, whether the schedule is on or not: in the schedule's zone and in UTC.
A time that was missed, or whose run was interrupted, comes first: the daemon makes it up as soon as it can.`,
		RunE: func(_ *cobra.Command, args []string) error {
			n := 5
			if len(args) > 0 {
				var err error
				if n, err = strconv.Atoi(args[0]); err != nil || n < 1 || n > 10000 {
					return &usageError{fmt.Sprintf("schedule next: %q is no number from 1 to 10000", args[0])}
				}
			}
			in, values, err := r.scheduled()
			if err != nil {
				return err
			}
			spec, err := schedule.Parse(backupTimes(values))
			if err != nil {
				return err
			}
			file, err := newStateFile(in)
			if err != nil {
				return err
			}
			state, err := file.Load()
			if err != nil {
				return err
			}
			times, now := []time.Time{}, r.env.Now()
			if owed := nextRun(state.Jobs[jobBackup], spec, now); !owed.IsZero() && !owed.After(now) && values.Bool(conf.KeySnapshotEnabled) {
				times = append(times, owed)
			}
			for t := spec.Next(now); len(times) < n && !t.IsZero(); t = spec.Next(t) {
				times = append(times, t)
			}
			if r.f.json {
				return r.env.printJSON(times)
			}
			var p page
			for _, t := range times {
				p.f("%s", t.Format("Mon 2006-01-02 15:04:05 MST"))
				if t.Location() != time.UTC {
					p.f("  %s", t.UTC().Format("2006-01-02 15:04:05 MST"))
				}
				if !t.After(now) {
					p.f("  owed")
				}
				p.f("\n")
			}
			if !values.Bool(conf.KeySnapshotEnabled) {
				fmt.Fprintln(r.env.Stderr, "the daemon does not go by it: snapshot.enabled is False")
			}
			return p.to(r.env.Stdout)
		}}
}

func (r *root) scheduleRun() *cobra.Command {
	return &cobra.Command{Use: "run [backup|copy|verify|logs]", Short: "do one of the daemon's jobs now, without it (default backup)", Args: cobra.MaximumNArgs(1),
		ValidArgs: []string{jobBackup, jobCopy, jobVerify, jobLogs},
		Long: `Does now what the daemon does at its times: backup backs everything up; copy brings the copy on external storage up to date; verify
reads the newest complete set; logs begins new log files. For a host where something else keeps the times. The daemon's own
times stay as they are.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			job := jobBackup
			if len(args) > 0 {
				job = args[0]
			}
			switch job {
			case jobBackup:
				return backupAll(cmd.Context(), r.env, r.f)
			case jobCopy, jobVerify, jobLogs:
			default:
				return &usageError{fmt.Sprintf("there is no job %q; there are backup, copy, verify, logs", job)}
			}
			l := newListener(r.env, r.f.json, nil)
			w, err := openApp(r.env, r.f.root, l)
			if err != nil {
				return err
			}
			text, err := doJob(cmd.Context(), w, job)
			l.done()
			if err != nil {
				return err
			}
			if r.f.json {
				return r.env.printJSON(map[string]string{"job": job, "result": text})
			}
			_, err = fmt.Fprintln(r.env.Stdout, text)
			return err
		}}
}

// cronResult is what schedule cron did.
type cronResult struct {
	Line      string   `json:"line"`
	Installed bool     `json:"installed"`
	Removed   []string `json:"removed"`
	Warnings  []string `json:"warnings"`
}

func (r *root) scheduleCron() *cobra.Command {
	var install, remove bool
	c := &cobra.Command{Use: "cron", Short: "print the crontab line that backs the instance up, or install it, or remove it", Args: noArgs,
		Long: `Prints a line for root's crontab on the host at the times of the parameters, quoted so that cron's shell understands it. With
--install the line takes the place of every line of your crontab that backs this instance up; with --remove those lines go.
Everything else in the crontab stays. Cron counts in the host's time.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if install && remove {
				return &usageError{"--install and --remove exclude each other"}
			}
			res, err := r.cron(cmd.Context(), install, remove)
			if err != nil {
				return err
			}
			if r.f.json {
				err = r.env.printJSON(res)
			} else {
				var p page
				for _, l := range res.Removed {
					p.f("removed: %s\n", l)
				}
				switch {
				case res.Installed:
					p.f("installed: %s\n", res.Line)
				case remove && len(res.Removed) == 0:
					p.f("the crontab has no line that backs this instance up\n")
				case !remove:
					p.f("%s\n", res.Line)
				}
				err = p.to(r.env.Stdout)
			}
			return errors.Join(err, r.warnings(res.Warnings))
		}}
	c.Flags().BoolVar(&install, "install", false, "put the line into your crontab, in place of what backs this instance up")
	c.Flags().BoolVar(&remove, "remove", false, "take out of your crontab what backs this instance up")
	return c
}

func (r *root) cron(ctx context.Context, install, remove bool) (*cronResult, error) {
	in, values, err := r.scheduled()
	if err != nil {
		return nil, err
	}
	times, exact, err := hostTimes(values, time.Local, r.env.Now())
	if err != nil {
		return nil, err
	}
	res := &cronResult{Removed: []string{}, Warnings: []string{}}
	if res.Line, err = in.CronLine(times); err != nil {
		return nil, err
	}
	if !exact && !remove {
		res.Warnings = append(res.Warnings, cronZoneWarning(values, r.env.Now()))
	}
	if !install && !remove {
		return res, nil
	}
	line := res.Line
	if remove {
		line = ""
	}
	if err := r.editCrontab(ctx, in, line, res); err != nil {
		return nil, err
	}
	res.Installed = install
	v, err := r.view(ctx)
	if err != nil {
		return nil, err
	}
	res.Warnings = append(res.Warnings, v.Warnings...)
	return res, nil
}

// cronZoneWarning says what becomes of times that cron counts otherwise than the schedule.
func cronZoneWarning(values *conf.Values, now time.Time) string {
	here, zone := now.Local().Format("MST"), values.String(conf.KeyScheduleZone)
	if values.String(conf.KeyScheduleBackup) != "" {
		return fmt.Sprintf("the line has the times of schedule.backup as they are, and cron takes them for the host's time (%s), not for %s: write schedule.backup for the host's time, or leave it to the daemon, which goes by the zone", here, zone)
	}
	return fmt.Sprintf("cron counts in the host's time (%s), the schedule in %s: the line is right at most until a clock is changed; the daemon always is", here, zone)
}

// editTries is how often an edit of the crontab is begun anew because somebody else edits it, too.
const editTries = 5

// editCrontab puts line (empty: none) in the place of what backs the instance up. crontab(1) knows no lock: what somebody else writes
// between our reading and our writing would be lost without a word. So it is read once more just before it is written, and again
// afterwards, and the edit is done anew on what is there then.
func (r *root) editCrontab(ctx context.Context, in *instance.Instance, line string, res *cronResult) error {
	tab := crontab{r.env}
	text, err := tab.read(ctx)
	for range editTries {
		if err != nil {
			return err
		}
		entries := in.CronEntries(text)
		for _, e := range entries {
			if e.More && !e.Ours {
				return &refusedError{fmt.Sprintf("line %d of the crontab does more than back this instance up, nothing was changed: take the backup out of it with crontab -e, then run this again: %s", e.Number, e.Text)}
			}
		}
		after := instance.EditCrontab(text, entries, line)
		for _, e := range entries {
			if e.Text != line && !slices.Contains(res.Removed, e.Text) {
				res.Removed = append(res.Removed, e.Text)
			}
		}
		now, rerr := tab.read(ctx)
		if rerr != nil || now != text {
			text, err = now, rerr
			continue
		}
		if after == text {
			return nil
		}
		if err := tab.write(ctx, after); err != nil {
			return err
		}
		if now, err = tab.read(ctx); err == nil && now == after {
			return nil
		}
		text = now
	}
	return errors.Join(err, errors.New("the crontab is being edited by somebody else all the time: end that, then run this again"))
}
