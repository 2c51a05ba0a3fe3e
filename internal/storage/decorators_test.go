package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/storage"
)

// deferred writes one object without waiting for the disk.
func deferred(t *testing.T, s storage.Storage, name, data string) {
	t.Helper()
	w, err := s.Create(t.Context(), name, storage.CreateOptions{Deferred: true})
	must(t, err)
	_, err = io.WriteString(w, data)
	must(t, err, w.Commit(t.Context()))
}

// object reads one object; "-" stands for a missing one.
func object(t *testing.T, s storage.Storage, name string) string {
	t.Helper()
	b, err := storage.ReadAll(t.Context(), s, name, 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		return "-"
	}
	must(t, err)
	return string(b)
}

func TestMemPowerCut(t *testing.T) {
	m := storage.NewMem(nil)
	must(t, storage.WriteAll(t.Context(), m, "durable", []byte("1234")), storage.WriteAll(t.Context(), m, "removed", []byte("1")))
	deferred(t, m, "synced", "abcd")
	must(t, m.Sync(t.Context()), m.Remove(t.Context(), "removed"))
	deferred(t, m, "pending", "wxyz")
	deferred(t, m, "durable", "5678")
	clean, torn := m.CrashClone(), m.CrashCloneTorn()
	for _, c := range []struct{ name, live, clean, torn string }{
		{"durable", "5678", "1234", "56"}, {"removed", "-", "-", "-"}, {"synced", "abcd", "abcd", "abcd"}, {"pending", "wxyz", "-", "wx"},
	} {
		if a, b, d := object(t, m, c.name), object(t, clean, c.name), object(t, torn, c.name); a != c.live || b != c.clean || d != c.torn {
			t.Errorf("%s: live %q, after a power cut %q or %q", c.name, a, b, d)
		}
	}
	must(t, storage.WriteAll(t.Context(), clean, "new", nil))
	if object(t, m, "new") != "-" {
		t.Error("a clone shares its names")
	}
}

// publish is a verb in small: two files, then the list that names them, replaced in one step.
func publish(ctx context.Context, s storage.Storage) error {
	for _, name := range []string{"f/1", "f/2"} {
		w, err := s.Create(ctx, name, storage.CreateOptions{Deferred: true})
		if err != nil {
			return err
		}
		defer w.Abort() // after Commit it does nothing
		if _, err := io.WriteString(w, "whole"); err != nil {
			return err
		}
		if err := w.Commit(ctx); err != nil {
			return err
		}
	}
	if err := s.Sync(ctx); err != nil {
		return err
	}
	return storage.WriteAll(ctx, s, "list", []byte("f/1 f/2"))
}

// The pattern for every verb: fail at each step in each way, look at what a power cut leaves, run again, still right.
func TestFailAtEachStepAndRunAgain(t *testing.T) {
	for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.Cancel, storage.Die} {
		steps := 0
		for n := 1; ; n++ {
			m := storage.NewMem(nil)
			ctx, cancel := context.WithCancel(t.Context())
			f := faulty(t, m, storage.Fault{Nth: n, Kind: kind, Cancel: cancel})
			err := publish(ctx, f)
			cancel()
			if !f.Fired() {
				must(t, err)
				break
			}
			steps++
			for _, left := range []*storage.Mem{m, m.CrashClone(), m.CrashCloneTorn()} {
				for name := range strings.FieldsSeq(strings.TrimPrefix(object(t, left, "list"), "-")) {
					if got := object(t, left, name); got != "whole" {
						t.Errorf("%v at step %d: the list names %s, which is %q", kind, n, name, got)
					}
				}
				must(t, publish(t.Context(), left))
				if got := left.Names(); !slices.Equal(got, []string{"f/1", "f/2", "list"}) {
					t.Errorf("%v at step %d, second run: %v", kind, n, got)
				}
			}
		}
		if steps < 10 {
			t.Errorf("%v: only %d steps were tried", kind, steps)
		}
	}
}

