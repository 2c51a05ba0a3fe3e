package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg"
	"holdfast/internal/rds"
)

// Databases that are DB instances of Amazon RDS. What the service does for them takes the place of backups: a DB snapshot
// for each, begun at the recovery point and named by the set. The snapshots are pieces of the set that lie neither in the
// tarball nor in a repository, whatever the mode. A restore makes new DB instances and leaves those that are there alone.

// RDSOptions is which databases are DB instances, and how the service is reached.
type RDSOptions struct {
	Clusters []RDSCluster
	Open     func(region string) (*rds.Client, error)
	Prefix   string        // of snapshots' names
	Limit    time.Duration // for what is begun to become available
	Settle   time.Duration // how long at most a run waits with files and event bus for what a snapshot holds to be decided; 0: 1 min

	// What a restore gives its DB instances in place of what the set says; empty: that.
	Suffix         string // of their names, after a hyphen; empty: restored-<date and time of the set>
	Class          string
	SubnetGroup    string
	SecurityGroups []string
	ParameterGroup string
}

// RDSCluster is one database of the application that is a DB instance.
type RDSCluster struct {
	Stanza   string
	Region   string
	Instance string

	// Conn is how it is asked by SQL. Without a host the instance's own address and port count, without a user it is not asked.
	Conn pg.ConnOptions
}

// settleTime is the default of RDSOptions.Settle.
const settleTime = time.Minute

// cleanTime bounds what is done in the service after a run has ended.
const cleanTime = 2 * time.Minute

