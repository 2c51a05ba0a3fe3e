package engine_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// faultTest holds one verb against every fault at every call to storage.
type faultTest struct {
	base *storage.Mem // before the verb; never changed
	// run is the verb, on st; clean is the same store without the fault, for others who use it meanwhile.
	run func(ctx context.Context, st, clean storage.Storage) error
	// failed looks at what a failed run left outside the repository; may be nil.
	failed func() error
	// keep holds in every repository that a fault may leave: what was there before and must stay.
	keep func(left storage.Storage) error
	// right says whether the repository is as the verb promises when it returns nil.
	right func(st storage.Storage) error
	calls int // the verb makes at least this many
	every int // positions from one tried to the next; 0: 1
}

// each runs the verb with one fault, of each kind at each call in turn, and after each looks at three repositories: the
// one that the program sees, and two that a power cut at that moment might leave. Each must keep what was there, and the
// verb must succeed on it when repeated. A verb that returns nil in spite of a fault has to have kept its promise.
func (f faultTest) each(t *testing.T) {
	tested := 0
	for _, kind := range []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.ShortRead, storage.Cancel, storage.Die} {
		step := max(1, f.every)
		if testing.Short() {
			step = max(8, f.every, f.calls/3)
		}
		for n := 1 + int(kind)%step; ; n += step { // another one for each kind
			clean := f.base.CrashClone()
			ctx, cancel := context.WithCancel(t.Context())
			fault := storage.Fault{Nth: n, Kind: kind, Cancel: cancel}
			if kind == storage.ShortRead {
				fault.Op = storage.OpRead
			}
			faulty, err := storage.NewFaulty(clean, fault)
			must(t, err)
			err = f.run(ctx, faulty, clean)
			cancel()
			if !faulty.Fired() {
				must(t, err)
				if calls := len(faulty.Calls()); calls < f.calls || kind != storage.ShortRead && n+step < f.calls {
					t.Errorf("%v: only %d calls were tried, of %d", kind, n, calls)
				}
				break
			}
			tested++
			calls := faulty.Calls()
			at := fmt.Sprintf("%v at call %d (of %d, the last %v)", kind, n, len(calls), calls[len(calls)-1])
			f.look(t, tested, at, clean, err)
			if t.Failed() {
				return
			}
		}
	}
	tally.Count(t, "fault positions of engine verbs", tested)
}

