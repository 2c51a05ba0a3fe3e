package gcs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/storage"
	"holdfast/internal/storage/gcs"
	"holdfast/internal/storage/storagetest"
	"holdfast/test/stores"
)

// atOnce is a back-off without pauses.
func atOnce(attempts int) storage.Backoff {
	return storage.Backoff{Attempts: attempts, Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
}

// stack is a store behind a proxy, with the decorators of real life.
func stack(t *testing.T, p *stores.Front, change func(*gcs.Options)) storage.Storage {
	s := open(t, &stores.Server{Port: p.Port, CAFile: p.CAFile}, func(o *gcs.Options) {
		o.Backoff = atOnce(4)
		if change != nil {
			change(o)
		}
	})
	return storage.NewResume(storage.NewRetry(s, storage.RetryOptions{Backoff: atOnce(4)}), atOnce(4))
}

// TestEveryRequestFailsOnce lets one request after the other fail, in every way: the story ends well each time.
func TestEveryRequestFailsOnce(t *testing.T) {
	p := stores.NewFront(t, stores.GCS(t))
	cases := 0
	for _, fault := range stores.Faults {
		for nth := 1; ; nth++ {
			p.Spoil(fault, func(n int, _ *http.Request) bool { return n == nth })
			if err := storagetest.Story(t, stack(t, p, nil), 700<<10); err != nil {
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
	p := stores.NewFront(t, stores.GCS(t))
	for _, size := range []int{100, 600 << 10} {
		last := false
		p.Spoil(stores.Lost, func(_ int, r *http.Request) bool {
			hit := !last && (r.URL.Query().Get("uploadType") == "multipart" || strings.HasSuffix(r.Header.Get("Content-Range"), fmt.Sprintf("/%d", size)))
			last = last || hit
			return hit
		})
		if err := storage.WriteAll(t.Context(), stack(t, p, nil), "a", make([]byte, size)); err != nil {
			t.Error(err)
		}
		sent := 0
		for _, r := range p.Requests() {
			if strings.HasPrefix(r, "POST /upload") {
				sent++
			}
		}
		if p.Fired() != 1 || sent != 1 {
			t.Errorf("%d bytes: %d answers lost, %d uploads begun: %q", size, p.Fired(), sent, p.Requests())
		}
	}
}

// What arrives damaged is not given out.
func TestTamperedContent(t *testing.T) {
	p := stores.NewFront(t, stores.GCS(t))
	s := stack(t, p, nil)
	if err := storage.WriteAll(t.Context(), s, "a", bytes.Repeat([]byte("x"), 1000)); err != nil {
		t.Fatal(err)
	}
	p.Spoil(stores.Tampered, func(_ int, r *http.Request) bool { return r.URL.Query().Get("alt") == "media" })
	if b, err := storage.ReadAll(t.Context(), s, "a", 1<<20); !errors.Is(err, storage.ErrCorrupt) {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}

// A store that is away is one clear error, without tokens in it.
func TestStoreAway(t *testing.T) {
	s := open(t, &stores.Server{Port: stores.FreePort(t)}, func(o *gcs.Options) { o.Token, o.CAFile = "planted-secret", "" })
	_, err := s.Stat(t.Context(), "a")
	if !storage.IsTemporary(err) || strings.Contains(err.Error(), "planted") || !strings.Contains(err.Error(), "gs://holdfast/repo/") {
		t.Error(err)
	}
	if text := fmt.Sprintf("%v %+v %#v", gcs.Options{Token: "planted-secret"}, gcs.Options{Token: "planted-secret"}, gcs.Options{Token: "planted-secret"}); strings.Contains(text, "planted") {
		t.Error(text)
	}
}

// A token that the store refuses in the middle of a run is replaced by a fresh one.
func TestTokenRunsOut(t *testing.T) {
	fetched := 0
	key := stores.ServiceAccount(t, func(w http.ResponseWriter, r *http.Request) {
		fetched++
		if err := r.ParseForm(); err != nil || r.PostForm.Get("assertion") == "" {
			http.Error(w, "no assertion", http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"access_token":"token-%d","token_type":"Bearer","expires_in":3600}`, fetched)
	})
	var seen []string
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Header.Get("Authorization")+" "+r.Header.Get("X-Goog-User-Project"))
		if r.Header.Get("Authorization") == "Bearer token-1" && len(seen) > 1 {
			http.Error(w, `{"error":{"message":"Invalid Credentials"}}`, http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"name":"x","size":"5","updated":"2026-01-01T00:00:00Z"}`)
	}))
	defer store.Close()
	s, err := gcs.New(gcs.Options{Bucket: "b", Endpoint: store.URL, KeyFile: key, UserProject: "payer"})
	if err != nil {
		t.Fatal(err)
	}
	retry := storage.NewRetry(s, storage.RetryOptions{Backoff: atOnce(3)})
	for range 2 {
		if in, err := retry.Stat(t.Context(), "x"); err != nil || in.Size != 5 {
			t.Error(in, err)
		}
	}
	if want := "Bearer token-1 payer|Bearer token-1 payer|Bearer token-2 payer"; strings.Join(seen, "|") != want {
		t.Errorf("%q", seen)
	}
}

// A refused service account says so, and shows neither key nor assertion.
func TestTokenRefused(t *testing.T) {
	key := stores.ServiceAccount(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"error":"invalid_grant","error_description":"Invalid JWT Signature."}`)
	})
	s, err := gcs.New(gcs.Options{Bucket: "b", Endpoint: "http://127.0.0.1:1", KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Stat(t.Context(), "x")
	if err == nil || storage.IsTemporary(err) || !storage.IsUnavailable(err) || !strings.Contains(err.Error(), "Invalid JWT Signature") || strings.Contains(err.Error(), "eyJ") {
		t.Error(err)
	}
}

// The metadata server of a virtual machine gives out tokens without any key.
func TestMetadataServer(t *testing.T) {
	meta := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Metadata-Flavor") != "Google" || !strings.HasSuffix(r.URL.Path, "/service-accounts/default/token") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Metadata-Flavor", "Google")
		fmt.Fprint(w, `{"access_token":"from-metadata","token_type":"Bearer","expires_in":3600}`)
	}))
	defer meta.Close()
	t.Setenv("GCE_METADATA_HOST", strings.TrimPrefix(meta.URL, "http://"))
	got := ""
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Get("Authorization")
		http.NotFound(w, r)
	}))
	defer store.Close()
	s, err := gcs.New(gcs.Options{Bucket: "b", Endpoint: store.URL, KeyType: gcs.KeyAuto})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Stat(t.Context(), "x"); err == nil || got != "Bearer from-metadata" {
		t.Errorf("%q %v", got, err)
	}
}

// A bucket that is not there is no empty repository.
func TestNoBucket(t *testing.T) {
	s := open(t, stores.GCS(t), func(o *gcs.Options) { o.Bucket = "elsewhere"; o.Backoff = atOnce(2) })
	for _, err := range s.List(t.Context(), "", storage.ListOptions{}) {
		if err == nil || errors.Is(err, fs.ErrNotExist) || !storage.IsUnavailable(err) || !strings.Contains(err.Error(), "404") {
			t.Errorf("list: %v", err)
		}
	}
	for _, size := range []int{1, 600 << 10} {
		if err := storage.WriteAll(t.Context(), s, "a", make([]byte, size)); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("write of %d bytes: %v", size, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	notKey := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(notKey, []byte(`{"type":"service_account","private_key":"planted-secret`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, o := range []gcs.Options{{}, {Bucket: "b"}, {Bucket: "b", KeyType: "other"}, {Bucket: "b", KeyType: gcs.KeyToken}, {Bucket: "b", KeyFile: notKey},
		{Bucket: "b", KeyType: gcs.KeyAuto, CAFile: notKey}, {Bucket: "b", KeyType: gcs.KeyAuto, CAPath: filepath.Dir(notKey)}} {
		if _, err := gcs.New(o); err == nil || strings.Contains(err.Error(), "planted") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// TestStrangers: what somebody else answers in the store's place, a proxy or another service, says nothing of an object: neither
// that it is missing nor that it is damaged.
func TestStrangers(t *testing.T) {
	for _, code := range []int{http.StatusNotFound, http.StatusBadRequest, http.StatusFound, http.StatusMethodNotAllowed} {
		store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "http://127.0.0.1:1/elsewhere")
			http.Error(w, "<html>you are not expected here", code)
		}))
		defer store.Close()
		s, err := gcs.New(gcs.Options{Bucket: "b", Endpoint: store.URL, KeyType: gcs.KeyToken, Token: "t", Backoff: atOnce(2)})
		if err != nil {
			t.Fatal(err)
		}
		_, serr := s.Stat(t.Context(), "a")
		_, oerr := s.Open(t.Context(), "a", 0, -1)
		for what, err := range map[string]error{"stat": serr, "open": oerr, "remove": s.Remove(t.Context(), "a"), "remove two": s.Remove(t.Context(), "a", "b"), "write": storage.WriteAll(t.Context(), s, "a", []byte("x"))} {
			if err == nil || errors.Is(err, fs.ErrNotExist) || !storage.IsUnavailable(err) {
				t.Errorf("%d, %s: %v", code, what, err)
			}
		}
	}
}

// TestTokenServerHangs: who waits for a token gives up when its context ends, whoever it is that asks for it.
func TestTokenServerHangs(t *testing.T) {
	hang := make(chan struct{})
	key := stores.ServiceAccount(t, func(w http.ResponseWriter, _ *http.Request) {
		<-hang
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, `{"access_token":"late","token_type":"Bearer","expires_in":3600}`)
	})
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer late" {
			t.Errorf("authorization %q", r.Header.Get("Authorization"))
		}
		fmt.Fprint(w, `{"name":"x","size":"5","updated":"2026-01-01T00:00:00Z"}`)
	}))
	defer store.Close()
	s, err := gcs.New(gcs.Options{Bucket: "b", Endpoint: store.URL, KeyFile: key})
	if err != nil {
		t.Fatal(err)
	}
	patient := make(chan error)
	go func() {
		_, err := s.Stat(t.Context(), "x")
		patient <- err
	}()
	for range 2 {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		if _, err := s.Stat(ctx, "x"); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		cancel()
	}
	close(hang)
	if err := <-patient; err != nil {
		t.Error(err)
	}
}
