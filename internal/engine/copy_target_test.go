package engine_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

var allOf = engine.CopyOptions{All: true, WAL: engine.WALAll, ProcessMax: 2}

// upgraded is a source with backups of two clusters, and rigs for both.
func upgraded(t *testing.T) (src *storage.Mem, old, young *rig, labels []repo.Label) {
	t.Helper()
	old, young = newRig(t, 15), newRig(t, 16)
	young.server.clock = old.server.clock.Add(100 * time.Hour)
	src = storage.NewMem(nil)
	must(t, old.create(t.Context(), src))
	labels = append(labels, old.mustFull(src))
	_, err := young.stanza(src).Upgrade(t.Context(), young.control)
	must(t, err)
	return src, old, young, append(labels, young.mustFull(src))
}

func (r *rig) mustFull(st storage.Storage) repo.Label {
	r.t.Helper()
	res, err := r.backup(r.t.Context(), st, st)
	must(r.t, err)
	return res.Label
}

// TestCopyHistoryIDs: a cluster may have another history id in the target; its WAL, manifests and lines are given that one.
func TestCopyHistoryIDs(t *testing.T) {
	src, _, young, labels := upgraded(t)
	dst := storage.NewMem(nil)
	must(t, young.create(t.Context(), dst)) // there it is the first
	own := young.mustFull(dst)
	plan, err := engine.PlanCopy(t.Context(), young.on(src, young.pass), young.on(dst, young.pass), engine.CopyOptions{Sets: labels[1:], WAL: engine.WALAll})
	must(t, err)
	if len(plan.Clusters) != 1 || plan.Clusters[0].From != "16-2" || plan.Clusters[0].To != "16-1" || plan.Clusters[0].New || !slices.Equal(plan.Others, []repo.Label{own}) {
		t.Errorf("%+v, others %v", plan.Clusters, plan.Others)
	}
	_, err = plan.Run(t.Context())
	must(t, err)
	must(t, young.verified(dst))
	if m := young.manifest(dst, labels[1]); m.DB.ID != 1 {
		t.Errorf("the manifest says %+v", m.DB)
	}
	for _, name := range dst.Names() {
		if strings.HasPrefix(name, "archive/demo/16-2") || strings.HasPrefix(name, "archive/demo/15") {
			t.Errorf("%s is in the target", name)
		}
	}
	young.holds(dst, labels[1])
	// The cluster before has no place there: its id would have to be lower than the first.
	if _, err := engine.PlanCopy(t.Context(), young.on(src, young.pass), young.on(dst, young.pass), allOf); !errors.Is(err, engine.ErrStanzaMismatch) {
		t.Errorf("a cluster from before: %v", err)
	}
}

// TestCopyAfterUpgrade: the stanza of the source was upgraded since the last copy.
func TestCopyAfterUpgrade(t *testing.T) {
	old, young := newRig(t, 15), newRig(t, 16)
	young.server.clock = old.server.clock.Add(100 * time.Hour)
	src, dst := storage.NewMem(nil), storage.NewMem(nil)
	must(t, old.create(t.Context(), src))
	first := old.mustFull(src)
	_, err := old.copyTo(t.Context(), old.on(src, old.pass), old.on(dst, "two"), allOf)
	must(t, err)
	_, err = young.stanza(src).Upgrade(t.Context(), young.control)
	must(t, err)
	second := young.mustFull(src)
	plan, err := engine.PlanCopy(t.Context(), old.on(src, old.pass), old.on(dst, "two"), allOf)
	must(t, err)
	if n := len(plan.Clusters); n != 2 || plan.Clusters[0].New || !plan.Clusters[1].New || plan.Clusters[1].To != "16-2" {
		t.Errorf("%+v", plan.Clusters)
	}
	_, err = plan.Run(t.Context())
	must(t, err)
	old.with("two", func() {
		must(t, old.verified(dst))
		if got := old.labels(dst); !slices.Equal(got, []repo.Label{first, second}) {
			t.Errorf("it lists %v", got)
		}
		bi, err := repo.LoadBackupInfo(t.Context(), dst, "demo", "two")
		must(t, err)
		if bi.Current != 2 {
			t.Errorf("current is %d", bi.Current)
		}
	})
	young.with("two", func() { young.holds(dst, second) })
	// A backup of the old cluster is copied to a target that has gone on, too.
	must(t, dst.Remove(t.Context(), "backup/demo/"+string(first)+"/backup.manifest"))
	res, err := old.copyTo(t.Context(), old.on(src, old.pass), old.on(dst, "two"), allOf)
	must(t, err)
	if !slices.Equal(res.Backups, []repo.Label{first}) {
		t.Errorf("copied again: %v", res.Backups)
	}
	old.with("two", func() { must(t, old.verified(dst)) })
}

