package engine_test

import (
	"archive/tar"
	"compress/bzip2"
	"compress/gzip"
	"compress/zlib"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/zeebo/xxh3"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// pageReader reads a repository as the format page tells it, with nothing of packages repo and engine: what our writer and our
// reader might both have misunderstood, it has not. It is slow and holds everything in memory. Its errors name the section.
type pageReader struct {
	objects map[string]string
	pass    string // of the repository
}

// infoFile is a container of section 4: section → key → JSON.
type infoFile map[string]map[string]json.RawMessage

func (f infoFile) text(section, key string) string {
	var s string
	if raw, ok := f[section][key]; ok {
		_ = json.Unmarshal(raw, &s) // "" for what is no text
	}
	return s
}

// info reads a container and compares its checksum (4.4).
func (p *pageReader) info(name, pass string) (infoFile, error) {
	text, err := decryptAs(p.objects[name], pass, false)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	file, section, want := infoFile{}, "", ""
	var hashed strings.Builder
	began := false
	for line := range strings.SplitSeq(text, "\n") {
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section, began = line[1:len(line)-1], false
			if file[section] == nil {
				file[section] = map[string]json.RawMessage{}
			}
			continue
		}
		key, value := "", ""
		for i := range line {
			if line[i] == '=' && json.Valid([]byte(line[i+1:])) {
				key, value = line[:i], line[i+1:]
				break
			}
		}
		if key == "" {
			return nil, fmt.Errorf("%s: 4.2: %q", name, line)
		}
		file[section][key] = json.RawMessage(value)
		if key == "backrest-checksum" {
			want = strings.Trim(value, `"`)
			continue
		}
		switch {
		case began:
			hashed.WriteString(",")
		case hashed.Len() == 0:
			fmt.Fprintf(&hashed, `{"%s":{`, section)
		default:
			fmt.Fprintf(&hashed, `},"%s":{`, section)
		}
		began = true
		fmt.Fprintf(&hashed, `"%s":%s`, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(key), value)
	}
	hashed.WriteString("}}")
	if got := fmt.Sprintf("%x", sha1.Sum([]byte(hashed.String()))); got != want {
		return nil, fmt.Errorf("%s: 4.4: checksum %s, the file says %q", name, got, want)
	}
	return file, nil
}

// decryptAs is section 8.3; pass "" leaves the bytes alone.
func decryptAs(text, pass string, raw bool) (string, error) {
	if pass == "" {
		return text, nil
	}
	if !raw {
		rest, ok := strings.CutPrefix(text, "Salted__")
		if !ok {
			return "", errors.New("8.3: no Salted__")
		}
		text = rest
	}
	if len(text) < 8+aes.BlockSize || (len(text)-8)%aes.BlockSize != 0 {
		return "", fmt.Errorf("8.3: %d bytes", len(text))
	}
	var derived, d []byte
	for len(derived) < 48 {
		sum := sha1.Sum([]byte(string(d) + pass + text[:8]))
		d = sum[:]
		derived = append(derived, d...)
	}
	block, err := aes.NewCipher(derived[:32])
	if err != nil {
		return "", err
	}
	out := []byte(text[8:])
	cipher.NewCBCDecrypter(block, derived[32:48]).CryptBlocks(out, out)
	pad := int(out[len(out)-1])
	if pad < 1 || pad > aes.BlockSize {
		return "", fmt.Errorf("8.3: padding %d", pad)
	}
	return string(out[:len(out)-pad]), nil
}

// decompressAs is section 8.2.
func decompressAs(text, kind string, raw bool) (string, error) {
	in := strings.NewReader(text)
	var r io.Reader
	var err error
	switch {
	case kind == "none":
		r = in
	case kind == "gz" && raw:
		r, err = zlib.NewReader(in)
	case kind == "gz":
		r, err = gzip.NewReader(in)
	case kind == "lz4":
		r = lz4.NewReader(in)
	case kind == "zst":
		r, err = zstd.NewReader(in)
	case kind == "bz2":
		r = bzip2.NewReader(in)
	default:
		err = fmt.Errorf("8.2: compression %q", kind)
	}
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	return string(b), err
}

// pageFile is a line of [target:file] (7.8).
type pageFile struct {
	Bi, Bic, Bim, Bni, Bno int64
	Checksum, Rck          string
	RepoSize               *int64 `json:"repo-size"`
	Size                   int64
	Reference              string
}

