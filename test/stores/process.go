package stores

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// program finds a server that scripts/setup has installed, by its path in the cache.
func program(t testing.TB, name string) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs storage servers; run make test")
	}
	path := filepath.Join(cmp.Or(os.Getenv("HOLDFAST_CACHE"), "/var/cache/holdfast"), name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v; run: make setup", err)
	}
	return path
}

// FreePort is a port that nobody listens on, and that the kernel gives to nobody who asks it for any (it gives from 32768 on): until
// it is used nobody takes it but by asking here and drawing the same.
func FreePort(t testing.TB) int {
	t.Helper()
	var last error
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(20_000+rand.IntN(12_000))))
		if err != nil {
			last = err
			continue
		}
		defer l.Close()
		return l.Addr().(*net.TCPAddr).Port
	}
	t.Fatal(last)
	return 0
}

// process is a running server. It ends with the test, and with the test's process.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// command is a program with a small environment.
func command(t testing.TB, env []string, name string, args ...string) *exec.Cmd {
	c := exec.Command(name, args...)
	c.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir()}, env...)
	return c
}

// run starts a program and waits until ready says that it answers.
func run(t testing.TB, cmd *exec.Cmd, ready func(context.Context) error) (*process, error) {
	t.Helper()
	p := &process{cmd: cmd, log: filepath.Join(t.TempDir(), "server.log"), done: make(chan struct{})}
	out, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid, cmd.SysProcAttr.Pdeathsig = true, syscall.SIGKILL
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_ = p.cmd.Wait() // how it ended is seen by what it no longer does
		close(p.done)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		if err = ready(ctx); err == nil {
			t.Cleanup(p.stop)
			return p, nil
		}
		select {
		case <-p.done:
			err = errors.New("it ended")
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
			continue
		}
		p.stop()
		text, _ := os.ReadFile(p.log) // may be missing
		return nil, fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, text)
	}
}

// start is run for a server whose test is pointless without it.
func start(t testing.TB, cmd *exec.Cmd, ready func(context.Context) error) *process {
	t.Helper()
	p, err := run(t, cmd, ready)
	if err != nil {
		t.Fatalf("%v; run: make setup", err)
	}
	return p
}

// stop ends the server, with what it has started, and waits for it.
func (p *process) stop() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // it may have ended already
	<-p.done
}

// listening says whether somebody answers on a port.
func listening(ctx context.Context, port int) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	return c.Close()
}

// alsoIPv6 has what listens at 127.0.0.1 answer at ::1, too, until the test ends: on Debian localhost is both, and pgbackrest
// 2.45 asks the first of them alone. A machine without IPv6 has only one.
func alsoIPv6(t testing.TB, port int) {
	t.Helper()
	l, err := net.Listen("tcp6", net.JoinHostPort("::1", strconv.Itoa(port)))
	if err != nil {
		return
	}
	t.Cleanup(func() { _ = l.Close() }) // it is only heard, nothing is lost
	go func() {
		for {
			from, err := l.Accept()
			if err != nil {
				return
			}
			go passOn(from, port)
		}
	}()
}

// passOn copies both ways until one side ends.
func passOn(from net.Conn, port int) {
	defer from.Close()
	to, err := net.Dial("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return
	}
	defer to.Close()
	ended := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		go func() {
			_, _ = io.Copy(way[0], way[1]) // a broken connection is what the client sees
			ended <- struct{}{}
		}()
	}
	<-ended
}
