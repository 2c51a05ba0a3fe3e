package engine_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// walModel decides on one object of a history, from the words of PlanWAL's comment.
func walModel(h *history, until map[repo.Label]string, without []repo.Label, name string) bool {
	elem := strings.Split(name, "/")
	if elem[0] != "archive" {
		return true
	}
	_, id, _ := repo.ParseArchiveID(elem[2])
	var bounded, unbounded []repo.BackupLine
	for _, l := range h.bi.Backups {
		if l.DBID != id || slices.Contains(without, l.Label) {
			continue
		}
		if l.ArchiveStart == "" {
			return true // offline: everything may be wanted
		}
		if until[l.Label] != "" {
			bounded = append(bounded, l)
		} else {
			unbounded = append(unbounded, l)
		}
	}
	if len(unbounded) == 0 && id == h.bi.Current {
		return true
	}
	base := elem[len(elem)-1]
	if pg.IsHistoryName(base) {
		return len(bounded)+len(unbounded) > 0
	}
	seg := base[:24]
	for _, l := range unbounded {
		if seg >= l.ArchiveStart || seg[8:] >= l.ArchiveStart[8:] {
			return true
		}
	}
	for _, l := range bounded {
		if seg >= l.ArchiveStart && (seg <= until[l.Label] || seg <= l.ArchiveStop) {
			return true
		}
	}
	return false
}

// TestPlanWALModel: on random histories exactly the WAL goes that the model lets go, a plan changes nothing, and a second run finds
// nothing more.
func TestPlanWALModel(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 300
	}
	now := time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)
	files, whole, kept, refused := 0, 0, 0, 0
	for seed := range n {
		rnd := rand.New(rand.NewPCG(uint64(seed), 77))
		h := randomHistory(rnd, now, false)
		st := storage.NewMem(nil)
		h.store(t, st)
		until := map[repo.Label]string{}
		var without []repo.Label
		for i, l := range h.bi.Backups {
			if l.ArchiveStart != "" && rnd.IntN(2) == 0 {
				p := l.ArchiveStop
				for _, name := range slices.Sorted(maps.Keys(h.objects)) { // some segment from there on
					if b := path.Base(name); len(b) > 24 && pg.IsSegmentName(b[:24]) && b[:24] > p && rnd.IntN(3) == 0 {
						p = b[:24]
						break
					}
				}
				until[l.Label] = p
			}
			// What is to be removed: the newest of each cluster, on which nothing is built.
			if i+1 == len(h.bi.Backups) && rnd.IntN(3) == 0 {
				without = append(without, l.Label)
			}
		}
		want := map[string]bool{}
		for name := range h.objects {
			if walModel(h, until, without, name) {
				want[name] = true
			}
		}
		before := contents(t, st)
		s := h.expireOn(t, st)
		plan, err := s.PlanWAL(t.Context(), until, without...)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !maps.Equal(before, contents(t, st)) {
			t.Fatalf("seed %d: the plan changed something", seed)
		}
		if plan.Files != len(h.objects)-len(want) {
			t.Errorf("seed %d: %d files are to go, want %d", seed, plan.Files, len(h.objects)-len(want))
		}
		if len(without) > 0 { // still there: its WAL stays, whatever was planned
			for name := range h.objects {
				if walModel(h, until, nil, name) {
					want[name] = true
				}
			}
		}
		err = plan.Run(t.Context())
		if err != nil && len(without) > 0 && strings.Contains(err.Error(), "make the plan again") { // more would go, as it is still there
			if !maps.Equal(before, contents(t, st)) {
				t.Fatalf("seed %d: it was refused, and something is changed", seed)
			}
			refused++
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		left := map[string]bool{}
		for _, name := range st.Names() {
			if !strings.HasPrefix(path.Base(name), "archive.info") && !strings.HasPrefix(path.Base(name), "backup.info") {
				left[name] = true
			}
		}
		compareSets(t, fmt.Sprintf("seed %d: until %v without %v", seed, until, without), left, want)
		if t.Failed() {
			t.Fatalf("current %d; backups %+v", h.bi.Current, h.bi.Backups)
		}
		if again, err := s.PlanWAL(t.Context(), until); err != nil || again.Files > 0 && len(without) == 0 {
			t.Fatalf("seed %d: a second run would remove %d files, %v", seed, again.Files, err)
		}
		files += plan.Files
		kept += len(until)
		for _, w := range plan.WAL {
			if w.Whole {
				whole++
			}
		}
	}
	t.Logf("%d files and %d directories removed; %d backups with WAL up to a segment; %d plans refused", files, whole, kept, refused)
	tally.Count(t, "histories whose WAL went as the slow model says", n)
	if files == 0 || whole == 0 || kept == 0 {
		t.Error("the histories do not show enough")
	}
}

// TestPlanWALRefuses: a segment that is none, a plan that is not true any more, and a stop file.
func TestPlanWALRefuses(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 77))
	var h *history
	for h == nil || len(h.bi.Backups) < 4 || len(h.bi.History) > 1 {
		h = randomHistory(rnd, time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC), false)
	}
	st := storage.NewMem(nil)
	h.store(t, st)
	s := h.expireOn(t, st)
	if _, err := s.PlanWAL(t.Context(), map[repo.Label]string{"20260101-000000F": "x"}); err == nil || !strings.Contains(err.Error(), `"x"`) {
		t.Error(err)
	}
	if _, err := h.expireOn(t, storage.NewMem(nil)).PlanWAL(t.Context(), nil); err == nil {
		t.Error("no stanza, no error")
	}
}

// TestFaultsTrim: whatever call to the storage fails, no backup loses WAL that it needs, and a second run completes it.
func TestFaultsTrim(t *testing.T) {
	tested := 0
	for seed := uint64(0); seed < 200 && tested < 40; seed++ {
		rnd := rand.New(rand.NewPCG(seed, 78))
		h := randomHistory(rnd, time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC), false)
		until := map[repo.Label]string{}
		for _, l := range h.bi.Backups[:len(h.bi.Backups)/2] {
			if l.ArchiveStart != "" {
				until[l.Label] = l.ArchiveStop
			}
		}
		want := map[string]bool{}
		for name := range h.objects {
			if walModel(h, until, nil, name) {
				want[name] = true
			}
		}
		if len(want) == len(h.objects) {
			continue
		}
		for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.Die} {
			for n := 1; ; n++ {
				st := storage.NewMem(nil)
				h.store(t, st)
				faulty, err := storage.NewFaulty(st, storage.Fault{Nth: n, Kind: kind})
				must(t, err)
				plan, err := h.expireOn(t, faulty).PlanWAL(t.Context(), until)
				if err == nil {
					err = plan.Run(t.Context())
				}
				if !faulty.Fired() {
					must(t, err)
					break
				}
				tested++
				for name := range want {
					if _, err := st.Stat(t.Context(), name); err != nil {
						t.Fatalf("seed %d, %v at call %d: %s: %v", seed, kind, n, name, err)
					}
				}
				s := h.expireOn(t, st)
				if plan, err = s.PlanWAL(t.Context(), until); err == nil {
					err = plan.Run(t.Context())
				}
				if again, aerr := s.PlanWAL(t.Context(), until); err != nil || aerr != nil || again.Files > 0 {
					t.Fatalf("seed %d, %v at call %d, second run: %v, %v, %d files", seed, kind, n, err, aerr, again.Files)
				}
			}
		}
	}
	if tested < 40 {
		t.Errorf("only %d positions", tested)
	}
	tally.Count(t, "fault positions of engine verbs", tested)
}
