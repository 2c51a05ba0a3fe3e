package action

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// oracle is the retention as docs/retention.md tells it, one question at a time and without a thought for speed. It looks at the sets
// as they were made up and at what is in their places, not at what the code under test has found out.
type oracle struct {
	*past
	files  map[string]int64
	stays  map[string]bool // whole
	window map[string]bool // of those: for another reason than a pin
	gone   map[string]bool
	empty  map[string]bool // failed runs whose entry stays
}

// line is a listed backup.
func (o *oracle) line(where, label string) *repo.BackupLine {
	return o.repos[where].bi.Find(repo.Label(label))
}

// missing: a tarball is there and wrong, or not there and nobody took it away in order; the backup is not listed.
func (o *oracle) missing(s *catalog.Set) bool {
	for _, p := range s.Pieces {
		if p.Kind == catalog.Postgres {
			if o.line(p.Path, p.Label) == nil {
				return true
			}
			continue
		}
		size, there := o.files[filepath.Base(p.Path)]
		if there && size != p.Size || !there && (s.PostScript == nil || s.PostScript.Error != "") {
			return true
		}
	}
	return false
}

func (o *oracle) sound(s *catalog.Set) bool {
	if s.State != catalog.Complete || len(s.Verdicts) > 0 && !s.Verdicts[len(s.Verdicts)-1].OK {
		return false
	}
	return !o.missing(s)
}

func (o *oracle) here(s *catalog.Set) bool {
	for _, p := range s.Pieces {
		if _, there := o.files[filepath.Base(p.Path)]; p.Kind != catalog.Postgres && !there {
			return false
		}
	}
	return o.sound(s)
}

// uses says whether a restore of backup a reads anything of backup b.
func (o *oracle) uses(where, a, b string) bool {
	if a == b {
		return true
	}
	l := o.line(where, a)
	if l == nil || l.Type == repo.Full {
		return false
	}
	for _, on := range append([]repo.Label{l.Prior}, l.References...) {
		if o.uses(where, string(on), b) {
			return true
		}
	}
	return false
}

// needs says whether a restore of set a reads a backup of set b.
func (o *oracle) needs(a, b *catalog.Set) bool {
	for _, p := range a.Pieces {
		for _, q := range b.Pieces {
			if p.Kind == catalog.Postgres && q.Kind == catalog.Postgres && p.Path == q.Path && o.uses(p.Path, p.Label, q.Label) {
				return true
			}
		}
	}
	return false
}

// owner is the set that has a backup, nil without.
func (o *oracle) owner(where string, l repo.Label) *catalog.Set {
	for _, s := range o.sets {
		for _, p := range s.Pieces {
			if p.Kind == catalog.Postgres && p.Path == where && p.Label == string(l) {
				return s
			}
		}
	}
	return nil
}

// count counts the sets after i of which yes is true.
func (o *oracle) count(i int, yes func(*catalog.Set) bool) (n int) {
	for _, s := range o.sets[i+1:] {
		if yes(s) {
			n++
		}
	}
	return n
}

// reason: does something else than a pin, or what is built on it by sets, keep it?
func (o *oracle) reason(i int) bool {
	s := o.sets[i]
	for _, p := range s.Pieces {
		if p.Kind != catalog.Postgres {
			continue
		}
		for _, l := range o.repos[p.Path].bi.Backups {
			if o.owner(p.Path, l.Label) == nil && o.uses(p.Path, string(l.Label), p.Label) {
				return true
			}
		}
	}
	switch s.State {
	case catalog.Running:
		return true
	case catalog.Failed:
		return o.rule.Sets == 0 || o.count(i, o.sound) == 0
	}
	young := o.rule.Days > 0 && o.now.Before(s.Ended.Add(time.Duration(o.rule.Days)*24*time.Hour))
	return o.rule.Sets == 0 || o.count(i, o.sound) < o.rule.Sets || young || o.here(s) && o.count(i, o.here) == 0
}

