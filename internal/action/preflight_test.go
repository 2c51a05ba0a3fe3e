package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestRunChecks: everything is looked at, in the order of areas and the worst first; what hangs is a finding, and holds nobody up.
func TestRunChecks(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	one := func(area string, s Severity) Check {
		return Check{area, "o", func(context.Context) []Finding { return []Finding{{Area: area, Severity: s}} }}
	}
	checks := []Check{one(AreaSets, Fine), one(AreaDisks, Fine), {AreaBus, "away:9092", func(context.Context) []Finding { <-hang; return nil }}, one(AreaDisks, Blocked), one(AreaDisks, Warns), one(AreaParameters, Fine),
		{AreaStore, "slow", func(ctx context.Context) []Finding {
			<-ctx.Done()
			return []Finding{unsure(ctx, AreaStore, "slow", "", ctx.Err())}
		}}}
	began := time.Now()
	found := RunChecks(t.Context(), 50*time.Millisecond, checks)
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	var got []string
	for _, f := range found {
		got = append(got, f.Area+" "+string(f.Severity))
	}
	want := []string{"parameters ok", "disks error", "disks warning", "disks ok", "eventbus warning", "store warning", "sets ok"}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if f := found[4]; f.Object != "away:9092" || !strings.Contains(f.What, "no answer within 50ms") {
		t.Errorf("%+v", f)
	}
	if len(areas()) != 13 || slices.Index(areas(), AreaPrograms) < 0 {
		t.Errorf("areas %v", areas())
	}
}

// TestFindingText: the command that an error names is what to do, and is said once.
func TestFindingText(t *testing.T) {
	f := blocked(AreaRights, "/x", "", errors.New("nobody can enter /x: run: chmod o+x /x"))
	if f.What != "nobody can enter /x" || f.Do != "chmod o+x /x" || f.String() != "nobody can enter /x: run: chmod o+x /x" {
		t.Errorf("%+v, %s", f, f)
	}
	if text := warns(AreaDisks, "/y", "make room", "nearly full").String(); text != "/y: nearly full; make room" {
		t.Error(text)
	}
	err := &preflightError{[]Finding{f, blocked(AreaDisks, "/z", "", fmt.Errorf("%w: 1 B", ErrNoSpace))}}
	if !errors.Is(err, ErrNoSpace) || !errors.Is(err, ErrPreflight) || !strings.Contains(err.Error(), "2 reasons") || !strings.Contains(err.Error(), "chmod o+x /x\n") {
		t.Error(err)
	}
}

// sized makes a complete set that took so much, in bytes: PostgreSQL's databases and their backup, files and their part of the tarball.
func sized(id string, mode catalog.Mode, db, stored, files, filesStored int64) *catalog.Set {
	s := &catalog.Set{ID: id, Run: id, State: catalog.Complete, Mode: mode, Began: time.Date(2026, 11, 20, 0, 0, 0, 0, time.UTC),
		Recovery: &catalog.Recovery{Postgres: []catalog.PostgresPoint{{Stanza: "main", Label: "20261120-000000F", Bytes: db, RepoBytes: stored, Compress: "zst"}}, Files: &catalog.FilesPoint{Bytes: files}}}
	app := filesStored
	if mode == catalog.Included {
		app += stored
	} else {
		s.Pieces = append(s.Pieces, catalog.Piece{Kind: catalog.Postgres, Size: stored, Stanza: "main", Label: "20261120-000000F"})
	}
	s.Pieces = append(s.Pieces, catalog.Piece{Kind: catalog.Application, Size: app, Path: "/a"})
	return s
}

