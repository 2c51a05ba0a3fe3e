package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// sample is one measured run, or the sum of many invocations that belong together.
type sample struct {
	What   string        `json:"what"`
	Tool   string        `json:"tool"`
	Round  int           `json:"round"`
	Wall   time.Duration `json:"wall_ns"`
	CPU    time.Duration `json:"cpu_ns"`    // user and system of the process tree
	Memory int64         `json:"max_rss_b"` // largest process of the tree
	Stored int64         `json:"stored_b,omitempty"`
}

// tool is one of the two programs. Both take pgBackRest's options, which is what makes the comparison one table.
type tool struct {
	name   string
	argv   []string // program and what stands before the verb
	repo   string
	common []string // options of every verb
	backup []string // options of backup alone
	create []string // options of stanza-create: pgbackrest asks the server, we read the control file
}

func (t tool) command(verb string, args ...string) []string {
	argv := append(append([]string{}, t.argv...), verb)
	return append(append(argv, t.common...), args...)
}

func (w *world) stanza(t tool) []string {
	return []string{"--stanza=bench", "--repo1-path=" + t.repo, "--pg1-path=" + w.data}
}

func (w *world) server() []string {
	return []string{"--pg1-socket-path=" + w.dir, "--pg1-port=" + w.port, "--pg1-user=" + w.owner.Username}
}

func compression(kind string) []string {
	name, level, ok := strings.Cut(kind, "-")
	opts := []string{"--compress-type=" + name}
	if ok {
		opts = append(opts, "--compress-level="+level)
	}
	return opts
}

// exec runs argv as the bench user and measures it. Exit codes in also count as success.
func (w *world) exec(ctx context.Context, argv []string, also ...int) (sample, error) {
	var output bytes.Buffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = w.dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + w.dir, "LC_ALL=C.UTF-8", "TMPDIR=" + w.dir}
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.credential, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) } // the workers too
	cmd.WaitDelay = 10 * time.Second
	began := time.Now()
	err := cmd.Run()
	wall := time.Since(began)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		for _, code := range also {
			if exit.ExitCode() == code {
				err = nil
			}
		}
	}
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, tail(output.String(), 40))
	}
	state := cmd.ProcessState
	memory := int64(0)
	if usage, ok := state.SysUsage().(*syscall.Rusage); ok {
		memory = usage.Maxrss * 1024
	}
	return sample{Wall: wall, CPU: state.UserTime() + state.SystemTime(), Memory: memory}, nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (s *sample) add(o sample) {
	s.Wall += o.Wall
	s.CPU += o.CPU
	s.Memory = max(s.Memory, o.Memory)
}

func (w *world) record(what, tool string, round int, s sample) {
	s.What, s.Tool, s.Round = what, tool, round
	w.samples = append(w.samples, s)
	w.say("%-22s %-18s round %d: %6.2f s wall, %6.2f s CPU, %4d MiB", what, tool, round+1, s.Wall.Seconds(), s.CPU.Seconds(), s.Memory>>20)
}

// cold writes back what is dirty and, if we may, drops the caches, so that no run pays for or profits from the last one.
func (w *world) cold() error {
	syscall.Sync()
	if w.set.warm || os.Geteuid() != 0 {
		return nil
	}
	err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3\n"), 0)
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EROFS) {
		w.set.warm = true // a container; the report says so
		return nil
	}
	return err
}

// fresh empties and remakes a directory of the bench user's.
func (w *world) fresh(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	return w.own(dir)
}

func (w *world) freshStanza(ctx context.Context, t tool) error {
	if err := w.fresh(t.repo); err != nil {
		return err
	}
	_, err := w.exec(ctx, t.command("stanza-create", append(append(w.stanza(t), w.locks), t.create...)...))
	return err
}

