package whole

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"filippo.io/age"

	"holdfast/test/tally"
	"holdfast/test/world"
)

// both are the stanzas of an application with two clusters.
var both = []string{world.Stanza, world.LineageStanza}

// newTwo makes an application with two clusters, sample content in both, and a ledger over all of it.
func newTwo(t *testing.T, o world.Options, conf ...string) *world.World {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	if o.Lineage == "" && !o.Clone {
		o.Lineage = "/usr/lib/postgresql/15/bin"
	}
	if len(o.Brokers) == 0 {
		o.Brokers = newBus(t).ListenAddrs()
	}
	o.Conf = append(o.Conf, conf...)
	w := fill(t, startWorld(t, o))
	must(t, w.Lineage.Exec(t.Context(), "create table l as select g as id, md5(g::text) as h from generate_series(1, 5000) g"), w.MakeLedger(t.Context(), prefilledTwo))
	return w
}

const prefilledTwo = 5_000

// pg18 is where scripts/setup-pg puts PostgreSQL 18.
func pg18(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("HOLDFAST_CACHE")
	if cache == "" {
		cache = "/var/cache/holdfast"
	}
	dir := filepath.Join(cache, "pg/18/bin")
	if !exists(filepath.Join(dir, "postgres")) {
		t.Fatalf("%s has no server; run: make setup (scripts/setup-pg 18)", dir)
	}
	return dir
}

// TestTwoClusters backs up an application with two clusters to one recovery point, in every mode, while the same numbers are
// written to both, a file and a topic; loses it and restores it, and again over what is there; and looks at whatever tells of a
// set: all of it knows both clusters. The clone has the same system identifier and the same content twice.
func TestTwoClusters(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	var together atomic.Int32 // how often both restore points were being written at one moment, which on a busy machine need not be always
	t.Cleanup(func() {
		if together.Load() == 0 {
			t.Error("in every set the clusters' restore points were written one after the other")
		}
	})
	for name, c := range map[string]struct {
		o    world.Options
		conf []string
		new  bool // another version: what is in PostgreSQL 18
	}{
		"included, 15 and 18": {new: true},
		"included, a clone":   {o: world.Options{Clone: true}},
		"apart, encrypted":    {o: world.Options{Apart: true}, conf: append([]string{"pgsql.pgbackrest.cipher_pass", "-s", passphrase}, storeConf...)},
		"apart, a clone":      {o: world.Options{Apart: true, Clone: true}, conf: storeConf},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.new {
				c.o.Lineage = pg18(t)
			}
			w := newTwo(t, c.o, c.conf...)
			first := twoRound(t, w, prefilledTwo, true)
			have, err := w.ReadLedger(t.Context())
			must(t, err, w.FillLedger(t.Context(), have, have.Greatest()))
			for _, s := range []set{first, twoRound(t, w, have.Greatest(), false)} {
				if a, b := s.Recovery.Postgres[0].Taken, s.Recovery.Postgres[1].Taken; !a.From.After(b.To) && !b.From.After(a.To) {
					together.Add(1)
				}
			}
			restore(t, w, first.ID) // on later timelines
			if now, err := w.ReadLedger(t.Context()); err != nil || now != have {
				t.Errorf("restored again, the first set has %v, %v; before it had %v", now, err, have)
			}
			twoTold(t, w, first)
			twoDeleted(t, w, first)
		})
	}
}

