package engine

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// PushOptions says which file archive_command hands over and how to store it.
type PushOptions struct {
	Path        string // %p: relative to DataDir, or absolute
	DataDir     string // data directory; empty: the stanza's current entry is trusted without a look at pg_control
	Compress    repo.CompressType
	Level       int
	HeaderCheck bool // compare the segment's long header with the stanza
	Again       bool // the same segment may well come twice: no warning
}

// PushOutcome says what Push did.
type PushOutcome struct {
	Object  string // object name in the repository
	Existed bool   // the same content was there already: nothing written
}

// inMemory is the largest WAL file that Push holds in memory to hash and compress it at the same time; larger segments
// (up to 1 GiB by --wal-segsize) are read twice instead.
const inMemory = 64 << 20

// Push stores one WAL file (format page, section 11.2): a segment, a .partial, a .history or a .backup file. When it
// returns nil the file is durable in the repository and PostgreSQL may recycle it. A segment that is there with the same
// content is success; with other content it is ErrArchiveConflict and nothing is overwritten; so is the history of a timeline
// that began elsewhere than the one whose WAL is there. Cancelled: nothing, or the whole object, is there, and a second call
// succeeds.
func (s *Stanza) Push(ctx context.Context, o PushOptions) (PushOutcome, error) {
	if err := s.stopped(); err != nil {
		return PushOutcome{}, err
	}
	file := o.Path
	if !filepath.IsAbs(file) {
		file = filepath.Join(o.DataDir, file)
	}
	name := filepath.Base(file)
	isSegment := pg.IsSegmentName(strings.TrimSuffix(name, ".partial"))
	if !isSegment && !pg.IsHistoryName(name) && !pg.IsBackupHistoryName(name) {
		return PushOutcome{}, fmt.Errorf("push %s: %w", name, ErrWALName)
	}
	ai, err := s.loadArchiveInfo(ctx)
	if err != nil {
		return PushOutcome{}, err
	}
	db := ai.DB()
	if o.DataDir != "" {
		c, err := s.readControl(ctx, o.DataDir)
		if err != nil {
			return PushOutcome{}, fmt.Errorf("push %s: %w", name, err)
		}
		if c.SystemID != db.SystemID || c.Version.String() != db.Version {
			return PushOutcome{}, fmt.Errorf("push %s: %w: the data directory has version %s, system identifier %d; stanza %s has %s, %d; if the cluster was upgraded run: holdfast pg stanza-upgrade --stanza=%s",
				name, ErrArchiveMismatch, c.Version, c.SystemID, s.o.Stanza, db.Version, db.SystemID, s.o.Stanza)
		}
	}
	dir := repo.ArchiveDir(s.o.Stanza) + "/" + repo.ArchiveID(db.Version, db.ID)
	spec := repo.StreamSpec{Compress: o.Compress, Level: o.Level, Pass: ai.CipherPass}
	f, err := os.Open(file)
	if err != nil {
		return PushOutcome{}, fmt.Errorf("push %s: %w", name, err)
	}
	defer f.Close()
	if !isSegment {
		object := dir + "/" + name
		if pg.IsBackupHistoryName(name) {
			object = dir + "/" + name[:16] + "/" + name
		} else if err := s.sameBeginning(ctx, dir, name, f, ai.CipherPass); err != nil {
			return PushOutcome{}, fmt.Errorf("push %s: %w", name, err)
		}
		spec.Compress = repo.None
		return PushOutcome{Object: object}, wrap(s.store(ctx, object, spec, f, ""), "push %s", name)
	}
	if o.HeaderCheck {
		if err := s.checkHeader(f, db); err != nil {
			return PushOutcome{}, fmt.Errorf("push %s: %w", name, err)
		}
	}
	out, err := s.pushSegment(ctx, dir+"/"+name[:16], name, f, spec)
	if out.Existed && !o.Again {
		s.warn("WAL file %s is in the archive already with the same checksum; archive_command ran twice for it, which is harmless", name)
	}
	return out, wrap(err, "push %s", name)
}

