package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"sync"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// copyMark stands as version in the manifest of a backup whose copy is not finished: neither program resumes a backup of
// another version, so that no backup on the target takes these files for its own.
const copyMark = "Holdfast copy"

// copyUnit is one object of a backup that has to be copied: a file's own, or a bundle.
type copyUnit struct {
	bundle int64 // its number; 0: a file's own object
	files  []int // in the manifest's files, in the order in which they lie in the object
	size   int64 // as stored in the source
}

// backupCopy is one backup on its way.
type backupCopy struct {
	p *CopyPlan
	b *CopyBackup
	m *repo.Manifest // in the source
	t *repo.Manifest // in the target; its files are those of m, in the same order, without what is not yet there
	k *recoder       // nil: files pass as they are

	units []copyUnit // to be copied
	done  int        // objects that are there already
	rate  *rate

	mu      sync.Mutex // guards the files of t, and what follows
	unsaved int64      // bytes copied since t was last saved
	every   int64      // bytes from one saving of t to the next
	sum     string     // SHA-1 of backup.manifest.copy as last saved
}

// files loads the manifests of the backups that are not in the target and counts what there is to copy.
func (p *CopyPlan) files(ctx context.Context) error {
	for i := range p.Backups {
		b := &p.Backups[i]
		if b.State != CopyNew {
			continue
		}
		c, err := p.prepare(ctx, b)
		if err == nil && c.m.ArchiveStart != "" { // else it was made offline
			if b.segments, err = neededSegments(c.m); err != nil {
				err = fmt.Errorf("%w: %w", repo.ErrFormat, err)
			}
		}
		if err = p.refused(ctx, b, err); err != nil {
			return err
		}
		if b.State == CopyRefused {
			continue
		}
		b.Objects, b.Done = len(c.units), c.done
		for _, u := range c.units {
			b.Bytes += u.size
		}
		if c.done > 0 {
			b.State = CopyUnfinished
		}
	}
	return nil
}

func lineOf(m *repo.Manifest) *repo.BackupLine {
	l := m.BackupLine()
	return &l
}

// refused sorts what went wrong with one backup: its own damage refuses it, everything else is an error.
func (p *CopyPlan) refused(ctx context.Context, b *CopyBackup, err error) error {
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ctx.Err()
	case isDamage(err) || errors.Is(err, ErrNotClosed) || errors.Is(err, ErrCopyConflict):
		b.refuse("%v", err)
	default:
		return fmt.Errorf("backup %s: %w", b.Label, err)
	}
	return nil
}

// isDamage says whether an error is about what a source holds, and not about what kept us from reading or writing it.
func isDamage(err error) bool {
	if storage.IsUnavailable(err) {
		return false
	}
	for _, known := range []error{ErrCorrupt, repo.ErrCorrupt, repo.ErrFormat, repo.ErrChecksum, repo.ErrTrailingData, errSourceGone} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// errSourceGone says that an object is not in the source. What the target lacks is another matter.
var errSourceGone = errors.New("missing in the source")

// sourceErr is an error of reading the source.
func sourceErr(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %v", errSourceGone, err)
	}
	return err
}

