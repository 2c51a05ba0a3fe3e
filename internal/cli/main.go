// Package cli is the door: the command tree, the names the program answers to, the wiring of parameters into the Options
// of the packages below, what is printed, and the exit codes. Only this package knows parameters, flags, the environment
// and the terminal.
//
// How it speaks. Results go to standard output, everything else to standard error. An error is one line "holdfast: …":
// what happened, on which object, and, where there is one, the command to run next; no stack, no capital, no full stop.
// Warnings begin with "warning: ". With --json the result, or {"error": …}, is one JSON document on standard output and
// nothing else is on it. Progress is one line that is rewritten, and only on a terminal.
package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Env is the world as a command sees it.
type Env struct {
	Args    []string // Args[0] is the name it is run under
	Stdin   io.Reader
	Stdout  io.Writer
	Stderr  io.Writer
	Getenv  func(string) string
	Environ func() []string
	Now     func() time.Time

	Terminal      bool // Stderr is a terminal: progress may be shown
	StdinTerminal bool
	Exe           string // this program's path, for archive_command
	Getwd         func() (string, error)
	Kill          func() // ends the process as kill -9 does; for tests that die at a step
	Stop          func() // stops the process until it gets SIGCONT; for tests that change the world at a step
	ExecID        string // "<pid>-<8 hex>"

	Tick    time.Duration                                // how often the daemon looks at the clock and at parameters at least; 0: every ten seconds
	Hangups func() (hangups <-chan struct{}, end func()) // SIGHUP from now on asks for a look instead of ending the process; nil: it does not
	Crontab string                                       // the host's crontab program; empty: the one on PATH

	Yields    bool            // what is done may be ended at any time for whoever wants the instance
	Connected func(io.Closer) // told of a connection that lives until it is closed; nil: until the process ends

	Nice  func(priority int) error // sets the process's priority; nil: it stays
	Umask func(mask int) int       // sets the process's umask and returns the one before; nil: it stays
}

// Process is the world of the real process.
func Process() *Env {
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	return &Env{Args: os.Args, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Environ: os.Environ, Now: time.Now,
		Terminal: isTerminal(os.Stderr), StdinTerminal: isTerminal(os.Stdin), Exe: exe, Getwd: os.Getwd,
		Kill:   func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL) },
		Stop:   stopUntilContinued,
		ExecID: newRunID(), Nice: nice, Umask: unix.Umask, Hangups: hangups}
}

// hangups takes SIGHUP away from everybody who waited for it, in an order that leaves no moment in which it would end the
// process.
func hangups() (<-chan struct{}, func()) {
	signal.Ignore(unix.SIGHUP)
	signals, looks, done := make(chan os.Signal, 1), make(chan struct{}, 1), make(chan struct{})
	signal.Notify(signals, unix.SIGHUP)
	go func() {
		for {
			select {
			case <-signals:
				select {
				case looks <- struct{}{}:
				default: // one is waiting to be taken already
				}
			case <-done:
				return
			}
		}
	}()
	return looks, func() { signal.Stop(signals); close(done) }
}

// nice sets the priority of every thread there is, which those to come inherit: Linux has one for each.
func nice(priority int) error {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return err
	}
	for _, t := range tasks {
		id, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.Setpriority(unix.PRIO_PROCESS, id, priority)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) { // a thread that has ended meanwhile
			return err
		}
	}
	return nil
}

// stopUntilContinued returns only after SIGCONT: the kernel stops the process a moment after it was asked to, and the caller
// must not get on in that moment.
func stopUntilContinued() {
	continued := make(chan os.Signal, 1)
	signal.Notify(continued, unix.SIGCONT)
	defer signal.Stop(continued)
	_ = unix.Kill(os.Getpid(), unix.SIGSTOP) // a process may always stop itself
	<-continued
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Version is the program's version; the build may set it.
var Version = "0.1.0"

// programVersion is what repositories and sets are marked with.
func programVersion() string { return "Holdfast " + Version }

// Main runs one command line and returns the exit code.
func Main(ctx context.Context, env *Env) int {
	name := filepath.Base(env.Args[0])
	switch name {
	case "alation_conf":
		asJSON, err := confMain(ctx, env, env.Args[1:])
		return env.exit(name, err, asJSON)
	case "alation_action":
		return actionMain(ctx, env, env.Args[1:])
	case "pgbackrest":
		return backrestMain(ctx, env)
	}
	if len(env.Args) > 2 && env.Args[1] == "pg" && (env.Args[2] == "archive-push" || env.Args[2] == "archive-get") {
		// PostgreSQL starts one of these for every WAL segment: the command tree is not built for them.
		return env.exit("holdfast", archiveMain(ctx, env, env.Args[2], env.Args[3:]), false)
	}
	return rootMain(ctx, env)
}

// maxAnswer bounds what confirm reads of one answer, in bytes.
const maxAnswer = 4096

// confirm asks on standard error and reads one line; anything but want is a refusal. A cancelled ctx ends the waiting.
func (e *Env) confirm(ctx context.Context, question, want string) error {
	if _, err := fmt.Fprintf(e.Stderr, "%s [%s]: ", question, want); err != nil {
		return err
	}
	line, err := bufio.NewReader(io.LimitReader(e.stdin(ctx), maxAnswer)).ReadString('\n')
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && (err != io.EOF || line == "") {
		return &refusedError{"not confirmed (nothing on standard input): nothing was changed"}
	}
	line = strings.TrimRight(line, "\r\n")
	if line != want {
		return &refusedError{fmt.Sprintf("not confirmed (the answer was not %s): nothing was changed", want)}
	}
	return nil
}

// onStderr is the same world with standard output going to standard error: for a plan that somebody is asked about while
// standard output is for one JSON document.
func (e *Env) onStderr() *Env {
	c := *e
	c.Stdout = e.Stderr
	return &c
}

// stdin is standard input, read so that a cancelled ctx ends a Read: at a prompt an interrupt has to end the command,
// not to wait for the next line. A Read that was left behind goes on to its end and what it gets is lost, which does no
// harm to a process that is about to exit.
func (e *Env) stdin(ctx context.Context) io.Reader { return &cancelReader{ctx: ctx, r: e.Stdin} }

type cancelReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c *cancelReader) Read(p []byte) (int, error) {
	type result struct {
		b   []byte
		err error
	}
	done := make(chan result, 1)
	go func() {
		b := make([]byte, len(p)) // not p: after a cancelled Read it is the caller's again
		n, err := c.r.Read(b)
		done <- result{b[:n], err}
	}()
	select {
	case r := <-done:
		return copy(p, r.b), r.err
	case <-c.ctx.Done():
		return 0, c.ctx.Err()
	}
}
