package sftp

import (
	"context"
	"sync"

	"holdfast/internal/storage"
)

// part is one piece of a new object.
type part struct {
	Number int   // from 0
	Offset int64 // of its first byte in the object
	Data   []byte
}

// partsOptions configures parts.
type partsOptions struct {
	Size     int // bytes of every part but the last; at least 1
	Hold     int // full parts that are kept back before the first is sent: an object that ends before is sent as a whole; at least 1
	Parallel int // parts in flight at once; 1 sends them in order
	// Send stores one part and returns when the store has it. Data is its own until then. Called from several goroutines if
	// Parallel > 1.
	Send func(ctx context.Context, p part) error
}

// parts cuts what is written to a new object into parts and sends them while more is being written, for stores that take
// an object in parts. Memory is bounded by max(Hold, Parallel)+1 parts. For one goroutine, as Writer is.
type parts struct {
	o      partsOptions
	ctx    context.Context
	cancel context.CancelFunc
	held   [][]byte // full, not sent
	buf    []byte   // being filled
	sent   int      // parts handed over
	size   int64    // bytes written

	slots   chan struct{}
	flights sync.WaitGroup
	mu      sync.Mutex
	err     error    // the first one
	spare   [][]byte // buffers of parts that the store has
}

// newParts begins an object. ctx governs the sending.
func newParts(ctx context.Context, o partsOptions) *parts {
	o.Hold, o.Parallel = max(o.Hold, 1), max(o.Parallel, 1)
	p := &parts{o: o, slots: make(chan struct{}, o.Parallel)}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Size returns how many bytes have been written.
func (p *parts) Size() int64 { return p.size }

// Sent reports whether parts have been sent, and how many.
func (p *parts) Sent() int { return p.sent }

// Write takes bytes, and waits while as many parts are in flight as may be.
func (p *parts) Write(b []byte) (int, error) {
	if err := p.failed(); err != nil {
		return 0, err
	}
	n := 0
	for n < len(b) {
		if len(p.buf) == p.o.Size {
			if err := p.full(); err != nil {
				return n, err
			}
		}
		take := min(len(b)-n, p.o.Size-len(p.buf))
		p.grow(len(p.buf) + take)
		p.buf = append(p.buf, b[n:n+take]...)
		n += take
		p.size += int64(take)
	}
	return n, nil
}

// grow makes room in the buffer: small objects are many, and must not take a whole part's memory each.
func (p *parts) grow(n int) {
	if n <= cap(p.buf) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if k := len(p.spare); k > 0 && len(p.buf) == 0 {
		p.buf, p.spare = p.spare[k-1][:0], p.spare[:k-1]
		return
	}
	p.buf = append(make([]byte, 0, min(p.o.Size, max(n, 2*cap(p.buf), 4<<10))), p.buf...)
}

// full deals with a full buffer after which more bytes come.
func (p *parts) full() error {
	p.held, p.buf = append(p.held, p.buf), nil
	if p.sent == 0 && len(p.held) < p.o.Hold {
		return nil
	}
	for _, b := range p.held {
		if err := p.send(b); err != nil {
			return err
		}
	}
	p.held = p.held[:0]
	return nil
}

// send waits for a slot and sends one part.
func (p *parts) send(b []byte) error {
	select {
	case p.slots <- struct{}{}:
	case <-p.ctx.Done():
		return p.failed()
	}
	if err := p.failed(); err != nil {
		<-p.slots
		return err
	}
	next := part{Number: p.sent, Offset: int64(p.sent) * int64(p.o.Size), Data: b}
	p.sent++
	p.flights.Go(func() {
		defer func() { <-p.slots }()
		err := p.o.Send(p.ctx, next)
		p.mu.Lock()
		defer p.mu.Unlock()
		if err != nil && p.err == nil {
			p.err = err
			p.cancel()
		}
		p.spare = append(p.spare, b)
	})
	return nil
}

// failed returns the first error, or the context's.
func (p *parts) failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	return p.ctx.Err()
}

// Finish waits for the parts in flight and returns those that have not been sent: all of a small object, else the last.
// An empty object has none. It may be called again.
func (p *parts) Finish() ([]part, error) {
	p.flights.Wait()
	if err := p.failed(); err != nil {
		return nil, err
	}
	var rest []part
	for _, b := range append(p.held[:len(p.held):len(p.held)], p.buf) {
		if len(b) > 0 {
			n := p.sent + len(rest)
			rest = append(rest, part{Number: n, Offset: int64(n) * int64(p.o.Size), Data: b})
		}
	}
	return rest, nil
}

// Close ends the sending and waits for it. Writing is no longer possible.
func (p *parts) Close() {
	p.mu.Lock()
	if p.err == nil {
		p.err = storage.ErrEnded
	}
	p.mu.Unlock()
	p.cancel()
	p.flights.Wait()
	p.held, p.buf, p.spare = nil, nil, nil
}
