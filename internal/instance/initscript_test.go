package instance

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// answers is a stand-in for the binary that ends with the code that the file beside it names for its verb, else with 0.
const answers = `#!/bin/sh
echo "$*" >>"$0.calls"
for code in $(sed -n "s/^$1=//p" "$0.codes"); do exit "$code"; done
`

func exitOf(t *testing.T, err error) int {
	t.Helper()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit == nil {
		return 0
	}
	return exit.ExitCode()
}

// TestInitScriptCodes runs the script with each verb, for each answer of the program that has a code of its own.
func TestInitScriptCodes(t *testing.T) {
	o := options(t)
	write(t, o.Binary, answers, 0o755)
	i := mustInit(t, o).Instance
	script, program := i.own("etc/init.d/alation"), i.own("usr/local/lib/holdfast/holdfast")
	at := " --root " + i.Dir()
	start, stop := "start"+at+"\ndaemon start"+at, "daemon stop"+at+"\nstop"+at // the disks come before the daemon and go after it
	for _, c := range []struct {
		words, codes string
		want         int
		calls        string // of the program
	}{
		{"status", "", 0, "status" + at},
		{"status --json", "", 0, "status" + at + " --json"},
		{"status", "status=3", 3, "status" + at}, // a disk is not attached
		{"status", "status=5", 4, "status" + at}, // there is no instance
		{"status", "status=1", 4, "status" + at},
		{"status", "status=2", 4, "status" + at},
		{"start", "", 0, start},
		{"start", "start=1", 1, "start" + at},
		{"start extra", "start=2", 2, "start" + at + " extra"},
		{"start", "start=5", 6, "start" + at}, // not configured
		{"start", "daemon=1", 1, start},
		{"stop", "", 0, stop},
		{"stop", "stop=1", 1, stop},
		{"stop", "daemon=1", 1, "daemon stop" + at}, // it still uses the disks
		{"restart", "", 0, stop + "\n" + start},
		{"restart", "stop=1", 1, stop}, // what could not be stopped is not started
		{"restart", "start=1", 1, stop + "\nstart" + at},
		{"force-reload", "", 0, stop + "\n" + start},
		{"reload", "", 0, "daemon reload" + at},
		{"try-restart", "", 3, ""},
		{"shell -c false", "shell=7", 7, "shell" + at + " -c false"},
		{"init D B", "init=5", 5, "init D B" + at},
		{"dance", "", 2, ""},
		{"", "", 2, ""},
		{"init D", "", 2, ""},
	} {
		write(t, program+".codes", c.codes+"\n", 0o644)
		write(t, program+".calls", "", 0o644)
		out, err := exec.Command(script, strings.Fields(c.words)...).CombinedOutput()
		if got := exitOf(t, err); got != c.want {
			t.Errorf("%q with %q: code %d, want %d\n%s", c.words, c.codes, got, c.want, out)
		}
		if got := strings.TrimSpace(read(t, program+".calls")); got != c.calls {
			t.Errorf("%q with %q ran %q, want %q", c.words, c.codes, got, c.calls)
		}
	}
	// The program is gone: not installed, and of the status nothing is known. A host may have a program of its own at "/".
	if _, err := os.Stat("/usr/local/lib/holdfast/holdfast"); err == nil {
		return
	}
	if err := os.Rename(program, program+".away"); err != nil {
		t.Fatal(err)
	}
	for verb, want := range map[string]int{"status": 4, "start": 5, "stop": 5, "shell": 5} {
		out, err := exec.Command(script, verb).CombinedOutput()
		if got := exitOf(t, err); got != want || !strings.Contains(string(out), "not installed") {
			t.Errorf("%s without the program: code %d, want %d\n%s", verb, got, want, out)
		}
	}
}
