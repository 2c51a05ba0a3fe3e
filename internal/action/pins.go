package action

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/internal/catalog"
)

// ErrSetStays says why a set is not deleted, or not pinned; nothing was changed.
var ErrSetStays = errors.New("the set stays as it is")

// fetchedPin is for how long the retention leaves a set alone that was fetched from external storage.
const fetchedPin = 7 * 24 * time.Hour

// maxReason bounds a reason, in bytes.
const maxReason = 500

// PinSet keeps a complete set, and what it needs, from the retention and from being deleted, until a time (zero: without an end). A
// pin that it has already is replaced.
func (a *App) PinSet(ctx context.Context, id, reason string, until time.Time) (*catalog.Set, error) {
	reason = strings.Join(strings.Fields(reason), " ")
	switch now := a.o.Now(); {
	case reason == "" || len(reason) > maxReason:
		return nil, fmt.Errorf("%w: a pin needs a reason of at most %d bytes", ErrSetStays, maxReason)
	case !until.IsZero() && !until.After(now):
		return nil, fmt.Errorf("%w: %s is not in the future", ErrSetStays, until.UTC().Format("2006-01-02 15:04 MST"))
	}
	return a.changePin(ctx, "sets pin", id, func(s *catalog.Set) error {
		if s.State != catalog.Complete {
			return fmt.Errorf("%w: set %s is %s; only a complete one can be pinned", ErrSetStays, id, s.State)
		}
		s.Pin = &catalog.Pin{Reason: reason, At: a.o.Now().UTC(), Until: until.UTC()}
		return nil
	})
}

// UnpinSet takes the pin from a set; one that has none is left as it is.
func (a *App) UnpinSet(ctx context.Context, id string) (*catalog.Set, error) {
	return a.changePin(ctx, "sets unpin", id, func(s *catalog.Set) error { s.Pin = nil; return nil })
}

func (a *App) changePin(ctx context.Context, verb, id string, change func(*catalog.Set) error) (*catalog.Set, error) {
	unlock, err := a.lock(ctx, verb)
	if err != nil {
		return nil, err
	}
	set, err := a.o.Catalog.Get(ctx, id)
	if err == nil {
		if err = change(set); err == nil {
			err = a.o.Catalog.Put(ctx, set)
		}
	}
	if err = errors.Join(err, unlock()); err != nil {
		return nil, err
	}
	return set, nil
}
