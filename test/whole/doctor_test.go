package whole

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/test/world"
)

// finding is what the tests look at in what doctor finds.
type finding struct{ Area, Severity, Object, What, Do string }

// doctor runs it and returns what needs attention, and the exit code. The schedule, of which a test has none, is checked and left out.
func doctor(t *testing.T, w *world.World, args ...string) ([]finding, int) {
	t.Helper()
	out, err := w.Holdfast(t.Context(), append([]string{"doctor", "--json"}, args...)...)
	var res struct {
		Errors, Warnings int
		Findings         []finding
	}
	if jerr := json.Unmarshal([]byte(out.Stdout), &res); jerr != nil {
		t.Fatalf("%v %v\n%s%s", jerr, err, out.Stdout, out.Stderr)
	}
	var bad []finding
	errs, warnings, scheduled := 0, 0, false
	for _, f := range res.Findings {
		switch f.Severity {
		case "error":
			errs++
		case "warning":
			warnings++
		case "ok":
			continue
		default:
			t.Errorf("%+v", f)
		}
		if f.Area == "schedule" && strings.Contains(f.What, "no backup runs by itself") {
			scheduled = true
			continue
		}
		bad = append(bad, f)
	}
	if errs != res.Errors || warnings != res.Warnings {
		t.Errorf("%d errors and %d warnings are said to be %d and %d", errs, warnings, res.Errors, res.Warnings)
	}
	if !scheduled && len(args) == 0 {
		t.Error("that nothing makes backups by itself is not found")
	}
	return bad, out.Code
}

// fault is something wrong that a test plants.
type fault struct {
	name     string
	area     string
	what     string // in the text of the finding
	severity string
	do, undo func()
}

// TestDoctor plants twenty faults in one instance: one call finds them all, each with what to do, and nothing else; when they are
// mended, none is left.
func TestDoctor(t *testing.T) {
	w, kafka := newWorldAndBus(t, true, storeConf...)
	first := backup(t, w)
	if bad, code := doctor(t, w); len(bad) > 0 || code != 3 {
		t.Fatalf("code %d, an instance without faults has %+v", code, bad)
	}
	if out, err := w.Holdfast(t.Context(), "doctor"); err != nil || out.Code != 3 || !strings.Contains(out.Stdout, "0 error(s), 1 warning(s)") || !strings.Contains(out.Stdout, "\npostgres\n  ok       ") {
		t.Errorf("code %d %v\n%s%s", out.Code, err, out.Stdout, out.Stderr)
	}
	faults := append(faultsOfPostgres(t, w), faultsOfPlaces(t, w, first)...)
	faults = append(faults, fault{name: "bus down", area: "eventbus", what: "no broker of", severity: "error", do: func() { kafka.down.Store(true) }, undo: func() { kafka.down.Store(false) }})
	for _, f := range faults {
		f.do()
	}
	bad, code := doctor(t, w)
	if code != 6 {
		t.Errorf("code %d", code)
	}
	for _, f := range faults {
		n := slices.IndexFunc(bad, func(b finding) bool { return b.Area == f.area && strings.Contains(b.What, f.what) })
		if n < 0 {
			t.Errorf("not found: %s (%s: %s)", f.name, f.area, f.what)
			continue
		}
		if b := bad[n]; b.Severity != f.severity || b.Do == "" && !strings.Contains(b.What, "alation_") && !strings.Contains(b.What, "holdfast ") {
			t.Errorf("%s: want %s and what to do: %+v", f.name, f.severity, b)
		}
		bad = slices.Delete(bad, n, n+1)
	}
	for _, b := range bad {
		t.Errorf("more was found: %+v", b)
	}
	for _, f := range slices.Backward(faults) {
		f.undo()
	}
	settled(t, w)
	if bad, code := doctor(t, w); len(bad) > 0 || code != 3 {
		t.Errorf("code %d, when all is mended there is %+v", code, bad)
	}
	backup(t, w)
	rights(t, w)
}

