package eventbus

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	fetchBytes = 1 << 20 // asked for at once; a broker gives at least one batch whatever its size
	fetchWait  = 100     // ms that a broker waits for more
	// gapAnswers is how many times a broker must answer that there is nothing
	// before the end of a range is taken for a gap.
	gapAnswers = 3
)

// span is a range of one partition to read.
type span struct {
	topic     string
	id        [16]byte
	partition int32
	from, to  int64
}

// reader reads the committed records of one span.
//
// It speaks the fetch request itself instead of using a consumer, because a
// consumer only tells of records: at the end of a range that compaction or an
// aborted transaction emptied it would wait for ever.
type reader struct {
	b      *Bus
	span   span
	leader int32 // -1: not known
	lost   []Range
}

// topicID decodes an id that Marks.check has seen.
func topicID(s string) (id [16]byte) {
	if b, err := hex.DecodeString(s); err == nil {
		copy(id[:], b)
	}
	return id
}

// read calls each for every committed record of the span, in order, and
// returns the ranges that retention had removed. It stops at the first error
// of each, and when the broker makes no progress for the timeout.
func (b *Bus) read(ctx context.Context, s span, each func(*fetched) error) ([]Range, error) {
	r := &reader{b: b, span: s, leader: -1}
	batches := &batchReader{dec: kgo.DefaultDecompressor()}
	wrap := func(err error) error {
		return fmt.Errorf("read topic %s, partition %d at offset %d: %w", s.topic, s.partition, r.span.from, err)
	}
	empty := 0
	progress := time.Now()
	for r.span.from < s.to {
		if err := ctx.Err(); err != nil {
			return nil, wrap(err)
		}
		part, err := r.fetch(ctx)
		if errors.Is(err, kerr.OffsetOutOfRange) {
			err = r.skipLost(ctx)
			if err == nil {
				continue
			}
		}
		if err != nil {
			if !retriable(err) || time.Since(progress) > b.opt.Timeout {
				return nil, wrap(err)
			}
			r.leader = -1
			if err := pause(ctx, 100*time.Millisecond); err != nil {
				return nil, wrap(err)
			}
			continue
		}
		var refused error // by each: not ours to describe
		next, err := batches.read(part, s.topic, r.span.from, func(f *fetched) error {
			if f.offset >= s.to {
				return nil
			}
			refused = each(f)
			return refused
		})
		if refused != nil {
			return nil, refused
		}
		if err != nil {
			return nil, wrap(err)
		}
		if next > r.span.from {
			r.span.from, empty, progress = next, 0, time.Now()
			continue
		}
		if part.LastStableOffset >= s.to || part.LastStableOffset < 0 && part.HighWatermark >= s.to {
			if empty++; empty >= gapAnswers {
				break
			}
			continue
		}
		// A new leader may not know yet how far the partition is stable.
		empty = 0
		if time.Since(progress) > b.opt.Timeout {
			return nil, wrap(fmt.Errorf("the broker's last stable offset is %d, below the mark %d; was the topic truncated by an unclean leader election?", part.LastStableOffset, s.to))
		}
	}
	return r.lost, nil
}

// retriable tells errors of a moment (elections, restarts) from lasting ones.
func retriable(err error) bool {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var ke *kerr.Error
	if errors.As(err, &ke) {
		// A topic unknown to its former leader: the metadata, asked next, tell why.
		return ke.Retriable || ke == kerr.UnknownTopicID
	}
	return kgo.IsRetryableBrokerErr(err)
}

// fetch asks the leader once.
func (r *reader) fetch(ctx context.Context) (*kmsg.FetchResponseTopicPartition, error) {
	s := &r.span
	if r.leader < 0 {
		md, err := r.b.adm.Metadata(uncached(ctx), s.topic)
		if err != nil {
			return nil, fmt.Errorf("find the leader: %w", err)
		}
		t, ok := md.Topics[s.topic]
		if !ok || errors.Is(t.Err, kerr.UnknownTopicOrPartition) {
			return nil, errors.New("the topic has been deleted meanwhile")
		}
		if t.Err != nil {
			return nil, t.Err
		}
		if [16]byte(t.ID) != s.id {
			return nil, errors.New("the topic has been deleted and created anew meanwhile")
		}
		p, ok := t.Partitions[s.partition]
		if !ok || p.Leader < 0 {
			return nil, kerr.LeaderNotAvailable
		}
		r.leader = p.Leader
	}
	p := kmsg.NewFetchRequestTopicPartition()
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = s.partition, s.from, fetchBytes
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID, t.Partitions = s.topic, s.id, []kmsg.FetchRequestTopicPartition{p}
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = fetchWait, 1, fetchBytes, 1
	req.Topics = []kmsg.FetchRequestTopic{t}

	got, err := r.b.cl.Broker(int(r.leader)).RetriableRequest(ctx, req)
	if err != nil {
		return nil, err
	}
	resp, ok := got.(*kmsg.FetchResponse)
	if !ok {
		return nil, fmt.Errorf("the broker answered a fetch with %T", got)
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 || resp.Topics[0].Partitions[0].Partition != s.partition {
		if resp.ThrottleMillis > 0 { // throttled brokers answer without partitions
			return nil, kerr.ThrottlingQuotaExceeded
		}
		return nil, errors.New("the broker answered a fetch with other partitions than asked for")
	}
	part := &resp.Topics[0].Partitions[0]
	return part, kerr.ErrorForCode(part.ErrorCode)
}

// skipLost moves the span behind what retention has removed.
func (r *reader) skipLost(ctx context.Context) error {
	l, err := r.b.adm.ListStartOffsets(ctx, r.span.topic)
	if err != nil {
		return err
	}
	start, ok := l.Lookup(r.span.topic, r.span.partition)
	if !ok {
		return errors.New("the broker gave no first offset")
	}
	if start.Err != nil {
		return start.Err
	}
	if start.Offset <= r.span.from {
		return errors.New("the partition ends before its mark; was it truncated by an unclean leader election?")
	}
	to := min(start.Offset, r.span.to)
	r.lost = append(r.lost, Range{From: r.span.from, To: to})
	r.span.from = to
	return nil
}

// encode appends what a restore will reproduce of a record.
func (f *fetched) encode(buf []byte) ([]byte, error) {
	if n := len(f.content.headers); n > maxHeaders {
		return nil, fmt.Errorf("the record at offset %d has %d headers, more than the %d that the archive allows", f.offset, n, maxHeaders)
	}
	buf = appendContent(buf, &f.content)
	if len(buf) > maxRecord {
		return nil, fmt.Errorf("the record at offset %d has %d bytes, more than the %d that the archive allows", f.offset, len(buf), maxRecord)
	}
	return buf, nil
}
