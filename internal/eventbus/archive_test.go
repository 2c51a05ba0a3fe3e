package eventbus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

// sampleArchive has three chunks in two topics and a group.
func sampleArchive(t testing.TB) *tape {
	t.Helper()
	m := &Marks{
		Topics: []TopicMarks{
			{Name: "a", ID: strings.Repeat("0", 32), ReplicationFactor: 1, Partitions: []PartitionMarks{{Stable: 100, HighWater: 110}, {Partition: 1}}},
			{Name: "b.b", ID: strings.Repeat("f", 32), ReplicationFactor: 3, Config: map[string]string{"retention.ms": "5"}, Partitions: []PartitionMarks{{Start: 7, Stable: 20, HighWater: 20}}},
		},
		Groups: []GroupOffsets{{Group: "g", Offsets: []GroupOffset{{Topic: "a", Offset: 5, Metadata: []byte{0xff}}}}},
	}
	head, sum, err := seal(m)
	if err != nil {
		t.Fatal(err)
	}
	a := &tape{members: []member{{headerName, head}}}
	parts := map[string][]*partState{}
	for _, tm := range m.Topics {
		for _, p := range tm.Partitions {
			parts[tm.Name] = append(parts[tm.Name], newPartState(tm.Name, p))
		}
	}
	for _, at := range []struct {
		topic string
		first int64
	}{{"a", 0}, {"b.b", 7}, {"a", 50}} {
		name, data := sampleChunk(at.topic, 0, at.first)
		a.members = append(a.members, member{name, data})
		c, err := decodeChunk(data)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.records {
			parts[at.topic][0].add(r.offset, r.content)
		}
		parts[at.topic][0].sum.Chunks++
	}
	trailer, _, err := seal(summarise(m, sum, func(topic string, p int32) *partState { return parts[topic][p] }))
	if err != nil {
		t.Fatal(err)
	}
	a.members = append(a.members, member{trailerName, trailer})
	return a
}

func TestVerify(t *testing.T) {
	a := sampleArchive(t)
	s, err := Verify(t.Context(), a.source())
	if err != nil {
		t.Fatal(err)
	}
	if s.Records != 12 || s.Chunks != 3 || s.Undecided() != 10 || s.Lost() != 0 {
		t.Errorf("summary %+v", s)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	clean := sampleArchive(t).members
	edit := func(change func(m []member) []member) *tape {
		var m []member
		for _, x := range clean {
			m = append(m, member{x.name, bytes.Clone(x.data)})
		}
		return &tape{members: change(m)}
	}
	cases := []struct {
		name   string
		change func(m []member) []member
		want   []string
	}{
		{"nothing", func(m []member) []member { return nil }, []string{"no members"}},
		{"no header", func(m []member) []member { return m[1:] }, []string{"first member must be eventbus/bus.json"}},
		{"no trailer", func(m []member) []member { return m[:4] }, []string{"ends without eventbus/summary.json"}},
		{"chunk missing", func(m []member) []member { return append(m[:2], m[3:]...) }, []string{"topic b.b, partition 0: 4 records"}},
		{"chunks swapped", func(m []member) []member { m[1], m[3] = m[3], m[1]; return m }, []string{"out of order"}},
		{"chunk twice", func(m []member) []member { return append(m[:2], m[1:]...) }, []string{"out of order"}},
		{"two chunks damaged", func(m []member) []member { m[1].data[40] ^= 1; m[2].data[40] ^= 1; return m }, []string{m1(clean), m2(clean), "topic a, partition 0", "topic b.b, partition 0"}},
		{"chunk renamed", func(m []member) []member { m[2].name = chunkName("b.b", 0, 8); return m }, []string{"holds records of b.b/0 from offset 7"}},
		{"name with ..", func(m []member) []member { m[2].name = "eventbus/topics/../0/00000000000000000007.records"; return m }, []string{"is not a name"}},
		{"absolute name", func(m []member) []member { m[2].name = "/etc/passwd"; return m }, []string{`"/etc/passwd"`}},
		{"unknown topic", func(m []member) []member { m[2].name, m[2].data = sampleChunk("c", 0, 7); return m }, []string{"does not have"}},
		{"after the trailer", func(m []member) []member { return append(m, m[1]) }, []string{"stands after"}},
		{"header cut", func(m []member) []member { m[0].data = m[0].data[:50]; return m }, []string{"eventbus/bus.json"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := Verify(t.Context(), edit(c.change).source())
			for _, w := range c.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("error does not name %q: %v", w, err)
				}
			}
		})
	}
}

func m1(m []member) string { return fmt.Sprintf("%q", m[1].name) }
func m2(m []member) string { return fmt.Sprintf("%q", m[2].name) }

