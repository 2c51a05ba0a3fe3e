package engine_test

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

var day = time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC)

// states are four states of one cluster: blocks changed here and there, a file shrunk, grown, shrunk below a block, new,
// gone.
func (s *shelf) states() []map[string]string {
	change := func(text string, at ...int) string {
		b := []byte(text)
		for _, i := range at {
			b[i] ^= 1
		}
		return string(b)
	}
	a := s.cluster()
	b := maps.Clone(a)
	b["pg_data/base/16385/100"] = change(a["pg_data/base/16385/100"], 0, 100_000, 299_999)
	b["pg_data/base/16385/103"] = a["pg_data/base/16385/103"][:81920]
	b["pg_tblspc/16384/"+spaceDir+"/16385/300"] += filler(9, 40_000)
	b["pg_data/base/16385/104"] = filler(8, 60_000)
	c := maps.Clone(b)
	c["pg_data/base/16385/100"] = change(b["pg_data/base/16385/100"], 8192, 90_000, 100_000) + "tail"
	c["pg_data/base/16385/103"] = a["pg_data/base/16385/103"][:5000]
	delete(c, "pg_data/base/16390/200")
	d := maps.Clone(c)
	d["pg_data/base/16385/100"] = change(c["pg_data/base/16385/100"], 170_000)
	d["pg_data/base/16385/103"] = filler(4, 100_001)
	return []map[string]string{a, b, c, d}
}

// chain stores the states as full, diff, incr, incr.
func (s *shelf) chain(states []map[string]string) (labels []repo.Label) {
	for i, files := range states {
		typ := []repo.BackupType{repo.Full, repo.Diff, repo.Incr, repo.Incr}[i]
		labels = append(labels, s.backup(typ, day.Add(time.Duration(i)*24*time.Hour), files))
	}
	return labels
}

func TestRestoreLayouts(t *testing.T) {
	n := 0
	for _, compress := range []repo.CompressType{repo.None, repo.GZ, repo.LZ4, repo.ZST, repo.BZ2} {
		for _, pass := range []repo.Secret{"", "secret"} {
			for _, bundle := range []bool{false, true} {
				for _, block := range []int64{0, 8192, 16384} {
					t.Run(fmt.Sprintf("%s/pass=%v/bundle=%v/block=%d", compress, pass != "", bundle, block), func(t *testing.T) {
						s := newShelf(t, pass)
						s.compress, s.bundle, s.block = compress, bundle, block
						states := s.states()
						labels := s.chain(states)
						top := scratch(t)
						for i, l := range labels {
							dir := filepath.Join(top, fmt.Sprint(i))
							_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{Set: l, DataDir: dir})
							must(t, err)
							if err := s.compare(dir, states[i]); err != nil {
								t.Errorf("backup %d: %v", i, err)
							}
						}
						dir := filepath.Join(top, "0")
						for _, i := range []int{1, 3, 2, 0, 3} {
							_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{Set: labels[i], DataDir: dir, Delta: true})
							must(t, err)
							if err := s.compare(dir, states[i]); err != nil {
								t.Errorf("delta to backup %d: %v", i, err)
							}
						}
						n++
					})
				}
			}
		}
	}
	t.Logf("%d layouts", n)
}

// TestRestoreRequests: files that lie side by side in a bundle are read together, a delta restore reads only the super
// blocks that changed, and neither reads anything twice.
func TestRestoreRequests(t *testing.T) {
	s := newShelf(t, "")
	s.bundle, s.block = true, 8192
	states := s.states()
	labels := s.chain(states)
	dir := filepath.Join(scratch(t), "data")
	opens := func(o engine.RestoreOptions) (n int, objects []string) {
		faulty, err := storage.NewFaulty(s.st)
		must(t, err)
		o.DataDir = dir
		_, _, err = s.restore(t.Context(), faulty, o)
		must(t, err)
		for _, c := range faulty.Calls() {
			if c.Op == storage.OpOpen && strings.Contains(c.Name, "/bundle/") {
				n++
				objects = append(objects, c.Name)
			}
		}
		slices.Sort(objects)
		return n, slices.Compact(objects)
	}
	if n, _ := opens(engine.RestoreOptions{Set: labels[0]}); n != 1 {
		t.Errorf("a full backup of one bundle was read with %d requests", n)
	}
	if n, objects := opens(engine.RestoreOptions{Set: labels[0], Delta: true}); n != 1 { // pg_control alone
		t.Errorf("nothing changed, and %d requests were made of %v", n, objects)
	}
	if n, objects := opens(engine.RestoreOptions{Set: labels[1], Delta: true}); n > 2 || len(objects) > 2 {
		t.Errorf("a delta restore to the next backup made %d requests of %v", n, objects)
	}
}

