package pg

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestSegmentNames(t *testing.T) {
	const mb = 1 << 20
	for _, test := range []struct {
		timeline uint32
		lsn      LSN
		size     uint32
		want     string
	}{
		{1, 0, 16 * mb, "000000010000000000000000"},
		{1, 16*mb - 1, 16 * mb, "000000010000000000000000"},
		{1, 16 * mb, 16 * mb, "000000010000000000000001"},
		{0xA, 0x1_00000000 - 1, 16 * mb, "0000000A00000000000000FF"},
		{0xA, 0x1_00000000, 16 * mb, "0000000A0000000100000000"},
		{1, 0x1_00000000 - 1, mb, "000000010000000000000FFF"},
		{1, 0x1_00000000 - 1, 1 << 30, "000000010000000000000003"},
		{0xFFFFFFFF, ^LSN(0), mb, "FFFFFFFFFFFFFFFF00000FFF"},
	} {
		got := SegmentName(test.timeline, test.lsn, test.size)
		if got != test.want {
			t.Errorf("SegmentName(%d, %s, %d) = %s, want %s", test.timeline, test.lsn, test.size, got, test.want)
		}
		timeline, start, err := ParseSegmentName(got, test.size)
		if err != nil || timeline != test.timeline || start != test.lsn-test.lsn%LSN(test.size) {
			t.Errorf("ParseSegmentName(%s) = %d, %s, %v", got, timeline, start, err)
		}
	}
	if _, _, err := ParseSegmentName("000000010000000000000100", 16*mb); err == nil {
		t.Error("segment 0x100 of 16 MiB was accepted")
	}
	if _, _, err := ParseSegmentName("000000010000000000000001", 0); err == nil {
		t.Error("segment size 0 was accepted")
	}
}

func TestSegmentsBetween(t *testing.T) {
	const size = 16 << 20
	got := SegmentsBetween(1, 0xFE_000028, 0x1_00000000, size)
	want := []string{"0000000100000000000000FE", "0000000100000000000000FF", "000000010000000100000000"}
	if !slices.Equal(got, want) {
		t.Errorf("SegmentsBetween = %v, want %v (a stop on the boundary includes the segment it begins)", got, want)
	}
	if got := SegmentsBetween(1, 5, 5, size); !slices.Equal(got, []string{"000000010000000000000000"}) {
		t.Errorf("one position: %v", got)
	}
	if got := SegmentsBetween(1, size, size-1, size); len(got) != 0 {
		t.Errorf("stop before start: %v", got)
	}
	if got := SegmentCount(0, ^LSN(0), 1<<20); got != 1<<44 {
		t.Errorf("SegmentCount of everything = %d", got)
	}
}

func TestNames(t *testing.T) {
	const segment = "00000001000000000000000A"
	for _, test := range []struct {
		name                               string
		segment, partial, history, backups bool
	}{
		{name: segment, segment: true},
		{name: segment + ".partial", partial: true},
		{name: "0000000B.history", history: true},
		{name: segment + ".00000028.backup", backups: true},
		{name: "00000001000000000000000a"},
		{name: segment + "0"},
		{name: segment + ".backup"},
		{name: segment + "x00000028.backup"},
		{name: segment + ".00000028.backup\n"},
		{name: "b.history"},
		{name: ".partial"},
		{name: ""},
	} {
		if IsSegmentName(test.name) != test.segment || IsPartialName(test.name) != test.partial ||
			IsHistoryName(test.name) != test.history || IsBackupHistoryName(test.name) != test.backups {
			t.Errorf("%q: %v %v %v %v", test.name, IsSegmentName(test.name), IsPartialName(test.name), IsHistoryName(test.name), IsBackupHistoryName(test.name))
		}
	}
}

// realWALHeader is the start of a segment of a real server; server_test.go writes them with -update.
func realWALHeader(t testing.TB, v Version) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "wal-"+v.String()))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseWALHeader(t *testing.T) {
	for v := minVersion; v <= maxVersion; v++ {
		h, err := ParseWALHeader(realWALHeader(t, v))
		control, _ := ParseControl(realControl(t, v)) // its test is elsewhere
		if err != nil || h.Version != v || h.Magic != v.WALMagic() || h.Timeline != 1 || h.PageAddr < 1<<20 ||
			h.SegmentSize != 1<<20 || h.PageSize != 8192 || h.SystemID != control.SystemID {
			t.Errorf("segment of %v: %+v, %v", v, h, err)
		}
	}
	good := realWALHeader(t, 15)
	change := func(offset int, value byte) []byte {
		b := bytes.Clone(good)
		b[offset] = value
		return b
	}
	for name, b := range map[string][]byte{
		"empty": nil, "short": good[:39], "not the first page": change(2, 0), "address": change(8, 1),
		"segment size": change(34, 3), "page size": change(37, 3),
	} {
		if h, err := ParseWALHeader(b); err == nil {
			t.Errorf("%s: %+v", name, h)
		}
	}
	var unsupported *UnsupportedVersionError
	if _, err := ParseWALHeader(change(0, 0x11)); !errors.As(err, &unsupported) {
		t.Errorf("unknown magic: %v", err)
	}
}

func FuzzWALHeader(f *testing.F) {
	for v := minVersion; v <= maxVersion; v++ {
		f.Add(realWALHeader(f, v))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := ParseWALHeader(b)
		if err != nil {
			return
		}
		name := SegmentName(h.Timeline, h.PageAddr, h.SegmentSize)
		timeline, start, err := ParseSegmentName(name, h.SegmentSize)
		if err != nil || timeline != h.Timeline || start != h.PageAddr || h.Magic != binary.LittleEndian.Uint16(b) {
			t.Fatalf("%+v is segment %s: %d %s %v", h, name, timeline, start, err)
		}
	})
}
