package s3

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/credentials/endpointcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/processcreds"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"holdfast/internal/storage"
)

// KeyType says where the credentials come from, in pgBackRest's words.
type KeyType string

// The sources of credentials.
const (
	Shared  KeyType = "shared"  // Key, Secret and perhaps Token
	Auto    KeyType = "auto"    // the SDK's chain: environment, shared files, SSO, process, container, instance; then Role
	WebID   KeyType = "web-id"  // a token file exchanged for Role at the token service
	PodID   KeyType = "pod-id"  // the container's own endpoint, as EKS Pod Identity has it
	Process KeyType = "process" // what a program prints
)

// Credentials says who we are to the store.
type Credentials struct {
	Type   KeyType // empty: Shared
	Key    storage.Secret
	Secret storage.Secret
	Token  storage.Secret // of a session; empty: none

	// Role is the ARN of the role to take: needed by WebID, optional with Auto. The plain name of an instance's role, which
	// pgBackRest wants with Auto, changes nothing: an instance has one, and says which.
	Role         string
	TokenFile    string   // of WebID and PodID
	Endpoint     string   // URL of PodID
	STSEndpoint  string   // host or URL of the token service; empty: AWS's for the region
	Command      []string // of Process: program and arguments
	SessionName  string   // how the store's log names us; empty: holdfast
	SharedConfig []string // files in place of the SDK's ~/.aws/config and credentials; nil: those
}

// provider is where the SDK gets credentials from. Nothing is asked before they are needed.
func (o *Options) provider() (aws.CredentialsProvider, error) {
	c := o.Credentials
	missing := func(what string) error {
		return fmt.Errorf("s3: key type %s needs %s", c.Type, what)
	}
	switch c.Type {
	case Shared, "":
		c.Type = Shared
		if c.Key == "" || c.Secret == "" {
			return nil, missing("a key and its secret; to use the host's role or profile set the key type to auto")
		}
		return credentials.NewStaticCredentialsProvider(string(c.Key), string(c.Secret), string(c.Token)), nil
	case Auto:
		return &lazy{build: func(ctx context.Context) (aws.CredentialsProvider, error) { return o.chain(ctx) }}, nil
	case WebID:
		if c.Role == "" || c.TokenFile == "" {
			return nil, missing("a role and a token file (AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE in the environment)")
		}
		client, err := o.sts(nil)
		if err != nil {
			return nil, err
		}
		return stscreds.NewWebIdentityRoleProvider(client, c.Role, stscreds.IdentityTokenFile(c.TokenFile), func(p *stscreds.WebIdentityRoleOptions) {
			p.RoleSessionName = c.session()
		}), nil
	case PodID:
		if c.Endpoint == "" || c.TokenFile == "" {
			return nil, missing("an endpoint and a token file (AWS_CONTAINER_CREDENTIALS_FULL_URI and AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE in the environment)")
		}
		return endpointcreds.New(c.Endpoint, func(e *endpointcreds.Options) {
			e.AuthorizationTokenProvider = endpointcreds.TokenProviderFunc(func() (string, error) {
				b, err := os.ReadFile(c.TokenFile)
				return strings.TrimSpace(string(b)), err
			})
		}), nil
	case Process:
		if len(c.Command) == 0 {
			return nil, missing("the command that prints them")
		}
		return processcreds.NewProviderCommand(processcreds.NewCommandBuilderFunc(func(ctx context.Context) (*exec.Cmd, error) {
			return exec.CommandContext(ctx, c.Command[0], c.Command[1:]...), nil
		})), nil
	}
	return nil, fmt.Errorf("s3: key type %q: it is shared, auto, web-id, pod-id or process", c.Type)
}

func (c *Credentials) session() string {
	if c.SessionName != "" {
		return c.SessionName
	}
	return "holdfast"
}

// chain is the SDK's, with the role on top of it.
func (o *Options) chain(ctx context.Context) (aws.CredentialsProvider, error) {
	load := []func(*config.LoadOptions) error{config.WithRegion(o.Region)}
	if o.Credentials.SharedConfig != nil {
		load = append(load, config.WithSharedConfigFiles(o.Credentials.SharedConfig), config.WithSharedCredentialsFiles(nil))
	}
	conf, err := config.LoadDefaultConfig(ctx, load...)
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(o.Credentials.Role, "arn:") {
		return conf.Credentials, nil
	}
	client, err := o.sts(conf.Credentials)
	if err != nil {
		return nil, err
	}
	return stscreds.NewAssumeRoleProvider(client, o.Credentials.Role, func(p *stscreds.AssumeRoleOptions) {
		p.RoleSessionName = o.Credentials.session()
	}), nil
}

// sts is a client of the token service.
func (o *Options) sts(from aws.CredentialsProvider) (*sts.Client, error) {
	client, err := o.client("")
	if err != nil {
		return nil, err
	}
	so := sts.Options{Region: o.Region, Credentials: from, HTTPClient: client.HTTP()}
	if at := o.Credentials.STSEndpoint; at != "" {
		if !strings.Contains(at, "://") {
			at = "https://" + at
		}
		so.BaseEndpoint = aws.String(at)
	}
	return sts.New(so), nil
}

// credentialsError says that a request was never sent, for want of credentials.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "no credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// marked marks the errors of a provider.
type marked struct{ aws.CredentialsProvider }

// Retrieve implements aws.CredentialsProvider.
func (m marked) Retrieve(ctx context.Context) (aws.Credentials, error) {
	c, err := m.CredentialsProvider.Retrieve(ctx)
	if err != nil {
		return c, &credentialsError{err}
	}
	return c, nil
}

// lazy builds a provider when it is first needed.
type lazy struct {
	build func(context.Context) (aws.CredentialsProvider, error)
	mu    sync.Mutex
	p     aws.CredentialsProvider
}

// chainTime is how long the chain may look for credentials: off EC2 the instance's endpoint does not answer.
const chainTime = 20 * time.Second

// Retrieve implements aws.CredentialsProvider.
func (l *lazy) Retrieve(ctx context.Context) (aws.Credentials, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, chainTime)
	defer cancel()
	if l.p == nil {
		p, err := l.build(ctx)
		if err != nil {
			return aws.Credentials{}, err
		}
		l.p = p
	}
	if c, ok := l.p.(*aws.CredentialsCache); ok {
		c.Invalidate() // the cache above us asks because it wants new ones
	}
	got, err := l.p.Retrieve(ctx)
	if err == nil && !got.HasKeys() {
		err = errors.New("no credentials found")
	}
	return got, err
}
