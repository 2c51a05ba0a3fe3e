package tarball

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// jail is a destination next to a file that nothing may touch.
type jail struct{ outside, dest string }

func newJail(t testing.TB) jail {
	dir := t.TempDir()
	j := jail{filepath.Join(dir, "outside"), filepath.Join(dir, "dest")}
	must(t, os.Mkdir(j.outside, 0o755))
	must(t, os.WriteFile(filepath.Join(j.outside, "secret"), []byte("untouched"), 0o600))
	return j
}

func (j jail) check(t testing.TB) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(j.outside, "secret"))
	entries, _ := os.ReadDir(j.outside)
	above, _ := os.ReadDir(filepath.Dir(j.outside))
	if err != nil || string(b) != "untouched" || len(entries) != 1 || len(above) > 2 {
		t.Fatalf("something was changed outside: %q %v %v %v", b, err, entries, above)
	}
	if fi, err := os.Stat(filepath.Join(j.outside, "secret")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("the mode outside was changed: %v %v", fi, err)
	}
}

func TestHostileTarballs(t *testing.T) {
	reg, dir, sym, link := byte(tar.TypeReg), byte(tar.TypeDir), byte(tar.TypeSymlink), byte(tar.TypeLink)
	type member struct {
		flag       byte
		name, link string
	}
	for what, members := range map[string][]member{
		"absolute":                     {{reg, "/etc/holdfast-was-here", ""}},
		"climbing":                     {{reg, "files/t/../../../outside/new", ""}},
		"climbing tree":                {{reg, "files/../outside/new", ""}},
		"empty element":                {{reg, "files/t//x", ""}},
		"dot":                          {{reg, "files/t/./x", ""}},
		"through a link":               {{sym, "files/t/l", "../outside"}, {reg, "files/t/l/new", ""}},
		"directory through a link":     {{sym, "files/t/l", "../outside"}, {dir, "files/t/l/new", ""}},
		"link through a link":          {{sym, "files/t/l", "../outside"}, {sym, "files/t/l/new", "x"}},
		"through a link to the tree":   {{dir, "files/t/d", ""}, {sym, "files/t/l", "d"}, {reg, "files/t/l/new", ""}},
		"hard link outside the tree":   {{link, "files/t/h", "files/u/x"}},
		"hard link climbing":           {{link, "files/t/h", "files/t/../../outside/secret"}},
		"hard link absolute":           {{link, "files/t/h", "/etc/passwd"}},
		"hard link through a link":     {{sym, "files/t/l", "../outside"}, {link, "files/t/h", "files/t/l/secret"}},
		"hard link to a link":          {{sym, "files/t/l", "../outside/secret"}, {link, "files/t/h", "files/t/l"}},
		"hard link to itself":          {{reg, "files/t/h", ""}, {link, "files/t/h", "files/t/h"}},
		"hard link to nothing":         {{link, "files/t/h", "files/t/none"}},
		"hard link to a directory":     {{dir, "files/t/d", ""}, {link, "files/t/h", "files/t/d"}},
		"device":                       {{tar.TypeBlock, "files/t/dev", ""}},
		"character device":             {{tar.TypeChar, "files/t/dev", ""}},
		"below a file":                 {{reg, "files/t/a", ""}, {reg, "files/t/a/b", ""}},
		"the tree as a link":           {{sym, "files/t", "../outside"}, {reg, "files/t/new", ""}},
		"the tree as a file":           {{reg, "files/t", ""}},
		"unknown tree":                 {{reg, "files/other/x", ""}},
		"directory missing":            {{reg, "files/t/none/x", ""}},
		"not named in the index":       {{sym, "files/t/l", "../outside"}},
		"directory replaced by a link": {{dir, "files/t/d", ""}, {reg, "files/t/d/x", ""}, {sym, "files/t/d", "../outside"}, {reg, "files/t/d/new", ""}},
	} {
		t.Run(what, func(t *testing.T) {
			j := newJail(t)
			ball := handmade(t, func(tw *tar.Writer) {
				for _, m := range members {
					must(t, tw.WriteHeader(&tar.Header{Typeflag: m.flag, Name: m.name, Linkname: m.link, Mode: 0o777, Format: tar.FormatPAX}))
				}
				empty := `{"format":"holdfast-files-index","version":1,"trees":["t"]}` + "\n" + `{"end":true}` + "\n"
				must(t, tw.WriteHeader(&tar.Header{Name: IndexName, Mode: 0o600, Size: int64(len(empty))}))
				_, err := io.WriteString(tw, empty)
				must(t, err)
			})
			_, _, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": j.dest}})
			t.Log(err)
			if err == nil {
				t.Error("was accepted")
			}
			j.check(t)
		})
	}
	if _, err := os.Lstat("/etc/holdfast-was-here"); err == nil {
		t.Error("an absolute member was written")
	}
}

