package storage_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"holdfast/internal/storage"
)

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
