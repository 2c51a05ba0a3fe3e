package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/catalog"
	"holdfast/internal/rds"
)

// rdsBackup is one DB instance of a run.
type rdsBackup struct {
	RDSCluster
	client *rds.Client
	in     *rds.Instance
	name   string // of the snapshot
	begun  bool   // the service has said so
	lost   bool   // it was asked for, and what came of it is not known
	point  catalog.PostgresPoint
}

// errRDSLimit names what sets the time limit.
var errRDSLimit = errors.New("pgsql.rds.timeout")

// limited is ctx with the time that is given to the service.
func (a *App) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if a.o.RDS.Limit <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, a.o.RDS.Limit, errRDSLimit)
}

// prepareSnapshots looks at every DB instance before the long part of the run.
func (r *run) prepareSnapshots(ctx context.Context) error {
	for _, c := range r.o.RDS.Clusters {
		r.step("backup_all", "rds-look", c.Stanza)
		client, in, err := r.lookAt(ctx, c)
		if err != nil {
			return fmt.Errorf("cluster %s: %w", c.Stanza, err)
		}
		name := r.o.RDS.snapshotName(r.set.ID, in.Name)
		if err := rds.CheckName(name, rds.MaxSnapshotName); err != nil {
			return fmt.Errorf("cluster %s: %w; see pgsql.rds.snapshot_prefix", c.Stanza, err)
		}
		r.snapshots = append(r.snapshots, &rdsBackup{RDSCluster: c, client: client, in: in, name: name})
	}
	return nil
}

// beginSnapshots has the snapshots of all DB instances begun at the same time, and waits, for a while, until what they hold
// is decided. The catalogue knows their names before. It returns when it began; zero: there are none.
func (r *run) beginSnapshots(ctx context.Context) (from time.Time, err error) {
	if len(r.snapshots) == 0 {
		return time.Time{}, nil
	}
	r.step("backup_all", "rds-idle", fmt.Sprintf("%d instances", len(r.snapshots)))
	limited, cancel := r.limited(ctx)
	defer cancel()
	for _, b := range r.snapshots { // one that is being backed up by the service now would begin minutes after the others
		if b.in, err = b.client.AwaitIdle(limited, b.Instance); err != nil {
			return time.Time{}, fmt.Errorf("cluster %s: %w", b.Stanza, err)
		}
		r.set.Pieces = append(r.set.Pieces, catalog.Piece{Kind: catalog.Postgres, Path: rdsPath(b.Region, b.name), Stanza: b.Stanza, Label: b.name, Region: b.Region})
	}
	if err := r.o.Catalog.Put(ctx, r.set); err != nil { // so that they are found, whatever happens
		return time.Time{}, err
	}
	for _, b := range r.snapshots {
		r.describe(ctx, b)
	}
	r.step("backup_all", "rds-snapshot", fmt.Sprintf("%d snapshots", len(r.snapshots)))
	from = r.o.Now().UTC()
	var g errgroup.Group
	for _, b := range r.snapshots {
		g.Go(func() error { return wrap(r.beginSnapshot(limited, b), "cluster %s", b.Stanza) })
	}
	err = g.Wait()
	for _, b := range r.snapshots {
		b.point.Taken = catalog.Interval{From: from, To: r.o.Now().UTC()}
	}
	return from, err
}

// describe notes what the set says of the database: the service's words and, if it may be asked, its own.
func (r *run) describe(ctx context.Context, b *rdsBackup) {
	in := b.in
	major, _, _ := strings.Cut(in.EngineVersion, ".")
	b.point = catalog.PostgresPoint{Stanza: b.Stanza, Version: major, Databases: []string{},
		RDS: &catalog.RDSPoint{Region: b.Region, Instance: in.Name, Snapshot: b.name, Engine: in.Engine, EngineVersion: in.EngineVersion, Class: in.Class, StorageGiB: in.StorageGiB,
			StorageType: in.StorageType, Encrypted: in.Encrypted, KMSKey: in.KMSKey, Port: in.Port, SubnetGroup: in.SubnetGroup, SecurityGroups: in.SecurityGroups,
			ParameterGroup: in.ParameterGroup, OptionGroup: in.OptionGroup, MultiAZ: in.MultiAZ, Public: in.Public}}
	p, why, err := b.ask(ctx, in, false)
	if err != nil && ctx.Err() == nil {
		why = err.Error()
		r.set.Warnings = append(r.set.Warnings, fmt.Sprintf("cluster %s: the database could not be asked by SQL, so the set does not say what it holds: %s", b.Stanza, why))
	}
	if b.point.RDS.SQL = why; why == "" && err == nil {
		b.point.SystemID, b.point.Timeline, b.point.LSN, b.point.Databases = p.SystemID, p.Timeline, p.LSN.String(), p.Databases
	}
}

// beginSnapshot asks for one snapshot and waits, up to Settle, until what it holds is decided.
func (r *run) beginSnapshot(ctx context.Context, b *rdsBackup) error {
	_, err := b.client.CreateSnapshot(ctx, b.Instance, b.name, r.rdsTags(r.set, b.Stanza))
	if err != nil {
		b.lost = errors.Is(err, rds.ErrUnavailable) || ctx.Err() != nil
		return err
	}
	b.begun = true
	settle, cancel := context.WithTimeout(ctx, cmp.Or(r.o.RDS.Settle, settleTime))
	defer cancel()
	if _, err = b.client.AwaitSnapshot(settle, b.name, (*rds.Snapshot).Fixed); settle.Err() != nil && ctx.Err() == nil {
		return nil // the set tells how far the rest is from it
	}
	return err
}

