package engine

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"io"
	"runtime"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/repo"
)

// frameSize is how many bytes of a WAL segment become one frame.
const frameSize = 256 << 10

// piece is one part of a file on its way through several goroutines. Its buffer is used again when all are done with it.
type piece struct {
	n     int // number of the frame
	data  []byte
	users atomic.Int32
}

// pieces hands out the buffers; no more than its capacity are in use, which bounds the memory.
type pieces chan []byte

func newPieces(n int) pieces {
	p := make(pieces, n)
	for range n {
		p <- nil // made when first used: a short file needs fewer
	}
	return p
}

func (p pieces) get(ctx context.Context) ([]byte, error) {
	select {
	case b := <-p:
		if b == nil {
			b = make([]byte, frameSize)
		}
		return b[:frameSize], nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p pieces) done(x *piece) {
	if x.users.Add(-1) == 0 {
		p <- x.data
	}
}

// encodeFrames reads size bytes and gives their SHA-1 and how they are stored, hashing and compressing at the same time,
// on several cores. The type must have frames. Memory: what is stored, and a few frames.
func encodeFrames(ctx context.Context, r io.Reader, size int64, spec repo.StreamSpec) (sum string, stored []byte, err error) {
	workers := min(max(runtime.GOMAXPROCS(0), 1), 4)
	frames := make([][]byte, (size+frameSize-1)/frameSize)
	free := newPieces(workers + 2)
	hashing, packing := make(chan *piece, cap(free)), make(chan *piece, cap(free))
	h := sha1.New()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(hashing)
		defer close(packing)
		for n := range frames {
			buf, err := free.get(ctx)
			if err != nil {
				return err
			}
			want := min(frameSize, size-int64(n)*frameSize)
			if _, err := io.ReadFull(r, buf[:want]); err != nil {
				return unexpectedEnd(err)
			}
			x := &piece{n: n, data: buf[:want]}
			x.users.Store(2)
			hashing <- x // never blocks: there are no more pieces than room
			packing <- x
		}
		return nil
	})
	g.Go(func() error {
		for x := range hashing {
			h.Write(x.data)
			free.done(x)
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			var frame []byte // is used again: memory that nobody touched before costs more than the copy
			for x := range packing {
				var err error
				if frame, err = repo.AppendFrame(frame[:0], x.data, spec); err != nil {
					return err
				}
				frames[x.n] = bytes.Clone(frame)
				free.done(x)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return "", nil, err
	}
	if spec.Pass == "" {
		return hex.EncodeToString(h.Sum(nil)), bytes.Join(frames, nil), nil
	}
	var buf bytes.Buffer
	w, err := repo.NewStreamWriter(&buf, repo.StreamSpec{Compress: repo.None, Pass: spec.Pass, Raw: spec.Raw})
	if err != nil {
		return "", nil, err
	}
	for _, f := range frames {
		w.Write(f) // its first error comes again from Close
	}
	if err := w.Close(); err != nil {
		return "", nil, err
	}
	return hex.EncodeToString(h.Sum(nil)), buf.Bytes(), nil
}

func unexpectedEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// decodeTo reads a stored stream to its end, writing and hashing while the next part is being decompressed.
func decodeTo(ctx context.Context, dst io.Writer, src io.Reader, spec repo.StreamSpec) (sum string, size int64, err error) {
	sr, err := repo.NewStreamReader(src, spec)
	if err != nil {
		return "", 0, err
	}
	defer sr.Close() // opened for reading: nothing to lose
	sr.Unhashed()
	free := newPieces(4)
	hashing, writing := make(chan *piece, cap(free)), make(chan *piece, cap(free))
	h := sha1.New()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(hashing)
		defer close(writing)
		for {
			buf, err := free.get(ctx)
			if err != nil {
				return err
			}
			n := 0
			for err == nil && n < len(buf) { // not io.ReadFull: it would make one error of the end and of a cut
				var k int
				k, err = sr.Read(buf[n:])
				n += k
			}
			if n > 0 {
				size += int64(n)
				x := &piece{data: buf[:n]}
				x.users.Store(2)
				hashing <- x // never blocks: there are no more pieces than room
				writing <- x
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	g.Go(func() error {
		for x := range hashing {
			h.Write(x.data)
			free.done(x)
		}
		return nil
	})
	g.Go(func() error {
		for x := range writing {
			if _, err := dst.Write(x.data); err != nil {
				return err
			}
			free.done(x)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return "", 0, err
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}