// prepare loads a backup's manifest, makes the one that the target will have, and finds out which objects are missing there.
// It changes nothing.
func (p *CopyPlan) prepare(ctx context.Context, b *CopyBackup) (*backupCopy, error) {
	m, err := repo.LoadManifest(ctx, p.from.o.Storage, p.Stanza, b.Label, p.src.bi.CipherPass)
	if err != nil {
		return nil, sourceErr(err)
	}
	if err := m.ValidateComplete(); err != nil {
		return nil, err
	}
	if m.Type != repo.Full && (m.Prior != b.line.Prior || p.find(m.Prior) == nil) {
		return nil, fmt.Errorf("%w: it is built on %s, which backup.info does not say", ErrNotClosed, m.Prior)
	}
	for _, l := range m.References {
		if p.find(l) == nil {
			return nil, fmt.Errorf("%w: files of it are in %s, which it is not built on", ErrNotClosed, l)
		}
	}
	old, err := p.unfinished(ctx, m)
	if err != nil {
		return nil, err
	}
	pass, err := p.filePass(ctx, m, old)
	if err != nil {
		return nil, err
	}
	c := &backupCopy{p: p, b: b, m: m, rate: newRate(p.o.Rate, p.to.o.Now)}
	t := *m
	t.DB, t.CipherPass, t.BackrestVersion = b.db, pass, copyMark
	t.Files = slices.Clone(m.Files)
	c.t = &t
	if pass != m.CipherPass {
		c.k = &recoder{c: c}
	}
	if old != nil && old.CipherPass != pass {
		old = nil
	}
	return c, c.layOut(ctx, old)
}

// unfinished is what an earlier copy has noted of this backup; nil: nothing that can be used.
func (p *CopyPlan) unfinished(ctx context.Context, m *repo.Manifest) (*repo.Manifest, error) {
	if p.Creates {
		return nil, nil
	}
	old, err := repo.LoadManifestCopy(ctx, p.to.o.Storage, p.ToStanza, m.Label, p.dst.bi.CipherPass)
	switch {
	case err == nil && (old.BackrestVersion == copyMark || old.BackrestVersion == m.BackrestVersion) && sameBackup(lineOf(m), stored(old, m)):
		return old, nil
	case err == nil || errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case ctx.Err() == nil && isDamage(err):
		p.warn("backup %s: what an earlier copy noted can't be read, it begins anew: %v", m.Label, err)
		return nil, nil
	}
	return nil, err
}

// stored is the line of old with what an unfinished manifest may lack taken from m.
func stored(old, m *repo.Manifest) *repo.BackupLine {
	l, want := lineOf(old), lineOf(m)
	l.Size, l.SizeDelta = want.Size, want.SizeDelta
	return l
}

// filePass is the passphrase of the files of a set in the target. All backups of a set have one, because they read each
// other's files. old is what an earlier copy of this backup left; it may be nil.
func (p *CopyPlan) filePass(ctx context.Context, m, old *repo.Manifest) (repo.Secret, error) {
	full := m.Label.FullLabel()
	if pass, known := p.passes[full]; known {
		return pass, nil
	}
	if p.to.o.Pass == "" {
		p.passes[full] = ""
		return "", nil
	}
	pass := m.CipherPass
	if b := p.find(full); m.Label != full && b != nil && b.State == CopyThere {
		fm, err := repo.LoadManifest(ctx, p.to.o.Storage, p.ToStanza, full, p.dst.bi.CipherPass)
		if err != nil {
			return "", fmt.Errorf("target: %w", err)
		}
		if pass = fm.CipherPass; pass == m.CipherPass && p.o.Reencrypt {
			return "", fmt.Errorf("%w: its full backup was copied with the source's passphrase; leave re-encryption out, or remove backup %s there and copy it again", ErrCopyConflict, full)
		}
	} else if pass == "" || p.o.Reencrypt {
		pass = p.to.subPass()
		if old != nil && old.CipherPass != m.CipherPass && old.CipherPass != "" {
			pass = old.CipherPass
		}
	}
	p.passes[full] = pass
	return pass, nil
}

