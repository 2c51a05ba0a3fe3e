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

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// history is an artificial stanza: info files, label directories with almost nothing in them, WAL of one byte.
type history struct {
	now     time.Time
	ai      repo.ArchiveInfo
	bi      repo.BackupInfo
	objects map[string]bool // everything but the info files
}

// point is a place in the WAL; the segment number goes to FF, as with segments of 16 MiB.
type point struct{ timeline, number int }

func (p point) name() string {
	return fmt.Sprintf("%08X%08X%08X", p.timeline, p.number>>8, p.number&0xFF)
}

func label(at time.Time) string { return at.UTC().Format("20060102-150405") }

func (h *history) wal(db repo.DB, base string) {
	dir := repo.SegmentDir("demo", repo.ArchiveID(db.Version, db.ID), base)
	h.objects[dir+"/"+base] = true
}

func (h *history) segment(db repo.DB, p point, what string) {
	h.wal(db, p.name()+what+"-"+strings.Repeat("ab", 20))
}

// randomHistory makes one up. odd adds what pgbackrest 2.45 treats otherwise than later versions and we do.
func randomHistory(rnd *rand.Rand, now time.Time, odd bool) *history {
	h := &history{now: now, objects: map[string]bool{}}
	// Backups begin at 13 or 43 minutes past now's minute: never near a whole number of days, so that pgbackrest, which asks
	// the clock a moment later, sees the same.
	at := now.Truncate(time.Minute).Add(-time.Duration(rnd.IntN(60*24)+50)*time.Hour + 13*time.Minute)
	h.ai.BackrestVersion, h.bi.BackrestVersion = "2.45", "2.45"
	ids := 1 + rnd.IntN(3)
	for id := 1; id <= ids; id++ {
		db := repo.DB{ID: id, SystemID: 7000 + uint64(id), Version: []string{"13", "14", "15"}[id-1], ControlVersion: 1300, CatalogVersion: 202007201}
		h.bi.History = append(h.bi.History, db)
		db.ControlVersion, db.CatalogVersion = 0, 0
		h.ai.History = append(h.ai.History, db)
		h.ai.Current, h.bi.Current = id, id
		h.cluster(rnd, db, &at, odd)
	}
	if odd && rnd.IntN(6) == 0 { // another cluster's turn again, which stanza-upgrade does not do but hands may
		h.ai.Current, h.bi.Current = 1, 1
	}
	slices.SortFunc(h.bi.Backups, func(a, b repo.BackupLine) int { return strings.Compare(string(a.Label), string(b.Label)) })
	return h
}

// cluster adds backups and WAL of one history id from at on.
func (h *history) cluster(rnd *rand.Rand, db repo.DB, at *time.Time, odd bool) {
	p := point{1, rnd.IntN(600)}
	for range rnd.IntN(3) { // archived before the first backup, or without one ever
		h.segment(db, p, "")
		p.number++
	}
	var set []repo.BackupLine // the last full and what is built on it
	for range rnd.IntN(9) {
		*at = at.Add(time.Duration(1+rnd.IntN(200)) * time.Hour / 2)
		if at.After(h.now.Add(-time.Hour)) {
			return
		}
		if rnd.IntN(4) == 0 {
			p.timeline++
			h.wal(db, fmt.Sprintf("%08X.history", p.timeline))
			h.segment(db, point{p.timeline - 1, p.number}, ".partial")
		}
		begin := p
		if odd && rnd.IntN(12) == 0 && p.timeline > 1 {
			begin.timeline-- // a server that was left behind, taken up again
		}
		l := repo.BackupLine{BackrestVersion: "2.45", Type: repo.Full, DBID: db.ID, TimeStart: at.Unix(), TimeStop: at.Unix() + 60, Size: 1, SizeDelta: 1, RepoSize: 1, RepoSizeDelta: 1}
		if n := len(set); n > 0 && rnd.IntN(5) > 0 {
			l.Type, l.Prior = repo.Diff, set[0].Label
			if rnd.IntN(2) == 0 {
				l.Type, l.Prior = repo.Incr, set[rnd.IntN(n)].Label
			}
		}
		l.Label = repo.Label(label(*at) + "F")
		if l.Type != repo.Full {
			l.Label = set[0].Label + repo.Label("_"+label(*at)+map[repo.BackupType]string{repo.Diff: "D", repo.Incr: "I"}[l.Type])
			l.References = []repo.Label{set[0].Label}
		} else {
			set = nil
		}
		if rnd.IntN(10) > 0 {
			end := begin
			end.number += rnd.IntN(3)
			l.ArchiveStart, l.ArchiveStop, l.Online = begin.name(), end.name(), true
			for q := begin; q.number <= end.number; q.number++ {
				h.segment(db, q, "")
			}
			h.wal(db, begin.name()+".00000028.backup")
		}
		h.objects[repo.ManifestPath("demo", l.Label)] = true
		h.objects[repo.ManifestPath("demo", l.Label)+".copy"] = true
		h.objects[repo.HistoryManifestPath("demo", l.Label)] = true
		h.bi.Put(l)
		set = append(set, l)
		for range rnd.IntN(6) {
			p.number += 1 + rnd.IntN(3)
			h.segment(db, p, "")
		}
		if rnd.IntN(4) == 0 {
			p.number += rnd.IntN(700)
		}
		p.number += 3
		h.leftover(rnd, *at, set, odd)
	}
	if rnd.IntN(3) == 0 {
		h.objects[repo.HistoryManifestPath("demo", repo.Label(label(at.Add(-400*24*time.Hour))+"F"))] = true
	}
}

