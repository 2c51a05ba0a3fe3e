package repo

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"testing"
)

// seal puts a header in front of lines and the right checksum behind them, so that a test reaches what it is about.
func seal(lines string) []byte {
	return sealRaw("[backrest]\nbackrest-format=5\nbackrest-version=\"2.45\"\n\n" + lines)
}

func sealRaw(text string) []byte {
	sum := newINIHash()
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			section = line[1 : len(line)-1]
		} else if key, value, ok := splitKey([]byte(line)); ok {
			sum.add(section, key, value)
		}
	}
	return []byte(text + "\n[backrest]\nbackrest-checksum=\"" + sum.sum() + "\"\n")
}

// archiveExample is the complete file of the format page, section 4.1, with its real checksum.
const archiveExample = `[backrest]
backrest-format=5
backrest-version="2.45"

[db]
db-id=1
db-system-id=7711104096579294441
db-version="15"

[db:history]
1={"db-id":7711104096579294441,"db-version":"15"}

[backrest]
backrest-checksum="8bc60b894282686c92f9a8124e1bbfecab6fc6de"
`

func TestArchiveInfoExample(t *testing.T) {
	a, err := ParseArchiveInfo([]byte(archiveExample))
	if err != nil {
		t.Fatal(err)
	}
	want := &ArchiveInfo{BackrestVersion: "2.45", Current: 1, History: []DB{{ID: 1, SystemID: 7711104096579294441, Version: "15"}}}
	if !reflect.DeepEqual(a, want) {
		t.Fatalf("%+v", a)
	}
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	same(t, "archive.info", b, []byte(archiveExample))
}

// TestEveryByteCounts damages each byte of the example: none may pass unnoticed.
func TestEveryByteCounts(t *testing.T) {
	for i := range archiveExample {
		b := []byte(archiveExample)
		b[i] ^= 1
		a, err := ParseArchiveInfo(b)
		// The empty lines and line ends carry no meaning: joined or split lines must still be refused.
		if err == nil {
			t.Errorf("byte %d (%q) changed to %q: accepted as %+v", i, archiveExample[i], b[i], a)
		} else if !errors.Is(err, ErrFormat) && !errors.Is(err, ErrChecksum) {
			t.Errorf("byte %d: %v", i, err)
		}
	}
	for i := range archiveExample[:len(archiveExample)-1] {
		if _, err := ParseArchiveInfo([]byte(archiveExample[:i])); err == nil {
			t.Errorf("cut off at byte %d: accepted", i)
		}
	}
}

func TestArchiveInfoErrors(t *testing.T) {
	const db = "[db]\ndb-id=1\ndb-system-id=7\ndb-version=\"15\"\n\n[db:history]\n"
	const entry = `1={"db-id":7,"db-version":"15"}` + "\n"
	for what, c := range map[string]struct {
		text []byte
		want error
		name string // in the message
	}{
		"empty":                  {nil, ErrChecksum, "backrest-checksum"},
		"key outside":            {[]byte("a=1\n"), ErrFormat, "outside"},
		"no equal sign":          {seal("[db]\nnonsense\n"), ErrFormat, "nonsense"},
		"float":                  {seal("[db]\ndb-id=1.5\n"), ErrFormat, "db-id"},
		"other format":           {sealRaw("[backrest]\nbackrest-format=6\nbackrest-version=\"9\"\n"), ErrFormat, "6"},
		"no format":              {sealRaw("[backrest]\nbackrest-version=\"9\"\n"), ErrFormat, "backrest-format"},
		"key twice in [db]":      {seal("[backrest]\nbackrest-format=5\n"), ErrFormat, "twice"},
		"history empty":          {seal("[db]\ndb-id=1\ndb-system-id=7\ndb-version=\"15\"\n"), ErrFormat, "db:history"},
		"current missing":        {seal(db + `2={"db-id":7,"db-version":"15"}`), ErrFormat, "db-id"},
		"system id differs":      {seal(db + `1={"db-id":8,"db-version":"15"}`), ErrFormat, "differs"},
		"history id twice":       {seal(db + entry + entry), ErrFormat, "twice"},
		"history id 0":           {seal(db + `0={"db-id":7,"db-version":"15"}`), ErrFormat, "history id"},
		"history id leading 0":   {seal(db + `01={"db-id":7,"db-version":"15"}`), ErrFormat, "history id"},
		"version climbs":         {seal(db + `1={"db-id":7,"db-version":"../15"}`), ErrFormat, "version"},
		"version missing":        {seal(db + `1={"db-id":7}`), ErrFormat, "version"},
		"system id negative":     {seal(db + `1={"db-id":-7,"db-version":"15"}`), ErrFormat, "-7"},
		"system id beyond 64":    {seal(db + `1={"db-id":18446744073709551616,"db-version":"15"}`), ErrFormat, "18446744073709551616"},
		"object key twice":       {seal(db + `1={"db-id":7,"db-id":7,"db-version":"15"}`), ErrFormat, "twice"},
		"object key twice later": {seal(db + `1={"db-version":"15","db-id":7,"db-version":"15"}`), ErrFormat, "twice"},
		"nested without end":     {seal(db + "1=" + strings.Repeat("[", 1<<20)), ErrFormat, "1="},
	} {
		_, err := ParseArchiveInfo(c.text)
		if !errors.Is(err, c.want) || !strings.Contains(fmt.Sprint(err), c.name) {
			t.Errorf("%s: %v, want %v with %q", what, err, c.want, c.name)
		}
	}
}

