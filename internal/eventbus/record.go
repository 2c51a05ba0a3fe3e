package eventbus

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

const (
	// ChunkSize is the greatest length of a chunk, in bytes; a chunk of a
	// single record may exceed it.
	ChunkSize = 8 << 20
	// maxChunkRecords bounds what the records of a chunk cost beyond their bytes.
	maxChunkRecords = 1 << 16
	// maxRecord is the greatest content of one record, in bytes. Brokers accept
	// far less (socket.request.max.bytes, 100 MiB by default).
	maxRecord = 256 << 20
	// maxHeaders is the greatest number of headers of one record.
	maxHeaders = 1 << 20

	chunkMagic   = "HFEB"
	chunkVersion = 1
	chunkFixed   = 24 // bytes before the topic
	minRecord    = 7  // bytes of the shortest record
	maxOffset    = 1 << 62
)

// header is one header of a record.
type header struct {
	name  []byte
	value []byte // nil: null
}

// record is one record as the archive keeps it.
type record struct {
	offset     int64 // on the source
	brokerTime bool  // the broker set the timestamp
	content    []byte
}

// content is the part of a record that a restore reproduces.
type content struct {
	timestamp  int64 // milliseconds since 1970
	key, value []byte
	headers    []header
}

func appendNullable(b, v []byte) []byte {
	if v == nil {
		return append(b, 0)
	}
	return append(binary.AppendUvarint(b, uint64(len(v))+1), v...)
}

// appendContent appends the encoding of c; see the package comment.
func appendContent(b []byte, c *content) []byte {
	b = binary.AppendVarint(b, c.timestamp)
	b = appendNullable(b, c.key)
	b = appendNullable(b, c.value)
	b = binary.AppendUvarint(b, uint64(len(c.headers)))
	for _, h := range c.headers {
		b = binary.AppendUvarint(b, uint64(len(h.name)))
		b = append(b, h.name...)
		b = appendNullable(b, h.value)
	}
	return b
}

// decoder reads an encoding; after the first error everything is empty.
type decoder struct {
	b   []byte
	err error
	lax bool // numbers need not be in their shortest form
}

