package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"holdfast/internal/catalog"
	"holdfast/internal/rds"
)

// verifySnapshot looks whether the DB snapshot of a set is there, available, and still the one that the run made. Its content
// is the service's: only a restore reads it.
func (a *App) verifySnapshot(ctx context.Context, set *catalog.Set, p catalog.Piece) ([]string, error) {
	client, err := a.rdsClient(p.Region)
	if err != nil {
		return nil, err
	}
	s, err := client.Snapshot(ctx, p.Label)
	if errors.Is(err, rds.ErrNotFound) {
		return []string{fmt.Sprintf("cluster %s: %v", p.Stanza, err)}, nil
	}
	if err != nil { // which says nothing about the snapshot
		return nil, err
	}
	var found []string
	find := func(format string, args ...any) {
		found = append(found, fmt.Sprintf("cluster %s: snapshot %s %s", p.Stanza, p.Label, fmt.Sprintf(format, args...)))
	}
	if !s.Of(set.ID, set.Run) {
		find("does not carry the tags of this set")
	}
	if s.State != rds.Available {
		find("is %s", s.State)
	}
	i := slices.IndexFunc(set.OnRDS(), func(q catalog.PostgresPoint) bool { return q.RDS.Snapshot == p.Label && q.RDS.Region == p.Region })
	if i < 0 {
		return append(found, fmt.Sprintf("cluster %s: the set's recovery point does not tell of snapshot %s", p.Stanza, p.Label)), nil
	}
	want := set.OnRDS()[i].RDS
	for _, c := range []struct{ what, is, was string }{
		{"instance", s.Instance, want.Instance}, {"resource name", s.ARN, want.ARN}, {"engine", s.Engine, want.Engine},
		{"size", fmt.Sprint(s.StorageGiB, " GiB"), fmt.Sprint(want.StorageGiB, " GiB")}, {"key", s.KMSKey, want.KMSKey},
		{"time", s.Taken.UTC().Format("2006-01-02T15:04:05Z"), want.SnapshotTime.Format("2006-01-02T15:04:05Z")},
	} {
		if c.is != c.was {
			find("has the %s %q, the set says %q", c.what, c.is, c.was)
		}
	}
	return found, nil
}

// SnapshotRemoval is one DB snapshot that goes with a set.
type SnapshotRemoval struct {
	Stanza   string `json:"stanza"`
	Region   string `json:"region"`
	Snapshot string `json:"snapshot"`
	Instance string `json:"instance"` // that it is of, and that stays
	State    string `json:"state"`
}

// planSnapshot adds the DB snapshot of a piece to what goes, if it is there and the set's.
func (p *DeletePlan) planSnapshot(ctx context.Context, piece catalog.Piece) error {
	client, err := p.a.rdsClient(piece.Region)
	if err != nil {
		return err
	}
	s, err := client.Snapshot(ctx, piece.Label)
	switch {
	case errors.Is(err, rds.ErrNotFound):
		p.Warnings = append(p.Warnings, err.Error())
	case err != nil:
		return err
	case !s.Of(p.Set.ID, p.Set.Run):
		p.Warnings = append(p.Warnings, fmt.Sprintf("snapshot %s in %s does not carry the tags of this set: it stays", piece.Label, piece.Region))
	case s.State == rds.Creating:
		return fmt.Errorf("snapshot %s in %s is still being created, and can't be removed before it is complete: try again later", piece.Label, piece.Region)
	default:
		p.Snapshots = append(p.Snapshots, SnapshotRemoval{Stanza: piece.Stanza, Region: piece.Region, Snapshot: s.Name, Instance: s.Instance, State: s.State})
	}
	return nil
}

// removeSnapshots removes snapshots, those that do not carry the set's tags excepted.
func (a *App) removeSnapshots(ctx context.Context, set *catalog.Set, snapshots []SnapshotRemoval) error {
	for _, s := range snapshots {
		client, err := a.rdsClient(s.Region)
		if err != nil {
			return err
		}
		a.step("delete", "rds-snapshot", s.Snapshot)
		err = client.DeleteSnapshot(ctx, s.Snapshot, set.ID, set.Run)
		if errors.Is(err, rds.ErrNotOurs) { // somebody has replaced it
			a.warn("%v", err)
			continue
		}
		if err != nil && !errors.Is(err, rds.ErrNotFound) {
			return fmt.Errorf("cluster %s: %w", s.Stanza, err)
		}
	}
	return nil
}

// ListedSnapshot is one DB snapshot with Holdfast's tags.
type ListedSnapshot struct {
	rds.Snapshot
	Region string `json:"region"`
	Stanza string `json:"stanza"`
	Set    string `json:"set"`
	// Standing is the state of its set in this instance's catalogue; "orphan" when this instance made it and its set is not in the
	// catalogue, or does not name it; "elsewhere" when another instance made it.
	Standing string `json:"standing"`
	Host     string `json:"host"`
	Root     string `json:"root"`
}

// Orphan and Elsewhere are standings that are no state of a set.
const (
	Orphan    = "orphan"
	Elsewhere = "elsewhere"
)

// RDSSnapshots lists Holdfast's DB snapshots, oldest first, in every region where this instance has a database or a set a
// snapshot. gone are snapshots that a complete set names and that are not there.
func (a *App) RDSSnapshots(ctx context.Context) (all []ListedSnapshot, gone []catalog.Piece, err error) {
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	named := map[string]*catalog.Set{} // by path of the piece
	var regions []string
	for _, c := range a.o.RDS.Clusters {
		regions = append(regions, c.Region)
	}
	for _, s := range sets {
		for _, p := range s.Pieces {
			if p.OnRDS() {
				regions, named[p.Path] = append(regions, p.Region), s
			}
		}
	}
	slices.Sort(regions)
	seen := map[string]bool{}
	for _, region := range slices.Compact(regions) {
		client, err := a.rdsClient(region)
		if err != nil {
			return nil, nil, err
		}
		list, err := client.Snapshots(ctx)
		if err != nil {
			return nil, nil, err
		}
		for _, s := range list {
			l := ListedSnapshot{Snapshot: s, Region: region, Stanza: s.Tags[rds.TagStanza], Set: s.Tags[rds.TagSet], Host: s.Tags[rds.TagHost], Root: s.Tags[rds.TagRoot], Standing: Elsewhere}
			path := rdsPath(region, s.Name)
			if set := named[path]; set != nil && s.Of(set.ID, set.Run) {
				l.Standing, seen[path] = string(set.State), true
			} else if l.Host == rds.TagValue(a.o.Host) && l.Root == rds.TagValue(a.o.Root) {
				l.Standing = Orphan
			}
			all = append(all, l)
		}
	}
	for _, s := range sets {
		for _, p := range s.Pieces {
			if p.OnRDS() && s.State == catalog.Complete && !seen[p.Path] {
				gone = append(gone, p)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b ListedSnapshot) int { return cmp.Or(a.Taken.Compare(b.Taken), cmp.Compare(a.Name, b.Name)) })
	return all, gone, nil
}
