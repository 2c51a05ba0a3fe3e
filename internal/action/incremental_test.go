package action

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/pgtest"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// chainLines are a full backup, begun at a time, and n that are built on it.
func chainLines(began time.Time, n int) []repo.BackupLine {
	full := repo.Label(began.Format("20060102-150405") + "F")
	lines := []repo.BackupLine{{Label: full, Type: repo.Full, TimeStart: began.Unix()}}
	for i := range n {
		at := began.AddDate(0, 0, i+1)
		lines = append(lines, repo.BackupLine{Label: full + repo.Label(at.Format("_20060102-150405")+"I"), Type: repo.Incr, Prior: lines[i].Label, TimeStart: at.Unix()})
	}
	return lines
}

// TestFullEvery: the number is runs from one full backup to the next, the full one counted, and failed runs do not count.
func TestFullEvery(t *testing.T) {
	began := time.Date(2026, 11, 1, 4, 0, 0, 0, time.UTC)
	for every := range 10 {
		o := IncrementalOptions{Enabled: true, FullEvery: every}
		for after := range 10 {
			lines := chainLines(began, after)
			want := repo.Incr
			if after+1 >= every {
				want = repo.Full
			}
			c := o.due(lines, nil, began.AddDate(0, 0, after+1))
			if c.typ != want || !strings.Contains(c.why, string(lines[0].Label)) {
				t.Errorf("every %d, %d after: %+v", every, after, c)
			}
			if want == repo.Full && after > 0 {
				failed := map[repo.Label]bool{lines[after].Label: true}
				if again := o.due(lines, failed, began); (again.typ == repo.Full) != (after >= every) {
					t.Errorf("every %d, %d after, one of them failed: %+v", every, after, again)
				}
			}
		}
	}
	if c := (&IncrementalOptions{FullEvery: 7, Type: repo.Diff}).due(nil, nil, began); c.typ != repo.Diff {
		t.Errorf("with nothing there: %+v", c)
	}
}

// TestFullDays counts a year of runs hour by hour against the days themselves.
func TestFullDays(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, zone := range []*time.Location{nil, berlin} {
		for _, days := range [][]time.Weekday{{time.Sunday}, {time.Monday, time.Thursday}} {
			o := IncrementalOptions{Enabled: true, FullEvery: 2, FullDays: days, Zone: zone}
			in := zone
			if in == nil {
				in = time.UTC
			}
			last := time.Date(2026, 1, 1, 0, 30, 0, 0, time.UTC)
			seen := map[string]bool{last.In(in).Format("2006-01-02"): true} // the first of January has its full backup
			for at := last.Add(time.Hour); at.Year() < 2027; at = at.Add(time.Hour) {
				local := at.In(in)
				want := slices.Contains(days, local.Weekday()) && !seen[local.Format("2006-01-02")]
				c := o.due(chainLines(last, 0), nil, at)
				if (c.typ == repo.Full) != want {
					t.Fatalf("%v in %v: %+v", at, in, c)
				}
				if want {
					seen[local.Format("2006-01-02")] = true
					last = at
				}
			}
			if len(seen) < 51*len(days) {
				t.Errorf("%d full backups in a year", len(seen))
			}
		}
	}
	// A missed full day is made up by the next run, whenever that is.
	o := IncrementalOptions{Enabled: true, FullDays: []time.Weekday{time.Sunday}}
	saturday := time.Date(2026, 11, 28, 4, 0, 0, 0, time.UTC)
	if c := o.due(chainLines(saturday, 0), nil, saturday.AddDate(0, 0, 4)); c.typ != repo.Full || !strings.Contains(c.why, "Sunday 2026-11-29") {
		t.Errorf("%+v", c)
	}
}

