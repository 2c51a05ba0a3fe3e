package cli

import (
	"cmp"
	"fmt"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/storage"
)

// storeKind is one type of external storage, in the parameters' words and in pgBackRest's.
type storeKind struct {
	needs []string // parameters without which the storage is not described
	keys  []string // parameters with which it is complete; without them the machine's own identity is used
	// address is what comes before the path.
	address func(v *conf.Values) string
	// words are the parameters in pgBackRest's words; what is secret comes apart, as an environment has it.
	words func(w *wired) (words, environ []string, err error)
}

var storeKinds = map[string]storeKind{
	"posix": {needs: []string{string(conf.KeyRedundancyPath)}},
	"cifs":  {needs: []string{string(conf.KeyRedundancyPath)}},
	"s3": {needs: []string{string(conf.KeyS3Bucket)}, keys: []string{string(conf.KeyS3Key), string(conf.KeyS3Secret)}, words: s3Words,
		address: func(v *conf.Values) string { return v.String(conf.KeyS3Bucket) }},
	"gcs": {needs: []string{string(conf.KeyGCSBucket)}, keys: []string{string(conf.KeyGCSKeyFile)}, words: gcsWords,
		address: func(v *conf.Values) string { return v.String(conf.KeyGCSBucket) }},
	"azure": {needs: []string{string(conf.KeyAzureAccount), string(conf.KeyAzureContainer)}, keys: []string{string(conf.KeyAzureKey)}, words: azureWords,
		address: func(v *conf.Values) string { return v.String(conf.KeyAzureContainer) }},
	"sftp": {needs: []string{string(conf.KeySFTPHost), string(conf.KeySFTPUser), string(conf.KeySFTPPath)}, keys: []string{string(conf.KeySFTPPrivateKey)}, words: sftpWords,
		address: func(v *conf.Values) string {
			return v.String(conf.KeySFTPUser) + "@" + v.String(conf.KeySFTPHost) + path.Clean("/"+v.String(conf.KeySFTPPath))
		}},
}

// missing is the first parameter that the storage is not described without; "" when all are set.
func missing(v *conf.Values) string {
	for _, name := range storeKinds[v.String(conf.KeyRedundancyType)].needs {
		if !v.IsSet(name) {
			return name
		}
	}
	return ""
}

// hasKeys says whether everything is set that the storage may need.
func hasKeys(v *conf.Values) bool {
	for _, name := range storeKinds[v.String(conf.KeyRedundancyType)].keys {
		if !v.IsSet(name) {
			return false
		}
	}
	return true
}

// storeName says where the external storage is; "" when the parameters do not.
func storeName(resolve func(string) string, v *conf.Values) string {
	if missing(v) != "" {
		return ""
	}
	kind, prefix := v.String(conf.KeyRedundancyType), strings.Trim(v.String(conf.KeyRedundancyPrefix), "/")
	if isDirectory(kind) {
		return filepath.Join(resolve(v.Path(conf.KeyRedundancyPath)), prefix)
	}
	return strings.TrimSuffix(kind+"://"+path.Join(storeKinds[kind].address(v), prefix), "/")
}

// openStore opens one of the two places on the external storage.
func openStore(env *Env, w *wired, sub string, owner *durable.Owner) (storage.Storage, error) {
	v := w.values
	if name := missing(v); name != "" {
		return nil, fmt.Errorf("%s is not set: alation_conf %s -s VALUE", name, name)
	}
	kind := v.String(conf.KeyRedundancyType)
	if w.asOf != "" && kind != "s3" {
		return nil, &usageError{fmt.Sprintf("--as-of: external storage of the type %s has no versions that can be read; where it is a directory, mount a snapshot of it and set %s", kind, conf.KeyRedundancyPath)}
	}
	if isDirectory(kind) {
		return openPosixAs(filepath.Join(storeName(w.resolve, v), sub), storage.PosixOptions{Owner: owner, Mount: kind == "cifs"})
	}
	base := "/"
	if kind == "sftp" {
		base = v.String(conf.KeySFTPPath)
	}
	words := []string{"--no-config", "--stanza=all", "--repo=1", "--repo1-type=" + kind, "--repo1-path=" + path.Join("/", base, v.String(conf.KeyRedundancyPrefix), sub)}
	if w.asOf != "" {
		words = append(words, "--repo-target-time="+w.asOf)
	}
	more, environ, err := storeKinds[kind].words(w)
	if err != nil {
		return nil, err
	}
	run, err := settings(env, append(append(words, more...), "info"), environ)
	if err != nil {
		return nil, err
	}
	return run.storageFor(1, owner)
}

// word is an option of the repository with its value.
type word struct{ option, value string }

// spell gives the words of those options that have a value.
func spell(options ...word) []string {
	var words []string
	for _, o := range options {
		if o.value != "" {
			words = append(words, "--repo1-"+o.option+"="+o.value)
		}
	}
	return words
}

// file is a file that a parameter names, where it is on the host; "" when none is.
func (w *wired) file(name conf.PathKey) string {
	if p := w.values.Path(name); p != "" {
		return w.resolve(p)
	}
	return ""
}

