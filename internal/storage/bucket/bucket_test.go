package bucket_test

import (
	"bytes"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/storage"
	"holdfast/internal/storage/bucket"
	"holdfast/internal/storage/storagetest"
)

// memory is a protocol on top of storage.Mem.
type memory struct {
	*storage.Mem
	prefix   string
	corrupt  bool
	unsorted bool
}

func (m memory) Stat(ctx context.Context, name string) (bucket.Object, error) {
	in, err := m.Mem.Stat(ctx, name)
	return bucket.Object{Size: in.Size, Time: in.ModTime}, err
}

func (m memory) Get(ctx context.Context, name string, offset, length int64) (bucket.Answer, error) {
	b, err := storage.ReadAll(ctx, m.Mem, name, 1<<30)
	if err != nil {
		return bucket.Answer{}, err
	}
	size := int64(len(b))
	if offset >= size && size > 0 || size == 0 && offset > 0 {
		return bucket.Answer{}, bucket.ErrRange
	}
	end := size
	if length > 0 {
		end = min(size, offset+length)
	}
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	if m.corrupt {
		sum++
	}
	return bucket.Answer{Body: io.NopCloser(bytes.NewReader(b[offset:end])), Total: size, CRC: []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}}, nil
}

func (m memory) List(ctx context.Context, prefix string, level bool) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		var all []storage.Info
		for in, err := range m.Mem.List(ctx, "", storage.ListOptions{Recursive: true}) {
			if err != nil {
				yield(in, err)
				return
			}
			in.Name = m.prefix + in.Name
			rest, ok := strings.CutPrefix(in.Name, prefix)
			if !ok {
				continue
			}
			if dir, _, below := strings.Cut(rest, "/"); level && below {
				in = storage.Info{Name: prefix + dir + "/", Dir: true}
			}
			all = append(all, in)
		}
		slices.SortStableFunc(all, func(a, b storage.Info) int { return strings.Compare(a.Name, b.Name) })
		if m.unsorted {
			slices.Reverse(all)
		}
		for _, in := range all {
			if !yield(in, nil) {
				return
			}
		}
	}
}

func (m memory) Remove(ctx context.Context, names []string) error { return m.Mem.Remove(ctx, names...) }
func (m memory) Batch() int                                       { return 2 }

func (m memory) Put(ctx context.Context, name string, body *storage.Body) error {
	b, err := io.ReadAll(body.Reader())
	if err != nil {
		return err
	}
	return storage.WriteAll(ctx, m.Mem, name, b)
}

func (m memory) Begin(context.Context, string) (storage.PartUpload, error) {
	return nil, errors.New("objects here fit into one part")
}

func open(m memory) *bucket.Bucket {
	return bucket.New(bucket.Options{Address: "mem://b", Prefix: "/" + m.prefix, Connections: 4, PartSize: 64 << 20}, m)
}

func TestConformance(t *testing.T) {
	storagetest.Run(t, func(*testing.T) storage.Storage {
		return open(memory{Mem: storage.NewMem(time.Now), prefix: "a/b/"})
	})
}

// TestErrors: they name the address; what the store's checksum belies is no content; a list out of order is refused.
func TestErrors(t *testing.T) {
	m := memory{Mem: storage.NewMem(nil), prefix: "p/", corrupt: true, unsorted: true}
	b := open(m)
	if _, err := b.Stat(t.Context(), "x"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "mem://b/p/x") {
		t.Error(err)
	}
	for _, name := range []string{"x", "y"} {
		if err := storage.WriteAll(t.Context(), b, name, []byte("content")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := storage.ReadAll(t.Context(), b, "x", 100); !errors.Is(err, storage.ErrCorrupt) {
		t.Error(err)
	}
	var last error
	for _, err := range b.List(t.Context(), "", storage.ListOptions{Recursive: true}) {
		last = err
	}
	if last == nil || !strings.Contains(last.Error(), "out of order") {
		t.Errorf("an unsorted list: %v", last)
	}
}

// TestTimeLimit: a connection that is not made in time names the address, too; the network's limit is a
// context.DeadlineExceeded like that of a caller.
func TestTimeLimit(t *testing.T) {
	b := open(memory{Mem: storage.NewMem(nil)})
	limit := storage.Temporary(&net.OpError{Op: "dial", Net: "tcp", Err: late{}})
	if !errors.Is(limit, context.DeadlineExceeded) {
		t.Fatal("the premise is wrong")
	}
	if err := b.Fail("stat", "x", limit); !strings.Contains(err.Error(), "stat mem://b/x: ") || !storage.IsTemporary(err) {
		t.Error(err)
	}
	if err := b.Fail("stat", "x", context.Canceled); err != context.Canceled {
		t.Error(err)
	}
}

// late is the error of a time limit, as package net has it.
type late struct{}

func (late) Error() string        { return "i/o timeout" }
func (late) Is(target error) bool { return target == context.DeadlineExceeded }
