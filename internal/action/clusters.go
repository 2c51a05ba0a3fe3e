package action

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/storage"
)

// Several clusters of one application: what is done with all of them at once.

// planClusters plans the backup of every cluster before the first of them is copied, which may take hours: a fault of any is known
// at once, and all faults together.
func (a *App) planClusters(ctx context.Context, st storage.Storage) ([]*engine.BackupPlan, error) {
	var plans []*engine.BackupPlan
	var errs []error
	for _, c := range a.o.Clusters {
		p, err := a.planCluster(ctx, c, st)
		plans, errs = append(plans, p), append(errs, err)
	}
	return plans, errors.Join(errs...)
}

// restorePoints writes the restore point into all clusters at the same time, so that their number does not widen the skew. conns are
// their sessions.
func (r *run) restorePoints(ctx context.Context, conns []*pg.Conn, name string) error {
	errs := make([]error, len(r.backups))
	var all sync.WaitGroup
	for i, b := range r.backups {
		all.Go(func() {
			from := r.o.Now().UTC()
			lsn, err := conns[i].CreateRestorePoint(ctx, name)
			if err != nil {
				errs[i] = fmt.Errorf("stanza %s: %w", b.Stanza, err)
				return
			}
			b.point = r.postgresPoint(b, lsn, catalog.Interval{From: from, To: r.o.Now().UTC()})
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// commitBefore has a running cluster that is to be restored to a time write a commit, which its last segment takes into the archive
// when it is stopped: if nobody has written to it since that time, recovery would find no place to end.
func (r *restoreRun) commitBefore(ctx context.Context, c *Cluster) error {
	if r.Until.IsZero() {
		return nil
	}
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return err
	}
	return errors.Join(conn.Commit(ctx), conn.Close())
}

// explainTime adds to the error of a server that did not get through recovery to a time what most likely ended it.
func (r *restoreRun) explainTime(ctx context.Context, err error) error {
	if r.Until.IsZero() || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w; if its log says that recovery ended before the target was reached: PostgreSQL stops at a time only where there is a later commit in the archive: name an earlier time, or leave --until away for the set's recovery point", err)
}
