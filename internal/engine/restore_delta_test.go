package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// write replaces a file, whatever it is.
func write(t testing.TB, file, content string) {
	t.Helper()
	must(t, os.RemoveAll(file))
	mkdir(t, filepath.Dir(file))
	must(t, os.WriteFile(file, []byte(content), 0o600))
}

// TestRestoreDelta: whatever happened to a restored directory, a restore with --delta or --force makes it the backup again,
// and nothing outside of it changes.
func TestRestoreDelta(t *testing.T) {
	big := "base/16385/100"
	for _, c := range []struct {
		what string
		do   func(t *testing.T, dir, outside string)
	}{
		{"nothing", func(*testing.T, string, string) {}},
		{"same size, other content, same time", func(t *testing.T, dir, _ string) {
			write(t, filepath.Join(dir, "pg_hba.conf"), strings.Repeat("y", len("local all all trust\n")))
			must(t, os.Chtimes(filepath.Join(dir, "pg_hba.conf"), fileTime, fileTime))
		}},
		{"longer", func(t *testing.T, dir, _ string) {
			f, err := os.OpenFile(filepath.Join(dir, big), os.O_APPEND|os.O_WRONLY, 0)
			must(t, err)
			_, err = f.WriteString("more")
			must(t, errors.Join(err, f.Close()))
		}},
		{"shorter", func(t *testing.T, dir, _ string) { must(t, os.Truncate(filepath.Join(dir, big), 1000)) }},
		{"not empty", func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, "base/16385/102"), "x") }},
		{"missing files", func(t *testing.T, dir, _ string) { must(t, os.RemoveAll(filepath.Join(dir, "base"))) }},
		{"file became directory", func(t *testing.T, dir, _ string) {
			must(t, os.Remove(filepath.Join(dir, big)))
			write(t, filepath.Join(dir, big, "x"), "x")
		}},
		{"directory became file", func(t *testing.T, dir, _ string) { write(t, filepath.Join(dir, "pg_wal"), "x") }},
		{"file became link", func(t *testing.T, dir, outside string) {
			must(t, os.Remove(filepath.Join(dir, big)))
			must(t, os.Symlink(filepath.Join(outside, "keep"), filepath.Join(dir, big)))
		}},
		{"directory became link", func(t *testing.T, dir, outside string) {
			must(t, os.RemoveAll(filepath.Join(dir, "base/16385")))
			must(t, os.Symlink(outside, filepath.Join(dir, "base/16385")))
		}},
		{"pg_control is behind a link to another copy of the cluster", func(t *testing.T, dir, outside string) {
			must(t, os.RemoveAll(filepath.Join(dir, "global")))
			must(t, os.Symlink(outside, filepath.Join(dir, "global")))
		}},
		{"hard link to a file elsewhere", func(t *testing.T, dir, outside string) {
			must(t, os.Remove(filepath.Join(dir, big)))
			must(t, os.Link(filepath.Join(outside, "keep"), filepath.Join(dir, big)))
		}},
		{"right, and a second name of a file elsewhere", func(t *testing.T, dir, outside string) {
			other := outside + "-other"
			must(t, os.Link(filepath.Join(dir, big), other))
			must(t, os.Chmod(other, 0o644))
			t.Cleanup(func() {
				if info, err := os.Stat(other); err != nil || info.Mode() != 0o644 {
					t.Errorf("the other name's file: %v %v", info.Mode(), err)
				}
			})
		}},
		{"what is not in the backup", func(t *testing.T, dir, outside string) {
			for _, n := range []string{"recovery.signal", "postmaster.opts", "base/777/1", "pg_wal/000000020000000000000009", "tablespace_map"} {
				write(t, filepath.Join(dir, n), "x")
			}
			write(t, filepath.Join(dir+"-spaces/fast", spaceDir, "16385/999"), "x")
			must(t, os.Symlink(outside, filepath.Join(dir, "pg_log")))
			must(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o600))
		}},
		{"modes and times", func(t *testing.T, dir, _ string) {
			must(t, os.Chmod(filepath.Join(dir, "base"), 0o755))
			must(t, os.Chmod(filepath.Join(dir, big), 0o644))
			must(t, os.Chtimes(filepath.Join(dir, big), time.Now(), time.Now()))
		}},
		{"an older restore was interrupted", func(t *testing.T, dir, _ string) {
			must(t, os.Remove(filepath.Join(dir, "global/pg_control")))
			write(t, filepath.Join(dir, "global/pg_control.holdfast.tmp"), "half")
			must(t, os.Remove(filepath.Join(dir, "PG_VERSION")))
			write(t, filepath.Join(dir, "backup.manifest"), "[half")
		}},
		{"the tablespace's link is gone", func(t *testing.T, dir, _ string) {
			must(t, os.Remove(filepath.Join(dir, "pg_tblspc/16384")))
			must(t, os.RemoveAll(dir+"-spaces"))
		}},
		{"the tablespace's link says something else", func(t *testing.T, dir, outside string) {
			must(t, os.Remove(filepath.Join(dir, "pg_tblspc/16384")))
			must(t, os.Symlink(outside, filepath.Join(dir, "pg_tblspc/16384")))
			must(t, os.RemoveAll(dir+"-spaces"))
		}},
	} {
		for _, o := range []engine.RestoreOptions{{Delta: true}, {Force: true}} {
			for _, block := range []int64{0, 8192} {
				t.Run(fmt.Sprintf("%s/delta=%v/block=%d", c.what, o.Delta, block), func(t *testing.T) {
					s := newShelf(t, "")
					s.bundle, s.block = true, block
					files := s.cluster()
					s.backup(repo.Full, day, files)
					top := scratch(t)
					o.DataDir = filepath.Join(top, "data")
					_, _, err := s.restore(t.Context(), s.st, o)
					must(t, err)
					outside := filepath.Join(top, "outside")
					write(t, filepath.Join(outside, "keep"), filler(2, 300_000)[1:]+"!")
					write(t, filepath.Join(outside, "pg_control"), s.control)
					before := tree(t, outside)
					c.do(t, o.DataDir, outside)
					_, plan, err := s.restore(t.Context(), s.st, o)
					must(t, err)
					must(t, s.compare(o.DataDir, files))
					if !maps.Equal(before, tree(t, outside)) {
						t.Error("what lies outside was changed")
					}
					if !plan.Overwrites || plan.Delta != o.Delta {
						t.Errorf("overwrites %v, delta %v", plan.Overwrites, plan.Delta)
					}
				})
			}
		}
	}
}