// TestVerifyNoticesEveryBit changes each byte of header and trailer that
// carries meaning; the chunks have their own test.
func TestVerifyNoticesEveryBit(t *testing.T) {
	a := sampleArchive(t)
	for _, k := range []int{0, len(a.members) - 1} {
		data := a.members[k].data
		body := bytes.Index(data, []byte(`"body":`)) + len(`"body":`)
		for i := body; i < len(data)-1; i++ {
			data[i] ^= 1
			if _, err := Verify(t.Context(), a.source()); err == nil {
				t.Errorf("member %s: byte %d changed, nothing noticed", a.members[k].name, i)
			}
			data[i] ^= 1
		}
	}
}

func TestHeaderLimits(t *testing.T) {
	id := strings.Repeat("0", 32)
	part := []PartitionMarks{{}}
	for name, m := range map[string]*Marks{
		"dots":            {Topics: []TopicMarks{{Name: "..", ID: id, ReplicationFactor: 1, Partitions: part}}},
		"slash":           {Topics: []TopicMarks{{Name: "a/b", ID: id, ReplicationFactor: 1, Partitions: part}}},
		"internal":        {Topics: []TopicMarks{{Name: "__consumer_offsets", ID: id, ReplicationFactor: 1, Partitions: part}}},
		"twice":           {Topics: []TopicMarks{{Name: "a", ID: id, ReplicationFactor: 1, Partitions: part}, {Name: "a", ID: id, ReplicationFactor: 1, Partitions: part}}},
		"no partitions":   {Topics: []TopicMarks{{Name: "a", ID: id, ReplicationFactor: 1}}},
		"no replicas":     {Topics: []TopicMarks{{Name: "a", ID: id, Partitions: part}}},
		"short id":        {Topics: []TopicMarks{{Name: "a", ID: "00", ReplicationFactor: 1, Partitions: part}}},
		"partition gap":   {Topics: []TopicMarks{{Name: "a", ID: id, ReplicationFactor: 1, Partitions: []PartitionMarks{{Partition: 1}}}}},
		"negative offset": {Topics: []TopicMarks{{Name: "a", ID: id, ReplicationFactor: 1, Partitions: []PartitionMarks{{Start: -5}}}}},
		"foreign group":   {Groups: []GroupOffsets{{Group: "g", Offsets: []GroupOffset{{Topic: "a"}}}}},
	} {
		if err := m.check(); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// FuzzBusArchive replaces one member of a whole archive, by bytes as they are
// or by a member around them whose sums are right, so that the checks behind
// the sums are reached too.
func FuzzBusArchive(f *testing.F) {
	clean := sampleArchive(f).members
	for i, m := range clean {
		f.Add(uint8(i), m.name, m.data[:min(len(m.data), 60)], false)
	}
	f.Add(uint8(0), headerName, []byte(`{"topics":[{"name":"a"}],"groups":[{"group":"g"}]}`), true)
	f.Add(uint8(1), chunkName("a", 0, 0), []byte{6, 0, 0, 0, 0, 0, 0}, true)
	f.Add(uint8(4), trailerName, []byte(`{"records":12,"chunks":3,"topics":[]}`), true)
	f.Fuzz(func(t *testing.T, which uint8, name string, data []byte, sums bool) {
		members := append([]member(nil), clean...)
		k := int(which) % len(members)
		if sums {
			data = withSums(k, len(members), data)
		}
		members[k] = member{name, data}
		s, err := Verify(t.Context(), &tapeSource{members: members})
		if (err == nil) != (s != nil) {
			t.Fatalf("summary %v with error %v", s, err)
		}
		if err == nil && (s.Records != 12 || s.Chunks != 3) {
			t.Fatalf("an archive with other records passed: %+v", s)
		}
	})
}

// withSums makes a header, chunk or trailer of the bytes.
func withSums(k, n int, data []byte) []byte {
	if k > 0 && k < n-1 {
		w := &chunkWriter{topic: "a"}
		w.add(&record{content: []byte{0, 0, 0, 0}}, 0)
		w.buf = append(w.buf[:chunkFixed+1], data...)
		_, out := w.finish()
		return out
	}
	sum := sha256.Sum256(data)
	return fmt.Appendf(nil, `{"format":%q,"version":%d,"sha256":"%x","body":%s}`, archiveFormat, archiveVersion, sum, data)
}

func TestVerifyEndsOnReadError(t *testing.T) {
	a := sampleArchive(t)
	bad := errors.New("tape torn")
	_, err := Verify(t.Context(), &tornSource{Source: a.source(), after: 2, err: bad})
	if !errors.Is(err, bad) || errors.Is(err, ErrDamaged) {
		t.Errorf("error %v", err)
	}
}

type tornSource struct {
	Source
	after int
	err   error
}

func (s *tornSource) Next(ctx context.Context) (string, io.Reader, error) {
	if s.after--; s.after < 0 {
		return "", nil, s.err
	}
	return s.Source.Next(ctx)
}