// faultsOfPostgres: archiving goes nowhere and fails, a slot is left, an info file has lost its copy.
func faultsOfPostgres(t *testing.T, w *world.World) []fault {
	t.Helper()
	was, err := w.Text(t.Context(), "select current_setting('archive_command')")
	must(t, err)
	command := func(text string) {
		must(t, w.Exec(t.Context(), "alter system set archive_command = '"+strings.ReplaceAll(text, "'", "''")+"'", "select pg_reload_conf()"))
	}
	info := filepath.Join(w.Repo, "archive", world.Stanza, "archive.info.copy")
	return []fault{
		{"archive_command of another", "archiving", "archive_command is /bin/false: it does not bring WAL", "error", func() {
			command("/bin/false")
			must(t, w.Exec(t.Context(), "select pg_create_physical_replication_slot('left', true)"))
			for range 6 {
				must(t, w.Exec(t.Context(), "insert into ledger values (1)", "select pg_switch_wal()"))
			}
			until(t, w, "select count(*) from pg_stat_archiver where last_failed_time > coalesce(last_archived_time, '-infinity')", 1)
			until(t, w, "select count(*) from pg_ls_archive_statusdir() where name like '%.ready' having count(*) > 5", 6)
		}, func() { command(was) }},
		{"archiving fails", "archiving", "archiving fails: ", "error", func() {}, func() {}},
		{"abandoned slot", "archiving", "replication slot left, which nobody uses, keeps", "warning", func() {}, func() { must(t, w.Exec(t.Context(), "select pg_drop_replication_slot('left')")) }},
		{"info file without its copy", "repository", "archive.info.copy", "warning", func() { must(t, os.Rename(info, info+".away")) }, func() { must(t, os.Rename(info+".away", info)) }},
	}
}

