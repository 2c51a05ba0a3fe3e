package s3

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/storage"
)

// uploader sends what Uploads collects.
type uploader struct{ *S3 }

// uploadMark is the metadata by which an upload whose answer was lost is known again.
const uploadMark = "holdfast-upload"

func newMark() string { return fmt.Sprintf("%016x", rand.Uint64()) }

// sum is a CRC-32C as S3 writes it.
func sum(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// checks are the checksum headers of a body: CRC-32C, or MD5 for a store that does not know it.
func (s *S3) checks(b *storage.Body) (crc, sum5 *string) {
	if !s.noSums.Load() {
		return aws.String(sum(b.CRC32C())), nil
	}
	return nil, aws.String(base64.StdEncoding.EncodeToString(md5Of(b)))
}

func md5Of(b *storage.Body) []byte {
	h := md5.New()
	_, _ = io.Copy(h, b.Reader()) // neither can fail
	return h.Sum(nil)
}

// agree compares what the store says it has stored with what was sent. A store that says nothing of CRC-32C gave its
// word for nothing: then the entity tag, an MD5 on most stores, must be right, and the next upload carries an MD5.
func (s *S3) agree(b *storage.Body, sent, got, etag *string) error {
	if sent == nil {
		return nil // the store has compared the MD5
	}
	if got != nil {
		if *got != *sent {
			return &passing{fmt.Errorf("the store has content with checksum %s, sent was %s", *got, *sent)}
		}
		return nil
	}
	s.noSums.Store(true)
	tag, err := hex.DecodeString(strings.Trim(aws.ToString(etag), `"`))
	if err != nil || len(tag) != md5.Size || s.o.Encryption.KMS || s.o.Encryption.CustomerKey != "" {
		return &passing{errors.New("the store does not compare checksums of the kind CRC-32C: sent again with an MD5")}
	}
	if string(tag) != string(md5Of(b)) {
		return &passing{errors.New("the store has other content than was sent")}
	}
	return nil
}

// unsigned leaves the SHA-256 of a body out of the signature where TLS guards it on the way and a CRC-32C or MD5 at the ends, as
// the SDK does with bodies that it can read only once: reading all of it once more would cost as much as sending it.
func (s *S3) unsigned(o *s3.Options) {
	if s.secure {
		o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
	}
}

// payer is the header by which the requester pays.
func (s *S3) payer() types.RequestPayer {
	if s.o.RequesterPays {
		return types.RequestPayerRequester
	}
	return ""
}

// lock is the object lock of what is written now.
func (s *S3) lock() (types.ObjectLockMode, *time.Time) {
	if s.o.Lock == Unlocked {
		return "", nil
	}
	return types.ObjectLockMode(s.o.Lock), aws.Time(s.o.Now().Add(s.o.LockPeriod).UTC().Truncate(time.Second))
}

// tags are those of what is written, as a query.
func (s *S3) tags() *string {
	if len(s.o.Tags) == 0 {
		return nil
	}
	q := url.Values{}
	for k, v := range s.o.Tags {
		q.Set(k, v)
	}
	return aws.String(q.Encode())
}

// Put implements storage.Uploader.
func (u uploader) Put(ctx context.Context, name string, b *storage.Body) error {
	s := u.S3
	mark := newMark()
	doubt := false // an earlier attempt may have arrived
	err := s.try(ctx, storage.OpCommit, name, func(ctx context.Context) error {
		if doubt {
			if there, err := s.arrived(ctx, name, mark, b.Size()); there || err != nil {
				return err
			}
		}
		in := &s3.PutObjectInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(name)), Body: b.Reader(), ContentLength: aws.Int64(b.Size()),
			Metadata: map[string]string{uploadMark: mark}, RequestPayer: s.payer(), StorageClass: types.StorageClass(s.o.StorageClass), Tagging: s.tags()}
		in.ChecksumCRC32C, in.ContentMD5 = s.checks(b)
		in.ServerSideEncryption, in.SSEKMSKeyId = s.o.Encryption.atRest()
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = s.o.Encryption.customer()
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = s.lock()
		out, err := s.client.PutObject(ctx, in, s.unsigned)
		if err != nil {
			doubt = doubt || uncertain(err)
			return err
		}
		return s.agree(b, in.ChecksumCRC32C, out.ChecksumCRC32C, out.ETag)
	})
	if err == nil {
		s.recent.note(name, false, s.o.Now())
	}
	return err
}

// arrived says whether the object is there as that upload made it.
func (s *S3) arrived(ctx context.Context, name, mark string, size int64) (bool, error) {
	out, err := s.head(ctx, name)
	switch {
	case err != nil && (isMissing(err) || status(err) == 403): // may not look: send it again
		return false, nil
	case err != nil:
		return false, err
	}
	return out.Metadata[uploadMark] == mark && aws.ToInt64(out.ContentLength) == size, nil
}

