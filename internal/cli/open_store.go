package cli

import (
	"cmp"
	"fmt"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/backrest"
	"holdfast/internal/storage"
	"holdfast/internal/storage/azure"
	"holdfast/internal/storage/gcs"
	"holdfast/internal/storage/sftp"
)

// steadfast is what stands between the engine and a store behind a network that does not repeat by itself what failed for a
// passing reason: calls are repeated, and readers that broke go on where they stopped.
func steadfast(st storage.Storage) storage.Storage {
	return storage.NewResume(storage.NewRetry(st, storage.RetryOptions{}), storage.Backoff{})
}

// opened is what a constructor of a store returned, as openRepo returns it: what it refuses is an option of the repository.
func opened(st storage.Storage, err error, key int) (storage.Storage, error) {
	if err != nil {
		return nil, &usageError{fmt.Sprintf("repo%d: %v", key, err)}
	}
	return steadfast(st), nil
}

// openGCS opens a repository in a bucket of Google Cloud Storage.
func openGCS(c *backrest.Config, key int) (storage.Storage, error) {
	o := gcs.Options{
		Bucket: c.String("repo-gcs-bucket", key), Prefix: c.String("repo-path", key), Endpoint: c.String("repo-gcs-endpoint", key), KeyType: c.String("repo-gcs-key-type", key),
		UserProject: c.String("repo-gcs-user-project", key), CAFile: c.String("repo-storage-ca-file", key), CAPath: c.String("repo-storage-ca-path", key),
		SkipVerifyTLS: !c.Bool("repo-storage-verify-tls", key), PartSize: c.Int("repo-storage-upload-chunk-size", key), Tags: c.Hash("repo-storage-tag", key), Timeout: c.Duration("io-timeout", 0),
	}
	if secret := c.String("repo-gcs-key", key); o.KeyType == gcs.KeyToken {
		o.Token = storage.Secret(secret)
	} else {
		o.KeyFile = secret
	}
	st, err := gcs.New(o)
	return opened(st, err, key)
}

// openAzure opens a repository in a container of Azure Blob Storage. As pgBackRest has it, repo-storage-host is the endpoint if it is
// set, and the account then stands in the path unless something else is said.
func openAzure(c *backrest.Config, key int) (storage.Storage, error) {
	o := azure.Options{
		Account: c.String("repo-azure-account", key), Container: c.String("repo-azure-container", key), Prefix: c.String("repo-path", key), Endpoint: c.String("repo-azure-endpoint", key),
		URIStyle: c.String("repo-azure-uri-style", key), KeyType: c.String("repo-azure-key-type", key), Key: storage.Secret(c.String("repo-azure-key", key)),
		CAFile: c.String("repo-storage-ca-file", key), CAPath: c.String("repo-storage-ca-path", key), SkipVerifyTLS: !c.Bool("repo-storage-verify-tls", key),
		PartSize: c.Int("repo-storage-upload-chunk-size", key), Tags: c.Hash("repo-storage-tag", key), Timeout: c.Duration("io-timeout", 0),
	}
	if host := c.String("repo-storage-host", key); host != "" {
		o.Endpoint = host
		if !given(c, "repo-azure-uri-style", key) {
			o.URIStyle = azure.StylePath
		}
	}
	if given(c, "repo-storage-port", key) {
		o.Port = int(c.Int("repo-storage-port", key))
	}
	st, err := azure.New(o)
	return opened(st, err, key)
}

// openSFTP opens a repository on an SFTP server. Without a key file the agent of the environment is asked.
func openSFTP(env *Env, c *backrest.Config, key int) (storage.Storage, error) {
	home := homeDir(env)
	known := c.List("repo-sftp-known-host", key)
	if len(known) == 0 {
		known = []string{"~/.ssh/known_hosts", "~/.ssh/known_hosts2", "/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2"}
	}
	known = slices.Clone(known)
	for i, f := range known {
		known[i] = inHome(home, strings.TrimSpace(f))
	}
	st, err := sftp.New(sftp.Options{ // its connections are the program's until it ends, or a daemon's run
		Host: c.String("repo-sftp-host", key), Port: int(c.Int("repo-sftp-host-port", key)), User: c.String("repo-sftp-host-user", key), Path: c.String("repo-path", key),
		PrivateKeyFile: inHome(home, c.String("repo-sftp-private-key-file", key)), Passphrase: storage.Secret(c.String("repo-sftp-private-key-passphrase", key)),
		PublicKeyFile: inHome(home, c.String("repo-sftp-public-key-file", key)), AgentSocket: env.Getenv("SSH_AUTH_SOCK"),
		HostKeyCheck: c.String("repo-sftp-host-key-check-type", key), KnownHosts: known, HostKeyHash: c.String("repo-sftp-host-key-hash-type", key),
		Fingerprint: c.String("repo-sftp-host-fingerprint", key), Timeout: c.Duration("io-timeout", 0),
	})
	if err == nil && env.Connected != nil {
		env.Connected(st)
	}
	return opened(st, err, key)
}

// given says whether somebody set the option.
func given(c *backrest.Config, name string, key int) bool {
	return slices.ContainsFunc(c.Given(), func(g backrest.Given) bool { return g.Name == name && g.Key == key })
}

// homeDir is the home directory of the user that we run as; archive_command has it in no variable.
func homeDir(env *Env) string {
	if u, err := user.Current(); err == nil && u.HomeDir != "" {
		return u.HomeDir
	}
	return cmp.Or(env.Getenv("HOME"), "/")
}

// inHome is a path in which a leading tilde stands for the home directory.
func inHome(home, path string) string {
	if rest, ok := strings.CutPrefix(path, "~/"); ok {
		return filepath.Join(home, rest)
	}
	return path
}
