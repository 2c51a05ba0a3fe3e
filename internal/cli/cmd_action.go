package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

const actionHelp = `usage: alation_action ACTION [--json] [--dry-run] [--skip-preflight] [--type full|diff|incr]

actions:
  backup_all                back up everything now, to one recovery point
  enable_backupv2           point PostgreSQL's WAL archiving at the configured backup tool and prove that it works
  destructive_restore_all   restore the set that alation.backup.restore_file and .eb_restore_file name;
                            shows the plan and asks: answer YES

--type chooses the PostgreSQL backup of this backup_all, whatever is configured; what can't be incremental becomes full.

exit codes: `

// actionMain is alation_action: one word, and two options of ours.
func actionMain(ctx context.Context, env *Env, args []string) int {
	f := actionFlags{}
	verb := ""
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "--json":
			f.json = true
		case a == "--dry-run":
			f.dryRun = true
		case a == "--skip-preflight":
			f.skipPreflight = true
		case a == "--root" && i+1 < len(args):
			i++
			f.root = args[i]
		case strings.HasPrefix(a, "--root="):
			f.root = a[len("--root="):]
		case a == "--type" && i+1 < len(args):
			i++
			f.typ = args[i]
		case strings.HasPrefix(a, "--type="):
			f.typ = a[len("--type="):]
		case a == "--help" || a == "-h":
			fmt.Fprintln(env.Stdout, actionHelp+exitHelp())
			return exitOK
		case verb == "" && !strings.HasPrefix(a, "-"):
			verb = a
		default:
			return env.exit("alation_action", &usageError{fmt.Sprintf("%q is not understood; see: alation_action --help", a)}, f.json)
		}
	}
	var err error
	if f.skipPreflight && verb != "backup_all" {
		return env.exit("alation_action", &usageError{"--skip-preflight goes with backup_all"}, f.json)
	}
	if f.typ != "" && verb != "backup_all" {
		return env.exit("alation_action", &usageError{"--type goes with backup_all"}, f.json)
	}
	switch verb {
	case "backup_all":
		err = backupAll(ctx, env, f)
	case "enable_backupv2":
		err = enableArchiving(ctx, env, f)
	case "destructive_restore_all":
		err = restoreAll(ctx, env, f, restoreFlags{})
	case "":
		err = &usageError{"no action named; see: alation_action --help"}
	default:
		err = &usageError{fmt.Sprintf("there is no action %q; there are backup_all, enable_backupv2, destructive_restore_all", verb)}
	}
	return env.exit("alation_action", err, f.json)
}

// actionFlags are common to the verbs on the whole application.
type actionFlags struct {
	root   string
	json   bool
	dryRun bool
	yes    bool
	typ    string // of the PostgreSQL backup; empty: as configured

	skipPreflight bool
}

// backupAll is alation_action backup_all and holdfast backup.
func backupAll(ctx context.Context, env *Env, f actionFlags) error {
	typ := repo.BackupType(f.typ)
	if !slices.Contains([]repo.BackupType{"", repo.Full, repo.Diff, repo.Incr}, typ) {
		return &usageError{fmt.Sprintf("--type %q: allowed are full, diff, incr", f.typ)}
	}
	l := newListener(env, f.json, nil)
	w, err := openApp(env, f.root, l)
	if err != nil {
		return err
	}
	w.app = w.app.OfType(typ)
	if f.dryRun {
		plan, err := w.app.PlanBackupAll(ctx)
		l.done()
		if err != nil {
			return err
		}
		if f.json {
			err = env.printJSON(plan)
		} else {
			err = env.printBackupPlan(plan)
		}
		if err == nil && len(plan.WhatIsWrong) > 0 {
			err = &refusedError{fmt.Sprintf("a backup would fail: %d reason(s), listed above", len(plan.WhatIsWrong))}
		}
		return err
	}
	if f.skipPreflight {
		w.app.SkipPreflight()
	}
	set, warnings, err := makeBackup(ctx, w, l)
	if err != nil {
		return err
	}
	if f.json {
		err = env.printJSON(set)
	} else {
		err = env.printSet(set)
	}
	return errors.Join(err, backupWarned(set, warnings))
}

// makeBackup runs backup_all within the time that a run may take, and logs how it ended. The warnings are the run's and the
// set's.
func makeBackup(ctx context.Context, w *wired, l *listener) (*catalog.Set, []string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, w.values.Duration(conf.KeyChefTimeout), errTimeout)
	defer cancel()
	w.log.began("backup_all")
	set, err := w.app.BackupAll(ctx)
	warnings := l.done()
	if errors.Is(context.Cause(ctx), errTimeout) && err != nil {
		err = fmt.Errorf("%w: %v", errTimeout, err)
	}
	if err != nil {
		w.log.ended("backup_all", err)
		return nil, nil, err
	}
	for _, text := range set.Warnings {
		if !slices.Contains(warnings, text) { // else it was said while the run went on, too
			warnings = append(warnings, text)
		}
	}
	w.log.endedWith("backup_all", nil, len(warnings), set.ID)
	return set, warnings, nil
}

var errTimeout = errors.New("the run exceeded alation.backup.chef_timeout")

