package cli

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/engine"
)

// whereWord says in a word where PostgreSQL of a set is.
func whereWord(s *catalog.Set) string {
	rds := len(s.OnRDS()) > 0
	for i := range s.Pieces {
		rds = rds || s.Pieces[i].OnRDS()
	}
	switch {
	case !rds:
		return string(s.Mode)
	case len(s.Local()) == 0:
		return "rds"
	}
	return string(s.Mode) + ", rds"
}

// rdsPlan is what backup_all would do with DB instances.
func (p *page) rdsPlan(plans []action.RDSPlan) {
	for _, c := range plans {
		p.f("  postgres  %s: DB snapshot of instance %s in %s (%s), PostgreSQL %s, %d GiB\n", c.Stanza, c.Instance, c.Region, c.State, c.Version, c.StorageGiB)
	}
}

// rdsPoints are the databases of a set that are DB instances.
func (p *page) rdsPoints(s *catalog.Set) {
	for _, c := range s.OnRDS() {
		at := c.RDS
		p.f("  postgres  %s: DB snapshot %s of instance %s in %s, taken %s, PostgreSQL %s, %s", c.Stanza, at.Snapshot, at.Instance, at.Region, at.SnapshotTime.Format(time.RFC3339),
			at.EngineVersion, engine.Size(c.Bytes))
		if c.LSN != "" {
			p.f(", %s at least, databases %s", c.LSN, strings.Join(c.Databases, ", "))
		}
		p.f("\n")
	}
}

// rdsRestores are the DB instances that a restore makes.
func (p *page) rdsRestores(restores []action.RDSRestore) {
	if len(restores) == 0 {
		return
	}
	p.f("makes DB instances of Amazon RDS (those that are there stay as they are):\n")
	for _, n := range restores {
		of := "of snapshot " + n.Snapshot
		if n.Snapshot == "" {
			of = "of the automated backups of " + n.Source + " as of " + n.Until.UTC().Format(time.RFC3339)
		}
		p.f("  %s in %s for %s, %s: class %s, %d GiB", n.Instance, n.Region, n.Stanza, of, cmp.Or(n.Class, "of the service's choice"), n.StorageGiB)
		for _, d := range [][2]string{{"subnet group", n.SubnetGroup}, {"security groups", strings.Join(n.SecurityGroups, ", ")}, {"parameter group", n.ParameterGroup}} {
			if d[1] != "" {
				p.f(", %s %s", d[0], d[1])
			}
		}
		if n.Continues {
			p.f("; an earlier restore has begun it, this one goes on with it")
		}
		there := "is there (" + n.SourceState + ") and is not touched"
		if n.SourceState == "" {
			there = "is not there any more"
		}
		p.f("\n    %s %s\n", n.Source, there)
	}
}

// rdsProofs are the DB instances that a restore made, and what is to be changed so that they are used.
func (p *page) rdsProofs(proofs []action.RDSProof) {
	for _, c := range proofs {
		p.f("  postgres  %s: DB instance %s in %s, of %s, at %s port %d", c.Stanza, c.Instance, c.Region, c.Of, c.Host, c.Port)
		if c.NotAsked == "" {
			p.f("; %s, databases %s", c.LSN, strings.Join(c.Databases, ", "))
		} else {
			p.f("; not asked by SQL (%s)", c.NotAsked)
		}
		p.f("\n")
	}
	if len(proofs) > 0 {
		p.f("next: have the application connect to the new DB instances, and name them in pgsql.clusters: until then backups are of the old ones\n")
	}
}

// rdsNext is the command that makes the restored DB instances the ones that are backed up.
func rdsNext(w *wired, proofs []action.RDSProof) string {
	if len(proofs) == 0 {
		return ""
	}
	clusters := w.values.Clusters(conf.KeyClusters)
	for i := range clusters {
		for _, c := range proofs {
			if clusters[i].Stanza == c.Stanza && clusters[i].OnRDS() {
				clusters[i].ID, clusters[i].Region = c.Instance, c.Region
				if clusters[i].Host != "" {
					clusters[i].Host, clusters[i].Port = c.Host, c.Port
				}
			}
		}
	}
	return fmt.Sprintf("alation_conf %s -s %s", conf.KeyClusters, shellQuote(conf.FormatClusters(clusters)))
}
