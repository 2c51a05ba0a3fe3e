package repo

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Frames reports whether a stored stream of this type may be cut into frames that are compressed each by itself, at the
// same time, and put one after the other: every reader of zst and lz4 takes that for one stream. Of gz the original reads
// only the first member (format page, section 8.2).
func (c CompressType) Frames() bool { return c == ZST || c == LZ4 }

// frameWindow is as far as a match may reach back within a frame, in bytes: that of the largest frames in use.
const frameWindow = 256 << 10

// frameEncoders are zstd encoders that take a whole frame from memory. They are small, because archive-push makes new ones
// for every segment and touching fresh memory is a tenth of what it costs.
var frameEncoders [4]sync.Pool

// AppendFrame compresses p as one frame and appends it to dst. Only for types of which Frames is true; the passphrase and
// the framing of spec are not looked at.
func AppendFrame(dst, p []byte, spec StreamSpec) ([]byte, error) {
	switch spec.Compress {
	case ZST:
		effort := zstEffort(spec.Level)
		e, ok := frameEncoders[effort].Get().(*zstd.Encoder)
		if !ok {
			c, err := newZST(effort, frameWindow, zstd.WithLowerEncoderMem(true))
			if err != nil {
				return nil, fmt.Errorf("prepare zst compression: %w", err)
			}
			if e, ok = c.(*zstd.Encoder); !ok {
				return nil, fmt.Errorf("prepare zst compression: no frames from %T", c)
			}
		}
		defer frameEncoders[effort].Put(e)
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
