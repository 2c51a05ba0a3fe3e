package repo

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	bzip2writer "github.com/dsnet/compress/bzip2"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zlib"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
)

// CompressType is a compression, by the name that the repository uses for it in the manifest (compress-type) and, except
// for none, as the file name extension.
type CompressType string

// The compression types of the format (format page, section 8.2).
const (
	None CompressType = "none"
	GZ   CompressType = "gz"
	LZ4  CompressType = "lz4"
	ZST  CompressType = "zst"
	BZ2  CompressType = "bz2"
)

// ParseCompressType checks that s names a compression type of the format.
func ParseCompressType(s string) (CompressType, error) {
	switch c := CompressType(s); c {
	case None, GZ, LZ4, ZST, BZ2:
		return c, nil
	}
	return "", fmt.Errorf("unknown compression type %q (known: none, gz, lz4, zst, bz2)", s)
}

// Ext is the extension that a stored file of the type carries, with its dot; empty for None.
func (c CompressType) Ext() string {
	if c == None || c == "" {
		return ""
	}
	return "." + string(c)
}

// DefaultLevel is the level that is used when none was asked for: gz 6, lz4 1, zst 3, bz2 9, as in the original.
func DefaultLevel(c CompressType) int {
	switch c {
	case GZ:
		return 6
	case LZ4:
		return 1
	case ZST:
		return 3
	case BZ2:
		return 9
	}
	return 0
}

// LevelRange gives the lowest and the highest level that c accepts: gz −1…9, lz4 −5…12, zst −7…22, bz2 1…9. None has no
// levels; any is accepted and ignored.
func LevelRange(c CompressType) (lowest, highest int) {
	switch c {
	case GZ:
		return -1, 9
	case LZ4:
		return -5, 12
	case ZST:
		return -7, 22
	case BZ2:
		return 1, 9
	}
	return 0, 0
}

// The kinds of trouble that a caller may want to tell apart; errors of NewStreamReader and Read wrap them. A failure of the
// underlying reader is none of them and is passed on as it is.
var (
	// ErrCorrupt says that the stored bytes are no complete stream of the kind they should be. A truncated stream is also
	// io.ErrUnexpectedEOF.
	ErrCorrupt = errors.New("damaged stream")
	// ErrTrailingData says that the stream was complete and all of it was delivered, but more bytes follow it. It comes
	// together with ErrCorrupt.
	ErrTrailingData = errors.New("data after the end of the stream")
)

// A compressor is one encoder of the pools below. Close ends the stream, not the writer under it.
type compressor interface {
	io.WriteCloser
	Reset(io.Writer)
}

// The pools keep encoders and decoders between files: a zst encoder owns megabytes of tables, and a backup stores thousands
// of small files. They hold no state of any stream, start empty, and cost nothing until used. One index per effective
// level; for gz and lz4 the first index is the framing (0 normal, 1 raw).
var (
	gzEncoders  [2][10]sync.Pool
	lz4Encoders [2][5]sync.Pool
	zstEncoders [4]sync.Pool
	bz2Encoders [10]sync.Pool

	gzDecoders   sync.Pool
	zlibDecoders sync.Pool
	lz4Decoders  sync.Pool
	zstDecoders  sync.Pool
	readBuffers  sync.Pool
)

// getCompressor takes an encoder for spec from its pool, or makes one, and points it at w. The caller gives it back with
// pool.Put after Close.
func getCompressor(w io.Writer, spec StreamSpec) (c compressor, pool *sync.Pool, err error) {
	lowest, highest := LevelRange(spec.Compress)
	if spec.Compress != None && (spec.Level < lowest || spec.Level > highest) {
		return nil, nil, fmt.Errorf("compression level %d is outside %d to %d of %s", spec.Level, lowest, highest, spec.Compress)
	}
	framing := 0
	if spec.Raw {
		framing = 1
	}
	var create func() (compressor, error)
	switch spec.Compress {
	case GZ:
		level := spec.Level
		if level < 0 {
			level = DefaultLevel(GZ)
		}
		pool = &gzEncoders[framing][level]
		create = func() (compressor, error) { return newGZ(level, spec.Raw) }
	case LZ4:
		effort := lz4Effort(spec.Level)
		pool = &lz4Encoders[framing][effort]
		create = func() (compressor, error) { return newLZ4(effort, spec.Raw) }
	case ZST:
		effort := zstEffort(spec.Level)
		pool = &zstEncoders[effort]
		create = func() (compressor, error) { return newZST(effort, zstWindows[effort]) }
	case BZ2:
		pool = &bz2Encoders[spec.Level]
		create = func() (compressor, error) { return newBZ2(spec.Level) }
	default:
		return nil, nil, fmt.Errorf("unknown compression type %q (known: none, gz, lz4, zst, bz2)", string(spec.Compress))
	}
	if c, ok := pool.Get().(compressor); ok {
		c.Reset(w)
		return c, pool, nil
	}
	if c, err = create(); err != nil {
		return nil, nil, fmt.Errorf("prepare %s compression: %w", spec.Compress, err)
	}
	c.Reset(w)
	return c, pool, nil
}

