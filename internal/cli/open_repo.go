package cli

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"holdfast/internal/action"
	"holdfast/internal/backrest"
	"holdfast/internal/durable"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
)

// repoKinds are the values of repo-type that openRepo has an adapter for.
var repoKinds = []string{"azure", "cifs", "gcs", "posix", "s3", "sftp"}

// isDirectory says whether a repo-type is a directory of this host, perhaps a mounted one.
func isDirectory(kind string) bool { return kind == "posix" || kind == "cifs" }

// openRepo opens the repository that c knows under the number key: the one place that chooses between the kinds of
// storage. What holdfast pg was given as flags and what stands in pgBackRest's configuration both come as a Config. owner
// is whom new files of a directory belong to; nil: us. Nobody is contacted yet.
func openRepo(env *Env, c *backrest.Config, key int, owner *durable.Owner) (storage.Storage, error) {
	kind := c.String("repo-type", key)
	if at := c.String("repo-target-time", 0); at != "" && kind != "s3" {
		instead := fmt.Sprintf("a repository of the type %s has no versions of its objects; mount a snapshot of it and set repo%d-path", kind, key)
		if !isDirectory(kind) {
			instead = fmt.Sprintf("earlier versions are read of a bucket of the type s3 only; bring the objects of that time to a directory with the store's own tool and set repo%d-path", key)
		}
		return nil, &usageError{"repo-target-time: " + instead}
	}
	switch kind {
	case "posix":
		return openPosix(c.String("repo-path", key), owner)
	case "cifs":
		return openPosixAs(c.String("repo-path", key), storage.PosixOptions{Owner: owner, Mount: true})
	case "s3":
		return openS3(env, c, key)
	case "gcs":
		return openGCS(c, key)
	case "azure":
		return openAzure(c, key)
	case "sftp":
		return openSFTP(env, c, key)
	}
	return nil, &usageError{fmt.Sprintf("repo%d-type=%s is not known; use one of %s", key, kind, strings.Join(repoKinds, ", "))}
}

// openS3 opens a repository in a bucket.
func openS3(env *Env, c *backrest.Config, key int) (storage.Storage, error) {
	o := s3.Options{
		Bucket: c.String("repo-s3-bucket", key), Prefix: c.String("repo-path", key), Region: c.String("repo-s3-region", key), Endpoint: c.String("repo-s3-endpoint", key),
		PathStyle: c.String("repo-s3-uri-style", key) == "path", CAFile: c.String("repo-storage-ca-file", key), CAPath: c.String("repo-storage-ca-path", key),
		SkipVerifyTLS: !c.Bool("repo-storage-verify-tls", key), StorageClass: c.String("repo-s3-storage-class", key), Tags: c.Hash("repo-storage-tag", key),
		RequesterPays: c.Bool("repo-s3-requester-pays", key), PartSize: c.Int("repo-storage-upload-chunk-size", key), Timeout: c.Duration("io-timeout", 0), Now: env.Now,
		Lock: s3.LockMode(strings.ToUpper(c.String("repo-s3-object-lock-mode", key))), LockPeriod: c.Duration("repo-s3-object-lock-period", key),
		Encryption: s3.Encryption{S3: c.String("repo-s3-sse", key) == "s3", KMS: c.String("repo-s3-sse", key) == "kms", KMSKey: c.String("repo-s3-kms-key-id", key),
			CustomerKey: storage.Secret(c.String("repo-s3-sse-customer-key", key))},
		Credentials: s3.Credentials{Type: s3.KeyType(c.String("repo-s3-key-type", key)), Key: storage.Secret(c.String("repo-s3-key", key)), Secret: storage.Secret(c.String("repo-s3-key-secret", key)),
			Token: storage.Secret(c.String("repo-s3-token", key)), Role: c.String("repo-s3-role", key), STSEndpoint: c.String("repo-s3-sts-host", key), Command: c.List("repo-s3-process-cmd", key)},
	}
	if service := c.String("repo-s3-service", key); service != "s3" {
		return nil, &usageError{fmt.Sprintf("repo%d-s3-service=%s: requests are signed for the service s3 only; remove the option", key, service)}
	}
	switch o.Credentials.Type {
	case s3.WebID:
		o.Credentials.Role, o.Credentials.TokenFile = env.Getenv("AWS_ROLE_ARN"), env.Getenv("AWS_WEB_IDENTITY_TOKEN_FILE")
	case s3.PodID:
		o.Credentials.Endpoint, o.Credentials.TokenFile = env.Getenv("AWS_CONTAINER_CREDENTIALS_FULL_URI"), env.Getenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
	}
	var err error
	if o.Connect, err = storageHost(c, key); err != nil {
		return nil, err
	}
	if at := c.String("repo-target-time", 0); at != "" {
		if o.AsOf, err = parseMoment(at); err != nil {
			return nil, &usageError{fmt.Sprintf("repo-target-time: %v", err)}
		}
	}
	st, err := s3.New(o)
	if err != nil {
		return nil, &usageError{fmt.Sprintf("repo%d: %v", key, err)}
	}
	return st, nil
}

