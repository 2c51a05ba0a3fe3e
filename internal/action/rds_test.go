package action

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsrds "github.com/aws/aws-sdk-go-v2/service/rds"

	"holdfast/internal/catalog"
	"holdfast/internal/pg"
	"holdfast/internal/rds"
	"holdfast/test/stores"
)

// onRDS gives the world two databases that are DB instances.
func (w *world) onRDS(s *stores.RDS) {
	w.t.Helper()
	for _, name := range []string{"db-rose", "db-line"} {
		if !slices.Contains(s.Instances(w.t), name) {
			s.Make(w.t, name)
		}
	}
	c, err := rds.New(rds.Options{Region: s.Region, Endpoint: s.Endpoint, CAFile: s.CAFile, Key: rds.Secret(s.Key), Secret: rds.Secret(s.Secret), Poll: 5 * time.Millisecond,
		Backoff: 5 * time.Millisecond, Tries: 4})
	if err != nil {
		w.t.Fatal(err)
	}
	w.o.Now = time.Now
	w.o.RDS = RDSOptions{Prefix: "hf", Limit: 20 * time.Second, Open: func(region string) (*rds.Client, error) {
		if region != s.Region {
			return nil, fmt.Errorf("region %s", region)
		}
		return c, nil
	}, Clusters: []RDSCluster{{Stanza: "rosemeta", Region: s.Region, Instance: "db-rose"}, {Stanza: "lineage", Region: s.Region, Instance: "db-line"}}}
}

func names(s *stores.RDS, t *testing.T) []string { return slices.Sorted(maps.Keys(s.Snapshots(t))) }