// TestCopyRefusals: what would mix two clusters, or show what is secret, is refused before anything is written.
func TestCopyRefusals(t *testing.T) {
	r := newRig(t, 15)
	src := storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	labels := r.chainOf(src, engine.BackupOptions{})
	segment := segmentIn(t, r, src, labels[0])
	whole := func(t *testing.T, to repo.Secret) *storage.Mem {
		dst := storage.NewMem(nil)
		_, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, to), allOf)
		must(t, err)
		return dst
	}
	for name, c := range map[string]struct {
		make func(t *testing.T) *storage.Mem
		to   repo.Secret
		o    engine.CopyOptions
		want error
	}{
		"another cluster": {func(t *testing.T) *storage.Mem {
			other, dst := newRig(t, 16), storage.NewMem(nil)
			must(t, other.create(t.Context(), dst))
			return dst
		}, "rig-pass", allOf, engine.ErrStanzaMismatch},
		"another passphrase":             {func(t *testing.T) *storage.Mem { return whole(t, "two") }, "three", allOf, engine.ErrPassphrase},
		"no passphrase any more":         {func(t *testing.T) *storage.Mem { return whole(t, "two") }, "", engine.CopyOptions{All: true, Decrypt: true}, engine.ErrPassphrase},
		"in clear":                       {func(*testing.T) *storage.Mem { return storage.NewMem(nil) }, "", allOf, engine.ErrPassphrase},
		"re-encryption of what is there": {func(t *testing.T) *storage.Mem { return whole(t, "two") }, "two", engine.CopyOptions{All: true, Reencrypt: true}, engine.ErrCopyConflict},
		"other WAL of the same name": {func(t *testing.T) *storage.Mem {
			dst := whole(t, "two")
			name := find(t, dst, "archive/demo/15-1/0000000100000000/"+segment)
			b, err := storage.ReadAll(t.Context(), dst, name, 8<<20)
			must(t, err)
			must(t, dst.Remove(t.Context(), name))
			at := strings.Index(name, segment+"-") + len(segment) + 1
			must(t, storage.WriteAll(t.Context(), dst, name[:at]+"0123456789"+name[at+10:], b))
			return dst
		}, "two", allOf, engine.ErrCopyConflict},
		"a remainder": {func(t *testing.T) *storage.Mem {
			dst := storage.NewMem(nil)
			must(t, storage.WriteAll(t.Context(), dst, "backup/demo/20200101-000000F/backup.manifest", []byte("x")))
			return dst
		}, "two", allOf, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dst := c.make(t)
			before := contents(t, dst)
			_, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(dst, c.to), c.o)
			if err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("it says %v", err)
			}
			if now := contents(t, dst); len(before) != len(now) {
				t.Error("the target was changed")
			}
		})
	}
}

func segmentIn(t *testing.T, r *rig, st storage.Storage, l repo.Label) string {
	t.Helper()
	bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", r.pass)
	must(t, err)
	return bi.Find(l).ArchiveStart
}

// TestCopyOtherBackup: the target has another backup under the label: that one stays, and what is built on the source's is left out.
func TestCopyOtherBackup(t *testing.T) {
	r := newRig(t, 15)
	src := storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	labels := r.chainOf(src, engine.BackupOptions{})
	dst := storage.NewMem(nil)
	_, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), engine.CopyOptions{Sets: labels[:1]})
	must(t, err)
	bi, err := repo.LoadBackupInfo(t.Context(), dst, "demo", r.pass)
	must(t, err)
	bi.Backups[0].TimeStop++
	must(t, repo.SaveBackupInfo(t.Context(), dst, "demo", bi, r.pass))
	plan, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), allOf)
	must(t, err)
	for _, b := range plan.Backups {
		if b.State != engine.CopyRefused {
			t.Errorf("%s is %s", b.Label, b.State)
		}
	}
	if _, err := plan.Run(t.Context()); !errors.Is(err, engine.ErrNotClosed) {
		t.Errorf("it says %v", err)
	}
}

// TestCopyTimelines: a target whose cluster went another way after a promotion is refused.
func TestCopyTimelines(t *testing.T) {
	r := newRig(t, 15)
	src, dst := storage.NewMem(nil), storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	r.mustFull(src)
	_, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, "two"), allOf)
	must(t, err)
	push := func(st storage.Storage, pass repo.Secret, text string) {
		file := r.server.write(t, "pg_wal/00000002.history", text)
		_, err := r.on(st, pass).Push(t.Context(), engine.PushOptions{Path: file})
		must(t, err)
	}
	push(src, r.pass, "1\t0/2000000\tno recovery target specified\n")
	_, err = r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, "two"), allOf)
	must(t, err)
	dest := r.server.sockets + "/got"
	must(t, r.on(dst, "two").Get(t.Context(), engine.GetOptions{Name: "00000002.history", Dest: dest}))
	push(dst, "two", "1\t0/3000000\tno recovery target specified\n")
	if _, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(dst, "two"), allOf); !errors.Is(err, engine.ErrCopyConflict) {
		t.Errorf("it says %v", err)
	}
}

