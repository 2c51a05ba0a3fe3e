// Package stores runs real storage servers for tests (S3, Google Cloud Storage, Azure, SFTP) and a file system that can do as little
// as a network mount. Servers are ordinary processes on free ports of the loopback address, with certificates of an
// authority that each test makes. The programs come from scripts/setup.
package stores

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority and one server certificate of it, as files that everybody may read. The server's is for
// localhost, names below it, and 127.0.0.1.
type CA struct {
	Dir  string
	File string // the authority's certificate
	Cert string // the server's certificate
	Key  string
}

// NewCA makes an authority in a directory that goes with the test.
func NewCA(t testing.TB) *CA {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-stores-") // what is above t.TempDir's is closed to others
	if err == nil {
		t.Cleanup(func() {
			if err := os.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := MakeCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// MakeCA makes an authority in a directory.
func MakeCA(dir string) (*CA, error) {
	c := &CA{Dir: dir, File: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, "public.crt"), Key: filepath.Join(dir, "private.key")}
	now := time.Now()
	root := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Holdfast test authority"}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
		DNSNames: []string{"localhost", "*.localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	rootKey, err1 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	leafKey, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	rootDER, err1 := x509.CreateCertificate(rand.Reader, root, root, &rootKey.PublicKey, rootKey)
	leafDER, err2 := x509.CreateCertificate(rand.Reader, leaf, root, &leafKey.PublicKey, rootKey)
	keyDER, err3 := x509.MarshalECPrivateKey(leafKey)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	return c, errors.Join(writePEM(c.File, "CERTIFICATE", rootDER), writePEM(c.Cert, "CERTIFICATE", leafDER), writePEM(c.Key, "EC PRIVATE KEY", keyDER))
}

func writePEM(file, kind string, der []byte) error {
	return os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o644)
}
