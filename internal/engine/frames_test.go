package engine

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"math/rand/v2"
	"runtime"
	"testing"

	"holdfast/internal/repo"
)

// TestFramesMemory: a segment that does not get smaller takes little more memory than what is stored of it.
func TestFramesMemory(t *testing.T) {
	text := make([]byte, 16<<20)
	r := rand.NewChaCha8([32]byte{1})
	if _, err := r.Read(text); err != nil {
		t.Fatal(err)
	}
	want := sha1.Sum(text)
	for _, spec := range []repo.StreamSpec{{Compress: repo.ZST, Level: 1}, {Compress: repo.LZ4, Level: 1}} {
		for range 2 { // the first fills the pools of encoders
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			e, err := encodeFrames(t.Context(), bytes.NewReader(text), int64(len(text)), spec)
			runtime.ReadMemStats(&after)
			if err != nil || e.sum != hex.EncodeToString(want[:]) {
				t.Fatalf("%s: %v", spec.Compress, err)
			}
			var back bytes.Buffer
			if _, err := repo.Decode(&back, bytes.NewReader(bytes.Join(e.parts, nil)), spec); err != nil || !bytes.Equal(back.Bytes(), text) {
				t.Errorf("%s: %v", spec.Compress, err)
			}
			e.release()
			if took := after.TotalAlloc - before.TotalAlloc; took > 2*uint64(len(text))+8<<20 {
				t.Errorf("%s: %d MiB are allocated for a segment of %d", spec.Compress, took>>20, len(text)>>20)
			}
		}
	}
}
