package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"holdfast/internal/durable"
)

// account is a user as the operating system, or the chroot, knows it.
type account struct {
	name     string
	uid, gid int
	groups   []uint32 // of the process that becomes this user
	home     string
}

// defaultUser owns an instance if nothing else is said and it exists.
const defaultUser = "alation"

// validUser reports whether name can stand in a script without quotes.
func validUser(name string) bool {
	if name == "" || len(name) > 64 || name[0] == '-' {
		return false
	}
	for _, r := range name {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r) {
			return false
		}
	}
	return true
}

// lookup finds a user: in the chroot's own etc/passwd, or on this host.
func (i *Instance) lookup(name string) (account, error) {
	if i.isChroot() {
		return lookupFile(i.dir, name)
	}
	u, err := user.Lookup(name)
	if err != nil {
		return account{}, fmt.Errorf("user %s: %w", name, err)
	}
	a := account{name: name, home: u.HomeDir}
	if a.uid, err = strconv.Atoi(u.Uid); err != nil {
		return account{}, fmt.Errorf("user %s: %w", name, err)
	}
	if a.gid, err = strconv.Atoi(u.Gid); err != nil {
		return account{}, fmt.Errorf("user %s: %w", name, err)
	}
	ids, err := u.GroupIds()
	if err != nil {
		return account{}, fmt.Errorf("groups of user %s: %w", name, err)
	}
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("groups of user %s: %w", name, err)
		}
		a.groups = append(a.groups, uint32(n))
	}
	return a, nil
}

// lookupFile finds a user in a chroot's etc/passwd and its groups in etc/group (passwd(5), group(5)).
func lookupFile(root, name string) (account, error) {
	passwd, err := ReadSmall(filepath.Join(root, "etc/passwd"))
	if err != nil {
		return account{}, fmt.Errorf("user %s: %w", name, err)
	}
	a := account{name: name, uid: -1}
	for line := range strings.Lines(string(passwd)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || f[0] != name {
			continue
		}
		uid, uerr := strconv.ParseUint(f[2], 10, 31)
		gid, gerr := strconv.ParseUint(f[3], 10, 31)
		if err := errors.Join(uerr, gerr); err != nil {
			return account{}, fmt.Errorf("user %s in %s/etc/passwd: %w", name, root, err)
		}
		a.uid, a.gid, a.home = int(uid), int(gid), f[5]
		break
	}
	if a.uid < 0 {
		return account{}, fmt.Errorf("user %s: not in %s/etc/passwd: make it first: chroot %s useradd -m %s", name, root, root, name)
	}
	a.groups = []uint32{uint32(a.gid)}
	group, err := ReadSmall(filepath.Join(root, "etc/group"))
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return account{}, fmt.Errorf("groups of user %s: %w", name, err)
	}
	for line := range strings.Lines(string(group)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 4 {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			gid, err := strconv.ParseUint(f[2], 10, 31)
			if member == name && err == nil {
				a.groups = append(a.groups, uint32(gid))
			}
		}
	}
	return a, nil
}

// chooseUser returns the instance's user: the one asked for, else alation if it exists, else the one that runs this.
func (i *Instance) chooseUser(name string) (account, error) {
	if name != "" {
		if !validUser(name) {
			return account{}, fmt.Errorf("user %q: not a user name", name)
		}
		return i.lookup(name)
	}
	if os.Geteuid() == 0 {
		if a, err := i.lookup(defaultUser); err == nil {
			return a, nil
		}
		return i.lookup("root")
	}
	u, err := user.Current()
	if err != nil {
		return account{}, fmt.Errorf("current user: %w", err)
	}
	return i.lookup(u.Username)
}

// Owner returns to whom files of the instance belong: nil if they can only belong to this process's user.
func (i *Instance) Owner() (*durable.Owner, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	a, err := i.lookup(i.m.User)
	if err != nil {
		return nil, err
	}
	return &durable.Owner{UID: a.uid, GID: a.gid}, nil
}
