package rds_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsrds "github.com/aws/aws-sdk-go-v2/service/rds"
	"github.com/aws/aws-sdk-go-v2/service/rds/types"

	"holdfast/internal/rds"
	"holdfast/test/stores"
)

// client is one that is in a hurry.
func client(t *testing.T, s *stores.RDS) *rds.Client {
	t.Helper()
	c, err := rds.New(rds.Options{Region: s.Region, Endpoint: s.Endpoint, CAFile: s.CAFile, Key: rds.Secret(s.Key), Secret: rds.Secret(s.Secret),
		Poll: 5 * time.Millisecond, Backoff: 5 * time.Millisecond, Tries: 6})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func tags(set, run string) map[string]string {
	return map[string]string{rds.TagSet: set, rds.TagRun: run, rds.TagHost: "here", rds.TagRoot: "/srv/a b&c", rds.TagStanza: "rosemeta"}
}

// TestSnapshots: the way of a snapshot from begin to removal, with what the service does meanwhile.
func TestSnapshots(t *testing.T) {
	s := stores.StartRDS(t)
	s.Make(t, "db-one")
	c, ctx := client(t, s), t.Context()
	s.Manner(stores.RDSManner{Late: 4, Undated: 2})
	if _, err := c.CreateSnapshot(ctx, "db-one", "hf-1", tags("set1", "run1")); err != nil {
		t.Fatal(err)
	}
	fixed, err := c.AwaitSnapshot(ctx, "hf-1", (*rds.Snapshot).Fixed)
	if err != nil || fixed.State != rds.Creating || fixed.Taken.IsZero() {
		t.Fatalf("what it holds should be decided before it is available: %+v %v", fixed, err)
	}
	got, err := c.AwaitSnapshot(ctx, "hf-1", nil)
	if err != nil || got.State != rds.Available || got.Instance != "db-one" || got.Engine != "postgres" || got.StorageGiB != 20 || !got.Of("set1", "run1") || got.Of("set1", "run2") || got.Of("set2", "") {
		t.Fatalf("%+v %v", got, err)
	}
	if got.Tags[rds.TagRoot] != "/srv/a b_c" || !strings.HasPrefix(got.ARN, "arn:aws:rds:eu-west-1:") || got.ClockAhead.Abs() > 30*time.Second {
		t.Errorf("%+v", got)
	}
	// The same request again is the same snapshot, another run's is not.
	if again, err := c.CreateSnapshot(ctx, "db-one", "hf-1", tags("set1", "run1")); err != nil || again.Name != "hf-1" {
		t.Errorf("%+v %v", again, err)
	}
	if _, err := c.CreateSnapshot(ctx, "db-one", "hf-1", tags("set1", "run2")); !errors.Is(err, rds.ErrNotOurs) {
		t.Errorf("another run's snapshot was taken for ours: %v", err)
	}
	for _, o := range [][2]string{{"set2", ""}, {"set1", "run2"}} {
		if err := c.DeleteSnapshot(ctx, "hf-1", o[0], o[1]); !errors.Is(err, rds.ErrNotOurs) {
			t.Errorf("%v: %v", o, err)
		}
	}
	if n := len(s.Snapshots(t)); n != 1 {
		t.Fatalf("%d snapshots", n)
	}
	if err := c.DeleteSnapshot(ctx, "hf-1", "set1", "run1"); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"delete": c.DeleteSnapshot(ctx, "hf-1", "set1", "run1"), "look": func() error { _, err := c.Snapshot(ctx, "hf-1"); return err }(),
		"instance": func() error { _, err := c.Instance(ctx, "nobody"); return err }(), "of nothing": func() error { _, err := c.CreateSnapshot(ctx, "nobody", "hf-2", tags("a", "b")); return err }()} {
		if !errors.Is(err, rds.ErrNotFound) || errors.Is(err, rds.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestBusy: an instance that the service backs up itself is waited for; one that will not come by itself is not.
func TestBusy(t *testing.T) {
	s := stores.StartRDS(t)
	s.Make(t, "db-one")
	c, ctx := client(t, s), t.Context()
	s.Manner(stores.RDSManner{Busy: map[string]int{"db-one": 3}})
	if in, err := c.AwaitIdle(ctx, "db-one"); err != nil || in.State != rds.Available || s.Count("DescribeDBInstances") != 4 {
		t.Fatalf("%+v %v", in, err)
	}
	s.Manner(stores.RDSManner{Busy: map[string]int{"db-one": 3}})
	if _, err := c.CreateSnapshot(ctx, "db-one", "hf-1", tags("set1", "run1")); err != nil || s.Count("CreateDBSnapshot") != 4 {
		t.Fatalf("asked %d times: %v", s.Count("CreateDBSnapshot"), err)
	}
	s.Manner(stores.RDSManner{Busy: map[string]int{"db-one": 1 << 30}})
	short, cancel := context.WithTimeoutCause(ctx, 50*time.Millisecond, errors.New("pgsql.rds.timeout"))
	defer cancel()
	if _, err := c.CreateSnapshot(short, "db-one", "hf-2", tags("set1", "run1")); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "pgsql.rds.timeout") {
		t.Errorf("%v", err)
	}
	s.Manner(stores.RDSManner{State: map[string]string{"db-one": "storage-full"}})
	if _, err := c.AwaitIdle(ctx, "db-one"); !errors.Is(err, rds.ErrState) || !strings.Contains(err.Error(), "storage-full") {
		t.Errorf("%v", err)
	}
}

// TestTimeEndsInARequest: time that ends while an answer is awaited is told as the time limit, for every request.
func TestTimeEndsInARequest(t *testing.T) {
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}))
	defer silent.Close()
	c, err := rds.New(rds.Options{Region: "eu-west-1", Endpoint: silent.URL, Key: "k", Secret: "s", Tries: 6})
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func(context.Context) error{
		"create":   func(ctx context.Context) error { _, err := c.CreateSnapshot(ctx, "db-one", "hf-1", nil); return err },
		"look":     func(ctx context.Context) error { _, err := c.Snapshot(ctx, "hf-1"); return err },
		"instance": func(ctx context.Context) error { _, err := c.Instance(ctx, "db-one"); return err },
		"idle":     func(ctx context.Context) error { _, err := c.AwaitIdle(ctx, "db-one"); return err },
		"delete":   func(ctx context.Context) error { return c.DeleteSnapshot(ctx, "hf-1", "set1", "run1") },
	} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("pgsql.rds.timeout"))
		err := f(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "pgsql.rds.timeout") || strings.Contains(err.Error(), "can be reached") {
			t.Errorf("%s: %v", name, err)
		}
		if name != "idle" && !errors.Is(err, rds.ErrUnavailable) {
			t.Errorf("%s says something about what was asked for: %v", name, err)
		}
	}
}

