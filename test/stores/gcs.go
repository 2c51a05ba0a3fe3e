package stores

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Bucket is the bucket that GCS makes.
const Bucket = "holdfast"

// GCS starts fake-gcs-server with the bucket Bucket. It believes every token. In front of it, questions are answered as the
// real store does; the server takes a question how much of an upload has arrived for the upload's end.
func GCS(t testing.TB) *Server {
	t.Helper()
	name, ca := program(t, "bin/fake-gcs-server"), NewCA(t)
	s := &Server{Port: FreePort(t), CAFile: ca.File}
	cmd := command(t, nil, name, "-scheme", "https", "-host", "127.0.0.1", "-port", strconv.Itoa(s.Port),
		"-cert-location", ca.Cert, "-private-key-location", ca.Key, "-backend", "memory", "-external-url", "https://"+s.Address(), "-log-level", "warn")
	s.log = start(t, cmd, answersHTTPS(s.Address(), ca.File)).log
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(ca.File)
	if err != nil {
		t.Fatal(err)
	}
	pool.AppendCertsFromPEM(pem)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	resp, err := client.Post("https://"+s.Address()+"/storage/v1/b?project=test", "application/json", strings.NewReader(`{"name":"`+Bucket+`"}`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close() // read whole below
	if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("make the bucket: %s %s %v", resp.Status, text, err)
	}
	front := NewFront(t, s)
	q := &questions{has: map[string]int64{}}
	front.before, front.after = q.before, q.after
	alsoIPv6(t, front.Port)
	return &Server{Port: front.Port, CAFile: front.CAFile, log: s.log}
}

// questions knows how many bytes of each resumable upload the server has acknowledged.
type questions struct {
	mu  sync.Mutex
	has map[string]int64
}

// before answers "bytes */…" for an upload that is not complete.
func (q *questions) before(r *http.Request) *http.Response {
	total, ok := strings.CutPrefix(r.Header.Get("Content-Range"), "bytes */")
	q.mu.Lock()
	defer q.mu.Unlock()
	has, known := q.has[r.URL.Query().Get("upload_id")]
	if !ok || !known || total == strconv.FormatInt(has, 10) {
		return nil
	}
	h := http.Header{}
	if has > 0 {
		h.Set("Range", fmt.Sprintf("bytes=0-%d", has-1))
	}
	return &http.Response{StatusCode: http.StatusPermanentRedirect, Header: h, Body: http.NoBody}
}

// after takes note of what the server has.
func (q *questions) after(r *http.Request, resp *http.Response) {
	id := r.URL.Query().Get("upload_id")
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case r.Method == http.MethodPost && r.URL.Query().Get("uploadType") == "resumable":
		_, id, _ = strings.Cut(resp.Header.Get("Location"), "upload_id=")
		id, _, _ = strings.Cut(id, "&")
		q.has[id] = 0
	case id == "":
	case resp.StatusCode == http.StatusPermanentRedirect:
		_, last, _ := strings.Cut(resp.Header.Get("Range"), "-")
		if n, err := strconv.ParseInt(last, 10, 64); err == nil {
			q.has[id] = n + 1
		}
	default:
		delete(q.has, id)
	}
}

// ServiceAccount makes the key file of a service account whose tokens answer gives out; nil: a server that gives one to everybody.
func ServiceAccount(t testing.TB, answer http.HandlerFunc) (keyFile string) {
	t.Helper()
	if answer == nil {
		answer = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"access_token":"test-token","token_type":"Bearer","expires_in":3600}`)
		}
	}
	srv := httptest.NewServer(answer)
	t.Cleanup(srv.Close)
	b, err := json.Marshal(map[string]string{"type": "service_account", "client_email": "holdfast@example.com", "private_key": RSAKey(t), "private_key_id": "1", "token_uri": srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(t.TempDir(), "key.json")
	if err := os.WriteFile(keyFile, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return keyFile
}
