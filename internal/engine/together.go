package engine

import (
	"context"
	"fmt"
	"sync"

	"holdfast/internal/repo"
)

// together does things that do not need each other: at the same time where each waits for a store behind a network, else one after the
// other until one fails. The error is that of the first in the list which failed.
func (s *Stanza) together(ctx context.Context, things ...func(context.Context) error) error {
	if !s.o.Storage.Abilities().Remote {
		for _, do := range things {
			if err := do(ctx); err != nil {
				return err
			}
		}
		return nil
	}
	errs := make([]error, len(things))
	var wg sync.WaitGroup
	for i, do := range things {
		wg.Go(func() { errs[i] = do(ctx) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// loadAll is loadInfos, and the label directories.
func (s *Stanza) loadAll(ctx context.Context) (ai *repo.ArchiveInfo, bi *repo.BackupInfo, dirs []repo.LabelDir, err error) {
	err = s.together(ctx, func(ctx context.Context) (err error) {
		ai, bi, err = s.loadInfos(ctx)
		return err
	}, func(ctx context.Context) (err error) {
		if dirs, err = repo.ReadLabels(ctx, s.o.Storage, s.o.Stanza); err != nil {
			err = fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
		}
		return err
	})
	return ai, bi, dirs, err
}
