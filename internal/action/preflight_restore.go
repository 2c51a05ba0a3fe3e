package action

import (
	"context"
	"errors"

	"holdfast/internal/engine"
)

// PreflightRestore is Preflight for a restore: it makes the plan, which reads the pieces to their end and has no limit of time, and
// looks at what a restore needs besides.
func (a *App) PreflightRestore(ctx context.Context, o RestoreOptions, more ...Check) ([]Finding, error) {
	checks := append([]Check{{AreaRights, "places", a.checkRights}, {AreaPrograms, "programs", a.checkPrograms}, {AreaDisks, "usage", a.checkUsage}}, more...)
	all := RunChecks(ctx, DoctorTime, checks)
	plan, err := a.PlanRestoreAll(ctx, o)
	if err != nil {
		return nil, err
	}
	object := o.RestoreFile
	if plan.Set != nil {
		object = plan.Set.ID
	}
	for _, m := range plan.Missing {
		all = append(all, blocked(AreaRestore, object, "", errors.New(m)))
	}
	all = append(all, plan.Findings...)
	if len(plan.Missing) == 0 {
		all = append(all, fine(AreaRestore, object, "every piece is there and whole; %s needed", engine.Size(plan.NeedBytes)))
	}
	sortFindings(all)
	return all, ctx.Err()
}
