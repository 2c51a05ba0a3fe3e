package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Paused is a run of the program that stands still at a step, so that the world can be changed under it.
type Paused struct {
	cmd       *exec.Cmd
	out, errs bytes.Buffer
}

// PauseAt starts the program under one of its names and returns once it stands still at the step ("verb:name"). A run that
// ends without coming there is an error. The caller ends it with Resume; the end of ctx kills it.
func (w *World) PauseAt(ctx context.Context, step, name string, args ...string) (*Paused, error) {
	p := &Paused{cmd: w.Command(ctx, name, args...)}
	p.cmd.Env = append(p.cmd.Env, "HOLDFAST_TEST_STOP_AT="+step)
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = strings.NewReader("YES\n"), &p.out, &p.errs
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	for {
		// WNOWAIT leaves the end of the process, if it comes to that, for Resume.
		err := unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("wait for %s: %w", step, err)
		}
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return nil, err
	}
	if _, state, _ := strings.Cut(string(stat), ") "); strings.HasPrefix(state, "T") {
		return p, nil
	}
	o, err := p.Resume()
	return nil, fmt.Errorf("the run did not come to %s: code %d, %w\n%s%s", step, o.Code, err, o.Stdout, o.Stderr)
}

// Pid is the process that stands still.
func (p *Paused) Pid() int { return p.cmd.Process.Pid }

// Interrupt lets the run go on with SIGINT, as Control-C does.
func (p *Paused) Interrupt() (Output, error) {
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		return Output{}, err
	}
	return p.Resume()
}

// Resume lets the run go on and returns its end, as Run does.
func (p *Paused) Resume() (Output, error) {
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return Output{}, err
	}
	err := p.cmd.Wait()
	o := Output{Stdout: p.out.String(), Stderr: p.errs.String(), Code: p.cmd.ProcessState.ExitCode()}
	if err != nil && o.Code != 3 {
		return o, fmt.Errorf("%s: %w\n%s%s", strings.Join(p.cmd.Args, " "), err, o.Stdout, o.Stderr)
	}
	return o, nil
}

// TakePort keeps another server's lock on the port that the application's server listens on, as a server that was started
// in the meantime would. The caller ends it with the returned function. The application's server must be down.
func (w *World) TakePort(ctx context.Context) (func() error, error) {
	cmd := exec.CommandContext(ctx, "sleep", "600") // PostgreSQL heeds a lock whose process is alive and its own user's
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.owner}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	lock := fmt.Sprintf("%s/.s.PGSQL.%d.lock", w.Sock, w.Port)
	text := fmt.Sprintf("%d\n/elsewhere\n0\n%d\n%s\n", cmd.Process.Pid, w.Port, w.Sock)
	free := func() error {
		err := errors.Join(os.Remove(lock), cmd.Process.Kill())
		_ = cmd.Wait() // it says that it was killed
		return err
	}
	if err := os.WriteFile(lock, []byte(text), 0o600); err != nil {
		return nil, errors.Join(err, free())
	}
	if w.owner != nil {
		if err := os.Chown(lock, int(w.owner.Uid), int(w.owner.Gid)); err != nil {
			return nil, errors.Join(err, free())
		}
	}
	return free, nil
}

// Listing is what stands below a directory, contents hashed; two equal listings are two equal trees.
func Listing(dir string) (map[string]string, error) {
	p := &Proof{Files: map[string]string{}}
	return p.Files, (&World{Files: dir}).proveFiles(p)
}
