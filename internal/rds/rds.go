// Package rds takes, lists and removes DB snapshots of Amazon RDS, and makes DB instances of them. It never changes or
// removes a DB instance.
//
// What the service promises and what is done here:
//
//	lost answer     a snapshot and an instance are asked for under a name that the caller chose, and carry tags: whether the
//	                request arrived before is seen from what has the name, so that nothing is made twice
//	ours or not     only what carries the tags of the set is taken for its snapshot, or removed
//	busy instance   a snapshot is asked for again while the instance is being backed up or modified by somebody else
//	outage          passing failures are repeated; whoever waits for a snapshot or an instance waits through longer ones
package rds

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// Secret is a text that is not printed.
type Secret string

const hidden = "******"

// String hides the secret.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return hidden
}

// GoString hides the secret from %#v.
func (s Secret) GoString() string { return `"` + s.String() + `"` }

// Options says which region, as whom, and how patiently. Region is needed; the rest has defaults.
type Options struct {
	Region   string
	Endpoint string // http:// or https:// address; empty: AWS's for the region
	CAFile   string // certificates (PEM) that sign the endpoint's; empty: the system's
	Key      Secret // empty together with Secret: the SDK's chain of environment, files, roles
	Secret   Secret

	Poll    time.Duration // longest pause between two looks at what is awaited; 0: 15 s
	Tries   int           // of one request whose failure may pass; 0: 12, in about 1.5 min
	Backoff time.Duration // longest pause between two of them; 0: 20 s
	Timeout time.Duration // of one request; 0: 1 min
}

// Client works in one region; safe for concurrent use.
type Client struct {
	o       Options
	creds   *aws.CredentialsCache
	signer  *v4.Signer
	http    *http.Client
	retryer *retry.Standard // says what may be repeated, and when
	clock   atomic.Int64    // what the service's clock is ahead of ours, when that matters
}

// Defaults.
const (
	defaultPoll    = 15 * time.Second
	defaultTries   = 12
	defaultBackoff = 20 * time.Second
	defaultTimeout = time.Minute
	chainTime      = 20 * time.Second // for the chain to find credentials: off EC2 the instance's endpoint does not answer
	pageSize       = 100              // of a listing; the service gives no more
)

// New returns a client. It contacts nobody: what is wrong with the region or the credentials shows with the first call.
func New(o Options) (*Client, error) {
	if err := CheckRegion(o.Region); err != nil {
		return nil, err
	}
	if (o.Key == "") != (o.Secret == "") {
		return nil, errors.New("rds: a key and its secret are given both or neither")
	}
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	if o.Tries <= 0 {
		o.Tries = defaultTries
	}
	if o.Backoff <= 0 {
		o.Backoff = defaultBackoff
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultTimeout
	}
	transport, err := o.transport()
	if err != nil {
		return nil, err
	}
	if o.Endpoint != "" {
		u, err := url.Parse(o.Endpoint)
		if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
			return nil, errors.New("rds: the endpoint is https://HOST or https://HOST:PORT, without a user, a path or a query")
		}
	}
	return &Client{o: o, creds: aws.NewCredentialsCache(o.provider()), signer: v4.NewSigner(), http: &http.Client{Transport: transport, Timeout: o.Timeout},
		retryer: retry.NewStandard(func(s *retry.StandardOptions) {
			s.MaxAttempts, s.MaxBackoff, s.RateLimiter = o.Tries, o.Backoff, ratelimit.None
		})}, nil
}

// CheckRegion refuses what can't be the name of a region: it becomes part of a host name.
func CheckRegion(s string) error {
	if s == "" {
		return errors.New("rds: no region given")
	}
	if len(s) > 40 || strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || s[0] < 'a' || s[0] > 'z' || !strings.Contains(s, "-") {
		return fmt.Errorf("rds: %.60q is not the name of a region, such as eu-west-1", s)
	}
	return nil
}

// CheckName refuses what can't be the name of a DB instance (at most 63 characters) or of a snapshot (255): letters, digits
// and single hyphens, a letter first, no hyphen last.
func CheckName(s string, most int) error {
	ok := s != "" && len(s) <= most && !strings.Contains(s, "--") && !strings.HasSuffix(s, "-")
	for i, r := range s {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z'
		ok = ok && (letter || i > 0 && (r >= '0' && r <= '9' || r == '-'))
	}
	if !ok {
		return fmt.Errorf("rds: %.80q is not a name of at most %d letters, digits and single hyphens that begins with a letter", s, most)
	}
	return nil
}

// Longest names.
const (
	MaxInstanceName = 63
	MaxSnapshotName = 255
)

// provider is where the SDK gets credentials from. Nothing is asked before they are needed.
func (o *Options) provider() aws.CredentialsProvider {
	if o.Key != "" {
		return credentials.NewStaticCredentialsProvider(string(o.Key), string(o.Secret), "")
	}
	return &chain{region: o.Region}
}

// chain is the SDK's chain of credentials, built when it is first needed.
type chain struct {
	region string
	mu     sync.Mutex
	p      aws.CredentialsProvider
}

// Retrieve implements aws.CredentialsProvider.
func (c *chain) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, chainTime)
	defer cancel()
	if c.p == nil {
		conf, err := config.LoadDefaultConfig(ctx, config.WithRegion(c.region))
		if err != nil {
			return aws.Credentials{}, &credentialsError{err}
		}
		c.p = conf.Credentials
	}
	if cache, ok := c.p.(*aws.CredentialsCache); ok {
		cache.Invalidate() // the cache above asks because it wants new ones
	}
	got, err := c.p.Retrieve(ctx)
	if err == nil && !got.HasKeys() {
		err = errors.New("none found")
	}
	if err != nil {
		return got, &credentialsError{err}
	}
	return got, nil
}

// transport checks the endpoint's certificate.
func (o *Options) transport() (*http.Transport, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		b, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("rds: read the CA file: %w", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("rds: CA file %s holds no certificate in PEM form", o.CAFile)
		}
		t.TLSClientConfig.RootCAs = pool
	}
	return t, nil
}

// Region is where the client works.
func (c *Client) Region() string { return c.o.Region }

// wait is the nth pause between two looks, from 0: from a second on they double, up to Poll.
func (c *Client) wait(ctx context.Context, n int) error {
	t := time.NewTimer(min(c.o.Poll, time.Second<<min(n, 10)))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
