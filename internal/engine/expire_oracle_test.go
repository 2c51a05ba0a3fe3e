package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// model is expire as section 19 of the format page tells it, one object at a time and without a thought for speed. It was
// written from the page, not from the code, and adds our own rules where the page's would lose something.
type model struct {
	*history
	o    engine.ExpireOptions
	gone map[repo.Label]bool
}

var errModelRefuses = errors.New("refused")

// left gives the backups and objects that must be there afterwards.
func (m *model) left() (labels []repo.Label, objects map[string]bool, err error) {
	m.gone = map[repo.Label]bool{}
	archive, kind, err := m.backups()
	if err != nil {
		return nil, nil, err
	}
	for _, l := range m.bi.Backups {
		if !m.gone[l.Label] {
			labels = append(labels, l.Label)
		}
	}
	objects = map[string]bool{}
	for name := range m.objects {
		if m.stays(name, archive, kind) {
			objects[name] = true
		}
	}
	return labels, objects, nil
}

// alive lists backups that stay and are of one of the types, oldest first.
func (m *model) alive(types ...repo.BackupType) (out []repo.BackupLine) {
	for _, l := range m.bi.Backups {
		if !m.gone[l.Label] && slices.Contains(types, l.Type) {
			out = append(out, l)
		}
	}
	return out
}

// remove takes a backup and, again and again, whatever has lost its prior.
func (m *model) remove(l repo.Label) {
	m.gone[l] = true
	for again := true; again; {
		again = false
		for _, b := range m.bi.Backups {
			if !m.gone[b.Label] && m.gone[b.Prior] {
				m.gone[b.Label], again = true, true
			}
		}
	}
}

// isLast: no other full backup of the current cluster is left.
func (m *model) isLast(l repo.BackupLine) bool {
	n := 0
	for _, f := range m.alive(repo.Full) {
		if f.DBID == m.bi.Current && f.Label != l.Label {
			n++
		}
	}
	return l.DBID == m.bi.Current && l.Type == repo.Full && n == 0
}

func (m *model) backups() (archive int, kind repo.BackupType, err error) {
	o := m.o
	archive, kind = o.Archive, o.ArchiveType
	if kind == "" {
		kind = repo.Full
	}
	byTime := o.FullType == engine.RetainTime
	fulls := m.alive(repo.Full)
	if o.Oldest {
		o.Full, byTime = max(len(fulls)-1, 0), false
		archive, kind = o.Full, repo.Full
	}
	if o.Set != "" {
		line := m.bi.Find(o.Set)
		if line.Type == repo.Full {
			olderOfID := slices.ContainsFunc(fulls, func(f repo.BackupLine) bool { return f.Label < o.Set && f.DBID == line.DBID })
			if fulls[len(fulls)-1].Label == o.Set && !olderOfID || m.isLast(*line) {
				return 0, "", errModelRefuses
			}
		}
		m.remove(o.Set)
	} else {
		go1 := fulls[:0:0] // fulls to go
		met := false
		if byTime {
			for i := len(fulls) - 1; i >= 0 && !met; i-- {
				if time.Unix(fulls[i].TimeStop, 0).Before(m.now.Add(-24 * time.Hour * time.Duration(o.Full))) {
					go1, met = fulls[:i], true
				}
			}
		} else if o.Full > 0 && len(fulls) > o.Full {
			go1 = fulls[:len(fulls)-o.Full]
		}
		var newestCurrent repo.Label
		for _, f := range fulls {
			if f.DBID == m.bi.Current {
				newestCurrent = f.Label
			}
		}
		for _, f := range go1 {
			if f.Label != newestCurrent {
				m.remove(f.Label)
			}
		}
		if byTime && met && archive == 0 && kind == repo.Full {
			archive = len(m.alive(repo.Full))
		}
		both := m.alive(repo.Full, repo.Diff)
		for i, l := range both {
			if o.Diff > 0 && i < len(both)-o.Diff && l.Type == repo.Diff {
				m.remove(l.Label)
			}
		}
	}
	if archive == 0 && !o.Oldest {
		if kind == repo.Full && !byTime {
			archive = o.Full
		} else if kind == repo.Diff {
			archive = o.Diff
		}
	}
	return archive, kind, nil
}