func TestSymbolicLinksOutAreRestoredAsTheyWere(t *testing.T) {
	j := newJail(t)
	src := t.TempDir()
	must(t, os.Symlink("../outside/secret", filepath.Join(src, "l")))
	must(t, os.Symlink(j.outside, filepath.Join(src, "dirlink")))
	ball, _ := capture(t, CaptureOptions{}, src, nil)
	_, _, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": j.dest}})
	must(t, err)
	sameListing(t, listing(t, src, false), listing(t, j.dest, false))
	j.check(t)
}

func TestHostileIndexes(t *testing.T) {
	sum := fmt.Sprintf("%x", sha256.Sum256(nil))
	root := `{"tree":"t","path":"","type":"dir","mode":448}` + "\n"
	file := func(path, extra string) string {
		return fmt.Sprintf(`{"tree":"t","path":%q,"type":"file","mode":420,"sha256":"%s"%s}`+"\n", path, sum, extra)
	}
	for what, body := range map[string]string{
		"empty":             "",
		"no end":            root + file("f", ""),
		"count":             root + file("f", "") + `{"end":true,"entries":3}` + "\n",
		"goes on":           root + file("f", "") + `{"end":true,"entries":2}` + "\nx",
		"climbs":            root + file("../outside/secret", "") + `{"end":true,"entries":2}` + "\n",
		"absolute":          root + file("/etc/passwd", "") + `{"end":true,"entries":2}` + "\n",
		"order":             root + file("g", "") + file("f", "") + `{"end":true,"entries":3}` + "\n",
		"twice":             root + file("f", "") + file("f", "") + `{"end":true,"entries":3}` + "\n",
		"unknown tree":      strings.ReplaceAll(root, `"t"`, `"u"`) + `{"end":true,"entries":1}` + "\n",
		"mode":              root + file("f", `,"mode":65535`) + `{"end":true,"entries":2}` + "\n",
		"hash":              root + strings.ReplaceAll(file("f", ""), sum, "abc") + `{"end":true,"entries":2}` + "\n",
		"wrong hash":        root + strings.ReplaceAll(file("f", ""), sum[:4], "0000") + `{"end":true,"entries":2}` + "\n",
		"wrong size":        root + file("f", `,"size":7`) + `{"end":true,"entries":2}` + "\n",
		"wrong type":        root + `{"tree":"t","path":"f","type":"fifo","mode":420}` + "\n" + `{"end":true,"entries":2}` + "\n",
		"missing":           root + file("f", "") + file("g", "") + `{"end":true,"entries":3}` + "\n",
		"hard link forward": root + `{"tree":"t","path":"f","type":"hardlink","link":"g","mode":420}` + "\n" + `{"end":true,"entries":2}` + "\n",
		"hard link out":     root + `{"tree":"t","path":"f","type":"hardlink","link":"../outside/secret","mode":420}` + "\n" + `{"end":true,"entries":2}` + "\n",
		"no root":           file("f", "") + `{"end":true,"entries":1}` + "\n",
		"not json":          root + "{\n",
	} {
		t.Run(what, func(t *testing.T) {
			j := newJail(t)
			index := `{"format":"holdfast-files-index","version":1,"trees":["t"]}` + "\n" + body
			if what == "empty" {
				index = ""
			}
			ball := handmade(t, func(tw *tar.Writer) {
				must(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "files/t/f", Mode: 0o644}))
				must(t, tw.WriteHeader(&tar.Header{Name: IndexName, Size: int64(len(index))}))
				_, err := io.WriteString(tw, index)
				must(t, err)
			})
			_, _, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": j.dest}})
			t.Log(err)
			if err == nil {
				t.Error("was accepted")
			}
			j.check(t)
		})
	}
}

