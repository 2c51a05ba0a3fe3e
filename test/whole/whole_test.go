// Package whole tests the whole program on a whole application: real PostgreSQL, real files, Kafka's protocol, the real
// binary killed, starved and lied to.
package whole

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"holdfast/test/world"
)

var built = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "hf-whole-bin-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the server's user runs it too
		return "", err
	}
	bin := filepath.Join(dir, "holdfast")
	build := exec.Command("go", "build", "-trimpath", "-o", bin, "holdfast/cmd/holdfast")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return "", errors.New("build: " + err.Error() + "\n" + string(out))
	}
	return bin, nil
})

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == daemonWord {
		os.Exit(daemonHelper(os.Args[2:]))
	}
	if len(os.Args) > 1 && os.Args[1] == unattendedWord {
		os.Exit(unattendedHelper(os.Args[2:]))
	}
	code := m.Run()
	if !testing.Short() {
		if bin, err := built(); err == nil {
			os.RemoveAll(filepath.Dir(bin)) // a left-over program harms nobody
		}
	}
	os.Exit(code)
}

// bus is the event bus of an application; while down is true it hangs up on everybody.
type bus struct {
	*kfake.Cluster
	down atomic.Bool
}

func newBus(t *testing.T) *bus {
	t.Helper()
	kafka, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(kafka.Close)
	b := &bus{Cluster: kafka}
	kafka.Control(func(kmsg.Request) (kmsg.Response, error, bool) {
		if !b.down.Load() {
			return nil, nil, false
		}
		kafka.KeepControl()
		return nil, errors.New("the bus is down"), true
	})
	return b
}

// newWorld makes an application with sample content that ends with the test.
func newWorld(t *testing.T, apart bool, conf ...string) *world.World {
	t.Helper()
	w, _ := newWorldAndBus(t, apart, conf...)
	return w
}

func newWorldAndBus(t *testing.T, apart bool, conf ...string) (*world.World, *bus) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	kafka := newBus(t)
	return newWorldOn(t, kafka.ListenAddrs(), apart, conf...), kafka
}

// newWorldOn is newWorld on an event bus of the caller's.
func newWorldOn(t *testing.T, brokers []string, apart bool, conf ...string) *world.World {
	t.Helper()
	return fill(t, startWorld(t, world.Options{Brokers: brokers, Apart: apart, Conf: conf}))
}

