package eventbus

import (
	"errors"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestLoadHoldsAgainstKept: a load that replaces topics changes nothing unless the copy of them holds all that they hold.
func TestLoadHoldsAgainstKept(t *testing.T) {
	for name, move := range map[string]func(t *testing.T, cl *kgo.Client){
		"a record more": func(t *testing.T, cl *kgo.Client) {
			produce(t, cl, &kgo.Record{Topic: "t", Partition: 1, Key: []byte("late")})
		},
		"made anew": func(t *testing.T, cl *kgo.Client) {
			if _, err := kadm.NewClient(cl).DeleteTopics(t.Context(), "t"); err != nil {
				t.Fatal(err)
			}
			create(t, cl, "t", 2, nil)
		},
		"a partition more": func(t *testing.T, cl *kgo.Client) {
			if _, err := kadm.NewClient(cl).UpdatePartitions(t.Context(), 3, "t"); err != nil {
				t.Fatal(err)
			}
		},
		"a topic more": func(t *testing.T, cl *kgo.Client) { create(t, cl, "u", 1, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			brokers, cl := fakeWith(t)
			create(t, cl, "u", 1, nil)
			b := open(t, brokers)
			a, _, _ := dump(t, b)
			if err := errors.Join(b.Delete(t.Context(), "u"), b.Delete(t.Context(), "u", "never")); err != nil {
				t.Fatal(err)
			}
			kept, err := b.MarksOf(t.Context(), []string{"t", "u"})
			if err != nil || len(kept.Topics) != 1 || kept.Topics[0].Name != "t" {
				t.Fatalf("marks of t and u: %+v, %v", kept, err)
			}
			move(t, cl)
			before, err := b.MarksOf(t.Context(), []string{"t", "u"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Load(t.Context(), a.source(), LoadOptions{Replace: true, Kept: kept}); !errors.Is(err, ErrMoved) {
				t.Errorf("loaded over what is in no copy: %v", err)
			}
			after, err := b.MarksOf(t.Context(), []string{"t", "u"})
			if err != nil {
				t.Fatal(err)
			}
			for i := range before.Topics {
				if before.Topics[i].ID != after.Topics[i].ID {
					t.Errorf("topic %s was replaced", before.Topics[i].Name)
				}
			}
			if _, err := b.Load(t.Context(), a.source(), LoadOptions{Replace: true, Kept: after}); err != nil {
				t.Errorf("with a copy of what is there: %v", err)
			}
		})
	}
}

// TestLoadRefusesOpenTransaction: records of an open transaction are in no copy.
func TestLoadRefusesOpenTransaction(t *testing.T) {
	brokers, _ := fakeWith(t)
	b := open(t, brokers)
	a, _, _ := dump(t, b)
	txn := client(t, brokers, kgo.TransactionalID("x"))
	if err := txn.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, txn, &kgo.Record{Topic: "t", Key: []byte("open")})
	kept, err := b.MarksOf(t.Context(), []string{"t"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Load(t.Context(), a.source(), LoadOptions{Replace: true, Kept: kept}); !errors.Is(err, ErrMoved) {
		t.Errorf("loaded over an open transaction: %v", err)
	}
	if err := txn.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
}

// TestKeepSame: a copy is given back only where the topic is not the one that was copied.
func TestKeepSame(t *testing.T) {
	brokers, cl := fakeWith(t)
	create(t, cl, "u", 1, nil)
	produce(t, cl, &kgo.Record{Topic: "u", Value: []byte("1")}, &kgo.Record{Topic: "u", Value: []byte("2")})
	commit(t, cl, "g", "u", 0, 1)
	commit(t, cl, "h", "t", 0, 7)
	b := open(t, brokers)
	a, _, _ := dump(t, b)
	produce(t, cl, &kgo.Record{Topic: "t", Key: []byte("since")})
	if err := b.Delete(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
	commit(t, cl, "h", "t", 0, 9)
	res, err := b.Load(t.Context(), a.source(), LoadOptions{Replace: true, KeepSame: true})
	if err != nil {
		t.Fatal(err)
	}
	if len(res.Topics) != 1 || res.Topics[0].Name != "u" || res.Records != 2 {
		t.Errorf("loaded %+v", res)
	}
	m, err := b.MarksOf(t.Context(), []string{"t"})
	if err != nil {
		t.Fatal(err)
	}
	if n := m.Topics[0].Partitions[0].HighWater; n != 51 {
		t.Errorf("t/0 ends at %d: what came since the copy is lost", n)
	}
	offsets, err := kadm.NewClient(cl).FetchOffsets(t.Context(), "h")
	if o, ok := offsets.Lookup("t", 0); err != nil || !ok || o.At != 9 {
		t.Errorf("position of h on t: %+v %v", o, err)
	}
	consume(t, brokers, "u", 1, 2)
}