// s3Words are the S3 parameters.
func s3Words(w *wired) (words, environ []string, err error) {
	v := w.values
	endpoint := cmp.Or(v.String(conf.KeyS3Endpoint), "s3."+v.String(conf.KeyS3Region)+".amazonaws.com")
	words = spell(word{"s3-bucket", v.String(conf.KeyS3Bucket)}, word{"s3-uri-style", v.String(conf.KeyS3URIStyle)}, word{"s3-endpoint", endpoint},
		word{"s3-region", v.String(conf.KeyS3Region)}, word{"s3-storage-class", v.String(conf.KeyS3StorageClass)},
		word{"s3-sse", map[string]string{"AES256": "s3", "aws:kms": "kms"}[v.String(conf.KeyS3SSE)]}, word{"storage-ca-file", w.file(conf.KeyS3CAFile)}, word{"s3-kms-key-id", v.String(conf.KeyS3KMSKey)})
	if v.Bool(conf.KeyS3RequesterPays) {
		words = append(words, "--repo1-s3-requester-pays")
	}
	if mode := v.String(conf.KeyS3LockMode); mode != "none" {
		words = append(words, spell(word{"s3-object-lock-mode", mode}, word{"s3-object-lock-period", strconv.Itoa(v.Int(conf.KeyS3LockDays)) + "d"})...)
	}
	for _, tag := range v.List(conf.KeyS3Tags) {
		words = append(words, spell(word{"storage-tag", tag})...)
	}
	if len(w.keys) > 0 {
		return withCustomerKey(v, words, w.keys)
	}
	key, err := v.Secret(conf.KeyS3Key)
	if err != nil {
		return nil, nil, err
	}
	secret, err := v.Secret(conf.KeyS3Secret)
	if err != nil {
		return nil, nil, err
	}
	switch k, s := key.Reveal(), secret.Reveal(); {
	case k == "" && s == "":
		words = append(words, "--repo1-s3-key-type=auto")
	case k == "" || s == "":
		return nil, nil, fmt.Errorf("%s and %s are set both or neither", conf.KeyS3Key, conf.KeyS3Secret)
	default:
		environ = []string{"PGBACKREST_REPO1_S3_KEY=" + k, "PGBACKREST_REPO1_S3_KEY_SECRET=" + s}
	}
	return withCustomerKey(v, words, environ)
}

// withCustomerKey adds the key that the storage encrypts with, if there is one.
func withCustomerKey(v *conf.Values, words, environ []string) ([]string, []string, error) {
	customer, err := v.Secret(conf.KeyS3CustomerKey)
	if err != nil {
		return nil, nil, err
	}
	if !customer.Empty() {
		environ = append(environ, "PGBACKREST_REPO1_S3_SSE_CUSTOMER_KEY="+customer.Reveal())
	}
	return words, environ, nil
}

// gcsWords are the parameters of Google Cloud Storage. The key file's name counts as a secret in pgBackRest's table.
func gcsWords(w *wired) (words, environ []string, err error) {
	v := w.values
	words = spell(word{"gcs-bucket", v.String(conf.KeyGCSBucket)}, word{"gcs-endpoint", v.String(conf.KeyGCSEndpoint)}, word{"gcs-user-project", v.String(conf.KeyGCSUserProject)},
		word{"storage-ca-file", w.file(conf.KeyGCSCAFile)})
	if file := w.file(conf.KeyGCSKeyFile); file != "" {
		return words, []string{"PGBACKREST_REPO1_GCS_KEY=" + file}, nil
	}
	return append(words, "--repo1-gcs-key-type=auto"), nil, nil
}

// azureWords are the parameters of Azure Blob Storage. Account and endpoint count as secrets in pgBackRest's table.
func azureWords(w *wired) (words, environ []string, err error) {
	v := w.values
	words = spell(word{"azure-container", v.String(conf.KeyAzureContainer)}, word{"azure-uri-style", v.String(conf.KeyAzureURIStyle)}, word{"storage-ca-file", w.file(conf.KeyAzureCAFile)})
	environ = []string{"PGBACKREST_REPO1_AZURE_ACCOUNT=" + v.String(conf.KeyAzureAccount)}
	if endpoint := v.String(conf.KeyAzureEndpoint); endpoint != "" {
		environ = append(environ, "PGBACKREST_REPO1_AZURE_ENDPOINT="+endpoint)
	}
	key, err := v.Secret(conf.KeyAzureKey)
	if err != nil {
		return nil, nil, err
	}
	if k := key.Reveal(); k != "" {
		return append(words, "--repo1-azure-key-type="+v.String(conf.KeyAzureKeyType)), append(environ, "PGBACKREST_REPO1_AZURE_KEY="+k), nil
	}
	return append(words, "--repo1-azure-key-type=auto"), environ, nil
}

// sftpWords are the SFTP parameters.
func sftpWords(w *wired) (words, environ []string, err error) {
	v := w.values
	words = spell(word{"sftp-host", v.String(conf.KeySFTPHost)}, word{"sftp-host-port", strconv.Itoa(v.Int(conf.KeySFTPPort))}, word{"sftp-host-user", v.String(conf.KeySFTPUser)},
		word{"sftp-private-key-file", w.file(conf.KeySFTPPrivateKey)})
	if fingerprint := v.String(conf.KeySFTPFingerprint); fingerprint != "" {
		words = append(words, spell(word{"sftp-host-key-check-type", "fingerprint"}, word{"sftp-host-key-hash-type", "sha256"}, word{"sftp-host-fingerprint", fingerprint})...)
	} else {
		words = append(words, spell(word{"sftp-known-host", w.file(conf.KeySFTPKnownHosts)})...)
	}
	pass, err := v.Secret(conf.KeySFTPPassphrase)
	if err != nil {
		return nil, nil, err
	}
	if p := pass.Reveal(); p != "" {
		environ = []string{"PGBACKREST_REPO1_SFTP_PRIVATE_KEY_PASSPHRASE=" + p}
	}
	return words, environ, nil
}
