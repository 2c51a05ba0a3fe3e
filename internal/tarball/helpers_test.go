package tarball

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// randomTree fills dir with every kind of object that is captured.
func randomTree(t *testing.T, dir string, rng *rand.Rand, objects int) {
	t.Helper()
	odd := []string{"plain", "sp ace", "new\nline", "ü", "bad\xff\xfeutf8", "a.b", "a", "-rf", "quote\"'", "back\\slash", "…", "tab\t", "*?[", "=eq=", strings.Repeat("l", 180)}
	dirs, files := []string{dir}, []string{}
	for i := range objects {
		parent := dirs[rng.IntN(len(dirs))]
		name := filepath.Join(parent, fmt.Sprintf("%s%d", odd[rng.IntN(len(odd))], i))
		switch k := rng.IntN(20); {
		case k < 4 && len(parent)-len(dir) < 1500:
			must(t, os.Mkdir(name, 0o755))
			dirs = append(dirs, name)
		case k < 12:
			must(t, os.WriteFile(name, randomContent(rng), 0o644))
			files = append(files, name)
			if rng.IntN(3) == 0 {
				setXattr(t, name, rng)
			}
		case k < 14:
			must(t, os.Symlink([]string{"/etc/passwd", "../../../out", "nowhere", "bad\xfftarget", strings.Repeat("x/", 300)}[rng.IntN(5)], name))
		case k < 16 && len(files) > 0:
			must(t, os.Link(files[rng.IntN(len(files))], name))
		case k < 17:
			must(t, unix.Mkfifo(name, 0o640))
		case k < 19:
			sparseFile(t, name, rng)
		default:
			must(t, os.WriteFile(name, nil, 0o600))
		}
	}
	for _, d := range dirs {
		if rng.IntN(2) == 0 {
			setXattr(t, d, rng)
		}
	}
	disguise(t, dir, rng)
}

// disguise gives everything odd modes, times and owners, contents before directories.
func disguise(t *testing.T, dir string, rng *rand.Rand) {
	t.Helper()
	var all []string
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		all = append(all, p)
		return err
	}))
	for i := len(all) - 1; i >= 0; i-- {
		st, err := os.Lstat(all[i])
		must(t, err)
		if os.Geteuid() == 0 && rng.IntN(2) == 0 {
			must(t, os.Lchown(all[i], rng.IntN(3)*500, rng.IntN(3)*700))
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			modes := []uint32{0o755, 0o700, 0o4755, 0o2750, 0o1777, 0o711}
			if !st.IsDir() {
				modes = append(modes, 0o400, 0o000, 0o444)
			}
			if os.Geteuid() != 0 {
				modes = []uint32{0o700, 0o755}
			}
			must(t, unix.Chmod(all[i], modes[rng.IntN(len(modes))]))
		}
		ts := []unix.Timespec{{Sec: 1}, {Sec: rng.Int64N(4e9) - 1e9, Nsec: rng.Int64N(1e9)}}
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, all[i], ts, unix.AT_SYMLINK_NOFOLLOW))
	}
}

func randomContent(rng *rand.Rand) []byte {
	b := make([]byte, []int{1, 511, 512, 513, 5000, 70000, 1<<20 + 3000}[rng.IntN(7)])
	if rng.IntN(2) == 0 {
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for i := range b {
		b[i] = "some text that compresses\n"[i%26]
	}
	return b
}

func sparseFile(t *testing.T, name string, rng *rand.Rand) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	for range rng.IntN(4) {
		_, err := f.WriteAt(randomContent(rng), rng.Int64N(5<<20))
		must(t, err)
	}
	st, err := f.Stat()
	must(t, err)
	must(t, f.Truncate(st.Size()+rng.Int64N(2)*(2<<20)+rng.Int64N(100)))
	must(t, f.Close())
}

