package repo

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
)

// testManifest is a small complete diff with a tablespace, links, odd names and every optional key.
func testManifest() *Manifest {
	own := Owner{User: "postgres", Group: "postgres", Mode: 0o600}
	dir := Owner{User: "postgres", Group: "postgres", Mode: 0o700}
	const full, label = Label("20261122-212347F"), Label("20261122-212347F_20261122-212351D")
	const hash = "587b596f04f7db9c2cad3d6b87dd2b3a05de4f35"
	return &Manifest{
		BackrestVersion: "holdfast", Label: label, Type: Diff, Prior: full, References: []Label{full, label},
		ArchiveStart: "000000010000000000000015", ArchiveStop: "000000010000000000000015", LSNStart: "0/1500028", LSNStop: "0/1500100",
		TimeStart: 1795382631, TimeCopyStart: 1795382632, TimeStop: 1795382632, BlockIncr: true, Bundle: true, BundleRaw: true,
		DB: DB{ID: 1, SystemID: 1<<64 - 1, Version: "15", ControlVersion: 1300, CatalogVersion: 202209061},
		Options: ManifestOptions{ArchiveCheck: true, ChecksumPage: true, Compress: true, Online: true, BufferSize: 1 << 20, CompressLevel: -3,
			CompressLevelNetwork: 1, CompressType: ZST, ProcessMax: 2},
		Annotations: map[string]string{"note": "a \"b\"\n", "key": ""},
		CipherPass:  "pass",
		Targets: []Target{{Name: "pg_data", Path: "/data"}, {Name: "pg_data/log", Path: "../log", Link: true},
			{Name: "pg_data/postgresql.conf", Path: "/etc", File: "pg.conf", Link: true},
			{Name: "pg_tblspc/16384", Path: "/ts", Link: true, TablespaceID: "16384", TablespaceName: "side"}},
		Databases: []Database{{"=\"[x]", 16385, 4}, {"postgres", 5, 4}},
		Paths: []Path{{"pg_data", dir}, {"pg_data/base", dir}, {"pg_data/log", Owner{User: "root", Mode: 0o755}}, {"pg_tblspc", dir}, {"pg_tblspc/16384", dir},
			{"pg_tblspc/16384/PG_15_202209061", dir}},
		Links: []Link{{"pg_data/log", "../log", Owner{User: "postgres", Group: "postgres"}}, {"pg_data/pg_tblspc/16384", "/ts", Owner{}},
			{"pg_data/postgresql.conf", "/etc/pg.conf", Owner{User: "root", Group: "postgres"}}},
		Files: []File{
			{Name: "pg_data/PG_VERSION", Owner: own, Size: 3, SizeOrig: -1, Timestamp: 1, SHA1: hash, RepoSize: 12, RepoSHA1: hash, BundleID: 1, BundleOffset: 7, Reference: full},
			{Name: "pg_data/base/1", Owner: own, Size: 16384, SizeOrig: 8192, Timestamp: 2, SHA1: hash, RepoSize: 100, RepoSHA1: hash, BlockSize: 8192, BlockSumSize: 6, BlockMapSize: 27,
				PageChecked: true, PageErrors: []PageRange{{0, 0}, {2, 4}}},
			{Name: "pg_data/base/2", Owner: own, Size: 5, SizeOrig: 0, Timestamp: 2, SHA1: hash, RepoSize: 5, BlockSize: 1 << 20, BlockSumSize: 10, PageChecked: true, PageOK: true},
			{Name: "pg_data/empty", Owner: Owner{Mode: 0o6640}, SizeOrig: -1, SHA1: emptySHA1, PageChecked: true},
			{Name: "pg_data/log/[x]", Owner: own, Size: 0, SizeOrig: -1, SHA1: emptySHA1, RepoSize: 20},
			{Name: "pg_data/postgresql.conf", Owner: own, Size: 1, SizeOrig: -1, SHA1: hash, RepoSize: 1},
			{Name: "pg_data/we=ird\"na\\me=1.\xff\t", Owner: own, Size: 1, SizeOrig: -1, Timestamp: -1, SHA1: hash, RepoSize: 1},
			{Name: "pg_tblspc/16384/PG_15_202209061/1", Owner: own, Size: 1, SizeOrig: -1, SHA1: hash, RepoSize: 1},
		},
		FileDefault: own, PathDefault: dir, LinkDefault: Owner{User: "postgres", Group: "postgres"},
	}
}

