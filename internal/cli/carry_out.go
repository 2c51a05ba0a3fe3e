package cli

import (
	"context"

	"github.com/spf13/cobra"
)

// removal is a command that shows what goes, asks, and removes it.
type removal struct {
	verb     string // as the log names it
	question string
	plan     any // the JSON document of --dry-run
	show     func(*Env) error
	nothing  bool // the plan is empty: there is nothing to ask about
	run      func(context.Context) error
}

// carryOut shows the plan, asks unless --yes was given, and runs it between two lines of the log. done is false when it was only
// shown. With --json standard output is left to the one document: the plan goes to standard error.
func (r *root) carryOut(ctx context.Context, w *wired, l *listener, c removal) (done bool, err error) {
	if r.f.json && r.f.dryRun {
		return false, r.env.printJSON(c.plan)
	}
	out := r.env
	if r.f.json {
		out = r.env.onStderr()
	}
	if !r.f.json || !r.f.yes {
		if err := c.show(out); err != nil {
			return false, err
		}
	}
	if r.f.dryRun {
		return false, nil
	}
	if !c.nothing && !r.f.yes {
		if err := r.env.confirm(ctx, c.question, "YES"); err != nil {
			return false, err
		}
	}
	w.log.began(c.verb)
	err = c.run(ctx)
	l.done()
	w.log.ended(c.verb, err)
	return err == nil, err
}

// removalFlags are --dry-run and --yes.
func (r *root) removalFlags(c *cobra.Command) {
	c.Flags().BoolVar(&r.f.dryRun, "dry-run", false, "show what would go, remove nothing")
	c.Flags().BoolVar(&r.f.yes, "yes", false, "do not ask")
}
