package engine

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"holdfast/internal/repo"
)

// Annotate sets notes on a backup; an empty value removes one. Only backup.info changes, so that notes made after a backup
// are lost when backup.info has to be rebuilt from the manifests. Takes the backup lock. Errors: ErrNoBackup; the storage's,
// and then the notes are as before or as asked for.
func (s *Stanza) Annotate(ctx context.Context, label repo.Label, notes map[string]string) error {
	if _, given := notes[""]; given || len(notes) == 0 {
		return fmt.Errorf("stanza %s: annotate backup %s: give at least one key, each with a name", s.o.Stanza, label)
	}
	release, err := s.lock(repo.LockBackup)
	if err != nil {
		return err
	}
	return wrap(errors.Join(s.annotate(ctx, label, notes), release()), "stanza %s: annotate backup %s", s.o.Stanza, label)
}

func (s *Stanza) annotate(ctx context.Context, label repo.Label, notes map[string]string) error {
	_, bi, err := s.loadInfos(ctx)
	if err != nil {
		return err
	}
	changed, added, warnings, err := s.reconcile(ctx, bi)
	if err != nil {
		return err
	}
	if err := s.completeHistory(ctx, bi, added); err != nil {
		return err
	}
	for _, w := range warnings {
		s.warn("%s", w)
	}
	line := bi.Find(label)
	if line == nil {
		return fmt.Errorf("%w: there is no such backup; see: holdfast pg info --stanza=%s", ErrNoBackup, s.o.Stanza)
	}
	now := maps.Clone(line.Annotations)
	if now == nil {
		now = map[string]string{}
	}
	for key, value := range notes {
		if value == "" {
			delete(now, key)
		} else {
			now[key] = value
		}
	}
	changed = changed || !maps.Equal(now, line.Annotations)
	line.Annotations = now
	return s.saveBackupInfo(ctx, bi, changed)
}
