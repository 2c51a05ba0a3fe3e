package storage_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/storage"
)

// Whatever the sizes of the writes, what is sent and what is left at the end are the object, in order, in parts of one size.
func TestParts(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, o := range []storage.PartsOptions{{Size: 1}, {Size: 7}, {Size: 16, Hold: 4, Parallel: 3}, {Size: 10, Hold: 2, Parallel: 8}} {
		for size := range 200 {
			content := make([]byte, size)
			for i := range content {
				content[i] = byte(rng.Uint32())
			}
			var mu sync.Mutex
			sent := map[int]storage.Part{}
			flying, most := 0, 0
			o.Send = func(_ context.Context, p storage.Part) error {
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
			p := storage.NewParts(t.Context(), o)
			for left := content; len(left) > 0; {
				n := min(rng.IntN(12), len(left))
				if w, err := p.Write(left[:n]); w != n || err != nil {
					t.Fatal(w, err)
				}
				left = left[n:]
			}
			rest, err := p.Finish()
			must(t, err)
			got := []byte{}
			for i := range len(sent) {
				rest = slices.Insert(rest, i, sent[i])
			}
			for i, part := range rest {
				if part.Number != i || part.Offset != int64(len(got)) || i < len(rest)-1 && len(part.Data) != o.Size {
					t.Fatalf("%+v: part %d: number %d, offset %d, %d bytes", o, i, part.Number, part.Offset, len(part.Data))
				}
				got = append(got, part.Data...)
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
	p := storage.NewParts(t.Context(), storage.PartsOptions{Size: 1, Parallel: 1, Send: func(context.Context, storage.Part) error {
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
	p = storage.NewParts(ctx, storage.PartsOptions{Size: 1, Send: func(ctx context.Context, _ storage.Part) error { <-ctx.Done(); return ctx.Err() }})
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

// A store that says how long to wait is obeyed, within bounds; so is one that is called by an adapter itself.
func TestBackoffWaitsAsAsked(t *testing.T) {
	var waits []string
	b := storage.Backoff{Attempts: 3, Base: 1000, Max: 2000, Rand: func() float64 { return 0 }, Sleep: func(_ context.Context, d time.Duration) error {
		waits = append(waits, fmt.Sprint(d))
		return nil
	}}
	n := 0
	err := b.Do(t.Context(), func() error {
		n++
		return storage.TemporaryAfter(errors.New("slow down"), []time.Duration{7e9, 1e15, 0}[n-1])
	})
	if n != 3 || err == nil || !slices.Equal(waits, []string{"7s", "2m0s"}) {
		t.Errorf("%d calls, waits %v, %v", n, waits, err)
	}
	if err := b.Do(t.Context(), func() error { n++; return storage.ErrInjected }); n != 4 || !errors.Is(err, storage.ErrInjected) {
		t.Errorf("a lasting error: %d calls, %v", n, err)
	}
}
