package pg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
)

// relationSegmentSize is the size in bytes at which PostgreSQL splits a relation into files 12345, 12345.1, …
const relationSegmentSize = 1 << 30

// Offsets in a page header.
const (
	pageChecksumOffset = 8
	pageUpperOffset    = 14
)

// PageRange is an inclusive range of bad page numbers, counted from the start of the relation.
type PageRange struct{ First, Last uint32 }

// PageChecker verifies the pages of one relation segment as its bytes stream through Write. It buffers at most one
// page, and one more for reading again.
type PageChecker struct {
	pageSize  int
	firstPage uint32 // number of the file's first page in its relation
	pages     int64  // checked so far
	reread    func(offset int64, page []byte) (int, error)
	part      []byte // an incomplete page, from the end of the last Write
	again     []byte // buffer of reread
	sealed    bool   // IgnoreHeaders
	bad       []PageRange
}

// NewPageChecker checks a file with pages of pageSize bytes (1 to 32 KiB, a power of two, as Control.PageSize is; it
// panics on others). segmentNumber is that of PageSegmentNumber. reread, which may be nil, reads the page at offset of
// the same file again from disk: a page whose checksum is wrong and whose content changed since, or that was cut off,
// is being written at this moment, will be repaired by the WAL, and is accepted (format page, section 10).
func NewPageChecker(pageSize uint32, segmentNumber uint32, reread func(offset int64, page []byte) (int, error)) *PageChecker {
	if !powerOfTwoIn(pageSize, minPageSize, maxPageSize) {
		panic(fmt.Sprintf("pg: page size %d", pageSize))
	}
	return &PageChecker{
		pageSize:  int(pageSize),
		firstPage: segmentNumber * (relationSegmentSize / pageSize),
		reread:    reread,
	}
}

// IgnoreHeaders is for clusters that encrypt their pages, so that of a header only the checksum means anything: a page
// counts as never initialised when that is 0, not when its upper bound is. To be called before Write.
func (c *PageChecker) IgnoreHeaders() { c.sealed = true }

// Write checks the pages that p completes. It takes all of p, does not keep or change it, and never fails.
func (c *PageChecker) Write(p []byte) (int, error) {
	n := len(p)
	if len(c.part) > 0 {
		take := min(c.pageSize-len(c.part), len(p))
		c.part = append(c.part, p[:take]...)
		p = p[take:]
		if len(c.part) < c.pageSize {
			return n, nil
		}
		c.check(c.part)
		c.part = c.part[:0]
	}
	for ; len(p) >= c.pageSize; p = p[c.pageSize:] {
		c.check(p[:c.pageSize])
	}
	if len(p) > 0 {
		if c.part == nil {
			c.part = make([]byte, 0, c.pageSize)
		}
		c.part = append(c.part, p...)
	}
	return n, nil
}

func (c *PageChecker) check(page []byte) {
	number := c.firstPage + uint32(c.pages)
	if !c.valid(page, number) && !c.changedSince(page) {
		if n := len(c.bad); n > 0 && c.bad[n-1].Last+1 == number {
			c.bad[n-1].Last = number
		} else {
			c.bad = append(c.bad, PageRange{number, number})
		}
	}
	c.pages++
}

func (c *PageChecker) valid(page []byte, number uint32) bool {
	if !c.sealed {
		return PageValid(page, number)
	}
	sum := binary.LittleEndian.Uint16(page[pageChecksumOffset:])
	if sum == 0 { // no page has this checksum
		return allZero(page)
	}
	return PageChecksum(page, number) == sum
}

// changedSince reads the page at the current position again and reports whether it is another one by now. If that
// cannot be read, the page remains a bad one.
func (c *PageChecker) changedSince(page []byte) bool {
	if c.reread == nil {
		return false
	}
	if c.again == nil {
		c.again = make([]byte, c.pageSize)
	}
	n, err := c.reread(c.pages*int64(c.pageSize), c.again)
	switch {
	case err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return n < c.pageSize || !bytes.Equal(c.again, page)
	default:
		return errors.Is(err, fs.ErrNotExist) // dropped
	}
}

// Finish returns the bad ranges; aligned is false if the length was no multiple of the page size. Bytes after the last
// whole page are not in any range.
func (c *PageChecker) Finish() (bad []PageRange, aligned bool) { return c.bad, len(c.part) == 0 }

// PageSegmentNumber is the N of "12345.N", 0 without.
func PageSegmentNumber(fileName string) uint32 {
	dot := strings.LastIndexByte(fileName, '.')
	if dot < 0 {
		return 0
	}
	n, err := strconv.ParseUint(fileName[dot+1:], 10, 32)
	if err != nil {
		return 0 // the dot is part of some other name
	}
	return uint32(n)
}

// PageValid reports whether the checksum of a page fits its content and its number in the relation. A page that was
// never initialised (upper is 0) is valid if it is zero all over.
func PageValid(page []byte, number uint32) bool {
	if binary.LittleEndian.Uint16(page[pageUpperOffset:]) == 0 {
		return allZero(page)
	}
	return PageChecksum(page, number) == binary.LittleEndian.Uint16(page[pageChecksumOffset:])
}

var zeros [maxPageSize]byte

func allZero(b []byte) bool { return bytes.Equal(b, zeros[:len(b)]) }
