package eventbus

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// loadingConfig are the settings of a topic while it is loaded, in place of
// its own or the broker's: nothing may be deleted, compacted, re-stamped or
// refused. A broker that does not know one of them is not asked to set it.
var loadingConfig = map[string]string{
	"cleanup.policy":                      "delete",
	"retention.ms":                        "-1",
	"retention.bytes":                     "-1",
	"max.message.bytes":                   strconv.Itoa(math.MaxInt32), // records may have been shorter when compressed
	"message.timestamp.type":              "CreateTime",
	"message.timestamp.difference.max.ms": strconv.Itoa(math.MaxInt64),
	"message.timestamp.before.max.ms":     strconv.Itoa(math.MaxInt64),
	"message.timestamp.after.max.ms":      strconv.Itoa(math.MaxInt64),
}

// perCluster are settings that name brokers of the source.
var perCluster = []string{"leader.replication.throttled.replicas", "follower.replication.throttled.replicas"}

// topicPlan is how one topic is made.
type topicPlan struct {
	name       string
	partitions int32
	replicas   int16
	config     map[string]string // in the end
	loading    map[string]string // while it is loaded, where that differs
}

// plan decides how each topic will be made and returns those that exist
// already. It changes nothing; its error lists everything that stands in the
// way of the load.
func (l *loader) plan(ctx context.Context) (exist []string, err error) {
	md, err := l.b.adm.Metadata(uncached(ctx))
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var errs []error
	for _, t := range l.wanted {
		if md.Topics.Has(t.Name) {
			exist = append(exist, t.Name)
		}
		p := topicPlan{name: t.Name, partitions: int32(len(t.Partitions)), replicas: int16(t.ReplicationFactor), config: maps.Clone(t.Config)}
		if p.config == nil {
			p.config = map[string]string{}
		}
		if n := len(md.Brokers); int(p.replicas) > n {
			l.notes = append(l.notes, fmt.Sprintf("topic %s has %d replicas instead of %d: there are no more brokers", t.Name, n, p.replicas))
			p.replicas = int16(n)
		}
		if least, err := strconv.Atoi(p.config["min.insync.replicas"]); err == nil && least > int(p.replicas) {
			l.notes = append(l.notes, fmt.Sprintf("topic %s has min.insync.replicas=%d instead of %d, or nobody could produce to it", t.Name, p.replicas, least))
			p.config["min.insync.replicas"] = strconv.Itoa(int(p.replicas))
		}
		for _, key := range perCluster {
			if _, ok := p.config[key]; ok {
				delete(p.config, key)
				l.notes = append(l.notes, fmt.Sprintf("topic %s: %s is left out: it names brokers of the saved cluster", t.Name, key))
			}
		}
		l.topics = append(l.topics, p)
	}
	if len(exist) > 0 && !l.opt.Replace {
		errs = append(errs, fmt.Errorf("these topics exist on the bus: %s; delete them, or allow the restore to replace them", strings.Join(exist, ", ")))
	}
	errs = append(errs, l.refuseGroups(ctx))
	return exist, errors.Join(errs...)
}

// topicsToLoad are the archive's topics, but with KeepSame only those that are
// not on the bus any more, or again under another id.
func (l *loader) topicsToLoad(ctx context.Context) ([]TopicMarks, error) {
	if !l.opt.KeepSame {
		return l.archive.marks.Topics, nil
	}
	here, err := l.b.adm.ListTopics(uncached(ctx))
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var out []TopicMarks
	for _, t := range l.archive.marks.Topics {
		// Brokers before Kafka 2.8 give no ids: such a topic may be another.
		if d, ok := here[t.Name]; !ok || d.ID == (kadm.TopicID{}) || hex.EncodeToString(d.ID[:]) != t.ID {
			out = append(out, t)
		}
	}
	return out, nil
}

// checkKept compares the topics about to be deleted with the copy of them.
func (l *loader) checkKept(ctx context.Context, exist []string) error {
	if l.opt.Kept == nil {
		return nil
	}
	now := &Marks{}
	if len(exist) > 0 {
		var err error
		if now, err = l.b.loadedMarks(uncached(ctx), exist); err != nil {
			return err
		}
	}
	kept := map[string]*TopicMarks{}
	for i := range l.opt.Kept.Topics {
		kept[l.opt.Kept.Topics[i].Name] = &l.opt.Kept.Topics[i]
	}
	for _, t := range now.Topics {
		k := kept[t.Name]
		if k == nil || k.ID != t.ID || len(k.Partitions) != len(t.Partitions) {
			return fmt.Errorf("%w: topic %s was created or changed", ErrMoved, t.Name)
		}
		for i, p := range t.Partitions {
			switch q := k.Partitions[i]; {
			case q.HighWater != p.HighWater:
				return fmt.Errorf("%w: topic %s, partition %d, reached offset %d and has %d now", ErrMoved, t.Name, i, q.HighWater, p.HighWater)
			case q.Stable != q.HighWater:
				return fmt.Errorf("%w: topic %s, partition %d, has an open transaction from offset %d on (one of a producer that died ends after its transaction.timeout.ms)", ErrMoved, t.Name, i, q.Stable)
			}
		}
	}
	return nil
}

