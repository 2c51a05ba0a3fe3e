package world

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sys/unix"
)

// Proof is the content of an application in hashes: two equal proofs are two equal applications.
type Proof struct {
	Rows   map[string]string // table (of the second cluster: lineage:table) → count and hash of every row
	Files  map[string]string // path below Files → kind, mode, owner, times, attributes, links, holes, SHA-256
	Events map[string]string // topic/partition → count and hash of every record with key, headers and time
	Groups map[string]string // group of topic/partition → how many records it has read, and what it noted with it
}

// Prove reads everything.
func (w *World) Prove(ctx context.Context) (*Proof, error) {
	p := &Proof{Rows: map[string]string{}, Files: map[string]string{}, Events: map[string]string{}, Groups: map[string]string{}}
	if err := w.proveRows(ctx, p); err != nil {
		return nil, err
	}
	if w.Lineage != nil {
		rows, err := w.Lineage.Rows(ctx)
		if err != nil {
			return nil, err
		}
		for table, sum := range rows {
			p.Rows[LineageStanza+":"+table] = sum
		}
	}
	if err := w.proveFiles(p); err != nil {
		return nil, err
	}
	if len(w.o.Brokers) > 0 {
		return p, w.proveEvents(ctx, p)
	}
	return p, nil
}

func (w *World) proveRows(ctx context.Context, p *Proof) error {
	c, err := w.DB(ctx)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	rows, err := c.Query(ctx, "select quote_ident(schemaname)||'.'||quote_ident(tablename) from pg_tables where schemaname not in ('pg_catalog','information_schema') order by 1")
	if err != nil {
		return err
	}
	var tables []string
	for rows.Next() {
		var t string
		if err := rows.Scan(&t); err != nil {
			return err
		}
		tables = append(tables, t)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, t := range tables {
		var sum string
		if err := c.QueryRow(ctx, "select count(*)||' rows, '||coalesce(md5(string_agg(md5(x::text), '' order by md5(x::text))),'-') from "+t+" x").Scan(&sum); err != nil {
			return fmt.Errorf("%s: %w", t, err)
		}
		p.Rows[t] = sum
	}
	return nil
}

func (w *World) proveFiles(p *Proof) error {
	first := map[[2]uint64]string{} // device and inode → the first name that a file with several was met under
	return filepath.WalkDir(w.Files, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(w.Files, path)
		if err != nil {
			return err
		}
		info, err := os.Lstat(path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		what, err := content(path, info, st)
		if err != nil {
			return err
		}
		if !info.IsDir() && st.Nlink > 1 {
			id := [2]uint64{st.Dev, st.Ino}
			if first[id] == "" {
				first[id] = rel
			}
			what += fmt.Sprintf(", the file %q under one of %d names", first[id], st.Nlink)
		}
		attrs, err := attributes(path)
		p.Files[rel] = fmt.Sprintf("%s of %d:%d, %s, %s%s", info.Mode(), st.Uid, st.Gid, info.ModTime().UTC().Format("2006-01-02T15:04:05.999999999"), what, attrs)
		return err
	})
}

// content is what an object holds: its bytes and its holes, or where it points to.
func content(path string, info fs.FileInfo, st *syscall.Stat_t) (string, error) {
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(path)
		return "link to " + target, err
	case !info.Mode().IsRegular():
		return "no content", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	text := fmt.Sprintf("%d bytes, %s", n, hex.EncodeToString(h.Sum(nil)[:16]))
	if allocated := st.Blocks * 512; allocated < n { // a file without holes may be allocated in more ways than one
		text += fmt.Sprintf(", with holes: %d bytes on disk", allocated)
	}
	return text, err
}

// attributes are the extended attributes that are an application's own.
func attributes(path string) (string, error) {
	buf := make([]byte, 64<<10) // no list and no value is longer (xattr(7))
	n, err := unix.Llistxattr(path, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("list attributes of %s: %w", path, err)
	}
	var out strings.Builder
	for _, name := range slices.Sorted(strings.SplitSeq(string(buf[:n]), "\x00")) {
		if !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "system.posix_acl_") && name != "security.capability" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("read attribute %s of %s: %w", name, path, err)
		}
		fmt.Fprintf(&out, ", %s=%x", name, value[:n])
	}
	return out.String(), nil
}

