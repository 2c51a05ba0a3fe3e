package cli

import (
	"context"
	"fmt"

	"holdfast/internal/action"
)

// probackup lists what pg_probackup would make.
func (p *page) probackup(b *action.BackupPlan) {
	for _, c := range b.Probackup {
		p.f("  postgres  %s: %s backup of %s (%s), PostgreSQL %s, by %s (%s) through %s\n", c.Stanza, c.Type, c.DataDir, c.Why, c.Version, c.Program, c.Says, c.Catalog)
	}
}

// planArchiving is enable_backupv2 --dry-run.
func planArchiving(ctx context.Context, env *Env, w *wired, l *listener, f actionFlags) error {
	plans, err := w.app.PlanArchiving(ctx)
	l.done()
	if err != nil {
		return err
	}
	wrong := 0
	var p page
	for _, c := range plans {
		p.f("enable_backupv2 would have cluster %s archive for %s, in %s\n", c.Stanza, c.Tool, c.Place)
		p.f("  archive_command now:  %s\n", c.Now)
		p.f("  archive_command then: %s\n", c.Then)
		for _, n := range c.Notes {
			p.f("note: %s\n", n)
		}
		if c.Wrong != "" {
			wrong++
			p.f("wrong: %s\n", c.Wrong)
		}
	}
	if f.json {
		err = env.printJSON(plans)
	} else {
		err = p.to(env.Stdout)
	}
	if err == nil && wrong > 0 {
		err = &refusedError{fmt.Sprintf("enable_backupv2 would fail: %d reason(s), listed above", wrong)}
	}
	return err
}