// backup gives every file of one backup.
func (p *pageReader) backup(label string) (map[string]string, error) {
	info, err := p.info("backup/demo/backup.info", p.pass)
	if err != nil {
		return nil, err
	}
	m, err := p.info("backup/demo/"+label+"/backup.manifest", info.text("cipher", "cipher-pass"))
	if err != nil {
		return nil, err
	}
	if m.text("backup", "backup-label") != label {
		return nil, fmt.Errorf("7.10: the label is %s", m.text("backup", "backup-label"))
	}
	files := map[string]string{}
	for name, line := range m["target:file"] {
		f := pageFile{Bic: 6}
		if err := json.Unmarshal(line, &f); err != nil {
			return nil, err
		}
		content, err := p.file(m, label, name, &f)
		if err == nil && (int64(len(content)) != f.Size || f.Size > 0 && fmt.Sprintf("%x", sha1.Sum([]byte(content))) != f.Checksum) {
			err = fmt.Errorf("7.8: %d bytes instead of %d, or another checksum", len(content), f.Size)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		files[name] = content
	}
	return files, nil
}

// file finds the data of a file (7.8) and decodes it.
func (p *pageReader) file(m infoFile, label, name string, f *pageFile) (string, error) {
	if f.Size == 0 {
		return "", nil
	}
	in := label
	if f.Reference != "" {
		in = f.Reference
	}
	kind, pass := m.text("backup:option", "option-compress-type"), m.text("cipher", "cipher-pass")
	bundleRaw := string(m["backup"]["backup-bundle-raw"]) == "true"
	object := "backup/demo/" + in + "/" + name
	switch {
	case f.Bni > 0:
		object = fmt.Sprintf("backup/demo/%s/bundle/%d", in, f.Bni)
	case f.Bim > 0:
		object += ".pgbi"
	case kind != "none":
		object += "." + kind
	}
	stored, ok := p.objects[object]
	size := f.Size
	if f.RepoSize != nil {
		size = *f.RepoSize
	}
	if !ok || int64(len(stored)) < f.Bno+size || f.Bni == 0 && int64(len(stored)) != size {
		return "", fmt.Errorf("7.8: %s has %d bytes, not %d from %d on (there: %t)", object, len(stored), size, f.Bno, ok)
	}
	stored = stored[f.Bno : f.Bno+size]
	if sum := fmt.Sprintf("%x", sha1.Sum([]byte(stored))); f.Rck != "" && f.Rck != sum || f.Rck == "" && (kind != "none" || pass != "" || f.Bim > 0) {
		return "", fmt.Errorf("7.8: rck is %q, the stored bytes give %s", f.Rck, sum)
	}
	if f.Bim > 0 {
		return p.image(m, name, f, stored, kind, pass)
	}
	raw := f.Bni > 0 && bundleRaw
	text, err := decryptAs(stored, pass, raw)
	if err != nil {
		return "", err
	}
	return decompressAs(text, kind, raw)
}

// place is where a block is.
type place struct {
	ref, bundle, offset, size, super, at int64
	sum                                  string
}

// image puts a block incremental file together (9.2, 9.5).
func (p *pageReader) image(m infoFile, name string, f *pageFile, stored, kind, pass string) (string, error) {
	text, err := decryptAs(stored[int64(len(stored))-f.Bim:], pass, true)
	if err != nil {
		return "", err
	}
	blocks, err := readMap([]byte(text), f.Bi*8192, f.Bic)
	if err != nil {
		return "", err
	}
	refs := strings.Split(m.text("backup", "backup-reference"), ",")
	var file strings.Builder
	decoded := map[string]string{} // super blocks of this file
	for i, b := range blocks {
		if b.ref >= int64(len(refs)) {
			return "", fmt.Errorf("9.3: reference %d of %d", b.ref, len(refs))
		}
		object := "backup/demo/" + refs[b.ref] + "/" + name + ".pgbi"
		if b.bundle > 0 {
			object = fmt.Sprintf("backup/demo/%s/bundle/%d", refs[b.ref], b.bundle)
		}
		from := p.objects[object]
		if int64(len(from)) < b.offset+b.size {
			return "", fmt.Errorf("9.5: block %d: %s has %d bytes", i, object, len(from))
		}
		key := fmt.Sprintf("%s@%d+%d", object, b.offset, b.size)
		super, known := decoded[key]
		if !known {
			if super, err = decryptAs(from[b.offset:b.offset+b.size], pass, true); err == nil {
				super, err = decompressAs(super, kind, true)
			}
		}
		if decoded[key] = super; err == nil && int64(len(super)) != b.super {
			err = fmt.Errorf("%d bytes instead of %d", len(super), b.super)
		}
		if err != nil {
			return "", fmt.Errorf("9.5: block %d: super block at %d of %s: %w", i, b.offset, object, err)
		}
		block := super[b.at*f.Bi*8192 : min((b.at+1)*f.Bi*8192, b.super)]
		sum := xxh3.Hash128([]byte(block)).Bytes()
		if b.sum != hex.EncodeToString(sum[:f.Bic]) {
			return "", fmt.Errorf("9.2: block %d has another checksum than its map says", i)
		}
		file.WriteString(block)
	}
	return file.String(), nil
}

// readMap is section 9.3.
func readMap(b []byte, blockSize, sumSize int64) (blocks []place, err error) {
	defer func() {
		if e := recover(); e != nil { // an index beyond the end
			err = fmt.Errorf("9.3: %v", e)
		}
	}()
	v := func() int64 {
		n, k := binary.Uvarint(b)
		if k <= 0 {
			panic("no number")
		}
		b = b[k:]
		return int64(n)
	}
	type state struct{ place }
	refs := map[int64]*state{}
	previous := int64(0)
	if v() != 0 {
		return nil, errors.New("9.3: flags")
	}
	for last := false; !last; {
		head := v()
		ref := head >> 3
		last = head&1 != 0
		s, seen := refs[ref]
		continued, next := false, int64(0)
		switch {
		case !seen:
			s = &state{place{ref: ref, super: blockSize}}
			refs[ref] = s
			if head&2 != 0 {
				s.bundle = v()
			}
			if head&4 != 0 {
				next = v()
			}
		case head&2 != 0:
			continued = true
		default:
			next = s.offset + s.size
			if head&4 != 0 {
				next += v()
			}
		}
		for end := false; !end; {
			total := true
			if continued {
				continued, end = false, head&4 != 0
			} else {
				h := v()
				size := h >> 3
				if previous != 0 {
					if size&1 != 0 {
						size = previous - (size+1)/2
					} else {
						size = previous + size/2
					}
				}
				s.offset, s.size, s.at = next, size, 0
				if h&2 != 0 {
					q := v()
					s.super = q >> 1 * blockSize
					if q&1 != 0 {
						s.super += v()
					}
				}
				end, total = h&1 != 0, h&4 != 0
			}
			previous = s.size
			next = s.offset + s.size
			n := (s.super + blockSize - 1) / blockSize
			if total {
				q := v()
				n = q>>1 + 1
				if q&1 != 0 {
					s.at += v()
				}
			}
			for range n {
				s.sum = hex.EncodeToString(b[:sumSize])
				b = b[sumSize:]
				blocks = append(blocks, s.place)
				s.at++
			}
		}
	}
	if len(b) > 0 {
		return nil, fmt.Errorf("9.3: %d bytes behind the map", len(b))
	}
	return blocks, nil
}

// TestIndependentReader: what our backups of every kind store, the reader of the format page puts together again: file for
// file as the data directory was.
func TestIndependentReader(t *testing.T) {
	read, inBlocks := 0, 0
	for _, compress := range []repo.CompressType{repo.None, repo.GZ, repo.LZ4, repo.ZST, repo.BZ2} {
		for i, o := range []engine.BackupOptions{{}, {Bundle: true}, {Block: true}, {Bundle: true, Block: true}, {Bundle: true, Block: true, BundleSize: 100_000, BundleLimit: 200_000, Delta: true}} {
			if i != 3 && (testing.Short() || compress == repo.BZ2) { // bz2 is slow
				continue
			}
			r, m := newStore(t)
			if i%2 == 0 {
				r.pass = ""
				m = storage.NewMem(nil)
				must(t, r.create(t.Context(), m))
			}
			o.Compress, o.Level = compress, 1
			big := []byte(scribble(7, 700*8192)) // several super blocks
			r.touch("base/16384/2001", string(big), 40*24*time.Hour)
			r.touch("base/16384/2002", scribble(8, 9*8192+5), 30*24*time.Hour)
			for step, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Diff, repo.Incr, repo.Incr} {
				o.Type = typ
				if step > 0 {
					for _, page := range []int{step, 2 * step, 130 + step, 131, 256, 699 - step} {
						copy(big[page*8192+100*step:], fmt.Sprintf("change %d", step))
					}
					r.touch("base/16384/2001", string(big[:len(big)-step*1000]), time.Duration(20-step)*time.Hour)
					r.touch("base/16384/2002", scribble(8, []int{0, 9*8192 + 5, 3 * 8192, 20 * 8192, 100}[step]), time.Duration(20-step)*time.Hour)
					r.touch(fmt.Sprintf("base/16384/30%02d", step), scribble(uint64(step), step*30_000), time.Duration(20-step)*time.Hour)
				}
				if step == 3 && o.Block { // switched off and on again within the set
					o.Block, o.Bundle = false, !o.Bundle
				} else if step == 4 && i >= 2 {
					o.Block = true
				}
				res, _ := r.mustBackup(m, o)
				files, err := (&pageReader{contents(t, m), string(r.pass)}).backup(string(res.Label))
				if err != nil {
					t.Fatalf("%s, options %d, backup %d: %v", compress, i, step, err)
				}
				for name, content := range tree(t, r.server.dir) {
					if info, err := os.Lstat(filepath.Join(r.server.dir, name)); err != nil || !info.Mode().IsRegular() || !strings.HasPrefix(name, "base/") {
						continue
					}
					if got, ok := files["pg_data/"+name]; !ok || got != content {
						t.Errorf("%s, options %d, backup %d: %s has %d bytes, not %d", compress, i, step, name, len(got), len(content))
					}
				}
				read += len(files)
				inBlocks += blockFiles(r.manifest(m, res.Label))
			}
		}
	}
	if inBlocks < 10 || read < 200 {
		t.Errorf("%d files, %d in blocks", read, inBlocks)
	}
	tally.Count(t, "files read back by a reader of the format page", read)
}

