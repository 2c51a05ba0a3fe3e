package s3

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/internal/storage"
)

// check is what every call with a name begins with: it also waits for an object of that name which is still on its way.
func (s *S3) check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := storage.CheckName(name); err != nil {
		return err
	}
	return s.Wait(ctx, name)
}

// Stat implements storage.Storage. Times are in whole seconds, which is what a HEAD tells.
func (s *S3) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := s.check(ctx, name); err != nil {
		return storage.Info{}, err
	}
	if !s.o.AsOf.IsZero() {
		v, err := s.version(ctx, storage.OpStat, name)
		return v.info, err
	}
	var out *s3.HeadObjectOutput
	err := s.look(ctx, storage.OpStat, name, func(ctx context.Context) (err error) {
		out, err = s.head(ctx, name)
		return err
	})
	if err != nil {
		return storage.Info{}, err
	}
	return storage.Info{Name: name, Size: aws.ToInt64(out.ContentLength), ModTime: aws.ToTime(out.LastModified).Truncate(time.Second)}, nil
}

// head makes one HEAD request.
func (s *S3) head(ctx context.Context, name string) (*s3.HeadObjectOutput, error) {
	in := &s3.HeadObjectInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(name)), RequestPayer: s.payer()}
	in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = s.o.Encryption.customer()
	return s.client.HeadObject(ctx, in)
}

// look is try for a request about one object. An object that this process wrote a moment ago is there, whatever a store
// says that lags behind; and a 404 without a name means that the bucket has to be asked whether it is there at all.
func (s *S3) look(ctx context.Context, op storage.Op, name string, call func(context.Context) error) error {
	err := s.try(ctx, op, name, func(ctx context.Context) error {
		err := call(ctx)
		if err != nil && isMissing(err) && s.recent.written(name, s.o.Now()) {
			return &passing{err}
		}
		return err
	})
	if err == nil || !errors.Is(err, fs.ErrNotExist) || s.seen.Load() || code(err) == "NoSuchKey" {
		return err
	}
	if berr := s.bucket(ctx); berr != nil {
		return berr
	}
	return err
}

// bucket asks whether the bucket is there. Those who may not ask take it for granted.
func (s *S3) bucket(ctx context.Context) error {
	err := s.try(ctx, storage.OpList, "", func(ctx context.Context) error {
		_, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.o.Bucket, Prefix: aws.String(s.prefix), MaxKeys: aws.Int32(1), RequestPayer: s.payer()})
		if code(err) == "AccessDenied" {
			return nil
		}
		return err
	})
	return err
}

// Open implements storage.Storage.
func (s *S3) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := s.check(ctx, name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("offset is negative")}
	}
	r := &reader{s: s, ctx: ctx, name: name, at: offset, end: math.MaxInt64, size: -1}
	if length >= 0 && length <= math.MaxInt64-offset {
		r.end = offset + length
	}
	r.toEnd = length < 0
	r.whole = offset == 0 && r.toEnd
	if !s.o.AsOf.IsZero() {
		v, err := s.version(ctx, storage.OpOpen, name)
		if err != nil {
			return nil, err
		}
		r.version, r.size = v.id, v.info.Size
	}
	if length == 0 || r.size >= 0 && offset >= r.size { // a range that cannot be asked for
		return r, r.empty()
	}
	err := s.look(ctx, storage.OpOpen, name, r.request)
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return r, r.empty()
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// reader reads one range of one object. When the connection breaks it asks for the rest.
type reader struct {
	s       *S3
	ctx     context.Context
	name    string
	version string // empty: the current one
	at, end int64  // next byte, first byte not to be read; end is MaxInt64 for "to the end" and no size known
	size    int64  // of the object; -1: not known yet
	etag    *string
	body    io.ReadCloser
	whole   bool   // the range is the whole object
	want    string // its checksum as the store has it; empty: none
	crc     uint32
	toEnd   bool // no length was given
	failed  int  // breaks without progress
	err     error
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// empty prepares a range that holds nothing: of an object that must exist, whose size says what Read answers.
func (r *reader) empty() error {
	if r.size < 0 {
		in, err := r.s.Stat(r.ctx, r.name)
		if err != nil {
			return err
		}
		r.size = in.Size
	}
	r.err = io.EOF
	if r.at > r.size || r.end > r.at && !r.toEnd {
		r.err = io.ErrUnexpectedEOF
	}
	return nil
}

// request asks for the range from at on.
func (r *reader) request(ctx context.Context) error {
	s := r.s
	in := &s3.GetObjectInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(r.name)), RequestPayer: s.payer(), IfMatch: r.etag}
	in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = s.o.Encryption.customer()
	if r.version != "" {
		in.VersionId = &r.version
	}
	switch {
	case r.end != math.MaxInt64:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-%d", r.at, r.end-1))
	case r.at > 0:
		in.Range = aws.String(fmt.Sprintf("bytes=%d-", r.at))
	}
	out, err := s.client.GetObject(ctx, in, wantChecksum)
	if err != nil {
		return err
	}
	size, ok := total(in.Range != nil, out)
	if !ok {
		out.Body.Close() // not what was asked for
		return errors.New("the store answers a range with something else: it is not a store of the S3 kind")
	}
	if r.etag == nil {
		r.etag, r.size = out.ETag, size
		if full := aws.ToString(out.ChecksumCRC32C); r.whole && in.Range == nil && !strings.Contains(full, "-") && out.ChecksumType != types.ChecksumTypeComposite {
			r.want = full
		}
	}
	r.body = out.Body
	return nil
}

