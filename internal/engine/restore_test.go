package engine_test

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

func TestChooseBackup(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(3)
	lsn := func(i int, plus int64) string {
		l, err := pg.ParseLSN(made[i].Line.LSNStop)
		must(t, err)
		return pg.LSN(int64(l) + plus).String()
	}
	berlin := time.FixedZone("CET", 3600)
	for _, c := range []struct {
		typ    engine.TargetType
		target string
		set    repo.Label
		local  *time.Location
		want   int // index of the backup, -1: ErrNoBackup, -2: another error
	}{
		{typ: engine.TargetDefault, want: 2},
		{typ: engine.TargetImmediate, want: 2},
		{typ: engine.TargetStandby, want: 2},
		{typ: engine.TargetNone, want: 2},
		{typ: engine.TargetXID, target: "700", want: 2},
		{typ: engine.TargetName, target: "before migration", want: 2},
		{typ: engine.TargetDefault, set: made[0].Label, want: 0},
		{typ: engine.TargetTime, target: "2026-03-01 10:30:00", set: made[1].Label, want: -1}, // recovery cannot stop before the end of the backup
		{typ: engine.TargetTime, target: "2026-03-01 11:30:00", set: made[0].Label, want: 0},  // not the best, but what the operator wants
		{typ: engine.TargetDefault, set: "20200101-000000F", want: -1},
		// Backups end at 10:01, 11:01 and 12:01 UTC. One that ends in the target's second is too late.
		{typ: engine.TargetTime, target: "2026-03-01 11:01:00", want: 0},
		{typ: engine.TargetTime, target: "2026-03-01 11:01:01", want: 1},
		{typ: engine.TargetTime, target: "2026-03-01 13:01:01+02", want: 1},
		{typ: engine.TargetTime, target: "2026-03-01 16:31:01.25+05:30", want: 1},
		{typ: engine.TargetTime, target: "2026-03-01T11:01:01Z", want: 1},
		{typ: engine.TargetTime, target: "2026-03-01 12:01:01", local: berlin, want: 1},
		{typ: engine.TargetTime, target: "2026-03-01 11:01:01 UTC", local: berlin, want: 1},
		{typ: engine.TargetTime, target: "2026-03-01 11:01:01 GMT", local: berlin, want: 1},
		{typ: engine.TargetTime, target: "2026-03-01 11:01:01 IST", want: -2}, // PostgreSQL would not take it, and two zones have that name
		{typ: engine.TargetTime, target: "2026-03-01 12:01:01 CET", local: berlin, want: -2},
		{typ: engine.TargetTime, target: "2030-01-01 00:00:00", want: 2},
		{typ: engine.TargetTime, target: "2026-03-01 10:01:00", want: -1},
		{typ: engine.TargetTime, target: "yesterday", want: -2},
		{typ: engine.TargetTime, target: "2026-03-01", want: -2},
		{typ: engine.TargetLSN, target: lsn(1, 0), want: 1},
		{typ: engine.TargetLSN, target: lsn(1, -1), want: 0},
		{typ: engine.TargetLSN, target: lsn(2, 1<<30), want: 2},
		{typ: engine.TargetLSN, target: lsn(0, -1), want: -1},
		{typ: engine.TargetLSN, target: "12", want: -2},
	} {
		s, err := engine.New(engine.Options{Stanza: "demo", Storage: m, Pass: r.pass, Local: cmp.Or(c.local, time.UTC)})
		must(t, err)
		o := r.restoreOptions(filepath.Join(r.server.sockets, "nowhere"), c.set)
		o.Type, o.Target = c.typ, c.target
		plan, err := s.PlanRestore(t.Context(), o)
		switch {
		case c.want >= 0 && (err != nil || plan.Label != made[c.want].Label):
			t.Errorf("%s %q %s: %v, %v; want %s", c.typ, c.target, c.set, plan, err, made[c.want].Label)
		case c.want < 0 && (err == nil || errors.Is(err, engine.ErrNoBackup) != (c.want == -1)):
			t.Errorf("%s %q %s: %v", c.typ, c.target, c.set, err)
		case c.want == -1 && !strings.Contains(err.Error(), "pg info --stanza=demo"):
			t.Errorf("%s %q: the message names no next step: %v", c.typ, c.target, err)
		}
	}
	// After an upgrade only a backup that is named can be restored.
	next := newRig(t, 16)
	_, err := next.stanza(m).Upgrade(t.Context(), next.control)
	must(t, err)
	dir := filepath.Join(scratch(t), "data")
	if err := r.restore(t.Context(), m, dir, ""); !errors.Is(err, engine.ErrNoBackup) {
		t.Errorf("after the upgrade: %v", err)
	}
	must(t, r.restore(t.Context(), m, dir, made[2].Label))
}

