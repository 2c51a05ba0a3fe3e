package engine

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/repo"
)

// todo is one file to copy.
type todo struct {
	index   int        // in the manifest's files
	prior   *repo.File // the same file in the prior backup; nil: there is none
	compare bool       // it may be as in prior: the contents decide
	resumed *repo.File // what an interrupted run stored of it; nil: nothing
}

// choosePrior is the backup that one of type want builds on (format page, section 13, step 3), nil if there is none.
func choosePrior(bi *repo.BackupInfo, want repo.BackupType) *repo.BackupLine {
	for i := len(bi.Backups) - 1; i >= 0; i-- {
		l := &bi.Backups[i]
		if l.DBID == bi.Current && (want == repo.Incr || l.Type == repo.Full) {
			return l
		}
	}
	return nil
}

// settle loads the backup that this one builds on, if any, and takes over what has to stay the same within a set.
func (p *BackupPlan) settle(ctx context.Context, bi *repo.BackupInfo, warn func(string, ...any)) error {
	p.Type, p.Prior, p.prior = p.o.Type, "", nil
	p.Compress, p.level = p.o.Compress, p.o.Level
	if p.Type == repo.Full {
		return nil
	}
	line := choosePrior(bi, p.Type)
	if line == nil {
		p.Type = repo.Full
		warn("stanza %s has no backup of this cluster to build on: the %s backup becomes a full one", p.Stanza, p.o.Type)
		return nil
	}
	prior, err := repo.LoadManifest(ctx, p.s.o.Storage, p.Stanza, line.Label, bi.CipherPass)
	if cut := blind(ctx, err); cut != nil {
		return fmt.Errorf("read backup %s, which this one builds on: %w; run the backup again when the repository can be read", line.Label, cut)
	}
	if err != nil {
		return fmt.Errorf("load the manifest of backup %s, which this %s backup builds on: %w; make a full backup, and run: holdfast pg verify --stanza=%s --set=%s",
			line.Label, p.Type, err, p.Stanza, line.Label)
	}
	p.Prior, p.PriorVersion, p.prior = line.Label, line.BackrestVersion, prior
	if was := prior.Options.CompressType; was != p.Compress {
		warn("compression stays %s as in backup %s: a backup set has one compression type; %s takes effect with the next full backup", was, prior.Label, p.Compress)
		p.Compress, p.level = was, prior.Options.CompressLevel
	}
	if prior.Options.ChecksumPage != p.ChecksumPage {
		if p.o.ChecksumPage != nil || prior.Options.ChecksumPage {
			warn("page checksums are treated as in backup %s (verified: %t) until the next full backup", prior.Label, prior.Options.ChecksumPage)
		}
		p.ChecksumPage = prior.Options.ChecksumPage && p.control.DataChecksumVersion != 0
	}
	return nil
}

// smallFile is the size in bytes up to which a file that was touched is compared with the prior backup before it is
// stored again: reading it costs nothing extra.
const smallFile = copyBuffer

// merge compares the scanned manifest m with the prior backup: files that did not change become references, the others
// are returned as work. delta says that time stamps are not to be trusted; merge turns it on by itself where they can't be
// (format page, section 13.3).
func (p *BackupPlan) merge(m *repo.Manifest, timeline string, now int64, delta bool, warn func(string, ...any)) (work []todo, usedDelta bool) {
	if p.prior == nil {
		work = make([]todo, len(m.Files))
		for i := range work {
			work[i].index = i
		}
		return work, delta
	}
	if !delta {
		if why := distrust(m, p.prior, timeline, now); why != "" {
			warn("time stamps can't be trusted (%s): unchanged files are told by their checksums (delta)", why)
			delta = true
		}
	}
	eachPair(m.Files, p.prior.Files, func(i int, f, was *repo.File) {
		t := todo{index: i, prior: was}
		switch {
		case was == nil || f.Name == controlName && m.Options.Online:
			t.prior = nil
		case f.Size == 0:
			if m.Bundle || p.prior.Bundle || was.Size != 0 {
				t.prior = nil // a bundled backup stores nothing of it, there is nothing to refer to
			} else {
				inherit(f, was, p.prior.Label)
				return
			}
		case f.Size == was.Size && f.Timestamp == was.Timestamp && !delta && !mayLag(p.prior, f):
			inherit(f, was, p.prior.Label)
			return
		case f.Size == was.Size && was.SHA1 != "":
			t.compare = delta || f.Size <= smallFile || f.Timestamp == was.Timestamp
		}
		work = append(work, t)
	})
	return work, delta
}

