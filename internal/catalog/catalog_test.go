package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/storage"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 123456789, time.UTC)

// full returns a set with a value in every field, also of what it holds: a field that is added and not filled fails
// TestFullIsFull.
func full(id string) *Set {
	interval := Interval{noon, noon.Add(time.Second)}
	return &Set{
		Format: Format, ID: id, Run: "41-0badcafe", State: Complete, Error: "e", Mode: Apart, Began: noon, Ended: noon.Add(time.Minute),
		Host: "h", Root: "/srv/<app> & co", AppVersion: "10-0-0-1", Program: "Holdfast 1",
		Pieces: []Piece{
			{Kind: Application, Path: "/b/a.tar.gz", Size: 10, SHA256: "ab", Stanza: "x", Label: "y", Region: "eu-west-1", Tool: "z"},
			{Kind: EventBus, Path: "/b/e.tar.gz", Size: 20, SHA256: "cd"},
			{Kind: Postgres, Path: "/repo", Size: 1 << 40, Stanza: "main", Label: "20261123-115900F", Tool: Probackup},
		},
		Backups: []Backup{{Stanza: "main", Label: "20261123-115900F_20261124-115900I", Type: "incr", Prior: "20261123-115900F", Needs: []string{"20261123-115900F"}, Why: "w"}},
		Recovery: &Recovery{Name: "holdfast_1", Postgres: []PostgresPoint{{Stanza: "main", Label: "20261123-115900F", Tool: Probackup, Version: "15", SystemID: 1<<64 - 1, HistoryID: 1,
			Timeline: 2, LSN: "0/3000000", Segment: "000000020000000000000003", WALStart: "000000020000000000000002", DataDir: "/d", ConfigFile: "/etc/d/postgresql.conf", Bytes: 5, RepoBytes: 3,
			Databases: []string{"postgres"}, Taken: interval, PageErrors: []string{"base/1/2"}, Compress: "zst",
			Host: &PostgresHost{Server: "15.14 (Debian)", Arch: "amd64", Libc: "glibc 2.36", ICU: "72", Preload: []string{"pg_stat_statements"}, Locales: []string{"C.UTF-8"}, Unseen: []string{"closed"},
				Databases: []DatabaseHost{{Name: "postgres", Provider: "icu", Locale: "de", Collate: "C", Ctype: "C", Version: "153.120", Extensions: []Extension{{"plpgsql", "1.0"}}}}},
			RDS: &RDSPoint{Region: "eu-west-1", Instance: "i", Snapshot: "s", ARN: "arn:s", Engine: "postgres", EngineVersion: "15.4", Class: "db.t3.micro", StorageGiB: 20,
				StorageType: "gp3", Encrypted: true, KMSKey: "k", Port: 5432, SubnetGroup: "n", SecurityGroups: []string{"sg-1"}, ParameterGroup: "p", OptionGroup: "o", MultiAZ: true, Public: true,
				SnapshotTime: noon, LastChange: noon, ClockMS: 5, SQL: "no"}}},
			Files:    &FilesPoint{Taken: interval, Files: 3, Bytes: 4, IndexSHA256: "ef", Trees: []Tree{{"site", "opt/site"}}, Inconsistent: []string{"site/log"}},
			EventBus: &BusPoint{Taken: interval, Topics: 1, Partitions: 3, Records: 99, Lost: []string{"t/0 0-5"}},
			Skew:     Skew{interval, 1000}},
		Copy: &Copy{Store: "s3://bucket/path", At: noon, Postgres: true, Tarballs: true, WAL: []CopiedWAL{{"main", "000000020000000000000009"}},
			LastSet: "202611231200_10-0-0-1", Error: "e"},
		Kit:        &Kit{Path: "/b/k.age", Size: 30, SHA256: "01"},
		PostScript: &PostScript{Program: "/p", Ran: interval, Code: 1, Error: "e"},
		Pin:        &Pin{Reason: "audit", At: noon, Until: noon.Add(time.Hour)},
		Removal:    &Removal{Reason: "old", At: noon},
		Unsettled:  true,
		Retention:  &Retention{At: noon, Removed: []string{"202611221200_10-0-0-1"}, Bytes: 7, Error: "e"},
		Warnings:   []string{"w"}, Verdicts: []Verdict{{At: noon, Check: "verify", OK: true, Findings: []string{"f"}}},
	}
}