// total is the object's size from an answer.
func total(ranged bool, out *s3.GetObjectOutput) (int64, bool) {
	if !ranged {
		return aws.ToInt64(out.ContentLength), out.ContentLength != nil
	}
	_, after, ok := strings.Cut(aws.ToString(out.ContentRange), "/")
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseInt(after, 10, 64)
	return n, err == nil
}

// wantChecksum asks for the object's checksum without letting the SDK compare it: it cannot when a read is resumed.
func wantChecksum(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
		return stack.Build.Add(middleware.BuildMiddlewareFunc("ChecksumMode", func(ctx context.Context, in middleware.BuildInput, next middleware.BuildHandler) (middleware.BuildOutput, middleware.Metadata, error) {
			if req, ok := in.Request.(*smithyhttp.Request); ok {
				req.Header.Set("X-Amz-Checksum-Mode", "ENABLED")
			}
			return next.HandleBuild(ctx, in)
		}), middleware.After)
	})
}

// stop is the first byte that cannot be read.
func (r *reader) stop() int64 { return min(r.end, r.size) }

// Read implements io.Reader.
func (r *reader) Read(p []byte) (int, error) {
	for {
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		if r.err != nil || len(p) == 0 {
			return 0, r.err
		}
		if r.at >= r.stop() {
			r.err = r.finish()
			continue
		}
		if r.body == nil {
			if r.err = r.resume(); r.err != nil {
				continue
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.stop()-r.at)])
		if n > 0 {
			r.failed = 0
			r.at += int64(n)
			if r.want != "" {
				r.crc = crc32.Update(r.crc, castagnoli, p[:n])
			}
		}
		if err != nil && r.at < r.stop() {
			r.err = r.broken(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// finish is what comes after the last byte.
func (r *reader) finish() error {
	switch {
	case !r.toEnd && r.end > r.size:
		return io.ErrUnexpectedEOF
	case r.want != "" && sum(r.crc) != r.want:
		return r.s.fail(storage.OpRead, r.name, fmt.Errorf("%w: what arrived has %s, the store says %s: it was damaged on the way or in the store; read it again", storage.ErrCorrupt, sum(r.crc), r.want))
	}
	return io.EOF
}

// broken waits before the rest is asked for; an error is final.
func (r *reader) broken(err error) error {
	r.body.Close() // broken already
	r.body = nil
	if cerr := r.ctx.Err(); cerr != nil {
		return cerr
	}
	r.failed++
	if r.failed > maxBreaks {
		return r.s.fail(storage.OpRead, r.name, fmt.Errorf("broke off %d times at byte %d: %w", r.failed, r.at, err))
	}
	pause := time.Duration(0) // the first time at once: a connection has ended, which says nothing about the next
	if r.failed > 1 {
		pause = r.s.o.Backoff.Pause(r.failed - 1)
	}
	if r.s.o.OnRepeat != nil {
		r.s.o.OnRepeat(storage.Repetition{Op: storage.OpRead, Name: r.name, Attempt: r.failed, Err: errors.New(r.s.scrub(said(err))), Pause: pause})
	}
	return r.s.o.Backoff.Wait(r.ctx, pause)
}

// maxBreaks is how often a read may break at the same byte.
const maxBreaks = 6

// resume asks for the rest, of the same object.
func (r *reader) resume() error {
	err := r.s.try(r.ctx, storage.OpRead, r.name, r.request)
	if status(err) == http.StatusPreconditionFailed {
		return r.s.fail(storage.OpRead, r.name, fmt.Errorf("at byte %d: %w", r.at, storage.ErrChanged))
	}
	return err
}

// drainAtMost is how many bytes Close reads to keep a connection that would be closed else.
const drainAtMost = 64 << 10

// Close implements io.Closer.
func (r *reader) Close() error {
	r.err = fs.ErrClosed
	if r.body == nil {
		return nil
	}
	body := r.body
	r.body = nil
	if r.size >= 0 && r.stop()-r.at <= drainAtMost && r.ctx.Err() == nil {
		_, _ = io.CopyN(io.Discard, body, drainAtMost) // only to keep the connection
	}
	return body.Close()
}
