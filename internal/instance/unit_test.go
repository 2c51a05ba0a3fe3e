package instance

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestUnit(t *testing.T) {
	for dir, want := range map[string]string{"/": "holdfast.service", "/opt/alation/alation": "holdfast-opt-alation-alation.service", "/srv/at 100%": "holdfast-srv-at-100.service"} {
		if got := (&Instance{dir: dir}).UnitName(); got != want {
			t.Errorf("%s: %s, want %s", dir, got, want)
		}
	}
	for _, dir := range []string{"/a\nExecStart=/x", `/a"b`, "/a$b"} {
		if unit, err := (&Instance{dir: dir}).Unit(); err == nil {
			t.Errorf("%q makes a unit:\n%s", dir, unit)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("no systemd-analyze here: the unit is looked at by eye only")
	}
	for _, dir := range []string{"/", t.TempDir(), filepath.Join(t.TempDir(), "an odd 100% directory")} {
		i := &Instance{dir: dir, m: marker{User: "alation", DataDisk: "/disks/data one", BackupDisk: "/disks/b"}}
		unit, err := i.Unit("/far/copy")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"Type=notify\n", "WatchdogSec=", `ReadWritePaths=`, `"-/disks/data one"`, `"-/far/copy"`, "NoNewPrivileges=yes"} {
			if !strings.Contains(string(unit), want) {
				t.Errorf("%s: no %s in\n%s", dir, want, unit)
			}
		}
		if !OursMark(unit) || dir != "/" && !strings.Contains(string(unit), "ProtectSystem=strict") {
			t.Errorf("%s", unit)
		}
		verifyUnit(t, i, unit)
	}
}

// verifyUnit lets systemd itself read the unit, where it is installed.
func verifyUnit(t *testing.T, i *Instance, unit []byte) {
	t.Helper()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil || i.dir == "/" {
		return
	}
	program := i.own("usr/local/lib/holdfast/holdfast")
	if err := os.MkdirAll(filepath.Dir(program), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, program, "#!/bin/sh\n", 0o755)
	file := filepath.Join(t.TempDir(), i.UnitName())
	write(t, file, string(unit), 0o644)
	out, err := exec.Command(analyze, "verify", "--man=no", "--recursive-errors=no", file).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, filepath.Base(file)) { // what it says of other units of the host is not ours
			t.Errorf("%s", line)
		}
	}
	if err != nil && t.Failed() {
		t.Log(err)
	}
}
