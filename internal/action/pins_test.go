package action

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// chainPast is three sets apart, each built on the one before, and a fourth that is a full one.
func chainPast(t *testing.T) *past {
	t.Helper()
	p := &past{dir: t.TempDir(), now: time.Date(2026, 11, 29, 4, 0, 0, 0, time.UTC), cat: storage.NewMem(nil), repos: map[string]*pastRepo{}, rule: RetentionRule{Sets: 7}}
	r := p.repo("/repo-a")
	var prior repo.Label
	for i := range 4 {
		at := p.now.AddDate(0, 0, i-4)
		s := &catalog.Set{ID: at.Format("200601021504") + "_1-0", State: catalog.Complete, Mode: catalog.Apart, Began: at, Ended: at.Add(time.Minute), Recovery: &catalog.Recovery{Name: "x"}}
		name := filepath.Join(p.dir, s.ID+appSuffix)
		writeFile(t, name, 10)
		typ := repo.Incr
		if i == 0 || i == 3 {
			typ, prior = repo.Full, ""
		}
		prior = p.add(t, r, at, typ, prior, 1).Label
		s.Pieces = []catalog.Piece{{Kind: catalog.Application, Path: name, Size: 10}, {Kind: catalog.Postgres, Path: "/repo-a", Stanza: "demo", Label: string(prior), Size: 1}}
		r.number++
		s.Recovery.Postgres = []catalog.PostgresPoint{{Stanza: "demo", Label: string(prior), Segment: segmentAt(r.timeline, r.number)}}
		p.archive(t, r, 5)
		p.sets = append(p.sets, s)
		if err := catalog.NewStore(p.cat).Put(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	ai := repo.ArchiveInfo{History: []repo.DB{{ID: 1, SystemID: 7001, Version: "15"}}, Current: 1}
	ai.BackrestVersion = "2.45"
	if err := errors.Join(repo.SaveArchiveInfo(t.Context(), r.st, "demo", &ai, ""), repo.SaveBackupInfo(t.Context(), r.st, "demo", &r.bi, "")); err != nil {
		t.Fatal(err)
	}
	return p
}

// refused: the plan to delete a set is refused with these words, and nothing is changed.
func (p *past) refused(t *testing.T, id string, last bool, words ...string) {
	t.Helper()
	was := p.everything(t)
	_, err := p.app(nil).PlanDeleteSet(t.Context(), id, last)
	if !errors.Is(err, ErrSetStays) {
		t.Errorf("%s: %v", id, err)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v does not say %s", id, err, w)
		}
	}
	if p.everything(t) != was {
		t.Errorf("%s: something was changed", id)
	}
}

func (p *past) delete(t *testing.T, id string, last bool) {
	t.Helper()
	plan, err := p.app(nil).PlanDeleteSet(t.Context(), id, last)
	if err == nil {
		err = plan.Run(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestDeleteChain: a set that others are built on is not deleted before them, a pinned one not at all, the last one only when that is
// said; WAL between a pinned set and the others goes, and what the pinned one needs stays.
func TestDeleteChain(t *testing.T) {
	p := chainPast(t)
	id := func(i int) string { return p.sets[i].ID }
	p.refused(t, id(0), true, "built on", id(2)+", "+id(1))
	p.refused(t, id(1), true, "built on", id(2))
	if _, err := p.app(nil).PinSet(t.Context(), id(0), " for the\n audit ", time.Time{}); err != nil {
		t.Fatal(err)
	}
	p.refused(t, id(0), true, "pinned: for the audit", "sets unpin "+id(0))
	p.delete(t, id(2), false)
	p.delete(t, id(1), false)
	p.rule.Sets = 1 // the pinned one is beyond the rule
	if _, err := p.app(nil).PlanRetention(t.Context()); err != nil {
		t.Fatal(err)
	}
	res, err := mustPlan(t, p).Run(t.Context())
	if err != nil || len(res.Removed) != 0 || res.Bytes == 0 {
		t.Errorf("%+v %v", res, err)
	}
	first, full := p.repos["/repo-a"].bi.Find(repo.Label(p.sets[0].Piece(catalog.Postgres).Label)), p.repos["/repo-a"].bi.Find(repo.Label(p.sets[3].Piece(catalog.Postgres).Label))
	last := p.sets[0].Recovery.Postgres[0].Segment
	left := segmentsIn(p.repos["/repo-a"].st)
	for _, seg := range left {
		if seg > last && seg < full.ArchiveStart {
			t.Errorf("WAL segment %s is still there", seg)
		}
	}
	if !slices.Contains(left, first.ArchiveStart) || !slices.Contains(left, last) || !slices.Contains(left, full.ArchiveStart) {
		t.Errorf("%v lacks one of %s, %s, %s", left, first.ArchiveStart, last, full.ArchiveStart)
	}
	p.delete(t, id(3), false) // the pinned one restores
	p.refused(t, id(0), true, "pinned")
	if _, err := p.app(nil).UnpinSet(t.Context(), id(0)); err != nil {
		t.Fatal(err)
	}
	p.refused(t, id(0), false, "the last one", "--last")
	p.delete(t, id(0), true)
	if names := p.files(t); len(names) > 0 || len(p.cat.Names()) > 0 {
		t.Errorf("%v %v is left", names, p.cat.Names())
	}
}

func mustPlan(t *testing.T, p *past) *RetentionPlan {
	t.Helper()
	plan, err := p.app(nil).PlanRetention(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// TestPins: what a pin takes, and that it ends.
func TestPins(t *testing.T) {
	p := chainPast(t)
	p.rule.Sets = 1
	a := p.app(nil)
	for _, bad := range []struct {
		id, reason string
		until      time.Time
		want       error
	}{{"x", "r", time.Time{}, catalog.ErrUnknown}, {p.sets[0].ID, " \n", time.Time{}, ErrSetStays}, {p.sets[0].ID, strings.Repeat("x", maxReason+1), time.Time{}, ErrSetStays},
		{p.sets[0].ID, "r", p.now, ErrSetStays}} {
		if _, err := a.PinSet(t.Context(), bad.id, bad.reason, bad.until); !errors.Is(err, bad.want) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	s, err := a.PinSet(t.Context(), p.sets[1].ID, "audit", p.now.Add(time.Hour))
	if err != nil || s.Pin.Reason != "audit" || !s.Pin.At.Equal(p.now) {
		t.Fatal(s, err)
	}
	goes := func() (out []string) {
		for _, s := range mustPlan(t, p).Sets {
			if s.Goes {
				out = append(out, s.ID)
			}
		}
		return out
	}
	if got := goes(); !slices.Equal(got, []string{p.sets[2].ID}) { // the first is what the pinned one is built on
		t.Errorf("%v goes", got)
	}
	p.now = p.now.Add(time.Hour)
	if got := goes(); len(got) != 3 {
		t.Errorf("when the pin has ended: %v goes", got)
	}
	plan := mustPlan(t, p)
	if _, err := p.app(nil).PinSet(t.Context(), p.sets[0].ID, "after all", time.Time{}); err != nil {
		t.Fatal(err)
	}
	was := p.everything(t)
	if _, err := plan.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "make the plan again") || p.everything(t) != was {
		t.Errorf("a plan that is not true any more: %v", err)
	}
	broken := *p.sets[3]
	broken.ID, broken.State = "202611290500_1-0", catalog.Failed
	if err := catalog.NewStore(p.cat).Put(t.Context(), &broken); err != nil {
		t.Fatal(err)
	}
	if _, err := a.PinSet(t.Context(), broken.ID, "r", time.Time{}); !errors.Is(err, ErrSetStays) {
		t.Errorf("a failed set was pinned: %v", err)
	}
}

// TestRetentionUnknown: what can't be read is not taken for gone. Sets with a piece there stay and do not count; others go on.
func TestRetentionUnknown(t *testing.T) {
	p := chainPast(t)
	p.rule.Sets = 1
	r := p.repos["/repo-a"]
	for _, name := range []string{"backup/demo/backup.info", "backup/demo/backup.info.copy"} {
		if err := storage.WriteAll(t.Context(), r.st, name, []byte("rubbish")); err != nil {
			t.Fatal(err)
		}
	}
	was := p.everything(t)
	plan := mustPlan(t, p)
	for _, s := range plan.Sets {
		if s.Goes || !strings.Contains(strings.Join(s.Reasons, ";"), "it can't be told") {
			t.Errorf("%+v", s)
		}
	}
	if _, err := plan.Run(t.Context()); err != nil || p.everything(t) != was {
		t.Errorf("%v, or something was changed", err)
	}
	if _, err := p.app(nil).PlanDeleteSet(t.Context(), p.sets[2].ID, false); err == nil {
		t.Error("a set whose repository can't be read would be deleted")
	}
}

// TestRetentionStuck: a tarball that can't be removed keeps its set from going, and no other; it is said, and done when it can be. A
// catalogue that names other files removes none.
func TestRetentionStuck(t *testing.T) {
	p := chainPast(t)
	p.rule.Sets = 1
	stuck := p.sets[2].Pieces[0].Path
	removeAll(t, stuck)
	if err := os.MkdirAll(filepath.Join(stuck, "x"), 0o700); err != nil { // a directory of that name is not removed
		t.Fatal(err)
	}
	doctored := *p.sets[0]
	doctored.ID = "202611200400_1-0"
	doctored.Pieces = []catalog.Piece{{Kind: catalog.Application, Path: p.sets[3].Pieces[0].Path, Size: 10}}
	if err := catalog.NewStore(p.cat).Put(t.Context(), &doctored); err != nil {
		t.Fatal(err)
	}
	res, err := mustPlan(t, p).Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "its name does not") || !strings.Contains(err.Error(), doctored.ID) {
		t.Errorf("%v", err)
	}
	if res == nil || len(res.Removed) != 3 || !exists(p.sets[3].Pieces[0].Path) || !exists(stuck) {
		t.Errorf("%+v", res)
	}
	s, err := catalog.NewStore(p.cat).Get(t.Context(), p.sets[3].ID)
	if err != nil || s.Retention == nil || s.Retention.Error == "" || len(s.Retention.Removed) != 3 {
		t.Errorf("%+v %v", s, err)
	}
}
