package repo

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/storage"
)

// maxInfo bounds archive.info and backup.info in memory. A line of backup.info has about 1 KiB.
const maxInfo = 256 << 20

// LoadArchiveInfo reads archive.info, and archive.info.copy when that is missing or damaged. pass is the repository's; "" =
// not encrypted.
//
// Errors: fs.ErrNotExist only when neither is there, so that "missing" may safely be answered by creating; otherwise
// ErrFormat (also: wrong pass), ErrChecksum or the storage's, of the main file before the copy. A cancelled context and
// storage.ErrUnavailable do not fall back: the copy may be older.
func LoadArchiveInfo(ctx context.Context, s storage.Storage, stanza string, pass Secret) (*ArchiveInfo, error) {
	parse := func(r io.Reader) (*ArchiveInfo, error) {
		b, err := readLimited(r)
		if err != nil {
			return nil, err
		}
		return ParseArchiveInfo(b)
	}
	return load(ctx, s, ArchiveDir(stanza)+"/archive.info", pass, parse, parse)
}

// SaveArchiveInfo writes archive.info, then archive.info.copy, so that at every moment one of them is whole. On error the
// copy, or both, are as before.
func SaveArchiveInfo(ctx context.Context, s storage.Storage, stanza string, a *ArchiveInfo, pass Secret) error {
	b, err := a.Encode()
	if err != nil {
		return fmt.Errorf("encode archive.info: %w", err)
	}
	return saveInfo(ctx, s, ArchiveDir(stanza)+"/archive.info", b, pass)
}

// LoadBackupInfo reads backup.info, and backup.info.copy when that is missing or damaged; errors as LoadArchiveInfo.
func LoadBackupInfo(ctx context.Context, s storage.Storage, stanza string, pass Secret) (*BackupInfo, error) {
	parse := func(r io.Reader) (*BackupInfo, error) {
		b, err := readLimited(r)
		if err != nil {
			return nil, err
		}
		return ParseBackupInfo(b)
	}
	return load(ctx, s, BackupDir(stanza)+"/backup.info", pass, parse, parse)
}

// SaveBackupInfo writes backup.info, then backup.info.copy; see SaveArchiveInfo.
func SaveBackupInfo(ctx context.Context, s storage.Storage, stanza string, b *BackupInfo, pass Secret) error {
	data, err := b.Encode()
	if err != nil {
		return fmt.Errorf("encode backup.info: %w", err)
	}
	return saveInfo(ctx, s, BackupDir(stanza)+"/backup.info", data, pass)
}

func readLimited(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxInfo+1))
	if err == nil && len(b) > maxInfo {
		err = fmt.Errorf("%w: larger than %d bytes", ErrFormat, maxInfo)
	}
	return b, err
}

// load reads name through parse, on failure name + ".copy" through parseCopy.
func load[T any](ctx context.Context, s storage.Storage, name string, pass Secret, parse, parseCopy func(io.Reader) (T, error)) (T, error) {
	v, err := loadOne(ctx, s, name, pass, parse)
	if err == nil || ctx.Err() != nil || storage.IsUnavailable(err) {
		return v, err
	}
	v, copyErr := loadOne(ctx, s, name+copySuffix, pass, parseCopy)
	switch {
	case copyErr == nil:
		return v, nil
	case storage.IsUnavailable(copyErr):
		return v, fmt.Errorf("%w (%s: %v)", copyErr, name, err)
	case errors.Is(err, fs.ErrNotExist) && !errors.Is(copyErr, fs.ErrNotExist):
		// What is damaged must not look like what was never there.
		return v, fmt.Errorf("%w (%s is missing)", copyErr, name)
	}
	return v, fmt.Errorf("%w (nor %s%s: %v)", err, name, copySuffix, copyErr)
}

func loadOne[T any](ctx context.Context, s storage.Storage, name string, pass Secret, parse func(io.Reader) (T, error)) (T, error) {
	v, err := readObject(ctx, s, name, StreamSpec{Compress: None, Pass: pass}, parse)
	if err != nil {
		hint := ""
		if pass != "" && !errors.Is(err, fs.ErrNotExist) && !storage.IsUnavailable(err) {
			hint = " (is the cipher pass right?)"
		}
		return v, fmt.Errorf("load %s: %w%s", name, err, hint)
	}
	return v, nil
}

// CopyFault is one damaged, missing or different file of a pair.
type CopyFault struct {
	Object string
	Err    error
}

