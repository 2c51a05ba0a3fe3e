package engine_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
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

// plan is PlanRestore alone, with what every test needs filled in.
func (s *shelf) plan(o engine.RestoreOptions) (*engine.RestorePlan, error) {
	o.DataDir = filepath.Join(scratch(s.t), "data")
	if o.RestoreCommand == "" {
		o.RestoreCommand = "get %f %p"
	}
	return s.open(s.st).PlanRestore(s.t.Context(), o)
}

// TestRestoreChooses: what TestChooseBackup leaves open: fractions of a second, a position and a named set, and backups of
// the cluster before a stanza-upgrade, which only a target or a name selects.
func TestRestoreChooses(t *testing.T) {
	type opts = engine.RestoreOptions
	s := newShelf(t, "")
	a := s.backup(repo.Full, day, s.cluster()) // stops at 10:00:02
	b := s.backup(repo.Diff, day.Add(time.Hour), s.cluster())
	s.newest.LSNStart, s.newest.LSNStop = "0/5000028", "0/5000100"
	s.publish(s.newest)
	check := func(o opts, want repo.Label) {
		t.Helper()
		p, err := s.plan(o)
		switch {
		case want == "" && !errors.Is(err, engine.ErrNoBackup):
			t.Errorf("%+v: %v, want ErrNoBackup", o, err)
		case want != "" && (err != nil || p.Label != want):
			t.Errorf("%+v: %v %v, want %s", o, p, err, want)
		}
	}
	check(opts{Type: engine.TargetTime, Target: "2026-03-01 10:00:02.999"}, "")
	check(opts{Type: engine.TargetTime, Target: "2026-03-01 10:00:03"}, a)
	check(opts{Type: engine.TargetTime, Target: "2026-03-01 10:00:02", Set: a}, a)
	check(opts{Type: engine.TargetTime, Target: "2026-03-01 10:00:01", Set: a}, "")
	check(opts{Type: engine.TargetLSN, Target: "0/50000FF", Set: b}, "")
	check(opts{Type: engine.TargetLSN, Target: "0/5000100", Set: b}, b)
	next := s.info.History[0]
	next.ID, next.SystemID = 2, next.SystemID+1
	s.info.History, s.info.Current = append(s.info.History, next), 2
	must(t, repo.SaveBackupInfo(t.Context(), s.st, "demo", &s.info, ""))
	check(opts{}, "")
	check(opts{Set: b}, b)
	check(opts{Type: engine.TargetTime, Target: "2026-03-01 12:00:00"}, b)
	check(opts{Type: engine.TargetLSN, Target: "0/2000100"}, "") // a position of which cluster?
	check(opts{Type: engine.TargetLSN, Target: "0/2000100", Set: a}, a)
}

