package world

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
)

// MakeDir makes a directory below the root that belongs to the server's user.
func (w *World) MakeDir(rel string) (string, error) {
	dir := filepath.Join(w.Root, rel)
	return dir, w.mkdir(dir)
}

// MakeOwned makes a directory anywhere that belongs to the server's user.
func (w *World) MakeOwned(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := w.mkdir(dir); err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}

// SampleFiles makes files of every kind that an application may have.
func (w *World) SampleFiles() error {
	var errs []error
	do := func(err error) { errs = append(errs, err) }
	for i := range 200 {
		dir := filepath.Join(w.Files, fmt.Sprintf("part%d", i%7), "deep")
		do(os.MkdirAll(dir, 0o755))
		do(os.WriteFile(filepath.Join(dir, fmt.Sprintf("file %d.txt", i)), []byte(strings.Repeat(fmt.Sprintf("content %d\n", i), i*11)), 0o640))
	}
	do(os.WriteFile(filepath.Join(w.Files, "empty"), nil, 0o600))
	do(os.Symlink("part0/deep/file 0.txt", filepath.Join(w.Files, "link")))
	do(os.Link(filepath.Join(w.Files, "part1/deep/file 1.txt"), filepath.Join(w.Files, "hard link")))
	sparse, err := os.Create(filepath.Join(w.Files, "sparse"))
	if err != nil {
		return err
	}
	_, err = sparse.WriteAt([]byte("far away"), 8<<20)
	do(errors.Join(err, sparse.Truncate(16<<20), sparse.Close()))
	if w.owner != nil { // the instance's user must be able to read its own files
		do(filepath.WalkDir(w.Files, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(w.owner.Uid), int(w.owner.Gid)))
		}))
	}
	return errors.Join(errs...)
}

// CreateTopic makes a topic.
func (w *World) CreateTopic(ctx context.Context, name string, partitions int32) error {
	cl, err := w.Kafka()
	if err != nil {
		return err
	}
	defer cl.Close()
	_, err = kadm.NewClient(cl).CreateTopic(ctx, partitions, 1, nil, name)
	return err
}

// Int returns the one integer that sql selects.
func (w *World) Int(ctx context.Context, sql string) (int64, error) {
	c, err := w.DB(ctx)
	if err != nil {
		return 0, err
	}
	var n int64
	err = c.QueryRow(ctx, sql).Scan(&n)
	return n, errors.Join(err, c.Close(ctx))
}

// EndOffset is the offset after a partition's last record.
func (w *World) EndOffset(ctx context.Context, topic string, partition int32) (int64, error) {
	cl, err := w.Kafka()
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err != nil {
		return 0, err
	}
	o, ok := ends.Lookup(topic, partition)
	if !ok {
		return 0, fmt.Errorf("topic %s has no partition %d", topic, partition)
	}
	return o.Offset, o.Err
}

// Text returns the one value that sql selects, as text.
func (w *World) Text(ctx context.Context, sql string) (string, error) {
	c, err := w.DB(ctx)
	if err != nil {
		return "", err
	}
	var v string
	err = c.QueryRow(ctx, sql).Scan(&v)
	return v, errors.Join(err, c.Close(ctx))
}
