package eventbus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"holdfast/internal/eventbus/kafkatest"
)

// variedRecords makes records of every shape: null, empty and random keys and
// values, no headers, duplicate headers, null and empty header values, and
// timestamps that go back.
func variedRecords(topic string, partitions int32, n int) []*kgo.Record {
	rnd := rand.New(rand.NewPCG(1, 2))
	some := func(most int) []byte {
		b := make([]byte, rnd.IntN(most))
		for i := range b {
			b[i] = byte(rnd.UintN(256))
		}
		return b
	}
	base := time.Now().Truncate(time.Millisecond)
	var out []*kgo.Record
	for i := range n {
		r := &kgo.Record{Topic: topic, Partition: int32(i) % partitions, Timestamp: base.Add(time.Duration(rnd.IntN(100_000)-200_000) * time.Millisecond)}
		switch i % 5 {
		case 0:
			r.Value = some(300)
		case 1:
			r.Key = some(30)
		case 2:
			r.Key, r.Value = []byte{}, []byte{}
		default:
			r.Key, r.Value = some(20), fmt.Appendf(nil, "record %d of %s", i, topic)
		}
		switch i % 7 {
		case 3:
			r.Headers = []kgo.RecordHeader{{Key: "a", Value: []byte("1")}, {Key: "a", Value: []byte("2")}, {Key: "a", Value: []byte("1")}}
		case 4:
			r.Headers = []kgo.RecordHeader{{Key: "", Value: nil}, {Key: "empty", Value: []byte{}}, {Key: "any", Value: some(40)}}
		}
		out = append(out, r)
	}
	return out
}

// kafkaTopics are the topics of the test and their settings.
var kafkaTopics = []struct {
	name       string
	partitions int32
	config     map[string]string
}{
	{"orders", 3, nil},
	{"Odd._-name.9", 1, map[string]string{"max.message.bytes": "6000000", "retention.ms": "86400000", "compression.type": "lz4"}},
	{"ancient", 1, map[string]string{"retention.ms": "-1", "segment.bytes": "300000"}},
	{"compacted", 1, map[string]string{"cleanup.policy": "compact", "segment.ms": "500", "min.cleanable.dirty.ratio": "0.01", "max.compaction.lag.ms": "1000"}},
	{"stamped", 2, map[string]string{"message.timestamp.type": "LogAppendTime"}},
	{"transactions", 1, nil},
	{"bus.json", 1, map[string]string{"cleanup.policy": "compact,delete"}},
	{"empty", 2, nil},
}