// TestFullIsFull holds full to its word, so that the round trip below is one of every field.
func TestFullIsFull(t *testing.T) {
	var walk func(v reflect.Value, path string)
	walk = func(v reflect.Value, path string) {
		if v.IsZero() && !strings.Contains(path, "Pieces[1]") && !strings.Contains(path, "Pieces[2]") {
			t.Errorf("%s is empty", path)
		}
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem(), path)
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i), fmt.Sprintf("%s[%d]", path, i))
			}
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[time.Time]() {
				return
			}
			for i := range v.NumField() {
				if f := v.Type().Field(i); f.IsExported() {
					walk(v.Field(i), path+"."+f.Name)
				}
			}
		}
	}
	walk(reflect.ValueOf(*full("202611231200_10-0-0-1")), "Set")
}

// TestFormatPage: docs/format/backup-set.md names every member of the document, and every state, mode and kind.
func TestFormatPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/format/backup-set.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(b)
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range typ.NumField() {
			f := typ.Field(i)
			if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && !strings.Contains(page, "`"+name+"`") {
				t.Errorf("%s.%s: `%s` is not on the page", typ.Name(), f.Name, name)
			}
			walk(f.Type)
		}
	}
	walk(reflect.TypeFor[Set]())
	for _, word := range []string{string(Running), string(Publishing), string(Complete), string(Failed), string(Included), string(Apart), string(Application), string(EventBus), string(Postgres)} {
		if !strings.Contains(page, "`"+word+"`") {
			t.Errorf("%s is not on the page", word)
		}
	}
	if !strings.Contains(page, idPattern().String()) || !strings.Contains(page, fmt.Sprintf("version %d\n", Format)) {
		t.Error("the page has another pattern of ids, or another version")
	}
}

