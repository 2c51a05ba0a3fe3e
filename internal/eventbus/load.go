package eventbus

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"
)

// LoadOptions say how an archive is loaded.
type LoadOptions struct {
	// Replace deletes topics of the archive that exist on the bus, first.
	// Without it, such a topic makes Load refuse, before it changes anything.
	Replace bool
	// Kept are the marks of a copy of the topics about to be replaced, taken by
	// MarksOf. If the bus has moved since, or an open transaction kept records
	// out of the copy, Load ends with ErrMoved before it changes anything. nil:
	// there is no copy, nothing is compared.
	Kept *Marks
	// KeepSame leaves alone every topic that still is the one of the archive, by
	// its id: a copy is given back only where the topic was replaced.
	KeepSame bool
	// Until leaves records with a later timestamp out; zero: none.
	Until time.Time
	// Progress is told of every chunk, one at a time; may be nil.
	Progress func(Progress)
}

// ErrMoved says that the topics about to be replaced are not what was copied
// of them. Load has changed nothing.
var ErrMoved = errors.New("the bus has moved since its topics were copied")

// LoadResult says what a load did.
type LoadResult struct {
	Records int64
	Bytes   int64 // of contents
	Skipped int64 // records later than Until
	Topics  []LoadedTopic
	Groups  []GroupOffsets // as committed: offsets of the restored partitions
	Notes   []string       // where the bus could not be made as it was, in words
}

// LoadedTopic is the part of one topic.
type LoadedTopic struct {
	Name       string
	Partitions []LoadedPartition // by number, without gaps
}

// LoadedPartition is the part of one partition. Its records have the offsets
// 0 to Records-1.
type LoadedPartition struct {
	Partition int32
	Records   int64
	Bytes     int64
	Skipped   int64
	SHA256    string // content hash of the records loaded
}

// Load restores an archive. In order:
//
//  1. It reads the header and refuses if a topic exists (unless Replace) or a
//     group of the archive has running members, naming all of them.
//  2. It creates the topics with their settings, except those under which a
//     broker could change or delete records while they are loaded.
//  3. It produces every record to its partition, in order (acks=all,
//     idempotent), and checks the offset that each gets.
//  4. It holds the archive against its trailer and, reading everything back,
//     the bus against the archive.
//  5. Only then it applies the remaining settings and commits the positions of
//     the groups: each to the first restored record at or after the old one.
//
// All topics of the archive are loaded (but for KeepSame), whatever
// Options.Topics says. Whoever
// deletes topics should have run Verify on the archive before: Load sees
// damage at the end of an archive only when it gets there. If Load fails or is
// cancelled after step 1, the topics are incomplete and no position has been
// committed before step 5; run it again with Replace.
//
// Once the settings are back the broker may remove records, by retention or
// compaction, that it would have removed on the source.
func (b *Bus) Load(ctx context.Context, src Source, opt LoadOptions) (*LoadResult, error) {
	fail := func(err error) (*LoadResult, error) { return nil, fmt.Errorf("load the event bus: %w", err) }
	a, err := openArchive(ctx, src)
	if err != nil {
		return fail(err)
	}
	l := &loader{b: b, opt: opt, archive: a, parts: map[string][]*loadPart{}, clients: map[producerKind]*kgo.Client{}, limits: map[string]int32{}}
	defer l.close()
	if l.wanted, err = l.topicsToLoad(ctx); err != nil {
		return fail(err)
	}
	for _, t := range l.wanted {
		for _, p := range t.Partitions {
			l.total += p.Stable - p.Start
			l.parts[t.Name] = append(l.parts[t.Name], &loadPart{state: newPartState(t.Name, p)})
		}
	}
	l.addPositions()
	exist, err := l.plan(ctx)
	if err != nil {
		return fail(err)
	}
	if err := l.checkKept(ctx, exist); err != nil {
		return fail(err)
	}
	if err := b.Delete(ctx, exist...); err != nil {
		return fail(err)
	}
	if err := l.createTopics(ctx); err != nil {
		return fail(err)
	}
	if err := l.produceAll(ctx); err != nil {
		return fail(fmt.Errorf("%w; the topics are incomplete, run the restore again with replacing allowed", err))
	}
	res := l.result()
	if err := b.compare(ctx, l.summary(), res); err != nil {
		return fail(fmt.Errorf("what was loaded does not read back as it was saved: %w", err))
	}
	if err := l.finishTopics(ctx); err != nil {
		return fail(fmt.Errorf("all records are loaded and verified, but their topics have not all their settings: %w", err))
	}
	if res.Groups, err = l.commitPositions(ctx); err != nil {
		return fail(fmt.Errorf("all records are loaded and verified, but not all positions are committed: %w", err))
	}
	res.Notes = l.notes
	return res, nil
}

