package transport

import (
	"bytes"
	"context"
	"hash"
	"io"

	"holdfast/internal/storage"
)

// Range describes the bytes that an answer's body brings.
type Range struct {
	Length int64     // how many the caller wants
	Sum    hash.Hash // nil: not checked; fed with the bytes
	Want   []byte    // what Sum must then be
}

// NewReader reads one body as storage.Storage.Open promises: exactly Length bytes, else io.ErrUnexpectedEOF; the error of
// ctx once it has ended; what a broken connection does is temporary. If the checksum is wrong, the last bytes are not
// given out: storage.ErrCorrupt comes in their place.
func NewReader(ctx context.Context, body io.ReadCloser, r Range) io.ReadCloser {
	return &reader{ctx: ctx, body: body, Range: r}
}

type reader struct {
	Range
	ctx  context.Context
	body io.ReadCloser
	at   int64
	err  error // final
}

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	if r.err != nil {
		return 0, r.err
	}
	if r.at == r.Length {
		return 0, io.EOF
	}
	n, err := r.body.Read(p[:min(int64(len(p)), r.Length-r.at)])
	if r.Sum != nil {
		r.Sum.Write(p[:n]) // a hash does not fail
	}
	r.at += int64(n)
	switch {
	case r.at == r.Length:
		if r.Sum != nil && !bytes.Equal(r.Sum.Sum(nil), r.Want) {
			r.err = storage.ErrCorrupt
			return 0, r.err
		}
		return n, nil
	case err == io.EOF:
		r.err = io.ErrUnexpectedEOF
	case err != nil:
		r.err = Error(r.ctx, err)
	}
	return n, r.err
}

// Close implements io.Closer.
func (r *reader) Close() error {
	if r.err == nil && r.at == r.Length {
		Drain(r.body)
		return nil
	}
	return r.body.Close()
}

// Short is the reader of a range of which nothing is there: empty if length is 0, else cut off at once.
func Short(ctx context.Context, past bool) io.ReadCloser {
	r := &reader{ctx: ctx, body: io.NopCloser(bytes.NewReader(nil))}
	if past {
		r.Length = 1
	}
	return r
}
