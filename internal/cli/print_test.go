package cli

import (
	"strings"
	"testing"

	"holdfast/internal/action"
)

// TestPrintRestorePlan: the page names every directory that is replaced or made, and everything that is in the way.
func TestPrintRestorePlan(t *testing.T) {
	var out strings.Builder
	e := &Env{Stdout: &out}
	plan := &action.RestorePlan{Replaces: []string{"/srv/pg", "/fast/PG_15_1"}, Creates: []string{"/slow/PG_15_1"}, Topics: []string{"events"}, StopsServer: []string{"/srv/pg (process 7)"},
		Tablespaces: map[string]string{"main/slow": "/slow", "main/fast": "/fast"}, GivesBack: "77", Notes: []string{"a note"}, Missing: []string{"a tarball", "a segment"}}
	if err := e.printRestorePlan(plan); err != nil {
		t.Fatal(err)
	}
	at := 0
	for _, line := range []string{"stops PostgreSQL on:", "/srv/pg (process 7)", "then removed):", "  /srv/pg\n", "  /fast/PG_15_1\n", "tablespaces (stanza/name):\n  main/fast in /fast\n  main/slow in /slow\n",
		"creates:\n  /slow/PG_15_1\n", "replaces the topics:\n  events\n", "(77) is given back first", "a note", "missing or wrong:\n  a tarball\n  a segment\n"} {
		i := strings.Index(out.String()[at:], line)
		if i < 0 {
			t.Fatalf("after byte %d there is no %q in\n%s", at, line, out.String())
		}
		at += i
	}
	plan.KeepsAside = true
	if err := e.printRestorePlan(plan); err != nil || !strings.Contains(out.String(), "moved aside and kept") {
		t.Errorf("kept: %v\n%s", err, out.String())
	}
}
