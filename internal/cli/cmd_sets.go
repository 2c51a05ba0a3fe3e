package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
)

func (r *root) setsCommand() *cobra.Command {
	c := &cobra.Command{Use: "sets", Short: "list, show, inspect, verify, pin, copy, fetch, expire and delete backup sets"}
	c.AddCommand(r.setsList(), r.setsShow(), r.setsInspect(), r.setsVerify(), r.setsCopy(), r.setsFetch(), r.setsPin(), r.setsUnpin(), r.setsDelete(), r.setsExpire(), r.setsExpireStore())
	return group(c)
}

// app opens the application for a command that needs no more than the catalogue.
func (r *root) app() (*wired, *listener, error) {
	l := newListener(r.env, r.f.json, nil)
	w, err := openApp(r.env, r.f.root, l)
	return w, l, err
}

func (r *root) setsList() *cobra.Command {
	var store bool
	var asOf string
	c := &cobra.Command{Use: "list", Short: "list backup sets, oldest first", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if asOf != "" && !store {
			return &usageError{"--as-of goes with --store"}
		}
		w, err := openAppAt(r.env, r.f.root, newListener(r.env, r.f.json, nil), asOf)
		if err != nil {
			return err
		}
		list := w.app.Sets
		if store {
			list = w.app.StoreSets
		}
		sets, damaged, err := list(cmd.Context())
		if err != nil {
			return err
		}
		for _, d := range damaged {
			fmt.Fprintf(r.env.Stderr, "warning: %v\n", d)
		}
		if r.f.json {
			if sets == nil {
				sets = []*catalog.Set{}
			}
			err = r.env.printJSON(sets)
		} else {
			rows := [][]string{{"SET", "STATE", "POSTGRESQL", "SIZE", "TOOK", "SKEW", "COPY", "LAST CHECK", "PIN"}}
			for _, s := range sets {
				rows = append(rows, setRow(s))
			}
			_, err = fmt.Fprint(r.env.Stdout, table(rows))
		}
		if err == nil && len(damaged) > 0 {
			err = &warningsError{len(damaged)}
		}
		return err
	}}
	c.Flags().BoolVar(&store, "store", false, "those whose tarballs are on the external storage, instead of this instance's")
	c.Flags().StringVar(&asOf, "as-of", "", asOfHelp)
	return c
}

// copyWord says in a word or two what is known of a set's copy.
func copyWord(s *catalog.Set) string {
	switch c := s.Copy; {
	case c == nil:
		return "-"
	case c.Error != "":
		return "behind"
	case c.Postgres && c.Tarballs:
		return "whole"
	case c.Postgres:
		return "PostgreSQL"
	case c.Tarballs:
		return "tarballs"
	}
	return "behind"
}

// pinWord says until when a set is pinned, and why; an end that has passed is shown, too.
func pinWord(s *catalog.Set) string {
	switch p := s.Pin; {
	case p == nil:
		return "-"
	case p.Until.IsZero():
		return p.Reason
	default:
		return "until " + p.Until.UTC().Format("2006-01-02 15:04") + ": " + p.Reason
	}
}

func setRow(s *catalog.Set) []string {
	took, skew, check := "-", "-", "-"
	if !s.Ended.IsZero() {
		took = s.Ended.Sub(s.Began).Round(time.Second).String()
	}
	if s.Recovery != nil {
		skew = fmt.Sprintf("%d ms", s.Recovery.Skew.Milliseconds)
	}
	if n := len(s.Verdicts); n > 0 {
		v := s.Verdicts[n-1]
		check = v.Check + " " + verdict(v) + ", " + v.At.Format("2006-01-02 15:04")
	}
	return []string{s.ID, string(s.State), whereWord(s), engine.Size(s.Size()), took, skew, copyWord(s), check, pinWord(s)}
}

