package tarball

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func put(t *testing.T, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(content), 0o644))
}

func TestFinalSeesEveryKindOfChange(t *testing.T) {
	for _, now := range []string{"young", "settled"} {
		t.Run(now, func(t *testing.T) {
			src, dst := t.TempDir(), filepath.Join(t.TempDir(), "new")
			p := func(name string) string { return filepath.Join(src, name) }
			for _, name := range []string{"same", "edited", "touched", "deleted", "replaced", "gone/a", "gone/b/c", "dir-to-file/x", "chmod", "swap1", "swap2",
				"moved/one", "dir-to-link/x", "linked", "unlinked", "first-name", "appended"} {
				put(t, p(name), "content of "+name)
			}
			put(t, p("file-to-dir"), "x")
			must(t, os.Symlink("same", p("link-to-dir")))
			must(t, os.Link(p("linked"), p("linked2")))
			must(t, os.Link(p("unlinked"), p("unlinked2")))
			must(t, os.Link(p("first-name"), p("second-name")))
			must(t, os.Symlink("same", p("link")))
			o := CaptureOptions{}
			if now == "settled" {
				o.Now = aged()
				time.Sleep(20 * time.Millisecond) // kernels before 6.13 count a file's times in ticks
			}
			ball, res := capture(t, o, src, func() {
				before, err := os.Stat(p("touched"))
				must(t, err)
				put(t, p("edited"), "CONTENT of edited")
				put(t, p("touched"), "CONTENT of touched")
				must(t, os.Chtimes(p("touched"), before.ModTime(), before.ModTime()))
				must(t, os.Remove(p("deleted")))
				put(t, p("new"), "new one")
				must(t, os.Rename(p("new"), p("replaced")))
				must(t, os.RemoveAll(p("gone")))
				must(t, os.RemoveAll(p("dir-to-file")))
				put(t, p("dir-to-file"), "now a file")
				must(t, os.RemoveAll(p("dir-to-link")))
				must(t, os.Symlink("/etc", p("dir-to-link")))
				must(t, os.Remove(p("file-to-dir")))
				put(t, p("file-to-dir/inside"), "x")
				must(t, os.Remove(p("link-to-dir")))
				put(t, p("link-to-dir/inside"), "x")
				must(t, os.Chmod(p("chmod"), 0o400))
				must(t, os.Rename(p("swap1"), p("swap")))
				must(t, os.Rename(p("swap2"), p("swap1")))
				must(t, os.Rename(p("swap"), p("swap2")))
				must(t, os.Rename(p("moved"), p("renamed")))
				put(t, p("linked2"), "changed through its second name")
				must(t, os.Remove(p("unlinked")))
				put(t, p("unlinked"), "on its own")
				must(t, os.Remove(p("first-name")))
				must(t, os.Remove(p("link")))
				must(t, os.Symlink("elsewhere", p("link")))
				put(t, p("brand-new/file"), "x")
				put(t, p("appended"), "content of appended and more")
			})
			if res.End.Before(res.Start) || res.InconsistentCount > 0 {
				t.Errorf("%+v", res)
			}
			_, _, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": dst}, Owners: os.Geteuid() == 0})
			must(t, err)
			sameListing(t, listing(t, src, false), listing(t, dst, false))
		})
	}
}

// TestWriterAtWork changes files all the time: what rests must be right, what does not must be whole or named.
func TestWriterAtWork(t *testing.T) {
	src := t.TempDir()
	for i := range 200 {
		put(t, filepath.Join(src, fmt.Sprintf("quiet/%d", i)), strings.Repeat("q", i*300))
	}
	hot := filepath.Join(src, "hot")
	must(t, os.WriteFile(hot, make([]byte, 4<<20), 0o644))
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		f, err := os.OpenFile(hot, os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for i := int64(0); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := f.WriteAt([]byte{byte(i)}, i%(4<<20)); err != nil {
				t.Error(err)
			}
			name := filepath.Join(src, fmt.Sprintf("busy%d", i%10))
			if err := os.WriteFile(name+".tmp", []byte("whole"), 0o644); err != nil {
				t.Error(err)
			}
			if err := os.Rename(name+".tmp", name); err != nil {
				t.Error(err)
			}
		}
	})
	ball, res := capture(t, CaptureOptions{}, src, nil)
	close(stop)
	wg.Wait()
	dst := filepath.Join(t.TempDir(), "new")
	_, _, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": dst}})
	must(t, err)
	sameListing(t, listing(t, filepath.Join(src, "quiet"), false), listing(t, filepath.Join(dst, "quiet"), false))
	for _, i := range res.Inconsistent {
		if i.Path != "t/hot" && !strings.HasPrefix(i.Path, "t/busy") {
			t.Errorf("%+v", i)
		}
	}
	busy, err := filepath.Glob(filepath.Join(dst, "busy?"))
	must(t, err)
	for _, b := range busy {
		named := slices.ContainsFunc(res.Inconsistent, func(i Issue) bool { return i.Path == "t/"+filepath.Base(b) })
		if c, err := os.ReadFile(b); err != nil || (string(c) != "whole" && !named) {
			t.Errorf("%s: %q %v", b, c, err)
		}
	}
}

