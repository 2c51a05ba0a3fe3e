package runlog

import (
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Rotated is a file that was rotated away from a log.
type Rotated struct {
	Path string
	Day  time.Time // every line in it is of that day, UTC, or earlier
	n    int       // of that day
	kind string    // "", ".gz", ".bz2"
	info os.FileInfo
}

// RotatedOf lists what was rotated away from the log at path, oldest first. A directory that is not there has none.
func RotatedOf(path string) ([]Rotated, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("logs: %w", err)
	}
	var all []Rotated
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), filepath.Base(path)+".")
		if r, good := parseRotated(rest); ok && good {
			r.Path = filepath.Join(filepath.Dir(path), e.Name())
			if info, err := e.Info(); err == nil { // else it has gone meanwhile
				r.info = info
			}
			all = append(all, r)
		}
	}
	slices.SortStableFunc(all, func(a, b Rotated) int {
		if c := a.Day.Compare(b.Day); c != 0 {
			return c
		}
		if a.n != b.n {
			return a.n - b.n
		}
		return strings.Compare(a.kind, b.kind)
	})
	// One that is being compressed stands there twice.
	return slices.CompactFunc(all, func(a, b Rotated) bool { return a.Day.Equal(b.Day) && a.n == b.n }), nil
}

// parseRotated reads what follows the log's name: "2026-11-27", "2026-11-27.2.gz".
func parseRotated(rest string) (r Rotated, ok bool) {
	for _, kind := range []string{".gz", ".bz2"} {
		if s, cut := strings.CutSuffix(rest, kind); cut {
			rest, r.kind = s, kind
			break
		}
	}
	day, number, more := strings.Cut(rest, ".")
	var err error
	if r.Day, err = time.Parse("2006-01-02", day); err != nil {
		return r, false
	}
	r.n = 1
	if more {
		if r.n, err = strconv.Atoi(number); err != nil || r.n < 2 {
			return r, false
		}
	}
	return r, true
}

// Open opens it for reading, decompressed. One that has been compressed since it was listed is found under its new name.
func (r Rotated) Open() (io.ReadCloser, error) {
	f, err := OpenRegular(r.Path)
	kind := r.kind
	if errors.Is(err, fs.ErrNotExist) && kind == "" {
		for _, kind = range []string{".gz", ".bz2"} {
			if f, err = OpenRegular(r.Path + kind); !errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
	}
	if err != nil {
		return nil, err
	}
	switch kind {
	case ".gz":
		z, err := gzip.NewReader(f)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", f.Name(), err), f.Close())
		}
		return &closing{z, f}, nil
	case ".bz2":
		return &closing{bzip2.NewReader(f), f}, nil
	}
	return f, nil
}

// closing reads from a layer over a file.
type closing struct {
	io.Reader
	f *os.File
}

// Close closes the file; the layer has nothing to close.
func (c *closing) Close() error { return c.f.Close() }

// OpenRegular opens a regular file for reading. The directory is the application's: a link or a FIFO in it would have us read,
// or wait for, something else.
func OpenRegular(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", path)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}
