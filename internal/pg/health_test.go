package pg_test

import (
	"slices"
	"strings"
	"testing"

	"holdfast/internal/pg"
	"holdfast/internal/pg/pgtest"
)

// TestCollations: in a cluster whose recorded versions are doctored, as if its files had come from another machine, every index and
// every partitioned table that is sorted by such a collation is named, others are not, and the statements put it right.
func TestCollations(t *testing.T) {
	for _, v := range []pg.Version{15, 18} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			c := pgtest.New(t, pgtest.Options{Version: v})
			c.Exec(t, "create database sorted template template0 locale_provider icu icu_locale 'de' locale 'C'", "create database plain",
				"update pg_database set datcollversion = '1.0' where datname = 'sorted'")
			sorted := session(t, c, "sorted")
			run(t, c, "sorted", `create table t (a text, b text collate "sv-x-icu", c int, d text collate "C")`, `create index by_default on t (a)`, `create index "By Swedish" on t (b)`,
				`create index by_number on t (c)`, `create index by_c on t (d)`, `create index by_expression on t ((a || 'x' collate "sv-x-icu"))`, `create schema s`, `create index by_condition on t (c) where b < 'x'`,
				`create table s.parts (a text collate "sv-x-icu") partition by range (a)`, `create table s.part partition of s.parts for values from ('a') to ('m')`,
				`create collation s.own (provider = icu, locale = 'fr')`, `create index by_own on t (d collate s.own)`,
				`update pg_collation set collversion = '1.0' where collname in ('sv-x-icu', 'own', 'fi-x-icu')`)
			locales, err := sorted.Locales(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			at := slices.IndexFunc(locales, func(l pg.Locale) bool { return l.Database == "sorted" })
			if l := locales[at]; l.Provider != "icu" || l.Text() != "de" || l.Version != "1.0" || l.Actual == "" || l.Actual == "1.0" || !l.Connects {
				t.Errorf("locale %+v", l)
			}
			stale, err := sorted.StaleCollations(t.Context(), locales[at], "", "")
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{
				"":                      "public.by_default public.by_expression|",
				`pg_catalog."sv-x-icu"`: `public."By Swedish" public.by_condition public.by_expression|s.parts`,
				"s.own":                 "public.by_own|",
			}
			for _, s := range stale {
				if got := strings.Join(s.Indexes, " ") + "|" + strings.Join(s.Tables, " "); got != want[s.Collation] || s.Recorded != "1.0" || s.Actual == "" || s.Provider != "icu" || s.Database != "sorted" {
					t.Errorf("%s: %q, want %q; %+v", s.Collation, got, want[s.Collation], s)
				}
				delete(want, s.Collation)
				run(t, c, "sorted", s.Repair()...)
			}
			if len(want) > 0 {
				t.Errorf("not found: %v", want)
			}
			if locales, err = sorted.Locales(t.Context()); err != nil {
				t.Fatal(err)
			}
			if stale, err = sorted.StaleCollations(t.Context(), locales[at], "", ""); err != nil || len(stale) > 0 {
				t.Errorf("after the repair: %+v %v", stale, err)
			}
			plain := session(t, c, "plain")
			if stale, err = plain.StaleCollations(t.Context(), locales[slices.IndexFunc(locales, func(l pg.Locale) bool { return l.Database == "plain" })], "glibc 2.28", "glibc 2.36"); err != nil || len(stale) > 0 {
				t.Errorf("a database that sorts by bytes: %+v %v", stale, err)
			}
		})
	}
}

func session(t *testing.T, c *pgtest.Cluster, database string) *pg.Conn {
	t.Helper()
	o := c.ConnOptions()
	o.Database = database
	conn, err := pg.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// run runs statements in one of the cluster's databases.
func run(t *testing.T, c *pgtest.Cluster, database string, statements ...string) {
	t.Helper()
	c.ExecIn(t, database, statements...)
}

// TestHealth asks a server about what keeps it from being backed up.
func TestHealth(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{Settings: map[string]string{"wal_level": "replica", "archive_mode": "on", "archive_command": "false", "shared_preload_libraries": "auto_explain, pg_stat_statements"}})
	conn := c.Conn(t)
	if missing, err := conn.MissingRights(t.Context()); err != nil || len(missing) > 0 {
		t.Errorf("a superuser lacks %v, %v", missing, err)
	}
	c.Exec(t, `create role "Back up" login`)
	o := c.ConnOptions()
	o.User = "Back up"
	limited, err := pg.Connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer limited.Close()
	missing, err := limited.MissingRights(t.Context())
	if err != nil || len(missing) != 5 {
		t.Fatalf("%v %v", missing, err)
	}
	if size, err := limited.Sizes(t.Context()); err != nil || size.Databases < 5<<20 || size.MaxWALSize != 1<<30 {
		t.Errorf("sizes %+v %v", size, err)
	}
	for _, r := range missing {
		c.Exec(t, r.Grant)
	}
	if missing, err = limited.MissingRights(t.Context()); err != nil || len(missing) > 0 {
		t.Errorf("with all that was said to be granted %v, %v", missing, err)
	}
	if _, err := limited.Facts(t.Context()); err != nil {
		t.Error(err)
	}
	if slots, err := conn.IdleSlots(t.Context()); err != nil || len(slots) > 0 {
		t.Errorf("%v %v", slots, err)
	}
	c.Exec(t, "select pg_create_physical_replication_slot('left', true)", "create table x as select 1", "select pg_switch_wal()", "create table y as select 1")
	slots, err := conn.IdleSlots(t.Context())
	if err != nil || len(slots) != 1 || slots[0].Name != "left" || slots[0].Kind != "physical" || slots[0].Held < 8<<20 {
		t.Errorf("%+v %v", slots, err)
	}
	for range 200 {
		if times, err := conn.ArchiverTimes(t.Context()); err != nil {
			t.Fatal(err)
		} else if times.Failing() {
			break
		}
		c.Exec(t, "select pg_sleep(0.1)")
	}
	times, err := conn.ArchiverTimes(t.Context())
	if err != nil || !times.Failing() || times.FailedFile == "" || times.FailedCount < 1 {
		t.Errorf("%+v %v", times, err)
	}
	inst, err := conn.Installation(t.Context())
	if err != nil || !slices.Equal(inst.Preload, []string{"auto_explain", "pg_stat_statements"}) || !strings.HasPrefix(inst.Server, "15.") || !slices.Contains(inst.Locales, "C") {
		t.Errorf("%+v %v", inst, err)
	}
	if ext, err := conn.Extensions(t.Context()); err != nil || len(ext) != 1 || ext[0].Name != "plpgsql" {
		t.Errorf("%v %v", ext, err)
	}
}
