package tarball

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestRoundTripOfRandomTrees(t *testing.T) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		src, dst := t.TempDir(), filepath.Join(t.TempDir(), "new")
		randomTree(t, src, rng, 120)
		ball, res := capture(t, CaptureOptions{}, src, nil)
		got, index, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": dst}, Owners: os.Geteuid() == 0})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		sameListing(t, listing(t, src, false), listing(t, dst, false))
		if got.IndexSHA256 != res.IndexSHA256 || got.Files != res.Files || got.Dirs != res.Dirs || got.Links != res.Links ||
			got.Specials != res.Specials || got.Bytes != res.Bytes {
			t.Errorf("seed %d: captured %+v, restored %+v", seed, res, got)
		}
		if res.Rewritten != 0 || res.InconsistentCount != 0 {
			t.Errorf("seed %d: nothing changed, but %d files were written again, %d are inconsistent", seed, res.Rewritten, res.InconsistentCount)
		}
		report, err := CheckTree(t.Context(), bytes.NewReader(index), CheckOptions{Dest: map[string]string{"t": dst}, Owners: os.Geteuid() == 0})
		must(t, err)
		if !report.Equal() {
			t.Errorf("seed %d: %+v", seed, report)
		}
		gnuTar(t, ball, src)
	}
}

// gnuTar unpacks with plain tar and compares types and contents.
func gnuTar(t *testing.T, ball []byte, src string) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("tar", "xzf", "-", "-C", dir)
	cmd.Stdin = bytes.NewReader(ball)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("tar xzf: %v\n%s", err, out)
	}
	sameListing(t, listing(t, src, true), listing(t, filepath.Join(dir, "files/t"), true))
	if _, err := os.Stat(filepath.Join(dir, IndexName)); err != nil {
		t.Error(err)
	}
}

func TestHolesAreKept(t *testing.T) {
	const small = 1 << 20 // such a file is read whole before it is written
	for _, c := range []struct {
		name     string
		size, at int64 // at: where eight bytes stand; less than 0: nowhere
		disk     int64 // what it may take
	}{
		{"large", 64 << 20, 20 << 20, 1 << 20},
		{"large, only a hole", 64 << 20, -1, 64 << 10},
		{"small", small, small / 2, 64 << 10},
		{"small, only a hole", small, -1, 0},
		{"small, data at its end", small, small - 8, 64 << 10},
		{"small, data at its beginning", small, 0, 64 << 10},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, dst := t.TempDir(), filepath.Join(t.TempDir(), "new")
			f, err := os.Create(filepath.Join(src, "sparse"))
			must(t, err)
			if c.at >= 0 {
				_, err = f.WriteAt([]byte("far away"), c.at)
				must(t, err)
			}
			must(t, f.Truncate(c.size))
			must(t, f.Close())
			ball, _ := capture(t, CaptureOptions{Now: aged()}, src, nil)
			if len(ball) > 1<<20 {
				t.Errorf("the tarball of a file of holes is %d bytes", len(ball))
			}
			_, _, err = restoreSynced(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": dst}})
			must(t, err)
			fi, err := os.Stat(filepath.Join(dst, "sparse"))
			must(t, err)
			if disk := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Size() != c.size || disk > c.disk {
				t.Errorf("restored %d bytes, %d on disk", fi.Size(), disk)
			}
			dir := t.TempDir()
			cmd := exec.Command("tar", "xzf", "-", "-C", dir)
			cmd.Stdin = bytes.NewReader(ball)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("tar: %v\n%s", err, out)
			}
			fi, err = os.Stat(filepath.Join(dir, "files/t/sparse"))
			must(t, err)
			if disk := fi.Sys().(*syscall.Stat_t).Blocks * 512; fi.Size() != c.size || disk > c.disk {
				t.Errorf("GNU tar restored %d bytes, %d on disk", fi.Size(), disk)
			}
			sameListing(t, listing(t, src, true), listing(t, filepath.Join(dir, "files/t"), true))
		})
	}
}