// until waits until a count is reached.
func until(t *testing.T, w *world.World, sql string, want int64) {
	t.Helper()
	for range 300 {
		if n, err := w.Int(t.Context(), sql); err == nil && n >= want {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s does not become %d", sql, want)
}

// settled waits until everything that was to be archived is.
func settled(t *testing.T, w *world.World) {
	t.Helper()
	until(t, w, "select count(*) from pg_stat_archiver where last_archived_time > last_failed_time and not exists (select from pg_ls_archive_statusdir() where name like '%.ready')", 1)
}

// faultsOfPlaces: files, permissions, programs, parameters, the catalogue, the store.
func faultsOfPlaces(t *testing.T, w *world.World, s set) []fault {
	t.Helper()
	conf := func(words ...string) func() { return func() { ok(t, w, "alation_conf", words...) } }
	place := func(path, text string) (do, undo func()) {
		return func() { must(t, os.WriteFile(path, []byte(text), 0o644)) }, func() { must(t, os.Remove(path)) }
	}
	etc := filepath.Join(w.Root, "etc/holdfast")
	catalogue := filepath.Join(w.Root, "data2/holdfast/catalog")
	var all []fault
	add := func(name, area, what, severity string, do, undo func()) {
		all = append(all, fault{name, area, what, severity, do, undo})
	}
	foreign, mine := place(filepath.Join(w.Temp, "somebody.sql"), "")
	add("foreign file in staging", "disks", "did not put there: somebody.sql", "error", foreign, mine)
	add("files are gone", "files", w.Files+"; it is not there", "warning", func() { must(t, os.Rename(w.Files, w.Files+".away")) }, func() { must(t, os.Rename(w.Files+".away", w.Files)) })
	script, noScript := place(filepath.Join(w.Root, "post.sh"), "#!/bin/sh\n")
	add("post script is no program", "programs", "it can't be executed", "warning", func() { script(); conf("alation.backup.post_script.path", "-s", "/post.sh")() }, func() { noScript(); conf("--unset", "alation.backup.post_script.path")() })
	var back func()
	add("store away", "store", "external storage "+far(w), "warning", func() { back = away(t, w) }, func() { back() })
	add("key for everybody", "parameters", "lets others read the key", "error", func() { must(t, os.Chmod(filepath.Join(etc, "conf.key"), 0o644)) }, func() { must(t, os.Chmod(filepath.Join(etc, "conf.key"), 0o600)) })
	torn, whole := place(filepath.Join(catalogue, "202601010000_1.json"), "{")
	add("torn entry of the catalogue", "sets", "202601010000_1", "warning", torn, whole)
	lock := filepath.Join(w.Root, "var/lib/holdfast/lock/instance.lock")
	add("a run that died", "sets", "did not end properly", "warning", func() {
		must(t, os.WriteFile(lock, []byte(`{"verb":"backup_all","exec":"4-00000000","since":"2026-01-01T00:00:00Z"}`), 0o640))
	}, func() { must(t, os.Truncate(lock, 0)) })
	entry := filepath.Join(catalogue, s.ID+".json")
	doc, err := os.ReadFile(entry)
	must(t, err)
	add("a set from the future", "sets", "in the future", "warning", func() {
		editJSON(t, entry, func(d map[string]any) {
			d["began"] = time.Now().Add(50 * time.Hour).UTC().Format(time.RFC3339)
			d["verdicts"] = []any{map[string]any{"at": "2026-01-01T00:00:00Z", "check": "verify", "ok": false, "findings": []string{"a bit has turned"}}}
		})
	}, func() { must(t, os.WriteFile(entry, doc, 0o600)) })
	add("a damaged set", "sets", "found damage: a bit has turned", "warning", func() {}, func() {})
	file := filepath.Join(etc, "conf.json")
	values := func(name, text string) func() {
		return func() {
			editJSON(t, file, func(d map[string]any) { d["values"].(map[string]any)[name] = text })
		}
	}
	add("a parameter of tomorrow", "parameters", "does not know the parameter", "warning", values("alation.future", "x"), func() {
		editJSON(t, file, func(d map[string]any) { delete(d["values"].(map[string]any), "alation.future") })
	})
	if os.Geteuid() == 0 {
		all = append(all, faultsOfRoot(t, w, conf)...)
	}
	// Last: with it alation_conf does not go on.
	add("a value that is none", "parameters", "logs.keep", "error", values("logs.keep", "many"), func() {
		editJSON(t, file, func(d map[string]any) { delete(d["values"].(map[string]any), "logs.keep") })
	})
	return all
}

// faultsOfRoot: what an ordinary user can't plant.
func faultsOfRoot(t *testing.T, w *world.World, conf func(...string) func()) []fault {
	t.Helper()
	archive, logs := filepath.Join(w.Repo, "archive", world.Stanza), filepath.Join(w.Root, "opt/alation/site/logs")
	var theirs, log func() error
	small, _ := smallDisk(t, w)
	return []fault{
		{"a repository of root's", "permissions", "cannot enter " + archive, "error", func() { theirs = lend(t, archive, 0o700) }, func() { must(t, theirs()) }},
		{"logs of root's", "permissions", "cannot write into " + logs, "warning", func() { log = lend(t, logs, 0o755) }, func() { must(t, log()) }},
		{"a full disk", "disks", "space may not suffice for the backup", "warning", func() { // it is certain only where the files can be seen
			ballast(t, small, 4096)
			conf("alation.backup.data_dump_dir", "-s", "/data2/small")()
		}, func() {
			must(t, os.Remove(filepath.Join(small, ".ballast")))
			conf("--unset", "alation.backup.data_dump_dir")()
		}},
		{"a disk that is nearly full", "disks", "the file system is nearly full", "warning", func() {}, func() {}},
	}
}

// editJSON changes a JSON document in its place, owner and mode kept.
func editJSON(t *testing.T, file string, change func(map[string]any)) {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	var d map[string]any
	must(t, json.Unmarshal(b, &d))
	change(d)
	b, err = json.Marshal(d)
	must(t, err, os.WriteFile(file, b, 0))
}

// rights: a role without rights is told what it lacks, all at once, in statements that work.
func rights(t *testing.T, w *world.World) {
	t.Helper()
	must(t, w.Exec(t.Context(), "create role weak login"))
	as := func(user string) {
		ok(t, w, "alation_conf", "pgsql.clusters", "-s", fmt.Sprintf("%s:data=%s,host=%s,port=%d,user=%s", world.Stanza, strings.TrimPrefix(w.Data, w.Root), strings.TrimPrefix(w.Sock, w.Root), w.Port, user))
	}
	as("weak")
	bad, code := doctor(t, w)
	if code != 6 || len(bad) != 5 {
		t.Errorf("code %d, want five rights: %+v", code, bad)
	}
	for _, b := range bad {
		sql, found := strings.CutPrefix(b.Do, "as a superuser of that server: ")
		if !found {
			t.Errorf("%+v", b)
			continue
		}
		must(t, w.Exec(t.Context(), sql))
	}
	if bad, code := doctor(t, w); len(bad) > 0 || code != 3 {
		t.Errorf("with what it asked for: code %d, %+v", code, bad)
	}
	backup(t, w)
	as("postgres")
}

// TestDoctorWithoutKey: with a key that is not accepted the application can't be opened; that is one finding, and what can be looked at
// without it is looked at.
func TestDoctorWithoutKey(t *testing.T) {
	w := newWorld(t, true, "pgsql.pgbackrest.cipher_pass", "-s", "a passphrase of some length")
	backup(t, w)
	key := filepath.Join(w.Root, "etc/holdfast/conf.key")
	must(t, os.Chmod(key, 0o644), os.WriteFile(filepath.Join(w.Temp, "mine"), nil, 0o600))
	bad, code := doctor(t, w)
	count := map[string]int{}
	for _, b := range bad {
		count[b.Area]++
	}
	if code != 6 || count["parameters"] != 1 || count["disks"] != 1 || count["postgres"]+count["archiving"] != 0 {
		t.Errorf("code %d, %+v", code, bad)
	}
	must(t, os.Chmod(key, 0o600), os.Remove(filepath.Join(w.Temp, "mine")))
	if bad, code := doctor(t, w); len(bad) > 0 || code != 3 {
		t.Errorf("code %d, %+v", code, bad)
	}
	if bad, code := doctor(t, w, "--for", "restore"); len(bad) > 0 || code != 0 {
		t.Errorf("for a restore: code %d, %+v", code, bad)
	}
	must(t, os.Rename(w.Files, w.Files+".away"), os.Remove(mustTarball(t, w)))
	if bad, code := doctor(t, w, "--for", "restore"); code != 6 || len(bad) == 0 || bad[0].Area != "restore" {
		t.Errorf("for a restore without its tarball: code %d, %+v", code, bad)
	}
}

// mustTarball is the application tarball of the only set.
func mustTarball(t *testing.T, w *world.World) string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(w.Dump, "*_alation_backup.tar.gz"))
	if err != nil || len(names) != 1 {
		t.Fatalf("%v %v", names, err)
	}
	return names[0]
}

