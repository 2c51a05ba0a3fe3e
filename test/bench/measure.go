package main

import (
	"bytes"
	"cmp"
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
	create []string // options of stanza-create
	kept   string   // directory whose growth is what was stored, when it is not repo
	data   string   // data directory, when it is not the cluster's
}

func (t tool) command(verb string, args ...string) []string {
	argv := append(append([]string{}, t.argv...), verb)
	return append(append(argv, t.common...), args...)
}

func (w *world) stanza(t tool) []string {
	return []string{"--stanza=bench", "--repo1-path=" + t.repo, "--pg1-path=" + cmp.Or(t.data, w.data)}
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
	s := sample{Wall: wall, CPU: state.UserTime() + state.SystemTime(), Memory: memory}
	w.sum.add(s)
	return s, nil
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
	what += w.where
	s.What, s.Tool, s.Round = what, tool, round
	w.samples = append(w.samples, s)
	w.say("%-30s %-16s round %d: %6.2f s wall, %6.2f s CPU, %4d MiB, stored %d MiB",
		what, tool, round+1, s.Wall.Seconds(), s.CPU.Seconds(), s.Memory>>20, s.Stored>>20)
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

// measureInstance makes an instance around the cluster and runs backup_all with PostgreSQL inside the tarball and apart.
// There is no rival to compare with: the report shows memory and how many cores were busy.
func (w *world) measureInstance(ctx context.Context) error {
	holdfast := func(words ...string) []string { return append([]string{w.native, "--root", w.dir}, words...) }
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
