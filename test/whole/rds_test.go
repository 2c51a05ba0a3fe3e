package whole

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/test/stores"
	"holdfast/test/world"
)

// overTCP lets the world's server, which has a socket only, be reached by address, as a DB instance is.
func overTCP(t *testing.T, w *world.World) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = l.Close() }) // it is only heard, nothing is lost
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer from.Close()
				to, err := net.Dial("unix", filepath.Join(w.Sock, fmt.Sprintf(".s.PGSQL.%d", w.Port)))
				if err != nil {
					return
				}
				defer to.Close()
				ended := make(chan struct{}, 2)
				for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
					go func() {
						_, _ = io.Copy(way[0], way[1]) // a broken connection is what the client sees
						ended <- struct{}{}
					}()
				}
				<-ended
			}()
		}
	}()
	return l.Addr().String()
}

// rdsSet is what the tests look at in a set with DB snapshots.
type rdsSet struct {
	ID, State string
	Pieces    []struct{ Kind, Path, Label, Region string }
	Warnings  []string
	Recovery  struct {
		Skew     struct{ MS int64 }
		Postgres []struct {
			Stanza, LSN string
			Databases   []string
			RDS         *struct{ Instance, Snapshot, SQL string }
		}
	}
}

func rdsSets(t *testing.T, w *world.World) (all []rdsSet) {
	t.Helper()
	must(t, json.Unmarshal([]byte(ok(t, w, "holdfast", "sets", "list", "--json")), &all))
	return all
}

// TestRDS: an application with both databases on RDS, and one with the second there and the first on the host, in both modes:
// backed up, shown, restored to new DB instances, and deleted, by the commands that an operator types. The secrets are nowhere.
func TestRDS(t *testing.T) {
	for name, c := range map[string]struct{ apart, mixed bool }{"both included": {}, "both apart": {apart: true}, "mixed included": {mixed: true}, "mixed apart": {apart: true, mixed: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, c.apart)
			s := stores.StartRDS(t)
			s.Make(t, "db-rose")
			s.Make(t, "db-line")
			address := overTCP(t, w)
			s.Manner(stores.RDSManner{Late: 2, Undated: 1, Address: map[string]string{"": address}})
			ca, err := os.ReadFile(s.CAFile)
			must(t, err, os.MkdirAll(filepath.Join(w.Root, "etc"), 0o755), os.WriteFile(filepath.Join(w.Root, "etc/rds.pem"), ca, 0o600))
			owned(t, w, filepath.Join(w.Root, "etc/rds.pem"))
			clusters := "rosemeta:kind=rds,id=db-rose,user=postgres;lineage:kind=rds,id=DB-Line"
			if c.mixed {
				local := strings.TrimSpace(strings.TrimPrefix(ok(t, w, "alation_conf", "pgsql.clusters"), "pgsql.clusters = "))
				clusters = local + ";lineage:kind=rds,id=db-line,user=postgres"
			}
			ok(t, w, "alation_conf", "pgsql.rds.endpoint", "-s", s.Endpoint, "pgsql.rds.ca_file", "-s", "/etc/rds.pem", "pgsql.rds.region", "-s", s.Region, "pgsql.rds.key", "-s", s.Key,
				"pgsql.rds.secret", "-s", s.Secret, "pgsql.rds.password", "-s", "planted-rds-password", "pgsql.clusters", "-s", clusters)
			rdsRoundTrip(t, w, s, c.mixed)
			for _, secret := range []string{s.Secret, "planted-rds-password"} {
				noneBelow(t, map[string]string{"secret": secret}, w.Dir, "")
			}
		})
	}
}

// owned gives a file to the instance's user.
func owned(t *testing.T, w *world.World, path string) {
	t.Helper()
	uid, gid, _ := ownerOf(t, w.Dump)
	must(t, os.Chown(path, uid, gid))
}

