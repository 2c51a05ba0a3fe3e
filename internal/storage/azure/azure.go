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
	"io"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"slices"
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
	prefix    string // "" or ending in a slash
	container *container.Client
	uploads   *storage.Uploads
	page      int32 // blobs asked for in one list request
}

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
	if p := strings.Trim(o.Prefix, "/"); p != "" {
		s.prefix = p + "/"
	}
	var err error
	if to == nil {
		if to, err = transport.New(transport.Options{CAFile: o.CAFile, CAPath: o.CAPath, SkipVerifyTLS: o.SkipVerifyTLS, Timeout: o.Timeout}); err != nil {
			return nil, fmt.Errorf("azure: %w", err)
		}
	}
	if identity == nil {
		if identity, err = transport.New(transport.Options{Timeout: o.Timeout}); err != nil {
			return nil, fmt.Errorf("azure: %w", err)
		}
	}
	if s.container, err = connect(o, to, identity); err != nil {
		return nil, err
	}
	s.uploads = storage.NewUploads(uploader{s}, storage.UploadOptions{PartSize: o.PartSize, Parallel: parallelBlocks, Requests: o.Connections,
		Memory: 2 * o.PartSize * int64(o.Connections)})
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

// Abilities says that calls go over a network and that nothing beyond the interface is offered.
func (s *Store) Abilities() storage.Abilities {
	return storage.Abilities{Connections: s.o.Connections, Remote: true}
}

// fail describes an error by the blob's address.
func (s *Store) fail(op, name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &fs.PathError{Op: op, Path: "azure://" + s.o.Account + "/" + s.o.Container + "/" + s.prefix + name, Err: err}
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
		if answer.StatusCode == http.StatusNotFound && answer.ErrorCode != string(bloberror.BlobNotFound) && answer.ErrorCode != "" {
			return e // the container is missing: that is no missing blob
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
		return errors.New("managed identity: this machine has none, or its metadata server does not answer")
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

// check is what every call with a name begins with.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return storage.CheckName(name)
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
	r, err := s.container.NewBlobClient(s.prefix+name).GetProperties(ctx, nil)
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

// Stat implements storage.Storage.
func (s *Store) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := check(ctx, name); err != nil {
		return storage.Info{}, err
	}
	if err := s.uploads.Wait(ctx, name); err != nil {
		return storage.Info{}, err
	}
	p, err := s.stat(ctx, name)
	if err != nil {
		return storage.Info{}, s.fail("stat", name, err)
	}
	return storage.Info{Name: name, Size: p.size, ModTime: p.time}, nil
}

// Open implements storage.Storage. The request for the bytes is sent at once.
func (s *Store) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if err := check(ctx, name); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, s.fail("open", name, errors.New("offset is negative"))
	}
	if err := s.uploads.Wait(ctx, name); err != nil {
		return nil, err
	}
	r, err := s.open(ctx, name, offset, length)
	if err != nil {
		return nil, s.fail("open", name, err)
	}
	return r, nil
}

func (s *Store) open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	if length == 0 {
		return s.nothing(ctx, name, offset, length)
	}
	o := &blob.DownloadStreamOptions{Range: blob.HTTPRange{Offset: offset}}
	if length > 0 && offset+length > offset { // no overflow
		o.Range.Count = length
	}
	resp, err := s.container.NewBlobClient(s.prefix+name).DownloadStream(ctx, o)
	if err != nil {
		err = translate(ctx, err)
		if code(err) == string(bloberror.InvalidRange) {
			return s.nothing(ctx, name, offset, length)
		}
		return nil, err
	}
	total, err := size(resp, offset)
	if err != nil {
		transport.Drain(resp.Body)
		return nil, err
	}
	want := transport.Range{Length: length}
	if length < 0 {
		want.Length = total - offset
	}
	if sum := crcOf(resp.Metadata); offset == 0 && want.Length == total && sum != nil {
		want.Sum, want.Want = crc32.New(crc32.MakeTable(crc32.Castagnoli)), sum
	}
	return transport.NewReader(ctx, resp.Body, want), nil
}

// nothing answers for a range without bytes: after the end, or of length 0.
func (s *Store) nothing(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	p, err := s.stat(ctx, name)
	if err != nil {
		return nil, err
	}
	return transport.Short(ctx, offset > p.size || length > 0), nil
}

