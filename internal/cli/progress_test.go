package cli

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
)

// events is what a backup of 40 MiB tells, a quarter at a time, in four seconds.
func events(l *listener, clock *time.Time) {
	l.on(engine.Step{Verb: "backup", Name: "copy", Detail: "20261124-030000F"})
	l.on(engine.Amount{Verb: "backup", Files: 7, Bytes: 40 << 20})
	for range 4 {
		*clock = clock.Add(time.Second)
		l.on(engine.Moved{Bytes: 10 << 20})
	}
	l.on(engine.Warning{Text: "a \"quoted\" warning"})
}

func listening(json, terminal bool) (text string, warnings []string) {
	env, _, errs := bareEnv(strings.NewReader(""))
	clock := time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC)
	env.Now = func() time.Time { return clock }
	env.Terminal = terminal
	l := newListener(env, json, nil)
	events(l, &clock)
	return errs.String(), l.done()
}

func TestProgress(t *testing.T) {
	line, warnings := listening(false, true)
	for _, want := range []string{"\r\x1b[Kbackup copy  20MB of 40MB  10MB/s  2s left", "warning: a \"quoted\" warning\n"} {
		if !strings.Contains(line, want) {
			t.Errorf("on a terminal: no %q in %q", want, line)
		}
	}
	if len(warnings) != 1 {
		t.Errorf("warnings %q", warnings)
	}
	if pipe, _ := listening(false, false); pipe != "warning: a \"quoted\" warning\n" {
		t.Errorf("in a pipe: %q", pipe)
	}
	for _, terminal := range []bool{true, false} {
		out, _ := listening(true, terminal)
		var got []progressLine
		for _, l := range bytes.Split(bytes.TrimSpace([]byte(out)), []byte("\n")) {
			var p progressLine
			if err := json.Unmarshal(l, &p); err != nil {
				t.Fatalf("%v: %s", err, l)
			}
			got = append(got, p)
		}
		if len(got) != 7 || got[0].Event != "step" || got[1].Total != 40<<20 || got[3].Event != "progress" || got[3].Moved != 20<<20 || got[3].PerSec != 10<<20 || got[3].Seconds != 2 || got[6].Text != "a \"quoted\" warning" {
			t.Errorf("with --json:\n%s", out)
		}
	}
}
