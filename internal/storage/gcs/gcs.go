// Package gcs keeps a repository in a bucket of Google Cloud Storage, laid out as pgBackRest lays it out there.
//
// It speaks the JSON API itself, over net/http: Google's own client links gRPC and costs every start of the program
// milliseconds, with or without a bucket (docs/dependencies.md). Credentials are golang.org/x/oauth2's business.
//
// What the store promises and this package uses: an object appears whole or not at all; lists and reads are consistent
// at once; every object has a CRC-32C, which is checked on the way in and, when a whole object is read, on the way out.
package gcs

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/storage"
	"holdfast/internal/storage/transport"
)

// Defaults.
const (
	DefaultEndpoint = "storage.googleapis.com"
	DefaultPartSize = 4 << 20 // pgBackRest's
	chunkUnit       = 256 << 10
	connections     = 16
	pageSize        = 1000
	batchSize       = 100 // what the store takes
)

// Kinds of Options.KeyType.
const (
	KeyService = "service" // KeyFile is the JSON key of a service account
	KeyToken   = "token"   // Token is an access token, fixed for the run
	KeyAuto    = "auto"    // the metadata server of the machine
)

// Options says where the bucket is and who we are. The comments name pgBackRest's options.
type Options struct {
	Bucket        string            // repo-gcs-bucket
	Prefix        string            // repo-path: what comes before every name in the bucket
	Endpoint      string            // repo-gcs-endpoint: host, host:port, or a URL (http:// for a server of a test); "" = Google's
	KeyType       string            // repo-gcs-key-type; "" = service
	KeyFile       string            // repo-gcs-key, for service
	Token         storage.Secret    // repo-gcs-key, for token
	UserProject   string            // repo-gcs-user-project: who pays for the requests
	CAFile        string            // repo-storage-ca-file
	CAPath        string            // repo-storage-ca-path
	SkipVerifyTLS bool              // repo-storage-verify-tls=n
	PartSize      int64             // repo-storage-upload-chunk-size, bytes, rounded up to 256 KiB; 0: 4 MiB
	Tags          map[string]string // repo-storage-tag: metadata of every new object
	Timeout       time.Duration     // io-timeout: longest silence of the store; 0: one minute
	Connections   int               // requests at once; 0: 16
	Backoff       storage.Backoff   // of uploads, which repeat their requests themselves
}

// Store is a bucket, or what is below one path in it. It implements storage.Storage.
type Store struct {
	o       Options
	prefix  string // "" or ending in a slash
	base    string // scheme and host
	client  *transport.Client
	tokens  *tokens
	uploads *storage.Uploads
	page    int // objects asked for in one list request
}

// New checks the options and reads the key file and the certificates. It connects to nothing.
func New(o Options) (*Store, error) {
	if o.Bucket == "" {
		return nil, errors.New("gcs: no bucket given")
	}
	if o.PartSize <= 0 {
		o.PartSize = DefaultPartSize
	}
	o.PartSize = (o.PartSize + chunkUnit - 1) / chunkUnit * chunkUnit
	if o.Connections <= 0 {
		o.Connections = connections
	}
	s := &Store{o: o, page: pageSize, base: strings.TrimSuffix(cmp.Or(o.Endpoint, DefaultEndpoint), "/")}
	if !strings.Contains(s.base, "://") {
		s.base = "https://" + s.base
	}
	if _, err := url.Parse(s.base); err != nil {
		return nil, fmt.Errorf("gcs: endpoint: %w", err)
	}
	if p := strings.Trim(o.Prefix, "/"); p != "" {
		s.prefix = p + "/"
	}
	var err error
	s.client, err = transport.New(transport.Options{CAFile: o.CAFile, CAPath: o.CAPath, SkipVerifyTLS: o.SkipVerifyTLS, Timeout: o.Timeout})
	if err != nil {
		return nil, fmt.Errorf("gcs: %w", err)
	}
	if s.tokens, err = newTokens(o, s.client); err != nil {
		return nil, fmt.Errorf("gcs: %w", err)
	}
	s.uploads = storage.NewUploads(uploader{s}, storage.UploadOptions{PartSize: o.PartSize, Parallel: 1, Requests: o.Connections,
		Memory: 2 * o.PartSize * int64(o.Connections)})
	return s, nil
}

