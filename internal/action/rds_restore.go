package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg"
	"holdfast/internal/rds"
)

// RDSRestore is one DB instance that a restore makes. Those that are there are neither changed nor removed.
type RDSRestore struct {
	Stanza         string    `json:"stanza"`
	Region         string    `json:"region"`
	Instance       string    `json:"instance"`           // the new one
	Snapshot       string    `json:"snapshot,omitempty"` // that it is made of; empty: of Source's automated backups, with Until
	Until          time.Time `json:"until,omitzero"`
	Source         string    `json:"source"`                 // the instance that was backed up
	SourceState    string    `json:"source_state,omitempty"` // it stays as it is; empty: it is gone
	Class          string    `json:"class"`
	StorageGiB     int       `json:"allocated_gib"`
	SubnetGroup    string    `json:"subnet_group,omitempty"`
	SecurityGroups []string  `json:"security_groups,omitempty"`
	ParameterGroup string    `json:"parameter_group,omitempty"`
	Continues      bool      `json:"continues,omitempty"` // an earlier restore of the same set has begun it

	point catalog.PostgresPoint
	new   rds.NewInstance
}

// RDSProof is what was seen of one DB instance that a restore made.
type RDSProof struct {
	Stanza    string   `json:"stanza"`
	Region    string   `json:"region"`
	Instance  string   `json:"instance"`
	Host      string   `json:"host"`
	Port      int      `json:"port"`
	Of        string   `json:"of"` // the snapshot, or instance and time
	Source    string   `json:"source"`
	LSN       string   `json:"lsn,omitempty"`
	Databases []string `json:"databases,omitempty"`
	NotAsked  string   `json:"not_asked,omitempty"` // why the database was not looked at by SQL; empty: it was

	arn string
}

// newName is what the DB instance is called that is made of what was backed up of one.
func (o *RDSOptions) newName(set string, instance string, until time.Time) string {
	suffix := o.Suffix
	if suffix == "" {
		suffix = "restored-" + set[:12] // the id begins with the minute, and no other set of this instance has it
		if !until.IsZero() {
			suffix = "restored-" + until.UTC().Format("20060102150405")
		}
	}
	room := max(rds.MaxInstanceName-1-len(suffix), 1)
	return strings.TrimRight(instance[:min(len(instance), room)], "-") + "-" + suffix
}

// onRDS plans a DB instance for each database of the set that was one.
func (p *RestorePlan) onRDS(ctx context.Context) {
	for _, point := range p.Set.OnRDS() {
		n, err := p.planInstance(ctx, point)
		if err != nil {
			p.missing("cluster %s: %v", point.Stanza, err)
			continue
		}
		for _, o := range p.RDS {
			if o.Region == n.Region && o.Instance == n.Instance {
				p.missing("clusters %s and %s: both new DB instances would be called %s: set pgsql.rds.restore.suffix to a shorter one", o.Stanza, n.Stanza, n.Instance)
			}
		}
		if p.a.cluster(point.Stanza) != nil {
			p.Notes = append(p.Notes, fmt.Sprintf("cluster %s is on this host in pgsql.clusters, and the set's is on Amazon RDS: the cluster here stays as it is", point.Stanza))
		}
		p.RDS = append(p.RDS, *n)
		p.From = append(p.From, catalog.Piece{Kind: catalog.Postgres, Path: rdsPath(n.Region, cmp.Or(n.Snapshot, n.Source)), Stanza: n.Stanza, Label: point.RDS.Snapshot, Region: n.Region})
	}
}

