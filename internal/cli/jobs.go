package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/engine"
)

// doJob does one of the daemon's smaller jobs and says in a line what came of it.
func doJob(ctx context.Context, w *wired, job string) (string, error) {
	switch job {
	case jobCopy:
		return copyJob(ctx, w)
	case jobVerify:
		return verifyJob(ctx, w)
	}
	text := "the logs are empty"
	for _, l := range append([]*runLog{w.log}, w.pgLogs...) {
		rotated, err := l.rotate(w.values.Int(conf.KeyLogsKeep))
		if err != nil {
			return "", err
		}
		if rotated != "" && l == w.log {
			text = "the log of yesterday is " + rotated
		}
	}
	return text, nil
}

func copyJob(ctx context.Context, w *wired) (string, error) {
	res, err := w.app.CopySets(ctx)
	if err != nil {
		return "", err
	}
	if len(res.Warnings) > 0 {
		return "", errors.New(strings.Join(res.Warnings, "; "))
	}
	text := fmt.Sprintf("%s is up to date: %d objects, %s, %d WAL segments", res.Store, res.Objects, engine.Size(res.Bytes), res.Segments)
	if len(res.Copied) > 0 {
		text += "; sets " + strings.Join(res.Copied, ", ")
	}
	return text, nil
}

// verifyJob reads the newest complete set. Damage is an error: the job has done its work, but what it found must not look
// like success anywhere.
func verifyJob(ctx context.Context, w *wired) (string, error) {
	sets, _, err := w.app.Sets(ctx)
	if err != nil {
		return "", err
	}
	for i := len(sets) - 1; i >= 0; i-- {
		if sets[i].State != catalog.Complete {
			continue
		}
		v, err := w.app.VerifySet(ctx, sets[i].ID)
		if err != nil {
			return "", err
		}
		if !v.OK {
			return "", fmt.Errorf("set %s is damaged: %w: %s", sets[i].ID, &findingsError{len(v.Findings)}, strings.Join(v.Findings, "; "))
		}
		return fmt.Sprintf("set %s is verified", sets[i].ID), nil
	}
	return "there is no complete set to verify", nil
}

// busyWith is the verb that holds the instance; false when err does not say that one does.
func busyWith(err error) (string, bool) {
	var busy *action.BusyError
	if !errors.As(err, &busy) {
		return "", false
	}
	return busy.Verb, true
}
