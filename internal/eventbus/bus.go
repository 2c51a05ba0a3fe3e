package eventbus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// defaultTimeout bounds one conversation with a broker that makes no progress.
const defaultTimeout = 30 * time.Second

// workers is how many partitions are read or written at the same time.
const workers = 4

// Secret is a password. It never prints: every way of formatting or encoding
// it gives "******".
type Secret string

const redacted = "******"

// String returns the redacted form.
func (Secret) String() string { return redacted }

// GoString returns the redacted form.
func (Secret) GoString() string { return redacted }

// Format writes the redacted form whatever the verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(redacted)) } // fmt reports errors of its writer itself

// MarshalText returns the redacted form.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// MarshalJSON returns the redacted form.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// TLSOptions encrypt the connections. All fields are optional; an empty value
// of the struct means TLS with the system's certificate authorities.
type TLSOptions struct {
	CAFile     string // PEM, in place of the system's authorities
	CertFile   string // PEM, client certificate; together with KeyFile
	KeyFile    string // PEM
	ServerName string // in place of the broker's host name
}

// SASLOptions authenticate the connections.
type SASLOptions struct {
	Mechanism string // plain, scram-sha-256 or scram-sha-512
	User      string
	Password  Secret
}

// Options say which bus, and how to reach it.
type Options struct {
	Brokers  []string // host:port, at least one
	Topics   []string // glob patterns (path.Match); empty: every topic that is not internal
	ClientID string   // name in the broker's logs; empty: holdfast
	TLS      *TLSOptions
	SASL     *SASLOptions
	// Timeout ends a conversation with a broker that makes no progress; 0: 30 s.
	Timeout time.Duration
	// Now is the clock for the interval of the marks; nil: time.Now.
	Now func() time.Time
}

// Bus is a connection to an event bus. Its methods may be called one after the
// other, not at the same time.
type Bus struct {
	opt  Options
	base []kgo.Opt // what every client of this bus is made with
	cl   *kgo.Client
	adm  *kadm.Client
}

// Open checks the options and reaches a broker. It fails if a pattern or a
// security setting is wrong, or no broker answers within the timeout.
func Open(ctx context.Context, opt Options) (*Bus, error) {
	if len(opt.Brokers) == 0 {
		return nil, errors.New("event bus: no broker given; set one with: alation_conf eventbus.brokers -s HOST:PORT")
	}
	for _, p := range opt.Topics {
		if _, err := path.Match(p, ""); err != nil {
			return nil, fmt.Errorf("event bus: topic pattern %q is malformed", p)
		}
	}
	if opt.ClientID == "" {
		opt.ClientID = "holdfast"
	}
	if opt.Timeout <= 0 {
		opt.Timeout = defaultTimeout
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	base := []kgo.Opt{
		kgo.SeedBrokers(opt.Brokers...),
		kgo.ClientID(opt.ClientID),
		kgo.RetryTimeout(opt.Timeout),
		kgo.MetadataMinAge(100 * time.Millisecond), // topics have just been created when we produce
		kgo.BrokerMaxReadBytes(2 * maxRecord),
		kgo.DialTimeout(min(opt.Timeout, 10*time.Second)),
	}
	if opt.TLS != nil {
		conf, err := opt.TLS.config()
		if err != nil {
			return nil, fmt.Errorf("event bus: %w", err)
		}
		base = append(base, kgo.DialTLSConfig(conf))
	}
	if opt.SASL != nil {
		m, err := opt.SASL.mechanism()
		if err != nil {
			return nil, fmt.Errorf("event bus: %w", err)
		}
		base = append(base, kgo.SASL(m))
	}
	cl, err := kgo.NewClient(base...)
	if err != nil {
		return nil, fmt.Errorf("event bus: %w", err)
	}
	b := &Bus{opt: opt, base: base, cl: cl, adm: kadm.NewClient(cl)}
	b.adm.SetTimeoutMillis(int32(min(opt.Timeout, time.Hour).Milliseconds()))
	pctx, cancel := context.WithTimeout(ctx, opt.Timeout)
	defer cancel()
	if err := cl.Ping(pctx); err != nil {
		cl.Close()
		return nil, fmt.Errorf("event bus: no broker of %v answers: %w", opt.Brokers, err)
	}
	return b, nil
}

// Close ends the connections.
func (b *Bus) Close() { b.cl.Close() }

func (o *TLSOptions) config() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: o.ServerName}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read certificate authorities: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM form", o.CAFile)
		}
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return nil, errors.New("a client certificate needs its key, and the key its certificate")
	}
	if o.CertFile != "" {
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("load client certificate %s: %w", o.CertFile, err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

func (o *SASLOptions) mechanism() (sasl.Mechanism, error) {
	auth := scram.Auth{User: o.User, Pass: string(o.Password)}
	switch o.Mechanism {
	case "plain":
		return plain.Auth{User: o.User, Pass: string(o.Password)}.AsMechanism(), nil
	case "scram-sha-256":
		return auth.AsSha256Mechanism(), nil
	case "scram-sha-512":
		return auth.AsSha512Mechanism(), nil
	}
	return nil, fmt.Errorf("SASL mechanism %q is unknown; allowed are plain, scram-sha-256, scram-sha-512", o.Mechanism)
}

// uncached makes the client library ask the broker: it answers from memory up to
// MetadataMinAge, unless the rights on each topic are asked for too, which it does
// not remember. For what decides whether a topic is deleted.
func uncached(ctx context.Context) context.Context { return kadm.WithAuthorizedOps(ctx) }

// pause waits, or returns the context's error.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
