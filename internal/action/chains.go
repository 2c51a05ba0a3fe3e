package action

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/repo"
)

// A diff or incr backup is built on others of its repository, which may be those of other sets. Who needs whom is worked out
// here and nowhere else; deleting, and any retention, asks here before it removes.
//
// Only sets with PostgreSQL apart need each other: a tarball has everything in it. The state of a set does not matter: a run
// that failed after its PostgreSQL backup has left one on which the next run built.

// backupName is one PostgreSQL backup in one repository.
type backupName struct{ repository, stanza, label string }

// separate are the backups of a set that lie in a repository apart.
func separate(s *catalog.Set) (out []backupName) {
	for _, p := range s.Pieces {
		if p.Kind == catalog.Postgres && p.Label != "" {
			out = append(out, backupName{p.Path, p.Stanza, p.Label})
		}
	}
	return out
}

// buildsOn says whether backup b of set s can't be restored without backup base. Where the set does not say what b is built
// on, every earlier backup under the same full one counts.
func buildsOn(s *catalog.Set, b, base backupName) bool {
	if b.repository != base.repository || b.stanza != base.stanza || b.label == base.label {
		return false
	}
	full := repo.Label(b.label).FullLabel()
	if known := s.Backup(b.stanza, b.label); known != nil && (known.Prior != "" || known.Type == string(repo.Full)) {
		return known.Prior == base.label || slices.Contains(known.Needs, base.label) || known.Prior != "" && base.label == string(full)
	}
	return full != "" && string(full) != b.label && repo.Label(base.label).FullLabel() == full && base.label < b.label
}

// needs says whether set s can't be restored without the PostgreSQL backups of set base.
func needs(s, base *catalog.Set) bool {
	for _, b := range separate(s) {
		for _, other := range separate(base) {
			if buildsOn(s, b, other) {
				return true
			}
		}
	}
	return false
}

// SetsThatNeed lists the sets that can't be restored any more when the set id is deleted, oldest first: those whose
// PostgreSQL backups are built on its, those built on theirs, and so on. Sets of mode included are never among them.
func SetsThatNeed(sets []*catalog.Set, id string) []*catalog.Set {
	return reach(sets, id, needs)
}

// SetsNeededBy lists the sets that must stay as long as the set id is to be restorable, oldest first.
func SetsNeededBy(sets []*catalog.Set, id string) []*catalog.Set {
	return reach(sets, id, func(s, from *catalog.Set) bool { return needs(from, s) })
}

// reach follows a relation from the set id to the end.
func reach(sets []*catalog.Set, id string, related func(s, from *catalog.Set) bool) []*catalog.Set {
	var found, next []*catalog.Set
	for _, s := range sets {
		if s.ID == id {
			next = append(next, s)
		}
	}
	for len(next) > 0 {
		from := next[0]
		next = next[1:]
		for _, s := range sets {
			if s.ID != id && !slices.Contains(found, s) && related(s, from) {
				found, next = append(found, s), append(next, s)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b *catalog.Set) int { return cmp.Compare(a.ID, b.ID) })
	return found
}

// ErrNeeded says that a set can't be deleted alone: others are built on it.
var ErrNeeded = errors.New("other sets are built on it")

// NeededError is an ErrNeeded that says which.
type NeededError struct {
	ID string
	By []string // the sets that need it, oldest first
}

// Unwrap makes errors.Is(err, ErrNeeded) true.
func (e *NeededError) Unwrap() error { return ErrNeeded }

func (e *NeededError) Error() string {
	return fmt.Sprintf("the PostgreSQL backup of set %s is what %d other(s) are built on: without it %s can't be restored; nothing was deleted. To delete them too: holdfast sets delete %[1]s --dependents (add --dry-run to see what goes)",
		e.ID, len(e.By), strings.Join(e.By, ", "))
}