// twoRound makes a set under writes and restores it, after a loss or over what is there.
func twoRound(t *testing.T, w *world.World, last int, lose bool) set {
	t.Helper()
	want := prove(t, w)
	s, written := backupWhileWriting(t, w, last+1)
	if len(s.Recovery.Postgres) != 2 {
		t.Fatalf("the set has the recovery points %+v", s.Recovery.Postgres)
	}
	a, b := s.Recovery.Postgres[0].Taken, s.Recovery.Postgres[1].Taken
	if lose {
		must(t, w.Lose(t.Context()), w.DeleteTopics(t.Context(), "ledger", "events"))
	} else {
		must(t, w.Exec(t.Context(), "drop table t"), w.Lineage.Exec(t.Context(), "drop table l"))
	}
	restore(t, w, s.ID)
	have, err := w.ReadLedger(t.Context())
	must(t, err)
	checkTimes(t, s, have, written)
	got := prove(t, w)
	for _, p := range []*world.Proof{want, got} { // compared above
		delete(p.Rows, "public.ledger")
		delete(p.Rows, "lineage:public.ledger")
		for _, f := range []string{"ledger", "."} {
			delete(p.Files, f)
		}
		delete(p.Events, "ledger/0")
	}
	same(t, "restored", want, got)
	t.Logf("%d numbers, skew %s, %s and %s between the clusters", len(written), s.Recovery.Skew.To.Sub(s.Recovery.Skew.From), a.To.Sub(a.From), b.To.Sub(b.From))
	return s
}

// twoTold: what tells of a set names both clusters.
func twoTold(t *testing.T, w *world.World, s set) {
	t.Helper()
	ok(t, w, "holdfast", "sets", "verify", s.ID)
	told := map[string]string{"show": ok(t, w, "holdfast", "sets", "show", s.ID), "restore --dry-run": ok(t, w, "holdfast", "restore", "--set", s.ID, "--dry-run")}
	if len(s.Pieces) == 2 {
		told["inspect"] = ok(t, w, "holdfast", "sets", "inspect", s.ID)
		out, err := exec.Command("tar", "tzf", s.Pieces[0].Path).Output()
		must(t, err)
		for _, stanza := range both {
			for _, part := range []string{"pgbackrest/archive/" + stanza + "/archive.info", "pgbackrest/backup/" + stanza + "/backup.info", "/backup.manifest"} {
				if !strings.Contains(string(out), part) {
					t.Errorf("the tarball has no %s", part)
				}
			}
			if !strings.Contains(string(out), "pgbackrest/archive/"+stanza+"/1") {
				t.Errorf("the tarball has no WAL of %s", stanza)
			}
		}
	} else {
		var stanzas []string
		for _, c := range copies(t, w) {
			if c.ID == s.ID && c.Copy != nil && c.Copy.Postgres {
				for _, wal := range c.Copy.WAL {
					stanzas = append(stanzas, wal.Stanza)
				}
			}
		}
		if !slices.Equal(stanzas, both) {
			t.Errorf("of the WAL there is told %v", stanzas)
		}
	}
	for verb, text := range told {
		for _, stanza := range both {
			if !strings.Contains(text, stanza) {
				t.Errorf("%s does not name %s:\n%s", verb, stanza, text)
			}
		}
	}
	logs, err := filepath.Glob(filepath.Join(w.Root, "var/lib/pgsql/*/backup.log"))
	must(t, err)
	text := ""
	for _, l := range logs {
		b, err := os.ReadFile(l)
		must(t, err)
		text += string(b)
	}
	for _, stanza := range both {
		if !strings.Contains(text, "backup: prepare "+stanza) && !strings.Contains(text, stanza) {
			t.Errorf("the logs %v do not name %s", logs, stanza)
		}
		if c := w.Servers()[stanza]; !exists(filepath.Join(w.Root, "var/lib/pgsql", majorOf(t, c), stanza+".log")) {
			t.Errorf("%s has no log of its server", stanza)
		}
	}
}

func majorOf(t *testing.T, c *world.World) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(c.Data, "PG_VERSION"))
	must(t, err)
	return strings.TrimSpace(string(b))
}

