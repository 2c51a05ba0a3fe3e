package repo

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// The JSON of info files (format page, sections 4.2 and 4.3) is not quite JSON: strings are bytes, with control
// characters raw, and numbers are integers, some of them above 2^53. It is also read a hundred thousand times for one
// manifest. Therefore this small reader and not encoding/json.

// maxDepth bounds nesting; real files need 2.
const maxDepth = 16

// validJSON reports whether b is exactly one value, white space around it allowed.
func validJSON(b []byte) bool {
	j := jsonReader{b: b}
	j.skip(0)
	j.space()
	return j.err == nil && j.pos == len(b)
}

// jsonReader reads values one after another; the first error sticks and everything after it returns zero.
type jsonReader struct {
	b   []byte
	pos int
	err error
}

var errJSON = errors.New("value is not of the expected form")

func (j *jsonReader) fail(what string) {
	if j.err == nil {
		j.err = fmt.Errorf("%w: %w: %s at byte %d", ErrFormat, errJSON, what, j.pos)
		j.pos = len(j.b)
	}
}

func (j *jsonReader) space() {
	for j.pos < len(j.b) {
		switch j.b[j.pos] {
		case ' ', '\t', '\r', '\n':
			j.pos++
		default:
			return
		}
	}
}

// peek returns the next byte that is no white space, 0 at the end.
func (j *jsonReader) peek() byte {
	j.space()
	if j.pos >= len(j.b) {
		return 0
	}
	return j.b[j.pos]
}

func (j *jsonReader) want(c byte) bool {
	if j.peek() != c || j.err != nil {
		j.fail("want " + strconv.Quote(string(c)))
		return false
	}
	j.pos++
	return true
}

// accept takes a word if it is next.
func (j *jsonReader) accept(word string) bool {
	j.space()
	if j.err == nil && len(j.b)-j.pos >= len(word) && string(j.b[j.pos:j.pos+len(word)]) == word {
		j.pos += len(word)
		return true
	}
	return false
}

func (j *jsonReader) boolean() bool {
	if j.accept("true") {
		return true
	}
	if !j.accept("false") {
		j.fail("want true or false")
	}
	return false
}

// digits returns the bytes of an integer.
func (j *jsonReader) digits() []byte {
	j.space()
	start := j.pos
	if j.pos < len(j.b) && j.b[j.pos] == '-' {
		j.pos++
	}
	first := j.pos
	for j.pos < len(j.b) && j.b[j.pos] >= '0' && j.b[j.pos] <= '9' {
		j.pos++
	}
	if j.err != nil || j.pos == first {
		j.fail("want an integer")
		return nil
	}
	return j.b[start:j.pos]
}

// integer reads an integer between low and high.
func (j *jsonReader) integer(low, high int64) int64 {
	d := j.digits()
	if j.err != nil {
		return 0
	}
	n, err := strconv.ParseInt(string(d), 10, 64)
	if err != nil || n < low || n > high {
		j.fail(fmt.Sprintf("%.30s is not between %d and %d", d, low, high))
		return 0
	}
	return n
}

// size reads a number of bytes, or anything else that is not negative.
func (j *jsonReader) size() int64 { return j.integer(0, math.MaxInt64) }

// unsigned reads a system identifier, which uses all 64 bits.
func (j *jsonReader) unsigned() uint64 {
	d := j.digits()
	if j.err != nil {
		return 0
	}
	n, err := strconv.ParseUint(string(d), 10, 64)
	if err != nil {
		j.fail(fmt.Sprintf("%.30s is not between 0 and %d", d, uint64(math.MaxUint64)))
	}
	return n
}

// str reads a string. The result points into the input unless there were escapes.
func (j *jsonReader) str() []byte {
	if !j.want('"') {
		return nil
	}
	rest := j.b[j.pos:]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		j.fail("string does not end")
		return nil
	}
	if bytes.IndexByte(rest[:end], '\\') < 0 {
		j.pos += end + 1
		return rest[:end]
	}
	return j.escaped()
}

// escaped reads the rest of a string that has escapes.
func (j *jsonReader) escaped() []byte {
	var out []byte
	for j.pos < len(j.b) {
		c := j.b[j.pos]
		j.pos++
		switch c {
		case '"':
			if out == nil {
				out = []byte{}
			}
			return out
		case '\\':
			out = j.escape(out)
		default:
			out = append(out, c)
		}
	}
	j.fail("string does not end")
	return nil
}

