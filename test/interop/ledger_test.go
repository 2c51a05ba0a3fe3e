package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg"
)

// entry is one row of the ledger: its transaction, and points between its commit and the next one's.
type entry struct {
	n    int64
	xid  string
	lsn  string // after its commit
	from string // before it
	at   string
	name string
}

// ledger writes one row after the other and remembers when. Beside it a second session commits unrelated rows, and every
// seventh row is tried and rolled back first.
type ledger struct {
	t       *testing.T
	conn    pg.ConnOptions
	mu      sync.Mutex
	entries []entry
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// ledgerTables are made before the first backup: balance always has the number of the newest row.
var ledgerTables = []string{"create table ledger (n bigint primary key)", "create table balance as select 0::bigint as n", "create table noise (n int, h text)"}

// writeLedger goes on after the entries that are there, until stop.
func writeLedger(t *testing.T, conn pg.ConnOptions, entries []entry) *ledger {
	ctx, cancel := context.WithCancel(t.Context())
	l := &ledger{t: t, conn: conn, entries: slices.Clone(entries), cancel: cancel}
	for _, step := range []func(context.Context, *pgx.Conn) error{l.row, noise} {
		l.running.Go(func() {
			if err := repeat(ctx, conn, step); err != nil {
				t.Errorf("ledger: %v", err)
			}
		})
	}
	t.Cleanup(cancel)
	return l
}

// repeat does a step again and again in one session.
func repeat(ctx context.Context, o pg.ConnOptions, step func(context.Context, *pgx.Conn) error) error {
	c, err := connect(ctx, o)
	if err != nil {
		return err
	}
	work := context.WithoutCancel(ctx) // what was begun is finished: an entry without its points is no target
	defer c.Close(work)
	for ctx.Err() == nil {
		if err := step(work, c); err != nil {
			return err
		}
	}
	return nil
}

func noise(ctx context.Context, c *pgx.Conn) error {
	time.Sleep(20 * time.Millisecond) // archive_command starts a process for each segment and has to keep up
	_, err := c.Exec(ctx, "insert into noise select g, md5(g::text) from generate_series(1, 100) g")
	return err
}

func (l *ledger) row(ctx context.Context, c *pgx.Conn) error {
	l.mu.Lock()
	n := int64(1)
	if k := len(l.entries); k > 0 {
		n = l.entries[k-1].n + 1
	}
	l.mu.Unlock()
	if n%7 == 0 {
		if _, err := c.Exec(ctx, "begin; insert into ledger values (-1); rollback"); err != nil {
			return err
		}
	}
	if n%100 == 0 { // recovery can be continued from here
		if _, err := c.Exec(ctx, "checkpoint; select pg_switch_wal()"); err != nil {
			return err
		}
	}
	e := entry{n: n, name: fmt.Sprintf("point_%d", n)}
	err := c.QueryRow(ctx, "select pg_current_wal_insert_lsn()::text").Scan(&e.from)
	err = errors.Join(err, c.QueryRow(ctx, "with l as (insert into ledger values ($1)), b as (update balance set n = $1) select pg_current_xact_id()::text", n).Scan(&e.xid))
	for _, q := range []struct {
		sql string
		to  *string
	}{
		{"select pg_current_wal_insert_lsn()::text", &e.lsn},
		{"select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS.US')||'+00'", &e.at},
		{"select '" + e.name + "' from pg_create_restore_point('" + e.name + "')", &e.name},
	} {
		err = errors.Join(err, c.QueryRow(ctx, q.sql).Scan(q.to))
	}
	if err != nil {
		return fmt.Errorf("row %d: %w", n, err)
	}
	l.mu.Lock()
	l.entries = append(l.entries, e)
	l.mu.Unlock()
	time.Sleep(4 * time.Millisecond)
	return nil
}

// stop ends the writing, and returns all entries.
func (l *ledger) stop() []entry {
	l.cancel()
	l.running.Wait()
	return l.entries
}

// rows tells what a database holds of the ledger, and want what it holds after an entry.
const rows = "select format('%s rows, %s to %s, balance %s', count(*), coalesce(min(n), 0), coalesce(max(n), 0), (select n from balance)) from ledger"

func want(n int64) string { return fmt.Sprintf("%d rows, %d to %d, balance %d", n, min(n, 1), n, n) }

// past is what the ledger and the repository remember.
type past struct {
	*rig
	entries []entry
	backups []made
}

// made is a backup, in info's words.
type made struct {
	Label     string
	LSN       struct{ Stop string }
	Timestamp struct{ Stop int64 }
}

func (r *rig) past(entries []entry) *past {
	r.t.Helper()
	var stanzas []struct{ Backup []made }
	if err := json.Unmarshal([]byte(r.holdfast("info", "--output=json")), &stanzas); err != nil || len(stanzas) != 1 {
		r.t.Fatalf("info: %d stanzas, %v", len(stanzas), err)
	}
	return &past{r, entries, stanzas[0].Backup}
}

// newest is the backup that a restore to an entry has to begin with, "" if there is none.
func (p *past) newest(t *testing.T, typ string, e entry) string {
	t.Helper()
	at, err := time.Parse("2006-01-02 15:04:05.999999-07", e.at)
	if err != nil {
		t.Fatal(err)
	}
	where := e.lsn
	if typ == "xid" { // recovery stops at the commit, which may be before the end of a backup when the point after it is not
		where = e.from
	}
	lsn, err := pg.ParseLSN(where)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range slices.Backward(p.backups) {
		stop, err := pg.ParseLSN(b.LSN.Stop)
		if err != nil {
			t.Fatal(err)
		}
		if typ == "time" && b.Timestamp.Stop < at.Unix() || typ != "time" && stop <= lsn {
			return b.Label
		}
	}
	return ""
}

// choose picks count entries at random which a backup leads to, in the order of commits.
func (p *past) choose(t *testing.T, typ string, count int) []entry {
	t.Helper()
	all := p.entries
	if typ == "time" { // PostgreSQL knows that a time was reached by a later commit only, which the last row may not have
		all = all[:len(all)-1]
	}
	able := slices.DeleteFunc(slices.Clone(all), func(e entry) bool { return p.newest(t, typ, e) == "" })
	if len(able) < count {
		t.Fatalf("only %d of %d rows can be restored to", len(able), len(p.entries))
	}
	rand.Shuffle(len(able), func(i, j int) { able[i], able[j] = able[j], able[i] })
	able = able[:count]
	slices.SortFunc(able, func(a, b entry) int { return int(a.n - b.n) })
	return able
}

// target is what a restore to an entry is asked for.
func (e entry) target(typ string) string {
	return map[string]string{"time": e.at, "xid": e.xid, "lsn": e.lsn, "name": e.name}[typ]
}

// replay restores to each entry, ascending, and compares the rows. One restored directory serves all entries that begin
// with the same backup: the server is stopped, and goes on to the next target from the last checkpoint that it replayed.
// It is not stopped in good order because a paused recovery looks only once a second whether it should end.
func (p *past) replay(t *testing.T, typ string, entries []entry, more ...string) {
	t.Helper()
	r := *p.rig
	r.t = t
	var s *second
	label := ""
	for _, e := range entries {
		if s != nil {
			s.stop(t, "immediate")
		}
		if next := p.newest(t, typ, e); next != label {
			label = next
			s = r.server2(r.dirFor(fmt.Sprintf("%s-%08x", typ, rand.Uint32())))
			args := []string{"--pg1-path=" + s.opts.DataDir, "--type=" + typ, "--target=" + e.target(typ), "--archive-mode=off", "--lock-path=" + s.conn.Host}
			if typ == "xid" || typ == "name" { // which say nothing of where they are
				args = append(args, "--set="+label)
			}
			if out := r.holdfast("restore", append(args, more...)...); !strings.Contains(out, "backup "+label+" restored") {
				t.Fatalf("target %s %s: chosen was not %s: %s", typ, e.target(typ), label, out)
			}
		} else {
			r.retarget(s.opts.DataDir, typ, e.target(typ))
		}
		s.start(t)
		s.await(t, "select pg_get_wal_replay_pause_state() = 'paused'")
		if got := queryText(t, s.conn, rows); got != want(e.n) {
			t.Errorf("%s %s (row %d), from backup %s: %s, want %s", typ, e.target(typ), e.n, label, got, want(e.n))
		}
		s.exec(t, "checkpoint")
	}
	s.stop(t, "immediate")
}

// retarget makes a restored directory go on to another target: the last setting of a name counts.
func (r *rig) retarget(dir, typ, target string) {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = fmt.Fprintf(f, "recovery_target_%s = '%s'\n", typ, target)
	if err := errors.Join(err, f.Close()); err != nil {
		r.t.Fatal(err)
	}
}
