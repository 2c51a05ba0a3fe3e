package instance

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// Accounts translates between the numbers and the names of users and groups.
type Accounts struct{ users, groups accountTable }

type accountTable struct {
	names map[uint32]string
	ids   map[string]uint32
}

// Accounts reads the chroot's own etc/passwd and etc/group, which need not be those of the host: the owner of a file in a
// chroot has the name that is in there. nil where the instance is no chroot: names are the host's.
func (i *Instance) Accounts() (*Accounts, error) {
	if !i.isChroot() {
		return nil, nil
	}
	users, err := readAccounts(filepath.Join(i.dir, "etc/passwd"))
	if err != nil {
		return nil, err
	}
	groups, err := readAccounts(filepath.Join(i.dir, "etc/group"))
	if err != nil {
		return nil, err
	}
	return &Accounts{users, groups}, nil
}

// readAccounts reads name and number of each line (passwd(5) and group(5) have them in the same fields); of several names
// of one number the first counts, as for getpwuid(3). A file that is not there names nobody.
func readAccounts(path string) (accountTable, error) {
	t := accountTable{map[uint32]string{}, map[string]uint32{}}
	text, err := ReadSmall(path)
	if errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return t, fmt.Errorf("names of owners: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 3 || f[0] == "" || strings.HasPrefix(f[0], "#") {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue // an entry for another name service ("+"), or none that a file can have
		}
		id := uint32(n)
		if _, ok := t.names[id]; !ok {
			t.names[id] = f[0]
		}
		if _, ok := t.ids[f[0]]; !ok {
			t.ids[f[0]] = id
		}
	}
	return t, nil
}

// UserName is the name of a user, "" without one.
func (a *Accounts) UserName(id uint32) string { return a.users.names[id] }

// GroupName is the name of a group, "" without one.
func (a *Accounts) GroupName(id uint32) string { return a.groups.names[id] }

// UserID is the number of a user; ok is false without one.
func (a *Accounts) UserID(name string) (id uint32, ok bool) { id, ok = a.users.ids[name]; return }

// GroupID is the number of a group; ok is false without one.
func (a *Accounts) GroupID(name string) (id uint32, ok bool) { id, ok = a.groups.ids[name]; return }