// loadPart is one partition on its way in. One worker owns it.
type loadPart struct {
	state     *partState // of what is loaded
	skipped   int64
	positions []*position // of groups, by old offset; the first next are translated
	next      int
}

// loader is one run of Load.
type loader struct {
	b       *Bus
	opt     LoadOptions
	archive *archive
	wanted  []TopicMarks // of the archive, what is loaded
	parts   map[string][]*loadPart
	topics  []topicPlan
	groups  []groupPlan
	notes   []string
	total   int64
	limits  map[string]int32 // topic to greatest usual batch, bytes

	mu      sync.Mutex
	clients map[producerKind]*kgo.Client
	now     Progress
}

// produceAll reads the chunks and hands each to the worker of its partition.
// At most two chunks per worker are in memory: the one it produces and the one
// that waits.
func (l *loader) produceAll(ctx context.Context) error {
	g, gctx := errgroup.WithContext(ctx)
	queues := make([]chan *chunk, workers)
	for i := range queues {
		queues[i] = make(chan *chunk)
		g.Go(func() error {
			for c := range queues[i] {
				if err := l.produce(gctx, c); err != nil {
					return err
				}
			}
			return nil
		})
	}
	slot := map[string]int{} // topic to the number of its partition 0 among all
	n := 0
	for _, t := range l.wanted {
		slot[t.Name] = n
		n += len(t.Partitions)
	}
	g.Go(func() error {
		defer func() {
			for _, q := range queues {
				close(q)
			}
		}()
		for {
			c, err := l.archive.next(gctx)
			if err == io.EOF {
				return l.archive.compare()
			}
			if err != nil {
				return err
			}
			if l.parts[c.topic] == nil {
				continue
			}
			select {
			case queues[(slot[c.topic]+int(c.partition))%workers] <- c:
			case <-gctx.Done():
				return gctx.Err()
			}
		}
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for _, ps := range l.parts {
		for _, p := range ps {
			p.translate(maxOffset + 1) // what is left stands at the end
		}
	}
	return ctx.Err()
}

// produce writes the records of one chunk and waits until all are acknowledged.
func (l *loader) produce(ctx context.Context, c *chunk) error {
	p := l.parts[c.topic][c.partition]
	var batch []*kgo.Record
	var kind producerKind
	flush := func() error {
		if len(batch) == 0 {
			return nil
		}
		err := l.send(ctx, kind, batch, p.state.sum.Records-int64(len(batch)))
		batch = batch[:0]
		return err
	}
	var bytes int64
	for i := range c.records {
		r := &c.records[i]
		body, err := decodeContent(r.content)
		if err != nil {
			return fmt.Errorf("decode offset %d of %s/%d: %w", r.offset, c.topic, c.partition, err)
		}
		if !l.opt.Until.IsZero() && time.UnixMilli(body.timestamp).After(l.opt.Until) {
			p.skipped++
			continue
		}
		k := producerKind{codec: c.codec, large: int64(len(r.content))+batchOverhead > int64(l.limits[c.topic])}
		if oddTime(body.timestamp) {
			k = producerKind{odd: true}
		}
		if k != kind {
			if err := flush(); err != nil {
				return err
			}
			kind = k
		}
		p.translate(r.offset)
		p.state.add(r.offset, r.content)
		bytes += int64(len(r.content))
		batch = append(batch, body.record(c.topic, c.partition))
	}
	if err := flush(); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now.Topic, l.now.Partition, l.now.Total = c.topic, c.partition, l.total
	l.now.Records += int64(len(c.records))
	l.now.Bytes += bytes
	if l.opt.Progress != nil {
		l.opt.Progress(l.now)
	}
	return nil
}

func (c *content) record(topic string, partition int32) *kgo.Record {
	r := &kgo.Record{Topic: topic, Partition: partition, Timestamp: time.UnixMilli(c.timestamp), Key: c.key, Value: c.value}
	for _, h := range c.headers {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(h.name), Value: h.value})
	}
	return r
}

