package storage

import (
	"cmp"
	"errors"
	"slices"
	"strings"
)

var (
	errNegativeOffset = errors.New("offset is negative")
	errNotRegular     = errors.New("neither a file nor a directory")
)

// sortInfos sorts the entries of one directory so that a walk yields full names in byte order: recursively, a directory
// sorts as what is below it does, with a slash behind its name.
func sortInfos(infos []Info, recursive bool) {
	slices.SortFunc(infos, func(a, b Info) int {
		if recursive {
			return cmp.Compare(walkKey(a), walkKey(b))
		}
		return cmp.Compare(a.Name, b.Name)
	})
}

// walkKey is an entry's place among its neighbours in a recursive walk.
func walkKey(i Info) string {
	if i.Dir {
		return i.Name + "/"
	}
	return i.Name
}

// removedOpen reports whether base is what the NFS client makes of a file that is removed while somebody has it open: it is
// there until that one closes it.
func removedOpen(base string) bool {
	number, ok := strings.CutPrefix(base, ".nfs")
	return ok && len(number) >= 16 && strings.Trim(number, "0123456789abcdef") == ""
}