func setXattr(t *testing.T, name string, rng *rand.Rand) {
	t.Helper()
	must(t, unix.Lsetxattr(name, "user.holdfast", []byte(fmt.Sprintf("value\x00\n=%d\xff", rng.Int())), 0))
	if os.Geteuid() == 0 && rng.IntN(2) == 0 {
		acl := "\x02\x00\x00\x00\x01\x00\x06\x00\xff\xff\xff\xff\x02\x00\x04\x00\xe8\x03\x00\x00\x04\x00\x04\x00\xff\xff\xff\xff\x10\x00\x04\x00\xff\xff\xff\xff\x20\x00\x04\x00\xff\xff\xff\xff"
		must(t, unix.Lsetxattr(name, "system.posix_acl_access", []byte(acl), 0))
		if st, err := os.Stat(name); err == nil && st.Mode().IsRegular() {
			// cap_net_bind_service+ep, revision 2 (capabilities(7))
			must(t, unix.Lsetxattr(name, "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		}
	}
}

// listing is our own look at a tree, by other calls than those under test: path → everything that should survive.
// contentOnly leaves out what plain tar does not restore.
func listing(t *testing.T, dir string, contentOnly bool) map[string]string {
	t.Helper()
	out, links := map[string]string{}, map[uint64]string{}
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		line := fi.Mode().Type().String()
		if !contentOnly {
			line += fmt.Sprintf(" %o %d:%d %d", st.Mode, st.Uid, st.Gid, fi.ModTime().UnixNano())
			for _, a := range []string{"user.holdfast", "system.posix_acl_access", "security.capability"} {
				buf := make([]byte, 1000)
				if n, err := unix.Lgetxattr(p, a, buf); err == nil {
					line += fmt.Sprintf(" %s=%x", a, buf[:n])
				}
			}
		}
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %x", sha256.Sum256(b))
			if st.Nlink > 1 {
				if _, ok := links[st.Ino]; !ok {
					links[st.Ino] = p[len(dir):]
				}
				line += " same as " + links[st.Ino]
			}
		case fi.Mode()&fs.ModeSymlink != 0:
			l, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + l
		}
		out[p[len(dir):]] = line
		return nil
	}))
	return out
}

func sameListing(t *testing.T, want, got map[string]string) {
	t.Helper()
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%q:\n want %s\n got  %s", p, w, got[p])
		}
	}
	for p := range got {
		if _, ok := want[p]; !ok {
			t.Errorf("%q: should not be there", p)
		}
	}
}

// capture makes a tarball of one tree "t"; between runs after the first pass.
func capture(t *testing.T, o CaptureOptions, dir string, between func()) ([]byte, *CaptureResult) {
	t.Helper()
	var buf bytes.Buffer
	w := NewWriter(&buf, WriterOptions{})
	o.Trees, o.SpoolDir = []Tree{{"t", dir}}, t.TempDir()
	c, err := NewCapture(o)
	must(t, err)
	defer c.Close()
	must(t, w.AddBytes("parameters", 0o600, []byte("KEY = value\n")))
	must(t, c.First(context.Background(), w))
	if between != nil {
		between()
	}
	res, err := c.Final(context.Background(), w)
	must(t, err)
	must(t, w.Close())
	left, err := os.ReadDir(o.SpoolDir)
	must(t, err)
	if len(left) > 0 {
		t.Errorf("spool left behind: %v", left)
	}
	return buf.Bytes(), res
}

// restore reads a whole tarball into dest and returns the index with the result. It does not wait for the disk;
// restoreSynced does.
func restore(ctx context.Context, tarball io.Reader, o ExtractOptions) (*ExtractResult, []byte, error) {
	r, err := NewReader(tarball)
	if err != nil {
		return nil, nil, err
	}
	return restoreFrom(ctx, r, o)
}

func restoreFrom(ctx context.Context, r *Reader, o ExtractOptions) (*ExtractResult, []byte, error) {
	x, err := NewExtractor(o)
	if err != nil {
		return nil, nil, err
	}
	defer x.Close()
	synced := false
	x.syncFS = func(*os.File) error { synced = true; return nil }
	res, index, err := extract(ctx, r, x)
	if err == nil && !synced {
		err = errors.New("restored without writing to disk")
	}
	return res, index, err
}

func restoreSynced(ctx context.Context, tarball io.Reader, o ExtractOptions) (*ExtractResult, []byte, error) {
	r, err := NewReader(tarball)
	if err != nil {
		return nil, nil, err
	}
	x, err := NewExtractor(o)
	if err != nil {
		return nil, nil, err
	}
	defer x.Close()
	return extract(ctx, r, x)
}

func extract(ctx context.Context, r *Reader, x *Extractor) (*ExtractResult, []byte, error) {
	var err error
	var index []byte
	for {
		m, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		switch {
		case m.Name == IndexName:
			if index, err = io.ReadAll(m); err != nil {
				return nil, nil, err
			}
		case strings.HasPrefix(m.Name, filesPrefix):
			if err := x.Add(m); err != nil {
				return nil, nil, err
			}
		}
	}
	res, err := x.Finish(ctx, bytes.NewReader(index))
	return res, index, err
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// aged makes the files look settled: a clock by which their ctime is long past.
func aged() func() time.Time { return func() time.Time { return time.Now().Add(time.Hour) } }
