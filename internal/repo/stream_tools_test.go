package repo

import (
	"bytes"
	"io"
	"os/exec"
	"testing"
)

// runTool pipes in through a command line tool.
func runTool(t *testing.T, in []byte, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, complaints.String())
	}
	return out.Bytes()
}

// TestStreamTools: the common tools read what we store, and we read what they write.
func TestStreamTools(t *testing.T) {
	if testing.Short() {
		t.Skip("needs gzip, lz4, zstd, bzip2 and openssl; run make test")
	}
	tools := map[CompressType][][]string{ // the ways to compress; the first program reads with -dc
		GZ:  {{"gzip", "-c"}, {"gzip", "-1c"}},
		LZ4: {{"lz4", "-c"}, {"lz4", "-c", "-BD", "-B4"}, {"lz4", "-c", "-BX", "-B7"}, {"lz4", "-9c", "--content-size"}},
		ZST: {{"zstd", "-c"}, {"zstd", "-c", "--ultra", "-22"}, {"zstd", "-c", "--long=27"}, {"zstd", "-c", "--no-check", "-1"}},
		BZ2: {{"bzip2", "-c"}},
	}
	enc := []string{"-aes-256-cbc", "-md", "sha1", "-pass", "pass:hunter2"}
	for _, size := range []int{0, 1, 8191, 8192, 1<<20 + 3} {
		data := pages(size)
		for c, ways := range tools {
			for _, way := range ways {
				stored := runTool(t, data, way[0], way[1:]...)
				var back bytes.Buffer
				if _, err := Decode(&back, bytes.NewReader(stored), StreamSpec{Compress: c}); err != nil || !bytes.Equal(back.Bytes(), data) {
					t.Errorf("reading %d bytes of %v: %v", size, way, err)
				}
				for n := 1; n <= min(len(stored), 20); n++ {
					if _, err := Decode(io.Discard, bytes.NewReader(stored[:len(stored)-n]), StreamSpec{Compress: c}); err == nil {
						t.Errorf("reading %d bytes of %v, cut by %d: no error", size, way, n)
					}
				}
			}
			spec := StreamSpec{Compress: c, Level: DefaultLevel(c)}
			if got := runTool(t, encode(t, data, spec, 10_000), ways[0][0], "-dc"); !bytes.Equal(got, data) {
				t.Errorf("%s reads %d of %d bytes", ways[0][0], len(got), size)
			}
			spec.Pass = "hunter2"
			plain := runTool(t, encode(t, data, spec, 10_000), "openssl", append([]string{"enc", "-d"}, enc...)...)
			if got := runTool(t, plain, ways[0][0], "-dc"); !bytes.Equal(got, data) {
				t.Errorf("openssl and %s read %d of %d bytes", ways[0][0], len(got), size)
			}
		}
		stored := runTool(t, data, "openssl", append([]string{"enc", "-e"}, enc...)...)
		for _, raw := range []bool{false, true} {
			var back bytes.Buffer
			b := stored
			if raw {
				b = b[len(cipherMagic):]
			}
			if _, err := Decode(&back, bytes.NewReader(b), StreamSpec{Pass: "hunter2", Raw: raw}); err != nil || !bytes.Equal(back.Bytes(), data) {
				t.Errorf("reading %d bytes of openssl, raw %t: %v", size, raw, err)
			}
		}
	}
}
