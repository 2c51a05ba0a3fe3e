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
// name. What it lacks or has too much after a restore tells how far apart the three were taken.
const ledger = "ledger"

// Token is when a number was begun, and when each of the three acknowledged it; each was begun when the one before was done.
type Token struct{ Begun, Postgres, File, Bus time.Time }

// Numbers are the last numbers of the three.
type Numbers struct{ Postgres, File, Bus int }

// Greatest is the last number that any of the three has.
func (n Numbers) Greatest() int { return max(n.Postgres, n.File, n.Bus) }

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
	err := errors.Join(w.Exec(ctx, "create table if not exists ledger (n int)"), w.CreateTopic(ctx, ledger, 1))
	if err != nil {
		return err
	}
	return w.FillLedger(ctx, Numbers{}, last)
}

// FillLedger writes what each of the three lacks up to last.
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
// written to all three nevertheless.
func (w *World) WriteLedger(ctx context.Context, first int, wrote func(int, Token)) error {
	all := context.WithoutCancel(ctx)
	db, err := w.DB(all)
	if err != nil {
		return err
	}
	cl, err := w.Kafka()
	if err != nil {
		return errors.Join(err, db.Close(all))
	}
	defer cl.Close()
	f, err := w.ledgerFile()
	for n := first; ctx.Err() == nil && err == nil; n++ {
		var t Token
		if t, err = writeToken(all, db, f, cl, n); err == nil {
			wrote(n, t)
		}
	}
	if f != nil {
		err = errors.Join(err, f.Close())
	}
	return errors.Join(err, db.Close(all))
}

func writeToken(ctx context.Context, db *pgx.Conn, f *os.File, cl *kgo.Client, n int) (Token, error) {
	t := Token{Begun: time.Now()}
	if _, err := db.Exec(ctx, "insert into ledger values ($1)", n); err != nil {
		return t, err
	}
	t.Postgres = time.Now()
	_, err := f.WriteString(line(n))
	if err := errors.Join(err, f.Sync()); err != nil {
		return t, err
	}
	t.File = time.Now()
	err = cl.ProduceSync(ctx, event(n)).FirstErr()
	t.Bus = time.Now()
	return t, err
}

// ReadLedger reads all three. Each must hold the numbers from 1 to its last, in order, without a hole.
func (w *World) ReadLedger(ctx context.Context) (Numbers, error) {
	var n Numbers
	var errs [3]error
	n.Postgres, errs[0] = w.ledgerInPostgres(ctx)
	n.File, errs[1] = w.ledgerInFile()
	n.Bus, errs[2] = w.ledgerInTopic(ctx)
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