// TestRestoredCollations: databases whose collations have another version than where they were backed up, here by doctored
// catalogues, are restored with warnings that name every index, in the result and in the set's verdict.
func TestRestoredCollations(t *testing.T) {
	for version, bin := range map[string]string{"15": "/usr/lib/postgresql/15/bin", "18": "/var/cache/holdfast/pg/18/bin"} {
		t.Run(version, func(t *testing.T) {
			if testing.Short() {
				t.Skip("needs PostgreSQL 15 and 18; run make test")
			}
			if _, err := os.Stat(bin); err != nil {
				t.Fatalf("%v; run: make setup (scripts/setup-pg %s)", err, version)
			}
			w := startWorld(t, world.Options{Host: true, PGBin: bin})
			ok(t, w, "alation_conf", "pgsql.clusters", "-s", fmt.Sprintf("%s:data=%s,host=%s,port=%d,user=postgres,bin=%s", world.Stanza, w.Data, w.Sock, w.Port, bin))
			must(t, w.Exec(t.Context(), "create database sorted template template0 locale_provider icu icu_locale 'de' locale 'C'"))
			in(t, w, "sorted", `create table t (a text, b text collate "sv-x-icu")`, "insert into t values ('ä', 'ö')", "create index by_default on t (a)", "create index by_swedish on t (b)", "create extension pg_trgm",
				"update pg_collation set collversion = '1.0' where collname = 'sv-x-icu'", "update pg_database set datcollversion = '1.1' where datname = 'sorted'")
			s := backup(t, w)
			recorded(t, w, s, version)
			out, err := w.Holdfast(t.Context(), "restore", "--set", s.ID, "--yes", "--json")
			if err != nil || out.Code != 3 {
				t.Fatalf("code %d, want 3 for done with warnings: %v\n%s%s", out.Code, err, out.Stdout, out.Stderr)
			}
			var res struct {
				Warnings   []string
				Collations []struct {
					Stanza, Database, Collation, Recorded string
					Indexes, Repair                       []string
				}
			}
			must(t, json.Unmarshal([]byte(out.Stdout), &res))
			if len(res.Collations) != 2 || len(res.Warnings) != 2 {
				t.Fatalf("%+v", res)
			}
			for i, want := range []string{"public.by_default", "public.by_swedish"} {
				c := res.Collations[i]
				if c.Database != "sorted" || !slices.Equal(c.Indexes, []string{want}) || c.Repair[0] != "REINDEX INDEX "+want+";" || len(c.Repair) != 2 || !strings.Contains(c.Repair[1], "REFRESH") {
					t.Errorf("%+v", c)
				}
				if !strings.Contains(res.Warnings[i], want) || !strings.Contains(ok(t, w, "holdfast", "sets", "show", s.ID, "--json"), want) {
					t.Errorf("%s is not in %q, or not in the set's verdict", want, res.Warnings[i])
				}
				in(t, w, "sorted", c.Repair...)
			}
			repaired := backup(t, w)
			if out, err := w.Holdfast(t.Context(), "restore", "--set", repaired.ID, "--yes", "--json"); err != nil || out.Code != 0 || strings.Contains(out.Stdout, "collations") {
				t.Errorf("after the repair: code %d, %v\n%s%s", out.Code, err, out.Stdout, out.Stderr)
			}
		})
	}
}

