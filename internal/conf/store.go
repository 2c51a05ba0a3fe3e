package conf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/durable"
)

const (
	storeMode   = 0o644 // archive-push runs as PostgreSQL's user and reads it; secrets in it are sealed
	lockPoll    = 5 * time.Millisecond
	lockWaitMax = 10 * time.Second
)

// Options says where a store is.
type Options struct {
	Path     string         // the file; its lock is Path + ".lock"
	KeyPath  string         // the key file that seals secrets
	Owner    *durable.Owner // of new files; nil: that of the existing file, else the process's own
	LockWait time.Duration  // how long a writer waits for another one; 0 = 10 seconds
}

// Store is the parameter store of one instance. It holds nothing open between calls and may be used by many goroutines
// and processes at once.
type Store struct{ o Options }

// NewStore returns the store at o.Path without touching it.
func NewStore(o Options) *Store {
	if o.LockWait <= 0 {
		o.LockWait = lockWaitMax
	}
	return &Store{o}
}

// Pair is one parameter to set. It prints no value, since that may be a secret's.
type Pair struct {
	Name  string
	Value Secret
}

// Create makes the key file and a store with initial values where they are missing; what exists stays as it is, and then
// pairs are ignored. It refuses to make a new key for a store that has sealed values: they could never be opened.
func (s *Store) Create(ctx context.Context, pairs []Pair) error {
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	existing, err := readFile(s.o.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Lstat(s.o.KeyPath); errors.Is(err, fs.ErrNotExist) {
		if existing != nil && len(existing.read(s.o.KeyPath).sealed) > 0 {
			return fmt.Errorf("key of the parameter store %s is missing and %s has sealed secrets: bring the key file back, or unset the secrets first", s.o.KeyPath, s.o.Path)
		}
		if err := createKey(s.o.KeyPath, s.owner()); err != nil {
			return err
		}
	} else if err != nil {
		return fmt.Errorf("key of the parameter store: %w", err)
	}
	if existing != nil {
		return nil
	}
	f := newFile()
	if err := s.apply(f, pairs); err != nil {
		return err
	}
	if err := errors.Join(checkRules(f.read(s.o.KeyPath), pairNames(pairs))...); err != nil {
		return err
	}
	return s.write(ctx, f, nil)
}

// Load reads the store. Values that are not allowed (an edited file) are an error that names each one and answers to
// ErrRefused; setting them right is possible all the same. A missing file is fs.ErrNotExist.
func (s *Store) Load() (*Values, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	if err := v.problem(); err != nil {
		return nil, fmt.Errorf("parameter store %s: %w", s.o.Path, err)
	}
	return v, nil
}

// LoadAllowed is Load for a look at what works all the same: values that are not allowed have their defaults.
func (s *Store) LoadAllowed() (*Values, error) { return s.view() }

// view is Load that tolerates wrong values.
func (s *Store) view() (*Values, error) {
	f, err := readFile(s.o.Path)
	if err != nil {
		return nil, err
	}
	return f.read(s.o.KeyPath), nil
}

// Get describes one parameter. Errors: an *UnknownKeyError, or the store cannot be read.
func (s *Store) Get(name string) (Entry, error) {
	v, err := s.view()
	if err != nil {
		return Entry{}, err
	}
	return v.Entry(name)
}

// List describes every parameter whose name begins with prefix, in the order of the table.
func (s *Store) List(prefix string) ([]Entry, error) {
	v, err := s.view()
	if err != nil {
		return nil, err
	}
	var all []Entry
	for i := range table {
		if !strings.HasPrefix(table[i].Name, prefix) {
			continue
		}
		e, err := v.Entry(table[i].Name)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// Set changes all of pairs or, on any error, none. It returns the new entries in the order of pairs. Everything that is
// wrong is reported at once; such errors answer to ErrRefused. With ctx done nothing is changed.
func (s *Store) Set(ctx context.Context, pairs []Pair) ([]Entry, error) {
	return s.change(ctx, pairNames(pairs), func(f *file) error { return s.apply(f, pairs) })
}

// Without is the file's content with some parameters left out, for copies that must not carry them. A missing file is
// fs.ErrNotExist.
func (s *Store) Without(names ...string) ([]byte, error) {
	f, err := readFile(s.o.Path)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		delete(f.values, name)
	}
	return f.encode()
}

// Unset gives parameters their default again: all of names or, on any error, none. A name that only a newer version
// knows can be removed too.
func (s *Store) Unset(ctx context.Context, names []string) ([]Entry, error) {
	return s.change(ctx, names, func(f *file) error {
		var all []error
		for _, name := range names {
			if _, set := f.values[name]; !set && Lookup(name) == nil {
				all = append(all, &UnknownKeyError{Name: name, Nearest: Nearest(name)})
			}
			delete(f.values, name)
		}
		return errors.Join(all...)
	})
}

// change reads, edits, checks the rules and writes, under the lock.
func (s *Store) change(ctx context.Context, names []string, edit func(*file) error) ([]Entry, error) {
	unlock, err := s.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	f, err := readFile(s.o.Path)
	if err != nil {
		return nil, err
	}
	before, err := f.encode()
	if err != nil {
		return nil, err
	}
	if err := edit(f); err != nil {
		return nil, err
	}
	v := f.read(s.o.KeyPath)
	if err := errors.Join(checkRules(v, names)...); err != nil {
		return nil, err
	}
	if err := s.write(ctx, f, before); err != nil {
		return nil, err
	}
	var entries []Entry
	for _, name := range names {
		if Lookup(name) == nil {
			continue // a newer version's, now removed
		}
		e, err := v.Entry(name)
		if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// apply puts the parsed pairs into f, or reports all that is wrong with them.
func (s *Store) apply(f *file, pairs []Pair) error {
	var all []error
	var seal *sealer
	seen := map[string]bool{}
	for _, p := range pairs {
		k := Lookup(p.Name)
		if k == nil {
			all = append(all, &UnknownKeyError{Name: p.Name, Nearest: Nearest(p.Name)})
			continue
		}
		if seen[p.Name] {
			all = append(all, &UsageError{p.Name + " is set twice in one call"})
			continue
		}
		seen[p.Name] = true
		canonical, err := k.Parse(p.Value.Reveal())
		if err != nil {
			all = append(all, err)
			continue
		}
		if k.Secret() && canonical == "" {
			delete(f.values, k.Name) // an empty secret is no secret
			continue
		}
		var stored any = canonical
		if k.Secret() {
			if seal == nil {
				if seal, err = loadSealer(s.o.KeyPath); err != nil {
					return err
				}
			}
			sealed, err := seal.seal(k.Name, canonical)
			if err != nil {
				return err
			}
			stored = sealedValue{sealed}
		}
		raw, err := json.Marshal(stored)
		if err != nil {
			return fmt.Errorf("set %s: %w", k.Name, err)
		}
		f.values[k.Name] = raw
	}
	return errors.Join(all...)
}

// write replaces the file unless its content stays the same as before.
func (s *Store) write(ctx context.Context, f *file, before []byte) error {
	data, err := f.encode()
	if err != nil {
		return err
	}
	if len(data) > fileMax {
		return fmt.Errorf("parameter store %s: would become larger than %d bytes; nothing was changed", s.o.Path, fileMax)
	}
	if before != nil && bytes.Equal(data, before) {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("parameter store: nothing was changed: %w", err)
	}
	if err := durable.WriteFileOwned(s.o.Path, data, storeMode, s.owner()); err != nil {
		return fmt.Errorf("parameter store: %w", err)
	}
	return nil
}

// lock waits for the writers' lock. Waiting polls: flock(2) cannot be interrupted by a context.
func (s *Store) lock(ctx context.Context) (func(), error) {
	path := s.o.Path + ".lock"
	deadline := time.NewTimer(s.o.LockWait)
	defer deadline.Stop()
	poll := time.NewTicker(lockPoll)
	defer poll.Stop()
	for {
		l, err := durable.TryLockOwned(path, fmt.Appendf(nil, "pid %d", os.Getpid()), s.owner())
		if err == nil {
			// Unlock closes the file; should that fail the lock ends with the process, which is about to end.
			return func() { _ = l.Unlock() }, nil
		}
		if !errors.Is(err, durable.ErrLocked) {
			return nil, fmt.Errorf("parameter store: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("parameter store: nothing was changed: %w", ctx.Err())
		case <-deadline.C:
			return nil, fmt.Errorf("parameter store: nothing was changed: %w after %v%s", err, s.o.LockWait, holder(err))
		case <-poll.C:
		}
	}
}

// holder names the process that holds the lock, if it has said so.
func holder(err error) string {
	var locked *durable.LockedError
	if errors.As(err, &locked) && len(locked.Info) > 0 {
		return " (" + shorten(string(locked.Info)) + ")"
	}
	return ""
}

// owner returns to whom files written now belong: as root, to whom the store belongs already, so that `sudo alation_conf`
// does not take it away from the instance's user.
func (s *Store) owner() *durable.Owner {
	if s.o.Owner != nil {
		return s.o.Owner
	}
	if os.Geteuid() != 0 {
		return nil
	}
	for _, path := range []string{s.o.Path, filepath.Dir(s.o.Path)} {
		info, err := os.Stat(path)
		if err != nil {
			continue // not there yet: the directory decides, and if that fails the write will say so
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return &durable.Owner{UID: int(st.Uid), GID: int(st.Gid)}
		}
	}
	return nil
}

func pairNames(pairs []Pair) []string {
	names := make([]string, len(pairs))
	for i, p := range pairs {
		names[i] = p.Name
	}
	return names
}
