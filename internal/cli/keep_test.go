package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKeep drives pins and the retention on sets of one small file each.
func TestKeep(t *testing.T) {
	r := newRig(t)
	ids := []string{"202611201800_10-0-0-1", "202611211800_10-0-0-1", "202611221800_10-0-0-1", "202611231800_10-0-0-1"}
	for _, id := range ids {
		s := someSet(id)
		s.Pieces[0].Path = filepath.Join(r.in.BackupDir(), "backup", id+"_alation_backup.tar.gz")
		s.Pieces[0].Size = 10
		if err := os.WriteFile(s.Pieces[0].Path, make([]byte, 10), 0o600); err != nil {
			t.Fatal(err)
		}
		r.put(s)
	}
	r.run("alation_conf", "alation.backup_v2.retention.sets", "-s", "1").has(t, exitOK)
	r.run("holdfast", "sets", "pin", ids[0]).has(t, exitUsage, "--reason")
	r.run("holdfast", "sets", "pin", ids[0], "--reason", "x", "--until", "never").has(t, exitUsage, `"never"`, "30d")
	r.run("holdfast", "sets", "pin", ids[0], "--reason", "x", "--until", "2001-01-01").has(t, exitRefused, "not in the future")
	r.run("holdfast", "sets", "pin", "202601010000_1", "--reason", "x").has(t, exitUsage, "no such backup set")
	r.run("holdfast", "sets", "pin", ids[0], "--reason", "for the audit").has(t, exitOK, "without an end: for the audit")
	r.run("holdfast", "sets", "list").has(t, exitOK, "PIN", "for the audit")
	r.run("holdfast", "sets", "delete", ids[0], "--yes").has(t, exitRefused, "pinned: for the audit", "sets unpin "+ids[0])
	r.run("holdfast", "sets", "expire", "--dry-run").has(t, exitOK, "retention: 1 sets", "goes", "pinned: for the audit", "one of the 1 newest", "removes "+filepath.Join(r.in.BackupDir(), "backup", ids[1]))
	r.run("holdfast", "sets", "expire", "--dry-run", "--json").has(t, exitOK, `"goes": true`, `"rule"`)
	r.typed("no\n", "holdfast", "sets", "expire").has(t, exitRefused, "nothing was changed")
	r.run("holdfast", "sets", "show", ids[1]).has(t, exitOK)
	r.typed("YES\n", "holdfast", "sets", "expire").has(t, exitOK, "set "+ids[1]+" is removed", "set "+ids[2]+" is removed")
	r.run("holdfast", "sets", "show", ids[1]).has(t, exitUsage, "no such backup set")
	r.run("holdfast", "sets", "show", ids[3]).has(t, exitOK, "2 set(s) removed", ids[2])
	r.run("holdfast", "sets", "unpin", ids[0]).has(t, exitOK)
	r.run("holdfast", "sets", "expire", "--yes", "--json").has(t, exitOK, `"removed"`, ids[0])
	r.run("holdfast", "sets", "expire").has(t, exitOK, "0B freed here") // nothing to ask
	r.run("holdfast", "sets", "delete", ids[3], "--yes").has(t, exitRefused, "the last one", "--last")
	r.run("holdfast", "sets", "delete", ids[3], "--yes", "--last").has(t, exitOK, "set "+ids[3]+" is deleted")
	// Whoever misses a set finds who removed it.
	r.run("holdfast", "logs", "last").has(t, exitOK, "sets expire: began", "sets expire: ended", "sets pin "+ids[0]+": began", "sets unpin "+ids[0]+": began", "sets delete "+ids[3]+": began", "sets delete "+ids[3]+": ended")
}

// TestParseUntil: ends of pins.
func TestParseUntil(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Time{"": {}, "30d": now.AddDate(0, 0, 30), "12h": now.Add(12 * time.Hour), "6w": now.AddDate(0, 0, 42), "90m": now.Add(90 * time.Minute),
		"2026-12-24 18:00:00+00": time.Date(2026, 12, 24, 18, 0, 0, 0, time.UTC), "2026-12-24": time.Date(2026, 12, 25, 0, 0, 0, 0, time.Local)} {
		if got, err := parseUntil(text, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v, want %v, %v", text, got, want, err)
		}
	}
	for _, text := range []string{"d", "0d", "-3d", "3y", "999999999999999999d", "tomorrow", "2026-13-01", "1.5h"} {
		if got, err := parseUntil(text, now); err == nil {
			t.Errorf("%q is %v", text, got)
		} else if !strings.Contains(err.Error(), text) {
			t.Error(err)
		}
	}
}
