package gcs_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"holdfast/internal/storage"
	"holdfast/internal/storage/gcs"
	"holdfast/internal/storage/storagetest"
	"holdfast/test/stores"
)

var paths atomic.Int32

// open returns a store in a path of its own of a running server, with small pages and chunks.
func open(t testing.TB, server *stores.Server, change func(*gcs.Options)) *gcs.Store {
	t.Helper()
	o := gcs.Options{Bucket: stores.Bucket, Prefix: fmt.Sprintf("/repo/%d", paths.Add(1)), Endpoint: server.Address(), CAFile: server.CAFile,
		KeyType: gcs.KeyToken, Token: "test-token", PartSize: 1, Tags: map[string]string{"origin": "test"}}
	if change != nil {
		change(&o)
	}
	s, err := gcs.New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.SetPage(3)
	return s
}

func TestConformance(t *testing.T) {
	server := stores.GCS(t)
	storagetest.Run(t, func(t *testing.T) storage.Storage { return open(t, server, nil) })
}

func TestConformanceOfTheStack(t *testing.T) {
	server := stores.GCS(t)
	storagetest.Run(t, func(t *testing.T) storage.Storage {
		s := storage.NewRetry(storage.NewLimit(open(t, server, nil), 4), storage.RetryOptions{})
		return storage.NewResume(s, storage.Backoff{})
	})
}
