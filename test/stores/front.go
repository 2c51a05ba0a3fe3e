package stores

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Fault is what a Front or a Proxy does to one request.
type Fault int

// The faults.
const (
	Busy     Fault = iota // 503 at once; the server never sees the request
	Refused               // 429, likewise
	CutUp                 // the connection breaks in the middle of the request's body; the server never sees it
	Lost                  // the server does it; the connection breaks before the answer
	CutDown               // the server does it; the connection breaks in the middle of the answer's body
	Tampered              // the server does it; a byte of the answer's body is another one
)

// Faults are all kinds but Tampered, which only some answers are guarded against.
var Faults = []Fault{Busy, Refused, CutUp, Lost, CutDown}

// String returns the fault in a word.
func (f Fault) String() string {
	return [...]string{"busy", "refused", "cut up", "lost", "cut down", "tampered", "none", "fail", "expired", "denied", "missing", "tampered up", "stale", "lost busy"}[f]
}

// Front is between an adapter and its server, and spoils the requests that it is told to.
type Front struct {
	Port   int
	CAFile string

	// before answers a request itself, or returns nil; after sees every answer of the server. Both may be nil.
	before func(r *http.Request) *http.Response
	after  func(r *http.Request, resp *http.Response)

	mu    sync.Mutex
	match func(n int, r *http.Request) bool
	fault Fault
	seen  int
	fired int
	kinds []string
}

// Address is host and port.
func (p *Front) Address() string { return "127.0.0.1:" + strconv.Itoa(p.Port) }

// Spoil makes the requests fail that match says yes to, numbered from 1, from now on. nil: none.
func (p *Front) Spoil(f Fault, match func(n int, r *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fault, p.match, p.seen, p.fired, p.kinds = f, match, 0, 0, nil
}

// Fired returns how many requests have been spoilt since the last Spoil, and Requests what has been asked since.
func (p *Front) Fired() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fired
}

// Requests are the requests since the last Spoil, as "PUT /path".
func (p *Front) Requests() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.kinds...)
}

// NewFront starts one in front of a server that speaks HTTPS.
func NewFront(t testing.TB, s *Server) *Front {
	t.Helper()
	ca := NewCA(t)
	pair, err := tls.LoadX509KeyPair(ca.Cert, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	p := &Front{CAFile: ca.File}
	// The way behind the proxy is not what is tested: any certificate will do.
	back := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableCompression: true, MaxIdleConnsPerHost: 32}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.serve(w, r, back, s.Address()) }))
	front.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	front.StartTLS()
	t.Cleanup(func() {
		front.CloseClientConnections()
		front.Close()
		back.CloseIdleConnections()
	})
	p.Port = front.Listener.Addr().(*net.TCPAddr).Port
	return p
}

// judge counts a request and says whether it is to be spoilt.
func (p *Front) judge(r *http.Request) (Fault, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen++
	p.kinds = append(p.kinds, r.Method+" "+r.URL.Path)
	if p.match == nil || !p.match(p.seen, r) {
		return 0, false
	}
	p.fired++
	return p.fault, true
}

// forward asks the server, unless before has the answer.
func (p *Front) forward(r *http.Request, back http.RoundTripper) (*http.Response, error) {
	if p.before != nil {
		if resp := p.before(r); resp != nil {
			return resp, nil
		}
	}
	resp, err := back.RoundTrip(r)
	if err == nil && p.after != nil {
		p.after(r, resp)
	}
	return resp, err
}

func (p *Front) serve(w http.ResponseWriter, r *http.Request, back http.RoundTripper, to string) {
	fault, spoil := p.judge(r)
	hang := func() {
		c, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			c.Close() // that is the point
		}
	}
	if spoil && fault == CutUp {
		_, _ = io.CopyN(io.Discard, r.Body, max(r.ContentLength/2, 0)) // whatever comes
		hang()
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return // the client went away
	}
	if spoil && fault == Busy {
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	if spoil && fault == Refused {
		http.Error(w, "slow down", http.StatusTooManyRequests)
		return
	}
	out := r.Clone(r.Context())
	out.URL.Scheme, out.URL.Host, out.RequestURI = "https", to, ""
	out.Body, out.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	if len(body) == 0 {
		out.Body = http.NoBody // else it would go without a length
	}
	resp, err := p.forward(out, back)
	if err != nil {
		http.Error(w, "front: "+err.Error(), http.StatusBadGateway)
		return
	}
	answer, err := io.ReadAll(resp.Body)
	resp.Body.Close() // read to its end
	if err != nil || spoil && fault == Lost {
		hang()
		return
	}
	for k, v := range resp.Header {
		if !strings.EqualFold(k, "Transfer-Encoding") {
			w.Header()[k] = v
		}
	}
	if r.Method != http.MethodHead {
		w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	}
	w.WriteHeader(resp.StatusCode)
	if spoil && fault == Tampered && len(answer) > 0 {
		answer[len(answer)/2] ^= 1
	}
	if spoil && fault == CutDown {
		_, _ = w.Write(answer[:len(answer)/2])
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		hang()
		return
	}
	_, _ = w.Write(answer) // a client that went away is the client's business
}