// TestCopyRetention: what the target's retention would let go is not sent there again and again.
func TestCopyRetention(t *testing.T) {
	r := newRig(t, 15)
	src, dst := storage.NewMem(nil), storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	var all []repo.Label
	for range 3 {
		r.server.churn(t, len(all))
		all = append(all, r.chainOf(src, engine.BackupOptions{Bundle: true})...)
	}
	keep := engine.ExpireOptions{Full: 2}
	o := allOf
	o.Keep = &keep
	sync := func() *engine.CopyResult {
		res, err := r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), o)
		must(t, err)
		plan, err := r.on(dst, r.pass).PlanExpire(t.Context(), keep)
		must(t, err)
		must(t, plan.Run(t.Context()))
		return res
	}
	if res := sync(); !slices.Equal(res.Backups, all[4:]) {
		t.Errorf("copied %v", res.Backups)
	}
	before := contents(t, dst)
	if res := sync(); res.Objects > 0 || len(contents(t, dst)) != len(before) {
		t.Errorf("a second time: %+v", res)
	}
	r.server.churn(t, 11)
	all = append(all, r.chainOf(src, engine.BackupOptions{Bundle: true})...)
	if res := sync(); !slices.Equal(res.Backups, all[12:]) {
		t.Errorf("copied %v", res.Backups)
	}
	if got := r.labels(dst); !slices.Equal(got, all[8:]) {
		t.Errorf("the target has %v", got)
	}
	must(t, r.verified(dst))
}

// TestCopyLocks: the target's stop file is respected, and its lock waited for.
func TestCopyLocks(t *testing.T) {
	r := newRig(t, 15)
	src := storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	label := r.mustFull(src)
	locks, dst := scratch(t), storage.NewMem(nil)
	held, err := repo.AcquireLock(locks, "demo", repo.LockBackup, 1, []byte("{}\n"))
	must(t, err)
	waits := make(chan struct{}, 100)
	to, err := engine.New(engine.Options{Stanza: "demo", Storage: dst, Pass: r.pass, LockDir: locks, Local: time.UTC, Events: func(e engine.Event) {
		if s, ok := e.(engine.Step); ok && s.Name == "lock" {
			waits <- struct{}{}
		}
	}})
	must(t, err)
	done := make(chan error, 1)
	go func() {
		_, err := r.copyTo(t.Context(), r.on(src, r.pass), to, allOf)
		done <- err
	}()
	<-waits
	if len(dst.Names()) > 0 {
		t.Error("it wrote without the lock")
	}
	must(t, held.Release())
	must(t, <-done)
	must(t, os.WriteFile(repo.StopPath(locks, "demo"), nil, 0o600))
	if _, err := r.copyTo(t.Context(), r.on(src, r.pass), to, allOf); !errors.Is(err, engine.ErrStopped) {
		t.Errorf("it says %v", err)
	}
	if got := r.labels(dst); !slices.Equal(got, []repo.Label{label}) {
		t.Errorf("it lists %v", got)
	}
}

// TestCopyRemovedMeanwhile: backups that the source lets expire while they are copied.
func TestCopyRemovedMeanwhile(t *testing.T) {
	r := newRig(t, 15)
	src, dst := storage.NewMem(nil), storage.NewMem(nil)
	must(t, r.create(t.Context(), src))
	first := r.chainOf(src, engine.BackupOptions{})
	r.server.churn(t, 9)
	second := r.chainOf(src, engine.BackupOptions{})
	plan, err := engine.PlanCopy(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), allOf)
	must(t, err)
	expire, err := r.on(src, r.pass).PlanExpire(t.Context(), engine.ExpireOptions{Full: 1})
	must(t, err)
	must(t, expire.Run(t.Context()))
	res, err := plan.Run(t.Context())
	if !errors.Is(err, engine.ErrNotClosed) || !slices.Equal(res.Backups, second) || len(res.Failed) < len(first) {
		t.Errorf("%v, %+v", err, res)
	}
	_, err = r.copyTo(t.Context(), r.on(src, r.pass), r.on(dst, r.pass), allOf)
	must(t, err)
	must(t, r.verify(dst, second[3]))
}

// TestCluster: a cluster is found under whatever history id it has.
func TestCluster(t *testing.T) {
	src, old, young, _ := upgraded(t)
	for i, r := range []*rig{old, young} {
		db, err := old.on(src, old.pass).Cluster(t.Context(), r.control.SystemID, r.control.Version.String())
		if err != nil || db.ID != i+1 {
			t.Errorf("%+v %v", db, err)
		}
	}
	if _, err := old.on(src, old.pass).Cluster(t.Context(), old.control.SystemID+1, "15"); !errors.Is(err, engine.ErrStanzaMismatch) {
		t.Errorf("it says %v", err)
	}
}
