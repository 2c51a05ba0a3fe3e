package repo

import (
	"slices"
	"strings"
)

// AddFile inserts f at its sorted place; a file of the same name is replaced.
func (m *Manifest) AddFile(f File) {
	i, found := slices.BinarySearchFunc(m.Files, f.Name, func(e File, name string) int { return strings.Compare(e.Name, name) })
	if found {
		m.Files[i] = f
		return
	}
	m.Files = slices.Insert(m.Files, i, f)
}

// HasFile says whether the manifest (sorted, as read) has a file of this name.
func (m *Manifest) HasFile(name string) bool {
	_, found := slices.BinarySearchFunc(m.Files, name, func(e File, name string) int { return strings.Compare(e.Name, name) })
	return found
}
