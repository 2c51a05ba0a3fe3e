package eventbus

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// Interval is a span of wall-clock time, UTC.
type Interval struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Marks say how far the bus reached, and where its consumers stood, in one
// short interval. They are the bus's part of a recovery point.
type Marks struct {
	Taken  Interval       `json:"taken"`
	Topics []TopicMarks   `json:"topics"` // by name
	Groups []GroupOffsets `json:"groups"` // by name; only groups with a position on one of the topics
}

// TopicMarks are those of one topic.
type TopicMarks struct {
	Name              string            `json:"name"`
	ID                string            `json:"id"`     // 32 hex digits; zeros where the broker has none
	Config            map[string]string `json:"config"` // settings of the topic itself, not the broker's defaults
	ReplicationFactor int               `json:"replication_factor"`
	Partitions        []PartitionMarks  `json:"partitions"` // by number, without gaps
}

// PartitionMarks are offsets of one partition. Records in [Start, Stable) are
// what a dump reads; those in [Stable, HighWater) belong to transactions that
// were open, or stand behind one.
type PartitionMarks struct {
	Partition   int32 `json:"partition"`
	Start       int64 `json:"start"`
	Stable      int64 `json:"stable"`
	HighWater   int64 `json:"high_water"`
	LeaderEpoch int32 `json:"leader_epoch"`
}

// GroupOffsets are the positions of one consumer group.
type GroupOffsets struct {
	Group   string        `json:"group"`
	Offsets []GroupOffset `json:"offsets"` // by topic and partition
}

// GroupOffset is the offset of the next record that a group would read.
type GroupOffset struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Metadata  []byte `json:"metadata,omitempty"` // the consumer's own note
}

// internalTopics are Kafka's own, whatever the broker marks them as.
var internalTopics = []string{"__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata", "__remote_log_metadata"}

// Marks takes the marks of the selected topics. The positions of the groups
// are read before the ends of the partitions, so that no group stands beyond
// what a dump holds, except behind an open transaction. A pattern without
// wildcards that names no topic is an error: the operator believes that it is
// backed up.
func (b *Bus) Marks(ctx context.Context) (*Marks, error) {
	return b.take(ctx, b.selected)
}

// MarksOf takes the marks of those of the topics that are on the bus, whatever
// Options.Topics says.
func (b *Bus) MarksOf(ctx context.Context, names []string) (*Marks, error) {
	wanted := make(map[string]bool, len(names))
	for _, n := range names {
		wanted[n] = true
	}
	return b.take(ctx, func(ctx context.Context) ([]kadm.TopicDetail, error) {
		all, err := b.adm.ListTopics(uncached(ctx))
		if err != nil {
			return nil, fmt.Errorf("list topics: %w", err)
		}
		var out []kadm.TopicDetail
		for _, t := range all.Sorted() {
			if !wanted[t.Topic] {
				continue
			}
			if t.Err != nil {
				return nil, fmt.Errorf("topic %s: %w", t.Topic, t.Err)
			}
			out = append(out, t)
		}
		return out, nil
	})
}

func (b *Bus) take(ctx context.Context, which func(context.Context) ([]kadm.TopicDetail, error)) (*Marks, error) {
	m := &Marks{Topics: []TopicMarks{}, Groups: []GroupOffsets{}}
	m.Taken.From = b.opt.Now().UTC()
	topics, err := which(ctx)
	if err != nil {
		return nil, fmt.Errorf("event bus: take marks: %w", err)
	}
	if len(topics) > 0 {
		if err := b.mark(ctx, m, topics); err != nil {
			return nil, fmt.Errorf("event bus: take marks: %w", err)
		}
	}
	m.Taken.To = b.opt.Now().UTC()
	return m, nil
}

func (b *Bus) mark(ctx context.Context, m *Marks, topics []kadm.TopicDetail) error {
	var names []string
	for _, t := range topics {
		names = append(names, t.Topic)
	}
	configs, err := b.configs(ctx, names)
	if err != nil {
		return err
	}
	if m.Groups, err = b.groupOffsets(ctx, names); err != nil {
		return err
	}
	for _, t := range topics {
		tm := TopicMarks{Name: t.Topic, ID: hex.EncodeToString(t.ID[:]), Config: ownConfig(configs[t.Topic])}
		for i := range int32(len(t.Partitions)) {
			tm.ReplicationFactor = max(tm.ReplicationFactor, len(t.Partitions[i].Replicas))
			tm.Partitions = append(tm.Partitions, PartitionMarks{Partition: i})
		}
		m.Topics = append(m.Topics, tm)
	}
	return b.markOffsets(ctx, m)
}

