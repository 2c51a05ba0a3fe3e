package repo

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
)

// The container of archive.info, backup.info and backup.manifest (format page, section 4): sections of key=<JSON> lines
// with a checksum over a JSON-like rendering of themselves. The reader and the writer here know lines and the checksum;
// what the keys mean is the caller's.

const (
	backrestSection = "backrest"
	formatKey       = "backrest-format"
	versionKey      = "backrest-version"
	checksumKey     = "backrest-checksum"

	// maxLine bounds one line. The longest real ones list the damaged pages of a file: under 2 MiB.
	maxLine = 64 << 20

	// hashChunk is how many bytes are collected before they go to the hash and to the destination.
	hashChunk = 64 << 10
)

// iniHash computes the checksum of section 4.4 from keys and values in file order.
type iniHash struct {
	h       hash.Hash
	buf     []byte
	section string
	any     bool
	inner   bool // a key of the current section has been hashed
}

func newINIHash() *iniHash { return &iniHash{h: sha1.New()} }

// add hashes one key with its value exactly as it stands in the file.
func (h *iniHash) add(section string, key, value []byte) {
	if !h.any || section != h.section {
		if h.any {
			h.buf = append(h.buf, "},"...)
		} else {
			h.buf = append(h.buf, '{')
		}
		h.buf = append(h.buf, '"')
		h.buf = append(h.buf, section...)
		h.buf = append(h.buf, `":{`...)
		h.section, h.any, h.inner = section, true, false
	}
	if h.inner {
		h.buf = append(h.buf, ',')
	}
	h.inner = true
	h.buf = appendJSONString(h.buf, key)
	h.buf = append(h.buf, ':')
	h.buf = append(h.buf, value...)
	if len(h.buf) >= hashChunk {
		h.h.Write(h.buf)
		h.buf = h.buf[:0]
	}
}

// sum ends the text and returns the hash in hex. The receiver must not be used afterwards.
func (h *iniHash) sum() string {
	if !h.any {
		h.buf = append(h.buf, '{')
	}
	h.buf = append(h.buf, "}}"...)
	h.h.Write(h.buf)
	return hex.EncodeToString(h.h.Sum(nil))
}

// header is the first section, the same in every info file.
type header struct {
	version string
}

// readINI reads a whole info file, hands every key but those of [backrest] to each, and checks format number and
// checksum at the end. key and value are valid during the call only; value is valid JSON. An error of each is returned
// with section and key in front of it. Nothing read may be used when an error is returned.
//
// Errors: ErrFormat, ErrChecksum (wrong or missing), those of r.
func readINI(r io.Reader, each func(section string, key, value []byte) error) (header, error) {
	src := &stickyReader{r: r}
	sc := bufio.NewScanner(src)
	sc.Buffer(make([]byte, 0, hashChunk), maxLine)
	sc.Split(splitLines)
	rd := iniReader{sum: newINIHash(), each: each, seen: map[string]bool{}}
	for n := 1; sc.Scan(); n++ {
		if err := rd.line(sc.Bytes()); err != nil {
			if src.err != nil { // the line may be cut off by it
				return header{}, src.err
			}
			return header{}, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := sc.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			return header{}, fmt.Errorf("%w: a line is longer than %d bytes", ErrFormat, maxLine)
		}
		return header{}, err
	}
	return rd.finish()
}

// stickyReader keeps the error with which a reader broke off; the end is none.
type stickyReader struct {
	r   io.Reader
	err error
}