// TestRestoreTimeline: a target timeline that the backup does not lead to is refused before anything is copied.
func TestRestoreTimeline(t *testing.T) {
	s := newShelf(t, "secret")
	s.backup(repo.Full, day, s.cluster()) // on timeline 1, from 0/2000028
	history := func(tli int, text string) {
		var b strings.Builder
		w, err := repo.NewStreamWriter(&b, repo.StreamSpec{Compress: repo.None, Pass: s.archive.CipherPass})
		must(t, err)
		_, err = w.Write([]byte(text))
		must(t, errors.Join(err, w.Close()))
		must(t, storage.WriteAll(t.Context(), s.st, fmt.Sprintf("archive/demo/15-1/%08X.history", tli), []byte(b.String())))
	}
	type opts = engine.RestoreOptions
	check := func(o opts, says string) {
		t.Helper()
		_, err := s.plan(o)
		if says == "" && err != nil || says != "" && (!errors.Is(err, engine.ErrTimeline) || !strings.Contains(err.Error(), says)) {
			t.Errorf("%+v: %v, want %q", o, err, says)
		}
	}
	check(opts{}, "") // nothing but the backup's own
	check(opts{Timeline: "1"}, "")
	check(opts{Timeline: "7"}, "no 00000007.history")
	check(opts{Timeline: "7", RecoveryOptions: map[string]string{"restore_command": "cp"}}, "")
	history(2, "1\t0/3000000\tpromoted\n")
	check(opts{}, "")
	check(opts{Timeline: "0x2"}, "")
	history(4, "1\t0/2800000\tpromoted\n")
	for _, o := range []opts{{}, {Timeline: "latest"}, {Timeline: "4"}} { // PostgreSQL looks for 3 and then no further
		p, err := s.plan(o)
		must(t, err)
		if got := strings.Join(p.Warnings, "\n"); strings.Contains(got, "00000003.history") != (o.Timeline != "4") {
			t.Errorf("timeline %q: warnings %q", o.Timeline, got)
		}
	}
	must(t, s.st.Remove(t.Context(), "archive/demo/15-1/00000004.history"))
	history(3, "1\t0/2000028\tpromoted\n")
	for _, o := range []opts{{}, {Timeline: "latest"}, {Timeline: "3"}, {Type: engine.TargetXID, Target: "9"}, {Type: engine.TargetStandby}} {
		check(o, "before the backup began")
	}
	for _, o := range []opts{{Timeline: "2"}, {Timeline: "current"}, {Type: engine.TargetImmediate}, {Type: engine.TargetNone}, {Type: engine.TargetPreserve}} {
		check(o, "")
	}
	history(16, "2\t0/3000000\tpromoted\n15\t0/4000000\tx\n")
	check(opts{}, "does not come from")
	history(16, "nonsense")
	if _, err := s.plan(opts{}); err == nil || !strings.Contains(err.Error(), "00000010.history") {
		t.Errorf("a damaged history: %v", err)
	}
}

// TestRestoreDatabases holds db-include and db-exclude to the format page, section 16.5.
func TestRestoreDatabases(t *testing.T) {
	for _, c := range []struct {
		include, exclude []string
		empty            []string
		is               error
	}{
		{[]string{"app"}, nil, []string{"other"}, nil},
		{[]string{"16385"}, nil, []string{"other"}, nil},
		{[]string{"app", "other"}, nil, nil, nil},
		{nil, []string{"other"}, []string{"other"}, nil},
		{nil, []string{"16390", "postgres"}, []string{"other", "postgres"}, nil},
		{[]string{"app"}, []string{"template1"}, []string{"other", "template1"}, nil},
		{[]string{"nosuch"}, nil, nil, engine.ErrDBMissing},
		{nil, []string{"4711"}, nil, engine.ErrDBMissing},
		{[]string{"postgres"}, nil, nil, engine.ErrDBInvalid},
		{[]string{"app"}, []string{"16385"}, nil, engine.ErrDBInvalid},
	} {
		for _, block := range []int64{0, 8192} {
			t.Run(fmt.Sprintf("include=%v/exclude=%v/block=%d", c.include, c.exclude, block), func(t *testing.T) {
				s := newShelf(t, "")
				s.bundle, s.block = true, block
				files := s.cluster()
				s.backup(repo.Full, day, files)
				dir := filepath.Join(scratch(t), "data")
				for _, delta := range []bool{false, true} { // the second over real files
					o := engine.RestoreOptions{DataDir: dir, DBInclude: c.include, DBExclude: c.exclude, Delta: delta}
					if delta {
						_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{DataDir: dir, Delta: true})
						must(t, err)
					}
					_, plan, err := s.restore(t.Context(), s.st, o)
					if !errors.Is(err, c.is) || c.is == nil && err != nil {
						t.Fatalf("error %v, want %v", err, c.is)
					}
					if err != nil {
						continue
					}
					if !slices.Equal(plan.Emptied, c.empty) || len(c.empty) > 0 != strings.Contains(strings.Join(plan.Warnings, ""), "drop them") {
						t.Errorf("emptied %v, warnings %q", plan.Emptied, plan.Warnings)
					}
					want := maps.Clone(files)
					for name, content := range files {
						for db, oid := range map[string]string{"other": "/16390/", "postgres": "/5/", "template1": "/1/"} {
							if strings.Contains(name, oid) && filepath.Base(name) != "PG_VERSION" && slices.Contains(c.empty, db) {
								want[name] = strings.Repeat("\x00", len(content))
							}
						}
					}
					if err := s.compare(dir, want); err != nil {
						t.Errorf("delta %v: %v", delta, err)
					}
				}
			})
		}
	}
}

