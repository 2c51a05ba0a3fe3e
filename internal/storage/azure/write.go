package azure

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"slices"
	"sync"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"

	"holdfast/internal/storage"
)

func crcText(crc uint32) string {
	return hex.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// md5Of is what the store checks a request's bytes with.
func md5Of(body *storage.Body) blob.TransferValidationType {
	h := md5.New()
	// Neither a body in memory nor a hash fails.
	_, _ = io.Copy(h, body.Reader())
	return blob.TransferValidationTypeMD5(h.Sum(nil))
}

// there reports whether a blob is the one with this size and checksum. When an answer is lost it is asked before anything is
// sent again; the properties say what a repetition would replace.
func (s *Store) there(ctx context.Context, name string, size int64, crc uint32) (bool, *blob.AccessConditions, error) {
	p, err := s.stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, onlyIf(&blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}), nil
	}
	if err != nil {
		return false, nil, err
	}
	return p.size == size && hex.EncodeToString(p.crc) == crcText(crc), onlyIf(&blob.ModifiedAccessConditions{IfMatch: &p.etag}), nil
}

func onlyIf(m *blob.ModifiedAccessConditions) *blob.AccessConditions {
	return &blob.AccessConditions{ModifiedAccessConditions: m}
}

// moved reports whether a condition did not hold: our own lost request, or another writer, has changed the blob.
func moved(err error) bool {
	var e *statusError
	return errors.As(err, &e) && (e.status == http.StatusPreconditionFailed || e.code == string(bloberror.BlobAlreadyExists))
}

// publish calls send until it succeeds, looking before each repetition whether it has already.
func (s *Store) publish(ctx context.Context, name string, size int64, crc uint32, send func(*blob.AccessConditions) error) error {
	first := true
	var only *blob.AccessConditions
	return s.o.Backoff.Do(ctx, func() error {
		if !first {
			done, cond, err := s.there(ctx, name, size, crc)
			if done || err != nil {
				return err
			}
			only = cond
		}
		first = false
		err := translate(ctx, send(only))
		if moved(err) {
			return storage.Temporary(err)
		}
		return err
	})
}

// Put implements storage.Uploader.
func (s blobs) Put(ctx context.Context, name string, body *storage.Body) error {
	client := s.container.NewBlockBlobClient(s.Key(name))
	return s.Fail("write", name, lasting(s.publish(ctx, name, body.Size(), body.CRC32C(), func(only *blob.AccessConditions) error {
		_, err := client.Upload(ctx, streaming.NopCloser(body.Reader()), &blockblob.UploadOptions{Tags: s.o.Tags, AccessConditions: only,
			Metadata: map[string]*string{crcKey: to.Ptr(crcText(body.CRC32C()))}, TransactionalValidation: md5Of(body)})
		return err
	})))
}

// lasting takes fs.ErrNotExist away from an error of a write: no blob is missing.
func lasting(err error) error {
	var e *statusError
	if errors.Is(err, fs.ErrNotExist) && errors.As(err, &e) {
		return storage.Unavailable(e)
	}
	return err
}

// blocks is one blob on its way in blocks.
type blocks struct {
	s      *Store
	name   string
	client *blockblob.Client
	writer uint64 // in every block's name, so that writers of one blob do not mix

	mu  sync.Mutex
	ids []string // by number
}

// Begin implements storage.Uploader. The store needs no word beforehand; blocks are told apart by a number of ours.
func (s blobs) Begin(_ context.Context, name string) (storage.PartUpload, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	return &blocks{s: s.Store, name: name, client: s.container.NewBlockBlobClient(s.Key(name)), writer: binary.BigEndian.Uint64(b[:])}, nil
}

// id is the name of block number n; all names are of one length, as the store demands.
func (b *blocks) id(n int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "0x%016x-%07d", b.writer, n))
}

// Put implements storage.PartUpload.
func (b *blocks) Put(ctx context.Context, number int, body *storage.Body) error {
	err := b.s.o.Backoff.Do(ctx, func() error {
		_, err := b.client.StageBlock(ctx, b.id(number), streaming.NopCloser(body.Reader()),
			&blockblob.StageBlockOptions{TransactionalValidation: md5Of(body)})
		return translate(ctx, err)
	})
	if err != nil {
		return b.s.Fail("write", b.name, lasting(err))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.ids) < number {
		b.ids = append(b.ids, "")
	}
	b.ids[number-1] = b.id(number)
	return nil
}

// Finish implements storage.PartUpload.
func (b *blocks) Finish(ctx context.Context, size int64, crc uint32) error {
	if slices.Contains(b.ids, "") {
		return b.s.Fail("write", b.name, errors.New("a block is missing"))
	}
	err := b.s.publish(ctx, b.name, size, crc, func(only *blob.AccessConditions) error {
		_, err := b.client.CommitBlockList(ctx, b.ids, &blockblob.CommitBlockListOptions{Tags: b.s.o.Tags, AccessConditions: only,
			Metadata: map[string]*string{crcKey: to.Ptr(crcText(crc))}})
		return err
	})
	if c := code(err); c == string(bloberror.InvalidBlockList) {
		if done, _, serr := b.s.there(ctx, b.name, size, crc); serr == nil && done {
			return nil
		}
		err = fmt.Errorf("another writer has committed the same blob meanwhile, which takes our blocks away: write it again (%w)", err)
	}
	return b.s.Fail("write", b.name, lasting(err))
}

// Cancel implements storage.PartUpload. Blocks that are never committed cannot be removed; the store drops them after a week.
func (b *blocks) Cancel(context.Context) error { return nil }

// Batch implements bucket.Protocol.
func (s blobs) Batch() int { return min(batchSize, int(s.page)) }

// Remove implements bucket.Protocol.
func (s blobs) Remove(ctx context.Context, names []string) error {
	if len(names) == 1 {
		_, err := s.container.NewBlobClient(s.Key(names[0])).Delete(ctx, nil)
		return s.Fail("remove", names[0], gone(translate(ctx, err)))
	}
	return s.removeBatch(ctx, names)
}

// gone: what is missing is removed.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// removeBatch removes several blobs with one request.
func (s *Store) removeBatch(ctx context.Context, names []string) error {
	batch, err := s.container.NewBatchBuilder()
	if err != nil {
		return s.Fail("remove", names[0], translate(ctx, err))
	}
	for _, name := range names {
		if err := batch.Delete(s.Key(name), nil); err != nil {
			return s.Fail("remove", name, translate(ctx, err))
		}
	}
	resp, err := s.container.SubmitBatch(ctx, batch, nil)
	if err != nil {
		return s.Fail("remove", names[0], lasting(translate(ctx, err)))
	}
	if len(resp.Responses) != len(names) {
		return s.Fail("remove", names[0], storage.Temporary(fmt.Errorf("the store answers for %d of %d blobs of a batch", len(resp.Responses), len(names))))
	}
	for i, one := range resp.Responses {
		name := names[i]
		if one.ContentID != nil && *one.ContentID >= 0 && *one.ContentID < len(names) {
			name = names[*one.ContentID]
		}
		if err := gone(translate(ctx, one.Error)); err != nil {
			return s.Fail("remove", name, err)
		}
	}
	return nil
}
