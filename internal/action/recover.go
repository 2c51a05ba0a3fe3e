package action

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// StoredSet is one set on external storage, and what of it is not there.
type StoredSet struct {
	*catalog.Set
	Lacks []string `json:"lacks,omitempty"` // empty: it restores from there
}

// RecoverableSets lists the sets on external storage, oldest first, each with what it lacks there, and what is damaged. The list is
// of what is there now, whatever a recovery kit says.
func (a *App) RecoverableSets(ctx context.Context) (sets []StoredSet, damaged []error, err error) {
	all, damaged, err := a.StoreSets(ctx)
	if err != nil {
		return nil, nil, err
	}
	there := map[string][]repo.Label{} // by stanza
	for _, s := range all {
		stored := StoredSet{Set: s}
		for _, point := range pointsOf(s) {
			if s.Mode != catalog.Apart {
				continue
			}
			have, known := there[point.Stanza]
			if !known {
				if have, err = a.storedLabels(ctx, point.Stanza); err != nil {
					return nil, nil, err
				}
				there[point.Stanza] = have
			}
			if !slices.Contains(have, repo.Label(point.Label)) {
				stored.Lacks = append(stored.Lacks, fmt.Sprintf("PostgreSQL's backup %s of stanza %s", point.Label, point.Stanza))
			}
		}
		if s.Recovery == nil {
			stored.Lacks = append(stored.Lacks, "its recovery point")
		}
		sets = append(sets, stored)
	}
	return sets, damaged, nil
}

// storedLabels are the backups of a stanza on external storage; none where the stanza is not there.
func (a *App) storedLabels(ctx context.Context, stanza string) ([]repo.Label, error) {
	st, err := a.storeRepo()
	if err != nil {
		return nil, err
	}
	s, err := a.storeStanza(stanza, st)
	if err != nil {
		return nil, err
	}
	have, err := s.Labels(ctx)
	if errors.Is(err, engine.ErrStanzaMissing) {
		return nil, nil
	}
	return have, wrap(err, "external storage %s", a.o.Store.Name)
}
