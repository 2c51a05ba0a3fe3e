package eventbus

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// member is one member of an archive in memory.
type member struct {
	name string
	data []byte
}

// tape is an archive in memory: a Sink, and through source a Source.
type tape struct {
	members []member
	fail    func(name string) error // for Put; may be nil
}

func (a *tape) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if a.fail != nil {
		if err := a.fail(name); err != nil {
			return err
		}
	}
	a.members = append(a.members, member{name, bytes.Clone(data)})
	return nil
}

func (a *tape) source() Source { return &tapeSource{members: a.members} }

type tapeSource struct{ members []member }

func (s *tapeSource) Next(ctx context.Context) (string, io.Reader, error) {
	if err := ctx.Err(); err != nil {
		return "", nil, err
	}
	if len(s.members) == 0 {
		return "", nil, io.EOF
	}
	m := s.members[0]
	s.members = s.members[1:]
	return m.name, bytes.NewReader(m.data), nil
}

func open(t testing.TB, brokers []string, topics ...string) *Bus {
	t.Helper()
	b, err := Open(t.Context(), Options{Brokers: brokers, Topics: topics, Timeout: 20 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func client(t testing.TB, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.MetadataMinAge(50 * time.Millisecond), kgo.ProducerBatchMaxBytes(8 << 20),
	}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func create(t testing.TB, cl *kgo.Client, topic string, partitions int32, config map[string]string) {
	t.Helper()
	c := map[string]*string{}
	for k, v := range config {
		c[k] = kadm.StringPtr(v)
	}
	if r, err := kadm.NewClient(cl).CreateTopic(t.Context(), partitions, 1, c, topic); err != nil {
		t.Fatalf("create %s: %v %s", topic, err, r.ErrMessage)
	}
}

func produce(t testing.TB, cl *kgo.Client, records ...*kgo.Record) {
	t.Helper()
	if err := cl.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// consume reads all committed records of a topic with an ordinary consumer,
// which knows nothing of our code, until it has seen want of them.
func consume(t testing.TB, brokers []string, topic string, partitions int32, want int64) map[int32][]*kgo.Record {
	t.Helper()
	from := map[int32]kgo.Offset{}
	for p := range partitions {
		from[p] = kgo.NewOffset().AtStart()
	}
	cl := client(t, brokers, kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: from}))
	defer cl.Close()
	out := map[int32][]*kgo.Record{}
	for n := int64(0); n < want; {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		fs := cl.PollFetches(ctx)
		cancel()
		if err := fs.Err(); err != nil {
			t.Fatalf("consume %s: %d of %d records: %v", topic, n, want, err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			out[r.Partition] = append(out[r.Partition], r)
			n++
		})
	}
	return out
}

// text gives all of a record that a restore must keep, nil and empty told apart.
func text(r *kgo.Record) string {
	s := fmt.Sprintf("%d %t:%x %t:%x", r.Timestamp.UnixMilli(), r.Key == nil, r.Key, r.Value == nil, r.Value)
	for _, h := range r.Headers {
		s += fmt.Sprintf(" %q=%t:%x", h.Key, h.Value == nil, h.Value)
	}
	return s
}

// sameRecords compares two partitions byte for byte.
func sameRecords(t testing.TB, name string, got, want []*kgo.Record) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d records, want %d", name, len(got), len(want))
		return
	}
	for i := range want {
		if g, w := text(got[i]), text(want[i]); g != w {
			t.Errorf("%s: record %d is %.300s, want %.300s", name, i, g, w)
			return
		}
	}
}

// ownConfigs returns the settings of one topic itself.
func ownConfigs(t testing.TB, b *Bus, topic string) map[string]string {
	t.Helper()
	c, err := b.configs(t.Context(), []string{topic})
	if err != nil {
		t.Fatal(err)
	}
	return ownConfig(c[topic])
}

func sameConfig(t testing.TB, src, dst *Bus, topic string) {
	t.Helper()
	if got, want := ownConfigs(t, dst, topic), ownConfigs(t, src, topic); !maps.Equal(got, want) {
		t.Errorf("topic %s: settings are %v, want %v", topic, got, want)
	}
}

// dump takes marks and dumps them.
func dump(t testing.TB, b *Bus) (*tape, *Marks, *Summary) {
	t.Helper()
	m, err := b.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a := &tape{}
	s, err := b.Dump(t.Context(), m, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), a.source()); err != nil {
		t.Fatalf("verify what was dumped: %v", err)
	}
	return a, m, s
}
