// Package azure keeps a repository in a container of Azure Blob Storage, laid out as pgBackRest lays it out there.
//
// What the store promises and this package uses: a blob appears whole or not at all, lists and reads are consistent at
// once, and what arrives with another MD5 than was sent is refused. Every blob we write carries the CRC-32C of its
// content as metadata; it is checked when a whole blob is read. A large blob goes in blocks, which are nothing to anybody
// until they are committed; the store drops what was never committed after a week.
//
// One thing the store does not do: when two writers send blocks of one blob at the same time, the first to commit takes
// the other's blocks away, and that one's Commit is an error (never a mixture). Blobs below the chunk size are not sent in
// blocks.
package azure

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"holdfast/internal/storage"
	"holdfast/internal/storage/bucket"
	"holdfast/internal/storage/transport"
)

// Defaults.
const (
	DefaultEndpoint = "blob.core.windows.net"
	DefaultPartSize = 4 << 20 // pgBackRest's
	connections     = 16
	parallelBlocks  = 4
	pageSize        = 5000
	batchSize       = 256 // what the store takes
)

// Kinds of Options.KeyType.
const (
	KeyShared = "shared" // Key is one of the account's keys
	KeySAS    = "sas"    // Key is a shared access signature
	KeyAuto   = "auto"   // the managed identity of the machine, pod or service
)

// Kinds of Options.URIStyle.
const (
	StyleHost = "host" // https://account.endpoint/container
	StylePath = "path" // https://endpoint/account/container
)

// Options says where the container is and who we are. The comments name pgBackRest's options.
type Options struct {
	Account       string            // repo-azure-account
	Container     string            // repo-azure-container
	Prefix        string            // repo-path: what comes before every name in the container
	Endpoint      string            // repo-azure-endpoint or repo-storage-host: host, host:port, or a URL (http:// for a server of a test); "" = blob.core.windows.net
	Port          int               // repo-storage-port, in place of the endpoint's; 0: that one, or 443
	URIStyle      string            // repo-azure-uri-style; "" = host
	KeyType       string            // repo-azure-key-type; "" = shared
	Key           storage.Secret    // repo-azure-key
	CAFile        string            // repo-storage-ca-file
	CAPath        string            // repo-storage-ca-path
	SkipVerifyTLS bool              // repo-storage-verify-tls=n
	PartSize      int64             // repo-storage-upload-chunk-size, bytes; 0: 4 MiB
	Tags          map[string]string // repo-storage-tag: index tags of every new blob
	Timeout       time.Duration     // io-timeout: longest silence of the store; 0: one minute
	Connections   int               // requests at once; 0: 16
	Backoff       storage.Backoff   // of uploads, which repeat their requests themselves
}

// Store is a container, or what is below one path in it. It implements storage.Storage.
type Store struct {
	o         Options
	container *container.Client
	page      int32 // blobs asked for in one list request
	*bucket.Bucket
}

// blobs is the container's protocol for package bucket.
type blobs struct{ *Store }

// New checks the options and reads the certificates. It connects to nothing.
func New(o Options) (*Store, error) { return open(o, nil, nil) }

// open is New; to and identity, where not nil, replace the ways to the store and to the metadata server of KeyAuto, for tests.
func open(o Options, to, identity policy.Transporter) (*Store, error) {
	if o.Account == "" || o.Container == "" {
		return nil, errors.New("azure: no account or no container given")
	}
	if o.PartSize <= 0 {
		o.PartSize = DefaultPartSize
	}
	if o.Connections <= 0 {
		o.Connections = connections
	}
	s := &Store{o: o, page: pageSize}
	var err error
	if to == nil {
		if to, err = transport.New(transport.Options{CAFile: o.CAFile, CAPath: o.CAPath, SkipVerifyTLS: o.SkipVerifyTLS, Timeout: o.Timeout, Connections: o.Connections}); err != nil {
			return nil, fmt.Errorf("azure: %w", err)
		}
	}
	if identity == nil {
		if identity, err = transport.New(transport.Options{Timeout: o.Timeout, Direct: true}); err != nil {
			return nil, fmt.Errorf("azure: %w", err)
		}
	}
	if s.container, err = connect(o, to, identity); err != nil {
		return nil, err
	}
	s.Bucket = bucket.New(bucket.Options{Address: "azure://" + o.Account + "/" + o.Container, Prefix: o.Prefix, Connections: o.Connections, PartSize: o.PartSize, Parallel: parallelBlocks}, blobs{s})
	return s, nil
}

