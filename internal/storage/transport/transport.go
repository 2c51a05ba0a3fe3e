// Package transport is what stores behind HTTP share: connections with the operator's certificates and a limit on silence,
// which errors are worth repeating, and a reader of one range that keeps the contract of storage.Storage.
package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/storage"
)

// Defaults and bounds.
const (
	defaultTimeout = time.Minute      // pgBackRest's io-timeout
	dialTimeout    = 10 * time.Second // of a connection that nobody answers; Timeout if that is shorter
	connections    = 32               // kept open per host
	keepIdle       = 30 * time.Second
	ioBuffer       = 64 << 10 // bytes read and written at once on a connection
)

// Options says how a store is reached.
type Options struct {
	CAFile        string        // PEM file of certificate authorities; with CAPath empty too: the system's
	CAPath        string        // directory of such files
	SkipVerifyTLS bool          // accept any certificate; for tests of an operator's network
	Timeout       time.Duration // longest silence of the other side before a request is given up; 0: one minute
	Connections   int           // kept open per host; 0: 32
	// Connect is the host, :port or host:port to connect to where it is not what the URL says. As pgBackRest has it, the
	// certificate is then that of the host which is connected to, and no proxy is asked.
	Connect string
	Direct  bool // ask no proxy: for what is only reached from this host, as a metadata server
	// Proxy chooses the proxy of a request; nil: as HTTPS_PROXY, HTTP_PROXY and NO_PROXY of the environment say.
	Proxy func(*http.Request) (*url.URL, error)
}

// Client sends requests. Its errors never show a URL: tokens are in the URLs of some stores.
type Client struct {
	http      *http.Client
	transport *http.Transport
}

// New reads the certificates and returns a client: HTTP/1.1 on many connections. It connects to nothing.
func New(o Options) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	if o.Connections <= 0 {
		o.Connections = connections
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.SkipVerifyTLS, ClientSessionCache: tls.NewLRUClientSessionCache(o.Connections)}
	if o.CAFile != "" || o.CAPath != "" {
		var err error
		if config.RootCAs, err = authorities(o.CAFile, o.CAPath); err != nil {
			return nil, err
		}
	}
	host, port := o.Connect, ""
	if h, p, err := net.SplitHostPort(o.Connect); err == nil {
		host, port = h, p
	}
	config.ServerName = host
	dialer := &net.Dialer{Timeout: min(o.Timeout, dialTimeout)}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		h, p, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		c, err := dialer.DialContext(ctx, network, net.JoinHostPort(cmp.Or(host, h), cmp.Or(port, p)))
		if err != nil {
			return nil, err
		}
		return &watchedConn{c, o.Timeout}, nil
	}
	proxy := o.Proxy
	switch {
	case o.Direct || o.Connect != "":
		proxy = nil
	case proxy == nil:
		proxy = http.ProxyFromEnvironment
	}
	// HTTP/2 would send everything through one connection, whose window bounds the throughput over a long way.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	t := &http.Transport{Proxy: proxy, DialContext: dial, TLSClientConfig: config, TLSHandshakeTimeout: min(o.Timeout, dialTimeout), ResponseHeaderTimeout: o.Timeout,
		MaxIdleConns: 2 * o.Connections, MaxIdleConnsPerHost: 2 * o.Connections, IdleConnTimeout: keepIdle, DisableCompression: true, Protocols: protocols,
		ReadBufferSize: ioBuffer, WriteBufferSize: ioBuffer}
	// Following would take the credentials along to wherever the answer says.
	return &Client{&http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}, t}, nil
}

// authorities reads PEM files.
func authorities(file, dir string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	if file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("certificate authorities: %s holds no certificate in PEM form", file)
		}
	}
	if dir == "" {
		return pool, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("certificate authorities: %w", err)
	}
	found := false
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		found = pool.AppendCertsFromPEM(b) || found
	}
	if !found {
		return nil, fmt.Errorf("certificate authorities: no file in %s holds a certificate in PEM form", dir)
	}
	return pool, nil
}

// watchedConn is a connection on which silence has a limit: every step of progress in either direction extends it.
type watchedConn struct {
	net.Conn
	timeout time.Duration
}

// Read implements io.Reader.
func (c *watchedConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements io.Writer. It also prolongs the read that waits for its answer.
func (c *watchedConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// Do sends one request. An error of the network is temporary in the sense of package storage; the end of the request's
// context is that context's error. Any answer, whatever its status, is no error.
func (c *Client) Do(req *http.Request) (*http.Response, error) {
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", req.Method, req.URL.Host, Error(req.Context(), err))
	}
	return resp, nil
}

// HTTP is the client for a library that wants one. What it returns must go through Error before anybody sees it.
func (c *Client) HTTP() *http.Client { return c.http }

// CloseIdle gives back the connections that nobody uses at the moment. Nothing is lost without.
func (c *Client) CloseIdle() { c.transport.CloseIdleConnections() }

// Error is err without the URL that package net/http puts into it, marked temporary if it is worth repeating and unavailable
// otherwise.
func Error(ctx context.Context, err error) error {
	var withURL *url.Error
	for errors.As(err, &withURL) {
		err = withURL.Err
	}
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	if lasting(err) {
		return storage.Unavailable(err)
	}
	return storage.Temporary(err)
}

// lasting reports whether an error of a request will be the same next time: names and certificates do not heal in seconds.
func lasting(err error) bool {
	var dns *net.DNSError
	var header tls.RecordHeaderError
	var cert *tls.CertificateVerificationError
	var unknown x509.UnknownAuthorityError
	var address *net.AddrError
	return errors.As(err, &dns) && dns.IsNotFound || errors.As(err, &header) || errors.As(err, &cert) || errors.As(err, &unknown) ||
		errors.As(err, &address) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// TemporaryStatus reports whether a store that answers with this status may do what it is asked later.
func TemporaryStatus(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

// Mark makes an error out of an answer's status: fs.ErrNotExist for 404, temporary with the pause that the store asks for
// where a repetition may help, err itself where the answer is about the object (a condition that does not hold, a range that
// it has not), and unavailable for every other: the store does not admit us, does not know what it was asked, or is not
// the store, and nothing follows for the object.
func Mark(err error, code int, header http.Header) error {
	switch {
	case code == http.StatusNotFound:
		return fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	case code == http.StatusConflict || code == http.StatusGone || code == http.StatusPreconditionFailed || code == http.StatusRequestedRangeNotSatisfiable:
		return err
	case !TemporaryStatus(code):
		return storage.Unavailable(err)
	}
	if s, perr := strconv.Atoi(header.Get("Retry-After")); perr == nil && s > 0 {
		return storage.TemporaryAfter(err, time.Duration(s)*time.Second)
	}
	return storage.Temporary(err)
}

// Drain reads what little is left of an answer, so that its connection can be used again, and closes it.
func Drain(body io.ReadCloser) {
	// Best effort: a connection that fails here is not used again.
	_, _ = io.CopyN(io.Discard, body, 64<<10)
	_ = body.Close()
}
