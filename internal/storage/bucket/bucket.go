// Package bucket is what the adapters for object stores share: storage.Storage on top of the few requests that each store has in
// its own protocol. Names below a path in the bucket, readers that keep the contract, sorted lists, removal in batches, errors
// that name the object's address.
package bucket

import (
	"cmp"
	"context"
	"errors"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/storage"
	"holdfast/internal/storage/transport"
)

// removals is how many requests that remove objects are in flight at once.
const removals = 4

// ErrRange says that an object has no bytes where they were asked for.
var ErrRange = errors.New("the range is after the object's end")

// Object is what a store knows of an object.
type Object struct {
	Size int64
	Time time.Time
}

// Answer is what a store sends of an object.
type Answer struct {
	Body  io.ReadCloser
	Total int64  // size of the whole object
	CRC   []byte // CRC-32C of the whole object; nil: not known
}

// Protocol is what differs between stores. Names are those of storage.Storage; Bucket.Key is what the store calls them. An object
// that is missing is fs.ErrNotExist; what may be repeated is marked as package storage wants it.
type Protocol interface {
	Stat(ctx context.Context, name string) (Object, error)
	// Get asks for bytes from offset on; a negative length: to the end; never 0. The object ends before: ErrRange.
	Get(ctx context.Context, name string, offset, length int64) (Answer, error)
	// List yields what the store lists for a prefix, in its order, with the names that the store has. level: what follows a
	// slash is one directory.
	List(ctx context.Context, prefix string, level bool) iter.Seq2[storage.Info, error]
	// Remove removes objects with one request. One that is missing is no error. Errors are those of Bucket.Fail.
	Remove(ctx context.Context, names []string) error
	// Batch is how many objects Remove takes.
	Batch() int
	storage.Uploader
}

// Options says what the bucket is.
type Options struct {
	Address     string // of the bucket, for errors: gs://bucket
	Prefix      string // repo-path: what comes before every name in the bucket
	Connections int    // requests at once
	PartSize    int64  // bytes
	Parallel    int    // parts of one object at once
}

// Bucket implements storage.Storage.
type Bucket struct {
	address, prefix string
	connections     int
	p               Protocol
	*storage.Uploads
}

// New returns the bucket of a protocol. Memory for uploads is two parts for each connection.
func New(o Options, p Protocol) *Bucket {
	b := &Bucket{address: o.Address, connections: o.Connections, p: p}
	if prefix := strings.Trim(o.Prefix, "/"); prefix != "" {
		b.prefix = prefix + "/"
	}
	b.Uploads = storage.NewUploads(p, storage.UploadOptions{PartSize: o.PartSize, Parallel: o.Parallel, Requests: o.Connections, Memory: 2 * o.PartSize * int64(o.Connections)})
	return b
}

// Abilities says that calls go over a network and that nothing beyond the interface is offered.
func (b *Bucket) Abilities() storage.Abilities {
	return storage.Abilities{Connections: b.connections, Remote: true}
}

// Key is what the store calls an object.
func (b *Bucket) Key(name string) string { return b.prefix + name }

// Fail describes an error by the object's address. (A time limit of the network is a context.DeadlineExceeded, too.)
func (b *Bucket) Fail(op, name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return &fs.PathError{Op: op, Path: b.address + "/" + b.prefix + name, Err: err}
}

// ready is what every call with a name begins with: an object that is still on its way is waited for.
func (b *Bucket) ready(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := storage.CheckName(name); err != nil {
		return err
	}
	return b.Wait(ctx, name)
}

// Stat implements storage.Storage.
func (b *Bucket) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := b.ready(ctx, name); err != nil {
		return storage.Info{}, err
	}
	o, err := b.p.Stat(ctx, name)
	if err != nil {
		return storage.Info{}, b.Fail("stat", name, err)
	}
	return storage.Info{Name: name, Size: o.Size, ModTime: o.Time}, nil
}