// checkHeader compares the segment's long page header with the stanza's current entry and with the size of the file.
func (s *Stanza) checkHeader(f *os.File, db repo.DB) error {
	var b [8192]byte
	n, err := f.ReadAt(b[:], 0)
	if err != nil && err != io.EOF {
		return err
	}
	h, err := pg.ParseWALHeaderAs(b[:n], s.o.PGVersion)
	if err != nil {
		return err
	}
	if h.SystemID != db.SystemID || h.Version.String() != db.Version {
		return fmt.Errorf("%w: its header has version %s, system identifier %d; the stanza %s, %d", ErrArchiveMismatch, h.Version, h.SystemID, db.Version, db.SystemID)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != int64(h.SegmentSize) {
		return fmt.Errorf("%w: the file has %d bytes, its header says %d: it was cut short, and no recovery would get past it", ErrCorrupt, info.Size(), h.SegmentSize)
	}
	return nil
}

func (s *Stanza) pushSegment(ctx context.Context, dir, name string, f *os.File, spec repo.StreamSpec) (PushOutcome, error) {
	info, err := f.Stat()
	if err != nil {
		return PushOutcome{}, err
	}
	var sum string
	var stored *encoded // when small enough
	if info.Size() <= inMemory {
		if stored, err = encodeInMemory(ctx, f, info.Size(), spec); err == nil {
			defer stored.release()
			sum = stored.sum
		}
	} else {
		h := sha1.New()
		_, err = io.Copy(h, f)
		sum = hex.EncodeToString(h.Sum(nil))
	}
	if err != nil {
		return PushOutcome{}, err
	}
	found, err := s.segmentObjects(ctx, dir, name)
	if err != nil {
		return PushOutcome{}, err
	}
	if len(found) > 0 {
		o := found[0]
		if o.sha1 == sum {
			return PushOutcome{Object: o.name, Existed: true}, nil
		}
		return PushOutcome{}, fmt.Errorf("%w: %s has SHA-1 %s, the file to push %s; two clusters may be archiving to stanza %s: see archive_command on each", ErrArchiveConflict, o.name, o.sha1, sum, s.o.Stanza)
	}
	object := dir + "/" + name + "-" + sum + spec.Compress.Ext()
	s.step("archive-push", "store", object)
	if stored != nil {
		err = storage.WriteAll(ctx, s.o.Storage, object, stored.parts...)
	} else if _, err = f.Seek(0, io.SeekStart); err == nil {
		err = s.store(ctx, object, spec, f, sum)
	}
	if err != nil {
		return PushOutcome{}, err
	}
	s.step("archive-push", "stored", object)
	return PushOutcome{Object: object}, nil
}

// encodeInMemory reads the file once, hashing and compressing at the same time.
func encodeInMemory(ctx context.Context, f *os.File, size int64, spec repo.StreamSpec) (*encoded, error) {
	if spec.Compress.Frames() && size > 0 {
		return encodeFrames(ctx, f, size, spec)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, err
	}
	if spec.Compress == repo.None && spec.Pass == "" {
		h := sha1.Sum(data)
		return &encoded{sum: hex.EncodeToString(h[:]), parts: [][]byte{data}}, nil
	}
	var buf bytes.Buffer
	buf.Grow(int(size / 4))
	w, err := repo.NewStreamWriter(&buf, spec)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return &encoded{sum: w.Sums().SHA1, parts: [][]byte{buf.Bytes()}}, nil
}

// store writes one object through the stream chain; wantSHA1 (may be empty) guards against a file that changes between two reads.
func (s *Stanza) store(ctx context.Context, object string, spec repo.StreamSpec, r io.Reader, wantSHA1 string) error {
	w, err := s.o.Storage.Create(ctx, object, storage.CreateOptions{})
	if err != nil {
		return err
	}
	defer w.Abort()
	sw, err := repo.NewStreamWriter(w, spec)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sw, &ctxReader{ctx, r}); err != nil {
		return errors.Join(err, sw.Close())
	}
	if err := sw.Close(); err != nil {
		return err
	}
	if wantSHA1 != "" && sw.Sums().SHA1 != wantSHA1 {
		return fmt.Errorf("the file changed while it was read (SHA-1 %s, then %s)", wantSHA1, sw.Sums().SHA1)
	}
	return w.Commit(ctx)
}

type ctxReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *ctxReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// segmentObject is one stored copy of a segment.
type segmentObject struct {
	name     string // object name
	sha1     string
	compress repo.CompressType
}

// segmentObjects lists the stored copies of one segment (or .partial) in its 16-digit directory.
func (s *Stanza) segmentObjects(ctx context.Context, dir, name string) ([]segmentObject, error) {
	var found []segmentObject
	for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
		if seg, sum, c, ok := repo.ParseSegmentObject(path.Base(info.Name)); ok && seg == name {
			found = append(found, segmentObject{info.Name, sum, c})
		}
	}
	return found, nil
}

// sameContent says whether the stored copies of a segment are of one content: then any of them will do.
func sameContent(copies []segmentObject) bool {
	for _, o := range copies {
		if o.sha1 != copies[0].sha1 {
			return false
		}
	}
	return true
}