// clockSlack is what the two clocks may differ by without anybody knowing: the service tells its own in whole seconds.
const clockSlack = 2 * time.Second

// settleSnapshots waits until every snapshot is available, and completes what the set says of them and of the skew.
func (r *run) settleSnapshots(ctx context.Context) error {
	if len(r.snapshots) == 0 {
		return nil
	}
	limited, cancel := r.limited(ctx)
	defer cancel()
	for _, b := range r.snapshots {
		r.step("backup_all", "rds-wait", b.name)
		s, err := b.client.AwaitSnapshot(limited, b.name, nil)
		if err != nil {
			return fmt.Errorf("cluster %s: %w", b.Stanza, err)
		}
		if !s.Of(r.set.ID, r.set.Run) || s.Instance != b.in.Name {
			return fmt.Errorf("cluster %s: snapshot %s is not the one that this run began: somebody has replaced it", b.Stanza, b.name)
		}
		r.noteSnapshot(b, s)
	}
	skew := &r.set.Recovery.Skew
	skew.Milliseconds = skew.To.Sub(skew.From).Milliseconds()
	return nil
}

// noteSnapshot completes the set's entries on one snapshot. Its time, on this host's clock, is part of the skew.
func (r *run) noteSnapshot(b *rdsBackup, s *rds.Snapshot) {
	ahead := s.ClockAhead
	if ahead.Abs() < clockSlack {
		ahead = 0
	}
	p := &b.point
	p.RDS.ARN, p.RDS.SnapshotTime, p.RDS.LastChange, p.RDS.ClockMS = s.ARN, s.Taken.UTC(), s.LastChange, ahead.Milliseconds()
	p.RDS.EngineVersion, p.RDS.StorageGiB, p.RDS.Encrypted, p.RDS.KMSKey = s.EngineVersion, s.StorageGiB, s.Encrypted, s.KMSKey
	p.Bytes = cmp.Or(s.Bytes, int64(s.StorageGiB)<<30)
	p.RepoBytes = s.Bytes
	here, skew := s.Taken.Add(-ahead).UTC(), &r.set.Recovery.Skew
	if here.Before(skew.From.Add(-clockSlack)) {
		skew.From = here
	}
	if here.After(skew.To) {
		skew.To = here
	}
	if here.After(p.Taken.To) {
		p.Taken.To = here
	}
	r.set.Recovery.Postgres = append(r.set.Recovery.Postgres, *p)
	for i := range r.set.Pieces {
		if q := &r.set.Pieces[i]; q.OnRDS() && q.Label == b.name {
			q.Size = p.Bytes
		}
	}
}

// dropSnapshots removes the snapshots of a run that failed. What can't be removed yet, since it is still being created, stays
// named in the set: the next run, or the deletion of the set, removes it.
func (r *run) dropSnapshots(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanTime)
	defer cancel()
	for _, b := range r.snapshots {
		i := slices.IndexFunc(r.set.Pieces, func(p catalog.Piece) bool { return p.OnRDS() && p.Label == b.name })
		if i < 0 {
			continue
		}
		if !b.begun && !b.lost {
			r.set.Pieces = slices.Delete(r.set.Pieces, i, i+1)
			continue
		}
		r.step("backup_all", "rds-drop", b.name)
		switch err := b.client.DeleteSnapshot(ctx, b.name, r.set.ID, r.set.Run); {
		case err == nil, errors.Is(err, rds.ErrNotOurs), errors.Is(err, rds.ErrNotFound) && !b.lost:
			r.set.Pieces = slices.Delete(r.set.Pieces, i, i+1)
		default:
			r.set.Pieces[i].Size = 0 // as one that no run has seen complete
			r.warn("snapshot %s is left over from this run (%v); the next run removes it, or now: holdfast sets delete %s", b.name, err, r.set.ID)
		}
	}
}

// sweepSnapshots removes what failed runs left in the service: snapshots that their run never saw complete. A service that
// can't be asked keeps no run from beginning.
func (a *App) sweepSnapshots(ctx context.Context) error {
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return err
	}
	for _, s := range sets {
		before := len(s.Pieces)
		if s.State != catalog.Failed {
			continue
		}
		s.Pieces = slices.DeleteFunc(s.Pieces, func(p catalog.Piece) bool { return p.OnRDS() && p.Size == 0 && a.sweepSnapshot(ctx, s, p) })
		if len(s.Pieces) == before {
			continue
		}
		if err := a.o.Catalog.Put(ctx, s); err != nil {
			return err
		}
	}
	return ctx.Err()
}

// sweepSnapshot says whether a snapshot is gone.
func (a *App) sweepSnapshot(ctx context.Context, s *catalog.Set, p catalog.Piece) bool {
	if ctx.Err() != nil {
		return false
	}
	client, err := a.rdsClient(p.Region)
	if err == nil {
		a.step("backup_all", "rds-sweep", p.Label)
		limited, cancel := context.WithTimeout(ctx, cleanTime)
		err = client.DeleteSnapshot(limited, p.Label, s.ID, s.Run)
		cancel()
	}
	if err == nil || errors.Is(err, rds.ErrNotFound) || errors.Is(err, rds.ErrNotOurs) {
		return true
	}
	a.warn("snapshot %s is left over from the failed run of set %s: %v", p.Label, s.ID, err)
	return false
}
