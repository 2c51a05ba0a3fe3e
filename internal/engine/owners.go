package engine

import (
	"os/user"
	"strconv"
)

// ownerNames remembers user and group names, which the standard library reads from /etc/passwd anew each time. An id
// without a name is "" (the format's false). Not safe for concurrent use.
type ownerNames struct {
	users, groups   map[uint32]string
	userIDs, grpIDs map[string]int
}

func newOwnerNames() *ownerNames {
	return &ownerNames{map[uint32]string{}, map[uint32]string{}, map[string]int{}, map[string]int{}}
}

func (n *ownerNames) user(uid uint32) string {
	name, ok := n.users[uid]
	if !ok {
		if u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10)); err == nil {
			name = u.Username
		}
		n.users[uid] = name
	}
	return name
}

func (n *ownerNames) group(gid uint32) string {
	name, ok := n.groups[gid]
	if !ok {
		if g, err := user.LookupGroupId(strconv.FormatUint(uint64(gid), 10)); err == nil {
			name = g.Name
		}
		n.groups[gid] = name
	}
	return name
}

// uid is the number of a user name here, -1 when there is none.
func (n *ownerNames) uid(name string) int {
	id, ok := n.userIDs[name]
	if !ok {
		id = -1
		if u, err := user.Lookup(name); err == nil {
			if v, err := strconv.Atoi(u.Uid); err == nil {
				id = v
			}
		}
		n.userIDs[name] = id
	}
	return id
}

func (n *ownerNames) gid(name string) int {
	id, ok := n.grpIDs[name]
	if !ok {
		id = -1
		if g, err := user.LookupGroup(name); err == nil {
			if v, err := strconv.Atoi(g.Gid); err == nil {
				id = v
			}
		}
		n.grpIDs[name] = id
	}
	return id
}