// address is the container's URL.
func address(o Options) (string, error) {
	scheme, host, found := strings.Cut(cmp.Or(o.Endpoint, DefaultEndpoint), "://")
	if !found {
		scheme, host = "https", scheme
	}
	host = strings.TrimSuffix(host, "/")
	if o.Port != 0 {
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(o.Port))
	}
	switch cmp.Or(o.URIStyle, StyleHost) {
	case StyleHost:
		return scheme + "://" + o.Account + "." + host + "/" + o.Container, nil
	case StylePath:
		return scheme + "://" + host + "/" + o.Account + "/" + o.Container, nil
	}
	return "", fmt.Errorf("azure: URI style %q: use host or path", o.URIStyle)
}

// connect makes the SDK's client. The SDK repeats nothing: what may be repeated is known to package storage and to us.
func connect(o Options, to, identity policy.Transporter) (*container.Client, error) {
	u, err := address(o)
	if err != nil {
		return nil, err
	}
	once := policy.RetryOptions{MaxRetries: -1}
	co := &container.ClientOptions{ClientOptions: policy.ClientOptions{Transport: to, Retry: once}}
	var c *container.Client
	switch cmp.Or(o.KeyType, KeyShared) {
	case KeyShared:
		var key *blob.SharedKeyCredential
		if key, err = container.NewSharedKeyCredential(o.Account, string(o.Key)); err != nil || o.Key == "" {
			return nil, errors.New("azure: the key of the account is not base64 as Azure gives it out") // the SDK's error could quote it
		}
		c, err = container.NewClientWithSharedKeyCredential(u, key, co)
	case KeySAS:
		if o.Key == "" {
			return nil, errors.New("azure: key type sas needs the signature as key")
		}
		c, err = container.NewClientWithNoCredential(u+"?"+strings.TrimPrefix(string(o.Key), "?"), co)
	case KeyAuto:
		var id *azidentity.ManagedIdentityCredential
		id, err = azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: policy.ClientOptions{Transport: identity}})
		if err == nil {
			c, err = container.NewClient(u, id, co)
		}
	default:
		return nil, fmt.Errorf("azure: key type %q: use shared, sas or auto", o.KeyType)
	}
	if err != nil {
		return nil, errors.New("azure: account, container, endpoint and key do not make a valid address") // the SDK's error would show it
	}
	return c, nil
}

// statusError is an answer that says no.
type statusError struct {
	status int
	code   string
}

// Error implements error.
func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the store answers %d %s", e.status, cmp.Or(e.code, http.StatusText(e.status))))
}

// translate makes the SDK's errors ours: without URLs, which may hold signatures, and marked as package storage wants it.
func translate(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	var answer *azcore.ResponseError
	if errors.As(err, &answer) {
		e := &statusError{answer.StatusCode, answer.ErrorCode}
		if answer.StatusCode == http.StatusNotFound && answer.ErrorCode != string(bloberror.BlobNotFound) {
			return storage.Unavailable(e) // the container is missing, or somebody else answers: that is no missing blob
		}
		switch bloberror.Code(answer.ErrorCode) {
		case bloberror.BlobArchived, bloberror.BlobBeingRehydrated, bloberror.ContainerBeingDeleted, bloberror.ContainerDisabled:
			return storage.Unavailable(e) // a conflict that says nothing of what is in the blob
		}
		header := http.Header{}
		if answer.RawResponse != nil {
			header = answer.RawResponse.Header
		}
		return transport.Mark(e, answer.StatusCode, header)
	}
	var identity *azidentity.AuthenticationFailedError
	if errors.As(err, &identity) {
		if r := identity.RawResponse; r != nil {
			return transport.Mark(fmt.Errorf("managed identity: no token is given out (%d %s)", r.StatusCode, http.StatusText(r.StatusCode)), r.StatusCode, r.Header)
		}
		return storage.Unavailable(errors.New("managed identity: this machine has none, or its metadata server does not answer"))
	}
	return transport.Error(ctx, err)
}