func newOracle(p *past, files map[string]int64) *oracle {
	o := &oracle{past: p, files: files, stays: map[string]bool{}, window: map[string]bool{}, gone: map[string]bool{}, empty: map[string]bool{}}
	for i, s := range o.sets {
		if s.Removal != nil {
			continue
		}
		if o.reason(i) {
			o.stays[s.ID], o.window[s.ID] = true, true
		}
		if s.State == catalog.Complete && s.Pin != nil && (s.Pin.Until.IsZero() || o.now.Before(s.Pin.Until)) {
			o.stays[s.ID] = true
		}
	}
	for again := true; again; {
		again = false
		for _, a := range o.sets {
			for _, b := range o.sets {
				if a == b || b.Removal != nil || !o.needs(a, b) {
					continue
				}
				for _, m := range []map[string]bool{o.stays, o.window} {
					if m[a.ID] && !m[b.ID] {
						m[b.ID], again = true, true
					}
				}
			}
		}
	}
	failed := func(s *catalog.Set) bool { return s.State == catalog.Failed && s.Removal == nil }
	for i, s := range o.sets {
		switch {
		case o.stays[s.ID]:
		case failed(s) && o.count(i, failed) < 5:
			o.empty[s.ID] = true
		default:
			o.gone[s.ID] = true
		}
	}
	return o
}

// backupStays: it belongs to nobody, or a set that stays or a backup of nobody reads it.
func (o *oracle) backupStays(where string, l repo.Label) bool {
	for _, b := range o.repos[where].bi.Backups {
		if own := o.owner(where, b.Label); (own == nil || o.stays[own.ID]) && o.uses(where, string(b.Label), string(l)) {
			return true
		}
	}
	return false
}

// wanted: WAL that has to be there: from the start of a set's backup to its recovery point, and, from each of the window or of
// nobody on, everything behind its start on its timeline and later ones.
func (o *oracle) wanted(where, seg string) bool {
	for _, b := range o.repos[where].bi.Backups {
		own := o.owner(where, b.Label)
		if seg[:8] < b.ArchiveStart[:8] || seg[8:] < b.ArchiveStart[8:] { // of an earlier timeline, or of before
			continue
		}
		if own == nil || o.window[own.ID] || o.stays[own.ID] && (seg <= b.ArchiveStop || seg <= own.Recovery.Postgres[0].Segment) {
			return true
		}
	}
	return false
}

// excusable: WAL that may be there: beyond what is wanted that which lies, on another timeline, no further back than the window, and
// what a backup asks for that stays because another is built on it.
func (o *oracle) excusable(where, seg string) bool {
	unbounded := false
	for _, b := range o.repos[where].bi.Backups {
		own := o.owner(where, b.Label)
		if !o.backupStays(where, b.Label) {
			continue
		}
		pinned := own != nil && o.stays[own.ID] && !o.window[own.ID]
		if own != nil && !o.stays[own.ID] { // read by others only
			pinned = true
			for _, c := range o.repos[where].bi.Backups {
				if by := o.owner(where, c.Label); (by == nil || o.window[by.ID]) && o.uses(where, string(c.Label), string(b.Label)) {
					pinned = false
				}
			}
		}
		if !pinned {
			unbounded = true
			if seg >= b.ArchiveStart || seg[8:] >= b.ArchiveStart[8:] {
				return true
			}
		} else if seg >= b.ArchiveStart && seg <= b.ArchiveStop {
			return true
		}
	}
	return !unbounded
}

