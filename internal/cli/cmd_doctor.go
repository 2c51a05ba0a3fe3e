package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/storage"
)

const skipPreflightHelp = "begin whatever the looks before a run find; see docs/doctor.md"

// doctorFlags are those of holdfast doctor.
type doctorFlags struct{ what, set, file, source string }

func (r *root) doctorCommand() *cobra.Command {
	var f doctorFlags
	c := &cobra.Command{Use: "doctor", Short: "look at all that a backup, or a restore, needs, and say what to do", Args: noArgs,
		Long: `Looks at parameters, keys, disks, permissions, PostgreSQL, archiving, repository, files, event bus, external storage, programs, sets and the
schedule, at the same time, and lists everything that it finds, with what to do about it. It changes nothing but one small
object that it writes to the external storage and removes.

With --for restore it makes the plan of a restore, of --set, --file, the parameters alation.backup.restore_file and
.eb_restore_file, or else of the newest complete set, which is read to its end, and compares this machine with the one where
the set was made. Nothing is restored.

It ends with 3 when something needs attention, with 6 when a run or a restore would fail. docs/doctor.md explains every finding.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case f.what != "backup" && f.what != "restore":
				return &usageError{fmt.Sprintf("--for %s: backup or restore", f.what)}
			case f.what == "backup" && (f.set != "" || f.file != "" || f.source != ""):
				return &usageError{"--set, --file and --source go with --for restore"}
			}
			if err := (&restoreFlags{set: f.set, file: f.file, source: f.source}).check(r.f); err != nil {
				return err
			}
			found, err := r.doctor(cmd.Context(), f)
			if err != nil {
				return err
			}
			res := doctorResult{For: f.what, Errors: action.Count(found, action.Blocked), Warnings: action.Count(found, action.Warns), Findings: found}
			if r.f.json {
				err = r.env.printJSON(res)
			} else {
				err = r.env.printDoctor(res)
			}
			switch {
			case err != nil:
				return err
			case res.Errors > 0:
				return &findingsError{res.Errors + res.Warnings}
			case res.Warnings > 0:
				return &warningsError{res.Warnings}
			}
			return nil
		}}
	fl := c.Flags()
	fl.StringVar(&f.what, "for", "backup", "what to look for: backup or restore")
	fl.StringVar(&f.set, "set", "", "with --for restore: a set of this instance's catalogue")
	fl.StringVar(&f.file, "file", "", "with --for restore: the application tarball")
	fl.StringVar(&f.source, "source", "", "with --for restore: where PostgreSQL's separate backup comes from: local or s3")
	return c
}

// doctorResult is what doctor prints.
type doctorResult struct {
	For      string           `json:"for"`
	Errors   int              `json:"errors"`
	Warnings int              `json:"warnings"`
	Findings []action.Finding `json:"findings"`
}

// doctor makes all looks. What keeps the application from being opened is a finding, and the rest is looked at all the same.
func (r *root) doctor(ctx context.Context, f doctorFlags) ([]action.Finding, error) {
	in, err := openInstance(r.env, r.f.root)
	if err != nil {
		return nil, err
	}
	l := newListener(r.env, r.f.json, nil)
	l.quiet = true // what it would warn of is looked at
	defer l.done()
	var broken []error
	w, err := openParts(r.env, r.f.root, l, "", nil, func(err error) error { broken = append(broken, err); return nil })
	more := r.instanceChecks(in, f.what == "backup")
	if err != nil { // not even parts of it
		return action.RunChecks(ctx, action.DoctorTime, append(more, foundAlready(action.AreaParameters, in.ConfPath(), err))), ctx.Err()
	}
	for _, b := range broken {
		if !seenElsewhere(in, b) {
			more = append(more, foundAlready(action.AreaParameters, in.ConfPath(), b))
		}
	}
	switch {
	case f.what == "backup":
		return w.app.Preflight(ctx, true, more...), ctx.Err()
	case len(broken) > 0: // a plan can't be made of parts
		return action.RunChecks(ctx, action.DoctorTime, more), ctx.Err()
	}
	o, err := r.doctorRestore(ctx, w, f)
	if err != nil {
		return nil, err
	}
	return w.app.PreflightRestore(ctx, o, more...)
}

// doctorRestore are the inputs of a restore; without any those of the newest complete set.
func (r *root) doctorRestore(ctx context.Context, w *wired, f doctorFlags) (action.RestoreOptions, error) {
	o, err := restoreInputs(ctx, w, restoreFlags{set: f.set, file: f.file, source: f.source})
	if err != nil || o.RestoreFile != "" {
		return o, err
	}
	sets, _, err := w.app.Sets(ctx)
	if err != nil {
		return o, err
	}
	for i := len(sets) - 1; i >= 0; i-- {
		if sets[i].State == catalog.Complete {
			return restoreInputs(ctx, w, restoreFlags{set: sets[i].ID, source: f.source})
		}
	}
	return o, nil // the plan says that no set is named
}

// foundAlready is a look whose result is known.
func foundAlready(area, object string, err error) action.Check {
	return action.Check{Area: area, Object: object, Run: func(context.Context) []action.Finding { return []action.Finding{action.Block(area, object, "", err)} }}
}

func (e *Env) printDoctor(res doctorResult) error {
	var p page
	area := ""
	for _, f := range res.Findings {
		if f.Area != area {
			area = f.Area
			p.f("%s\n", area)
		}
		text := f.What
		if f.Object != "" && !strings.Contains(text, f.Object) {
			text = f.Object + ": " + text
		}
		p.f("  %-7s  %s\n", f.Severity, strings.ReplaceAll(text, "\n", "\n           "))
		if f.Do != "" {
			p.f("           do: %s\n", f.Do)
		}
	}
	if res.Errors+res.Warnings == 0 {
		p.f("nothing stands in the way of a %s\n", res.For)
	} else {
		p.f("%d error(s), %d warning(s)\n", res.Errors, res.Warnings)
	}
	return p.to(e.Stdout)
}

// errNotOpened stands for a part of the application that was not opened, for a reason that is said where it belongs.
var errNotOpened = errors.New("not opened, because the parameters are wrong")

func notOpened(string) (storage.Storage, error) { return nil, errNotOpened }
