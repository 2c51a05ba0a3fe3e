package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/instance"
)

// Times of starting and stopping a daemon in the background.
const (
	startWait = 60 * time.Second
	stopWait  = 120 * time.Second // as the unit's TimeoutStopSec: a run gets out of what it does
	stopPoll  = 50 * time.Millisecond
	lockTries = 40 // at stopPoll
)

// runsItself marks a command that has others below it and does something by itself, too.
const runsItself = "runs itself"

func (r *root) daemonCommand() *cobra.Command {
	quiet := false
	c := &cobra.Command{Use: "daemon", Short: "run the schedule in the foreground; start, stop, reload, unit", Args: noArgs, Annotations: map[string]string{runsItself: "yes"},
		Long: `Runs until it is told to end (SIGTERM, SIGINT): makes backups at the times of the parameters, keeps the copy on external storage
up to date between them, verifies the newest set, begins new logs, and answers /healthz and /metrics on metrics.listen.
Parameters are taken over without a restart, within ten seconds or at once on SIGHUP. One job at a time; a job that is told
to end does so cleanly, and is made up by the next daemon. For systemd: holdfast daemon unit --install.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := openInstance(r.env, r.f.root)
			if err != nil {
				return err
			}
			env := *r.env
			if quiet {
				env.Stderr = io.Discard
			}
			return runDaemon(cmd.Context(), &env, in)
		}}
	c.Flags().BoolVar(&quiet, "quiet", false, "say nothing on standard error once it runs; the log has it")
	c.AddCommand(r.daemonStart(), r.daemonStop(), r.daemonReload(), r.daemonUnit())
	return c
}

// runDaemon is holdfast daemon.
func runDaemon(ctx context.Context, env *Env, in *instance.Instance) error {
	if err := in.Ready(); err != nil {
		return err
	}
	owner, err := in.Owner()
	if err != nil {
		return err
	}
	if err := durable.MkdirAllOwned(in.LockDir(), 0o750, owner); err != nil {
		return err
	}
	info, err := json.Marshal(daemonInfo{PID: os.Getpid(), Since: time.Now().UTC().Truncate(time.Second), Run: env.ExecID, Namespace: pidNamespace()})
	if err != nil {
		return err
	}
	lock, err := lockDaemon(ctx, in, info, owner)
	if err != nil {
		return err
	}
	n := newNotifier(env)
	d, err := newDaemon(env, in, n, func() error { return n.say("READY=1", "STATUS=see: holdfast schedule show --root "+in.Dir()) })
	if err == nil {
		d.say("", fmt.Sprintf("daemon: %s, instance %s, process %d", programVersion(), in.Dir(), os.Getpid()))
		stopping := context.AfterFunc(ctx, func() { // a run that has to get out of what it does may take longer than the watchdog waits
			_ = n.say("STOPPING=1", fmt.Sprintf("WATCHDOG_USEC=%d", stopWait.Microseconds())) // said again below, where an error is reported
		})
		err = d.live(ctx)
		stopping()
		d.complain("stopping", errorText(n.say("STOPPING=1")))
		d.say("", "daemon: ended")
	}
	return errors.Join(err, lock.Unlock())
}

// lockDaemon takes the daemon's lock. Somebody who only looks whether there is a daemon holds it for a moment and says nothing
// about himself: that is waited for.
func lockDaemon(ctx context.Context, in *instance.Instance, info []byte, owner *durable.Owner) (*durable.Lock, error) {
	for try := 0; ; try++ {
		lock, err := durable.TryLockOwned(daemonLock(in), info, owner)
		var locked *durable.LockedError
		if !errors.As(err, &locked) {
			return lock, err
		}
		var other daemonInfo
		if json.Unmarshal(locked.Info, &other) == nil || try == lockTries {
			return nil, fmt.Errorf("a daemon of the instance %s runs already, %s: %w", in.Dir(), &other, durable.ErrLocked)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(stopPoll):
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func (r *root) daemonStart() *cobra.Command {
	return &cobra.Command{Use: "start", Short: "start the daemon in the background and wait until it works", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := openInstance(r.env, r.f.root)
			if err != nil {
				return err
			}
			running, err := runningDaemon(in)
			switch {
			case err != nil:
				return err
			case running != nil:
				_, err = fmt.Fprintf(r.env.Stdout, "the daemon is running: %s\n", running)
				return err
			case exists(unitPath(in)) && !unitEnabled(in.UnitName()):
				return &refusedError{fmt.Sprintf("nothing was started: the daemon is systemd's, and its unit is not enabled: systemctl enable --now %s", in.UnitName())}
			case exists(unitPath(in)):
				_, err = fmt.Fprintf(r.env.Stdout, "the daemon is systemd's: systemctl start %s\n", in.UnitName())
				return err
			}
			pid, err := r.background(cmd.Context(), in)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(r.env.Stdout, "the daemon is started: process %d\n", pid)
			return err
		}}
}

// background starts the daemon away from this terminal and session, and waits until it says that it works. What it says on
// standard error goes into a file beside its lock: a crash would be lost otherwise.
func (r *root) background(ctx context.Context, in *instance.Instance) (pid int, err error) {
	name := fmt.Sprintf("holdfast-start-%d-%08x", os.Getpid(), rand.Uint32())
	ear, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "\x00" + name, Net: "unixgram"})
	if err != nil {
		return 0, fmt.Errorf("start the daemon: %w", err)
	}
	defer ear.Close() // nothing was written to it here
	errFile := daemonErrors(in)
	out, err := os.OpenFile(errFile, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return 0, fmt.Errorf("start the daemon: %w", err)
	}
	defer out.Close() // the child's from here on
	cmd := exec.Command(r.env.Exe, "daemon", "--quiet", "--root", in.Dir())
	cmd.Dir, cmd.Stderr = "/", out
	cmd.Env = append(withoutEnv(r.env.Environ(), "NOTIFY_SOCKET", "WATCHDOG_USEC"), "NOTIFY_SOCKET=@"+name)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start the daemon: %w", err)
	}
	died := make(chan error, 1)
	go func() { died <- cmd.Wait() }()
	ready := make(chan error, 1)
	go func() { ready <- awaitReady(ear) }()
	select {
	case err = <-ready:
		if err == nil {
			return cmd.Process.Pid, nil
		}
	case err = <-died:
		text, rerr := os.ReadFile(errFile)
		return 0, fmt.Errorf("the daemon ended at once: %w: %s", errors.Join(err, rerr), bytes.TrimSpace(text))
	case <-ctx.Done():
		err = ctx.Err()
	}
	return 0, errors.Join(fmt.Errorf("start the daemon: %w", err), cmd.Process.Kill())
}

// awaitReady waits for READY=1.
func awaitReady(ear *net.UnixConn) error {
	if err := ear.SetReadDeadline(time.Now().Add(startWait)); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := ear.Read(buf)
		if err != nil {
			return fmt.Errorf("it does not say that it works: %w", err)
		}
		for line := range strings.Lines(string(buf[:n])) {
			if strings.TrimSpace(line) == "READY=1" {
				return nil
			}
		}
	}
}

func withoutEnv(env []string, names ...string) []string {
	var out []string
entries:
	for _, e := range env {
		for _, n := range names {
			if strings.HasPrefix(e, n+"=") {
				continue entries
			}
		}
		out = append(out, e)
	}
	return out
}

func (r *root) daemonStop() *cobra.Command {
	return &cobra.Command{Use: "stop", Short: "end the daemon and wait until it has", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, running, err := r.signalDaemon(unix.SIGTERM)
			if err != nil || running == nil {
				return err
			}
			deadline := time.Now().Add(stopWait)
			for {
				now, err := runningDaemon(in)
				if err != nil || now == nil || now.PID != running.PID {
					return err
				}
				if time.Now().After(deadline) {
					return fmt.Errorf("the daemon, %s, has not ended after %s: it is still told to; see %s", running, stopWait, logPath(in.LogDir()))
				}
				select {
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				case <-time.After(stopPoll):
				}
			}
		}}
}

func (r *root) daemonReload() *cobra.Command {
	return &cobra.Command{Use: "reload", Short: "make the daemon look at the parameters now", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, _, err := r.signalDaemon(unix.SIGHUP)
			return err
		}}
}

// signalDaemon sends a signal to the daemon, if one runs.
func (r *root) signalDaemon(sig unix.Signal) (*instance.Instance, *daemonInfo, error) {
	in, err := openInstance(r.env, r.f.root)
	if err != nil {
		return nil, nil, err
	}
	running, err := runningDaemon(in)
	if err != nil {
		return in, nil, err
	}
	if running != nil && running.elsewhere() {
		return in, nil, &refusedError{fmt.Sprintf("the daemon, %s, is one of another PID namespace, a container perhaps: run this there; nothing was done", running)}
	}
	if running != nil && running.PID == 0 {
		return in, nil, fmt.Errorf("a daemon runs, but %s does not say which process: see: fuser %[1]s", daemonLock(in))
	}
	if running == nil {
		_, err := fmt.Fprintln(r.env.Stdout, "no daemon is running")
		return in, nil, err
	}
	if err := unix.Kill(running.PID, sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return in, nil, fmt.Errorf("daemon, %s: %w", running, err)
	}
	return in, running, nil
}

// unitDir is where an administrator's units are.
const unitDir = "/etc/systemd/system"

func unitPath(in *instance.Instance) string { return filepath.Join(unitDir, in.UnitName()) }

// unitEnabled reports whether systemd starts the unit with the host.
func unitEnabled(name string) bool {
	return exists(filepath.Join(unitDir, "multi-user.target.wants", name))
}

func (r *root) daemonUnit() *cobra.Command {
	var install, remove bool
	c := &cobra.Command{Use: "unit", Short: "print the daemon's systemd unit, or install it, or remove it", Args: noArgs,
		Long: `Prints a systemd unit for the instance's daemon: readiness, watchdog, restart after a failure, and no more rights than backups
take. --install writes it to ` + unitDir + `; a unit of that name that is not Holdfast's stays. What to run then is said.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if install && remove {
				return &usageError{"--install and --remove exclude each other"}
			}
			in, values, err := r.scheduled()
			if err != nil {
				return err
			}
			unit, err := in.Unit(unitPlaces(in, values)...)
			if err != nil {
				return err
			}
			if !install && !remove {
				_, err := r.env.Stdout.Write(unit)
				return err
			}
			return r.changeUnit(in, unit, install)
		}}
	c.Flags().BoolVar(&install, "install", false, "write it to "+unitDir)
	c.Flags().BoolVar(&remove, "remove", false, "remove it from there")
	return c
}

