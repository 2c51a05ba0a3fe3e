package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/instance"
	"holdfast/internal/kit"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
)

// Exit codes. exitCodes says what they mean.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitWarnings = 3
	exitBusy     = 4
	exitRefused  = 5
	exitFindings = 6
	exitScript   = 7
	exitAway     = 8
	exitArchive  = 126 // above 125, where PostgreSQL gives recovery up instead of taking it for ended
	exitSignal   = 130
)

// exitCodes is what help and docs/commands.md print: a few words for a terminal, and the whole of it.
var exitCodes = []struct {
	code         int
	short, whole string
}{
	{exitOK, "done", "done"},
	{exitFailed, "failed", "failed; `archive-get`: not in the archive, as `restore_command` is to say it"},
	{exitUsage, "bad use or parameter", "the command line or a parameter is wrong, or names a set that is not there; nothing was changed"},
	{exitWarnings, "done with warnings", "done, and a warning needs attention"},
	{exitBusy, "another run is working", "another run works on the instance, the stanza or the parameters; the message says which"},
	{exitRefused, "refused or not confirmed, nothing changed", "refused by the plan or by `pgbackrest stop`, or not confirmed; nothing was changed"},
	{exitFindings, "a check found damage", "a check found damage"},
	{exitScript, "done, but the post script failed", "done, and the set is complete, but the program of `alation.backup.post_script.path` failed"},
	{exitAway, "the storage could not be asked", "the storage could not be asked: it does not answer, is overloaded or does not let us in; what is stored may be all right, run it again when that is mended"},
	{exitArchive, "archive-get could not look", "`archive-get` could not look: PostgreSQL stops instead of ending recovery early"},
	{exitSignal, "interrupted", "interrupted"},
}

// exitHelp is the table as one sentence, broken before it gets too wide for a terminal.
func exitHelp() string {
	var b strings.Builder
	width := len("exit codes: ")
	for i, c := range exitCodes {
		item := fmt.Sprintf("%d %s", c.code, c.short)
		if i > 0 {
			item = "; " + item
		}
		if width += len(item); width > 110 {
			item = ";\n" + item[2:]
			width = len(item)
		}
		b.WriteString(item)
	}
	return b.String()
}

// refusedError says that nothing was done, on purpose.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

// usageError says that the command line is wrong.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

// warningsError ends a command that did its work, with code 3.
type warningsError struct{ n int }

func (e *warningsError) Error() string { return fmt.Sprintf("done, with %d warning(s)", e.n) }

// scriptError ends a run whose set is complete and whose tarballs the program of post_script.path may not have relocated.
type scriptError struct{ text string }

func (e *scriptError) Error() string { return "done, but the post script failed: " + e.text }

// findingsError ends a check that found damage.
type findingsError struct{ n int }

func (e *findingsError) Error() string { return fmt.Sprintf("%d finding(s)", e.n) }

// lacksError ends a comparison of two repositories that found something missing in the second.
type lacksError struct{ n int }

func (e *lacksError) Error() string {
	return fmt.Sprintf("%d difference(s): the target does not have all that the source has; to copy it: holdfast repo sync", e.n)
}

// shownError is an error whose command has printed its result as a document already: there is no second one.
type shownError struct{ err error }

func (e *shownError) Error() string { return e.err.Error() }
func (e *shownError) Unwrap() error { return e.err }

// shown marks err, if there is any, as one behind a printed document; print is what came of printing it.
func shown(print, err error) error {
	if print != nil || err == nil {
		return errors.Join(print, err)
	}
	return &shownError{err}
}

// sentinelCodes says which errors of the packages below mean more than "failed".
var sentinelCodes = []struct {
	code int
	errs []error
}{
	{exitUsage, []error{conf.ErrRefused, kit.ErrWanted, catalog.ErrUnknown, action.ErrNoStore, engine.ErrTarget, engine.ErrTablespaceMap, engine.ErrLinkMap, engine.ErrLinkInside, engine.ErrDBMissing, engine.ErrDBInvalid}},
	{exitRefused, []error{engine.ErrTargetNotEmpty, engine.ErrTargetRunning, engine.ErrTargetOwner, engine.ErrTimeline, engine.ErrLastBackup, engine.ErrStopped, engine.ErrPassphrase, engine.ErrCopyConflict, repo.ErrSealed, kit.ErrPassphrase, kit.ErrIdentity, instance.ErrNoInstance, action.ErrRestart, action.ErrNeeded, s3.ErrReadOnly}},
	{exitAway, []error{storage.ErrUnavailable}},
	{exitBusy, []error{action.ErrBusy, repo.ErrLocked, durable.ErrLocked}},
}

// exitCode is the one place where errors become codes.
func exitCode(err error) int {
	var refused *refusedError
	var usage *usageError
	var warnings *warningsError
	var findings *findingsError
	var unavailable *unavailableError
	var lacks *lacksError
	var script *scriptError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &unavailable):
		return exitArchive
	case errors.Is(err, context.Canceled):
		return exitSignal
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &warnings), errors.As(err, &lacks):
		return exitWarnings
	case errors.As(err, &script):
		return exitScript
	case errors.As(err, &findings):
		return exitFindings
	case errors.As(err, &refused):
		return exitRefused
	}
	for _, s := range sentinelCodes {
		if slices.ContainsFunc(s.errs, func(sentinel error) bool { return errors.Is(err, sentinel) }) {
			return s.code
		}
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
	var lacks *lacksError
	var was *shownError
	var script *scriptError
	already := errors.As(err, &script) || errors.As(err, &warnings) || errors.As(err, &findings) || errors.As(err, &lacks) || errors.As(err, &was) // the document with the result is out
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