func TestRestoreRefusesOptions(t *testing.T) {
	r := newRig(t, 15)
	m, _ := r.withBackups(1)
	good := r.restoreOptions(filepath.Join(r.server.sockets, "nowhere"), "")
	for _, c := range []struct {
		change func(o *engine.RestoreOptions)
		say    string
	}{
		{func(o *engine.RestoreOptions) { o.DataDir = "" }, "--pg1-path"},
		{func(o *engine.RestoreOptions) { o.DataDir = "relative/path" }, "absolute"},
		{func(o *engine.RestoreOptions) { o.Type = "soon" }, "allowed are default, immediate"},
		{func(o *engine.RestoreOptions) { o.Type = engine.TargetTime }, "needs a target"},
		{func(o *engine.RestoreOptions) { o.Target = "x" }, "takes no target"},
		{func(o *engine.RestoreOptions) { o.Type, o.Target = engine.TargetXID, "-7" }, "not a transaction number"},
		{func(o *engine.RestoreOptions) { o.Action = "stop" }, "pause, promote, shutdown"},
		{func(o *engine.RestoreOptions) { o.Timeline = "newest" }, "current or latest"},
		{func(o *engine.RestoreOptions) { o.RestoreCommand = "" }, "restore_command"},
		{func(o *engine.RestoreOptions) { o.TablespaceMap = map[string]string{"slow": "/x"} }, `no tablespace "slow"`},
		{func(o *engine.RestoreOptions) { o.LinkMap = map[string]string{"log": "/x"} }, `"log"`},
	} {
		o := good
		c.change(&o)
		if _, err := r.stanza(m).PlanRestore(t.Context(), o); err == nil || !strings.Contains(err.Error(), c.say) {
			t.Errorf("want %q: %v", c.say, err)
		}
	}
	if _, err := r.stanza(m).PlanRestore(t.Context(), good); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(good.DataDir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a plan made the directory: %v", err)
	}
}

