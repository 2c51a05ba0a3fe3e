package repo

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

// Frames that were made one by one, of every size around the limits, are one stream when put together.
func TestFramesAreOneStream(t *testing.T) {
	var text []byte
	for i := range 60_000 {
		text = fmt.Appendf(text, "row %d of a table, state %d\n", i, i%13)
	}
	for len(text) < 9<<20 {
		text = append(text, text...)
	}
	for _, kind := range []CompressType{ZST, LZ4} {
		for level := range 4 {
			spec := StreamSpec{Compress: kind, Level: []int{1, 3, 7, 12}[level]}
			var stored, want []byte
			for _, n := range []int{1, smallFrame - 1, smallFrame, smallFrame + 1, 17, 1 << 20, 9 << 20, 100} {
				var err error
				if stored, err = AppendFrame(stored, text[:n], spec); err != nil {
					t.Fatal(err)
				}
				want = append(want, text[:n]...)
			}
			r, err := NewStreamReader(bytes.NewReader(stored), spec)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s level %d: %d bytes came back, %v; want %d", kind, spec.Level, len(got), err, len(want))
			}
			r.Close()
			if len(stored) > len(want)/2 {
				t.Errorf("%s level %d: %d bytes stored of %d", kind, spec.Level, len(stored), len(want))
			}
		}
	}
}