// send produces records of one partition; the first must get the offset first.
func (l *loader) send(ctx context.Context, kind producerKind, records []*kgo.Record, first int64) error {
	if kind.odd {
		return l.sendOdd(ctx, records, first)
	}
	cl, err := l.client(kind)
	if err != nil {
		return err
	}
	limit := max(5*time.Minute, 4*l.b.opt.Timeout) // for a chunk, so 28 kB/s at least
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not acknowledged within %v", limit))
	defer cancel()
	for _, res := range cl.ProduceSync(ctx, records...) {
		if res.Err != nil {
			return fmt.Errorf("produce to topic %s, partition %d: %w", records[0].Topic, records[0].Partition, cmp.Or(context.Cause(ctx), res.Err))
		}
	}
	return checkOffsets(records, first)
}

// checkOffsets returns an error unless the records got consecutive offsets.
func checkOffsets(records []*kgo.Record, first int64) error {
	for i, r := range records {
		if want := first + int64(i); r.Offset != want {
			return fmt.Errorf("topic %s, partition %d: a record got the offset %d, not %d: somebody else produces to it; stop that and load again", r.Topic, r.Partition, r.Offset, want)
		}
	}
	return nil
}

const (
	batchOverhead = 256       // bytes of a batch of one record beyond its content, at most
	usualBatch    = 1_000_000 // bytes of a batch, what clients send by default
)

// producerKind names a producer: which compression, whether for records too
// long for a usual batch, or (then alone) for timestamps that are oddTime.
type producerKind struct {
	codec uint8
	large bool
	odd   bool
}

// client returns the producer of a kind. The records of one partition go
// through one producer at a time, so their order holds across kinds.
func (l *loader) client(kind producerKind) (*kgo.Client, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cl := l.clients[kind]; cl != nil {
		return cl, nil
	}
	codec := [...]kgo.CompressionCodec{kgo.NoCompression(), kgo.GzipCompression(), kgo.SnappyCompression(), kgo.Lz4Compression(), kgo.ZstdCompression()}[kind.codec]
	const large = maxRecord + 1<<20
	opts := append(l.b.base[:len(l.b.base):len(l.b.base)],
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(codec),
		kgo.ProducerLinger(2*time.Millisecond), // a chunk arrives at once: let batches fill
		kgo.MaxBufferedRecords(workers*maxChunkRecords),
		// No RecordDeliveryTimeout: it counts from a record's own timestamp,
		// and ours are old. send has the limit.
	)
	if kind.large {
		opts = append(opts, kgo.ProducerBatchMaxBytes(large), kgo.BrokerMaxWriteBytes(large+1<<20))
	} else {
		opts = append(opts, kgo.ProducerBatchMaxBytesFn(func(topic string) int32 {
			if n, ok := l.limits[topic]; ok {
				return n
			}
			return usualBatch // the client asks once for no topic, to check its options
		}))
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("make a producer: %w", err)
	}
	l.clients[kind] = cl
	return cl, nil
}

func (l *loader) close() {
	for _, cl := range l.clients {
		cl.Close()
	}
}

func (l *loader) result() *LoadResult {
	res := &LoadResult{}
	for _, t := range l.wanted {
		lt := LoadedTopic{Name: t.Name}
		for i, p := range l.parts[t.Name] {
			lp := LoadedPartition{
				Partition: int32(i), Records: p.state.sum.Records, Bytes: p.state.sum.Bytes,
				Skipped: p.skipped, SHA256: hex.EncodeToString(p.state.hash.Sum(nil)),
			}
			res.Records += lp.Records
			res.Bytes += lp.Bytes
			res.Skipped += lp.Skipped
			lt.Partitions = append(lt.Partitions, lp)
		}
		res.Topics = append(res.Topics, lt)
	}
	return res
}

