package pg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	defaultServerTimeout = time.Minute
	logTail              = 4 << 10 // bytes of the server's log in an error
)

// ErrServerRunning says that Start found a server on the data directory.
var ErrServerRunning = errors.New("a server is already running")

// ServerOptions describes a server that Holdfast starts or stops with pg_ctl, as the owner of the data directory.
type ServerOptions struct {
	DataDir string
	BinDir  string        // holds postgres and pg_ctl; empty: found by FindBinDir
	Args    []string      // further arguments of postgres
	LogFile string        // the server's standard error is appended; default holdfast_startup.log in the data directory
	Timeout time.Duration // default one minute
}

// FindBinDir finds the directory with postgres and pg_ctl of version v: one of further, which is looked at first and
// may name directories of any version (as of PATH), or the places of Debian's and of the PostgreSQL project's packages.
func FindBinDir(v Version, further ...string) (string, error) {
	for _, dir := range further {
		if dir != "" && hasServer(dir) && isVersion(dir, v) {
			return dir, nil
		}
	}
	standard := []string{"/usr/lib/postgresql/" + v.String() + "/bin", "/usr/pgsql-" + v.String() + "/bin"}
	for _, dir := range standard {
		if hasServer(dir) {
			return dir, nil
		}
	}
	return "", fmt.Errorf("no server programs of PostgreSQL %s in %s: install postgresql-%s, or name their directory",
		v, strings.Join(append(further, standard...), ", "), v)
}

func hasServer(dir string) bool {
	for _, name := range []string{"postgres", "pg_ctl"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return false // whatever the reason, this directory does not help
		}
	}
	return true
}

// isVersion asks the server program, whose answer reads "postgres (PostgreSQL) 15.14 (Debian …)".
func isVersion(dir string, v Version) bool {
	out, err := exec.Command(filepath.Join(dir, "postgres"), "--version").Output()
	if err != nil {
		return false // a program that does not run is not the one looked for
	}
	_, number, found := strings.Cut(string(out), "(PostgreSQL) ")
	rest, match := strings.CutPrefix(number, v.String())
	return found && match && (rest == "" || rest[0] < '0' || rest[0] > '9')
}

