package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
	"holdfast/test/stores"
	"holdfast/test/tally"
)

// hasty makes repetitions cost no time; they end after a bounded number.
func hasty(o *s3.Options) {
	began, slept := time.Now(), new(atomic.Int64)
	o.Now = func() time.Time { return began.Add(time.Duration(slept.Load())) }
	o.Backoff.Sleep = func(ctx context.Context, d time.Duration) error {
		slept.Add(int64(d))
		return ctx.Err()
	}
}

// s3Verbs are a repository's life: what each verb has to leave is right is for verify to say.
func (r *rig) s3Verbs(t *testing.T, st storage.Storage) {
	t.Helper()
	ctx := t.Context()
	must(t, r.create(ctx, st))
	for i, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Full} {
		r.server.churn(t, i)
		_, err := r.backupWith(ctx, st, st, engine.BackupOptions{Type: typ, Compress: repo.ZST, Level: 1, Bundle: i < 2, ProcessMax: 2})
		must(t, err)
	}
	segment := pg.SegmentName(1, r.server.position, segmentSize)
	file, err := r.server.segment(segment)
	must(t, err)
	_, err = r.stanza(st).Push(ctx, engine.PushOptions{Path: file, DataDir: r.server.dir, HeaderCheck: true, Compress: repo.ZST})
	must(t, err)
	must(t, r.stanza(st).Get(ctx, engine.GetOptions{Name: segment, Dest: filepath.Join(scratch(t), "w"), DataDir: r.server.dir}))
	must(t, r.restore(ctx, st, filepath.Join(scratch(t), "r"), ""))
	dst := storage.NewMem(nil)
	_, err = r.copyTo(ctx, r.on(st, r.pass), r.on(dst, "two"), engine.CopyOptions{All: true, WAL: engine.WALAll, ProcessMax: 2})
	must(t, err)
	r.with("two", func() { must(t, r.verified(dst)) })
	plan, err := r.stanza(st).PlanExpire(ctx, engine.ExpireOptions{Full: 1})
	must(t, err)
	must(t, plan.Run(ctx))
}

// TestS3Troubles lets every third request of all verbs meet trouble of each kind when it is first made, and every seventh twice:
// everything is as without.
func TestS3Troubles(t *testing.T) {
	b := newBucket(t, "versitygw")
	cases := 0
	for i, what := range []stores.Fault{stores.Busy, stores.CutUp, stores.Lost, stores.LostBusy, stores.CutDown} {
		r := newRig(t, 15)
		tried := map[string]int{}
		b.Trouble(func(q stores.Request) stores.Fault {
			key := q.Op + q.Path + q.Query + q.Header.Get("Range")
			if tried[key]++; q.N%3 == 0 && tried[key] == 1 || q.N%7 == 0 && tried[key] <= 2 {
				return what
			}
			return stores.None
		})
		st := b.open(t, func(o *s3.Options) { hasty(o); o.Prefix = fmt.Sprint("repo", i) })
		r.s3Verbs(t, st)
		cases += b.Fired()
		b.Trouble(nil)
		if err := r.verified(st); err != nil {
			t.Errorf("%v: %v", what, err)
		}
		if n := len(r.labels(st)); n != 1 {
			t.Errorf("%v: %d backups are left", what, n)
		}
	}
	tally.Count(t, "S3 requests of all verbs that met trouble, all mended", cases)
}

// TestS3GoesAway has the bucket deny everything from one request of a backup on, wherever that is: one clear error, the backups
// before restore as they did, nothing half made is listed, and the next run is as good as any.
func TestS3GoesAway(t *testing.T) {
	b := newBucket(t, "versitygw")
	r := newRig(t, 15)
	st := b.open(t, hasty)
	must(t, r.create(t.Context(), st))
	first, err := r.backup(t.Context(), st, st)
	must(t, err)
	want := filepath.Join(scratch(t), "want")
	must(t, r.restore(t.Context(), st, want, first.Label))
	run := func() error {
		_, err := r.backupWith(t.Context(), b.open(t, hasty), st, engine.BackupOptions{Compress: repo.ZST, Level: 1, Bundle: true, ArchiveTimeout: time.Second})
		return err
	}
	cases := 0
	for _, share := range []int{1, 15, 30, 45, 60, 75, 85} {
		b.Trouble(nil)
		must(t, run())
		total := 0
		for _, n := range b.Counts() {
			total += n
		}
		before := r.labels(st)
		from := max(1, total*share/100)
		b.Trouble(func(q stores.Request) stores.Fault {
			archive := strings.Contains(q.Path, "/archive/") || strings.Contains(q.Query, "%2Farchive%2F") // PostgreSQL's, which has its own errors
			if q.N >= from && !archive {
				return stores.Denied
			}
			return stores.None
		})
		err := run()
		if !errors.Is(err, storage.ErrUnavailable) || strings.Contains(err.Error(), b.srv.Secret) {
			t.Errorf("away from request %d of %d on: %v", from, total, err)
		}
		b.Trouble(nil)
		if now := r.labels(st); len(now) > len(before) {
			t.Errorf("away from request %d of %d on: a backup is listed: %v", from, total, now)
		}
		if err := r.verify(st, first.Label); err != nil {
			t.Error(err)
		}
		cases++
	}
	must(t, run())
	if err := r.verified(st); err != nil {
		t.Error(err)
	}
	got := filepath.Join(scratch(t), "want")
	must(t, r.restore(t.Context(), st, got, first.Label))
	if !maps.Equal(tree(t, want), tree(t, got)) {
		t.Error("the first backup restores to other files")
	}
	tally.Count(t, "outages of the bucket in the middle of a backup, nothing lost or half published", cases)
}

// TestS3LastUploadDenied: what was uploaded ahead and refused after everything else was waited for is told as what it is.
func TestS3LastUploadDenied(t *testing.T) {
	b := newBucket(t, "versitygw")
	r := newRig(t, 15)
	st := b.open(t, hasty)
	must(t, r.create(t.Context(), st))
	b.Trouble(func(q stores.Request) stores.Fault {
		if q.Op == "PutObject" && strings.Contains(q.Path, "/pg_data/pg_wal/000000010000000000000021") {
			return stores.Denied
		}
		return stores.None
	})
	_, err := r.backupWith(t.Context(), b.open(t, hasty), st, engine.BackupOptions{Compress: repo.ZST, Level: 1, ArchiveCopy: true})
	if b.Fired() == 0 || !errors.Is(err, storage.ErrUnavailable) || strings.Contains(err.Error(), "another host") {
		t.Errorf("denied %d times: %v", b.Fired(), err)
	}
	if got := r.labels(st); len(got) != 0 {
		t.Errorf("backups %v", got)
	}
}
