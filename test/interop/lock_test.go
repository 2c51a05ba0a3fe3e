package interop

import (
	"encoding/json"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// background starts a program as the server's user; the returned function tells it to end and waits for that.
func (r *rig) background(name string, args ...string) (end func()) {
	r.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgres(r.t)}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself, which Wait tells
		if err := cmd.Wait(); err == nil {
			r.t.Errorf("%s ended well, it should have been at work until now:\n%s", filepath.Base(name), out.String())
		}
	}
	r.t.Cleanup(end)
	return end
}

// code runs a program and returns how it ended.
func (r *rig) code(name string, args ...string) (int, string) {
	r.t.Helper()
	out, err := r.try(name, args...)
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode(), out
	}
	return 0, out
}

// held waits until both programs say that the backup lock is held, or is free.
func (r *rig) held(want bool) {
	r.t.Helper()
	said := ""
	for range 600 {
		said = ""
		for _, text := range []string{r.backrest("info", "--output=json"), r.holdfast("info", "--output=json")} {
			var stanzas []struct {
				Status struct {
					Lock struct{ Backup struct{ Held bool } }
				}
			}
			if err := json.Unmarshal([]byte(text), &stanzas); err != nil || len(stanzas) != 1 {
				r.t.Fatalf("info: %v\n%s", err, text)
			}
			if stanzas[0].Status.Lock.Backup.Held != want {
				said += text
			}
		}
		if said == "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	r.t.Fatalf("the backup lock is not held: %t is never said by both:\n%s", want, said)
}

// TestSharedLocks: while one of the programs makes a backup the other one neither makes one nor lets any expire, changes notes
// or the stanza; and each respects the stop file of the other.
func TestSharedLocks(t *testing.T) {
	const busy, theirBusy, theirStop = 4, 50, 62
	r := newRig(t, 15, "none")
	r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
	r.ourArchive("none")
	r.backup("full", "ours", "none")
	label := r.labels()[0]
	r.archiveWith("test pgbackrest = away") // a backup now waits for its first segment, and holds its lock
	theirs := func(args ...string) []string {
		return append([]string{"--config=" + r.conf, "--stanza=" + stanza, "--log-level-console=error"}, args...)
	}
	ours := map[string][]string{
		"backup":        append(r.server(), "--type=incr"),
		"expire":        {"--repo1-retention-full=1"},
		"annotate":      {"--set=" + label, "--annotation=a=b"},
		"stanza-create": {"--pg1-path=" + r.c.DataDir()},
	}
	original := [][]string{theirs("backup", "--type=incr"), theirs("expire", "--repo1-retention-full=1"), theirs("annotate", "--set="+label, "--annotation=a=b"), theirs("stanza-create")}

	r.held(false)
	end := r.background("pgbackrest", theirs("backup", "--type=incr")...)
	r.held(true)
	for verb, args := range ours {
		if code, out := r.code(r.bin, r.command(verb, args)...); code != busy || !strings.Contains(out, "lock") {
			t.Errorf("%s during a backup by pgbackrest ends with %d:\n%s", verb, code, out)
		}
	}
	end()
	r.held(false)

	end = r.background(r.bin, r.command("backup", append(r.server(), "--type=incr"))...)
	r.held(true)
	for _, args := range original {
		if code, out := r.code("pgbackrest", args...); code != theirBusy {
			t.Errorf("pgbackrest %v during a backup by us ends with %d:\n%s", args, code, out)
		}
	}
	end()
	r.held(false)

	switchTo := func(verb string) {
		r.run(r.bin, "pg", verb, "--stanza="+stanza, "--lock-path="+filepath.Join(r.dir, "lock"))
	}
	switchTo("stop")
	for _, args := range original[:2] {
		if code, out := r.code("pgbackrest", args...); code != theirStop {
			t.Errorf("pgbackrest %v with our stop file ends with %d:\n%s", args, code, out)
		}
	}
	r.backrest("start")
	r.backrest("stop")
	for _, verb := range []string{"backup", "expire"} {
		if code, out := r.code(r.bin, r.command(verb, ours[verb])...); code == 0 || !strings.Contains(out, stanza+".stop") {
			t.Errorf("%s with the stop file of pgbackrest ends with %d:\n%s", verb, code, out)
		}
	}
	switchTo("start")
	r.ourArchive("none")
	r.backup("incr", "theirs", "none")
	r.backup("incr", "ours", "none")
	r.holdfast("check", r.server()...)
	r.agree()
}
