package engine

import (
	"context"
	"io"

	"holdfast/internal/storage"
)

// turns bounds how many workers compute at once, while more of them wait for a store behind a network: each waits as long, so
// that many at the same time cost no more than one, and what has arrived keeps ProcessMax of them busy. A worker holds a turn
// except while it waits in open or in a reader that open returned. nil: the store is not remote, and nobody waits.
type turns chan struct{}

// waiters is how many workers there are for one that computes.
const waiters = 8

// crewOf says how many workers to start so that processMax of them compute.
func (s *Stanza) crewOf(processMax int) (workers int, t turns) {
	a := s.o.Storage.Abilities()
	if !a.Remote {
		return processMax, nil
	}
	return max(processMax, min(waiters*processMax, a.Connections)), make(turns, processMax)
}

// copyWaiters is the same of a copy. They hold more memory, for each also writes: a part of an object that is not on its way yet.
const copyWaiters = 4

// copyCrew is crewOf for a copy, which waits for whichever side is remote.
func copyCrew(from, to *Stanza, processMax int) (workers int, t turns) {
	workers = processMax
	for _, s := range []*Stanza{from, to} {
		if a := s.o.Storage.Abilities(); a.Remote {
			workers, t = max(workers, min(copyWaiters*processMax, a.Connections)), make(turns, processMax)
		}
	}
	return workers, t
}

// questions is how many small requests that need no computing are worth asking at once.
func questions(st storage.Storage, processMax int) int {
	if a := st.Abilities(); a.Remote {
		return max(processMax, a.Connections)
	}
	return processMax
}

type turnsKey struct{}

// with gives the turns to a worker's calls.
func (t turns) with(ctx context.Context) context.Context {
	if t == nil {
		return ctx
	}
	return context.WithValue(ctx, turnsKey{}, t)
}

func (t turns) take() {
	if t != nil {
		t <- struct{}{}
	}
}

func (t turns) give() {
	if t != nil {
		<-t
	}
}

// aside lets others compute while the worker whose context this is waits for do.
func aside(ctx context.Context, do func() error) error {
	t, _ := ctx.Value(turnsKey{}).(turns)
	t.give()
	defer t.take()
	return do()
}

// open is Storage.Open for a worker.
func (s *Stanza) open(ctx context.Context, object string, offset, length int64) (io.ReadCloser, error) {
	t, _ := ctx.Value(turnsKey{}).(turns)
	if t == nil {
		return s.o.Storage.Open(ctx, object, offset, length)
	}
	t.give()
	r, err := s.o.Storage.Open(ctx, object, offset, length)
	t.take()
	if err != nil {
		return nil, err
	}
	return &turnsReader{r, t}, nil
}

// turnsReader lets others compute while it waits.
type turnsReader struct {
	io.ReadCloser
	t turns
}

// Read implements io.Reader.
func (r *turnsReader) Read(p []byte) (int, error) {
	r.t.give()
	defer r.t.take()
	return r.ReadCloser.Read(p)
}
