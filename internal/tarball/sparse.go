package tarball

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	minHole     = 64 << 10 // shorter holes are written as zeros
	maxSegments = 10000    // of data in one file; its map must stay far below 1 MiB, which readers allow
)

// segment is a range of a file that holds data.
type segment struct{ off, len int64 }

// dataSegments returns where a file of size bytes has data, or nil if it has no hole worth it. The file may change
// meanwhile: the segments are inside size and in order, whatever happens.
func dataSegments(f *os.File, size int64) ([]segment, error) {
	var list []segment
	hole := int64(minHole)
	fd := int(f.Fd())
	for off := int64(0); off < size; {
		data, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			if errors.Is(err, unix.EINVAL) && off == 0 {
				return nil, nil // the file system does not tell holes
			}
			return nil, fmt.Errorf("find data: %w", err)
		}
		end, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		if errors.Is(err, unix.ENXIO) {
			break // truncated meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("find hole: %w", err)
		}
		if end = min(end, size); data >= end {
			break
		}
		off = end
		list = append(list, segment{data, end - data})
		if list = joinLast(list, hole); len(list) > maxSegments {
			for len(list) > maxSegments/2 {
				hole *= 2
				list = joinAll(list, hole)
			}
		}
	}
	if len(list) == 1 && list[0].len+minHole > size {
		return nil, nil
	}
	if len(list) == 0 && size < minHole {
		return nil, nil
	}
	if last := len(list) - 1; last < 0 || list[last].off+list[last].len < size {
		list = append(list, segment{size, 0}) // GNU tar sets the size by it
	}
	return list, nil
}

// joinLast makes one of the last two segments if the hole between them is too short.
func joinLast(list []segment, hole int64) []segment {
	n := len(list)
	if n == 1 && list[0].off < hole {
		list[0] = segment{0, list[0].off + list[0].len}
	}
	if n < 2 || list[n-1].off-(list[n-2].off+list[n-2].len) >= hole {
		return list
	}
	list[n-2].len = list[n-1].off + list[n-1].len - list[n-2].off
	return list[:n-1]
}

func joinAll(list []segment, hole int64) []segment {
	out := list[:0:0]
	for _, s := range list {
		out = joinLast(append(out, s), hole)
	}
	return out
}

// addSparse adds a member with holes, in GNU sparse format 1.0, which archive/tar reads but does not write. The content read
// from r is that of the segments only, one after the other.
func (w *Writer) addSparse(h *tar.Header, k kind, segs []segment, r io.Reader) error {
	var m bytes.Buffer
	fmt.Fprintf(&m, "%d\n", len(segs))
	data := int64(0)
	for _, s := range segs {
		fmt.Fprintf(&m, "%d\n%d\n", s.off, s.len)
		data += s.len
	}
	pad(&m)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.begin(h.Name, data, k); err != nil {
		return err
	}
	head, err := sparseHeader(h, int64(m.Len())+data)
	if err != nil {
		return w.fail(h.Name, err)
	}
	if _, err := w.gz.Write(append(head, m.Bytes()...)); err != nil {
		return w.fail(h.Name, err)
	}
	if err := copyExactly(&w.gz, r, data); err != nil {
		return w.fail(h.Name, err)
	}
	if n := data % blockSize; n > 0 {
		if _, err := w.gz.Write(make([]byte, blockSize-n)); err != nil {
			return w.fail(h.Name, err)
		}
	}
	return nil
}

// sparseHeader returns the extended header and the header of a sparse member (GNU tar manual, "Storing Sparse Files, PAX
// Format, Version 1.0"; POSIX.1-2001, pax, "ustar Interchange Format").
func sparseHeader(h *tar.Header, size int64) ([]byte, error) {
	records := map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0",
		"GNU.sparse.name": h.Name, "GNU.sparse.realsize": strconv.FormatInt(h.Size, 10),
		"mtime": paxTime(stamp{h.ModTime.Unix(), int64(h.ModTime.Nanosecond())}),
		"uid":   strconv.Itoa(h.Uid), "gid": strconv.Itoa(h.Gid),
		"size": strconv.FormatInt(size, 10),
	}
	if h.Uname != "" {
		records["uname"] = h.Uname
	}
	if h.Gname != "" {
		records["gname"] = h.Gname
	}
	for k, v := range h.PAXRecords {
		records[k] = v
	}
	keys := make([]string, 0, len(records))
	for k := range records {
		if strings.ContainsAny(k, "=\x00") {
			return nil, fmt.Errorf("record %q cannot stand in an extended header", k)
		}
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var ext bytes.Buffer
	for _, k := range keys {
		ext.WriteString(paxRecord(k, records[k]))
	}
	length := int64(ext.Len())
	pad(&ext)
	short := path.Base(h.Name)
	short = strings.ToValidUTF8(short[:min(len(short), 60)], "_")
	var out bytes.Buffer
	out.Write(ustarHeader("PaxHeaders.0/"+short, 'x', 0o644, length, 0))
	out.Write(ext.Bytes())
	out.Write(ustarHeader("GNUSparseFile.0/"+short, '0', h.Mode, size, h.ModTime.Unix()))
	return out.Bytes(), nil
}

// ustarHeader returns a header block. Numbers that do not fit are left out: the extended header has them.
func ustarHeader(name string, flag byte, mode, size, mtime int64) []byte {
	b := make([]byte, blockSize)
	copy(b[0:100], name)
	octal := func(from, to int, v int64) {
		s := strconv.FormatInt(v, 8)
		if v < 0 || len(s) > to-from-1 {
			s = "0"
		}
		copy(b[from:to], strings.Repeat("0", to-from-1-len(s))+s)
	}
	octal(100, 108, mode&0o7777)
	octal(108, 116, 0)
	octal(116, 124, 0)
	octal(124, 136, size)
	octal(136, 148, mtime)
	copy(b[148:156], "        ")
	b[156] = flag
	copy(b[257:265], "ustar\x0000")
	octal(329, 337, 0)
	octal(337, 345, 0)
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
	return b
}

// paxRecord returns "length key=value\n", where length counts itself.
func paxRecord(key, value string) string {
	rest := len(key) + len(value) + 3
	n := rest + len(strconv.Itoa(rest))
	if rest+len(strconv.Itoa(n)) != n {
		n = rest + len(strconv.Itoa(n))
	}
	return strconv.Itoa(n) + " " + key + "=" + value + "\n"
}

// paxTime returns seconds with nine decimals, also before 1970.
func paxTime(t stamp) string {
	sec, nsec, sign := t[0], t[1], ""
	if sec < 0 {
		sign = "-"
		sec = -sec
		if nsec > 0 {
			sec, nsec = sec-1, 1e9-nsec
		}
	}
	return fmt.Sprintf("%s%d.%09d", sign, sec, nsec)
}

func pad(b *bytes.Buffer) {
	if n := b.Len() % blockSize; n > 0 {
		b.Write(make([]byte, blockSize-n))
	}
}