// TestDamageIsNeverRestored changes a byte, or cuts, anywhere: an error, or, where the byte means nothing (a date in a gzip
// header), the right content.
func TestDamageIsNeverRestored(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	src := t.TempDir()
	for i := range 12 {
		put(t, filepath.Join(src, fmt.Sprintf("d%d/f", i%3), fmt.Sprint(i)), string(randomContent(rng)[:]))
	}
	put(t, filepath.Join(src, "zeros"), string(make([]byte, 9000)))
	ball, _ := capture(t, CaptureOptions{Now: aged()}, src, nil)
	want := listing(t, src, false)
	try := func(what string, b []byte, mayPass bool) {
		dst := filepath.Join(t.TempDir(), "new")
		_, _, err := restore(t.Context(), bytes.NewReader(b), ExtractOptions{Dest: map[string]string{"t": dst}})
		if err == nil {
			if !mayPass {
				t.Errorf("%s: was accepted", what)
			}
			sameListing(t, want, listing(t, dst, false))
		}
	}
	for range 60 {
		b := bytes.Clone(ball)
		at := rng.IntN(len(b))
		b[at] ^= 1 << rng.IntN(8)
		try(fmt.Sprintf("bit flipped in byte %d", at), b, true)
	}
	for range 20 {
		at := rng.IntN(len(ball))
		try(fmt.Sprintf("cut at byte %d", at), ball[:at], false)
	}
	for at := range ball { // between gzip members
		if bytes.HasPrefix(ball[at:], []byte{0x1f, 0x8b, 8}) {
			try(fmt.Sprintf("cut at gzip member at %d", at), ball[:at], false)
		}
	}
	try("with more after it", append(bytes.Clone(ball), 'x'), false)
	try("twice", append(bytes.Clone(ball), ball...), false)
}

