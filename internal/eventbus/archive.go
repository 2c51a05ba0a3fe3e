package eventbus

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
)

const (
	archiveFormat  = "holdfast-eventbus"
	archiveVersion = 1

	headerName  = "eventbus/bus.json"
	trailerName = "eventbus/summary.json"
	chunkPrefix = "eventbus/topics/"
	chunkSuffix = ".records"

	maxJSON  = 256 << 20                         // bytes of header or trailer
	maxChunk = maxRecord + chunkFixed + 249 + 64 // bytes of a chunk
)

// ErrDamaged is in the chain of every error that says that an archive is not
// what Dump wrote.
var ErrDamaged = errors.New("archive of the event bus is damaged")

// A Sink takes the members of an archive. Dump calls Put for one member at a
// time, and gives up at its first error. Put must not keep data.
type Sink interface {
	Put(ctx context.Context, name string, data []byte) error
}

// A Source gives the members of an archive in the order of Put, and io.EOF
// after the last. A reader is valid until the next call.
type Source interface {
	Next(ctx context.Context) (name string, r io.Reader, err error)
}

// Range is a range of offsets, To excluded.
type Range struct {
	From int64 `json:"from"`
	To   int64 `json:"to"`
}

// Summary says what an archive holds.
type Summary struct {
	HeaderSHA256 string         `json:"header_sha256"`
	Records      int64          `json:"records"`
	Bytes        int64          `json:"bytes"` // of the records' contents
	Chunks       int64          `json:"chunks"`
	Topics       []TopicSummary `json:"topics"` // as in the marks
}

// TopicSummary is the part of one topic.
type TopicSummary struct {
	Name       string             `json:"name"`
	Partitions []PartitionSummary `json:"partitions"` // by number, without gaps
}

// PartitionSummary is the part of one partition.
type PartitionSummary struct {
	Partition int32  `json:"partition"`
	Records   int64  `json:"records"`
	Bytes     int64  `json:"bytes"`
	Chunks    int64  `json:"chunks"`
	First     int64  `json:"first"`  // offset of the first record, -1 if there is none
	Last      int64  `json:"last"`   // offset of the last record, -1 if there is none
	SHA256    string `json:"sha256"` // content hash, see the package comment
	// Lost are offsets that the broker's retention removed after the marks
	// were taken and before they were read.
	Lost []Range `json:"lost,omitempty"`
	// Undecided is the range above the last stable offset: records of
	// transactions that were open when the marks were taken, and whatever
	// stood behind them. They are not in the archive.
	Undecided *Range `json:"undecided,omitempty"`
}

// Lost counts the offsets that retention removed before they were read.
func (s *Summary) Lost() int64 {
	var n int64
	for _, t := range s.Topics {
		for _, p := range t.Partitions {
			for _, r := range p.Lost {
				n += r.To - r.From
			}
		}
	}
	return n
}

// Undecided counts the offsets that open transactions held back.
func (s *Summary) Undecided() int64 {
	var n int64
	for _, t := range s.Topics {
		for _, p := range t.Partitions {
			if p.Undecided != nil {
				n += p.Undecided.To - p.Undecided.From
			}
		}
	}
	return n
}

type envelope struct {
	Format  string          `json:"format"`
	Version int             `json:"version"`
	SHA256  string          `json:"sha256"`
	Body    json.RawMessage `json:"body"`
}

// seal encodes a header or trailer and returns the sum of its body as well.
func seal(body any) (data []byte, sum string, err error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, "", err
	}
	h := sha256.Sum256(raw)
	sum = hex.EncodeToString(h[:])
	data, err = json.Marshal(envelope{Format: archiveFormat, Version: archiveVersion, SHA256: sum, Body: raw})
	if err == nil && len(data) > maxJSON {
		err = fmt.Errorf("%d bytes exceed the %d that the format allows", len(data), maxJSON)
	}
	return data, sum, err
}

// unseal checks and decodes what seal wrote.
func unseal(data []byte, body any) (sum string, err error) {
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return "", err
	}
	if e.Format != archiveFormat {
		return "", fmt.Errorf("format %.40q is not %q", e.Format, archiveFormat)
	}
	if e.Version != archiveVersion {
		return "", fmt.Errorf("version %d is not supported, only %d", e.Version, archiveVersion)
	}
	h := sha256.Sum256(e.Body)
	if sum = hex.EncodeToString(h[:]); sum != e.SHA256 {
		return "", errors.New("its SHA-256 does not match")
	}
	return sum, json.Unmarshal(e.Body, body)
}

func chunkName(topic string, partition int32, first int64) string {
	return fmt.Sprintf("%s%s/%d/%020d%s", chunkPrefix, topic, partition, first, chunkSuffix)
}