// TestRestoreLinks: links of the data directory become what they were, something else, or plain files.
func TestRestoreLinks(t *testing.T) {
	s := newShelf(t, "")
	files := s.cluster()
	files["pg_data/pg_log/today"] = "log"
	files["pg_data/conf/extra.conf"] = "extra"
	top := scratch(t)
	s.targets = append(s.targets, repo.Target{Name: "pg_data/pg_log", Path: top + "/was/log", Link: true}, repo.Target{Name: "pg_data/pg_hba.conf", Path: "../etc", File: "hba", Link: true})
	s.links = append(s.links, repo.Link{Name: "pg_data/pg_log", Destination: top + "/was/log"}, repo.Link{Name: "pg_data/pg_hba.conf", Destination: "../etc/hba"})
	s.backup(repo.Full, day, files)
	type opts = engine.RestoreOptions
	for i, c := range []struct {
		o     opts
		links map[string]string // path below the data directory → what the link says; DIR is the test's
		at    map[string]string // file below DIR → content
		is    error
	}{
		{opts{}, nil, map[string]string{"data/pg_log/today": "log", "data/pg_hba.conf": files["pg_data/pg_hba.conf"]}, nil},
		{opts{LinkAll: true}, map[string]string{"pg_log": top + "/was/log", "pg_hba.conf": "../etc/hba"}, map[string]string{"etc/hba": files["pg_data/pg_hba.conf"]}, nil},
		{opts{LinkMap: map[string]string{"pg_log": "../logs"}}, map[string]string{"pg_log": "../logs"}, map[string]string{"logs/today": "log", "data/pg_hba.conf": files["pg_data/pg_hba.conf"]}, nil},
		{opts{LinkMap: map[string]string{"pg_wal": "DIR/wal", "conf/extra.conf": "DIR/x.conf"}}, map[string]string{"pg_wal": "DIR/wal", "conf/extra.conf": "DIR/x.conf"}, map[string]string{"x.conf": "extra"}, nil},
		{opts{LinkMap: map[string]string{"nosuch": "/x"}}, nil, nil, engine.ErrLinkMap},
		{opts{LinkMap: map[string]string{"": "/x"}}, nil, nil, engine.ErrLinkMap},
		{opts{LinkMap: map[string]string{"pg_log": "log2"}}, nil, nil, engine.ErrLinkInside},
		{opts{LinkMap: map[string]string{"pg_log": ".."}}, nil, nil, engine.ErrLinkInside},
		{opts{LinkMap: map[string]string{"pg_hba.conf": "base/hba"}}, nil, nil, engine.ErrLinkInside},
		{opts{LinkMap: map[string]string{"pg_hba.conf": "DIR/same", "conf/extra.conf": "DIR/same"}}, nil, nil, engine.ErrLinkInside},
		{opts{LinkMap: map[string]string{"pg_hba.conf": "DIR/logs/x", "pg_log": "DIR/logs"}}, nil, nil, engine.ErrLinkInside},
		{opts{TablespaceMap: map[string]string{"slow": "/x"}}, nil, nil, engine.ErrTablespaceMap},
		{opts{TablespaceMap: map[string]string{"fast": "DIR/a", "16384": "DIR/b"}}, nil, nil, engine.ErrTablespaceMap},
		{opts{TablespaceMap: map[string]string{"16384": "DIR/b"}}, map[string]string{"pg_tblspc/16384": "DIR/b"}, map[string]string{"b/" + spaceDir + "/16390/301": filler(7, 9000)}, nil},
	} {
		dir := filepath.Join(top, fmt.Sprint(i))
		fill := func(v string) string { return strings.Replace(v, "DIR", dir, 1) }
		for _, m := range []map[string]string{c.o.LinkMap, c.o.TablespaceMap} {
			for k, v := range m {
				m[k] = fill(v)
			}
		}
		c.o.DataDir = filepath.Join(dir, "data")
		for _, delta := range []bool{false, true} { // the second over what the first made
			c.o.Delta = delta
			_, _, err := s.restore(t.Context(), s.st, c.o)
			if !errors.Is(err, c.is) || c.is == nil && err != nil {
				t.Errorf("%d: %v, want %v", i, err, c.is)
			}
			if err != nil {
				break
			}
			for name, want := range c.links {
				if got, err := os.Readlink(filepath.Join(c.o.DataDir, name)); err != nil || got != fill(want) {
					t.Errorf("%d: %s says %q, %v", i, name, got, err)
				}
			}
			for name, want := range c.at {
				if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
					t.Errorf("%d: %s: %.40q %v", i, name, got, err)
				}
			}
		}
	}
	// What was a plain directory becomes a link when the operator says so later, and back (pgBackRest 2.37: not created).
	dir := filepath.Join(top, "later/data")
	for _, m := range []map[string]string{nil, {"pg_log": filepath.Join(top, "later/log")}, nil} {
		_, _, err := s.restore(t.Context(), s.st, opts{DataDir: dir, Delta: true, LinkMap: m})
		must(t, err)
		info, err := os.Lstat(filepath.Join(dir, "pg_log"))
		if err != nil || (info.Mode()&os.ModeSymlink != 0) != (m != nil) {
			t.Errorf("link map %v: %v %v", m, info.Mode(), err)
		}
	}
}