// TestTrouble: at each request of each kind, every failure that passes leads to one snapshot, one instance, or none, and never
// to two; what does not pass is told at once.
func TestTrouble(t *testing.T) {
	s := stores.StartRDS(t)
	s.Make(t, "db-one")
	c, ctx := client(t, s), t.Context()
	all := func() error {
		_, err := c.CreateSnapshot(ctx, "db-one", "hf-1", tags("set1", "run1"))
		if err == nil {
			_, err = c.AwaitSnapshot(ctx, "hf-1", nil)
		}
		n := rds.NewInstance{Name: "db-two", Snapshot: "hf-1", Tags: map[string]string{rds.TagSet: "set1", rds.TagSnapshot: "hf-1"}}
		if err == nil {
			_, err = c.Create(ctx, n)
		}
		if err == nil {
			_, err = c.AwaitInstance(ctx, "db-two")
		}
		if err == nil && (!slices.Equal(s.Instances(t), []string{"db-one", "db-two"}) || len(s.Snapshots(t)) != 1) {
			err = fmt.Errorf("there are the instances %v and the snapshots %v", s.Instances(t), s.Snapshots(t))
		}
		if err == nil {
			err = c.DeleteSnapshot(ctx, "hf-1", "set1", "run1")
		}
		return err
	}
	clean := func() {
		t.Helper()
		s.Trouble(nil)
		_, err := s.API().DeleteDBInstance(ctx, &awsrds.DeleteDBInstanceInput{DBInstanceIdentifier: aws.String("db-two"), SkipFinalSnapshot: aws.Bool(true)})
		if err != nil || len(s.Snapshots(t)) != 0 {
			t.Fatalf("left: %v, %v", s.Snapshots(t), err)
		}
	}
	for _, fault := range []stores.Fault{stores.Throttled, stores.Busy, stores.Fail, stores.Lost, stores.CutDown} {
		for _, action := range []string{"CreateDBSnapshot", "DescribeDBSnapshots", "RestoreDBInstanceFromDBSnapshot", "DescribeDBInstances", "DeleteDBSnapshot"} {
			for _, times := range []int{1, 3} {
				fired := 0
				s.Trouble(func(a string, nth int, _ url.Values) stores.Fault {
					if a == action && nth <= times {
						fired++
						return fault
					}
					return stores.None
				})
				if err := all(); err != nil || fired != times {
					t.Errorf("%s at %s, %d times of %d: %v", fault, action, fired, times, err)
				}
				clean()
			}
		}
	}
	for _, c := range []struct {
		fault stores.Fault
		word  string
	}{{stores.Denied, "docs/rds.md"}, {stores.Expired, "renew"}} {
		s.Trouble(func(string, int, url.Values) stores.Fault { return c.fault })
		if err := all(); err == nil || errors.Is(err, rds.ErrUnavailable) || !strings.Contains(err.Error(), c.word) || s.Count("CreateDBSnapshot") != 1 {
			t.Errorf("%s: asked %d times: %v", c.fault, s.Count("CreateDBSnapshot"), err)
		}
	}
	s.Trouble(func(string, int, url.Values) stores.Fault { return stores.Throttled })
	if err := all(); !errors.Is(err, rds.ErrUnavailable) || s.Count("CreateDBSnapshot") != 6 || strings.Contains(err.Error(), s.Secret) {
		t.Errorf("asked %d times: %v", s.Count("CreateDBSnapshot"), err)
	}
}

