package eventbus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
)

// position is where one group stood on one partition, and will stand.
type position struct {
	old, new int64
}

// groupPlan pairs the positions of a group with their translation.
type groupPlan struct {
	saved     GroupOffsets
	positions []*position // as saved.Offsets
}

// addPositions tells each partition which offsets it has to translate.
func (l *loader) addPositions() {
	for _, g := range l.archive.marks.Groups {
		plan := groupPlan{saved: GroupOffsets{Group: g.Group}}
		for _, o := range g.Offsets {
			if l.parts[o.Topic] == nil {
				continue // the topic stays as it is, and so do positions on it
			}
			plan.saved.Offsets = append(plan.saved.Offsets, o)
			pos := &position{old: o.Offset}
			plan.positions = append(plan.positions, pos)
			p := l.parts[o.Topic][o.Partition]
			p.positions = append(p.positions, pos)
		}
		if len(plan.positions) > 0 {
			l.groups = append(l.groups, plan)
		}
	}
	for _, ps := range l.parts {
		for _, p := range ps {
			slices.SortFunc(p.positions, func(a, b *position) int { return cmp.Compare(a.old, b.old) })
		}
	}
}

// translate is called before the record of the old offset is added, which will
// get the next new offset: whoever stood at or before it stands there.
func (p *loadPart) translate(old int64) {
	for p.next < len(p.positions) && p.positions[p.next].old <= old {
		p.positions[p.next].new = p.state.sum.Records
		p.next++
	}
}

// refuseGroups returns an error that names every group whose positions cannot
// be set because it is running, with its members.
func (l *loader) refuseGroups(ctx context.Context) error {
	if len(l.groups) == 0 {
		return nil
	}
	listed, err := l.b.adm.ListGroups(ctx)
	if err != nil {
		return fmt.Errorf("list consumer groups: %w", err)
	}
	var errs []error
	for _, g := range l.groups {
		found, ok := listed[g.saved.Group]
		if !ok || found.State == "Empty" || found.State == "Dead" {
			continue
		}
		members, err := l.members(ctx, g.saved.Group)
		if err != nil {
			return err
		}
		if found.State == "" && members == "" { // brokers before Kafka 2.6 do not list the state
			continue
		}
		errs = append(errs, fmt.Errorf("consumer group %s is running (%s): stop its members and restore again: %s", g.saved.Group, found.State, cmp.Or(members, "the broker names none")))
	}
	return errors.Join(errs...)
}

// members describes the members of a group of either protocol.
func (l *loader) members(ctx context.Context, group string) (string, error) {
	var out []string
	classic, err := l.b.adm.DescribeGroups(ctx, group)
	if d, ok := classic[group]; err == nil && ok && d.Err == nil {
		for _, m := range d.Members {
			out = append(out, fmt.Sprintf("%s at %s", m.ClientID, m.ClientHost))
		}
	} else {
		// A group of the protocol of KIP-848 is not described as a classic one.
		next, err2 := l.b.adm.DescribeConsumerGroups(ctx, group)
		d, ok := next[group]
		if err2 != nil || !ok || d.Err != nil {
			return "", fmt.Errorf("describe consumer group %s: %w", group, errors.Join(err, classic[group].Err, err2, d.Err))
		}
		for _, m := range d.Members {
			out = append(out, fmt.Sprintf("%s at %s", m.ClientID, m.ClientHost))
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", "), nil
}

// commitPositions sets the positions of all groups.
func (l *loader) commitPositions(ctx context.Context) ([]GroupOffsets, error) {
	out := []GroupOffsets{}
	for _, g := range l.groups {
		done := GroupOffsets{Group: g.saved.Group}
		offsets := kadm.Offsets{}
		for i, o := range g.saved.Offsets {
			o.Offset = g.positions[i].new
			done.Offsets = append(done.Offsets, o)
			offsets.Add(kadm.Offset{Topic: o.Topic, Partition: o.Partition, At: o.Offset, LeaderEpoch: -1, Metadata: string(o.Metadata)})
		}
		if err := l.b.adm.CommitAllOffsets(ctx, g.saved.Group, offsets); err != nil {
			return nil, fmt.Errorf("commit positions of group %s: %w", g.saved.Group, err)
		}
		out = append(out, done)
	}
	return out, nil
}