func (w *world) measureFloor(ctx context.Context) error {
	for round := range w.set.rounds {
		copied := filepath.Join(w.dir, "copy")
		if err := os.RemoveAll(copied); err != nil {
			return err
		}
		if err := w.cold(); err != nil {
			return err
		}
		s, err := w.exec(ctx, []string{"sh", "-c", `cp -a "$0" "$1" && sync`, w.data, copied})
		if err != nil {
			return err
		}
		w.record("cp -a and sync", "floor", round, s)
		if err := os.RemoveAll(copied); err != nil {
			return err
		}
	}
	return nil
}

// measureBackup takes a full backup with each tool and restores it, in turns.
func (w *world) measureBackup(ctx context.Context, kind string) error {
	for round := range w.set.rounds {
		for _, t := range order(round, w.ours, w.theirs, w.bundled) {
			if err := w.backupAndRestore(ctx, t, kind, round); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) backupAndRestore(ctx context.Context, t tool, kind string, round int) error {
	if err := w.freshStanza(ctx, t); err != nil {
		return err
	}
	processes := fmt.Sprintf("--process-max=%d", w.set.processes)
	opts := append(w.stanza(t), w.server()...)
	opts = append(opts, "--type=full", "--start-fast", "--no-archive-check", w.locks, processes)
	opts = append(opts, compression(kind)...)
	opts = append(opts, t.backup...)
	if err := w.cold(); err != nil {
		return err
	}
	s, err := w.exec(ctx, t.command("backup", opts...))
	if err != nil {
		return err
	}
	if _, s.Stored, err = measureTree(t.repo); err != nil {
		return err
	}
	w.record("backup "+kind, t.name, round, s)

	restored := filepath.Join(w.dir, "restored")
	if err := w.fresh(restored); err != nil {
		return err
	}
	if err := w.cold(); err != nil {
		return err
	}
	s, err = w.exec(ctx, t.command("restore", "--stanza=bench", "--repo1-path="+t.repo, "--pg1-path="+restored, "--type=none", w.locks, processes))
	if err != nil {
		return err
	}
	w.record("restore "+kind, t.name, round, s)
	if err := w.compareRestored(restored); err != nil {
		return fmt.Errorf("what %s restored: %w", t.name, err)
	}
	return errors.Join(os.RemoveAll(restored), os.RemoveAll(t.repo))
}

// compareRestored holds every relation file of the idle cluster to be there with its size. Contents are the interop
// suite's to prove; this keeps a bench run from praising a restore that left something out.
func (w *world) compareRestored(dir string) error {
	base := filepath.Join(w.data, "base")
	return filepath.WalkDir(base, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "pgsql_tmp") || d.Name() == "pg_internal.init" {
			return err
		}
		rel, err := filepath.Rel(w.data, name)
		if err != nil {
			return err
		}
		want, err := d.Info()
		if err != nil {
			return err
		}
		got, err := os.Stat(filepath.Join(dir, rel))
		if err != nil {
			return err
		}
		if got.Size() != want.Size() {
			return fmt.Errorf("%s has %d bytes, the cluster's has %d", rel, got.Size(), want.Size())
		}
		return nil
	})
}