// startWorld makes an empty application that ends with the test.
func startWorld(t *testing.T, o world.Options) *world.World {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hf-whole-")
	if err != nil {
		t.Fatal(err)
	}
	o.Dir, o.Bin = dir, bin
	w, err := world.New(t.Context(), o)
	t.Cleanup(func() {
		if w != nil {
			if err := w.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// fill gives an application sample content.
func fill(t *testing.T, w *world.World) *world.World {
	t.Helper()
	if err := errors.Join(w.Exec(t.Context(), "create table t as select g as id, md5(g::text) as h from generate_series(1, 20000) g", "create table ledger (n int)"), w.SampleFiles(), w.CreateTopic(t.Context(), "events", 2)); err != nil {
		t.Fatal(err)
	}
	produce(t, w, 0, 200)
	if err := w.Commit(t.Context(), "readers", map[string]map[int32]int64{"events": {0: 40, 1: 100}}); err != nil {
		t.Fatal(err)
	}
	return w
}

func produce(t *testing.T, w *world.World, from, to int) {
	t.Helper()
	cl, err := w.Kafka()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for i := from; i < to; i++ {
		r := &kgo.Record{Topic: "events", Partition: int32(i % 2), Key: []byte{byte(i)}, Value: []byte(strings.Repeat("v", i)), Headers: []kgo.RecordHeader{{Key: "h", Value: nil}, {Key: "h", Value: []byte("2")}}}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func prove(t *testing.T, w *world.World) *world.Proof {
	t.Helper()
	p, err := w.Prove(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func same(t *testing.T, what string, want, got *world.Proof) {
	t.Helper()
	if diff := want.Diff(got); len(diff) > 0 {
		t.Fatalf("%s: not equal:\n%s", what, strings.Join(diff, "\n"))
	}
}

// span is when something was looked at.
type span struct{ From, To time.Time }

// set is what the tests look at in a set document.
type set struct {
	ID       string `json:"id"`
	State    string `json:"state"`
	Run      string `json:"run"`
	Recovery struct {
		Postgres        []struct{ Taken span }
		Files, EventBus struct{ Taken span }
		Skew            span
	}
	Pieces []struct{ Kind, Path string }
}

func sets(t *testing.T, w *world.World) []set {
	t.Helper()
	out := ok(t, w, "holdfast", "sets", "list", "--json")
	var s []set
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func ok(t *testing.T, w *world.World, name string, args ...string) string {
	t.Helper()
	out, err := w.As(t.Context(), name, "", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out.Stdout
}

// fails runs a command that must end with the code and say what.
func fails(t *testing.T, w *world.World, code int, what, name string, args ...string) {
	t.Helper()
	out, err := w.As(t.Context(), name, "", args...)
	if err == nil || out.Code != code || !strings.Contains(out.Stderr, what) {
		t.Fatalf("%s %v: code %d (want %d), want %q in:\n%s%s", name, args, out.Code, code, what, out.Stdout, out.Stderr)
	}
}

func backup(t *testing.T, w *world.World) set {
	t.Helper()
	ok(t, w, "alation_action", "backup_all")
	all := sets(t, w)
	return all[len(all)-1]
}

func restore(t *testing.T, w *world.World, id string) {
	t.Helper()
	ok(t, w, "holdfast", "restore", "--set", id, "--yes")
}

// TestBothModes backs up, loses and restores in both modes, and looks at what a run leaves.
func TestBothModes(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			roundTrip(t, newWorld(t, apart))
		})
	}
}

// roundTrip backs an application up, loses it, restores it, and again over what is there then.
func roundTrip(t *testing.T, w *world.World) {
	t.Helper()
	want := prove(t, w)
	s := backup(t, w)
	names, err := w.Tarballs(true)
	if err != nil || len(names) != 2 {
		t.Fatalf("%v %v", names, err)
	}
	for _, n := range names {
		if !regexp.MustCompile(`^[0-9]{12}_[0-9]+-[0-9]+-[0-9]+-[0-9]+_alation_(eb_)?backup\.tar\.gz$`).MatchString(n) {
			t.Errorf("name %s", n)
		}
		info, err := os.Stat(filepath.Join(w.Dump, n))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", n, info.Mode(), err)
		}
		if out, err := exec.Command("tar", "tzf", filepath.Join(w.Dump, n)).CombinedOutput(); err != nil {
			t.Errorf("tar: %v %s", err, out)
		}
	}
	if left, err := os.ReadDir(w.Temp); err != nil || len(left) > 0 {
		t.Errorf("staging holds %v %v", left, err)
	}
	if _, err := os.Stat(filepath.Join(w.Repo, "backup", world.Stanza, "backup.info")); err != nil {
		t.Error(err)
	}
	ok(t, w, "holdfast", "sets", "verify", s.ID)
	ok(t, w, "holdfast", "sets", "inspect", s.ID)
	if err := w.Lose(t.Context()); err != nil {
		t.Fatal(err)
	}
	restore(t, w, s.ID)
	same(t, "after the loss", want, prove(t, w))
	// And again over what is there now, on a later timeline, with a later set.
	if err := w.Exec(t.Context(), "insert into ledger values (1)"); err != nil {
		t.Fatal(err)
	}
	want = prove(t, w)
	second := backup(t, w)
	if err := w.Exec(t.Context(), "drop table t"); err != nil {
		t.Fatal(err)
	}
	restore(t, w, second.ID)
	same(t, "the second set", want, prove(t, w))
	ok(t, w, "holdfast", "sets", "verify", s.ID)
	restore(t, w, s.ID)
}

// TestKilledBackup kills backup_all at every step that a run announces; then a normal run works and earlier sets stand.
func TestKilledBackup(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart)
			first := backup(t, w)
			steps := stepsOf(t, w, "backup_all", "backup")
			for _, step := range steps {
				killAt(t, w, step, "alation_action", "backup_all")
				for _, n := range mustTarballs(t, w) {
					if out, err := exec.Command("gzip", "-t", filepath.Join(w.Dump, n)).CombinedOutput(); err != nil {
						t.Errorf("killed at %s: %s: %v %s", step, n, err, out)
					}
				}
			}
			want := prove(t, w)
			last := backup(t, w)
			for _, s := range sets(t, w) {
				if s.State != "complete" && s.State != "failed" {
					t.Errorf("set %s is %s after a good run", s.ID, s.State)
				}
				if s.State == "complete" {
					ok(t, w, "holdfast", "sets", "verify", s.ID)
				}
			}
			restore(t, w, last.ID)
			same(t, "after the kills", want, prove(t, w))
			restore(t, w, first.ID)
			t.Logf("killed at %d steps: %s", len(steps), strings.Join(steps, " "))
		})
	}
}

func mustTarballs(t *testing.T, w *world.World) []string {
	t.Helper()
	names, err := w.Tarballs(false)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// stepsOf reads the steps of the given verbs from the log, each once, in order.
func stepsOf(t *testing.T, w *world.World, verbs ...string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(w.Root, "opt/alation/site/logs/alation_backup.log"))
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	seen := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^\S+ \S+ ([a-z_]+): ([a-z-]+)`).FindAllStringSubmatch(string(b), -1) {
		step := m[1] + ":" + m[2]
		for _, v := range verbs {
			if m[1] == v && m[2] != "began" && m[2] != "ended" && !seen[step] {
				seen[step] = true
				steps = append(steps, step)
			}
		}
	}
	if len(steps) < 5 {
		t.Fatalf("only the steps %v", steps)
	}
	return steps
}

// killAt runs a command that dies by SIGKILL at a step.
func killAt(t *testing.T, w *world.World, step, name string, args ...string) {
	t.Helper()
	cmd := w.Command(t.Context(), name, args...)
	cmd.Env = append(cmd.Env, "HOLDFAST_TEST_KILL_AT="+step)
	out, err := world.Run(cmd, "")
	if err == nil || out.Code != -1 {
		t.Fatalf("at %s the run did not die: code %d\n%s%s", step, out.Code, out.Stdout, out.Stderr)
	}
}

// TestKilledRestore kills the restore at every step; giving back brings back what was there, and running it again ends right.
// One mode takes every step, the other every second; each step is given back in one of them.
func TestKilledRestore(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart)
			want := prove(t, w)
			s := backup(t, w)
			restore(t, w, s.ID)
			same(t, "not killed", want, prove(t, w))
			steps := stepsOf(t, w, "restore")
			for i, step := range steps {
				committed, giveBack := step == "restore:drop-replaced", (i%2 == 0) != apart
				if step == "restore:give-back" || apart && !giveBack {
					continue
				}
				before := change(t, w)
				killAt(t, w, step, "holdfast", "restore", "--set", s.ID, "--yes")
				if giveBack && !committed {
					ok(t, w, "holdfast", "restore", "--give-back")
					same(t, "given back after a kill at "+step, before, prove(t, w))
				}
				restore(t, w, s.ID)
				same(t, "restored after a kill at "+step, want, prove(t, w))
			}
			t.Logf("killed at %d steps: %s", len(steps), strings.Join(steps, " "))
		})
	}
}

// TestDamage: what is damaged, missing, foreign or busy is refused before anything is touched.
func TestDamage(t *testing.T) {
	w := newWorld(t, false)
	s, other := backup(t, w), backup(t, w)
	before := prove(t, w)
	app, bus := w.Dump+"/"+s.ID+"_alation_backup.tar.gz", w.Dump+"/"+s.ID+"_alation_eb_backup.tar.gz"
	good, err := os.ReadFile(app)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		bad := append([]byte(nil), good...)
		at := len(bad) * (2*i + 1) / 41
		if i%4 == 3 {
			bad = bad[:at]
		} else {
			bad[at] ^= 0x20
		}
		if err := os.WriteFile(app, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := w.Holdfast(t.Context(), "sets", "verify", s.ID)
		if err == nil || out.Code != 6 {
			t.Errorf("byte %d: verify did not find it: %s", at, out.Stdout)
		}
		out, err = w.Holdfast(t.Context(), "restore", "--set", s.ID, "--yes")
		if err == nil || out.Code != 5 {
			t.Errorf("byte %d: the restore went on: %s%s", at, out.Stdout, out.Stderr)
		}
	}
	if err := os.WriteFile(app, good, 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, os.Rename(bus, bus+".away"))
	fails(t, w, 5, "has an Event Bus backup", "holdfast", "restore", "--file", app, "--yes")
	must(t, os.Rename(bus+".away", bus))
	fails(t, w, 5, "different runs", "holdfast", "restore", "--file", app, "--eb-file", w.Dump+"/"+other.ID+"_alation_eb_backup.tar.gz", "--yes")
	fails(t, w, 5, "not confirmed", "holdfast", "restore", "--file", app, "--eb-file", bus)
	foreign := filepath.Join(w.Temp, "somebody")
	if err := os.WriteFile(foreign, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	fails(t, w, 1, "did not put there: somebody", "alation_action", "backup_all")
	if b, err := os.ReadFile(foreign); err != nil || string(b) != "mine" {
		t.Errorf("the foreign file: %q %v", b, err)
	}
	if err := os.Remove(foreign); err != nil {
		t.Fatal(err)
	}
	same(t, "nothing was touched", before, prove(t, w))
	ok(t, w, "holdfast", "sets", "delete", s.ID, "--yes")
	if _, err := os.Stat(app); !os.IsNotExist(err) {
		t.Errorf("deleted, but %v", err)
	}
	fails(t, w, 5, "the last one", "holdfast", "sets", "delete", other.ID, "--yes")
	ok(t, w, "holdfast", "sets", "verify", other.ID)
}

// TestTwoRuns: while one run is at work, every other says who is and leaves it alone.
func TestTwoRuns(t *testing.T) {
	w := newWorld(t, false)
	first := backup(t, w)
	want := prove(t, w)
	refused := func(verb string, pid int) {
		t.Helper()
		for _, args := range [][]string{{"alation_action", "backup_all"}, {"alation_action", "destructive_restore_all"}, {"holdfast", "restore", "--set", first.ID, "--yes"},
			{"holdfast", "restore", "--give-back"}, {"holdfast", "sets", "verify", first.ID}, {"holdfast", "sets", "delete", first.ID, "--yes", "--last"}} {
			out, err := w.As(t.Context(), args[0], "YES\n", args[1:]...)
			failed(t, out, err, 4, fmt.Sprintf("%s (process %d-", verb, pid), "since "+time.Now().UTC().Format("2006-"))
		}
		ok(t, w, "holdfast", "sets", "list")
	}
	ok(t, w, "alation_conf", "alation.backup.restore_file", "-s", "/data2/backup/"+first.ID+"_alation_backup.tar.gz", "alation.backup.eb_restore_file", "-s", "/data2/backup/"+first.ID+"_alation_eb_backup.tar.gz")
	for _, step := range []string{"backup:copy", "backup_all:rename"} {
		p := paused(t, w, step, "alation_action", "backup_all")
		refused("backup_all", p.Pid())
		if out, err := p.Resume(); err != nil {
			t.Fatal(err, out)
		}
	}
	all := sets(t, w)
	if len(all) != 3 {
		t.Errorf("%d sets, not 3", len(all))
	}
	for _, s := range all {
		ok(t, w, "holdfast", "sets", "verify", s.ID)
	}
	for _, step := range []string{"restore:unpack", "restore:files", "restore:recover", "restore:eventbus-load", "restore:commit"} {
		change(t, w)
		p := paused(t, w, step, "holdfast", "restore", "--set", all[2].ID, "--yes")
		refused("destructive_restore_all", p.Pid())
		if out, err := p.Resume(); err != nil {
			t.Fatal(err, out)
		}
		same(t, "restored beside others at "+step, want, prove(t, w))
	}
	leftOvers(t, w)
}
