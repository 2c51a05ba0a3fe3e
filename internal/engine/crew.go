package engine

import (
	"context"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/storage"
)

// crew writes objects at once, as an errgroup does it: the first error ends the others' context. Unlike that of an errgroup the
// context lives until everything is synced, for a store may send Deferred objects after their Commit.
type crew struct {
	g      errgroup.Group
	ctx    context.Context
	cancel context.CancelCauseFunc
}

// newCrew returns a crew of at most limit members (0: any number), whose work is to use its ctx.
func newCrew(ctx context.Context, limit int) *crew {
	c := &crew{}
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	if limit > 0 {
		c.g.SetLimit(limit)
	}
	return c
}

// run starts one member; it waits while there are too many.
func (c *crew) run(work func() error) {
	c.g.Go(func() error {
		err := work()
		if err != nil {
			c.cancel(err)
		}
		return err
	})
}

// wait waits for all and syncs what they wrote. Its error is the first, not what that did to the others. The crew's context has
// ended when it returns.
func (c *crew) wait(st storage.Storage) error {
	err := c.g.Wait()
	if err == nil {
		err = st.Sync(c.ctx)
	} else {
		err = context.Cause(c.ctx)
	}
	c.cancel(err)
	return err
}