// TestRestoreRefuses: what a restore must not be pointed at, and what makes it go on all the same.
func TestRestoreRefuses(t *testing.T) {
	type opts = engine.RestoreOptions
	for _, c := range []struct {
		what  string
		setup func(t *testing.T, s *shelf, dir string) // dir holds a restored backup
		o     opts
		is    error  // nil: it succeeds
		says  string // in the error, or in a warning
	}{
		{"not empty", nil, opts{}, engine.ErrTargetNotEmpty, "--delta"},
		{"an interrupted restore", func(t *testing.T, _ *shelf, dir string) { write(t, filepath.Join(dir, "backup.manifest"), "x") }, opts{}, engine.ErrTargetNotEmpty, "interrupted"},
		{"no data directory, delta", func(t *testing.T, _ *shelf, dir string) {
			must(t, os.Remove(filepath.Join(dir, "PG_VERSION")))
		}, opts{Delta: true}, engine.ErrTargetNotEmpty, "move it away"},
		{"no data directory, force", func(t *testing.T, _ *shelf, dir string) {
			must(t, os.Remove(filepath.Join(dir, "PG_VERSION")))
		}, opts{Force: true}, engine.ErrTargetNotEmpty, "move it away"},
		{"empty, delta", func(t *testing.T, _ *shelf, dir string) {
			must(t, errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+"-spaces")))
		}, opts{Delta: true}, nil, "no effect"},
		{"lost+found and a left-over manifest alone", func(t *testing.T, _ *shelf, dir string) {
			must(t, errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+"-spaces")))
			mkdir(t, filepath.Join(dir, "lost+found"))
			write(t, filepath.Join(dir, "backup.manifest"), "x")
		}, opts{}, nil, ""},
		{"running server", func(t *testing.T, _ *shelf, dir string) {
			write(t, filepath.Join(dir, "postmaster.pid"), fmt.Sprintf("%d\n%s\n", runIn(t, dir), dir))
		}, opts{Delta: true, Force: true}, engine.ErrTargetRunning, "stop it first"},
		{"a server that ran elsewhere", func(t *testing.T, _ *shelf, dir string) {
			write(t, filepath.Join(dir, "postmaster.pid"), "999999999\n")
		}, opts{Delta: true, Force: true}, engine.ErrTargetRunning, "remove the file"},
		{"another cluster", func(t *testing.T, s *shelf, dir string) { s.foreign(t, dir) }, opts{Delta: true}, engine.ErrTargetNotEmpty, "system identifier 7"},
		{"another cluster, forced", func(t *testing.T, s *shelf, dir string) { s.foreign(t, dir) }, opts{Force: true}, nil, "because of --force"},
		{"another cluster's interrupted restore", func(t *testing.T, _ *shelf, dir string) {
			must(t, os.Remove(filepath.Join(dir, "global/pg_control")))
			write(t, filepath.Join(dir, "backup.manifest"), "[backrest]\nx=1\n\n[backup:db]\ndb-system-id=77\n\n[backup:target]\n")
		}, opts{Delta: true}, engine.ErrTargetNotEmpty, "system identifier 77"},
		{"another version, no pg_control", func(t *testing.T, _ *shelf, dir string) {
			must(t, os.Remove(filepath.Join(dir, "global/pg_control")))
			write(t, filepath.Join(dir, "PG_VERSION"), "16\n")
		}, opts{Delta: true}, engine.ErrTargetNotEmpty, "PostgreSQL 16"},
		{"a tablespace that another cluster uses", func(t *testing.T, _ *shelf, dir string) {
			must(t, os.Remove(filepath.Join(dir, "pg_tblspc/16384")))
		}, opts{Delta: true}, engine.ErrTargetNotEmpty, "not linked"},
		{"preserved settings alone", func(t *testing.T, _ *shelf, dir string) {
			must(t, errors.Join(os.RemoveAll(dir), os.RemoveAll(dir+"-spaces")))
			write(t, filepath.Join(dir, "standby.signal"), "")
		}, opts{Type: engine.TargetPreserve}, nil, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newShelf(t, "")
			s.backup(repo.Full, day, s.cluster())
			c.o.DataDir = filepath.Join(scratch(t), "data")
			_, _, err := s.restore(t.Context(), s.st, opts{DataDir: c.o.DataDir})
			must(t, err)
			if c.setup != nil {
				c.setup(t, s, c.o.DataDir)
			}
			var before map[string]string
			if c.is != nil {
				before = tree(t, filepath.Dir(c.o.DataDir))
			}
			_, plan, err := s.restore(t.Context(), s.st, c.o)
			if !errors.Is(err, c.is) || c.is == nil && err != nil {
				t.Fatalf("error %v, want %v", err, c.is)
			}
			text := fmt.Sprint(err)
			if err == nil {
				text = strings.Join(plan.Warnings, "\n")
			} else if !maps.Equal(before, tree(t, filepath.Dir(c.o.DataDir))) {
				t.Error("it refused and changed something")
			}
			if !strings.Contains(text, c.says) {
				t.Errorf("%q does not say %q", text, c.says)
			}
		})
	}
}