// storageHost is the host and port to connect to when that is not what the endpoint says: repo-storage-host, which may
// be a URL with a port, and repo-storage-port, if somebody set it.
func storageHost(c *backrest.Config, key int) (string, error) {
	host, port := c.String("repo-storage-host", key), ""
	if host != "" {
		text := host
		if !strings.Contains(text, "://") {
			text = "https://" + text
		}
		u, err := url.Parse(text)
		if err != nil || u.Hostname() == "" {
			return "", &usageError{fmt.Sprintf("repo%d-storage-host=%s is not a host", key, host)}
		}
		if host, port = u.Hostname(), u.Port(); port == "" {
			port = map[string]string{"http": "80"}[u.Scheme]
		}
		if port == "" {
			port = "443"
		}
	}
	if given(c, "repo-storage-port", key) {
		port = c.String("repo-storage-port", key)
	}
	if host == "" && port == "" {
		return "", nil
	}
	return host + ":" + port, nil
}

// parseMoment reads a time as operators write it for a restore; without a zone it is the host's.
func parseMoment(text string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02 15:04:05.999999999Z07:00", "2006-01-02 15:04:05.999999999Z07", time.RFC3339Nano} {
		if t, err := time.Parse(layout, text); err == nil {
			return t, nil
		}
	}
	t, err := time.ParseInLocation("2006-01-02 15:04:05.999999999", text, time.Local)
	if err != nil {
		return t, fmt.Errorf("%q is not a time; write it as 2026-11-22 23:56:09+00", text)
	}
	return t, nil
}

// repoHelp is what the flags of a repository that is not a directory say of themselves. The names are those of
// pgBackRest's table, without "repo1-" and the secrets, which are never on a command line.
var repoHelp = []struct{ name, help string }{
	{"type", "posix (a directory), cifs (a mounted directory), s3, gcs, azure or sftp"},
	{"azure-container", "container of the repository; the account is PGBACKREST_REPO1_AZURE_ACCOUNT"},
	{"azure-key-type", "shared, sas or auto (the machine's managed identity)"},
	{"azure-uri-style", "host, or path for the account's name in the path of URLs"},
	{"gcs-bucket", "bucket of the repository; the service account's key file is PGBACKREST_REPO1_GCS_KEY"},
	{"gcs-endpoint", "host of the store, host:port or URL (default: Google's)"},
	{"gcs-key-type", "service (a key file), token or auto (the machine's service account)"},
	{"gcs-user-project", "project that pays for the requests"},
	{"s3-bucket", "bucket of the repository; --repo1-path is a path in it"},
	{"s3-endpoint", "host of the store, host:port or URL (default: AWS's for the region)"},
	{"s3-region", "region of the bucket"},
	{"s3-uri-style", "host, or path for the bucket's name in the path of URLs"},
	{"s3-key-type", "shared, auto (the host's role or profile), web-id, pod-id or process"},
	{"s3-role", "ARN of the role to take with --repo1-s3-key-type=auto"},
	{"s3-sts-host", "token service of --repo1-s3-key-type=web-id"},
	{"s3-process-cmd", "program that prints credentials; each of its arguments as a flag of its own"},
	{"s3-kms-key-id", "key of the key service that the store encrypts with"},
	{"s3-sse", "how the store encrypts: s3 (its own keys) or kms"},
	{"s3-storage-class", "storage class of what is written"},
	{"s3-requester-pays", "we pay for the requests"},
	{"s3-object-lock-mode", "governance or compliance: nobody removes what is written for the period"},
	{"s3-object-lock-period", "how long, for instance 30d"},
	{"sftp-host", "host of the repository"},
	{"sftp-host-fingerprint", "fingerprint that the host's key must have, as ssh-keygen -l prints it"},
	{"sftp-host-key-check-type", "strict (the host is in a known-hosts file), accept-new, fingerprint or none"},
	{"sftp-host-key-hash-type", "hash of the fingerprint: md5, sha1 or sha256"},
	{"sftp-host-port", "port of the host"},
	{"sftp-host-user", "user on the host"},
	{"sftp-known-host", "known-hosts file; may be repeated (default: those of the user and of the host)"},
	{"sftp-private-key-file", "private key (default: those of the agent)"},
	{"sftp-public-key-file", "public key, needed when it is a certificate"},
	{"storage-host", "host to connect to instead of the endpoint"},
	{"storage-port", "port to connect to"},
	{"storage-ca-file", "file of the certificates to trust"},
	{"storage-ca-path", "directory of such files"},
	{"storage-verify-tls", "n: believe any certificate"},
	{"storage-tag", "KEY=VALUE on what is written; may be repeated"},
	{"storage-upload-chunk-size", "size of the parts of a large object, for instance 16MiB"},
	{"target-time", "show the bucket as it was at that time; it must keep versions"},
}

// repoFlag collects one flag of a repository for backrest.Parse, which checks it.
type repoFlag struct {
	f    *stanzaFlags
	name string
	text string
}

func (r *repoFlag) String() string { return r.text }
func (r *repoFlag) Type() string   { return "string" }
func (r *repoFlag) Set(v string) error {
	r.text = v
	r.f.repoWords = append(r.f.repoWords, "--"+r.name+"="+v)
	return nil
}