func TestFaultSelection(t *testing.T) {
	f := faulty(t, storage.NewMem(nil), storage.Fault{Op: storage.OpCommit, Name: "b*", Nth: 2, Kind: storage.FailAfter})
	for i, name := range []string{"x/b1", "x/a", "x/b2", "x/b3"} {
		err := storage.WriteAll(t.Context(), f, name, nil)
		if (i == 2) != errors.Is(err, storage.ErrInjected) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if object(t, f, "x/b2") != "" {
		t.Error("FailAfter should have taken effect")
	}
	if got := f.Calls()[2]; got != (storage.Call{Op: storage.OpCommit, Name: "x/b1"}) {
		t.Errorf("third call: %v", got)
	}
	if got := (storage.Fault{Op: storage.OpRead, Name: "a/*", Nth: 3, Kind: storage.ShortRead}).String(); got != "read a/* 3 short" {
		t.Error(got)
	}
	if _, err := storage.NewFaulty(f, storage.Fault{Name: "["}); err == nil {
		t.Error("malformed pattern accepted")
	}
	if _, err := storage.NewFaulty(f, storage.Fault{Kind: storage.Cancel}); err == nil {
		t.Error("cancel without a function accepted")
	}
}

func TestRetry(t *testing.T) {
	temporary := storage.Temporary(errors.New("busy"))
	for _, c := range []struct {
		name  string
		fault storage.Fault
		calls int // of Stat
		ok    bool
	}{
		{"temporary", storage.Fault{Nth: 1, Err: temporary}, 2, true},
		{"always", storage.Fault{Err: temporary}, 4, false},
		{"lasting", storage.Fault{Nth: 1}, 1, false},
	} {
		m := storage.NewMem(nil)
		must(t, storage.WriteAll(t.Context(), m, "a", nil))
		f := faulty(t, m, c.fault)
		told := 0
		r := storage.NewRetry(f, storage.RetryOptions{Backoff: quick(4), OnRepeat: func(storage.Repetition) { told++ }})
		_, err := r.Stat(t.Context(), "a")
		if (err == nil) != c.ok || len(f.Calls()) != c.calls || told != c.calls-1 {
			t.Errorf("%s: %v after %d calls, %d told", c.name, err, len(f.Calls()), told)
		}
	}
	if storage.IsTemporary(storage.ErrInjected) || !storage.IsTemporary(fmt.Errorf("x: %w", temporary)) || storage.Temporary(nil) != nil {
		t.Error("IsTemporary")
	}
}

// The pauses double up to the maximum, the upper half is random, and the end of the context ends them.
func TestRetryPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := faulty(t, storage.NewMem(nil), storage.Fault{Err: storage.Temporary(storage.ErrInjected)})
		var pauses []time.Duration
		r := storage.NewRetry(f, storage.RetryOptions{
			Backoff:  storage.Backoff{Attempts: 6, Base: time.Second, Max: 4 * time.Second, Rand: func() float64 { return 0.5 }},
			OnRepeat: func(e storage.Repetition) { pauses = append(pauses, e.Pause) },
		})
		if err := r.Sync(t.Context()); !errors.Is(err, storage.ErrInjected) {
			t.Error(err)
		}
		ms := time.Millisecond
		if want := []time.Duration{750 * ms, 1500 * ms, 3000 * ms, 3000 * ms, 3000 * ms}; !slices.Equal(pauses, want) {
			t.Errorf("pauses %v", pauses)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		before := len(f.Calls())
		if err := r.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, storage.ErrInjected) {
			t.Errorf("want both the deadline and its reason: %v", err)
		}
		if n := len(f.Calls()) - before; n != 2 {
			t.Errorf("%d calls before the deadline", n)
		}
	})
}

// A listing that breaks at each place yields every name once.
func TestRetryListGoesOn(t *testing.T) {
	m := storage.NewMem(nil)
	want := []string{"d/a", "d/b/c", "d/e", "d/f"}
	for _, name := range want {
		must(t, storage.WriteAll(t.Context(), m, name, nil))
	}
	for n := 1; n <= 5; n++ {
		f := faulty(t, m, storage.Fault{Op: storage.OpList, Nth: n, Err: storage.Temporary(storage.ErrInjected)})
		r := storage.NewRetry(f, storage.RetryOptions{Backoff: quick(2)})
		if got := listed(t, r, "d", true); !slices.Equal(got, want) {
			t.Errorf("broken at %d: %v", n, got)
		}
	}
}

