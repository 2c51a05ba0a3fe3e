package sftp

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"holdfast/internal/storage"
)

// Kinds of Options.HostKeyCheck.
const (
	CheckStrict      = "strict"      // the key must be in a known-hosts file, or have Options.Fingerprint if that is given
	CheckAcceptNew   = "accept-new"  // the key of an unknown host is written to the first known-hosts file; a changed one is refused
	CheckFingerprint = "fingerprint" // the key must have Options.Fingerprint
	CheckNone        = "none"        // any key: whoever is in between can read and change everything
)

// ErrHostKey says that the server's key is not one that it may have.
var ErrHostKey = storage.Unavailable(errors.New("the server's key is refused"))

// ErrAuth says that the server does not take our key.
var ErrAuth = storage.Unavailable(errors.New("the server refuses our key"))

// authMethods reads the private key, or asks the agent.
func authMethods(o Options) ([]ssh.AuthMethod, error) {
	if o.PrivateKeyFile == "" {
		if o.AgentSocket == "" {
			return nil, errors.New("no private key file is given, and there is no agent")
		}
		return []ssh.AuthMethod{ssh.PublicKeysCallback(func() ([]ssh.Signer, error) {
			c, err := net.Dial("unix", o.AgentSocket)
			if err != nil {
				return nil, fmt.Errorf("ask the agent: %w", err)
			}
			// The signers sign through the connection, which ends with the process.
			return agent.NewClient(c).Signers()
		})}, nil
	}
	info, err := os.Stat(o.PrivateKeyFile)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return nil, fmt.Errorf("private key: every user can read %s; run: chmod o= %s", o.PrivateKeyFile, o.PrivateKeyFile)
	}
	text, err := os.ReadFile(o.PrivateKeyFile)
	if err != nil {
		return nil, fmt.Errorf("private key: %w", err)
	}
	var signer ssh.Signer
	if o.Passphrase != "" {
		signer, err = ssh.ParsePrivateKeyWithPassphrase(text, []byte(o.Passphrase))
	} else {
		signer, err = ssh.ParsePrivateKey(text)
	}
	var locked *ssh.PassphraseMissingError
	switch {
	case errors.As(err, &locked):
		return nil, fmt.Errorf("private key: %s needs its passphrase", o.PrivateKeyFile)
	case err != nil: // the library's error says nothing about the content
		return nil, fmt.Errorf("private key: %s cannot be opened: %w", o.PrivateKeyFile, err)
	}
	if signer, err = withCertificate(signer, o.PublicKeyFile); err != nil {
		return nil, err
	}
	return []ssh.AuthMethod{ssh.PublicKeys(signer)}, nil
}

// withCertificate adds the certificate of a key if that is what the public key file holds; a plain public key is not needed.
func withCertificate(signer ssh.Signer, file string) (ssh.Signer, error) {
	if file == "" {
		return signer, nil
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("public key: %w", err)
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey(text)
	if err != nil {
		return nil, fmt.Errorf("public key: %s is not one: %w", file, err)
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		return ssh.NewCertSigner(cert, signer)
	}
	if !bytes.Equal(key.Marshal(), signer.PublicKey().Marshal()) {
		return nil, fmt.Errorf("public key: %s is not that of the private key", file)
	}
	return signer, nil
}

// hostKeys decides about the server's key.
type hostKeys struct {
	o  Options
	mu sync.Mutex // of what accept-new writes
}

// known reads the known-hosts files that are there.
func (h *hostKeys) known() (ssh.HostKeyCallback, error) {
	var there []string
	for _, f := range h.o.KnownHosts {
		if _, err := os.Stat(f); err == nil {
			there = append(there, f)
		}
	}
	check, err := knownhosts.New(there...)
	if err != nil {
		return nil, fmt.Errorf("known hosts: %w", err)
	}
	return check, nil
}

// algorithms lists the kinds of key that are known of a host, so that the server shows one of these; nil: all.
func (h *hostKeys) algorithms(address string, remote net.Addr) []string {
	if h.pinned() || h.o.HostKeyCheck == CheckNone {
		return nil
	}
	check, err := h.known()
	if err != nil {
		return nil // said when the key is checked
	}
	var mismatch *knownhosts.KeyError
	if !errors.As(check(address, remote, nobody{}), &mismatch) {
		return nil
	}
	var out []string
	for _, k := range mismatch.Want {
		switch t := k.Key.Type(); t {
		case ssh.KeyAlgoRSA:
			out = append(out, ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, t)
		default:
			out = append(out, t)
		}
	}
	return slices.Compact(out)
}

// pinned says whether one fingerprint decides, and no known-hosts file.
func (h *hostKeys) pinned() bool {
	return h.o.HostKeyCheck == CheckFingerprint || h.o.HostKeyCheck == CheckStrict && h.o.Fingerprint != ""
}

// nobody is a key that no host has.
type nobody struct{}

func (nobody) Type() string                        { return "nobody" }
func (nobody) Marshal() []byte                     { return []byte("nobody") }
func (nobody) Verify([]byte, *ssh.Signature) error { return ErrHostKey }

// check is an ssh.HostKeyCallback.
func (h *hostKeys) check(address string, remote net.Addr, key ssh.PublicKey) error {
	switch {
	case h.o.HostKeyCheck == CheckNone:
		return nil
	case h.pinned():
		return h.fingerprint(key)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	known, err := h.known()
	if err != nil {
		return err
	}
	err = known(address, remote, key)
	var mismatch *knownhosts.KeyError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &mismatch):
		return fmt.Errorf("%w: %w", ErrHostKey, err)
	case len(mismatch.Want) > 0:
		return fmt.Errorf("%w: %s has another key than %s line %d says; if that is right, take the line out", ErrHostKey, address, mismatch.Want[0].Filename, mismatch.Want[0].Line)
	case h.o.HostKeyCheck == CheckAcceptNew:
		return h.remember(address, key)
	}
	return fmt.Errorf("%w: %s is in none of the known-hosts files (%s); its key has the fingerprint %s: compare it with the server's, then run: ssh-keyscan -p %d %s >> FILE",
		ErrHostKey, address, strings.Join(h.o.KnownHosts, ", "), ssh.FingerprintSHA256(key), h.o.Port, h.o.Host)
}

