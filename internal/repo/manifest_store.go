package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"holdfast/internal/storage"
)

// LoadManifest reads the manifest of a backup: backup.manifest, and when that fails in any way backup.manifest.copy, which
// must then be complete (ValidateComplete): during a backup the copy alone is there, and is not. The manifest's label
// must be l. pass is that of backup.info ("" = not encrypted). Errors as LoadArchiveInfo.
func LoadManifest(ctx context.Context, s storage.Storage, stanza string, l Label, pass Secret) (*Manifest, error) {
	parse := func(r io.Reader) (*Manifest, error) { return parseLabelled(r, l) }
	return load(ctx, s, ManifestPath(stanza, l), pass, parse, func(r io.Reader) (*Manifest, error) {
		m, err := parse(r)
		if err == nil {
			err = m.ValidateComplete()
		}
		if err != nil {
			return nil, err
		}
		return m, nil
	})
}

// LoadManifestCopy reads backup.manifest.copy alone, complete or not: what an interrupted backup may be resumed from.
func LoadManifestCopy(ctx context.Context, s storage.Storage, stanza string, l Label, pass Secret) (*Manifest, error) {
	return loadOne(ctx, s, ManifestPath(stanza, l)+copySuffix, pass, func(r io.Reader) (*Manifest, error) {
		return parseLabelled(r, l)
	})
}

func parseLabelled(r io.Reader, l Label) (*Manifest, error) {
	m, err := parseManifest(r)
	if err != nil {
		return nil, err
	}
	if m.Label != l {
		return nil, fmt.Errorf("%w: [%s] backup-label: manifest of %s in the directory of %s", ErrFormat, sectionBackup, m.Label, l)
	}
	return m, nil
}

// SaveManifestCopy writes backup.manifest.copy only: the state of a running backup. The backup does not exist by it. sum is
// the SHA-1 of the object as stored, by which ManifestCopySum tells later whether it is still the same.
func SaveManifestCopy(ctx context.Context, s storage.Storage, stanza string, m *Manifest, pass Secret) (sum string, err error) {
	return writeObject(ctx, s, ManifestPath(stanza, m.Label)+copySuffix, StreamSpec{Compress: None, Pass: pass}, m.encode)
}

// ManifestCopySum is the SHA-1 of backup.manifest.copy as stored.
func ManifestCopySum(ctx context.Context, s storage.Storage, stanza string, l Label) (string, error) {
	r, err := s.Open(ctx, ManifestPath(stanza, l)+copySuffix, 0, -1)
	if err != nil {
		return "", err
	}
	defer r.Close() // opened for reading: nothing to lose
	sums, err := Decode(io.Discard, r, StreamSpec{Compress: None})
	return sums.SHA1, err
}

// PublishManifest makes the backup exist: everything stored before is made durable, then .copy, backup.manifest and the
// history manifest are written in this order. An incomplete manifest is refused before anything is written.
//
// On error the backup may exist all the same (the history manifest failed): LabelDir.Manifest tells. Until backup.info
// names it, Reconcile does.
func PublishManifest(ctx context.Context, s storage.Storage, stanza string, m *Manifest, pass Secret) error {
	if err := m.ValidateComplete(); err != nil {
		return err
	}
	if err := s.Sync(ctx); err != nil {
		return fmt.Errorf("sync the files of backup %s: %w", m.Label, err)
	}
	if _, err := SaveManifestCopy(ctx, s, stanza, m, pass); err != nil {
		return err
	}
	if _, err := writeObject(ctx, s, ManifestPath(stanza, m.Label), StreamSpec{Compress: None, Pass: pass}, m.encode); err != nil {
		return err
	}
	return SaveHistoryManifest(ctx, s, stanza, m, pass)
}

// SaveHistoryManifest writes the compressed copy of a manifest that outlives its backup.
func SaveHistoryManifest(ctx context.Context, s storage.Storage, stanza string, m *Manifest, pass Secret) error {
	_, err := writeObject(ctx, s, HistoryManifestPath(stanza, m.Label), StreamSpec{Compress: GZ, Level: 9, Pass: pass}, m.encode)
	return err
}

