package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/engine"
)

func (r *root) rdsCommand() *cobra.Command {
	c := &cobra.Command{Use: "rds", Short: "databases that are DB instances of Amazon RDS"}
	c.AddCommand(r.rdsSnapshots())
	return group(c)
}

func (r *root) rdsSnapshots() *cobra.Command {
	return &cobra.Command{Use: "snapshots", Short: "list Holdfast's DB snapshots, with the set that each belongs to, and orphans", Args: noArgs,
		Long: `Lists the manual DB snapshots with Holdfast's tags in every region where this instance has a database or a set a snapshot.
SET'S STATE is that of the set in the catalogue; orphan: this instance made the snapshot, and no set of its catalogue has it;
elsewhere: another instance made it. Complete sets whose DB snapshot is gone are named last, and make the exit code 6.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w, l, err := r.app()
			if err != nil {
				return err
			}
			all, gone, err := w.app.RDSSnapshots(cmd.Context())
			l.done()
			if err != nil {
				return err
			}
			if r.f.json {
				if all == nil {
					all = []action.ListedSnapshot{}
				}
				if gone == nil {
					gone = []catalog.Piece{}
				}
				err = r.env.printJSON(map[string]any{"snapshots": all, "gone": gone})
			} else {
				err = r.env.printSnapshots(all, gone)
			}
			if err == nil && len(gone) > 0 {
				err = &findingsError{len(gone)}
			}
			return err
		}}
}

func (e *Env) printSnapshots(all []action.ListedSnapshot, gone []catalog.Piece) error {
	rows := [][]string{{"SNAPSHOT", "REGION", "INSTANCE", "STATE", "TAKEN", "SIZE", "SET", "SET'S STATE"}}
	orphans := 0
	for _, s := range all {
		taken := "-"
		if !s.Taken.IsZero() {
			taken = s.Taken.UTC().Format("2006-01-02 15:04")
		}
		size := fmt.Sprintf("%d GiB", s.StorageGiB)
		if s.Bytes > 0 {
			size = engine.Size(s.Bytes)
		}
		standing := s.Standing
		switch standing {
		case action.Elsewhere:
			standing += ": " + s.Host + ":" + s.Root
		case action.Orphan:
			orphans++
		}
		rows = append(rows, []string{s.Name, s.Region, s.Instance, s.State, taken, size, s.Set, standing})
	}
	var p page
	p.f("%s", table(rows))
	if orphans > 0 {
		p.f("%d orphan(s): no set needs them; remove them with: aws rds delete-db-snapshot --region REGION --db-snapshot-identifier SNAPSHOT\n", orphans)
	}
	for _, g := range gone {
		p.f("gone: snapshot %s of cluster %s, which a complete set names\n", g.Path, g.Stanza)
	}
	return p.to(e.Stdout)
}