// snapshotName is what the snapshot of one instance for a set is called. The set's id differs from every other of this
// instance, the DB instance's from every other in the set.
func (o *RDSOptions) snapshotName(set, instance string) string {
	var b strings.Builder
	for _, r := range strings.ToLower(o.Prefix + "-" + set + "-" + instance) {
		if r == '_' {
			r = '-'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// rdsClient opens the service in a region.
func (a *App) rdsClient(region string) (*rds.Client, error) {
	if a.o.RDS.Open == nil {
		return nil, errors.New("this program is not set up for Amazon RDS")
	}
	return a.o.RDS.Open(region)
}

// onRDS is the configured DB instance of a stanza, or nil.
func (a *App) onRDS(stanza string) *RDSCluster {
	for i := range a.o.RDS.Clusters {
		if a.o.RDS.Clusters[i].Stanza == stanza {
			return &a.o.RDS.Clusters[i]
		}
	}
	return nil
}

// rdsPath is how a piece names its snapshot.
func rdsPath(region, snapshot string) string { return "rds:" + region + "/" + snapshot }

// RDSPlan is what backup_all would do for one DB instance.
type RDSPlan struct {
	Stanza     string `json:"stanza"`
	Region     string `json:"region"`
	Instance   string `json:"instance"`
	State      string `json:"state"`
	Version    string `json:"engine_version"`
	StorageGiB int    `json:"allocated_gib"`
}

// planRDS looks at every DB instance.
func (a *App) planRDS(ctx context.Context, wrong func(error)) (plans []RDSPlan) {
	for _, c := range a.o.RDS.Clusters {
		_, in, err := a.lookAt(ctx, c)
		if err != nil {
			wrong(fmt.Errorf("cluster %s: %w", c.Stanza, err))
			continue
		}
		plans = append(plans, RDSPlan{Stanza: c.Stanza, Region: c.Region, Instance: in.Name, State: in.State, Version: in.EngineVersion, StorageGiB: in.StorageGiB})
	}
	return plans
}

// lookAt opens the service and looks at a DB instance, which must be one that snapshots can be taken of.
func (a *App) lookAt(ctx context.Context, c RDSCluster) (*rds.Client, *rds.Instance, error) {
	client, err := a.rdsClient(c.Region)
	if err != nil {
		return nil, nil, err
	}
	in, err := client.Instance(ctx, c.Instance)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case in.Cluster != "" || strings.HasPrefix(in.Engine, "aurora"):
		return nil, nil, fmt.Errorf("instance %s belongs to the DB cluster %s: Aurora and Multi-AZ DB clusters have snapshots of their own kind, which Holdfast does not take", in.Name, in.Cluster)
	case in.Engine != "postgres":
		return nil, nil, fmt.Errorf("instance %s runs %s, not PostgreSQL", in.Name, in.Engine)
	}
	return client, in, nil
}

// conn is how the database of an instance is asked.
func (c *RDSCluster) conn(in *rds.Instance, replaced bool) pg.ConnOptions {
	o := c.Conn
	if o.Host == "" || replaced {
		o.Host, o.Port = in.Host, in.Port
	}
	o.Timeout = cmp.Or(o.Timeout, 20*time.Second)
	return o
}

// ask asks the database what it says of itself, if it may be asked; why: why it was not.
func (c *RDSCluster) ask(ctx context.Context, in *rds.Instance, replaced bool) (p pg.Position, why string, err error) {
	if c.Conn.User == "" {
		return p, "pgsql.clusters names no user for it", nil
	}
	o := c.conn(in, replaced)
	if o.Host == "" {
		return p, "the instance has no address", nil
	}
	conn, err := pg.Connect(ctx, o)
	if err != nil {
		return p, "", err
	}
	p, err = conn.Position(ctx)
	return p, "", errors.Join(err, conn.Close())
}

// rdsTags are on everything that a run makes for a set.
func (a *App) rdsTags(set *catalog.Set, stanza string) map[string]string {
	return map[string]string{rds.TagSet: set.ID, rds.TagRun: set.Run, rds.TagHost: a.o.Host, rds.TagRoot: a.o.Root, rds.TagStanza: stanza}
}

// checkDBInstance looks at what a run needs of one DB instance.
func (a *App) checkDBInstance(ctx context.Context, c RDSCluster) []Finding {
	_, in, err := a.lookAt(ctx, c)
	switch {
	case err != nil && ctx.Err() != nil:
		return []Finding{unsure(ctx, AreaPostgres, c.Stanza, "see that the service can be reached from this host (pgsql.rds.endpoint, pgsql.rds.region)", err)}
	case err != nil:
		return []Finding{blocked(AreaPostgres, c.Stanza, "", err)}
	case in.Hopeless():
		return []Finding{blocked(AreaPostgres, c.Stanza, "start it, or mend what its events tell of: aws rds describe-events --source-type db-instance",
			fmt.Errorf("DB instance %s in %s is %s: no snapshot can be taken of it", in.Name, c.Region, in.State))}
	}
	var found []Finding
	if in.State != rds.Available {
		found = append(found, warns(AreaPostgres, c.Stanza, "nothing, if it passes: a run waits for it, up to pgsql.rds.timeout", "DB instance %s in %s is %s", in.Name, c.Region, in.State))
	}
	if name := a.o.RDS.snapshotName(a.o.Now().UTC().Format("200601021504")+"_"+a.o.AppVersion, in.Name); rds.CheckName(name, rds.MaxSnapshotName) != nil {
		found = append(found, blocked(AreaPostgres, c.Stanza, "set pgsql.rds.snapshot_prefix", rds.CheckName(name, rds.MaxSnapshotName)))
	}
	if _, why, err := c.ask(ctx, in, false); err != nil {
		found = append(found, warns(AreaPostgres, c.Stanza, "let this host reach it, or name no user in pgsql.clusters", "the database of DB instance %s can't be asked by SQL, so that sets will not say what it holds: %v", in.Name, err))
	} else if why != "" && len(found) == 0 {
		return []Finding{fine(AreaPostgres, c.Stanza, "DB instance %s in %s, PostgreSQL %s, is %s; %s, so that sets do not say what it holds", in.Name, c.Region, in.EngineVersion, in.State, why)}
	}
	if len(found) == 0 {
		found = append(found, fine(AreaPostgres, c.Stanza, "DB instance %s in %s, PostgreSQL %s, is %s", in.Name, c.Region, in.EngineVersion, in.State))
	}
	return found
}
