package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"holdfast/internal/action"
	"holdfast/internal/conf"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// Exit codes. docs/commands.md lists them.
const (
	exitOK       = 0
	exitFailed   = 1   // also: archive-get did not find the file, as restore_command expects
	exitUsage    = 2   // the command line or a parameter is wrong; nothing was changed
	exitWarnings = 3   // done, and something needs attention
	exitBusy     = 4   // another run holds the lock
	exitRefused  = 5   // the plan says why not, or it was not confirmed; nothing was changed
	exitFindings = 6   // a check found damage
	exitArchive  = 126 // archive-get could not look: PostgreSQL must stop, not end recovery early
	exitSignal   = 130
)

// refusedError says that nothing was done, on purpose.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

// usageError says that the command line is wrong.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// warningsError ends a command that did its work, with code 3.
type warningsError struct{ n int }

func (e *warningsError) Error() string { return fmt.Sprintf("done, with %d warning(s)", e.n) }

// findingsError ends a check that found damage.
type findingsError struct{ n int }

func (e *findingsError) Error() string { return fmt.Sprintf("%d finding(s)", e.n) }

// exitCode is the one place where errors become codes.
func exitCode(err error) int {
	var refused *refusedError
	var usage *usageError
	var warnings *warningsError
	var findings *findingsError
	var unavailable *unavailableError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &unavailable):
		return exitArchive
	case errors.Is(err, context.Canceled):
		return exitSignal
	case errors.As(err, &usage), errors.Is(err, conf.ErrRefused):
		return exitUsage
	case errors.As(err, &warnings):
		return exitWarnings
	case errors.As(err, &findings):
		return exitFindings
	case errors.As(err, &refused), errors.Is(err, engine.ErrTargetNotEmpty), errors.Is(err, engine.ErrTargetRunning), errors.Is(err, engine.ErrLastBackup),
		errors.Is(err, action.ErrRestart):
		return exitRefused
	case errors.Is(err, action.ErrBusy), errors.Is(err, repo.ErrLocked):
		return exitBusy
	}
	return exitFailed
}

// exit prints the error, if any, and returns its code. asJSON: as one document on standard output.
func (e *Env) exit(name string, err error, asJSON bool) int {
	code := exitCode(err)
	if err == nil {
		return code
	}
	text := err.Error()
	if code == exitSignal {
		text = "interrupted: " + text
	}
	var warnings *warningsError
	var findings *findingsError
	already := errors.As(err, &warnings) || errors.As(err, &findings) // the document with the result is out
	if asJSON && !already {
		b, merr := json.Marshal(map[string]any{"error": text, "code": code})
		if merr == nil {
			fmt.Fprintf(e.Stdout, "%s\n", b)
			return code
		}
	}
	for i, line := range strings.Split(text, "\n") {
		if i == 0 {
			line = name + ": " + line
		}
		fmt.Fprintln(e.Stderr, line)
	}
	return code
}
