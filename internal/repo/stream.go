package repo

import (
	"bufio"
	"crypto/cipher"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
)

// Streams are how every file of the repository is stored (format page, section 8.1):
//
//	StreamWriter   original ─► SHA-1, size ─► compress ─► encrypt ─► SHA-1, size ─► w
//	StreamReader   original ◄─ SHA-1, size ◄─ decompress ◄─ decrypt ◄─ SHA-1, size ◄─ r
//
// Layers that the StreamSpec does not ask for are left out. Nothing here starts a goroutine, and nothing looks at a
// context: a caller that wants to stop stops writing or reading. One stream needs two buffers of 64 KiB, and its encoder or
// decoder (see newZST).

// bufferSize is how much is collected before it is encrypted, hashed and handed on; a multiple of the cipher's block.
const bufferSize = 64 << 10

// StreamSpec says how bytes are stored.
type StreamSpec struct {
	Compress CompressType // empty = None
	Level    int          // the type's own scale; DefaultLevel(c) for "not given". Readers ignore it.
	Pass     Secret       // empty = not encrypted
	Raw      bool         // the format page's raw framing, sections 8.2 and 8.3
}

// Sums is what went through a chain.
type Sums struct {
	Size     int64  // original bytes
	SHA1     string // of the original bytes, hex
	RepoSize int64  // stored bytes
	RepoSHA1 string // of the stored bytes, hex; equal to SHA1 when stored as is
}

// errClosed is the answer to a call after Close.
var errClosed = errors.New("stream is closed")

// StreamWriter stores original bytes as its StreamSpec says. The first error sticks: every later call gives it again.
// It must be closed, also when what was written is to be thrown away, to give its encoder back.
type StreamWriter struct {
	top  io.Writer  // compressor, or sink
	comp compressor // nil = not compressed
	pool *sync.Pool // of comp
	name CompressType
	sink sink
	sum  hash.Hash
	size int64
	sums Sums
	err  error
	done bool
}

// NewStreamWriter prepares a writer to w. The error is about spec: an unknown compression type, one that can only be read,
// or a level out of range. Nothing is written to w yet.
func NewStreamWriter(w io.Writer, spec StreamSpec) (*StreamWriter, error) {
	if spec.Compress == "" {
		spec.Compress = None
	}
	s := &StreamWriter{sum: sha1.New(), name: spec.Compress}
	s.sink.w = w
	if spec.Compress != None || spec.Pass != "" {
		s.sink.sum = sha1.New()
	}
	s.top = &s.sink
	if spec.Compress != None {
		var err error
		if s.comp, s.pool, err = getCompressor(&s.sink, spec); err != nil {
			return nil, err
		}
		s.top = s.comp
	}
	s.sink.buf = getBuffer()
	if spec.Pass != "" {
		header, mode, err := newEncrypter(spec.Pass, spec.Raw)
		if err != nil {
			return nil, err
		}
		s.sink.mode = mode
		*s.sink.buf = append(*s.sink.buf, header...)
		s.sink.clear = len(header)
	}
	return s, nil
}

// Write stores p. It gives the first error of w, or of the compressor, and then always.
func (s *StreamWriter) Write(p []byte) (int, error) {
	if s.done {
		return 0, errClosed
	}
	if s.err != nil {
		return 0, s.err
	}
	s.sum.Write(p)
	n, err := s.top.Write(p)
	s.size += int64(n)
	if err != nil {
		s.err = s.wrap(err)
	}
	return n, s.err
}

// Close ends the layers and writes what they still hold; w stays open. It gives the first error of the whole stream; only
// when that is nil, the stored stream is complete. Further calls give the same.
func (s *StreamWriter) Close() error {
	if s.done {
		return s.err
	}
	s.done = true
	if s.comp != nil {
		if s.err == nil {
			if err := s.comp.Close(); err != nil {
				s.err = s.wrap(err)
			}
		}
		if s.err == nil { // after a failure the encoder is not trusted any more
			s.comp.Reset(io.Discard)
			s.pool.Put(s.comp)
		}
	}
	s.comp, s.top = nil, nil
	if s.err == nil {
		s.err = s.sink.finish()
	}
	putBuffer(s.sink.buf)
	s.sink.buf = nil
	if s.err != nil {
		return s.err
	}
	s.sums = Sums{Size: s.size, SHA1: hex.EncodeToString(s.sum.Sum(nil)), RepoSize: s.sink.size}
	s.sums.RepoSHA1 = s.sums.SHA1
	if s.sink.sum != nil {
		s.sums.RepoSHA1 = hex.EncodeToString(s.sink.sum.Sum(nil))
	}
	return nil
}

// Sums gives sizes and checksums after a Close without error; before that it is the zero value.
func (s *StreamWriter) Sums() Sums { return s.sums }

