package s3_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
)

// TestAsOfWithinASecond: of versions and delete markers with one time stamp the later in the bucket's history counts, which is the
// earlier in the store's list.
func TestAsOfWithinASecond(t *testing.T) {
	const at = "2026-11-29T12:00:00.000Z"
	entry := func(kind, key string, n int) string {
		return fmt.Sprintf("<%[1]s><Key>%[2]s</Key><VersionId>%[3]d</VersionId><IsLatest>%[4]t</IsLatest><LastModified>%[5]s</LastModified><Size>%[3]d</Size></%[1]s>", kind, key, n, false, at)
	}
	page := `<?xml version="1.0" encoding="UTF-8"?><ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><IsTruncated>false</IsTruncated>` +
		entry("Version", "again", 3) + entry("DeleteMarker", "again", 2) + entry("Version", "again", 1) + // written, removed, written
		entry("DeleteMarker", "gone", 5) + entry("Version", "gone", 4) +
		entry("DeleteMarker", "never", 6) +
		entry("Version", "twice", 8) + entry("Version", "twice", 7) + `</ListVersionsResult>`
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, page) }))
	defer srv.Close()
	then, err := time.Parse(time.RFC3339, at)
	if err != nil {
		t.Fatal(err)
	}
	s, err := s3.New(s3.Options{Bucket: "b", Region: "us-east-1", Endpoint: srv.URL, PathStyle: true, AsOf: then,
		Credentials: s3.Credentials{Key: "k", Secret: "s"}, Backoff: storage.Backoff{Sleep: func(context.Context, time.Duration) error { return nil }}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []string
	for in, err := range s.List(t.Context(), "", storage.ListOptions{Recursive: true}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprint(in.Name, " ", in.Size))
	}
	if want := "again 3|twice 8"; strings.Join(got, "|") != want {
		t.Errorf("as of the second there is %q, want %s", got, want)
	}
}