// Open implements storage.Storage. The request for the bytes is sent at once.
func (b *Bucket) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := b.ready(ctx, name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, b.Fail("open", name, errors.New("offset is negative"))
	}
	r, err := b.open(ctx, name, offset, length)
	if err != nil {
		return nil, b.Fail("open", name, err)
	}
	return r, nil
}

func (b *Bucket) open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	ask := length
	if length > 0 && offset+length < offset { // more than there can be
		ask = -1
	}
	a, err := Answer{}, ErrRange
	if length != 0 {
		a, err = b.p.Get(ctx, name, offset, ask)
	}
	if errors.Is(err, ErrRange) {
		o, err := b.p.Stat(ctx, name)
		if err != nil {
			return nil, err
		}
		return transport.Short(ctx, offset > o.Size || length > 0), nil
	}
	if err != nil {
		return nil, err
	}
	want := transport.Range{Length: length}
	if length < 0 {
		want.Length = a.Total - offset
	}
	if offset == 0 && want.Length == a.Total && a.CRC != nil {
		want.Sum, want.Want = crc32.New(crc32.MakeTable(crc32.Castagnoli)), a.CRC
	}
	return transport.NewReader(ctx, a.Body, want), nil
}

// Total is the size of the whole object out of the Content-Range of an answer with a part of it.
func Total(contentRange string) (int64, error) {
	_, total, _ := strings.Cut(contentRange, "/")
	n, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return 0, errors.New("the store did not say which range it sends")
	}
	return n, nil
}

// List implements storage.Storage. One level is collected before it is given out, because a store orders a directory by its name
// with a slash.
func (b *Bucket) List(ctx context.Context, dir string, o storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		err := ctx.Err()
		if err == nil && dir != "" {
			err = storage.CheckName(dir)
		}
		if err == nil {
			err = b.WaitAll(ctx)
		}
		if err != nil {
			yield(storage.Info{}, err)
			return
		}
		entries := b.walk(ctx, dir, o)
		if !o.Recursive {
			entries = level(entries)
		}
		last := ""
		for in, err := range entries {
			if err == nil {
				err = ctx.Err()
			}
			if err == nil && in.Name <= last {
				err = b.Fail("list", in.Name, errors.New("the store lists out of order, as Azure accounts with a hierarchical namespace do: use one without"))
			}
			if err != nil {
				yield(storage.Info{}, err)
				return
			}
			last = in.Name
			if !yield(in, nil) {
				return
			}
		}
	}
}

// level is a list, sorted; a directory may be on two pages.
func level(entries iter.Seq2[storage.Info, error]) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		var all []storage.Info
		for in, err := range entries {
			if err != nil {
				yield(in, err)
				return
			}
			all = append(all, in)
		}
		slices.SortFunc(all, func(a, b storage.Info) int { return cmp.Compare(a.Name, b.Name) })
		for _, in := range slices.CompactFunc(all, func(a, b storage.Info) bool { return a.Name == b.Name }) {
			if !yield(in, nil) {
				return
			}
		}
	}
}

// walk yields what the store lists in a directory, in its order, without what is no object of ours.
func (b *Bucket) walk(ctx context.Context, dir string, o storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		prefix := b.prefix + o.Prefix
		if dir != "" {
			prefix = b.prefix + dir + "/" + o.Prefix
		}
		for in, err := range b.p.List(ctx, prefix, !o.Recursive) {
			if err != nil {
				yield(storage.Info{}, b.Fail("list", dir, err))
				return
			}
			in.Name = strings.TrimPrefix(in.Name, b.prefix)
			if in.Dir {
				in.Name = strings.TrimSuffix(in.Name, "/")
			}
			if storage.CheckName(in.Name) == nil && !yield(in, nil) {
				return
			}
		}
	}
}

// Remove implements storage.Storage: as many objects as the store takes go with one request, several requests at once.
func (b *Bucket) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := storage.CheckName(name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	for _, name := range names {
		if err := b.Wait(ctx, name); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(removals)
	for batch := range slices.Chunk(names, b.p.Batch()) {
		g.Go(func() error { return b.p.Remove(gctx, batch) })
	}
	err := g.Wait()
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	return err
}
