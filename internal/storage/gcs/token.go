package gcs

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/google"

	"holdfast/internal/storage"
	"holdfast/internal/storage/transport"
)

// scope is what we ask for: objects may be read, written and removed, buckets not changed.
const scope = "https://www.googleapis.com/auth/devstorage.read_write"

// tokens gives out access tokens and fetches new ones.
type tokens struct {
	fixed storage.Secret
	fetch func() (*oauth2.Token, error) // nil: fixed

	mu       sync.Mutex
	held     *oauth2.Token
	fetching *fetching // nil: nobody fetches
}

// fetching is one request for a token. All who need one wait for it, each as long as its own context lasts.
type fetching struct {
	done  chan struct{}
	token *oauth2.Token
	err   error
}

// newTokens reads the credentials. They are fetched with client, so with the operator's certificates.
func newTokens(o Options, client *transport.Client) (*tokens, error) {
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, client.HTTP())
	switch cmp.Or(o.KeyType, KeyService) {
	case KeyToken:
		if o.Token == "" {
			return nil, errors.New("key type token needs a token")
		}
		return &tokens{fixed: o.Token}, nil
	case KeyAuto:
		// A source of its own for each fetch: a source keeps its token, also one that the store refuses.
		return &tokens{fetch: func() (*oauth2.Token, error) { return google.ComputeTokenSource("", scope).Token() }}, nil
	case KeyService:
		key, err := os.ReadFile(o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("key of the service account: %w", err)
		}
		config, err := google.JWTConfigFromJSON(key, scope)
		if err != nil { // the library's error could quote the key
			return nil, fmt.Errorf("key of the service account: %s is not a JSON key file of a service account", o.KeyFile)
		}
		return &tokens{fetch: func() (*oauth2.Token, error) { return config.TokenSource(ctx).Token() }}, nil
	}
	return nil, fmt.Errorf("key type %q: use service, token or auto", o.KeyType)
}

// get returns a token that is good for a while. One request fetches it for all callers; it goes on when one of them gives up.
func (t *tokens) get(ctx context.Context) (storage.Secret, error) {
	if t.fetch == nil {
		return t.fixed, nil
	}
	t.mu.Lock()
	if t.held.Valid() {
		defer t.mu.Unlock()
		return storage.Secret(t.held.AccessToken), nil
	}
	f := t.fetching
	if f == nil {
		f = &fetching{done: make(chan struct{})}
		t.fetching = f
		go func() {
			f.token, f.err = t.fetch()
			t.mu.Lock()
			if f.err == nil {
				t.held = f.token
			}
			t.fetching = nil
			t.mu.Unlock()
			close(f.done)
		}()
	}
	t.mu.Unlock()
	select {
	case <-f.done:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if f.err != nil {
		var refused *oauth2.RetrieveError
		if errors.As(f.err, &refused) && refused.Response != nil {
			err := fmt.Errorf("fetch an access token: the answer is %s %s", refused.Response.Status, reason(refused.Body))
			if transport.TemporaryStatus(refused.Response.StatusCode) {
				return "", storage.Temporary(err)
			}
			return "", storage.Unavailable(err)
		}
		return "", fmt.Errorf("fetch an access token: %w", transport.Error(ctx, f.err))
	}
	return storage.Secret(f.token.AccessToken), nil
}

// reason is what an authorization server says about its refusal.
func reason(body []byte) string {
	var e struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
	}
	if json.Unmarshal(body, &e) != nil {
		return ""
	}
	return strings.TrimSpace(e.Code + " " + e.Description)
}

// renew drops a token that the store refuses, and reports whether another can be fetched in its place.
func (t *tokens) renew(refused storage.Secret) bool {
	if t.fetch == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held != nil && storage.Secret(t.held.AccessToken) == refused {
		t.held = nil
	}
	return true
}
