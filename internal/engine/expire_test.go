package engine_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// later is a clock past every label that a test's backups may have got.
func later() time.Time { return time.Now().Add(time.Hour) }

// withTypes is a repository with one backup of each type given.
func (r *rig) withTypes(types ...repo.BackupType) (*storage.Mem, []*engine.BackupResult) {
	r.t.Helper()
	m := storage.NewMem(nil)
	must(r.t, r.create(r.t.Context(), m))
	var made []*engine.BackupResult
	for i, typ := range types {
		r.server.churn(r.t, i)
		res, err := r.backupWith(r.t.Context(), m, m, engine.BackupOptions{Type: typ, Level: 1})
		must(r.t, err)
		made = append(made, res)
	}
	must(r.t, m.Sync(r.t.Context()))
	return m, made
}

func (r *rig) expire(ctx context.Context, st storage.Storage, o engine.ExpireOptions) (*engine.ExpirePlan, error) {
	plan, err := r.stanzaAt(st, later).PlanExpire(ctx, o)
	if err != nil {
		return nil, err
	}
	return plan, plan.Run(ctx)
}

func TestExpire(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withTypes(repo.Full, repo.Incr, repo.Full, repo.Incr)
	days := 0
	o := engine.ExpireOptions{Full: 1, HistoryDays: &days}
	plan, err := r.stanzaAt(m, later).PlanExpire(t.Context(), o)
	must(t, err)
	if len(plan.Backups) != 2 || plan.Backups[0].Label != made[1].Label || plan.Backups[1].Label != made[0].Label ||
		!strings.Contains(plan.Backups[0].Reason, "built on "+string(made[0].Label)) || !strings.Contains(plan.Backups[1].Reason, "retention-full") ||
		plan.WALFiles == 0 || plan.WALBytes == 0 || len(plan.History) != 2 || len(plan.Warnings) != 0 {
		t.Errorf("plan %+v", plan)
	}
	text, err := json.Marshal(plan)
	must(t, err)
	if strings.Contains(string(text), "null") || !strings.Contains(string(text), `"directories":[]`) {
		t.Errorf("JSON %s", text)
	}
	must(t, plan.Run(t.Context()))
	if got, want := r.labels(m), []repo.Label{made[2].Label, made[3].Label}; !slices.Equal(got, want) {
		t.Errorf("left %v, want %v", got, want)
	}
	must(t, r.verified(m))
	failsWith(t, "an old plan", plan.Run(t.Context()), nil, "make the plan again")
	for name, c := range map[string]struct {
		o    engine.ExpireOptions
		is   error
		text string
	}{
		"the last":          {engine.ExpireOptions{Set: made[2].Label}, engine.ErrLastBackup, "another full backup first"},
		"two wishes":        {engine.ExpireOptions{Set: made[2].Label, Oldest: true}, nil, "together"},
		"negative":          {engine.ExpireOptions{Diff: -1}, nil, "negative"},
		"full type":         {engine.ExpireOptions{FullType: "days"}, nil, "count or time"},
		"archive type":      {engine.ExpireOptions{ArchiveType: "all"}, nil, "full, diff or incr"},
		"not a WAL segment": {engine.ExpireOptions{ArchiveBefore: "0000000100000000"}, nil, "24 hex digits"},
	} {
		_, err := r.stanza(m).PlanExpire(t.Context(), c.o)
		failsWith(t, name, err, c.is, c.text)
	}
	plan, err = r.expire(t.Context(), m, engine.ExpireOptions{Set: "20200101-000000F"})
	if err != nil || len(plan.Backups) > 0 || !strings.Contains(strings.Join(plan.Warnings, ""), "no backup 20200101-000000F") {
		t.Errorf("an unknown backup: %+v, %v", plan, err)
	}
	if plan, err = r.expire(t.Context(), m, engine.ExpireOptions{Oldest: true}); err != nil || len(plan.Backups)+plan.WALFiles > 0 || len(plan.Warnings) != 1 {
		t.Errorf("the oldest of one: %+v, %v", plan, err)
	}
	_, err = r.stanza(storage.NewMem(nil)).PlanExpire(t.Context(), o)
	failsWith(t, "no stanza", err, engine.ErrStanzaMissing, "stanza-create")
	ai, err := repo.LoadArchiveInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	ai.History[0].SystemID++
	must(t, repo.SaveArchiveInfo(t.Context(), m, "demo", ai, r.pass))
	_, err = r.stanza(m).PlanExpire(t.Context(), o)
	failsWith(t, "info files of two clusters", err, repo.ErrFormat, "disagree on history id 1")
}

