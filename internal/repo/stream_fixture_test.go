package repo

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// readTar gives the regular files of repo.tar by their name below repo/.
func readTar(t *testing.T, name string) map[string][]byte {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := make(map[string][]byte)
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimPrefix(path.Clean(h.Name), "repo/")] = b
	}
}

// fixtureReader reads one fixture with nothing but streams and regular expressions.
type fixtureReader struct {
	t     *testing.T
	files map[string][]byte
	blobs int // stored streams compared
	maps  int // block maps decoded and encoded again
}

func (f *fixtureReader) decode(what string, stored []byte, spec StreamSpec) ([]byte, Sums) {
	f.t.Helper()
	var b bytes.Buffer
	sums, err := Decode(&b, bytes.NewReader(stored), spec)
	if err != nil {
		f.t.Fatalf("%s: %v", what, err)
	}
	return b.Bytes(), sums
}

var (
	cipherPassLine = regexp.MustCompile(`(?m)^cipher-pass="([^"]+)"$`)
	manifestLine   = regexp.MustCompile(`(?m)^((?:pg_data|pg_tblspc)/.*?)=(\{.*"checksum".*\})$`)
	referenceLine  = regexp.MustCompile(`(?m)^backup-reference="([^"]+)"$`)
	segmentName    = regexp.MustCompile(`/[0-9A-F]{24}-([0-9a-f]{40})(\.[a-z0-9]+)?$`)
)

func subPass(text []byte) Secret {
	if m := cipherPassLine.FindSubmatch(text); m != nil {
		return Secret(m[1])
	}
	return ""
}

// field gives the value of a manifest line's key, without quotes.
func field(line, key string) string {
	m := regexp.MustCompile(`"` + key + `":"?([^",}]+)`).FindStringSubmatch(line)
	if m == nil {
		return ""
	}
	return m[1]
}