func encode(t *testing.T, s *Set) []byte {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	s := full("202611231200_10-0-0-1")
	got, err := Parse(encode(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, s) {
		t.Errorf("want %+v\n got %+v", s, got)
	}
	if got.Size() != 30+1<<40 || got.Piece(EventBus).Size != 20 || got.Piece("other") != nil {
		t.Errorf("size %d, pieces %+v", got.Size(), got.Pieces)
	}
}

// TestUnknownMembersAreKept: an older program that adds a verdict must not drop what a newer one wrote.
func TestUnknownMembersAreKept(t *testing.T) {
	ctx := t.Context()
	mem := storage.NewMem(time.Now)
	const id = "202611231200_10-0-0-1"
	doc := strings.Replace(string(encode(t, full(id))), `"run"`, `"zeal": {"b": [1, 2.50], "a": "<&>"}, "copies": [{"at": "s3"}], "run"`, 1)
	if err := storage.WriteAll(ctx, mem, id+".json", []byte(doc)); err != nil {
		t.Fatal(err)
	}
	c := NewStore(mem)
	s, err := c.Get(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	s.Verdicts = append(s.Verdicts, Verdict{At: noon, Check: "restore", OK: true})
	if err := c.Put(ctx, s); err != nil {
		t.Fatal(err)
	}
	b, err := storage.ReadAll(ctx, mem, id+".json", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var got, want map[string]any
	if err := errors.Join(json.Unmarshal(b, &got), json.Unmarshal([]byte(doc), &want)); err != nil {
		t.Fatal(err)
	}
	if n := len(got["verdicts"].([]any)); n != 2 {
		t.Errorf("%d verdicts", n)
	}
	delete(got, "verdicts")
	delete(want, "verdicts")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("want %v\n got %v", want, got)
	}
}

// TestListIsInTheOrderOfTime: a run may have taken a minute before that of an earlier one, which had passed over its own.
func TestListIsInTheOrderOfTime(t *testing.T) {
	ctx, c := t.Context(), NewStore(storage.NewMem(time.Now))
	want := []string{"202611231203_10-0-0-1", "202611231201_10-0-0-1", "202611231202_10-0-0-1"}
	for i, id := range want {
		s := full(id)
		s.Began = noon.Add(time.Duration(i) * time.Second)
		if err := c.Put(ctx, s); err != nil {
			t.Fatal(err)
		}
	}
	sets, damaged, err := c.List(ctx)
	if err != nil || len(damaged) > 0 {
		t.Fatal(damaged, err)
	}
	var got []string
	for _, s := range sets {
		got = append(got, s.ID)
	}
	if !slices.Equal(got, want) {
		t.Errorf("want %v\n got %v", want, got)
	}
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{
		"202611231200_10-0-0-147420": true, "202611231200_10": true, "202611231200_a-B-9": true,
		"": false, "202611231200": false, "202611231200_": false, "202611231200_10-": false, "202611231200_10--0": false, "20261123120_10": false,
		"202611231200_10.0": false, "../202611231200_10": false, "202611231200_10/x": false, "202611231200_10\n": false, "202611231200_" + strings.Repeat("1", 128): false,
	} {
		if err := CheckID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
	if _, err := (&Set{ID: "../x"}).Encode(); err == nil {
		t.Error("a set without a proper id is encoded")
	}
}

func TestParseRefuses(t *testing.T) {
	good := `"id":"202611231200_10-0-0-1","mode":"apart"`
	for _, c := range []struct{ text, want string }{
		{``, "unexpected end"},
		{`null`, "format 0"},
		{`[]`, "cannot unmarshal array"},
		{`{"format":1,` + good, "unexpected end"},
		{`{"format":1,` + good + `} x`, "after top-level value"},
		{`{` + good + `}`, "format 0; this program reads up to 1"},
		{`{"format":2,` + good + `}`, "format 2; this program reads up to 1"},
		{`{"format":1,"mode":"apart"}`, "not the id of a backup set"},
		{`{"format":1,"id":"202611231200_10-0-0-1"}`, `mode ""`},
		{`{"format":1,` + good + `,"pieces":[{"size":"ten"}]}`, "cannot unmarshal string"},
	} {
		if _, err := Parse([]byte(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: want %q, got %v", c.text, c.want, err)
		}
	}
}

func ids(sets []*Set) []string {
	var all []string
	for _, s := range sets {
		all = append(all, s.ID)
	}
	return all
}

// TestListNamesDamage: one bad document is named, everything else is still listed, oldest first.
func TestListNamesDamage(t *testing.T) {
	ctx := t.Context()
	mem := storage.NewMem(time.Now)
	c := NewStore(mem)
	for _, id := range []string{"202611231300_2", "202611231200_1", "202612010000_3"} {
		if err := c.Put(ctx, full(id)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"202611231400_9.json": `{"format":1,`,                                                                              // torn
		"202611231500_9.json": strings.Replace(string(encode(t, full("202611231500_9"))), `"format": 1`, `"format": 7`, 1), // of a newer program
		"202611231600_9.json": string(encode(t, full("202611231200_1"))),                                                   // copied by hand
		"202611231700_9.json": strings.Repeat(" ", maxDocument+1),
		"notes.txt":           "not ours", "readme.json": "not ours", "sub/202611231800_9.json": "not ours",
	} {
		if err := storage.WriteAll(ctx, mem, name, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	sets, damaged, err := c.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"202611231200_1", "202611231300_2", "202612010000_3"}; !slices.Equal(ids(sets), want) {
		t.Errorf("want %v, got %v", want, ids(sets))
	}
	for i, want := range [][]string{{"202611231400_9", "unexpected end"}, {"202611231500_9", "format 7"}, {"202611231600_9", "holds set 202611231200_1"}, {"202611231700_9", "larger"}} {
		if i >= len(damaged) {
			t.Fatalf("%d damaged, want 4: %v", len(damaged), damaged)
		}
		for _, w := range want {
			if !strings.Contains(damaged[i].Error(), w) {
				t.Errorf("want %q in %v", w, damaged[i])
			}
		}
	}
	if len(damaged) != 4 {
		t.Errorf("%d damaged: %v", len(damaged), damaged)
	}
}

func TestGetAndDelete(t *testing.T) {
	ctx := t.Context()
	mem := storage.NewMem(time.Now)
	c := NewStore(mem)
	const id = "202611231200_1"
	if err := c.Put(ctx, full(id)); err != nil {
		t.Fatal(err)
	}
	for _, unknown := range []string{"202611231201_1", "", "../../etc/passwd", "latest"} {
		if _, err := c.Get(ctx, unknown); !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "holdfast sets list") {
			t.Errorf("get %q: %v", unknown, err)
		}
	}
	if err := c.Delete(ctx, "../x"); !errors.Is(err, ErrUnknown) {
		t.Errorf("delete of what is no id: %v", err)
	}
	for range 2 { // the second time there is nothing to delete
		if err := c.Delete(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if names := mem.Names(); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

// TestPutAtEachStep dies, fails or is cancelled at every call that Put makes of its storage, with the power cut at that
// moment: the catalogue then holds the old document or the new one, whole, and the next Put works.
func TestPutAtEachStep(t *testing.T) {
	const id = "202611231200_1"
	before := full(id)
	before.State = Running
	for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.Die, storage.Cancel} {
		for n := 1; ; n++ {
			name := fmt.Sprintf("%s %d", kind, n)
			mem := storage.NewMem(time.Now)
			if err := NewStore(mem).Put(t.Context(), before); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			faulty, err := storage.NewFaulty(mem, storage.Fault{Nth: n, Kind: kind, Cancel: cancel})
			if err != nil {
				t.Fatal(err)
			}
			perr := NewStore(faulty).Put(ctx, full(id))
			cancel()
			if perr == nil && kind == storage.Die {
				// Only the Abort after a Commit may go unreported.
				if calls := faulty.Calls(); faulty.Fired() && calls[n-1].Op != storage.OpAbort {
					t.Errorf("%s: no error, though it died at %v", name, calls[n-1])
				}
			}
			if perr != nil && !strings.Contains(perr.Error(), id) {
				t.Errorf("%s: the error does not name the set: %v", name, perr)
			}
			for state, st := range map[string]*storage.Mem{"as it is": mem, "after a power cut": mem.CrashClone(), "after a torn power cut": mem.CrashCloneTorn()} {
				sets, damaged, err := NewStore(st).List(t.Context())
				if err != nil || len(damaged) > 0 || len(sets) != 1 {
					t.Fatalf("%s, %s: %d sets, damaged %v, %v", name, state, len(sets), damaged, err)
				}
				if got := sets[0].State; perr == nil && got != Complete || got != Running && got != Complete {
					t.Errorf("%s, %s: state %s, Put said %v", name, state, got, perr)
				}
				if err := NewStore(st).Put(t.Context(), full(id)); err != nil {
					t.Errorf("%s, %s: the next Put: %v", name, state, err)
				}
			}
			if !faulty.Fired() {
				if n < 4 || perr != nil { // create, write, commit at least
					t.Errorf("%s: %v", name, perr)
				}
				break
			}
		}
	}
}

// TestListAtEachStep: a storage that fails is an error of List, or a named document; never a shorter list without a word.
func TestListAtEachStep(t *testing.T) {
	mem := storage.NewMem(time.Now)
	for _, id := range []string{"202611231200_1", "202611231300_2"} {
		if err := NewStore(mem).Put(t.Context(), full(id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, kind := range []storage.FaultKind{storage.FailBefore, storage.ShortRead, storage.Cancel} {
		for n := 1; ; n++ {
			ctx, cancel := context.WithCancel(t.Context())
			faulty, err := storage.NewFaulty(mem, storage.Fault{Nth: n, Kind: kind, Cancel: cancel})
			if err != nil {
				t.Fatal(err)
			}
			sets, damaged, err := NewStore(faulty).List(ctx)
			cancel()
			if err == nil && len(sets)+len(damaged) != 2 {
				t.Errorf("%s %d: %d sets, damaged %v", kind, n, len(sets), damaged)
			}
			if !faulty.Fired() {
				break
			}
		}
	}
}

// FuzzParse: whatever Parse accepts, Encode writes so that it is read back as the same.
func FuzzParse(f *testing.F) {
	for _, s := range []*Set{full("202611231200_1"), {ID: "202611231200_10-0-0-1", Mode: Included}} {
		b, err := s.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(slices.Concat(b[:1], []byte(`"later":{"a":[null]},"":1,"Run":"x",`), b[1:]))
	}
	f.Add([]byte(`{"format":1,"id":"202611231200_1","mode":"apart","ended":null,"recovery":{"files":null},"pieces":[{}]}`))
	f.Fuzz(func(t *testing.T, doc []byte) {
		s, err := Parse(doc)
		if err != nil {
			return
		}
		again, err := Parse(encode(t, s))
		if err != nil {
			t.Fatalf("what was encoded is not read: %v", err)
		}
		// Empty slices and times without a zone come back in another shape: the documents are compared.
		if a, b := encode(t, s), encode(t, again); string(a) != string(b) {
			t.Errorf("the second round differs:\n%s\n%s", a, b)
		}
		if len(again.extra) != len(s.extra) {
			t.Errorf("unknown members: %d before, %d after", len(s.extra), len(again.extra))
		}
	})
}
