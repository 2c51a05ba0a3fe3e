package repo

import (
	"errors"
	"testing"
	"time"
)

func TestParseLabel(t *testing.T) {
	for _, c := range []struct {
		in   string
		typ  BackupType
		full Label
	}{
		{"20261122-212241F", Full, "20261122-212241F"},
		{"20261122-212241F_20261122-212245D", Diff, "20261122-212241F"},
		{"20261122-212241F_20261122-212249I", Incr, "20261122-212241F"},
		{"", "", ""},
		{"20261122-212241D", "", ""},
		{"20261122-212241f", "", ""},
		{"2026112-2212241F", "", ""},
		{"20261122-212241F_", "", ""},
		{"20261122-212241F_20261122-212245F", "", ""},
		{"20261122-212241F-20261122-212245D", "", ""},
		{"20261122-212241F_20261122-21224xD", "", ""},
		{"20261122-212241F_20261122-212245D\n", "", ""},
		{"../../../../../F", "", ""},
	} {
		l, err := ParseLabel(c.in)
		if c.typ == "" {
			if !errors.Is(err, ErrFormat) {
				t.Errorf("%q: %v, want ErrFormat", c.in, err)
			}
			continue
		}
		if err != nil || string(l) != c.in || l.Type() != c.typ || l.FullLabel() != c.full {
			t.Errorf("%q: %q %v, type %s, full %s", c.in, l, err, l.Type(), l.FullLabel())
		}
	}
}

func TestNewLabel(t *testing.T) {
	zone := time.FixedZone("east", 3600)
	at := time.Date(2026, 11, 22, 20, 22, 41, 999, time.UTC).In(zone)
	const full = Label("20261122-212241F")
	for _, c := range []struct {
		what         string
		typ          BackupType
		full, newest Label
		want         Label
		err          error
	}{
		{"first", Full, "", "", full, nil},
		{"after an older one", Full, "", "20261121-000000F", full, nil},
		{"in the same second", Full, "", full, "20261122-212242F", nil},
		{"after a diff in the same second", Full, "", "20261122-212200F_20261122-212241D", "20261122-212242F", nil},
		{"over midnight", Full, "", "20261122-235959F", "20261123-000000F", nil},
		{"clock went back an hour", Full, "", "20261122-222241F", "20261122-222242F", nil},
		{"clock is wrong", Full, "", "20271122-222241F", "", ErrClock},
		{"newest is no date", Full, "", "99999999-999999F", "", ErrClock},
		{"newest is no label", Full, "", "latest", "", ErrFormat},
		{"diff", Diff, "20261122-212200F", "20261122-212200F", "20261122-212200F_20261122-212241D", nil},
		{"incr in the same second", Incr, "20261122-212200F", "20261122-212200F_20261122-212241D", "20261122-212200F_20261122-212242I", nil},
		{"diff, newest of another set", Diff, "20261122-212200F", "20261122-213000F", "20261122-212200F_20261122-212241D", nil},
		{"diff, own full ahead of the clock", Diff, "20261122-213000F", "", "20261122-213000F_20261122-213001D", nil},
		{"diff without a full", Diff, "", full, "", ErrFormat},
		{"diff on a diff", Diff, "20261122-212200F_20261122-212241D", "", "", ErrFormat},
		{"unknown type", "copy", full, "", "", ErrFormat},
	} {
		got, err := NewLabel(at, c.typ, c.full, c.newest)
		if got != c.want || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
			t.Errorf("%s: %q, %v; want %q, %v", c.what, got, err, c.want, c.err)
		}
		if err == nil && c.newest.FullLabel() == got.FullLabel() && got <= c.newest {
			t.Errorf("%s: %s does not sort after %s", c.what, got, c.newest)
		}
	}
	if _, err := NewLabel(time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC), Full, "", ""); !errors.Is(err, ErrClock) {
		t.Errorf("year 10000: %v", err)
	}
}

func TestPaths(t *testing.T) {
	const segment, hash = "000000010000000A000000FE", "587b596f04f7db9c2cad3d6b87dd2b3a05de4f35"
	if got := SegmentPath("demo", ArchiveID("15", 1), segment, hash, ZST); got != "archive/demo/15-1/000000010000000A/"+segment+"-"+hash+".zst" {
		t.Error(got)
	}
	if got := SegmentDir("demo", "15-1", "00000002.history"); got != "archive/demo/15-1" {
		t.Error(got)
	}
	if got := HistoryManifestPath("demo", "20251231-235959F_20260101-000005D"); got != "backup/demo/backup.history/2025/20251231-235959F_20260101-000005D.manifest.gz" {
		t.Error(got)
	}
	for _, c := range []struct {
		name, segment string
		c             CompressType
	}{
		{segment + "-" + hash, segment, None},
		{segment + "-" + hash + ".gz", segment, GZ},
		{segment + "-" + hash + ".lz4", segment, LZ4},
		{segment + "-" + hash + ".bz2", segment, BZ2},
		{segment + ".partial-" + hash + ".zst", segment + ".partial", ZST},
		{segment + "-" + hash + ".xz", segment, "xz"},
		{segment + "-" + hash + ".zip", "", ""},
		{segment + ".00000028.backup", "", ""},
		{segment + "-" + hash[1:], "", ""},
		{segment + "-" + hash[1:] + "A", "", ""},
		{segment[1:] + "-" + hash, "", ""},
		{"0000000100000000000000aa-" + hash, "", ""},
		{"00000002.history", "", ""},
		{segment, "", ""},
		{"", "", ""},
	} {
		s, h, comp, ok := ParseSegmentObject(c.name)
		if ok != (c.segment != "") || s != c.segment || comp != c.c || ok && h != hash {
			t.Errorf("%q: %q %q %q %v", c.name, s, h, comp, ok)
		}
	}
	for name, want := range map[string]bool{"15-1": true, "9.6-12": true, "15-0": false, "15-01": false, "15": false, "-1": false,
		"../x-1": false, "15.-1": false, "15--1": false} {
		version, id, ok := ParseArchiveID(name)
		if ok != want || ok && ArchiveID(version, id) != name {
			t.Errorf("%q: %q %d %v", name, version, id, ok)
		}
	}
}

func FuzzLabel(f *testing.F) {
	f.Add("20261122-212241F", int64(1795382561))
	f.Add("20261122-212241F_20261122-212245D", int64(0))
	f.Add("20261122-212241F_20261122-212245I", int64(1795382561))
	f.Add("99991231-235959F", int64(253402300799))
	f.Add("latest", int64(-1))
	f.Fuzz(func(t *testing.T, s string, unix int64) {
		l, err := ParseLabel(s)
		if err != nil {
			if Label(s).FullLabel() != "" && len(s) < fullLabelLen {
				t.Fatal("a short text has a full label")
			}
			return
		}
		if again, err := ParseLabel(string(l.FullLabel())); err != nil || again.Type() != Full {
			t.Fatalf("full label of %q: %v", l, err)
		}
		at := time.Unix(unix, 0).UTC()
		for _, typ := range []BackupType{Full, Diff, Incr} {
			full := l.FullLabel()
			if typ == Full {
				full = ""
			}
			made, err := NewLabel(at, typ, full, l)
			if err != nil {
				continue
			}
			if again, err := ParseLabel(string(made)); err != nil || again.Type() != typ || made <= l {
				t.Fatalf("%q after %q: %v", made, l, err)
			}
		}
	})
}
