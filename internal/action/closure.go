package action

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Mode included with incremental backups: the staging repository has the backup on disk, with the chain that it is built on, and
// the tarball gets all of that chain, so that it restores by itself.

// chainOf lists a backup and every backup that it is built on, oldest first.
func chainOf(bi *repo.BackupInfo, label repo.Label) ([]repo.BackupLine, error) {
	want := map[repo.Label]bool{label: true}
	var chain []repo.BackupLine
	for i := len(bi.Backups) - 1; i >= 0; i-- { // a prior comes before what is built on it
		l := bi.Backups[i]
		if !want[l.Label] {
			continue
		}
		delete(want, l.Label)
		chain = append(chain, l)
		if l.Prior != "" {
			want[l.Prior] = true
		}
		for _, r := range l.References {
			want[r] = true
		}
	}
	for l := range want {
		return nil, fmt.Errorf("backup %s, which %s is built on, is not in the repository", l, label)
	}
	slices.Reverse(chain)
	return chain, nil
}

// errBaseDamaged says that an object of the staging repository is not what was written there.
var errBaseDamaged = errors.New("damaged in the staging repository")

// packChain puts a backup of the staging repository and all that it is built on into the tarball, as stored, each file's
// checksum compared on the way. backup.info in the tarball lists these backups and no other.
func (r *run) packChain(ctx context.Context, b *clusterBackup) error {
	bi, err := repo.LoadBackupInfo(ctx, r.base, b.Stanza, r.o.RepoPass)
	if err != nil {
		return fmt.Errorf("stanza %s: %w", b.Stanza, err)
	}
	if b.chain, err = chainOf(bi, b.res.Label); err != nil {
		return fmt.Errorf("stanza %s: %w", b.Stanza, err)
	}
	for _, l := range b.chain {
		r.step("backup_all", "pack", string(l.Label))
		if err := r.packBackup(ctx, b.Stanza, l.Label, bi.CipherPass); err != nil {
			err = fmt.Errorf("stanza %s: backup %s: %w", b.Stanza, l.Label, err)
			if errors.Is(err, errBaseDamaged) { // the next run builds on nothing that it touches
				r.set.Verdicts = append(r.set.Verdicts, catalog.Verdict{At: r.o.Now().UTC(), Check: baseCheck, Findings: []string{err.Error()}})
				err = fmt.Errorf("%w; the next run makes a full backup, or now: alation_action backup_all", err)
			}
			return err
		}
	}
	bi.Backups = b.chain
	return repo.SaveBackupInfo(ctx, r.repo, b.Stanza, bi, r.o.RepoPass) // kept until the WAL is there
}