// markOffsets sets the offsets of every partition in the marks.
func (b *Bus) markOffsets(ctx context.Context, m *Marks) error {
	var names []string
	for _, t := range m.Topics {
		names = append(names, t.Name)
	}
	list := func(what string, call func(context.Context, ...string) (kadm.ListedOffsets, error)) (kadm.ListedOffsets, error) {
		l, err := call(ctx, names...)
		if err == nil {
			err = l.Error()
		}
		if err != nil {
			return nil, fmt.Errorf("list %s offsets: %w", what, err)
		}
		return l, nil
	}
	// Each of the three only grows. A start beyond the stable offset means
	// that retention has removed all in between the calls.
	stable, err := list("last stable", b.adm.ListCommittedOffsets)
	if err != nil {
		return err
	}
	high, err := list("high-water", b.adm.ListEndOffsets)
	if err != nil {
		return err
	}
	start, err := list("first", b.adm.ListStartOffsets)
	if err != nil {
		return err
	}
	for _, t := range m.Topics {
		for i := range t.Partitions {
			p := &t.Partitions[i]
			s, ok1 := start.Lookup(t.Name, p.Partition)
			l, ok2 := stable.Lookup(t.Name, p.Partition)
			h, ok3 := high.Lookup(t.Name, p.Partition)
			if !ok1 || !ok2 || !ok3 {
				return fmt.Errorf("topic %s: the broker gave no offsets for partition %d of %d", t.Name, i, len(t.Partitions))
			}
			p.LeaderEpoch = l.LeaderEpoch
			p.Start, p.Stable, p.HighWater = min(s.Offset, l.Offset), l.Offset, max(h.Offset, l.Offset)
		}
	}
	return nil
}

