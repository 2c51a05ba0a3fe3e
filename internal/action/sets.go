package action

import (
	"context"
	"errors"
	"fmt"
	"os"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Sets lists the catalogue, oldest first, and what is damaged in it.
func (a *App) Sets(ctx context.Context) ([]*catalog.Set, []error, error) {
	return a.o.Catalog.List(ctx)
}

// Set returns one set.
func (a *App) Set(ctx context.Context, id string) (*catalog.Set, error) {
	return a.o.Catalog.Get(ctx, id)
}

// Part is one share of a backup's space.
type Part struct {
	Piece  catalog.Kind `json:"piece"`
	Name   string       `json:"name"`
	Count  int64        `json:"count"`  // members or files
	Bytes  int64        `json:"bytes"`  // content
	Stored int64        `json:"stored"` // in the repository; 0: not measured for this part
}

// InspectSet says what takes the space in a set: tarball members by component and second path element, PostgreSQL by
// stanza. It reads the tarballs to their end.
func (a *App) InspectSet(ctx context.Context, id string) ([]Part, error) {
	set, err := a.o.Catalog.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	var parts []Part
	for _, p := range set.Pieces {
		if p.Kind == catalog.Postgres {
			for _, point := range pointsOf(set) {
				if point.Label == p.Label && point.Stanza == p.Stanza {
					parts = append(parts, Part{Piece: p.Kind, Name: point.Stanza + " " + point.Label, Count: 1, Bytes: point.Bytes, Stored: point.RepoBytes})
				}
			}
			continue
		}
		shares, err := inspectShares(ctx, p)
		if err != nil {
			return nil, err
		}
		parts = append(parts, shares...)
	}
	return parts, nil
}

func pointsOf(s *catalog.Set) []catalog.PostgresPoint {
	if s.Recovery == nil {
		return nil
	}
	return s.Recovery.Postgres
}

// VerifySet reads every piece of a set: sizes, SHA-256, every member, the files' index, the event bus's sums, and
// PostgreSQL's backup and WAL object by object. The verdict is put into the catalogue and returned; findings are not an
// error, err is what kept it from looking.
func (a *App) VerifySet(ctx context.Context, id string) (*catalog.Verdict, error) {
	unlock, err := a.lock("sets verify")
	if err != nil {
		return nil, err
	}
	v, err := a.verifySet(ctx, id)
	if err = errors.Join(err, unlock()); err != nil {
		return nil, err
	}
	return v, nil
}

func (a *App) verifySet(ctx context.Context, id string) (*catalog.Verdict, error) {
	set, err := a.o.Catalog.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	v := &catalog.Verdict{Check: "verify"}
	find := func(format string, args ...any) { v.Findings = append(v.Findings, fmt.Sprintf(format, args...)) }
	if set.State != catalog.Complete {
		find("the set is %s: %s", set.State, set.Error)
	}
	for _, k := range []catalog.Kind{catalog.Application} {
		if set.Piece(k) == nil {
			find("the set has no %s piece", k)
		}
	}
	if set.Mode == catalog.Apart && set.Piece(catalog.Postgres) == nil {
		find("the set has no postgres piece")
	}
	for _, p := range set.Pieces {
		a.step("verify", string(p.Kind), p.Path)
		var found []string
		switch p.Kind {
		case catalog.Postgres:
			found, err = a.verifyBackup(ctx, p.Path, p.Stanza, p.Label)
		default:
			found, err = a.verifyTarball(ctx, set, p)
		}
		if err != nil {
			return nil, err
		}
		v.Findings = append(v.Findings, found...)
	}
	v.At, v.OK = a.o.Now().UTC(), len(v.Findings) == 0
	set.Verdicts = append(set.Verdicts, *v)
	return v, a.o.Catalog.Put(ctx, set)
}

// verifyBackup checks one backup in a repository, a directory here or the one on external storage, with the WAL up to its stop.
func (a *App) verifyBackup(ctx context.Context, dir, stanza, label string) ([]string, error) {
	if _, err := os.Stat(dir); err != nil && !a.inStore(dir) {
		return []string{fmt.Sprintf("repository: %v", err)}, nil
	}
	st, err := a.openPiece(dir)
	if err != nil {
		return nil, err
	}
	w, err := a.workerAt(a.clusterOrName(stanza), dir, st)
	if err != nil {
		return nil, err
	}
	res, err := w.Verify(ctx, engine.VerifyOptions{Set: repo.Label(label), ProcessMax: a.o.ProcessMax})
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if storage.IsUnavailable(err) { // which says nothing about the set
		return nil, err
	}
	if err != nil {
		return []string{err.Error()}, nil
	}
	var found []string
	for _, f := range res.Findings {
		found = append(found, fmt.Sprintf("stanza %s: %s", stanza, f))
	}
	return found, nil
}
