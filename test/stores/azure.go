package stores

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/sas"
)

// Container is the container that Azure makes, in the account Account.
const (
	Account   = "holdfasttest"
	Container = "holdfast"
)

// AzureServer is a running Azurite.
type AzureServer struct {
	Server
	Key string // of the account
}

// Azure starts Azurite with one account and the container Container. Its address has the account in the path.
func Azure(t testing.TB) *AzureServer {
	t.Helper()
	program := program(t, "azurite/node_modules/azurite/dist/src/blob/main.js")
	var secret [64]byte
	if _, err := rand.Read(secret[:]); err != nil {
		t.Fatal(err)
	}
	ca := NewCA(t)
	s := &AzureServer{Server{Port: FreePort(t), CAFile: ca.File}, base64.StdEncoding.EncodeToString(secret[:])}
	cmd := command(t, []string{"AZURITE_ACCOUNTS=" + Account + ":" + s.Key}, "node", program, "--blobHost", "127.0.0.1", "--blobPort", strconv.Itoa(s.Port),
		"--cert", ca.Cert, "--key", ca.Key, "--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
	cmd.Dir = t.TempDir()
	s.log = start(t, cmd, answersHTTPS(s.Address(), ca.File)).log
	alsoIPv6(t, s.Port)
	c := s.client(t)
	if _, err := c.Create(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	return s
}

// client is the SDK's, for what the adapter does not do.
func (s *AzureServer) client(t testing.TB) *container.Client {
	t.Helper()
	cred, err := container.NewSharedKeyCredential(Account, s.Key)
	if err != nil {
		t.Fatal(err)
	}
	// Any certificate will do: what is tested is the adapter, not this.
	h := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	t.Cleanup(h.CloseIdleConnections)
	c, err := container.NewClientWithSharedKeyCredential("https://"+s.Address()+"/"+Account+"/"+Container, cred,
		&container.ClientOptions{ClientOptions: policy.ClientOptions{Transport: h}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// SAS makes a shared access signature for the container, for everything that a repository needs.
func (s *AzureServer) SAS(t testing.TB) string {
	t.Helper()
	u, err := s.client(t).GetSASURL(sas.ContainerPermissions{Read: true, Add: true, Create: true, Write: true, Delete: true, List: true, Tag: true}, time.Now().Add(time.Hour), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, query, _ := strings.Cut(u, "?")
	return query
}
