package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"holdfast/internal/storage"
)

// maxDocument bounds one set document, in bytes.
const maxDocument = 16 << 20

// Store keeps sets as objects of one storage. Changes are whole-object replacements; callers hold the instance's lock.
type Store struct{ st storage.Storage }

// NewStore keeps its objects at the root of st.
func NewStore(st storage.Storage) *Store { return &Store{st} }

// Put writes the set durably, in place of what had its id.
func (c *Store) Put(ctx context.Context, s *Set) error {
	b, err := s.Encode()
	if err != nil {
		return err
	}
	if err := storage.WriteAll(ctx, c.st, s.ID+".json", b); err != nil {
		return fmt.Errorf("catalogue: write set %s: %w", s.ID, err)
	}
	return nil
}

// Get reads one set; ErrUnknown when there is none of that id, also when no set could have it.
func (c *Store) Get(ctx context.Context, id string) (*Set, error) {
	if err := CheckID(id); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	b, err := storage.ReadAll(ctx, c.st, id+".json", maxDocument)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s; see: holdfast sets list", ErrUnknown, id)
	}
	if err != nil {
		return nil, fmt.Errorf("catalogue: read set %s: %w", id, err)
	}
	s, err := Parse(b)
	if err != nil {
		return nil, fmt.Errorf("catalogue: %s.json: %w", id, err)
	}
	if s.ID != id {
		return nil, fmt.Errorf("catalogue: %s.json holds set %s: it was copied or renamed by hand; rename it back", id, s.ID)
	}
	return s, nil
}

// List reads every set, the one that began first first: identifiers are no order, since a run whose minute is taken passes over it
// and a later one may take a minute that has become free. A document that can't be read is named in damaged and the rest is still listed.
func (c *Store) List(ctx context.Context) (sets []*Set, damaged []error, err error) {
	for info, err := range c.st.List(ctx, "", storage.ListOptions{}) {
		if err != nil {
			return nil, nil, fmt.Errorf("catalogue: %w", err)
		}
		id, ok := strings.CutSuffix(path.Base(info.Name), ".json")
		if info.Dir || !ok || CheckID(id) != nil {
			continue
		}
		s, err := c.Get(ctx, id)
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		if err != nil {
			damaged = append(damaged, err)
			continue
		}
		sets = append(sets, s)
	}
	slices.SortFunc(sets, func(a, b *Set) int { return cmp.Or(a.Began.Compare(b.Began), strings.Compare(a.ID, b.ID)) })
	return sets, damaged, nil
}

// Delete forgets one set; a set that is not there is no error.
func (c *Store) Delete(ctx context.Context, id string) error {
	if err := CheckID(id); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	if err := c.st.Remove(ctx, id+".json"); err != nil {
		return fmt.Errorf("catalogue: delete set %s: %w", id, err)
	}
	return nil
}