// twoDeleted deletes a set: what both clusters have of it goes, and nothing else.
func twoDeleted(t *testing.T, w *world.World, s set) {
	t.Helper()
	before := len(backupsOf(t, w, world.Stanza))
	ok(t, w, "holdfast", "sets", "delete", s.ID, "--yes")
	for _, stanza := range both {
		if now := len(backupsOf(t, w, stanza)); len(s.Pieces) > 2 && now != before-1 {
			t.Errorf("%s had %d backups and has %d", stanza, before, now)
		}
	}
	for _, other := range sets(t, w) {
		if other.State == "complete" {
			ok(t, w, "holdfast", "sets", "verify", other.ID)
		}
	}
}

// backupsOf are the backups of a stanza in the repository.
func backupsOf(t *testing.T, w *world.World, stanza string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(w.Repo, "backup", stanza, "*-*F*"))
	must(t, err)
	return dirs
}

// noSession: nobody but us is connected to a cluster, so none is in backup mode.
func noSession(t *testing.T, c *world.World) {
	t.Helper()
	const others = "select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
	n, err := int64(1), error(nil)
	for try := 0; err == nil && n > 0 && try < 600; try++ {
		n, err = c.Int(t.Context(), others)
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil || n > 0 {
		t.Errorf("%d sessions are left, %v", n, err)
	}
}

// TestTwoClustersDown: a cluster that is down fails the set by its name: at once, when it is down at the start, and before
// anything of the other is copied; the other leaves backup mode, and earlier sets restore.
func TestTwoClustersDown(t *testing.T) {
	for name, apart := range map[string]bool{"apart": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTwo(t, world.Options{Apart: apart})
			want := prove(t, w)
			first := backup(t, w)
			ok(t, w, "alation_conf", "pgsql.pgbackrest.archive_timeout", "-s", "5")
			for _, stanza := range []string{world.LineageStanza, world.Stanza} {
				must(t, w.Servers()[stanza].StopServer(t.Context(), "fast"))
				had := map[string][]string{}
				for _, s := range both {
					had[s] = backupsOf(t, w, s)
				}
				fails(t, w, 1, stanza+": connect to PostgreSQL", "alation_action", "backup_all")
				for _, s := range both {
					if now := backupsOf(t, w, s); !slices.Equal(now, had[s]) {
						t.Errorf("%s is down: of %s there was %v, and is %v", stanza, s, had[s], now)
					}
				}
				leftOvers(t, w)
			}
			out, err := w.As(t.Context(), "alation_action", "", "backup_all")
			failed(t, out, err, 1, "rosemeta: connect to PostgreSQL", "lineage: connect to PostgreSQL")
			must(t, w.StartServer(t.Context()), w.Lineage.StartServer(t.Context()))
			for _, c := range []struct{ step, dies string }{
				{"backup:copy#1", world.Stanza}, {"backup:copy#1", world.LineageStanza}, {"backup:copy#2", world.Stanza}, {"backup:copy#2", world.LineageStanza},
				{"backup:stop#2", world.LineageStanza}, {"backup_all:recovery-point#1", world.LineageStanza}, {"backup_all:wal#1", world.LineageStanza},
			} {
				p := paused(t, w, c.step, "alation_action", "backup_all")
				must(t, w.Servers()[c.dies].StopServer(t.Context(), "immediate"))
				out, err := p.Resume()
				failed(t, out, err, 1, "stanza "+c.dies)
				t.Logf("%s, %s dies: %s", c.step, c.dies, out.Stderr)
				must(t, w.Servers()[c.dies].StartServer(t.Context()))
				for _, s := range w.Servers() {
					noSession(t, s)
				}
				leftOvers(t, w)
			}
			ok(t, w, "alation_conf", "pgsql.pgbackrest.archive_timeout", "-s", "60")
			ok(t, w, "holdfast", "sets", "verify", first.ID)
			last := backup(t, w)
			for _, s := range []set{first, last} {
				change(t, w)
				must(t, w.Lineage.Exec(t.Context(), "delete from l"))
				restore(t, w, s.ID)
				same(t, "after the deaths", want, prove(t, w))
			}
		})
	}
}

