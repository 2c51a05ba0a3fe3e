package instance

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// ShellOptions says how to enter the Alation shell.
type ShellOptions struct {
	Command     string   // run this and return; "" = an interactive shell, or a script from standard input
	Interactive bool     // standard input is a terminal
	Env         []string // of the caller; a chroot's login shell keeps only TERM of it
}

// Command describes the process that is the shell. Cmd makes it runnable; the caller connects the streams.
type Command struct {
	Path   string
	Args   []string // Args[0] is the name the program sees
	Env    []string
	Dir    string
	Chroot string // "" = none
	User   *Credential
}

// Credential is the user that the process becomes; nil where it stays what it is or the shell changes user itself.
type Credential struct {
	UID, GID int
	Groups   []uint32
}

// Cmd returns the command for os/exec. When ctx ends the process is killed.
func (c *Command) Cmd(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, c.Path)
	// exec.CommandContext takes Args[0] from the path; and a path with a slash is not looked up, which would happen outside the chroot.
	cmd.Args, cmd.Env, cmd.Dir = c.Args, c.Env, c.Dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: c.Chroot}
	if c.User != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(c.User.UID), Gid: uint32(c.User.GID), Groups: c.User.Groups}
	}
	return cmd
}

// ShellCommand describes the Alation shell: in a real chroot, as root, a login shell of the instance's user in it;
// otherwise a subshell with the same PATH, prompt and HOLDFAST_ROOT that begins in the instance's root. A chroot entered
// by anybody but root is an error, since the commands would act on the host's paths.
func (i *Instance) ShellCommand(o ShellOptions) (*Command, error) {
	if i.isChroot() {
		if os.Geteuid() != 0 {
			return nil, fmt.Errorf("shell: entering %s needs root: run it with sudo", i.dir)
		}
		return i.chrootShell(o)
	}
	return i.subshell(o)
}

func (i *Instance) chrootShell(o ShellOptions) (*Command, error) {
	a, err := i.lookup(i.m.User)
	if err != nil {
		return nil, fmt.Errorf("shell: %w", err)
	}
	c := &Command{Chroot: i.dir, Dir: "/", Env: keepEnv(o.Env, "TERM")}
	c.Env = append(c.Env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	for _, su := range []string{"/bin/su", "/usr/bin/su"} {
		if _, err := os.Lstat(filepath.Join(i.dir, su)); err == nil {
			c.Path, c.Args = su, []string{"su", "-", i.m.User}
			if o.Command != "" {
				c.Args = append(c.Args, "-c", o.Command)
			}
			return c, nil
		}
	}
	c.Path, c.Args = "/bin/sh", []string{"-sh"} // the dash makes it a login shell
	if o.Command != "" {
		c.Args = append(c.Args, "-c", o.Command)
	}
	c.User = &Credential{UID: a.uid, GID: a.gid, Groups: a.groups}
	c.Env = append(c.Env, accountEnv(a)...)
	return c, nil
}

func (i *Instance) subshell(o ShellOptions) (*Command, error) {
	c := &Command{Dir: i.Root()}
	searchPath := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, entry := range o.Env {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case "PATH":
			searchPath = value
		// BASH_ENV and ENV would run a file of the caller's before the shell; the others are set below.
		case "PS1", "ENV", "BASH_ENV", "HOLDFAST_ROOT", "HOLDFAST_SHELL", "ALATION_CHROOT", "ALATION_USER":
		default:
			c.Env = append(c.Env, entry)
		}
	}
	bin := i.BinDir()
	if !slices.Contains(filepath.SplitList(searchPath), bin) {
		searchPath = bin + ":" + searchPath
	}
	c.Env = append(c.Env, "PATH="+searchPath, "HOLDFAST_ROOT="+i.dir, "HOLDFAST_SHELL=1", "ALATION_CHROOT="+i.dir, "ALATION_USER="+i.m.User)
	if os.Geteuid() == 0 && i.m.User != "root" {
		a, err := i.lookup(i.m.User)
		if err != nil {
			return nil, fmt.Errorf("shell: %w", err)
		}
		if a.uid != 0 {
			c.User = &Credential{UID: a.uid, GID: a.gid, Groups: a.groups}
			c.Env = append(slices.DeleteFunc(c.Env, isAccountEnv), accountEnv(a)...)
		}
	}
	c.Path, c.Args = "/bin/sh", []string{"sh"}
	_, err := os.Stat("/bin/bash")
	bash := err == nil
	if bash {
		c.Path, c.Args = "/bin/bash", []string{"bash", "--noprofile"}
	}
	switch rc := i.own("etc/holdfast/shellrc"); {
	case o.Command != "" && bash:
		c.Args = append(c.Args, "--norc", "-c", o.Command)
	case o.Command != "":
		c.Args = append(c.Args, "-c", o.Command)
	case o.Interactive && bash:
		c.Args = append(c.Args, "--rcfile", rc, "-i")
	case o.Interactive:
		c.Args = append(c.Args, "-i")
		c.Env = append(c.Env, "ENV="+rc)
	case bash:
		c.Args = append(c.Args, "--norc")
	}
	return c, nil
}

func accountEnv(a account) []string {
	return []string{"HOME=" + a.home, "USER=" + a.name, "LOGNAME=" + a.name}
}

func isAccountEnv(entry string) bool {
	name, _, _ := strings.Cut(entry, "=")
	return name == "HOME" || name == "USER" || name == "LOGNAME" || name == "MAIL"
}

// keepEnv returns the entries of env with one of names.
func keepEnv(env []string, names ...string) []string {
	var kept []string
	for _, entry := range env {
		if name, _, _ := strings.Cut(entry, "="); slices.Contains(names, name) {
			kept = append(kept, entry)
		}
	}
	return kept
}
