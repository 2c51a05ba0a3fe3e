package storage_test

import (
	"context"
	"testing"
	"time"

	"holdfast/internal/storage"
	"holdfast/internal/storage/storagetest"
)

// posix returns a storage in a directory that does not exist yet.
func posix(t *testing.T) *storage.Posix {
	t.Helper()
	p, err := storage.NewPosix(t.TempDir()+"/deep/repo", storage.PosixOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// faulty wraps a storage in faults.
func faulty(t *testing.T, s storage.Storage, faults ...storage.Fault) *storage.Faulty {
	t.Helper()
	f, err := storage.NewFaulty(s, faults...)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// quick is a back-off that does not wait but respects the context.
func quick(attempts int) storage.Backoff {
	return storage.Backoff{Attempts: attempts, Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
}

func TestConformance(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) storage.Storage{
		"posix":        func(t *testing.T) storage.Storage { return posix(t) },
		"mem":          func(*testing.T) storage.Storage { return storage.NewMem(nil) },
		"faulty":       func(t *testing.T) storage.Storage { return faulty(t, storage.NewMem(nil)) },
		"faulty posix": func(t *testing.T) storage.Storage { return faulty(t, posix(t)) },
		"limit":        func(*testing.T) storage.Storage { return storage.NewLimit(storage.NewMem(nil), 1) },
		"limit posix":  func(t *testing.T) storage.Storage { return storage.NewLimit(posix(t), 2) },
		"retry": func(*testing.T) storage.Storage {
			return storage.NewRetry(storage.NewMem(nil), storage.RetryOptions{Backoff: quick(3)})
		},
		"retry posix": func(t *testing.T) storage.Storage {
			return storage.NewRetry(posix(t), storage.RetryOptions{Backoff: quick(3)})
		},
		"resume":       func(*testing.T) storage.Storage { return storage.NewResume(storage.NewMem(nil), quick(3)) },
		"resume posix": func(t *testing.T) storage.Storage { return storage.NewResume(posix(t), quick(3)) },
		"stack over a flaky store": func(t *testing.T) storage.Storage {
			f := faulty(t, storage.NewMem(nil),
				storage.Fault{Op: storage.OpOpen, Nth: 2, Err: storage.Temporary(storage.ErrInjected)},
				storage.Fault{Op: storage.OpRead, Nth: 1},
				storage.Fault{Op: storage.OpRead, Nth: 3, Kind: storage.ShortRead},
				storage.Fault{Op: storage.OpCommit, Nth: 1, Kind: storage.FailAfter, Err: storage.Temporary(storage.ErrInjected)},
				storage.Fault{Op: storage.OpStat, Nth: 1, Err: storage.Temporary(storage.ErrInjected)},
				storage.Fault{Op: storage.OpRemove, Nth: 1, Kind: storage.FailAfter, Err: storage.Temporary(storage.ErrInjected)},
				storage.Fault{Op: storage.OpList, Nth: 3, Err: storage.Temporary(storage.ErrInjected)})
			retry := storage.NewRetry(storage.NewLimit(f, 2), storage.RetryOptions{Backoff: quick(4)})
			return storage.NewResume(retry, quick(4))
		},
	} {
		t.Run(name, func(t *testing.T) { storagetest.Run(t, open) })
	}
}