// TestRDS: both databases are snapshots of a set, which is listed, verified, restored to new instances, and removed.
func TestRDS(t *testing.T) {
	for _, mode := range []catalog.Mode{catalog.Included, catalog.Apart} {
		t.Run(string(mode), func(t *testing.T) {
			s, w := stores.StartRDS(t), newWorld(t)
			w.onRDS(s)
			w.o.Mode = mode
			s.Manner(stores.RDSManner{Late: 3, Undated: 1, Page: 1})
			ctx := t.Context()
			plan, err := w.app().PlanBackupAll(ctx)
			if err != nil || len(plan.WhatIsWrong) > 0 || len(plan.RDS) != 2 || plan.RDS[0].Instance != "db-rose" || plan.RDS[0].Version != "15.4" {
				t.Fatalf("%+v %v", plan, err)
			}
			var during []string
			w.at["backup_all:eventbus"] = func() { during = names(s, t) }
			set, err := w.app().BackupAll(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if len(during) != 2 {
				t.Errorf("snapshots while the bus is dumped: %v", during)
			}
			checkRDSSet(t, s, set)
			if got, err := w.app().Set(ctx, set.ID); err != nil || fmt.Sprint(got.OnRDS()[1].RDS) != fmt.Sprint(set.OnRDS()[1].RDS) {
				t.Errorf("the catalogue has another set: %v", err)
			}
			if v, err := w.app().VerifySet(ctx, set.ID); err != nil || !v.OK {
				t.Errorf("%+v %v", v, err)
			}
			if parts, err := w.app().InspectSet(ctx, set.ID); err != nil || !slices.ContainsFunc(parts, func(p Part) bool { return p.Name == "lineage rds:eu-west-1/"+set.Pieces[2].Label }) {
				t.Errorf("%+v %v", parts, err)
			}
			restoreRDSSet(t, w, s, set)
			all, gone, err := w.app().RDSSnapshots(ctx)
			if err != nil || len(all) != 2 || len(gone) != 0 || all[0].Standing != "complete" || all[0].Set != set.ID || all[0].Stanza == all[1].Stanza {
				t.Errorf("%+v %+v %v", all, gone, err)
			}
			deleteRDSSet(t, w, s, set)
		})
	}
}

// TestRDSRetention: the snapshots of a set go with it, and those of a pinned one stay.
func TestRDSRetention(t *testing.T) {
	s, w := stores.StartRDS(t), newWorld(t)
	w.onRDS(s)
	w.o.Mode, w.o.Keep = catalog.Apart, RetentionRule{Sets: 1}
	ctx := t.Context()
	var sets []*catalog.Set
	for i := range 4 {
		set, err := w.app().BackupAll(ctx)
		if err != nil {
			t.Fatal(err)
		}
		sets = append(sets, set)
		if i == 1 {
			if _, err := w.app().PinSet(ctx, set.ID, "kept", time.Time{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var want []string
	for _, set := range []*catalog.Set{sets[1], sets[3]} {
		for _, p := range set.OnRDS() {
			want = append(want, p.RDS.Snapshot)
		}
	}
	slices.Sort(want)
	if got := names(s, t); !slices.Equal(got, want) {
		t.Errorf("snapshots %v\nwant %v", got, want)
	}
	if _, err := w.app().UnpinSet(ctx, sets[1].ID); err != nil {
		t.Fatal(err)
	}
	set, err := w.app().BackupAll(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got := names(s, t); len(got) != 2 || !strings.Contains(got[0], strings.ReplaceAll(set.ID, "_", "-")) {
		t.Errorf("snapshots %v after %s", got, set.ID)
	}
}

// TestRDSDoctor: doctor says what a run would meet with each DB instance.
func TestRDSDoctor(t *testing.T) {
	s, w := stores.StartRDS(t), newWorld(t)
	w.onRDS(s)
	look := func() map[string]Finding {
		t.Helper()
		found := map[string]Finding{}
		for _, f := range w.app().Preflight(t.Context(), true) {
			if f.Area == AreaPostgres && (f.Object == "rosemeta" || f.Object == "lineage") {
				found[f.Object] = f
			}
		}
		return found
	}
	all := look()
	if f := all["rosemeta"]; len(all) != 2 || f.Severity != Fine || !strings.Contains(f.What, "db-rose in eu-west-1, PostgreSQL 15.4, is available") {
		t.Errorf("%+v", all)
	}
	s.Manner(stores.RDSManner{State: map[string]string{"db-rose": "stopped"}, Busy: map[string]int{"db-line": 1 << 30}})
	all = look()
	if f := all["rosemeta"]; f.Severity != Blocked || !strings.Contains(f.String(), "db-rose in eu-west-1 is stopped") {
		t.Errorf("%+v", f)
	}
	if f := all["lineage"]; f.Severity != Warns || !strings.Contains(f.What, "backing-up") {
		t.Errorf("%+v", f)
	}
	s.Manner(stores.RDSManner{})
	w.o.RDS.Clusters[0].Instance, w.o.RDS.Clusters[1].Conn = "db-gone", pg.ConnOptions{User: "me", Host: "127.0.0.1", Port: 1}
	all = look()
	if f := all["rosemeta"]; f.Severity != Blocked || !errors.Is(f.err, rds.ErrNotFound) {
		t.Errorf("%+v", f)
	}
	if f := all["lineage"]; f.Severity != Warns || !strings.Contains(f.What, "can't be asked by SQL") {
		t.Errorf("%+v", f)
	}
}

// checkRDSSet looks at what a set says of its two snapshots, and at what they are.
func checkRDSSet(t *testing.T, s *stores.RDS, set *catalog.Set) {
	t.Helper()
	if set.State != catalog.Complete || len(set.Warnings) > 0 || len(set.OnRDS()) != 2 || len(set.Local()) != 0 || len(set.Pieces) != 4 {
		t.Fatalf("%+v", set)
	}
	there := s.Snapshots(t)
	for i, p := range set.OnRDS() {
		at := p.RDS
		d, ok := there[at.Snapshot]
		if !ok || aws.ToString(d.DBSnapshotArn) != at.ARN || aws.ToString(d.DBInstanceIdentifier) != at.Instance {
			t.Errorf("%+v is not what the service has: %+v", at, d)
		}
		tags := map[string]string{}
		for _, tag := range d.TagList {
			tags[aws.ToString(tag.Key)] = aws.ToString(tag.Value)
		}
		if tags[rds.TagSet] != set.ID || tags[rds.TagRun] != set.Run || tags[rds.TagHost] != "here" || tags[rds.TagStanza] != p.Stanza {
			t.Errorf("tags %v", tags)
		}
		if want := []string{"db-rose", "db-line"}[i]; at.Instance != want || !strings.HasPrefix(at.Snapshot, "hf-"+strings.ReplaceAll(set.ID, "_", "-")) || !strings.HasSuffix(at.Snapshot, want) {
			t.Errorf("%+v", at)
		}
		if p.Version != "15" || at.Class != "db.t3.medium" || at.StorageGiB != 20 || p.Bytes != 20<<30 || !slices.Equal(at.SecurityGroups, []string{"sg-0123"}) || at.SQL == "" || p.LSN != "" {
			t.Errorf("%+v %+v", p, at)
		}
		skew := set.Recovery.Skew
		if at.SnapshotTime.Before(skew.From.Add(-clockSlack)) || at.SnapshotTime.After(skew.To) || p.Taken.From.Before(set.Began) || p.Taken.To.After(set.Ended.Add(30*time.Second)) {
			t.Errorf("snapshot at %s, taken %v, skew %v, run %s to %s", at.SnapshotTime, p.Taken, skew, set.Began, set.Ended)
		}
	}
	if skew := set.Recovery.Skew; skew.Milliseconds != skew.To.Sub(skew.From).Milliseconds() {
		t.Errorf("%+v", skew)
	}
}

func restoreRDSSet(t *testing.T, w *world, s *stores.RDS, set *catalog.Set) {
	t.Helper()
	want := w.state()
	w.write("srv/app/later", "later")
	before := s.Instances(t)
	o := RestoreOptions{RestoreFile: set.Piece(catalog.Application).Path, EBRestoreFile: set.Piece(catalog.EventBus).Path}
	plan := w.plan(o)
	if len(plan.Missing) > 0 || len(plan.RDS) != 2 || plan.RDS[0].SourceState != "available" || plan.RDS[0].Class != "db.t3.medium" {
		t.Fatalf("%+v", plan)
	}
	news := []string{"db-rose-restored-" + set.ID[:12], "db-line-restored-" + set.ID[:12]}
	if plan.RDS[0].Instance != news[0] || plan.RDS[1].Instance != news[1] || !slices.Equal(s.Instances(t), before) {
		t.Fatalf("%+v, instances %v", plan.RDS, s.Instances(t))
	}
	res, err := plan.Run(t.Context())
	if err != nil || len(res.RDS) != 2 || res.RDS[0].Instance != news[0] || res.RDS[0].Host == "" || res.RDS[0].NotAsked == "" || len(res.Warnings) != 0 {
		t.Fatalf("%+v %v", res, err)
	}
	w.same("restored", want)
	if after := s.Instances(t); len(after) != len(before)+2 || !slices.Contains(after, news[0]) || !slices.Contains(after, "db-rose") {
		t.Errorf("instances %v, before %v", after, before)
	}
	again := strings.Join(w.plan(o).Missing, "\n")
	if strings.Count(again, "was restored from this set already") != 2 {
		t.Errorf("a second restore would take what may have been written to: %q", again)
	}
	w.o.RDS.Suffix, w.o.RDS.Class, w.o.RDS.SecurityGroups = "second", "db.m6g.large", []string{"sg-9"}
	if p := w.plan(o); len(p.Missing) > 0 || p.RDS[0].Instance != "db-rose-second" || p.RDS[0].Class != "db.m6g.large" || !slices.Equal(p.RDS[0].SecurityGroups, []string{"sg-9"}) {
		t.Errorf("%+v", p)
	}
	w.o.RDS.Suffix = "db--"
	if p := w.plan(o); len(p.Missing) != 2 || !strings.Contains(p.Missing[0], "pgsql.rds.restore.suffix") {
		t.Errorf("%q", p.Missing)
	}
	w.o.RDS.Suffix, w.o.RDS.Class, w.o.RDS.SecurityGroups = "", "", nil
}

func deleteRDSSet(t *testing.T, w *world, s *stores.RDS, set *catalog.Set) {
	t.Helper()
	ctx := t.Context()
	plan, err := w.app().PlanDeleteSet(ctx, set.ID, true)
	if err != nil || len(plan.Snapshots) != 2 || plan.Snapshots[0].Instance != "db-rose" || len(plan.Warnings) != 0 {
		t.Fatalf("%+v %v", plan, err)
	}
	instances := s.Instances(t)
	s.Trouble(func(action string, nth int, _ url.Values) stores.Fault {
		if action == "DeleteDBSnapshot" && nth == 2 {
			return stores.Denied
		}
		return stores.None
	})
	if err := plan.Run(ctx); err == nil || !strings.Contains(err.Error(), "AccessDenied") {
		t.Fatalf("%v", err)
	}
	s.Trouble(nil)
	if plan, err = w.app().PlanDeleteSet(ctx, set.ID, true); err != nil || len(plan.Snapshots) != 1 || len(plan.Warnings) != 1 {
		t.Fatalf("after a removal that failed half-way: %+v %v", plan, err)
	}
	if err := plan.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if left := names(s, t); len(left) != 0 || !slices.Equal(s.Instances(t), instances) {
		t.Errorf("left: %v, instances %v", left, s.Instances(t))
	}
	if _, err := w.app().Set(ctx, set.ID); !errors.Is(err, catalog.ErrUnknown) {
		t.Errorf("%v", err)
	}
}

// TestRDSRunsThatFail: wherever a run fails or is cancelled, no complete set appears, and after the next run nothing of it
// is left in the service.
func TestRDSRunsThatFail(t *testing.T) {
	s := stores.StartRDS(t)
	at := func(action string, n int, f stores.Fault) func(string, int, url.Values) stores.Fault {
		return func(a string, nth int, _ url.Values) stores.Fault {
			if a == action && nth >= n {
				return f
			}
			return stores.None
		}
	}
	for name, c := range map[string]struct {
		manner  stores.RDSManner
		trouble func(string, int, url.Values) stores.Fault
		cancel  string // step at which the run is cancelled
		limit   time.Duration
		want    string
		left    int // snapshots right after
		busGone bool
	}{
		"instance can't be looked at": {trouble: at("DescribeDBInstances", 1, stores.Denied), want: "AccessDenied"},
		"an Aurora cluster":           {manner: stores.RDSManner{Cluster: map[string]string{"db-line": "aurora-1"}}, want: "aurora-1"},
		"stopped":                     {manner: stores.RDSManner{State: map[string]string{"db-line": "stopped"}}, want: "is stopped"},
		"no right to take snapshots":  {trouble: at("CreateDBSnapshot", 1, stores.Denied), want: "AccessDenied"},
		"second one refused":          {trouble: at("CreateDBSnapshot", 2, stores.Denied), want: "AccessDenied"},
		"throttled for good":          {trouble: at("CreateDBSnapshot", 2, stores.Throttled), want: "Throttling"},
		"answers lost for good":       {trouble: at("CreateDBSnapshot", 1, stores.Lost), want: "no answer"},
		"one fails":                   {manner: stores.RDSManner{Late: 2, Fail: []string{"db-line"}}, want: "has failed"},
		"too slow":                    {manner: stores.RDSManner{Late: 1 << 30}, limit: 3 * time.Second, want: "pgsql.rds.timeout"},
		"busy for too long":           {manner: stores.RDSManner{Busy: map[string]int{"db-line": 1 << 30}}, limit: 100 * time.Millisecond, want: "pgsql.rds.timeout"},
		"can't be removed":            {manner: stores.RDSManner{Late: 2, Fail: []string{"db-line"}}, trouble: at("DeleteDBSnapshot", 1, stores.Denied), want: "has failed", left: 2},
		"cancelled before":            {cancel: "backup_all:rds-snapshot", want: "context canceled"},
		"cancelled at the files":      {cancel: "backup_all:eventbus", want: "context canceled"},
		"cancelled while waiting":     {cancel: "backup_all:rds-wait", want: "context canceled"},
		"cancelled at the end":        {cancel: "backup_all:publish", want: "context canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.onRDS(s)
			if c.limit > 0 {
				w.o.RDS.Limit = c.limit
			}
			s.Manner(c.manner)
			s.Trouble(c.trouble)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if c.cancel != "" {
				w.at[c.cancel] = cancel
			}
			set, err := w.app().BackupAll(ctx)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("want %q, got %v", c.want, err)
			}
			if strings.Contains(err.Error(), s.Secret) {
				t.Error("the secret is in the error")
			}
			left := names(s, t)
			var named []string
			for _, p := range set.Pieces {
				if p.OnRDS() {
					named = append(named, p.Label)
				}
			}
			for _, n := range left {
				if !slices.Contains(named, n) {
					t.Errorf("snapshot %s is left, and the failed set does not name it: %v", n, named)
				}
			}
			if set.State != catalog.Failed || len(left) != c.left {
				t.Errorf("the set is %s, left %v", set.State, left)
			}
			s.Manner(stores.RDSManner{})
			s.Trouble(nil)
			w.at = map[string]func(){}
			w.o.RDS.Limit = 20 * time.Second
			good, err := w.app().BackupAll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if left = names(s, t); len(left) != 2 || good.OnRDS()[0].RDS.Snapshot != left[1] {
				t.Errorf("after the next run: %v", left)
			}
			if failed, err := w.app().Set(t.Context(), set.ID); err != nil || slices.ContainsFunc(failed.Pieces, func(p catalog.Piece) bool { return p.OnRDS() }) {
				t.Errorf("the failed set still names snapshots: %+v %v", failed, err)
			}
			for _, n := range left {
				if _, err := s.API().DeleteDBSnapshot(t.Context(), &awsrds.DeleteDBSnapshotInput{DBSnapshotIdentifier: &n}); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestRDSKilledRun: a run that died after it had asked for snapshots left their names; the next one removes them.
func TestRDSKilledRun(t *testing.T) {
	s := stores.StartRDS(t)
	w := newWorld(t)
	w.onRDS(s)
	ctx, cancel := context.WithCancel(t.Context())
	var died *catalog.Set
	w.at["backup_all:eventbus"] = func() { // as the catalogue is when the process is killed here
		sets, _, err := w.app().Sets(ctx)
		if err != nil || len(sets) != 1 {
			t.Errorf("%v %v", sets, err)
			return
		}
		died = sets[0]
		for _, p := range died.Pieces { // and as the service is
			if _, err := s.API().CopyDBSnapshot(ctx, &awsrds.CopyDBSnapshotInput{SourceDBSnapshotIdentifier: &p.Label, TargetDBSnapshotIdentifier: aws.String(p.Label + "-kept"), CopyTags: aws.Bool(true)}); err != nil {
				t.Error(err)
			}
		}
		cancel()
	}
	if _, err := w.app().BackupAll(ctx); err == nil || died == nil || died.State != catalog.Running || len(died.Pieces) != 2 {
		t.Fatalf("%+v %v", died, err)
	}
	for i := range died.Pieces {
		died.Pieces[i].Label += "-kept"
		died.Pieces[i].Path += "-kept"
	}
	if err := w.o.Catalog.Put(t.Context(), died); err != nil || len(names(s, t)) != 2 {
		t.Fatalf("%v %v", names(s, t), err)
	}
	all, _, err := w.app().RDSSnapshots(t.Context())
	if err != nil || len(all) != 2 || all[0].Standing != "running" {
		t.Errorf("%+v %v", all, err)
	}
	w.at = map[string]func(){}
	good, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := names(s, t); len(left) != 2 || strings.HasSuffix(left[0], "-kept") || strings.HasSuffix(left[1], "-kept") {
		t.Errorf("left %v", left)
	}
	// An orphan is one that this instance made and that no set names; another instance's is not.
	if err := w.o.Catalog.Delete(t.Context(), good.ID); err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]string{"here": Orphan, "there": Elsewhere} {
		w.o.Host = host
		if all, _, err = w.app().RDSSnapshots(t.Context()); err != nil || len(all) != 2 || all[0].Standing != want || all[1].Standing != want {
			t.Errorf("%s: %+v %v", host, all, err)
		}
	}
}

// TestRDSVerify: a snapshot that is gone, failed, or another's is found; a service that can't be asked is no finding.
func TestRDSVerify(t *testing.T) {
	s := stores.StartRDS(t)
	w := newWorld(t)
	w.onRDS(s)
	ctx := t.Context()
	set, err := w.app().BackupAll(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rose := set.OnRDS()[0].RDS
	findings := func() string {
		t.Helper()
		v, err := w.app().VerifySet(ctx, set.ID)
		if err != nil || v.OK == (len(v.Findings) > 0) {
			t.Fatalf("%+v %v", v, err)
		}
		return strings.Join(v.Findings, "\n")
	}
	s.Manner(stores.RDSManner{Fail: []string{"db-rose"}})
	if got := findings(); !strings.Contains(got, rose.Snapshot+" is failed") {
		t.Error(got)
	}
	s.Manner(stores.RDSManner{})
	s.Trouble(func(string, int, url.Values) stores.Fault { return stores.Throttled })
	if v, err := w.app().VerifySet(ctx, set.ID); !errors.Is(err, rds.ErrUnavailable) {
		t.Errorf("%+v %v", v, err)
	}
	s.Trouble(nil)
	remake := func(instance string) {
		t.Helper()
		_, err := s.API().DeleteDBSnapshot(ctx, &awsrds.DeleteDBSnapshotInput{DBSnapshotIdentifier: &rose.Snapshot})
		if err == nil && instance != "" {
			_, err = s.API().CreateDBSnapshot(ctx, &awsrds.CreateDBSnapshotInput{DBSnapshotIdentifier: &rose.Snapshot, DBInstanceIdentifier: &instance})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	remake("db-line")
	if got := findings(); !strings.Contains(got, "does not carry the tags") || !strings.Contains(got, `has the instance "db-line"`) {
		t.Error(got)
	}
	o := RestoreOptions{RestoreFile: set.Piece(catalog.Application).Path, EBRestoreFile: set.Piece(catalog.EventBus).Path}
	if p := w.plan(o); len(p.Missing) != 1 || !strings.Contains(p.Missing[0], "not the one that the run made") {
		t.Errorf("%q", p.Missing)
	}
	if p, err := w.app().PlanDeleteSet(ctx, set.ID, true); err != nil || len(p.Snapshots) != 1 || len(p.Warnings) != 1 || !strings.Contains(p.Warnings[0], "it stays") {
		t.Errorf("another's snapshot goes with the set: %+v %v", p, err)
	}
	remake("")
	if got := findings(); !strings.Contains(got, rose.Snapshot) || !strings.Contains(got, "not found") {
		t.Error(got)
	}
	if p := w.plan(o); len(p.Missing) != 1 || !strings.Contains(p.Missing[0], rose.Snapshot) {
		t.Errorf("%q", p.Missing)
	}
	if _, gone, err := w.app().RDSSnapshots(ctx); err != nil || len(gone) != 1 || gone[0].Label != rose.Snapshot {
		t.Errorf("%+v %v", gone, err)
	}
}

// TestRDSRestoresThatFail: wherever a restore fails, what was there is as before, and the same restore ends right with the
// instances that were begun.
func TestRDSRestoresThatFail(t *testing.T) {
	s := stores.StartRDS(t)
	number := 0
	for name, c := range map[string]struct {
		manner  stores.RDSManner
		trouble func(string, int, url.Values) stores.Fault
		cancel  string
		want    string
		made    int // instances right after
		keeps   bool
	}{
		"second can't be made": {trouble: func(a string, nth int, _ url.Values) stores.Fault {
			if a == "RestoreDBInstanceFromDBSnapshot" && nth > 1 {
				return stores.Denied
			}
			return stores.None
		}, want: "AccessDenied", made: 1, keeps: true},
		"answers lost": {trouble: func(a string, _ int, _ url.Values) stores.Fault {
			if a == "RestoreDBInstanceFromDBSnapshot" {
				return stores.Lost
			}
			return stores.None
		}, want: "stay", made: 1, keeps: true},
		"cancelled before":        {cancel: "restore:rds-create", want: "context canceled", made: 0},
		"cancelled while waiting": {manner: stores.RDSManner{Late: 50}, cancel: "restore:rds-wait", want: "context canceled", made: 2, keeps: true},
		"cancelled at the files":  {cancel: "restore:swap-files", want: "context canceled", made: 2, keeps: true},
		"cancelled at the bus":    {cancel: "restore:eventbus-load", want: "context canceled", made: 2, keeps: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.onRDS(s)
			number++ // sets of one minute differ, and so do their instances
			w.o.AppVersion, w.o.RDS.Suffix = fmt.Sprintf("1-%d", number), fmt.Sprintf("try%d", number)
			s.Manner(stores.RDSManner{})
			want := w.state()
			o := w.backup()
			w.write("srv/app/later", "later")
			before, had := w.state(), len(s.Instances(t))
			plan := w.plan(o)
			if len(plan.Missing) > 0 {
				t.Fatalf("%q", plan.Missing)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s.Manner(c.manner)
			s.Trouble(c.trouble)
			if c.cancel != "" {
				w.at[c.cancel] = cancel
			}
			_, err := plan.Run(ctx)
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "the new DB instances stay") != c.keeps {
				t.Fatalf("want %q, got %v", c.want, err)
			}
			if n := len(s.Instances(t)) - had; n != c.made {
				t.Errorf("%d instances were made, not %d", n, c.made)
			}
			s.Manner(stores.RDSManner{})
			s.Trouble(nil)
			w.at = map[string]func(){}
			w.same("after the failure", before)
			again := w.plan(o)
			continues := 0
			for _, n := range again.RDS {
				if n.Continues {
					continues++
				}
			}
			if len(again.Missing) > 0 || continues != c.made {
				t.Fatalf("goes on with %d of %d: %q", continues, c.made, again.Missing)
			}
			if _, err := again.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.same("restored", want)
			if n := len(s.Instances(t)) - had; n != 2 {
				t.Errorf("%d instances were made", n)
			}
		})
	}
}

// TestRDSUntil: another time than the set's comes from the automated backups of the instance, as far as they reach.
func TestRDSUntil(t *testing.T) {
	s := stores.StartRDS(t)
	w := newWorld(t)
	w.onRDS(s)
	o := w.backup()
	o.Until = time.Now().Add(-time.Hour).Truncate(time.Second)
	latest := func(at time.Time) {
		text := at.UTC().Format(time.RFC3339)
		s.Manner(stores.RDSManner{Window: map[string]string{"db-rose": text, "db-line": text}})
	}
	latest(o.Until.Add(-time.Second))
	if p := w.plan(o); len(p.Missing) != 2 || !strings.Contains(p.Missing[0], "automated backups of DB instance db-rose reach") {
		t.Errorf("%q", p.Missing)
	}
	latest(time.Now())
	early := o
	early.Until = time.Now().AddDate(0, 0, -8)
	if p := w.plan(early); len(p.Missing) != 2 || !strings.Contains(p.Missing[0], "7 day(s)") {
		t.Errorf("%q", p.Missing)
	}
	plan := w.plan(o)
	if len(plan.Missing) > 0 || plan.RDS[0].Snapshot != "" || plan.RDS[0].Instance != "db-rose-restored-"+o.Until.UTC().Format("20060102150405") {
		t.Fatalf("%q %+v", plan.Missing, plan.RDS)
	}
	res, err := plan.Run(t.Context())
	if err != nil || !strings.Contains(res.RDS[0].Of, "db-rose as of") || s.Count("RestoreDBInstanceToPointInTime") != 2 || s.Count("RestoreDBInstanceFromDBSnapshot") != 0 {
		t.Fatalf("%+v %v", res, err)
	}
}

// TestRDSClock: the service's clock may be another than ours: the skew is measured on ours.
func TestRDSClock(t *testing.T) {
	s := stores.StartRDS(t)
	w := newWorld(t)
	w.onRDS(s)
	s.Manner(stores.RDSManner{Ahead: time.Hour})
	set, err := w.app().BackupAll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	at := set.OnRDS()[0]
	if off := at.RDS.ClockMS - time.Hour.Milliseconds(); off < -30_000 || off > 30_000 {
		t.Errorf("the clock is %d ms ahead", at.RDS.ClockMS)
	}
	if set.Recovery.Skew.Milliseconds > 30_000 || at.RDS.SnapshotTime.Sub(set.Began) < 50*time.Minute || at.Taken.To.After(set.Ended.Add(30*time.Second)) {
		t.Errorf("skew %+v, snapshot at %s, taken %v", set.Recovery.Skew, at.RDS.SnapshotTime, at.Taken)
	}
}

// TestRDSNames: names are what the service takes, and of two instances never the same.
func TestRDSNames(t *testing.T) {
	o := RDSOptions{Prefix: "holdfast"}
	if got := o.snapshotName("202611231200_10-0-0-147420", "My-DB"); got != "holdfast-202611231200-10-0-0-147420-my-db" {
		t.Error(got)
	}
	long := strings.Repeat("a", 63)
	longest := (&RDSOptions{Prefix: strings.Repeat("p", 40)}).snapshotName("202611231200_"+strings.Repeat("1", 115), long)
	if err := rds.CheckName(longest, rds.MaxSnapshotName); err != nil {
		t.Error(err)
	}
	for _, in := range []string{"db", long, strings.Repeat("a", 39) + "-" + strings.Repeat("b", 23)} {
		for _, until := range []time.Time{{}, time.Unix(1700000000, 0)} {
			if err := rds.CheckName(o.newName("202611231200_1-0", in, until), rds.MaxInstanceName); err != nil {
				t.Error(err)
			}
		}
	}
	var c RDSCluster
	c.Conn = pg.ConnOptions{Host: "alias", Port: 1, User: "u"}
	in := &rds.Instance{Host: "own", Port: 2}
	if a, b := c.conn(in, false), c.conn(in, true); a.Host != "alias" || a.Port != 1 || b.Host != "own" || b.Port != 2 {
		t.Errorf("%+v %+v", a, b)
	}
	if filepath.Base(rdsPath("eu-west-1", "s")) != "s" {
		t.Error(rdsPath("eu-west-1", "s"))
	}
}