func (f faultTest) look(t *testing.T, turn int, at string, clean *storage.Mem, err error) {
	t.Helper()
	if err != nil && f.failed != nil {
		if err := f.failed(); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
	for i, left := range []*storage.Mem{clean, clean.CrashClone(), clean.CrashCloneTorn()} {
		if f.calls >= 15 && i != turn%3 {
			continue // of a long verb each of the three has its turn
		}
		where := at + []string{"", ", power cut", ", power cut with torn objects"}[i]
		if err == nil {
			if err := f.right(left); err != nil {
				t.Errorf("%s: it returned nil, but %v", where, err)
			}
		}
		if err := f.keep(left); err != nil {
			t.Errorf("%s: %v", where, err)
		}
		if err := f.run(t.Context(), left, left); err != nil {
			t.Errorf("%s: second run: %v", where, err)
			continue
		}
		if err := errors.Join(f.right(left), f.keep(left)); err != nil {
			t.Errorf("%s: after the second run: %v", where, err)
		}
	}
}

// withBackups is a repository with n backups.
func (r *rig) withBackups(n int) (*storage.Mem, []*engine.BackupResult) {
	r.t.Helper()
	m := storage.NewMem(nil)
	must(r.t, r.create(r.t.Context(), m))
	var made []*engine.BackupResult
	for range n {
		res, err := r.backup(r.t.Context(), m, m)
		must(r.t, err)
		made = append(made, res)
	}
	must(r.t, m.Sync(r.t.Context()))
	return m, made
}

// keeps returns a check that every object of before is there and that the backup restores to the same files as now.
func (r *rig) keeps(before map[string]string, st storage.Storage, l repo.Label) func(storage.Storage) error {
	r.t.Helper()
	want, err := r.restored(st, l)
	must(r.t, err)
	return func(left storage.Storage) error {
		if err := lost(r.t, before, left); err != nil {
			return err
		}
		got, err := r.restored(left, l)
		if err == nil && !maps.Equal(got, want) {
			err = fmt.Errorf("backup %s restores to other files than before", l)
		}
		return err
	}
}

// restored restores one backup to a directory of its own and reads it.
func (r *rig) restored(st storage.Storage, l repo.Label) (map[string]string, error) {
	r.t.Helper()
	parent, err := os.MkdirTemp(r.server.sockets, "restored")
	must(r.t, err)
	defer os.RemoveAll(parent) // the server's directory ends with the test
	dir := filepath.Join(parent, "data")
	err = r.restore(r.t.Context(), st, dir, l)
	if err != nil {
		return nil, err
	}
	return tree(r.t, dir), nil
}

func TestFaultsCreate(t *testing.T) {
	r := newRig(t, 15)
	faultTest{base: storage.NewMem(nil), calls: 15,
		run:   func(ctx context.Context, st, _ storage.Storage) error { return r.create(ctx, st) },
		keep:  func(storage.Storage) error { return nil },
		right: r.verified,
	}.each(t)
}

func TestFaultsPush(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(1)
	const name = "0000000100000000000000AA"
	file, err := r.server.segment(name)
	must(t, err)
	want, err := os.ReadFile(file)
	must(t, err)
	for _, c := range []repo.CompressType{repo.None, repo.LZ4} {
		t.Run(string(c), func(t *testing.T) {
			faultTest{base: base, calls: 6, keep: r.keeps(contents(t, base), base, made[0].Label),
				run: func(ctx context.Context, st, _ storage.Storage) error {
					_, err := r.stanza(st).Push(ctx, engine.PushOptions{Path: file, DataDir: r.server.dir, HeaderCheck: true, Compress: c})
					return err
				},
				right: func(st storage.Storage) error {
					dest := filepath.Join(r.server.sockets, "got")
					if err := r.stanza(st).Get(t.Context(), engine.GetOptions{Name: name, Dest: dest}); err != nil {
						return err
					}
					if b, err := os.ReadFile(dest); err != nil || string(b) != string(want) {
						return fmt.Errorf("the archive gives another segment (%v)", err)
					}
					return nil
				},
			}.each(t)
		})
	}
}

func TestFaultsGet(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(1)
	before := contents(t, base)
	history := r.server.write(t, "pg_wal/00000002.history", "1\t0/2000000\tno recovery target specified\n")
	_, err := r.stanza(base).Push(t.Context(), engine.PushOptions{Path: history})
	must(t, err)
	segment, err := os.ReadFile(filepath.Join(r.server.dir, "pg_wal", made[0].ArchiveStart))
	must(t, err)
	for name, want := range map[string]string{made[0].ArchiveStart: string(segment), "00000002.history": "1\t0/2000000\tno recovery target specified\n"} {
		t.Run(name, func(t *testing.T) {
			dest := filepath.Join(r.server.sockets, "got")
			faultTest{base: base, calls: 3, keep: func(st storage.Storage) error { return lost(t, before, st) },
				run: func(ctx context.Context, st, _ storage.Storage) error {
					if err := os.Remove(dest); err != nil && !errors.Is(err, fs.ErrNotExist) {
						return err
					}
					err := r.stanza(st).Get(ctx, engine.GetOptions{Name: name, Dest: dest, DataDir: r.server.dir})
					if errors.Is(err, engine.ErrWALMissing) {
						return fmt.Errorf("a fault must not look like the end of the archive: %v", err)
					}
					return err
				},
				failed: func() error {
					left, err := filepath.Glob(dest + "*")
					if err == nil && len(left) > 0 {
						err = fmt.Errorf("it failed and left %v", left)
					}
					return err
				},
				right: func(storage.Storage) error {
					if b, err := os.ReadFile(dest); err != nil || string(b) != want {
						return fmt.Errorf("%d bytes were delivered, %v", len(b), err)
					}
					return nil
				},
			}.each(t)
		})
	}
}

// TestFaultsBackup: a full backup, and the kinds that build on others. In each, a file changes before the backup under
// test, so that there is something to copy.
func TestFaultsBackup(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     engine.BackupOptions // of the backup under test; those it builds on are made with the same but full and incr
		calls int
		every int // each kind of fault begins at another position, so that all are tried with some
	}{
		{"full", engine.BackupOptions{Type: repo.Full}, 100, 2},
		{"full resumed", engine.BackupOptions{Type: repo.Full, Resume: true}, 100, 8},
		{"diff with delta", engine.BackupOptions{Type: repo.Diff, Delta: true, Compress: repo.LZ4}, 100, 8},
		{"incr of bundles and blocks", engine.BackupOptions{Type: repo.Incr, Bundle: true, Block: true, Compress: repo.ZST}, 100, 8},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 15)
			base := storage.NewMem(nil)
			must(t, r.create(t.Context(), base))
			var last *engine.BackupResult
			for i, typ := range []repo.BackupType{repo.Full, repo.Incr} {
				r.server.churn(t, i)
				o := c.o
				o.Type = typ
				res, err := r.backupWith(t.Context(), base, base, o)
				must(t, err)
				last = res
			}
			must(t, base.Sync(t.Context()))
			r.server.churn(t, 2)
			faultTest{base: base, calls: c.calls, every: c.every, keep: r.keeps(contents(t, base), base, last.Label),
				run: func(ctx context.Context, st, clean storage.Storage) error {
					_, err := r.backupWith(ctx, st, clean, c.o)
					return err
				},
				failed: r.server.waitIdle,
				right: func(st storage.Storage) error {
					labels := r.labels(st)
					if len(labels) < 3 || labels[len(labels)-1].Type() != c.o.Type {
						return fmt.Errorf("backup.info lists %v", labels)
					}
					got, err := r.restored(st, labels[len(labels)-1])
					if err != nil {
						return err
					}
					for name, content := range tree(t, filepath.Join(r.server.dir, "base")) {
						if got[path.Join("base", name)] != content {
							return fmt.Errorf("base/%s is restored otherwise than it is", name)
						}
					}
					return errors.Join(r.tidy(st, ""), r.verify(st, labels[len(labels)-1]))
				},
			}.each(t)
		})
	}
}