// TestOutageWhileWaiting: a service that can't be asked for longer than a request is repeated does not end a wait.
func TestOutageWhileWaiting(t *testing.T) {
	s := stores.StartRDS(t)
	s.Make(t, "db-one")
	c, ctx := client(t, s), t.Context()
	s.Manner(stores.RDSManner{Late: 2, Fail: []string{"bad"}})
	for _, name := range []string{"hf-good", "hf-bad"} {
		if _, err := c.CreateSnapshot(ctx, "db-one", name, tags("set1", "run1")); err != nil {
			t.Fatal(err)
		}
	}
	s.Trouble(func(_ string, nth int, _ url.Values) stores.Fault {
		if nth > 1 && nth < 20 {
			return stores.Busy
		}
		return stores.None
	})
	if _, err := c.AwaitSnapshot(ctx, "hf-good", nil); err != nil {
		t.Error(err)
	}
	if _, err := c.AwaitSnapshot(ctx, "hf-bad", nil); !errors.Is(err, rds.ErrState) || !strings.Contains(err.Error(), "has failed") {
		t.Errorf("%v", err)
	}
	if _, err := c.AwaitSnapshot(ctx, "hf-none", nil); !errors.Is(err, rds.ErrNotFound) {
		t.Errorf("%v", err)
	}
	s.Trouble(nil)
	s.Manner(stores.RDSManner{Late: 1 << 30})
	short, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if _, err := c.AwaitSnapshot(short, "hf-good", nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "creating") {
		t.Errorf("%v", err)
	}
	canceled, stop := context.WithCancel(ctx)
	stop()
	if _, err := c.AwaitSnapshot(canceled, "hf-good", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestList: every page is read, and only what carries the tags is listed.
func TestList(t *testing.T) {
	s := stores.StartRDS(t)
	s.Make(t, "db-one")
	c, ctx := client(t, s), t.Context()
	for n := range 25 {
		list := []types.Tag{{Key: aws.String("owner"), Value: aws.String("somebody")}}
		if n%5 != 0 {
			list = append(list, types.Tag{Key: aws.String(rds.TagSet), Value: aws.String("set")})
		}
		if _, err := s.API().CreateDBSnapshot(ctx, &awsrds.CreateDBSnapshotInput{DBInstanceIdentifier: aws.String("db-one"), DBSnapshotIdentifier: aws.String(fmt.Sprintf("s-%02d", n)), Tags: list}); err != nil {
			t.Fatal(err)
		}
	}
	for _, page := range []int{0, 1, 7, 25} {
		s.Manner(stores.RDSManner{Page: page})
		list, err := c.Snapshots(ctx)
		if err != nil || len(list) != 20 {
			t.Errorf("pages of %d: %d snapshots, %v", page, len(list), err)
		}
		if want := map[int]int{0: 1, 1: 25, 7: 4, 25: 1}[page]; s.Count("DescribeDBSnapshots") != want {
			t.Errorf("pages of %d: %d requests", page, s.Count("DescribeDBSnapshots"))
		}
	}
}

// TestInstances: a new instance has what it is given; one of that name which is another is not taken for it.
func TestInstances(t *testing.T) {
	s := stores.StartRDS(t)
	s.Make(t, "db-one")
	c, ctx := client(t, s), t.Context()
	if _, err := c.CreateSnapshot(ctx, "db-one", "hf-1", tags("set1", "run1")); err != nil {
		t.Fatal(err)
	}
	s.Manner(stores.RDSManner{Late: 2})
	n := rds.NewInstance{Name: "db-new", Snapshot: "hf-1", Class: "db.m6g.large", SecurityGroups: []string{"sg-9"}, Port: 5433, Tags: map[string]string{rds.TagSet: "set1", rds.TagSnapshot: "hf-1"}}
	in, err := c.Create(ctx, n)
	if err != nil || in.State != "creating" {
		t.Fatalf("%+v %v", in, err)
	}
	if in, err = c.AwaitInstance(ctx, "db-new"); err != nil || in.Class != "db.m6g.large" || !slices.Equal(in.SecurityGroups, []string{"sg-9"}) || in.Host == "" || in.Port != 5433 || !n.Made(in) {
		t.Fatalf("%+v %v", in, err)
	}
	if again, err := c.Create(ctx, n); err != nil || again.Name != "db-new" {
		t.Errorf("%+v %v", again, err)
	}
	other := n
	other.Tags = map[string]string{rds.TagSet: "set2", rds.TagSnapshot: "hf-1"}
	if _, err := c.Create(ctx, other); !errors.Is(err, rds.ErrNotOurs) {
		t.Errorf("%v", err)
	}
	other.Name = "db-one"
	if _, err := c.Create(ctx, other); !errors.Is(err, rds.ErrNotOurs) {
		t.Errorf("%v", err)
	}
	if err := c.Tag(ctx, in.ARN, map[string]string{rds.TagRestored: "2026-11-29T22:00:00Z"}); err != nil {
		t.Fatal(err)
	}
	if in, err = c.Instance(ctx, "db-new"); err != nil || in.Tags[rds.TagRestored] != "2026-11-29T22:00:00Z" || !n.Made(in) {
		t.Errorf("%+v %v", in, err)
	}
	at := rds.NewInstance{Name: "db-then", Source: "db-one", Until: time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC), Tags: map[string]string{rds.TagSet: "set1", rds.TagUntil: "2026-11-29T12:00:00Z"}}
	if _, err := c.Create(ctx, at); err != nil {
		t.Fatal(err)
	}
	if in, err = c.AwaitInstance(ctx, "db-then"); err != nil || !at.Made(in) || n.Made(in) {
		t.Errorf("%+v %v", in, err)
	}
}

// TestNames: what goes into host names and requests is refused when it can't be right.
func TestNames(t *testing.T) {
	for _, bad := range []string{"", "x", "eu-west-1.evil.example", "EU-WEST-1", "1-a", "eu_west-1", "eu-west-1/", strings.Repeat("a-", 30)} {
		if rds.CheckRegion(bad) == nil {
			t.Errorf("region %q", bad)
		}
		if _, err := rds.New(rds.Options{Region: bad}); err == nil {
			t.Errorf("client in %q", bad)
		}
	}
	for _, bad := range []string{"", "-a", "1a", "a--b", "a-", "a_b", "ä", strings.Repeat("a", 64)} {
		if rds.CheckName(bad, rds.MaxInstanceName) == nil {
			t.Errorf("name %q", bad)
		}
	}
	for _, good := range []string{"eu-west-1", "us-gov-east-1", "cn-north-1"} {
		if err := rds.CheckRegion(good); err != nil {
			t.Error(err)
		}
	}
	if rds.CheckName("a-1-b", 63) != nil {
		t.Error("a-1-b")
	}
	for _, o := range []rds.Options{{Region: "eu-west-1", Key: "k"}, {Region: "eu-west-1", Secret: "s"}, {Region: "eu-west-1", Endpoint: "ftp://x"}, {Region: "eu-west-1", Endpoint: "https://u:p@x"},
		{Region: "eu-west-1", Endpoint: "https://x/y"}, {Region: "eu-west-1", CAFile: "/nowhere"}} {
		if _, err := rds.New(o); err == nil {
			t.Errorf("%+v", o)
		}
	}
	if text := fmt.Sprintf("%v %+v %#v", rds.Secret("planted"), rds.Options{Secret: "planted"}, rds.Options{Secret: "planted"}); strings.Contains(text, "planted") {
		t.Error(text)
	}
	if got := rds.TagValue("a\nb;c" + strings.Repeat("x", 300)); len(got) != 256 || !strings.HasPrefix(got, "a_b_cxx") {
		t.Error(got)
	}
}
