package stores

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"os"
	"strconv"
	"testing"
	"time"
)

// Server is a running server that speaks HTTPS.
type Server struct {
	Port   int
	CAFile string // PEM: who signed the server's certificate
	log    string
}

// Address is host and port.
func (s *Server) Address() string { return "127.0.0.1:" + strconv.Itoa(s.Port) }

// Log is what the server has written so far.
func (s *Server) Log(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(s.log)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// answersHTTPS tells whether a server of the test authority answers at all.
func answersHTTPS(address, caFile string) func(context.Context) error {
	return func(ctx context.Context) error {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(pem)
		tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, DisableKeepAlives: true}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/", nil)
		if err != nil {
			return err
		}
		resp, err := (&http.Client{Transport: tr, Timeout: 5 * time.Second}).Do(req)
		if err == nil {
			resp.Body.Close() // any answer will do
		}
		return err
	}
}

// RSAKey is a fresh private key in PEM, as a service account has one.
func RSAKey(t testing.TB) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}