// foreign makes dir the data directory of another cluster.
func (s *shelf) foreign(t *testing.T, dir string) {
	b, err := os.ReadFile("../pg/testdata/control-16")
	must(t, err)
	write(t, filepath.Join(dir, "global/pg_control"), string(b)+strings.Repeat("\x00", 8192-len(b)))
}

// TestRestoreTrust: with --delta --force, size and time stamp decide, except for what an interrupted restore left and for
// another cluster's files.
func TestRestoreTrust(t *testing.T) {
	for _, c := range []struct {
		what  string
		setup func(s *shelf, dir string)
		kept  bool
	}{
		{"a finished restore", func(*shelf, string) {}, true},
		{"an interrupted restore", func(_ *shelf, dir string) { write(t, filepath.Join(dir, "backup.manifest"), "x") }, false},
		{"a restore interrupted at its very end", func(_ *shelf, dir string) { must(t, os.Remove(filepath.Join(dir, "global/pg_control"))) }, false},
		{"files that changed while the backup ran", func(s *shelf, _ string) {
			s.newest.TimeCopyStart = fileTime.Unix()
			s.publish(s.newest)
		}, false},
		{"another cluster", func(s *shelf, dir string) { s.foreign(t, dir) }, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			s := newShelf(t, "")
			s.block = 8192
			files := s.cluster()
			s.backup(repo.Full, day, files)
			dir := filepath.Join(scratch(t), "data")
			o := engine.RestoreOptions{DataDir: dir, Delta: true, Force: true}
			_, _, err := s.restore(t.Context(), s.st, o)
			must(t, err)
			for _, name := range []string{"base/16385/101", "base/16385/100"} { // changed behind the time stamp's back
				b := []byte(files["pg_data/"+name])
				b[1]++
				write(t, filepath.Join(dir, name), string(b))
				must(t, os.Chtimes(filepath.Join(dir, name), fileTime, fileTime))
			}
			write(t, filepath.Join(dir, "pg_hba.conf"), files["pg_data/pg_hba.conf"]) // another time, right content
			c.setup(s, dir)
			res, _, err := s.restore(t.Context(), s.st, o)
			must(t, err)
			if same := s.compare(dir, files) == nil; same == c.kept {
				t.Errorf("restored to what the backup holds: %v", same)
			}
			if want := len(files) - 3; c.kept && res.Kept != want || !c.kept && res.Kept >= want {
				t.Errorf("kept %d of %d files", res.Kept, res.Files)
			}
		})
	}
}