func TestWriterMembersAndTotals(t *testing.T) {
	var buf bytes.Buffer
	mtime := time.Unix(1700000000, 0)
	w := NewWriter(&buf, WriterOptions{Workers: 1, ModTime: mtime})
	big := bytes.Repeat([]byte("0123456789"), 300000)
	must(t, w.AddDir("pg", 0o750))
	must(t, w.AddStored("pg/stored", 0o640, int64(len(big)), mtime, bytes.NewReader(big)))
	must(t, w.AddBytes("packed/one", 0o600, big))
	must(t, w.AddStored("pg/again", 0o640, 3, mtime, strings.NewReader("abc")))
	must(t, w.Close())
	must(t, w.Close())
	if err := w.AddBytes("late", 0o600, nil); err == nil {
		t.Error("a member was added to a closed tarball")
	}
	size, sum := w.Sums()
	var total int64
	for _, m := range w.Members() {
		total += m.Stored
		t.Logf("%+v", m)
		if m.Prefix == "packed" && m.Stored > 100000 || m.Prefix == "pg" && (m.Stored < 3e6 || m.Count != 3) {
			t.Errorf("totals %+v", m)
		}
	}
	if total != size || size != int64(buf.Len()) {
		t.Errorf("the totals make %d, Sums %d, the output is %d", total, size, buf.Len())
	}
	r, err := NewReader(&buf)
	must(t, err)
	var names []string
	for {
		m, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(t, err)
		names = append(names, m.Name)
		b, err := io.ReadAll(m)
		must(t, err)
		if m.Name != "pg" && m.Name != "pg/again" && !bytes.Equal(b, big) {
			t.Errorf("%s: wrong content", m.Name)
		}
	}
	if rsize, rsum := r.Sums(); rsize != size || rsum != sum {
		t.Errorf("written %d %s, read %d %s", size, sum, rsize, rsum)
	}
	if got := strings.Join(names, " "); got != "pg pg/stored packed/one pg/again" {
		t.Errorf("members: %s", got)
	}
}

func TestWriterRefusesWrongSizes(t *testing.T) {
	for _, size := range []int64{2, 4} {
		w := NewWriter(io.Discard, WriterOptions{})
		if err := w.AddStored("x", 0o600, size, time.Time{}, strings.NewReader("abc")); err == nil {
			t.Errorf("3 bytes were taken as %d", size)
		}
		if err := w.Close(); err == nil {
			t.Error("closing a broken tarball reported no error")
		}
	}
	for _, name := range []string{"", "/abs", "../up", "a/../b", "a//b", "nul\x00"} {
		w := NewWriter(io.Discard, WriterOptions{})
		if err := w.AddBytes(name, 0o600, nil); !errors.Is(err, ErrUnsafe) {
			t.Errorf("name %q: %v", name, err)
		}
		must(t, w.Close())
	}
}

// fullDisk fails after some bytes.
type fullDisk struct{ left int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if d.left -= len(b); d.left < 0 {
		return 0, syscall.ENOSPC
	}
	return len(b), nil
}

func TestFullDiskIsReportedWherever(t *testing.T) {
	src := t.TempDir()
	rng := rand.New(rand.NewPCG(3, 3))
	randomTree(t, src, rng, 40)
	ball, _ := capture(t, CaptureOptions{}, src, nil)
	for range 10 { // files written a moment ago are read twice, and the tarball is the larger for it
		next, _ := capture(t, CaptureOptions{}, src, nil)
		if len(next) >= len(ball)-10_000 {
			break
		}
		ball = next
	}
	for left := 0; left < len(ball)-10_000; left += len(ball)/23 + 1 {
		w := NewWriter(&fullDisk{left: left}, WriterOptions{})
		c, err := NewCapture(CaptureOptions{Trees: []Tree{{"t", src}}, SpoolDir: t.TempDir()})
		must(t, err)
		err = c.First(t.Context(), w)
		if err == nil {
			_, err = c.Final(t.Context(), w)
		}
		if cerr := w.Close(); err == nil {
			err = cerr
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("disk full after %d bytes: %v", left, err)
		}
		must(t, c.Close())
	}
}

func TestCancelledCapture(t *testing.T) {
	src := t.TempDir()
	must(t, os.WriteFile(filepath.Join(src, "large"), make([]byte, 3<<20), 0o600))
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("operator said stop")
	w := NewWriter(io.Discard, WriterOptions{})
	defer w.Close()
	c, err := NewCapture(CaptureOptions{Trees: []Tree{{"t", src}}, SpoolDir: t.TempDir(), Progress: func(Progress) { cancel(why) }})
	must(t, err)
	defer c.Close()
	if err := c.First(ctx, w); !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}
	if _, err := c.Final(t.Context(), w); err == nil {
		t.Error("a final pass was made after an incomplete first one")
	}
}

// handmade makes a tarball of the given headers, as anybody can.
func handmade(t testing.TB, fill func(tw *tar.Writer)) []byte {
	t.Helper()
	var buf bytes.Buffer
	gz := gzip.NewWriter(&buf)
	tw := tar.NewWriter(gz)
	fill(tw)
	must(t, tw.Close())
	must(t, gz.Close())
	return buf.Bytes()
}