// TestRecoverySettings holds what a restore writes for PostgreSQL, for every kind of target and version.
func TestRecoverySettings(t *testing.T) {
	const kept = "# made by a test\n# Removed by Holdfast restore on 2026-04-01 08:30:00 # recovery_target_name = 'old'\nwork_mem = '4MB'\n"
	const head = kept + "\n# Recovery settings generated by Holdfast restore on 2026-04-01 08:30:00\n"
	const command = "restore_command = 'holdfast archive-get %f \"%p\"'\n"
	for version := pg.Version(13); version <= 18; version++ {
		r := newRig(t, version)
		m, _ := r.withBackups(2)
		for _, c := range []struct {
			o      engine.RestoreOptions
			signal string
			want   string
		}{
			{engine.RestoreOptions{}, "recovery.signal", head + command},
			{engine.RestoreOptions{Type: engine.TargetStandby}, "standby.signal", head + command},
			{engine.RestoreOptions{Type: engine.TargetNone}, "", kept},
			{engine.RestoreOptions{Type: engine.TargetImmediate}, "recovery.signal", head + command + "recovery_target = 'immediate'\nrecovery_target_timeline = 'current'\n"},
			{engine.RestoreOptions{Type: engine.TargetImmediate, Timeline: "latest", Action: "promote"}, "recovery.signal",
				head + command + "recovery_target = 'immediate'\nrecovery_target_action = 'promote'\nrecovery_target_timeline = 'latest'\n"},
			{engine.RestoreOptions{Type: engine.TargetTime, Target: "2026-03-02 00:00:00+00"}, "recovery.signal", head + command + "recovery_target_time = '2026-03-02 00:00:00+00'\n"},
			{engine.RestoreOptions{Type: engine.TargetTime, Target: "2026-03-02 00:00:00+00", Exclusive: true, Action: "shutdown"}, "recovery.signal",
				head + command + "recovery_target_time = '2026-03-02 00:00:00+00'\nrecovery_target_inclusive = 'false'\nrecovery_target_action = 'shutdown'\n"},
			// The zone is ours, whatever the restored server's setting: the backup was chosen by it.
			{engine.RestoreOptions{Type: engine.TargetTime, Target: "2026-03-02 00:00:00.5"}, "recovery.signal", head + command + "recovery_target_time = '2026-03-02 00:00:00.5+00:00'\n"},
			{engine.RestoreOptions{Type: engine.TargetTime, Target: "2026-03-02 00:00:00 UTC"}, "recovery.signal", head + command + "recovery_target_time = '2026-03-02 00:00:00+00'\n"},
			{engine.RestoreOptions{Type: engine.TargetTime, Target: "2026-03-02T00:00:00Z"}, "recovery.signal", head + command + "recovery_target_time = '2026-03-02T00:00:00Z'\n"},
			{engine.RestoreOptions{Type: engine.TargetXID, Target: "4711", Timeline: "0x1"}, "recovery.signal", head + command + "recovery_target_xid = '4711'\nrecovery_target_timeline = '0x1'\n"},
			{engine.RestoreOptions{Type: engine.TargetLSN, Target: "7F/0", Action: "pause"}, "recovery.signal", head + command + "recovery_target_lsn = '7F/0'\n"},
			{engine.RestoreOptions{Type: engine.TargetName, Target: `O'Brien\s`}, "recovery.signal", head + command + "recovery_target_name = 'O''Brien\\\\s'\n"},
			{engine.RestoreOptions{ArchiveModeOff: true, RecoveryOptions: map[string]string{"restore-command": "cp /x/%f %p", "archive_cleanup_command": "true"}}, "recovery.signal",
				head + "archive_cleanup_command = 'true'\nrestore_command = 'cp /x/%f %p'\narchive_mode = 'off'\n"},
		} {
			name := fmt.Sprintf("PostgreSQL %s, %s %q", version, c.o.Type, c.o.Target)
			dir := filepath.Join(r.server.sockets, "restored")
			o := r.restoreOptions(dir, "")
			o.Type, o.Target, o.Exclusive, o.Action, o.Timeline = c.o.Type, c.o.Target, c.o.Exclusive, c.o.Action, c.o.Timeline
			o.RecoveryOptions, o.ArchiveModeOff = c.o.RecoveryOptions, c.o.ArchiveModeOff
			plan, err := r.stanzaAt(m, fixedClock).PlanRestore(t.Context(), o)
			must(t, err)
			_, err = plan.Run(t.Context())
			must(t, err)
			got := tree(t, dir)
			if got["postgresql.auto.conf"] != c.want {
				t.Errorf("%s:\n%s\nwant:\n%s", name, got["postgresql.auto.conf"], c.want)
			}
			for _, signal := range []string{"recovery.signal", "standby.signal"} {
				if content, there := got[signal]; there != (signal == c.signal) || content != "" {
					t.Errorf("%s: %s: %t, %q", name, signal, there, content)
				}
			}
			info, err := os.Stat(filepath.Join(dir, "postgresql.auto.conf"))
			must(t, err)
			if info.Mode() != 0o600 {
				t.Errorf("%s: mode %v", name, info.Mode())
			}
			control, _, err := pg.ReadControl(t.Context(), dir)
			if err != nil || !control.Invalidated() || control.SystemID != r.control.SystemID {
				t.Errorf("%s: pg_control %+v, %v", name, control, err)
			}
			must(t, os.RemoveAll(dir))
		}
	}
}

