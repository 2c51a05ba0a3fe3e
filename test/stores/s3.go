package stores

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
)

// S3 is a running S3 server.
type S3 struct {
	Kind     string // of S3Kinds
	CA       *CA
	Port     int
	Endpoint string // localhost:port; TLS
	Region   string
	Key      string
	Secret   string
	client   *s3.Client
	buckets  atomic.Int64
	process  *process
	again    func(testing.TB) (*process, error)
}

// Stop ends the server at once: an outage. Start brings it back, with what it had.
func (s *S3) Stop() { s.process.stop() }

// Start starts the server again, at the same place, after Stop.
func (s *S3) Start(t testing.TB) {
	t.Helper()
	var err error
	if s.process, err = s.again(t); err != nil {
		t.Fatal(err)
	}
}

// S3Kinds are the servers that tests run on.
var S3Kinds = []string{"versitygw", "minio"}

// StartS3 starts a server on an empty directory; it ends with the test.
func StartS3(t testing.TB, kind string) *S3 {
	t.Helper()
	name := program(t, "bin/"+kind)
	s := &S3{Kind: kind, CA: NewCA(t), Region: "us-east-1", Key: "holdfasttestkey", Secret: "planted-s3-secret-5f1c"}
	var last error
	for range 3 { // a port found free may be taken before the server has it
		if last = s.start(t, name); last == nil {
			alsoIPv6(t, s.Port)
			return s
		}
	}
	t.Fatal(last)
	return nil
}

func (s *S3) start(t testing.TB, name string) (err error) {
	s.Port = FreePort(t)
	s.Endpoint = "localhost:" + strconv.Itoa(s.Port)
	s.client = s.Client()
	at := "127.0.0.1:" + strconv.Itoa(s.Port)
	data := t.TempDir()
	var env, args []string
	switch s.Kind {
	case "versitygw":
		versions := filepath.Join(data, "versions")
		objects := filepath.Join(data, "objects")
		for _, d := range []string{versions, objects} {
			if err := os.Mkdir(d, 0o755); err != nil {
				return err
			}
		}
		env = []string{"ROOT_ACCESS_KEY=" + s.Key, "ROOT_SECRET_KEY=" + s.Secret}
		args = []string{"--port", at, "--cert", s.CA.Cert, "--key", s.CA.Key, "--region", s.Region, "--quiet", "--keep-alive", "--virtual-domain", "localhost",
			"posix", "--versioning-dir", versions, objects}
	case "minio":
		env = []string{"MINIO_ROOT_USER=" + s.Key, "MINIO_ROOT_PASSWORD=" + s.Secret, "MINIO_DOMAIN=localhost", "MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off",
			"MINIO_KMS_SECRET_KEY=test-key:bXktbWluaW8ta2V5LW9mLTMyLWJ5dGVzLWxvbmcuLi4="}
		args = []string{"server", "--quiet", "--address", at, "--certs-dir", s.CA.Dir, data}
	default:
		return fmt.Errorf("no S3 server %q", s.Kind)
	}
	ready := func(ctx context.Context) error {
		if err := listening(ctx, s.Port); err != nil {
			return err
		}
		_, err := s.client.ListBuckets(ctx, &s3.ListBucketsInput{})
		return err
	}
	s.again = func(t testing.TB) (*process, error) { return run(t, command(t, env, name, args...), ready) }
	s.process, err = s.again(t)
	return err
}

// Client is a plain client of the SDK for the server.
func (s *S3) Client() *s3.Client {
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(s.CA.File)
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		panic(fmt.Sprintf("the test's own CA file: %v", err))
	}
	return s3.New(s3.Options{Region: s.Region, BaseEndpoint: aws.String("https://" + s.Endpoint), UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.Key, s.Secret, ""),
		HTTPClient:  &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}})
}

// Bucket makes an empty bucket and returns its name.
func (s *S3) Bucket(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("bucket%d", s.buckets.Add(1))
	if _, err := s.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name}); err != nil {
		t.Fatalf("make bucket %s on %s: %v", name, s.Kind, err)
	}
	return name
}

// VersionedBucket makes an empty bucket that keeps versions and knows object lock.
func (s *S3) VersionedBucket(t testing.TB) string {
	t.Helper()
	name := fmt.Sprintf("bucket%d", s.buckets.Add(1))
	if _, err := s.client.CreateBucket(t.Context(), &s3.CreateBucketInput{Bucket: &name, ObjectLockEnabledForBucket: aws.Bool(true)}); err != nil {
		t.Fatalf("make bucket %s on %s: %v", name, s.Kind, err)
	}
	if _, err := s.client.PutBucketVersioning(t.Context(), &s3.PutBucketVersioningInput{Bucket: &name,
		VersioningConfiguration: &types.VersioningConfiguration{Status: types.BucketVersioningStatusEnabled}}); err != nil {
		t.Fatalf("versioning of bucket %s on %s: %v", name, s.Kind, err)
	}
	return name
}
