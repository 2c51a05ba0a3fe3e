package transport_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"holdfast/internal/storage"
	"holdfast/internal/storage/transport"
)

// tunnel is a proxy that knows one way only: to the server at to, whatever host is asked for.
func tunnel(t *testing.T, to string) (address string, asked *atomic.Value) {
	t.Helper()
	asked = new(atomic.Value)
	asked.Store("")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.Method + " " + r.Host)
		far, err := net.Dial("tcp", to)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		near, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := io.WriteString(near, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
			t.Error(err)
		}
		go func() { _, _ = io.Copy(far, near); _ = far.Close() }() // either end may go away
		_, _ = io.Copy(near, far)
		_ = near.Close()
	}))
	t.Cleanup(srv.Close)
	return srv.URL, asked
}

// ask sends one request, and returns the answer's text.
func ask(t *testing.T, o transport.Options, to string) (string, error) {
	t.Helper()
	o.SkipVerifyTLS = true
	c, err := transport.New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.CloseIdle()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, to, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer transport.Drain(resp.Body)
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// TestProxy: a store is reached through the proxy of the options, or past it where there is none for it.
func TestProxy(t *testing.T) {
	store := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the store") }))
	defer store.Close()
	address := strings.TrimPrefix(store.URL, "https://")
	proxy, asked := tunnel(t, address)
	way := func(*http.Request) (*url.URL, error) { return url.Parse(proxy) }
	// The name is known to the proxy only.
	if got, err := ask(t, transport.Options{Proxy: way}, "https://store.invalid/x"); got != "the store" || asked.Load() != "CONNECT store.invalid:443" {
		t.Errorf("%q, %v, the proxy was asked for %q", got, err, asked.Load())
	}
	for name, o := range map[string]transport.Options{"direct": {Proxy: way, Direct: true}, "connect": {Proxy: way, Connect: "127.0.0.1:" + address[strings.LastIndex(address, ":")+1:]}} {
		asked.Store("")
		if got, err := ask(t, o, store.URL); got != "the store" || asked.Load() != "" {
			t.Errorf("%s: %q, %v, the proxy was asked for %q", name, got, err, asked.Load())
		}
	}
}

// TestProxyOfTheEnvironment runs this test again as a process with HTTPS_PROXY: package net/http reads it once.
func TestProxyOfTheEnvironment(t *testing.T) {
	if os.Getenv("HOLDFAST_TEST_PROXY") != "" {
		got, err := ask(t, transport.Options{}, "https://store.invalid/x")
		if got != "the store" {
			t.Errorf("%q, %v", got, err)
		}
		return
	}
	store := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the store") }))
	defer store.Close()
	proxy, asked := tunnel(t, strings.TrimPrefix(store.URL, "https://"))
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestProxyOfTheEnvironment$")
	cmd.Env = append(os.Environ(), "HOLDFAST_TEST_PROXY=1", "HTTPS_PROXY="+proxy, "https_proxy="+proxy, "NO_PROXY=", "no_proxy=")
	if out, err := cmd.CombinedOutput(); err != nil || asked.Load() != "CONNECT store.invalid:443" {
		t.Errorf("%v, the proxy was asked for %q\n%s", err, asked.Load(), out)
	}
}

// TestMark: what an answer's status says, and of what.
func TestMark(t *testing.T) {
	said := errors.New("the store says no")
	for code, want := range map[int]struct{ missing, temporary, unavailable bool }{
		404: {missing: true},
		412: {}, 416: {}, 409: {}, 410: {},
		301: {unavailable: true}, 307: {unavailable: true}, 400: {unavailable: true}, 401: {unavailable: true}, 403: {unavailable: true}, 405: {unavailable: true}, 501: {unavailable: true},
		408: {temporary: true, unavailable: true}, 429: {temporary: true, unavailable: true}, 500: {temporary: true, unavailable: true}, 503: {temporary: true, unavailable: true},
	} {
		err := transport.Mark(said, code, http.Header{})
		if !errors.Is(err, said) || errors.Is(err, fs.ErrNotExist) != want.missing || storage.IsTemporary(err) != want.temporary || storage.IsUnavailable(err) != want.unavailable {
			t.Errorf("%d: %v: missing %t, temporary %t, unavailable %t", code, err, errors.Is(err, fs.ErrNotExist), storage.IsTemporary(err), storage.IsUnavailable(err))
		}
	}
}

// TestRedirect: an answer that sends us elsewhere is not followed, for the credentials would go along.
func TestRedirect(t *testing.T) {
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("followed") }))
	defer elsewhere.Close()
	srv := httptest.NewServer(http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect))
	defer srv.Close()
	if _, err := ask(t, transport.Options{}, srv.URL); err != nil {
		t.Error(err)
	}
}

// TestAuthorities: files that hold no certificate are told at once.
func TestAuthorities(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, []byte("nothing\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, o := range map[string]transport.Options{
		"empty.pem holds no certificate in PEM form": {CAFile: empty},
		"no file in " + dir + " holds a certificate": {CAPath: dir},
		"no such file": {CAFile: filepath.Join(dir, "missing")},
		"certificate authorities: open " + dir + "/missing": {CAPath: dir + "/missing"},
	} {
		if _, err := transport.New(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, should hold %q", err, want)
		}
	}
}

// TestSilence: a server that takes a request and says nothing ends it, and one that goes on a little at a time does not.
func TestSilence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // reads, and never answers
				_, _ = io.Copy(io.Discard, bufio.NewReader(c))
				_ = c.Close()
			}()
		}
	}()
	_, err = ask(t, transport.Options{Timeout: 50e6}, "http://"+l.Addr().String())
	if !storage.IsTemporary(err) || errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
