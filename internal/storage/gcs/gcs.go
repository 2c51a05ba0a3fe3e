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
	"holdfast/internal/storage/bucket"
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
	o      Options
	base   string // scheme and host
	client *transport.Client
	tokens *tokens
	page   int // objects asked for in one list request
	*bucket.Bucket
}

// objects is the store's protocol for package bucket.
type objects struct{ *Store }

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
	var err error
	s.client, err = transport.New(transport.Options{CAFile: o.CAFile, CAPath: o.CAPath, SkipVerifyTLS: o.SkipVerifyTLS, Timeout: o.Timeout, Connections: o.Connections})
	if err != nil {
		return nil, fmt.Errorf("gcs: %w", err)
	}
	if s.tokens, err = newTokens(o, s.client); err != nil {
		return nil, fmt.Errorf("gcs: %w", err)
	}
	s.Bucket = bucket.New(bucket.Options{Address: "gs://" + o.Bucket, Prefix: o.Prefix, Connections: o.Connections, PartSize: o.PartSize, Parallel: 1}, objects{s})
	return s, nil
}

// object is the path of one object in the API.
func (s *Store) object(name string) string {
	return "/storage/v1/b/" + url.PathEscape(s.o.Bucket) + "/o/" + url.PathEscape(s.Key(name))
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
	err = refusal(resp)
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

// refusal is the error that an answer is. Only the store itself says that an object is missing: 404 also comes from a proxy, and
// of a bucket.
func refusal(resp *http.Response) error {
	text, own, err := message(resp.Body)
	said := &statusError{resp.StatusCode, text}
	if err != nil && said.code == http.StatusNotFound { // it broke off before it said of what
		return storage.Temporary(said)
	}
	if said.code == http.StatusNotFound && (!own || strings.Contains(text, "bucket does not exist")) {
		return storage.Unavailable(said)
	}
	return transport.Mark(said, resp.StatusCode, resp.Header)
}

// noObject begins what the store says in plain text of an object that is missing.
const noObject = "No such object"

// message is what the store says in the body of an error. own: it is said as this store says it.
func message(body io.Reader) (text string, own bool, err error) {
	b, err := io.ReadAll(io.LimitReader(body, 16<<10))
	if err != nil {
		return "", false, err
	}
	var e struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(b, &e) == nil && e.Error.Message != "" {
		return e.Error.Message, true, nil
	}
	text = strings.TrimSpace(string(b))
	return text[:min(len(text), 200)], strings.HasPrefix(text, noObject), nil
}

// decode reads a JSON answer.
func decode(resp *http.Response, into any) error {
	defer transport.Drain(resp.Body)
	if err := json.NewDecoder(resp.Body).Decode(into); err != nil {
		return storage.Temporary(fmt.Errorf("read the store's answer: %w", err))
	}
	return nil
}

// Stat implements bucket.Protocol.
func (s objects) Stat(ctx context.Context, name string) (bucket.Object, error) {
	r, err := s.stat(ctx, name)
	return bucket.Object{Size: r.Size, Time: r.Updated}, err
}

func (s *Store) stat(ctx context.Context, name string) (resource, error) {
	resp, err := s.do(ctx, request{method: "GET", path: s.object(name), query: url.Values{"fields": {resourceFields}}}, http.StatusOK)
	if err != nil {
		return resource{}, err
	}
	var r resource
	return r, decode(resp, &r)
}

// Get implements bucket.Protocol.
func (s objects) Get(ctx context.Context, name string, offset, length int64) (bucket.Answer, error) {
	header := map[string]string{}
	switch {
	case length > 0:
		header["Range"] = fmt.Sprintf("bytes=%d-%d", offset, offset+length-1)
	case offset > 0:
		header["Range"] = fmt.Sprintf("bytes=%d-", offset)
	}
	resp, err := s.do(ctx, request{method: "GET", path: s.object(name), query: url.Values{"alt": {"media"}}, header: header}, http.StatusOK, http.StatusPartialContent)
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		err = bucket.ErrRange
	}
	if status(err) == http.StatusNotFound && !errors.Is(err, fs.ErrNotExist) { // not in the store's words: what does it say of the object itself?
		if _, serr := s.stat(ctx, name); errors.Is(serr, fs.ErrNotExist) {
			err = serr
		}
	}
	if err != nil {
		return bucket.Answer{}, err
	}
	total, err := size(resp, offset)
	if err != nil {
		transport.Drain(resp.Body)
	}
	return bucket.Answer{Body: resp.Body, Total: total, CRC: crcOf(resp.Header)}, err
}

// size is the size of the whole object, out of an answer with a part of it.
func size(resp *http.Response, offset int64) (int64, error) {
	if resp.StatusCode == http.StatusOK {
		if offset != 0 || resp.ContentLength < 0 {
			return 0, errors.New("the store did not heed the range that was asked for")
		}
		return resp.ContentLength, nil
	}
	return bucket.Total(resp.Header.Get("Content-Range"))
}

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

// List implements bucket.Protocol.
func (s objects) List(ctx context.Context, prefix string, level bool) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		q := url.Values{"prefix": {prefix}, "maxResults": {strconv.Itoa(s.page)}, "fields": {"nextPageToken,prefixes,items(name,size,updated)"}}
		if level {
			q.Set("delimiter", "/")
		}
		for more := true; more; more = q.Get("pageToken") != "" {
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
				yield(storage.Info{}, lasting(err))
				return
			}
			for _, p := range page.Prefixes {
				if !yield(storage.Info{Name: p, Dir: true}, nil) {
					return
				}
			}
			for _, it := range page.Items {
				if !yield(storage.Info{Name: it.Name, Size: it.Size, ModTime: it.Updated}, nil) {
					return
				}
			}
			q.Set("pageToken", page.Next)
		}
	}
}