// size is the size of the whole blob, out of an answer with a part of it.
func size(resp blob.DownloadStreamResponse, offset int64) (int64, error) {
	if resp.ContentRange != nil {
		_, total, _ := strings.Cut(*resp.ContentRange, "/")
		if n, err := strconv.ParseInt(total, 10, 64); err == nil {
			return n, nil
		}
	}
	if offset != 0 || resp.ContentLength == nil {
		return 0, errors.New("the store did not say which range it sends")
	}
	return *resp.ContentLength, nil
}

// Create implements storage.Storage.
func (s *Store) Create(ctx context.Context, name string, o storage.CreateOptions) (storage.Writer, error) {
	return s.uploads.Create(ctx, name, o)
}

// Sync implements storage.Storage.
func (s *Store) Sync(ctx context.Context) error { return s.uploads.Sync(ctx) }

// List implements storage.Storage. One level is collected before it is given out, because the store orders a directory
// by its name with a slash.
func (s *Store) List(ctx context.Context, dir string, o storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		err := ctx.Err()
		if err == nil && dir != "" {
			err = storage.CheckName(dir)
		}
		if err == nil {
			err = s.uploads.WaitAll(ctx)
		}
		if err != nil {
			yield(storage.Info{}, err)
			return
		}
		if dir != "" {
			dir += "/"
		}
		prefix := s.prefix + dir + o.Prefix
		if o.Recursive {
			s.listAll(ctx, dir, prefix, yield)
			return
		}
		level, err := s.listLevel(ctx, prefix)
		if err != nil {
			yield(storage.Info{}, s.fail("list", strings.TrimSuffix(dir, "/"), err))
			return
		}
		for _, in := range level {
			if err := ctx.Err(); err != nil {
				yield(storage.Info{}, err)
				return
			}
			if !yield(in, nil) {
				return
			}
		}
	}
}

// info is one blob of a list; false for what is no object of ours.
func (s *Store) info(item *container.BlobItem) (storage.Info, bool) {
	if item.Name == nil || item.Properties == nil || item.Properties.ContentLength == nil || item.Properties.LastModified == nil {
		return storage.Info{}, false
	}
	in := storage.Info{Name: strings.TrimPrefix(*item.Name, s.prefix), Size: *item.Properties.ContentLength, ModTime: *item.Properties.LastModified}
	return in, storage.CheckName(in.Name) == nil
}

// listAll yields every blob below a prefix, page by page.
func (s *Store) listAll(ctx context.Context, dir, prefix string, yield func(storage.Info, error) bool) {
	last := ""
	pager := s.container.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{Prefix: &prefix, MaxResults: &s.page})
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			yield(storage.Info{}, s.fail("list", strings.TrimSuffix(dir, "/"), translate(ctx, err)))
			return
		}
		for _, item := range page.Segment.BlobItems {
			in, ok := s.info(item)
			if !ok {
				continue
			}
			err := ctx.Err()
			if err == nil && in.Name <= last {
				err = s.fail("list", in.Name, errors.New("the store lists out of order, as accounts with a hierarchical namespace do: use one without"))
			}
			if err != nil {
				yield(storage.Info{}, err)
				return
			}
			last = in.Name
			if !yield(in, nil) {
				return
			}
		}
	}
}

// listLevel returns one level, sorted.
func (s *Store) listLevel(ctx context.Context, prefix string) ([]storage.Info, error) {
	var level []storage.Info
	pager := s.container.NewListBlobsHierarchyPager("/", &container.ListBlobsHierarchyOptions{Prefix: &prefix, MaxResults: &s.page})
	for pager.More() {
		page, err := pager.NextPage(ctx)
		if err != nil {
			return nil, translate(ctx, err)
		}
		for _, p := range page.Segment.BlobPrefixes {
			if p.Name == nil {
				continue
			}
			name := strings.TrimSuffix(strings.TrimPrefix(*p.Name, s.prefix), "/")
			if storage.CheckName(name) == nil {
				level = append(level, storage.Info{Name: name, Dir: true})
			}
		}
		for _, item := range page.Segment.BlobItems {
			if in, ok := s.info(item); ok {
				level = append(level, in)
			}
		}
	}
	slices.SortFunc(level, func(a, b storage.Info) int { return cmp.Compare(a.Name, b.Name) })
	return slices.CompactFunc(level, func(a, b storage.Info) bool { return a.Name == b.Name }), nil // a directory may be on two pages
}