// TestRestoreResumes: a restore that fails at any call to storage, or is cancelled there, leaves nothing that could start;
// a second one with --delta makes it right, from an empty directory and over an older state.
func TestRestoreResumes(t *testing.T) {
	s := newShelf(t, "secret")
	s.bundle, s.block = true, 8192
	states := s.states()
	labels := s.chain(states)
	tested := 0
	for _, over := range []bool{false, true} {
		for _, kind := range []storage.FaultKind{storage.FailBefore, storage.ShortRead, storage.Cancel, storage.Die} {
			for n := 1; ; n++ {
				dir := filepath.Join(scratch(t), "data")
				o := engine.RestoreOptions{Set: labels[2], DataDir: dir, Delta: over}
				if over {
					_, _, err := s.restore(t.Context(), s.st, engine.RestoreOptions{Set: labels[0], DataDir: dir})
					must(t, err)
				}
				ctx, cancel := context.WithCancel(t.Context())
				fault := storage.Fault{Nth: n, Kind: kind, Cancel: cancel}
				if kind == storage.ShortRead {
					fault.Op = storage.OpRead
				}
				faulty, err := storage.NewFaulty(s.st, fault)
				must(t, err)
				_, plan, err := s.restore(ctx, faulty, o)
				cancel()
				if !faulty.Fired() {
					must(t, err)
					break
				}
				tested++
				at := fmt.Sprintf("over=%v: %v at call %d", over, kind, n)
				started := plan != nil
				if _, serr := os.Stat(filepath.Join(dir, "global/pg_control")); started && err != nil && !errors.Is(serr, fs.ErrNotExist) {
					t.Errorf("%s: PostgreSQL could start on what is left: %v", at, serr)
				}
				if _, serr := os.Stat(filepath.Join(dir, "backup.manifest")); started && err != nil && serr != nil {
					t.Errorf("%s: the manifest is not there to go on from: %v", at, serr)
				}
				if b, rerr := os.ReadFile(filepath.Join(dir, "backup.manifest")); rerr == nil && strings.Contains(string(b), "set-pass") {
					t.Errorf("%s: the left-over manifest holds the passphrase", at)
				}
				if err != nil {
					o.Delta = true
					if _, _, err := s.restore(t.Context(), s.st, o); err != nil {
						t.Fatalf("%s: second run: %v", at, err)
					}
				}
				if err := s.compare(dir, states[2]); err != nil {
					t.Fatalf("%s: %v", at, err)
				}
			}
		}
	}
	if tested < 60 {
		t.Errorf("only %d positions", tested)
	}
	t.Logf("%d positions of faults", tested)
}

