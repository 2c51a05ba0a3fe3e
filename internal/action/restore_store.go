package action

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// A restore that takes PostgreSQL from external storage. The files of the backup go from there straight into the data directory.
// The WAL is brought into staging first, so that PostgreSQL needs neither keys to the storage nor a network while it recovers, and
// so that whatever is missing shows before anything is touched.

// fromStore says whether the PostgreSQL backup of the set is taken from external storage: because it was asked for, or because the
// set was fetched from there.
func (p *RestorePlan) fromStore() bool {
	return p.Set.Mode == catalog.Apart && !p.byProbackup() && (p.o.FromStore || p.fetched)
}

// findSource decides where PostgreSQL is taken from.
func (p *RestorePlan) findSource(ctx context.Context) {
	known, err := p.a.o.Catalog.Get(ctx, p.Set.ID)
	if err != nil || p.o.FromStore {
		return
	}
	for _, piece := range known.Pieces {
		if piece.Kind == catalog.Postgres && p.a.inStore(piece.Path) {
			p.fetched = true
			p.Notes = append(p.Notes, "the set was fetched from "+piece.Path+": PostgreSQL is restored from there")
			return
		}
	}
	p.findRepository(ctx, known)
}

// findRepository finds the repository here that has the set's backup where the parameters name another by now: they changed, or the
// mode did.
func (p *RestorePlan) findRepository(ctx context.Context, known *catalog.Set) {
	has := func(dir string, piece catalog.Piece) bool {
		if _, err := os.Stat(dir); err != nil {
			return false
		}
		st, err := p.a.o.OpenRepo(dir)
		if err != nil {
			return false
		}
		s, err := p.a.stanza(piece.Stanza, st)
		if err != nil {
			return false
		}
		labels, err := s.Labels(ctx)
		return err == nil && slices.Contains(labels, repo.Label(piece.Label))
	}
	for _, piece := range known.Pieces {
		if piece.Kind != catalog.Postgres || piece.OnRDS() || piece.Tool != "" || piece.Path == p.a.o.RepoDir {
			continue
		}
		if !has(p.a.o.RepoDir, piece) && has(piece.Path, piece) {
			p.dir = piece.Path
			p.Notes = append(p.Notes, fmt.Sprintf("the set's PostgreSQL backup is in %s, where it was made, not in %s: it is restored from there", piece.Path, p.a.o.RepoDir))
		}
		return
	}
}

// source opens the repository that PostgreSQL is restored from, apart from the tarball, and names it.
func (p *RestorePlan) source() (st storage.Storage, name string, err error) {
	if !p.fromStore() {
		if p.dir != "" {
			st, err = p.a.o.OpenRepo(p.dir)
			return st, p.dir, wrap(err, "repository %s", p.dir)
		}
		st, err = p.a.repository()
		return st, p.a.o.RepoDir, err
	}
	if st, err = p.a.storeRepo(); err != nil {
		return nil, "", err
	}
	return st, p.a.o.Store.Name, nil
}

// stanza is the engine on one cluster of the source.
func (p *RestorePlan) stanza(name string, st storage.Storage) (*engine.Stanza, error) {
	if p.fromStore() {
		return p.a.storeStanza(name, st)
	}
	return p.a.stanza(name, st)
}

// cluster is the history entry that a cluster of the set has in the source: on external storage it may be another.
func (p *RestorePlan) cluster(ctx context.Context, s *engine.Stanza, point catalog.PostgresPoint) (repo.DB, error) {
	if !p.fromStore() {
		return repo.DB{ID: point.HistoryID, Version: point.Version}, nil
	}
	return s.Cluster(ctx, point.SystemID, point.Version)
}

// elsewhere adds to an error that a backup is not in the repository here where else it may be.
func (p *RestorePlan) elsewhere(err error) error {
	if p.fromStore() || p.a.o.Store == nil || p.Set.Mode != catalog.Apart || !errors.Is(err, engine.ErrNoBackup) && !errors.Is(err, engine.ErrStanzaMissing) {
		return err
	}
	return fmt.Errorf("%w; if it is on %s: alation_conf pgsql.pgbackrest.restore.source -s s3", err, p.a.o.Store.Name)
}

// stageWAL brings the WAL of every cluster into the staging repository, from the backup's start to the recovery point, or with a time
// to restore to all that there is.
func (r *restoreRun) stageWAL(ctx context.Context) error {
	if !r.fromStore() || len(pointsOf(r.Set)) == 0 {
		return nil
	}
	r.repoDir = filepath.Join(r.staging, "pgbackrest")
	from, name, err := r.source()
	if err != nil {
		return err
	}
	to, err := r.a.o.OpenRepo(r.repoDir)
	if err != nil {
		return err
	}
	for _, point := range pointsOf(r.Set) {
		r.a.step("restore", "stage-wal", point.Stanza)
		if err := r.stageCluster(ctx, from, to, point); err != nil {
			return fmt.Errorf("WAL of cluster %s from %s: %w", point.Stanza, name, err)
		}
	}
	return wrap(to.Sync(ctx), "staging")
}

func (r *restoreRun) stageCluster(ctx context.Context, from, to storage.Storage, point catalog.PostgresPoint) error {
	src, err := r.stanza(point.Stanza, from)
	if err != nil {
		return err
	}
	dst, err := r.a.stanza(point.Stanza, to)
	if err != nil {
		return err
	}
	db, err := r.cluster(ctx, src, point)
	if err != nil {
		return err
	}
	segments, err := segmentRange(point)
	if err != nil {
		return err
	}
	_, err = engine.CopyArchive(ctx, src, dst, db, segments, !r.Until.IsZero(), r.a.o.Store.ProcessMax)
	return err
}