// TestExpireDirectories: label directories that backup.info does not have.
// TestExpireRanges: WAL that goes around WAL that an older backup needs is told as two ranges: one range would say that what
// stays goes.
func TestExpireRanges(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withTypes(repo.Full, repo.Full)
	dir := repo.ArchiveDir("demo") + "/" + repo.ArchiveID("15", 1) + "/0000000100000000/"
	info, err := repo.LoadBackupInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	first, last := info.Backups[0].ArchiveStart, info.Backups[0].ArchiveStop
	before, after := "000000010000000000000000", "0000000100000000000000F0"
	if before >= first || last >= after || made[1].Label == made[0].Label {
		t.Fatalf("WAL %s to %s", first, last)
	}
	info.Backups[1].ArchiveStart, info.Backups[1].ArchiveStop = "0000000100000000000000FE", "0000000100000000000000FE"
	must(t, repo.SaveBackupInfo(t.Context(), m, "demo", info, r.pass))
	for _, segment := range []string{before, after, "0000000100000000000000F1"} {
		must(t, storage.WriteAll(t.Context(), m, dir+segment+"-"+strings.Repeat("0", 40), []byte("x")))
	}
	plan, err := r.stanzaAt(m, later).PlanExpire(t.Context(), engine.ExpireOptions{Full: 9, Archive: 1, ArchiveType: repo.Full})
	must(t, err)
	if len(plan.WAL) != 1 {
		t.Fatalf("plan %+v", plan)
	}
	got := plan.WAL[0].Ranges
	if len(got) != 2 || got[0].First != before || got[0].Last >= first || got[1].First <= last || got[1].Last != "0000000100000000000000F1" {
		t.Errorf("ranges %v around %s to %s", got, first, last)
	}
}

func TestExpireDirectories(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withTypes(repo.Full, repo.Incr, repo.Full)
	bi, err := repo.LoadBackupInfo(t.Context(), base, "demo", r.pass)
	must(t, err)
	const running = "29990101-000000F"
	onLast := string(made[2].Label) + "_29990101-000000I"
	put := func(name, text string) func(*storage.Mem) error {
		return func(m *storage.Mem) error { return storage.WriteAll(t.Context(), m, "backup/demo/"+name, []byte(text)) }
	}
	unlist := func(l repo.Label) func(*storage.Mem) error {
		return func(m *storage.Mem) error {
			b := *bi
			b.Backups = slices.DeleteFunc(slices.Clone(bi.Backups), func(x repo.BackupLine) bool { return x.Label == l })
			return repo.SaveBackupInfo(t.Context(), m, "demo", &b, r.pass)
		}
	}
	for _, c := range []struct {
		name   string
		change []func(*storage.Mem) error
		o      engine.ExpireOptions
		goes   []repo.Label // directories
		warns  string
		left   int // backups
	}{
		{"begun and given up", []func(*storage.Mem) error{put(running+"/pg_data/x", "x")}, engine.ExpireOptions{}, []repo.Label{running}, "", 3},
		{"running", []func(*storage.Mem) error{put(running+"/backup.manifest.copy", "x")}, engine.ExpireOptions{}, nil, "", 3},
		{"interrupted, not the newest", []func(*storage.Mem) error{put("20200101-000000F/backup.manifest.copy", "x")}, engine.ExpireOptions{}, []repo.Label{"20200101-000000F"}, "", 3},
		{"running on a full that has to go", []func(*storage.Mem) error{put(onLast+"/backup.manifest.copy", "x")}, engine.ExpireOptions{Set: made[2].Label}, []repo.Label{repo.Label(onLast)}, "", 2},
		{"running on an older full", []func(*storage.Mem) error{put(string(made[0].Label)+"_29990101-000000I/backup.manifest.copy", "x")}, engine.ExpireOptions{}, nil, "", 3},
		{"running on a prior that nobody knows", []func(*storage.Mem) error{put(string(made[0].Label)+"_29990101-000000I/backup.manifest.copy", "x")}, engine.ExpireOptions{Set: made[1].Label}, nil, "cannot be told", 2},
		{"lost from backup.info", []func(*storage.Mem) error{unlist(made[2].Label)}, engine.ExpireOptions{}, nil, "is added", 3},
		{"unreadable", []func(*storage.Mem) error{unlist(made[2].Label), put(string(made[2].Label)+"/backup.manifest", "x"), put(string(made[2].Label)+"/backup.manifest.copy", "x")},
			engine.ExpireOptions{}, nil, "stays although", 2},
		{"full lost for good", []func(*storage.Mem) error{func(m *storage.Mem) error {
			return m.Remove(t.Context(), repo.ManifestPath("demo", made[0].Label), repo.ManifestPath("demo", made[0].Label)+".copy")
		}}, engine.ExpireOptions{}, []repo.Label{made[0].Label, made[1].Label}, "depends on", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := base.CrashClone()
			for _, change := range c.change {
				must(t, change(m))
			}
			plan, err := r.expire(t.Context(), m, c.o)
			must(t, err)
			var goes []repo.Label
			for _, d := range plan.Directories {
				goes = append(goes, d.Label)
			}
			if warned := strings.Join(plan.Warnings, "\n"); !slices.Equal(goes, c.goes) || (warned == "") != (c.warns == "") || !strings.Contains(warned, c.warns) {
				t.Errorf("directories %v, want %v; warnings %q, want %q", goes, c.goes, warned, c.warns)
			}
			if got := r.labels(m); len(got) != c.left {
				t.Errorf("backups left: %v", got)
			}
			for d, err := range repo.Labels(t.Context(), m, "demo") {
				must(t, err)
				if slices.Contains(c.goes, d.Label) {
					t.Errorf("%s is still there", d.Label)
				}
			}
		})
	}
}