// code is the store's own word for an error, "" if there is none.
func code(err error) string {
	var e *statusError
	if errors.As(err, &e) {
		return e.code
	}
	return ""
}

// properties is what the store knows of a blob.
type properties struct {
	size int64
	time time.Time
	etag azcore.ETag
	crc  []byte // of the content; nil: not known
}

// stat asks for a blob's properties.
func (s *Store) stat(ctx context.Context, name string) (properties, error) {
	r, err := s.container.NewBlobClient(s.Key(name)).GetProperties(ctx, nil)
	if err != nil {
		return properties{}, translate(ctx, err)
	}
	if r.ContentLength == nil || r.LastModified == nil || r.ETag == nil {
		return properties{}, errors.New("the store does not tell size and time")
	}
	return properties{*r.ContentLength, *r.LastModified, *r.ETag, crcOf(r.Metadata)}, nil
}

// crcKey names the metadata that holds the checksum, in hexadecimal.
const crcKey = "crc32c"

// crcOf finds the checksum among the metadata, whose keys come back in any case.
func crcOf(meta map[string]*string) []byte {
	for k, v := range meta {
		if strings.EqualFold(k, crcKey) && v != nil {
			if b, err := hex.DecodeString(*v); err == nil && len(b) == crc32.Size {
				return b
			}
		}
	}
	return nil
}

// Stat implements bucket.Protocol.
func (s blobs) Stat(ctx context.Context, name string) (bucket.Object, error) {
	p, err := s.stat(ctx, name)
	return bucket.Object{Size: p.size, Time: p.time}, err
}

// Get implements bucket.Protocol.
func (s blobs) Get(ctx context.Context, name string, offset, length int64) (bucket.Answer, error) {
	o := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: offset, Count: max(length, 0)}}
	resp, err := s.container.NewBlobClient(s.Key(name)).DownloadStream(ctx, o)
	if err != nil {
		if err = translate(ctx, err); code(err) == string(bloberror.InvalidRange) {
			err = bucket.ErrRange
		}
		return bucket.Answer{}, err
	}
	a := bucket.Answer{Body: resp.Body, CRC: crcOf(resp.Metadata)}
	switch {
	case resp.ContentRange != nil:
		a.Total, err = bucket.Total(*resp.ContentRange)
	case offset == 0 && resp.ContentLength != nil:
		a.Total = *resp.ContentLength
	default:
		err = errors.New("the store did not say which range it sends")
	}
	if err != nil {
		transport.Drain(resp.Body)
	}
	return a, err
}

// List implements bucket.Protocol.
func (s blobs) List(ctx context.Context, prefix string, level bool) iter.Seq2[storage.Info, error] {
	if level {
		return s.listLevel(ctx, prefix)
	}
	return func(yield func(storage.Info, error) bool) {
		pager := s.container.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, MaxResults: &s.page})
		for pager.More() {
			page, err := pager.NextPage(ctx)
			if err != nil {
				yield(storage.Info{}, translate(ctx, err))
				return
			}
			if !each(page.Segment.BlobItems, yield) {
				return
			}
		}
	}
}

// listLevel lists one level.
func (s blobs) listLevel(ctx context.Context, prefix string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		pager := s.container.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &prefix, MaxResults: &s.page})
		for pager.More() {
			page, err := pager.NextPage(ctx)
			if err != nil {
				yield(storage.Info{}, translate(ctx, err))
				return
			}
			for _, p := range page.Segment.BlobPrefixes {
				if p.Name != nil && !yield(storage.Info{Name: *p.Name, Dir: true}, nil) {
					return
				}
			}
			if !each(page.Segment.BlobItems, yield) {
				return
			}
		}
	}
}

// each yields the blobs of a page, and says whether more are wanted.
func each(items []*container.BlobItem, yield func(storage.Info, error) bool) bool {
	for _, item := range items {
		if item.Name == nil || item.Properties == nil || item.Properties.ContentLength == nil || item.Properties.LastModified == nil {
			continue // no blob with content
		}
		if !yield(storage.Info{Name: *item.Name, Size: *item.Properties.ContentLength, ModTime: *item.Properties.LastModified}, nil) {
			return false
		}
	}
	return true
}