func mustEncode(t testing.TB, m *Manifest) []byte {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestManifestRoundTrip(t *testing.T) {
	m := testManifest()
	b := mustEncode(t, m)
	got, err := ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	for i := range m.Files {
		if !reflect.DeepEqual(got.Files[i], m.Files[i]) {
			t.Errorf("\n got %+v\nwant %+v", got.Files[i], m.Files[i])
		}
	}
	if !reflect.DeepEqual(got, m) {
		t.Fatalf("\n got %+v\nwant %+v", got, m)
	}
	for _, line := range []string{"option-compress-level=4294967293", `"checksum-page-error":[0,[2,4]]`, `"szo":8192`, `"bic":10`, `"user":false`, `"mode":"6640"`,
		"=\"[x]={\"db-id\":16385,\"db-last-system-id\":4}\n", `{"file":"pg.conf","path":"/etc","type":"link"}`} {
		if !bytes.Contains(b, []byte(line)) {
			t.Errorf("%s is missing", line)
		}
	}
	if err := got.ValidateComplete(); err != nil {
		t.Error(err)
	}
	if got.File("pg_data/empty") != &got.Files[3] || got.File("pg_data/none") != nil {
		t.Error("File finds the wrong one")
	}
	// Encode sorts what its caller appended.
	m.Files = append(m.Files[1:], m.Files[0])
	same(t, "unsorted", mustEncode(t, m), b)
}

// TestManifestHostile changes one thing at a time; the error names the key, from Parse and from Encode alike.
func TestManifestHostile(t *testing.T) {
	good := string(mustEncode(t, testManifest()))
	good = good[strings.Index(good, "[backup]"):strings.LastIndex(good, "\n[backrest]")]
	if _, err := ParseManifest(seal(good)); err != nil {
		t.Fatal(err)
	}
	const version = "pg_data/PG_VERSION={"
	for _, c := range []struct{ old, bad, name string }{
		{version, "pg_data/../PG_VERSION={", "pg_data/../PG_VERSION"},
		{version, "/etc/passwd={", "/etc/passwd"},
		{version, "../x={", "../x"},
		{version, "pg_data={", "pg_data"},
		{version, "pg_data/={", "pg_data/"},
		{version, "pg_data//x={", "pg_data//x"},
		{version, "pg_data/./x={", "pg_data/./x"},
		{version, "pg_data/x/..={", "pg_data/x/.."},
		{version, "pg_data/a\x00b={", `pg_data/a\x00b`},
		{version, "pg_data/" + strings.Repeat("a/", 2100) + "x={", "too long"},
		{version, "pg_tblspc/x={", "pg_tblspc/x"},
		{version, "pg_tblspc/016384/x={", "pg_tblspc/016384/x"},
		{version, "pg_tblspc/-1/x={", "pg_tblspc/-1/x"},
		{version, "pg_tblspc/4294967296/x={", "pg_tblspc/4294967296/x"},
		{version, "pg_tblspc/99/x={", "pg_tblspc/99/x"},
		{version, "pg_data/empty={", "pg_data/empty"},
		{version, "pg_data/empty/x={", "pg_data/empty/x"},
		{version, "pg_data/empty/y/z/x={", "pg_data/empty/y/z/x"},
		{version, "pg_data/base={", "pg_data/base"},
		{version, "pg_data/pg_tblspc/16384/x={", "pg_data/pg_tblspc/16384/x"},
		{`"size":3`, `"size":-3`, "PG_VERSION"},
		{`"size":3`, `"size":9223372036854775807`, "sizes of all files"},
		{`"size":3`, `"size":9223372036854775808`, "PG_VERSION"},
		{`"size":3,`, ``, "PG_VERSION"},
		{`"size":3`, `"size":"3"`, "PG_VERSION"},
		{`,"timestamp":1}`, `}`, "PG_VERSION"},
		{`"bno":7`, `"bno":9223372036854775807`, "PG_VERSION"},
		{`"bni":1,`, ``, "PG_VERSION"},
		{`"checksum":"587b`, `"checksum":"587B`, "PG_VERSION"},
		{`"checksum":"587b`, `"checksum":"../b`, "PG_VERSION"},
		{`"reference":"20261122-212347F"`, `"reference":"20261121-212347F"`, "PG_VERSION"},
		{`"reference":"20261122-212347F"`, `"reference":"../../x"`, "PG_VERSION"},
		{`"bim":27`, `"bim":101`, "base/1"},
		{`"bi":1,`, ``, "base/1"},
		{`"bi":1,`, `"bi":9007199254740992,`, "base/1"},
		{`"bic":10`, `"bic":17`, "base/2"},
		{`[0,[2,4]]`, `[0,[4,2]]`, "base/1"},
		{`[0,[2,4]]`, `[0,4294967296]`, "base/1"},
		{`"mode":"6640"`, `"mode":"16640"`, "empty"},
		{`"mode":"6640"`, `"mode":"rw"`, "empty"},
		{"backup-reference=\"20261122-212347F,", "backup-reference=\"20261121-212347F,", "backup-reference"},
		{"backup-reference=\"20261122-212347F,", "backup-reference=\"20261122-212347F,20261122-212347F,", "backup-reference"},
		{"backup-reference=\"20261122-212347F,20261122-212347F_20261122-212351D\"", "backup-reference=\"20261122-212347F\"", "backup-reference"},
		{"backup-prior=\"20261122-212347F\"", "backup-prior=\"20261121-212347F\"", "backup-prior"},
		{"backup-type=\"diff\"", "backup-type=\"incr\"", "backup-type"},
		{"backup-type=\"diff\"\n", "", "backup-type"},
		{"backup-label=\"2026", "backup-label=\"../2", "backup-label"},
		{"db-version=\"15\"", "db-version=\"15/..\"", "db-version"},
		{"option-compress-type=\"zst\"", "option-compress-type=\"/../x\"", "option-compress-type"},
		{"option-online=true\n", "option-online=true\noption-online=true\n", "option-online"},
		{"pg_tblspc/16384={\"path\"", "pg_tblspc/../x={\"path\"", "pg_tblspc/../x"},
		{"\"tablespace-id\":\"16384\"", "\"tablespace-id\":\"1\"", "pg_tblspc/16384"},
		{"{\"file\":\"pg.conf\"", "{\"file\":\"../x\"", "postgresql.conf"},
		{"pg_data={\"path\":\"/data\",\"type\":\"path\"}", "pg_data={\"path\":\"/data\",\"type\":\"link\"}", "pg_data"},
		{"pg_data/log={\"path\":\"../log\"", "pg_data/../log={\"path\":\"../log\"", "pg_data/../log"},
		{"{\"destination\":\"../log\"}", "{\"destination\":\"\"}", "pg_data/log"},
		{"pg_data/log={\"destination\"", "pg_data/../log={\"destination\"", "pg_data/../log"},
		{"pg_data/base={}", "pg_data/base/..={}", "pg_data/base/.."},
		{"pg_data/base={}", "pg_data/empty={}", "pg_data/empty"},
		{"pg_data/base={}", "pg_data/log={}", "pg_data/log"},
		{"pg_tblspc/16384={}", "pg_tblspc/1={}", "pg_tblspc/1"},
		{"[target:path:default]\ngroup=\"postgres\"\nmode=\"0700\"", "[target:path:default]\ngroup=\"postgres\"", "pg_data"},
	} {
		if !strings.Contains(good, c.old) {
			t.Errorf("%q is not in the example", c.old)
			continue
		}
		_, err := ParseManifest(seal(strings.Replace(good, c.old, c.bad, 1)))
		if !errors.Is(err, ErrFormat) || !strings.Contains(fmt.Sprint(err), c.name) {
			t.Errorf("%.80q: %v, want ErrFormat with %q", c.bad, err, c.name)
		}
	}
}

// TestManifestEncodeRefuses: what cannot be read back is never written.
func TestManifestEncodeRefuses(t *testing.T) {
	for what, change := range map[string]func(*Manifest){
		"name with a newline":  func(m *Manifest) { m.Files[0].Name = "pg_data/a\nb" },
		"database with one":    func(m *Manifest) { m.Databases[0].Name = "a\nb" },
		"file twice":           func(m *Manifest) { m.Files = append(m.Files, m.Files[0]) },
		"foreign reference":    func(m *Manifest) { m.Files[0].Reference = "20251122-212347F" },
		"own label not listed": func(m *Manifest) { m.References = m.References[:1] },
		"negative size":        func(m *Manifest) { m.Files[0].RepoSize = -1 },
		"odd block size":       func(m *Manifest) { m.Files[1].BlockSize = 1000 },
		"type of compression":  func(m *Manifest) { m.Options.CompressType = "" },
	} {
		m := testManifest()
		change(m)
		if b, err := m.Encode(); !errors.Is(err, ErrFormat) || b != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestValidateComplete(t *testing.T) {
	for what, change := range map[string]func(*Manifest){
		"no checksum":   func(m *Manifest) { m.Files[0].SHA1 = "" },
		"not stored":    func(m *Manifest) { m.Files[0].RepoSize = 0 },
		"no stop":       func(m *Manifest) { m.TimeStop = 0 },
		"no cluster":    func(m *Manifest) { m.DB.ID = 0 },
		"no WAL":        func(m *Manifest) { m.ArchiveStop = "" },
		"no base":       func(m *Manifest) { m.Targets = m.Targets[1:] },
		"without files": func(m *Manifest) { m.Files = nil },
	} {
		m := testManifest()
		change(m)
		if err := m.ValidateComplete(); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %v", what, err)
		}
		if what == "no base" {
			continue
		}
		if _, err := ParseManifest(mustEncode(t, m)); err != nil {
			t.Errorf("%s: must be readable as .copy: %v", what, err)
		}
	}
}

// TestManifestOld: what versions before 2.42 left out is filled in.
func TestManifestOld(t *testing.T) {
	text := string(mustEncode(t, testManifest()))
	text = text[strings.Index(text, "[backup]"):strings.LastIndex(text, "\n[backrest]")]
	for _, cut := range []string{"backup-reference=\"20261122-212347F,20261122-212347F_20261122-212351D\"\n", "option-compress-type=\"zst\"\n"} {
		if !strings.Contains(text, cut) {
			t.Fatal(cut)
		}
		text = strings.Replace(text, cut, "", 1)
	}
	text = strings.Replace(text, `"checksum":"`, `"future":false,"master":true,"checksum":"`, 1)
	m, err := ParseManifest(seal(text))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(m.References, testManifest().References) || m.Options.CompressType != GZ {
		t.Errorf("%v %v", m.References, m.Options.CompressType)
	}
}

func FuzzManifest(f *testing.F) {
	good := mustEncode(f, testManifest())
	f.Add(good)
	text := string(good)
	for _, section := range strings.Split(text[strings.Index(text, "[backup]"):strings.LastIndex(text, "\n[backrest]")], "\n\n") {
		f.Add([]byte(strings.Replace(text[strings.Index(text, "[backup]"):strings.LastIndex(text, "\n[backrest]")], section+"\n", "", 1)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			if m, err = ParseManifest(seal(string(b))); err != nil {
				return
			}
		}
		first, err := m.Encode()
		if err != nil {
			t.Fatalf("parsed but not encoded: %v", err)
		}
		again, err := ParseManifest(first)
		if err != nil {
			t.Fatalf("encoded but not parsed: %v\n%s", err, first)
		}
		second, err := again.Encode()
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("no fixpoint: %v\n%s\n%s", err, first, second)
		}
		m.BackupLine()
		_ = m.ValidateComplete() // must not panic; most are not complete
	})
}

// bigManifest has n files in the shape of a cluster with many relations.
func bigManifest(n int) *Manifest {
	m := testManifest()
	like := m.Files[0]
	m.Files = m.Files[:0]
	for i := range n {
		f := like
		f.Name = fmt.Sprintf("pg_data/base/%d/%d", 16384+i/1000, 100000+i)
		f.Size, f.RepoSize, f.Timestamp, f.PageChecked, f.PageOK = int64(8192*(i%100+1)), int64(1000+i), 1795382631, true, true
		m.Files = append(m.Files, f)
	}
	m.Sort()
	return m
}

func BenchmarkManifestParse(b *testing.B) {
	text := mustEncode(b, bigManifest(100_000))
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseManifest(text); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkManifestEncode(b *testing.B) {
	m := bigManifest(100_000)
	b.ReportAllocs()
	for b.Loop() {
		if err := m.encode(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}