// TestFaultsRestore: of a full backup, and of one made of bundles and blocks that lie in three backups.
func TestFaultsRestore(t *testing.T) {
	for _, c := range []struct {
		name  string
		o     engine.BackupOptions
		types []repo.BackupType
		every int
	}{
		{"full", engine.BackupOptions{}, []repo.BackupType{repo.Full}, 1},
		{"bundles and blocks", engine.BackupOptions{Bundle: true, Block: true, Compress: repo.LZ4}, []repo.BackupType{repo.Full, repo.Incr, repo.Incr}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 15)
			base := storage.NewMem(nil)
			must(t, r.create(t.Context(), base))
			var label repo.Label
			for i, typ := range c.types {
				r.server.churn(t, i)
				c.o.Type = typ
				res, err := r.backupWith(t.Context(), base, base, c.o)
				must(t, err)
				label = res.Label
			}
			must(t, base.Sync(t.Context()))
			before := contents(t, base)
			want, err := r.restored(base, label)
			must(t, err)
			dir := filepath.Join(r.server.sockets, "target")
			restored := func() error {
				if got := tree(t, dir); !maps.Equal(got, want) {
					return fmt.Errorf("%d files, directories and links, not the %d expected", len(got), len(want))
				}
				return nil
			}
			faultTest{base: base, calls: 20, every: c.every, keep: func(st storage.Storage) error { return lost(t, before, st) },
				run: func(ctx context.Context, st, _ storage.Storage) error {
					must(t, os.RemoveAll(dir))
					return r.restore(ctx, st, dir, "")
				},
				failed: func() error {
					if _, err := os.Stat(filepath.Join(dir, "global/pg_control")); err == nil {
						return errors.New("PostgreSQL could start on what a failed restore left")
					}
					entries, err := os.ReadDir(dir)
					if err != nil && !errors.Is(err, fs.ErrNotExist) {
						return err
					}
					o := r.restoreOptions(dir, label)
					if len(entries) > 0 {
						if _, err := r.stanza(base).PlanRestore(t.Context(), o); !errors.Is(err, engine.ErrTargetNotEmpty) {
							return fmt.Errorf("restore over %d leftovers: %v", len(entries), err)
						}
						o.Delta = true // continues what was begun
					}
					plan, err := r.stanzaAt(base, fixedClock).PlanRestore(t.Context(), o)
					if err == nil {
						_, err = plan.Run(t.Context())
					}
					if err == nil {
						err = restored()
					}
					if err != nil {
						return fmt.Errorf("continued with Delta over %d leftovers: %w", len(entries), err)
					}
					return nil
				},
				right: func(storage.Storage) error { return restored() },
			}.each(t)
		})
	}
}