// GetOptions says which file restore_command wants and where.
type GetOptions struct {
	Name    string // %f
	Dest    string // %p: relative to DataDir, or absolute
	DataDir string // data directory, whose pg_control selects the archive; empty: the stanza's current entry
}

// Get writes one file of the archive to o.Dest, by temporary file and rename, with the SHA-1 of a segment verified (the
// original does not). ErrWALMissing when no archive of the cluster has it: recovery then ends or tries elsewhere.
func (s *Stanza) Get(ctx context.Context, o GetOptions) error {
	dest := o.Dest
	if !filepath.IsAbs(dest) {
		dest = filepath.Join(o.DataDir, dest)
	}
	if o.Name != filepath.Base(o.Name) || o.Name == "." || o.Name == ".." {
		return fmt.Errorf("get %q: not a file name", o.Name)
	}
	ai, err := s.loadArchiveInfo(ctx)
	if err != nil {
		return err
	}
	want := ai.DB()
	if o.DataDir != "" {
		c, err := s.readControl(ctx, o.DataDir)
		if err != nil {
			return fmt.Errorf("get %s: %w", o.Name, err)
		}
		want = repo.DB{SystemID: c.SystemID, Version: c.Version.String()}
	}
	any := false
	var errs []error
	for i := len(ai.History) - 1; i >= 0; i-- {
		db := ai.History[i]
		if db.SystemID != want.SystemID || db.Version != want.Version {
			continue
		}
		any = true
		dir := repo.ArchiveDir(s.o.Stanza) + "/" + repo.ArchiveID(db.Version, db.ID)
		err := s.getFrom(ctx, ai, dir, o.Name, dest)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errNoObject) {
			errs = append(errs, fmt.Errorf("get %s: %w", o.Name, err))
		}
	}
	if !any {
		return fmt.Errorf("get %s: %w: stanza %s has no archive of system identifier %d, version %s", o.Name, ErrArchiveMismatch, s.o.Stanza, want.SystemID, want.Version)
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return fmt.Errorf("get %s: %w of stanza %s", o.Name, ErrWALMissing, s.o.Stanza)
}

// errNoObject: the archive does not hold it. fs.ErrNotExist alone could also be about the destination, and recovery would
// take that for the end of the WAL.
var errNoObject = errors.New("no such object")

func (s *Stanza) getFrom(ctx context.Context, ai *repo.ArchiveInfo, dir, name, dest string) error {
	segment, _ := strings.CutSuffix(name, ".partial")
	if !pg.IsSegmentName(segment) {
		object := dir + "/" + name
		if pg.IsBackupHistoryName(name) {
			object = dir + "/" + name[:16] + "/" + name
		}
		return s.fetch(ctx, object, repo.StreamSpec{Compress: repo.None, Pass: ai.CipherPass}, "", dest)
	}
	found, err := s.segmentObjects(ctx, dir+"/"+name[:16], name)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return errNoObject
	}
	var errs []error
	for _, o := range found {
		if o.sha1 != found[0].sha1 {
			return fmt.Errorf("%w: %s and %s", ErrArchiveConflict, found[0].name, o.name)
		}
		err := s.fetch(ctx, o.name, repo.StreamSpec{Compress: o.compress, Pass: ai.CipherPass}, o.sha1, dest)
		if err == nil {
			return nil
		}
		if errors.Is(err, errNoObject) {
			err = fmt.Errorf("%s vanished while it was read", o.name) // expired meanwhile: not "never archived"
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// fetchTemp ends the name of a file that is being fetched.
const fetchTemp = ".holdfast-tmp"

// fetch decodes one object to dest; wantSHA1 empty = nothing to verify.
func (s *Stanza) fetch(ctx context.Context, object string, spec repo.StreamSpec, wantSHA1, dest string) (err error) {
	r, err := s.o.Storage.Open(ctx, object, 0, -1)
	if errors.Is(err, fs.ErrNotExist) {
		return errNoObject
	}
	if err != nil {
		return err
	}
	defer r.Close()
	tmp := dest + fetchTemp
	s.step("archive-get", "fetch", object)
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(tmp))
		}
	}()
	sum, _, err := decodeTo(ctx, f, &ctxReader{ctx, r}, spec)
	if err != nil {
		return fmt.Errorf("decode %s: %w", object, err)
	}
	if wantSHA1 != "" && sum != wantSHA1 {
		return fmt.Errorf("%s: %w: SHA-1 %s, its name says %s", object, ErrCorrupt, sum, wantSHA1)
	}
	if err := f.Close(); err != nil {
		return err
	}
	s.step("archive-get", "place", dest)
	// No fsync: PostgreSQL reads the file at once and asks for it again after a crash.
	return os.Rename(tmp, dest)
}