func TestKafkaRoundTrip(t *testing.T) {
	source, target := kafkatest.Start(t), kafkatest.Start(t)
	cl := client(t, source.Brokers())
	for _, k := range kafkaTopics {
		create(t, cl, k.name, k.partitions, k.config)
	}
	fillKafka(t, source.Brokers(), cl)
	src := open(t, source.Brokers())
	waitCompacted(t, src)

	a, m, s := dump(t, src)
	if s.Records < 20_000 || s.Lost() != 0 || s.Undecided() != 0 {
		t.Fatalf("dumped %d records, %d offsets lost, %d undecided", s.Records, s.Lost(), s.Undecided())
	}
	checkOdd(t, a)
	if len(m.Groups) != 1 {
		t.Fatalf("groups in the marks: %+v", m.Groups)
	}
	dst := open(t, target.Brokers())
	res, err := dst.Load(t.Context(), a.source(), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if res.Records != s.Records || len(res.Notes) > 0 {
		t.Errorf("loaded %d of %d records, notes %q", res.Records, s.Records, res.Notes)
	}
	sameKafka(t, source.Brokers(), target.Brokers(), src, dst, s)
	checkPositions(t, source.Brokers(), target.Brokers(), s)

	// A second load is refused, or replaces, and gives the same.
	if _, err := dst.Load(t.Context(), a.source(), LoadOptions{}); err == nil || !strings.Contains(err.Error(), "ancient, bus.json, compacted") {
		t.Errorf("load onto existing topics: %v", err)
	}
	kept, err := dst.Marks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	produce(t, client(t, target.Brokers()), &kgo.Record{Topic: "orders", Value: []byte("since the copy")})
	if _, err := dst.Load(t.Context(), a.source(), LoadOptions{Replace: true, Kept: kept}); !errors.Is(err, ErrMoved) {
		t.Fatalf("replaced a topic with a record that is in no copy: %v", err)
	}
	if kept, err = dst.Marks(t.Context()); err != nil {
		t.Fatal(err)
	}
	if res, err = dst.Load(t.Context(), a.source(), LoadOptions{Replace: true, Kept: kept}); err != nil {
		t.Fatal(err)
	}
	// The archive's own bus has every topic still: giving back leaves it alone.
	if same, err := src.Load(t.Context(), a.source(), LoadOptions{Replace: true, KeepSame: true}); err != nil || len(same.Topics) != 0 {
		t.Fatalf("loaded over the same topics: %+v, %v", same, err)
	}
	sameKafka(t, source.Brokers(), target.Brokers(), src, dst, s)
	checkPositions(t, source.Brokers(), target.Brokers(), s)
	only := &LoadResult{Topics: res.Topics[:0:0]}
	sum := &Summary{}
	for i, lt := range res.Topics { // the others may be compacted by now
		if lt.Name == "orders" || lt.Name == "transactions" {
			only.Topics, sum.Topics = append(only.Topics, lt), append(sum.Topics, s.Topics[i])
		}
	}
	if err := dst.Compare(t.Context(), sum, only); err != nil {
		t.Error(err)
	}
	produce(t, client(t, target.Brokers()), &kgo.Record{Topic: "orders", Partition: 1, Value: []byte("new")})
	if err := dst.Compare(t.Context(), sum, only); err == nil || !strings.Contains(err.Error(), "orders, partition 1") {
		t.Errorf("compare after somebody produced: %v", err)
	}
}

// fillKafka writes the records, one transaction that is aborted among others
// that are committed, and the positions of one group.
func fillKafka(t *testing.T, brokers []string, cl *kgo.Client) {
	all := variedRecords("orders", 3, 20_000)
	gz := client(t, brokers, kgo.ProducerBatchCompression(kgo.GzipCompression()))
	produce(t, cl, all[:12_000]...)
	produce(t, gz, all[12_000:]...)
	big := bytes.Repeat([]byte("0123456789abcdef"), 300_000) // fits its topic only compressed, or barely
	produce(t, cl, &kgo.Record{Topic: "Odd._-name.9", Key: []byte("small")}, &kgo.Record{Topic: "Odd._-name.9", Value: big}, &kgo.Record{Topic: "Odd._-name.9", Key: []byte("after")})
	for i := range 3000 {
		cl.Produce(t.Context(), &kgo.Record{Topic: "ancient", Timestamp: time.UnixMilli(int64(i) - 1000), Value: bytes.Repeat([]byte{byte(i)}, 400)}, func(_ *kgo.Record, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}
	produce(t, cl, variedRecords("stamped", 2, 500)...)
	produce(t, cl, &kgo.Record{Topic: "bus.json", Key: []byte("k"), Value: []byte("v")})
	for round := range 20 {
		for k := range 50 {
			r := &kgo.Record{Topic: "compacted", Key: fmt.Appendf(nil, "key %d", k), Value: fmt.Appendf(nil, "round %d", round)}
			cl.Produce(t.Context(), r, func(_ *kgo.Record, err error) {
				if err != nil {
					t.Error(err)
				}
			})
		}
	}
	if err := cl.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	fillOdd(t, brokers)
	txn := client(t, brokers, kgo.TransactionalID("ledger"))
	for i, commit := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit, kgo.TryAbort} {
		if err := txn.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		var rs []*kgo.Record
		for j := range 100 {
			rs = append(rs, &kgo.Record{Topic: "transactions", Value: fmt.Appendf(nil, "commit=%v transaction %d record %d", commit, i, j)})
		}
		produce(t, txn, rs...)
		if err := txn.EndTransaction(t.Context(), commit); err != nil {
			t.Fatal(err)
		}
	}
	offsets := kadm.Offsets{}
	for p, at := range []int64{0, 1234, 100_000} { // the last lies beyond the end
		offsets.Add(kadm.Offset{Topic: "orders", Partition: int32(p), At: at, LeaderEpoch: -1, Metadata: "note ü"})
	}
	offsets.Add(kadm.Offset{Topic: "transactions", Partition: 0, At: 150, LeaderEpoch: -1}) // inside the aborted one
	offsets.Add(kadm.Offset{Topic: "compacted", Partition: 0, At: 10, LeaderEpoch: -1})     // in a gap
	if err := kadm.NewClient(cl).CommitAllOffsets(t.Context(), "readers", offsets); err != nil {
		t.Fatal(err)
	}
}

var oddTimes = []int64{1_700_000_000_000_000, 5, math.MaxInt64, 0, -1, 9_300_000_000_000, 1_700_000_000_000_000_000}

// checkOdd looks for these timestamps in the archive; Load compares the bus
// with it.
func checkOdd(t *testing.T, a *tape) {
	t.Helper()
	var got []int64
	for _, m := range a.members {
		if !strings.HasPrefix(m.name, chunkPrefix+"ancient/") {
			continue
		}
		c, err := decodeChunk(m.data)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.records {
			if r.offset >= 3000 {
				body, err := decodeContent(r.content)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, body.timestamp)
			}
		}
	}
	if !slices.Equal(got, oddTimes) {
		t.Errorf("timestamps are %v, want %v", got, oddTimes)
	}
}

// fillOdd writes timestamps that no sane clock shows between sane ones.
func fillOdd(t *testing.T, brokers []string) {
	b := open(t, brokers)
	l := &loader{b: b, limits: map[string]int32{"ancient": 2000}}
	var rs []*kgo.Record
	for i, ms := range oddTimes {
		rs = append(rs, &kgo.Record{Topic: "ancient", Timestamp: time.UnixMilli(ms), Key: fmt.Append(nil, i), Value: make([]byte, 300*i),
			Headers: []kgo.RecordHeader{{Key: "x", Value: nil}, {Key: "x", Value: []byte{}}}})
	}
	if err := l.sendOdd(t.Context(), rs, 3000); err != nil {
		t.Fatal(err)
	}
}

// waitCompacted nudges the compacted topic (its active segment is never
// cleaned) until the broker has removed records.
func waitCompacted(t *testing.T, b *Bus) {
	t.Helper()
	only := open(t, b.opt.Brokers, "compacted")
	cl := client(t, b.opt.Brokers)
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	for written := int64(1000); ; written++ {
		produce(t, cl, &kgo.Record{Topic: "compacted", Key: []byte("nudge"), Value: []byte("x")})
		m, err := only.Marks(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s, err := only.Count(ctx, m)
		if err != nil {
			t.Fatal(err)
		}
		if s.Records < written-500 {
			return
		}
		if err := pause(ctx, 300*time.Millisecond); err != nil {
			t.Fatalf("the broker did not compact: %d of %d records", s.Records, written)
		}
	}
}

// sameKafka compares every topic of two brokers, with ordinary consumers.
func sameKafka(t *testing.T, from, to []string, src, dst *Bus, s *Summary) {
	t.Helper()
	for _, k := range kafkaTopics {
		sameConfig(t, src, dst, k.name)
		if k.name == "compacted" {
			continue // both sides go on compacting; Load has compared it in time
		}
		var n int64
		for _, ts := range s.Topics {
			if ts.Name == k.name {
				for _, p := range ts.Partitions {
					n += p.Records
				}
			}
		}
		got, want := consume(t, to, k.name, k.partitions, n), consume(t, from, k.name, k.partitions, n)
		for p := range k.partitions {
			sameRecords(t, fmt.Sprintf("%s/%d", k.name, p), got[p], want[p])
		}
		if k.name == "transactions" && n != 200 {
			t.Errorf("%d records of transactions, want the 200 committed", n)
		}
	}
}

// checkPositions looks for the record that the group would read next.
func checkPositions(t *testing.T, from, to []string, s *Summary) {
	t.Helper()
	fetched, err := kadm.NewClient(client(t, to)).FetchOffsets(t.Context(), "readers")
	if err != nil {
		t.Fatal(err)
	}
	at := func(topic string, p int32) kadm.OffsetResponse {
		o, ok := fetched.Lookup(topic, p)
		if !ok {
			t.Errorf("group readers has no position on %s/%d", topic, p)
		}
		return o
	}
	if o := at("orders", 0); o.At != 0 || o.Metadata != "note ü" {
		t.Errorf("orders/0: %+v", o)
	}
	if o := at("orders", 1); o.At != 1234 {
		t.Errorf("orders/1: position %d, want 1234", o.At)
	}
	for _, ts := range s.Topics {
		if ts.Name == "orders" {
			if o := at("orders", 2); o.At != ts.Partitions[2].Records {
				t.Errorf("orders/2: position %d, want the end %d", o.At, ts.Partitions[2].Records)
			}
		}
	}
	// 100 committed, a marker, and the aborted ones: the next is the 101st.
	if o := at("transactions", 0); o.At != 100 {
		t.Errorf("transactions: position %d, want 100", o.At)
	}
	if o := at("compacted", 0); o.At != 0 {
		t.Errorf("compacted: position %d, want 0: all before it were compacted away", o.At)
	}
}
