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

// Instance is one DB instance.
type Instance struct {
	Name           string
	ARN            string
	State          string
	Engine         string // postgres, aurora-postgresql, …
	EngineVersion  string // 15.4
	Class          string // db.m6g.large
	StorageGiB     int
	StorageType    string
	Encrypted      bool
	KMSKey         string
	Host           string // its address; empty: it has none yet
	Port           int
	SubnetGroup    string
	SecurityGroups []string
	ParameterGroup string
	OptionGroup    string
	MultiAZ        bool
	Public         bool
	Cluster        string // Aurora's or Multi-AZ DB cluster that it belongs to; empty: none
	Retention      int    // days of automated backups; 0: none
	Latest         time.Time
	Tags           map[string]string
}

// Instance looks at one; ErrNotFound when there is none.
func (c *Client) Instance(ctx context.Context, name string) (*Instance, error) {
	op := "look at instance " + name
	var out describeInstances
	if _, err := c.query(ctx, "DescribeDBInstances", url.Values{"DBInstanceIdentifier": {name}}, &out); err != nil {
		return nil, c.fail(ctx, op, err)
	}
	if len(out.List) != 1 {
		return nil, &Error{Op: op, Err: ErrNotFound, text: fmt.Sprintf("rds in %s: %s: %v", c.o.Region, op, ErrNotFound)}
	}
	return out.List[0].instance(), nil
}

// NewInstance is what a DB instance is to be made of, and how. Empty members are left to the service's defaults.
type NewInstance struct {
	Name           string
	Snapshot       string    // what it is made of; or
	Source         string    // the instance whose automated backups are used, with
	Until          time.Time // the time to recover to
	Class          string
	SubnetGroup    string
	SecurityGroups []string
	ParameterGroup string
	OptionGroup    string
	StorageType    string
	Port           int
	MultiAZ        bool
	Public         bool
	Tags           map[string]string // TagSet, TagSnapshot and TagUntil tell it from others
}

// Made says whether an instance is the one that n describes.
func (n *NewInstance) Made(in *Instance) bool {
	for _, k := range []string{TagSet, TagStanza, TagSnapshot, TagUntil} {
		if in.Tags[k] != TagValue(n.Tags[k]) {
			return false
		}
	}
	return true
}

// Create asks for a new instance and returns when the service has begun it. One of that name that carries n's tags is the
// one; another one is ErrNotOurs. No existing instance is changed.
func (c *Client) Create(ctx context.Context, n NewInstance) (*Instance, error) {
	op := fmt.Sprintf("make instance %s of snapshot %s", n.Name, n.Snapshot)
	if n.Snapshot == "" {
		op = fmt.Sprintf("make instance %s of %s as of %s", n.Name, n.Source, n.Until.UTC().Format(time.RFC3339))
	}
	if err := CheckName(n.Name, MaxInstanceName); err != nil {
		return nil, err
	}
	made, err := c.create(ctx, n)
	switch {
	case code(err) == "DBInstanceAlreadyExists":
		in, err := c.Instance(ctx, n.Name)
		if err != nil {
			return nil, err
		}
		if !n.Made(in) {
			return nil, &Error{Op: op, Err: ErrNotOurs, text: fmt.Sprintf("rds in %s: %s: an instance of that name is there, and %v; set pgsql.rds.restore.suffix to another", c.o.Region, op, ErrNotOurs)}
		}
		return in, nil
	case err != nil:
		return nil, c.fail(ctx, op, err)
	}
	return made.instance(), nil
}

