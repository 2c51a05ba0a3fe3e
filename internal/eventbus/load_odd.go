package eventbus

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// oddTime says whether the client library cannot send a timestamp as it is: it
// counts in nanoseconds, so years before 1678 and after 2262 overflow, and it
// takes the zero time for "now". Such records exist: a producer that counted
// in microseconds wrote them.
func oddTime(ms int64) bool {
	t := time.UnixMilli(ms)
	return t.IsZero() || time.Unix(0, t.UnixNano()).UnixMilli() != ms
}

// sendOdd produces records with such timestamps, each request built here. It
// is neither idempotent nor repeated: after an error the load has failed.
func (l *loader) sendOdd(ctx context.Context, records []*kgo.Record, first int64) error {
	topic, partition := records[0].Topic, records[0].Partition
	md, err := l.b.adm.Metadata(ctx, topic)
	if err != nil {
		return fmt.Errorf("find the leader of topic %s, partition %d: %w", topic, partition, err)
	}
	detail, ok := md.Topics[topic].Partitions[partition]
	if !ok || detail.Leader < 0 {
		return fmt.Errorf("topic %s, partition %d has no leader", topic, partition)
	}
	for len(records) > 0 {
		batch, n := oddBatch(records, int(l.limits[topic]))
		p := kmsg.NewProduceRequestTopicPartition()
		p.Partition, p.Records = partition, batch
		t := kmsg.NewProduceRequestTopic()
		t.Topic, t.TopicID, t.Partitions = topic, md.Topics[topic].ID, []kmsg.ProduceRequestTopicPartition{p}
		req := kmsg.NewPtrProduceRequest()
		req.Acks, req.TimeoutMillis, req.Topics = -1, int32(l.b.opt.Timeout.Milliseconds()), []kmsg.ProduceRequestTopic{t}
		got, err := l.b.cl.Broker(int(detail.Leader)).Request(ctx, req)
		if err != nil {
			return fmt.Errorf("produce to topic %s, partition %d: %w", topic, partition, err)
		}
		resp, ok := got.(*kmsg.ProduceResponse)
		if !ok || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
			return fmt.Errorf("produce to topic %s, partition %d: the broker's answer is for something else", topic, partition)
		}
		rp := resp.Topics[0].Partitions[0]
		if err := kerr.ErrorForCode(rp.ErrorCode); err != nil {
			return fmt.Errorf("produce to topic %s, partition %d: %w", topic, partition, err)
		}
		for i := range n {
			records[i].Offset = rp.BaseOffset + int64(i)
		}
		if err := checkOffsets(records[:n], first); err != nil {
			return err
		}
		records, first = records[n:], first+int64(n)
	}
	return nil
}

// oddBatch encodes the first n records, at least one, in at most limit bytes
// where possible (Kafka protocol guide, "Record Batch", magic 2).
func oddBatch(records []*kgo.Record, limit int) (batch []byte, n int) {
	base := records[0].Timestamp.UnixMilli()
	rb := kmsg.RecordBatch{PartitionLeaderEpoch: -1, Magic: 2, FirstTimestamp: base, MaxTimestamp: base, ProducerID: -1, ProducerEpoch: -1, FirstSequence: -1}
	for n < len(records) {
		r := records[n]
		kr := kmsg.Record{TimestampDelta64: r.Timestamp.UnixMilli() - base, OffsetDelta: int32(n), Key: r.Key, Value: r.Value}
		for _, h := range r.Headers {
			kr.Headers = append(kr.Headers, kmsg.Header{Key: h.Key, Value: h.Value})
		}
		kr.Length = int32(len(kr.AppendTo(nil)) - 1) // the length 0 took one byte
		next := kr.AppendTo(rb.Records)
		if n > 0 && len(next)+batchOverhead > limit {
			break
		}
		rb.Records = next
		rb.MaxTimestamp = max(rb.MaxTimestamp, r.Timestamp.UnixMilli())
		n++
	}
	rb.NumRecords, rb.LastOffsetDelta = int32(n), int32(n-1)
	batch = rb.AppendTo(nil)
	const lengthAt, crcAt, crcFrom = 8, 17, 21
	binary.BigEndian.PutUint32(batch[lengthAt:], uint32(len(batch)-lengthAt-4))
	binary.BigEndian.PutUint32(batch[crcAt:], crc32.Checksum(batch[crcFrom:], crc32.MakeTable(crc32.Castagnoli)))
	return batch, n
}