// recorded: the set says what its cluster needs of a machine, and this one has it all.
func recorded(t *testing.T, w *world.World, s set, version string) {
	t.Helper()
	var doc struct {
		Recovery struct {
			Postgres []struct {
				Host struct {
					Server, Arch, Libc, ICU string
					Databases               []struct {
						Name, Provider, Locale, Version string
						Extensions                      []struct{ Name, Version string }
					}
				}
			}
		}
	}
	must(t, json.Unmarshal([]byte(ok(t, w, "holdfast", "sets", "show", s.ID, "--json")), &doc))
	h := doc.Recovery.Postgres[0].Host
	at := slices.IndexFunc(h.Databases, func(d struct {
		Name, Provider, Locale, Version string
		Extensions                      []struct{ Name, Version string }
	}) bool {
		return d.Name == "sorted"
	})
	if !strings.HasPrefix(h.Server, version) || h.Arch == "" || !strings.HasPrefix(h.Libc, "glibc 2.") || h.ICU == "" || at < 0 {
		t.Fatalf("the set says %+v", h)
	}
	if d := h.Databases[at]; d.Provider != "icu" || d.Locale != "de" || d.Version != "1.1" || len(d.Extensions) != 2 || d.Extensions[0].Name != "pg_trgm" || d.Extensions[0].Version == "" {
		t.Errorf("the set says %+v", d)
	}
	var plan struct{ Findings []finding }
	must(t, json.Unmarshal([]byte(ok(t, w, "holdfast", "restore", "--set", s.ID, "--dry-run", "--json")), &plan))
	if len(plan.Findings) > 0 {
		t.Errorf("on the same machine the plan warns: %+v", plan.Findings)
	}
}

// in runs statements in one of the application's databases.
func in(t *testing.T, w *world.World, database string, statements ...string) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), fmt.Sprintf("host=%s port=%d user=postgres dbname=%s sslmode=disable", w.Sock, w.Port, database))
	must(t, err)
	for _, s := range statements {
		if _, err = c.Exec(t.Context(), s); err != nil {
			err = fmt.Errorf("%s: %w", s, err)
			break
		}
	}
	must(t, errors.Join(err, c.Close(t.Context())))
}
