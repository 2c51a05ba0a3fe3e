package probackup

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// shownByProgram is shaped as src/show.c of pg_probackup 2.5.16 prints it: newest first, numbers without quotes, from-replica a text.
const shownByProgram = `[
    {
        "instance": "main",
        "backups": [
            {
                "id": "S3XYZ1",
                "parent-backup-id": "S3XYZ0",
                "backup-mode": "DELTA",
                "wal": "ARCHIVE",
                "compress-alg": "zlib",
                "compress-level": 1,
                "from-replica": "false",
                "block-size": 8192,
                "xlog-block-size": 8192,
                "checksum-version": 1,
                "program-version": "2.5.16",
                "server-version": "15",
                "current-tli": 2,
                "parent-tli": 2,
                "start-lsn": "0/5000028",
                "stop-lsn": "0/5000138",
                "start-time": "2024-09-15 12:00:00+00",
                "end-time": "2024-09-15 12:00:05+00",
                "recovery-xid": 740,
                "recovery-time": "2024-09-15 12:00:04+00",
                "data-bytes": 1000,
                "wal-bytes": 16777216,
                "uncompressed-bytes": 5000,
                "pgdata-bytes": 25000000,
                "primary_conninfo": "user=postgres host=/run port=5432",
                "status": "OK",
                "note": "holdfast 202409151200_1 41-0badcafe",
                "content-crc": 2819323942
            },
            {
                "id": "S3XYZ0",
                "backup-mode": "FULL",
                "wal": "ARCHIVE",
                "compress-alg": "none",
                "compress-level": 1,
                "from-replica": "false",
                "current-tli": 2,
                "parent-tli": 0,
                "start-lsn": "0/3000028",
                "stop-lsn": "0/3000138",
                "start-time": "2024-09-15 14:30:00+02:30",
                "recovery-xid": 0,
                "status": "RUNNING",
                "tablespace_map": [{"oid": "16384", "path": "/ts"}]
            }
        ]
    }
]
`

func TestParseShow(t *testing.T) {
	got, err := ParseShow([]byte(shownByProgram), "main")
	if err != nil {
		t.Fatal(err)
	}
	noon := time.Date(2024, 9, 15, 12, 0, 0, 0, time.UTC)
	want := []Backup{
		{ID: "S3XYZ0", Mode: "FULL", WAL: "ARCHIVE", Status: "RUNNING", Timeline: 2, StartLSN: "0/3000028", StopLSN: "0/3000138", Start: noon},
		{ID: "S3XYZ1", Parent: "S3XYZ0", Mode: "DELTA", WAL: "ARCHIVE", Status: "OK", Program: "2.5.16", Server: "15", Timeline: 2, StartLSN: "0/5000028", StopLSN: "0/5000138",
			Start: noon, End: noon.Add(5 * time.Second), DataBytes: 1000, PGDataBytes: 25000000, Note: "holdfast 202409151200_1 41-0badcafe"},
	}
	for i := range got {
		got[i].Start = got[i].Start.UTC()
		if !got[i].End.IsZero() {
			got[i].End = got[i].End.UTC()
		}
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("want %+v\n got %+v", want, got)
	}
	if empty, err := ParseShow([]byte(`[{"instance":"main","backups":[]}]`), "main"); err != nil || len(empty) != 0 {
		t.Error(empty, err)
	}
	for _, c := range []struct{ text, want string }{
		{``, "unexpected end"},
		{`[]`, "not about the instance"},
		{`[{"instance":"other","backups":[]}]`, "not about the instance"},
		{`[{"instance":"main","backups":[]},{"instance":"main","backups":[]}]`, "not about the instance"},
		{`[{"instance":"main","backups":[{"id":"../x"}]}]`, "not the ID"},
		{`[{"instance":"main","backups":[{"id":"A","parent-backup-id":"a b"}]}]`, "not the ID"},
		{`[{"instance":"main","backups":[{"id":"A","start-time":"yesterday"}]}]`, "not a time"},
	} {
		if _, err := ParseShow([]byte(c.text), "main"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q, got %v", c.text, c.want, err)
		}
	}
}