// escape reads what follows a backslash. \u is known for the first 256 code points only, as in the original.
func (j *jsonReader) escape(out []byte) []byte {
	if j.pos >= len(j.b) {
		j.fail("string does not end")
		return out
	}
	c := j.b[j.pos]
	j.pos++
	switch c {
	case '"', '\\', '/':
		return append(out, c)
	case 'n':
		return append(out, '\n')
	case 'r':
		return append(out, '\r')
	case 't':
		return append(out, '\t')
	case 'b':
		return append(out, '\b')
	case 'f':
		return append(out, '\f')
	case 'u':
		if len(j.b)-j.pos >= 4 {
			if n, err := strconv.ParseUint(string(j.b[j.pos:j.pos+4]), 16, 8); err == nil {
				j.pos += 4
				return utf8.AppendRune(out, rune(n))
			}
		}
	}
	j.fail("unknown escape")
	return out
}

// nullable reads a string or null, which gives "".
func (j *jsonReader) nullable() string {
	if j.accept("null") {
		return ""
	}
	return string(j.str())
}

// ident reads a user or group: a string, or false for an id without a name, which gives "".
func (j *jsonReader) ident() []byte {
	if j.accept("false") {
		return nil
	}
	name := j.str()
	if j.err == nil && len(name) == 0 {
		j.fail("want a name or false")
	}
	return name
}

// hash reads a SHA-1 in hex.
func (j *jsonReader) hash() []byte {
	s := j.str()
	if j.err == nil && !isSHA1(string(s)) {
		j.fail("want 40 hex digits")
	}
	return s
}

// object reads an object: each key goes to member, which reads the value or calls skip. A key that appears twice is an
// error. The original wants keys in byte order; any order is accepted here.
func (j *jsonReader) object(member func(key []byte)) {
	if !j.want('{') {
		return
	}
	if j.peek() == '}' {
		j.pos++
		return
	}
	var last []byte
	var all map[string]bool // made only when keys are not in order
	for start := j.pos; j.err == nil; {
		key := j.str()
		j.want(':')
		if j.err != nil {
			return
		}
		if all == nil && last != nil && bytes.Compare(key, last) <= 0 {
			all = j.keysBefore(start)
		}
		if all != nil {
			if all[string(key)] {
				j.fail(fmt.Sprintf("key %.60q appears twice", key))
				return
			}
			all[string(key)] = true
		}
		last = key
		member(key)
		if j.peek() == ',' {
			j.pos++
			continue
		}
		j.want('}')
		return
	}
}

// keysBefore collects the keys of an object from start to the current one.
func (j *jsonReader) keysBefore(start int) map[string]bool {
	all := map[string]bool{}
	k := jsonReader{b: j.b[:j.pos], pos: start}
	for k.pos < j.pos {
		key := k.str()
		k.want(':')
		if k.err != nil || k.pos >= j.pos {
			break
		}
		all[string(key)] = true
		k.skip(0)
		k.want(',')
	}
	return all
}

// array reads an array; element reads each value.
func (j *jsonReader) array(element func()) {
	if !j.want('[') {
		return
	}
	if j.peek() == ']' {
		j.pos++
		return
	}
	for j.err == nil {
		element()
		if j.peek() == ',' {
			j.pos++
			continue
		}
		j.want(']')
		return
	}
}

// skip reads one value of any kind.
func (j *jsonReader) skip(depth int) {
	if depth > maxDepth {
		j.fail("nested too deep")
		return
	}
	switch c := j.peek(); {
	case c == '{':
		j.pos++
		j.skipList(depth, '}')
	case c == '[':
		j.pos++
		j.skipList(depth, ']')
	case c == '"':
		j.str()
	case c == '-' || c >= '0' && c <= '9':
		j.digits()
	case c == 't' && j.accept("true"), c == 'f' && j.accept("false"), c == 'n' && j.accept("null"):
	default:
		j.fail("want a value")
	}
}

func (j *jsonReader) skipList(depth int, end byte) {
	if j.peek() == end {
		j.pos++
		return
	}
	for j.err == nil {
		if end == '}' {
			j.str()
			j.want(':')
		}
		j.skip(depth + 1)
		if j.peek() == ',' {
			j.pos++
			continue
		}
		j.want(end)
		return
	}
}

// done returns the first error, and one when something follows the value.
func (j *jsonReader) done() error {
	j.space()
	if j.err == nil && j.pos != len(j.b) {
		j.fail("text after the value")
	}
	return j.err
}

// appendJSONString writes s as the original does: only what must be is escaped, everything else stays raw.
func appendJSONString(dst, s []byte) []byte {
	dst = append(dst, '"')
	start := 0
	for i, c := range s {
		var esc byte
		switch c {
		case '"', '\\':
			esc = c
		case '\n':
			esc = 'n'
		case '\r':
			esc = 'r'
		case '\t':
			esc = 't'
		case '\b':
			esc = 'b'
		case '\f':
			esc = 'f'
		default:
			continue
		}
		dst = append(dst, s[start:i]...)
		dst = append(dst, '\\', esc)
		start = i + 1
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}
