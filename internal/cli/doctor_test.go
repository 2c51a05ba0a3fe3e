package cli

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
)

// TestDoctorOfAnEmptyInstance: without PostgreSQL and without an event bus everything is looked at all the same, and what is wrong is said
// with what to do; a parameter file that can't be read leaves what does not need it.
func TestDoctorOfAnEmptyInstance(t *testing.T) {
	r := newRig(t)
	r.run("alation_conf", "eventbus.enabled", "-s", "False")
	look := func(words ...string) (areas []string, code int) {
		t.Helper()
		s := r.run(append([]string{"holdfast", "doctor", "--json"}, words...)...)
		var res doctorResult
		if err := json.Unmarshal([]byte(s.out), &res); err != nil {
			t.Fatalf("%v: %+v", err, s)
		}
		for _, f := range res.Findings {
			if f.Severity == action.Blocked && f.Do == "" && !strings.Contains(f.What, "alation_") && !strings.Contains(f.What, "holdfast") {
				t.Errorf("nothing is said to do: %+v", f)
			}
			areas = append(areas, f.Area+" "+string(f.Severity))
		}
		return areas, s.code
	}
	areas, code := look()
	for _, want := range []string{"parameters ok", "postgres error", "sets warning", "schedule warning"} {
		if code != exitFindings || !slices.Contains(areas, want) {
			t.Errorf("code %d, %q is not in %v", code, want, areas)
		}
	}
	if s := r.run("holdfast", "doctor"); s.code != exitFindings || !strings.Contains(s.out, "           do: ") || !strings.Contains(s.out, "error(s)") {
		t.Errorf("%+v", s)
	}
	if areas, code = look("--for", "restore"); code != exitFindings || !slices.Contains(areas, "restore error") || slices.Contains(areas, "schedule warning") {
		t.Errorf("for a restore, code %d: %v", code, areas)
	}
	if err := os.WriteFile(r.in.ConfPath(), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if areas, code = look(); code != exitFindings || !slices.Contains(areas, "parameters error") {
		t.Errorf("without parameters, code %d: %v", code, areas)
	}
	for _, words := range [][]string{{"--for", "cheese"}, {"--set", "x"}, {"--file", "x"}, {"--for", "restore", "--set", "x", "--file", "y"}, {"more"}} {
		if s := r.run(append([]string{"holdfast", "doctor"}, words...)...); s.code != exitUsage {
			t.Errorf("%v: %+v", words, s)
		}
	}
	if s := r.run("alation_action", "enable_backupv2", "--skip-preflight"); s.code != exitUsage {
		t.Errorf("%+v", s)
	}
}

// TestTooOld: a set is too old when two times of the schedule have passed; without one after eight days.
func TestTooOld(t *testing.T) {
	began := time.Date(2026, 11, 20, 4, 0, 0, 0, time.UTC) // a Friday
	for _, c := range []struct {
		times   string
		enabled bool
		after   time.Duration
		late    bool
	}{
		{"0 4 * * *", true, 47 * time.Hour, false}, {"0 4 * * *", true, 49 * time.Hour, true}, {"0 4 * * fri", true, 13 * 24 * time.Hour, false}, {"0 4 * * fri", true, 15 * 24 * time.Hour, true},
		{"0 4 * * *", false, 7 * 24 * time.Hour, false}, {"0 4 * * *", false, 9 * 24 * time.Hour, true},
	} {
		f := tooOld(&scheduleView{Times: c.times, Enabled: c.enabled}, &catalog.Set{ID: "s", Began: began}, began.Add(c.after))
		if (f != nil) != c.late {
			t.Errorf("%+v: %+v", c, f)
		}
	}
}