// TestExpireUnreadNotRemoved: a backup whose manifest cannot be fetched just now is not taken for one that does not exist.
func TestExpireUnreadNotRemoved(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withTypes(repo.Full, repo.Full)
	bi, err := repo.LoadBackupInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	bi.Backups = bi.Backups[1:]
	must(t, repo.SaveBackupInfo(t.Context(), m, "demo", bi, r.pass))
	for _, nth := range []int{0, 1} { // always; only at the first attempt
		var faults []storage.Fault
		for _, name := range []string{"backup.manifest", "backup.manifest.copy"} {
			faults = append(faults, storage.Fault{Op: storage.OpOpen, Name: name, Nth: nth})
		}
		faulty, err := storage.NewFaulty(m, faults...)
		must(t, err)
		_, err = r.expire(t.Context(), faulty, engine.ExpireOptions{Full: 1})
		failsWith(t, fmt.Sprintf("fault %d", nth), err, nil, string(made[0].Label))
		if _, err := m.Stat(t.Context(), repo.ManifestPath("demo", made[0].Label)); err != nil {
			t.Error(err)
		}
	}
}

// TestExpireWALBehind: a newer backup on a lower timeline, of a server that had been left behind, keeps its WAL.
func TestExpireWALBehind(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withTypes(repo.Full, repo.Full)
	bi, err := repo.LoadBackupInfo(t.Context(), m, "demo", r.pass)
	must(t, err)
	bi.Backups[0].ArchiveStart, bi.Backups[0].ArchiveStop = "000000020000000000000001", "000000020000000000000001"
	must(t, repo.SaveBackupInfo(t.Context(), m, "demo", bi, r.pass))
	if _, err := r.expire(t.Context(), m, engine.ExpireOptions{Archive: 2}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.restored(m, made[1].Label); err != nil {
		t.Error(err)
	}
	must(t, r.verify(m, made[1].Label))
}

// TestExpireLocked: expire waits for nobody and works under no stop file; a dry run does both.
func TestExpireLocked(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withTypes(repo.Full, repo.Full)
	locks := scratch(t)
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: m, Pass: r.pass, LockDir: locks, ExecID: "1-0123abcd"})
	must(t, err)
	held, err := repo.AcquireLock(locks, "demo", "backup", 1, []byte("{}\n"))
	must(t, err)
	plan, err := s.PlanExpire(t.Context(), engine.ExpireOptions{Full: 1})
	must(t, err)
	before := contents(t, m)
	failsWith(t, "while another works", plan.Run(t.Context()), repo.ErrLocked, "backup lock")
	failsWith(t, "annotate while another works", s.Annotate(t.Context(), made[0].Label, map[string]string{"a": "b"}), repo.ErrLocked, "backup lock")
	must(t, held.Release())
	must(t, os.WriteFile(repo.StopPath(locks, ""), nil, 0o600))
	failsWith(t, "while stopped", plan.Run(t.Context()), engine.ErrStopped, "all.stop")
	if !maps.Equal(before, contents(t, m)) {
		t.Error("something changed")
	}
	must(t, os.Remove(repo.StopPath(locks, "")))
	must(t, plan.Run(t.Context()))
	if left, err := os.ReadDir(locks); err != nil || len(left) > 0 {
		t.Errorf("locks left: %v, %v", left, err)
	}
}