// summary is the archive's, of the topics loaded.
func (l *loader) summary() *Summary {
	s := *l.archive.summary
	s.Topics = nil
	for _, t := range l.archive.summary.Topics {
		if l.parts[t.Name] != nil {
			s.Topics = append(s.Topics, t)
		}
	}
	return &s
}

// Compare reads every topic of a load back and holds it against the result,
// and the result against the summary of the archive: numbers of topics,
// partitions and records, and content hashes. It lists all differences,
// joined. Load does the same before it gives retention back to the broker;
// a Compare afterwards differs where retention or compaction has removed
// records, or somebody has produced, since.
func (b *Bus) Compare(ctx context.Context, s *Summary, res *LoadResult) error {
	if err := b.compare(ctx, s, res); err != nil {
		return fmt.Errorf("compare the event bus with its archive: %w", err)
	}
	return nil
}

func (b *Bus) compare(ctx context.Context, s *Summary, res *LoadResult) error {
	if len(s.Topics) != len(res.Topics) {
		return fmt.Errorf("the archive has %d topics, %d were loaded", len(s.Topics), len(res.Topics))
	}
	var errs []error
	for i, t := range s.Topics {
		lt := res.Topics[i]
		if lt.Name != t.Name || len(lt.Partitions) != len(t.Partitions) {
			errs = append(errs, fmt.Errorf("topic %s has %d partitions in the archive, %s was loaded with %d", t.Name, len(t.Partitions), lt.Name, len(lt.Partitions)))
			continue
		}
		for j, p := range t.Partitions {
			lp := lt.Partitions[j]
			if p.Records != lp.Records+lp.Skipped || lp.Skipped == 0 && p.SHA256 != lp.SHA256 {
				errs = append(errs, fmt.Errorf("topic %s, partition %d: the archive has %d records (%s), %d were loaded (%s) and %d left out", t.Name, j, p.Records, p.SHA256, lp.Records, lp.SHA256, lp.Skipped))
			}
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return b.compareLoaded(ctx, res)
}

// compareLoaded holds the bus against a result.
func (b *Bus) compareLoaded(ctx context.Context, res *LoadResult) error {
	var names []string
	for _, t := range res.Topics {
		names = append(names, t.Name)
	}
	if len(names) == 0 {
		return nil
	}
	m, err := b.loadedMarks(ctx, names)
	if err != nil {
		return err
	}
	got, err := b.Count(ctx, m)
	if err != nil {
		return err
	}
	var errs []error
	for i, t := range res.Topics {
		g := got.Topics[i]
		if len(g.Partitions) != len(t.Partitions) {
			errs = append(errs, fmt.Errorf("topic %s has %d partitions, %d were loaded", t.Name, len(g.Partitions), len(t.Partitions)))
			continue
		}
		for j, want := range t.Partitions {
			if p := g.Partitions[j]; p.Records != want.Records || p.SHA256 != want.SHA256 {
				errs = append(errs, fmt.Errorf("topic %s, partition %d: %d records were loaded (%s), %d are there (%s)", t.Name, j, want.Records, want.SHA256, p.Records, p.SHA256))
			}
		}
	}
	return errors.Join(errs...)
}

// loadedMarks are marks of just these topics, in this order.
func (b *Bus) loadedMarks(ctx context.Context, names []string) (*Marks, error) {
	all, err := b.adm.ListTopics(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	m := new(Marks)
	for _, name := range names {
		t, ok := all[name]
		if !ok {
			return nil, fmt.Errorf("topic %s is not on the bus", name)
		}
		if t.Err != nil {
			return nil, fmt.Errorf("topic %s: %w", name, t.Err)
		}
		m.Topics = append(m.Topics, TopicMarks{Name: name, ID: hex.EncodeToString(t.ID[:]), ReplicationFactor: 1})
	}
	for i := range m.Topics {
		t := &m.Topics[i]
		for p := range int32(len(all[t.Name].Partitions)) {
			t.Partitions = append(t.Partitions, PartitionMarks{Partition: p})
		}
	}
	if err := b.markOffsets(ctx, m); err != nil {
		return nil, err
	}
	return m, nil
}
