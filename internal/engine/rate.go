package engine

import (
	"context"
	"sync"
	"time"
)

// rate holds the workers of one verb together to a number of bytes a second, so that a backup leaves the disk to the
// database. nil: no limit.
type rate struct {
	perSecond int64
	now       func() time.Time
	mu        sync.Mutex
	free      time.Time // when what was allowed so far is used up
}

func newRate(perSecond int64, now func() time.Time) *rate {
	if perSecond <= 0 {
		return nil
	}
	return &rate{perSecond: perSecond, now: now}
}

// wait allows n bytes: it returns when they may be moved, or the context's error.
func (r *rate) wait(ctx context.Context, n int) error {
	if r == nil || n == 0 {
		return ctx.Err()
	}
	r.mu.Lock()
	now := r.now()
	if r.free.Before(now) {
		r.free = now
	}
	pause := r.free.Sub(now)
	r.free = r.free.Add(time.Duration(float64(n) / float64(r.perSecond) * float64(time.Second)))
	r.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