// TestTwoClustersKilled kills runs and restores at the steps that the second cluster has after the first: what was complete
// stays, a restore is given back whole, and the next command ends right.
func TestTwoClustersKilled(t *testing.T) {
	for name, apart := range map[string]bool{"included": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newTwo(t, world.Options{Apart: apart})
			want := prove(t, w)
			first := backup(t, w)
			kills := []string{"backup_all:postgres#2", "backup:prepare#2", "backup:start#2", "backup:file-200#2", "backup:stop#2", "backup:wal#2", "backup_all:files#1", "backup_all:recovery-point#1", "backup_all:wal#1", "backup_all:catalogue#1"}
			for _, step := range kills {
				killAt(t, w, step, "alation_action", "backup_all")
				for _, s := range w.Servers() {
					noSession(t, s)
				}
			}
			last := backup(t, w)
			for _, s := range sets(t, w) {
				if s.State == "complete" {
					ok(t, w, "holdfast", "sets", "verify", s.ID)
				}
			}
			for i, step := range []string{"restore:stop-server#2", "restore:move-aside#2", "restore:recover#1", "restore:recover#2", "restore:swap-files#1", "restore:drop-replaced#1"} {
				change(t, w)
				must(t, w.Lineage.Exec(t.Context(), "delete from l where id % 2 = 0", "create table if not exists later (n int)"))
				before := prove(t, w)
				killAt(t, w, step, "holdfast", "restore", "--set", last.ID, "--yes")
				if i%2 == 0 && step != "restore:drop-replaced#1" {
					ok(t, w, "holdfast", "restore", "--give-back")
					same(t, "given back after a kill at "+step, before, prove(t, w))
				}
				restore(t, w, last.ID)
				same(t, "restored after a kill at "+step, want, prove(t, w))
			}
			restore(t, w, first.ID)
			same(t, "the first set", want, prove(t, w))
			// What a later process undoes may not be the restore's any more: it is kept for the operator to look at.
			undone, err := filepath.Glob(filepath.Join(w.Root, "data1/*/*.holdfast-undone-*"))
			must(t, err)
			for _, dir := range undone {
				must(t, os.RemoveAll(dir))
			}
			leftOvers(t, w)
		})
	}
}

// TestTwoClustersElsewhere: the recovery kit and the external storage bring both clusters back on a machine that has nothing; and
// without the kit a new instance of both does it by hand, to a time after the set.
func TestTwoClustersElsewhere(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	must(t, err)
	identity := filepath.Join(t.TempDir(), "identity")
	must(t, os.WriteFile(identity, []byte(id.String()+"\n"), 0o600))
	w := newTwo(t, world.Options{Apart: true}, append([]string{"alation.backup.recovery_kit.recipient", "-s", id.Recipient().String()}, storeConf...)...)
	want := prove(t, w)
	s := backup(t, w)
	kit := theKit(t, w)
	must(t, w.Exec(t.Context(), "insert into ledger values (777777)"))
	at := moment()
	must(t, w.Exec(t.Context(), "insert into ledger values (888888)", "select pg_switch_wal()"))
	must(t, w.Lineage.Exec(t.Context(), "create table later (n int)", "select pg_switch_wal()")) // PostgreSQL stops at a time only where there is a later commit
	archived(t, w)
	archived(t, w.Lineage)
	ok(t, w, "holdfast", "sets", "copy")
	must(t, w.Close(t.Context()))
	n := bareMachine(t, w)
	must(t, os.MkdirAll(n.Root, 0o755), exec.Command("cp", "-a", far(w), far(n.World)).Run())
	ok(t, n.World, "holdfast", recoverWords(n, kit, "--identity", identity, "--yes")...)
	same(t, "recovered", want, prove(t, n.World))
	backup(t, n.World)
	must(t, n.Close(t.Context()))
	tally.Count(t, "recoveries of a bare machine", 1)

	by := newTwo(t, world.Options{Apart: true}, append([]string{"pgsql.pgbackrest.restore.source", "-s", "s3"}, storeConf...)...)
	must(t, os.RemoveAll(far(by)), os.Rename(far(w), far(by)))
	ok(t, by, "holdfast", "sets", "fetch", s.ID)
	restoredTo(t, by, s.ID, at)
	var c []struct {
		Recovery struct{ Postgres []struct{ Stanza string } }
	}
	must(t, json.Unmarshal([]byte(ok(t, by, "holdfast", "sets", "list", "--json")), &c))
	if len(c) == 0 || len(c[0].Recovery.Postgres) != 2 {
		t.Errorf("%+v", c)
	}
	ok(t, by, "holdfast", "sets", "verify", backup(t, by).ID)
	tally.Count(t, "restores from external storage alone", 1)
}