// planInstance works out one DB instance, and looks at what it is to be made of and at what has its name.
func (p *RestorePlan) planInstance(ctx context.Context, point catalog.PostgresPoint) (*RDSRestore, error) {
	at, o := point.RDS, &p.a.o.RDS
	if err := errors.Join(rds.CheckRegion(at.Region), rds.CheckName(at.Instance, rds.MaxInstanceName), rds.CheckName(at.Snapshot, rds.MaxSnapshotName)); err != nil {
		return nil, err // a doctored set decides neither on hosts nor on what is printed
	}
	client, err := p.a.rdsClient(at.Region)
	if err != nil {
		return nil, err
	}
	n := &RDSRestore{Stanza: point.Stanza, Region: at.Region, Instance: o.newName(p.Set.ID, at.Instance, p.Until), Source: at.Instance, StorageGiB: at.StorageGiB,
		Class: cmp.Or(o.Class, at.Class), SubnetGroup: cmp.Or(o.SubnetGroup, at.SubnetGroup), ParameterGroup: cmp.Or(o.ParameterGroup, at.ParameterGroup), SecurityGroups: o.SecurityGroups,
		Until: p.Until, point: point}
	if len(n.SecurityGroups) == 0 {
		n.SecurityGroups = at.SecurityGroups
	}
	if err := rds.CheckName(n.Instance, rds.MaxInstanceName); err != nil {
		return nil, fmt.Errorf("the new DB instance can't be called %q: %w; set pgsql.rds.restore.suffix", n.Instance, err)
	}
	source, err := client.Instance(ctx, at.Instance)
	if err != nil && !errors.Is(err, rds.ErrNotFound) {
		return nil, err
	}
	if source != nil {
		n.SourceState = source.State
	}
	n.new = rds.NewInstance{Name: n.Instance, Class: n.Class, SubnetGroup: n.SubnetGroup, SecurityGroups: n.SecurityGroups, ParameterGroup: n.ParameterGroup, OptionGroup: at.OptionGroup,
		StorageType: at.StorageType, Port: at.Port, MultiAZ: at.MultiAZ, Public: at.Public,
		Tags: map[string]string{rds.TagSet: p.Set.ID, rds.TagStanza: n.Stanza, rds.TagHost: p.a.o.Host, rds.TagRoot: p.a.o.Root}}
	if p.Until.IsZero() {
		n.Snapshot, n.new.Snapshot, n.new.Tags[rds.TagSnapshot] = at.Snapshot, at.Snapshot, at.Snapshot
		err = p.checkSnapshot(ctx, client, point)
	} else {
		n.new.Source, n.new.Until, n.new.Tags[rds.TagUntil] = at.Instance, p.Until, p.Until.UTC().Format(time.RFC3339)
		err = p.checkWindow(source, at.Instance)
	}
	if err != nil {
		return nil, err
	}
	return n, p.checkNew(ctx, client, n)
}

// checkSnapshot makes sure that the snapshot is there and the set's.
func (p *RestorePlan) checkSnapshot(ctx context.Context, client *rds.Client, point catalog.PostgresPoint) error {
	s, err := client.Snapshot(ctx, point.RDS.Snapshot)
	switch {
	case err != nil:
		return err
	case !s.Of(p.Set.ID, p.Set.Run) || s.Instance != point.RDS.Instance || s.ARN != point.RDS.ARN:
		return fmt.Errorf("snapshot %s in %s is not the one that the run made", s.Name, point.RDS.Region)
	case s.State != rds.Available:
		return fmt.Errorf("snapshot %s in %s is %s", s.Name, point.RDS.Region, s.State)
	}
	return nil
}

// checkWindow makes sure that the automated backups of the instance reach the time.
func (p *RestorePlan) checkWindow(source *rds.Instance, name string) error {
	switch {
	case source == nil:
		return fmt.Errorf("DB instance %s is gone, and its automated backups with it: only the set's recovery point can be restored", name)
	case source.Retention == 0 || source.Latest.IsZero():
		return fmt.Errorf("DB instance %s has no automated backups: only the set's recovery point can be restored", name)
	case p.Until.After(source.Latest):
		return fmt.Errorf("the automated backups of DB instance %s reach %s, not %s", name, source.Latest.UTC().Format(time.RFC3339), p.Until.UTC().Format(time.RFC3339))
	case p.Until.Before(p.a.o.Now().AddDate(0, 0, -source.Retention)):
		return fmt.Errorf("the automated backups of DB instance %s are kept for %d day(s), and %s is before that", name, source.Retention, p.Until.UTC().Format(time.RFC3339))
	}
	return nil
}

// checkNew looks at what has the name of the new instance: nothing, or what an interrupted restore of the same has begun.
func (p *RestorePlan) checkNew(ctx context.Context, client *rds.Client, n *RDSRestore) error {
	in, err := client.Instance(ctx, n.Instance)
	switch {
	case errors.Is(err, rds.ErrNotFound):
		return nil
	case err != nil:
		return err
	case !n.new.Made(in):
		return fmt.Errorf("there is a DB instance %s already, which was not made of this set: set pgsql.rds.restore.suffix to something else", n.Instance)
	case in.Tags[rds.TagRestored] != "":
		return fmt.Errorf("DB instance %s was restored from this set already, at %s, and may have been written to since: use it as it is, or for another one set pgsql.rds.restore.suffix to something else",
			n.Instance, in.Tags[rds.TagRestored])
	}
	n.Continues = true
	return nil
}

