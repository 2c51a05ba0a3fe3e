package s3_test

import (
	"testing"

	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
	"holdfast/internal/storage/storagetest"
	"holdfast/test/stores"
)

// options are for a new bucket on a server.
func options(srv *stores.S3, bucket string) s3.Options {
	return s3.Options{Bucket: bucket, Region: srv.Region, Endpoint: srv.Endpoint, PathStyle: true, CAFile: srv.CA.File, Prefix: "/var/lib/pgbackrest",
		Credentials: s3.Credentials{Key: storage.Secret(srv.Key), Secret: storage.Secret(srv.Secret)}}
}

// open opens the storage or ends the test.
func open(t testing.TB, o s3.Options) *s3.S3 {
	t.Helper()
	s, err := s3.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() }) // it never fails
	return s
}

func TestConformance(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		t.Run(kind, func(t *testing.T) {
			srv := stores.StartS3(t, kind)
			storagetest.Run(t, func(t *testing.T) storage.Storage { return open(t, options(srv, srv.Bucket(t))) })
		})
	}
}
