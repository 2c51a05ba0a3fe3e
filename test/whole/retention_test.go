package whole

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/test/world"
)

// kept is what the retention's test looks at in a set.
type kept struct {
	ID       string
	State    string
	Recovery struct {
		Postgres []struct {
			Label, Segment string
			WALStart       string `json:"wal_start"`
		}
	}
}

// ids are the sets' ids, in their order.
func ids(sets []kept) string {
	var out []string
	for _, s := range sets {
		out = append(out, s.ID)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func keptSets(t *testing.T, w *world.World) (out []kept) {
	t.Helper()
	must(t, json.Unmarshal([]byte(ok(t, w, "holdfast", "sets", "list", "--json")), &out))
	return out
}

// newSet makes a set and returns it: with several in a minute it need not have the last id.
func newSet(t *testing.T, w *world.World) (s set) {
	t.Helper()
	must(t, json.Unmarshal([]byte(ok(t, w, "alation_action", "backup_all", "--json")), &s))
	return s
}

// TestRetention: runs end with the retention; a pin keeps an old set; killed at every step it is completed by another call. After all of
// it every set that is kept restores, and with PostgreSQL apart every moment between two kept ones.
func TestRetention(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := startWorld(t, world.Options{Apart: apart, Conf: []string{"alation.backup_v2.retention.sets", "-s", "2"}})
			must(t, w.Exec(t.Context(), "create table ledger (n int)"))
			rows := func(n int) {
				t.Helper()
				for range n {
					must(t, w.Exec(t.Context(), "insert into ledger values (1)", "select pg_switch_wal()"))
				}
			}
			is := func(what string, want int64) {
				t.Helper()
				if n, err := w.Int(t.Context(), "select count(*) from ledger"); err != nil || n != want {
					t.Errorf("%s: %d rows, want %d, %v", what, n, want, err)
				}
			}
			rows(1)
			first := newSet(t, w)
			ok(t, w, "holdfast", "sets", "pin", first.ID, "--reason", "year end", "--until", "30d")
			rows(3)
			second := newSet(t, w)
			rows(3)
			third := newSet(t, w)
			rows(1)
			time.Sleep(1100 * time.Millisecond)
			moment, err := w.Text(t.Context(), "select now()::text")
			must(t, err)
			time.Sleep(1100 * time.Millisecond)
			rows(1)
			plan := ok(t, w, "holdfast", "sets", "expire", "--dry-run")
			if !strings.Contains(plan, "pinned until") || strings.Contains(plan, "goes") {
				t.Error(plan)
			}
			fourth := newSet(t, w)
			rows(1)
			gone(t, w, apart, first, second, third, fourth)
			fails(t, w, 5, "year end", "holdfast", "sets", "delete", first.ID, "--yes", "--last")
			restore(t, w, fourth.ID)
			is("the fourth", 9)
			restore(t, w, third.ID)
			is("the third", 7)
			if apart {
				ok(t, w, "holdfast", "restore", "--set", third.ID, "--until", moment, "--yes")
				is("a moment between the third and the fourth", 8)
			}
			restore(t, w, first.ID)
			is("the pinned one", 1)
			killedExpire(t, w, first.ID)
			all := keptSets(t, w)
			for _, s := range all {
				if s.State != "complete" {
					continue
				}
				ok(t, w, "holdfast", "sets", "verify", s.ID)
				restore(t, w, s.ID)
			}
			is("the newest", 1)
		})
	}
}

// gone looks at what the retention has removed with the second set.
func gone(t *testing.T, w *world.World, apart bool, first, second, third, fourth set) {
	t.Helper()
	all := keptSets(t, w)
	if len(all) != 3 || all[0].ID != first.ID || ids(all) != ids([]kept{{ID: first.ID}, {ID: third.ID}, {ID: fourth.ID}}) {
		t.Fatalf("%+v", all)
	}
	for _, p := range second.Pieces {
		if p.Kind != "postgres" && exists(p.Path) {
			t.Errorf("%s is still there", p.Path)
		}
	}
	if show := ok(t, w, "holdfast", "sets", "show", fourth.ID); !strings.Contains(show, "1 set(s) removed") || !strings.Contains(show, second.ID) {
		t.Error(show)
	}
	if !apart {
		return
	}
	labels, err := filepath.Glob(filepath.Join(w.Repo, "backup", world.Stanza, "2*F"))
	if err != nil || len(labels) != 3 {
		t.Errorf("%v %v", labels, err)
	}
	from, to := all[0].Recovery.Postgres[0], all[slices.IndexFunc(all, func(s kept) bool { return s.ID == third.ID })].Recovery.Postgres[0]
	segments, err := filepath.Glob(filepath.Join(w.Repo, "archive", world.Stanza, "*", "*", "0*-*"))
	must(t, err)
	seen := map[string]bool{}
	for _, s := range segments {
		seg := filepath.Base(s)[:24]
		if seen[seg] = true; seg > from.Segment && seg < to.WALStart || seg < from.WALStart {
			t.Errorf("WAL segment %s is still there", seg)
		}
	}
	if !seen[from.WALStart] || !seen[from.Segment] || !seen[to.WALStart] {
		t.Errorf("WAL is missing: %v", seen)
	}
}

// killedExpire makes sets and kills the retention at each step; another call completes it.
func killedExpire(t *testing.T, w *world.World, pinned string) {
	t.Helper()
	log := filepath.Join(w.Root, "opt/alation/site/logs/alation_backup.log")
	b, err := os.ReadFile(log)
	must(t, err)
	ok(t, w, "alation_conf", "alation.backup_v2.retention.sets", "-s", "1")
	for _, step := range []string{"expire:set", "remove:manifest", "remove:catalogue", "remove:files", "expire:catalogue", "expire:wal"} {
		if !strings.Contains(string(b), strings.Replace(step, ":", ": ", 1)) {
			continue // of PostgreSQL apart only
		}
		ok(t, w, "alation_conf", "alation.backup_v2.retention.sets", "-s", "0")
		must(t, w.Exec(t.Context(), "select pg_switch_wal()"))
		newSet(t, w)
		last := newSet(t, w)
		ok(t, w, "alation_conf", "alation.backup_v2.retention.sets", "-s", "1")
		killAt(t, w, step, "holdfast", "sets", "expire", "--yes")
		for _, s := range keptSets(t, w) {
			if s.State == "complete" {
				ok(t, w, "holdfast", "sets", "verify", s.ID)
			}
		}
		ok(t, w, "holdfast", "sets", "expire", "--yes")
		if left, want := ids(keptSets(t, w)), ids([]kept{{ID: pinned}, {ID: last.ID}}); left != want {
			t.Errorf("after a kill at %s: %v, want %v", step, left, want)
		}
	}
}
