package instance

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// runShell runs the shell of i and returns what it printed.
func runShell(t *testing.T, i *Instance, o ShellOptions, stdin string) string {
	t.Helper()
	c, err := i.ShellCommand(o)
	if err != nil {
		t.Fatal(err)
	}
	cmd := c.Cmd(t.Context())
	cmd.Stdin = strings.NewReader(stdin)
	cmd.SysProcAttr.Setsid = true // an interactive shell must not take the test's terminal
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

func TestSubshell(t *testing.T) {
	i := mustInit(t, options(t)).Instance
	env := []string{"PATH=/usr/bin:/bin", "TERM=dumb", "BASH_ENV=/nonexistent", "HOLDFAST_ROOT=/wrong"}
	const script = `pwd; alation_conf a.b -s "c d"; echo "$ALATION_USER $TERM ${BASH_ENV-none}"`
	want := i.Root() + "\nalation_conf root=" + i.Root() + " args=a.b -s c d\n" + i.User() + " dumb none\n"
	if got := runShell(t, i, ShellOptions{Command: script, Env: env}, ""); got != want {
		t.Errorf("-c: %q, want %q", got, want)
	}
	if got := runShell(t, i, ShellOptions{Env: env}, script+"\nexit\necho never\n"); got != want {
		t.Errorf("stdin: %q, want %q", got, want)
	}
	c, err := i.ShellCommand(ShellOptions{Interactive: true, Env: env})
	if err != nil || !slices.Contains(c.Args, "-i") || c.Chroot != "" {
		t.Errorf("interactive: %+v %v", c, err)
	}
	// The interactive shell has the prompt; bash prints it to standard error.
	if got := runShell(t, i, ShellOptions{Interactive: true, Env: env}, "exit\n"); !strings.Contains(got, "["+i.User()+"@") {
		t.Errorf("prompt: %q", got)
	}
}

func TestShellDropsRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		return // an ordinary user has nothing to drop
	}
	o := options(t)
	o.User = "nobody"
	// The temporary directory's parents are closed to others.
	for dir := filepath.Dir(o.Root); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	i := mustInit(t, o).Instance
	if got := runShell(t, i, ShellOptions{Command: `id -un; echo "$HOME $USER"; touch etc/holdfast/probe data2/backup/probe && echo written`, Env: []string{"PATH=/usr/bin:/bin", "HOME=/root", "USER=root"}}, ""); got != "nobody\n/nonexistent nobody\nwritten\n" {
		t.Errorf("got %q", got)
	}
}

// TestChroot enters a root that has a shell of its own, made of the host's static or dynamic sh and what it is linked with.
// mayMount tries what a start of the instance does. (unshare(1) is no measure: inside a chroot it fails where mount works.)
func mayMount(t *testing.T) bool {
	t.Helper()
	dir := t.TempDir()
	if exec.Command("mount", "--bind", t.TempDir(), dir).Run() != nil {
		return false
	}
	if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
		t.Fatalf("umount %s: %v: %s", dir, err, out)
	}
	return true
}

func TestChroot(t *testing.T) {
	o := options(t)
	write(t, filepath.Join(o.Root, "etc/passwd"), "root:x:0:0::/root:/bin/sh\nalation:x:0:0::/home/alation:/bin/sh\n", 0o644)
	write(t, filepath.Join(o.Root, "etc/group"), "root:x:0:\nextra:x:4242:other,alation\n", 0o644)
	copyWithLibraries(t, o.Root, "/bin/sh", "/bin/sh")
	for _, tool := range []string{"basename", "readlink"} {
		copyWithLibraries(t, o.Root, "/usr/bin/"+tool, "/usr/bin/"+tool)
	}
	o.User = ""
	if os.Geteuid() != 0 {
		o.User = "alation"
		if _, err := Init(t.Context(), o); err == nil {
			t.Error("an ordinary user made an instance for another user")
		}
		return
	}
	i := mustInit(t, o).Instance
	if i.User() != "alation" || !i.isChroot() {
		t.Fatalf("user %s", i.User())
	}
	c, err := i.ShellCommand(ShellOptions{Command: ". /etc/profile.d/holdfast.sh; alation_conf x", Env: []string{"TERM=dumb", "SECRET=1"}})
	if err != nil || c.Chroot != o.Root || c.User == nil || !slices.Contains(c.User.Groups, 4242) || slices.Contains(c.Env, "SECRET=1") {
		t.Fatalf("%+v %v", c, err)
	}
	// The disks lie outside: links would lead nowhere from inside, so they are directories to be bound.
	if info, err := os.Lstat(filepath.Join(o.Root, "data2")); err != nil || !info.IsDir() {
		t.Errorf("data2: %v %v", info, err)
	}
	if i.Ready() == nil {
		t.Error("ready without the disks")
	}
	if mayMount(t) {
		if err := i.Start(t.Context()); err != nil {
			t.Error(err)
		}
		t.Cleanup(func() { _ = i.Stop(context.Background()) }) // the test has reported what matters; the directory must not stay mounted
		if err := i.Start(t.Context()); err != nil {
			t.Errorf("a second start: %v", err)
		}
		if err := i.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	} else if err := i.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "/etc/fstab") {
		t.Errorf("where mounts are not allowed the error says what to do: %v", err)
	}
	cmd := c.Cmd(t.Context())
	out, err := cmd.CombinedOutput()
	if err != nil || string(out) != "alation_conf root=/ args=x\n" {
		t.Errorf("in the chroot: %q %v", out, err)
	}
	// Something written at the mount point while the disk was away is not hidden by a mount.
	write(t, filepath.Join(o.Root, "data1/stray"), "x", 0o644)
	if err := i.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "stray") {
		t.Errorf("start over a stray file: %v", err)
	}
}

// copyWithLibraries puts a program and the libraries that ldd names below root.
func copyWithLibraries(t *testing.T, root, from, to string) {
	t.Helper()
	write(t, filepath.Join(root, to), read(t, from), 0o755)
	out, err := exec.Command("ldd", from).CombinedOutput()
	if err != nil {
		return // a static program
	}
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "/") {
			write(t, filepath.Join(root, word), read(t, word), 0o755)
		}
	}
}