// TestSpaceIsCertain: a run is refused only where what it needs is known, by sets of the same clusters, as large, as compressed and
// complete, and there is not half of it; whatever makes that doubtful makes it a warning.
func TestSpaceIsCertain(t *testing.T) {
	const gib = int64(1) << 30
	a := New(Options{DumpDir: "/dump", RepoDir: "/repo", TempDir: "/tmp", Compress: repo.ZST, Clusters: []Cluster{{Stanza: "main"}}})
	good := sized("202611200000_1", catalog.Included, 100*gib, 30*gib, 50*gib, 40*gib)
	for _, c := range []struct {
		name                      string
		mode                      catalog.Mode
		db, files                 int64 // now
		resumes                   bool
		change                    func(s *catalog.Set)
		dumpLikely, dumpSure      int64
		repoLikely, repoSure      int64
		dumpFree                  uint64
		severity, severityOfApart Severity
	}{
		{name: "as before", mode: catalog.Included, db: 100 * gib, files: 50 * gib, dumpLikely: 70 * gib, dumpSure: 35 * gib, dumpFree: uint64(34 * gib), severity: Blocked},
		{name: "half is free", mode: catalog.Included, db: 100 * gib, files: 50 * gib, dumpLikely: 70 * gib, dumpSure: 35 * gib, dumpFree: uint64(36 * gib), severity: Warns},
		{name: "enough is free", mode: catalog.Included, db: 100 * gib, files: 50 * gib, dumpLikely: 70 * gib, dumpSure: 35 * gib, dumpFree: uint64(71 * gib), severity: Fine},
		{name: "the database has grown", mode: catalog.Included, db: 200 * gib, files: 50 * gib, dumpLikely: 100 * gib, dumpSure: 35 * gib, dumpFree: uint64(90 * gib), severity: Warns},
		{name: "the database has shrunk", mode: catalog.Included, db: 10 * gib, files: 50 * gib, dumpLikely: 43 * gib, dumpSure: 20 * gib, dumpFree: 1, severity: Blocked},
		{name: "the files have shrunk, or could not be seen", mode: catalog.Included, db: 100 * gib, files: gib, dumpLikely: 70 * gib, dumpSure: 15 * gib, dumpFree: uint64(16 * gib), severity: Warns},
		{name: "the server does not say", mode: catalog.Included, files: gib, dumpLikely: 70 * gib, dumpFree: 1, severity: Warns},
		{name: "another compression", mode: catalog.Included, db: 100 * gib, files: gib, change: func(s *catalog.Set) { s.Recovery.Postgres[0].Compress = "none" }, dumpLikely: 70 * gib, dumpFree: 1, severity: Warns},
		{name: "a set of before", mode: catalog.Included, db: 100 * gib, files: gib, change: func(s *catalog.Set) { s.Recovery.Postgres[0].Compress = "" }, dumpLikely: 70 * gib, dumpFree: 1, severity: Warns},
		{name: "an increment", mode: catalog.Included, db: 100 * gib, files: gib, change: func(s *catalog.Set) { s.Recovery.Postgres[0].Label = "20261120-000000F_20261121-000000I" }, dumpLikely: 70 * gib, dumpFree: 1, severity: Warns},
		{name: "another cluster", mode: catalog.Included, db: 100 * gib, files: 50 * gib, change: func(s *catalog.Set) { s.Recovery.Postgres[0].Stanza = "gone" }, dumpLikely: 40 * gib, dumpSure: 20 * gib, dumpFree: uint64(21 * gib), severity: Warns},
		{name: "apart from now on", mode: catalog.Apart, db: 100 * gib, files: 50 * gib, dumpLikely: 40 * gib, dumpSure: 20 * gib, repoLikely: 30 * gib, repoSure: 15 * gib, dumpFree: 1, severity: Blocked},
		{name: "apart, resumed", mode: catalog.Apart, db: 100 * gib, files: 50 * gib, resumes: true, dumpLikely: 40 * gib, dumpSure: 20 * gib, repoLikely: 30 * gib, dumpFree: 1, severity: Blocked},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.o.Mode = c.mode
			b, err := good.Encode()
			if err != nil {
				t.Fatal(err)
			}
			s, err := catalog.Parse(b)
			if err != nil {
				t.Fatal(err)
			}
			if c.change != nil {
				c.change(s)
			}
			e := estimate{needs: a.placed([]shares{a.scale(s, map[string]int64{"main": c.db}, c.files, c.resumes)}), basis: "by the last set"}
			got := map[string]need{}
			for _, n := range e.needs {
				got[n.dir] = n
			}
			if n := got["/dump"]; n.likely != c.dumpLikely || n.sure != c.dumpSure {
				t.Errorf("dump: likely %s, sure %s", engine.Size(n.likely), engine.Size(n.sure))
			}
			if n := got["/repo"]; n.likely != c.repoLikely || n.sure != c.repoSure {
				t.Errorf("repository: likely %s, sure %s", engine.Size(n.likely), engine.Size(n.sure))
			}
			if f := e.judge(volume{dirs: []string{"/dump"}, free: c.dumpFree}); f.Severity != c.severity {
				t.Errorf("%+v", f)
			} else if f.Severity == Blocked && !errors.Is(f.err, ErrNoSpace) {
				t.Errorf("%v", f.err)
			}
		})
	}
}

