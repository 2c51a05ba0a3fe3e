package action

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Severity is how much a finding matters.
type Severity string

const (
	Fine    Severity = "ok"
	Warns   Severity = "warning" // a run ends well all the same, or with warnings; it needs attention
	Blocked Severity = "error"   // a run would fail
)

// Finding is what one look found.
type Finding struct {
	Area     string   `json:"area"` // one of the areas below
	Severity Severity `json:"severity"`
	Object   string   `json:"object"`       // on what: a path, a stanza, an address
	What     string   `json:"what"`         // what is the matter
	Do       string   `json:"do,omitempty"` // the command to run next, or what to do

	err error // what it was made from, for exit codes
}

// Areas, in the order in which they are shown.
const (
	AreaParameters = "parameters"
	AreaDisks      = "disks"
	AreaRights     = "permissions"
	AreaPostgres   = "postgres"
	AreaArchiving  = "archiving"
	AreaRepository = "repository"
	AreaFiles      = "files"
	AreaBus        = "eventbus"
	AreaStore      = "store"
	AreaSets       = "sets"
	AreaPrograms   = "programs"
	AreaSchedule   = "schedule"
	AreaRestore    = "restore"
)

func areas() []string {
	return []string{AreaParameters, AreaDisks, AreaRights, AreaPostgres, AreaArchiving, AreaRepository, AreaFiles, AreaBus, AreaStore, AreaPrograms, AreaSets, AreaSchedule, AreaRestore}
}

// Check is one look. Run may take its time: it is not waited for beyond a limit, and then may not be heard of any more, so that it
// gives its findings back and shares nothing.
type Check struct {
	Area, Object string
	Run          func(ctx context.Context) []Finding
}

// DoctorTime is the limit of each look when nothing else is to be done: longer than the 30 s after which connections are given up.
const DoctorTime = 40 * time.Second

// Limits before a run, and for the plan of one.
const (
	preflightTime = 10 * time.Second
	dryTime       = 15 * time.Second
)

// RunChecks looks at everything at the same time. One that does not end within the limit is a finding itself. The findings are in
// the order of areas, the worst of each first.
func RunChecks(ctx context.Context, limit time.Duration, checks []Check) []Finding {
	results := make([]chan []Finding, len(checks))
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for i, c := range checks {
		results[i] = make(chan []Finding, 1)
		go func() { results[i] <- c.Run(ctx) }()
	}
	// What only notices that its time is over has a moment to say what it was waiting for.
	over := time.NewTimer(limit + time.Second)
	defer over.Stop()
	all := []Finding{}
	for i, c := range checks {
		select {
		case found := <-results[i]:
			all = append(all, found...)
		case <-over.C:
			over.Reset(0) // for the others
			select {
			case found := <-results[i]:
				all = append(all, found...)
			default:
				all = append(all, Finding{Area: c.Area, Severity: Warns, Object: c.Object, What: fmt.Sprintf("no answer within %s: it hangs, and a run may hang there, too", limit),
					Do: "look whether a network, a mount or a server is away"})
			}
		}
	}
	sortFindings(all)
	return all
}

func sortFindings(all []Finding) {
	order := areas()
	rank := func(f Finding) int {
		return slices.Index(order, f.Area)*3 + slices.Index([]Severity{Blocked, Warns, Fine}, f.Severity)
	}
	slices.SortStableFunc(all, func(a, b Finding) int { return rank(a) - rank(b) })
}

// Count says how many findings have the severity.
func Count(all []Finding, s Severity) (n int) {
	for _, f := range all {
		if f.Severity == s {
			n++
		}
	}
	return n
}

// String is a finding in a line.
func (f Finding) String() string {
	text := f.What
	if f.err != nil {
		text = f.err.Error()
	}
	if f.Object != "" && !strings.Contains(text, f.Object) {
		text = f.Object + ": " + text
	}
	if f.Do != "" && !strings.Contains(text, f.Do) {
		text += "; " + f.Do
	}
	return text
}

// ErrPreflight says that a run was not begun, because it would have failed.
var ErrPreflight = errors.New("the run would fail")

// preflightError is an ErrPreflight with every reason.
type preflightError struct{ findings []Finding }

func (e *preflightError) Error() string {
	var lines []string
	for _, f := range e.findings {
		lines = append(lines, f.String())
	}
	if len(lines) == 1 {
		return lines[0]
	}
	return fmt.Sprintf("%d reasons why the run would fail:\n  %s", len(lines), strings.Join(lines, "\n  "))
}

// Unwrap gives the errors that the findings were made from, which may mean more than "failed".
func (e *preflightError) Unwrap() []error {
	all := []error{ErrPreflight}
	for _, f := range e.findings {
		if f.err != nil {
			all = append(all, f.err)
		}
	}
	return all
}