// TestRestoreHostile: manifests that pass every check of the format and would write where they must not.
func TestRestoreHostile(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(s *shelf, files map[string]string)
		o     engine.RestoreOptions
		says  string
	}{
		"beside PostgreSQL's directory": {func(_ *shelf, f map[string]string) { f["pg_tblspc/16384/cron.d/evil"] = "x" }, engine.RestoreOptions{}, "does not lie in"},
		"in another version's":          {func(_ *shelf, f map[string]string) { f["pg_tblspc/16384/PG_16_1/1/1"] = "x" }, engine.RestoreOptions{}, "does not lie in"},
		"a tablespace named ../../x":    {func(s *shelf, _ map[string]string) { s.targets[1].TablespaceName = "../../x" }, engine.RestoreOptions{}, "is no directory"},
		"a tablespace in the data directory": {func(s *shelf, _ map[string]string) {
			s.targets[1].Path = "base"
		}, engine.RestoreOptions{TablespaceMap: map[string]string{"fast": "../base"}}, "within each other"},
		"no pg_control":         {func(_ *shelf, f map[string]string) { delete(f, "pg_data/global/pg_control") }, engine.RestoreOptions{}, "nothing could start"},
		"our own temporary":     {func(_ *shelf, f map[string]string) { f["pg_data/global/pg_control.holdfast.tmp"] = "x" }, engine.RestoreOptions{}, "makes itself"},
		"pg_control of nothing": {func(_ *shelf, f map[string]string) { f["pg_data/global/pg_control"] = "x" }, engine.RestoreOptions{}, "pg_control"},
		"link to the host's files, without link-all": {func(s *shelf, _ map[string]string) {
			s.targets = append(s.targets, repo.Target{Name: "pg_data/pg_xact", Path: "/etc", Link: true})
			s.links = append(s.links, repo.Link{Name: "pg_data/pg_xact", Destination: "/etc"})
		}, engine.RestoreOptions{}, ""},
		"link to the host's files": {func(s *shelf, _ map[string]string) {
			s.targets = append(s.targets, repo.Target{Name: "pg_data/pg_xact", Path: "/etc", Link: true})
			s.links = append(s.links, repo.Link{Name: "pg_data/pg_xact", Destination: "/etc"})
		}, engine.RestoreOptions{LinkAll: true}, "/etc"},
		"link to a file of the host": {func(s *shelf, _ map[string]string) {
			s.targets = append(s.targets, repo.Target{Name: "pg_data/pg_hba.conf", Path: "/etc", File: "hostname", Link: true})
		}, engine.RestoreOptions{LinkAll: true}, "/etc/hostname"},
		"a left-over manifest among the files": {func(_ *shelf, f map[string]string) { f["pg_data/backup.manifest"] = "x" }, engine.RestoreOptions{}, ""},
	} {
		t.Run(what, func(t *testing.T) {
			s := newShelf(t, "")
			files := s.cluster()
			c.spoil(s, files)
			s.backup(repo.Full, day, files)
			c.o.DataDir = filepath.Join(scratch(t), "data")
			_, _, err := s.restore(t.Context(), s.st, c.o)
			if c.says == "" {
				must(t, err)
				delete(files, "pg_data/backup.manifest")
				must(t, s.compare(c.o.DataDir, files))
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %q", err, c.says)
			}
			if _, err := os.Stat(filepath.Join(c.o.DataDir, "global/pg_control")); err == nil {
				t.Error("PostgreSQL could start on what is left")
			}
		})
	}
}