func (c *Client) create(ctx context.Context, n NewInstance) (*xmlInstance, error) {
	form := url.Values{"MultiAZ": {strconv.FormatBool(n.MultiAZ)}, "PubliclyAccessible": {strconv.FormatBool(n.Public)}, "CopyTagsToSnapshot": {"false"}}
	for name, value := range map[string]string{"DBInstanceClass": n.Class, "DBSubnetGroupName": n.SubnetGroup, "DBParameterGroupName": n.ParameterGroup,
		"OptionGroupName": n.OptionGroup, "StorageType": n.StorageType} {
		if !strings.HasPrefix(value, "default:") && !strings.HasPrefix(value, "default.") { // the service's own of a version of the engine: it knows which
			put(form, name, value)
		}
	}
	if n.Port > 0 {
		form.Set("Port", strconv.Itoa(n.Port))
	}
	for i, g := range n.SecurityGroups {
		form.Set(fmt.Sprintf("VpcSecurityGroupIds.VpcSecurityGroupId.%d", i+1), g)
	}
	putTags(form, n.Tags)
	if n.Snapshot != "" {
		form.Set("DBInstanceIdentifier", n.Name)
		form.Set("DBSnapshotIdentifier", n.Snapshot)
		var out restoredSnapshot
		_, err := c.query(ctx, "RestoreDBInstanceFromDBSnapshot", form, &out)
		return &out.Instance, err
	}
	form.Set("TargetDBInstanceIdentifier", n.Name)
	form.Set("SourceDBInstanceIdentifier", n.Source)
	form.Set("RestoreTime", n.Until.UTC().Format(time.RFC3339))
	var out restoredTime
	_, err := c.query(ctx, "RestoreDBInstanceToPointInTime", form, &out)
	return &out.Instance, err
}

// AwaitInstance looks again and again until the instance is available and has an address. One that fails or goes away is an
// error; a service that can't be asked for a while is not. The time is ctx's.
func (c *Client) AwaitInstance(ctx context.Context, name string) (*Instance, error) {
	op := "wait for instance " + name
	var last error
	for n, missing := 0, 0; ; n++ {
		in, err := c.Instance(ctx, name)
		switch {
		case err == nil && in.State == Available && in.Host != "":
			return in, nil
		case err == nil && isHopeless(in.State):
			return nil, &Error{Op: op, Err: ErrState, text: fmt.Sprintf("rds in %s: instance %s is %s; the events of the instance say why: aws rds describe-events --source-type db-instance", c.o.Region, name, in.State)}
		case err == nil:
			last = fmt.Errorf("it is %s", cmp.Or(in.State, "in no state"))
		case errors.Is(err, ErrNotFound) && missing < lateAnswers:
			missing++
			last = err
		case ctx.Err() == nil && !errors.Is(err, ErrUnavailable):
			return nil, err
		case ctx.Err() == nil:
			last = err
		}
		if werr := c.wait(ctx, n); werr != nil {
			return nil, c.ended(ctx, op, last)
		}
	}
}

// Tag adds tags to an instance or a snapshot.
func (c *Client) Tag(ctx context.Context, arn string, tags map[string]string) error {
	form := url.Values{"ResourceName": {arn}}
	putTags(form, tags)
	_, err := c.query(ctx, "AddTagsToResource", form, &nothing{})
	return c.fail(ctx, "tag "+arn, err)
}

// passingStates are those in which no snapshot of an instance can be begun, and which pass by themselves.
var passingStates = [...]string{"backing-up", "creating", "maintenance", "modifying", "rebooting", "renaming", "resetting-master-credentials", "starting", "upgrading",
	"moving-to-vpc", "converting-to-vpc"}

// AwaitIdle waits while the instance is being worked on. The time is ctx's.
func (c *Client) AwaitIdle(ctx context.Context, name string) (*Instance, error) {
	op := "wait for instance " + name + " to be idle"
	var last error
	for n := 0; ; n++ {
		in, err := c.Instance(ctx, name)
		switch {
		case err == nil && isHopeless(in.State):
			return nil, c.hopelessError(in)
		case err == nil && !slices.Contains(passingStates[:], in.State):
			return in, nil
		case err == nil:
			last = fmt.Errorf("it is %s", in.State)
		case ctx.Err() == nil && !errors.Is(err, ErrUnavailable):
			return nil, err
		case ctx.Err() == nil:
			last = err
		}
		if werr := c.wait(ctx, n); werr != nil {
			return nil, c.ended(ctx, op, last)
		}
	}
}
