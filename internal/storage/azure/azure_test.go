package azure

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/storage"
	"holdfast/internal/storage/storagetest"
	"holdfast/test/stores"
)

var paths atomic.Int32

// store returns a store in a path of its own of a running server, with small pages and chunks.
func store(t testing.TB, server *stores.AzureServer, change func(*Options)) *Store {
	t.Helper()
	o := Options{Account: stores.Account, Container: stores.Container, Prefix: fmt.Sprintf("/repo/%d", paths.Add(1)), Key: storage.Secret(server.Key),
		Endpoint: "127.0.0.1", Port: server.Port, URIStyle: StylePath, CAFile: server.CAFile, PartSize: 256 << 10, Tags: map[string]string{"origin": "test"}, Backoff: atOnce(4)}
	if change != nil {
		change(&o)
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.page = 3
	return s
}

// near is a way to a server of this machine, whatever the URL says.
func near(t testing.TB, address string) *http.Client {
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// atOnce is a back-off without pauses.
func atOnce(attempts int) storage.Backoff {
	return storage.Backoff{Attempts: attempts, Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
}

// stack adds the decorators of real life.
func stack(s storage.Storage) storage.Storage {
	return storage.NewResume(storage.NewRetry(s, storage.RetryOptions{Backoff: atOnce(4)}), atOnce(4))
}

func TestConformance(t *testing.T) {
	server := stores.Azure(t)
	storagetest.Run(t, func(t *testing.T) storage.Storage { return store(t, server, nil) })
}

func TestConformanceOfTheStack(t *testing.T) {
	server := stores.Azure(t)
	storagetest.Run(t, func(t *testing.T) storage.Storage { return stack(storage.NewLimit(store(t, server, nil), 4)) })
}

// A shared access signature is as good as a key; and the account may be a part of the host's name.
func TestOtherKeysAndStyles(t *testing.T) {
	server := stores.Azure(t)
	if err := storagetest.Story(t, stack(store(t, server, func(o *Options) { o.KeyType, o.Key = KeySAS, storage.Secret("?"+server.SAS(t)) })), 700<<10); err != nil {
		t.Errorf("SAS: %v", err)
	}
	s, err := open(Options{Account: stores.Account, Container: stores.Container, Prefix: "host-style", Key: storage.Secret(server.Key), PartSize: 256 << 10}, near(t, server.Address()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := storagetest.Story(t, stack(s), 700<<10); err != nil {
		t.Errorf("host style: %v", err)
	}
}

// TestEveryRequestFailsOnce lets one request after the other fail, in every way: the story ends well each time.
func TestEveryRequestFailsOnce(t *testing.T) {
	server := stores.Azure(t)
	p := stores.NewFront(t, &server.Server)
	cases := 0
	for _, fault := range stores.Faults {
		for nth := 1; ; nth++ {
			p.Spoil(fault, func(n int, _ *http.Request) bool { return n == nth })
			s := stack(store(t, server, func(o *Options) { o.Port, o.CAFile = p.Port, p.CAFile }))
			if err := storagetest.Story(t, s, 700<<10); err != nil {
				t.Errorf("%v at request %d: %v\n%s", fault, nth, err, strings.Join(p.Requests(), "\n"))
			}
			if p.Fired() == 0 {
				break
			}
			cases++
		}
	}
	if cases < 50 {
		t.Errorf("only %d requests were spoilt", cases)
	}
	t.Logf("%d spoilt requests", cases)
}

// A lost answer to an upload is not answered by sending everything again: the store is asked first.
func TestLostAnswerIsNotSentTwice(t *testing.T) {
	server := stores.Azure(t)
	p := stores.NewFront(t, &server.Server)
	for _, size := range []int{100, 600 << 10} {
		commit := func(r *http.Request) bool {
			return r.Method == "PUT" && (r.URL.Query().Get("comp") == "blocklist" || r.URL.Query().Get("comp") == "")
		}
		var commits atomic.Int32
		p.Spoil(stores.Lost, func(_ int, r *http.Request) bool { return commit(r) && commits.Add(1) == 1 })
		if err := storage.WriteAll(t.Context(), store(t, server, func(o *Options) { o.Port, o.CAFile = p.Port, p.CAFile }), "a", make([]byte, size)); err != nil {
			t.Error(err)
		}
		if p.Fired() != 1 || commits.Load() != 1 {
			t.Errorf("%d bytes: %d answers lost, sent %d times: %q", size, p.Fired(), commits.Load(), p.Requests())
		}
	}
}

// What arrives damaged is not given out.
func TestTamperedContent(t *testing.T) {
	server := stores.Azure(t)
	p := stores.NewFront(t, &server.Server)
	s := stack(store(t, server, func(o *Options) { o.Port, o.CAFile = p.Port, p.CAFile }))
	if err := storage.WriteAll(t.Context(), s, "a", bytes.Repeat([]byte("x"), 1000)); err != nil {
		t.Fatal(err)
	}
	p.Spoil(stores.Tampered, func(_ int, r *http.Request) bool { return r.Method == "GET" })
	if b, err := storage.ReadAll(t.Context(), s, "a", 1<<20); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// Two writers that send blocks of one blob: one of them gets an error, and the blob is the other's, whole.
func TestTwoWritersOfBlocks(t *testing.T) {
	s := store(t, stores.Azure(t), nil)
	var ws [2]storage.Writer
	for i := range ws {
		w, err := s.Create(t.Context(), "a", storage.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort() // after Commit it does nothing
		if _, err := w.Write(bytes.Repeat([]byte{byte('a' + i)}, 600<<10)); err != nil {
			t.Fatal(err)
		}
		ws[i] = w
	}
	err0, err1 := ws[0].Commit(t.Context()), ws[1].Commit(t.Context())
	got, err := storage.ReadAll(t.Context(), s, "a", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	last := byte('a')
	if err1 == nil {
		last = 'b'
	}
	if err0 != nil || err1 != nil && !strings.Contains(err1.Error(), "another writer") || !bytes.Equal(got, bytes.Repeat([]byte{last}, 600<<10)) {
		t.Errorf("%v, %v, %d bytes of %q", err0, err1, len(got), got[:1])
	}
}

// A store that is away, or refuses, is one clear error, without signatures in it.
func TestErrorsHoldNoSecrets(t *testing.T) {
	server := stores.Azure(t)
	const planted = "sv=2020-01-01&sig=planted-secret"
	for name, change := range map[string]func(*Options){
		"away":      func(o *Options) { o.Port = stores.FreePort(t) },
		"refused":   func(*Options) {},
		"untrusted": func(o *Options) { o.CAFile = "" },
	} {
		s := store(t, server, func(o *Options) { o.KeyType, o.Key = KeySAS, planted; change(o) })
		_, err := s.Stat(t.Context(), "a")
		errs := []error{err, storage.WriteAll(t.Context(), s, "a", []byte("x")), storage.WriteAll(t.Context(), s, "a", make([]byte, 600<<10)), s.Remove(t.Context(), "a"), s.Remove(t.Context(), "a", "b")}
		for _, err := range s.List(t.Context(), "", storage.ListOptions{}) {
			errs = append(errs, err)
		}
		for i, err := range errs {
			if err == nil || strings.Contains(err.Error(), "planted") || strings.Contains(err.Error(), "sig=") || !strings.Contains(err.Error(), "azure://holdfasttest/holdfast/repo/") {
				t.Errorf("%s, call %d: %v", name, i, err)
			}
			if storage.IsTemporary(err) != (name == "away") || !storage.IsUnavailable(err) {
				t.Errorf("%s, call %d: temporary is %v: %v", name, i, storage.IsTemporary(err), err)
			}
		}
	}
	o := Options{Key: planted}
	if text := fmt.Sprintf("%v %+v %#v", o, o, o); strings.Contains(text, "planted") {
		t.Error(text)
	}
}

// A container that is not there is no empty repository.
func TestNoContainer(t *testing.T) {
	s := store(t, stores.Azure(t), func(o *Options) { o.Container = "elsewhere" })
	_, serr := s.Stat(t.Context(), "a")
	errs := []error{serr, storage.WriteAll(t.Context(), s, "a", []byte("x"))}
	for _, err := range s.List(t.Context(), "", storage.ListOptions{}) {
		errs = append(errs, err)
	}
	for i, err := range errs {
		if err == nil || i > 0 && errors.Is(err, fs.ErrNotExist) {
			t.Errorf("call %d: %v", i, err)
		}
	}
}

// redirect sends everything to one server, as a machine's metadata address does.
type redirect struct{ to string }

func (r redirect) Do(req *http.Request) (*http.Response, error) {
	req.URL.Scheme, req.URL.Host = "http", r.to
	return http.DefaultClient.Do(req)
}

// A managed identity gets its token from the machine and shows it to the store.
func TestManagedIdentity(t *testing.T) {
	for _, name := range []string{"IDENTITY_ENDPOINT", "IDENTITY_HEADER", "MSI_ENDPOINT", "MSI_SECRET", "IMDS_ENDPOINT", "AZURE_FEDERATED_TOKEN_FILE"} {
		t.Setenv(name, "")
		if err := os.Unsetenv(name); err != nil {
			t.Fatal(err)
		}
	}
	asked := ""
	meta := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = r.Header.Get("Metadata") + " " + r.URL.Query().Get("resource")
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"planted-token","expires_in":"3600","expires_on":"%d","token_type":"Bearer","resource":"https://storage.azure.com"}`, time.Now().Add(time.Hour).Unix())
	}))
	defer meta.Close()
	got := ""
	blob := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		w.Header().Set("Last-Modified", "Mon, 02 Jan 2026 15:04:05 GMT")
		w.Header().Set("ETag", `"1"`)
		w.Header().Set("Content-Length", "5")
		if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "hello")
		}
	}))
	ca := stores.NewCA(t)
	pair, err := tls.LoadX509KeyPair(ca.Cert, ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	blob.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	blob.StartTLS()
	defer blob.Close()
	port := 0
	if _, err := fmt.Sscanf(blob.URL, "https://127.0.0.1:%d", &port); err != nil {
		t.Fatal(err)
	}
	s, err := open(Options{Account: "a", Container: "c", KeyType: KeyAuto, Endpoint: "127.0.0.1", URIStyle: StylePath, Port: port, SkipVerifyTLS: true},
		nil, redirect{strings.TrimPrefix(meta.URL, "http://")})
	if err != nil {
		t.Fatal(err)
	}
	in, err := s.Stat(t.Context(), "x")
	if err != nil || in.Size != 5 || got != "Bearer planted-token" || !strings.HasPrefix(asked, "true https://storage.azure.com") {
		t.Errorf("%+v, %v, %q, %q", in, err, got, asked)
	}
}

func TestAddress(t *testing.T) {
	for want, o := range map[string]Options{
		"https://a.blob.core.windows.net/c":       {},
		"https://a.blob.core.windows.net:444/c":   {Port: 444},
		"https://store.example:8443/a/c":          {Endpoint: "store.example:8443", URIStyle: StylePath},
		"https://store.example:9/a/c":             {Endpoint: "https://store.example:8443/", Port: 9, URIStyle: StylePath},
		"http://127.0.0.1:10000/a/c":              {Endpoint: "http://127.0.0.1:10000", URIStyle: StylePath},
		"https://[::1]:10000/a/c":                 {Endpoint: "[::1]", Port: 10000, URIStyle: StylePath},
		"https://a.blob.core.usgovcloudapi.net/c": {Endpoint: "blob.core.usgovcloudapi.net"},
	} {
		o.Account, o.Container = "a", "c"
		if got, err := address(o); err != nil || got != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(notPEM, []byte("planted-secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	ok := Options{Account: "a", Container: "c", Key: "a2V5"}
	for i, change := range []func(*Options){func(o *Options) { o.Account = "" }, func(o *Options) { o.Container = "" }, func(o *Options) { o.Key = "" }, func(o *Options) { o.Key = "planted-secret!" },
		func(o *Options) { o.KeyType = "other" }, func(o *Options) { o.KeyType, o.Key = KeySAS, "" }, func(o *Options) { o.URIStyle = "other" }, func(o *Options) { o.CAFile = notPEM }} {
		o := ok
		change(&o)
		if _, err := New(o); err == nil || strings.Contains(err.Error(), "planted") {
			t.Errorf("case %d: %v", i, err)
		}
	}
	if _, err := New(ok); err != nil {
		t.Error(err)
	}
}

// TestStrangers: what somebody else answers in the store's place, a proxy or another service, says nothing of a blob: neither that
// it is missing nor that it is damaged.
func TestStrangers(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusBadRequest, http.StatusFound, http.StatusMethodNotAllowed} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
			http.Error(w, "<html>you are not expected here", code)
		}))
		defer srv.Close()
		s, err := New(Options{Account: "a", Container: "c", Key: "a2V5", Endpoint: srv.URL, URIStyle: StylePath, Backoff: atOnce(2)})
		if err != nil {
			t.Fatal(err)
		}
		_, serr := s.Stat(t.Context(), "a")
		_, oerr := s.Open(t.Context(), "a", 0, -1)
		for what, err := range map[string]error{"stat": serr, "open": oerr, "remove": s.Remove(t.Context(), "a"), "write": storage.WriteAll(t.Context(), s, "a", []byte("x"))} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !storage.IsUnavailable(err) {
				t.Errorf("%d, %s: %v", code, what, err)
			}
		}
	}
}

// TestArchivedBlob: a blob in the archive tier is as it was; the store only does not give it out at the moment.
func TestArchivedBlob(t *testing.T) {
	for _, code := range []string{"BlobArchived", "BlobBeingRehydrated", "ContainerBeingDeleted", "ContainerDisabled"} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("x-ms-error-code", code)
			w.WriteHeader(http.StatusConflict)
		}))
		defer srv.Close()
		s, err := New(Options{Account: "a", Container: "c", Key: "a2V5", Endpoint: srv.URL, URIStyle: StylePath, Backoff: atOnce(2)})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Open(t.Context(), "a", 0, -1); !storage.IsUnavailable(err) || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", code, err)
		}
	}
}
