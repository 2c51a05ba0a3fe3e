package action

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/probackup"
)

// ProbackupRemoval is what deleting a set removes from a backup catalog of pg_probackup.
type ProbackupRemoval struct {
	Stanza  string   `json:"stanza"`
	Catalog string   `json:"catalog"`
	Backups []string `json:"backups"` // the set's, and those that build on it
	WAL     bool     `json:"wal"`     // also the WAL that is then before the oldest backup that is left

	tool *probackup.Tool
	id   string
}

// versionIn is the version of PostgreSQL that a set has of a cluster; empty: it did not get so far.
func versionIn(set *catalog.Set, stanza string) string {
	for _, p := range pointsOf(set) {
		if p.Stanza == stanza {
			return p.Version
		}
	}
	return ""
}

// verifyProbackup has pg_probackup validate a set's backup in the catalog dir, with those that it builds on, and looks for the WAL
// up to the recovery point.
func (a *App) verifyProbackup(ctx context.Context, set *catalog.Set, dir, stanza, label string) ([]string, error) {
	if _, err := os.Stat(dir); err != nil {
		return []string{fmt.Sprintf("backup catalog: %v", err)}, nil
	}
	c := a.clusterOrName(stanza)
	t, _, err := a.checkProbackup(ctx, c, versionIn(set, stanza), dir, "verify")
	if err != nil { // which says nothing about the set
		return nil, err
	}
	if err := probackup.CheckID(label); err != nil {
		return []string{err.Error()}, nil
	}
	var found []string
	err = t.Validate(ctx, stanza, label, a.o.ProcessMax)
	var failed *probackup.Error
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.As(err, &failed) && failed.Code > 0:
		found = append(found, failed.Error())
	case err != nil:
		return nil, err
	}
	for _, point := range pointsOf(set) {
		if point.Stanza != stanza || point.Label != label {
			continue
		}
		missing, err := lackedWAL(point, func(name string) bool { _, err := t.WALFile(stanza, name); return err == nil })
		if err != nil {
			return append(found, err.Error()), nil
		}
		for _, m := range missing {
			found = append(found, fmt.Sprintf("instance %s: %s: WAL that is needed up to the recovery point is missing", stanza, filepath.Join(t.WALDir(stanza), m)))
		}
	}
	return found, nil
}

// lackedWAL lists the segments of a point, and the history of its timeline, that has does not have.
func lackedWAL(point catalog.PostgresPoint, has func(name string) bool) ([]string, error) {
	names, err := segmentRange(point)
	if err != nil {
		return nil, err
	}
	if point.Timeline > 1 {
		names = append(names, fmt.Sprintf("%08X.history", point.Timeline))
	}
	return slices.DeleteFunc(names, has), nil
}

// verifyIncludedProbackup unpacks the catalog inside a tarball into staging and has pg_probackup validate it there.
func (a *App) verifyIncludedProbackup(ctx context.Context, set *catalog.Set, file string) (found []string, err error) {
	if err := a.clearStaging(); err != nil {
		return nil, err
	}
	staging, done, err := a.newStaging("verify-" + strings.ReplaceAll(a.o.ExecID, "-", ""))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	dir := filepath.Join(staging, "pg_probackup")
	var owner *durable.Owner
	for _, p := range pointsOf(set) {
		owner = a.serverOwner(a.clusterOrName(p.Stanza))
	}
	out, err := newCatalogDir(dir, owner)
	if err != nil {
		return nil, err
	}
	rerr := a.readRepo(ctx, file, func(name string, r io.Reader) error {
		if rest, ok := strings.CutPrefix(name, probackupPrefix); ok {
			return out.store(rest, r)
		}
		return nil
	})
	if err := out.Close(); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if rerr != nil {
		var disk *fs.PathError
		if errors.As(rerr, &disk) { // staging is full, say: nothing about the set
			return nil, rerr
		}
		return []string{rerr.Error()}, nil
	}
	for _, point := range pointsOf(set) {
		more, err := a.verifyProbackup(ctx, set, dir, point.Stanza, point.Label)
		if err != nil {
			return nil, err
		}
		found = append(found, more...)
	}
	return found, nil
}

