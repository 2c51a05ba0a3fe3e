package interop

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"holdfast/internal/pg"
)

// entry is one row of the ledger: the points in time just after it was committed.
type entry struct {
	n    int64
	xid  string
	lsn  string
	at   string
	name string
}

// TestPointInTime restores to targets of every type and compares the rows with the ledger's, on 15 and 18.
func TestPointInTime(t *testing.T) {
	for _, v := range []pg.Version{15, 18} {
		t.Run(v.String(), func(t *testing.T) {
			r := newRig(t, v, "zst")
			r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
			r.ourArchive("zst")
			r.fill()
			r.c.Exec(t, "create table ledger (n int)", "create table before_backup as select 1 as n")
			r.holdfast("backup", append(r.server(), "--start-fast")...)
			r.holdfast("verify")
			time.Sleep(2 * time.Second) // a backup is chosen for a time in a later second than its end
			ledger := r.write(8)
			r.c.Exec(t, "select pg_switch_wal()")
			r.holdfast("check", r.server()...)
			targets := 0
			at := func(typ, target string, want int64, more ...string) {
				targets++
				dir, spaces := r.dirFor("pitr"+strconv.Itoa(targets)), r.dirFor("spaces"+strconv.Itoa(targets))
				args := []string{"--pg1-path=" + dir, "--tablespace-map-all=" + spaces, "--type=" + typ, "--archive-mode=off"}
				if target != "" {
					args = append(args, "--target="+target)
				}
				if typ != "default" {
					args = append(args, "--target-action=promote")
				}
				r.holdfast("restore", append(args, more...)...)
				if got := queryInt(t, r.start(dir), "select coalesce(max(n), 0) from ledger"); got != want {
					t.Errorf("%s %s %v: the ledger ends at %d, not %d", typ, target, more, got, want)
				}
			}
			at("default", "", ledger[7].n)
			at("immediate", "", 0)
			for _, e := range []entry{ledger[1], ledger[5]} {
				at("time", e.at, e.n)
				at("lsn", e.lsn, e.n)
				at("xid", e.xid, e.n)
				at("name", e.name, e.n)
			}
			at("xid", ledger[3].xid, ledger[3].n-1, "--target-exclusive")
			t.Logf("%d targets on PostgreSQL %s", targets, v)
		})
	}
}

// write commits n rows and records the point after each.
func (r *rig) write(n int) []entry {
	r.t.Helper()
	var out []entry
	for i := 1; i <= n; i++ {
		e := entry{n: int64(i), name: fmt.Sprintf("point_%d", i)}
		e.xid = r.c.QueryString(r.t, fmt.Sprintf("with w as (insert into ledger values (%d)) select pg_current_xact_id()::text", i))
		e.lsn = r.c.QueryString(r.t, "select pg_current_wal_insert_lsn()::text")
		r.c.Exec(r.t, "select pg_create_restore_point('"+e.name+"')")
		time.Sleep(20 * time.Millisecond) // the target lies between two commits
		e.at = r.c.QueryString(r.t, "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')||'+00'")
		time.Sleep(20 * time.Millisecond)
		out = append(out, e)
	}
	return out
}
