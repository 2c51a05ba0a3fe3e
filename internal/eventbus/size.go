package eventbus

import (
	"context"
	"fmt"
)

// Size is how many bytes the selected topics take on the brokers, each partition counted once however many replicas it has. As stored
// there, so compressed as their producers sent them.
func (b *Bus) Size(ctx context.Context) (int64, error) {
	topics, err := b.selected(ctx)
	if err != nil {
		return 0, fmt.Errorf("event bus: %w", err)
	}
	wanted := map[string]bool{}
	for _, t := range topics {
		wanted[t.Topic] = true
	}
	dirs, err := b.adm.DescribeAllLogDirs(ctx, nil)
	if err != nil {
		return 0, fmt.Errorf("event bus: ask for the sizes of topics: %w", err)
	}
	type partition struct {
		topic string
		n     int32
	}
	largest := map[partition]int64{}
	for _, broker := range dirs {
		for _, dir := range broker {
			for topic, parts := range dir.Topics {
				for n, p := range parts {
					if wanted[topic] && !p.IsFuture {
						at := partition{topic, n}
						largest[at] = max(largest[at], p.Size)
					}
				}
			}
		}
	}
	var sum int64
	for _, n := range largest {
		sum += n
	}
	return sum, nil
}

// Topics counts the selected topics. A name in Options.Topics that is none of the bus is an error, as in Marks.
func (b *Bus) Topics(ctx context.Context) (int, error) {
	topics, err := b.selected(ctx)
	if err != nil {
		return 0, fmt.Errorf("event bus: %w", err)
	}
	return len(topics), nil
}