// wrap names the layer, unless the error came from w, whose own words suffice.
func (s *StreamWriter) wrap(err error) error {
	if s.sink.err != nil {
		return s.sink.err
	}
	return fmt.Errorf("compress %s: %w", s.name, err)
}

// sink is the lower end of the write chain: it collects small writes, encrypts, hashes and counts.
type sink struct {
	w     io.Writer
	buf   *[]byte          // not yet handed on; text, except for the first clear bytes
	mode  cipher.BlockMode // nil = not encrypted
	clear int              // length of the header at the begin of buf, not to be encrypted
	sum   hash.Hash        // nil = nobody needs it
	size  int64
	err   error
}

func (k *sink) Write(p []byte) (int, error) {
	if k.err != nil {
		return 0, k.err
	}
	total := len(p)
	for len(p) > 0 {
		b := *k.buf
		if k.mode == nil && len(b) == 0 && len(p) >= bufferSize {
			if k.emit(p); k.err != nil {
				return total - len(p), k.err
			}
			break
		}
		n := copy(b[len(b):cap(b)], p)
		*k.buf = b[:len(b)+n]
		p = p[n:]
		if len(b)+n == cap(b) {
			if k.flush(); k.err != nil {
				return total - len(p), k.err
			}
		}
	}
	return total, nil
}

// flush encrypts the whole blocks of the buffer and hands them on; less than a block stays.
func (k *sink) flush() {
	b := *k.buf
	n := len(b)
	if k.mode != nil {
		n = k.clear + (len(b)-k.clear)&^(k.mode.BlockSize()-1)
		k.mode.CryptBlocks(b[k.clear:n], b[k.clear:n])
		k.clear = 0
	}
	k.emit(b[:n])
	*k.buf = b[:copy(b, b[n:])]
}

func (k *sink) finish() error {
	if k.err == nil && k.mode != nil {
		*k.buf = padding(*k.buf, len(*k.buf)-k.clear)
	}
	if k.err == nil && len(*k.buf) > 0 {
		k.flush()
	}
	return k.err
}

func (k *sink) emit(p []byte) {
	n, err := k.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		k.err = err
		return
	}
	if k.sum != nil {
		k.sum.Write(p)
	}
	k.size += int64(len(p))
}

// StreamReader gives back the original bytes of a stream that ends with the end of r, so r must be bounded to it: bytes
// after the stream are an error (ErrTrailingData). It compares no checksum with any other; Sums is for the caller to
// compare. Where bytes are not compressed, a truncated r may be seen only from Sums: always when they are stored as they are,
// by chance when encrypted and cut between two cipher blocks.
type StreamReader struct {
	spec   StreamSpec
	source source
	cipher *decrypter    // nil = not encrypted
	br     *bufio.Reader // nil = not compressed
	dec    decompressor  // nil before the first Read
	buf    *[]byte       // of cipher
	sum    hash.Hash
	size   int64
	sums   Sums
	err    error
	closed bool
}

// NewStreamReader prepares a reader of r. The error is about spec: an unknown compression type. Nothing is read yet.
func NewStreamReader(r io.Reader, spec StreamSpec) (*StreamReader, error) {
	if spec.Compress == "" {
		spec.Compress = None
	}
	if _, err := ParseCompressType(string(spec.Compress)); err != nil {
		return nil, err
	}
	s := &StreamReader{spec: spec, sum: sha1.New(), source: source{r: r}}
	if spec.Compress == None && spec.Pass == "" {
		return s, nil
	}
	s.source.sum = sha1.New()
	if spec.Pass != "" {
		s.buf = getBuffer()
		s.cipher = newDecrypter(&s.source, spec, *s.buf)
	}
	if spec.Compress != None {
		s.br, _ = readBuffers.Get().(*bufio.Reader)
		if s.br == nil {
			s.br = bufio.NewReaderSize(nil, bufferSize)
		}
		s.br.Reset(s.lower())
	}
	return s, nil
}

// lower is what feeds the decompressor.
func (s *StreamReader) lower() io.Reader {
	if s.cipher != nil {
		return s.cipher
	}
	return &s.source
}

