package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
	"holdfast/internal/storage/storagetest"
	"holdfast/test/stores"
	"holdfast/test/tally"
)

// partly is the size in bytes of an object that goes in two parts; stores take no part below 5 MiB but the last.
const partly = 5<<20 + 100<<10

// clock is time that passes only while somebody waits.
type clock struct {
	mu     sync.Mutex
	now    time.Time
	pauses []time.Duration
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) sleep(ctx context.Context, d time.Duration) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	c.pauses = append(c.pauses, d)
	return ctx.Err()
}

func newClock() *clock { return &clock{now: time.Now()} }

// behind opens a bucket through a proxy, with a clock that costs no time.
func behind(t testing.TB, p *stores.Proxy, srv *stores.S3, bucket string, c *clock, change ...func(*s3.Options)) *s3.S3 {
	t.Helper()
	o := options(srv, bucket)
	o.Endpoint, o.PartSize, o.Now = p.Endpoint, 5<<20, c.Now
	o.Backoff.Sleep = c.sleep
	for _, f := range change {
		f(&o)
	}
	return open(t, o)
}

// away are the troubles that pass when the request is made again.
var away = []stores.Fault{stores.Busy, stores.Fail, stores.CutUp, stores.TamperedUp, stores.Lost, stores.LostBusy, stores.CutDown}

// TestEveryRequestFailsOnce lets one request of a repository's life after the other meet trouble of every kind: it ends well.
func TestEveryRequestFailsOnce(t *testing.T) {
	srv := stores.StartS3(t, "versitygw")
	p := srv.NewProxy(t)
	bucket := srv.Bucket(t)
	cases := 0
	for _, what := range []stores.Fault{stores.CutUp, stores.Lost, stores.CutDown} { // TestFirstAttemptsFail has them all
		for nth := 1; ; nth++ {
			p.Trouble(func(r stores.Request) stores.Fault {
				if r.N == nth {
					return what
				}
				return stores.None
			})
			c := newClock()
			s := behind(t, p, srv, bucket, c, func(o *s3.Options) { o.Prefix = fmt.Sprintf("%d/%d", what, nth) })
			if err := storagetest.Story(t, s, partly); err != nil {
				t.Errorf("%v at request %d: %v\n%s", what, nth, err, strings.Join(p.Requests(), "\n"))
			}
			if p.Fired() == 0 {
				break
			}
			cases++
		}
	}
	if cases < 60 {
		t.Errorf("only %d requests met trouble", cases)
	}
	tally.Count(t, "S3 requests that met trouble, all mended", cases)
}

// TestFirstAttemptsFail lets every request meet trouble when it is first made, and the second time, on each of the servers.
func TestFirstAttemptsFail(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		srv := stores.StartS3(t, kind)
		p := srv.NewProxy(t)
		bucket := srv.Bucket(t)
		cases := 0
		for _, what := range away {
			tried := map[string]int{}
			p.Trouble(func(r stores.Request) stores.Fault {
				key := r.Op + r.Path + r.Query + r.Header.Get("Range")
				if what == stores.TamperedUp && r.Op != "PutObject" && r.Op != "UploadPart" {
					return stores.None // what is no content is left to TLS: not every store compares a checksum of it
				}
				if tried[key]++; tried[key] <= 2 {
					return what
				}
				return stores.None
			})
			s := behind(t, p, srv, bucket, newClock(), func(o *s3.Options) { o.Prefix = fmt.Sprint(what) })
			if err := storagetest.Story(t, s, partly); err != nil {
				t.Errorf("%s: %v at every request: %v\n%s", kind, what, err, strings.Join(p.Requests(), "\n"))
			}
			cases += p.Fired()
		}
		tally.Count(t, "S3 requests that met trouble, all mended", cases)
	}
}

// count returns a judge that makes trouble for the first n requests of an operation.
func first(n int, op string, what stores.Fault) func(stores.Request) stores.Fault {
	return func(r stores.Request) stores.Fault {
		if r.Op == op && r.Nth <= n {
			return what
		}
		return stores.None
	}
}

