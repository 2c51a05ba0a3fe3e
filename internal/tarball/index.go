package tarball

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"unicode/utf8"
)

const (
	indexFormat  = "holdfast-files-index"
	indexVersion = 1
	maxIndexLine = 8 << 20 // bytes: a path, a link target and 1 MiB of xattrs, in base64
)

// The types of an Entry.
const (
	typeDir      = "dir"
	typeFile     = "file"
	typeHardlink = "hardlink" // Link: the path, in the same tree, of the entry before it that has the content
	typeSymlink  = "symlink"
	typeFifo     = "fifo"
)

// rawString is a string of any bytes. As JSON it is a string where it is valid UTF-8, else {"b64":"…"}.
type rawString string

type rawBytes struct {
	B64 []byte `json:"b64"`
}

func (s rawString) MarshalJSON() ([]byte, error) {
	if utf8.ValidString(string(s)) {
		return json.Marshal(string(s))
	}
	return json.Marshal(rawBytes{[]byte(s)})
}

func (s *rawString) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		var raw rawBytes
		if err := json.Unmarshal(b, &raw); err != nil {
			return err
		}
		*s = rawString(raw.B64)
		return nil
	}
	return json.Unmarshal(b, (*string)(s))
}

// stamp is a time as seconds since 1970 and nanoseconds: file systems hold years that do not fit 64 bits of nanoseconds.
type stamp [2]int64

// xattr is an extended attribute.
type xattr struct {
	Name  rawString `json:"name"`
	Value []byte    `json:"value"`
}

// entry is a line of the index: one path of one tree.
type entry struct {
	Tree   string    `json:"tree"`
	Path   rawString `json:"path"` // relative to the tree, "" is the tree's own directory
	Type   string    `json:"type"`
	Mode   uint32    `json:"mode"` // twelve permission bits
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	User   string    `json:"user,omitempty"`
	Group  string    `json:"group,omitempty"`
	Size   int64     `json:"size,omitempty"`
	MTime  stamp     `json:"mtime"`
	CTime  stamp     `json:"ctime"`
	Dev    uint64    `json:"dev"`
	Inode  uint64    `json:"inode"`
	SHA256 string    `json:"sha256,omitempty"` // of the whole content, holes as zeros
	Link   rawString `json:"link,omitempty"`
	Xattrs []xattr   `json:"xattrs,omitempty"`

	Sparse       bool  `json:"sparse,omitempty"`
	Skipped      bool  `json:"skipped,omitempty"`      // a directory that was not entered
	Inconsistent bool  `json:"inconsistent,omitempty"` // changed during every attempt to read it
	Read         stamp `json:"read,omitzero"`          // when reading the content began
}

// indexLine is any line: header, entry or end.
type indexLine struct {
	Format  string   `json:"format,omitempty"`
	Version int      `json:"version,omitempty"`
	Trees   []string `json:"trees,omitempty"`
	End     bool     `json:"end,omitempty"`
	Entries int64    `json:"entries,omitempty"`
	entry
}

type indexHeader struct {
	Format  string   `json:"format"`
	Version int      `json:"version"`
	Trees   []string `json:"trees"`
}

type indexEnd struct {
	End     bool  `json:"end"`
	Entries int64 `json:"entries"`
}

// indexWriter writes an index, counting and hashing it.
type indexWriter struct {
	buf     *bufio.Writer
	enc     *json.Encoder
	sum     *sumWriter
	entries int64
}

func newIndexWriter(w io.Writer, trees []string) (*indexWriter, error) {
	sum := &sumWriter{w: w, h: sha256.New()}
	buf := bufio.NewWriterSize(sum, 64<<10)
	x := &indexWriter{buf: buf, sum: sum, enc: json.NewEncoder(buf)}
	x.enc.SetEscapeHTML(false)
	return x, x.enc.Encode(indexHeader{indexFormat, indexVersion, trees})
}

func (x *indexWriter) add(e *entry) error {
	x.entries++
	return x.enc.Encode(e)
}

// close writes the end; it does not close the writer below.
func (x *indexWriter) close() error {
	if err := x.enc.Encode(indexEnd{true, x.entries}); err != nil {
		return err
	}
	return x.buf.Flush()
}

// indexReader reads an index, one entry ahead, and trusts nothing in it.
type indexReader struct {
	r       *bufio.Reader
	h       hash.Hash
	trees   []string
	next    *entry // nil: at the end
	tree    int    // of next
	entries int64
	line    []byte
}