// planProbackupRemoval works out what deleting a backup takes along. nil: it is not there any more. ErrSetStays: somebody else's backup
// is built on it.
func (a *App) planProbackupRemoval(ctx context.Context, set *catalog.Set, piece catalog.Piece) (*ProbackupRemoval, error) {
	c := a.clusterOrName(piece.Stanza)
	t, _, err := a.checkProbackup(ctx, c, versionIn(set, piece.Stanza), piece.Path, "sets delete")
	if err != nil {
		return nil, err
	}
	known, err := t.HasInstance(piece.Stanza)
	if err != nil || !known {
		return nil, err
	}
	all, err := t.Show(ctx, piece.Stanza)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(all, func(b probackup.Backup) bool { return b.ID == piece.Label }) {
		return nil, nil
	}
	r := &ProbackupRemoval{Stanza: piece.Stanza, Catalog: piece.Path, Backups: probackup.Descendants(all, piece.Label), tool: t, id: piece.Label}
	for _, b := range all {
		if b.ID != piece.Label && b.Valid() && !strings.HasPrefix(b.Note, probackupNote) && slices.Contains(r.Backups, b.ID) {
			return nil, fmt.Errorf("%w: backup %s of instance %s in %s, which no run of Holdfast made, is built on %s; remove it first, with pg_probackup delete", ErrSetStays, b.ID, piece.Stanza, piece.Path, set.ID)
		}
	}
	r.WAL = len(r.Backups) < len(all) // with no backup left it would remove all WAL, that of a restore to come included
	return r, nil
}

// run removes. It can be repeated.
func (r *ProbackupRemoval) run(ctx context.Context) error {
	all, err := r.tool.Show(ctx, r.Stanza)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(all, func(b probackup.Backup) bool { return b.ID == r.id }) {
		return nil
	}
	for _, id := range probackup.Descendants(all, r.id) {
		if !slices.Contains(r.Backups, id) {
			return fmt.Errorf("instance %s: %s has been made on top of %s since the plan; plan again", r.Stanza, id, r.id)
		}
	}
	return r.tool.Delete(ctx, r.Stanza, r.id, r.WAL)
}

// needingProbackup names the sets, newest first, that would lose a backup that goes along with another set's: pg_probackup removes
// with a backup all that is built on it.
func needingProbackup(sets []*catalog.Set, id string, r *ProbackupRemoval) []string {
	var out []string
	for _, s := range sets {
		for _, piece := range s.Pieces {
			if s.ID != id && s.Removal == nil && piece.Tool == catalog.Probackup && piece.Stanza == r.Stanza && filepath.Clean(piece.Path) == filepath.Clean(r.Catalog) && slices.Contains(r.Backups, piece.Label) {
				out = append(out, s.ID)
			}
		}
	}
	slices.Reverse(out)
	return out
}

// catalogDir is a backup catalog that is being unpacked. Whatever names say, nothing is written outside it.
type catalogDir struct {
	root  *os.Root
	owner *durable.Owner
}

// newCatalogDir makes the directory. Close when everything is stored.
func newCatalogDir(dir string, owner *durable.Owner) (*catalogDir, error) {
	if err := durable.MkdirAllOwned(dir, 0o700, owner); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	d := &catalogDir{root: root, owner: owner}
	for _, name := range []string{"backups", "wal"} { // without them it is none
		if err := d.mkdir(name); err != nil {
			return nil, errors.Join(err, root.Close())
		}
	}
	return d, nil
}

func (d *catalogDir) Close() error { return d.root.Close() }

// mkdir makes a directory and those above it.
func (d *catalogDir) mkdir(name string) error {
	if name == "." {
		return nil
	}
	if info, err := d.root.Lstat(name); err == nil && info.IsDir() {
		return nil
	}
	if err := d.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	if err := d.root.Mkdir(name, 0o700); err != nil {
		return err
	}
	return d.own(name)
}

func (d *catalogDir) own(name string) error {
	if d.owner == nil {
		return nil
	}
	return d.root.Lchown(name, d.owner.UID, d.owner.GID)
}

// store writes one file, which must not be there.
func (d *catalogDir) store(name string, r io.Reader) error {
	name = filepath.FromSlash(name)
	if !filepath.IsLocal(name) {
		return fmt.Errorf("%q does not belong into a backup catalog", name)
	}
	if err := d.mkdir(filepath.Dir(name)); err != nil {
		return err
	}
	f, err := d.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close(), d.own(name))
}

// planProbackup adds what goes with one piece of the set to the plan. One that others are built on stays: ErrSetStays.
func (p *DeletePlan) planProbackup(ctx context.Context, piece catalog.Piece, sets []*catalog.Set) error {
	r, err := p.a.planProbackupRemoval(ctx, p.Set, piece)
	if err != nil {
		return err
	}
	if r == nil {
		p.Warnings = append(p.Warnings, fmt.Sprintf("the backup catalog %s has no backup %s any more", piece.Path, piece.Label))
		return nil
	}
	if on := needingProbackup(sets, p.Set.ID, r); len(on) > 0 {
		return fmt.Errorf("%w: what is built on %s could not be restored without it: %s; delete those first, in this order", ErrSetStays, p.Set.ID, firstFew(on))
	}
	p.Probackup = append(p.Probackup, r)
	return nil
}
