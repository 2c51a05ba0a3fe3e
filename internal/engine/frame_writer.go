package engine

import (
	"crypto/sha1"
	"encoding/hex"
	"hash"
	"io"
	"runtime"
	"sync"

	"holdfast/internal/repo"
)

// storeStream is the write chain of a file: what is written is hashed, compressed, encrypted and handed on.
type storeStream interface {
	io.Writer
	Close() error
	Sums() repo.Sums
}

// splitSize is the size in bytes from which a file is compressed in frames at the same time. The last large file of a
// backup would otherwise keep one core busy and leave the others idle.
const splitSize = 8 << 20

// newStream makes the chain for a file of that size.
func newStream(w io.Writer, spec repo.StreamSpec, size int64) (storeStream, error) {
	if size < splitSize || !spec.Compress.Frames() || spec.Raw || runtime.GOMAXPROCS(0) < 2 {
		return repo.NewStreamWriter(w, spec)
	}
	sink, err := repo.NewStreamWriter(w, repo.StreamSpec{Compress: repo.None, Pass: spec.Pass})
	if err != nil {
		return nil, err
	}
	return &frameWriter{spec: spec, sink: sink, sum: sha1.New(), most: runtime.GOMAXPROCS(0)}, nil
}

// frameWriter compresses each piece that is written to it as a frame of its own, several at the same time, and hands the
// frames on in order. It holds no more than most+1 pieces. For one goroutine.
type frameWriter struct {
	spec    repo.StreamSpec
	sink    *repo.StreamWriter
	sum     hash.Hash
	size    int64
	most    int
	pending []chan frame // oldest first
	err     error
	done    bool
	sums    repo.Sums
}

type frame struct {
	buf *frameBuffer
	err error
}

// frameBuffer is a piece of a file and its compressed form; it is used again.
type frameBuffer struct{ in, out []byte }

var frameBuffers = sync.Pool{New: func() any { return new(frameBuffer) }}

func (f *frameWriter) Write(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	f.sum.Write(p)
	f.size += int64(len(p))
	b, ok := frameBuffers.Get().(*frameBuffer)
	if !ok {
		b = new(frameBuffer)
	}
	b.in = append(b.in[:0], p...)
	result := make(chan frame, 1)
	go func() {
		out, err := repo.AppendFrame(b.out[:0], b.in, f.spec)
		b.out = out
		result <- frame{b, err}
	}()
	f.pending = append(f.pending, result)
	for len(f.pending) > f.most && f.err == nil {
		f.next()
	}
	return len(p), f.err
}

// next waits for the oldest frame and hands it on.
func (f *frameWriter) next() {
	x := <-f.pending[0]
	f.pending = f.pending[1:]
	if f.err == nil {
		f.err = x.err
	}
	if f.err == nil {
		_, f.err = f.sink.Write(x.buf.out)
	}
	frameBuffers.Put(x.buf)
}

// Close hands on what is left. No goroutine outlives it.
func (f *frameWriter) Close() error {
	if f.done {
		return f.err
	}
	f.done = true
	for len(f.pending) > 0 {
		f.next()
	}
	if err := f.sink.Close(); f.err == nil {
		f.err = err
	}
	if f.err == nil {
		f.sums = f.sink.Sums()
		f.sums.Size, f.sums.SHA1 = f.size, hex.EncodeToString(f.sum.Sum(nil))
	}
	return f.err
}

// Sums gives sizes and checksums after a Close without error.
func (f *frameWriter) Sums() repo.Sums { return f.sums }