// packBackup puts one backup's objects into the tarball.
func (r *run) packBackup(ctx context.Context, stanza string, label repo.Label, pass repo.Secret) error {
	m, err := repo.LoadManifest(ctx, r.base, stanza, label, pass)
	if err != nil {
		return err
	}
	sums, missing := map[string]string{}, map[string]bool{} // SHA-1 as stored; "": the manifest does not say
	for i := range m.Files {
		if f := &m.Files[i]; f.Reference == "" && f.Size > 0 {
			object, _, _, spec := m.Object(stanza, f)
			missing[object] = true
			switch {
			case f.BundleID > 0:
			case f.RepoSHA1 != "":
				sums[object] = f.RepoSHA1
			case spec.Compress == repo.None && spec.Pass == "" && f.BlockMapSize == 0:
				sums[object] = f.SHA1
			}
		}
	}
	var names []string
	for o, err := range r.base.List(ctx, repo.BackupDir(stanza)+"/"+string(label), storage.ListOptions{Recursive: true}) {
		if err != nil {
			return err
		}
		if !o.Dir {
			names = append(names, o.Name)
			delete(missing, o.Name)
		}
	}
	for name := range missing {
		return fmt.Errorf("%w: %s is missing", errBaseDamaged, name)
	}
	history := repo.HistoryManifestPath(stanza, label)
	if _, err := r.base.Stat(ctx, history); err == nil {
		names = append(names, history)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, name := range names {
		if err := r.packObject(ctx, name, sums[name]); err != nil {
			return err
		}
	}
	return nil
}

// packObject puts one object into the tarball; sum ("" is not known) is the SHA-1 that it must have.
func (r *run) packObject(ctx context.Context, name, sum string) error {
	if isMeta(name) {
		b, err := storage.ReadAll(ctx, r.base, name, maxOutline)
		if err != nil {
			return err
		}
		return r.appTar.AddBytes(repoPrefix+name, 0o640, b)
	}
	info, err := r.base.Stat(ctx, name)
	if err != nil {
		return err
	}
	in, err := r.base.Open(ctx, name, 0, -1)
	if err != nil {
		return err
	}
	h := sha1.New()
	err = r.appTar.AddStored(repoPrefix+name, 0o640, info.Size, info.ModTime, io.TeeReader(in, h))
	if err = errors.Join(err, in.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); sum != "" && got != sum {
		return fmt.Errorf("%w: %s has the SHA-1 %s, its manifest says %s", errBaseDamaged, name, got, sum)
	}
	return nil
}

// chainWAL names the WAL with which the backups that this one is built on become consistent, so that what the tarball's
// backup.info lists can be restored. One that is not there any more is no reason to fail: this set does not need it.
func (r *run) chainWAL(ctx context.Context, b *clusterBackup) ([]string, error) {
	var names []string
	for _, l := range b.chain[:max(0, len(b.chain)-1)] {
		if l.ArchiveStart == "" {
			continue // it was made offline
		}
		start, err1 := pg.ParseLSN(l.LSNStart)
		stop, err2 := pg.ParseLSN(l.LSNStop)
		tli, _, err3 := pg.ParseSegmentName(l.ArchiveStart, b.control.WALSegmentSize)
		if err := errors.Join(err1, err2, err3); err != nil {
			return nil, fmt.Errorf("stanza %s: backup %s: %w", b.Stanza, l.Label, err)
		}
		more, err := b.s.WALObjects(ctx, b.res.DB, pg.SegmentsBetween(tli, start, stop, b.control.WALSegmentSize))
		if errors.Is(err, engine.ErrWALMissing) {
			r.set.Warnings = append(r.set.Warnings, fmt.Sprintf("backup %s is in the tarball as the base of %s, and can't be restored for itself: %v", l.Label, b.res.Label, err))
			continue
		}
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	return names, nil
}

// trimChain removes from the staging repository what the next run does not build on: every backup that is not of this run's
// chain, and the WAL before this run's backup, but for what the backups of the chain need.
func (r *run) trimChain(ctx context.Context, b *clusterBackup) error {
	keep := map[repo.Label]bool{}
	for _, l := range b.chain {
		keep[l.Label] = true
	}
	if err := r.clearStaged(ctx, b.Stanza, r.base, keep); err != nil {
		return err
	}
	return b.s.TrimWALAround(ctx, b.res.DB, b.res.ArchiveStart)
}

// alsoSeparate says what keeps the staging repository from being trimmed: sets of mode apart whose PostgreSQL backups lie in the same
// directory, because repo_dir_name was set to it, or entries of the catalogue that can't be read. "" when there are none.
func (a *App) alsoSeparate(ctx context.Context, stanza string) (string, error) {
	sets, damaged, err := a.o.Catalog.List(ctx)
	if err != nil {
		return "", err
	}
	if len(damaged) > 0 { // nobody knows what they need
		return fmt.Sprintf("stanza %s: nothing is removed from %s as long as the catalogue can't be read whole, since the backups of a set that keeps them apart may lie there: %v", stanza, a.o.RepoDir, errors.Join(damaged...)), nil
	}
	var there []string
	for _, s := range sets {
		if slices.ContainsFunc(s.Pieces, func(p catalog.Piece) bool {
			return p.Kind == catalog.Postgres && p.Path == a.o.RepoDir && p.Stanza == stanza
		}) {
			there = append(there, s.ID)
		}
	}
	if len(there) == 0 {
		return "", nil
	}
	return fmt.Sprintf("stanza %s: nothing is removed from %s, which has the PostgreSQL backups of %d set(s) that keep them apart (%s): it is the staging repository, too; delete those sets when they are not needed, and keep pgsql.pgbackrest.repo_dir_name elsewhere",
		stanza, a.o.RepoDir, len(there), firstFew(there)), nil
}

// clearStaged removes every backup of a stanza from the staging repository, but for those to keep. An external tool would not
// do that with the last one.
func (a *App) clearStaged(ctx context.Context, stanza string, base storage.Storage, keep map[repo.Label]bool) error {
	why, err := a.alsoSeparate(ctx, stanza)
	if err != nil {
		return err
	}
	if why != "" {
		a.warn("%s", why)
		return nil
	}
	s, err := a.stanza(stanza, base)
	if err != nil {
		return err
	}
	labels, err := s.Labels(ctx)
	if err != nil {
		return err
	}
	for _, l := range slices.Backward(labels) { // newest first: none depends on one that is gone
		if keep[l] {
			continue
		}
		p, err := s.PlanRemove(ctx, l, true)
		if err != nil {
			return err
		}
		if err := p.Run(ctx); err != nil {
			return err
		}
	}
	return nil
}

// StagingPlan is what mode included keeps on disk for incremental backups, in bytes as stored. What is new is estimated from
// how well the last full backup was compressed.
type StagingPlan struct {
	Dir        string `json:"dir"`
	Chain      int64  `json:"chain_bytes"`   // of what this run builds on; the tarball gets it, too
	New        int64  `json:"new_bytes"`     // about what this run adds to Dir, and to the tarball
	Tarball    int64  `json:"tarball_bytes"` // about what the tarball needs for PostgreSQL
	Free       uint64 `json:"free_bytes"`    // on Dir's file system
	sameDevice bool   // Dir and the dump directory share a file system
}

// ratioUnknown is assumed of the compression when there is no backup to tell it from.
const ratioUnknown = 0.4

// planStaging works out what the chains need. The error in wrong is for the operator: it will not fit.
func (a *App) planStaging(ctx context.Context, plans []*engine.BackupPlan, st storage.Storage, freeDump uint64) (p *StagingPlan, wrong, err error) {
	p = &StagingPlan{Dir: a.o.RepoDir}
	for _, b := range plans {
		bi, err := repo.LoadBackupInfo(ctx, st, b.Stanza, a.o.RepoPass)
		if err != nil {
			return nil, nil, fmt.Errorf("stanza %s: %w", b.Stanza, err)
		}
		ratio := ratioUnknown
		for _, l := range bi.Backups {
			if l.Type == repo.Full && l.SizeDelta > 0 {
				ratio = float64(l.RepoSizeDelta) / float64(l.SizeDelta)
			}
		}
		p.New += int64(float64(b.Bytes) * ratio)
		if b.Prior == "" {
			continue
		}
		chain, err := chainOf(bi, b.Prior)
		if err != nil {
			return nil, nil, fmt.Errorf("stanza %s: %w", b.Stanza, err)
		}
		for _, l := range chain {
			p.Chain += l.RepoSizeDelta
		}
	}
	p.Tarball = p.Chain + p.New
	if p.Free, err = freeBytes(p.Dir); err != nil {
		return nil, nil, err
	}
	p.sameDevice = device(p.Dir) == device(a.o.DumpDir)
	needDump, needDir := p.Tarball, p.New
	if p.sameDevice {
		needDump += p.New
		needDir = needDump
	}
	if uint64(needDump) > freeDump || uint64(needDir) > p.Free {
		wrong = fmt.Errorf("not enough space: PostgreSQL in the tarball needs about %s in %s (%s free) and about %s more in %s (%s free): the staging repository keeps what the next run builds on, and the tarball has it again; "+
			"make room, or let each run be full: alation_conf alation.backup_v2.incremental.enabled -s False",
			engine.Size(p.Tarball), a.o.DumpDir, engine.Size(int64(min(freeDump, 1<<62))), engine.Size(p.New), p.Dir, engine.Size(int64(min(p.Free, 1<<62))))
	}
	return p, wrong, nil
}

// device is the file system of a directory, or of the nearest one above it that exists.
func device(dir string) uint64 {
	for {
		if info, err := os.Stat(dir); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				return uint64(st.Dev)
			}
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return 0
		}
		dir = parent
	}
}