// Abilities says that calls go over a network and that nothing beyond the interface is offered.
func (s *Store) Abilities() storage.Abilities {
	return storage.Abilities{Connections: s.o.Connections, Remote: true}
}

// fail describes an error by the object's address.
func (s *Store) fail(op, name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &fs.PathError{Op: op, Path: "gs://" + s.o.Bucket + "/" + s.prefix + name, Err: err}
}

// object is the path of one object in the API.
func (s *Store) object(name string) string {
	return "/storage/v1/b/" + url.PathEscape(s.o.Bucket) + "/o/" + url.PathEscape(s.prefix+name)
}

// resource is what the API tells of an object; it writes 64-bit numbers as strings.
type resource struct {
	Name       string    `json:"name"`
	Size       int64     `json:"size,string"`
	Updated    time.Time `json:"updated"`
	CRC32C     string    `json:"crc32c"`
	Generation string    `json:"generation"`
}

const resourceFields = "name,size,updated,crc32c,generation"

// request is one call of the API.
type request struct {
	method, path string
	query        url.Values
	header       map[string]string
	body         io.Reader
	length       int64
}

// do sends a request with its credentials. Statuses outside ok are errors that carry what the store says.
func (s *Store) do(ctx context.Context, r request, ok ...int) (*http.Response, error) {
	token, err := s.tokens.get(ctx)
	if err != nil {
		return nil, err
	}
	u := s.base + r.path
	if len(r.query) > 0 {
		u += "?" + r.query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.method, u, r.body)
	if err != nil {
		return nil, errors.New("the endpoint is not a valid address")
	}
	req.ContentLength = r.length
	if r.length == 0 {
		req.Body = http.NoBody
	}
	req.Header.Set("Authorization", "Bearer "+string(token))
	if s.o.UserProject != "" {
		req.Header.Set("X-Goog-User-Project", s.o.UserProject)
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	if slices.Contains(ok, resp.StatusCode) {
		return resp, nil
	}
	defer transport.Drain(resp.Body)
	err = transport.Mark(&statusError{resp.StatusCode, message(resp.Body)}, resp.StatusCode, resp.Header)
	if resp.StatusCode == http.StatusUnauthorized && s.tokens.renew(token) {
		err = storage.Temporary(err) // it ran out in the middle of the run; the next one is fetched
	}
	return nil, err
}

// statusError is an answer that says no.
type statusError struct {
	code    int
	message string
}

// Error implements error.
func (e *statusError) Error() string {
	return strings.TrimSpace(fmt.Sprintf("the store answers %d %s: %s", e.code, http.StatusText(e.code), e.message))
}

// status is the status of an answer that became an error; 0: there was none.
func status(err error) int {
	var e *statusError
	if errors.As(err, &e) {
		return e.code
	}
	return 0
}

// message is what the store says in the body of an error.
func message(body io.Reader) string {
	b, err := io.ReadAll(io.LimitReader(body, 16<<10))
	if err != nil {
		return ""
	}
	var e struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(b, &e) == nil && e.Error.Message != "" {
		return e.Error.Message
	}
	text := strings.TrimSpace(string(b))
	return text[:min(len(text), 200)]
}

// decode reads a JSON answer.
func decode(resp *http.Response, into any) error {
	defer transport.Drain(resp.Body)
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return storage.Temporary(fmt.Errorf("read the store's answer: %w", err))
	}
	return nil
}

// check is what every call with a name begins with.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return storage.CheckName(name)
}

// Stat implements storage.Storage.
func (s *Store) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := check(ctx, name); err != nil {
		return storage.Info{}, err
	}
	if err := s.uploads.Wait(ctx, name); err != nil {
		return storage.Info{}, err
	}
	r, err := s.stat(ctx, name)
	if err != nil {
		return storage.Info{}, s.fail("stat", name, err)
	}
	return storage.Info{Name: name, Size: r.Size, ModTime: r.Updated}, nil
}

func (s *Store) stat(ctx context.Context, name string) (resource, error) {
	resp, err := s.do(ctx, request{method: "GET", path: s.object(name), query: url.Values{"fields": {resourceFields}}}, http.StatusOK)
	if err != nil {
		return resource{}, err
	}
	var r resource
	return r, decode(resp, &r)
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
	header := map[string]string{}
	switch {
	case length > 0 && offset+length > offset: // no overflow
		header["Range"] = fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	case offset > 0:
		header["Range"] = fmt.Sprintf("bytes=%d-", offset)
	}
	resp, err := s.do(ctx, request{method: "GET", path: s.object(name), query: url.Values{"alt": {"media"}}, header: header}, http.StatusOK, http.StatusPartialContent)
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		return s.nothing(ctx, name, offset, length)
	}
	if err != nil {
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
	if sum := crcOf(resp.Header); offset == 0 && want.Length == total && sum != nil {
		want.Sum, want.Want = newCRC(), sum
	}
	return transport.NewReader(ctx, resp.Body, want), nil
}