// Reconcile brings the backups of b in line with the label directories (format page, section 6, "Reconstruction"): a line
// whose backup.manifest is gone goes, with its dependents; a backup that is not listed is added from its manifest when its
// cluster is in the history and its prior is listed. b is changed in memory only; the caller saves it when changed.
// Each warning is one sentence on one label.
//
// The manifests are opened with b.CipherPass; pass is used when b has none. On an error, also a cancelled context or a
// directory that cannot be listed, b is as before. A manifest that the storage does not give out is an *UnlistedError.
func Reconcile(ctx context.Context, s storage.Storage, stanza string, b *BackupInfo, pass Secret) (changed bool, warnings []string, err error) {
	dirs, err := ReadLabels(ctx, s, stanza)
	if err != nil {
		return false, nil, err
	}
	return ReconcileDirs(ctx, s, stanza, dirs, b, pass)
}

// ReconcileDirs is Reconcile with the directories that ReadLabels has just given.
func ReconcileDirs(ctx context.Context, s storage.Storage, stanza string, dirs []LabelDir, b *BackupInfo, pass Secret) (changed bool, warnings []string, err error) {
	if b.CipherPass != "" {
		pass = b.CipherPass
	}
	onDisk := map[Label]bool{}
	all := map[Label]bool{}
	for _, d := range dirs {
		if d.Manifest {
			onDisk[d.Label], all[d.Label] = true, true
		}
	}
	listed := map[Label]BackupLine{}
	for _, line := range b.Backups {
		listed[line.Label], all[line.Label] = line, true
		if onDisk[line.Label] {
			continue
		}
		// A line is dropped only when the store itself says so, not because a listing lacked it.
		if onDisk[line.Label], err = exists(ctx, s, ManifestPath(stanza, line.Label)); err != nil {
			return false, nil, fmt.Errorf("look for the manifest of backup %s: %w", line.Label, err)
		}
	}
	labels := make([]Label, 0, len(all))
	for l := range all {
		labels = append(labels, l)
	}
	slices.Sort(labels) // a prior sorts before what depends on it
	r := reconciler{b: b, kept: map[Label]bool{}}
	var lines []BackupLine
	for _, l := range labels {
		line, isListed := listed[l]
		switch {
		case isListed && !onDisk[l]:
			r.warn("backup %s is removed from backup.info: its manifest is missing", l)
		case isListed && line.Type != Full && !r.kept[line.Prior]:
			r.warn("backup %s is removed from backup.info: it depends on %s, which is missing", l, line.Prior)
		case isListed:
			r.kept[l] = true
			lines = append(lines, line)
			continue
		default:
			m, err := LoadManifest(ctx, s, stanza, l, pass)
			if ctx.Err() != nil {
				return false, nil, ctx.Err()
			}
			if storage.IsUnavailable(err) { // which backups there are can't be told
				return false, nil, &UnlistedError{l, ManifestPath(stanza, l), err}
			}
			if err == nil {
				err = r.fits(m)
			}
			if err != nil {
				r.warn("backup %s is not added to backup.info: %v", l, err)
				continue
			}
			r.kept[l] = true
			lines = append(lines, m.BackupLine())
			r.warn("backup %s is added to backup.info from its manifest", l)
		}
		changed = true
	}
	if changed {
		b.Backups = lines
	}
	return changed, r.warnings, nil
}

// UnlistedError says that backup.info does not list a backup that is there, and that the storage did not give out its manifest.
type UnlistedError struct {
	Label    Label
	Manifest string
	Err      error // storage.ErrUnavailable
}

func (e *UnlistedError) Error() string {
	return fmt.Sprintf("backup %s is in the repository and not in backup.info, and %s can't be read: %v; as long as it may need them, no backups and no WAL are removed: make the object readable, or give that backup up by removing the object with the storage's own tool, and run this again", e.Label, e.Manifest, e.Err)
}

func (e *UnlistedError) Unwrap() error { return e.Err }

type reconciler struct {
	b        *BackupInfo
	kept     map[Label]bool
	warnings []string
}

func (r *reconciler) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

var errForeign = errors.New("does not belong to this stanza")

// fits says why a backup found in the directory cannot be listed.
func (r *reconciler) fits(m *Manifest) error {
	db := findDB(r.b.History, m.DB.ID)
	if db.ID == 0 || db.SystemID != m.DB.SystemID || db.Version != m.DB.Version {
		return fmt.Errorf("%w: its cluster (id %d, version %s, system identifier %d) is not in the history",
			errForeign, m.DB.ID, m.DB.Version, m.DB.SystemID)
	}
	if m.Type != Full && !r.kept[m.Prior] {
		return fmt.Errorf("%w: its prior %s is not listed", fs.ErrNotExist, m.Prior)
	}
	return nil
}
