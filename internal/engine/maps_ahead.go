package engine

import (
	"context"
	"sync"

	"holdfast/internal/repo"
)

// mapsAtOnce is how many block maps are on their way at once for one worker. Those of a bundle's files are small: at most 2 MiB of
// original bytes, 256 blocks.
const mapsAtOnce = 16

// mapsAhead reads the block maps of the prior backup for the files of a bundle before their turn: each costs a way to the store and
// back, and one after the other they would be most of what an incremental backup waits for.
type mapsAhead struct {
	r     *backupRun
	ctx   context.Context
	end   context.CancelFunc
	files []todo
	got   []chan mapRead // by file; nil: not asked for
	next  int            // the first that has not been looked at
	wg    sync.WaitGroup
}

type mapRead struct {
	m   *repo.BlockMap
	err error
}

// newMapsAhead begins with the first maps. nil: there is nothing to wait for. Without nil close must be called.
func (r *backupRun) newMapsAhead(ctx context.Context, j job) *mapsAhead {
	if !r.o.Block || r.BackupPlan.prior == nil || j.bundle == 0 || len(j.files) < 2 || !r.s.o.Storage.Abilities().Remote {
		return nil
	}
	a := &mapsAhead{r: r, files: j.files, got: make([]chan mapRead, len(j.files))}
	a.ctx, a.end = context.WithCancel(ctx)
	a.ask(mapsAtOnce)
	return a
}

// ask asks for the maps of the files before the one given.
func (a *mapsAhead) ask(before int) {
	for ; a.next < min(before, len(a.files)); a.next++ {
		t := a.files[a.next]
		size, sum := a.r.blockSize(&a.r.m.Files[t.index], t.prior)
		if size == 0 || !hasMap(t.prior, size, sum) {
			continue
		}
		answer := make(chan mapRead, 1)
		a.got[a.next] = answer
		a.wg.Go(func() {
			m, err := a.r.priorMap(a.ctx, t.prior, size, sum)
			answer <- mapRead{m, err}
		})
	}
}

// take gives the map of a file, once; ok: it was asked for.
func (a *mapsAhead) take(i int) (m *repo.BlockMap, ok bool, err error) {
	a.ask(i + 1 + mapsAtOnce)
	if a.got[i] == nil {
		return nil, false, nil
	}
	read := <-a.got[i]
	a.got[i] = nil
	return read.m, true, read.err
}

// close ends what is still on its way. nil is fine.
func (a *mapsAhead) close() {
	if a != nil {
		a.end()
		a.wg.Wait()
	}
}
