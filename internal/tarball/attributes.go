package tarball

import (
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

const setID = unix.S_ISUID | unix.S_ISGID

// apply sets owner, attributes, mode and times, in this order: a change of owner clears set-uid bits and capabilities
// (chown(2)), writing attributes may need the mode that creation gave, and every change but that of times sets the ctime.
func (x *Extractor) apply(n *node, e *entry) error {
	var unkept []string
	drop, err := x.giveOwner(n, e, &unkept)
	if err != nil {
		return err
	}
	// Without a descriptor this needs /proc; a new symbolic link or FIFO has nothing to remove.
	if n.fd >= 0 || len(e.Xattrs) > 0 {
		refused, err := applyXattrs(n.xattrs(), e.Xattrs, x.o.Owners)
		if err != nil {
			return err
		}
		for _, name := range refused {
			unkept = append(unkept, "extended attribute "+name)
		}
	}
	if e.Type != typeSymlink { // Linux gives links no mode of their own (symlink(7))
		if err := x.giveMode(n, e, drop, &unkept); err != nil {
			return err
		}
	}
	if len(unkept) > 0 {
		x.res.UnkeptCount++
		if len(x.res.Unkept) < maxListed {
			x.res.Unkept = append(x.res.Unkept, Issue{n.String(), strings.Join(unkept, ", ")})
		}
	}
	ts := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: e.MTime[0], Nsec: e.MTime[1]}}
	if n.format() == unix.S_IFDIR {
		return pathErr("set times", unix.UtimesNanoAt(n.fd, ".", ts, 0))
	}
	return pathErr("set times", unix.UtimesNanoAt(n.dirfd, n.name, ts, unix.AT_SYMLINK_NOFOLLOW))
}

// giveOwner sets owner and group, or, without Owners, the group if this user is a member of it. drop are the bits of the mode
// that would now say something else than they did: run as this user, run with this group.
func (x *Extractor) giveOwner(n *node, e *entry, unkept *[]string) (drop uint32, err error) {
	uid := ownerID(x.users, e.User, e.UID, x.o.UserID)
	gid := ownerID(x.group, e.Group, e.GID, x.o.GroupID)
	if x.o.Owners {
		return 0, pathErr("set owner", n.chown(int(uid), int(gid)))
	}
	if uid != n.st.Uid {
		*unkept = append(*unkept, "owner "+nameOr(e.User, e.UID))
		drop |= unix.S_ISUID
	}
	if gid == n.st.Gid {
		return drop, nil
	}
	err = n.chown(-1, int(gid))
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) { // EINVAL: a group that the user namespace does not know
		*unkept = append(*unkept, "group "+nameOr(e.Group, e.GID))
		return drop | unix.S_ISGID, nil
	}
	return drop, pathErr("set group", err)
}

// giveMode sets the mode without the bits of drop. The kernel takes the set-gid bit away without a word where the user is not
// a member of the group (chmod(2)).
func (x *Extractor) giveMode(n *node, e *entry, drop uint32, unkept *[]string) error {
	mode := e.Mode &^ drop
	if err := n.chmod(mode); err != nil {
		return pathErr("set mode", err)
	}
	if !x.o.Owners && mode&setID != 0 {
		now, err := n.mode()
		if err != nil {
			return pathErr("look at the mode", err)
		}
		mode = now
	}
	if mode != e.Mode {
		*unkept = append(*unkept, fmt.Sprintf("mode %o (now %o)", e.Mode, mode))
	}
	return nil
}

func (n *node) chown(uid, gid int) error {
	if n.fd >= 0 {
		return unix.Fchown(n.fd, uid, gid)
	}
	return unix.Fchownat(n.dirfd, n.name, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
}

func (n *node) chmod(mode uint32) error {
	if n.fd >= 0 {
		return unix.Fchmod(n.fd, mode)
	}
	return unix.Fchmodat(n.dirfd, n.name, mode, 0)
}

func (n *node) mode() (uint32, error) {
	var st unix.Stat_t
	err := unix.Fstat(n.fd, &st)
	if n.fd < 0 {
		err = unix.Fstatat(n.dirfd, n.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	return st.Mode & 0o7777, err
}

func nameOr(name string, id uint32) string {
	if name != "" {
		return name
	}
	return fmt.Sprint(id)
}