// TestRestoreHostileBlocks: maps and manifests that do not belong together are damage that is named, not a panic and not a
// wrong file.
func TestRestoreHostileBlocks(t *testing.T) {
	name := "pg_data/base/16385/100"
	for _, c := range []struct {
		what string
		make func(s *shelf, m *repo.Manifest, f *repo.File)
		want string
		file string // that the message names; empty: name
	}{
		{"reference outside of the list", func(s *shelf, m *repo.Manifest, _ *repo.File) {
			gone := m.References[1]
			m.Files = slices.DeleteFunc(m.Files, func(f repo.File) bool { return f.Reference == gone })
			m.References = []repo.Label{m.References[0], m.Label}
		}, "backup number 2", ""},
		{"references in another order", func(s *shelf, m *repo.Manifest, _ *repo.File) {
			m.References[0], m.References[1] = m.References[1], m.References[0]
		}, "super block at", "pg_data/base/16385/10"}, // two files are concerned
		{"map size too small", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.BlockMapSize-- }, "block map", ""},
		{"map size too large", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.BlockMapSize++ }, "block map", ""},
		{"map of everything", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.BlockMapSize = f.RepoSize }, "block map", ""},
		{"an impossible map", func(_ *shelf, _ *repo.Manifest, f *repo.File) {
			f.RepoSize, f.BlockMapSize = 1<<40, 1<<40
		}, "block map of 1099511627776 bytes", ""},
		{"size of more blocks", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.Size += 8192 }, "block map of", ""},
		{"size of a shorter block", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.Size-- }, "as long as", ""},
		{"another block size", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.BlockSize = 16384 }, "block", ""},
		{"another checksum size", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.BlockSumSize = 7 }, "block map", ""},
		{"another SHA-1", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.SHA1 = strings.Repeat("0", 40) }, "SHA-1", ""},
		{"a slice after the end", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.BundleOffset += 1 << 40 }, "EOF", ""},
		{"another bundle's number", func(_ *shelf, _ *repo.Manifest, f *repo.File) { f.BundleID = 99 }, "bundle/99", ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newShelf(t, "secret")
			s.bundle, s.block = true, 8192
			states := s.states()
			labels := s.chain(states[:3])
			m := s.newest
			c.make(s, m, m.File(name))
			s.publish(m)
			for _, delta := range []bool{false, true} {
				dir := filepath.Join(scratch(t), "data")
				if delta {
					_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{Set: labels[0], DataDir: dir})
					must(t, err)
				}
				_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{Set: labels[2], DataDir: dir, Delta: delta})
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), cmp.Or(c.file, name)) {
					t.Errorf("delta %v: %v", delta, err)
				}
				if c.what != "another bundle's number" && !errors.Is(err, engine.ErrCorrupt) {
					t.Errorf("delta %v: not told as damage: %v", delta, err)
				}
				if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("delta %v: PostgreSQL could start on what is left: %v", delta, err)
				}
			}
		})
	}
}

// TestRestoreBlockCollision: block checksums are short; where one deceives, the SHA-1 of the whole file tells, and the file
// is read whole.
func TestRestoreBlockCollision(t *testing.T) {
	s := newShelf(t, "")
	s.block = 8192
	states := s.states()
	labels := s.chain(states[:2])
	name := "pg_data/base/16385/100"
	// The map's checksum of the block that changed says what stands at the target, as a collision would.
	prior := s.maps[name]
	m := s.newest
	object, _, _, spec := m.Object("demo", m.File(name))
	b, err := storage.ReadAll(t.Context(), s.st, object, 1<<20)
	must(t, err)
	old := s.states()[0][name]
	forged := *prior
	forged.Blocks = slices.Clone(prior.Blocks)
	forged.Blocks[0].Checksum = forged.Sum([]byte(old[:8192]))
	raw, err := forged.Encode()
	must(t, err)
	if int64(len(raw)) != m.File(name).BlockMapSize || spec.Pass != "" {
		t.Fatalf("the forged map has %d bytes", len(raw))
	}
	must(t, storage.WriteAll(t.Context(), s.st, object, append(b[:len(b)-len(raw)], raw...)))
	dir := filepath.Join(scratch(t), "data")
	for i, l := range labels {
		_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{Set: l, DataDir: dir, Delta: i > 0})
		must(t, err)
		must(t, s.compare(dir, states[i]))
	}
}

// TestRestoreLargeImages: images that are too large to be held are read in pieces, in bundles that several workers share.
func TestRestoreLargeImages(t *testing.T) {
	base := filler(77, 5<<20+100)
	for _, bundle := range []bool{false, true} {
		for _, block := range []int64{0, 360448} { // 88 KiB, of a file two weeks old
			t.Run(fmt.Sprintf("bundle=%v/block=%d", bundle, block), func(t *testing.T) {
				s := newShelf(t, "secret")
				s.compress, s.bundle, s.block, s.superMax = repo.None, bundle, block, 1<<20
				var states []map[string]string
				for i := range 3 {
					files := s.cluster()
					for j := range 8 {
						b := []byte(base)
						for k := range i {
							b[(k*7+j)*(len(b)/20)] = 'Z' + byte(k)
						}
						files[fmt.Sprintf("pg_data/base/16385/%d", 1000+j)] = string(b)
					}
					states = append(states, files)
				}
				labels := s.chain(states)
				dir := filepath.Join(scratch(t), "data")
				for _, i := range []int{2, 0, 1, 2} {
					res, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{Set: labels[i], DataDir: dir, Delta: true})
					must(t, err)
					must(t, s.compare(dir, states[i]))
					if res.Bytes < 8*5<<20 {
						t.Errorf("%d bytes", res.Bytes)
					}
				}
			})
		}
	}
}