// TestSpaceOfSeveralSets: what is likely is the most of them, what is sure half of the least; directories on one disk share it.
func TestSpaceOfSeveralSets(t *testing.T) {
	a := New(Options{DumpDir: "/dump", RepoDir: "/repo", TempDir: "/tmp", Compress: repo.ZST, Mode: catalog.Apart, Clusters: []Cluster{{Stanza: "main"}}})
	var all []shares
	for _, stored := range []int64{300, 500, 100} {
		all = append(all, a.scale(sized("202611200000_1", catalog.Apart, 1000, stored, 10, 40), map[string]int64{"main": 1000}, 10, false))
	}
	e := estimate{needs: a.placed(all)}
	for free, want := range map[uint64]Severity{69: Blocked, 70: Warns, 539: Warns, 540: Fine} {
		if f := e.judge(volume{dirs: []string{"/dump", "/repo", "/tmp"}, free: free}); f.Severity != want {
			t.Errorf("%d free: %+v", free, f)
		}
	}
	if got := comparable([]*catalog.Set{sized("1", catalog.Apart, 1, 1, 1, 1), {State: catalog.Failed}, {State: catalog.Complete}}); len(got) != 1 {
		t.Errorf("%d sets to go by", len(got))
	}
}

// TestVolumes: directories are grouped by file system, also those that are not there yet.
func TestVolumes(t *testing.T) {
	dir := t.TempDir()
	v, err := volumesOf(dir, filepath.Join(dir, "not/yet"), "/proc", "", dir)
	if err != nil || len(v) != 2 || len(v[0].dirs) != 2 || v[0].free == 0 || v[0].total < v[0].free {
		t.Errorf("%+v %v", v, err)
	}
}