func (r *root) setsShow() *cobra.Command {
	return &cobra.Command{Use: "show ID", Short: "show one set: pieces, recovery point, verdicts", Args: exactArgs(1, "a set's ID"), RunE: func(cmd *cobra.Command, args []string) error {
		w, _, err := r.app()
		if err != nil {
			return err
		}
		s, err := w.app.Set(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		if r.f.json {
			return r.env.printJSON(s)
		}
		return r.env.printSet(s)
	}}
}

func (r *root) setsInspect() *cobra.Command {
	return &cobra.Command{Use: "inspect ID", Short: "what takes the space in this backup", Args: exactArgs(1, "a set's ID"), RunE: func(cmd *cobra.Command, args []string) error {
		w, l, err := r.app()
		if err != nil {
			return err
		}
		parts, err := w.app.InspectSet(cmd.Context(), args[0])
		l.done()
		if err != nil {
			return err
		}
		if r.f.json {
			return r.env.printJSON(parts)
		}
		rows := [][]string{{"PIECE", "PART", "COUNT", "CONTENT", "STORED"}}
		for _, p := range parts {
			stored := "-"
			if p.Stored > 0 {
				stored = engine.Size(p.Stored)
			}
			rows = append(rows, []string{string(p.Piece), p.Name, fmt.Sprint(p.Count), engine.Size(p.Bytes), stored})
		}
		_, err = fmt.Fprint(r.env.Stdout, table(rows))
		return err
	}}
}

func (r *root) setsVerify() *cobra.Command {
	return &cobra.Command{Use: "verify ID", Short: "read every byte of a set and compare it with what the run wrote", Args: exactArgs(1, "a set's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, l, err := r.app()
			if err != nil {
				return err
			}
			v, err := w.app.VerifySet(cmd.Context(), args[0])
			l.done()
			if err != nil {
				return err
			}
			if r.f.json {
				err = r.env.printJSON(v)
			} else {
				for _, f := range v.Findings {
					fmt.Fprintln(r.env.Stdout, f)
				}
				_, err = fmt.Fprintf(r.env.Stdout, "set %s: %s\n", args[0], verdict(*v))
			}
			if err == nil && !v.OK {
				err = &findingsError{len(v.Findings)}
			}
			return err
		}}
}

func (r *root) setsCopy() *cobra.Command {
	return &cobra.Command{Use: "copy", Short: "bring the copies on external storage up to date: sets that are not there, and all WAL", Args: noArgs,
		Long: `Copies to the external storage what it does not have of the complete sets, oldest first, and all WAL, as backup_all does at its
end. Run between backups, from cron for instance, it keeps the time to which the copy can be restored close to now.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, l, err := r.app()
			if err != nil {
				return err
			}
			w.log.began("sets copy")
			res, err := w.app.CopySets(cmd.Context())
			l.done()
			w.log.ended("sets copy", err)
			if err != nil {
				return err
			}
			if r.f.json {
				err = r.env.printJSON(res)
			} else {
				err = r.env.printCopyReport(res)
			}
			if err == nil && len(res.Warnings) > 0 {
				err = &warningsError{len(res.Warnings)}
			}
			return err
		}}
}

// asOfHelp says what --as-of does wherever external storage is read.
const asOfHelp = "take the external storage as it was at that time: YYYY-MM-DD HH:MM:SS[+zone]; its bucket must keep versions"

func (r *root) setsFetch() *cobra.Command {
	var asOf string
	c := &cobra.Command{Use: "fetch ID", Short: "bring a set's tarballs back from external storage", Args: exactArgs(1, "a set's ID"),
		Long: `Brings the tarballs of a set from the external storage into alation.backup.data_dump_dir, every byte compared with what the
run wrote, and enters the set into the catalogue: holdfast restore --set ID then restores it, PostgreSQL from the external
storage. holdfast sets list --store lists what is there.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			l := newListener(r.env, r.f.json, nil)
			w, err := openAppAt(r.env, r.f.root, l, asOf)
			if err != nil {
				return err
			}
			w.log.began("sets fetch")
			set, err := w.app.FetchSet(cmd.Context(), args[0])
			l.done()
			w.log.ended("sets fetch", err)
			if err != nil {
				return err
			}
			if r.f.json {
				return r.env.printJSON(set)
			}
			return r.env.printSet(set)
		}}
	c.Flags().StringVar(&asOf, "as-of", "", asOfHelp)
	return c
}

func (r *root) setsDelete() *cobra.Command {
	var last bool
	c := &cobra.Command{Use: "delete ID", Short: "delete a set: tarballs, PostgreSQL backup, WAL that nothing else needs", Args: exactArgs(1, "a set's ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			w, l, err := r.app()
			if err != nil {
				return err
			}
			plan, err := w.app.PlanDeleteSet(cmd.Context(), args[0], last)
			l.done()
			if err != nil {
				return err
			}
			done, err := r.carryOut(cmd.Context(), w, l, removal{verb: "sets delete " + args[0], question: "Type YES to delete", plan: plan,
				show: func(out *Env) error { return out.printDeletePlan(plan) }, run: plan.Run})
			if !done || err != nil {
				return err
			}
			if r.f.json {
				return r.env.printJSON(plan)
			}
			_, err = fmt.Fprintf(r.env.Stdout, "set %s is deleted\n", args[0])
			return err
		}}
	r.removalFlags(c)
	c.Flags().BoolVar(&last, "last", false, "permit deleting the last set that can be restored")
	return c
}
