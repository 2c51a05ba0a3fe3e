package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"holdfast/internal/engine"
)

// printVerify writes what a verification saw: the archive's ranges, a verdict on each backup, then every finding.
func printVerify(out io.Writer, stanza string, res *engine.VerifyResult) error {
	var b strings.Builder
	for _, r := range res.Archives {
		fmt.Fprintf(&b, "archive %s: %s to %s, %d segments\n", r.ArchiveID, r.Start, r.Stop, r.Segments)
	}
	for _, v := range res.Verdicts {
		fmt.Fprintf(&b, "backup %s: %s", v.Label, v.Status)
		if v.Files > 0 {
			fmt.Fprintf(&b, ", %d files", v.Files)
		}
		if v.Damage > 0 {
			fmt.Fprintf(&b, ", %d damaged or missing", v.Damage)
		}
		if v.Unread > 0 {
			fmt.Fprintf(&b, ", %d could not be read", v.Unread)
		}
		b.WriteString("\n")
	}
	for _, f := range res.Findings {
		fmt.Fprintln(&b, f)
	}
	for _, f := range res.Unread {
		fmt.Fprintln(&b, "could not be read:", f)
	}
	fmt.Fprintf(&b, "stanza %s: %d backup(s), %d files, %d WAL segments, %s read, %d finding(s)\n", stanza, len(res.Backups), res.Files, res.Segments, engine.Size(res.Bytes), len(res.Findings))
	_, err := io.WriteString(out, b.String())
	return err
}

// verified is how a verification ends whose result has been shown: damage counts for more than what could not be read (err).
func verified(res *engine.VerifyResult, err error) error {
	switch {
	case len(res.Findings) > 0 && err != nil:
		return errors.Join(&findingsError{len(res.Findings)}, err)
	case len(res.Findings) > 0:
		return &findingsError{len(res.Findings)}
	case err != nil:
		return &shownError{err}
	}
	return nil
}