// layOut lists the objects of the backup and which of them have to be copied. What of an earlier copy may be kept is what its
// last saved manifest has, which was saved after the object was durable, and still has its size.
func (c *backupCopy) layOut(ctx context.Context, old *repo.Manifest) error {
	there, err := c.listed(ctx, old)
	if err != nil {
		return err
	}
	bundles := map[int64][]int{}
	for i := range c.m.Files {
		f := &c.m.Files[i]
		switch {
		case f.Reference != "":
		case f.BundleID != 0:
			bundles[f.BundleID] = append(bundles[f.BundleID], i)
		case f.Size == 0 && c.m.Bundle: // nothing is stored of it
		default:
			c.unit(copyUnit{files: []int{i}, size: f.RepoSize}, old, there)
		}
	}
	sizes, err := c.bundleSizes(ctx, len(bundles) > 0)
	if err != nil {
		return err
	}
	slices.SortStableFunc(c.units, func(a, b copyUnit) int { return cmp.Compare(b.size, a.size) })
	ids := make([]int64, 0, len(bundles))
	for id := range bundles {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for _, id := range ids {
		files := bundles[id]
		slices.SortFunc(files, func(a, b int) int { // a file that was emptied while it was copied begins where the next one does
			x, y := &c.m.Files[a], &c.m.Files[b]
			return cmp.Or(cmp.Compare(x.BundleOffset, y.BundleOffset), cmp.Compare(x.RepoSize, y.RepoSize))
		})
		size, ok := sizes[id]
		if last := &c.m.Files[files[len(files)-1]]; !ok || size < last.BundleOffset+last.RepoSize {
			return fmt.Errorf("%w: bundle %d: %d bytes, the manifest says more", ErrCorrupt, id, size)
		}
		c.unit(copyUnit{bundle: id, files: files, size: size}, old, there)
	}
	return nil
}

// unit adds an object to those to be copied, unless it is there.
func (c *backupCopy) unit(u copyUnit, old *repo.Manifest, there map[string]int64) {
	if c.kept(&u, old, there) {
		c.done++
		return
	}
	for _, i := range u.files {
		f := &c.t.Files[i]
		f.SHA1, f.RepoSHA1, f.RepoSize = "", "", f.Size
		f.BundleID, f.BundleOffset, f.BlockSize, f.BlockSumSize, f.BlockMapSize = 0, 0, 0, 0, 0
	}
	c.units = append(c.units, u)
}

// kept takes over what an earlier copy noted of an object.
func (c *backupCopy) kept(u *copyUnit, old *repo.Manifest, there map[string]int64) bool {
	if old == nil {
		return false
	}
	size, ok := there[c.object(u)]
	if !ok {
		return false
	}
	end := int64(0)
	var entries []*repo.File
	for _, i := range u.files {
		f, e := &c.m.Files[i], old.File(c.m.Files[i].Name)
		if e == nil || e.SHA1 != f.SHA1 || e.Size != f.Size || e.Reference != "" || e.BundleID != f.BundleID || (e.BlockMapSize > 0) != (f.BlockMapSize > 0) {
			return false
		}
		if c.k == nil && (e.RepoSize != f.RepoSize || e.RepoSHA1 != f.RepoSHA1 || e.BundleOffset != f.BundleOffset) {
			return false
		}
		end = max(end, e.BundleOffset+e.RepoSize)
		entries = append(entries, e)
	}
	if u.bundle == 0 && size != end || u.bundle != 0 && (size < end || c.k == nil && size != u.size) {
		return false
	}
	for n, i := range u.files {
		storedAs(&c.t.Files[i], entries[n])
	}
	return true
}

// storedAs makes f say where and how e is stored.
func storedAs(f, e *repo.File) {
	f.SHA1, f.RepoSize, f.RepoSHA1 = e.SHA1, e.RepoSize, e.RepoSHA1
	f.BundleID, f.BundleOffset = e.BundleID, e.BundleOffset
	f.BlockSize, f.BlockSumSize, f.BlockMapSize = e.BlockSize, e.BlockSumSize, e.BlockMapSize
}

// object is the name of a unit's object in the target.
func (c *backupCopy) object(u *copyUnit) string { return c.name(c.p.ToStanza, u) }

func (c *backupCopy) name(stanza string, u *copyUnit) string {
	name, _, _, _ := c.m.Object(stanza, &c.m.Files[u.files[0]])
	return name
}

// listed gives the sizes of the objects that the target has of the backup; nothing when they would not be used.
func (c *backupCopy) listed(ctx context.Context, old *repo.Manifest) (map[string]int64, error) {
	if old == nil {
		return nil, nil
	}
	dir := repo.BackupDir(c.p.ToStanza) + "/" + string(c.m.Label)
	sizes := map[string]int64{}
	for info, err := range c.p.to.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
		sizes[info.Name] = info.Size
	}
	return sizes, nil
}

