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
	"math/rand/v2"
	"os"
	"path/filepath"
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
	ExecID        string // "<pid>-<8 hex>"
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
		ExecID: fmt.Sprintf("%d-%08x", os.Getpid(), rand.Uint32())}
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
		return env.exit(name, confMain(ctx, env, env.Args[1:]), false)
	case "alation_action":
		return actionMain(ctx, env, env.Args[1:])
	case "pgbackrest":
		return env.exit(name, errors.New("the pgBackRest command line is not answered to yet; use: holdfast pg …"), false)
	}
	if len(env.Args) > 2 && env.Args[1] == "pg" && (env.Args[2] == "archive-push" || env.Args[2] == "archive-get") {
		// PostgreSQL starts one of these for every WAL segment: the command tree is not built for them.
		return env.exit("holdfast", archiveMain(ctx, env, env.Args[2], env.Args[3:]), false)
	}
	return rootMain(ctx, env)
}

// confirm asks on standard error and reads one line; anything but want is a refusal.
func (e *Env) confirm(question, want string) error {
	if _, err := fmt.Fprintf(e.Stderr, "%s [%s]: ", question, want); err != nil {
		return err
	}
	line, err := bufio.NewReader(e.Stdin).ReadString('\n')
	if err != nil && (err != io.EOF || line == "") {
		return &refusedError{"not confirmed (nothing on standard input): nothing was changed"}
	}
	for len(line) > 0 && (line[len(line)-1] == '\n' || line[len(line)-1] == '\r') {
		line = line[:len(line)-1]
	}
	if line != want {
		return &refusedError{fmt.Sprintf("not confirmed (the answer was not %s): nothing was changed", want)}
	}
	return nil
}
