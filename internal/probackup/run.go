package probackup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/said"
)

// User is whom the program runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32
}

// Tool is one pg_probackup on one backup catalog.
type Tool struct {
	Program string        // absolute path
	Dir     string        // of the backup catalog, absolute
	Env     []string      // all that it finds in its environment (NAME=value); passwords come to it this way, never by an argument
	User    *User         // nil: as this process
	Grace   time.Duration // how long it may take to end when it is cancelled; then it and its children are killed
	Warn    func(string)  // gets its warnings, one line each; nil: nobody
	Say     func(string)  // gets everything else that it logs; nil: nobody
}

// Error is a command that failed: how it ended and the end of its log.
type Error struct {
	Verb     string
	Instance string
	Code     int      // exit code; -1: it did not run, or a signal ended it
	Last     []string // lines of its log
	err      error
}

func (e *Error) Error() string {
	how := fmt.Sprintf("exit code %d", e.Code)
	if e.Code < 0 {
		how = e.err.Error()
	}
	text := "pg_probackup " + e.Verb + ": " + how
	if e.Instance != "" {
		text = "instance " + e.Instance + ": " + text
	}
	if len(e.Last) > 0 {
		text += "; its last lines:\n  " + strings.Join(e.Last, "\n  ")
	}
	return text
}

// Unwrap is what starting it, or waiting for it, gave.
func (e *Error) Unwrap() error { return e.err }

const maxOutput = 64 << 20 // bytes of standard output, which holds a JSON document

// run runs one command to its end and returns what it printed. Cancelled: it is interrupted (SIGINT, as by Ctrl-C), upon which it
// ends the server's backup mode, and after the grace killed with all its children. It also ends when this process is killed.
func (t *Tool) run(ctx context.Context, instance, verb string, args ...string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	cmd := exec.Command(t.Program, append([]string{verb}, args...)...)
	cmd.Dir = "/" // ours may be closed to the user
	cmd.Env = append([]string{"LC_ALL=C", "TZ=UTC"}, t.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if u := t.User; u != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	}
	cmd.WaitDelay = 10 * time.Second // for children that keep its output open
	out, printed := &bounded{most: maxOutput}, &said.Lines{Each: t.hear}
	cmd.Stdout, cmd.Stderr = out, printed
	runtime.LockOSThread() // the signal at a parent's death is sent when the thread that started the child ends
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return nil, &Error{Verb: verb, Instance: instance, Code: -1, err: err}
	}
	end := t.endWhenDone(ctx, cmd.Process.Pid)
	err := cmd.Wait()
	end()
	printed.End()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err == nil && out.over {
		err = fmt.Errorf("it printed more than %d bytes", maxOutput)
	}
	if err != nil {
		e := &Error{Verb: verb, Instance: instance, Code: cmd.ProcessState.ExitCode(), Last: printed.Last, err: err}
		if e.Code == 0 { // it ended well, its output did not
			e.Code = -1
		}
		return out.buf.Bytes(), e
	}
	return out.buf.Bytes(), nil
}

// endWhenDone ends the program's process group when ctx is done. The returned function is to be called when the program has ended.
func (t *Tool) endWhenDone(ctx context.Context, pid int) func() {
	ended, watching := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		_ = syscall.Kill(-pid, syscall.SIGINT) // it may have ended just now
		timer := time.NewTimer(t.Grace)
		defer timer.Stop()
		select {
		case <-ended:
		case <-timer.C:
		}
		_ = syscall.Kill(-pid, syscall.SIGKILL) // and what it has left behind
	}()
	return func() {
		close(ended)
		<-watching
	}
}

// bounded keeps the beginning of an output.
type bounded struct {
	buf  bytes.Buffer
	most int
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	n := min(len(p), b.most-b.buf.Len())
	b.buf.Write(p[:n])
	b.over = b.over || n < len(p)
	return len(p), nil
}

// usual are warnings that come with every run and that the operator of an instance can do nothing about.
var usual = [...]string{
	"Current PostgreSQL role is superuser. It is not recommended to run pg_probackup under superuser.",
	"This PostgreSQL instance was initialized without data block checksums.",
}

// hear passes on a line that the program printed on its standard error.
func (t *Tool) hear(line string) {
	to := t.Say
	if text, ok := strings.CutPrefix(line, "WARNING: "); ok && !isUsual(text) {
		to, line = t.Warn, text
	}
	if to != nil {
		to(line)
	}
}

func isUsual(text string) bool {
	for _, u := range usual {
		if strings.HasPrefix(text, u) {
			return true
		}
	}
	return strings.HasPrefix(text, "Backup ") && strings.HasSuffix(text, " is used without validation.") // we validate ourselves, before
}

// Find looks for a pg_probackup in directories: the one for a major version of PostgreSQL as its packages call it
// (pg_probackup-15), else pg_probackup. Directories that are not absolute are passed over.
func Find(dirs []string, major string) (string, error) {
	for _, name := range []string{"pg_probackup-" + major, "pg_probackup"} {
		for _, dir := range dirs {
			if !filepath.IsAbs(dir) {
				continue
			}
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	return "", fmt.Errorf("%w: neither pg_probackup-%s nor pg_probackup in %s", ErrMissing, major, strings.Join(dirs, ", "))
}

// ErrMissing says that there is no such program.
var ErrMissing = errors.New("pg_probackup is not installed")
