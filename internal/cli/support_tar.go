package cli

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// Bounds of a log in a bundle, in bytes.
const (
	supportLogMax  = 32 << 20 // of one file, decompressed: the newest part
	supportLineMax = 64 << 10 // a longer line is left out: where it is cut, half a secret could stay
)

// supportItem is one file of the bundle.
type supportItem struct {
	Name  string `json:"name"`
	About string `json:"holds"`

	document func(ctx context.Context) (any, error)           // a document, as JSON; errors beside a document are notes
	lines    func(ctx context.Context) (io.ReadCloser, error) // or text of any length, line by line
}

// supportDone is one file that is in it.
type supportDone struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

// supportTar writes the bundle. Everything goes through the scrubber here, and nowhere else.
type supportTar struct {
	s    *support
	dir  string // for temporary files
	top  string // first element of names
	gz   *gzip.Writer
	tar  *tar.Writer
	done []supportDone
}

func newSupportTar(w io.Writer, dir string, s *support) *supportTar {
	gz := gzip.NewWriter(w)
	return &supportTar{s: s, dir: dir, top: "holdfast-support-" + s.now.UTC().Format("20060102T150405Z") + "/", gz: gz, tar: tar.NewWriter(gz)}
}

// add collects one item and writes it. What can't be collected is a note; the error is the bundle's own.
func (b *supportTar) add(ctx context.Context, i supportItem) error {
	if i.lines != nil {
		return b.addLines(ctx, i)
	}
	v, err := i.document(ctx)
	if err != nil {
		b.s.note(i.Name, err)
	}
	if v == nil {
		return nil
	}
	text, err := b.s.scrub.JSON(v)
	if err != nil {
		b.s.note(i.Name, err)
		return nil
	}
	return b.file(i.Name, int64(len(text)), bytes.NewReader(text))
}

// addLines scrubs a text into a temporary file, since a tar wants to know a size before the content.
func (b *supportTar) addLines(ctx context.Context, i supportItem) error {
	in, err := i.lines(ctx)
	if err != nil {
		b.s.note(i.Name, err)
		return nil
	}
	defer in.Close() // opened for reading: nothing to lose
	temp, err := os.CreateTemp(b.dir, ".holdfast-support-")
	if err != nil {
		return err
	}
	defer temp.Close()                             // of a file that has no name any more
	if err := os.Remove(temp.Name()); err != nil { // it ends with this process, however that ends
		return err
	}
	w := bufio.NewWriter(temp)
	if err := b.scrubLines(ctx, i.Name, in, w); err != nil {
		return err
	}
	size, err := temp.Seek(0, io.SeekCurrent)
	if err == nil {
		_, err = temp.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	return b.file(i.Name, size, temp)
}

// scrubLines copies line by line, and flushes. An error of what is read is a note, and what came before it stays.
func (b *supportTar) scrubLines(ctx context.Context, name string, r io.Reader, w *bufio.Writer) error {
	in, scrubbed := bufio.NewReaderSize(r, supportLineMax), b.s.scrub.Lines()
	for {
		if err := ctx.Err(); err != nil {
			b.s.note(name, fmt.Errorf("the rest was left out: %w", err))
			return w.Flush()
		}
		line, err := in.ReadSlice('\n')
		if len(line) > 0 && !errors.Is(err, bufio.ErrBufferFull) {
			text := scrubbed.Line(string(bytes.TrimSuffix(line, []byte("\n"))))
			if _, err := w.WriteString(text + "\n"); err != nil {
				return err
			}
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			if err = passOver(in); err == nil {
				_, werr := fmt.Fprintf(w, "(a line of more than %d bytes was left out)\n", supportLineMax)
				if werr != nil {
					return werr
				}
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return w.Flush()
		case err != nil:
			b.s.note(name, fmt.Errorf("the rest was left out: %w", err))
			return w.Flush()
		}
	}
}

// passOver reads to the end of a line.
func passOver(in *bufio.Reader) error {
	for {
		_, err := in.ReadSlice('\n')
		if !errors.Is(err, bufio.ErrBufferFull) {
			return err
		}
	}
}

func (b *supportTar) file(name string, size int64, r io.Reader) error {
	h := &tar.Header{Name: b.top + name, Mode: 0o600, Size: size, ModTime: b.s.now.UTC().Truncate(time.Second), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
	if err := b.tar.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(b.tar, r); err != nil {
		return err
	}
	b.done = append(b.done, supportDone{name, size})
	return nil
}

// close writes what the bundle says about itself, and ends it.
func (b *supportTar) close() error {
	text := b.s.scrub.Text(b.s.readme(b.done))
	if err := b.file("README.txt", int64(len(text)), bytes.NewReader([]byte(text))); err != nil {
		return err
	}
	if err := b.tar.Close(); err != nil {
		return err
	}
	return b.gz.Close()
}

// newest is the last part of a text of any length, from the beginning of a line on. open opens it anew each time.
func newest(open func() (io.ReadCloser, error), limit int64) (io.ReadCloser, error) {
	first, err := open()
	if err != nil {
		return nil, err
	}
	size, err := io.Copy(io.Discard, first)
	if err = errors.Join(err, first.Close()); err != nil && size == 0 {
		return nil, err
	}
	in, err := open()
	if err != nil || size <= limit {
		return in, err
	}
	buffered := bufio.NewReaderSize(in, supportLineMax)
	if _, err = io.CopyN(io.Discard, buffered, size-limit); err == nil {
		err = passOver(buffered)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, in.Close())
	}
	return &readCloser{io.MultiReader(bytes.NewReader([]byte("(what came before was left out)\n")), buffered), in}, nil
}

// readCloser reads from one and closes the other.
type readCloser struct {
	io.Reader
	io.Closer
}
