// Package s3 keeps a repository in a bucket of Amazon S3 or of a store that speaks its protocol.
//
// The objects are named as pgBackRest names them: Options.Prefix (its repo-path without the first slash), a slash, and
// the name that storage.Storage gives. What pgBackRest does not do is invisible to it: a checksum and one line of
// metadata beside every object.
//
// What the store promises and what is done here:
//
//	whole or not at all    a single PUT, or parts that one request joins; nothing shows before
//	durable                the store's answer is the promise; Sync has only to wait for what is still on its way
//	lost answer            an object carries the number of its upload: a HEAD tells whether it arrived before it is sent
//	                       again, so that nothing is stored twice
//	two writers            the later Commit stays. No request is conditional: stores differ in that, and the engine has its
//	                       locks
//	content                CRC-32C goes with every upload and is compared by the store; what a store gives back of it is
//	                       compared when an object is read whole. Stores that do not know it get Content-MD5
//	broken reads           go on where they broke, as long as the object is still the same (If-Match)
//	passing failures       are repeated with growing, random pauses or those that the store asks for, up to Options.RetryFor
//
// Everything about time, credentials and retries of one request is in try.go; what an error means to an operator in errors.go.
package s3

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"holdfast/internal/storage"
	"holdfast/internal/storage/transport"
)

// LockMode is how firmly the store keeps what is written.
type LockMode string

// The modes of object lock. Governance can be lifted by who may; compliance by nobody.
const (
	Unlocked   LockMode = ""
	Governance LockMode = "GOVERNANCE"
	Compliance LockMode = "COMPLIANCE"
)

// Options says which bucket, and how to work with it. Bucket and Region are needed; the rest has defaults.
type Options struct {
	Bucket   string
	Prefix   string // directory in the bucket; slashes at its ends do not matter
	Region   string
	Endpoint string // host, host:port, or a URL with http:// or https://; empty: AWS's for the region. Without a scheme: https
	Connect  string // host, :port or host:port to connect to where it is not what Endpoint says
	// PathStyle puts the bucket into the path of the URL, not into the host's name.
	PathStyle     bool
	CAFile        string // certificates that the server's is checked with, in place of the system's
	CAPath        string // directory of such files
	SkipVerifyTLS bool

	Credentials Credentials

	Encryption    Encryption
	StorageClass  string            // of what is written; empty: the bucket's
	Tags          map[string]string // on what is written
	RequesterPays bool

	Lock       LockMode      // on what is written, for LockPeriod
	LockPeriod time.Duration // from the moment of writing

	// AsOf shows the bucket as it was at that time, which needs its versioning; writing is refused. Zero: now.
	AsOf time.Time

	PartSize    int64         // bytes; 0: 8 MiB. Stores refuse less than 5 MiB
	Parallel    int           // parts of one object in flight; 0: 4
	Connections int           // requests in flight; 0: 32
	Timeout     time.Duration // of a connection on which nothing moves; 0: 1 min
	RetryFor    time.Duration // since the first failure of a request; 0: 2 min
	Backoff     storage.Backoff
	Now         func() time.Time         // nil: time.Now
	OnRepeat    func(storage.Repetition) // told of every repetition, from many goroutines; may be nil
}

// Defaults and bounds.
const (
	defaultPartSize    = 8 << 20
	defaultParallel    = 4
	defaultConnections = 32
	defaultTimeout     = time.Minute
	defaultRetryFor    = 2 * time.Minute
	memoryParts        = 16 // bytes in flight over all objects, in parts
	minPartSize        = 5 << 20
	maxPartSize        = 5 << 30
)

// S3 is a bucket as a storage.Storage.
type S3 struct {
	o      Options
	prefix string // with a slash at its end, or empty
	client *s3.Client
	creds  *aws.CredentialsCache
	http   *transport.Client
	*storage.Uploads
	recent recent

	noSums atomic.Bool // the store does not know CRC-32C
	singly atomic.Bool // the store removes one object with a request
	secure bool        // by TLS
	seen   atomic.Bool // the bucket has answered: a missing object is not a missing bucket
}

