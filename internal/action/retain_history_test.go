package action

import (
	"errors"
	"fmt"
	"math/rand/v2"
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

// The past of an instance, made up: sets of all kinds with small files for tarballs, and repositories with real info files.

// pastRepo is one repository with one stanza.
type pastRepo struct {
	st       *storage.Mem
	bi       repo.BackupInfo
	timeline int
	number   int
	chain    []repo.Label // the last full and what came after it
}

// past is an instance's past.
type past struct {
	dir   string // where tarballs are
	now   time.Time
	cat   *storage.Mem
	repos map[string]*pastRepo
	rule  RetentionRule
	sets  []*catalog.Set // as they were made up, oldest first
}

func segmentAt(timeline, number int) string {
	return fmt.Sprintf("%08X%08X%08X", timeline, number>>8, number&0xFF)
}

var pastDB = repo.DB{ID: 1, SystemID: 7001, Version: "15", ControlVersion: 1300, CatalogVersion: 202209061}

// randomPast makes one up. dir is empty.
func randomPast(t *testing.T, rnd *rand.Rand, dir string) *past {
	p := &past{dir: dir, now: time.Date(2026, 11, 29, 4, 0, 0, 0, time.UTC), cat: storage.NewMem(nil), repos: map[string]*pastRepo{}}
	p.rule = RetentionRule{Sets: 1 + rnd.IntN(4), Days: []int{0, 0, 0, 3, 10, 30}[rnd.IntN(6)]}
	if rnd.IntN(20) == 0 {
		p.rule.Sets = 0
	}
	at := p.now.Add(-time.Duration(20+rnd.IntN(900)) * time.Hour)
	where := "/repo-a"
	for n := 1 + rnd.IntN(14); n > 0 && at.Before(p.now); n-- {
		at = at.Add(time.Duration(1+rnd.IntN(100)) * time.Hour).Truncate(time.Minute)
		if rnd.IntN(15) == 0 {
			where = "/repo-b"
		}
		p.run(t, rnd, at, where)
	}
	for dir, r := range p.repos {
		ai := repo.ArchiveInfo{}
		db := pastDB
		db.ControlVersion, db.CatalogVersion = 0, 0
		ai.History, ai.Current, ai.BackrestVersion = []repo.DB{db}, 1, "2.45"
		if err := errors.Join(repo.SaveArchiveInfo(t.Context(), r.st, "demo", &ai, ""), repo.SaveBackupInfo(t.Context(), r.st, "demo", &r.bi, "")); err != nil {
			t.Fatal(dir, err)
		}
	}
	for _, s := range p.sets {
		if err := catalog.NewStore(p.cat).Put(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p *past) repo(where string) *pastRepo {
	r := p.repos[where]
	if r == nil {
		r = &pastRepo{st: storage.NewMem(nil), timeline: 1, number: 5}
		r.bi.History, r.bi.Current, r.bi.BackrestVersion = []repo.DB{pastDB}, 1, "2.45"
		p.repos[where] = r
	}
	return r
}

// run makes up one run: a set, or a backup that somebody made by hand.
func (p *past) run(t *testing.T, rnd *rand.Rand, at time.Time, where string) {
	s := &catalog.Set{ID: at.Format("200601021504") + "_1-0", Run: "1-abcdef01", State: catalog.Complete, Mode: catalog.Apart, Began: at, Ended: at.Add(10 * time.Minute),
		Recovery: &catalog.Recovery{Name: "holdfast"}}
	if rnd.IntN(10) == 0 { // its minute was taken, and many after it
		s.ID = at.Add(time.Duration(rnd.IntN(200))*time.Hour+time.Duration(1+len(p.sets))*time.Minute).Format("200601021504") + "_1-0"
	}
	kind := rnd.IntN(100)
	switch {
	case kind < 6: // by hand
		p.backup(t, rnd, p.repo(where), at)
		return
	case kind < 20:
		s.State, s.Error = catalog.Failed, "disk full"
	case kind < 23:
		s.State, s.Ended = catalog.Running, time.Time{}
	case kind < 29:
		s.State, s.Error, s.Removal = catalog.Failed, "being removed", &catalog.Removal{Reason: "old", At: at.Add(time.Hour)}
	}
	if rnd.IntN(4) == 0 {
		s.Mode = catalog.Included
	}
	half := s.State != catalog.Complete && rnd.IntN(2) == 0 // it has not got far, or is nearly gone
	for _, kind := range []catalog.Kind{catalog.Application, catalog.EventBus} {
		if half || s.State == catalog.Running {
			continue
		}
		suffix := map[catalog.Kind]string{catalog.Application: appSuffix, catalog.EventBus: busSuffix}[kind]
		piece := catalog.Piece{Kind: kind, Path: filepath.Join(p.dir, s.ID+suffix), Size: int64(1 + rnd.IntN(50))}
		s.Pieces = append(s.Pieces, piece)
		writeFile(t, piece.Path, int(piece.Size))
	}
	if rnd.IntN(5) == 0 {
		writeFile(t, filepath.Join(p.dir, s.ID+kitSuffix), 7)
	}
	if s.Mode == catalog.Apart && !half {
		r := p.repo(where)
		line := p.backup(t, rnd, r, at)
		s.Pieces = append(s.Pieces, catalog.Piece{Kind: catalog.Postgres, Path: where, Stanza: "demo", Label: string(line.Label), Size: line.RepoSizeDelta})
		r.number += rnd.IntN(3)
		point := catalog.PostgresPoint{Stanza: "demo", Label: string(line.Label), Segment: segmentAt(r.timeline, r.number), WALStart: line.ArchiveStart}
		s.Recovery.Postgres = append(s.Recovery.Postgres, point)
		p.archive(t, r, rnd.IntN(4))
	}
	p.fate(t, rnd, s, at)
	p.sets = append(p.sets, s)
}

// fate is what happened to a set since.
func (p *past) fate(t *testing.T, rnd *rand.Rand, s *catalog.Set, at time.Time) {
	verdict := func(ok bool) {
		s.Verdicts = append(s.Verdicts, catalog.Verdict{Check: "verify", OK: ok, At: at.Add(time.Hour)})
	}
	switch rnd.IntN(10) {
	case 0:
		verdict(true)
	case 1:
		verdict(false)
	case 2:
		verdict(false)
		verdict(rnd.IntN(2) == 0)
	}
	if s.State != catalog.Complete {
		return
	}
	app := s.Piece(catalog.Application).Path
	switch rnd.IntN(12) {
	case 0, 1: // the program took them away
		s.PostScript = &catalog.PostScript{Program: "/away"}
		removeAll(t, app, s.Piece(catalog.EventBus).Path)
	case 2: // it failed after the first
		s.PostScript = &catalog.PostScript{Program: "/away", Error: "no route"}
		removeAll(t, app)
	case 3: // somebody did
		removeAll(t, app)
	case 4: // the disk was full
		if err := os.Truncate(app, 0); err != nil {
			t.Fatal(err)
		}
	case 5:
		if piece := s.Piece(catalog.Postgres); piece != nil && rnd.IntN(2) == 0 { // somebody expired it
			p.drop(t, p.repos[piece.Path], repo.Label(piece.Label))
		}
	}
	if rnd.IntN(6) == 0 {
		s.Pin = &catalog.Pin{Reason: "audit", At: at.Add(time.Hour), Until: []time.Time{{}, p.now.Add(time.Hour), p.now.Add(-time.Hour)}[rnd.IntN(3)]}
	}
}

// backup adds a backup to a repository, on top of some earlier one or as a full.
func (p *past) backup(t *testing.T, rnd *rand.Rand, r *pastRepo, at time.Time) repo.BackupLine {
	if rnd.IntN(12) == 0 {
		r.timeline++
		name := fmt.Sprintf("%08X.history", r.timeline)
		p.put(t, r, repo.SegmentDir("demo", "15-1", name)+"/"+name)
		if rnd.IntN(2) == 0 && r.number > 4 {
			r.number -= rnd.IntN(4) // restored to an earlier time
		}
	}
	typ, prior := repo.Full, repo.Label("")
	if len(r.chain) > 0 && rnd.IntN(5) > 0 {
		typ, prior = repo.Incr, r.chain[rnd.IntN(len(r.chain))]
		if rnd.IntN(4) == 0 {
			typ, prior = repo.Diff, r.chain[0]
		}
	}
	l := p.add(t, r, at, typ, prior, rnd.IntN(2))
	if rnd.IntN(2) == 0 {
		p.archive(t, r, 3)
	}
	return l
}

// add adds a backup of n segments and one.
func (p *past) add(t *testing.T, r *pastRepo, at time.Time, typ repo.BackupType, prior repo.Label, n int) repo.BackupLine {
	l := repo.BackupLine{BackrestVersion: "2.45", Type: typ, Prior: prior, DBID: 1, TimeStart: at.Unix(), TimeStop: at.Unix() + 60, Size: 1, SizeDelta: 1, RepoSize: 1, RepoSizeDelta: 3, Online: true}
	stamp := at.UTC().Format("20060102-150405")
	if typ == repo.Full {
		l.Label, r.chain = repo.Label(stamp+"F"), nil
	} else {
		full := r.chain[0]
		l.Label = full + repo.Label("_"+stamp+map[repo.BackupType]string{repo.Diff: "D", repo.Incr: "I"}[typ])
		l.References = []repo.Label{full}
		if prior != full {
			l.References = append(l.References, prior)
		}
	}
	r.chain = append(r.chain, l.Label)
	l.ArchiveStart = segmentAt(r.timeline, r.number)
	p.segments(t, r, n+1)
	r.number += n
	l.ArchiveStop = segmentAt(r.timeline, r.number)
	r.bi.Put(l)
	for _, name := range []string{repo.ManifestPath("demo", l.Label), repo.ManifestPath("demo", l.Label) + ".copy", "backup/demo/" + string(l.Label) + "/pg_data/x.gz"} {
		p.put(t, r, name)
	}
	return l
}

// segments puts n segments into the archive from where the cluster is.
func (p *past) segments(t *testing.T, r *pastRepo, n int) {
	for i := range n {
		seg := segmentAt(r.timeline, r.number+i)
		p.put(t, r, repo.SegmentDir("demo", "15-1", seg)+"/"+seg+"-"+strings.Repeat("ab", 20)+".gz")
	}
}

// archive is the cluster at work: it fills what remains up to where it is, and n segments more.
func (p *past) archive(t *testing.T, r *pastRepo, n int) {
	from := max(r.number-4, 1)
	at := r.number
	r.number = from
	p.segments(t, r, at-from+n+1)
	r.number = at + n + 1
}

func (p *past) put(t *testing.T, r *pastRepo, name string) {
	if err := storage.WriteAll(t.Context(), r.st, name, []byte("x")); err != nil {
		t.Fatal(err)
	}
}

// drop takes a backup out of a repository, if nothing is built on it.
func (p *past) drop(t *testing.T, r *pastRepo, l repo.Label) {
	if slices.ContainsFunc(r.bi.Backups, func(b repo.BackupLine) bool { return b.Prior == l }) {
		return
	}
	r.bi.Backups = slices.DeleteFunc(r.bi.Backups, func(b repo.BackupLine) bool { return b.Label == l })
	r.chain = slices.DeleteFunc(r.chain, func(c repo.Label) bool { return c == l })
	for _, name := range r.st.Names() {
		if strings.HasPrefix(name, "backup/demo/"+string(l)+"/") {
			if err := r.st.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func writeFile(t *testing.T, name string, size int) {
	if err := os.WriteFile(name, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
}

func removeAll(t *testing.T, names ...string) {
	for _, n := range names {
		if err := os.RemoveAll(n); err != nil {
			t.Fatal(err)
		}
	}
}

// app is the application over this past. wrap, if any, stands between it and each storage.
func (p *past) app(wrap func(storage.Storage) storage.Storage) *App {
	if wrap == nil {
		wrap = func(st storage.Storage) storage.Storage { return st }
	}
	return New(Options{DumpDir: p.dir, LockPath: filepath.Join(p.dir, "lock/instance.lock"), Catalog: catalog.NewStore(wrap(p.cat)), RepoDir: "/repo-a", Keep: p.rule,
		OpenRepo: func(dir string) (storage.Storage, error) {
			if r := p.repos[dir]; r != nil {
				return wrap(r.st), nil
			}
			return wrap(storage.NewMem(nil)), nil
		},
		Now: func() time.Time { return p.now }})
}

// files are the names in the dump directory.
func (p *past) files(t *testing.T) (out []string) {
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out
}

// everything is all names there are, with the catalogue's documents.
func (p *past) everything(t *testing.T) string {
	out := p.files(t)
	for dir, r := range p.repos {
		for _, n := range r.st.Names() {
			out = append(out, dir+"/"+n)
		}
	}
	for _, n := range p.cat.Names() {
		b, err := storage.ReadAll(t.Context(), p.cat, n, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, n+string(b))
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}
