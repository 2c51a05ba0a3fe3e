// Package eventbus backs up and restores the event bus: the topics of an
// Apache Kafka cluster (or anything that speaks its protocol), their settings,
// every committed record, and the positions of the consumer groups.
//
// A backup is two calls. [Bus.Marks] notes, in one short interval, how far
// each partition reaches and where each group stands; that is the bus's part
// of a recovery point. [Bus.Dump] then reads, at its own pace, everything
// below those marks. A restore is [Verify], which needs no broker, and then
// [Bus.Load], which recreates the topics, produces every record to its
// partition in its order, reads all of it back, and only then restores the
// settings under which a broker may delete records.
//
// What is kept: key, value, headers (in order, duplicates too) and timestamp
// of each record, byte for byte; null stays distinct from empty. What changes:
// offsets. A partition of the source may have gaps (compaction, transaction
// markers); the restored one counts from 0 without gaps, and the positions of
// the groups are translated. Only committed records are read: records of
// aborted transactions are left out, and so is everything above the last
// stable offset at the time of the marks, which the summary says.
//
// # Archive, version 1
//
// An archive is a sequence of named members, in this order:
//
//	eventbus/bus.json                                        header: the marks
//	eventbus/topics/<topic>/<partition>/<offset>.records     chunks, any number
//	eventbus/summary.json                                    trailer: counts and hashes
//
// <offset> is the offset of the chunk's first record, 20 digits. The chunks of
// one partition stand in the order of their offsets; those of different
// partitions may be mixed. Header and trailer are JSON:
//
//	{"format":"holdfast-eventbus","version":1,"sha256":"…","body":{…}}
//
// where sha256 is that of the bytes of body, and the trailer's body repeats
// the header's. A chunk is binary, integers big-endian:
//
//	 0     4        5       6          8           12      16             24
//	+------+---------+-------+----------+-----------+-------+--------------+-------+
//	| HFEB | version | codec | length n | partition | count | first offset | topic |
//	|  4   |    1    |   1   |    2     |     4     |   4   |      8       |   n   |
//	+------+---------+-------+----------+-----------+-------+--------------+-------+
//	| record, count times …                                                        |
//	+------------------------------------------------------------------------------+
//	| SHA-256 of everything before, 32 bytes                                       |
//	+------------------------------------------------------------------------------+
//
// codec is the compression that the producer of the first record chose, as
// Kafka numbers it (0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd); the chunk itself
// is not compressed. A record:
//
//	uvarint  length of the rest of the record
//	uvarint  offset minus the chunk's first offset
//	byte     flags: bit 0 set if the broker had set the timestamp
//	content:
//	  varint   timestamp, milliseconds since 1970
//	  nbytes   key
//	  nbytes   value
//	  uvarint  number of headers, then for each
//	    uvarint, bytes   name
//	    nbytes           value
//
// nbytes is a uvarint: 0 for null, otherwise the length plus one, then the
// bytes. uvarint and varint are those of encoding/binary, in their shortest
// form. The content hash of a partition is the SHA-256 over, for each of its
// records, the uvarint of the length of the content and the content: it does
// not depend on offsets, so it is the same before and after a restore.
package eventbus