func TestInputErrorsAreNotCalledDamage(t *testing.T) {
	ball := handmade(t, func(tw *tar.Writer) {
		must(t, tw.WriteHeader(&tar.Header{Name: "a", Size: 3}))
		_, err := tw.Write([]byte("abc"))
		must(t, err)
	})
	why := errors.New("connection lost")
	r, err := NewReader(io.MultiReader(bytes.NewReader(ball[:20]), errReader{why}))
	for err == nil {
		_, err = r.Next()
	}
	if !errors.Is(err, why) || errors.Is(err, ErrDamaged) {
		t.Errorf("%v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

func TestCancelledFinish(t *testing.T) {
	src := t.TempDir()
	put(t, filepath.Join(src, "f"), "x")
	ball, _ := capture(t, CaptureOptions{}, src, nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err := restore(ctx, bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": filepath.Join(t.TempDir(), "new")}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestSizesAreBounded(t *testing.T) {
	src := t.TempDir()
	put(t, filepath.Join(src, "f"), strings.Repeat("x", 3<<20))
	ball, _ := capture(t, CaptureOptions{}, src, nil)
	_, _, err := restore(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": filepath.Join(t.TempDir(), "new")}, MaxBytes: 1 << 20})
	if !errors.Is(err, ErrUnsafe) {
		t.Errorf("more than the allowed bytes: %v", err)
	}
	r, err := NewReader(bytes.NewReader(ball))
	must(t, err)
	r.LimitMember(1 << 20)
	if _, _, err := restoreFrom(t.Context(), r, ExtractOptions{Dest: map[string]string{"t": filepath.Join(t.TempDir(), "new")}}); !errors.Is(err, ErrUnsafe) {
		t.Errorf("a member larger than allowed: %v", err)
	}
}

// FuzzTarRestore feeds tar streams (the fuzzer need not find gzip's checksums) to Reader and Extractor.
func FuzzTarRestore(f *testing.F) {
	index := `{"format":"holdfast-files-index","version":1,"trees":["t"]}` + "\n" + `{"tree":"t","path":"","type":"dir","mode":493}` + "\n" +
		`{"tree":"t","path":"l","type":"symlink","mode":511,"link":"../outside"}` + "\n" + `{"end":true,"entries":2}` + "\n"
	seed := func(hs ...*tar.Header) []byte {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, h := range append(hs, &tar.Header{Name: IndexName, Size: int64(len(index))}) {
			must(f, tw.WriteHeader(h))
			content := strings.Repeat("x", int(h.Size))
			if h.Name == IndexName {
				content = index
			}
			_, err := io.WriteString(tw, content)
			must(f, err)
		}
		must(f, tw.Close())
		return buf.Bytes()
	}
	f.Add(seed(&tar.Header{Typeflag: tar.TypeSymlink, Name: "files/t/l", Linkname: "../outside"}))
	f.Add(seed(&tar.Header{Typeflag: tar.TypeSymlink, Name: "files/t/l", Linkname: "../outside"}, &tar.Header{Name: "files/t/l/x", Size: 3}))
	f.Add(seed(&tar.Header{Typeflag: tar.TypeDir, Name: "files/t/d/"}, &tar.Header{Name: "files/t/d/x", Size: 3}, &tar.Header{Typeflag: tar.TypeLink, Name: "files/t/h", Linkname: "files/t/d/x"}))
	f.Add(seed(&tar.Header{Name: "files/t/../../outside/secret", Size: 3}))
	head, err := sparseHeader(&tar.Header{Name: "files/t/s", Size: 100000, ModTime: time.Unix(5, 5)}, 512+3)
	must(f, err)
	f.Add(append(head, append([]byte("2\n50000\n3\n100000\n0\n"+strings.Repeat("\x00", 493)+"abc"+strings.Repeat("\x00", 509)), seed()...)...))
	f.Fuzz(func(t *testing.T, stream []byte) {
		j := newJail(t)
		var gz bytes.Buffer
		g := gzSwitch{out: &gz}
		g.open(stored)
		if _, err := g.Write(stream); err != nil {
			t.Fatal(err)
		}
		must(t, g.close())
		r, err := NewReader(&gz)
		must(t, err)
		r.LimitMember(1 << 22)
		_, _, err = restoreFrom(t.Context(), r, ExtractOptions{Dest: map[string]string{"t": j.dest}, MaxBytes: 1 << 22})
		if err == nil {
			if target, lerr := os.Readlink(filepath.Join(j.dest, "l")); lerr == nil && target == "" {
				t.Error("a link without target was restored")
			}
		}
		j.check(t)
	})
}

// FuzzFilesIndex reads an index: what is accepted must be in order and inside.
func FuzzFilesIndex(f *testing.F) {
	f.Add([]byte(`{"format":"holdfast-files-index","version":1,"trees":["t"]}` + "\n" + `{"tree":"t","path":"","type":"dir","mode":493}` + "\n" + `{"end":true,"entries":1}` + "\n"))
	f.Add([]byte(`{"format":"holdfast-files-index","version":1,"trees":["t"]}` + "\n" + `{"tree":"t","path":{"b64":"/w=="},"type":"symlink","link":"x"}` + "\n" + `{"end":true,"entries":1}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		x, err := newIndexReader(bytes.NewReader(data))
		for err == nil && x.next != nil {
			e := x.next
			if e.Path != "" && !filepath.IsLocal(string(e.Path)) {
				t.Fatalf("path %q was accepted", e.Path)
			}
			err = x.advance()
			if err == nil && x.next != nil && x.next.Tree == e.Tree && comparePaths(string(e.Path), string(x.next.Path)) >= 0 {
				t.Fatalf("%q before %q was accepted", e.Path, x.next.Path)
			}
		}
	})
}

func BenchmarkWriter(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	noise, text := make([]byte, 64<<20), make([]byte, 64<<20)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
		text[i] = "0123456789abcdef"[rng.Uint32()&15]
	}
	b.Run("stored", func(b *testing.B) {
		b.SetBytes(int64(len(noise)))
		for b.Loop() {
			w := NewWriter(io.Discard, WriterOptions{})
			must(b, w.AddStored("x", 0o600, int64(len(noise)), time.Time{}, bytes.NewReader(noise)))
			must(b, w.Close())
		}
	})
	b.Run("compressed", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			w := NewWriter(io.Discard, WriterOptions{})
			must(b, w.AddBytes("x", 0o600, text))
			must(b, w.Close())
		}
	})
}