// measureArchive pushes and gets the cluster's own full segments, one invocation each.
func (w *world) measureArchive(ctx context.Context, kind string) error {
	segments, err := w.fullSegments()
	if err != nil {
		return err
	}
	for round := range w.set.rounds {
		for _, t := range order(round, w.ours, w.theirs) {
			if err := w.pushAndGet(ctx, t, kind, round, segments); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *world) pushAndGet(ctx context.Context, t tool, kind string, round int, segments []string) error {
	if err := w.freshStanza(ctx, t); err != nil {
		return err
	}
	opts := append(w.stanza(t), compression(kind)...)
	var push, get sample
	for _, name := range segments {
		s, err := w.exec(ctx, t.command("archive-push", append(opts, name)...))
		if err != nil {
			return err
		}
		push.add(s)
	}
	var err error
	if _, push.Stored, err = measureTree(t.repo); err != nil {
		return err
	}
	w.record(fmt.Sprintf("push %d × %s", len(segments), kind), t.name, round, push)

	dest := filepath.Join(w.dir, "fetched")
	for _, name := range segments {
		s, err := w.exec(ctx, t.command("archive-get", append(w.stanza(t), filepath.Base(name), dest)...))
		if err != nil {
			return err
		}
		get.add(s)
		if err := sameFile(name, dest); err != nil {
			return fmt.Errorf("what %s archive-get brought: %w", t.name, err)
		}
		if err := os.Remove(dest); err != nil {
			return err
		}
	}
	w.record(fmt.Sprintf("get %d × %s", len(segments), kind), t.name, round, get)

	missing := "0000000100000FFF000000AA"
	var lack sample
	for range startRuns {
		s, err := w.exec(ctx, t.command("archive-get", append(w.stanza(t), missing, dest)...), 1)
		if err != nil {
			return err
		}
		lack.add(s)
	}
	w.record(fmt.Sprintf("get missing × %d", startRuns), t.name, round, lack)
	return os.RemoveAll(t.repo)
}

// sameFile compares through small buffers: Linux counts the memory that this program has at the time of a fork into the
// largest size of the process forked, so the bench has to stay smaller than what it measures.
func sameFile(want, got string) error {
	a, err := os.Open(want)
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open(got)
	if err != nil {
		return err
	}
	defer b.Close()
	differ := fmt.Errorf("%s differs from %s", got, want)
	left, right := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, errA := io.ReadFull(a, left)
		m, errB := io.ReadFull(b, right)
		if !bytes.Equal(left[:n], right[:m]) {
			return differ
		}
		if errA == io.EOF || errA == io.ErrUnexpectedEOF {
			if errB != errA {
				return differ
			}
			return nil
		}
		if errA != nil || errB != nil {
			return errors.Join(errA, errB)
		}
	}
}

// startRuns is how often a short invocation is repeated in one sample.
const startRuns = 20

func (w *world) measureStart(ctx context.Context) error {
	for round := range w.set.rounds {
		for _, t := range order(round, w.ours, w.theirs) {
			var sum sample
			for range startRuns {
				s, err := w.exec(ctx, []string{t.argv[0], "version"})
				if err != nil {
					return err
				}
				sum.add(s)
			}
			w.record(fmt.Sprintf("start (version) × %d", startRuns), t.name, round, sum)
		}
	}
	return nil
}

// measureInstance makes an instance around the cluster and runs backup_all with PostgreSQL inside the tarball and apart.
// There is no rival to compare with: the report shows memory and how many cores were busy.
func (w *world) measureInstance(ctx context.Context) error {
	holdfast := func(words ...string) []string { return append([]string{w.ours.argv[0], "--root", w.dir}, words...) }
	disks := []string{filepath.Join(w.dir, "disk1"), filepath.Join(w.dir, "disk2")}
	for _, d := range disks {
		if err := w.fresh(d); err != nil {
			return err
		}
	}
	cluster := fmt.Sprintf("bench:data=/data,host=/,port=%s,user=%s", w.port, w.owner.Username)
	for _, argv := range [][]string{
		holdfast("init", disks[0], disks[1]),
		holdfast("conf", "pgsql.clusters", "-s", cluster, "eventbus.enabled", "-s", "False"),
	} {
		if _, err := w.exec(ctx, argv); err != nil {
			return err
		}
	}
	for _, mode := range []struct{ what, inside string }{{"backup_all, inside", "True"}, {"backup_all, apart", "False"}} {
		for _, argv := range [][]string{holdfast("conf", "alation.backup_v2.pgbackup_compression", "-s", mode.inside), holdfast("enable_backupv2")} {
			if _, err := w.exec(ctx, argv); err != nil {
				return err
			}
		}
		for round := range w.set.rounds {
			if err := w.cold(); err != nil {
				return err
			}
			s, err := w.exec(ctx, holdfast("backup_all"), 3)
			if err != nil {
				return err
			}
			w.record(mode.what, w.ours.name, round, s)
		}
	}
	return nil
}

// measureTree counts the regular files below dir and their bytes.
func measureTree(dir string) (files int, size int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		files++
		size += info.Size()
		return nil
	})
	return files, size, err
}