func TestFaultsRemove(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(3)
	stays := contents(t, base)
	maps.DeleteFunc(stays, func(name, _ string) bool {
		seg, _, _, isSegment := repo.ParseSegmentObject(path.Base(name))
		return strings.HasPrefix(name, "backup/demo/"+string(made[0].Label)) || isSegment && seg < made[1].ArchiveStart
	})
	faultTest{base: base, calls: 20, keep: r.keeps(stays, base, made[1].Label),
		run: func(ctx context.Context, st, _ storage.Storage) error {
			plan, err := r.stanza(st).PlanRemove(ctx, made[0].Label, false)
			if errors.Is(err, engine.ErrNoBackup) {
				return nil // a run before did all of it: right looks
			}
			if err != nil {
				return err
			}
			return plan.Run(ctx)
		},
		right: func(st storage.Storage) error {
			if got, want := r.labels(st), []repo.Label{made[1].Label, made[2].Label}; !slices.Equal(got, want) {
				return fmt.Errorf("backups %v, want %v", got, want)
			}
			for name := range contents(t, st) {
				seg, _, _, isSegment := repo.ParseSegmentObject(path.Base(name))
				if isSegment && seg < made[1].ArchiveStart {
					return fmt.Errorf("%s is needed by nothing", name)
				}
			}
			return r.verified(st)
		},
	}.each(t)
}

func TestFaultsTrimWAL(t *testing.T) {
	r := newRig(t, 15)
	base, made := r.withBackups(3)
	keep := made[2].ArchiveStart
	stays := contents(t, base)
	older := func(name string) bool {
		seg, _, _, isSegment := repo.ParseSegmentObject(path.Base(name))
		return isSegment && seg < keep
	}
	maps.DeleteFunc(stays, func(name, _ string) bool { return older(name) })
	faultTest{base: base, calls: 4, keep: r.keeps(stays, base, made[2].Label),
		run: func(ctx context.Context, st, _ storage.Storage) error {
			return r.stanza(st).TrimWAL(ctx, made[2].DB, keep)
		},
		right: func(st storage.Storage) error {
			for name := range contents(t, st) {
				if older(name) {
					return fmt.Errorf("%s stayed", name)
				}
			}
			return nil
		},
	}.each(t)
}

