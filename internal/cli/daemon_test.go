package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/schedule"
)

// TestGiveWay: a job that gives way is ended when somebody asks for the instance, does not begin while somebody does, and is tried
// again later.
func TestGiveWay(t *testing.T) {
	lock := filepath.Join(t.TempDir(), "instance.lock")
	ctx, end, err := giveWay(t.Context(), lock)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(lock+".wanted", []byte(`{"verb":"backup_all","exec":"7-0badcafe"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ctx.Done():
	case <-time.After(20 * time.Second):
		t.Fatal("nobody told the job")
	}
	err = afterGivingWay(ctx, fmt.Errorf("copy: %w", ctx.Err()))
	if err == nil || err.Error() != "gave way to backup_all (process 7-0badcafe)" {
		t.Error(err)
	}
	if afterGivingWay(ctx, nil) != nil {
		t.Error("a job that had done its work did not give way")
	}
	end()
	if _, end, err := giveWay(t.Context(), lock); err == nil {
		end()
		t.Error("it begins although somebody waits")
	}
	if err := os.Remove(lock + ".wanted"); err != nil {
		t.Fatal(err)
	}
	ctx, end, err = giveWay(t.Context(), lock)
	if err != nil {
		t.Fatal(err)
	}
	end()
	if cause := errors.New("x"); !errors.Is(afterGivingWay(ctx, cause), cause) {
		t.Error("an error of its own is lost")
	}
}

// TestBackupBesideTheDaemonsCopy: backup_all that finds the instance held by a job that gives way gets it, and says whom it waited for.
func TestBackupBesideTheDaemonsCopy(t *testing.T) {
	r := newRig(t)
	r.run("alation_conf", "eventbus.enabled", "-s", "False", "pgsql.clusters", "-s", "a:data=/nowhere,host=/nowhere").has(t, exitOK)
	if err := os.MkdirAll(r.in.LockDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, end, err := giveWay(t.Context(), instanceLock(r.in))
	if err != nil {
		t.Fatal(err)
	}
	lock, err := durable.TryLock(instanceLock(r.in), []byte(`{"verb":"sets copy","exec":"7-copy","since":"2026-11-24T00:00:00Z","yields":true}`))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { // the daemon's job, as long as it is let
		<-ctx.Done()
		done <- afterGivingWay(ctx, errors.Join(ctx.Err(), lock.Unlock()))
	}()
	got := r.run("alation_action", "backup_all") // there is no PostgreSQL; it has to get as far as that
	if got.code == exitBusy || got.code == exitOK || strings.Contains(got.errs, "another run holds the instance") {
		t.Errorf("%+v", got)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "gave way to backup_all (process 41-0badcafe)") {
		t.Error(err)
	}
	end()
	r.run("holdfast", "logs", "last").has(t, exitOK, "backup_all: wait: until sets copy (process 7-copy) gives way")
}

// TestSetMade: a set whose final names could not be given is not made, whatever its state says.
func TestSetMade(t *testing.T) {
	sets := []*catalog.Set{{Run: "1-a", State: catalog.Publishing}, {Run: "2-b", State: catalog.Complete}, {Run: "3-c", State: catalog.Failed}}
	failed := errors.New("no room")
	for _, c := range []struct {
		run     string
		settled error
		want    bool
	}{{"1-a", nil, true}, {"1-a", failed, false}, {"2-b", nil, true}, {"2-b", failed, true}, {"3-c", nil, false}, {"4-d", nil, false}} {
		if got := setMade(sets, c.run, c.settled); got != c.want {
			t.Errorf("%s, %v: %v", c.run, c.settled, got)
		}
	}
}

// TestScriptFailed: health knows of a post script that failed, also of a run typed by hand, until a later set has none that did.
func TestScriptFailed(t *testing.T) {
	bad, good := &catalog.Set{ID: "1", State: catalog.Complete, PostScript: &catalog.PostScript{Error: "exit 3"}}, &catalog.Set{ID: "2", State: catalog.Complete}
	broken := &catalog.Set{ID: "3", State: catalog.Failed}
	if got := scriptFailed([]*catalog.Set{good, bad, broken}); got != "the post script of set 1 failed: exit 3" {
		t.Error(got)
	}
	if got := scriptFailed([]*catalog.Set{bad, good, broken}); got != "" {
		t.Error(got)
	}
}

// TestDaemonElsewhere: a PID of another PID namespace is not signalled.
func TestDaemonElsewhere(t *testing.T) {
	r := newRig(t)
	if err := os.MkdirAll(r.in.LockDir(), 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := durable.TryLock(daemonLock(r.in), fmt.Appendf(nil, `{"pid":%d,"since":"2026-11-24T00:00:00Z","namespace":"pid:[1]"}`, os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	r.run("holdfast", "daemon", "stop").has(t, exitRefused, "of the PID namespace pid:[1]", "nothing was done")
	r.run("holdfast", "daemon", "reload").has(t, exitRefused, "run this there")
	r.run("holdfast", "schedule", "show").has(t, exitOK, "of the PID namespace pid:[1]")
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
	d := r.daemon(t)
	d.hear(t, "READY=1")
	info, err := runningDaemon(r.in)
	if err != nil || info == nil || info.Namespace == "" || info.elsewhere() || info.Run != "41-0badcafe" {
		t.Errorf("%+v %v", info, err)
	}
	d.end()
	<-d.said
}

// TestScheduleOwed: what was missed or interrupted comes first in next and show.
func TestScheduleOwed(t *testing.T) {
	r := newRig(t)
	f, err := newStateFile(r.in)
	if err != nil {
		t.Fatal(err)
	}
	settled := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	if err := f.Save(schedule.State{Jobs: map[string]schedule.JobState{jobBackup: {Spec: "0 4 * * *", Settled: settled}}}); err != nil {
		t.Fatal(err)
	}
	r.run("holdfast", "schedule", "next", "2").has(t, exitOK, "Mon 2026-11-23 04:00:00 UTC  owed\nTue 2026-11-24 04:00:00 UTC\n")
	lock, err := durable.TryLock(daemonLock(r.in), []byte(`{"pid":4711,"since":"2026-11-24T00:00:00Z"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.run("holdfast", "schedule", "show").has(t, exitOK, "2026-11-23 04:00:00 UTC, owed")
	if err := f.Save(schedule.State{Jobs: map[string]schedule.JobState{jobBackup: {Spec: "0 4 * * *", Settled: settled.AddDate(0, 0, 1), Owed: &schedule.Run{Due: settled, Try: 2}}}}); err != nil {
		t.Fatal(err)
	}
	r.run("holdfast", "schedule", "next", "1", "--json").has(t, exitOK, `"2026-11-22T04:00:00Z"`)
	r.run("alation_conf", "alation.backup.scheduled_hour", "-s", "5").has(t, exitOK) // the daemon has not seen it: what it noted was of another
	r.run("holdfast", "schedule", "next", "1").has(t, exitOK, "Tue 2026-11-24 05:00:00 UTC\n")
	r.run("alation_conf", "alation.backup.scheduled_hour", "-s", "4", "snapshot.enabled", "-s", "False").has(t, exitOK)
	r.run("holdfast", "schedule", "next", "1").has(t, exitOK, "Tue 2026-11-24 04:00:00 UTC\n")
	if err := lock.Unlock(); err != nil {
		t.Error(err)
	}
}

// TestCronZoneWarning: times of schedule.backup are not converted, and the warning does not say that they were.
func TestCronZoneWarning(t *testing.T) {
	r := newRig(t)
	values := func(words ...string) string {
		t.Helper()
		r.run(append([]string{"alation_conf"}, words...)...).has(t, exitOK)
		st, err := store(r.in)
		if err != nil {
			t.Fatal(err)
		}
		v, err := st.Load()
		if err != nil {
			t.Fatal(err)
		}
		return cronZoneWarning(v, time.Now())
	}
	if got := values("schedule.zone", "-s", "Asia/Tokyo"); !strings.Contains(got, "the schedule in Asia/Tokyo: the line is right at most until a clock is changed") {
		t.Error(got)
	}
	if got := values("schedule.backup", "-s", "0 4 * * *"); !strings.Contains(got, "as they are") || !strings.Contains(got, "not for Asia/Tokyo") || strings.Contains(got, "is right") {
		t.Error(got)
	}
}

// TestCronUnseen: who may not read root's crontab is not told that cron has no line.
func TestCronUnseen(t *testing.T) {
	if cronUnseen("/", 0) || !cronUnseen("/", 1000) || os.Geteuid() != 0 && cronUnseen(t.TempDir(), 1000) || cronUnseen("/nowhere", 1000) {
		t.Error("who may see root's crontab?")
	}
	for _, c := range []struct {
		v    scheduleView
		want string
	}{
		{scheduleView{Enabled: true, Unseen: true}, "can't be told"}, {scheduleView{Unseen: true}, "sudo holdfast schedule show"},
		{scheduleView{Enabled: true, Unseen: true, Daemon: &daemonInfo{PID: 1}}, ""}, {scheduleView{Enabled: true}, "no daemon is running, and cron has no line"},
	} {
		c.v.bothOrNeither()
		if got := strings.Join(c.v.Warnings, "\n"); c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %s", c.v, got)
		}
	}
}

// TestCrontabEditedBesides: somebody else's edit at the same moment is not lost, and neither is ours.
func TestCrontabEditedBesides(t *testing.T) {
	const theirs = "5 5 * * * theirs"
	for name, at := range map[string]string{
		"between reading and writing": `-l) n=$(cat $tab.n 2>/dev/null || echo 0); echo $((n+1)) > $tab.n; [ $n = 1 ] && echo '` + theirs + `' >> $tab; cat $tab ;;` + "\n-) cat > $tab ;;",
		"after writing":               `-l) cat $tab ;;` + "\n" + `-) cat > $tab; [ -e $tab.n ] || echo '` + theirs + `' >> $tab; touch $tab.n ;;`,
		"in place of ours":            `-l) cat $tab ;;` + "\n" + `-) cat > $tab; [ -e $tab.n ] || printf '# mine\n` + theirs + `\n' > $tab; touch $tab.n ;;`,
	} {
		c := newCronRig(t)
		if err := os.WriteFile(c.program, []byte("#!/bin/sh\ntab="+c.file+"\ncase $1 in\n"+at+"\nesac\nexit 0\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(c.file, []byte("# mine\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		c.run("holdfast", "schedule", "cron", "--install").has(t, exitOK, "installed: 0 4 * * *")
		line := "0 4 * * * '" + c.root + "/etc/init.d/alation' shell -c 'alation_action backup_all'"
		if got := c.tab(); got != "# mine\n"+theirs+"\n"+line+"\n" {
			t.Errorf("%s: crontab:\n%s", name, got)
		}
	}
	c := newCronRig(t)
	if err := os.WriteFile(c.program, []byte("#!/bin/sh\ncase $1 in\n-l) date +%N ;;\nesac\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.run("holdfast", "schedule", "cron", "--install").has(t, exitFailed, "edited by somebody else all the time")
}

// TestBehindCountsOn: how far a copy is behind that never was good counts from when it was switched on, whenever the daemon began.
func TestBehindCountsOn(t *testing.T) {
	r := newRig(t)
	r.run("alation_conf", "alation.backup.redundancy.enabled", "-s", "True", "snapshot.enabled", "-s", "False", "schedule.verify", "-s", "", "pgsql.clusters", "-s", "a:data=/nowhere,host=/nowhere", "eventbus.enabled", "-s", "False",
		"pgsql.pgbackrest.redundancy.type", "-s", "posix", "pgsql.pgbackrest.redundancy.posix.path", "-s", "/data2/far")
	f, err := newStateFile(r.in)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	since := now.Add(-30 * time.Hour)
	if err := f.Save(schedule.State{Jobs: map[string]schedule.JobState{jobCopy: {Spec: "every 5m0s", Since: since, Settled: now}}}); err != nil {
		t.Fatal(err)
	}
	d := r.daemon(t)
	d.hear(t, "READY=1")
	want := "the copy on external storage is behind since " + since.UTC().Format("2006-01-02 15:04 MST")
	for try := 0; !strings.Contains(d.errs.text(), want); try++ {
		if try == 100 {
			t.Fatalf("no %q in %s", want, d.errs.text())
		}
		d.look <- struct{}{}
		time.Sleep(10 * time.Millisecond)
	}
	d.end()
	<-d.said
}

// TestMetricsServerDies: an address that nobody answers on any more is said, and listened on again.
func TestMetricsServerDies(t *testing.T) {
	r := newRig(t)
	addr := freeAddr(t)
	r.run("alation_conf", "metrics.listen", "-s", addr).has(t, exitOK)
	env, _, errs := bareEnv(nil, "holdfast", "daemon")
	env.Now = time.Now
	d, err := newDaemon(env, r.in, newNotifier(env), nil)
	if err != nil {
		t.Fatal(err)
	}
	d.serve(addr)
	first := d.server
	if first == nil {
		t.Fatal(errs)
	}
	if err := first.Close(); err != nil { // as if it had died
		t.Fatal(err)
	}
	d.serve(addr)
	if d.server == nil || d.server == first || !strings.Contains(errs.String(), "nothing answers on "+addr+" any more") {
		t.Fatal(errs)
	}
	if code, _ := fetch(t, "http://"+addr+"/metrics"); code != 200 {
		t.Error(code)
	}
	if err := d.server.Close(); err != nil {
		t.Error(err)
	}
}