// Every read fails or ends early at some point; the bytes are the same.
func TestResume(t *testing.T) {
	m := storage.NewMem(nil)
	data := strings.Repeat("0123456789", 5000)
	must(t, storage.WriteAll(t.Context(), m, "a", []byte(data)))
	for _, c := range []struct{ offset, length, end int64 }{{0, -1, 50000}, {7, -1, 50000}, {13, 20000, 20013}} {
		for n := int64(1); n < 12; n++ {
			f := faulty(t, m, storage.Fault{Op: storage.OpRead, Nth: int(n)}, storage.Fault{Op: storage.OpRead, Nth: int(n) + 1, Kind: storage.ShortRead},
				storage.Fault{Op: storage.OpRead, Nth: int(n) + 3, Kind: storage.FailAfter}, storage.Fault{Op: storage.OpOpen, Nth: 2})
			r, err := storage.NewResume(f, quick(4)).Open(t.Context(), "a", c.offset, c.length)
			must(t, err)
			b, err := io.ReadAll(r)
			must(t, err, r.Close())
			if string(b) != data[c.offset:c.end] {
				t.Errorf("%+v broken at %d: read %d bytes", c, n, len(b))
			}
		}
	}
}

func TestResumeGivesUp(t *testing.T) {
	m := storage.NewMem(nil)
	must(t, storage.WriteAll(t.Context(), m, "a", []byte("0123456789")))
	f := faulty(t, m, storage.Fault{Op: storage.OpRead})
	r, err := storage.NewResume(f, quick(3)).Open(t.Context(), "a", 0, -1)
	must(t, err)
	for range 2 { // the error stays
		if _, err := r.Read(make([]byte, 5)); !errors.Is(err, storage.ErrInjected) || !strings.Contains(err.Error(), "byte 0, tried 3 times") {
			t.Errorf("got %v", err)
		}
	}
	must(t, r.Close())
}

// An object that is replaced between two readers must not be stitched together.
func TestResumeNoticesReplacement(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	m := storage.NewMem(func() time.Time { now = now.Add(time.Second); return now })
	must(t, storage.WriteAll(t.Context(), m, "a", []byte("0123456789")))
	f := faulty(t, m, storage.Fault{Op: storage.OpRead, Nth: 2})
	r, err := storage.NewResume(f, quick(3)).Open(t.Context(), "a", 0, -1)
	must(t, err)
	_, err = io.ReadFull(r, make([]byte, 4))
	must(t, err, storage.WriteAll(t.Context(), m, "a", []byte("abcdefghij")))
	if b, err := io.ReadAll(r); !errors.Is(err, storage.ErrChanged) || len(b) != 0 {
		t.Errorf("read %q, %v", b, err)
	}
	must(t, r.Close())
}

// gate is a store whose Stat waits until it is let through.
type gate struct {
	*storage.Mem
	in, out chan struct{}
}

func (g gate) Stat(ctx context.Context, name string) (storage.Info, error) {
	g.in <- struct{}{}
	<-g.out
	return g.Mem.Stat(ctx, name)
}

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate{storage.NewMem(nil), make(chan struct{}, 10), make(chan struct{})}
		l := storage.NewLimit(g, 2)
		if n := l.Abilities().Connections; n != 2 {
			t.Errorf("%d connections", n)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 5)
		for range 5 {
			go func() {
				_, err := l.Stat(ctx, "a")
				done <- err
			}()
		}
		synctest.Wait()
		if len(g.in) != 2 || len(done) != 0 {
			t.Errorf("%d inside, %d done", len(g.in), len(done))
		}
		g.out <- struct{}{}
		synctest.Wait()
		if len(g.in) != 3 || len(done) != 1 {
			t.Errorf("%d inside, %d done after one was let through", len(g.in), len(done))
		}
		cancel() // two wait inside, two for a slot
		synctest.Wait()
		if len(done) != 3 {
			t.Errorf("%d done after cancel", len(done))
		}
		close(g.out)
		synctest.Wait()
		if len(done) != 5 || len(g.in) != 3 {
			t.Errorf("%d done, %d were inside", len(done), len(g.in))
		}
	})
}

func TestReadAllIsBounded(t *testing.T) {
	m := storage.NewMem(nil)
	must(t, storage.WriteAll(t.Context(), m, "a", []byte("12345")))
	if b, err := storage.ReadAll(t.Context(), m, "a", 5); err != nil || string(b) != "12345" {
		t.Errorf("%q %v", b, err)
	}
	if _, err := storage.ReadAll(t.Context(), m, "a", 4); err == nil {
		t.Error("more than the limit was read")
	}
}
