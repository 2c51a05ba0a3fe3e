package cli

import (
	"context"
	"errors"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/schedule"
)

// wantedPoll is how often the daemon looks, during a job that gives way, whether somebody waits for the instance.
const wantedPoll = 200 * time.Millisecond

// wantedError is the cause of the end of a job that gave way.
type wantedError struct{ who string }

func (e *wantedError) Error() string { return "gave way to " + e.who }

// givesWay reports whether a job of the daemon's is ended for whoever wants the instance: it goes on later.
func givesWay(job string) bool { return job == jobVerify || job == jobCopy }

// giveWay is a context that ends, with a wantedError for a cause, as soon as somebody wants the instance that lockPath locks. The
// caller calls end when the job is over. An error is that cause: somebody wants it already.
func giveWay(ctx context.Context, lockPath string) (_ context.Context, end func(), err error) {
	if who, wanted := action.Wanted(lockPath); wanted {
		return ctx, func() {}, &wantedError{who}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		tick := time.NewTicker(wantedPoll)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ctx.Done():
				return
			case <-tick.C:
				if who, wanted := action.Wanted(lockPath); wanted {
					cancel(&wantedError{who})
					return
				}
			}
		}
	}()
	return ctx, func() { close(stop); <-stopped; cancel(nil) }, nil
}

// afterGivingWay is what a job's error means when its context was giveWay's.
func afterGivingWay(ctx context.Context, err error) error {
	var wanted *wantedError
	if err != nil && errors.As(context.Cause(ctx), &wanted) {
		return schedule.Later(wanted)
	}
	return err
}
