package action

import (
	"context"
	"path/filepath"

	"holdfast/internal/catalog"
)

// alsoMissing looks for what else is missing when the application tarball cannot be used: the catalogue knows the set by
// the tarball's name, and with it what PostgreSQL's repository must hold. One message should name everything, not the next
// piece after each search.
func (p *RestorePlan) alsoMissing(ctx context.Context) {
	set := p.catalogued(ctx)
	if set == nil || set.Recovery == nil || set.Mode != catalog.Apart {
		return
	}
	p.Notes = append(p.Notes, "the catalogue says that this tarball belongs to the set "+set.ID+": PostgreSQL's part was looked at, too")
	p.Set = set
	p.postgres(ctx)
	p.Set = nil // without the tarball there is nothing to restore
}

// catalogued is the set whose application tarball has the name that was given; nil when there is none.
func (p *RestorePlan) catalogued(ctx context.Context) *catalog.Set {
	if p.o.RestoreFile == "" {
		return nil
	}
	sets, _, err := p.a.o.Catalog.List(ctx)
	if err != nil {
		return nil // this is only a help; what is known to be missing is said all the same
	}
	for _, s := range sets {
		for _, piece := range s.Pieces {
			if piece.Kind == catalog.Application && filepath.Base(piece.Path) == filepath.Base(p.o.RestoreFile) {
				return s
			}
		}
	}
	return nil
}