// TestTolerance: what the original reads, and what it drops, is read here.
func TestTolerance(t *testing.T) {
	a, err := ParseArchiveInfo(seal("[cipher]\ncipher-pass=\"p=\\\"\\\\\\u0041\"\nother=[1,{\"a\":null}]\n\n\n[db]\ndb-id = 10\ndb-id=10\n" +
		"db-new=\"x\"\ndb-system-id=18446744073709551615\ndb-version=\"9.6\"\n[db:history]\n2={\"db-id\":1,\"db-version\":\"9.5\"}\n" +
		"10={ \"db-version\" : \"9.6\" , \"db-id\" : 18446744073709551615, \"zzz\": [true,false] }\n[later]\nx={}"))
	if err != nil {
		t.Fatal(err)
	}
	want := &ArchiveInfo{BackrestVersion: "2.45", CipherPass: `p="\A`, Current: 10,
		History: []DB{{ID: 2, SystemID: 1, Version: "9.5"}, {ID: 10, SystemID: 1<<64 - 1, Version: "9.6"}}}
	if !reflect.DeepEqual(a, want) {
		t.Fatalf("%#v", *a)
	}
	b, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if ten, two := bytes.Index(b, []byte("\n10={")), bytes.Index(b, []byte("\n2={")); ten < 0 || two < ten {
		t.Errorf("history ids are not in byte order:\n%s", b)
	}
	if !bytes.Contains(b, []byte("cipher-pass=\"p=\\\"\\\\A\"\n")) {
		t.Errorf("pass is not written:\n%s", b)
	}
}

// TestStrings: only what must be escaped is.
func TestStrings(t *testing.T) {
	for in, want := range map[string]string{
		"":                             `""`,
		"a/b=c":                        `"a/b=c"`,
		"\"\\\n\r\t\b\f":               `"\"\\\n\r\t\b\f"`,
		"\x01\x1f\x7f\xff\u00e9\u4e16": "\"\x01\x1f\x7f\xff\u00e9\u4e16\"",
	} {
		got := appendJSONString(nil, []byte(in))
		if string(got) != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
		j := jsonReader{b: got}
		if back := j.str(); string(back) != in || j.done() != nil {
			t.Errorf("%q: read back as %q, %v", in, back, j.err)
		}
	}
}