// sizes are the files of the dump directory.
func (p *past) sizes(t *testing.T) map[string]int64 {
	out := map[string]int64{}
	for _, name := range p.files(t) {
		info, err := os.Stat(filepath.Join(p.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		out[name] = info.Size()
	}
	return out
}

// segmentsOf are the WAL segments of a repository.
func segmentsIn(st *storage.Mem) (out []string) {
	for _, n := range st.Names() {
		if seg, _, _, ok := repo.ParseSegmentObject(path.Base(n)); ok {
			out = append(out, seg)
		}
	}
	return out
}

// check compares what is there with what the oracle says. before is the WAL that was there.
func (o *oracle) check(t *testing.T, where string, before map[string][]string) {
	t.Helper()
	have, damaged, err := catalog.NewStore(o.cat).List(t.Context())
	if err != nil || len(damaged) > 0 {
		t.Fatal(err, damaged)
	}
	left := o.sizes(t)
	for _, s := range o.sets {
		i := slices.IndexFunc(have, func(h *catalog.Set) bool { return h.ID == s.ID })
		based := false // a backup of it stays for others
		for _, p := range s.Pieces {
			based = based || p.Kind == catalog.Postgres && o.line(p.Path, p.Label) != nil && o.backupStays(p.Path, repo.Label(p.Label))
		}
		if there := i >= 0; there == (o.gone[s.ID] && !based) {
			t.Errorf("%s: %s set %s: its entry is there: %v", where, s.State, s.ID, there)
		}
		if i >= 0 && (have[i].State == catalog.Complete) != (o.stays[s.ID] && s.State == catalog.Complete) {
			t.Errorf("%s: set %s is %s", where, s.ID, have[i].State)
		}
		for name, size := range o.files {
			if now, there := left[name]; strings.HasPrefix(name, s.ID+"_") && (there != o.stays[s.ID] || there && now != size) {
				t.Errorf("%s: %s is there: %v", where, name, there)
			}
		}
	}
	for dir, r := range o.repos {
		bi, err := repo.LoadBackupInfo(t.Context(), r.st, "demo", "")
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range r.bi.Backups {
			want := o.backupStays(dir, b.Label)
			_, merr := r.st.Stat(t.Context(), repo.ManifestPath("demo", b.Label))
			_, ferr := r.st.Stat(t.Context(), "backup/demo/"+string(b.Label)+"/pg_data/x.gz")
			if (bi.Find(b.Label) != nil) != want || (merr == nil) != want || (ferr == nil) != want {
				t.Errorf("%s: backup %s: want %v, listed %v, manifest %v, files %v", where, b.Label, want, bi.Find(b.Label) != nil, merr, ferr)
			}
		}
		o.checkWAL(t, where, dir, before[dir])
	}
}

func (o *oracle) checkWAL(t *testing.T, where, dir string, before []string) {
	t.Helper()
	left := segmentsIn(o.repos[dir].st)
	for _, seg := range before {
		there := slices.Contains(left, seg)
		switch {
		case !there && o.wanted(dir, seg):
			t.Errorf("%s: %s: WAL segment %s is gone", where, dir, seg)
		case there && (o.rule.Sets > 0 || len(o.gone) > 0) && !o.wanted(dir, seg) && !o.excusable(dir, seg) && o.used(dir):
			t.Errorf("%s: %s: WAL segment %s is still there", where, dir, seg)
		}
	}
}

// used: a set has a backup in the repository; others are not looked at.
func (o *oracle) used(dir string) bool {
	for _, s := range o.sets {
		for _, p := range s.Pieces {
			if p.Path == dir {
				return true
			}
		}
	}
	return false
}

func wal(p *past) map[string][]string {
	out := map[string][]string{}
	for dir, r := range p.repos {
		out[dir] = segmentsIn(r.st)
	}
	return out
}

// pastDir is a directory for one history, gone when the next begins.
func pastDir(t *testing.T, into string, seed int) string {
	dir := filepath.Join(into, fmt.Sprint(seed))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestRetentionOracle: on thousands of made-up pasts the retention leaves what the oracle says: sets, files, backups, WAL; the plan
// changes nothing and says the same; a second run finds nothing to do.
func TestRetentionOracle(t *testing.T) {
	n := 2500
	if testing.Short() {
		n = 400
	}
	seen := map[string]int{}
	into := t.TempDir()
	for seed := range n {
		rnd := rand.New(rand.NewPCG(uint64(seed), 5))
		dir := pastDir(t, into, seed)
		p := randomPast(t, rnd, dir)
		o := newOracle(p, p.sizes(t))
		before, was := wal(p), p.everything(t)
		where := fmt.Sprintf("seed %d, %+v", seed, p.rule)
		plan, err := p.app(nil).PlanRetention(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		if p.everything(t) != was {
			t.Fatalf("%s: the plan changed something", where)
		}
		for i, s := range plan.Sets {
			if s.Goes != o.gone[s.ID] || len(s.Reasons) == 0 || len(s.Files)+len(s.Backups) > 0 && o.stays[s.ID] {
				t.Errorf("%s: %s set %s: goes %v: %q", where, s.State, s.ID, s.Goes, s.Reasons)
			}
			for _, why := range s.Reasons {
				w, _, _ := strings.Cut(why, " ")
				seen[w]++
			}
			if p.choicesWindow(plan, i) != o.window[s.ID] {
				t.Errorf("%s: set %s: window %v", where, s.ID, p.choicesWindow(plan, i))
			}
		}
		if _, err := plan.Run(t.Context()); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		o.check(t, where, before)
		again, err := p.app(nil).PlanRetention(t.Context())
		if err != nil || !again.Empty() {
			t.Errorf("%s: a second run: %v, %v", where, err, again.going())
		}
		if t.Failed() {
			t.Logf("%v", describe(p, o))
			t.FailNow()
		}
		for _, m := range []map[string]bool{o.gone, o.empty, o.stays} {
			seen["sets"] += len(m)
		}
		seen["gone"] += len(o.gone)
		removeAll(t, dir)
	}
	t.Logf("%v", seen)
	tally.Count(t, "histories of sets that the retention treats as the slow oracle does", n)
	for _, what := range []string{"gone", "set", "pinned", "pinned:", "backup", "younger", "its", "failed,", "one", "it", "only"} {
		if seen[what] == 0 {
			t.Errorf("no history had a set because: %s", what)
		}
	}
}

func (p *past) choicesWindow(plan *RetentionPlan, i int) bool {
	c := plan.choices[i]
	return c.window && !c.goes && !c.strip
}

// describe is a past in words, for a failure.
func describe(p *past, o *oracle) string {
	var b strings.Builder
	for _, s := range p.sets {
		label := ""
		if q := s.Piece(catalog.Postgres); q != nil {
			label = q.Path + " " + q.Label
		}
		fmt.Fprintf(&b, "\n%s %s %s sound %v here %v stays %v window %v pin %+v removal %v", s.ID, s.State, label, o.sound(s), o.here(s), o.stays[s.ID], o.window[s.ID], s.Pin, s.Removal)
	}
	for dir, r := range p.repos {
		for _, l := range r.bi.Backups {
			fmt.Fprintf(&b, "\n%s %s prior %s, %s to %s", dir, l.Label, l.Prior, l.ArchiveStart, l.ArchiveStop)
		}
	}
	return b.String()
}

// TestFaultsRetention: the retention dies, fails or is interrupted at every call to the catalogue and to the repositories. No set that
// is listed as complete has lost anything that it had, and another run ends where an undisturbed one does.
func TestFaultsRetention(t *testing.T) {
	positions := 150
	if testing.Short() {
		positions = 40
	}
	tested, into, serial := 0, t.TempDir(), 0
	for seed := 0; tested < positions*12 && seed < 400; seed++ {
		first := pastDir(t, into, serial)
		serial++
		o := newOracle(randomPast(t, rand.New(rand.NewPCG(uint64(seed), 6)), first), nil)
		o.files = o.sizes(t)
		o = newOracle(o.past, o.files)
		removeAll(t, first)
		if len(o.gone) < 2 {
			continue
		}
		for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.Cancel, storage.Die} {
			for n := 1; ; n++ {
				dir := pastDir(t, into, serial)
				serial++
				fired := brokenOff(t, seed, dir, kind, n)
				removeAll(t, dir)
				if t.Failed() {
					t.FailNow()
				}
				if !fired {
					break
				}
				tested++
			}
		}
	}
	tally.Count(t, "fault positions of the retention", tested)
	if tested < positions {
		t.Errorf("only %d positions", tested)
	}
}

// brokenOff breaks one retention off at its nth call of a storage; false: it made fewer.
func brokenOff(t *testing.T, seed int, dir string, kind storage.FaultKind, n int) bool {
	t.Helper()
	p := randomPast(t, rand.New(rand.NewPCG(uint64(seed), 6)), dir)
	o := newOracle(p, p.sizes(t))
	before := wal(p)
	where := fmt.Sprintf("seed %d, %v at call %d", seed, kind, n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := &storage.Fault{Nth: n, Kind: kind, Cancel: cancel}
	b := &breaker{at: n}
	var faulty []*storage.Faulty
	app := p.app(func(st storage.Storage) storage.Storage {
		f, err := storage.NewFaulty(st, storage.Fault{Nth: b.rest(faulty), Kind: calls.Kind, Cancel: cancel})
		if err != nil {
			t.Fatal(err)
		}
		faulty = append(faulty, f)
		return f
	})
	plan, err := app.PlanRetention(ctx)
	if err == nil {
		_, err = plan.Run(ctx)
	}
	fired := slices.ContainsFunc(faulty, func(f *storage.Faulty) bool { return f.Fired() })
	if !fired {
		if err != nil {
			t.Errorf("%s: %v", where, err)
		}
		o.check(t, where, before)
		return false
	}
	o.whole(t, where, before)
	plan, err = p.app(nil).PlanRetention(t.Context())
	if err == nil {
		_, err = plan.Run(t.Context())
	}
	if err != nil {
		t.Errorf("%s: second run: %v", where, err)
	}
	o.check(t, where+", second run", before)
	return true
}

// breaker spreads one count of calls over storages that are opened one after the other.
type breaker struct{ at int }

// rest is the position in a storage that is opened now; those opened before have had their calls.
func (b *breaker) rest(opened []*storage.Faulty) int {
	n := b.at
	for _, f := range opened {
		n -= len(f.Calls())
	}
	return max(n, 1<<30*btoi(n <= 0))
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// whole: every set that the catalogue lists as complete and that was sound has what it had.
func (o *oracle) whole(t *testing.T, where string, before map[string][]string) {
	t.Helper()
	have, damaged, err := catalog.NewStore(o.cat).List(t.Context())
	if err != nil || len(damaged) > 0 {
		t.Fatal(where, err, damaged)
	}
	left := o.sizes(t)
	for _, s := range have {
		if s.State != catalog.Complete {
			continue
		}
		for name := range o.files {
			if _, there := left[name]; !there && strings.HasPrefix(name, s.ID+"_") {
				t.Errorf("%s: set %s is listed as complete and has lost %s", where, s.ID, name)
			}
		}
		p := s.Piece(catalog.Postgres)
		if p == nil || o.line(p.Path, p.Label) == nil {
			continue
		}
		r := o.repos[p.Path]
		bi, err := repo.LoadBackupInfo(t.Context(), r.st, "demo", "")
		if err != nil {
			t.Fatal(where, err)
		}
		segments := segmentsIn(r.st)
		for _, l := range r.bi.Backups {
			_, merr := r.st.Stat(t.Context(), repo.ManifestPath("demo", l.Label))
			_, ferr := r.st.Stat(t.Context(), "backup/demo/"+string(l.Label)+"/pg_data/x.gz")
			if o.uses(p.Path, p.Label, string(l.Label)) && (bi.Find(l.Label) == nil || errors.Join(merr, ferr) != nil) {
				t.Errorf("%s: set %s is listed as complete and has lost backup %s", where, s.ID, l.Label)
			}
		}
		l := o.line(p.Path, p.Label)
		for _, seg := range before[p.Path] {
			if seg >= l.ArchiveStart && (seg <= l.ArchiveStop || seg <= s.Recovery.Postgres[0].Segment) && !slices.Contains(segments, seg) {
				t.Errorf("%s: set %s is listed as complete and has lost WAL %s", where, s.ID, seg)
			}
		}
	}
}
