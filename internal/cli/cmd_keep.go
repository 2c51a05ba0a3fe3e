package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/action"
	"holdfast/internal/engine"
)

// setsExpire is holdfast sets expire.
func (r *root) setsExpire() *cobra.Command {
	c := &cobra.Command{Use: "expire", Short: "apply the retention: remove the sets that it does not keep, here and on external storage", Args: noArgs,
		Long: `Shows which sets go and which stay, each with the reason, asks, and removes. backup_all does the same at its end. A set goes only when
alation.backup_v2.retention.sets newer ones stay that restore, it is at least alation.backup_v2.retention.days days old, and neither
a pin (holdfast sets pin) nor a set that is built on it keeps it.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, l, err := r.app()
			if err != nil {
				return err
			}
			plan, err := w.app.PlanRetention(cmd.Context())
			l.done()
			if err != nil {
				return err
			}
			var res *action.RetentionResult
			done, err := r.carryOut(cmd.Context(), w, l, removal{verb: "sets expire", question: "Type YES to remove", plan: plan, nothing: plan.Empty(),
				show: func(out *Env) error { return out.printRetentionPlan(plan) },
				run:  func(ctx context.Context) (err error) { res, err = plan.Run(ctx); return err }})
			if !done || err != nil {
				return err
			}
			if r.f.json {
				return r.env.printJSON(res)
			}
			return r.env.printRetained(res)
		}}
	r.removalFlags(c)
	return c
}

// setsPin is holdfast sets pin.
func (r *root) setsPin() *cobra.Command {
	var reason, until string
	c := &cobra.Command{Use: "pin ID", Short: "keep a set, whatever the retention says", Args: exactArgs(1, "a set's ID"),
		Long: `Keeps a complete set, and what a restore of it needs, from the retention and from sets delete. --until is a date (YYYY-MM-DD: to its
end, in the host's zone), a time (YYYY-MM-DD HH:MM:SS[+zone]) or a duration from now: 12h, 30d, 6w. Without it the pin has no end.
A set that is pinned already gets the new reason and end.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return &usageError{"say why with --reason: whoever finds the set in a year will ask"}
			}
			end, err := parseUntil(until, r.env.Now())
			if err != nil {
				return err
			}
			w, l, err := r.app()
			if err != nil {
				return err
			}
			w.log.began("sets pin " + args[0])
			s, err := w.app.PinSet(cmd.Context(), args[0], reason, end)
			l.done()
			w.log.ended("sets pin "+args[0], err)
			if err != nil {
				return err
			}
			if r.f.json {
				return r.env.printJSON(s)
			}
			return r.env.printSet(s)
		}}
	c.Flags().StringVar(&reason, "reason", "", "why it is kept")
	c.Flags().StringVar(&until, "until", "", "until when: a date, a time, or a duration such as 30d")
	return c
}

// setsUnpin is holdfast sets unpin.
func (r *root) setsUnpin() *cobra.Command {
	return &cobra.Command{Use: "unpin ID", Short: "let the retention decide on a set again", Args: exactArgs(1, "a set's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, l, err := r.app()
			if err != nil {
				return err
			}
			w.log.began("sets unpin " + args[0])
			s, err := w.app.UnpinSet(cmd.Context(), args[0])
			l.done()
			w.log.ended("sets unpin "+args[0], err)
			if err != nil {
				return err
			}
			if r.f.json {
				return r.env.printJSON(s)
			}
			return r.env.printSet(s)
		}}
}

// parseUntil reads the end of a pin. Empty: none.
func parseUntil(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if day, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return day.AddDate(0, 0, 1), nil
	}
	units := map[byte]time.Duration{'m': time.Minute, 'h': time.Hour, 'd': 24 * time.Hour, 'w': 7 * 24 * time.Hour}
	if unit := units[text[len(text)-1]]; unit > 0 {
		if n, err := strconv.ParseInt(text[:len(text)-1], 10, 64); err == nil && n > 0 && n <= int64(100*365*24*time.Hour/unit) {
			return now.Add(time.Duration(n) * unit), nil
		}
	}
	t, err := engine.ParseTargetTime(text, time.Local)
	if err != nil {
		return time.Time{}, &usageError{fmt.Sprintf("--until %q is no end: use YYYY-MM-DD, YYYY-MM-DD HH:MM:SS[+zone], or a duration such as 12h, 30d, 6w", text)}
	}
	return t, nil
}
