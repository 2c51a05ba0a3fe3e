package action

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
	"unicode"

	"holdfast/internal/catalog"
)

// PostScriptOptions is the program that relocates the tarballs after a run.
type PostScriptOptions struct {
	Path    string
	Timeout time.Duration
	Env     []string // what it finds in its environment (NAME=value) besides what postScript adds
}

// Bounds of what is logged of the program's output.
const (
	postScriptLines = 1000
	postScriptLine  = 1000 // bytes
)

// postScript runs the program for one set: with the paths of both tarballs (one where there is no event bus) as arguments, nothing
// on standard input, in the dump directory. Its output is logged line by line. What it is and how it ended is in the set; it can't
// fail the run.
func (a *App) postScript(ctx context.Context, s *catalog.Set) {
	o := a.o.PostScript
	if o == nil {
		return
	}
	if s.Unsettled && a.relocated(s) {
		a.warn("the tarballs of set %s are not where the run that died wrote them: %s is not run for them again; look whether they are whole where it takes them", s.ID, o.Path)
		return
	}
	a.step("backup_all", "post-script", o.Path)
	s.PostScript = &catalog.PostScript{Program: o.Path, Ran: catalog.Interval{From: a.o.Now().UTC()}, Code: -1}
	err := a.runPostScript(ctx, s)
	s.PostScript.Ran.To = a.o.Now().UTC()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		s.PostScript.Code = exit.ExitCode()
	} else if err == nil {
		s.PostScript.Code = 0
	}
	if err != nil {
		s.PostScript.Error = err.Error()
		a.warn("%s, the program of alation.backup.post_script.path: %v; the set is complete, its tarballs may not be where that program was to bring them", o.Path, err)
	}
}

// relocated says whether none of a set's tarballs is where it was made.
func (a *App) relocated(s *catalog.Set) bool {
	for _, kind := range []catalog.Kind{catalog.Application, catalog.EventBus} {
		if p := s.Piece(kind); p != nil {
			if _, err := os.Lstat(p.Path); !errors.Is(err, fs.ErrNotExist) {
				return false
			}
		}
	}
	return true
}

func (a *App) runPostScript(ctx context.Context, s *catalog.Set) error {
	o := a.o.PostScript
	if ctx.Err() != nil {
		return fmt.Errorf("it was not run: %w", context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("it took longer than %s (alation.backup.post_script.timeout)", o.Timeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, o.Path)
	cmd.Dir = a.o.DumpDir
	cmd.Env = append(o.Env[:len(o.Env):len(o.Env)], "HOLDFAST_SET="+s.ID, "HOLDFAST_ROOT="+a.o.Root)
	for _, k := range []struct {
		kind catalog.Kind
		name string
	}{{catalog.Application, "HOLDFAST_APPLICATION"}, {catalog.EventBus, "HOLDFAST_EVENTBUS"}} {
		if p := s.Piece(k.kind); p != nil {
			cmd.Args = append(cmd.Args, p.Path)
			cmd.Env = append(cmd.Env, k.name+"="+p.Path, k.name+"_SHA256="+p.SHA256)
		}
	}
	if s.Kit != nil {
		cmd.Env = append(cmd.Env, "HOLDFAST_RECOVERY_KIT="+s.Kit.Path)
	}
	out, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}    // two at once must not have the same tarballs
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with all that it started
	cmd.WaitDelay = 10 * time.Second
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		a.logOutput(out)
	}()
	runtime.LockOSThread() // the signal at a parent's death is sent when the thread that started the child ends
	defer runtime.UnlockOSThread()
	err := cmd.Run()
	w.Close() // the reader ends; a pipe in memory has no error to give
	<-logged
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("%w, and was ended (%v)", cause, err)
	}
	return err
}

// logOutput logs the lines of r, as many as it takes and no more, and reads to the end.
func (a *App) logOutput(r io.Reader) {
	lines := bufio.NewReaderSize(r, postScriptLine)
	for n := 0; ; {
		line, more, err := lines.ReadLine()
		if err != nil {
			return
		}
		if n++; n <= postScriptLines {
			text := strings.Map(func(r rune) rune { // a log has one entry a line
				if unicode.IsPrint(r) || r == '\t' {
					return r
				}
				return '?'
			}, string(line))
			if more {
				text += "…"
			}
			a.step("backup_all", "post-script-output", text)
		} else if n == postScriptLines+1 {
			a.step("backup_all", "post-script-output", "… and more, which is not logged")
		}
		for more && err == nil { // the rest of a long line
			_, more, err = lines.ReadLine()
		}
	}
}
