package engine

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// A sparse file reads as any other, and its holes are not read but for what lies in one buffer with data.
func TestSparseFilesAreReadWithoutTheirHoles(t *testing.T) {
	const mib = 1 << 20
	block := bytes.Repeat([]byte("data"), 16<<10) // 64 KiB
	for _, c := range []struct {
		name    string
		at      []int64 // where blocks of data are
		size    int64
		skipped int64 // at least
	}{
		{"no hole", []int64{0}, 64 << 10, 0},
		{"nothing but a hole", nil, 5*mib + 17, 5 * mib},
		{"hole first", []int64{3 * mib}, 3*mib + 64<<10, 3 * mib},
		{"hole last", []int64{0}, 4 * mib, 3 * mib},
		{"holes between", []int64{0, 2 * mib, 7*mib + 8192}, 9*mib + 1, 5 * mib},
		{"empty", nil, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "file")
			f, err := os.Create(name)
			noError(t, err)
			defer f.Close()
			noError(t, f.Truncate(c.size))
			for _, at := range c.at {
				_, err := f.WriteAt(block, at)
				noError(t, err)
			}
			want, err := os.ReadFile(name)
			noError(t, err)
			r := readerOf(f)
			var got bytes.Buffer
			_, err = io.CopyBuffer(&got, onlyReader{r}, make([]byte, mib))
			noError(t, err)
			if !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%d bytes came back, other than the %d of the file", got.Len(), len(want))
			}
			if s, ok := r.(*sparseReader); ok != (c.skipped > 0) || ok && s.skipped < c.skipped {
				t.Errorf("reader %+v, want at least %d bytes skipped", r, c.skipped)
			}
		})
	}
}

// A file that is cut short while it is read ends there.
func TestSparseFileCutShort(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	noError(t, err)
	defer f.Close()
	noError(t, f.Truncate(1<<20))
	r := readerOf(f)
	_, err = io.ReadFull(r, make([]byte, 64<<10))
	noError(t, err)
	noError(t, f.Truncate(32<<10))
	if n, err := r.Read(make([]byte, 10)); n != 0 || err != io.EOF {
		t.Errorf("read %d bytes, %v after the end", n, err)
	}
}