func TestFaultsExpire(t *testing.T) {
	days := 0
	for _, c := range []struct {
		name string
		o    func(made []*engine.BackupResult) engine.ExpireOptions
		gone []int
	}{
		{"by count", func([]*engine.BackupResult) engine.ExpireOptions {
			return engine.ExpireOptions{Full: 1, HistoryDays: &days}
		}, []int{0, 1}},
		{"the newest", func(made []*engine.BackupResult) engine.ExpireOptions {
			return engine.ExpireOptions{Set: made[3].Label, Archive: 2, HistoryDays: &days}
		}, []int{3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 15)
			base, made := r.withTypes(repo.Full, repo.Incr, repo.Full, repo.Incr)
			half := made[0].Label + "_20260301-103000I"
			must(t, storage.WriteAll(t.Context(), base, "backup/demo/"+string(half)+"/pg_data/x.gz", []byte("half")))
			o := c.o(made)
			var want []repo.Label
			isGone := func(name string) bool {
				return strings.Contains(name, string(half)) || slices.ContainsFunc(c.gone, func(i int) bool {
					l := string(made[i].Label)
					return strings.HasPrefix(name, "backup/demo/"+l+"/") || path.Base(name) == l+".manifest.gz"
				})
			}
			for i, b := range made {
				if !slices.Contains(c.gone, i) {
					want = append(want, b.Label)
				}
			}
			from := made[slices.IndexFunc(made, func(b *engine.BackupResult) bool { return b.Label == want[0] })].ArchiveStart
			old := func(name string) bool {
				seg, _, _, ok := repo.ParseSegmentObject(path.Base(name))
				return ok && seg < from
			}
			stays := contents(t, base)
			maps.DeleteFunc(stays, func(name, _ string) bool { return isGone(name) || old(name) })
			keeps := r.keeps(stays, base, want[len(want)-1])
			faultTest{base: base, calls: 40, every: 2, keep: func(left storage.Storage) error {
				return errors.Join(keeps(left), r.restorable(left, isGone))
			},
				run: func(ctx context.Context, st, _ storage.Storage) error {
					_, err := r.expire(ctx, st, o)
					return err
				},
				right: func(st storage.Storage) error {
					if got := r.labels(st); !slices.Equal(got, want) {
						return fmt.Errorf("backups %v, want %v", got, want)
					}
					for name := range contents(t, st) {
						if isGone(name) || old(name) {
							return fmt.Errorf("%s stayed", name)
						}
					}
					return r.verified(st)
				},
			}.each(t)
		})
	}
}

// restorable: every backup with a manifest that among says yes to and that backup.info lists can be restored.
func (r *rig) restorable(st storage.Storage, among func(manifest string) bool) error {
	r.t.Helper()
	bi, err := repo.LoadBackupInfo(r.t.Context(), st, "demo", r.pass)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for d, err := range repo.Labels(r.t.Context(), st, "demo") {
		must(r.t, err)
		if d.Manifest && bi.Find(d.Label) != nil && among(repo.ManifestPath("demo", d.Label)) {
			if _, err := r.restored(st, d.Label); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestFaultsExpireLinks: what only a file system has fails at each call of an expire; a second run completes it.
func TestFaultsExpireLinks(t *testing.T) {
	r := newRig(t, 15)
	repository := filepath.Join(scratch(t), "repo")
	base := posix(t, repository)
	must(t, r.create(t.Context(), base))
	var made []*engine.BackupResult
	for _, typ := range []repo.BackupType{repo.Full, repo.Full, repo.Incr} {
		res, err := r.backupWith(t.Context(), base, base, engine.BackupOptions{Type: typ})
		must(t, err)
		made = append(made, res)
	}
	must(t, storage.WriteAll(t.Context(), base, "backup/demo/20200101-000000F/pg_data/x.gz", []byte("half")))
	stays := contents(t, base)
	maps.DeleteFunc(stays, func(name, _ string) bool {
		return !strings.HasPrefix(name, "backup/demo/"+string(made[0].Label)+"/")
	})
	tested := 0
	for _, op := range []storage.Op{storage.OpSymlink, storage.OpRemoveTree} {
		for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.Die} {
			for n := 1; ; n++ {
				dir := filepath.Join(scratch(t), "repo")
				must(t, os.CopyFS(dir, os.DirFS(repository)))
				left := posix(t, dir)
				faulty, err := storage.NewFaulty(left, storage.Fault{Op: op, Nth: n, Kind: kind})
				must(t, err)
				o := engine.ExpireOptions{Set: made[1].Label}
				_, err = r.expire(t.Context(), faulty, o)
				if !faulty.Fired() {
					must(t, err)
					break
				}
				tested++
				if _, err := r.expire(t.Context(), left, o); err != nil {
					t.Errorf("%v %s %d: second run: %v", kind, op, n, err)
				}
				if err := errors.Join(lost(t, stays, left), r.verified(left)); err != nil {
					t.Errorf("%v %s %d: %v", kind, op, n, err)
				}
				if got, err := os.Readlink(filepath.Join(dir, "backup/demo/latest")); err != nil || got != string(made[0].Label) {
					t.Errorf("%v %s %d: latest is %q, %v", kind, op, n, got, err)
				}
			}
		}
	}
	if tested < 9 {
		t.Errorf("only %d positions", tested)
	}
	tally.Count(t, "fault positions of engine verbs", tested)
}