// Preflight looks at all that a backup needs and changes nothing. With probe it takes longer, and also writes, reads and removes an
// object on the external storage, the only way to know whether that can be done. more are looks of the caller's, made at the same time.
func (a *App) Preflight(ctx context.Context, probe bool, more ...Check) []Finding {
	limit := dryTime
	if probe {
		limit = DoctorTime
	}
	return RunChecks(ctx, limit, append(append(a.runChecks(), a.furtherChecks(probe)...), more...))
}

// beforeRun makes the looks of a run that are quick and sure. Anything that would certainly make the run fail ends it before
// PostgreSQL enters backup mode, with all reasons; scarce space and what hangs become warnings of the set. What it can't find out is
// no reason to make no backup.
func (r *run) beforeRun(ctx context.Context) error {
	if r.o.SkipPreflight {
		return nil
	}
	r.step("backup_all", "preflight", "")
	var blocked []Finding
	for _, f := range RunChecks(ctx, preflightTime, r.runChecks()) {
		switch {
		case f.Severity == Blocked:
			blocked = append(blocked, f)
		case f.Severity == Warns:
			r.set.Warnings = append(r.set.Warnings, f.String())
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(blocked) > 0 {
		return &preflightError{blocked}
	}
	return nil
}

// SkipPreflight makes BackupAll begin whatever these looks would find.
func (a *App) SkipPreflight() { a.o.SkipPreflight = true }

// runChecks are the looks that every run makes: nothing in them takes long, and an error is certain.
func (a *App) runChecks() []Check {
	checks := []Check{{AreaDisks, "space", a.checkSpace}, {AreaFiles, a.o.Root, a.checkTrees}}
	for _, c := range a.o.Clusters {
		checks = append(checks, Check{AreaPostgres, c.Stanza, func(ctx context.Context) []Finding { return a.checkCluster(ctx, c) }})
	}
	if a.o.Bus != nil {
		checks = append(checks, Check{AreaBus, strings.Join(a.o.Bus.Brokers, ","), a.checkBus})
	}
	return checks
}

// furtherChecks are the looks that only doctor makes.
func (a *App) furtherChecks(probe bool) []Check {
	checks := []Check{{AreaSets, "catalogue", a.checkSets}, {AreaRights, "places", a.checkRights}, {AreaPrograms, "programs", a.checkPrograms}, {AreaDisks, "usage", a.checkUsage}}
	for _, c := range a.o.Clusters {
		checks = append(checks, Check{AreaArchiving, c.Stanza, func(ctx context.Context) []Finding { return a.checkArchiving(ctx, c) }},
			Check{AreaRepository, c.Stanza, func(ctx context.Context) []Finding { return a.checkStanza(ctx, c) }})
	}
	for _, c := range a.o.RDS.Clusters { // a run looks at them itself before its long part
		checks = append(checks, Check{AreaPostgres, c.Stanza, func(ctx context.Context) []Finding { return a.checkDBInstance(ctx, c) }})
	}
	if a.o.Store != nil {
		checks = append(checks, Check{AreaStore, a.o.Store.Name, func(ctx context.Context) []Finding { return a.checkStoreUse(ctx, probe) }})
	}
	return checks
}

// fine, warns and blocked make findings.
func fine(area, object, format string, args ...any) Finding {
	return Finding{Area: area, Severity: Fine, Object: object, What: fmt.Sprintf(format, args...)}
}

func warns(area, object, do, format string, args ...any) Finding {
	return Finding{Area: area, Severity: Warns, Object: object, What: fmt.Sprintf(format, args...), Do: do}
}

// blocked takes what to do out of an error that says it: "…: run: COMMAND".
func blocked(area, object, do string, err error) Finding {
	what := err.Error()
	if before, command, ok := strings.Cut(what, ": run: "); ok && do == "" && !strings.Contains(command, ": run: ") {
		what, do = before, command
	}
	return Finding{Area: area, Severity: Blocked, Object: object, What: what, Do: do, err: err}
}

// addFindings puts what the preflight found into the plan. What would stop a run is among its reasons, unless it is there already in
// the words of whoever met it.
func (p *BackupPlan) addFindings(found []Finding) {
	p.Findings = found
	for _, f := range found {
		if f.Severity != Blocked || slices.ContainsFunc(p.WhatIsWrong, func(w string) bool {
			return strings.Contains(w, f.What) || f.err != nil && strings.Contains(f.err.Error(), w)
		}) {
			continue
		}
		p.WhatIsWrong = append(p.WhatIsWrong, f.String())
	}
}

// OK, Warn and Block make findings for looks of the caller's. Block takes what to do out of err where do is empty.
func OK(area, object, format string, args ...any) Finding {
	return fine(area, object, format, args...)
}

// Warn is something that needs attention.
func Warn(area, object, do, format string, args ...any) Finding {
	return warns(area, object, do, format, args...)
}

// Block is something that makes a run fail.
func Block(area, object, do string, err error) Finding { return blocked(area, object, do, err) }