// bundleSizes gives the stored sizes of the source's bundles by number: the manifest knows what is in them, not how long they are.
func (c *backupCopy) bundleSizes(ctx context.Context, any bool) (map[int64]int64, error) {
	sizes := map[int64]int64{}
	if !any {
		return sizes, nil
	}
	dir := repo.BackupDir(c.p.Stanza) + "/" + string(c.m.Label) + "/bundle"
	for info, err := range c.p.from.o.Storage.List(ctx, dir, storage.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
		if id, err := strconv.ParseInt(path.Base(info.Name), 10, 64); err == nil {
			sizes[id] = info.Size
		}
	}
	return sizes, nil
}

// copyObjects copies what is missing of the backup. At its end t is complete.
func (c *backupCopy) copyObjects(ctx context.Context) error {
	if c.k != nil {
		if err := c.k.references(ctx); err != nil {
			return err
		}
	}
	var total int64
	for _, u := range c.units {
		total += u.size
	}
	// Often enough that little is done again, seldom enough that the manifest, some 200 bytes a file, is not most of what is written.
	c.every = cmp.Or(c.p.o.SaveThreshold, max(total/20, 256<<20, int64(len(c.t.Files))<<12))
	if err := c.save(ctx); err != nil {
		return err
	}
	c.p.from.step("copy", "objects", fmt.Sprintf("%d of backup %s", len(c.units), c.m.Label))
	c.p.from.o.Events(Amount{"copy", len(c.units), total})
	workers, t := copyCrew(c.p.from, c.p.to, c.p.o.ProcessMax)
	g := newCrew(t.with(ctx), workers)
	for i := range c.units {
		if g.ctx.Err() != nil {
			break
		}
		g.run(func() error {
			t.take()
			defer t.give()
			return c.copyUnit(g.ctx, &c.units[i])
		})
	}
	return g.wait(c.p.to.o.Storage)
}

// save notes what is copied so far, and by sum what that note was.
func (c *backupCopy) save(ctx context.Context) error {
	var err error
	c.sum, err = repo.SaveManifestCopy(ctx, c.p.to.o.Storage, c.p.ToStanza, c.t, c.p.dst.bi.CipherPass)
	return err
}

// copyUnit copies one object and notes it.
func (c *backupCopy) copyUnit(ctx context.Context, u *copyUnit) error {
	entries, err := c.transfer(ctx, u)
	if err != nil {
		return fmt.Errorf("%s: %w", c.name(c.p.Stanza, u), err)
	}
	c.p.from.o.Events(FileDone{"copy", c.object(u), u.size, u.size, ""})
	c.mu.Lock()
	defer c.mu.Unlock()
	for n, i := range u.files {
		storedAs(&c.t.Files[i], &entries[n])
	}
	if c.unsaved += u.size; c.unsaved < c.every {
		return nil
	}
	c.unsaved = 0
	if err := c.p.to.o.Storage.Sync(ctx); err != nil {
		return fmt.Errorf("sync the target: %w", err)
	}
	return c.save(ctx)
}

// errIncomplete says that an object of a backup is not in the target as it was written.
var errIncomplete = errors.New("an object is not in the target as it was written")

// complete makes sure that every object of the backup is in the target with the size that the manifest says.
func (c *backupCopy) complete(ctx context.Context) error {
	missing, err := c.p.to.missingOf(ctx, c.t)
	if err == nil && missing != "" {
		err = fmt.Errorf("%w: %s; see whether something else works on this stanza there, and copy again", errIncomplete, missing)
	}
	return err
}
