package rds

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Tags on what is made here. Their values are cut and cleaned to what the service takes: compare with TagValue.
const (
	TagSet      = "holdfast:set"      // id of the backup set
	TagRun      = "holdfast:run"      // which run of it
	TagHost     = "holdfast:host"     // that made the snapshot
	TagRoot     = "holdfast:root"     // of the instance on that host
	TagStanza   = "holdfast:stanza"   // which database of the application
	TagSnapshot = "holdfast:snapshot" // on a DB instance: what it was made of
	TagUntil    = "holdfast:until"    // on a DB instance: the time that it was recovered to
	TagRestored = "holdfast:restored" // on a DB instance: when the restore that made it had passed its checks
)

// maxTag is how many characters the value of a tag may have.
const maxTag = 256

// TagValue is s as the value of a tag: characters that the service does not take become underscores.
func TagValue(s string) string {
	out := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune(" _.:/=+-@", r) {
			return r
		}
		return '_'
	}, s)
	return out[:min(len(out), maxTag)] // ASCII alone by now
}

// States of a snapshot that are decided on; the service has more, which pass.
const (
	Creating  = "creating"
	Available = "available"
	Failed    = "failed"
)

// Snapshot is one DB snapshot.
type Snapshot struct {
	Name          string            `json:"snapshot"`
	ARN           string            `json:"arn"`
	Instance      string            `json:"instance"` // that it is of
	State         string            `json:"state"`
	Progress      int               `json:"progress"` // percent
	Engine        string            `json:"engine"`
	EngineVersion string            `json:"engine_version"`
	StorageGiB    int               `json:"allocated_gib"`     // of the instance
	Bytes         int64             `json:"bytes,omitempty"`   // of the blocks in it; 0: the service does not say
	Encrypted     bool              `json:"encrypted"`         //
	KMSKey        string            `json:"kms_key,omitempty"` //
	Taken         time.Time         `json:"taken,omitzero"`    // on the service's clock; zero: not yet, it is being begun
	LastChange    time.Time         `json:"last_change,omitzero"`
	Tags          map[string]string `json:"tags"`

	// ClockAhead is the service's clock less this host's, when the answer came; the service's is told in whole seconds.
	ClockAhead time.Duration `json:"-"`
}

// Fixed says whether what the snapshot holds is decided: later changes of the data are not in it.
func (s *Snapshot) Fixed() bool { return s.State == Available || !s.Taken.IsZero() || s.Progress > 0 }

// Of says whether the snapshot was made for a set, by a run of it; an empty run stands for any.
func (s *Snapshot) Of(set, run string) bool {
	return s.Tags[TagSet] == TagValue(set) && (run == "" || s.Tags[TagRun] == TagValue(run))
}

// Snapshot looks at one; ErrNotFound when there is none.
func (c *Client) Snapshot(ctx context.Context, name string) (*Snapshot, error) {
	op := "look at snapshot " + name
	var out describeSnapshots
	a, err := c.query(ctx, "DescribeDBSnapshots", url.Values{"DBSnapshotIdentifier": {name}}, &out)
	if err != nil {
		return nil, c.fail(ctx, op, err)
	}
	if len(out.List) != 1 {
		return nil, &Error{Op: op, Err: ErrNotFound, text: fmt.Sprintf("rds in %s: %s: %v", c.o.Region, op, ErrNotFound)}
	}
	s := out.List[0].snapshot(a)
	return &s, nil
}

// Snapshots lists the manual snapshots that carry Holdfast's tags, oldest first.
func (c *Client) Snapshots(ctx context.Context) ([]Snapshot, error) {
	var all []Snapshot
	for marker := ""; ; {
		form := url.Values{"SnapshotType": {"manual"}, "MaxRecords": {strconv.Itoa(pageSize)}}
		put(form, "Marker", marker)
		var out describeSnapshots
		a, err := c.query(ctx, "DescribeDBSnapshots", form, &out)
		if err != nil {
			return nil, c.fail(ctx, "list snapshots", err)
		}
		for i := range out.List {
			if s := out.List[i].snapshot(a); s.Tags[TagSet] != "" {
				all = append(all, s)
			}
		}
		if marker = out.Marker; marker == "" {
			break
		}
	}
	slices.SortFunc(all, func(a, b Snapshot) int { return cmp.Or(a.Taken.Compare(b.Taken), cmp.Compare(a.Name, b.Name)) })
	return all, nil
}

// CreateSnapshot asks for a snapshot of an instance and returns when the service has begun it. While the instance is busy
// (being backed up, modified, …) it is asked for again, until ctx ends. A snapshot of that name that carries the set and the
// run of tags is the one; another one is ErrNotOurs.
func (c *Client) CreateSnapshot(ctx context.Context, instance, name string, tags map[string]string) (*Snapshot, error) {
	op := fmt.Sprintf("take snapshot %s of instance %s", name, instance)
	if err := errors.Join(CheckName(name, MaxSnapshotName), CheckName(instance, MaxInstanceName)); err != nil {
		return nil, err
	}
	for n := 0; ; n++ {
		form := url.Values{"DBInstanceIdentifier": {instance}, "DBSnapshotIdentifier": {name}}
		putTags(form, tags)
		var out createSnapshot
		a, err := c.query(ctx, "CreateDBSnapshot", form, &out)
		if err == nil {
			s := out.Snapshot.snapshot(a)
			return &s, nil
		}
		switch {
		case code(err) == "DBSnapshotAlreadyExists":
			return c.ours(ctx, op, name, tags)
		case code(err) == "InvalidDBInstanceState":
			if berr := c.busy(ctx, instance); berr != nil {
				return nil, berr
			}
		default:
			return nil, c.fail(ctx, op, err)
		}
		if werr := c.wait(ctx, n); werr != nil {
			return nil, c.ended(ctx, op, err)
		}
	}
}

