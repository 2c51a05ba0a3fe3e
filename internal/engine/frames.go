package engine

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"hash"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/repo"
)

// frameSize is how many bytes of a WAL segment become one frame. Larger ones get a little smaller; of this one all that is
// needed to read, hash and compress it stays in a core's cache.
const frameSize = 512 << 10

// frameRoom is more than a frame takes as it is stored, in bytes.
const frameRoom = frameSize + frameSize/16

// pieceSize is the size in bytes of a piece.
const pieceSize = 256 << 10

// piece is one part of a file on its way through several goroutines. Its buffer is used again when all are done with it.
type piece struct {
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
			b = make([]byte, pieceSize)
		}
		return b[:pieceSize], nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p pieces) done(x *piece) {
	if x.users.Add(-1) == 0 {
		p <- x.data
	}
}

// encoded is a segment as it will be stored.
type encoded struct {
	sum   string   // SHA-1 of the segment
	parts [][]byte // one after the other; valid until release
	rooms []*room
}

// release gives the memory back to be used for another segment: that which was never touched before costs a good part of
// what hashing does.
func (e *encoded) release() {
	for _, r := range e.rooms {
		if cap(r.out) <= mostRoom {
			rooms.Put(r)
		}
	}
	e.rooms, e.parts = nil, nil
}

// room is what one core needs for a segment: a piece of it, and the frames that it made.
type room struct{ in, out []byte }

// mostRoom is the largest room in bytes that is kept.
const mostRoom = 8 << 20

var rooms sync.Pool

func newRoom(size int64) *room {
	if r, ok := rooms.Get().(*room); ok {
		return r
	}
	// Room for many frames, of which only what is used becomes memory.
	return &room{in: make([]byte, frameSize), out: make([]byte, 0, size/8)}
}

// encodeFrames reads size bytes and tells how they are stored. Several cores read and hash in turns what each of them then
// compresses. The type must have frames. Memory: what is stored, and a frame for each core.
func encodeFrames(ctx context.Context, r io.Reader, size int64, spec repo.StreamSpec) (*encoded, error) {
	in := pieceReader{r: r, left: size, sum: sha1.New()}
	frames := make([][]byte, (size+frameSize-1)/frameSize)
	g, ctx := errgroup.WithContext(ctx)
	e := &encoded{parts: frames}
	for range min(max(runtime.GOMAXPROCS(0), 1), 4, len(frames)) {
		own := newRoom(size)
		e.rooms = append(e.rooms, own)
		g.Go(func() error {
			out := own.out[:0]
			for {
				n, data, err := in.next(ctx, own.in)
				if err != nil || len(data) == 0 {
					own.out = out
					return err
				}
				if cap(out)-len(out) < frameRoom { // never grown: the frames in each smaller piece of memory would keep it
					out = make([]byte, 0, max(size/8, frameRoom))
				}
				from := len(out)
				if out, err = repo.AppendFrame(out, data, spec); err != nil {
					return err
				}
				frames[n] = out[from:len(out):len(out)]
			}
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	e.sum = hex.EncodeToString(in.sum.Sum(nil))
	if spec.Pass == "" {
		return e, nil
	}
	defer e.release()
	var buf bytes.Buffer
	w, err := repo.NewStreamWriter(&buf, repo.StreamSpec{Compress: repo.None, Pass: spec.Pass, Raw: spec.Raw})
	if err != nil {
		return nil, err
	}
	for _, f := range frames {
		w.Write(f) // its first error comes again from Close
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return &encoded{sum: e.sum, parts: [][]byte{buf.Bytes()}}, nil
}

// pieceReader gives a file to several goroutines, piece by piece, and hashes it on the way.
type pieceReader struct {
	mu   sync.Mutex
	r    io.Reader
	left int64
	n    int // number of the next piece
	sum  hash.Hash
	err  error // the first; nothing is read after it
}

// next fills buf with the next piece, the last of which may be shorter; empty: there is none.
func (p *pieceReader) next(ctx context.Context, buf []byte) (n int, data []byte, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = ctx.Err()
	}
	data = buf[:min(int64(len(buf)), p.left)]
	if p.err == nil && len(data) > 0 {
		if _, err := io.ReadFull(p.r, data); err != nil {
			p.err = unexpectedEnd(err)
		}
	}
	if p.err != nil {
		return 0, nil, p.err
	}
	p.sum.Write(data)
	p.left -= int64(len(data))
	p.n++
	return p.n - 1, data, nil
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