// nothing answers for a range without bytes: after the end, or of length 0.
func (s *Store) nothing(ctx context.Context, name string, offset, length int64) (io.ReadCloser, error) {
	r, err := s.stat(ctx, name)
	if err != nil {
		return nil, err
	}
	return transport.Short(ctx, offset > r.Size || length > 0), nil
}

// size is the size of the whole object, out of an answer with a part of it.
func size(resp *http.Response, offset int64) (int64, error) {
	if resp.StatusCode == http.StatusOK {
		if offset != 0 || resp.ContentLength < 0 {
			return 0, errors.New("the store did not heed the range that was asked for")
		}
		return resp.ContentLength, nil
	}
	_, total, _ := strings.Cut(resp.Header.Get("Content-Range"), "/")
	n, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return 0, errors.New("the store did not say which range it sends")
	}
	return n, nil
}

// newCRC is the checksum that the store has of every object.
func newCRC() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }

// crcOf finds the checksum of the whole object in an answer's header.
func crcOf(h http.Header) []byte {
	for _, line := range h.Values("X-Goog-Hash") {
		for one := range strings.SplitSeq(line, ",") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(one), "crc32c="); ok {
				if b, err := base64.StdEncoding.DecodeString(v); err == nil && len(b) == 4 {
					return b
				}
			}
		}
	}
	return nil
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
		if o.Recursive {
			s.walk(ctx, dir, o, yield)
			return
		}
		var level []storage.Info
		ok := true
		s.walk(ctx, dir, o, func(in storage.Info, err error) bool {
			if err != nil {
				yield(in, err)
				ok = false
				return false
			}
			level = append(level, in)
			return true
		})
		slices.SortFunc(level, func(a, b storage.Info) int { return cmp.Compare(a.Name, b.Name) })
		level = slices.CompactFunc(level, func(a, b storage.Info) bool { return a.Name == b.Name }) // a directory may be on two pages
		for i := 0; ok && i < len(level); i++ {
			if err := ctx.Err(); err != nil {
				yield(storage.Info{}, err)
				return
			}
			ok = yield(level[i], nil)
		}
	}
}

// walk yields what the store lists, in its order.
func (s *Store) walk(ctx context.Context, dir string, o storage.ListOptions, yield func(storage.Info, error) bool) {
	q := url.Values{"prefix": {s.prefix + dir + o.Prefix}, "maxResults": {strconv.Itoa(s.page)},
		"fields": {"nextPageToken,prefixes,items(name,size,updated)"}}
	if !o.Recursive {
		q.Set("delimiter", "/")
	}
	for {
		var page struct {
			Next     string     `json:"nextPageToken"`
			Prefixes []string   `json:"prefixes"`
			Items    []resource `json:"items"`
		}
		resp, err := s.do(ctx, request{method: "GET", path: "/storage/v1/b/" + url.PathEscape(s.o.Bucket) + "/o", query: q}, http.StatusOK)
		if err == nil {
			err = decode(resp, &page)
		}
		if err != nil {
			yield(storage.Info{}, s.fail("list", strings.TrimSuffix(dir, "/"), lasting(err)))
			return
		}
		for _, p := range page.Prefixes {
			name := strings.TrimSuffix(strings.TrimPrefix(p, s.prefix), "/")
			if storage.CheckName(name) == nil && !yield(storage.Info{Name: name, Dir: true}, nil) {
				return
			}
		}
		for _, it := range page.Items {
			if err := ctx.Err(); err != nil {
				yield(storage.Info{}, err)
				return
			}
			name := strings.TrimPrefix(it.Name, s.prefix)
			if storage.CheckName(name) == nil && !yield(storage.Info{Name: name, Size: it.Size, ModTime: it.Updated}, nil) {
				return
			}
		}
		if page.Next == "" {
			return
		}
		q.Set("pageToken", page.Next)
	}
}