// blockFiles counts the files of a backup that are stored in blocks.
func blockFiles(m *repo.Manifest) (n int) {
	for i := range m.Files {
		if m.Files[i].BlockMapSize > 0 {
			n++
		}
	}
	return n
}

// TestIndependentReaderOfTheirs holds the reader itself to what pgBackRest wrote: with our writer alone it could share a
// misunderstanding of the page.
func TestIndependentReaderOfTheirs(t *testing.T) {
	for text, want := range map[string]int{ // section 9.4
		"00 07 01 aa989b01 bb09 06 84f806390a02 298e21c37795 e0364e8e3bc5":                                              3,
		"00 16 01 9202 9f0d 06 02 278416d72ad4 f3ff595b7294 06 02 b9ac4b e705 08 01 02 2ac0819e5c02 17 00 107883c21356": 4,
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
		must(t, err)
		blocks, err := readMap(b, 8192, 6)
		if err != nil || len(blocks) != want {
			t.Errorf("%s: %d blocks, %v", text, len(blocks), err)
		}
	}
	tars, err := filepath.Glob(filepath.Join(fixtures(t), "*", "repo.tar"))
	must(t, err)
	if len(tars) < 4 {
		t.Fatalf("only %d repositories of pgbackrest", len(tars))
	}
	for _, file := range tars {
		if testing.Short() && !strings.Contains(file, "block-aes") {
			continue
		}
		p := &pageReader{objects: untar(t, file)}
		if strings.Contains(file, "aes") {
			p.pass = "fixture-pass" // in its pgbackrest.conf
		}
		sums, err := filepath.Glob(filepath.Join(filepath.Dir(file), "expected-*.sha256"))
		must(t, err)
		for _, expected := range sums {
			label := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(expected), "expected-"), ".sha256")
			files, err := p.backup(label)
			must(t, err)
			text, err := os.ReadFile(expected)
			must(t, err)
			compared := 0
			for line := range strings.Lines(string(text)) {
				want, name, _ := strings.Cut(strings.TrimSpace(line), "  ./")
				content, ok := files["pg_data/"+name]
				if !ok {
					content, ok = files[name] // of a tablespace
				}
				if !ok || name == "postgresql.auto.conf" || name == "global/pg_control" { // which a restore writes, or changes
					continue
				}
				compared++
				if got := fmt.Sprintf("%x", sha256.Sum256([]byte(content))); got != want {
					t.Errorf("%s, %s: %s has SHA-256 %s, not %s", file, label, name, got, want)
				}
			}
			if compared < 900 || compared < len(files)-10 {
				t.Errorf("%s, %s: %d of %d files compared", file, label, compared, len(files))
			}
		}
	}
}

// fixtures finds the repositories that pgbackrest wrote, beside the project's root.
func fixtures(t *testing.T) string {
	t.Helper()
	at, err := os.Getwd()
	must(t, err)
	for ; ; at = filepath.Dir(at) {
		dir := filepath.Join(at, "shared/fixtures")
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
		if at == "/" {
			t.Fatal("the fixtures are expected beside the project, at ../shared/fixtures")
		}
	}
}

// untar reads the files of a repository's archive.
func untar(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	all := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		must(t, err)
		if h.Typeflag == tar.TypeReg {
			b, err := io.ReadAll(r)
			must(t, err)
			all[strings.TrimPrefix(strings.TrimPrefix(h.Name, "./"), "repo/")] = string(b)
		}
	}
}