// restoreRDS makes the DB instances and waits until they can be used. Nothing that exists is touched.
func (r *restoreRun) restoreRDS(ctx context.Context) error {
	limited, cancel := r.a.limited(ctx)
	defer cancel()
	for i := range r.RDS {
		n := &r.RDS[i]
		r.a.step("restore", "rds-create", n.Instance)
		client, err := r.a.rdsClient(n.Region)
		if err != nil {
			return err
		}
		if err := limited.Err(); err != nil {
			return err
		}
		r.made = append(r.made, n.Instance+" in "+n.Region) // also one whose begin is not known
		if _, err := client.Create(limited, n.new); err != nil {
			if !errors.Is(err, rds.ErrUnavailable) && limited.Err() == nil {
				r.made = r.made[:len(r.made)-1]
			}
			return fmt.Errorf("cluster %s: %w", n.Stanza, err)
		}
	}
	for i := range r.RDS {
		n := &r.RDS[i]
		r.a.step("restore", "rds-wait", n.Instance)
		client, err := r.a.rdsClient(n.Region)
		if err != nil {
			return err
		}
		in, err := client.AwaitInstance(limited, n.Instance)
		if err != nil {
			return fmt.Errorf("cluster %s: %w", n.Stanza, err)
		}
		if err := r.checkInstance(ctx, n, in); err != nil {
			return fmt.Errorf("cluster %s: %w", n.Stanza, err)
		}
	}
	return nil
}

// checkInstance looks at what a new DB instance says of itself. One that can't be asked is a warning: who may connect to it is
// often decided after it is made.
func (r *restoreRun) checkInstance(ctx context.Context, n *RDSRestore, in *rds.Instance) error {
	if !n.new.Made(in) {
		return fmt.Errorf("DB instance %s is not the one that this restore made: somebody has replaced it", n.Instance)
	}
	proof := RDSProof{Stanza: n.Stanza, Region: n.Region, Instance: n.Instance, Host: in.Host, Port: in.Port, Of: n.Snapshot, Source: n.Source, arn: in.ARN}
	if n.Snapshot == "" {
		proof.Of = n.Source + " as of " + n.Until.UTC().Format(time.RFC3339)
	}
	c := r.a.onRDS(n.Stanza)
	if c == nil {
		c = &RDSCluster{Stanza: n.Stanza}
	}
	p, why, err := c.ask(ctx, in, true)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if proof.NotAsked = why; err != nil {
		proof.NotAsked = err.Error()
		r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("DB instance %s could not be asked by SQL what it holds: %v", n.Instance, err))
	}
	if proof.NotAsked == "" {
		if err := r.checkPosition(n, p); err != nil {
			return err
		}
		proof.LSN, proof.Databases = p.LSN.String(), p.Databases
	}
	r.res.RDS = append(r.res.RDS, proof)
	return nil
}

// checkPosition compares what a restored database says with what the set says. A later engine that the service put in place
// may have given it another identity; then positions say nothing.
func (r *restoreRun) checkPosition(n *RDSRestore, p pg.Position) error {
	if p.InRecovery {
		return fmt.Errorf("the database of DB instance %s is a standby, not one to be written to", n.Instance)
	}
	if n.point.LSN == "" || !r.Until.IsZero() {
		return nil
	}
	want, err := pg.ParseLSN(n.point.LSN)
	if err != nil {
		return err
	}
	if p.SystemID != n.point.SystemID {
		r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("DB instance %s has the system identifier %d, the set says %d: the service has upgraded it, or it is another database", n.Instance, p.SystemID, n.point.SystemID))
	} else if p.LSN < want {
		return fmt.Errorf("the database of DB instance %s is at %s, the set's snapshot had reached %s at least", n.Instance, p.LSN, want)
	}
	for _, d := range n.point.Databases { // one may have been dropped between the question and the snapshot
		if !slices.Contains(p.Databases, d) {
			r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("DB instance %s has no database %s, the set says it had", n.Instance, d))
		}
	}
	return nil
}

// markRestored says on every DB instance that its restore has passed its checks, so that no later restore takes it for its own.
func (r *restoreRun) markRestored(ctx context.Context) {
	for _, p := range r.res.RDS {
		client, err := r.a.rdsClient(p.Region)
		if err == nil {
			limited, cancel := context.WithTimeout(ctx, cleanTime)
			err = client.Tag(limited, p.arn, map[string]string{rds.TagRestored: r.a.o.Now().UTC().Format(time.RFC3339)})
			cancel()
		}
		if err != nil {
			r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("DB instance %s could not be marked as restored: another restore of the set would take it for its own: %v", p.Instance, err))
		}
	}
}

// keepMade adds to an error what becomes of the DB instances that were begun.
func (r *restoreRun) keepMade(err error) error {
	if err == nil || len(r.made) == 0 {
		return err
	}
	return fmt.Errorf("%w; the new DB instances stay: %s. The same restore goes on with them; without it remove them, they cost", err, strings.Join(r.made, ", "))
}