// ours is the snapshot of that name, if this run has made it: its request had arrived before.
func (c *Client) ours(ctx context.Context, op, name string, tags map[string]string) (*Snapshot, error) {
	s, err := c.Snapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	if !s.Of(tags[TagSet], tags[TagRun]) {
		return nil, &Error{Op: op, Err: ErrNotOurs, text: fmt.Sprintf("rds in %s: %s: a snapshot of that name is there, of %s, and %v; set pgsql.rds.snapshot_prefix to one that nobody else uses",
			c.o.Region, op, cmp.Or(s.Tags[TagHost], "somebody else"), ErrNotOurs)}
	}
	return s, nil
}

// hopeless are the states of an instance that don't pass by themselves into one in which it can be used.
var hopeless = [...]string{"deleting", "failed", "stopped", "stopping", "storage-full", "restore-error", "insufficient-capacity"}

// Hopeless says whether waiting for the instance to be available is of no use.
func (in *Instance) Hopeless() bool { return isHopeless(in.State) }

// isHopeless says whether waiting for an instance in that state is of no use.
func isHopeless(state string) bool {
	return slices.Contains(hopeless[:], state) || strings.HasPrefix(state, "incompatible-") || strings.HasPrefix(state, "inaccessible-encryption-credentials")
}

// busy is nil while it may help to ask again for a snapshot.
func (c *Client) busy(ctx context.Context, instance string) error {
	in, err := c.Instance(ctx, instance)
	if err != nil && !errors.Is(err, ErrUnavailable) {
		return err
	}
	if err == nil && isHopeless(in.State) {
		return c.hopelessError(in)
	}
	return nil
}

func (c *Client) hopelessError(in *Instance) error {
	return &Error{Op: "take a snapshot of " + in.Name, Err: ErrState, text: fmt.Sprintf("rds in %s: instance %s is %s: no snapshot of it can be taken; bring it back first", c.o.Region, in.Name, in.State)}
}

// ended is the error of something awaited that did not come before ctx ended, whose cause, if it has one, says what set the time
// limit; last is what was seen before.
func (c *Client) ended(ctx context.Context, op string, last error) error {
	ctxErr := ctx.Err()
	if errors.Is(ctxErr, context.Canceled) {
		return ctxErr
	}
	text := fmt.Sprintf("rds in %s: %s: not within the time limit", c.o.Region, op)
	if cause := context.Cause(ctx); !errors.Is(cause, ctxErr) {
		text += " (" + cause.Error() + ")"
	}
	if last != nil {
		text += ", " + c.scrub(said(last))
	}
	return &Error{Op: op, Err: fmt.Errorf("%w: %w", ctxErr, cmp.Or(last, ctxErr)), text: text}
}

// lateAnswers is how often something that was begun may not be found yet.
const lateAnswers = 3

// AwaitSnapshot looks again and again until enough says so, or the snapshot is available. A snapshot that fails or goes
// away is an error; a service that can't be asked for a while is not. The time is ctx's.
func (c *Client) AwaitSnapshot(ctx context.Context, name string, enough func(*Snapshot) bool) (*Snapshot, error) {
	op := "wait for snapshot " + name
	var last error
	for n, missing := 0, 0; ; n++ {
		s, err := c.Snapshot(ctx, name)
		switch {
		case err == nil && s.State == Failed:
			return s, &Error{Op: op, Err: ErrState, text: fmt.Sprintf("rds in %s: snapshot %s of instance %s has failed; the events of the instance say why: aws rds describe-events --source-type db-snapshot", c.o.Region, name, s.Instance)}
		case err == nil && (s.State == Available || enough != nil && enough(s)):
			return s, nil
		case err == nil:
			last = fmt.Errorf("it is %s, %d %%", s.State, s.Progress)
		case errors.Is(err, ErrNotFound) && missing < lateAnswers: // what has just been begun may not be listed at once
			missing++
			last = err
		case ctx.Err() == nil && !errors.Is(err, ErrUnavailable):
			return nil, err
		case ctx.Err() == nil:
			last = err
		}
		if werr := c.wait(ctx, n); werr != nil {
			return s, c.ended(ctx, op, last)
		}
	}
}

// DeleteSnapshot removes a snapshot that carries the tags of set (and run, unless that is empty). One that is gone is
// ErrNotFound, one of somebody else ErrNotOurs, one that is still being created ErrState.
func (c *Client) DeleteSnapshot(ctx context.Context, name, set, run string) error {
	op := "remove snapshot " + name
	s, err := c.Snapshot(ctx, name)
	if err != nil {
		return err
	}
	if !s.Of(set, run) {
		return &Error{Op: op, Err: ErrNotOurs, text: fmt.Sprintf("rds in %s: %s: it does not carry the tags of set %s: it stays", c.o.Region, op, set)}
	}
	_, err = c.query(ctx, "DeleteDBSnapshot", url.Values{"DBSnapshotIdentifier": {name}}, &nothing{})
	if code(err) == "DBSnapshotNotFound" {
		return nil // an earlier try of the same request
	}
	return c.fail(ctx, op, err)
}
