package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// A ledger holds the numbers 1, 2, 3 … as the rows of a table, the lines of a file and the events of a topic, all of that
// name. What it lacks or has too much after a restore tells how far apart the three were taken. The second cluster, where
// there is one, has such a table too.
const ledger = "ledger"

// Token is when a number was begun, and when each of them acknowledged it; each was begun when the one before was done.
// Without a second cluster Lineage is Postgres.
type Token struct{ Begun, Postgres, Lineage, File, Bus time.Time }

// Numbers are the last numbers of each. Without a second cluster Lineage is 0.
type Numbers struct{ Postgres, Lineage, File, Bus int }

// Greatest is the last number that any of them has.
func (n Numbers) Greatest() int { return max(n.Postgres, n.Lineage, n.File, n.Bus) }

// line is a number in the file. Its length divides a page: the kernel shows a line as a whole or not at all.
func line(n int) string { return fmt.Sprintf("%0127d\n", n) }

func event(n int) *kgo.Record {
	return &kgo.Record{Topic: ledger, Partition: 0, Value: []byte(strconv.Itoa(n))}
}

func (w *World) ledgerFile() (*os.File, error) {
	return os.OpenFile(filepath.Join(w.Files, ledger), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

// MakeLedger makes a ledger that holds the numbers up to last.
func (w *World) MakeLedger(ctx context.Context, last int) error {
	err := w.CreateTopic(ctx, ledger, 1)
	for _, s := range w.Servers() {
		err = errors.Join(err, s.Exec(ctx, "create table if not exists ledger (n int)"))
	}
	if err != nil {
		return err
	}
	return w.FillLedger(ctx, Numbers{}, last)
}

// FillLedger writes what each of them lacks up to last.
func (w *World) FillLedger(ctx context.Context, have Numbers, last int) error {
	var text strings.Builder
	for n := have.File + 1; n <= last; n++ {
		text.WriteString(line(n))
	}
	f, err := w.ledgerFile()
	if err != nil {
		return err
	}
	_, err = f.WriteString(text.String())
	if err := errors.Join(err, f.Close(), w.Exec(ctx, fmt.Sprintf("insert into ledger select generate_series(%d, %d)", have.Postgres+1, last))); err != nil {
		return err
	}
	if w.Lineage != nil {
		if err := w.Lineage.Exec(ctx, fmt.Sprintf("insert into ledger select generate_series(%d, %d)", have.Lineage+1, last)); err != nil {
			return err
		}
	}
	cl, err := w.Kafka()
	if err != nil {
		return err
	}
	defer cl.Close()
	var events []*kgo.Record
	for n := have.Bus + 1; n <= last; n++ {
		events = append(events, event(n))
	}
	return cl.ProduceSync(ctx, events...).FirstErr()
}

// WriteLedger writes numbers from first on until ctx ends, one after the other, and calls wrote after each; the last is
// written to all of them nevertheless.
func (w *World) WriteLedger(ctx context.Context, first int, wrote func(int, Token)) error {
	all := context.WithoutCancel(ctx)
	lw := ledgerWriter{}
	err := lw.open(all, w)
	for n := first; ctx.Err() == nil && err == nil; n++ {
		var t Token
		if t, err = lw.write(all, n); err == nil {
			wrote(n, t)
		}
	}
	return errors.Join(err, lw.close(all))
}

// ledgerWriter has sessions with all that a number is written to.
type ledgerWriter struct {
	dbs []*pgx.Conn // the second cluster's last
	f   *os.File
	cl  *kgo.Client
}

func (lw *ledgerWriter) open(ctx context.Context, w *World) error {
	for _, s := range []*World{w, w.Lineage} {
		if s == nil {
			continue
		}
		db, err := s.DB(ctx)
		if err != nil {
			return err
		}
		lw.dbs = append(lw.dbs, db)
	}
	var err error
	if lw.cl, err = w.Kafka(); err == nil {
		lw.f, err = w.ledgerFile()
	}
	return err
}

func (lw *ledgerWriter) write(ctx context.Context, n int) (Token, error) {
	t := Token{Begun: time.Now()}
	for i, db := range lw.dbs {
		if _, err := db.Exec(ctx, "insert into ledger values ($1)", n); err != nil {
			return t, err
		}
		t.Lineage = time.Now()
		if i == 0 {
			t.Postgres = t.Lineage
		}
	}
	err := lw.writeRest(ctx, n, &t)
	return t, err
}

// writeRest writes what does not go into PostgreSQL.
func (lw *ledgerWriter) writeRest(ctx context.Context, n int, t *Token) error {
	_, err := lw.f.WriteString(line(n))
	if err := errors.Join(err, lw.f.Sync()); err != nil {
		return err
	}
	t.File = time.Now()
	err = lw.cl.ProduceSync(ctx, event(n)).FirstErr()
	t.Bus = time.Now()
	return err
}

func (lw *ledgerWriter) close(ctx context.Context) error {
	var err error
	for _, db := range lw.dbs {
		err = errors.Join(err, db.Close(ctx))
	}
	if lw.f != nil {
		err = errors.Join(err, lw.f.Close())
	}
	if lw.cl != nil {
		lw.cl.Close()
	}
	return err
}

// ReadLedger reads all of them. Each must hold the numbers from 1 to its last, in order, without a hole.
func (w *World) ReadLedger(ctx context.Context) (Numbers, error) {
	var n Numbers
	var errs [4]error
	n.Postgres, errs[0] = w.ledgerInPostgres(ctx)
	n.File, errs[1] = w.ledgerInFile()
	n.Bus, errs[2] = w.ledgerInTopic(ctx)
	if w.Lineage != nil {
		n.Lineage, errs[3] = w.Lineage.ledgerInPostgres(ctx)
	}
	return n, errors.Join(errs[:]...)
}

func (w *World) ledgerInPostgres(ctx context.Context) (int, error) {
	text, err := w.Text(ctx, "select format('%s %s %s', coalesce(max(n), 0), count(*), count(distinct n)) from ledger where n > 0")
	var last, count, distinct int
	if err == nil {
		_, err = fmt.Sscan(text, &last, &count, &distinct)
	}
	if err == nil && (count != last || distinct != last) {
		err = fmt.Errorf("PostgreSQL has %d rows with %d numbers up to %d", count, distinct, last)
	}
	return last, err
}

func (w *World) ledgerInFile() (int, error) {
	b, err := os.ReadFile(filepath.Join(w.Files, ledger))
	if err != nil {
		return 0, err
	}
	n := 0
	for got := range strings.Lines(string(b)) {
		if n++; got != line(n) {
			return 0, fmt.Errorf("line %d of the file is %q", n, got)
		}
	}
	return n, nil
}

// ledgerInTopic reads the whole topic: number n is the record n-1.
func (w *World) ledgerInTopic(ctx context.Context) (int, error) {
	end, err := w.EndOffset(ctx, ledger, 0)
	if err != nil {
		return 0, err
	}
	last := 0
	var hole error
	err = w.EachRecord(ctx, ledger, 0, 0, end, func(r *kgo.Record) {
		if last++; hole == nil && (r.Offset != int64(last-1) || string(r.Value) != strconv.Itoa(last)) {
			hole = fmt.Errorf("the topic has %q at offset %d in place of number %d", r.Value, r.Offset, last)
		}
	})
	return last, errors.Join(err, hole)
}

// KeepLedger is WriteLedger for an application whose servers go away and come back: it goes on with a number until all have it,
// and waits for pause after each.
func (w *World) KeepLedger(ctx context.Context, first int, pause time.Duration, wrote func(int, Token)) error {
	all := context.WithoutCancel(ctx)
	lw := ledgerWriter{}
	err := lw.open(all, w)
	for n := first; ctx.Err() == nil && err == nil; n++ {
		var t Token
		if t, err = lw.insist(all, w, n); err == nil {
			wrote(n, t)
			time.Sleep(pause)
		}
	}
	return errors.Join(err, lw.close(all))
}

// insistFor is how long a server may be away.
const insistFor = 2 * time.Minute

// insist is write that survives the death of a server. A number whose acknowledgement was lost may be there.
func (lw *ledgerWriter) insist(ctx context.Context, w *World, n int) (Token, error) {
	t := Token{Begun: time.Now()}
	for i, s := range []*World{w, w.Lineage} {
		if s == nil {
			continue
		}
		_, err := lw.dbs[i].Exec(ctx, "insert into ledger values ($1)", n)
		for end := time.Now().Add(insistFor); err != nil && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			_ = lw.dbs[i].Close(ctx) // it is lost
			db, cerr := s.DB(ctx)
			if cerr != nil {
				continue
			}
			lw.dbs[i] = db
			_, err = db.Exec(ctx, "insert into ledger select $1::int where not exists (select from ledger where n = $1::int)", n)
		}
		if err != nil {
			return t, err
		}
		t.Lineage = time.Now()
		if i == 0 {
			t.Postgres = t.Lineage
		}
	}
	err := lw.writeRest(ctx, n, &t)
	return t, err
}