func (d *decoder) fail(text string) {
	if d.err == nil {
		d.err = errors.New(text)
	}
	d.b = nil
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 && !d.lax {
		d.fail("a number is cut short or not in its shortest form")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// take returns the next n bytes, never nil unless there was an error.
func (d *decoder) take(n uint64) []byte {
	if d.err != nil || n > uint64(len(d.b)) {
		d.fail("a length exceeds what is there")
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) nullable() []byte {
	n := d.uvarint()
	if n == 0 {
		return nil
	}
	return d.take(n - 1)
}

// decodeContent reads what appendContent wrote; the result shares b's memory.
func decodeContent(b []byte) (*content, error) {
	d := &decoder{b: b}
	c := &content{timestamp: d.varint(), key: d.nullable(), value: d.nullable()}
	n := d.uvarint()
	if n > uint64(len(d.b))/2 || n > maxHeaders { // each header takes at least two bytes
		d.fail("more headers than bytes, or than allowed")
		n = 0
	}
	for range n {
		if d.err != nil {
			break
		}
		c.headers = append(c.headers, header{name: d.take(d.uvarint()), value: d.nullable()})
	}
	if d.err == nil && len(d.b) > 0 {
		d.fail("bytes are left over")
	}
	if d.err != nil {
		return nil, d.err
	}
	return c, nil
}

// hashContent adds a record to the content hash of its partition.
func hashContent(h hash.Hash, content []byte) {
	var n [binary.MaxVarintLen64]byte
	h.Write(n[:binary.PutUvarint(n[:], uint64(len(content)))]) // a hash.Hash never returns an error
	h.Write(content)
}

// chunkWriter collects consecutive records of one partition.
type chunkWriter struct {
	topic     string
	partition int32
	buf       []byte
	count     int
	first     int64
}

// fits says whether a record of this content still belongs into the chunk.
func (w *chunkWriter) fits(content []byte) bool {
	return w.count == 0 || w.count < maxChunkRecords && len(w.buf)+len(content)+2*binary.MaxVarintLen64+1+sha256.Size <= ChunkSize
}

// add appends a record; codec counts only for the first.
func (w *chunkWriter) add(r *record, codec uint8) {
	if w.count == 0 {
		w.first = r.offset
		w.buf = append(w.buf[:0], chunkMagic...)
		w.buf = append(w.buf, chunkVersion, codec)
		w.buf = binary.BigEndian.AppendUint16(w.buf, uint16(len(w.topic)))
		w.buf = binary.BigEndian.AppendUint32(w.buf, uint32(w.partition))
		w.buf = binary.BigEndian.AppendUint32(w.buf, 0) // count, set by finish
		w.buf = binary.BigEndian.AppendUint64(w.buf, uint64(w.first))
		w.buf = append(w.buf, w.topic...)
	}
	var head [binary.MaxVarintLen64 + 1]byte
	n := binary.PutUvarint(head[:], uint64(r.offset-w.first))
	if r.brokerTime {
		head[n] = 1
	}
	n++
	w.buf = binary.AppendUvarint(w.buf, uint64(n+len(r.content)))
	w.buf = append(w.buf, head[:n]...)
	w.buf = append(w.buf, r.content...)
	w.count++
}

// finish returns the chunk, valid until the next add, and begins a new one.
func (w *chunkWriter) finish() (name string, data []byte) {
	binary.BigEndian.PutUint32(w.buf[12:], uint32(w.count))
	sum := sha256.Sum256(w.buf)
	w.buf = append(w.buf, sum[:]...)
	w.count = 0
	return chunkName(w.topic, w.partition, w.first), w.buf
}

// chunk is a decoded chunk; its records share the memory it was read from.
type chunk struct {
	topic     string
	partition int32
	codec     uint8
	first     int64
	records   []record
}

// decodeChunk reads a chunk and checks its sum, its structure, and that the
// offsets increase.
func decodeChunk(b []byte) (*chunk, error) {
	if len(b) < chunkFixed+sha256.Size || string(b[:4]) != chunkMagic {
		return nil, errors.New("not a chunk of records")
	}
	if b[4] != chunkVersion {
		return nil, fmt.Errorf("chunk version %d is not supported, only %d", b[4], chunkVersion)
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if got := sha256.Sum256(body); !bytes.Equal(got[:], sum) {
		return nil, errors.New("damaged: the SHA-256 at its end does not match")
	}
	n := int(binary.BigEndian.Uint16(b[6:]))
	part, count, first := binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:]), binary.BigEndian.Uint64(b[16:])
	if len(body) < chunkFixed+n || b[5] > 4 || part >= maxPartitions || first > maxOffset {
		return nil, errors.New("its head is not possible")
	}
	d := &decoder{b: body[chunkFixed+n:]}
	if count == 0 || count > maxChunkRecords || int(count) > len(d.b)/minRecord {
		return nil, fmt.Errorf("a count of %d records is not possible", count)
	}
	c := &chunk{topic: string(body[chunkFixed : chunkFixed+n]), partition: int32(part), codec: b[5], first: int64(first)}
	if err := checkTopicName(c.topic); err != nil {
		return nil, err
	}
	c.records = make([]record, 0, count)
	for i := range int64(count) {
		rd := &decoder{b: d.take(d.uvarint())}
		delta := rd.uvarint()
		flags := rd.take(1)
		switch {
		case d.err != nil || rd.err != nil:
			return nil, fmt.Errorf("record %d: %w", i, errors.Join(d.err, rd.err))
		case flags[0] > 1 || delta > maxOffset || (i == 0) != (delta == 0) || i > 0 && c.first+int64(delta) <= c.records[i-1].offset:
			return nil, fmt.Errorf("record %d: offset or flags are not possible", i)
		}
		if _, err := decodeContent(rd.b); err != nil {
			return nil, fmt.Errorf("record %d: %w", i, err)
		}
		c.records = append(c.records, record{offset: c.first + int64(delta), brokerTime: flags[0] == 1, content: rd.b})
	}
	if len(d.b) > 0 {
		return nil, errors.New("bytes are left over after the last record")
	}
	return c, nil
}