// moment is now, as --until takes it, some milliseconds away from what is before and after it.
func moment() string {
	time.Sleep(20 * time.Millisecond)
	defer time.Sleep(20 * time.Millisecond)
	return time.Now().UTC().Format("2006-01-02 15:04:05.999999+00")
}

// restoredTo restores to the time between 777777 and 888888 in the ledger of the first cluster; the second has neither.
func restoredTo(t *testing.T, w *world.World, id, at string) {
	t.Helper()
	ok(t, w, "holdfast", "restore", "--set", id, "--until", at, "--yes")
	for stanza, want := range map[string]string{world.Stanza: "777777", world.LineageStanza: fmt.Sprint(prefilledTwo)} {
		if last, err := w.Servers()[stanza].Text(t.Context(), "select max(n)::text from ledger"); err != nil || last != want {
			t.Errorf("%s: the last number is %s, %v; want %s", stanza, last, err, want)
		}
	}
}

// TestTwoClustersToATime restores both clusters to one moment on the same instance: where one of them has not been written to
// since, where both have, and where neither has. A moment at which the second was still in its backup is refused.
func TestTwoClustersToATime(t *testing.T) {
	w := newTwo(t, world.Options{Apart: true})
	p := paused(t, w, "backup:start#2", "alation_action", "backup_all")
	early := moment()
	_, err := p.Resume()
	must(t, err)
	all := sets(t, w)
	s := all[len(all)-1]
	out, err := w.As(t.Context(), "holdfast", "", "restore", "--set", s.ID, "--until", early, "--yes")
	failed(t, out, err, 5, "stanza lineage", "nothing was changed")
	quiet := moment() // neither cluster is written to
	time.Sleep(time.Second)
	ok(t, w, "holdfast", "restore", "--set", s.ID, "--until", quiet, "--yes")
	s = backup(t, w)
	must(t, w.Exec(t.Context(), "insert into ledger values (777777)"))
	at := moment()
	must(t, w.Exec(t.Context(), "insert into ledger values (888888)"))
	restoredTo(t, w, s.ID, at)
	s = backup(t, w)
	both := func(n int) error {
		text := fmt.Sprintf("insert into ledger values (%d)", n)
		return errors.Join(w.Exec(t.Context(), text), w.Lineage.Exec(t.Context(), text))
	}
	must(t, both(900_001))
	at = moment()
	must(t, both(900_002), w.Exec(t.Context(), "select pg_switch_wal()"))
	archived(t, w)
	must(t, w.Close(t.Context())) // nothing more of the second's last segment gets into the archive
	out, err = w.As(t.Context(), "holdfast", "", "restore", "--set", s.ID, "--until", at, "--yes")
	failed(t, out, err, 1, "cluster lineage", "only where there is a later commit", "given back")
	t.Log(out.Stderr)
	must(t, w.StartServer(t.Context()), w.Lineage.StartServer(t.Context()))
	ok(t, w, "holdfast", "restore", "--set", s.ID, "--until", at, "--yes")
	for stanza, c := range w.Servers() {
		if last, err := c.Int(t.Context(), "select max(n) from ledger"); err != nil || last != 900_001 {
			t.Errorf("%s: the last number is %d, %v", stanza, last, err)
		}
	}
}