// TestLostAnswerIsNotSentTwice: an upload whose answer was lost is looked for before it is sent again.
func TestLostAnswerIsNotSentTwice(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		srv := stores.StartS3(t, kind)
		p := srv.NewProxy(t)
		bucket := srv.VersionedBucket(t)
		for _, what := range []stores.Fault{stores.Lost, stores.LostBusy, stores.CutDown} {
			for op, size := range map[string]int{"PutObject": 100, "CompleteMultipartUpload": partly} {
				s := behind(t, p, srv, bucket, newClock())
				name := strings.ReplaceAll(fmt.Sprint(what, "/", op), " ", "-")
				p.Trouble(first(1, op, what))
				if err := storage.WriteAll(t.Context(), s, name, bytes.Repeat([]byte("x"), size)); err != nil {
					t.Errorf("%s %v of %s: %v", kind, what, op, err)
				}
				if n := p.Counts()[op]; n != 1 || p.Fired() != 1 {
					t.Errorf("%s %v: %s was sent %d times, %d answers lost\n%s", kind, what, op, n, p.Fired(), strings.Join(p.Requests(), "\n"))
				}
				prefix := "var/lib/pgbackrest/" + name
				out, err := srv.Client().ListObjectVersions(t.Context(), &awss3.ListObjectVersionsInput{Bucket: &bucket, Prefix: &prefix})
				if err != nil || len(out.Versions) != 1 {
					t.Errorf("%s %v of %s: %d versions of it are stored, %v", kind, what, op, len(out.Versions), err)
				}
				tally.Count(t, "lost acknowledgements on S3 without a second upload", 1)
			}
		}
	}
}

// TestNothingHalfPublished: an upload that can't be ended leaves what was there before, and no parts that cost space.
func TestNothingHalfPublished(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		srv := stores.StartS3(t, kind)
		p := srv.NewProxy(t)
		bucket := srv.Bucket(t)
		for op, size := range map[string]int{"PutObject": 100, "UploadPart": partly, "CompleteMultipartUpload": partly} {
			for _, what := range []stores.Fault{stores.Busy, stores.CutUp, stores.TamperedUp, stores.Denied} {
				if op == "CompleteMultipartUpload" && what == stores.TamperedUp {
					continue // its body has no checksum: a flipped digit is another request
				}
				c := newClock()
				s := behind(t, p, srv, bucket, c)
				p.Trouble(nil)
				if err := storage.WriteAll(t.Context(), s, "a", []byte("before")); err != nil {
					t.Fatal(err)
				}
				p.Trouble(func(r stores.Request) stores.Fault {
					if r.Op == op {
						return what
					}
					return stores.None
				})
				began := c.Now()
				err := storage.WriteAll(t.Context(), s, "a", bytes.Repeat([]byte("y"), size))
				if !errors.Is(err, storage.ErrUnavailable) || strings.Contains(err.Error(), srv.Secret) || !strings.Contains(err.Error(), bucket+"/var/lib/pgbackrest/a") {
					t.Errorf("%s %v of every %s: %v", kind, what, op, err)
				}
				if took := c.Now().Sub(began); took > 2*time.Minute+time.Second || what == stores.Denied && took > 0 {
					t.Errorf("%s %v of every %s: given up after %v", kind, what, op, took)
				}
				p.Trouble(nil)
				if b, err := storage.ReadAll(t.Context(), s, "a", 1<<20); err != nil || string(b) != "before" {
					t.Errorf("%s %v of every %s: %q is there, %v", kind, what, op, b, err)
				}
				out, err := srv.Client().ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: &bucket})
				if err != nil || len(out.Uploads) != 0 {
					t.Errorf("%s %v of every %s: %d uploads are left, %v", kind, what, op, len(out.Uploads), err)
				}
				tally.Count(t, "S3 uploads that could not end, with one clear error and nothing half published", 1)
			}
		}
	}
}