// New returns the storage. It contacts nobody: what is wrong with the bucket or the credentials shows with the first call.
func New(o Options) (*S3, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	endpoint, err := o.endpoint()
	if err != nil {
		return nil, err
	}
	client, err := o.client(o.Connect)
	if err != nil {
		return nil, err
	}
	s := &S3{o: o, prefix: strings.Trim(path.Clean("/"+o.Prefix), "/"), http: client}
	if s.prefix != "" {
		s.prefix += "/"
	}
	s.secure = endpoint == nil || strings.HasPrefix(*endpoint, "https://")
	provider, err := o.provider()
	if err != nil {
		return nil, err
	}
	s.creds = aws.NewCredentialsCache(marked{provider}, func(c *aws.CredentialsCacheOptions) { c.ExpiryWindow = time.Minute })
	s.client = s3.New(s3.Options{
		Region: o.Region, BaseEndpoint: endpoint, UsePathStyle: o.PathStyle, Credentials: s.creds,
		HTTPClient: client.HTTP(), Retryer: aws.NopRetryer{},
		RequestChecksumCalculation: aws.RequestChecksumCalculationWhenRequired, ResponseChecksumValidation: aws.ResponseChecksumValidationWhenRequired,
		DisableLogOutputChecksumValidationSkipped: true, DisableS3ExpressSessionAuth: aws.Bool(true),
		ContinueHeaderThresholdBytes: -1, // waiting for 100 Continue would cost a round trip for every object
	})
	s.Uploads = storage.NewUploads(uploader{s}, storage.UploadOptions{PartSize: o.PartSize, Parallel: o.Parallel, Requests: o.Connections, Memory: memoryParts * o.PartSize})
	return s, nil
}

// client is the HTTP client under the SDK. connect (host, :port, host:port or empty) replaces what the URL says.
func (o *Options) client(connect string) (*transport.Client, error) {
	c, err := transport.New(transport.Options{CAFile: o.CAFile, CAPath: o.CAPath, SkipVerifyTLS: o.SkipVerifyTLS, Timeout: o.Timeout, Connections: o.Connections, Connect: connect})
	if err != nil {
		return nil, fmt.Errorf("s3: %w", err)
	}
	return c, nil
}

// complete fills in defaults and refuses what cannot be.
func (o *Options) complete() error {
	switch {
	case o.Bucket == "":
		return errors.New("s3: no bucket given")
	case strings.ContainsAny(o.Bucket, "/\\ ?#"):
		return fmt.Errorf("s3: %q is not the name of a bucket; a directory in it is the repository's path", o.Bucket)
	case o.Region == "":
		return errors.New("s3: no region given; stores that have none take us-east-1")
	case o.Lock != Unlocked && o.Lock != Governance && o.Lock != Compliance:
		return fmt.Errorf("s3: object lock mode %q: it is GOVERNANCE or COMPLIANCE", o.Lock)
	case (o.Lock == Unlocked) != (o.LockPeriod == 0) || o.LockPeriod < 0:
		return errors.New("s3: object lock needs a mode and a period")
	}
	if err := o.Encryption.check(); err != nil {
		return err
	}
	if o.PartSize == 0 {
		o.PartSize = defaultPartSize
	}
	o.PartSize = min(max(o.PartSize, minPartSize), maxPartSize)
	if o.Parallel <= 0 {
		o.Parallel = defaultParallel
	}
	if o.Connections <= 0 {
		o.Connections = defaultConnections
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.RetryFor <= 0 {
		o.RetryFor = defaultRetryFor
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return nil
}

// endpoint is the URL of the store; nil: the SDK's for the region.
func (o *Options) endpoint() (*string, error) {
	if o.Endpoint == "" {
		return nil, nil
	}
	text := o.Endpoint
	if !strings.Contains(text, "://") {
		text = "https://" + text
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || strings.Trim(u.Path, "/") != "" || u.User != nil || u.RawQuery != "" {
		return nil, errors.New("s3: the endpoint is a host, host:port, or https://host:port, without a user, a path or a query")
	}
	// What is connected to may have another port; Host and signature name it too, unless it is the scheme's own.
	if _, port, err := net.SplitHostPort(o.Connect); err == nil && port != "" && u.Port() == "" && port != map[string]string{"https": "443", "http": "80"}[u.Scheme] {
		u.Host = net.JoinHostPort(u.Hostname(), port)
	}
	u.Path = ""
	return aws.String(u.String()), nil
}

// Abilities says that calls cross a network, and that what a dead writer left can be swept.
func (s *S3) Abilities() storage.Abilities {
	return storage.Abilities{Connections: s.o.Connections, Sweeps: true, Remote: true}
}

// Close gives back idle connections. Nothing is lost without.
func (s *S3) Close() error {
	s.http.CloseIdle()
	return nil
}

// key is the object's name in the bucket.
func (s *S3) key(name string) string { return s.prefix + name }

// ErrReadOnly says that a repository is shown as it was, and can't be changed.
var ErrReadOnly = errors.New("the repository is shown as of an earlier time: it can be read only")

// Create implements storage.Storage.
func (s *S3) Create(ctx context.Context, name string, o storage.CreateOptions) (storage.Writer, error) {
	if !s.o.AsOf.IsZero() {
		return nil, s.fail(storage.OpCreate, name, ErrReadOnly)
	}
	return s.Uploads.Create(ctx, name, o)
}
