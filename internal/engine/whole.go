package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// missingOf names the first object that the backup itself should have stored and that is not there with its size, and says what is
// there instead; "" when all are. The objects are not read. The manifest must be sorted. Of a listing nothing is kept but a bit for
// each file; an object that it lacks is asked for by name, so that a store whose listings are late does not look damaged.
func (s *Stanza) missingOf(ctx context.Context, m *repo.Manifest) (string, error) {
	dir := repo.BackupDir(s.o.Stanza) + "/" + string(m.Label)
	whole := make([]bool, len(m.Files))
	bundles := map[int64]int64{} // sizes by number
	for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
		if errors.Is(err, fs.ErrNotExist) {
			break
		}
		if err != nil {
			return "", fmt.Errorf("list %s: %w", dir, err)
		}
		if info.Dir {
			continue
		}
		name := strings.TrimPrefix(info.Name, dir+"/")
		if number, ok := strings.CutPrefix(name, "bundle/"); ok {
			if id, err := strconv.ParseInt(number, 10, 64); err == nil {
				bundles[id] = info.Size
			}
			continue
		}
		for _, ext := range []string{m.Options.CompressType.Ext(), ".pgbi"} {
			if i, ok := m.FileIndex(strings.TrimSuffix(name, ext)); ok && fits(m, s.o.Stanza, i, info) {
				whole[i] = true
			}
		}
	}
	for i := range m.Files {
		f := &m.Files[i]
		if f.Reference != "" || f.Size == 0 && m.Bundle || whole[i] || f.BundleID > 0 && bundles[f.BundleID] >= f.BundleOffset+f.RepoSize {
			continue
		}
		object, _, _, _ := m.Object(s.o.Stanza, f)
		info, err := s.o.Storage.Stat(ctx, object)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return object + " is missing", nil
		case err != nil:
			return "", fmt.Errorf("look at %s: %w", object, err)
		case !fits(m, s.o.Stanza, i, info):
			return fmt.Sprintf("%s has %d bytes, which is not what was written", object, info.Size), nil
		case f.BundleID > 0: // asked once, not for each file in it
			bundles[f.BundleID] = info.Size
		}
	}
	return "", nil
}

// fits says whether an object is the one that the manifest means for a file. Of an empty file any content is as good.
func fits(m *repo.Manifest, stanza string, i int, info storage.Info) bool {
	f := &m.Files[i]
	object, offset, length, _ := m.Object(stanza, f)
	return object == info.Name && (f.Size == 0 || info.Size == length || f.BundleID > 0 && info.Size >= offset+length)
}
