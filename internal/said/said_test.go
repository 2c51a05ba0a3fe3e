package said

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// TestLines: however the pieces come, the lines are the same, bounded in number and length, and printable.
func TestLines(t *testing.T) {
	var text strings.Builder
	for i := range 20 {
		fmt.Fprintf(&text, "line %d\r\n\n", i)
	}
	text.WriteString(strings.Repeat("x", 3*MaxLine) + "\nbad \x1b[31m \xff\nnot ended")
	want := []string{}
	for i := range 20 {
		want = append(want, fmt.Sprintf("line %d", i))
	}
	want = append(want, strings.Repeat("x", MaxLine), "bad ?[31m ?", "not ended")
	for size := 1; size < text.Len(); size += 7 {
		got := []string{}
		l := Lines{Each: func(s string) { got = append(got, s) }}
		for b := []byte(text.String()); len(b) > 0; {
			n := min(size, len(b))
			if m, err := l.Write(b[:n]); m != n || err != nil {
				t.Fatal(m, err)
			}
			b = b[n:]
		}
		l.End()
		l.End()
		if !slices.Equal(got, want) || !slices.Equal(l.Last, want[len(want)-MaxLines:]) {
			t.Fatalf("in pieces of %d:\n%q\n%q", size, got, l.Last)
		}
	}
}
