package pg

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestParseHistory(t *testing.T) {
	const text = "1\t0/A000198\tbefore 2000-01-01 00:00:00+00\n\n# a comment\n  2 \t 0/B000028\tno recovery target specified\r\n10\t1/0\n"
	want := []TimelineEntry{
		{1, 0xA000198, "before 2000-01-01 00:00:00+00"},
		{2, 0xB000028, "no recovery target specified"},
		{10, 1 << 32, ""},
	}
	got, err := ParseHistory(strings.NewReader(text))
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("ParseHistory = %+v, %v", got, err)
	}
	if got, err := ParseHistory(strings.NewReader("")); err != nil || len(got) != 0 {
		t.Errorf("empty file: %v, %v", got, err)
	}
	for _, bad := range []string{
		"1", "1 x", "x 0/1", "-1 0/1", "0 0/1", "4294967296 0/1", "1 0/1\n1 0/2", "2 0/1\n1 0/2", "1 0/2\n2 0/1",
		"1 0/1 " + strings.Repeat("x", maxHistoryLine),
	} {
		if got, err := ParseHistory(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), "line ") {
			t.Errorf("%.40q: %v, %v", bad, got, err)
		}
	}
}

func FuzzHistory(f *testing.F) {
	f.Add("1\t0/A000198\tno recovery target specified\n\n2\t0/B000028\tat restore point \"x\"\n")
	f.Add("# only\n\n")
	f.Add("1 0/2\n2 0/1\n")
	f.Fuzz(func(t *testing.T, text string) {
		entries, err := ParseHistory(strings.NewReader(text))
		if err != nil {
			return
		}
		var written strings.Builder
		for i, e := range entries {
			if i > 0 && (e.Timeline <= entries[i-1].Timeline || e.Switch < entries[i-1].Switch) {
				t.Fatalf("backwards: %+v", entries)
			}
			fmt.Fprintf(&written, "%d\t%s\t%s\n", e.Timeline, e.Switch, e.Reason)
		}
		again, err := ParseHistory(strings.NewReader(written.String()))
		if err != nil || !slices.Equal(again, entries) {
			t.Fatalf("%+v written and read again: %+v, %v", entries, again, err)
		}
	})
}
