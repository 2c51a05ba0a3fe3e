package action

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// dirSink keeps event-bus chunks as numbered files, so that dirSource gives them back in their order: the safety copy of
// topics that a restore replaces.
type dirSink struct {
	dir string
	n   int
}

func (s *dirSink) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.n++
	base := filepath.Join(s.dir, fmt.Sprintf("%08d", s.n))
	if err := os.WriteFile(base+".name", []byte(name), 0o600); err != nil {
		return err
	}
	return os.WriteFile(base+".data", data, 0o600)
}

type dirSource struct {
	dir string
	n   int
}

func newDirSource(dir string) (*dirSource, error) {
	if _, err := os.Stat(filepath.Join(dir, "00000001.name")); err != nil {
		return nil, fmt.Errorf("the safety copy of the event bus is gone: %w", err)
	}
	return &dirSource{dir: dir}, nil
}

func (s *dirSource) Next(ctx context.Context) (string, io.Reader, error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	s.n++
	base := filepath.Join(s.dir, fmt.Sprintf("%08d", s.n))
	name, err := os.ReadFile(base + ".name")
	if os.IsNotExist(err) {
		return "", nil, io.EOF
	}
	if err != nil {
		return "", nil, err
	}
	f, err := os.Open(base + ".data")
	if err != nil {
		return "", nil, err
	}
	return string(name), &selfClosing{f}, nil
}

// selfClosing closes its file at the end; a chunk is always read to its end.
type selfClosing struct{ f *os.File }

func (c *selfClosing) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	if err != nil {
		if cerr := c.f.Close(); cerr != nil && err == io.EOF {
			err = cerr
		}
	}
	return n, err
}