// TestRestorePreserve: the settings that stand in the directory stay; anything else there still refuses the restore.
func TestRestorePreserve(t *testing.T) {
	r := newRig(t, 15)
	m, _ := r.withBackups(1)
	dir := filepath.Join(scratch(t), "data")
	mine := map[string]string{"postgresql.auto.conf": "recovery_target = 'immediate'\n", "standby.signal": ""}
	for name, content := range mine {
		r.server.write(t, filepath.Join(dir, name), content)
	}
	o := r.restoreOptions(dir, "")
	for _, typ := range []engine.TargetType{engine.TargetDefault, engine.TargetNone, engine.TargetStandby} {
		o.Type = typ
		if _, err := r.stanza(m).PlanRestore(t.Context(), o); !errors.Is(err, engine.ErrTargetNotEmpty) {
			t.Errorf("%s over settings: %v", typ, err)
		}
	}
	o.Type = engine.TargetPreserve
	r.server.write(t, filepath.Join(dir, "other"), "")
	if _, err := r.stanza(m).PlanRestore(t.Context(), o); !errors.Is(err, engine.ErrTargetNotEmpty) {
		t.Errorf("over another file: %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, "other")))
	plan, err := r.stanza(m).PlanRestore(t.Context(), o)
	must(t, err)
	_, err = plan.Run(t.Context())
	must(t, err)
	got := tree(t, dir)
	for name, content := range mine {
		if was, there := got[name]; !there || was != content {
			t.Errorf("%s: %t, %q", name, there, was)
		}
	}
	if _, there := got["recovery.signal"]; there || got["base/16384/16385"] == "" {
		t.Errorf("restored: %v", slices.Sorted(maps.Keys(got)))
	}
}

func TestRestoreRefusesTarget(t *testing.T) {
	r := newRig(t, 15)
	space := filepath.Join(scratch(t), "fast")
	r.server.write(t, filepath.Join(space, "PG_15_202209061/16384/30000"), "in a tablespace")
	link(t, space, filepath.Join(r.server.dir, "pg_tblspc/24576"))
	r.server.spaces = []pg.Tablespace{{OID: 24576, Name: "fast", Path: space}}
	m, made := r.withBackups(1)
	dir := filepath.Join(scratch(t), "data")
	o := r.restoreOptions(dir, "")
	o.TablespaceMapAll = ""
	plan := func() (*engine.RestorePlan, error) { return r.stanza(m).PlanRestore(t.Context(), o) }

	// The tablespace's own place is in use by the cluster that was backed up.
	if _, err := plan(); !errors.Is(err, engine.ErrTargetNotEmpty) || !strings.Contains(err.Error(), filepath.Join(space, "PG_15_202209061")) {
		t.Errorf("tablespace in use: %v", err)
	}
	o.TablespaceMap = map[string]string{"24576": filepath.Join(dir, "inside")}
	if _, err := plan(); err == nil || !strings.Contains(err.Error(), "--tablespace-map") {
		t.Errorf("a tablespace inside the data directory: %v", err)
	}
	target := filepath.Join(scratch(t), "fast")
	o.TablespaceMap = map[string]string{"fast": target}
	r.server.write(t, filepath.Join(target, "PG_14_202107181/1/1"), "another version's files may stand beside")
	must(t, os.MkdirAll(filepath.Join(dir, "lost+found"), 0o700))
	foreign := r.server.write(t, filepath.Join(dir, "letter.txt"), "dear")
	blocking := r.server.write(t, filepath.Join(target, "PG_15_202209061/x"), "")
	_, err := plan()
	if !errors.Is(err, engine.ErrTargetNotEmpty) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), target) || strings.Contains(err.Error(), "PG_14") {
		t.Errorf("both in the way: %v", err)
	}
	must(t, os.Remove(foreign))
	must(t, os.RemoveAll(filepath.Dir(blocking)))
	p, err := plan()
	must(t, err)
	if got := p.TablespaceDirs(); !slices.Equal(got, []string{target + "/PG_15_202209061"}) || p.Tablespaces["fast"] != target {
		t.Errorf("tablespaces of the plan: %v, %v", got, p.Tablespaces)
	}
	// Something came between plan and run.
	r.server.write(t, foreign, "dear")
	if _, err := p.Run(t.Context()); !errors.Is(err, engine.ErrTargetNotEmpty) {
		t.Errorf("run over a file that came later: %v", err)
	}
	if got := tree(t, dir); len(got) != 3 || got["letter.txt"] != "dear" {
		t.Errorf("a refused run changed the directory: %v", got)
	}
	must(t, os.Remove(foreign))

	// A server that runs there: a living process of that number, at work in the directory.
	server := exec.CommandContext(t.Context(), "sleep", "600")
	server.Dir = dir
	must(t, server.Start())
	pid := r.server.write(t, filepath.Join(dir, "postmaster.pid"), fmt.Sprintf("%d\n%s\n", server.Process.Pid, dir))
	if _, err := plan(); !errors.Is(err, engine.ErrTargetRunning) || !strings.Contains(err.Error(), fmt.Sprint(server.Process.Pid)) || !strings.Contains(err.Error(), "pg_ctl stop -D "+dir) {
		t.Errorf("running server: %v", err)
	}
	o.SkipTargetCheck = true
	if p, err := plan(); err != nil || p.Label != made[0].Label {
		t.Errorf("only a look: %v", err)
	}
	must(t, server.Process.Kill())
	if err := server.Wait(); err == nil {
		t.Error("the process ended by itself")
	}
	if _, err := plan(); err != nil {
		t.Errorf("only a look: %v", err)
	}
	o.SkipTargetCheck = false
	if _, err := plan(); !errors.Is(err, engine.ErrTargetNotEmpty) {
		t.Errorf("what a server that crashed left: %v", err)
	}
	must(t, os.Remove(pid))
	p, err = plan()
	must(t, err)
	_, err = p.Run(t.Context())
	must(t, err)
	if got := tree(t, target); got["PG_15_202209061/16384/30000"] != "in a tablespace" || got["PG_14_202107181/1/1"] == "" {
		t.Errorf("the tablespace: %v", got)
	}
}

