package storage

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// forward gives a decorator the methods of Linker and Sweeper. On an inner store that lacks them (see Abilities) they
// return errors.ErrUnsupported.
type forward struct{ inner Storage }

// Abilities are those of the inner store.
func (f forward) Abilities() Abilities { return f.inner.Abilities() }

// MakeDir implements Linker.
func (f forward) MakeDir(ctx context.Context, name string) error {
	l, err := f.linker("make directory", name)
	if err != nil {
		return err
	}
	return l.MakeDir(ctx, name)
}

// Symlink implements Linker.
func (f forward) Symlink(ctx context.Context, target, name string) error {
	l, err := f.linker("link", name)
	if err != nil {
		return err
	}
	return l.Symlink(ctx, target, name)
}

// Link implements Linker.
func (f forward) Link(ctx context.Context, existing, name string) error {
	l, err := f.linker("link", name)
	if err != nil {
		return err
	}
	return l.Link(ctx, existing, name)
}

// RemoveTree implements Linker.
func (f forward) RemoveTree(ctx context.Context, name string) error {
	l, err := f.linker("remove tree", name)
	if err != nil {
		return err
	}
	return l.RemoveTree(ctx, name)
}

// Sweep implements Sweeper.
func (f forward) Sweep(ctx context.Context, dir string, age time.Duration) (int, error) {
	s, ok := f.inner.(Sweeper)
	if !ok || !f.inner.Abilities().Sweeps {
		return 0, fmt.Errorf("sweep %s: %w", dir, errors.ErrUnsupported)
	}
	return s.Sweep(ctx, dir, age)
}

// linker is the inner store's Linker.
func (f forward) linker(op, name string) (Linker, error) {
	l, ok := f.inner.(Linker)
	if !ok || !f.inner.Abilities().Links {
		return nil, fmt.Errorf("%s %s: %w", op, name, errors.ErrUnsupported)
	}
	return l, nil
}