func (w *World) proveEvents(ctx context.Context, p *Proof) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.o.Brokers...))
	if err != nil {
		return err
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	starts, err := adm.ListStartOffsets(ctx)
	if err != nil {
		return err
	}
	ends, err := adm.ListEndOffsets(ctx)
	if err != nil {
		return err
	}
	groups, err := committed(ctx, adm)
	if err != nil {
		return err
	}
	for topic, parts := range ends {
		if strings.HasPrefix(topic, "__") {
			continue
		}
		for n, end := range parts {
			if end.Err != nil {
				return end.Err
			}
			start, _ := starts.Lookup(topic, n)
			sum, offsets, err := w.hashPartition(ctx, topic, n, start.Offset, end.Offset)
			if err != nil {
				return err
			}
			part := fmt.Sprintf("%s/%d", topic, n)
			p.Events[part] = sum
			for _, g := range groups {
				if at, ok := g.Fetched.Lookup(topic, n); ok && at.At >= 0 {
					// A restored record may have another offset; the record where the group goes on must be the same.
					read, _ := slices.BinarySearch(offsets, at.At)
					p.Groups[g.Group+" of "+part] = fmt.Sprintf("%d records read, note %q", read, at.Metadata)
				}
			}
		}
	}
	return nil
}

// committed are the positions of every consumer group.
func committed(ctx context.Context, adm *kadm.Client) (kadm.FetchOffsetsResponses, error) {
	listed, err := adm.ListGroups(ctx)
	if err != nil {
		return nil, err
	}
	all := adm.FetchManyOffsets(ctx, listed.Groups()...)
	return all, all.Error()
}

// hashPartition returns the hash of the records and the offset of each.
func (w *World) hashPartition(ctx context.Context, topic string, n int32, start, end int64) (sum string, offsets []int64, err error) {
	h := sha256.New()
	err = w.EachRecord(ctx, topic, n, start, end, func(r *kgo.Record) {
		offsets = append(offsets, r.Offset)
		field := func(b []byte) {
			size := int64(-1)
			if b != nil {
				size = int64(len(b))
			}
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(size)))
			h.Write(b)
		}
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(r.Timestamp.UnixMilli())))
		field(r.Key)
		field(r.Value)
		for _, hd := range r.Headers {
			field([]byte(hd.Key))
			field(hd.Value)
		}
	})
	return fmt.Sprintf("%d records, %s", len(offsets), hex.EncodeToString(h.Sum(nil)[:16])), offsets, err
}

// EachRecord reads one partition from start up to the offset end.
func (w *World) EachRecord(ctx context.Context, topic string, n int32, start, end int64, each func(*kgo.Record)) error {
	if start >= end {
		return nil
	}
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.o.Brokers...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {n: kgo.NewOffset().At(start)}}))
	if err != nil {
		return err
	}
	defer cl.Close()
	for next := start; next < end; {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("read %s/%d: %w", topic, n, err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			if r.Offset < end {
				each(r)
			}
			next = r.Offset + 1
		})
	}
	return nil
}

// Diff names what differs; empty means equal.
func (p *Proof) Diff(q *Proof) []string {
	var out []string
	for _, part := range []struct {
		name string
		a, b map[string]string
	}{{"table", p.Rows, q.Rows}, {"file", p.Files, q.Files}, {"partition", p.Events, q.Events}, {"group", p.Groups, q.Groups}} {
		keys := map[string]bool{}
		for k := range part.a {
			keys[k] = true
		}
		for k := range part.b {
			keys[k] = true
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			if part.a[k] != part.b[k] {
				out = append(out, fmt.Sprintf("%s %s: %q, %q", part.name, k, part.a[k], part.b[k]))
			}
		}
	}
	return out
}
