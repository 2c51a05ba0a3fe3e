package stores

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Faults that only a Proxy knows, beside those of a Front. Its Busy is S3's SlowDown.
const (
	None       Fault = iota + Tampered + 1 // the request goes through
	Fail                                   // 500 InternalError; the server never sees it
	Expired                                // 400 ExpiredToken; likewise
	Denied                                 // 403 AccessDenied; likewise
	Missing                                // 404 NoSuchKey (without a body for HEAD); likewise
	TamperedUp                             // a byte in the middle of the request's body reaches the server as another one
	Stale                                  // the answer is that which the same request got when it was first made
	LostBusy                               // the server does it; the answer is 500 InternalError
)

// Request is one request as a Proxy sees it.
type Request struct {
	N      int    // of all since Trouble was called last, from 1
	Op     string // S3's name for it: PutObject, UploadPart, ListObjectsV2, …
	Nth    int    // of that Op
	Path   string // of the URL, with the bucket
	Query  string
	Header http.Header
}

// Proxy is between a client and an S3 server: it counts the requests, adds time to each, and makes trouble.
type Proxy struct {
	Endpoint string // localhost:port, with a certificate of the server's authority
	Port     int

	server *S3
	back   *http.Transport

	mu      sync.Mutex
	latency time.Duration
	skew    time.Duration // of the store's clock
	after   time.Duration // what Busy asks for with Retry-After
	judge   func(Request) Fault
	counts  map[string]int
	log     []string
	n       int
	fired   int
	first   map[string][]byte // answers to lists, by query
}

// NewProxy starts one; it ends with the test.
func (s *S3) NewProxy(t testing.TB) *Proxy {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(s.CA.Cert, s.CA.Key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{server: s, Port: l.Addr().(*net.TCPAddr).Port, counts: map[string]int{}, first: map[string][]byte{},
		// The way behind the proxy is not what is tested: any certificate will do.
		back: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true, MaxIdleConnsPerHost: 64}}
	p.Endpoint = "localhost:" + strconv.Itoa(p.Port)
	alsoIPv6(t, p.Port)
	front := &http.Server{Handler: http.HandlerFunc(p.serve), TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	done := make(chan struct{})
	go func() {
		_ = front.Serve(tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{pair}})) // ends with Close
		close(done)
	}()
	t.Cleanup(func() {
		_ = front.Close() // what is on its way is the client's business
		<-done
		p.back.CloseIdleConnections()
	})
	return p
}

// Latency adds time to every request from now on.
func (p *Proxy) Latency(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency = d
}

// Skew sets the clock of the store: requests whose time is more than 15 minutes off are refused as S3 does it.
func (p *Proxy) Skew(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.skew = d
}

func (p *Proxy) clockOff() time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.skew
}

// RetryAfter is how long Busy asks the client to wait, in whole seconds; 0: it does not say.
func (p *Proxy) RetryAfter(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.after = d
}

// Trouble makes judge decide on every request from now on, and all counts start anew. nil: none.
func (p *Proxy) Trouble(judge func(Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.judge, p.counts, p.log, p.n, p.fired = judge, map[string]int{}, nil, 0, 0
}

// Fired returns how many requests met trouble since Trouble was called.
func (p *Proxy) Fired() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fired
}

// Counts returns how often each operation was asked for since Trouble was called.
func (p *Proxy) Counts() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.counts)
}

// Requests are those since Trouble was called, as "PutObject /bucket/key?query", with the trouble behind it.
func (p *Proxy) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.log...)
}

// operation is S3's name for a request.
func operation(r *http.Request) string {
	q := r.URL.Query()
	object := strings.Count(strings.Trim(r.URL.Path, "/"), "/") > 0
	for _, known := range []struct {
		method string
		object bool
		query  string
		name   string
	}{
		{"GET", false, "versions", "ListObjectVersions"}, {"GET", false, "uploads", "ListMultipartUploads"}, {"GET", false, "list-type", "ListObjectsV2"},
		{"POST", false, "delete", "DeleteObjects"}, {"POST", true, "uploads", "CreateMultipartUpload"}, {"POST", true, "uploadId", "CompleteMultipartUpload"},
		{"PUT", true, "partNumber", "UploadPart"}, {"DELETE", true, "uploadId", "AbortMultipartUpload"},
		{"GET", true, "", "GetObject"}, {"HEAD", true, "", "HeadObject"}, {"PUT", true, "", "PutObject"}, {"DELETE", true, "", "DeleteObject"}, {"HEAD", false, "", "HeadBucket"},
	} {
		if r.Method == known.method && object == known.object && (known.query == "" || q.Has(known.query)) {
			return known.name
		}
	}
	return r.Method
}

