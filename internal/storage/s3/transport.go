package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	ioBuffer    = 64 << 10 // bytes read and written at once on a connection
)

// transport is the HTTP client under the SDK: HTTP/1.1 on many connections, which move something every Timeout or end.
// connect (host, :port, host:port or empty) replaces what the URL says.
func (o *Options) transport(connect string) (*http.Transport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: o.SkipVerifyTLS, ClientSessionCache: tls.NewLRUClientSessionCache(o.Connections)}
	var err error
	if conf.RootCAs, err = o.roots(); err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	host, port := connect, ""
	if h, p, err := net.SplitHostPort(connect); err == nil {
		host, port = h, p
	}
	if host != "" {
		conf.ServerName = host // as pgBackRest has it: the certificate is that of the host which is connected to
	}
	return &http.Transport{
		Proxy: http.ProxyFromEnvironment,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			h, p, err := net.SplitHostPort(addr)
			if err != nil {
				return nil, err
			}
			if host != "" {
				h = host
			}
			if port != "" {
				p = port
			}
			c, err := dialer.DialContext(ctx, network, net.JoinHostPort(h, p))
			if err != nil {
				return nil, err
			}
			return &movingConn{c, o.Timeout}, nil
		},
		TLSClientConfig: conf, TLSHandshakeTimeout: dialTimeout, ResponseHeaderTimeout: o.Timeout, IdleConnTimeout: 30 * time.Second,
		MaxIdleConns: 2 * o.Connections, MaxIdleConnsPerHost: 2 * o.Connections, DisableCompression: true, ForceAttemptHTTP2: false,
		ReadBufferSize: ioBuffer, WriteBufferSize: ioBuffer,
	}, nil
}

// movingConn ends when nothing has moved for a while. A write also prolongs the read that waits for its answer.
type movingConn struct {
	net.Conn
	limit time.Duration
}

// Read implements net.Conn.
func (c *movingConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *movingConn) Write(p []byte) (int, error) {
	if err := c.SetDeadline(time.Now().Add(c.limit)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// roots are the certificates of CAFile and CAPath; nil: the system's.
func (o *Options) roots() (*x509.CertPool, error) {
	if o.CAFile == "" && o.CAPath == "" {
		return nil, nil
	}
	pool := x509.NewCertPool()
	if o.CAFile != "" {
		b, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("s3: read the CA file: %w", err)
		}
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("s3: CA file %s holds no certificate in PEM form", o.CAFile)
		}
	}
	if o.CAPath == "" {
		return pool, nil
	}
	entries, err := os.ReadDir(o.CAPath)
	if err != nil {
		return nil, fmt.Errorf("s3: read the CA path: %w", err)
	}
	found := false
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(o.CAPath, e.Name()))
		if err != nil {
			return nil, fmt.Errorf("s3: read the CA path: %w", err)
		}
		found = pool.AppendCertsFromPEM(b) || found
	}
	if !found {
		return nil, fmt.Errorf("s3: no file in CA path %s holds a certificate in PEM form", o.CAPath)
	}
	return pool, nil
}