// Begin implements storage.Uploader.
func (u uploader) Begin(ctx context.Context, name string) (storage.PartUpload, error) {
	s := u.S3
	p := &parts{s: s, name: name, mark: newMark(), sums: !s.noSums.Load()}
	err := s.try(ctx, storage.OpCreate, name, func(ctx context.Context) error {
		in := &s3.CreateMultipartUploadInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(name)), Metadata: map[string]string{uploadMark: p.mark},
			RequestPayer: s.payer(), StorageClass: types.StorageClass(s.o.StorageClass), Tagging: s.tags()}
		if p.sums {
			in.ChecksumAlgorithm, in.ChecksumType = types.ChecksumAlgorithmCrc32c, types.ChecksumTypeFullObject
		}
		in.ServerSideEncryption, in.SSEKMSKeyId = s.o.Encryption.atRest()
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = s.o.Encryption.customer()
		in.ObjectLockMode, in.ObjectLockRetainUntilDate = s.lock()
		out, err := s.client.CreateMultipartUpload(ctx, in)
		if err != nil && p.sums && (status(err) == 501 || code(err) == "InvalidArgument" || code(err) == "InvalidRequest") {
			p.sums = false // not this store; anything else wrong with the request will show again
			s.noSums.Store(true)
			return &passing{err}
		}
		if err != nil {
			return err
		}
		if p.id = aws.ToString(out.UploadId); p.id == "" {
			return errors.New("the store gave no number for the upload in parts: it is not a store of the S3 kind")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// parts is one upload in parts.
type parts struct {
	s              *S3
	name, id, mark string
	sums           bool // CRC-32C goes along

	mu   sync.Mutex
	done []types.CompletedPart // by number, from 0
}

// Put implements storage.PartUpload.
func (p *parts) Put(ctx context.Context, number int, b *storage.Body) error {
	s := p.s
	var tag *string
	crc := aws.String(sum(b.CRC32C()))
	err := s.try(ctx, storage.OpWrite, p.name, func(ctx context.Context) error {
		in := &s3.UploadPartInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(p.name)), UploadId: &p.id, PartNumber: aws.Int32(int32(number)),
			Body: b.Reader(), ContentLength: aws.Int64(b.Size()), RequestPayer: s.payer()}
		in.ChecksumCRC32C, in.ContentMD5 = s.checks(b)
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = s.o.Encryption.customer()
		out, err := s.client.UploadPart(ctx, in, s.unsigned)
		if err != nil {
			return err
		}
		tag = out.ETag
		return s.agree(b, in.ChecksumCRC32C, out.ChecksumCRC32C, out.ETag)
	})
	if err != nil {
		return err
	}
	if s.noSums.Load() {
		crc = nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.done) < number {
		p.done = append(p.done, types.CompletedPart{})
	}
	p.done[number-1] = types.CompletedPart{PartNumber: aws.Int32(int32(number)), ETag: tag, ChecksumCRC32C: crc}
	return nil
}

// Finish implements storage.PartUpload.
func (p *parts) Finish(ctx context.Context, size int64, crc uint32) error {
	s := p.s
	doubt := false
	err := s.try(ctx, storage.OpCommit, p.name, func(ctx context.Context) error {
		if doubt {
			if there, err := s.arrived(ctx, p.name, p.mark, size); there || err != nil {
				return err
			}
		}
		in := &s3.CompleteMultipartUploadInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(p.name)), UploadId: &p.id,
			MultipartUpload: &types.CompletedMultipartUpload{Parts: p.done}, RequestPayer: s.payer()}
		if p.sums && !s.noSums.Load() {
			in.ChecksumCRC32C, in.ChecksumType = aws.String(sum(crc)), types.ChecksumTypeFullObject
		}
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = s.o.Encryption.customer()
		_, err := s.client.CompleteMultipartUpload(ctx, in)
		if err != nil && code(err) == "NoSuchUpload" { // an earlier attempt may have joined the parts
			there, herr := s.arrived(ctx, p.name, p.mark, size)
			if there || herr != nil {
				return herr
			}
		}
		doubt = doubt || err != nil && uncertain(err)
		return err
	})
	if err == nil {
		s.recent.note(p.name, false, s.o.Now())
	}
	return err
}

// Cancel implements storage.PartUpload.
func (p *parts) Cancel(ctx context.Context) error { return p.s.cancel(ctx, p.name, p.id) }

// cancel gives an upload in parts up. One that is not there, or has become an object, is no error.
func (s *S3) cancel(ctx context.Context, name, id string) error {
	return s.try(ctx, storage.OpAbort, name, func(ctx context.Context) error {
		_, err := s.client.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(name)), UploadId: &id, RequestPayer: s.payer()})
		if err != nil && (code(err) == "NoSuchUpload" || isMissing(err)) {
			return nil
		}
		return err
	})
}

// Sweep implements storage.Sweeper: it gives up uploads in parts that were begun longer ago than age. The time is that of the
// store's answer; of one that has none, ours.
func (s *S3) Sweep(ctx context.Context, dir string, age time.Duration) (int, error) {
	prefix, err := s.dirPrefix(ctx, dir)
	if err != nil {
		return 0, err
	}
	if !s.o.AsOf.IsZero() {
		return 0, s.fail(storage.OpSweep, dir, ErrReadOnly)
	}
	swept := 0
	in := &s3.ListMultipartUploadsInput{Bucket: &s.o.Bucket, Prefix: aws.String(prefix), RequestPayer: s.payer()}
	for {
		var out *s3.ListMultipartUploadsOutput
		err := s.try(ctx, storage.OpSweep, dir, func(ctx context.Context) (err error) {
			out, err = s.client.ListMultipartUploads(ctx, in)
			return err
		})
		if err != nil {
			return swept, err
		}
		now, ok := awsmiddleware.GetServerTime(out.ResultMetadata)
		if !ok || now.IsZero() {
			now = s.o.Now()
		}
		before := now.Add(-age)
		for _, up := range out.Uploads {
			name, ok := strings.CutPrefix(aws.ToString(up.Key), s.prefix)
			if !ok || up.Initiated == nil || !up.Initiated.Before(before) {
				continue
			}
			if err := s.cancel(ctx, name, aws.ToString(up.UploadId)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return swept, err
			}
			swept++
		}
		if !aws.ToBool(out.IsTruncated) {
			return swept, nil
		}
		in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
	}
}
