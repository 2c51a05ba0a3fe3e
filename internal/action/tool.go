package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/said"
	"holdfast/internal/storage"
)

// ToolOptions describes an external pgbackrest that does PostgreSQL's part in place of the built-in engine.
type ToolOptions struct {
	Path string   // the program
	Dir  string   // of its configuration files
	Env  []string // what it finds in its environment (NAME=value) besides the passphrase
}

// Config is the file with the tool's configuration for one stanza.
func (o *ToolOptions) Config(stanza string) string { return filepath.Join(o.Dir, stanza+".conf") }

// tool drives the external pgbackrest for one stanza on one repository directory. It runs as the server's user when we are
// root, since what it writes must belong to that user; the passphrase comes to it by its environment.
type tool struct {
	a    *App
	c    Cluster
	dir  string
	st   storage.Storage // the same repository; a *tarRepo: a backup goes on into the tarball
	look *engine.Stanza  // reads the same repository
}

// configureTool writes the tool's configuration for one cluster and makes the directories that the tool needs. There is no
// secret in it.
func (a *App) configureTool(c Cluster) error {
	owner := a.serverOwner(c)
	text := fmt.Sprintf("# written by Holdfast from its parameters, again at every run\n[global]\nrepo1-path=%s\nrepo1-retention-full=%d\ncompress-type=%s\n",
		a.o.RepoDir, keepAll, a.o.Compress)
	if a.o.RepoPass != "" {
		text += "repo1-cipher-type=aes-256-cbc\n"
	}
	if a.o.Bundle && a.o.Mode == catalog.Apart {
		text += "repo1-bundle=y\n"
		if a.o.Block {
			text += "repo1-block=y\n"
		}
	}
	if a.o.Compress != repo.None {
		text += fmt.Sprintf("compress-level=%d\n", a.o.Level)
	}
	// Sets decide what is kept, not the tool; its log is read from its standard error.
	text += fmt.Sprintf("process-max=%d\narchive-timeout=%d\nstart-fast=y\nexpire-auto=n\nlog-level-file=off\nlock-path=%s\n",
		max(a.o.ProcessMax, 1), max(1, int(a.o.ArchiveTimeout/time.Second)), a.o.PGLockDir)
	text += fmt.Sprintf("\n[%s]\n", c.Stanza)
	if c.DataDir != "" { // else it is only known by its backups
		text += fmt.Sprintf("pg1-path=%s\n", c.DataDir)
	}
	if filepath.IsAbs(c.Conn.Host) {
		text += fmt.Sprintf("pg1-socket-path=%s\n", c.Conn.Host)
	}
	if c.Conn.Port != 0 {
		text += fmt.Sprintf("pg1-port=%d\n", c.Conn.Port)
	}
	if c.Conn.User != "" {
		text += fmt.Sprintf("pg1-user=%s\n", c.Conn.User)
	}
	for _, dir := range []string{a.o.RepoDir, a.o.PGLockDir} {
		if err := durable.MkdirAllOwned(dir, 0o750, owner); err != nil {
			return fmt.Errorf("directory for %s: %w", a.o.Tool.Path, err)
		}
	}
	return wrap(replaceOwned(a.o.Tool.Config(c.Stanza), []byte(text), owner), "configuration of %s", a.o.Tool.Path)
}

// keepAll is the largest count that repo1-retention-full takes: without one the tool warns at every run.
const keepAll = 9999999

// checkTool says what keeps the tool from working for a cluster.
func (a *App) checkTool(c Cluster) error {
	if a.o.Tool == nil {
		return nil
	}
	if info, err := os.Stat(a.o.Tool.Path); err != nil {
		return fmt.Errorf("pgsql.backup.tool_path: %w; name the program with alation_conf pgsql.backup.tool_path -s FILE, or use the built-in engine: alation_conf --unset pgsql.backup.tool_path", err)
	} else if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return fmt.Errorf("pgsql.backup.tool_path: %s is not a program", a.o.Tool.Path)
	}
	if c.Conn.Host != "" && !filepath.IsAbs(c.Conn.Host) {
		return fmt.Errorf("cluster %s: pgbackrest connects through a socket, but host=%s is not a directory: name the socket directory in pgsql.clusters", c.Stanza, c.Conn.Host)
	}
	return nil
}

// run runs one command of the tool to its end and returns what it printed. Its warnings become ours. Cancelled: it is asked
// to end (SIGTERM) and takes the server out of backup mode; it also ends when this process is killed.
func (t *tool) run(ctx context.Context, verb string, args ...string) (string, error) {
	if err := errors.Join(ctx.Err(), t.a.checkTool(t.c)); err != nil {
		return "", err
	}
	if err := t.a.configureTool(t.c); err != nil {
		return "", err
	}
	o := t.a.o.Tool
	words := append([]string{"--config=" + o.Config(t.c.Stanza), "--stanza=" + t.c.Stanza, "--repo1-path=" + t.dir, "--log-level-console=off", "--log-level-stderr=info"}, args...)
	cmd := exec.CommandContext(ctx, o.Path, append(words, verb)...)
	cmd.Dir = "/" // ours may be closed to the server's user
	cmd.Env = o.Env
	if t.a.o.RepoPass != "" {
		cmd.Env = append(cmd.Env[:len(cmd.Env):len(cmd.Env)], "PGBACKREST_REPO1_CIPHER_PASS="+string(t.a.o.RepoPass))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	if owner := t.a.serverOwner(t.c); owner != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(owner.UID), Gid: uint32(owner.GID)}
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute
	var out bytes.Buffer
	warnings := toolWarnings{warn: func(text string) { t.a.warn("pgbackrest %s: %s", verb, text) }}
	printed := &said.Lines{Each: warnings.line}
	cmd.Stdout, cmd.Stderr = &out, printed
	t.a.step(verb, "tool", o.Path)
	runtime.LockOSThread() // the signal at a parent's death is sent when the thread that started the child ends
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	printed.End()
	warnings.flush()
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err != nil {
		return out.String(), &toolError{verb: verb, stanza: t.c.Stanza, err: err, code: cmd.ProcessState.ExitCode(), last: printed.Last}
	}
	return out.String(), nil
}

// toolError is a command of the tool that failed: its exit code and the end of its log.
type toolError struct {
	verb, stanza string
	err          error // of starting it
	code         int   // -1: it did not run, or a signal ended it
	last         []string
}

func (e *toolError) Error() string {
	how := fmt.Sprintf("exit code %d", e.code)
	if e.code < 0 {
		how = e.err.Error()
	}
	text := fmt.Sprintf("stanza %s: pgbackrest %s: %s", e.stanza, e.verb, how)
	if len(e.last) > 0 {
		text += "; its last lines:\n  " + strings.Join(e.last, "\n  ")
	}
	return text
}

// Unwrap gives the exit codes that mean more than "failed" their meaning.
func (e *toolError) Unwrap() error {
	switch e.code {
	case 50:
		return repo.ErrLocked
	case 62:
		return engine.ErrStopped
	}
	return e.err
}

// toolWarnings finds the warnings in what the tool prints, which may go on in lines that are indented.
type toolWarnings struct {
	warn func(string)
	text string
}

func (l *toolWarnings) line(s string) {
	text, warning := strings.CutPrefix(s, "WARN: ")
	switch {
	case warning:
		l.flush()
		l.text = text
	case l.text != "" && strings.HasPrefix(s, " "):
		l.text += " " + strings.TrimSpace(s)
	default:
		l.flush()
	}
}

func (l *toolWarnings) flush() {
	if l.text != "" {
		l.warn(l.text)
	}
	l.text = ""
}
