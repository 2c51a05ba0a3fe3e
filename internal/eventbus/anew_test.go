package eventbus

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestTopicMadeAnew: marks of a topic that was deleted and made anew a moment ago belong to the new one, and so must what
// is read; the client library remembers topics for a while.
func TestTopicMadeAnew(t *testing.T) {
	brokers := fake(t)
	b := open(t, brokers)
	for i := range 10 {
		cl := client(t, brokers) // remembers topics, too
		create(t, cl, "events", 2, nil)
		produce(t, cl, &kgo.Record{Topic: "events", Partition: 1, Value: []byte{byte(i)}})
		m, err := b.MarksOf(t.Context(), []string{"events"})
		if err != nil {
			t.Fatal(err)
		}
		sum, err := b.Count(t.Context(), m)
		if err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		if sum.Topics[0].Partitions[1].Records != 1 {
			t.Fatalf("round %d: %+v", i, sum.Topics[0])
		}
		if _, err := kadm.NewClient(cl).DeleteTopics(t.Context(), "events"); err != nil {
			t.Fatal(err)
		}
	}
}
