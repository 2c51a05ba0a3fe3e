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
	"golang.org/x/sys/unix"
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
	do(os.Link(filepath.Join(w.Files, "part1/deep/file 1.txt"), filepath.Join(w.Files, "part6/third name")))
	do(unix.Mkfifo(filepath.Join(w.Files, "pipe"), 0o620))
	for name, size := range map[string]int64{"holes": 16 << 20, "all hole": 1 << 20, "ends with data": 8<<20 + 8} {
		do(sparse(filepath.Join(w.Files, name), size))
	}
	if w.owner != nil { // the instance's user must be able to read its own files
		do(filepath.WalkDir(w.Files, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, int(w.owner.Uid), int(w.owner.Gid)))
		}))
	}
	if w.owner != nil && !w.o.Host { // only root could restore these
		do(os.Lchown(filepath.Join(w.Files, "part3/deep/file 3.txt"), 31001, 31002)) // a user that no host knows
		do(os.Chmod(filepath.Join(w.Files, "part3/deep/file 3.txt"), 0o644))         // the instance's user backs up as well
		do(os.Lchown(filepath.Join(w.Files, "link"), 31001, 31002))
	}
	if g := w.OtherGroup(); w.o.Host && g >= 0 {
		for _, name := range []string{"part2", "part4/deep/file 4.txt", "link"} {
			do(os.Lchown(filepath.Join(w.Files, name), -1, g))
		}
	}
	// After the owners: a change of owner clears these bits.
	do(os.Chmod(filepath.Join(w.Files, "part2"), 0o770|fs.ModeSetgid|fs.ModeSticky))
	do(os.Chmod(filepath.Join(w.Files, "part2/deep/file 2.txt"), 0o555|fs.ModeSetuid))
	for _, name := range []string{"part2", "part2/deep/file 2.txt", "holes", "hard link"} {
		do(attribute(filepath.Join(w.Files, name)))
	}
	for i, name := range []string{"part5/deep", "part5", "link", "empty"} { // long ago, to the nanosecond, before 1970 too
		at := unix.NsecToTimespec((int64(i)*1e18 - 1e18) + 123456789)
		do(unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(w.Files, name), []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}
	return errors.Join(errs...)
}

// sparse makes a file of one hole, but for eight bytes that stand at 8 MiB if it is that large.
func sparse(path string, size int64) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if size > 8<<20 {
		_, err = f.WriteAt([]byte("far away"), 8<<20)
	}
	return errors.Join(err, f.Truncate(size), f.Close())
}

// attribute gives an object an extended attribute that is no text and an empty one.
func attribute(path string) error {
	err := errors.Join(unix.Lsetxattr(path, "user.origin", []byte("catalog\x00\xff\n"), 0), unix.Lsetxattr(path, "user.empty", nil, 0))
	if errors.Is(err, unix.ENOTSUP) {
		return nil // this file system has none
	}
	return err
}

// Commit lets a consumer group have read partitions up to offsets: topic → partition → offset.
func (w *World) Commit(ctx context.Context, group string, at map[string]map[int32]int64) error {
	cl, err := w.Kafka()
	if err != nil {
		return err
	}
	defer cl.Close()
	offsets := kadm.Offsets{}
	for topic, parts := range at {
		for n, offset := range parts {
			offsets.Add(kadm.Offset{Topic: topic, Partition: n, At: offset, LeaderEpoch: -1, Metadata: "noted by " + group})
		}
	}
	return kadm.NewClient(cl).CommitAllOffsets(ctx, group, offsets)
}

// DeleteTopics deletes topics as a lost broker would; consumer groups' positions on them go with them.
func (w *World) DeleteTopics(ctx context.Context, names ...string) error {
	cl, err := w.Kafka()
	if err != nil {
		return err
	}
	defer cl.Close()
	deleted, err := kadm.NewClient(cl).DeleteTopics(ctx, names...)
	return errors.Join(err, deleted.Error())
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
