package interop

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// TestArchiveTimeoutExplains: a backup that waits for WAL in vain says why it does not come.
func TestArchiveTimeoutExplains(t *testing.T) {
	r := newRig(t, 15, "zst")
	r.holdfast("stanza-create", "--pg1-path="+r.c.DataDir())
	r.archiveWith("false")
	r.c.Exec(t, "create table t as select 1 as i", "select pg_switch_wal()")
	args := append([]string{"pg", "backup", "--stanza=" + stanza, "--repo1-path=" + r.repo, "--lock-path=" + r.dir + "/lock", "--start-fast"}, r.server()...)
	cmd := exec.Command(r.bin, append(args, "--archive-timeout=4s")...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: postgres(t)}
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("the backup succeeded without an archive:\n%s", out)
	}
	for _, want := range []string{"did not reach the archive in time", "archive_command is false", "failed last", "wait to be archived in", "pg_wal"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("not said: %q in\n%s", want, out)
		}
	}
}
