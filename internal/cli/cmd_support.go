package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/durable"
	"holdfast/internal/engine"
)

// supportFlags are what holdfast support-bundle takes.
type supportFlags struct {
	out    string
	days   int
	dryRun bool
}

func (r *root) supportCommand() *cobra.Command {
	var f supportFlags
	c := &cobra.Command{Use: "support-bundle", Short: "collect what somebody needs to help, secrets removed, in one tar.gz", Args: noArgs,
		Long: `Writes a tar.gz (mode 0600) with versions, the host, parameters, the catalogue, the schedule's state, the logs of the last days,
what the repositories hold, disk space, PostgreSQL's settings for archiving and what waits to be archived, the unit and the lines
of cron that are the instance's, and doctor's findings. It changes nothing and reads no data of the application.

Secrets are taken out of all of it, log lines included: every secret of the parameter store in the forms in which programs write
one, and whatever looks like a password, a key or a token. What can't be read is said in README.txt inside. Look through it before
you give it away: names of hosts, paths, databases and topics are in it.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.supportBundle(cmd.Context(), f) }}
	fl := c.Flags()
	fl.StringVarP(&f.out, "output", "o", "", "the file to write (default: holdfast-support-TIME.tar.gz in this directory)")
	fl.IntVar(&f.days, "days", 7, "how many days of logs go in")
	fl.BoolVar(&f.dryRun, "dry-run", false, "list what would go in, write nothing")
	return c
}

// supportResult is what the command did.
type supportResult struct {
	Path  string        `json:"path"`
	Size  int64         `json:"size"`
	Files []supportDone `json:"files"`
	Notes []string      `json:"notes"`          // what could not be read
	Blind []string      `json:"secrets_unread"` // secrets that are taken out only where they look like one
}

func (r *root) supportBundle(ctx context.Context, f supportFlags) error {
	if f.days < 0 || f.days > 3650 {
		return &usageError{fmt.Sprintf("--days=%d: from 0 to 3650", f.days)}
	}
	s, err := newSupport(r, f.days)
	if err != nil {
		return err
	}
	if f.dryRun {
		return r.env.printSupportPlan(r.f.json, s)
	}
	path, err := supportPath(r.env, f.out)
	if err != nil {
		return err
	}
	res, err := s.write(ctx, path)
	if err != nil {
		return err
	}
	if r.f.json {
		err = r.env.printJSON(res)
	} else {
		var p page
		for _, d := range res.Files {
			p.f("  %9s  %s\n", engine.Size(d.Size), d.Name)
		}
		for _, n := range res.Notes {
			p.f("not in it: %s\n", n)
		}
		p.f("wrote %s, %s, %d files; look through it before you give it away\n", res.Path, engine.Size(res.Size), len(res.Files))
		err = p.to(r.env.Stdout)
	}
	if len(res.Blind) == 0 {
		return err
	}
	var warnings []string
	for _, b := range res.Blind {
		warnings = append(warnings, fmt.Sprintf("a secret could not be read, so it is taken out only where it looks like one: %s; run it as the user who may read it, or look through the logs inside", b))
	}
	return errors.Join(err, r.warnings(warnings))
}

// supportPath is where the bundle goes. What is there stays.
func supportPath(env *Env, out string) (string, error) {
	if out == "" {
		out = "holdfast-support-" + env.Now().UTC().Format("20060102T150405Z") + ".tar.gz"
	}
	if !filepath.IsAbs(out) {
		dir, err := env.Getwd()
		if err != nil {
			return "", fmt.Errorf("support bundle: %w; name the file with -o /PATH", err)
		}
		out = filepath.Join(dir, out)
	}
	if _, err := os.Lstat(out); !errors.Is(err, fs.ErrNotExist) {
		if err != nil {
			return "", fmt.Errorf("support bundle: %w", err)
		}
		return "", &refusedError{fmt.Sprintf("%s is there already, nothing was written: name another file with -o", out)}
	}
	return out, nil
}

func (e *Env) printSupportPlan(asJSON bool, s *support) error {
	if asJSON {
		return e.printJSON(s.items)
	}
	rows := [][]string{{"FILE", "HOLDS"}}
	for _, i := range s.items {
		rows = append(rows, []string{i.Name, i.About})
	}
	_, err := fmt.Fprint(e.Stdout, table(rows))
	return err
}

// supportItemTime bounds how long one file of the bundle may take to collect: a store that is away must not hold up the rest.
const supportItemTime = 45 * time.Second

// write makes the bundle. Cancelled, it leaves nothing behind.
func (s *support) write(ctx context.Context, path string) (*supportResult, error) {
	out, err := durable.Create(path, 0o600)
	if err != nil {
		return nil, fmt.Errorf("support bundle: %w", err)
	}
	defer out.Abort() // after Commit it does nothing
	b := newSupportTar(out, filepath.Dir(path), s)
	for _, i := range s.items {
		ictx, cancel := context.WithTimeout(ctx, supportItemTime)
		err := b.add(ictx, i)
		cancel()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, fmt.Errorf("support bundle: %w", err)
		}
	}
	if err := b.close(); err != nil {
		return nil, fmt.Errorf("support bundle: %w", err)
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err := out.Commit(); err != nil {
		return nil, fmt.Errorf("support bundle: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("support bundle: %w", err)
	}
	return &supportResult{Path: path, Size: info.Size(), Files: b.done, Notes: append([]string{}, s.notes...), Blind: append([]string{}, s.blind...)}, nil
}
