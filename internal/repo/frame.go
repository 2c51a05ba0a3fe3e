package repo

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"

	"holdfast/internal/zstdfast"
)

// Frames reports whether a stored stream of this type may be cut into frames that are compressed each by itself, at the
// same time, and put one after the other: every reader of zst and lz4 takes that for one stream. Of gz the original reads
// only the first member (format page, section 8.2).
func (c CompressType) Frames() bool { return c == ZST || c == LZ4 }

// smallFrame is the size in bytes of the frames of a WAL segment.
const smallFrame = 512 << 10

// fastEncoders are those of the lowest effort, where most of archive-push's time would go into the library's.
var fastEncoders sync.Pool

// frameEncoders are zstd encoders that take a whole frame from memory, by effort, those for small frames first. These are
// small, because archive-push makes new ones for every segment, and touching fresh memory is a tenth of what it costs.
var frameEncoders [4][2]sync.Pool

func newFrameEncoder(effort int, small bool) (compressor, error) {
	if small {
		return newZST(effort, smallFrame, zstd.WithLowerEncoderMem(true))
	}
	return newZST(effort, zstWindows[effort])
}

// AppendFrame compresses p as one frame and appends it to dst. Only for types of which Frames is true; the passphrase and
// the framing of spec are not looked at.
func AppendFrame(dst, p []byte, spec StreamSpec) ([]byte, error) {
	switch spec.Compress {
	case ZST:
		effort := zstEffort(spec.Level)
		if effort == 0 && len(p) <= zstdfast.MaxFrame {
			e, _ := fastEncoders.Get().(*zstdfast.Encoder)
			if e == nil {
				e = new(zstdfast.Encoder)
			}
			defer fastEncoders.Put(e)
			return e.Append(dst, p), nil
		}
		small := len(p) <= smallFrame
		pool := &frameEncoders[effort][0]
		if !small {
			pool = &frameEncoders[effort][1]
		}
		e, ok := pool.Get().(*zstd.Encoder)
		if !ok {
			c, err := newFrameEncoder(effort, small)
			if err != nil {
				return nil, fmt.Errorf("prepare zst compression: %w", err)
			}
			if e, ok = c.(*zstd.Encoder); !ok {
				return nil, fmt.Errorf("prepare zst compression: no frames from %T", c)
			}
		}
		defer pool.Put(e)
		return e.EncodeAll(p, dst), nil
	case LZ4:
		buf := bytes.NewBuffer(dst)
		c, pool, err := getCompressor(buf, StreamSpec{Compress: LZ4, Level: spec.Level})
		if err != nil {
			return nil, err
		}
		if _, err := c.Write(p); err != nil {
			return nil, fmt.Errorf("compress lz4: %w", err)
		}
		if err := c.Close(); err != nil {
			return nil, fmt.Errorf("compress lz4: %w", err)
		}
		c.Reset(nil)
		pool.Put(c)
		return buf.Bytes(), nil
	}
	return nil, fmt.Errorf("%s has no frames", spec.Compress)
}