// TestRestoreSettings: a second restore into the same directory, of another type, leaves nothing of the first's settings;
// with type preserve all of them.
func TestRestoreSettings(t *testing.T) {
	const stamp = " on 2026-04-01 08:30:00"
	s := newShelf(t, "")
	files := s.cluster()
	files["pg_data/postgresql.auto.conf"] = "# by hand\n recovery_target_time = 'old'\n"
	s.backup(repo.Full, day, files)
	const cleaned = "# by hand\n# Removed by Holdfast restore" + stamp + " #  recovery_target_time = 'old'\n"
	const begin = cleaned + "\n# Recovery settings generated by Holdfast restore" + stamp + "\n"
	const xid = begin + "restore_command = 'get %f %p'\nrecovery_target_xid = '7'\n"
	o := engine.RestoreOptions{DataDir: filepath.Join(scratch(t), "data"), Delta: true}
	for _, c := range []struct {
		typ    engine.TargetType
		target string
		want   string
		signal string
	}{
		{engine.TargetPreserve, "", files["pg_data/postgresql.auto.conf"], ""}, // none is there: the backup's
		{engine.TargetXID, "7", xid, "recovery.signal"},
		{engine.TargetPreserve, "", xid, "recovery.signal"},
		{engine.TargetStandby, "", begin + "restore_command = 'get %f %p'\n", "standby.signal"},
		{engine.TargetNone, "", cleaned, ""},
	} {
		o.Type, o.Target = c.typ, c.target
		_, _, err := s.restore(t.Context(), s.st, o)
		must(t, err)
		got, err := os.ReadFile(filepath.Join(o.DataDir, "postgresql.auto.conf"))
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %v\n%s\nwant\n%s", c.typ, err, got, c.want)
		}
		for _, name := range []string{"recovery.signal", "standby.signal"} {
			if _, err := os.Stat(filepath.Join(o.DataDir, name)); (err == nil) != (name == c.signal) {
				t.Errorf("%s: %s: %v", c.typ, name, err)
			}
		}
	}
}

// TestRestoreNone: without recovery there is no recovery.signal, but for who asks for what pgbackrest before 2.47 did; a backup
// that a later one made is restored as that does it.
func TestRestoreNone(t *testing.T) {
	for version, want := range map[string]bool{"2.45": true, "2.46": true, "2.46.1": true, "2.47": false, "2.59.1": false, "2.60.0dev": false, "3.0": false, "Holdfast 0.1.0": true} {
		for _, recovers := range []bool{true, false} {
			s := newShelf(t, "")
			s.version = version
			s.backup(repo.Full, day, s.cluster())
			o := engine.RestoreOptions{DataDir: filepath.Join(scratch(t), "data"), Type: engine.TargetNone, NoneRecovers: recovers}
			_, _, err := s.restore(t.Context(), s.st, o)
			must(t, err)
			if _, err := os.Stat(filepath.Join(o.DataDir, "recovery.signal")); (err == nil) != (want && recovers) {
				t.Errorf("backup by %s, asked for %t: %v", version, recovers, err)
			}
		}
	}
}