// leftover adds, sometimes, a directory that belongs to no backup.
func (h *history) leftover(rnd *rand.Rand, at time.Time, set []repo.BackupLine, odd bool) {
	l := repo.Label(label(at.Add(20*time.Minute)) + "F")
	if rnd.IntN(2) == 0 {
		l = set[0].Label + repo.Label("_"+label(at.Add(20*time.Minute))+"D")
	}
	switch n := rnd.IntN(12); {
	case n == 0:
		h.objects["backup/demo/"+string(l)+"/pg_data/left.gz"] = true
	case n == 1 && odd:
		h.objects[repo.ManifestPath("demo", l)+".copy"] = true
		h.objects["backup/demo/"+string(l)+"/pg_data/left.gz"] = true
	}
}

// store writes the history into st.
func (h *history) store(t testing.TB, st storage.Storage) {
	t.Helper()
	must(t, repo.SaveArchiveInfo(t.Context(), st, "demo", &h.ai, ""))
	must(t, repo.SaveBackupInfo(t.Context(), st, "demo", &h.bi, ""))
	for name := range h.objects {
		must(t, storage.WriteAll(t.Context(), st, name, []byte("x")))
	}
}

// randomExpire makes up options.
func randomExpire(rnd *rand.Rand, h *history, odd bool) engine.ExpireOptions {
	some := func(n int) int { return max(0, rnd.IntN(n+2)-1) }
	o := engine.ExpireOptions{Full: some(4), Diff: some(4), Archive: some(4)}
	o.ArchiveType = []repo.BackupType{"", repo.Full, repo.Diff, repo.Incr}[rnd.IntN(4)]
	if rnd.IntN(3) == 0 {
		o.FullType, o.Full = engine.RetainTime, 1+rnd.IntN(60)
	}
	if rnd.IntN(2) == 0 {
		days := rnd.IntN(60)
		o.HistoryDays = &days
	}
	if n := len(h.bi.Backups); n > 0 && rnd.IntN(3) == 0 {
		o.Set = h.bi.Backups[rnd.IntN(n)].Label
	}
	if odd && o.Set == "" && rnd.IntN(8) == 0 {
		o.Oldest = true
	}
	if odd && rnd.IntN(4) == 0 {
		for _, name := range slices.Sorted(maps.Keys(h.objects)) {
			if seg, _, _, ok := repo.ParseSegmentObject(path.Base(name)); ok && len(seg) == 24 {
				o.ArchiveBefore = max(o.ArchiveBefore, seg)
				if rnd.IntN(10) == 0 {
					break
				}
			}
		}
	}
	return o
}

// expireOn opens a stanza on st at the history's moment.
func (h *history) expireOn(t testing.TB, st storage.Storage) *engine.Stanza {
	t.Helper()
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: st, Local: time.UTC, Version: "2.45", Now: func() time.Time { return h.now }})
	must(t, err)
	return s
}
