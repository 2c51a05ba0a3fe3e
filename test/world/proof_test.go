package world

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
)

// TestProofSees damages one property of one file at a time: a proof that stays equal would prove nothing about it.
func TestProofSees(t *testing.T) {
	for _, c := range []struct {
		name, file string // the file that must be named
		damage     func(path string) error
	}{
		{"content", "part0/deep/file 14.txt", func(p string) error { return keepTime(p, func() error { return patch(p, 3, "X") }) }},
		{"mode", "part0/deep/file 14.txt", func(p string) error { return os.Chmod(p, 0o644) }},
		{"setuid", "part2/deep/file 2.txt", func(p string) error { return os.Chmod(p, 0o555) }},
		{"mode of a directory", "part2", func(p string) error { return os.Chmod(p, 0o770) }},
		{"time", "empty", func(p string) error { return os.Chtimes(p, time.Time{}, time.Unix(1, 1)) }},
		{"time of a directory", "part5/deep", func(p string) error { return os.Chtimes(p, time.Time{}, time.Unix(1, 1)) }},
		{"attribute", "holes", func(p string) error { return unix.Setxattr(p, "user.origin", []byte("other"), 0) }},
		{"empty attribute", "part2", func(p string) error { return unix.Removexattr(p, "user.empty") }},
		{"hard link", "hard link", func(p string) error { return keepTime(p, func() error { return copyOver(p) }) }},
		{"hole", "all hole", func(p string) error {
			return keepTime(p, func() error { return patch(p, 0, strings.Repeat("\x00", 4096)) })
		}},
		{"link", "link", func(p string) error { return os.Symlink("elsewhere", p) }},
		{"missing", "pipe", nil},
		{"extra", "new", func(p string) error { return os.Mkdir(p, 0o755) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := &World{Files: t.TempDir()}
			if err := w.SampleFiles(); err != nil {
				t.Fatal(err)
			}
			before, err := Listing(w.Files)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(w.Files, c.file)
			if c.damage == nil || c.file == "link" {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
			if c.damage != nil {
				if err := c.damage(path); err != nil {
					t.Fatal(err)
				}
			}
			after, err := Listing(w.Files)
			if err != nil {
				t.Fatal(err)
			}
			diff := strings.Join((&Proof{Files: before}).Diff(&Proof{Files: after}), "\n")
			if !strings.Contains(diff, "file "+c.file+": ") {
				t.Errorf("the proofs differ only in %q", diff)
			}
		})
	}
}

// keepTime lets change work on a file whose modification time stays.
func keepTime(path string, change func() error) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := change(); err != nil {
		return err
	}
	return os.Chtimes(path, time.Time{}, info.ModTime())
}

func patch(path string, at int64, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt([]byte(text), at)
	return err
}

// copyOver puts a copy with the same attributes in place of one name of a file with several.
func copyOver(path string) error {
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o640); err != nil {
		return err
	}
	return attribute(path)
}

// TestProofSeesEvents does the same to the event bus.
func TestProofSeesEvents(t *testing.T) {
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	defer kafka.Close()
	w := &World{o: Options{Brokers: kafka.ListenAddrs()}}
	record := func(header string) error {
		cl, err := w.Kafka() // a client of its own: an older one knows the topic that was deleted
		if err != nil {
			return err
		}
		defer cl.Close()
		return cl.ProduceSync(t.Context(), &kgo.Record{Topic: "orders", Key: []byte("k"), Timestamp: time.Unix(1, 0), Headers: []kgo.RecordHeader{{Key: header}}}).FirstErr()
	}
	prove := func() *Proof {
		p := &Proof{Events: map[string]string{}, Groups: map[string]string{}}
		if err := w.proveEvents(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	if err := errors.Join(w.CreateTopic(t.Context(), "orders", 1), record("a"), record("a")); err != nil {
		t.Fatal(err)
	}
	commit := func(offset int64) error {
		return w.Commit(t.Context(), "billing", map[string]map[int32]int64{"orders": {0: offset}})
	}
	before := prove()
	for _, c := range []struct {
		names  string
		change func() error
	}{
		{"group billing of orders/0", func() error { return commit(1) }},
		{"group billing of orders/0", func() error { return commit(2) }},
		{"partition orders/0", func() error { return record("a") }},
		{"partition orders/0", func() error {
			return errors.Join(w.DeleteTopics(t.Context(), "orders"), w.CreateTopic(t.Context(), "orders", 1), record("a"), record("b"), record("a"))
		}},
		{"partition orders/1", func() error {
			return errors.Join(w.DeleteTopics(t.Context(), "orders"), w.CreateTopic(t.Context(), "orders", 2), record("a"), record("b"), record("a"))
		}},
	} {
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		after := prove()
		if diff := strings.Join(before.Diff(after), "\n"); !strings.Contains(diff, c.names+": ") {
			t.Errorf("%s is not in the difference %q", c.names, diff)
		}
		before = after
	}
}