// FuzzParseShow: whatever is taken is ordered, and its IDs are safe as file names.
func FuzzParseShow(f *testing.F) {
	f.Add([]byte(shownByProgram))
	f.Add([]byte(`[{"instance":"main","backups":[{"id":"A"},{"id":"0B","parent-backup-id":"A"}]}]`))
	f.Fuzz(func(t *testing.T, text []byte) {
		backups, err := ParseShow(text, "main")
		if err != nil {
			return
		}
		for i, b := range backups {
			if strings.ContainsAny(b.ID+b.Parent, "/. \x00") || b.ID == "" {
				t.Errorf("ID %q, parent %q", b.ID, b.Parent)
			}
			if i > 0 && compareIDs(backups[i-1].ID, b.ID) > 0 {
				t.Errorf("%s before %s", backups[i-1].ID, b.ID)
			}
			if chain, err := Chain(backups, b.ID); err == nil && (!chain[0].Full() || chain[len(chain)-1].ID != b.ID) {
				t.Errorf("chain of %s: %v", b.ID, chain)
			}
			if gone := Descendants(backups, b.ID); !slices.Contains(gone, b.ID) {
				t.Errorf("descendants of %s: %v", b.ID, gone)
			}
		}
	})
}

func TestChain(t *testing.T) {
	all := []Backup{{ID: "A", Mode: "FULL"}, {ID: "B", Mode: "DELTA", Parent: "A"}, {ID: "C", Mode: "PAGE", Parent: "B"}, {ID: "D", Mode: "FULL"}, {ID: "E", Mode: "DELTA", Parent: "X"},
		{ID: "F", Mode: "DELTA", Parent: "G"}, {ID: "G", Mode: "DELTA", Parent: "F"}, {ID: "H", Mode: "DELTA"}}
	ids := func(chain []Backup) string {
		text := ""
		for _, b := range chain {
			text += b.ID
		}
		return text
	}
	for id, want := range map[string]string{"A": "A", "C": "ABC", "D": "D", "E": "", "F": "", "H": "", "Z": ""} {
		chain, err := Chain(all, id)
		if ids(chain) != want || (err == nil) != (want != "") || err != nil && !errors.Is(err, ErrChain) {
			t.Errorf("%s: %s %v", id, ids(chain), err)
		}
	}
	for id, want := range map[string]string{"A": "ABC", "B": "BC", "C": "C", "D": "D", "Z": ""} {
		if got := strings.Join(Descendants(all, id), ""); got != want {
			t.Errorf("descendants of %s: %s, want %s", id, got, want)
		}
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{
		"pg_probackup 2.5.16 (PostgreSQL 15.4)\n":                {2, 5, 16, "15", "PostgreSQL"},
		"pg_probackup-14 2.5.0 (PostgreSQL 14.11 (Debian x))\n":  {2, 5, 0, "14", "PostgreSQL"},
		"pg_probackup 2.6.3 (Postgres Pro 15.4.1 enterprise)":    {2, 6, 3, "15", "Postgres Pro"},
		"pg_probackup 2.5.16 (PostgreSQL 18beta1)\nmore of it\n": {2, 5, 16, "18", "PostgreSQL"},
	} {
		if got, err := ParseVersion([]byte(text)); err != nil || got != want {
			t.Errorf("%q: %+v %v", text, got, err)
		}
	}
	for _, text := range []string{"", "pgBackRest 2.45", "psql (PostgreSQL) 15.4", "x 2.5 (PostgreSQL 15)", "x 2.5.1 (PostgreSQL )", "x 2.5.1 (MySQL 8)", "x 2.5.1 PostgreSQL 15", "x 2.5.99999999 (PostgreSQL 15)"} {
		if v, err := ParseVersion([]byte(text)); !errors.Is(err, ErrNotProbackup) {
			t.Errorf("%q: %+v %v", text, v, err)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add([]byte("pg_probackup 2.5.16 (PostgreSQL 15.4)\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		v, err := ParseVersion(text)
		if err == nil && (v.Major < 0 || v.Server == "" || strings.Trim(v.Server, "0123456789") != "") {
			t.Errorf("%q: %+v", text, v)
		}
	})
}

func TestParseConfig(t *testing.T) {
	for _, text := range []string{`{"pgdata": "/d", "system-identifier": 18446744073709551615}`, `{"pgdata": "/d", "system-identifier": "18446744073709551615", "xlog-seg-size": "16777216"}`} {
		if c, err := ParseConfig([]byte(text)); err != nil || c != (Config{"/d", 1<<64 - 1}) {
			t.Errorf("%s: %+v %v", text, c, err)
		}
	}
	for _, text := range []string{``, `{}`, `{"system-identifier": -1}`, `{"system-identifier": "x"}`} {
		if c, err := ParseConfig([]byte(text)); err == nil {
			t.Errorf("%s: %+v", text, c)
		}
	}
}

func TestOrderOfIDs(t *testing.T) {
	ids := []string{"ZZ", "S3XYZ1", "Z", "10", "S3XYZ0", "9"}
	slices.SortFunc(ids, compareIDs)
	if got := fmt.Sprint(ids); got != "[9 Z 10 ZZ S3XYZ0 S3XYZ1]" {
		t.Error(got)
	}
}
