package repo

import (
	"bytes"
	"fmt"
	"io"
	"testing"
)

func benchSpecs() []StreamSpec {
	return []StreamSpec{
		{Compress: None}, {Compress: None, Pass: "x"},
		{Compress: ZST, Level: 1}, {Compress: ZST, Level: 3}, {Compress: ZST, Level: 3, Pass: "x"}, {Compress: ZST, Level: 6},
		{Compress: LZ4, Level: 1}, {Compress: GZ, Level: 1}, {Compress: GZ, Level: 6},
	}
}

// BenchmarkStreamWriter stores pages: a segment file's worth, and many small files.
func BenchmarkStreamWriter(b *testing.B) {
	for _, size := range []int{8192, 64 << 20} {
		data := pages(size)
		for _, spec := range benchSpecs() {
			b.Run(fmt.Sprintf("%s/%d", specName(spec), size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				var stored int64
				for b.Loop() {
					w, err := NewStreamWriter(io.Discard, spec)
					if err != nil {
						b.Fatal(err)
					}
					for rest := data; len(rest) > 0; {
						n := min(128<<10, len(rest))
						if _, err := w.Write(rest[:n]); err != nil {
							b.Fatal(err)
						}
						rest = rest[n:]
					}
					if err := w.Close(); err != nil {
						b.Fatal(err)
					}
					stored = w.Sums().RepoSize
				}
				b.ReportMetric(float64(size)/float64(stored), "ratio")
			})
		}
	}
}

func BenchmarkStreamReader(b *testing.B) {
	for _, size := range []int{8192, 64 << 20} {
		data := pages(size)
		for _, spec := range benchSpecs() {
			stored := encode(b, data, spec, 128<<10)
			b.Run(fmt.Sprintf("%s/%d", specName(spec), size), func(b *testing.B) {
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					if _, err := Decode(io.Discard, bytes.NewReader(stored), spec); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
