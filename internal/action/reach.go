package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
)

// enterScript prints the first of its arguments that can't be entered.
const enterScript = `for d; do cd -- "$d" 2>/dev/null || { printf %s "$d"; exit 9; }; done`

// checkReach makes sure that PostgreSQL's user gets into the directories, as far as they exist: archive_command and
// restore_command run as that user, while root, who goes anywhere, would notice nothing. It asks by trying.
func (a *App) checkReach(ctx context.Context, c Cluster, dirs ...string) error {
	owner := a.serverOwner(c)
	if owner == nil || owner.UID == 0 {
		return nil
	}
	name := strconv.Itoa(owner.UID)
	cred := &syscall.Credential{Uid: uint32(owner.UID), Gid: uint32(owner.GID)}
	if u, err := user.LookupId(name); err == nil { // one without an account has no further groups
		name = u.Username
		ids, err := u.GroupIds()
		if err != nil {
			return fmt.Errorf("groups of user %s: %w", name, err)
		}
		for _, id := range ids {
			if n, err := strconv.ParseUint(id, 10, 32); err == nil {
				cred.Groups = append(cred.Groups, uint32(n))
			}
		}
	}
	args := []string{"-c", enterScript, "sh"}
	for _, dir := range dirs {
		args = append(args, downTo(dir)...)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	var out bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout = "/", []string{"LC_ALL=C"}, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	err := cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == 9 {
		return fmt.Errorf("PostgreSQL's user %s cannot enter %s, so archive_command and restore_command could not reach the repository: run: chmod o+x %s", name, out.String(), out.String())
	}
	return wrap(err, "look for directories that the user %s cannot enter", name)
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
