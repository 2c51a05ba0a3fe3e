package engine_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"iter"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	objects "holdfast/internal/storage/bucket"
)

// far is a bucket in memory whose every request takes one way there and back. In a bubble of package synctest time goes on only
// when everybody waits, so that what a verb takes is how many such ways it waits for one after the other, whatever the machine.
type far struct {
	*storage.Mem
	asked *atomic.Int64
}

const there = 30 * time.Millisecond

func (f far) wait() {
	f.asked.Add(1)
	time.Sleep(there)
}

func (f far) Stat(ctx context.Context, name string) (objects.Object, error) {
	f.wait()
	in, err := f.Mem.Stat(ctx, name)
	return objects.Object{Size: in.Size, Time: in.ModTime}, err
}

func (f far) Get(ctx context.Context, name string, offset, length int64) (objects.Answer, error) {
	f.wait()
	b, err := storage.ReadAll(ctx, f.Mem, name, 1<<30)
	if err != nil {
		return objects.Answer{}, err
	}
	size := int64(len(b))
	if offset > 0 && offset >= size {
		return objects.Answer{}, objects.ErrRange
	}
	end := size
	if length > 0 {
		end = min(size, offset+length)
	}
	sum := crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli))
	return objects.Answer{Body: io.NopCloser(bytes.NewReader(b[offset:end])), Total: size, CRC: []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)}}, nil
}

func (f far) List(ctx context.Context, prefix string, level bool) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		f.wait()
		var all []storage.Info
		for in, err := range f.Mem.List(ctx, "", storage.ListOptions{Recursive: true}) {
			if err != nil {
				yield(in, err)
				return
			}
			rest, ok := strings.CutPrefix(in.Name, prefix)
			if !ok {
				continue
			}
			if dir, _, below := strings.Cut(rest, "/"); level && below {
				in = storage.Info{Name: prefix + dir + "/", Dir: true}
			}
			all = append(all, in)
		}
		slices.SortStableFunc(all, func(a, b storage.Info) int { return strings.Compare(a.Name, b.Name) })
		for _, in := range all {
			if !yield(in, nil) {
				return
			}
		}
	}
}

func (f far) Remove(ctx context.Context, names []string) error {
	f.wait()
	return f.Mem.Remove(ctx, names...)
}

func (f far) Batch() int { return 1000 }

func (f far) Put(ctx context.Context, name string, body *storage.Body) error {
	f.wait()
	b, err := io.ReadAll(body.Reader())
	if err != nil {
		return err
	}
	return storage.WriteAll(ctx, f.Mem, name, b)
}

func (f far) Begin(_ context.Context, name string) (storage.PartUpload, error) {
	f.wait()
	return &farParts{f: f, name: name, parts: make([][]byte, 1000)}, nil
}

// farParts is an object on its way in parts.
type farParts struct {
	f     far
	name  string
	parts [][]byte // by number
}

func (p *farParts) Put(_ context.Context, number int, body *storage.Body) (err error) {
	p.f.wait()
	p.parts[number], err = io.ReadAll(body.Reader())
	return err
}

func (p *farParts) Finish(ctx context.Context, _ int64, _ uint32) error {
	p.f.wait()
	return storage.WriteAll(ctx, p.f.Mem, p.name, p.parts...)
}

func (p *farParts) Cancel(context.Context) error { p.f.wait(); return nil }

// TestLatency bounds how many ways to the store and back the verbs wait for, one after the other. With 150 files and one worker
// everything that waits for each file is over the bounds many times.
func TestLatency(t *testing.T) {
	const files = 150
	r := newRig(t, 15)
	for i := range files {
		r.touch(fmt.Sprintf("base/16384/4%03d", i), scribble(uint64(i), 3000+i*100), 9*time.Hour)
	}
	r.touch("base/16384/5000", scribble(1, 12<<20), 9*time.Hour) // in parts
	real := time.Now()
	synctest.Test(t, func(t *testing.T) {
		ctx, bubble := t.Context(), time.Now()
		clock := func() time.Time { return real.Add(time.Since(bubble)) }
		open := func(m *storage.Mem, asked *atomic.Int64) storage.Storage {
			return objects.New(objects.Options{Address: "mem://far", Connections: 32, PartSize: 1 << 20, Parallel: 4}, far{m, asked})
		}
		// ways runs a verb and says how many ways it waited for.
		ways := func(m *storage.Mem, do func(s *engine.Stanza, st storage.Storage) error) (int, int64) {
			t.Helper()
			var asked atomic.Int64
			began := time.Now()
			st := open(m, &asked)
			must(t, do(r.stanzaAt(st, clock), st))
			return int(time.Since(began) / there), asked.Load()
		}
		for _, bundled := range []bool{false, true} {
			m := storage.NewMem(clock)
			must(t, r.create(ctx, m))
			backup := func(typ repo.BackupType) func(*engine.Stanza, storage.Storage) error {
				return func(s *engine.Stanza, _ storage.Storage) error {
					plan, err := s.PlanBackup(ctx, engine.BackupOptions{DataDir: r.server.dir, Offline: true, Type: typ, Compress: repo.None, Bundle: bundled, BundleSize: 64 << 10, ProcessMax: 1, SaveThreshold: 1 << 20})
					if err == nil {
						_, err = plan.Run(ctx)
					}
					return err
				}
			}
			copied := storage.NewMem(clock)
			for _, c := range []struct {
				name  string
				bound int
				do    func(*engine.Stanza, storage.Storage) error
			}{
				{"full", 30, backup(repo.Full)},
				{"incr", 25, backup(repo.Incr)},
				{"verify", 45, func(s *engine.Stanza, _ storage.Storage) error {
					res, err := s.Verify(ctx, engine.VerifyOptions{ProcessMax: 1})
					if err == nil && len(res.Findings) > 0 {
						err = errors.New(res.Findings[0].String())
					}
					return err
				}},
				{"restore", 35, func(s *engine.Stanza, _ storage.Storage) error {
					plan, err := s.PlanRestore(ctx, r.restoreOptions(filepath.Join(scratch(t), "r"), ""))
					if err == nil {
						_, err = plan.Run(ctx)
					}
					return err
				}},
				{"copy", 110, func(s *engine.Stanza, _ storage.Storage) error {
					var asked atomic.Int64
					to, err := engine.New(engine.Options{Stanza: "demo", Storage: open(copied, &asked), Pass: "two", Local: time.UTC, Now: clock, Events: r.note})
					if err == nil {
						_, err = r.copyTo(ctx, s, to, engine.CopyOptions{All: true, WAL: engine.WALAll, ProcessMax: 1})
					}
					return err
				}},
			} {
				n, asked := ways(m, c.do)
				t.Logf("bundled %t, %s: waited for %d ways there and back, %d requests", bundled, c.name, n, asked)
				if n > c.bound {
					t.Errorf("bundled %t, %s: waited for %d ways there and back, at most %d are needed", bundled, c.name, n, c.bound)
				}
			}
		}
	})
}