func newIndexReader(r io.Reader) (*indexReader, error) {
	h := sha256.New()
	x := &indexReader{r: bufio.NewReaderSize(io.TeeReader(r, h), 64<<10), h: h, tree: -1}
	var l indexHeader
	if err := x.decode(&l); err != nil {
		return nil, err
	}
	if l.Format != indexFormat || l.Version != indexVersion {
		return nil, fmt.Errorf("index of files: format %q version %d is not known; this program reads %q version %d",
			l.Format, l.Version, indexFormat, indexVersion)
	}
	for i, t := range l.Trees {
		if err := checkTreeName(t); err != nil {
			return nil, fmt.Errorf("index of files: %w", err)
		}
		if slices.Contains(l.Trees[:i], t) {
			return nil, fmt.Errorf("index of files: %w: tree %q twice", ErrDamaged, t)
		}
	}
	x.trees = l.Trees
	return x, x.advance()
}

// sha256hex is that of the whole index; it is right at its end only.
func (x *indexReader) sha256hex() string { return hex.EncodeToString(x.h.Sum(nil)) }

// decode reads one line of at most maxIndexLine bytes into v.
func (x *indexReader) decode(v any) error {
	x.line = x.line[:0]
	for {
		part, err := x.r.ReadSlice('\n')
		x.line = append(x.line, part...)
		if len(x.line) > maxIndexLine {
			return fmt.Errorf("index of files: %w: line %d is longer than %d bytes", ErrDamaged, x.entries+2, maxIndexLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if errors.Is(err, io.EOF) {
			return fmt.Errorf("index of files: %w: it ends after %d entries without its end line", ErrDamaged, x.entries)
		}
		if err != nil {
			return fmt.Errorf("read index of files: %w", err)
		}
		break
	}
	if err := json.Unmarshal(x.line, v); err != nil {
		return fmt.Errorf("index of files: %w: entry %d: %w", ErrDamaged, x.entries+1, err)
	}
	return nil
}

// advance reads the next entry, or the end.
func (x *indexReader) advance() error {
	var l indexLine
	if err := x.decode(&l); err != nil {
		return err
	}
	if l.End {
		x.next = nil
		if l.Entries != x.entries {
			return fmt.Errorf("index of files: %w: %d entries, its end line says %d", ErrDamaged, x.entries, l.Entries)
		}
		if _, err := x.r.ReadByte(); !errors.Is(err, io.EOF) {
			if err != nil {
				return fmt.Errorf("read index of files: %w", err)
			}
			return fmt.Errorf("index of files: %w: it goes on after its end line", ErrDamaged)
		}
		return nil
	}
	e := l.entry
	tree := slices.Index(x.trees, e.Tree)
	if tree < 0 {
		return fmt.Errorf("index of files: %w: entry %d names the unknown tree %q", ErrDamaged, x.entries+1, e.Tree)
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("index of files: entry %d (%q): %w", x.entries+1, memberName(e.Tree, string(e.Path)), err)
	}
	if tree < x.tree || (tree == x.tree && x.next != nil && comparePaths(string(e.Path), string(x.next.Path)) <= 0) {
		return fmt.Errorf("index of files: %w: entry %d (%q) is out of order", ErrDamaged, x.entries+1, memberName(e.Tree, string(e.Path)))
	}
	x.entries++
	x.next, x.tree = &e, tree
	return nil
}

// check refuses what no capture writes.
func (e *entry) check() error {
	if e.Path != "" {
		if err := checkName(string(e.Path)); err != nil {
			return err
		}
	} else if e.Type != typeDir {
		return fmt.Errorf("%w: a tree must be a directory, not %q", ErrDamaged, e.Type)
	}
	if e.Mode&^0o7777 != 0 || e.Size < 0 {
		return fmt.Errorf("%w: mode %o, size %d", ErrDamaged, e.Mode, e.Size)
	}
	switch e.Type {
	case typeDir, typeFifo:
	case typeFile:
		if b, err := hex.DecodeString(e.SHA256); err != nil || len(b) != sha256.Size {
			return fmt.Errorf("%w: sha256 %q", ErrDamaged, e.SHA256)
		}
	case typeHardlink:
		if err := checkName(string(e.Link)); err != nil {
			return fmt.Errorf("hard link: %w", err)
		}
		if comparePaths(string(e.Link), string(e.Path)) >= 0 {
			return fmt.Errorf("%w: hard link to %q, which is not before it", ErrDamaged, e.Link)
		}
	case typeSymlink:
		if e.Link == "" || len(e.Link) > maxName || bytes.IndexByte([]byte(e.Link), 0) >= 0 {
			return fmt.Errorf("%w: target of symbolic link is empty, too long or holds a zero byte", ErrDamaged)
		}
	default:
		return fmt.Errorf("%w: type %q", ErrDamaged, e.Type)
	}
	return nil
}