// mayLag: an earlier backup has the time stamp of the primary but the contents of the standby, where a page that the primary
// wrote after that backup's start may have been in memory only. Its WAL has the change; the WAL of this backup has not.
func mayLag(earlier *repo.Manifest, f *repo.File) bool {
	return earlier.Options.BackupStandby && f.Timestamp >= earlier.TimeStart-1 && fromStandby().MatchString(f.Name)
}

// eachPair walks two sorted lists of files together; was is nil for a file that only the first has.
func eachPair(files, prior []repo.File, visit func(i int, f, was *repo.File)) {
	j := 0
	for i := range files {
		for j < len(prior) && prior[j].Name < files[i].Name {
			j++
		}
		var was *repo.File
		if j < len(prior) && prior[j].Name == files[i].Name {
			was = &prior[j]
		}
		visit(i, &files[i], was)
	}
}

// distrust says why time stamps do not tell which files changed; "" when they do.
func distrust(m, prior *repo.Manifest, timeline string, now int64) (why string) {
	switch {
	case prior.Options.Online != m.Options.Online:
		return "one of the two backups was made offline"
	case timeline != "" && prior.ArchiveStop != "" && !strings.HasPrefix(prior.ArchiveStop, timeline):
		return "the timeline changed since backup " + string(prior.Label)
	}
	eachPair(m.Files, prior.Files, func(_ int, f, was *repo.File) {
		switch {
		case why != "":
		case f.Timestamp > now:
			why = f.Name + " was last changed in the future"
		case was == nil || f.Name == controlName:
		case f.Timestamp < was.Timestamp:
			why = f.Name + " is older than in backup " + string(prior.Label)
		case f.Timestamp == was.Timestamp && f.Size != was.Size && f.Size != was.SizeOrig:
			why = f.Name + " has another size at the same time stamp"
		}
	})
	return why
}

// inherit takes over what the prior backup knows of an unchanged file. Owner, mode and time stamp stay those seen now.
func inherit(f, was *repo.File, label repo.Label) {
	now := *f
	*f = *was
	f.Name, f.Owner, f.Timestamp = now.Name, now.Owner, now.Timestamp
	if f.Reference == "" {
		f.Reference = label
	}
}

// blockSize is the size of the blocks in which a file is stored, 0 for a file stored whole. The set keeps what its first
// backup chose. Unless somebody chose otherwise, new files get blocks of one page whatever their size: the map costs six
// bytes a block (0.07 %), while larger blocks multiply what a scattered change stores.
func (r *backupRun) blockSize(f *repo.File, was *repo.File) (size int64, sum int) {
	if !r.o.Block || f.Size == 0 {
		return 0, 0
	}
	if was != nil && was.BlockMapSize > 0 && f.Size >= was.BlockSize {
		return was.BlockSize, was.BlockSumSize
	}
	return r.o.BlockSizes.of(f.Size, time.Duration(r.m.TimeStart-f.Timestamp)*time.Second)
}

// hasMap says whether a file is stored in blocks that can be compared with blocks of that size and checksum size.
func hasMap(was *repo.File, size int64, sum int) bool {
	return was != nil && was.BlockMapSize > 0 && was.BlockSize == size && was.BlockSumSize == sum
}

// priorMap loads the block map of a file in the prior backup; nil when it has none, or the blocks or their
// checksums are of another size.
func (r *backupRun) priorMap(ctx context.Context, was *repo.File, size int64, sum int) (*repo.BlockMap, error) {
	if !hasMap(was, size, sum) {
		return nil, nil
	}
	object, offset, length, spec := r.prior.Object(r.s.o.Stanza, was)
	if was.Reference == "" { // in the prior backup itself, not in this one
		local := *was
		local.Reference = r.prior.Label
		object, offset, length, spec = r.prior.Object(r.s.o.Stanza, &local)
	}
	in, err := r.s.o.Storage.Open(ctx, object, offset+length-was.BlockMapSize, was.BlockMapSize)
	if err != nil {
		return nil, fmt.Errorf("block map in backup %s: %w", r.prior.Label, err)
	}
	defer in.Close() // opened for reading: nothing to lose
	m, err := repo.ReadBlockMap(in, was.BlockSize, was.BlockSumSize, spec.Pass)
	if cut := blind(ctx, err); cut != nil {
		return nil, fmt.Errorf("block map in backup %s, object %s: %w; run the backup again when the repository can be read", r.prior.Label, object, cut)
	}
	if err != nil {
		return nil, fmt.Errorf("block map in backup %s, object %s: %w; make a full backup, and run: holdfast pg verify --stanza=%s", r.prior.Label, object, err, r.Stanza)
	}
	if slices.ContainsFunc(m.Blocks, func(b repo.BlockRef) bool { return b.Reference >= len(r.prior.References) }) {
		return nil, fmt.Errorf("block map in object %s names a backup that %s does not know; make a full backup", object, r.prior.Label)
	}
	return m, nil
}