// unitPlaces are the directories that parameters name and the daemon writes to.
func unitPlaces(in *instance.Instance, v *conf.Values) []string {
	var out []string
	for _, p := range []conf.PathKey{conf.KeyDataDumpDir, conf.KeyDataTempDir, conf.KeyRepoDir, conf.KeyRedundancyPath} {
		if path := v.Path(p); path != "" {
			out = append(out, in.Resolve(path))
		}
	}
	return out
}

func (r *root) changeUnit(in *instance.Instance, unit []byte, install bool) error {
	path, name := unitPath(in), in.UnitName()
	have, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err == nil && !instance.OursMark(have) {
		return &refusedError{fmt.Sprintf("%s is not Holdfast's: nothing was changed", path)}
	}
	for line := range strings.Lines(string(unit)) {
		if strings.HasPrefix(line, "Description=") && err == nil && !strings.Contains(string(have), line) {
			return &refusedError{fmt.Sprintf("%s is of another instance, whose root has the same words: nothing was changed; use the init script: %s start", path, filepath.Join(in.Dir(), "etc/init.d/alation"))}
		}
	}
	if !install {
		if err == nil && unitEnabled(name) { // systemctl disables only a unit that is there
			return &refusedError{fmt.Sprintf("%s is enabled, nothing was changed: first run: systemctl disable --now %s", path, name)}
		}
		if err == nil {
			err = os.Remove(path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if err == nil {
			_, err = fmt.Fprintf(r.env.Stdout, "removed %s; then: systemctl daemon-reload\n", path)
		}
		return err
	}
	if !exists(unitDir) {
		return &refusedError{unitDir + " is not there: this host has no systemd; use the init script: " + filepath.Join(in.Dir(), "etc/init.d/alation") + " start"}
	}
	if err := durable.WriteFile(path, unit, 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintf(r.env.Stdout, "wrote %s; then: systemctl daemon-reload; systemctl enable --now %s\n", path, name)
	return err
}
