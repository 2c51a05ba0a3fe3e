package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// VerifyOptions chooses what to read.
type VerifyOptions struct {
	Set        repo.Label // empty: every backup
	ProcessMax int
}

// Finding is one thing wrong with one object.
type Finding struct {
	Label  repo.Label `json:"label,omitempty"`
	Object string     `json:"object"`
	What   string     `json:"what"`
}

func (f Finding) String() string { return f.Object + ": " + f.What }

// VerifyResult lists everything that was found; no findings means that every byte is as the manifests say.
type VerifyResult struct {
	Backups  []repo.Label `json:"backups"`
	Files    int          `json:"files"`
	Segments int          `json:"segments"`
	Bytes    int64        `json:"bytes"` // stored bytes read
	Findings []Finding    `json:"findings"`
}

// Verify reads every file of the chosen backups and the WAL that each needs, decodes it and compares sizes and checksums.
// It goes on after a finding, so that all are known at once. The error is for what kept it from looking.
func (s *Stanza) Verify(ctx context.Context, o VerifyOptions) (*VerifyResult, error) {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	v := &verifier{s: s, ai: ai, workers: max(o.ProcessMax, 1), seen: map[string]bool{}}
	for _, l := range bi.Backups {
		if o.Set == "" || l.Label == o.Set {
			v.res.Backups = append(v.res.Backups, l.Label)
		}
	}
	if o.Set != "" && len(v.res.Backups) == 0 {
		return nil, fmt.Errorf("stanza %s: %w: there is no backup %s", s.o.Stanza, ErrNoBackup, o.Set)
	}
	for _, label := range v.res.Backups {
		if err := v.backup(ctx, label, bi.CipherPass); err != nil {
			return nil, fmt.Errorf("verify backup %s of stanza %s: %w", label, s.o.Stanza, err)
		}
	}
	slices.SortFunc(v.res.Findings, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	return &v.res, nil
}

type verifier struct {
	s       *Stanza
	ai      *repo.ArchiveInfo
	workers int
	seen    map[string]bool // WAL already read for another backup

	mu  sync.Mutex
	res VerifyResult
}

func (v *verifier) find(l repo.Label, object, format string, a ...any) {
	v.mu.Lock()
	v.res.Findings = append(v.res.Findings, Finding{l, object, fmt.Sprintf(format, a...)})
	v.mu.Unlock()
}

func (v *verifier) backup(ctx context.Context, label repo.Label, pass repo.Secret) error {
	v.s.step("verify", "backup", string(label))
	m, err := repo.LoadManifest(ctx, v.s.o.Storage, v.s.o.Stanza, label, pass)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		v.find(label, repo.ManifestPath(v.s.o.Stanza, label), "%v", err)
		return nil
	}
	var total int64
	for i := range m.Files {
		total += m.Files[i].Size
	}
	v.s.o.Events(Amount{"verify", len(m.Files), total})
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(v.workers)
	for i := range m.Files {
		f := &m.Files[i]
		if f.Size == 0 {
			continue
		}
		g.Go(func() error { return v.file(gctx, m, f) })
	}
	for _, seg := range v.segments(m) {
		g.Go(func() error { return v.segment(gctx, m, seg) })
	}
	return g.Wait()
}

func (v *verifier) file(ctx context.Context, m *repo.Manifest, f *repo.File) error {
	if f.BlockMapSize > 0 {
		v.find(m.Label, f.Name, "block incremental: not checked by this version")
		return nil
	}
	object, offset, length, spec := m.Object(v.s.o.Stanza, f)
	return v.compare(ctx, m.Label, object, offset, length, spec, f.SHA1, f.Size)
}

// compare decodes one object and records what differs; only cancellation is an error.
func (v *verifier) compare(ctx context.Context, label repo.Label, object string, offset, length int64, spec repo.StreamSpec, sha1 string, size int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	r, err := v.s.o.Storage.Open(ctx, object, offset, length)
	if errors.Is(err, fs.ErrNotExist) {
		v.find(label, object, "missing")
		return nil
	}
	var sums repo.Sums
	if err == nil {
		sums, err = repo.Decode(io.Discard, &ctxReader{ctx, r}, spec)
		err = errors.Join(err, r.Close())
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v.mu.Lock()
	v.res.Bytes += sums.RepoSize
	if label != "" {
		v.res.Files++
	}
	v.mu.Unlock()
	v.s.o.Events(Moved{sums.Size})
	switch {
	case err != nil:
		v.find(label, object, "%v", err)
	case sums.SHA1 != sha1:
		v.find(label, object, "SHA-1 is %s, should be %s", sums.SHA1, sha1)
	case size >= 0 && sums.Size != size:
		v.find(label, object, "size is %d, should be %d", sums.Size, size)
	}
	return nil
}

// segments are the names of the WAL that the backup needs and that was not read yet.
func (v *verifier) segments(m *repo.Manifest) []string {
	if m.ArchiveStart == "" || !m.Options.ArchiveCheck {
		return nil
	}
	start, err1 := pg.ParseLSN(m.LSNStart)
	stop, err2 := pg.ParseLSN(m.LSNStop)
	if err1 != nil || err2 != nil {
		return nil
	}
	segSize := v.segmentSize(m)
	if segSize == 0 {
		return nil
	}
	var tli uint32
	if _, err := fmt.Sscanf(m.ArchiveStart[:8], "%08X", &tli); err != nil {
		return nil
	}
	var fresh []string
	for _, seg := range pg.SegmentsBetween(tli, start, stop, segSize) {
		key := repo.ArchiveID(m.DB.Version, m.DB.ID) + "/" + seg
		if !v.seen[key] {
			v.seen[key] = true
			fresh = append(fresh, seg)
		}
	}
	return fresh
}

// segmentSize finds the WAL segment size that makes the manifest's LSN and segment name agree; the repository does not
// record it (format page, section 11.1).
func (v *verifier) segmentSize(m *repo.Manifest) uint32 {
	stop, err := pg.ParseLSN(m.LSNStop)
	start, err2 := pg.ParseLSN(m.LSNStart)
	if err != nil || err2 != nil || len(m.ArchiveStart) != 24 {
		return 0
	}
	var tli uint32
	if _, err := fmt.Sscanf(m.ArchiveStart[:8], "%08X", &tli); err != nil {
		return 0
	}
	for _, mb := range []uint32{16, 1, 2, 4, 8, 32, 64, 128, 256, 512, 1024} {
		if size := mb << 20; pg.SegmentName(tli, start, size) == m.ArchiveStart && pg.SegmentName(tli, stop, size) == m.ArchiveStop {
			return size
		}
	}
	return 0
}

func (v *verifier) segment(ctx context.Context, m *repo.Manifest, seg string) error {
	id := repo.ArchiveID(m.DB.Version, m.DB.ID)
	dir := repo.SegmentDir(v.s.o.Stanza, id, seg)
	found, err := v.s.segmentObjects(ctx, dir, seg)
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.res.Segments++
	v.mu.Unlock()
	switch len(found) {
	case 0:
		v.find(m.Label, dir+"/"+seg, "WAL segment missing: backup %s can't be made consistent", m.Label)
		return nil
	case 1:
		o := found[0]
		return v.compare(ctx, "", o.name, 0, -1, repo.StreamSpec{Compress: o.compress, Pass: v.ai.CipherPass}, o.sha1, int64(v.segmentSize(m)))
	}
	v.find(m.Label, dir+"/"+seg, "%d different copies in the archive", len(found))
	return nil
}