// Read gives original bytes. It ends with io.EOF only when every layer came to a proper end and r is used up. An error of r
// is passed on; anything wrong with the stored bytes wraps ErrCorrupt, and io.ErrUnexpectedEOF when they end too early. The
// first error sticks.
func (s *StreamReader) Read(p []byte) (int, error) {
	if s.closed {
		return 0, errClosed
	}
	if s.err != nil {
		return 0, s.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	n, err := s.read(p)
	if n > 0 {
		if s.sum != nil {
			s.sum.Write(p[:n])
		}
		s.size += int64(n)
	}
	if err == io.EOF {
		err = s.finish()
	} else if err != nil {
		err = s.wrap(err)
	}
	s.err = err
	return n, err
}

func (s *StreamReader) read(p []byte) (int, error) {
	if s.br == nil {
		return s.lower().Read(p)
	}
	if s.dec == nil {
		dec, err := openDecompressor(s.br, s.spec)
		if err != nil {
			return 0, unexpected(err)
		}
		s.dec = dec
	}
	return s.dec.Read(p)
}

// finish is called at the end of the original bytes: nothing may follow, and the lower layers must have ended well too.
func (s *StreamReader) finish() error {
	if s.source.err != nil && s.source.err != io.EOF {
		return s.source.err
	}
	if s.br != nil {
		switch _, err := s.br.ReadByte(); err {
		case io.EOF:
		case nil:
			return s.wrap(ErrTrailingData)
		default:
			return s.wrap(err)
		}
	}
	s.sums = Sums{Size: s.size, RepoSize: s.source.size}
	if s.sum == nil {
		return io.EOF
	}
	s.sums.SHA1 = hex.EncodeToString(s.sum.Sum(nil))
	s.sums.RepoSHA1 = s.sums.SHA1
	if s.source.sum != nil {
		s.sums.RepoSHA1 = hex.EncodeToString(s.source.sum.Sum(nil))
	}
	return io.EOF
}

// wrap says which layer failed where. A lower layer's error is the cause of the upper ones' and goes before them.
func (s *StreamReader) wrap(err error) error {
	if s.source.err != nil && s.source.err != io.EOF {
		return s.source.err
	}
	if s.cipher != nil && s.cipher.err != nil && s.cipher.err != io.EOF {
		return s.cipher.err
	}
	if s.br == nil {
		return err
	}
	if s.size > 0 && isBadMagic(err) {
		err = ErrTrailingData
	}
	if s.cipher != nil && s.size == 0 {
		return fmt.Errorf("%w: decompress %s: %w (encrypted: the wrong cipher pass would look like this)", ErrCorrupt, s.spec.Compress, err)
	}
	return fmt.Errorf("%w: decompress %s after %d bytes: %w", ErrCorrupt, s.spec.Compress, s.size, err)
}

// Unhashed leaves the checksums out: the caller hashes, elsewhere and at the same time. Sums then has sizes only. To be
// called before the first Read.
func (s *StreamReader) Unhashed() { s.sum, s.source.sum = nil, nil }

// Close gives decoder and buffers back; r stays open. It never fails and may be called at any time and again.
func (s *StreamReader) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	if s.dec != nil {
		s.dec.release()
		s.dec = nil
	}
	if s.br != nil {
		s.br.Reset(nil)
		readBuffers.Put(s.br)
		s.br = nil
	}
	putBuffer(s.buf)
	s.cipher, s.buf = nil, nil
	return nil
}

// Sums gives sizes and checksums after Read gave io.EOF; before that it is the zero value.
func (s *StreamReader) Sums() Sums { return s.sums }

// source is the lower end of the read chain: it hashes and counts the stored bytes, and remembers why they ended.
type source struct {
	r    io.Reader
	sum  hash.Hash // nil = nobody needs it
	size int64
	err  error
}

func (o *source) Read(p []byte) (int, error) {
	if o.err != nil {
		return 0, o.err
	}
	n, err := o.r.Read(p)
	if n > 0 && o.sum != nil {
		o.sum.Write(p[:n])
	}
	o.size += int64(n)
	o.err = err
	return n, err
}

// Decode copies the original bytes of the stream src to dst. The sums are valid when the error is nil; they are not
// compared with anything.
func Decode(dst io.Writer, src io.Reader, spec StreamSpec) (Sums, error) {
	s, err := NewStreamReader(src, spec)
	if err != nil {
		return Sums{}, err
	}
	defer s.Close()
	buf := getBuffer()
	defer putBuffer(buf)
	if _, err := io.CopyBuffer(onlyWriter{dst}, s, (*buf)[:cap(*buf)]); err != nil {
		return Sums{}, err
	}
	return s.Sums(), nil
}

// onlyWriter hides the other methods of a writer, which would make io.CopyBuffer go past the buffer.
type onlyWriter struct{ io.Writer }

// buffers is a pool of buffers of bufferSize; it holds nothing of any stream.
var buffers sync.Pool

func getBuffer() *[]byte {
	if b, ok := buffers.Get().(*[]byte); ok {
		return b
	}
	b := make([]byte, 0, bufferSize)
	return &b
}

func putBuffer(b *[]byte) {
	if b != nil {
		*b = (*b)[:0]
		buffers.Put(b)
	}
}