// Start starts the server and waits until it takes connections, which for one in recovery can be read-only ones long
// before recovery ends. It fails with ErrServerRunning if there is one. When ctx ends the start is interrupted and the
// server told to stop. After a timeout the server may still be on its way; the error says so and holds the end of its log.
func Start(ctx context.Context, o ServerOptions) error {
	o, err := o.filled()
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	pid, running, err := Running(o.DataDir)
	if err != nil {
		return fmt.Errorf("start PostgreSQL: %w", err)
	}
	if running {
		return fmt.Errorf("start PostgreSQL in %s: %w (process %d)", o.DataDir, ErrServerRunning, pid)
	}
	logged := fileSize(o.LogFile)
	args := []string{"start", "-s", "-l", o.LogFile}
	if len(o.Args) > 0 {
		quoted := make([]string, len(o.Args))
		for i, a := range o.Args {
			quoted[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		args = append(args, "-o", strings.Join(quoted, " "))
	}
	if err := o.pgCtl(ctx, args...); err != nil {
		err = fmt.Errorf("start PostgreSQL in %s: %w", o.DataDir, err)
		if pid, running, _ := Running(o.DataDir); running { // only adds to an error
			err = fmt.Errorf("%w; process %d is still starting", err, pid)
		}
		if tail := tailSince(o.LogFile, logged); tail != "" {
			err = fmt.Errorf("%w; end of %s:\n%s", err, o.LogFile, tail)
		}
		return err
	}
	return nil
}

// Stop stops the server and waits until it is gone; without a server it does nothing. mode is smart, fast (also if
// empty) or immediate. When ctx ends Stop no longer waits, but the server goes on stopping.
func Stop(ctx context.Context, o ServerOptions, mode string) error {
	if mode == "" {
		mode = "fast"
	}
	if mode != "smart" && mode != "fast" && mode != "immediate" {
		return fmt.Errorf("stop PostgreSQL: mode %q is none of smart, fast, immediate", mode)
	}
	o, err := o.filled()
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	_, running, err := Running(o.DataDir)
	if err != nil {
		return fmt.Errorf("stop PostgreSQL: %w", err)
	}
	if !running {
		return nil
	}
	if err := o.pgCtl(ctx, "stop", "-s", "-m", mode); err != nil {
		return fmt.Errorf("stop PostgreSQL in %s: %w", o.DataDir, err)
	}
	return nil
}

// filled sets defaults and refuses paths that pg_ctl, which builds a shell command of them, would not quote.
func (o ServerOptions) filled() (ServerOptions, error) {
	if !filepath.IsAbs(o.DataDir) {
		return o, fmt.Errorf("data directory %q is not an absolute path", o.DataDir)
	}
	if o.BinDir == "" {
		v, err := ReadVersionFile(o.DataDir)
		if err != nil {
			return o, err
		}
		if o.BinDir, err = FindBinDir(v); err != nil {
			return o, err
		}
	}
	if o.LogFile == "" {
		o.LogFile = filepath.Join(o.DataDir, "holdfast_startup.log")
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultServerTimeout
	}
	for _, path := range []string{o.DataDir, o.BinDir, o.LogFile} {
		if strings.ContainsAny(path, "\"$`\\\n\x00") {
			return o, fmt.Errorf("path %q contains a character that pg_ctl cannot take", path)
		}
	}
	return o, nil
}

// pgCtl runs pg_ctl with -w as the owner of the data directory.
func (o ServerOptions) pgCtl(ctx context.Context, args ...string) error {
	seconds := int64((o.Timeout + time.Second - 1) / time.Second)
	args = append(args, "-D", o.DataDir, "-w", "-t", strconv.FormatInt(seconds, 10))
	cmd := exec.CommandContext(ctx, filepath.Join(o.BinDir, "pg_ctl"), args...)
	if err := asOwner(cmd, o.DataDir); err != nil {
		return err
	}
	// pg_ctl that is interrupted during a start interrupts the server too; killed it could not.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case out.Len() > 0:
		return fmt.Errorf("pg_ctl: %w: %s", err, strings.TrimSpace(out.String()))
	default:
		return fmt.Errorf("pg_ctl: %w", err)
	}
}

// asOwner makes cmd run in dir with a clean environment and, where we are root, as the owner of dir with all groups of
// that user, because PostgreSQL refuses to run as root.
func asOwner(cmd *exec.Cmd, dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	home := "/"
	var groups []uint32
	// An owner without an account has no home and no further groups, and may still run a server.
	if account, err := user.LookupId(strconv.FormatUint(uint64(owner.Uid), 10)); err == nil {
		home = account.HomeDir
		ids, err := account.GroupIds()
		if err != nil {
			return fmt.Errorf("groups of user %s: %w", account.Username, err)
		}
		for _, id := range ids {
			if n, err := strconv.ParseUint(id, 10, 32); err == nil {
				groups = append(groups, uint32(n))
			}
		}
	}
	cmd.Dir = dir
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "LC_MESSAGES=C"}
	if os.Geteuid() != 0 {
		return nil
	}
	if owner.Uid == 0 {
		return fmt.Errorf("%s belongs to root, and PostgreSQL refuses to run as root; give it to the server's user with chown -R", dir)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: owner.Uid, Gid: owner.Gid, Groups: groups}}
	return nil
}

// Running reads postmaster.pid and reports whether its process lives and works in dataDir. A process that cannot be
// looked at (another user's) counts as running. Servers in another container, whose process numbers mean nothing here,
// are not seen.
func Running(dataDir string) (pid int, running bool, err error) {
	text, err := readHead(filepath.Join(dataDir, "postmaster.pid"), 64)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("look for a running server: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid == 0 {
		return 0, false, fmt.Errorf("look for a running server: %s/postmaster.pid holds no process number (%.20q); a server may be starting", dataDir, line)
	}
	if pid < 0 {
		pid = -pid // a single-user server
	}
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return pid, false, nil
	} else if err != nil && !errors.Is(err, syscall.EPERM) {
		return pid, false, fmt.Errorf("look for a running server: process %d: %w", pid, err)
	}
	// A number left by a crash may belong to another program by now; a server stays in its data directory.
	there, err := os.Stat(fmt.Sprintf("/proc/%d/cwd", pid))
	if errors.Is(err, fs.ErrNotExist) && procMounted() {
		return pid, false, nil // ended meanwhile, or a zombie
	}
	here, errHere := os.Stat(dataDir)
	if err == nil && errHere == nil && !os.SameFile(there, here) {
		return pid, false, nil
	}
	return pid, true, nil
}

func procMounted() bool {
	_, err := os.Stat("/proc/self/cwd")
	return err == nil
}

// fileSize is 0 for a file that is not there yet.
func fileSize(path string) int64 {
	info, err := os.Lstat(path)
	if err != nil {
		return 0 // only decides how much of the log an error shows
	}
	return info.Size()
}

// tailSince returns the last lines of what was appended to a log since it had size bytes, or nothing if that cannot be
// read; it only adds to an error. Links are not followed, since the file lies in a directory of the server's user.
func tailSince(path string, size int64) string {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close() // read only
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	if info.Size()-size > logTail {
		size = info.Size() - logTail
	}
	b, err := io.ReadAll(io.NewSectionReader(f, size, logTail))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
