package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"holdfast/internal/instance"
)

// crontab is the crontab of the user that runs the command, through the host's crontab program.
type crontab struct{ env *Env }

// errNoCron says that the host has no crontab program.
var errNoCron = errors.New("there is no program crontab on this host: install cron, or run the daemon: holdfast daemon unit --install")

func (c crontab) command(ctx context.Context, args ...string) (*exec.Cmd, error) {
	program := c.env.Crontab
	if program == "" {
		program = "crontab"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return nil, errNoCron
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(c.env.Environ(), "LC_ALL=C")
	return cmd, nil
}

// read is its text; empty when there is none.
func (c crontab) read(ctx context.Context) (string, error) {
	cmd, err := c.command(ctx, "-l")
	if err != nil {
		return "", err
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if strings.Contains(errs.String(), "no crontab for") {
			return "", nil
		}
		return "", fmt.Errorf("crontab -l: %w: %s", err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// write puts text in place of it. crontab(1) replaces the file in one step and refuses one that it does not understand.
func (c crontab) write(ctx context.Context, text string) error {
	cmd, err := c.command(ctx, "-")
	if err != nil {
		return err
	}
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("crontab -: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// systemCrontabs are the entries in the crontabs of the whole host, by their files. One that can't be read is passed over:
// it is somebody else's.
func systemCrontabs(in *instance.Instance) map[string][]instance.CronEntry {
	found := map[string][]instance.CronEntry{}
	files, err := filepath.Glob("/etc/cron.d/*")
	if err != nil { // a pattern that does not change
		files = nil
	}
	for _, name := range append(files, "/etc/crontab") {
		text, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if e := in.CronEntries(string(text)); len(e) > 0 {
			found[name] = e
		}
	}
	return found
}

// cronProblems are the reasons why a line can't work as it is written.
func (c crontab) cronProblems(ctx context.Context, e instance.CronEntry) []string {
	all := e.Problems
	if e.Sources() && exec.CommandContext(ctx, e.Shell, "-c", "source /dev/null").Run() != nil {
		all = append(all, fmt.Sprintf("it uses source, which %s does not know: put the line SHELL=/bin/bash before it, or . in place of source", e.Shell))
	}
	return all
}