// TestFaultsLinks: what only a file system has (empty directories, the link "latest", removal of trees) fails at each call
// of a backup and of a removal. The backup before stays, and a second run completes the work.
func TestFaultsLinks(t *testing.T) {
	r := newRig(t, 15)
	repository := filepath.Join(scratch(t), "repo")
	base := posix(t, repository)
	must(t, r.create(t.Context(), base))
	var made []*engine.BackupResult
	for range 2 {
		res, err := r.backup(t.Context(), base, base)
		must(t, err)
		made = append(made, res)
	}
	half := made[0].Label + "_20260301-103000I" // an interrupted backup, which the next one clears away
	must(t, storage.WriteAll(t.Context(), base, "backup/demo/"+string(half)+"/pg_data/x.gz", []byte("half")))
	before := contents(t, base)
	maps.DeleteFunc(before, func(name, _ string) bool { return strings.Contains(name, string(half)) })
	staying := maps.Clone(before)
	maps.DeleteFunc(staying, func(name, _ string) bool {
		return strings.HasPrefix(name, "backup/demo/"+string(made[1].Label))
	})
	for _, verb := range []struct {
		name   string
		run    func(ctx context.Context, st, clean storage.Storage) error
		before map[string]string
		latest func(left storage.Storage) repo.Label // what the link should say at the end
	}{
		{"backup", func(ctx context.Context, st, clean storage.Storage) error {
			_, err := r.backup(ctx, st, clean)
			return err
		}, before, func(left storage.Storage) repo.Label { return slices.Max(r.labels(left)) }},
		{"remove", func(ctx context.Context, st, _ storage.Storage) error {
			plan, err := r.stanza(st).PlanRemove(ctx, made[1].Label, false)
			if errors.Is(err, engine.ErrNoBackup) {
				return nil
			}
			if err != nil {
				return err
			}
			return plan.Run(ctx)
		}, staying, func(storage.Storage) repo.Label { return made[0].Label }},
	} {
		tested := 0
		kinds := []storage.FaultKind{storage.FailBefore, storage.FailAfter, storage.Die}
		if testing.Short() {
			kinds = kinds[2:]
		}
		for _, op := range []storage.Op{storage.OpMakeDir, storage.OpSymlink, storage.OpRemoveTree} {
			for _, kind := range kinds {
				for n := 1; ; n++ {
					dir := filepath.Join(scratch(t), "repo")
					must(t, os.CopyFS(dir, os.DirFS(repository)))
					left := posix(t, dir)
					faulty, err := storage.NewFaulty(left, storage.Fault{Op: op, Nth: n, Kind: kind})
					must(t, err)
					err = verb.run(t.Context(), faulty, left)
					if !faulty.Fired() {
						must(t, err)
						break
					}
					tested++
					if err := lost(t, verb.before, left); err != nil {
						t.Errorf("%s: %v %s %d: %v", verb.name, kind, op, n, err)
					}
					if err := verb.run(t.Context(), left, left); err != nil {
						t.Errorf("%s: %v %s %d: second run: %v", verb.name, kind, op, n, err)
					}
					if err := errors.Join(lost(t, verb.before, left), r.verify(left, ""), r.tidy(left, half)); err != nil {
						t.Errorf("%s: %v %s %d: after the second run: %v", verb.name, kind, op, n, err)
					}
					got, err := os.Readlink(filepath.Join(dir, "backup/demo/latest"))
					if want := verb.latest(left); (op != storage.OpSymlink || kind == storage.Die) && (err != nil || got != string(want)) {
						t.Errorf("%s: %v %s %d: latest is %q, %v; want %s", verb.name, kind, op, n, got, err, want)
					}
				}
			}
		}
		if tested < 2*len(kinds) {
			t.Errorf("%s: only %d positions", verb.name, tested)
		}
		t.Logf("%s: %d positions of faults", verb.name, tested)
	}
}

func posix(t testing.TB, dir string) *storage.Posix {
	t.Helper()
	p, err := storage.NewPosix(dir, storage.PosixOptions{})
	must(t, err)
	t.Cleanup(func() { must(t, p.Close()) })
	return p
}