// selected lists the topics that the options name, by name.
func (b *Bus) selected(ctx context.Context) ([]kadm.TopicDetail, error) {
	all, err := b.adm.ListTopics(ctx)
	if err != nil {
		return nil, fmt.Errorf("list topics: %w", err)
	}
	var missing []string
	for _, p := range b.opt.Topics {
		if !strings.ContainsAny(p, `*?[\`) && !all.Has(p) {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("no topic of this name on the bus: %s; correct the parameter eventbus.topics", strings.Join(missing, ", "))
	}
	var out []kadm.TopicDetail
	for _, t := range all.Sorted() {
		if t.IsInternal || slices.Contains(internalTopics, t.Topic) || !b.wants(t.Topic) {
			continue
		}
		if t.Err != nil {
			return nil, fmt.Errorf("topic %s: %w", t.Topic, t.Err)
		}
		if err := checkTopicName(t.Topic); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

func (b *Bus) wants(topic string) bool {
	for _, p := range b.opt.Topics {
		if ok, _ := path.Match(p, topic); ok { // malformed patterns were refused by Open
			return true
		}
	}
	return len(b.opt.Topics) == 0
}

// configs returns all settings of each topic, defaults included.
func (b *Bus) configs(ctx context.Context, topics []string) (map[string][]kadm.Config, error) {
	rs, err := b.adm.DescribeTopicConfigs(ctx, topics...)
	if err != nil {
		return nil, fmt.Errorf("describe topic settings: %w", err)
	}
	out := make(map[string][]kadm.Config, len(topics))
	for _, r := range rs {
		if r.Err != nil {
			return nil, fmt.Errorf("describe settings of topic %s: %w", r.Name, r.Err)
		}
		out[r.Name] = r.Configs
	}
	for _, t := range topics {
		if _, ok := out[t]; !ok {
			return nil, fmt.Errorf("the broker did not describe the settings of topic %s", t)
		}
	}
	return out, nil
}

// ownConfig picks what was set on the topic itself.
func ownConfig(all []kadm.Config) map[string]string {
	out := map[string]string{}
	for _, c := range all {
		if c.Source == kmsg.ConfigSourceDynamicTopicConfig && c.Value != nil {
			out[c.Key] = *c.Value
		}
	}
	return out
}

// groupOffsets lists the positions of every group on the topics.
func (b *Bus) groupOffsets(ctx context.Context, topics []string) ([]GroupOffsets, error) {
	listed, err := b.adm.ListGroups(ctx)
	if err != nil {
		return nil, fmt.Errorf("list consumer groups: %w", err)
	}
	out := []GroupOffsets{}
	names := slices.Sorted(maps.Keys(listed))
	if len(names) == 0 {
		return out, nil
	}
	fetched := b.adm.FetchManyOffsets(ctx, names...)
	for _, name := range names {
		f, ok := fetched[name]
		if !ok {
			return nil, fmt.Errorf("the broker gave no positions of group %s", name)
		}
		if f.Err != nil {
			return nil, fmt.Errorf("fetch positions of group %s: %w", name, f.Err)
		}
		g := GroupOffsets{Group: name}
		for _, topic := range topics {
			for _, o := range f.Fetched[topic] {
				if o.Err != nil {
					return nil, fmt.Errorf("fetch position of group %s on %s/%d: %w", name, topic, o.Partition, o.Err)
				}
				if o.At >= 0 {
					g.Offsets = append(g.Offsets, GroupOffset{Topic: topic, Partition: o.Partition, Offset: o.At, Metadata: []byte(o.Metadata)})
				}
			}
		}
		if len(g.Offsets) == 0 {
			continue
		}
		if !utf8.ValidString(name) {
			return nil, fmt.Errorf("the name of group %q is not valid UTF-8; delete the group or its positions", name)
		}
		slices.SortFunc(g.Offsets, func(a, b GroupOffset) int {
			return cmp.Or(strings.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
		})
		out = append(out, g)
	}
	return out, nil
}

// checkTopicName holds Kafka's rule for names (org.apache.kafka.common
// internals.Topic, as documented): 1 to 249 of A-Z a-z 0-9 . _ -, not "." or
// "..". Names of an archive become parts of member names, hence the care.
func checkTopicName(name string) error {
	if name == "" || len(name) > 249 || name == "." || name == ".." {
		return fmt.Errorf("topic name %.260q is not one that Kafka allows", name)
	}
	for _, c := range []byte(name) {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-' {
			continue
		}
		return fmt.Errorf("topic name %.260q is not one that Kafka allows", name)
	}
	return nil
}

// Limits on the marks of an archive, far above any real bus.
const (
	maxTopics     = 100_000
	maxPartitions = 1_000_000
)

// check refuses marks that no bus gives.
func (m *Marks) check() error {
	if len(m.Topics) > maxTopics {
		return fmt.Errorf("%d topics are more than the %d allowed", len(m.Topics), maxTopics)
	}
	partitions := map[string]int{}
	total := 0
	for _, t := range m.Topics {
		if err := checkTopicName(t.Name); err != nil {
			return err
		}
		if slices.Contains(internalTopics, t.Name) {
			return fmt.Errorf("topic %s is the broker's own", t.Name)
		}
		if _, ok := partitions[t.Name]; ok {
			return fmt.Errorf("topic %s stands there twice", t.Name)
		}
		partitions[t.Name] = len(t.Partitions)
		if total += len(t.Partitions); total > maxPartitions || len(t.Partitions) == 0 {
			return fmt.Errorf("topic %s: %d partitions (%d in all) are not possible", t.Name, len(t.Partitions), total)
		}
		if t.ReplicationFactor < 1 || t.ReplicationFactor > 1000 {
			return fmt.Errorf("topic %s: replication factor %d is not possible", t.Name, t.ReplicationFactor)
		}
		if id, err := hex.DecodeString(t.ID); err != nil || len(id) != 16 {
			return fmt.Errorf("topic %s: id %.40q is not 32 hex digits", t.Name, t.ID)
		}
		for i, p := range t.Partitions {
			if p.Partition != int32(i) || p.Start < 0 || p.Start > p.Stable || p.Stable > p.HighWater {
				return fmt.Errorf("topic %s: marks of partition %d make no sense: %+v", t.Name, i, p)
			}
		}
	}
	seen := map[string]bool{}
	for _, g := range m.Groups {
		if g.Group == "" && len(g.Offsets) == 0 || seen[g.Group] {
			return fmt.Errorf("group %.260q is empty or stands there twice", g.Group)
		}
		seen[g.Group] = true
		for _, o := range g.Offsets {
			if o.Partition < 0 || int(o.Partition) >= partitions[o.Topic] || o.Offset < 0 {
				return errors.New("group " + g.Group + ": position on a partition that the marks do not have")
			}
		}
	}
	return nil
}
