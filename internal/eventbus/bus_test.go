package eventbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// fake starts an in-process imitation of a broker and returns its address.
func fake(t testing.TB) []string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

// fakeWith starts a fake with a topic "t" of two partitions and 100 varied records.
func fakeWith(t testing.TB) (brokers []string, cl *kgo.Client) {
	t.Helper()
	brokers = fake(t)
	cl = client(t, brokers)
	create(t, cl, "t", 2, map[string]string{"retention.ms": "900000000", "cleanup.policy": "compact"})
	rs := variedRecords("t", 2, 100)
	for i, r := range rs {
		if r.Key == nil { // the topic is compacted
			r.Key = []byte(fmt.Sprint(i))
		}
	}
	produce(t, cl, rs...)
	return brokers, cl
}

func commit(t testing.TB, cl *kgo.Client, group, topic string, partition int32, at int64) {
	t.Helper()
	o := kadm.Offsets{}
	o.Add(kadm.Offset{Topic: topic, Partition: partition, At: at, LeaderEpoch: -1})
	if err := kadm.NewClient(cl).CommitAllOffsets(t.Context(), group, o); err != nil {
		t.Fatal(err)
	}
}

func TestFakeRoundTrip(t *testing.T) {
	from, cl := fakeWith(t)
	commit(t, cl, "g", "t", 1, 20)
	src, to := open(t, from), fake(t)
	var seen []Progress
	m, err := src.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.Taken.From.After(m.Taken.To) || m.Taken.From.Location() != time.UTC {
		t.Errorf("interval %+v", m.Taken)
	}
	produce(t, cl, &kgo.Record{Topic: "t", Key: []byte("after the marks")})
	a := &tape{}
	s, err := src.Dump(t.Context(), m, a, func(p Progress) { seen = append(seen, p) })
	if err != nil {
		t.Fatal(err)
	}
	if s.Records != 100 || len(seen) != 2 || seen[1].Records != 100 || seen[1].Total != 100 {
		t.Errorf("%d records, progress %+v", s.Records, seen)
	}
	dst := open(t, to, "some-other-topic*")
	res, err := dst.Load(t.Context(), a.source(), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got, want := consume(t, to, "t", 2, 100), consume(t, from, "t", 2, 101)
	sameRecords(t, "t/0", got[0], want[0][:50])
	sameRecords(t, "t/1", got[1], want[1])
	sameConfig(t, src, dst, "t")
	if len(res.Groups) != 1 || res.Groups[0].Offsets[0].Offset != 20 {
		t.Errorf("groups %+v", res.Groups)
	}
	if err := dst.Compare(t.Context(), s, res); err != nil {
		t.Error(err)
	}
}

func TestLoadUntil(t *testing.T) {
	from := fake(t)
	cl := client(t, from)
	create(t, cl, "t", 1, nil)
	base := time.Now().Add(-time.Hour).Truncate(time.Millisecond)
	for i, minute := range []int{0, 10, 5, 20, 3, 30} {
		produce(t, cl, &kgo.Record{Topic: "t", Key: fmt.Append(nil, i), Timestamp: base.Add(time.Duration(minute) * time.Minute)})
	}
	for group, at := range map[string]int64{"first": 0, "left out": 1, "third": 2, "fourth": 3, "end": 6} {
		commit(t, cl, group, "t", 0, at)
	}
	a, _, _ := dump(t, open(t, from))
	to := fake(t)
	res, err := open(t, to).Load(t.Context(), a.source(), LoadOptions{Until: base.Add(5 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if res.Records != 3 || res.Skipped != 3 {
		t.Errorf("%d loaded, %d left out", res.Records, res.Skipped)
	}
	var keys string
	for _, r := range consume(t, to, "t", 1, 3)[0] {
		keys += string(r.Key)
	}
	if keys != "024" {
		t.Errorf("records %s, want 024", keys)
	}
	want := map[string]int64{"first": 0, "left out": 1, "third": 1, "fourth": 2, "end": 3}
	for _, g := range res.Groups {
		if got := g.Offsets[0].Offset; got != want[g.Group] {
			t.Errorf("group %q stands at %d, want %d", g.Group, got, want[g.Group])
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	from, cl := fakeWith(t)
	commit(t, cl, "g", "t", 0, 5)
	a, _, _ := dump(t, open(t, from))
	b := open(t, from)
	reader := client(t, from, kgo.ConsumerGroup("g"), kgo.ConsumeTopics("t"), kgo.ClientID("the-app"))
	if err := reader.PollFetches(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	_, err := b.Load(t.Context(), a.source(), LoadOptions{})
	for _, want := range []string{"exist on the bus: t", "group g is running", "the-app"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if _, err := b.Load(t.Context(), a.source(), LoadOptions{Replace: true}); err == nil {
		t.Error("loaded under a running group")
	}
	if n := len(consume(t, from, "t", 2, 100)); n != 2 {
		t.Errorf("after the refusals %d partitions have records", n)
	}
	reader.Close()
	if _, err := b.Load(t.Context(), a.source(), LoadOptions{Replace: true}); err != nil {
		t.Errorf("after the group has stopped: %v", err)
	}
}

// TestLoadStopsAtDamage: a load of a damaged archive fails, commits no
// position, and a load of the whole one then succeeds.
func TestLoadStopsAtDamage(t *testing.T) {
	from, cl := fakeWith(t)
	commit(t, cl, "g", "t", 0, 5)
	a, _, _ := dump(t, open(t, from))
	to := fake(t)
	b := open(t, to)
	bad := &tape{members: append([]member(nil), a.members...)}
	data := append([]byte(nil), bad.members[2].data...)
	data[60] ^= 1
	bad.members[2].data = data
	if _, err := b.Load(t.Context(), bad.source(), LoadOptions{}); !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), bad.members[2].name) {
		t.Errorf("damaged chunk: %v", err)
	}
	bad.members = a.members[:len(a.members)-1]
	if _, err := b.Load(t.Context(), bad.source(), LoadOptions{Replace: true}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("no trailer: %v", err)
	}
	if o, err := kadm.NewClient(client(t, to)).FetchOffsets(t.Context(), "g"); err == nil && len(o) > 0 {
		t.Errorf("positions committed by a failed load: %v", o)
	}
	if _, err := b.Load(t.Context(), a.source(), LoadOptions{Replace: true}); err != nil {
		t.Error(err)
	}
}

func TestDumpNotesLostRecords(t *testing.T) {
	brokers, cl := fakeWith(t)
	b := open(t, brokers)
	m, err := b.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := kadm.Offsets{}
	o.AddOffset("t", 1, 30, -1)
	if _, err := kadm.NewClient(cl).DeleteRecords(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	a := &tape{}
	s, err := b.Dump(t.Context(), m, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Topics[0].Partitions[1]; s.Lost() != 30 || p.Records != 20 || p.First != 30 || p.Lost[0] != (Range{0, 30}) {
		t.Errorf("summary %+v", s)
	}
	if got, err := Verify(t.Context(), a.source()); err != nil || got.Lost() != 30 {
		t.Errorf("verify: %v, %+v", err, got)
	}
}

// TestOpenTransaction: what an open transaction holds back is left out, and
// the summary says so.
func TestOpenTransaction(t *testing.T) {
	brokers, _ := fakeWith(t)
	txn := client(t, brokers, kgo.TransactionalID("x"))
	if err := txn.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, txn, &kgo.Record{Topic: "t", Key: []byte("open")}, &kgo.Record{Topic: "t", Key: []byte("open")})
	a, _, s := dump(t, open(t, brokers))
	if p := s.Topics[0].Partitions[0]; s.Records != 100 || s.Undecided() != 2 || p.Undecided == nil || *p.Undecided != (Range{50, 52}) {
		t.Errorf("summary %+v", s)
	}
	if err := txn.EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	if len(a.members) != 4 {
		t.Errorf("%d members", len(a.members))
	}
	// The range now ends in an aborted transaction and its marker.
	if _, _, s := dump(t, open(t, brokers)); s.Records != 100 || s.Undecided() != 0 {
		t.Errorf("after the abort: %+v", s)
	}
}

func TestDumpFailures(t *testing.T) {
	brokers, cl := fakeWith(t)
	b := open(t, brokers)
	m, err := b.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	full := errors.New("disk full")
	for _, at := range []string{headerName, ".records", trailerName} {
		a := &tape{fail: func(name string) error {
			if strings.HasSuffix(name, at) {
				return full
			}
			return nil
		}}
		if _, err := b.Dump(t.Context(), m, a, nil); !errors.Is(err, full) || !strings.Contains(err.Error(), at) {
			t.Errorf("sink fails at %s: %v", at, err)
		}
		if _, err := Verify(t.Context(), a.source()); err == nil {
			t.Errorf("sink fails at %s: what it has passes for an archive", at)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	a := &tape{fail: func(name string) error {
		if strings.HasSuffix(name, ".records") {
			cancel()
		}
		return nil
	}}
	if _, err := b.Dump(ctx, m, a, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if len(a.members) > 2 {
		t.Errorf("%d members after the cancellation", len(a.members))
	}
	if _, err := kadm.NewClient(cl).DeleteTopics(t.Context(), "t"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Dump(t.Context(), m, &tape{}, nil); err == nil || !strings.Contains(err.Error(), "topic t") || !strings.Contains(err.Error(), "deleted") {
		t.Errorf("topic deleted: %v", err)
	}
}

func TestSelection(t *testing.T) {
	brokers := fake(t)
	cl := client(t, brokers)
	for _, name := range []string{"app.orders", "app.users", "_schemas", "other"} {
		create(t, cl, name, 1, nil)
	}
	commit(t, cl, "g", "other", 0, 0) // makes a fake's internal topics, if it has any
	for _, c := range []struct {
		patterns []string
		want     string
	}{
		{nil, "_schemas app.orders app.users other"},
		{[]string{"app.*"}, "app.orders app.users"},
		{[]string{"other", "app.[a-o]*"}, "app.orders other"},
		{[]string{"none*"}, ""},
	} {
		m, err := open(t, brokers, c.patterns...).Marks(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, tm := range m.Topics {
			names = append(names, tm.Name)
		}
		if got := strings.Join(names, " "); got != c.want {
			t.Errorf("%v selects %q, want %q", c.patterns, got, c.want)
		}
	}
	if _, err := open(t, brokers, "absent", "other").Marks(t.Context()); err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("absent topic: %v", err)
	}
}

func TestEmptyBus(t *testing.T) {
	a, _, s := dump(t, open(t, fake(t)))
	if s.Records != 0 || len(a.members) != 2 {
		t.Errorf("%+v in %d members", s, len(a.members))
	}
	if _, err := open(t, fake(t)).Load(t.Context(), a.source(), LoadOptions{}); err != nil {
		t.Error(err)
	}
}

func TestOpenOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"no broker given": {},
		"malformed":       {Brokers: []string{"127.0.0.1:1"}, Topics: []string{"["}},
		"mechanism":       {Brokers: []string{"127.0.0.1:1"}, SASL: &SASLOptions{Mechanism: "gssapi"}},
		"no-such-file":    {Brokers: []string{"127.0.0.1:1"}, TLS: &TLSOptions{CAFile: "/no-such-file"}},
		"needs its key":   {Brokers: []string{"127.0.0.1:1"}, TLS: &TLSOptions{CertFile: "x"}},
		"127.0.0.1:1":     {Brokers: []string{"127.0.0.1:1"}, Timeout: 300 * time.Millisecond},
	} {
		if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestSASL(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "p", "pw1"), kfake.Superuser("SCRAM-SHA-256", "s2", "pw2"), kfake.Superuser("SCRAM-SHA-512", "s5", "pw5"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, s := range []SASLOptions{{"plain", "p", "pw1"}, {"scram-sha-256", "s2", "pw2"}, {"scram-sha-512", "s5", "pw5"}} {
		b, err := Open(t.Context(), Options{Brokers: c.ListenAddrs(), SASL: &s})
		if err != nil {
			t.Errorf("%s: %v", s.Mechanism, err)
			continue
		}
		b.Close()
		s.Password = "hunter2-wrong"
		if _, err := Open(t.Context(), Options{Brokers: c.ListenAddrs(), SASL: &s, Timeout: time.Second}); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s with a wrong password: %v", s.Mechanism, err)
		}
	}
}

func TestSecretDoesNotPrint(t *testing.T) {
	o := SASLOptions{Mechanism: "plain", User: "u", Password: "hunter2"}
	j, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprint(o), fmt.Sprintf("%+v %#v %q %x %d", o, o, o.Password, o.Password, o.Password), string(j), fmt.Sprint(&o)} {
		if strings.Contains(s, "hunter2") || strings.Contains(s, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("printed: %s", s)
		}
	}
}
