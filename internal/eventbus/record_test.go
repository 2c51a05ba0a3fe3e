package eventbus

import (
	"bytes"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

var sampleContents = []content{
	{},
	{timestamp: -1, key: []byte{}, value: []byte{}},
	{timestamp: math.MinInt64, key: []byte("k")},
	{timestamp: math.MaxInt64, value: bytes.Repeat([]byte("v"), 300), headers: []header{{name: []byte("a")}, {name: []byte("a"), value: []byte{}}, {name: []byte{}, value: []byte("x")}}},
}

// sampleChunk encodes the samples at growing offsets.
func sampleChunk(topic string, partition int32, first int64) (string, []byte) {
	w := &chunkWriter{topic: topic, partition: partition}
	for i := range sampleContents {
		w.add(&record{offset: first + int64(i*i), brokerTime: i == 1, content: appendContent(nil, &sampleContents[i])}, uint8(i))
	}
	name, data := w.finish()
	return name, bytes.Clone(data)
}

func TestContentKeepsNullAndEmptyApart(t *testing.T) {
	for _, want := range sampleContents {
		got, err := decodeContent(appendContent(nil, &want))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("got %#v, want %#v", *got, want)
		}
	}
}

func TestChunk(t *testing.T) {
	name, data := sampleChunk("a.topic", 7, 1000)
	if name != "eventbus/topics/a.topic/7/00000000000000001000.records" {
		t.Errorf("name %s", name)
	}
	c, err := decodeChunk(data)
	if err != nil {
		t.Fatal(err)
	}
	if c.topic != "a.topic" || c.partition != 7 || c.first != 1000 || c.codec != 0 || len(c.records) != 4 ||
		c.records[3].offset != 1009 || !c.records[1].brokerTime || c.records[2].brokerTime {
		t.Errorf("decoded %+v", c)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 0x20
		if _, err := decodeChunk(bad); err == nil {
			t.Errorf("byte %d changed, nothing noticed", i)
		}
		if _, err := decodeChunk(data[:i]); err == nil {
			t.Errorf("cut at %d, nothing noticed", i)
		}
	}
}

func TestChunkLimits(t *testing.T) {
	w := &chunkWriter{topic: "t"}
	big := appendContent(nil, &content{value: make([]byte, ChunkSize)})
	if !w.fits(big) {
		t.Error("an empty chunk must take a record of any size")
	}
	w.add(&record{content: big}, 0)
	if w.fits([]byte{0, 0, 0, 0}) {
		t.Error("a chunk over its size takes more")
	}
	w.finish()
	small := appendContent(nil, &content{value: make([]byte, 1000)})
	var at int64
	for w.fits(small) {
		w.add(&record{offset: at, content: small}, 0)
		at++
	}
	if _, data := w.finish(); len(data) > ChunkSize || len(data) < ChunkSize-2000 {
		t.Errorf("chunk of %d bytes, want just under %d", len(data), ChunkSize)
	}
	for at = 0; w.fits([]byte{0, 0, 0, 0}); at++ {
		w.add(&record{offset: at, content: []byte{0, 0, 0, 0}}, 0)
	}
	if at != maxChunkRecords {
		t.Errorf("%d records in a chunk, want %d", at, maxChunkRecords)
	}
	if _, data := w.finish(); len(data) > ChunkSize {
		t.Errorf("chunk of %d bytes", len(data))
	}
}

// FuzzRecords: whatever decodes encodes to the same bytes again.
func FuzzRecords(f *testing.F) {
	for _, c := range sampleContents {
		f.Add(appendContent(nil, &c))
	}
	f.Add([]byte{0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeContent(b)
		if err == nil {
			if got := appendContent(nil, c); !bytes.Equal(got, b) {
				t.Fatalf("%x decodes, and encodes as %x", b, got)
			}
		}
		// The same bytes as the records of a chunk with a right sum.
		w := &chunkWriter{topic: "t"}
		w.add(&record{content: []byte{0, 0, 0, 0}}, 0)
		w.buf = append(w.buf[:chunkFixed+1], b...)
		w.count = 1 + len(b)%3
		_, data := w.finish()
		chunk, err := decodeChunk(data)
		if err != nil {
			return
		}
		again := &chunkWriter{topic: chunk.topic, partition: chunk.partition}
		for i := range chunk.records {
			again.add(&chunk.records[i], chunk.codec)
		}
		if _, got := again.finish(); !bytes.Equal(got, data) {
			t.Fatalf("chunk %x encodes as %x", data, got)
		}
	})
}

// sampleBatch is a batch as a broker sends it.
func sampleBatch(first int64) []byte {
	var rs []*kgo.Record
	for i := range sampleContents {
		rs = append(rs, sampleContents[i].record("t", 0))
	}
	b, n := oddBatch(rs, 1<<20)
	if n != len(rs) {
		panic("the samples do not fit one batch")
	}
	for i := range 8 {
		b[i] = byte(first >> (56 - 8*i))
	}
	return b
}

func TestBatch(t *testing.T) {
	br := &batchReader{dec: kgo.DefaultDecompressor()}
	data := append(sampleBatch(100), sampleBatch(104)...)
	var got []content
	next, err := br.read(&kmsg.FetchResponseTopicPartition{RecordBatches: append(data, data[:70]...)}, "t", 102, func(f *fetched) error {
		if want := int64(102 + len(got)); f.offset != want {
			t.Errorf("offset %d, want %d", f.offset, want)
		}
		got = append(got, f.content)
		return nil
	})
	if err != nil || next != 108 {
		t.Errorf("next offset %d, %v", next, err)
	}
	want := append(sampleContents[2:4:4], sampleContents...)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	data[80] ^= 1
	if _, err := br.read(&kmsg.FetchResponseTopicPartition{RecordBatches: data}, "t", 100, func(*fetched) error { return nil }); err == nil || !strings.Contains(err.Error(), "offset 100 is damaged") {
		t.Errorf("damaged batch: %v", err)
	}
	stop := errors.New("stop")
	if _, err := br.read(&kmsg.FetchResponseTopicPartition{RecordBatches: sampleBatch(0)}, "t", 0, func(*fetched) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("each's error became %v", err)
	}
}

// FuzzBatch: a broker's answer, however wrong, neither panics nor gives a
// record before the offset asked for.
func FuzzBatch(f *testing.F) {
	f.Add(sampleBatch(0))
	f.Add(append(sampleBatch(5), sampleBatch(9)[:80]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		br := &batchReader{dec: kgo.DefaultDecompressor()}
		_, err := br.read(&kmsg.FetchResponseTopicPartition{RecordBatches: b}, "t", 5, func(r *fetched) error {
			if r.offset < 5 {
				t.Errorf("offset %d", r.offset)
			}
			return nil
		})
		_ = err // most inputs are damaged
	})
}
