package instance

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/durable"
)

// program is a stand-in for the binary: it says under which name, root and arguments it was run.
const program = `#!/bin/sh
echo "$(basename "$0") root=$HOLDFAST_ROOT args=$*"
`

func currentUser(t *testing.T) string {
	t.Helper()
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// options returns what a test's Init needs, with both disks beside the root.
func options(t *testing.T) InitOptions {
	t.Helper()
	dir := t.TempDir()
	o := InitOptions{
		Root: filepath.Join(dir, "root"), DataDisk: filepath.Join(dir, "data"), BackupDisk: filepath.Join(dir, "backup"),
		User: currentUser(t), Binary: filepath.Join(dir, "program"), Now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		CreateStore: func(_ context.Context, i *Instance, _ *durable.Owner) error {
			f, err := os.OpenFile(i.ConfPath(), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if errors.Is(err, fs.ErrExist) {
				return nil
			}
			if err != nil {
				return err
			}
			_, err = io.WriteString(f, "store")
			return errors.Join(err, f.Close())
		},
	}
	for _, d := range []string{o.DataDisk, o.BackupDisk} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, o.Binary, program, 0o755)
	return o
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func mustInit(t *testing.T, o InitOptions) *InitResult {
	t.Helper()
	r, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestInitTwice(t *testing.T) {
	o := options(t)
	first := mustInit(t, o)
	if !first.New || len(first.Kept) != 0 {
		t.Errorf("first init: %+v", first)
	}
	i, err := Open(o.Root)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Ready(); err != nil {
		t.Error(err)
	}
	for _, dir := range []string{i.LockDir(), i.LogDir(), i.CatalogDir(), i.StagingDir(), i.Resolve("/data2/backup"), i.Resolve("data2/pgbackrest"), filepath.Join(o.BackupDisk, "backup")} {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			t.Errorf("%s: %v", dir, err)
		}
	}
	write(t, i.ConfPath(), "changed by the operator", 0o644)
	write(t, o.Binary, program+"# newer\n", 0o755)
	second := mustInit(t, o)
	if second.New || second.Instance.ID() != first.Instance.ID() {
		t.Errorf("second init: %+v", second)
	}
	if read(t, i.ConfPath()) != "changed by the operator" {
		t.Error("the parameter store was overwritten")
	}
	for _, name := range names {
		if !strings.Contains(read(t, i.own("usr/local/lib/holdfast/"+name)), "newer") {
			t.Errorf("%s is still the old program", name)
		}
		out, err := exec.Command(filepath.Join(i.BinDir(), name), "a b", "c").CombinedOutput()
		if want := name + " root=" + o.Root + " args=a b c\n"; err != nil || string(out) != want {
			t.Errorf("%s: %q %v, want %q", name, out, err, want)
		}
	}
	if read(t, i.own(".disk2_cache")) != o.BackupDisk+"\n" {
		t.Error(".disk2_cache does not name the disk")
	}
	// Without disks named it is completed with those it has.
	o.DataDisk, o.BackupDisk, o.User = "", "", ""
	if third := mustInit(t, o); third.Instance.BackupDir() != i.BackupDir() {
		t.Error("an init without disks changed them")
	}
	if err := second.Instance.Start(t.Context()); err != nil {
		t.Error(err)
	}
	if err := second.Instance.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestInitRefuses(t *testing.T) {
	base := options(t)
	mustInit(t, base)
	other := t.TempDir()
	for name, change := range map[string]func(*InitOptions){
		"another disk":             func(o *InitOptions) { o.BackupDisk = other },
		"another user":             func(o *InitOptions) { o.User = "nobody-else" },
		"one disk for both":        func(o *InitOptions) { o.BackupDisk = o.DataDisk },
		"a disk that is not there": func(o *InitOptions) { o.Root, o.DataDisk = filepath.Join(other, "new1"), "/nonexistent/disk" },
		"another instance's disks": func(o *InitOptions) { o.Root = filepath.Join(other, "new2") },
		"a bad version":            func(o *InitOptions) { o.Version = "1.2" },
		"a bad user":               func(o *InitOptions) { o.Root, o.User = filepath.Join(other, "new3"), "a;b" },
		"no root":                  func(o *InitOptions) { o.Root = "" },
		"no disks on a host":       func(o *InitOptions) { o.Root, o.State, o.DataDisk = "/", other, "" },
		"a disk with a comma":      func(o *InitOptions) { o.Root, o.DataDisk = filepath.Join(other, "new4"), "/a,b" },
		"no program":               func(o *InitOptions) { o.Binary = "/nonexistent" },
		"state without root /":     func(o *InitOptions) { o.State = other },
	} {
		t.Run(name, func(t *testing.T) {
			o := base
			change(&o)
			if r, err := Init(t.Context(), o); err == nil {
				t.Errorf("accepted: %+v", r)
			}
		})
	}
	if i, err := Open(base.Root); err != nil || i.Ready() != nil {
		t.Errorf("the instance suffered: %v", err)
	}
	o := base
	o.Root, o.AdoptDisks = filepath.Join(other, "new5"), true
	adopted := mustInit(t, o)
	if err := adopted.Instance.Ready(); err != nil {
		t.Error(err)
	}
	if i, err := Open(base.Root); err != nil || i.Ready() == nil {
		t.Errorf("the first instance still takes the disks for its own (%v)", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Init(ctx, base); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestInitResumes interrupts Init at its last step but one and repeats it: the disks know whose they are.
func TestInitResumes(t *testing.T) {
	o := options(t)
	broken := o
	broken.CreateStore = func(context.Context, *Instance, *durable.Owner) error { return io.ErrUnexpectedEOF }
	if _, err := Init(t.Context(), broken); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatal(err)
	}
	if _, err := Open(o.Root); !errors.Is(err, ErrNoInstance) {
		t.Errorf("half an instance opens: %v", err)
	}
	if err := mustInit(t, o).Instance.Ready(); err != nil {
		t.Error(err)
	}
}

func TestForeignFilesAreKept(t *testing.T) {
	o := options(t)
	foreign := filepath.Join(o.Root, "opt/alation/ops/alation_constants")
	write(t, foreign, "ALATION_CHROOT=/elsewhere\n", 0o644)
	o.HostScript = filepath.Join(t.TempDir(), "alation")
	installed := filepath.Join(o.Root, "usr/local/bin/holdfast") // by hand, and not worth a warning
	write(t, installed, read(t, o.Binary), 0o755)
	r := mustInit(t, o)
	if read(t, installed) != read(t, o.Binary) {
		t.Error("the program that was installed by hand is another now")
	}
	if len(r.Kept) != 1 || r.Kept[0] != foreign || read(t, foreign) != "ALATION_CHROOT=/elsewhere\n" {
		t.Errorf("kept %q", r.Kept)
	}
	out, err := exec.Command(o.HostScript, "shell", "-c", "x y").CombinedOutput()
	if want := "holdfast root=" + o.Root + " args=shell --root " + o.Root + " -c x y\n"; err != nil || string(out) != want {
		t.Errorf("the host's script: %q %v, want %q", out, err, want)
	}
}

func TestReadyNoticesAMissingDisk(t *testing.T) {
	o := options(t)
	i := mustInit(t, o).Instance
	if err := os.Rename(o.BackupDisk, o.BackupDisk+".away"); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(o.BackupDisk, 0o755); err != nil { // the empty mount point
		t.Fatal(err)
	}
	if err := i.Ready(); err == nil || !strings.Contains(err.Error(), "is the disk mounted") {
		t.Errorf("got %v", err)
	}
	if err := os.RemoveAll(o.BackupDisk); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(o.DataDisk, o.BackupDisk); err != nil { // the wrong disk
		t.Fatal(err)
	}
	if err := i.Ready(); err == nil || !strings.Contains(err.Error(), "data disk") {
		t.Errorf("got %v", err)
	}
}

func TestResolve(t *testing.T) {
	i := &Instance{dir: "/opt/alation/alation"}
	for p, want := range map[string]string{
		"/data2/backup": "/opt/alation/alation/data2/backup", "data2/pgbackrest": "/opt/alation/alation/data2/pgbackrest",
		"../../etc/passwd": "/opt/alation/alation/etc/passwd", "/../..": "/opt/alation/alation", "": "/opt/alation/alation", "a/../../b": "/opt/alation/alation/b",
	} {
		got := i.Resolve(p)
		if got != want {
			t.Errorf("Resolve(%q) = %q, want %q", p, got, want)
		}
		if back, ok := i.Inside(got); !ok || i.Resolve(back) != got {
			t.Errorf("Inside(%q) = %q, %t", got, back, ok)
		}
	}
	if _, ok := i.Inside("/opt/alation/alation2/x"); ok {
		t.Error("a neighbour is not inside")
	}
	host := &Instance{dir: "/home/me/hf", m: marker{HostPaths: true, BackupDisk: "/mnt/b"}}
	if host.Resolve("mnt/b/tmp") != "/mnt/b/tmp" || host.ConfPath() != "/home/me/hf/etc/holdfast/conf.json" || host.CatalogDir() != "/mnt/b/holdfast/catalog" {
		t.Error("host paths are wrong")
	}
}

func TestHostPaths(t *testing.T) {
	o := options(t)
	o.Root, o.State = "/", filepath.Join(t.TempDir(), "state")
	i := mustInit(t, o).Instance
	opened, err := Open(o.State)
	if err != nil || !opened.HostPaths() || opened.Root() != "/" || opened.BackupDir() != o.BackupDisk {
		t.Fatalf("%+v %v", opened, err)
	}
	if err := i.Ready(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(filepath.Join(o.State, "data2")); !errors.Is(err, fs.ErrNotExist) {
		t.Error("host paths need no data2")
	}
	if out, err := exec.Command(i.own("etc/init.d/alation"), "init", "D", "B").CombinedOutput(); err != nil || !strings.Contains(string(out), "init D B --root / --state "+o.State) {
		t.Errorf("%s %v", out, err)
	}
}

func TestVersion(t *testing.T) {
	i := mustInit(t, options(t)).Instance
	if v, err := i.Version(); err != nil || v != DefaultVersion {
		t.Errorf("%q %v", v, err)
	}
	file := i.Resolve(versionFile)
	write(t, file, "ALATION_MAJOR_VERSION = 17\nALATION_MINOR_VERSION = 0\nALATION_PATCH_VERSION=1\nALATION_BUILD_VERSION = 49181\n", 0o644)
	if v, err := i.Version(); err != nil || v != "17.0.1.49181" {
		t.Errorf("%q %v", v, err)
	}
	write(t, file, "ALATION_MAJOR_VERSION = 17\n", 0o644)
	if v, err := i.Version(); err == nil {
		t.Errorf("half a version file gave %q", v)
	}
}

// FuzzVersionFile reads any text as a version file: what it accepts can stand in a file name.
func FuzzVersionFile(f *testing.F) {
	f.Add("ALATION_MAJOR_VERSION = 1\nALATION_MINOR_VERSION = 2\nALATION_PATCH_VERSION = 3\nALATION_BUILD_VERSION = 4\n")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := parseVersionFile(text); err == nil && strings.Trim(v, "0123456789.") != "" {
			t.Errorf("%q", v)
		}
	})
}

func TestScriptsParse(t *testing.T) {
	odd := &Instance{dir: `/tmp/it's a "root" $HOME * [x]`, m: marker{User: "alation", DataDisk: "/d's", BackupDisk: "/b"}}
	for name, text := range map[string][]byte{"init": odd.initScript(), "wrapper": wrapper("alation_conf"), "constants": odd.constants(), "rc": odd.shellFile(odd.BinDir())} {
		for _, sh := range []string{"bash", "dash"} {
			cmd := exec.Command(sh, "-n")
			cmd.Stdin = bytes.NewReader(text)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s -n %s: %v %s", sh, name, err, out)
			}
		}
	}
	cmd := exec.Command("bash", "-uc", `. /dev/stdin; printf '%s|' "$ALATION_CHROOT" "$ALATION_USER" "$ALATION_DATA_DISK"`)
	cmd.Stdin = bytes.NewReader(odd.constants())
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != odd.dir+"|alation|/d's|" {
		t.Errorf("constants: %s %v", out, err)
	}
	for _, sh := range []string{"bash", "dash"} {
		cmd := exec.Command(sh, "-ic", `PATH=/usr/bin:/bin; . /dev/stdin; printf '%s|%s' "$PATH" "$PS1"`)
		cmd.Env = []string{"HOME=/nonexistent"}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interactive shell must not take the test's terminal
		cmd.Stdin = bytes.NewReader(odd.shellFile(odd.BinDir()))
		out, err := cmd.Output()
		if err != nil || !strings.HasPrefix(string(out), odd.BinDir()+":/usr/bin:/bin|[alation@") {
			t.Errorf("%s: %s %v", sh, out, err)
		}
	}
}
