package action

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"holdfast/internal/catalog"
)

// chained is a set with one backup apart; base empty: a full one.
func chained(id, repository, label string, needs ...string) *catalog.Set {
	s := &catalog.Set{ID: id, Mode: catalog.Apart, Pieces: []catalog.Piece{{Kind: catalog.Application, Path: "/t/" + id}, {Kind: catalog.Postgres, Path: repository, Stanza: "main", Label: label}}}
	b := catalog.Backup{Stanza: "main", Label: label, Type: "full", Needs: needs}
	if len(needs) > 0 {
		b.Type, b.Prior = "incr", needs[len(needs)-1]
	}
	s.Backups = []catalog.Backup{b}
	return s
}

func ids(sets []*catalog.Set) (out []string) {
	for _, s := range sets {
		out = append(out, s.ID)
	}
	return out
}

// TestChains: who needs whom, by what sets say of their backups; without that, by the labels; in one repository only.
func TestChains(t *testing.T) {
	const f, i1, i2, d = "20261101-040000F", "20261101-040000F_20261102-040000I", "20261101-040000F_20261103-040000I", "20261101-040000F_20261104-040000D"
	sets := []*catalog.Set{
		chained("1", "/r", f), chained("2", "/r", i1, f), chained("3", "/r", i2, f, i1), chained("4", "/r", d, f),
		chained("5", "/r", "20261105-040000F"), chained("6", "/other", i1, f),
		{ID: "7", Mode: catalog.Included, Backups: []catalog.Backup{{Stanza: "main", Label: i2, Type: "incr", Prior: i1, Needs: []string{f, i1}}}},
	}
	sets[1].State = catalog.Failed // its backup is a base all the same
	check := func(name string, got []*catalog.Set, want ...string) {
		t.Helper()
		if !slices.Equal(ids(got), want) {
			t.Errorf("%s: %v, want %v", name, ids(got), want)
		}
	}
	check("that need 1", SetsThatNeed(sets, "1"), "2", "3", "4")
	check("that need 2", SetsThatNeed(sets, "2"), "3")
	check("that need 3", SetsThatNeed(sets, "3"))
	check("that need 5", SetsThatNeed(sets, "5"))
	check("that need nobody", SetsThatNeed(sets, "9"))
	check("needed by 3", SetsNeededBy(sets, "3"), "1", "2")
	check("needed by 4", SetsNeededBy(sets, "4"), "1")
	check("needed by 7", SetsNeededBy(sets, "7"))
	for _, s := range sets { // as an older program would have left them
		s.Backups = nil
	}
	check("unknown, that need 2", SetsThatNeed(sets, "2"), "3", "4")
	check("unknown, needed by 4", SetsNeededBy(sets, "4"), "1", "2", "3")
	// The set between has left the catalogue, its backup has not.
	gap := []*catalog.Set{chained("1", "/r", f), chained("3", "/r", i2, i1)}
	check("over a gap", SetsThatNeed(gap, "1"), "3")
	// Two clusters whose full backups are in different sets: the one leads on to the other.
	two := []*catalog.Set{chained("1", "/r", f), chained("2", "/r", i1, f), chained("3", "/r", "20261110-040000F")}
	for i, l := range []string{"20261101-050000F", "20261102-050000F", "20261102-050000F_20261103-050000I"} {
		two[i].Pieces = append(two[i].Pieces, catalog.Piece{Kind: catalog.Postgres, Path: "/r", Stanza: "second", Label: l})
	}
	check("through the second cluster", SetsThatNeed(two, "1"), "2", "3")
}

// TestChainsAgree: over random histories both directions say the same, and nothing that a chain leads through is missing.
func TestChainsAgree(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var sets []*catalog.Set
		prior := map[string]string{}
		owner := map[string]string{}
		label, chain := "", []string{}
		for n := range 3 + rnd.IntN(12) {
			id := fmt.Sprintf("2026110100%02d_1-0", n)
			stamp := fmt.Sprintf("20261101-0000%02d", n)
			if label == "" || rnd.IntN(4) == 0 {
				label, chain = stamp+"F", nil
			} else {
				if rnd.IntN(3) == 0 {
					chain = chain[:1]
				}
				label = chain[0] + "_" + stamp + "I"
				prior[label] = chain[len(chain)-1]
			}
			owner[label] = id
			sets = append(sets, chained(id, "/r", label, chain...))
			chain = append(slices.Clone(chain), label)
		}
		for _, s := range sets {
			var want []string
			for l := prior[s.Pieces[1].Label]; l != ""; l = prior[l] {
				want = append(want, owner[l])
			}
			slices.Sort(want)
			if got := ids(SetsNeededBy(sets, s.ID)); !slices.Equal(got, want) {
				t.Fatalf("%s needs %v, want %v", s.ID, got, want)
			}
			for _, other := range sets {
				if slices.Contains(want, other.ID) != slices.Contains(ids(SetsThatNeed(sets, other.ID)), s.ID) {
					t.Fatalf("%s and %s: the two directions disagree", s.ID, other.ID)
				}
			}
		}
	}
}
