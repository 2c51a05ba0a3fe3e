package eventbus

import (
	"context"
	"fmt"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Progress says how far a dump or a load has come. Partition is the one that
// the last chunk belongs to.
type Progress struct {
	Topic     string
	Partition int32
	Records   int64 // so far, all partitions
	Bytes     int64 // of contents so far, all partitions
	Total     int64 // offsets to cover, an upper bound of the records
}

// Dump writes the archive of everything between the marks to sink and returns
// its summary, which is also the archive's last member. At most four
// partitions are read at once, each with one chunk in memory; Put and progress
// (which may be nil) are called for one at a time. A topic that was deleted
// since the marks is an error; records that retention removed since are noted
// in the summary. A cancelled context ends the dump without a trailer, so what
// the sink has is no valid archive.
func (b *Bus) Dump(ctx context.Context, m *Marks, sink Sink, progress func(Progress)) (*Summary, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("dump the event bus: marks: %w", err)
	}
	head, sum, err := seal(m)
	if err != nil {
		return nil, fmt.Errorf("dump the event bus: encode %s: %w", headerName, err)
	}
	if err := sink.Put(ctx, headerName, head); err != nil {
		return nil, fmt.Errorf("dump the event bus: write %s: %w", headerName, err)
	}
	d := &dumper{b: b, sink: sink, progress: progress, parts: map[string][]*partState{}}
	s, err := d.run(ctx, m, sum)
	if err != nil {
		return nil, fmt.Errorf("dump the event bus: %w", err)
	}
	trailer, _, err := seal(s)
	if err != nil {
		return nil, fmt.Errorf("dump the event bus: encode %s: %w", trailerName, err)
	}
	if err := sink.Put(ctx, trailerName, trailer); err != nil {
		return nil, fmt.Errorf("dump the event bus: write %s: %w", trailerName, err)
	}
	return s, nil
}

// Count reads everything between the marks, as Dump does, and writes nothing:
// the summary says what a dump would hold.
func (b *Bus) Count(ctx context.Context, m *Marks) (*Summary, error) {
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("count the event bus: marks: %w", err)
	}
	d := &dumper{b: b, parts: map[string][]*partState{}}
	s, err := d.run(ctx, m, "")
	if err != nil {
		return nil, fmt.Errorf("count the event bus: %w", err)
	}
	return s, nil
}

type dumper struct {
	b        *Bus
	sink     Sink // nil: only count
	parts    map[string][]*partState
	progress func(Progress)

	mu  sync.Mutex // one Put at a time, and the totals
	now Progress
}

func (d *dumper) run(ctx context.Context, m *Marks, sum string) (*Summary, error) {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(workers)
	for _, t := range m.Topics {
		for _, p := range t.Partitions {
			d.now.Total += p.Stable - p.Start
			d.parts[t.Name] = append(d.parts[t.Name], newPartState(t.Name, p))
		}
	}
	for _, t := range m.Topics {
		id := topicID(t.ID)
		for _, p := range t.Partitions {
			g.Go(func() error {
				return d.partition(gctx, d.parts[t.Name][p.Partition], span{topic: t.Name, id: id, partition: p.Partition, from: p.Start, to: p.Stable})
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return summarise(m, sum, func(topic string, p int32) *partState { return d.parts[topic][p] }), ctx.Err()
}

// partition dumps one partition. Only its worker touches st.
func (d *dumper) partition(ctx context.Context, st *partState, s span) error {
	w := &chunkWriter{topic: s.topic, partition: s.partition}
	var buf []byte
	var err error
	st.sum.Lost, err = d.b.read(ctx, s, func(f *fetched) error {
		var err error
		if buf, err = f.encode(buf[:0]); err != nil {
			return err
		}
		if !w.fits(buf) {
			if err := d.flush(ctx, w, st); err != nil {
				return err
			}
		}
		st.add(f.offset, buf)
		if d.sink != nil {
			w.add(&record{offset: f.offset, brokerTime: f.brokerTime, content: buf}, min(f.codec, 4))
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.flush(ctx, w, st)
}

func (d *dumper) flush(ctx context.Context, w *chunkWriter, st *partState) error {
	if w.count == 0 {
		return nil
	}
	n := w.count
	name, data := w.finish()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := d.sink.Put(ctx, name, data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	st.sum.Chunks++
	d.now.Topic, d.now.Partition = w.topic, w.partition
	d.now.Records += int64(n)
	d.now.Bytes += int64(len(data))
	if d.progress != nil {
		d.progress(d.now)
	}
	return nil
}
