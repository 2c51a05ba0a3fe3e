package whole

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestCronItself lets the host's cron run the line that the source document shows, and the one that we install, in an instance
// that is a chroot. It takes cron's minutes, most of which are spent waiting.
func TestCronItself(t *testing.T) {
	if testing.Short() {
		t.Skip("needs cron, sudo and PostgreSQL; run make test")
	}
	t.Parallel()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "hf-cron-")
	if err != nil {
		t.Fatal(err)
	}
	must(t, os.Chmod(dir, 0o755))
	script, err := filepath.Abs("testdata/cron.sh")
	if err != nil {
		t.Fatal(err)
	}
	propagation := "private"
	if exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation", propagation, "true").Run() != nil {
		propagation = "unchanged" // in a chroot, whose root is no mount point; the script takes back what it mounts
	}
	words := []string{"unshare", "--mount", "--propagation", propagation, "bash", script, dir, bin}
	if os.Geteuid() != 0 {
		words = append([]string{"sudo", "-n"}, words...)
	}
	t.Cleanup(func() {
		// Removing what still has the host's /usr below it would remove that.
		if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), filepath.Base(dir)) || strings.Contains(string(mounts), "/opt/alation/alation") {
			t.Errorf("something is still mounted, so %s stays: %v\n%s", dir, err, mounts)
			return
		}
		if out, err := exec.Command("rm", "-rf", "--one-file-system", dir).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
	})
	text, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	parts := map[string]string{}
	for _, part := range strings.Split(string(text), "\n== ") {
		name, rest, _ := strings.Cut(part, "\n")
		parts[name] = rest + "\n"
	}
	const keep = "* * * * * /opt/alation/alation/opt/alation/ops/actions/unjailed_update_auto_alation > /dev/null 2>&1\n"
	ours := "* * * * * '/opt/alation/alation/etc/init.d/alation' shell -c 'alation_action backup_all'\n"
	for name, want := range map[string][]string{
		"in the shell":                       {"snapshot.enabled = False\nsnapshot.enabled = False\n"},
		"the command of the document":        {keep + "0 4 * * * source", "the line of cron does not work: what comes after -c is not quoted", "chroot gets no directory"},
		"the result that the document shows": {"it uses source, which /bin/sh does not know"},
		"ours":                               {"removed: 0 4 * * * source /opt/alation/alation/opt/alation/ops/alation_constants;", "installed: " + ours, keep + ours, "\n3\n", "\nshell|-c|alation_action backup_all|\n"},
		"removed":                            {"removed: " + ours, "no backup runs by itself: snapshot.enabled is False", keep},
	} {
		for _, w := range want {
			if !strings.Contains("\n"+parts[name], w) {
				t.Errorf("%s: no %q in\n%s", name, w, parts[name])
			}
		}
	}
	if t.Failed() {
		t.Logf("%s", text)
	}
}