// TestLaggingStore: a store that answers from before what this process did a moment ago is asked again or put right.
func TestLaggingStore(t *testing.T) {
	srv := stores.StartS3(t, "versitygw")
	p := srv.NewProxy(t)
	s := behind(t, p, srv, srv.Bucket(t), newClock())
	put := func(name, text string) {
		t.Helper()
		if err := storage.WriteAll(t.Context(), s, name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	list := func() string {
		t.Helper()
		var names []string
		for in, err := range s.List(t.Context(), "d", storage.ListOptions{Recursive: true}) {
			if err != nil {
				t.Fatal(err)
			}
			names = append(names, in.Name)
		}
		return strings.Join(names, " ")
	}
	put("d/1", "one")
	list() // which the proxy remembers
	put("d/2", "two")
	for op, ask := range map[string]func() error{
		"HeadObject": func() error { _, err := s.Stat(t.Context(), "d/2"); return err },
		"GetObject":  func() error { _, err := storage.ReadAll(t.Context(), s, "d/2", 100); return err },
	} {
		p.Trouble(first(3, op, stores.Missing))
		if err := ask(); err != nil || p.Fired() != 3 {
			t.Errorf("missing after it was put: %s: %v after %d answers", op, err, p.Fired())
		}
	}
	p.Trouble(first(1, "ListObjectsV2", stores.Stale))
	if got := list(); got != "d/1 d/2" || p.Fired() != 1 {
		t.Errorf("a stale list is given out as %q", got)
	}
	if err := s.Remove(t.Context(), "d/1"); err != nil {
		t.Fatal(err)
	}
	p.Trouble(first(1, "ListObjectsV2", stores.Stale))
	if got := list(); got != "d/2" || p.Fired() != 1 {
		t.Errorf("a stale list with a removed object is given out as %q", got)
	}
	tally.Count(t, "answers of a lagging S3 store put right", 8)
}

// TestDamagedOnTheWayDown: bytes that are not what the store's checksum says are never taken for the object.
func TestDamagedOnTheWayDown(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		srv := stores.StartS3(t, kind)
		p := srv.NewProxy(t)
		s := behind(t, p, srv, srv.Bucket(t), newClock())
		for name, size := range map[string]int{"small": 1000, "big": partly} {
			if err := storage.WriteAll(t.Context(), s, name, bytes.Repeat([]byte("x"), size)); err != nil {
				t.Fatal(err)
			}
			p.Trouble(first(1, "GetObject", stores.Tampered))
			if _, err := storage.ReadAll(t.Context(), s, name, 1<<30); !errors.Is(err, storage.ErrCorrupt) || errors.Is(err, storage.ErrUnavailable) {
				t.Errorf("%s: a byte of %s was changed: %v", kind, name, err)
			}
			if b, err := storage.ReadAll(t.Context(), s, name, 1<<30); err != nil || len(b) != size {
				t.Errorf("%s: read again: %d bytes, %v", kind, len(b), err)
			}
		}
	}
}

// TestBrokenReadGoesOn: a read that breaks asks for the rest only, and notices when the object is another one by then.
func TestBrokenReadGoesOn(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		srv := stores.StartS3(t, kind)
		p := srv.NewProxy(t)
		s := behind(t, p, srv, srv.Bucket(t), newClock())
		want := make([]byte, 3<<20)
		for i := range want {
			want[i] = byte(i / 7)
		}
		if err := storage.WriteAll(t.Context(), s, "a", want); err != nil {
			t.Fatal(err)
		}
		p.Trouble(first(5, "GetObject", stores.CutDown))
		got, err := storage.ReadAll(t.Context(), s, "a", 1<<30)
		if err != nil || !bytes.Equal(got, want) || p.Counts()["GetObject"] != 6 {
			t.Errorf("%s: %d bytes, %v, %v", kind, len(got), err, p.Counts())
		}
		p.Trouble(func(r stores.Request) stores.Fault {
			if r.Op != "GetObject" {
				return stores.None
			}
			if r.Nth == 1 {
				return stores.CutDown
			}
			if r.Header.Get("If-Match") == "" || !strings.HasPrefix(r.Header.Get("Range"), "bytes=") {
				t.Errorf("%s: the rest is asked for with %v", kind, r.Header)
			}
			return stores.None
		})
		r, err := s.Open(t.Context(), "a", 0, -1)
		if err == nil {
			_, err = io.ReadFull(r, make([]byte, 1000))
		}
		if err == nil {
			err = storage.WriteAll(t.Context(), s, "a", bytes.Repeat([]byte("z"), 3<<20))
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); !errors.Is(err, storage.ErrChanged) {
			t.Errorf("%s: the object was replaced while it was read: %v", kind, err)
		}
		_ = r.Close() // it has failed
	}
}

// TestRetriesAreBounded: the store's Retry-After is honoured, the pauses grow with a random part, and in the end there is one error.
func TestRetriesAreBounded(t *testing.T) {
	srv := stores.StartS3(t, "versitygw")
	p := srv.NewProxy(t)
	bucket := srv.Bucket(t)
	p.RetryAfter(7 * time.Second)
	c := newClock()
	s := behind(t, p, srv, bucket, c)
	p.Trouble(first(2, "HeadObject", stores.Busy))
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if fmt.Sprint(c.pauses) != "[7s 7s]" {
		t.Errorf("the store asked for 7 s, the pauses are %v", c.pauses)
	}
	p.RetryAfter(0)
	c = newClock()
	s = behind(t, p, srv, bucket, c, func(o *s3.Options) { o.RetryFor, o.Backoff.Rand = 30*time.Second, func() float64 { return 0.5 } })
	p.Trouble(func(stores.Request) stores.Fault { return stores.Busy })
	began := c.Now()
	_, err := s.Stat(t.Context(), "a")
	if took := c.Now().Sub(began); took > 30*time.Second || took < 10*time.Second {
		t.Errorf("given up after %v", took)
	}
	if !errors.Is(err, storage.ErrUnavailable) || !strings.Contains(err.Error(), "tried ") || !strings.Contains(err.Error(), "run it again later") {
		t.Error(err)
	}
	if len(c.pauses) < 5 || c.pauses[0] != 150*time.Millisecond || c.pauses[1] != 300*time.Millisecond || c.pauses[4] != 2400*time.Millisecond {
		t.Errorf("the pauses are %v", c.pauses)
	}
	p.Trouble(func(stores.Request) stores.Fault { return stores.Denied })
	if _, err := s.Stat(t.Context(), "a"); !errors.Is(err, storage.ErrUnavailable) || p.Counts()["HeadObject"] != 1 {
		t.Errorf("what will not change was tried %v: %v", p.Counts(), err)
	}
}