// gzWriter writes the gzip header that zlib writes on Unix: no name, time 0, operating system 3.
type gzWriter struct{ *gzip.Writer }

func (g gzWriter) Reset(w io.Writer) {
	g.Writer.Reset(w)
	g.ModTime = time.Unix(0, 0) // the encoder writes the zero Time as some other number
	g.OS = 3
}

// newGZ makes an encoder for one gzip member or, raw, for one zlib stream. The levels 0 to 9 are zlib's in meaning; −1 is 6.
func newGZ(level int, raw bool) (compressor, error) {
	if raw {
		return zlib.NewWriterLevel(io.Discard, level)
	}
	w, err := gzip.NewWriterLevel(io.Discard, level)
	return gzWriter{w}, err
}

// lz4Effort maps a level of the original (liblz4's scale) to one of five: up to 2, the fast method; 3 to 9, 10, 11 and 12,
// the thorough method with growing search depth. The negative levels of liblz4 (faster than fast) are the fast method.
func lz4Effort(level int) int {
	switch {
	case level < 3:
		return 0
	case level < 10:
		return 1
	}
	return level - 8
}

// newLZ4 makes an encoder of frames with independent 64 KiB blocks, and the content checksum unless raw. The original links
// its blocks; both are read by both. The fast method is the one that searches as liblz4 does: on heap pages it is faster and
// denser than the library's own.
func newLZ4(effort int, raw bool) (compressor, error) {
	levels := [...]lz4.CompressionLevel{lz4.CCompatFast, lz4.Level1, lz4.Level3, lz4.Level6, lz4.Level9}
	w := lz4.NewWriter(io.Discard)
	err := w.Apply(lz4.BlockSizeOption(lz4.Block64Kb), lz4.ChecksumOption(!raw), lz4.ConcurrencyOption(1),
		lz4.CompressionLevelOption(levels[effort]))
	return lz4Writer{w}, err
}

// lz4Writer writes an empty frame when nothing was written to it; the encoder does that only when flushed by a write.
type lz4Writer struct{ *lz4.Writer }

func (l lz4Writer) Close() error {
	if _, err := l.Write(nil); err != nil {
		return err
	}
	return l.Writer.Close()
}

// zstEffort maps a level of the original (libzstd's scale) to one of the four of our encoder: −7 to 2 fastest, 3 to 5
// default, 6 to 9 better, 10 to 22 best.
func zstEffort(level int) int {
	switch {
	case level < 3:
		return 0
	case level < 6:
		return 1
	case level < 10:
		return 2
	}
	return 3
}

// zstWindows are what libzstd takes for the middle of the effort's levels, in bytes.
var zstWindows = [...]int{1 << 20, 2 << 20, 4 << 20, 8 << 20}

// newZST makes an encoder of single frames without checksum or content size. It works in the caller's goroutine. With the
// windows above an encoder needs about 3, 6, 13 and 50 MiB; more options may make it smaller.
func newZST(effort, window int, more ...zstd.EOption) (compressor, error) {
	levels := [...]zstd.EncoderLevel{zstd.SpeedFastest, zstd.SpeedDefault, zstd.SpeedBetterCompression, zstd.SpeedBestCompression}
	return zstd.NewWriter(nil, append(more, zstd.WithEncoderLevel(levels[effort]), zstd.WithWindowSize(window),
		zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithZeroFrames(true))...)
}

// bz2Writer drops the error of the library's Reset, which has none.
type bz2Writer struct{ *bzip2writer.Writer }

func (b bz2Writer) Reset(w io.Writer) { _ = b.Writer.Reset(w) }

// newBZ2 makes an encoder of single streams; the level is the size of a block in 100 kB.
func newBZ2(level int) (compressor, error) {
	w, err := bzip2writer.NewWriter(io.Discard, &bzip2writer.WriterConfig{Level: level})
	return bz2Writer{w}, err
}

// A decompressor reads one stored stream to its end. The bytes come from a bufio.Reader that the caller owns, and nothing
// beyond the end of the stream is taken from it. release gives the decoder back to its pool.
type decompressor interface {
	io.Reader
	release()
}