// remember adds a host to the first known-hosts file.
func (h *hostKeys) remember(address string, key ssh.PublicKey) error {
	if len(h.o.KnownHosts) == 0 {
		return fmt.Errorf("%w: there is no known-hosts file to remember it in", ErrHostKey)
	}
	file := h.o.KnownHosts[0]
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("known hosts: %w", err)
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("known hosts: %w", err)
	}
	_, err = f.WriteString(knownhosts.Line([]string{address}, key) + "\n")
	return errors.Join(err, f.Sync(), f.Close())
}

// fingerprint compares the key with the one fingerprint that is allowed.
func (h *hostKeys) fingerprint(key ssh.PublicKey) error {
	var sum []byte
	switch kind := cmp.Or(h.o.HostKeyHash, "sha256"); kind {
	case "md5":
		s := md5.Sum(key.Marshal())
		sum = s[:]
	case "sha1":
		s := sha1.Sum(key.Marshal())
		sum = s[:]
	case "sha256":
		s := sha256.Sum256(key.Marshal())
		sum = s[:]
	default:
		return fmt.Errorf("host key hash %q: use md5, sha1 or sha256", kind)
	}
	want := h.o.Fingerprint
	for _, prefix := range []string{"MD5:", "SHA1:", "SHA256:"} {
		want = strings.TrimPrefix(want, prefix)
	}
	if strings.EqualFold(strings.ReplaceAll(want, ":", ""), hex.EncodeToString(sum)) || strings.TrimRight(want, "=") == base64.RawStdEncoding.EncodeToString(sum) {
		return nil
	}
	return fmt.Errorf("%w: its fingerprint is %s, not %s", ErrHostKey, hex.EncodeToString(sum), h.o.Fingerprint)
}

// dial connects and proves to each other who both are.
func (s *Store) dial(ctx context.Context) (*ssh.Client, error) {
	address := net.JoinHostPort(s.o.Host, strconv.Itoa(s.o.Port))
	d := net.Dialer{Timeout: s.o.Timeout}
	c, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		if cerr := ctx.Err(); cerr != nil {
			return nil, cerr
		}
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsNotFound {
			return nil, err
		}
		return nil, storage.Temporary(err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() }) // ends a handshake that nobody waits for any more
	defer stop()
	config := &ssh.ClientConfig{User: s.o.User, Auth: s.auth, HostKeyCallback: s.hosts.check, Timeout: s.o.Timeout,
		HostKeyAlgorithms: s.hosts.algorithms(address, c.RemoteAddr())}
	// The limit is on the whole handshake; afterwards the connection is watched by its own questions.
	err = c.SetDeadline(s.now().Add(s.o.Timeout))
	var sc ssh.Conn
	var chans <-chan ssh.NewChannel
	var reqs <-chan *ssh.Request
	if err == nil {
		sc, chans, reqs, err = ssh.NewClientConn(c, address, config)
	}
	if err == nil {
		err = c.SetDeadline(noDeadline)
	}
	if err == nil {
		return ssh.NewClient(sc, chans, reqs), nil
	}
	c.Close() // the error is the one to report
	if cerr := ctx.Err(); cerr != nil {
		return nil, cerr
	}
	switch {
	case errors.Is(err, ErrHostKey), errors.Is(err, fs.ErrPermission):
		return nil, err
	case strings.Contains(err.Error(), "unable to authenticate"):
		return nil, fmt.Errorf("%w as user %s: add the public key to the server's authorized_keys", ErrAuth, s.o.User)
	case strings.Contains(err.Error(), "no common algorithm"):
		return nil, err
	}
	return nil, storage.Temporary(err)
}