// TestSessionEnds: credentials that end in the middle of a run are fetched anew where they can be, else the error says what to do.
func TestSessionEnds(t *testing.T) {
	srv := stores.StartS3(t, "versitygw")
	p := srv.NewProxy(t)
	bucket := srv.Bucket(t)
	dir := t.TempDir()
	calls := filepath.Join(dir, "calls")
	script := filepath.Join(dir, "credentials")
	text := fmt.Sprintf("#!/bin/sh\necho >>%s\necho '{\"Version\":1,\"AccessKeyId\":%q,\"SecretAccessKey\":%q}'\n", calls, srv.Key, srv.Secret)
	if err := os.WriteFile(script, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
	renewing := behind(t, p, srv, bucket, newClock(), func(o *s3.Options) { o.Credentials = s3.Credentials{Type: s3.Process, Command: []string{script}} })
	if err := storage.WriteAll(t.Context(), renewing, "a", []byte("a")); err != nil {
		t.Fatal(err)
	}
	for op, do := range map[string]func() error{
		"PutObject": func() error { return storage.WriteAll(t.Context(), renewing, "b", []byte("b")) },
		"GetObject": func() error { _, err := storage.ReadAll(t.Context(), renewing, "a", 10); return err },
		"UploadPart": func() error {
			return storage.WriteAll(t.Context(), renewing, "c", bytes.Repeat([]byte("c"), partly))
		},
	} {
		p.Trouble(first(1, op, stores.Expired))
		if err := do(); err != nil || p.Fired() != 1 {
			t.Errorf("expired at %s: %v", op, err)
		}
	}
	if b, err := os.ReadFile(calls); err != nil || len(b) != 4 {
		t.Errorf("credentials were fetched %d times, %v", len(b), err)
	}
	p.Trouble(func(stores.Request) stores.Fault { return stores.Expired })
	err := storage.WriteAll(t.Context(), renewing, "b", []byte("b"))
	if !errors.Is(err, storage.ErrUnavailable) || p.Counts()["PutObject"] > 5 {
		t.Errorf("always expired: %v after %v", err, p.Counts())
	}
	p.Trouble(first(1, "PutObject", stores.Expired))
	err = storage.WriteAll(t.Context(), behind(t, p, srv, bucket, newClock()), "b", []byte("b"))
	if err == nil || !strings.Contains(err.Error(), "set a new key, secret and token") || strings.Contains(err.Error(), srv.Secret) {
		t.Error(err)
	}
	tally.Count(t, "S3 sessions that ended in the middle", 5)
}

// TestClockIsOff: a store whose clock is another is asked again by its own.
func TestClockIsOff(t *testing.T) {
	srv := stores.StartS3(t, "versitygw")
	p := srv.NewProxy(t)
	bucket := srv.Bucket(t)
	for _, skew := range []time.Duration{time.Hour, -25 * time.Hour} {
		p.Skew(skew)
		p.Trouble(nil)
		if _, err := behind(t, p, srv, bucket, newClock()).Stat(t.Context(), "a"); !errors.Is(err, fs.ErrNotExist) || p.Counts()["HeadObject"] != 2 {
			t.Errorf("the store's clock is %v off, and a HEAD comes first: %v, %v", skew, err, p.Counts())
		}
		p.Trouble(nil)
		s := behind(t, p, srv, bucket, newClock(), func(o *s3.Options) { o.Prefix = skew.String() })
		if err := storagetest.Story(t, s, partly); err != nil {
			t.Errorf("the store's clock is %v off: %v\n%s", skew, err, strings.Join(p.Requests(), "\n"))
		}
		if n := p.Counts()["PutObject"]; n != 8 { // seven, the first of them twice
			t.Errorf("the store's clock is %v off: %d times PutObject; it should be learned once", skew, n)
		}
	}
}