// openDecompressor reads the stream's header and takes a decoder from its pool. No stream of a compressed type is empty, so
// an empty source is truncated. The error io.EOF means io.ErrUnexpectedEOF here.
func openDecompressor(br *bufio.Reader, spec StreamSpec) (decompressor, error) {
	if _, err := br.Peek(1); err != nil {
		return nil, err
	}
	switch spec.Compress {
	case GZ:
		if spec.Raw {
			return openZlib(br)
		}
		return openGZ(br)
	case LZ4:
		return openLZ4(br)
	case ZST:
		return openZST(br)
	}
	return bz2Reader{bzip2.NewReader(br)}, nil
}

// gzReader decodes all members of a gzip file. (The original stops after the first without a word, so a file of several
// members cannot come from it.)
type gzReader struct {
	br *bufio.Reader
	zr *gzip.Reader
}

func openGZ(br *bufio.Reader) (*gzReader, error) {
	zr, _ := gzDecoders.Get().(*gzip.Reader)
	if zr == nil {
		zr = new(gzip.Reader)
	}
	if err := zr.Reset(br); err != nil {
		return nil, err
	}
	zr.Multistream(false)
	return &gzReader{br: br, zr: zr}, nil
}

func (g *gzReader) Read(p []byte) (int, error) {
	n, err := g.zr.Read(p)
	if err != io.EOF {
		return n, err
	}
	if magic, _ := g.br.Peek(2); len(magic) < 2 || magic[0] != 0x1f || magic[1] != 0x8b {
		return n, io.EOF // the end, or junk, which the caller finds
	}
	if err := g.zr.Reset(g.br); err != nil {
		return n, unexpected(err)
	}
	g.zr.Multistream(false)
	return n, nil
}

func (g *gzReader) release() { gzDecoders.Put(g.zr) }

type zlibReader struct{ io.ReadCloser }

func openZlib(br *bufio.Reader) (decompressor, error) {
	if zr, ok := zlibDecoders.Get().(io.ReadCloser); ok {
		if err := zr.(zlib.Resetter).Reset(br, nil); err != nil {
			return nil, err
		}
		return zlibReader{zr}, nil
	}
	zr, err := zlib.NewReader(br)
	if err != nil {
		return nil, err
	}
	return zlibReader{zr}, nil
}

func (z zlibReader) release() { zlibDecoders.Put(z.ReadCloser) }

type lz4Reader struct{ *lz4.Reader }

// openLZ4 refuses the legacy frames that the decoder would take: they have no end mark, so a truncated one looks whole.
func openLZ4(br *bufio.Reader) (decompressor, error) {
	magic, err := br.Peek(4)
	if err != nil {
		return nil, err
	}
	if magic[0]&0xf0 == 0x02 || string(magic[1:]) != "\x22\x4d\x18" && string(magic[1:]) != "\x2a\x4d\x18" {
		return nil, fmt.Errorf("begins with %x, which is no lz4 frame", magic)
	}
	zr, _ := lz4Decoders.Get().(*lz4.Reader)
	if zr == nil {
		zr = lz4.NewReader(br)
		if err := zr.Apply(lz4.ConcurrencyOption(1)); err != nil {
			return nil, err
		}
	}
	zr.Reset(br)
	return lz4Reader{zr}, nil
}

func (l lz4Reader) release() {
	l.Reset(nil)
	lz4Decoders.Put(l.Reader)
}

type zstReader struct{ *zstd.Decoder }

// maxZSTWindow is libzstd's own limit for a decoder that was told nothing else (ZSTD_WINDOWLOG_LIMIT_DEFAULT), and what its
// level 22 asks for.
const maxZSTWindow = 128 << 20

func openZST(br *bufio.Reader) (decompressor, error) {
	zr, _ := zstDecoders.Get().(*zstd.Decoder)
	if zr == nil {
		var err error
		zr, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxWindow(maxZSTWindow), zstd.WithDecoderMaxMemory(1<<63))
		if err != nil {
			return nil, err
		}
	}
	if err := zr.Reset(br); err != nil {
		return nil, err
	}
	return zstReader{zr}, nil
}

func (z zstReader) release() {
	if err := z.Reset(nil); err == nil { // a decoder that cannot be reset is left to the collector
		zstDecoders.Put(z.Decoder)
	}
}

type bz2Reader struct{ io.Reader }

// Read gives no bytes beside an error: the library reads zeros behind a cut, and gives what these decode to.
func (b bz2Reader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err != nil && err != io.EOF {
		n = 0
	}
	return n, err
}

func (bz2Reader) release() {}

// unexpected turns an end of file into an unexpected one.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// isBadMagic reports that a decoder looked for another frame and found something else.
func isBadMagic(err error) bool {
	return errors.Is(err, zstd.ErrMagicMismatch) || errors.Is(err, lz4.ErrInvalidFrame)
}