// meet counts a request and says what happens to it.
func (p *Proxy) meet(r *http.Request) (Request, Fault, time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
	req := Request{N: p.n, Op: operation(r), Path: r.URL.Path, Query: r.URL.RawQuery, Header: r.Header}
	p.counts[req.Op]++
	req.Nth = p.counts[req.Op]
	what := None
	if p.judge != nil {
		what = p.judge(req)
	}
	line := req.Op + " " + req.Path + "?" + req.Query
	if what != None {
		p.fired++
		line += " (" + what.String() + ")"
	}
	p.log = append(p.log, line)
	return req, what, p.latency
}

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	req, what, latency := p.meet(r)
	time.Sleep(latency)
	switch what {
	case Busy:
		p.refuse(w, r, http.StatusServiceUnavailable, "SlowDown")
	case Fail:
		p.refuse(w, r, http.StatusInternalServerError, "InternalError")
	case Expired:
		p.refuse(w, r, http.StatusBadRequest, "ExpiredToken")
	case Denied:
		p.refuse(w, r, http.StatusForbidden, "AccessDenied")
	case Missing:
		p.refuse(w, r, http.StatusNotFound, "NoSuchKey")
	case CutUp:
		_, _ = io.CopyN(io.Discard, r.Body, max(r.ContentLength/2, 0)) // whatever comes
		hangUp(w)
	default:
		if p.early(w, r) {
			return
		}
		p.pass(w, r, req, what)
	}
}

// refuse answers in the store's place.
func (p *Proxy) refuse(w http.ResponseWriter, r *http.Request, status int, code string) {
	p.mu.Lock()
	after, skew := p.after, p.skew
	p.mu.Unlock()
	_, _ = io.Copy(io.Discard, r.Body) // so that the connection can be used again
	if after > 0 && code == "SlowDown" {
		w.Header().Set("Retry-After", strconv.Itoa(int(after/time.Second)))
	}
	w.Header().Set("Content-Type", "application/xml")
	w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>by the test</Message></Error>`, code)
	}
}

// hangUp breaks the connection.
func hangUp(w http.ResponseWriter) {
	if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
		_ = c.Close() // that is the point
	}
}

// early refuses what is of another time than the store's, and signs the rest anew for the server behind.
func (p *Proxy) early(w http.ResponseWriter, r *http.Request) bool {
	skew := p.clockOff()
	if skew == 0 {
		return false
	}
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if off := time.Until(at) - skew; err != nil || off < -15*time.Minute || off > 15*time.Minute {
		p.refuse(w, r, http.StatusForbidden, "RequestTimeTooSkewed")
		return true
	}
	r.Header.Del("Authorization")
	err = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(r.Context(), aws.Credentials{AccessKeyID: p.server.Key, SecretAccessKey: p.server.Secret}, r,
		r.Header.Get("X-Amz-Content-Sha256"), "s3", p.server.Region, time.Now())
	if err != nil {
		p.refuse(w, r, http.StatusInternalServerError, err.Error())
	}
	return err != nil
}

// pass hands a request on, and the answer back as the trouble wants it.
func (p *Proxy) pass(w http.ResponseWriter, r *http.Request, req Request, what Fault) {
	out := r.Clone(context.WithoutCancel(r.Context())) // what has been sent is done, whether the client waits or not
	out.URL.Scheme, out.URL.Host, out.RequestURI = "https", p.server.Endpoint, ""
	if r.ContentLength == 0 {
		out.Body = http.NoBody // else it would go without a length
	} else if what == TamperedUp {
		out.Body = io.NopCloser(&flip{r: r.Body, at: r.ContentLength / 2})
	}
	resp, err := p.back.RoundTrip(out)
	if err != nil {
		hangUp(w)
		return
	}
	defer resp.Body.Close() // read to its end, or not wanted
	body := io.Reader(resp.Body)
	switch what {
	case Lost:
		_, _ = io.Copy(io.Discard, body) // the server is to be done with it
		hangUp(w)
		return
	case LostBusy:
		_, _ = io.Copy(io.Discard, body)
		p.refuse(w, r, http.StatusInternalServerError, "InternalError")
		return
	}
	size := resp.ContentLength
	if strings.HasPrefix(req.Op, "List") && resp.StatusCode == http.StatusOK {
		b, err := io.ReadAll(body)
		if err != nil {
			hangUp(w)
			return
		}
		b = p.remember(r, b, what)
		body, size = bytes.NewReader(b), int64(len(b))
		resp.Header.Set("Content-Length", strconv.Itoa(len(b)))
		resp.Header.Del("Transfer-Encoding")
	}
	maps.Copy(w.Header(), resp.Header)
	if skew := p.clockOff(); skew != 0 {
		w.Header().Set("Date", time.Now().Add(skew).UTC().Format(http.TimeFormat))
	}
	w.WriteHeader(resp.StatusCode)
	switch what {
	case CutDown:
		_, _ = io.CopyN(w, body, max(size/2, 0))
		_ = http.NewResponseController(w).Flush() // the client is to have it
		hangUp(w)
		return
	case Tampered:
		body = &flip{r: body, at: size / 2}
	}
	_, _ = io.Copy(w, body) // a client that went away is the client's business
}

// remember keeps the first answer to a list and returns it for Stale; else the answer itself.
func (p *Proxy) remember(r *http.Request, b []byte, what Fault) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := r.URL.Path + "?" + r.URL.RawQuery
	if p.first[key] == nil {
		p.first[key] = b
	}
	if what == Stale {
		return p.first[key]
	}
	return b
}

// flip changes the byte at one place.
type flip struct {
	r  io.Reader
	at int64 // counted from what has been read
}

func (f *flip) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.at >= 0 && f.at < int64(n) {
		p[f.at] ^= 1
	}
	f.at -= int64(n)
	return n, err
}