// TestRestoreContradictions: options that contradict each other or PostgreSQL are refused by name.
func TestRestoreContradictions(t *testing.T) {
	s := newShelf(t, "")
	s.backup(repo.Full, day, s.cluster())
	type opts = engine.RestoreOptions
	for says, o := range map[string]opts{
		"standby_mode":     {RecoveryOptions: map[string]string{"standby-mode": "on"}},
		"not the name":     {RecoveryOptions: map[string]string{"a = 'b'\nc": "d"}},
		"archive mode off": {ArchiveModeOff: true, Type: engine.TargetNone},
		"target timeline":  {Timeline: "0b11"},
		`timeline "0"`:     {Timeline: "0"},
	} {
		if _, err := s.plan(o); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%+v: %v, want %q", o, err, says)
		}
	}
}

// TestRestoreSpool: what asynchronous archiving kept belongs to the time before the restore.
func TestRestoreSpool(t *testing.T) {
	s := newShelf(t, "")
	s.backup(repo.Full, day, s.cluster())
	top := scratch(t)
	write(t, filepath.Join(top, "spool/archive/demo/out/x.ok"), "")
	write(t, filepath.Join(top, "spool/archive/other/out/x.ok"), "")
	_, _, err := s.restore(context.Background(), s.st, engine.RestoreOptions{DataDir: filepath.Join(top, "data"), SpoolDir: filepath.Join(top, "spool")})
	must(t, err)
	left := tree(t, filepath.Join(top, "spool"))
	if _, ok := left["archive/demo"]; ok || left["archive/other/out/x.ok"] != "" || len(left) != 5 {
		t.Errorf("the spool holds %v", left)
	}
	c, _, err := pg.ReadControl(t.Context(), filepath.Join(top, "data"))
	if err != nil || !c.Invalidated() {
		t.Errorf("pg_control could start without backup_label: %v", err)
	}
}

// TestRestoreOffline: a backup of a stopped cluster is restored as it was, with no recovery unless it is asked for.
func TestRestoreOffline(t *testing.T) {
	s := newShelf(t, "")
	s.offline = true
	files := s.cluster()
	delete(files, "pg_data/backup_label")
	s.backup(repo.Full, day, files)
	dir := filepath.Join(scratch(t), "data")
	_, plan, err := s.restore(t.Context(), s.st, engine.RestoreOptions{DataDir: dir, Type: engine.TargetDefault, ArchiveModeOff: true})
	must(t, err)
	if plan.Type != engine.TargetNone || !strings.Contains(strings.Join(plan.Warnings, ""), "archive mode") {
		t.Errorf("type %s, warnings %q", plan.Type, plan.Warnings)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "global/pg_control")); err != nil || string(b) != s.control {
		t.Errorf("pg_control was changed: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf")); err != nil || string(b) != files["pg_data/postgresql.auto.conf"] {
		t.Errorf("%s %v", b, err)
	}
	_, _, err = s.restore(t.Context(), s.st, engine.RestoreOptions{DataDir: dir, Type: engine.TargetImmediate, Delta: true})
	must(t, err)
	if _, err := os.Stat(filepath.Join(dir, "recovery.signal")); err != nil {
		t.Error(err)
	}
}

// TestRestoreMismatch: stored bytes that decode well and are not the file that the manifest describes.
func TestRestoreMismatch(t *testing.T) {
	const name = "pg_data/base/16385/101"
	for what, change := range map[string]func(f *repo.File){
		"another SHA-1": func(f *repo.File) { f.SHA1 = strings.Repeat("0", 40) },
		"too long":      func(f *repo.File) { f.Size-- },
		"too short":     func(f *repo.File) { f.Size++ },
	} {
		for _, compress := range []repo.CompressType{repo.None, repo.ZST} {
			s := newShelf(t, "")
			s.compress = compress
			s.backup(repo.Full, day, s.cluster())
			change(s.newest.File(name))
			s.publish(s.newest)
			_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{DataDir: filepath.Join(scratch(t), "data")})
			if !errors.Is(err, engine.ErrCorrupt) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "pg verify") {
				t.Errorf("%s, %s: %v", what, compress, err)
			}
		}
	}
}
