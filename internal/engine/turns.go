package engine

import (
	"context"
	"io"
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