func rdsRoundTrip(t *testing.T, w *world.World, s *stores.RDS, mixed bool) {
	t.Helper()
	if plan := ok(t, w, "holdfast", "backup", "--dry-run"); !strings.Contains(plan, "lineage: DB snapshot of instance db-line in eu-west-1 (available), PostgreSQL 15.4, 20 GiB") {
		t.Error(plan)
	}
	want := prove(t, w)
	ok(t, w, "alation_action", "backup_all")
	all := rdsSets(t, w)
	set := all[len(all)-1]
	on := set.Recovery.Postgres[len(set.Recovery.Postgres)-1]
	if set.State != "complete" || len(set.Warnings) > 0 || len(set.Recovery.Postgres) != 2 || on.Stanza != "lineage" || on.RDS == nil || on.RDS.Instance != "db-line" || s.Snapshots(t)[on.RDS.Snapshot].DBSnapshotArn == nil {
		t.Fatalf("%+v", set)
	}
	asked := set.Recovery.Postgres[0]
	if mixed {
		asked = on
	}
	if asked.RDS.SQL != "" || asked.LSN == "" || !slices.Contains(asked.Databases, "postgres") {
		t.Errorf("%+v", asked)
	}
	where := map[bool]string{true: ", rds", false: "  rds"}[mixed]
	if list := ok(t, w, "holdfast", "sets", "list"); !strings.Contains(list, where) {
		t.Error(list)
	}
	if show := ok(t, w, "holdfast", "sets", "show", set.ID); !strings.Contains(show, "lineage: DB snapshot "+on.RDS.Snapshot+" of instance db-line in eu-west-1") || !strings.Contains(show, "rds:eu-west-1/"+on.RDS.Snapshot) {
		t.Error(show)
	}
	ok(t, w, "holdfast", "sets", "inspect", set.ID)
	ok(t, w, "holdfast", "sets", "verify", set.ID)
	if list := ok(t, w, "holdfast", "rds", "snapshots"); !strings.Contains(list, on.RDS.Snapshot) || !strings.Contains(list, "complete") || strings.Contains(list, "orphan") {
		t.Error(list)
	}
	change(t, w)
	had := s.Instances(t)
	plan := ok(t, w, "holdfast", "restore", "--set", set.ID, "--dry-run")
	fresh := "db-line-restored-" + set.ID[:12]
	if !strings.Contains(plan, "makes DB instances of Amazon RDS (those that are there stay as they are):") || !strings.Contains(plan, fresh+" in eu-west-1 for lineage, of snapshot "+on.RDS.Snapshot) ||
		!strings.Contains(plan, "db-line is there (available) and is not touched") {
		t.Error(plan)
	}
	ok(t, w, "alation_conf", "alation.backup.restore_file", "-s", "/data2/backup/"+filepath.Base(set.Pieces[0].Path))
	out, err := w.As(t.Context(), "alation_action", "YES\n", "destructive_restore_all")
	if err != nil || out.Code != 0 || !strings.Contains(out.Stdout, "lineage: DB instance "+fresh) || !strings.Contains(out.Stdout, "lineage:kind=rds,id="+fresh) {
		t.Fatalf("code %d %v\n%s%s", out.Code, err, out.Stdout, out.Stderr)
	}
	after := s.Instances(t)
	for _, name := range had {
		if !slices.Contains(after, name) {
			t.Errorf("DB instance %s is gone: %v", name, after)
		}
	}
	if !slices.Contains(after, fresh) {
		t.Errorf("instances %v", after)
	}
	got := prove(t, w)
	if !mixed { // what stands in for the DB instances has been changed, and moto restores no content
		want.Rows = got.Rows
	}
	same(t, "restored", want, got)
	// From now on the new ones are backed up.
	lines := strings.Split(strings.TrimSpace(out.Stdout), "\n")
	words := strings.Fields(strings.TrimSpace(lines[len(lines)-1]))
	ok(t, w, words[0], append(words[1:3:3], strings.Trim(words[3], "'"))...)
	ok(t, w, "alation_action", "backup_all")
	all = rdsSets(t, w)
	if second := all[len(all)-1]; second.ID == set.ID || second.Recovery.Postgres[1].RDS == nil || second.Recovery.Postgres[1].RDS.Instance != fresh {
		t.Errorf("%+v", second)
	}
	ok(t, w, "holdfast", "sets", "delete", set.ID, "--yes")
	if left := slices.Sorted(maps.Keys(s.Snapshots(t))); slices.Contains(left, on.RDS.Snapshot) || len(left) == 0 {
		t.Errorf("snapshots left: %v", left)
	}
}