// builtProgram is the program that the servers of these tests archive with.
func builtProgram(t *testing.T) string {
	t.Helper()
	bin := filepath.Join(openTempDir(t), "holdfast")
	build := exec.Command("go", "build", "-o", bin, "holdfast/cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return bin
}

// chainWorld is pgWorld with incremental backups on.
type chainWorld struct {
	t *testing.T
	c *pgtest.Cluster
	o *Options
	n int // rows so far
}

func newChainWorld(t *testing.T, mode catalog.Mode) *chainWorld {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	c, _, o := pgWorld(t, builtProgram(t), mode)
	o.Incremental = IncrementalOptions{Enabled: true, FullEvery: 100}
	return &chainWorld{t, c, o, 1000}
}

// run changes something, makes a set and wants its type.
func (w *chainWorld) run(want repo.BackupType, why string) *catalog.Set {
	w.t.Helper()
	w.n++
	w.c.Exec(w.t, fmt.Sprintf("insert into t values (%d)", w.n), fmt.Sprintf("insert into s values (%d)", w.n))
	set, err := New(*w.o).BackupAll(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	if len(set.Backups) != 1 || set.Backups[0].Type != string(want) || !strings.Contains(set.Backups[0].Why, why) {
		w.t.Errorf("%+v, want %s because of %q", set.Backups, want, why)
	}
	return set
}

// warned wants the set to say why it is full.
func warned(t *testing.T, set *catalog.Set, why string) {
	t.Helper()
	if !slices.ContainsFunc(set.Warnings, func(s string) bool { return strings.Contains(s, "a full backup") && strings.Contains(s, why) }) {
		t.Errorf("no warning of %q in %q", why, set.Warnings)
	}
}

// staged are the labels in the repository.
func (w *chainWorld) staged() []string {
	w.t.Helper()
	st, err := storage.NewPosix(w.o.RepoDir, storage.PosixOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	s, err := New(*w.o).stanza("main", st)
	if err != nil {
		w.t.Fatal(err)
	}
	labels, err := s.Labels(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, l := range labels {
		out = append(out, string(l))
	}
	return out
}

// object finds a stored file of a backup that the next one would not store again.
func (w *chainWorld) object(label string) string {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.o.RepoDir, "backup/main", label, "pg_data/base/*/1255*"))
	if err != nil || len(files) == 0 {
		w.t.Fatal(err, "no such file in", label)
	}
	return files[0]
}

// TestWhyFull: every reason why a run can't be incremental is said, and the run is full; with the reason gone the next is incremental.
func TestWhyFull(t *testing.T) {
	for _, mode := range []catalog.Mode{catalog.Apart, catalog.Included} {
		t.Run(string(mode), func(t *testing.T) {
			w := newChainWorld(t, mode)
			first := w.run(repo.Full, "it is the first: there is no backup in "+w.o.RepoDir)
			if len(first.Warnings) > 0 {
				t.Errorf("the first run warns of %q", first.Warnings)
			}
			second := w.run(repo.Incr, "built on "+first.Backups[0].Label+", run 2 of 100")
			if b := second.Backups[0]; b.Prior != first.Backups[0].Label || !slices.Equal(b.Needs, []string{b.Prior}) || len(second.Warnings) > 0 {
				t.Errorf("%+v %q", b, second.Warnings)
			}
			w.o.Compress = repo.ZST
			third := w.run(repo.Full, "compressed with none")
			warned(t, third, "compress_type is zst now")
			w.run(repo.Incr, "run 2 of 100")
			w.o.Incremental.Type = repo.Diff
			w.run(repo.Diff, "built on "+third.Backups[0].Label)
			w.o.Type = repo.Incr
			fourth := w.run(repo.Incr, "asked for")
			w.o.Type, w.o.Incremental.Type = "", ""

			// Something of the chain is cut: the full backup at its root, which the manifest of the newest does not show.
			file := w.object(third.Backups[0].Label)
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, 100); err != nil {
				t.Fatal(err)
			}
			plan, err := New(*w.o).PlanBackupAll(t.Context())
			if err != nil || len(plan.Postgres) != 1 || plan.Postgres[0].Type != repo.Full || !strings.Contains(plan.Postgres[0].Why, fourth.Backups[0].Label+" is damaged") {
				t.Errorf("%v %+v", err, plan.Postgres[0])
			}
			if err := os.WriteFile(file, whole, 0o640); err != nil {
				t.Fatal(err)
			}
			w.run(repo.Incr, "built on "+fourth.Backups[0].Label)

			// Made by another program than the one that is to build on it.
			w.o.Program = "theirs 2.45"
			w.run(repo.Full, "was made by another program")
			w.o.Program = "holdfast test"
			warned(t, w.run(repo.Full, "was made by another program (version theirs 2.45"), "theirs")
			w.checksums(mode)
		})
	}
}

// checksums are turned on while the server is down.
func (w *chainWorld) checksums(mode catalog.Mode) {
	w.t.Helper()
	w.c.Stop(w.t, "fast")
	cmd := exec.Command(filepath.Join(w.c.BinDir(), "pg_checksums"), "--enable", "-D", w.c.DataDir())
	if uid, gid := ownerOf(w.c.DataDir(), nil); os.Geteuid() == 0 {
		cmd = exec.Command("setpriv", append([]string{fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", gid), "--clear-groups"}, cmd.Args...)...)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	w.c.Start(w.t)
	warned(w.t, w.run(repo.Full, "page checksums have changed"), "off then, on now")
	w.run(repo.Incr, "run 2 of 100")
	if mode == catalog.Included {
		return
	}
	// Another directory has a chain of its own.
	other := w.o.RepoDir + "2"
	if err := os.Rename(w.o.RepoDir, other); err != nil {
		w.t.Fatal(err)
	}
	w.o.RepoDir = other
	w.o.Clusters[0].ArchiveCommand = strings.ReplaceAll(w.o.Clusters[0].ArchiveCommand, "--repo1-path="+strings.TrimSuffix(other, "2"), "--repo1-path="+other)
	if _, err := New(*w.o).EnableArchiving(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.run(repo.Incr, "run 3 of 100")
	// What sets were built on has gone.
	if err := os.RemoveAll(other); err != nil {
		w.t.Fatal(err)
	}
	if _, err := New(*w.o).EnableArchiving(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	warned(w.t, w.run(repo.Full, "no incr backup is possible"), "there is no backup in "+other)
}

// TestStagedChain: mode included keeps on disk the chain that the next run builds on and nothing else; each tarball has all of
// its own chain; what is damaged on disk fails the run and is not built on again; turned off, nothing is kept.
func TestStagedChain(t *testing.T) {
	w := newChainWorld(t, catalog.Included)
	w.o.Incremental.FullEvery = 3
	var sets []*catalog.Set
	for i, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Incr, repo.Full, repo.Incr} {
		set := w.run(typ, "")
		sets = append(sets, set)
		own := append(slices.Clone(set.Backups[0].Needs), set.Backups[0].Label)
		if got := w.staged(); !slices.Equal(got, own) {
			t.Errorf("run %d: %v are kept, want %v", i, got, own)
		}
		if got := w.packed(set); !slices.Equal(got, own) {
			t.Errorf("run %d: %v in the tarball, want %v", i, got, own)
		}
		if v, err := New(*w.o).VerifySet(t.Context(), set.ID); err != nil || !v.OK {
			t.Errorf("run %d: %v %+v", i, err, v)
		}
	}
	if _, err := os.Stat(filepath.Join(w.o.RepoDir, "backup/main", sets[0].Backups[0].Label)); !os.IsNotExist(err) {
		t.Errorf("the chain of before is still there: %v", err)
	}
	plan, err := New(*w.o).PlanBackupAll(t.Context())
	if err != nil || plan.Staging == nil || plan.Staging.Chain == 0 || plan.Staging.Tarball < plan.Staging.Chain || len(plan.WhatIsWrong) > 0 {
		t.Errorf("%v %+v %q", err, plan.Staging, plan.WhatIsWrong)
	}

	file := w.object(sets[3].Backups[0].Label)
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 0x40
	if err := os.WriteFile(file, b, 0o640); err != nil {
		t.Fatal(err)
	}
	failed, err := New(*w.o).BackupAll(t.Context())
	if err == nil || !strings.Contains(err.Error(), filepath.Base(file)) || !strings.Contains(err.Error(), "the next run makes a full backup") || failed.State != catalog.Failed {
		t.Fatalf("%v %+v", err, failed)
	}
	warned(t, w.run(repo.Full, "the check of set "+failed.ID), "damaged")
	w.run(repo.Incr, "run 2 of 3")

	w.o.Incremental.Enabled = false
	off := w.run(repo.Full, "incremental backups are off")
	if got := w.staged(); len(got) > 0 {
		t.Errorf("turned off, and %v are kept", got)
	}
	if got := w.packed(off); !slices.Equal(got, []string{off.Backups[0].Label}) {
		t.Errorf("%v in the tarball", got)
	}
	w.o.Type = repo.Incr
	warned(t, w.run(repo.Full, "nothing that one could be built on is kept"), "are off")
}

// packed are the backups that backup.info in a set's tarball lists, oldest first. Each must have its directory there.
func (w *chainWorld) packed(set *catalog.Set) []string {
	w.t.Helper()
	dir := openTempDir(w.t)
	if out, err := exec.Command("tar", "xzf", set.Piece(catalog.Application).Path, "-C", dir, "pgbackrest").CombinedOutput(); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	st, err := storage.NewPosix(filepath.Join(dir, "pgbackrest"), storage.PosixOptions{})
	if err != nil {
		w.t.Fatal(err)
	}
	bi, err := repo.LoadBackupInfo(w.t.Context(), st, "main", w.o.RepoPass)
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, l := range bi.Backups {
		out = append(out, string(l.Label))
	}
	s, err := New(*w.o).stanza("main", st)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range bi.Backups {
		if facts, err := s.LookAtPrior(w.t.Context(), &l); err != nil || facts.Damage != "" {
			w.t.Errorf("%s in the tarball of %s: %v %+v", l.Label, set.ID, err, facts)
		}
	}
	return out
}

// TestDeleteBuiltOn: a set that others are built on is refused until they are gone.
func TestDeleteBuiltOn(t *testing.T) {
	w := newChainWorld(t, catalog.Apart)
	w.o.Incremental.FullEvery = 3
	var sets []*catalog.Set
	for _, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Incr, repo.Full} {
		sets = append(sets, w.run(typ, ""))
	}
	a := New(*w.o)
	_, err := a.PlanDeleteSet(t.Context(), sets[0].ID, false)
	if !errors.Is(err, ErrSetStays) || !strings.Contains(err.Error(), sets[2].ID+", "+sets[1].ID) {
		t.Fatal(err)
	}
	// The last of the chain goes by itself.
	plan, err := a.PlanDeleteSet(t.Context(), sets[2].ID, false)
	if err == nil {
		err = plan.Run(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	if got := w.staged(); len(got) != 3 || slices.Contains(got, sets[2].Backups[0].Label) {
		t.Errorf("%v are left", got)
	}
	// Tarballs from now on, with the same directory as their staging repository: nothing that the sets need is removed from it.
	w.o.Mode = catalog.Included
	before := w.staged()
	for _, enabled := range []bool{true, false} {
		w.o.Incremental.Enabled = enabled
		inside, err := New(*w.o).BackupAll(t.Context())
		if err != nil || !slices.ContainsFunc(inside.Warnings, func(s string) bool { return strings.Contains(s, "nothing is removed from "+w.o.RepoDir) }) {
			t.Errorf("%v %q", err, inside.Warnings)
		}
		if got := w.staged(); !slices.Equal(got[:len(before)], before) {
			t.Errorf("%v are left of %v", got, before)
		}
		if v, err := New(*w.o).VerifySet(t.Context(), sets[1].ID); err != nil || !v.OK {
			t.Errorf("%v %+v", err, v)
		}
	}
	w.o.Mode, w.o.Incremental.Enabled, w.o.Type = catalog.Apart, true, repo.Incr
	a = New(*w.o)
	// What the runs of the other mode left in the directory belongs to no set, and is built on the last one.
	if _, err := a.PlanDeleteSet(t.Context(), sets[3].ID, true); !errors.Is(err, ErrSetStays) {
		t.Errorf("a set that a backup of no set is built on: %v", err)
	}
	w.run(repo.Incr, "")
	for _, set := range []*catalog.Set{sets[1], sets[0]} { // newest first
		if plan, err = a.PlanDeleteSet(t.Context(), set.ID, false); err == nil {
			err = plan.Run(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	left, _, lerr := a.Sets(t.Context())
	if err != nil || lerr != nil || !slices.Contains(ids(left), sets[3].ID) || slices.Contains(ids(left), sets[0].ID) || slices.Contains(ids(left), sets[1].ID) {
		t.Errorf("%v %v %v", err, lerr, ids(left))
	}
}

func ids(sets []*catalog.Set) (out []string) {
	for _, s := range sets {
		out = append(out, s.ID)
	}
	return out
}
