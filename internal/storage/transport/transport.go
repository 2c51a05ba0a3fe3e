// Package transport is what stores behind HTTP share: connections with the operator's certificates and a limit on silence,
// which errors are worth repeating, and a reader of one range that keeps the contract of storage.Storage.
package transport

import (
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

// Defaults.
const (
	defaultTimeout = time.Minute // pgBackRest's io-timeout
	connections    = 32          // kept open per host
	keepIdle       = 90 * time.Second
)

// Options says how a store is reached.
type Options struct {
	CAFile        string        // PEM file of certificate authorities; with CAPath empty too: the system's
	CAPath        string        // directory of such files
	SkipVerifyTLS bool          // accept any certificate; for tests of an operator's network
	Timeout       time.Duration // longest silence of the other side before a request is given up; 0: one minute
}

// Client sends requests. Its errors never show a URL: tokens are in the URLs of some stores.
type Client struct{ http *http.Client }

// New reads the certificates and returns a client. It connects to nothing.
func New(o Options) (*Client, error) {
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.SkipVerifyTLS}
	if o.CAFile != "" || o.CAPath != "" {
		var err error
		if config.RootCAs, err = authorities(o.CAFile, o.CAPath); err != nil {
			return nil, err
		}
	}
	dialer := &net.Dialer{Timeout: o.Timeout}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return &watchedConn{c, o.Timeout}, nil
	}
	// HTTP/2 would send everything through one connection, whose window bounds the throughput over a long way.
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &Client{&http.Client{
		Transport: &http.Transport{DialContext: dial, TLSClientConfig: config, TLSHandshakeTimeout: o.Timeout, MaxIdleConns: connections,
			MaxIdleConnsPerHost: connections, IdleConnTimeout: keepIdle, DisableCompression: true, Protocols: protocols},
		// Following would take the credentials along to wherever the answer says.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// authorities reads PEM files.
func authorities(file, dir string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	files := []string{}
	if file != "" {
		files = append(files, file)
	}
	if dir != "" {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		for _, e := range entries {
			if !e.IsDir() {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
	}
	found := false
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("certificate authorities: %w", err)
		}
		ok := pool.AppendCertsFromPEM(b)
		if !ok && name == file {
			return nil, fmt.Errorf("certificate authorities: %s holds no PEM certificate", file)
		}
		found = found || ok
	}
	if !found {
		return nil, fmt.Errorf("certificate authorities: no PEM certificate is in %s", dir)
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
	if err := c.SetDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements io.Writer.
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
// where a repetition may help, unavailable where the store does not admit us, err itself otherwise.
func Mark(err error, code int, header http.Header) error {
	switch {
	case code == http.StatusNotFound:
		return fmt.Errorf("%w (%w)", fs.ErrNotExist, err)
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return storage.Unavailable(err)
	case !TemporaryStatus(code):
		return err
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