// CheckCopies reads an info file or manifest and its copy, each by itself, and says what is wrong with either: a reader is
// content with one, so that damage to the other goes unseen until it is the last. Only cancellation and
// storage.ErrUnavailable are errors.
func CheckCopies(ctx context.Context, s storage.Storage, name string, pass Secret) (faults []CopyFault, err error) {
	var sums [2][]byte
	var errs [2]error
	names := [2]string{name, name + copySuffix}
	read := func(i int) {
		sums[i], errs[i] = loadOne(ctx, s, names[i], pass, func(r io.Reader) ([]byte, error) {
			h := sha1.New()
			_, err := readINI(io.TeeReader(r, h), func(string, []byte, []byte) error { return nil })
			return h.Sum(nil), err
		})
	}
	var g errgroup.Group
	if !s.Abilities().Remote { // where each waits for the store they are read at the same time
		g.SetLimit(1)
	}
	for i := range names {
		g.Go(func() error { read(i); return nil })
	}
	_ = g.Wait() // the errors are in errs
	for i, n := range names {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if storage.IsUnavailable(errs[i]) {
			return nil, errs[i]
		}
		if errs[i] != nil {
			faults = append(faults, CopyFault{n, errs[i]})
		}
	}
	if len(faults) == 0 && !bytes.Equal(sums[0], sums[1]) {
		faults = append(faults, CopyFault{name + copySuffix, fmt.Errorf("%w: differs from %s", ErrFormat, name)})
	}
	return faults, nil
}

// CheckHistoryManifest reads the compressed copy of a manifest that outlives its backup and says what is wrong with it.
func CheckHistoryManifest(ctx context.Context, s storage.Storage, stanza string, l Label, pass Secret) error {
	name := HistoryManifestPath(stanza, l)
	m, err := readObject(ctx, s, name, StreamSpec{Compress: GZ, Pass: pass}, parseManifest)
	if err == nil && m.Label != l {
		err = fmt.Errorf("%w: it is of backup %s", ErrFormat, m.Label)
	}
	if err != nil {
		return fmt.Errorf("load %s: %w", name, err)
	}
	return nil
}

// readObject hands one object's original bytes to parse.
func readObject[T any](ctx context.Context, s storage.Storage, name string, spec StreamSpec, parse func(io.Reader) (T, error)) (v T, err error) {
	f, err := s.Open(ctx, name, 0, -1)
	if err != nil {
		return v, err
	}
	defer f.Close() // only read; what could fail has been seen by the reader
	var r io.Reader = f
	if spec.Pass == "" && spec.Compress == None {
		if r, err = refuseSealed(f); err != nil {
			return v, err
		}
	} else {
		sr, err := NewStreamReader(f, spec)
		if err != nil {
			return v, err
		}
		defer sr.Close()
		r = sr
	}
	return parse(r)
}

// ErrSealed comes together with ErrFormat: an info file or manifest is not damaged, it is read without its passphrase.
var ErrSealed = errors.New("the file is encrypted and no cipher pass is set")

// refuseSealed looks at the first bytes: an encrypted file read as plain deserves a better message than "format error".
func refuseSealed(f io.Reader) (io.Reader, error) {
	const magic = "Salted__"
	var first [len(magic)]byte
	n, err := io.ReadFull(f, first[:])
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
		return nil, err
	}
	if string(first[:n]) == magic {
		return nil, fmt.Errorf("%w: %w", ErrFormat, ErrSealed)
	}
	return io.MultiReader(bytes.NewReader(first[:n]), f), nil
}

// saveInfo writes the same bytes, encrypted once, to name and its copy.
func saveInfo(ctx context.Context, s storage.Storage, name string, b []byte, pass Secret) error {
	if pass != "" {
		var sealed bytes.Buffer
		w, err := NewStreamWriter(&sealed, StreamSpec{Compress: None, Pass: pass})
		if err != nil {
			return fmt.Errorf("encrypt %s: %w", name, err)
		}
		if _, err = w.Write(b); err == nil {
			err = w.Close()
		}
		if err != nil {
			return fmt.Errorf("encrypt %s: %w", name, err)
		}
		b = sealed.Bytes()
	}
	for _, n := range []string{name, name + copySuffix} {
		if err := storage.WriteAll(ctx, s, n, b); err != nil {
			return fmt.Errorf("save %s: %w", n, err)
		}
	}
	return nil
}

// writeObject stores what write produces as one object and returns the SHA-1 of its bytes as stored. Memory is bounded by
// the streams' buffers.
func writeObject(ctx context.Context, s storage.Storage, name string, spec StreamSpec, write func(io.Writer) error) (sum string, err error) {
	w, err := s.Create(ctx, name, storage.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("create %s: %w", name, err)
	}
	defer w.Abort() // does nothing after Commit; on the way out of an error there is nothing better to report
	sw, err := NewStreamWriter(w, spec)
	if err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	err = write(sw)
	if closeErr := sw.Close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return "", fmt.Errorf("write %s: %w", name, err)
	}
	if err := w.Commit(ctx); err != nil {
		return "", fmt.Errorf("commit %s: %w", name, err)
	}
	return sw.Sums().RepoSHA1, nil
}