func damaged(name string, err error) error {
	return fmt.Errorf("%w: member %q: %w", ErrDamaged, name, err)
}

// partState follows one partition through an archive.
type partState struct {
	topic string
	marks PartitionMarks
	sum   PartitionSummary
	hash  hash.Hash
}

func newPartState(topic string, m PartitionMarks) *partState {
	p := &partState{topic: topic, marks: m, hash: sha256.New(), sum: PartitionSummary{Partition: m.Partition, First: -1, Last: -1}}
	if m.Stable < m.HighWater {
		p.sum.Undecided = &Range{From: m.Stable, To: m.HighWater}
	}
	return p
}

func (p *partState) add(offset int64, content []byte) {
	if p.sum.First < 0 {
		p.sum.First = offset
	}
	p.sum.Last = offset
	p.sum.Records++
	p.sum.Bytes += int64(len(content))
	hashContent(p.hash, content)
}

func (p *partState) result() PartitionSummary {
	s := p.sum
	s.SHA256 = hex.EncodeToString(p.hash.Sum(nil))
	return s
}

// summarise joins the results of all partitions, in the order of the marks.
func summarise(m *Marks, headerSum string, state func(topic string, partition int32) *partState) *Summary {
	s := &Summary{HeaderSHA256: headerSum, Topics: []TopicSummary{}}
	for _, t := range m.Topics {
		ts := TopicSummary{Name: t.Name}
		for _, pm := range t.Partitions {
			ps := state(t.Name, pm.Partition).result()
			s.Records += ps.Records
			s.Bytes += ps.Bytes
			s.Chunks += ps.Chunks
			ts.Partitions = append(ts.Partitions, ps)
		}
		s.Topics = append(s.Topics, ts)
	}
	return s
}

// archive reads members and holds them against what the header announced.
type archive struct {
	src   Source
	marks *Marks
	sum   string // of the header
	parts map[string][]*partState
	// summary is the trailer, once it has been read.
	summary *Summary
}

// openArchive reads the header.
func openArchive(ctx context.Context, src Source) (*archive, error) {
	name, r, err := src.Next(ctx)
	if err == io.EOF {
		return nil, fmt.Errorf("%w: it has no members", ErrDamaged)
	}
	if err != nil {
		return nil, fmt.Errorf("read the archive of the event bus: %w", err)
	}
	if name != headerName {
		return nil, damaged(name, fmt.Errorf("the first member must be %s", headerName))
	}
	data, err := readMember(name, r, maxJSON)
	if err != nil {
		return nil, err
	}
	a := &archive{src: src, marks: new(Marks), parts: map[string][]*partState{}}
	if a.sum, err = unseal(data, a.marks); err == nil {
		err = a.marks.check()
	}
	if err != nil {
		return nil, damaged(name, err)
	}
	for _, t := range a.marks.Topics {
		for _, p := range t.Partitions {
			a.parts[t.Name] = append(a.parts[t.Name], newPartState(t.Name, p))
		}
	}
	return a, nil
}

func (a *archive) state(topic string, partition int32) *partState {
	ps := a.parts[topic]
	if partition < 0 || int(partition) >= len(ps) {
		return nil
	}
	return ps[partition]
}

// next returns the next chunk, decoded, checked and counted; io.EOF after the
// last. A chunk that is damaged gives an error in whose chain is ErrDamaged,
// and reading may go on; other errors end it.
func (a *archive) next(ctx context.Context) (*chunk, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	name, r, err := a.src.Next(ctx)
	if err == io.EOF {
		if a.summary == nil {
			return nil, fmt.Errorf("%w: it ends without %s", io.ErrUnexpectedEOF, trailerName)
		}
		return nil, io.EOF
	}
	if err != nil {
		return nil, fmt.Errorf("read the archive of the event bus: %w", err)
	}
	if a.summary != nil {
		return nil, damaged(name, fmt.Errorf("stands after %s", trailerName))
	}
	if name == trailerName {
		data, err := readMember(name, r, maxJSON)
		if err != nil {
			return nil, err
		}
		s := new(Summary)
		a.summary = s
		if _, err := unseal(data, s); err != nil {
			return nil, damaged(name, err)
		}
		return a.next(ctx) // io.EOF, or something that should not be there
	}
	topic, partition, first, err := parseChunkName(name)
	if err != nil {
		return nil, damaged(name, err)
	}
	data, err := readMember(name, r, maxChunk)
	if err != nil {
		return nil, err
	}
	c, err := decodeChunk(data)
	if err == nil && (c.topic != topic || c.partition != partition || c.first != first) {
		err = fmt.Errorf("holds records of %s/%d from offset %d", c.topic, c.partition, c.first)
	}
	if err == nil {
		err = a.count(c)
	}
	if err != nil {
		return nil, damaged(name, err)
	}
	return c, nil
}

