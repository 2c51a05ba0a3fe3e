package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

// reachScript takes pairs of a letter and a path, and prints the first that can't be: entered (e), read (r), or written into
// (w). What is gone by now is passed over; who may enter all above can tell that.
const reachScript = `while [ $# -gt 1 ]; do
	case $1 in
	e) cd -- "$2" 2>/dev/null || [ ! -e "$2" ] ;;
	r) [ -r "$2" ] || [ ! -e "$2" ] ;;
	w) [ -w "$2" ] && [ -r "$2" ] && [ -x "$2" ] || [ ! -e "$2" ] ;;
	esac || { printf %s%s "$1" "$2"; exit 9; }
	shift 2
done`

// checkReach makes sure that PostgreSQL's user gets into the repository and the other directories, as far as they exist, and
// that in the repository it can write WAL of the cluster's stanza and read it: archive_command and restore_command run as that
// user, while root, who may do everything, would notice nothing. It asks by trying, and changes nothing.
func (a *App) checkReach(ctx context.Context, c Cluster, dirs ...string) error {
	used, err := a.usedOfArchive(c.Stanza)
	if err != nil {
		return fmt.Errorf("look at the repository's archive: %w", err)
	}
	return a.checkReachOf(ctx, c, a.o.RepoDir, used, dirs...)
}

// checkReachOf is checkReach for the repository dir, of which used are pairs for reachScript.
func (a *App) checkReachOf(ctx context.Context, c Cluster, dir string, used []string, dirs ...string) error {
	uid, gid := ownerOf(c.DataDir, a.fallbackOwner())
	if err := checkPlace(dir, durable.Owner{UID: uid, GID: gid}); err != nil {
		return err
	}
	if uid == 0 || os.Geteuid() != 0 && os.Geteuid() != uid {
		return nil // there is nothing that user can't, or it can't be tried
	}
	args := []string{"-c", reachScript, "sh"}
	for _, dir := range append([]string{dir}, dirs...) {
		for _, d := range downTo(dir) {
			args = append(args, "e", d)
		}
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", append(args, used...)...)
	var out bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout = "/", []string{"LC_ALL=C"}, &out
	name := strconv.Itoa(uid)
	var err error
	if os.Geteuid() == 0 {
		cred := &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if name, cred.Groups, err = groupsOf(uid); err != nil {
			return err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	}
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == 9 && out.Len() > 1 {
		return a.outOfReach(c, name, durable.Owner{UID: uid, GID: gid}, out.String()[0], out.String()[1:])
	}
	return wrap(err, "look for what the user %s cannot reach", name)
}

// checkPlace makes sure that the repository's directory is there or can be made by this process. If not, root makes it for
// PostgreSQL's user.
func checkPlace(dir string, owner durable.Owner) error {
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		return nil // or it can't be entered, which is found by trying
	}
	above := downTo(dir)
	if len(above) == 0 {
		above = []string{"/"}
	}
	parent := above[len(above)-1]
	if unix.Access(parent, unix.W_OK|unix.X_OK) == nil {
		return nil
	}
	return fmt.Errorf("the repository's directory %s is not there, and this user may not make it in %s: run as root: install -d -m 711 -o %d -g %d %s",
		dir, parent, owner.UID, owner.GID, shellWord(dir))
}

// outOfReach says what PostgreSQL's user cannot do, and the command that mends it.
func (a *App) outOfReach(c Cluster, name string, owner durable.Owner, what byte, path string) error {
	who := "PostgreSQL's user " + name
	if what == 'e' {
		mode := "o+x"
		if uid, _ := ownerOf(path, nil); uid == owner.UID {
			mode = "u+x"
		}
		return fmt.Errorf("%s cannot enter %s, so archive_command and restore_command could not reach the repository: run: chmod %s %s", who, path, mode, shellWord(path))
	}
	command := fmt.Sprintf("chown -R %d:%d %s", owner.UID, owner.GID, shellWord(path))
	if uid, _ := ownerOf(path, nil); uid == owner.UID {
		command = "chmod -R u+rwX " + shellWord(path)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err == nil && st.Flags&syscall.MS_RDONLY != 0 {
		command = "mount -o remount,rw " + shellWord(path)
	}
	if what == 'r' {
		return fmt.Errorf("%s cannot read %s, so archive_command and restore_command would fail (stanza %s): run: %s", who, path, c.Stanza, command)
	}
	return fmt.Errorf("%s cannot write into %s, so archive_command would fail (stanza %s) and WAL would pile up: run: %s", who, path, c.Stanza, command)
}

// shellWord makes one word of s for a POSIX shell.
func shellWord(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./-+,:@%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// groupsOf returns the name and the groups of a user; one without an account has a number for a name and no groups.
func groupsOf(uid int) (name string, groups []uint32, err error) {
	name = strconv.Itoa(uid)
	u, err := user.LookupId(name)
	if err != nil {
		return name, nil, nil // no account, or none that can be looked up: no further groups
	}
	ids, err := u.GroupIds()
	if err != nil {
		return u.Username, nil, fmt.Errorf("groups of user %s: %w", u.Username, err)
	}
	for _, id := range ids {
		if n, err := strconv.ParseUint(id, 10, 32); err == nil {
			groups = append(groups, uint32(n))
		}
	}
	return u.Username, groups, nil
}

// usedOfArchive lists what archive_command and restore_command of a stanza use of the repository, as pairs for reachScript:
// the directories down to the newest of WAL, where the next segment goes, and what is read there. An external tool writes its
// backups as PostgreSQL's user, too.
func (a *App) usedOfArchive(stanza string) ([]string, error) {
	dir := filepath.Join(a.o.RepoDir, "archive")
	used := []string{"e", dir}
	for level := range 3 { // the stanza, its newest cluster, that one's newest directory of WAL
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			break // not made yet, or expired since it was listed; what this user can't read, the script names
		}
		if err != nil {
			return nil, err
		}
		next := stanza
		if level > 0 {
			used = append(used, readable(dir, entries)...)
			next = newest(entries)
		}
		if next == "" {
			break
		}
		dir = filepath.Join(dir, next)
		used = append(used, "e", dir)
		if level > 0 {
			used = append(used, "w", dir)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
		return nil, err
	}
	used = append(used, readable(dir, entries)...)
	if a.o.Tool != nil {
		used = append(used, "w", filepath.Join(a.o.RepoDir, "backup", stanza))
	}
	return used, nil
}

// readable wants the last few files of a directory to be read: names of WAL grow, so they are the newest.
func readable(dir string, entries []fs.DirEntry) (used []string) {
	const few = 20
	for _, e := range entries[max(0, len(entries)-few):] {
		if !e.IsDir() {
			used = append(used, "r", filepath.Join(dir, e.Name()))
		}
	}
	return used
}

// newest is the directory whose name is the latest: of clusters, 15-2 before 15-10; of WAL, by its number.
func newest(entries []fs.DirEntry) (name string) {
	for _, e := range entries {
		if _, number, _ := strings.Cut(e.Name(), "-"); e.IsDir() {
			_, best, _ := strings.Cut(name, "-")
			if len(number) > len(best) || len(number) == len(best) && number >= best {
				name = e.Name()
			}
		}
	}
	return name
}

// downTo lists the directories from below the root to dir, as far as they exist.
func downTo(dir string) []string {
	var down []string
	for d := filepath.Clean(dir); d != "/" && d != "."; d = filepath.Dir(d) {
		if info, err := os.Stat(d); err == nil && info.IsDir() {
			down = append(down, d)
		}
	}
	slices.Reverse(down)
	return down
}
