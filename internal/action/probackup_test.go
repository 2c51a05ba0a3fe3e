package action

import (
	"fmt"
	"maps"
	"os/exec"
	"strings"
	"testing"

	"holdfast/internal/catalog"
	"holdfast/internal/probackup"
)

func TestProbackupMode(t *testing.T) {
	full := func(id, status string, tli uint32) probackup.Backup {
		return probackup.Backup{ID: id, Mode: "FULL", Status: status, Timeline: tli, PGDataBytes: 400}
	}
	on := func(id, parent, status string, tli uint32) probackup.Backup {
		return probackup.Backup{ID: id, Mode: "DELTA", Parent: parent, Status: status, Timeline: tli, PGDataBytes: 400}
	}
	for name, c := range map[string]struct {
		backups []probackup.Backup
		every   int
		wal     int64
		whole   bool
		want    string
		why     string
	}{
		"off":                        {[]probackup.Backup{full("A", "OK", 2)}, 1, 0, true, "FULL", "every backup"},
		"first":                      {nil, 7, 0, true, "FULL", "no valid full backup on timeline 2"},
		"of another timeline":        {[]probackup.Backup{full("A", "OK", 1)}, 7, 0, true, "FULL", "timeline 2"},
		"damaged":                    {[]probackup.Backup{full("A", "CORRUPT", 2)}, 7, 0, true, "FULL", "no valid"},
		"on a full one":              {[]probackup.Backup{full("A", "OK", 2)}, 7, 0, false, "DELTA", "A"},
		"little WAL":                 {[]probackup.Backup{full("A", "OK", 2)}, 7, 100, true, "PAGE", "A"},
		"much WAL":                   {[]probackup.Backup{full("A", "OK", 2)}, 7, 101, true, "DELTA", "A"},
		"a segment is missing":       {[]probackup.Backup{full("A", "OK", 2)}, 7, 1, false, "DELTA", "A"},
		"on the newest":              {[]probackup.Backup{full("A", "OK", 2), on("B", "A", "OK", 2)}, 7, 0, false, "DELTA", "B"},
		"the newest is not valid":    {[]probackup.Backup{full("A", "OK", 2), on("B", "A", "OK", 2), on("C", "B", "ERROR", 2)}, 7, 0, false, "DELTA", "B"},
		"a parent is not valid":      {[]probackup.Backup{full("A", "OK", 2), on("B", "A", "CORRUPT", 2), on("C", "B", "OK", 2)}, 7, 0, false, "DELTA", "A"},
		"of the newest full one":     {[]probackup.Backup{full("A", "OK", 2), full("B", "OK", 2), on("C", "A", "OK", 2)}, 7, 0, false, "DELTA", "B"},
		"due":                        {[]probackup.Backup{full("A", "OK", 2), on("B", "A", "OK", 2)}, 2, 0, true, "FULL", "2 backups"},
		"not due":                    {[]probackup.Backup{full("A", "OK", 2), on("B", "A", "OK", 2)}, 3, 0, false, "DELTA", "B"},
		"one that failed counts not": {[]probackup.Backup{full("A", "OK", 2), on("B", "A", "ERROR", 2)}, 2, 0, false, "DELTA", "A"},
	} {
		mode, why := probackupMode(c.backups, 2, c.every, func(*probackup.Backup) (int64, bool) { return c.wal, c.whole })
		if mode != c.want || !strings.Contains(why, c.why) {
			t.Errorf("%s: %s, %s", name, mode, why)
		}
	}
}

func TestFormerCommand(t *testing.T) {
	const (
		ours   = `/usr/local/lib/holdfast/holdfast pg archive-push --stanza=main --repo1-path=/r --pg1-path=/d "%p"`
		theirs = `pgbackrest --stanza=main archive-push %p`
		pb     = `/usr/bin/pg_probackup archive-push --backup-path=/c --instance=main --wal-file-path="%p" --wal-file-name=%f`
		old    = `pg_probackup archive-push -B /c --instance main --wal-file-path=%p --wal-file-name=%f`
	)
	for _, c := range []struct {
		command   string
		probackup bool
		want      string
	}{
		{ours, true, ours}, {theirs, true, theirs}, {pb, false, pb}, {old, false, old},
		{ours, false, ""}, {pb, true, ""}, {"", true, ""}, {"(disabled)", false, ""}, {"cp %p /a/%f", true, ""}, {"test ! -f /a/%f && cp %p /a/%f", false, ""},
		{pb + both + ours, true, ours}, {pb + both + ours, false, pb}, {ours + both + pb, false, pb}, {ours + both + pb, true, ours},
		{"a && " + pb + both + ours, false, ""},
	} {
		if got := formerCommand(c.command, c.probackup); got != c.want {
			t.Errorf("%s, to pg_probackup %v: %q, want %q", c.command, c.probackup, got, c.want)
		}
	}
}