func (s *stickyReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// splitLines is a bufio.SplitFunc for \n alone: nothing is trimmed.
func splitLines(data []byte, atEOF bool) (advance int, token []byte, err error) {
	if i := bytes.IndexByte(data, '\n'); i >= 0 {
		return i + 1, data[:i], nil
	}
	if atEOF && len(data) > 0 {
		return len(data), data, nil
	}
	return 0, nil, nil
}

type iniReader struct {
	sum     *iniHash
	each    func(section string, key, value []byte) error
	section string
	inside  bool // a section header has been seen

	head     header
	seen     map[string]bool // keys of [backrest]
	checksum string
}

func (r *iniReader) line(line []byte) error {
	if len(line) == 0 {
		return nil
	}
	if line[0] == '[' && line[len(line)-1] == ']' {
		r.section, r.inside = string(line[1:len(line)-1]), true
		return nil
	}
	if !r.inside {
		return fmt.Errorf("%w: key/value found outside of a section", ErrFormat)
	}
	key, value, ok := splitKey(line)
	if !ok {
		return fmt.Errorf("%w: no key=value with a JSON value in [%.60s]: %.60q", ErrFormat, r.section, line)
	}
	if r.section == backrestSection {
		return r.backrest(string(key), value)
	}
	r.sum.add(r.section, key, value)
	if err := r.each(r.section, key, value); err != nil {
		return fmt.Errorf("[%s] %.200s: %w", r.section, key, err)
	}
	return nil
}

// backrest takes a key of the first or the last section.
func (r *iniReader) backrest(key string, value []byte) error {
	if r.seen[key] {
		return fmt.Errorf("%w: [%s] %.60s: key appears twice", ErrFormat, backrestSection, key)
	}
	r.seen[key] = true
	if key != checksumKey {
		r.sum.add(backrestSection, []byte(key), value)
	}
	j := jsonReader{b: value}
	switch key {
	case formatKey:
		if n := j.integer(0, 1<<31-1); j.err == nil && n != FormatNumber {
			return fmt.Errorf("%w: repository format is %d, this program reads %d", ErrFormat, n, FormatNumber)
		}
	case versionKey:
		r.head.version = string(j.str())
	case checksumKey:
		r.checksum = string(j.str())
	}
	if j.err != nil {
		return fmt.Errorf("[%s] %.60s: %w", backrestSection, key, j.err)
	}
	return nil
}

func (r *iniReader) finish() (header, error) {
	if r.checksum == "" {
		return header{}, fmt.Errorf("%w: no %s in the file; it may be cut off", ErrChecksum, checksumKey)
	}
	if sum := r.sum.sum(); sum != r.checksum {
		return header{}, fmt.Errorf("%w: content gives %s, the file says %.60s", ErrChecksum, sum, r.checksum)
	}
	if !r.seen[formatKey] {
		return header{}, fmt.Errorf("%w: no %s in the file", ErrFormat, formatKey)
	}
	if !r.seen[versionKey] {
		return header{}, fmt.Errorf("%w: no %s in the file", ErrFormat, versionKey)
	}
	return r.head, nil
}

// splitKey cuts a line at the first '=' behind which all is one JSON value: keys may contain '='.
func splitKey(line []byte) (key, value []byte, ok bool) {
	for from := 0; ; {
		i := bytes.IndexByte(line[from:], '=')
		if i < 0 {
			return nil, nil, false
		}
		i += from
		if validJSON(line[i+1:]) {
			return line[:i], line[i+1:], true
		}
		from = i + 1
	}
}

// iniWriter writes an info file. Sections and keys must come in byte order; the first error sticks and close returns it.
type iniWriter struct {
	w       io.Writer
	buf     []byte
	sum     *iniHash
	section string
	key     string // of the last line in section
	started bool
	err     error
}

// newINIWriter starts a file with its first [backrest] section.
func newINIWriter(w io.Writer, version string) *iniWriter {
	iw := &iniWriter{w: w, sum: newINIHash(), section: backrestSection}
	iw.integer(backrestSection, formatKey, FormatNumber)
	iw.str(backrestSection, versionKey, version)
	return iw
}

// put writes one line; value is JSON.
func (w *iniWriter) put(section, key string, value []byte) {
	if w.err != nil {
		return
	}
	first := !w.started || section != w.section
	switch {
	case first && w.started && w.section != backrestSection && section <= w.section,
		!first && key <= w.key:
		w.fail(section, key, "keys are not in order or appear twice")
		return
	case key == "" || bytes.ContainsAny([]byte(key), "\n\x00"):
		w.fail(section, key, "the format has no way to write this name")
		return
	}
	if first {
		w.header(section)
	}
	w.key = key
	start := len(w.buf)
	w.buf = append(w.buf, key...)
	w.buf = append(w.buf, '=')
	w.buf = append(w.buf, value...)
	w.checkSplit(section, key, start)
	w.buf = append(w.buf, '\n')
	w.sum.add(section, []byte(key), value)
	w.flush(hashChunk)
}

// checkSplit makes sure that a reader finds the end of a key which itself contains a '='.
func (w *iniWriter) checkSplit(section, key string, start int) {
	line := w.buf[start:]
	got := line[:len(key)]
	if bytes.IndexByte(got, '=') >= 0 {
		got, _, _ = splitKey(line)
	}
	if string(got) != key || (line[0] == '[' && line[len(line)-1] == ']') {
		w.fail(section, key, "the format has no way to write this name")
	}
}

func (w *iniWriter) header(section string) {
	if w.started {
		w.buf = append(w.buf, '\n')
	}
	w.buf = append(w.buf, '[')
	w.buf = append(w.buf, section...)
	w.buf = append(w.buf, "]\n"...)
	w.section, w.started = section, true
}

func (w *iniWriter) fail(section, key, what string) {
	if w.err == nil {
		w.err = fmt.Errorf("%w: [%s] %.200q: %s", ErrFormat, section, key, what)
	}
}

func (w *iniWriter) flush(limit int) {
	if w.err != nil || len(w.buf) < limit {
		return
	}
	_, w.err = w.w.Write(w.buf)
	w.buf = w.buf[:0]
}

func (w *iniWriter) str(section, key, value string) {
	w.put(section, key, appendJSONString(nil, []byte(value)))
}

// optional writes nothing for an empty string.
func (w *iniWriter) optional(section, key, value string) {
	if value != "" {
		w.str(section, key, value)
	}
}

func (w *iniWriter) integer(section, key string, value int64) {
	w.put(section, key, strconv.AppendInt(nil, value, 10))
}

func (w *iniWriter) boolean(section, key string, value bool) {
	w.put(section, key, strconv.AppendBool(nil, value))
}

// close writes the checksum and returns the first error of all calls.
func (w *iniWriter) close() error {
	if w.err != nil {
		return w.err
	}
	sum := w.sum.sum()
	w.header(backrestSection)
	w.buf = append(w.buf, checksumKey+`="`+sum+"\"\n"...)
	w.flush(0)
	return w.err
}
