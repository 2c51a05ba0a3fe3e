package conf

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"

	"holdfast/internal/durable"
)

const (
	sealKeySize = 32    // bytes of the key file, an AES-256 key
	sealPrefix  = "v1:" // version of a sealed value
	sealContext = "holdfast parameter v1\x00"
)

// sealer seals and opens the values of secrets with the key of one instance.
type sealer struct{ aead cipher.AEAD }

// loadSealer reads the key file. It must be a regular file of 32 bytes that only its owner may read, owned by this
// process's user (root may use anybody's).
func loadSealer(path string) (*sealer, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("key of the parameter store: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("key of the parameter store: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("key of the parameter store %s: not a regular file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key of the parameter store %s: mode %04o lets others read it: make sure that nobody did, then run: chmod 600 %s", path, info.Mode().Perm(), path)
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() != 0 && int(st.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("key of the parameter store %s: belongs to user id %d, not to this one (%d)", path, st.Uid, os.Geteuid())
	}
	key, err := io.ReadAll(io.LimitReader(f, sealKeySize+1))
	if err != nil {
		return nil, fmt.Errorf("key of the parameter store: %w", err)
	}
	if len(key) != sealKeySize {
		return nil, fmt.Errorf("key of the parameter store %s: not %d bytes: bring back the file from a copy, or set the secrets again after removing it and running `holdfast init`", path, sealKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("key of the parameter store %s: %w", path, err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("key of the parameter store %s: %w", path, err)
	}
	return &sealer{aead}, nil
}

// createKey makes a key file. The caller holds the store's lock and has seen that there is none.
func createKey(path string, owner *durable.Owner) error {
	key := make([]byte, sealKeySize)
	if _, err := rand.Read(key); err != nil {
		return fmt.Errorf("key of the parameter store: %w", err)
	}
	if err := durable.WriteFileOwned(path, key, 0o600, owner); err != nil {
		return fmt.Errorf("key of the parameter store: %w", err)
	}
	return nil
}

// seal encrypts text for the parameter name.
func (s *sealer) seal(name, text string) (string, error) {
	nonce := make([]byte, s.aead.NonceSize())
	if _, err := rand.Read(nonce); err != nil {
		return "", fmt.Errorf("seal %s: %w", name, err)
	}
	data := s.aead.Seal(nonce, nonce, []byte(text), []byte(sealContext+name))
	return sealPrefix + base64.StdEncoding.EncodeToString(data), nil
}

// open decrypts what seal made for the same name with the same key.
func (s *sealer) open(name, sealed string) (Secret, error) {
	encoded, ok := strings.CutPrefix(sealed, sealPrefix)
	if !ok {
		return Secret{}, fmt.Errorf("open %s: sealed by a version of Holdfast that this one does not know", name)
	}
	data, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil || len(data) < s.aead.NonceSize() {
		return Secret{}, fmt.Errorf("open %s: the sealed value is damaged: set it again with: alation_conf %s -s -", name, name)
	}
	nonce, data := data[:s.aead.NonceSize()], data[s.aead.NonceSize():]
	text, err := s.aead.Open(nil, nonce, data, []byte(sealContext+name))
	if err != nil {
		return Secret{}, errors.Join(fmt.Errorf("open %s: sealed with another key, for another parameter, or damaged: bring back the key file, or set it again with: alation_conf %s -s -", name, name), err)
	}
	return NewSecret(string(text)), nil
}