// backupWarned is what a run whose set is complete has to say all the same; nil: nothing.
func backupWarned(set *catalog.Set, warnings []string) error {
	switch {
	case set.PostScript != nil && set.PostScript.Error != "":
		return &scriptError{set.PostScript.Error}
	case len(warnings) > 0:
		return &warningsError{len(warnings)}
	}
	return nil
}

func enableArchiving(ctx context.Context, env *Env, f actionFlags) error {
	l := newListener(env, f.json, nil)
	w, err := openApp(env, f.root, l)
	if err != nil {
		return err
	}
	if f.dryRun {
		return planArchiving(ctx, env, w, l, f)
	}
	w.log.began("enable_backupv2")
	results, err := w.app.EnableArchiving(ctx)
	l.done()
	w.log.ended("enable_backupv2", err)
	if f.json && err == nil {
		return env.printJSON(results)
	}
	if !f.json {
		for _, r := range results {
			changed := "settings were right already"
			if len(r.Changed) > 0 {
				changed = "set " + strings.Join(r.Changed, ", ")
			}
			fmt.Fprintf(env.Stdout, "%s: stanza %s; %s", r.Stanza, r.Outcome, changed)
			if r.Segment != "" {
				fmt.Fprintf(env.Stdout, "; WAL segment %s arrived in the archive", r.Segment)
			}
			fmt.Fprintln(env.Stdout)
			for _, n := range r.Notes {
				fmt.Fprintf(env.Stdout, "  %s\n", n)
			}
		}
	}
	return err
}

// restoreFlags are what holdfast restore adds to destructive_restore_all.
type restoreFlags struct {
	file, busFile, set, until string
	source, asOf              string
	keep, giveBack            bool
}

func restoreAll(ctx context.Context, env *Env, f actionFlags, rf restoreFlags) error {
	l := newListener(env, f.json, nil)
	w, err := openAppAt(env, f.root, l, rf.asOf)
	if err != nil {
		return err
	}
	if rf.giveBack {
		done, err := w.app.GiveBack(ctx)
		l.done()
		if err == nil && f.json {
			return env.printJSON(map[string]bool{"given_back": done})
		}
		if err == nil && !done {
			_, err = fmt.Fprintln(env.Stdout, "no restore was interrupted: nothing to give back")
		} else if err == nil {
			_, err = fmt.Fprintln(env.Stdout, "what the interrupted restore had replaced is back")
		}
		return err
	}
	o, err := restoreInputs(ctx, w, rf)
	if err != nil {
		return err
	}
	plan, err := w.app.PlanRestoreAll(ctx, o)
	l.done()
	if err != nil {
		return err
	}
	switch {
	case f.json && f.dryRun:
		err = env.printJSON(plan)
	case !f.json:
		err = env.printRestorePlan(plan)
	case !f.yes: // it is about to be asked about
		err = env.onStderr().printRestorePlan(plan)
	}
	if err != nil {
		return err
	}
	if len(plan.Missing) > 0 {
		return &refusedError{"nothing was changed: " + strings.Join(plan.Missing, "; ")}
	}
	if f.dryRun {
		return nil
	}
	if !f.yes {
		if err := env.confirm(ctx, "This replaces what is listed above. Type YES to go on", "YES"); err != nil {
			return err
		}
	}
	w.log.began("restore")
	res, err := plan.Run(ctx)
	warnings := l.done()
	w.log.ended("restore", err)
	if err != nil {
		return err
	}
	if f.json {
		err = env.printJSON(res)
	} else {
		err = env.printRestored(res)
		if next := rdsNext(w, res.RDS); err == nil && next != "" {
			_, err = fmt.Fprintf(env.Stdout, "  %s\n", next)
		}
	}
	if err == nil && len(warnings)+len(res.Warnings) > 0 {
		err = &warningsError{len(warnings) + len(res.Warnings)}
	}
	return err
}

// restoreInputs: the two parameters, a set of the catalogue, or the flags, which win.
func restoreInputs(ctx context.Context, w *wired, rf restoreFlags) (action.RestoreOptions, error) {
	resolve := func(p string) string {
		if p == "" {
			return ""
		}
		return w.in.Resolve(p)
	}
	o := action.RestoreOptions{RestoreFile: resolve(w.values.Path(conf.KeyRestoreFile)), EBRestoreFile: resolve(w.values.Path(conf.KeyEBRestoreFile)), KeepReplaced: rf.keep,
		FromStore: cmp.Or(rf.source, w.values.String(conf.KeyRestoreSource)) == "s3"}
	if rf.set != "" {
		set, err := w.app.Set(ctx, rf.set)
		if err != nil {
			return o, err
		}
		o.RestoreFile, o.EBRestoreFile = "", ""
		if p := set.Piece(catalog.Application); p != nil {
			o.RestoreFile = p.Path
		}
		if p := set.Piece(catalog.EventBus); p != nil {
			o.EBRestoreFile = p.Path
		}
	}
	if rf.file != "" {
		o.RestoreFile, o.EBRestoreFile = rf.file, rf.busFile
	}
	if rf.until != "" {
		t, err := engine.ParseTargetTime(rf.until, time.Local)
		if err != nil {
			return o, &usageError{err.Error()}
		}
		o.Until = t
	}
	return o, nil
}
