package engine_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	objects "holdfast/internal/storage/bucket"
)

// slowInfo is a far bucket that takes a minute for backup.info. seen hears of every unfinished manifest that was read.
type slowInfo struct {
	far
	seen func(name string)
}

func (s slowInfo) Get(ctx context.Context, name string, offset, length int64) (objects.Answer, error) {
	if name == "backup/demo/backup.info" {
		time.Sleep(time.Minute)
	}
	a, err := s.far.Get(ctx, name, offset, length)
	if err == nil && strings.HasSuffix(name, "/backup.manifest.copy") {
		s.seen(name)
	}
	return a, err
}

// TestTakenOverWhileInfosAreRead: another host takes the backup for dead and removes its files after the look whether they are still
// ours, while the info files are still on their way. That is no backup.
func TestTakenOverWhileInfosAreRead(t *testing.T) {
	r := newRig(t, 15)
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		ctx, bubble := t.Context(), time.Now()
		clock := func() time.Time { return real.Add(time.Since(bubble)) }
		m := storage.NewMem(clock)
		must(t, r.create(ctx, m))
		taken := make(chan error, 1)
		var once atomic.Bool
		seen := func(name string) {
			if !once.CompareAndSwap(false, true) {
				return
			}
			time.AfterFunc(time.Second, func() {
				var all []string
				for in, err := range m.List(ctx, strings.TrimSuffix(name, "/backup.manifest.copy"), storage.ListOptions{Recursive: true}) {
					if err != nil {
						taken <- err
						return
					}
					all = append(all, in.Name)
				}
				taken <- m.Remove(ctx, all...)
			})
		}
		st := objects.New(objects.Options{Address: "mem://far", Connections: 32, PartSize: 1 << 20, Parallel: 4}, slowInfo{far{m, new(atomic.Int64)}, seen})
		plan, err := r.stanzaAt(st, clock).PlanBackup(ctx, engine.BackupOptions{DataDir: r.server.dir, Offline: true, Type: repo.Full, Compress: repo.None, ProcessMax: 1})
		must(t, err)
		_, err = plan.Run(ctx)
		if terr := <-taken; terr != nil {
			t.Fatal(terr)
		}
		if err == nil || !strings.Contains(err.Error(), "were removed while it ran") {
			t.Errorf("the backup ended with %v", err)
		}
		bi, err := repo.LoadBackupInfo(ctx, m, "demo", r.pass)
		must(t, err)
		if len(bi.Backups) > 0 {
			t.Errorf("%s is listed, whose files are gone", bi.Backups[0].Label)
		}
	})
}

// TestVerifyUnreadOnce: a bundle that breaks off in the middle is one object that can't be read, whatever lies in it.
func TestVerifyUnreadOnce(t *testing.T) {
	r := newRig(t, 15)
	m := r.mutationRepo(engine.BackupOptions{Compress: repo.ZST, Level: 1, Bundle: true, BundleLimit: 64 << 10, Block: true})
	for nth := 1; nth < 6; nth++ {
		st, err := storage.NewFaulty(m, storage.Fault{Op: storage.OpRead, Name: "backup/demo/*/bundle/1", Nth: nth, Err: storage.Unavailable(errors.New("broke off"))})
		must(t, err)
		res, err := r.stanza(st).Verify(t.Context(), engine.VerifyOptions{ProcessMax: 1})
		if res == nil || !storage.IsUnavailable(err) || len(res.Unread) != 1 {
			t.Errorf("read %d: %v, unread %v", nth, err, res)
		}
	}
}
