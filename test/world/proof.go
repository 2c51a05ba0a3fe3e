package world

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Proof is the content of an application in hashes: two equal proofs are two equal applications.
type Proof struct {
	Rows   map[string]string // table → count and hash of every row
	Files  map[string]string // path below Files → mode, size, SHA-256
	Events map[string]string // topic/partition → count and hash of every record with key, headers and time
}

// Prove reads everything.
func (w *World) Prove(ctx context.Context) (*Proof, error) {
	p := &Proof{Rows: map[string]string{}, Files: map[string]string{}, Events: map[string]string{}}
	if err := w.proveRows(ctx, p); err != nil {
		return nil, err
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
	return filepath.WalkDir(w.Files, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(w.Files, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			p.Files[rel] = "link to " + target
			return err
		case d.IsDir():
			p.Files[rel] = info.Mode().String()
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		h := sha256.New()
		n, err := io.Copy(h, f)
		p.Files[rel] = fmt.Sprintf("%s %d bytes, %s, %s", info.Mode(), n, hex.EncodeToString(h.Sum(nil)), info.ModTime().UTC().Format("2006-01-02T15:04:05.999999999"))
		return err
	})
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
	for topic, parts := range ends {
		if strings.HasPrefix(topic, "__") {
			continue
		}
		for n, end := range parts {
			if end.Err != nil {
				return end.Err
			}
			start, _ := starts.Lookup(topic, n)
			sum, err := w.hashPartition(ctx, topic, n, start.Offset, end.Offset)
			if err != nil {
				return err
			}
			p.Events[fmt.Sprintf("%s/%d", topic, n)] = sum
		}
	}
	return nil
}

func (w *World) hashPartition(ctx context.Context, topic string, n int32, start, end int64) (string, error) {
	h, count := sha256.New(), 0
	err := w.EachRecord(ctx, topic, n, start, end, func(r *kgo.Record) {
		count++
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
	return fmt.Sprintf("%d records, %s", count, hex.EncodeToString(h.Sum(nil)[:16])), err
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
	}{{"table", p.Rows, q.Rows}, {"file", p.Files, q.Files}, {"partition", p.Events, q.Events}} {
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
