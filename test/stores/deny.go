package stores

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

// AppendOnly is the same server as credentials see it that may add and may not remove: the answers of a policy without
// s3:DeleteObject. Denied counts the removals that were asked for.
func (s *S3) AppendOnly(t testing.TB) (limited *S3, denied *atomic.Int64) {
	t.Helper()
	pem, err := os.ReadFile(s.CA.File)
	pool := x509.NewCertPool()
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatal(err)
	}
	cert, err := tls.LoadX509KeyPair(s.CA.Cert, s.CA.Key)
	if err != nil {
		t.Fatal(err)
	}
	to := &url.URL{Scheme: "https", Host: s.Endpoint}
	forward := &httputil.ReverseProxy{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = to.Scheme, to.Host, r.In.Host
		}} // signed for the host that was asked
	denied = new(atomic.Int64)
	proxy := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, many := r.URL.Query()["delete"]
		_, upload := r.URL.Query()["uploadId"]
		if r.Method == http.MethodDelete && !upload || r.Method == http.MethodPost && many {
			denied.Add(1)
			w.Header().Set("Content-Type", "application/xml")
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprint(w, `<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>`)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	proxy.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	proxy.StartTLS()
	t.Cleanup(proxy.Close)
	l := &S3{Kind: s.Kind, CA: s.CA, Region: s.Region, Key: s.Key, Secret: s.Secret, client: s.client, process: s.process}
	l.Endpoint = strings.Replace(strings.TrimPrefix(proxy.URL, "https://"), "127.0.0.1", "localhost", 1)
	return l, denied
}