// repoFlags adds the flags that say where a repository is.
func (f *stanzaFlags) repoFlags(fl *pflag.FlagSet) {
	fl.StringVar(&f.repoPath, "repo1-path", "", "directory of the repository")
	fl.StringVar(&f.config, "config", "", "pgBackRest's configuration file with the repository's options, such as its secrets, which are never flags (else: the environment's PGBACKREST_REPO1_…)")
	for _, h := range repoHelp {
		word := "repo1-" + h.name
		if h.name == "target-time" { // pgBackRest's has no index
			word = "repo-target-time"
		}
		fl.Var(&repoFlag{f: f, name: word}, "repo1-"+h.name, h.help)
	}
	fl.Var(&repoFlag{f: f, name: "repo-target-time"}, "as-of", "the same as --repo1-target-time")
}

// plain says that the repository is the directory of --repo1-path, with nothing else said about it.
func (f *stanzaFlags) plain(env *Env) bool {
	return len(f.repoWords) == 0 && f.config == "" && env.Getenv("PGBACKREST_REPO1_TYPE") == ""
}

// repoConfig reads everything that was said of repositories: flags, the environment's PGBACKREST_REPO…, the file of
// --config.
func (f *stanzaFlags) repoConfig(env *Env) (*backrest.Config, error) {
	args := append([]string{"info"}, f.repoWords...)
	if f.config != "" {
		args = append(args, "--config="+absoluteHere(env, f.config))
	} else {
		args = append(args, "--no-config")
	}
	if f.stanza != "" {
		args = append(args, "--stanza="+f.stanza)
	}
	if f.repoPath != "" {
		args = append(args, "--repo1-path="+absoluteHere(env, f.repoPath))
	}
	environ := slices.DeleteFunc(slices.Clone(env.Environ()), func(e string) bool { return !strings.HasPrefix(e, "PGBACKREST_REPO") })
	c, err := backrest.Parse(args, environ, os.DirFS("/"))
	if err != nil {
		return nil, &usageError{err.Error()}
	}
	if f.config != "" {
		info, err := os.Stat(f.config)
		if err == nil && info.Mode().Perm()&0o007 != 0 && slices.ContainsFunc(c.Given(), func(g backrest.Given) bool { return g.Secret }) {
			return nil, fmt.Errorf("secrets of the repository: every user can read %s; run: chmod o= %s", f.config, f.config)
		}
	}
	return c, nil
}

// absoluteHere is p as PostgreSQL and pgBackRest want it.
func absoluteHere(env *Env, p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	if dir, err := env.Getwd(); err == nil {
		return filepath.Join(dir, p)
	}
	return p
}

// source is one repository of the flags, opened.
type source struct {
	storage storage.Storage
	pass    repo.Secret
	key     int
	owner   *durable.Owner // whom new files belong to; nil: us
}

// sources opens the repositories that the flags name, by number.
func (f *stanzaFlags) sources(env *Env) ([]source, error) {
	if f.plain(env) {
		if f.repoPath == "" {
			return nil, &usageError{"--repo1-path is missing"}
		}
		s, err := f.source(env, nil, 1)
		return []source{s}, err
	}
	c, err := f.repoConfig(env)
	if err != nil {
		return nil, err
	}
	var all []source
	for _, key := range c.Keys(backrest.Repo) {
		s, err := f.source(env, c, key)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// source opens one repository. c is nil for a plain directory.
func (f *stanzaFlags) source(env *Env, c *backrest.Config, key int) (s source, err error) {
	s.key = key
	dirs := []string{f.pgPath}
	if c == nil {
		dirs = append(dirs, f.repoPath)
	} else if isDirectory(c.String("repo-type", key)) {
		dirs = append(dirs, c.String("repo-path", key))
	}
	for _, dir := range dirs {
		if dir != "" && s.owner == nil {
			s.owner = repositoryOwner([]action.Cluster{{DataDir: dir}}, nil)
		}
	}
	if c == nil {
		s.storage, err = openPosix(f.repoPath, s.owner)
	} else {
		s.storage, err = openRepo(env, c, key, s.owner)
	}
	if err != nil {
		return s, err
	}
	if c != nil && f.passFile == "" && c.String("repo-cipher-type", key) != "none" {
		s.pass = repo.Secret(c.String("repo-cipher-pass", key))
		return s, nil
	}
	s.pass, err = f.passphrase(env)
	return s, err
}

// first opens the first repository of the flags.
func (f *stanzaFlags) first(env *Env) (source, error) {
	all, err := f.sources(env)
	if err != nil {
		return source{}, err
	}
	return all[0], nil
}

// repoArguments are the words that name the same repository to another command. Secrets are in none of them.
func (f *stanzaFlags) repoArguments(env *Env) []string {
	var words []string
	if f.config != "" {
		words = append(words, "--config="+absoluteHere(env, f.config))
	}
	words = append(words, f.repoWords...)
	if f.repoPath != "" {
		words = append(words, "--repo1-path="+f.repoPath)
	}
	return words
}