// TestRestoreCancelled: a restore stopped after any event goes on with --delta.
func TestRestoreCancelled(t *testing.T) {
	s := newShelf(t, "")
	s.bundle, s.block = true, 8192
	files := s.cluster()
	label := s.backup(repo.Full, day, files)
	stopped := 0
	for n := 1; ; n++ {
		dir := filepath.Join(scratch(t), "data")
		ctx, cancel := context.WithCancel(t.Context())
		seen := 0
		e, err := engine.New(engine.Options{Stanza: "demo", Storage: s.st, Local: time.UTC, Now: fixedClock, Events: func(engine.Event) {
			if seen++; seen == n {
				cancel()
			}
		}})
		must(t, err)
		o := engine.RestoreOptions{Set: label, DataDir: dir, Type: engine.TargetNone, TablespaceMapAll: dir + "-spaces", ProcessMax: 1}
		plan, err := e.PlanRestore(ctx, o)
		must(t, err)
		_, err = plan.Run(ctx)
		cancel()
		if err == nil {
			must(t, s.compare(dir, files))
			if seen < n {
				break
			}
			continue // too late to stop
		}
		stopped++
		if !errors.Is(err, context.Canceled) {
			t.Errorf("event %d: %v", n, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("event %d: PostgreSQL could start on what is left: %v", n, err)
		}
		_, _, err = s.restore(t.Context(), s.st, engine.RestoreOptions{Set: label, DataDir: dir, Delta: true})
		must(t, err)
		must(t, s.compare(dir, files))
	}
	if stopped < 15 {
		t.Errorf("stopped only %d times", stopped)
	}
}

// runIn starts a process that works in dir, as a server does, and returns its number; it ends with the test.
func runIn(t *testing.T, dir string) int {
	t.Helper()
	p := exec.Command("cat")
	p.Dir = dir
	in, err := p.StdinPipe()
	must(t, errors.Join(err, p.Start()))
	t.Cleanup(func() { must(t, errors.Join(in.Close(), p.Wait())) }) // the end of its input ends it
	return p.Process.Pid
}

// TestRestoreOwners: as root, everything belongs to the manifest's owners, and to the given default where this host does not
// know them: pg_control, directories made on the way, links and settings included (pgBackRest 2.53.1: pg_control was root's).
func TestRestoreOwners(t *testing.T) {
	s := newShelf(t, "")
	s.owner = "no-such-user"
	s.backup(repo.Full, day, s.cluster())
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 65534, 65534
	}
	top := filepath.Join(scratch(t), "made")
	for _, delta := range []bool{false, true} {
		o := engine.RestoreOptions{DataDir: filepath.Join(top, "data"), Type: engine.TargetStandby, Owners: true, DefaultUID: uid, DefaultGID: gid, Delta: delta}
		_, _, err := s.restore(t.Context(), s.st, o)
		must(t, err)
		must(t, filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := os.Lstat(file)
			if st, ok := info.Sys().(*syscall.Stat_t); err == nil && (!ok || int(st.Uid) != uid || int(st.Gid) != gid) {
				t.Errorf("delta %v: %s belongs to %d:%d", delta, file, st.Uid, st.Gid)
			}
			return err
		}))
		if os.Getuid() == 0 { // as after a copy by hand
			must(t, os.Chown(filepath.Join(o.DataDir, "base/16385/100"), 0, 0))
			must(t, os.Chown(filepath.Join(o.DataDir, "base"), 0, 0))
		}
	}
	_, plan, err := s.restore(t.Context(), s.st, engine.RestoreOptions{DataDir: filepath.Join(scratch(t), "data")})
	must(t, err)
	if n := strings.Count(strings.Join(plan.Warnings, ""), "only root"); n != 2 {
		t.Errorf("one warning for the user and one for the group: %q", plan.Warnings)
	}
}

