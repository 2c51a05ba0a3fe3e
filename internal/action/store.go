package action

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path"

	"holdfast/internal/engine"
	"holdfast/internal/storage"
)

// StoreOptions is the external storage that has copies of sets, and what each run copies there.
type StoreOptions struct {
	Name     string                          // for people and the catalogue: s3://bucket/path
	OpenRepo func() (storage.Storage, error) // PostgreSQL's repository there, under the same passphrase as here
	OpenSets func() (storage.Storage, error) // the tarballs

	Postgres   bool // copy the separate PostgreSQL backup on every run
	Tarballs   bool // copy the tarballs on every run
	ProcessMax int  // objects at once

	AppendOnly bool // these credentials remove nothing there: what the retention would remove is only named

	// Retention there; KeepSets 0: nothing is removed. Sets of the catalogue always stay.
	KeepSets int
	KeepDays int // younger ones stay whatever their number
}

// ErrNoStore says that external storage is needed and none is described.
var ErrNoStore = errors.New("no external storage is described")

// store is the external storage, or ErrNoStore with what to do.
func (a *App) store() (*StoreOptions, error) {
	if a.o.Store == nil {
		return nil, fmt.Errorf("%w: set its parameters, see: alation_conf --list pgsql.pgbackrest.redundancy", ErrNoStore)
	}
	return a.o.Store, nil
}

// storeRepo opens PostgreSQL's repository on the external storage.
func (a *App) storeRepo() (storage.Storage, error) {
	s, err := a.store()
	if err != nil {
		return nil, err
	}
	st, err := s.OpenRepo()
	return st, wrap(err, "external storage %s", s.Name)
}

// storeStanza is the engine on one cluster in the repository on external storage. It counts as the second repository, so that
// pgbackrest's locks on the first are not in its way.
func (a *App) storeStanza(name string, st storage.Storage) (*engine.Stanza, error) {
	return engine.New(engine.Options{Stanza: name, Storage: st, RepoKey: 2, Pass: a.o.RepoPass, LockDir: a.o.PGLockDir, LockOwner: a.o.ServerOwner, ExecID: a.o.ExecID,
		Version: a.o.Program, Now: a.o.Now, Events: a.o.Events})
}

// inStore says whether a piece of a set is on external storage and nowhere else.
func (a *App) inStore(dir string) bool { return a.o.Store != nil && dir == a.o.Store.Name }

// openPiece opens the repository that a piece names: a directory here, or the one on external storage.
func (a *App) openPiece(dir string) (storage.Storage, error) {
	if a.inStore(dir) {
		return a.storeRepo()
	}
	return a.o.OpenRepo(dir)
}

// CheckStore proves that the external storage can be used: it writes an object in each of its two places, finds it in a listing,
// reads it back and removes it, which append-only credentials need not be able to. The error names the first thing that it did not let us do.
func (a *App) CheckStore(ctx context.Context) error {
	s, err := a.store()
	if err != nil {
		return err
	}
	for _, open := range []func() (storage.Storage, error){s.OpenRepo, s.OpenSets} {
		st, err := open()
		if err == nil {
			err = checkStore(ctx, st, s.AppendOnly)
		}
		if err != nil {
			return fmt.Errorf("external storage %s: %w", s.Name, err)
		}
	}
	return nil
}

const checkDir = "holdfast-check"

func checkStore(ctx context.Context, st storage.Storage, appendOnly bool) error {
	var random [16]byte
	rand.Read(random[:]) // crypto/rand.Read never fails (Go 1.24)
	name, text := path.Join(checkDir, hex.EncodeToString(random[:])), []byte("written to see whether it can be; may be removed\n")
	if appendOnly { // it stays: one object, and not one for each check
		name = path.Join(checkDir, "append-only")
	}
	if err := storage.WriteAll(ctx, st, name, text); err != nil {
		return fmt.Errorf("it can't be written to: %w", err)
	}
	err := func() error {
		got, err := storage.ReadAll(ctx, st, name, 1<<10)
		if err != nil {
			return fmt.Errorf("what was written can't be read: %w", err)
		}
		if !bytes.Equal(got, text) {
			return errors.New("what was written is read otherwise")
		}
		found := false
		for info, err := range st.List(ctx, checkDir, storage.ListOptions{}) {
			if err != nil {
				return fmt.Errorf("it can't be listed: %w", err)
			}
			found = found || info.Name == name
		}
		if !found {
			return errors.New("what was written is not in the listing")
		}
		return nil
	}()
	if rerr := st.Remove(ctx, name); rerr != nil && !(appendOnly && errors.Is(rerr, fs.ErrPermission)) {
		err = errors.Join(err, fmt.Errorf("nothing can be removed from it (retention needs that; object %s stays): %w", name, rerr))
	}
	return err
}