// stays decides on one object.
func (m *model) stays(name string, archive int, kind repo.BackupType) bool {
	elem := strings.Split(name, "/")
	if elem[0] == "archive" {
		return m.walStays(elem[2], elem[3:], archive, kind)
	}
	if elem[2] == "backup.history" {
		l := strings.TrimSuffix(elem[4], ".manifest.gz")
		if m.o.HistoryDays == nil || m.bi.Find(repo.Label(l)) != nil && !m.gone[repo.Label(l)] {
			return true
		}
		return l >= label(m.now.Add(-24*time.Hour*time.Duration(*m.o.HistoryDays)))+"F"
	}
	l := repo.Label(elem[2])
	if m.bi.Find(l) != nil {
		return !m.gone[l]
	}
	// A directory that is not listed: only the newest of all, with a copy alone, stays.
	own := func(l string) string { return l[strings.LastIndex(l, "_")+1:][:15] }
	for other := range m.objects {
		e := strings.Split(other, "/")
		if e[0] != "backup" || e[2] == "backup.history" {
			continue
		}
		if own(e[2]) > own(string(l)) && !m.isNewestLabel(l) {
			return false
		}
	}
	if !m.objects[repo.ManifestPath("demo", l)+".copy"] {
		return false
	}
	return !(m.o.Set != "" && m.gone[l.FullLabel()] && m.o.Set.FullLabel() == l.FullLabel())
}

func (m *model) isNewestLabel(l repo.Label) bool {
	for other := range m.objects {
		if e := strings.Split(other, "/"); e[0] == "backup" && e[2] != "backup.history" && e[2] > string(l) {
			return false
		}
	}
	return true
}

// walStays decides on a segment, a .backup or a .history file of one archive id.
func (m *model) walStays(archiveID string, rest []string, archive int, kind repo.BackupType) bool {
	_, id, _ := repo.ParseArchiveID(archiveID)
	base := rest[len(rest)-1]
	before := m.o.ArchiveBefore
	older := func(than string) bool { // base lies before a segment
		if pg.IsHistoryName(base) {
			return base[:8] < than[:8]
		}
		return base[:24] < than
	}
	all := m.alive(repo.Full, repo.Diff, repo.Incr)
	if len(all) == 0 && before != "" && id == m.bi.Current {
		return !older(before)
	}
	if before != "" && !older(before) {
		return true
	}
	types := map[repo.BackupType][]repo.BackupType{repo.Full: {repo.Full}, repo.Diff: {repo.Full, repo.Diff}, repo.Incr: {repo.Full, repo.Diff, repo.Incr}}[kind]
	counted := m.alive(types...)
	if archive == 0 || len(counted) < archive {
		return true
	}
	ofID := func(l repo.BackupLine) bool { return l.DBID == id }
	newest := counted[len(counted)-archive:]
	var root repo.BackupLine
	if i := slices.IndexFunc(newest, ofID); i >= 0 {
		root = newest[i]
	} else if slices.ContainsFunc(counted, ofID) {
		for _, l := range counted {
			if ofID(l) {
				root = l
			}
		}
	} else {
		return id == m.bi.Current || before != ""
	}
	if root.ArchiveStart == "" {
		return true
	}
	for _, l := range all {
		if !ofID(l) || l.ArchiveStart == "" {
			continue
		}
		if pg.IsHistoryName(base) && base[:8] >= l.ArchiveStart[:8] { // ours: from the timeline of any backup on
			return true
		}
		if l.Label >= root.Label && !older(l.ArchiveStart) {
			return true
		}
		if l.Label < root.Label && !older(l.ArchiveStart) && base[:24] <= l.ArchiveStop {
			return true
		}
	}
	return false
}