// TestRestoreSyncsMounts: of a data directory parts may be mounted from elsewhere, pg_wal for instance. What a restore wrote
// there is made durable too.
func TestRestoreSyncsMounts(t *testing.T) {
	r, m := newStore(t)
	full, _ := r.mustBackup(m, engine.BackupOptions{})
	dir := filepath.Join(scratch(t), "data")
	must(t, r.restore(t.Context(), m, dir, full.Label))
	mounted := filepath.Join(dir, "base/16384")
	must(t, os.RemoveAll(mounted))
	mkdir(t, mounted)
	if err := unix.Mount("tmpfs", mounted, "tmpfs", 0, "size=8m,mode=0700"); err != nil {
		if os.Geteuid() == 0 {
			t.Fatal(err)
		}
		t.Logf("only root may mount a file system: %v", err)
		return
	}
	t.Cleanup(func() { must(t, unix.Unmount(mounted, unix.MNT_DETACH)) })
	var synced []string
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: m, Pass: r.pass, Local: time.UTC, Now: fixedClock, Events: func(e engine.Event) {
		if step, ok := e.(engine.Step); ok && step.Name == "sync" {
			synced = append(synced, step.Detail)
		}
	}})
	must(t, err)
	o := r.restoreOptions(dir, full.Label)
	o.Delta = true
	plan, err := s.PlanRestore(t.Context(), o)
	must(t, err)
	_, err = plan.Run(t.Context())
	must(t, err)
	if !slices.Equal(synced, []string{dir, mounted}) {
		t.Errorf("synced %v, want %s and what is mounted in it", synced, dir)
	}
	if diff := differ(tree(t, filepath.Join(r.server.dir, "base")), tree(t, filepath.Join(dir, "base"))); diff != "" {
		t.Errorf("base/%s is not as it was", diff)
	}
}

// TestRestoreFullDisk: the disk is too small. Nothing can start on what is there, a segment is not delivered in part, and with
// more room --delta completes it.
func TestRestoreFullDisk(t *testing.T) {
	for _, o := range []engine.BackupOptions{{}, {Bundle: true, Block: true}} {
		r, m := newStore(t)
		full, _ := r.mustBackup(m, o)
		disk := scratch(t)
		if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k,mode=0700"); err != nil {
			if os.Geteuid() == 0 {
				t.Fatal(err)
			}
			t.Logf("only root may mount a small file system: %v", err)
			return
		}
		t.Cleanup(func() { must(t, unix.Unmount(disk, unix.MNT_DETACH)) })
		dir := filepath.Join(disk, "data")
		if err := r.restore(t.Context(), m, dir, full.Label); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("restore to a disk that is too small: %v", err)
		}
		if _, err := os.Lstat(filepath.Join(dir, "global/pg_control")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("pg_control: %v", err)
		}
		dest := filepath.Join(disk, "RECOVERYXLOG")
		if err := r.stanza(m).Get(t.Context(), engine.GetOptions{Name: full.ArchiveStop, Dest: dest}); !errors.Is(err, unix.ENOSPC) || errors.Is(err, engine.ErrWALMissing) {
			t.Errorf("get to a full disk: %v", err)
		}
		if left, err := filepath.Glob(dest + "*"); err != nil || len(left) > 0 {
			t.Errorf("it left %v, %v", left, err)
		}
		must(t, unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, "size=16m,mode=0700"))
		again := r.restoreOptions(dir, full.Label)
		again.Delta = true
		plan, err := r.stanzaAt(m, fixedClock).PlanRestore(t.Context(), again)
		must(t, err)
		_, err = plan.Run(t.Context())
		must(t, err)
		if diff := differ(tree(t, filepath.Join(r.server.dir, "base")), tree(t, filepath.Join(dir, "base"))); diff != "" {
			t.Errorf("base/%s is not as it was", diff)
		}
	}
}
