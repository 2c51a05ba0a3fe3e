package sftp

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// Whatever the sizes of the writes, what is sent and what is left at the end are the object, in order, in parts of one size.
func TestParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, o := range []partsOptions{{Size: 1}, {Size: 7}, {Size: 16, Hold: 4, Parallel: 3}, {Size: 10, Hold: 2, Parallel: 8}} {
		for size := range 200 {
			content := make([]byte, size)
			for i := range content {
				content[i] = byte(rng.Uint32())
			}
			var mu sync.Mutex
			sent := map[int]part{}
			flying, most := 0, 0
			o.Send = func(_ context.Context, p part) error {
				mu.Lock()
				flying++
				most = max(most, flying)
				mu.Unlock()
				p.Data = bytes.Clone(p.Data) // it is ours only until we return
				mu.Lock()
				defer mu.Unlock()
				flying--
				sent[p.Number] = p
				return nil
			}
			p := newParts(t.Context(), o)
			for left := content; len(left) > 0; {
				n := min(rng.IntN(12), len(left))
				if w, err := p.Write(left[:n]); w != n || err != nil {
					t.Fatal(w, err)
				}
				left = left[n:]
			}
			rest, err := p.Finish()
			if err != nil {
				t.Fatal(err)
			}
			got := []byte{}
			for i := range len(sent) {
				rest = slices.Insert(rest, i, sent[i])
			}
			for i, q := range rest {
				if q.Number != i || q.Offset != int64(len(got)) || i < len(rest)-1 && len(q.Data) != o.Size {
					t.Fatalf("%+v: part %d: number %d, offset %d, %d bytes", o, i, q.Number, q.Offset, len(q.Data))
				}
				got = append(got, q.Data...)
			}
			if !bytes.Equal(got, content) || p.Size() != int64(size) || p.Sent() != len(sent) {
				t.Fatalf("%+v: %d bytes became %d", o, size, len(got))
			}
			if size <= o.Size*max(o.Hold, 1) && len(sent) > 0 || most > max(o.Parallel, 1) {
				t.Fatalf("%d bytes: sent %d parts, %d at once", size, len(sent), most)
			}
			p.Close()
		}
	}
}

// The first error of a part is that of the next Write and of Finish, and nothing more is sent.
func TestPartsError(t *testing.T) {
	boom := errors.New("boom")
	var calls atomic.Int32
	p := newParts(t.Context(), partsOptions{Size: 1, Parallel: 1, Send: func(context.Context, part) error {
		if calls.Add(1) == 2 {
			return boom
		}
		return nil
	}})
	var err error
	for range 100 {
		if _, err = p.Write([]byte("x")); err != nil {
			break
		}
	}
	_, ferr := p.Finish()
	if !errors.Is(err, boom) || !errors.Is(ferr, boom) || calls.Load() != 2 {
		t.Errorf("%v, %v, %d calls", err, ferr, calls.Load())
	}
	p.Close()
	ctx, cancel := context.WithCancel(t.Context())
	p = newParts(ctx, partsOptions{Size: 1, Send: func(ctx context.Context, _ part) error { <-ctx.Done(); return ctx.Err() }})
	if _, err := p.Write([]byte("abc")[:2]); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := p.Write([]byte("abc")); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	p.Close()
	if _, err := p.Write([]byte("x")); err == nil {
		t.Error("Write after Close succeeds")
	}
}
