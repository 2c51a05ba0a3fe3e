package eventbus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// fetched is a record as the bus gave it. Its bytes are valid only during the
// call that it is handed to.
type fetched struct {
	offset     int64
	brokerTime bool
	codec      uint8
	content    content
}

// batchHead is how long a record batch is before its records (Kafka protocol
// guide, "Record Batch", magic 2).
const batchHead = 61

// batchReader takes the answer to a fetch request apart. It does so itself
// because the client library turns timestamps into nanoseconds, which
// overflows for values that real topics hold; see oddTime.
type batchReader struct {
	dec     kgo.Decompressor
	aborted map[int64][]int64 // producer to first offsets of its aborted transactions
}

// read calls each for the committed records of part at or after offset from
// and returns the offset after the last batch, or from if there is none. A
// batch that the broker cut short is left to the next fetch.
func (br *batchReader) read(part *kmsg.FetchResponseTopicPartition, topic string, from int64, each func(*fetched) error) (next int64, err error) {
	br.aborted = map[int64][]int64{}
	for _, a := range part.AbortedTransactions {
		br.aborted[a.ProducerID] = append(br.aborted[a.ProducerID], a.FirstOffset)
	}
	for _, offsets := range br.aborted {
		slices.Sort(offsets)
	}
	next = from
	for in := part.RecordBatches; len(in) >= 17; {
		base := int64(binary.BigEndian.Uint64(in))
		length := int64(binary.BigEndian.Uint32(in[8:])) + 12
		if length > int64(len(in)) {
			break
		}
		if in[16] < 2 {
			return readOld(part, topic, next, br.dec, each)
		}
		if in[16] > 2 || length < batchHead {
			return next, fmt.Errorf("the batch at offset %d has magic %d and %d bytes, which is not known", base, in[16], length)
		}
		if err := br.batch(in[:length], from, each); err != nil {
			return next, err
		}
		next = max(next, base+int64(int32(binary.BigEndian.Uint32(in[23:])))+1)
		in = in[length:]
	}
	return next, nil
}

// batch reads one batch.
func (br *batchReader) batch(b []byte, from int64, each func(*fetched) error) error {
	base := int64(binary.BigEndian.Uint64(b))
	if got, want := crc32.Checksum(b[21:], crc32.MakeTable(crc32.Castagnoli)), binary.BigEndian.Uint32(b[17:]); got != want {
		return fmt.Errorf("the batch at offset %d is damaged: its CRC is %08x, not %08x", base, got, want)
	}
	attributes := binary.BigEndian.Uint16(b[21:])
	first, last := int64(binary.BigEndian.Uint64(b[27:])), int64(binary.BigEndian.Uint64(b[35:]))
	producer, count := int64(binary.BigEndian.Uint64(b[43:])), int32(binary.BigEndian.Uint32(b[57:]))
	const logAppend, transactional, control = 1 << 3, 1 << 4, 1 << 5
	if offsets := br.aborted[producer]; attributes&transactional != 0 && attributes&control == 0 && len(offsets) > 0 && base >= offsets[0] {
		return nil
	}
	records, codec := b[batchHead:], uint8(attributes&7)
	if codec != 0 {
		var err error
		if records, err = br.dec.Decompress(records, kgo.CompressionCodecType(codec)); err != nil {
			return fmt.Errorf("decompress the batch at offset %d: %w", base, err)
		}
	}
	d := &decoder{b: records, lax: true}
	for range max(count, 0) {
		f := fetched{codec: codec, brokerTime: attributes&logAppend != 0}
		rd := &decoder{b: d.take(uint64(d.varint())), lax: true}
		rd.take(1) // attributes, unused
		f.content.timestamp = first + rd.varint()
		if f.brokerTime {
			f.content.timestamp = last
		}
		f.offset = base + rd.varint()
		f.content.key, f.content.value = rd.kafkaBytes(), rd.kafkaBytes()
		headers := rd.varint()
		if headers < 0 || headers > int64(len(rd.b)/2) {
			rd.fail("its number of headers is not possible")
		}
		for i := int64(0); i < headers && rd.err == nil; i++ {
			f.content.headers = append(f.content.headers, header{name: rd.kafkaBytes(), value: rd.kafkaBytes()})
		}
		if err := errors.Join(d.err, rd.err); err != nil {
			return fmt.Errorf("a record in the batch at offset %d: %w", base, err)
		}
		if attributes&control != 0 {
			// The key of a marker is its version and its type, 0 for an abort.
			if k := f.content.key; len(k) >= 4 && k[2] == 0 && k[3] == 0 && len(br.aborted[producer]) > 0 {
				br.aborted[producer] = br.aborted[producer][1:]
			}
			continue
		}
		if f.offset < from {
			continue
		}
		if err := each(&f); err != nil {
			return err
		}
	}
	return nil
}

// kafkaBytes reads a varint length, -1 for null, and the bytes.
func (d *decoder) kafkaBytes() []byte {
	n := d.varint()
	if n < 0 {
		return nil
	}
	return d.take(uint64(n))
}

// readOld reads messages as they were before Kafka 0.11 (magic 0 and 1), which
// have neither headers nor transactions, with the client library.
func readOld(part *kmsg.FetchResponseTopicPartition, topic string, from int64, dec kgo.Decompressor, each func(*fetched) error) (int64, error) {
	fp, next := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: from, IsolationLevel: kgo.ReadCommitted(), Topic: topic, Partition: part.Partition,
	}, part, dec, nil)
	if fp.Err != nil {
		return from, fp.Err
	}
	for _, r := range fp.Records {
		f := fetched{offset: r.Offset, brokerTime: r.Attrs.TimestampType() == 1, codec: r.Attrs.CompressionType()}
		f.content = content{timestamp: r.Timestamp.UnixMilli(), key: r.Key, value: r.Value}
		if r.Timestamp.Equal(time.Time{}) {
			f.content.timestamp = -1 // magic 0 has no timestamp
		}
		for _, h := range r.Headers { // a new batch may follow old messages
			f.content.headers = append(f.content.headers, header{name: []byte(h.Key), value: h.Value})
		}
		if err := each(&f); err != nil {
			return from, err
		}
	}
	return next, nil
}