// meddler changes a file whenever the tarball grows, that is: while the file is being read into it.
type meddler struct {
	bytes.Buffer
	f *os.File
	n int64
}

func (m *meddler) Write(b []byte) (int, error) {
	m.n++
	if _, err := m.f.WriteAt([]byte{byte(m.n)}, m.n); err != nil {
		return 0, err
	}
	return m.Buffer.Write(b)
}

func TestFileThatNeverRestsIsNamed(t *testing.T) {
	src := t.TempDir()
	noise := make([]byte, 2<<20) // does not compress, so that reading and writing go in step
	rng := rand.New(rand.NewPCG(5, 5))
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	must(t, os.WriteFile(filepath.Join(src, "hot"), noise, 0o600))
	put(t, filepath.Join(src, "quiet"), "x")
	f, err := os.OpenFile(filepath.Join(src, "hot"), os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	out := &meddler{f: f}
	w := NewWriter(out, WriterOptions{})
	c, err := NewCapture(CaptureOptions{Trees: []Tree{{"t", src}}, SpoolDir: t.TempDir()})
	must(t, err)
	defer c.Close()
	must(t, c.First(t.Context(), w))
	res, err := c.Final(t.Context(), w)
	must(t, err)
	must(t, w.Close())
	if len(res.Inconsistent) != 1 || res.Inconsistent[0].Path != "t/hot" || res.InconsistentCount != 1 {
		t.Errorf("inconsistent: %+v", res.Inconsistent)
	}
	// What the tarball has of it still agrees with the index, and restores.
	_, _, err = restore(t.Context(), bytes.NewReader(out.Bytes()), ExtractOptions{Dest: map[string]string{"t": filepath.Join(t.TempDir(), "new")}})
	must(t, err)
}

func TestExcludedSkippedAndSpecial(t *testing.T) {
	src, dst := t.TempDir(), filepath.Join(t.TempDir(), "new")
	for _, name := range []string{"keep/a.txt", "keep/a.pyc", "deep/er/b.pyc", "cache/x/y", "pgdata/base/1", "log/1.log", "log/old/2.log"} {
		put(t, filepath.Join(src, name), name)
	}
	l, err := net.Listen("unix", filepath.Join(src, "sock"))
	must(t, err)
	defer l.Close()
	ball, res := capture(t, CaptureOptions{
		Exclude:  []string{"**/*.pyc", "cache", "log/*.log"},
		SkipDirs: []string{filepath.Join(src, "pgdata"), filepath.Join(src, "absent")},
	}, src, nil)
	_, index, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": dst}})
	must(t, err)
	var got []string
	for p := range listing(t, dst, true) {
		got = append(got, p)
	}
	slices.Sort(got)
	if want := " /deep /deep/er /keep /keep/a.txt /log /log/old /log/old/2.log /pgdata"; strings.Join(got, " ") != want {
		t.Errorf("restored %q", got)
	}
	if res.SkippedCount != 1 || res.Skipped[0].Path != "t/sock" {
		t.Errorf("skipped %+v", res.Skipped)
	}
	put(t, filepath.Join(dst, "pgdata/base/2"), "restored by the PostgreSQL component")
	put(t, filepath.Join(dst, "extra"), "")
	must(t, os.Remove(filepath.Join(dst, "log/old/2.log")))
	put(t, filepath.Join(dst, "keep/a.txt"), "KEEP/a.txt")
	r, err := CheckTree(t.Context(), bytes.NewReader(index), CheckOptions{Dest: map[string]string{"t": dst}})
	must(t, err)
	if !slices.Equal(r.Extra, []string{"t/extra"}) || !slices.Equal(r.Missing, []string{"t/log/old/2.log"}) ||
		!slices.ContainsFunc(r.Differing, func(i Issue) bool { return i.Path == "t/keep/a.txt" }) {
		t.Errorf("%+v", r)
	}
}

func TestUnreadableFilesAreAllNamed(t *testing.T) {
	src := t.TempDir()
	must(t, os.Chmod(src, 0o755))
	for _, name := range []string{"one", "two", "fine", "left-out"} {
		put(t, filepath.Join(src, name), name)
		if name != "fine" {
			must(t, os.Chmod(filepath.Join(src, name), 0))
		}
	}
	must(t, os.Mkdir(filepath.Join(src, "closed"), 0))
	must(t, os.Mkdir(filepath.Join(src, "pgdata"), 0))
	c, err := NewCapture(CaptureOptions{Trees: []Tree{{"t", src}}, SpoolDir: t.TempDir(), Exclude: []string{"left-out"}, SkipDirs: []string{filepath.Join(src, "pgdata")}})
	must(t, err)
	defer c.Close()
	w := NewWriter(&bytes.Buffer{}, WriterOptions{})
	defer w.Close()
	if os.Geteuid() == 0 { // root reads everything: let this thread reach files as nobody (setfsuid(2))
		for p := src; p != "/" && p != os.TempDir(); p = filepath.Dir(p) {
			must(t, os.Chmod(p, 0o755))
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		must(t, unix.Setfsuid(65534))
		defer unix.Setfsuid(0)
		c.o.SpoolDir = os.TempDir()
	}
	err = c.First(t.Context(), w)
	if err == nil {
		t.Fatal("unreadable files were passed over in silence")
	}
	for _, name := range []string{"t/one", "t/two", "t/closed"} {
		if !strings.Contains(err.Error(), name) {
			t.Errorf("%s is not named in: %v", name, err)
		}
	}
	for _, name := range []string{"fine", "left-out", "pgdata"} {
		if strings.Contains(err.Error(), "t/"+name) {
			t.Errorf("%s is named in: %v", name, err)
		}
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, o := range []CaptureOptions{
		{Trees: []Tree{{"a/b", "/"}}}, {Trees: []Tree{{"..", "/"}}}, {Trees: []Tree{{"", "/"}}},
		{Trees: []Tree{{"a", "/"}, {"a", "/tmp"}}}, {Exclude: []string{"[a"}},
	} {
		if _, err := NewCapture(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
	full := t.TempDir()
	put(t, filepath.Join(full, "x"), "")
	if _, err := NewExtractor(ExtractOptions{Dest: map[string]string{"t": full}}); err == nil {
		t.Error("a directory that is not empty was accepted as destination")
	}
	c, err := NewCapture(CaptureOptions{Trees: []Tree{{"t", filepath.Join(full, "absent")}}, SpoolDir: full})
	must(t, err)
	defer c.Close()
	if err := c.First(t.Context(), NewWriter(&bytes.Buffer{}, WriterOptions{})); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent tree: %v", err)
	}
}

func TestExcludePatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"a", "a", true}, {"a", "b/a", false}, {"**/a", "a", true}, {"**/a", "b/c/a", true}, {"a/**", "a", true}, {"a/**", "a/b/c", true},
		{"a/**/z", "a/z", true}, {"a/**/z", "a/b/c/z", true}, {"a/**/z", "a/b/c", false}, {"*.log", "x.log", true}, {"*.log", "d/x.log", false},
		{"/a/", "a", true}, {"**", "x", true}, {"a/*/c", "a/b/c", true}, {"a/*/c", "a/b/d/c", false}, {"**/b/**/b", "b/b", true}, {"**/b/**/b", "a/b", false},
	} {
		x, err := parseExcludes([]string{c.pattern})
		must(t, err)
		if got := x.match(c.path); got != c.want {
			t.Errorf("pattern %q, path %q: %v", c.pattern, c.path, got)
		}
	}
}
