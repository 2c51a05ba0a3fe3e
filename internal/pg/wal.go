package pg

import (
	"fmt"
	"strconv"
	"strings"
)

// Sizes in bytes that PostgreSQL can be built or initialised with.
const (
	minSegmentSize = 1 << 20
	maxSegmentSize = 1 << 30
	minPageSize    = 1 << 10
	maxPageSize    = 1 << 15
	maxWALPageSize = 1 << 16
)

// ValidSegmentSize reports whether n bytes is a WAL segment size that PostgreSQL allows: a power of two from 1 MiB to
// 1 GiB.
func ValidSegmentSize(n uint32) bool { return powerOfTwoIn(n, minSegmentSize, maxSegmentSize) }

// SegmentName is the 24 hex digit WAL file name that holds lsn. A position on the boundary between two segments
// belongs to the second. segmentSize must be valid (ValidSegmentSize), as those of Control and WALHeader are.
func SegmentName(timeline uint32, lsn LSN, segmentSize uint32) string {
	return segmentName(timeline, uint64(lsn)/uint64(segmentSize), segmentSize)
}

// segmentName writes segment number n: the high half counts 4 GiB units, the low half segments within one.
func segmentName(timeline uint32, n uint64, segmentSize uint32) string {
	perUnit := uint64(1<<32) / uint64(segmentSize)
	return fmt.Sprintf("%08X%08X%08X", timeline, n/perUnit, n%perUnit)
}

// ParseSegmentName is the opposite of SegmentName: the timeline and the first position of a segment.
func ParseSegmentName(name string, segmentSize uint32) (timeline uint32, start LSN, err error) {
	if !IsSegmentName(name) {
		return 0, 0, fmt.Errorf("%.40q is no WAL segment name", name)
	}
	if !ValidSegmentSize(segmentSize) {
		return 0, 0, fmt.Errorf("WAL segment size %d is not allowed", segmentSize)
	}
	var part [3]uint64
	for i := range part {
		if part[i], err = strconv.ParseUint(name[i*8:i*8+8], 16, 32); err != nil {
			return 0, 0, fmt.Errorf("WAL segment name %q: %w", name, err)
		}
	}
	if part[2] >= uint64(1<<32)/uint64(segmentSize) {
		return 0, 0, fmt.Errorf("WAL segment name %s does not exist with segments of %d bytes", name, segmentSize)
	}
	return uint32(part[0]), LSN(part[1]<<32 + part[2]*uint64(segmentSize)), nil
}

// SegmentCount is the number of names SegmentsBetween returns. Ask it first where the positions come from a file that
// someone else wrote.
func SegmentCount(start, stop LSN, segmentSize uint32) uint64 {
	if stop < start {
		return 0
	}
	return uint64(stop)/uint64(segmentSize) - uint64(start)/uint64(segmentSize) + 1
}

// SegmentsBetween names all segments from that holding start to that holding stop, inclusive, so a stop on a segment
// boundary includes the segment it begins (format page, section 11.4). It is empty if stop is before start.
func SegmentsBetween(timeline uint32, start, stop LSN, segmentSize uint32) []string {
	count := SegmentCount(start, stop, segmentSize)
	first := uint64(start) / uint64(segmentSize)
	names := make([]string, 0, count)
	for n := range count {
		names = append(names, segmentName(timeline, first+n, segmentSize))
	}
	return names
}

// IsSegmentName reports whether s is 24 upper case hexadecimal digits.
func IsSegmentName(s string) bool { return len(s) == 24 && isUpperHex(s) }

// IsPartialName reports whether s is a segment name followed by ".partial".
func IsPartialName(s string) bool {
	name, found := strings.CutSuffix(s, ".partial")
	return found && IsSegmentName(name)
}

// IsHistoryName reports whether s is the name of a timeline history file, "00000002.history".
func IsHistoryName(s string) bool {
	name, found := strings.CutSuffix(s, ".history")
	return found && len(name) == 8 && isUpperHex(name)
}

// IsBackupHistoryName reports whether s is the name of a backup history file, "000000010000000000000002.00000028.backup".
func IsBackupHistoryName(s string) bool {
	name, found := strings.CutSuffix(s, ".backup")
	return found && len(name) == 33 && name[24] == '.' && isUpperHex(name[:24]) && isUpperHex(name[25:])
}

func isUpperHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; !(c >= '0' && c <= '9' || c >= 'A' && c <= 'F') {
			return false
		}
	}
	return true
}

// WALHeader is the long header of a segment's first page.
type WALHeader struct {
	Magic       uint16
	Version     Version
	Timeline    uint32
	PageAddr    LSN // position of the segment's first byte
	SystemID    uint64
	SegmentSize uint32 // bytes
	PageSize    uint32 // of the WAL, bytes
}

const (
	walHeaderSize     = 40
	walLongHeaderFlag = 0x0002
)

// ParseWALHeader is ParseWALHeaderAs for PostgreSQL's own WAL.
func ParseWALHeader(b []byte) (WALHeader, error) { return ParseWALHeaderAs(b, 0) }

// ParseWALHeaderAs reads the first 40 bytes of a segment. It fails with *UnsupportedVersionError if the magic is none of
// the version table, and with a plain error if the header is short, is not flagged as long, or holds sizes and
// addresses that no segment can have. force (0: none) is the version that a fork is built on, whose own magic is then not
// looked up.
func ParseWALHeaderAs(b []byte, force Version) (WALHeader, error) {
	f := fields{b: b}
	h := WALHeader{
		Magic:       f.u16(0),
		Timeline:    f.u32(4),
		PageAddr:    LSN(f.u64(8)),
		SystemID:    f.u64(24),
		SegmentSize: f.u32(32),
		PageSize:    f.u32(36),
	}
	flags := f.u16(2)
	if f.short {
		return WALHeader{}, fmt.Errorf("WAL header has %d bytes, expected at least %d", len(b), walHeaderSize)
	}
	var err error
	if h.Version = force; force == 0 {
		if h.Version, err = versionOfMagic(h.Magic); err != nil {
			return WALHeader{}, fmt.Errorf("WAL header: %w", err)
		}
	}
	switch {
	case flags&walLongHeaderFlag == 0:
		return WALHeader{}, fmt.Errorf("WAL header: flags %04X lack the mark of a segment's first page", flags)
	case !ValidSegmentSize(h.SegmentSize):
		return WALHeader{}, fmt.Errorf("WAL header: segment size %d is not allowed", h.SegmentSize)
	case !powerOfTwoIn(h.PageSize, minPageSize, maxWALPageSize):
		return WALHeader{}, fmt.Errorf("WAL header: page size %d is not allowed", h.PageSize)
	case uint64(h.PageAddr)%uint64(h.SegmentSize) != 0:
		return WALHeader{}, fmt.Errorf("WAL header: page address %s is not the start of a segment of %d bytes", h.PageAddr, h.SegmentSize)
	}
	return h, nil
}