// TestRestoreFindsDamage changes one byte of every stored file in turn: the restore fails, naming the object, and leaves
// nothing that PostgreSQL could start on.
func TestRestoreFindsDamage(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(1)
	tried := 0
	for name, content := range contents(t, base) {
		if !strings.HasPrefix(name, "backup/demo/"+string(made[0].Label)+"/pg_data/") || strings.Contains(name, "16386") || content == "" {
			continue // 16386 is empty: a restore does not read it
		}
		for at := 0; at < len(content); at += max(1, len(content)/3) {
			m := base.CrashClone()
			b := bytes.Clone([]byte(content))
			b[at] ^= 0x01
			must(t, storage.WriteAll(t.Context(), m, name, b))
			dir := filepath.Join(r.server.sockets, "damaged")
			err := r.restore(t.Context(), m, dir, "")
			if err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s, byte %d: %v", name, at, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); err == nil {
				t.Errorf("%s, byte %d: PostgreSQL could start", name, at)
			}
			if err := r.verified(m); err == nil || !strings.Contains(err.Error(), name) {
				t.Errorf("%s, byte %d: verify finds %v", name, at, err)
			}
			must(t, os.RemoveAll(dir))
			tried++
		}
	}
	if tried < 20 {
		t.Errorf("only %d damages were tried", tried)
	}
}
