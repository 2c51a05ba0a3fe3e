package cli

import (
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
		b.WriteString("\n")
	}
	for _, f := range res.Findings {
		fmt.Fprintln(&b, f)
	}
	fmt.Fprintf(&b, "stanza %s: %d backup(s), %d files, %d WAL segments, %s read, %d finding(s)\n", stanza, len(res.Backups), res.Files, res.Segments, engine.Size(res.Bytes), len(res.Findings))
	_, err := io.WriteString(out, b.String())
	return err
}