func (a *archive) count(c *chunk) error {
	p := a.state(c.topic, c.partition)
	if p == nil {
		return errors.New("belongs to a partition that the header does not have")
	}
	last := c.records[len(c.records)-1].offset
	if c.first <= p.sum.Last || c.first < p.marks.Start || last >= p.marks.Stable {
		return fmt.Errorf("offsets %d to %d are out of order or outside the marks", c.first, last)
	}
	for _, r := range c.records {
		p.add(r.offset, r.content)
	}
	p.sum.Chunks++
	return nil
}

// compare lists where the trailer and what was read differ.
func (a *archive) compare() error {
	got, want := summarise(a.marks, a.sum, a.state), a.summary
	if want == nil {
		return fmt.Errorf("%w: %s is missing", ErrDamaged, trailerName)
	}
	if want.HeaderSHA256 != got.HeaderSHA256 {
		return damaged(trailerName, fmt.Errorf("belongs to another %s", headerName))
	}
	if len(want.Topics) != len(got.Topics) {
		return damaged(trailerName, fmt.Errorf("has %d topics, the header %d", len(want.Topics), len(got.Topics)))
	}
	var errs []error
	for i, g := range got.Topics {
		w := want.Topics[i]
		if w.Name != g.Name || len(w.Partitions) != len(g.Partitions) {
			errs = append(errs, damaged(trailerName, fmt.Errorf("topic %s and its partitions differ from the header", g.Name)))
			continue
		}
		for j, gp := range g.Partitions {
			wp := w.Partitions[j]
			if wp.Records != gp.Records || wp.SHA256 != gp.SHA256 || wp.Chunks != gp.Chunks || wp.First != gp.First || wp.Last != gp.Last {
				errs = append(errs, fmt.Errorf("%w: topic %s, partition %d: %d records in %d chunks (%s) were written, %d in %d (%s) are there",
					ErrDamaged, g.Name, j, wp.Records, wp.Chunks, wp.SHA256, gp.Records, gp.Chunks, gp.SHA256))
			}
		}
	}
	if len(errs) == 0 && (want.Records != got.Records || want.Bytes != got.Bytes || want.Chunks != got.Chunks) {
		errs = append(errs, damaged(trailerName, errors.New("its totals do not match its parts")))
	}
	return errors.Join(errs...)
}

// Verify reads an archive to its end and checks every sum, count, name and
// order. It lists all that is wrong, joined, with ErrDamaged in the chain, and
// needs no broker.
func Verify(ctx context.Context, src Source) (*Summary, error) {
	a, err := openArchive(ctx, src)
	if err != nil {
		return nil, err
	}
	const most = 100 // findings; a hostile archive has no end of them
	var errs []error
	for len(errs) < most {
		_, err := a.next(ctx)
		if err == io.EOF {
			break
		}
		if err != nil {
			errs = append(errs, err)
		}
		if err != nil && !errors.Is(err, ErrDamaged) {
			return nil, errors.Join(errs...)
		}
	}
	if err := a.compare(); err != nil {
		errs = append(errs, err)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return a.summary, nil
}

// readMember reads a member of at most limit bytes.
func readMember(name string, r io.Reader, limit int64) ([]byte, error) {
	var buf bytes.Buffer
	n, err := io.Copy(&buf, io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read member %q of the archive of the event bus: %w", name, err)
	}
	if n > limit {
		return nil, damaged(name, fmt.Errorf("is longer than the %d bytes allowed", limit))
	}
	return buf.Bytes(), nil
}

// parseChunkName is the inverse of chunkName.
func parseChunkName(name string) (topic string, partition int32, first int64, err error) {
	bad := errors.New("is not a name that an archive of the event bus has")
	rest, ok1 := strings.CutPrefix(name, chunkPrefix)
	rest, ok2 := strings.CutSuffix(rest, chunkSuffix)
	f := strings.Split(rest, "/")
	if !ok1 || !ok2 || len(f) != 3 || checkTopicName(f[0]) != nil {
		return "", 0, 0, bad
	}
	p, err1 := strconv.ParseInt(f[1], 10, 32)
	o, err2 := strconv.ParseInt(f[2], 10, 64)
	if err1 != nil || err2 != nil || p < 0 || o < 0 || chunkName(f[0], int32(p), o) != name {
		return "", 0, 0, bad
	}
	return f[0], int32(p), o, nil
}
