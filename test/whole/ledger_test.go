package whole

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"holdfast/internal/eventbus/kafkatest"
	"holdfast/test/world"
)

// prefilled numbers are in the ledger from the start: the file takes longer to read than to append to.
const prefilled = 50_000

// TestLedger writes the same numbers to PostgreSQL, a file and a topic while backup_all runs, restores the set, and
// compares the three with each other and with the times at which the numbers were acknowledged. The two modes take turns,
// and so do a restore over the living application and one after its loss.
func TestLedger(t *testing.T) {
	t.Run("kfake", func(t *testing.T) { ledgerRounds(t, newWorld(t, true), 16) })
	t.Run("kafka", func(t *testing.T) { ledgerRounds(t, newWorldOn(t, kafkatest.Start(t).Brokers(), true), 4) })
}

func ledgerRounds(t *testing.T, w *world.World, rounds int) {
	if err := w.MakeLedger(t.Context(), prefilled); err != nil {
		t.Fatal(err)
	}
	last, total, widest := prefilled, 0, time.Duration(0)
	for round := range rounds {
		mode := []string{"False", "True"}[round%2]
		ok(t, w, "alation_conf", "alation.backup_v2.pgbackup_compression", "-s", mode)
		ok(t, w, "alation_action", "enable_backupv2")
		s, written := backupWhileWriting(t, w, last+1)
		if round/2%2 == 0 {
			if err := errors.Join(w.Lose(t.Context()), w.DeleteTopics(t.Context(), "ledger", "events")); err != nil {
				t.Fatal(err)
			}
		}
		restore(t, w, s.ID)
		have, err := w.ReadLedger(t.Context())
		if err != nil {
			t.Fatalf("round %d, pgbackup_compression %s, set %s: %v", round, mode, s.ID, err)
		}
		checkTimes(t, s, have, written)
		if t.Failed() {
			t.Fatalf("round %d, pgbackup_compression %s, set %s", round, mode, s.ID)
		}
		last = have.Greatest()
		if err := w.FillLedger(t.Context(), have, last); err != nil {
			t.Fatal(err)
		}
		total += len(written)
		widest = max(widest, s.Recovery.Skew.To.Sub(s.Recovery.Skew.From))
	}
	t.Logf("%d rounds, %d numbers written during them, widest skew %s", rounds, total, widest)
}

// backupWhileWriting runs backup_all; numbers are written from before it begins until after it has ended.
func backupWhileWriting(t *testing.T, w *world.World, first int) (set, map[int]world.Token) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var count atomic.Int64
	written, ended := map[int]world.Token{}, make(chan error, 1)
	go func() {
		ended <- w.WriteLedger(ctx, first, func(n int, tok world.Token) {
			written[n] = tok
			count.Add(1)
		})
	}()
	more := func() { // waits for a number begun from now on
		for seen := count.Load(); count.Load() < seen+2; time.Sleep(time.Millisecond) {
			select {
			case err := <-ended:
				t.Fatalf("the writer ended: %v", err)
			default:
			}
		}
	}
	more()
	s := backup(t, w)
	more()
	stop()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	return s, written
}

// checkTimes: a component has all that it acknowledged before the set looked at it, and nothing that was begun later.
func checkTimes(t *testing.T, s set, have world.Numbers, written map[int]world.Token) {
	t.Helper()
	skew, early, late := s.Recovery.Skew, 0, 0
	for n, tok := range written {
		if tok.Bus.Before(skew.From) {
			early++
		}
		if tok.Begun.After(skew.To) {
			late++
		}
		for _, c := range []struct {
			name         string
			last         int
			begun, acked time.Time
			taken        span
		}{
			{"PostgreSQL", have.Postgres, tok.Begun, tok.Postgres, s.Recovery.Postgres[0].Taken},
			{"the second cluster", have.Lineage, tok.Postgres, tok.Lineage, s.Recovery.Postgres[len(s.Recovery.Postgres)-1].Taken},
			{"the file", have.File, tok.Lineage, tok.File, s.Recovery.Files.Taken},
			{"the bus", have.Bus, tok.File, tok.Bus, s.Recovery.EventBus.Taken},
		} {
			if c.begun == c.acked { // there is no second cluster
				continue
			}
			if c.taken.From.Before(skew.From) || c.taken.To.After(skew.To) || c.taken.To.Before(c.taken.From) {
				t.Fatalf("set %s: %s was looked at from %s to %s, the skew is from %s to %s", s.ID, c.name, c.taken.From, c.taken.To, skew.From, skew.To)
			}
			if c.acked.Before(c.taken.From) && n > c.last {
				t.Errorf("set %s: %s lacks number %d, acknowledged %s before", s.ID, c.name, n, c.taken.From.Sub(c.acked))
			}
			if c.begun.After(c.taken.To) && n <= c.last {
				t.Errorf("set %s: %s has number %d, begun %s later", s.ID, c.name, n, c.begun.Sub(c.taken.To))
			}
		}
	}
	if early == 0 || late == 0 {
		t.Errorf("set %s: %d numbers were written before the recovery point and %d after it: the writer did not overlap it", s.ID, early, late)
	}
}
