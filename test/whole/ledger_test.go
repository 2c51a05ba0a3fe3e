package whole

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"holdfast/test/world"
)

// acks are the times at which each of the three acknowledged a token.
type acks struct{ pg, file, bus time.Time }

// writeLedger writes the same numbered token to PostgreSQL, a file and a topic until ctx ends.
func writeLedger(ctx context.Context, w *world.World, first int) (map[int]acks, error) {
	done := map[int]acks{}
	db, err := w.DB(context.WithoutCancel(ctx))
	if err != nil {
		return nil, err
	}
	defer db.Close(context.WithoutCancel(ctx))
	cl, err := w.Kafka()
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	f, err := os.OpenFile(filepath.Join(w.Files, "ledger"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	all := context.WithoutCancel(ctx) // a token is written to all three or to none after the end
	for n := first; ctx.Err() == nil; n++ {
		var a acks
		if _, err := db.Exec(all, "insert into ledger values ($1)", n); err != nil {
			return nil, err
		}
		a.pg = time.Now()
		if _, err := fmt.Fprintf(f, "%d\n", n); err != nil {
			return nil, err
		}
		a.file = time.Now()
		if err := cl.ProduceSync(all, &kgo.Record{Topic: "ledger", Partition: 0, Value: []byte(strconv.Itoa(n))}).FirstErr(); err != nil {
			return nil, err
		}
		a.bus = time.Now()
		done[n] = a
	}
	return done, f.Close()
}

// TestLedger backs up 20 times under a writer, in both modes in turn, restores each, and compares the three.
func TestLedger(t *testing.T) {
	const rounds = 20
	w := newWorld(t, true)
	if err := w.CreateTopic(t.Context(), "ledger", 1); err != nil {
		t.Fatal(err)
	}
	all := map[int]acks{}
	next := 1
	var widest time.Duration
	for round := range rounds {
		if round == rounds/2 {
			ok(t, w, "alation_conf", "alation.backup_v2.pgbackup_compression", "-s", "True")
			ok(t, w, "alation_action", "enable_backupv2")
		}
		ctx, stop := context.WithCancel(t.Context())
		type result struct {
			acks map[int]acks
			err  error
		}
		written := make(chan result, 1)
		go func() {
			a, err := writeLedger(ctx, w, next)
			written <- result{a, err}
		}()
		time.Sleep(50 * time.Millisecond)
		s := backup(t, w)
		time.Sleep(50 * time.Millisecond)
		stop()
		res := <-written
		if res.err != nil || len(res.acks) == 0 {
			t.Fatalf("round %d: %v, %d tokens", round, res.err, len(res.acks))
		}
		for n, a := range res.acks {
			all[n] = a
		}
		restore(t, w, s.ID)
		next = checkLedger(t, w, s, all) + 1
		for n := range all { // what is later than the set was undone
			if n >= next {
				delete(all, n)
			}
		}
		widest = max(widest, s.Recovery.Skew.To.Sub(s.Recovery.Skew.From))
	}
	t.Logf("%d rounds, %d tokens, widest skew %s", rounds, next-1, widest)
}

// checkLedger: no holes, nothing lost that was acknowledged before the recovery point, and the three differ by no more
// than what was written within the skew. It returns the greatest token and completes the lesser ones for the next round.
func checkLedger(t *testing.T, w *world.World, s set, all map[int]acks) int {
	t.Helper()
	pgMax, err1 := w.Int(t.Context(), "select coalesce(max(n), 0) from ledger")
	pgCount, err2 := w.Int(t.Context(), "select count(distinct n) from ledger")
	b, err3 := os.ReadFile(filepath.Join(w.Files, "ledger"))
	busMax, err4 := lastEvent(t.Context(), w)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
	fileMax, err := strconv.Atoi(string(lines[len(lines)-1]))
	if err != nil {
		t.Fatalf("the file ends with half a line: %q", lines[len(lines)-1])
	}
	if pgCount != pgMax {
		t.Errorf("set %s: PostgreSQL has %d tokens up to %d: holes", s.ID, pgCount, pgMax)
	}
	// What the clock of the set and ours may differ by: they are the same clock, read around the event.
	const epsilon = 5 * time.Millisecond
	from, to := s.Recovery.Skew.From.Add(-epsilon), s.Recovery.Skew.To.Add(epsilon)
	point := s.Recovery.Postgres[0].Taken.From
	for n, a := range all {
		if a.pg.Before(point) && int64(n) > pgMax {
			t.Errorf("set %s: token %d was acknowledged %s before the recovery point and is missing", s.ID, n, point.Sub(a.pg))
		}
		for _, c := range []struct {
			name string
			ack  time.Time
			max  int
		}{{"PostgreSQL", a.pg, int(pgMax)}, {"file", a.file, fileMax}, {"bus", a.bus, busMax}} {
			if c.ack.Before(from) && n > c.max {
				t.Errorf("set %s: %s lacks token %d, acknowledged before the skew began", s.ID, c.name, n)
			}
			if c.ack.After(to) && n <= c.max && n > 1 && all[n-1].bus.After(to) {
				t.Errorf("set %s: %s has token %d, written after the skew ended", s.ID, c.name, n)
			}
		}
	}
	greatest := max(int(pgMax), fileMax, busMax)
	fillUp(t, w, int(pgMax), fileMax, busMax, greatest)
	return greatest
}

// fillUp gives all three the same tokens again, so that the next round begins without holes.
func fillUp(t *testing.T, w *world.World, pgMax, fileMax, busMax, greatest int) {
	t.Helper()
	var text strings.Builder
	for n := fileMax + 1; n <= greatest; n++ {
		fmt.Fprintf(&text, "%d\n", n)
	}
	f, err := os.OpenFile(filepath.Join(w.Files, "ledger"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text.String())
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if pgMax < greatest {
		if err := w.Exec(t.Context(), fmt.Sprintf("insert into ledger select generate_series(%d, %d)", pgMax+1, greatest)); err != nil {
			t.Fatal(err)
		}
	}
	cl, err := w.Kafka()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for n := busMax + 1; n <= greatest; n++ {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "ledger", Partition: 0, Value: []byte(strconv.Itoa(n))}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// lastEvent is the greatest token in the topic, which must have no holes.
func lastEvent(ctx context.Context, w *world.World) (int, error) {
	last := 0
	end, err := w.EndOffset(ctx, "ledger", 0)
	if err != nil {
		return 0, err
	}
	var hole error
	err = w.EachRecord(ctx, "ledger", 0, 0, end, func(r *kgo.Record) {
		n, err := strconv.Atoi(string(r.Value))
		if err != nil || n != last+1 {
			hole = fmt.Errorf("the topic has %q after %d", r.Value, last)
		}
		last = n
	})
	return last, errors.Join(err, hole)
}