// TestSpaceStopsTheRun: a run for which there surely is no room ends before anything is written, and is remembered as failed; told to
// go on all the same it makes its set. The files are looked at as a run takes them.
func TestSpaceStopsTheRun(t *testing.T) {
	w := newWorld(t)
	w.write("srv/app/cache/left-out", strings.Repeat("x", 100_000))
	if err := os.WriteFile(w.path("srv/more/big"), []byte(strings.Repeat("y", 300_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if n := w.app().lookAtFiles(t.Context(), 1<<40); n < 300_000 || n > 350_000 {
		t.Errorf("%d bytes of files were seen", n)
	}
	if n := w.app().lookAtFiles(t.Context(), 1); n > 350_000 {
		t.Errorf("%d bytes were seen where 1 is enough", n)
	}
	if n := busSize(t.Context(), *w.o.Bus); n <= 0 || n > 1<<20 {
		t.Errorf("two records on the event bus take %d bytes", n)
	}
	huge := sized("202611200000_1-0", catalog.Included, 0, 0, 300_000, 1<<60)
	huge.Recovery.Postgres = nil
	if err := w.o.Catalog.Put(t.Context(), huge); err != nil {
		t.Fatal(err)
	}
	set, err := w.app().BackupAll(t.Context())
	if !errors.Is(err, ErrNoSpace) || !strings.Contains(err.Error(), "--skip-preflight") || !strings.Contains(err.Error(), "by the last set") {
		t.Fatal(err)
	}
	if set == nil || set.State != catalog.Failed || len(set.Pieces) > 0 {
		t.Errorf("set %+v", set)
	}
	if left, err := os.ReadDir(w.o.DumpDir); err != nil || len(left) > 0 {
		t.Errorf("left %v %v", left, err)
	}
	plan, err := w.app().PlanBackupAll(t.Context())
	if err != nil || len(plan.WhatIsWrong) != 1 || !strings.Contains(plan.WhatIsWrong[0], "not enough space") || Count(plan.Findings, Blocked) != 1 {
		t.Errorf("plan %+v %v", plan, err)
	}
	a := w.app()
	a.SkipPreflight()
	if set, err := a.BackupAll(t.Context()); err != nil || set.State != catalog.Complete {
		t.Error(err)
	}
	// Now the smaller of two sets decides, of another run than this.
	w.o.ExecID = "2-abcdef02"
	if set, err = w.app().BackupAll(t.Context()); err != nil || len(set.Warnings) != 1 || !strings.Contains(set.Warnings[0], "space may not suffice") {
		t.Errorf("scarce space is no warning of the set: %+v %v", set, err)
	}
}

// complaints are the errors and warnings.
func complaints(found []Finding) (all []string) {
	for _, f := range found {
		if f.Severity != Fine {
			all = append(all, f.String())
		}
	}
	return all
}

// TestPlaces plants what is wrong with places and programs, one after the other: each is found and nothing else.
func TestPlaces(t *testing.T) {
	w := newWorld(t)
	w.o.LogDir = filepath.Join(w.o.Root, "log")
	for _, d := range []string{w.o.LogDir, w.o.DumpDir, w.o.TempDir, filepath.Dir(w.o.LockPath)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	look := func() []string {
		a := w.app()
		return complaints(RunChecks(t.Context(), DoctorTime, []Check{{AreaRights, "", a.checkRights}, {AreaFiles, "", a.checkTrees}, {AreaPrograms, "", a.checkPrograms}, {AreaDisks, "", a.checkUsage}, {AreaBus, "", a.checkBus}}))
	}
	if got := look(); len(got) > 0 {
		t.Fatalf("all is well: %q", got)
	}
	script := filepath.Join(w.o.Root, "script")
	pass := filepath.Join(w.o.Root, "pass")
	for _, f := range []string{script, pass} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	foreign := filepath.Join(w.o.TempDir, "mine")
	for _, c := range []struct {
		want     string
		do, undo func()
	}{
		{"srv/app", func() { must(t, os.Rename(w.path("srv/app"), w.path("srv/away"))) }, func() { must(t, os.Rename(w.path("srv/away"), w.path("srv/app"))) }},
		{"did not put there: mine", func() { must(t, os.WriteFile(foreign, nil, 0o600)) }, func() { must(t, os.Remove(foreign)) }},
		{"it can't be executed", func() { w.o.PostScript = &PostScriptOptions{Path: script} }, func() { w.o.PostScript = nil }},
		{"no such file", func() { w.o.PostScript = &PostScriptOptions{Path: script + "x"} }, func() { w.o.PostScript = nil }},
		{"is no program", func() { w.o.Tool = &ToolOptions{Path: script} }, func() { w.o.Tool = nil }},
		{"is no pgbackrest", func() { w.o.Tool = &ToolOptions{Path: "/bin/true"} }, func() { w.o.Tool = nil }},
		{"mode 0644 lets others read", func() { w.o.RepoPass, w.o.PassFile = "x", pass }, func() { w.o.RepoPass = "" }},
		{"passphrase for archive_command", func() { w.o.RepoPass, w.o.PassFile = "x", pass+"x" }, func() { w.o.RepoPass = "" }},
		{"no topic of this name", func() { w.o.Bus.Topics = []string{"gone"} }, func() { w.o.Bus.Topics = nil }},
		{"no broker of", func() { w.o.Bus.Brokers = []string{"127.0.0.1:1"} }, func() { w.o.Bus.Brokers = w.brokers }},
	} {
		c.do()
		if got := look(); len(got) != 1 || !strings.Contains(got[0], c.want) {
			t.Errorf("want %q, got %q", c.want, got)
		}
		c.undo()
	}
	if got := look(); len(got) > 0 {
		t.Errorf("after all was undone: %q", got)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestRightsOfTheOwner: directories that the instance's user can't use are found by trying, as root; by an ordinary user for himself.
func TestRightsOfTheOwner(t *testing.T) {
	dir, err := os.MkdirTemp("", "rights-") // a t.TempDir lets no other user through
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chmod(dir, 0o755))
	o := Options{DumpDir: filepath.Join(dir, "up/dump"), TempDir: filepath.Join(dir, "tmp"), LockPath: filepath.Join(dir, "lock/l"), RepoDir: filepath.Join(dir, "repo")}
	for _, d := range []string{o.DumpDir, o.TempDir, filepath.Dir(o.LockPath)} {
		must(t, os.MkdirAll(d, 0o755))
	}
	root := os.Geteuid() == 0
	if root {
		o.Owner = &durable.Owner{UID: 65534, GID: 65534}
		for _, d := range []string{o.DumpDir, o.TempDir, filepath.Dir(o.LockPath)} {
			must(t, os.Chown(d, 65534, 65534))
		}
	}
	a := New(o)
	if got := complaints(a.checkRights(t.Context())); len(got) > 0 {
		t.Errorf("all is well: %q", got)
	}
	must(t, os.Chmod(o.DumpDir, 0o555))
	got := complaints(a.checkRights(t.Context()))
	if len(got) != 1 || !strings.Contains(got[0], "cannot write into "+o.DumpDir) || !strings.Contains(got[0], "u+rwx") {
		t.Errorf("a directory that is not to be written into: %q", got)
	}
	must(t, os.Chmod(o.DumpDir, 0o755))
	if !root {
		return
	}
	must(t, os.Chmod(filepath.Join(dir, "up"), 0o700))
	got = complaints(a.checkRights(t.Context()))
	if len(got) != 1 || !strings.Contains(got[0], "cannot enter "+filepath.Join(dir, "up")+",") || !strings.HasSuffix(got[0], "chmod o+x "+filepath.Join(dir, "up")) {
		t.Errorf("a directory that is not to be entered: %q", got)
	}
}

// TestSetsAreLookedAt plants what is wrong with sets.
func TestSetsAreLookedAt(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	base := func(id string) *catalog.Set {
		s := sized(id, catalog.Included, 1, 1, 1, 1)
		s.Began = now.Add(-time.Hour)
		return s
	}
	for _, c := range []struct {
		want string
		sets func() []*catalog.Set
	}{
		{"there is no backup yet", func() []*catalog.Set { return nil }},
		{"", func() []*catalog.Set { return []*catalog.Set{base("202611221100_1")} }},
		{"no set is complete", func() []*catalog.Set {
			s := base("202611221100_1")
			s.State = catalog.Running
			return []*catalog.Set{s}
		}},
		{"the last run failed: the bus is down", func() []*catalog.Set {
			s := base("202611221130_1")
			s.State, s.Error = catalog.Failed, "the bus is down"
			return []*catalog.Set{base("202611221100_1"), s}
		}},
		{"verification of 2026-11-22T11:30:00Z found damage: torn", func() []*catalog.Set {
			s := base("202611221100_1")
			s.Verdicts = []catalog.Verdict{{Check: "verify", OK: true}, {Check: "verify", At: now.Add(-30 * time.Minute), Findings: []string{"torn"}}, {Check: "restore", OK: true}}
			return []*catalog.Set{s, base("202611221110_1")}
		}},
		{"has srv/gone; it is not there", func() []*catalog.Set {
			s := base("202611221100_1")
			s.Recovery.Files.Trees = []catalog.Tree{{Name: "app", Path: "srv/app"}, {Name: "gone", Path: "srv/gone"}}
			return []*catalog.Set{s}
		}},
		{"48h0m0s in the future", func() []*catalog.Set {
			s := base("202611241200_1")
			s.Began = now.Add(48 * time.Hour)
			return []*catalog.Set{s}
		}},
	} {
		o := Options{Catalog: catalog.NewStore(storage.NewMem(nil)), Now: func() time.Time { return now }, Files: FilesOptions{Trees: []catalog.Tree{{Name: "app", Path: "srv/app"}}}, LockPath: filepath.Join(t.TempDir(), "l"), JournalPath: filepath.Join(t.TempDir(), "j")}
		for _, s := range c.sets() {
			must(t, o.Catalog.Put(t.Context(), s))
		}
		got := complaints(New(o).checkSets(t.Context()))
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("want %q, got %q", c.want, got)
		}
	}
}

// TestLockIsLookedAt: who holds the instance is said without touching the lock; one that a dead process left is told from it.
func TestLockIsLookedAt(t *testing.T) {
	now := time.Now()
	o := Options{LockPath: filepath.Join(t.TempDir(), "lock/instance.lock"), ExecID: "77-abc", Now: func() time.Time { return now }}
	a := New(o)
	if got := complaints(a.checkLock()); len(got) > 0 {
		t.Errorf("no lock yet: %q", got)
	}
	unlock, err := a.lock(t.Context(), "backup_all")
	must(t, err)
	if got := complaints(a.checkLock()); len(got) != 1 || !strings.Contains(got[0], "backup_all (process 77-abc) works on the instance since") {
		t.Errorf("held: %q", got)
	}
	now = now.Add(48 * time.Hour)
	if got := complaints(a.checkLock()); len(got) != 1 || !strings.Contains(got[0], fmt.Sprintf("ps -fp %d", os.Getpid())) {
		t.Errorf("held for two days: %q", got)
	}
	text, err := os.ReadFile(o.LockPath)
	must(t, err)
	must(t, unlock())
	if got := complaints(a.checkLock()); len(got) > 0 {
		t.Errorf("given back: %q", got)
	}
	must(t, os.WriteFile(o.LockPath, text, 0o640))
	if got := complaints(a.checkLock()); len(got) != 1 || !strings.Contains(got[0], "did not end properly") {
		t.Errorf("left by a process that died: %q", got)
	}
	list := filepath.Join(t.TempDir(), "locks")
	must(t, os.WriteFile(list, []byte("1: POSIX  ADVISORY  WRITE 12 fe:00:844788 0 EOF\n1: -> FLOCK\nrubbish\n"), 0o600))
	if _, locked, err := lockHolder(list, o.LockPath); err != nil || locked {
		t.Errorf("%v %v", locked, err)
	}
	if _, _, err := lockHolder(list+"x", o.LockPath); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestCompareHost: each thing that is not here as it was is named, with what to do, and nothing else is.
func TestCompareHost(t *testing.T) {
	bin, err := pg.FindBinDir(15)
	if err != nil {
		if _, lerr := exec.LookPath("ldd"); testing.Short() && lerr != nil {
			t.Skip("needs PostgreSQL 15; run make setup")
		}
		t.Fatal(err)
	}
	programs := pg.ProgramsOf(bin, 15)
	here := pg.Machine{Arch: "amd64", Libc: "glibc 2.36", ICU: "72"}
	locales := []string{"C", "C.utf8", "en_US.utf8", "POSIX"}
	base := func() *catalog.PostgresHost {
		return &catalog.PostgresHost{Arch: "amd64", Libc: "glibc 2.36", ICU: "72", Preload: []string{"auto_explain"}, Locales: []string{"en_US.UTF-8"}, Databases: []catalog.DatabaseHost{
			{Name: "a", Provider: "libc", Locale: "en_US.UTF-8", Collate: "en_US.UTF-8", Ctype: "en_US.UTF-8", Extensions: []catalog.Extension{{Name: "plpgsql", Version: "1.0"}}},
			{Name: "b", Provider: "icu", Locale: "de", Collate: "C", Ctype: "C"}}}
	}
	for _, c := range []struct {
		want   string
		change func(h *catalog.PostgresHost)
	}{
		{"", func(*catalog.PostgresHost) {}},
		{"made on arm64, this is amd64", func(h *catalog.PostgresHost) { h.Arch = "arm64" }},
		{"libc: glibc 2.28 where the set was made, glibc 2.36 here", func(h *catalog.PostgresHost) { h.Libc = "glibc 2.28" }},
		{"libc: unknown where", func(h *catalog.PostgresHost) { h.Libc = "" }},
		{"", func(h *catalog.PostgresHost) {
			h.Libc, h.Databases[0].Locale = "glibc 2.28", "C.UTF-8" // which sorts by code points everywhere
		}},
		{"ICU: version 67 where", func(h *catalog.PostgresHost) { h.ICU = "67" }},
		{"", func(h *catalog.PostgresHost) { h.ICU, h.Databases = "67", h.Databases[:1] }},
		{"locale de_DE.UTF-8 is not on this machine: database a could not", func(h *catalog.PostgresHost) { h.Databases[0].Ctype = "de_DE.UTF-8" }},
		{"locale fr_FR.UTF-8 is not on this machine: the configuration", func(h *catalog.PostgresHost) { h.Locales = append(h.Locales, "fr_FR.UTF-8") }},
		{"shared_preload_libraries has timescaledb", func(h *catalog.PostgresHost) { h.Preload = append(h.Preload, "timescaledb") }},
		{"extension postgis 3.4.2 of database a is not installed here", func(h *catalog.PostgresHost) {
			h.Databases[0].Extensions = append(h.Databases[0].Extensions, catalog.Extension{Name: "postgis", Version: "3.4.2"})
		}},
		{"", func(h *catalog.PostgresHost) {
			h.Databases[0].Extensions = append(h.Databases[0].Extensions, catalog.Extension{Name: "../../../etc/passwd", Version: "1"})
		}},
	} {
		h := base()
		c.change(h)
		got := complaints(compareHost("main", h, here, locales, programs))
		if c.want == "" && len(got) > 0 || c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)) {
			t.Errorf("want %q, got %q", c.want, got)
		}
	}
	if got := missingLocales("main", &catalog.PostgresHost{Locales: []string{"fr_FR"}}, nil); len(got) > 0 {
		t.Errorf("a machine that does not say which locales it has: %v", got)
	}
}

// TestDescribeStale: the text is bounded and names what there is to run.
func TestDescribeStale(t *testing.T) {
	s := pg.StaleCollation{Database: `my "db"`, Provider: "libc", Recorded: "2.28", Actual: "2.36"}
	for i := range 300 {
		s.Indexes = append(s.Indexes, fmt.Sprintf("public.i%d", i))
	}
	text := describeStale("main", s)
	for _, want := range []string{"public.i0", "public.i99", "and 200 more", `ALTER DATABASE "my ""db""" REFRESH COLLATION VERSION`, "REINDEX INDEX public.i0", "2.28", "2.36"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in %q", want, text)
		}
	}
	if strings.Contains(text, "public.i100,") || len(text) > 4000 {
		t.Errorf("%d bytes", len(text))
	}
}