func TestParseTablespaceMap(t *testing.T) {
	for text, want := range map[string]map[string]string{
		"":                                 {},
		"16384 /ts\n":                      {"16384": "/ts"},
		"16384 /ts one\n16385 /two":        {"16384": "/ts one", "16385": "/two"},
		"16384 /a\\\nb\\\\c\r\n16385 /d\n": {"16384": "/a\nb\\c", "16385": "/d"},
	} {
		if got, err := parseTablespaceMap(text); err != nil || !maps.Equal(got, want) {
			t.Errorf("%q: %q %v", text, got, err)
		}
	}
	for _, text := range []string{"x /ts", "16384", "16384 ts", "16384 /a\n16384 /b", "16384 /a\\", "99999999999 /ts"} {
		if got, err := parseTablespaceMap(text); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func FuzzTablespaceMap(f *testing.F) {
	f.Add("16384 /a\\\nb\\\\c\r\n16385 /d\n")
	f.Fuzz(func(t *testing.T, text string) {
		spaces, err := parseTablespaceMap(text)
		if err != nil {
			return
		}
		var again strings.Builder
		for oid, dir := range spaces {
			again.WriteString(oid + " " + strings.NewReplacer("\\", "\\\\", "\n", "\\\n", "\r", "\\\r").Replace(dir) + "\n")
		}
		if got, err := parseTablespaceMap(again.String()); err != nil || !maps.Equal(got, spaces) {
			t.Errorf("%q: %q, again %q %v", text, spaces, got, err)
		}
	})
}

// TestOrNext runs the commands: which are asked, and with what it ends.
func TestOrNext(t *testing.T) {
	for _, c := range []struct {
		ends []string
		code int
		ran  string
	}{
		{[]string{"0"}, 0, "0"}, {[]string{"1"}, 1, "0"}, {[]string{"0", "1"}, 0, "0"}, {[]string{"1", "0"}, 0, "01"}, {[]string{"1", "1"}, 1, "01"},
		{[]string{"126", "0"}, 126, "0"}, {[]string{"1", "126", "0"}, 126, "01"}, {[]string{"1", "1", "0"}, 0, "012"}, {[]string{"1", "1", "127"}, 127, "012"},
	} {
		var commands []string
		for i, e := range c.ends {
			commands = append(commands, fmt.Sprintf("sh -c 'printf %d; exit %s'", i, e))
		}
		cmd := exec.Command("/bin/sh", "-c", orNext(commands))
		out, _ := cmd.Output() // its exit code is looked at
		if code := cmd.ProcessState.ExitCode(); code != c.code || string(out) != c.ran {
			t.Errorf("%v: code %d, ran %q", c.ends, code, out)
		}
	}
}

func TestNewestTool(t *testing.T) {
	set := func(state catalog.State, tool string) *catalog.Set {
		return &catalog.Set{State: state, Recovery: &catalog.Recovery{Postgres: []catalog.PostgresPoint{{Stanza: "main", Tool: tool}}}}
	}
	sets := []*catalog.Set{set(catalog.Complete, catalog.Probackup), set(catalog.Complete, ""), set(catalog.Failed, catalog.Probackup), {State: catalog.Complete}}
	if tool, ok := newestTool(sets, "main"); tool != "" || !ok {
		t.Errorf("%q %v", tool, ok)
	}
	if tool, ok := newestTool(sets, "other"); ok {
		t.Error(tool)
	}
	a := New(Options{Probackup: &ProbackupOptions{Active: true}})
	if note := a.chainNote(sets, "main"); !strings.Contains(note, "can't be continued by the other") {
		t.Error(note)
	}
	if note := a.chainNote(sets[:1], "main"); note != "" {
		t.Error(note)
	}
}