// TestExpireModel: on random histories the real thing removes exactly what the model says, and a dry run nothing.
func TestExpireModel(t *testing.T) {
	n := 1500
	if testing.Short() {
		n = 200
	}
	now := time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)
	seen := map[string]int{}
	for seed := range n {
		rnd := rand.New(rand.NewPCG(uint64(seed), 19))
		h := randomHistory(rnd, now, true)
		o := randomExpire(rnd, h, true)
		m := &model{history: h, o: o}
		labels, objects, refused := m.left()
		st := storage.NewMem(nil)
		h.store(t, st)
		before := contents(t, st)
		plan, err := h.expireOn(t, st).PlanExpire(t.Context(), o)
		if refused != nil {
			if !errors.Is(err, engine.ErrLastBackup) {
				t.Fatalf("seed %d: %+v: the plan was made, %v", seed, o, err)
			}
			seen["refused"]++
			continue
		}
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if !maps.Equal(before, contents(t, st)) {
			t.Fatalf("seed %d: the plan changed something", seed)
		}
		if err := plan.Run(t.Context()); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", "")
		must(t, err)
		var got []repo.Label
		for _, l := range bi.Backups {
			got = append(got, l.Label)
		}
		if !slices.Equal(got, labels) {
			t.Errorf("seed %d: %+v: backups\n%v, want\n%v", seed, o, got, labels)
		}
		left := map[string]bool{}
		for _, name := range st.Names() {
			if !strings.HasPrefix(path.Base(name), "archive.info") && !strings.HasPrefix(path.Base(name), "backup.info") {
				left[name] = true
			}
		}
		compareSets(t, fmt.Sprintf("seed %d: %+v", seed, o), left, objects)
		if t.Failed() {
			t.Fatalf("current %d; plan %+v", h.bi.Current, plan)
		}
		seen["backups"] += len(plan.Backups)
		seen["directories"] += len(plan.Directories)
		seen["WAL files"] += plan.WALFiles
		seen["history manifests"] += len(plan.History)
		if again, err := h.expireOn(t, st).PlanExpire(t.Context(), engine.ExpireOptions{Full: o.Full, FullType: o.FullType, Diff: o.Diff, Archive: o.Archive, ArchiveType: o.ArchiveType, HistoryDays: o.HistoryDays, ArchiveBefore: o.ArchiveBefore}); err != nil {
			t.Errorf("seed %d: a second plan: %v", seed, err)
		} else if o.Set == "" && !o.Oldest && len(again.Backups)+len(again.Directories)+again.WALFiles+len(again.History) > 0 {
			t.Errorf("seed %d: %+v: a second run would remove more: %+v", seed, o, again)
		}
	}
	t.Logf("removed %v", seen)
	tally.Count(t, "histories expired as the slow model does", n)
	for _, what := range []string{"refused", "backups", "directories", "WAL files", "history manifests"} {
		if seen[what] == 0 {
			t.Errorf("no history had %s to remove", what)
		}
	}
}

func compareSets(t *testing.T, where string, got, want map[string]bool) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if !got[name] {
			t.Errorf("%s: %s is gone", where, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if !want[name] {
			t.Errorf("%s: %s stayed", where, name)
		}
	}
}

// TestExpireKeepsHistories: a backup that stays on an old timeline, without the WAL behind it, may be restored and promoted.
// PostgreSQL then takes the first timeline of which the archive has no history file; it must not be one that others came from.
func TestExpireKeepsHistories(t *testing.T) {
	h := &history{now: time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC), objects: map[string]bool{}}
	db := repo.DB{ID: 1, SystemID: 7, Version: "15"}
	h.ai = repo.ArchiveInfo{BackrestVersion: "2.45", Current: 1, History: []repo.DB{db}}
	h.bi = repo.BackupInfo{BackrestVersion: "2.45", Current: 1, History: []repo.DB{db}}
	for i, timeline := range []int{2, 4, 4} {
		begin := point{timeline, 10 * i}
		l := repo.BackupLine{Label: repo.Label(fmt.Sprintf("2026061%d-120000F", i)), BackrestVersion: "2.45", Type: repo.Full, DBID: 1, ArchiveStart: begin.name(), ArchiveStop: begin.name(), Online: true}
		h.bi.Put(l)
		h.objects[repo.ManifestPath("demo", l.Label)] = true
		h.segment(db, begin, "")
	}
	for timeline := 2; timeline <= 4; timeline++ {
		h.wal(db, fmt.Sprintf("%08X.history", timeline))
	}
	for full, want := range map[int]string{3: "00000002 00000003 00000004", 2: "00000004"} { // the one on timeline 2 stays, or goes
		st := storage.NewMem(nil)
		h.store(t, st)
		plan, err := h.expireOn(t, st).PlanExpire(t.Context(), engine.ExpireOptions{Full: full, Archive: 1})
		must(t, err)
		must(t, plan.Run(t.Context()))
		var got []string
		for _, name := range st.Names() {
			if n, ok := strings.CutSuffix(path.Base(name), ".history"); ok {
				got = append(got, n)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("with %d backups there are the histories %v, want %s", full, got, want)
		}
	}
}