func number(line, key string) int64 {
	n, err := strconv.ParseInt(field(line, key), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func compressOf(name string) CompressType {
	for _, c := range []CompressType{GZ, LZ4, ZST, BZ2} {
		if strings.HasSuffix(name, c.Ext()) {
			return c
		}
	}
	return None
}

// TestFixtureStreams decodes everything that the real pgbackrest stored: segments, whole files, bundled files, super blocks,
// and compares the SHA-1; block maps are encoded again and must be the same bytes.
func TestFixtureStreams(t *testing.T) {
	if testing.Short() {
		t.Skip("needs the fixture repositories; run make test")
	}
	dir := fixtureDir(t)
	for _, name := range []string{"v245-gz-pg15", "v245-lz4-bundle-aes-pg15", "v2591-zst-bundle-block-pg15", "v2591-zst-bundle-block-aes-pg18"} {
		t.Run(name, func(t *testing.T) {
			conf, err := os.ReadFile(filepath.Join(dir, name, "pgbackrest.conf"))
			if err != nil {
				t.Fatal(err)
			}
			var pass Secret
			if m := regexp.MustCompile(`(?m)^repo1-cipher-pass=(.+)$`).FindSubmatch(conf); m != nil {
				pass = Secret(m[1])
			}
			f := &fixtureReader{t: t, files: readTar(t, filepath.Join(dir, name, "repo.tar"))}
			f.segments(pass)
			f.backups(pass)
			t.Logf("%d stored streams, %d block maps", f.blobs, f.maps)
			if f.blobs == 0 || strings.Contains(name, "block") && f.maps == 0 {
				t.Error("nothing was compared")
			}
		})
	}
}

func (f *fixtureReader) segments(pass Secret) {
	var sub Secret
	for name, stored := range f.files {
		if path.Base(name) == "archive.info" {
			text, _ := f.decode(name, stored, StreamSpec{Pass: pass})
			sub = subPass(text)
		}
	}
	for name, stored := range f.files {
		m := segmentName.FindStringSubmatch(name)
		if m == nil {
			continue
		}
		if _, sums := f.decode(name, stored, StreamSpec{Compress: compressOf(name), Pass: sub}); sums.SHA1 != m[1] {
			f.t.Errorf("%s: SHA-1 %s", name, sums.SHA1)
		}
		f.blobs++
	}
}

func (f *fixtureReader) backups(pass Secret) {
	var sub Secret
	for name, stored := range f.files {
		if path.Base(name) == "backup.info" {
			text, _ := f.decode(name, stored, StreamSpec{Pass: pass})
			sub = subPass(text)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		if path.Base(name) != "backup.manifest" {
			continue
		}
		text, _ := f.decode(name, f.files[name], StreamSpec{Pass: sub})
		f.backup(path.Dir(name), string(text), subPass(text))
	}
}

// backup compares all files of one manifest.
func (f *fixtureReader) backup(dir, manifest string, pass Secret) {
	spec := StreamSpec{Compress: CompressType(field(strings.ReplaceAll(manifest, "option-compress-type=", `"option-compress-type":`), "option-compress-type")), Pass: pass}
	bundleRaw := strings.Contains(manifest, "backup-bundle-raw=true")
	references := []string{path.Base(dir)}
	if m := referenceLine.FindStringSubmatch(manifest); m != nil {
		references = strings.Split(m[1], ",")
	}
	for _, m := range manifestLine.FindAllStringSubmatch(manifest, -1) {
		name, line := m[1], m[2]
		owner := path.Join(path.Dir(dir), path.Base(dir))
		if ref := field(line, "reference"); ref != "" {
			owner = path.Join(path.Dir(dir), ref)
		}
		size, stored := number(line, "size"), number(line, "repo-size")
		if stored == 0 {
			stored = size
		}
		object, fspec := path.Join(owner, name)+spec.Compress.Ext(), spec
		offset := number(line, "bno")
		if id := field(line, "bni"); id != "" {
			object, fspec.Raw = path.Join(owner, "bundle", id), bundleRaw
		} else if number(line, "bim") != 0 {
			object = path.Join(owner, name) + ".pgbi"
		}
		if size == 0 {
			continue
		}
		b, ok := f.files[object]
		if !ok || offset+stored > int64(len(b)) {
			f.t.Errorf("%s %s: no %d bytes at %d of %s", dir, name, stored, offset, object)
			continue
		}
		b = b[offset : offset+stored]
		if rck := field(line, "rck"); rck != "" && sha1Hex(b) != rck {
			f.t.Errorf("%s %s: SHA-1 of what is stored differs", dir, name)
		}
		var sum string
		if bim := number(line, "bim"); bim != 0 {
			sum = sha1Hex(f.blockFile(path.Dir(dir), name, references, b[stored-bim:], line, fspec))
		} else {
			_, sums := f.decode(object, b, fspec)
			if sum = sums.SHA1; sums.Size != size || sums.RepoSize != stored {
				f.t.Errorf("%s %s: sums %+v", dir, name, sums)
			}
		}
		if sum != field(line, "checksum") {
			f.t.Errorf("%s %s: SHA-1 %s, the manifest says %s", dir, name, sum, field(line, "checksum"))
		}
		f.blobs++
	}
}

// blockFile puts a block incremental file together.
func (f *fixtureReader) blockFile(stanza, name string, references []string, storedMap []byte, line string, spec StreamSpec) []byte {
	f.t.Helper()
	blockSize := number(line, "bi") * 8192
	sumSize := int(number(line, "bic"))
	if sumSize == 0 {
		sumSize = MinBlockChecksum
	}
	encoded, _ := f.decode(name+": map", storedMap, StreamSpec{Pass: spec.Pass, Raw: true})
	m, err := DecodeBlockMap(encoded, blockSize, sumSize)
	if err != nil {
		f.t.Fatalf("%s: %v", name, err)
	}
	if back, err := m.Encode(); err != nil || !bytes.Equal(back, encoded) {
		f.t.Errorf("%s: map %x is encoded as %x (%v)", name, encoded, back, err)
	}
	f.maps++
	spec.Raw = true
	supers := make(map[string][]byte)
	var out []byte
	for _, ref := range m.Blocks {
		object := path.Join(stanza, references[ref.Reference], name) + ".pgbi"
		if ref.BundleID != 0 {
			object = path.Join(stanza, references[ref.Reference], "bundle", fmt.Sprint(ref.BundleID))
		}
		key := fmt.Sprint(object, "@", ref.Offset)
		super, ok := supers[key]
		if !ok {
			stored := f.files[object]
			if ref.Offset+ref.Size > int64(len(stored)) {
				f.t.Fatalf("%s: super block %+v is outside %s", name, ref, object)
			}
			super, _ = f.decode(key, stored[ref.Offset:ref.Offset+ref.Size], spec)
			supers[key] = super
			if int64(len(super)) != ref.SuperSize {
				f.t.Errorf("%s: super block of %d bytes, the map says %d", key, len(super), ref.SuperSize)
			}
		}
		from := ref.Position * blockSize
		out = append(out, super[from:min(from+blockSize, int64(len(super)))]...)
	}
	return out
}