func TestBackupLineErrors(t *testing.T) {
	_, line, _ := strings.Cut(backupExample, "20261122-212347F=")
	line, _, _ = strings.Cut(line, "\n")
	good := map[string]string{}
	if _, err := parseBackupLine("20261122-212347F", []byte(line)); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{`"backrest-format":5,`, `"backrest-version":"2.59.1",`, `"backup-info-repo-size":4,`, `"backup-info-size-delta":3,`,
		`"backup-timestamp-stop":1795382630,`, `"backup-type":"full",`, `"db-id":1,`, `"option-online":true`} {
		bad := strings.Replace(strings.Replace(line, key, "", 1), ",}", "}", 1)
		if bad == line {
			t.Fatalf("%s is not in the example", key)
		}
		good[key] = bad
	}
	for key, bad := range good {
		if _, err := parseBackupLine("20261122-212347F", []byte(bad)); !errors.Is(err, ErrFormat) {
			t.Errorf("without %s: %v", key, err)
		}
	}
	for old, bad := range map[string]string{`"backup-info-size":3`: `"backup-info-size":-3`, `"backup-type":"full"`: `"backup-type":"incr"`,
		`"backup-error":false`: `"backup-error":0`, `"db-id":1`: `"db-id":0`, `"backrest-format":5`: `"backrest-format":4`} {
		if _, err := parseBackupLine("20261122-212347F", []byte(strings.Replace(line, old, bad, 1))); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if _, err := parseBackupLine("latest", []byte(line)); !errors.Is(err, ErrFormat) {
		t.Errorf("label: %v", err)
	}
}

const backupExample = `[backup:current]
20261122-212347F={"backrest-format":5,"backrest-version":"2.59.1","backup-annotation":{"a":"b","note":"first"},"backup-archive-start":null,"backup-archive-stop":null,"backup-error":false,"backup-info-repo-size":4,"backup-info-repo-size-delta":4,"backup-info-repo-size-map":2,"backup-info-repo-size-map-delta":1,"backup-info-size":3,"backup-info-size-delta":3,"backup-timestamp-start":1795382627,"backup-timestamp-stop":1795382630,"backup-type":"full","db-id":1,"option-archive-check":true,"option-archive-copy":false,"option-backup-standby":false,"option-checksum-page":true,"option-compress":true,"option-hardlink":false,"option-online":true}
20261122-212347F_20261122-212351D={"backrest-format":5,"backrest-version":"2.20","backup-archive-start":"000000010000000000000015","backup-archive-stop":"000000010000000000000015","backup-info-repo-size":1,"backup-info-repo-size-delta":1,"backup-info-size":1,"backup-info-size-delta":1,"backup-lsn-start":"0/1500028","backup-lsn-stop":"0/1500100","backup-prior":"20261122-212347F","backup-reference":["20261122-212347F"],"backup-timestamp-start":1795382631,"backup-timestamp-stop":1795382632,"backup-type":"diff","db-id":1,"option-archive-check":true,"option-archive-copy":false,"option-backup-standby":false,"option-checksum-page":true,"option-compress":true,"option-hardlink":false,"option-online":true}

[cipher]
cipher-pass="secret"

[db]
db-catalog-version=202209061
db-control-version=1300
db-id=1
db-system-id=7711109659893631066
db-version="15"

[db:history]
1={"db-catalog-version":202209061,"db-control-version":1300,"db-system-id":7711109659893631066,"db-version":"15"}
`

func TestBackupInfo(t *testing.T) {
	text := seal(backupExample)
	b, err := ParseBackupInfo(text)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := b.Encode()
	if err != nil {
		t.Fatal(err)
	}
	same(t, "backup.info", encoded, text)
	if b.Backups[0].Error == nil || b.Backups[1].Error != nil || b.Backups[1].RepoSizeMap != nil {
		t.Error("optional keys are not told from absent ones")
	}
	if strings.Contains(fmt.Sprintf("%v %+v %#v", b, *b, *b), "secret") {
		t.Error("the pass is printed")
	}
	// Put keeps the order and replaces.
	line := *b.Find("20261122-212347F_20261122-212351D")
	b.Backups = b.Backups[:1]
	b.Put(line)
	line.Size = 5
	b.Put(line)
	other := line
	other.Label, other.Type = "20251122-212347F", Full
	b.Put(other)
	if len(b.Backups) != 3 || b.Backups[0].Label != other.Label || b.Backups[2].Size != 5 {
		t.Errorf("%+v", b.Backups)
	}
	b.Backups = append(b.Backups, other)
	if _, err := b.Encode(); !errors.Is(err, ErrFormat) {
		t.Errorf("label twice: %v", err)
	}
	b.Current = 2
	if _, err := b.Encode(); !errors.Is(err, ErrFormat) {
		t.Errorf("current missing: %v", err)
	}
}

func FuzzInfo(f *testing.F) {
	for _, seed := range []string{archiveExample, backupExample, "[db:history]\n1={}\n", "[x]\na=b={\"c\":[1,\"\\u00e9\"]}\n"} {
		f.Add([]byte(seed), true)
		f.Add([]byte(seed), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, plain bool) {
		if !plain {
			b = seal(string(b)) // past the checksum
		}
		if a, err := ParseArchiveInfo(b); err == nil {
			encoded, err := a.Encode()
			if err != nil {
				t.Fatalf("parsed but not encoded: %v", err)
			}
			again, err := ParseArchiveInfo(encoded)
			if err != nil || !reflect.DeepEqual(a, again) {
				t.Fatalf("%v\n%+v\n%+v", err, a, again)
			}
		}
		if a, err := ParseBackupInfo(b); err == nil {
			encoded, err := a.Encode()
			if err != nil {
				t.Fatalf("parsed but not encoded: %v", err)
			}
			again, err := ParseBackupInfo(encoded)
			if err != nil || !equalBackups(a, again) {
				t.Fatalf("%v\n%+v\n%+v", err, a, again)
			}
		}
	})
}

// equalBackups compares with empty and absent lists alike.
func equalBackups(a, b *BackupInfo) bool {
	for _, info := range []*BackupInfo{a, b} {
		for i := range info.Backups {
			if len(info.Backups[i].References) == 0 {
				info.Backups[i].References = nil
			}
			info.Backups[i].Annotations = maps.Clone(info.Backups[i].Annotations)
		}
	}
	return reflect.DeepEqual(a, b)
}
