package action

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/catalog"
)

// idsAhead bounds how far identifiers run ahead of the clock to stay in order. What is further ahead is of a clock that was put back.
const idsAhead = 24 * time.Hour

// chooseID is <timestamp_version>; a minute that is taken (by a tarball or a catalogue entry) is passed over. So are those before one
// that is taken: a minute that has become free would give a set a name older than its elders', here and on external storage.
func (a *App) chooseID(ctx context.Context, now time.Time) (string, error) {
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return "", err
	}
	first := now.UTC().Truncate(time.Minute)
	for _, s := range sets {
		if at, err := time.Parse("200601021504", s.ID[:12]); err == nil && !at.Before(first) && at.Sub(now) < idsAhead {
			first = at.Add(time.Minute)
		}
	}
	for t := first; ; t = t.Add(time.Minute) {
		id := t.UTC().Format("200601021504") + "_" + a.o.AppVersion
		if err := catalog.CheckID(id); err != nil {
			return "", fmt.Errorf("alation.version: %w", err)
		}
		_, err := a.o.Catalog.Get(ctx, id)
		if err == nil {
			continue
		}
		if !errors.Is(err, catalog.ErrUnknown) {
			return "", err
		}
		_, err1 := os.Lstat(filepath.Join(a.o.DumpDir, id+appSuffix))
		_, err2 := os.Lstat(filepath.Join(a.o.DumpDir, id+busSuffix))
		if os.IsNotExist(err1) && os.IsNotExist(err2) {
			return id, nil
		}
		if err := errors.Join(err1, err2); err != nil && !os.IsNotExist(err1) && !os.IsNotExist(err2) {
			return "", err
		}
	}
}