// Delete deletes topics and waits until they are gone, no longer than the
// timeout. A topic that is not there is no error.
func (b *Bus) Delete(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	rs, err := b.adm.DeleteTopics(ctx, names...)
	if err != nil {
		return fmt.Errorf("delete topics: %w", err)
	}
	for _, name := range names {
		r, ok := rs[name]
		if !ok {
			return fmt.Errorf("delete topic %s: the broker did not answer for it", name)
		}
		if r.Err != nil && !errors.Is(r.Err, kerr.UnknownTopicOrPartition) {
			return fmt.Errorf("delete topic %s: %w %s", name, r.Err, r.ErrMessage)
		}
	}
	return b.wait(ctx, "topics to be deleted", func(topics kadm.TopicDetails) bool {
		return !slices.ContainsFunc(names, topics.Has)
	})
}

// wait asks for the topics again and again until done says so, no longer than
// the timeout.
func (b *Bus) wait(ctx context.Context, what string, done func(kadm.TopicDetails) bool) error {
	for deadline := time.Now().Add(b.opt.Timeout); ; {
		topics, err := b.adm.ListTopics(uncached(ctx))
		if err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
		if done(topics) {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("wait for %s: not so after %v", what, b.opt.Timeout)
		}
		if err := pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("wait for %s: %w", what, err)
		}
	}
}

// createTopics makes every topic, with the settings for loading, and waits
// until all partitions have leaders.
func (l *loader) createTopics(ctx context.Context) error {
	var names []string
	for _, p := range l.topics {
		config := map[string]*string{}
		for k, v := range p.config {
			if over, ok := loadingConfig[k]; ok {
				v = over
			}
			config[k] = &v
		}
		r, err := l.b.adm.CreateTopic(ctx, p.partitions, p.replicas, config, p.name)
		if errors.Is(err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("create topic %s: somebody has created it meanwhile; stop the producers and load again", p.name)
		}
		if err != nil {
			return fmt.Errorf("create topic %s: %w %s", p.name, err, r.ErrMessage)
		}
		names = append(names, p.name)
	}
	if len(names) == 0 {
		return nil
	}
	err := l.b.wait(ctx, "leaders of the new topics", func(topics kadm.TopicDetails) bool {
		for _, p := range l.topics {
			t := topics[p.name]
			if t.Err != nil || len(t.Partitions) != int(p.partitions) {
				return false
			}
			for _, part := range t.Partitions {
				if part.Err != nil || part.Leader < 0 {
					return false
				}
			}
		}
		return true
	})
	if err != nil {
		return err
	}
	return l.protectTopics(ctx, names)
}

// protectTopics overrides the broker's defaults where they could harm the
// load, and notes the sizes that batches must keep to.
func (l *loader) protectTopics(ctx context.Context, names []string) error {
	configs, err := l.b.configs(ctx, names)
	if err != nil {
		return err
	}
	for i := range l.topics {
		p := &l.topics[i]
		p.loading = map[string]string{}
		set := map[string]string{}
		limit := int64(usualBatch)
		smaller := func(text string) {
			if n, err := strconv.ParseInt(text, 10, 64); err == nil && n > 0 {
				limit = min(limit, n)
			}
		}
		smaller(p.config["max.message.bytes"])
		for _, c := range configs[p.name] {
			own, isOwn := p.config[c.Key]
			over, ok := loadingConfig[c.Key]
			switch value := c.MaybeValue(); {
			case ok && value != over:
				set[c.Key] = over
				fallthrough
			case ok && isOwn && own != over:
				p.loading[c.Key] = over
			}
			if c.Key == "segment.bytes" || c.Key == "max.message.bytes" {
				smaller(c.MaybeValue())
			}
		}
		l.limits[p.name] = int32(max(limit, 2*batchOverhead))
		if err := l.alter(ctx, p.name, set, nil); err != nil {
			return err
		}
	}
	return nil
}

// finishTopics gives every topic its own settings, or the broker's.
func (l *loader) finishTopics(ctx context.Context) error {
	for _, p := range l.topics {
		set := map[string]string{}
		var unset []string
		for key := range p.loading {
			if own, ok := p.config[key]; ok {
				set[key] = own
			} else {
				unset = append(unset, key)
			}
		}
		if err := l.alter(ctx, p.name, set, unset); err != nil {
			return err
		}
	}
	return nil
}

// alter sets and unsets settings of one topic, all or none.
func (l *loader) alter(ctx context.Context, topic string, set map[string]string, unset []string) error {
	var changes []kadm.AlterConfig
	for _, key := range slices.Sorted(maps.Keys(set)) {
		changes = append(changes, kadm.AlterConfig{Op: kadm.SetConfig, Name: key, Value: kadm.StringPtr(set[key])})
	}
	slices.Sort(unset)
	for _, key := range unset {
		changes = append(changes, kadm.AlterConfig{Op: kadm.DeleteConfig, Name: key})
	}
	if len(changes) == 0 {
		return nil
	}
	rs, err := l.b.adm.AlterTopicConfigs(ctx, changes, topic)
	if err != nil {
		return fmt.Errorf("change settings of topic %s: %w", topic, err)
	}
	for _, r := range rs {
		if r.Err != nil {
			return fmt.Errorf("change settings of topic %s: %w %s", topic, r.Err, r.ErrMessage)
		}
	}
	return nil
}
