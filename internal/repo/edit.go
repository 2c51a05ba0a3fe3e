package repo

import (
	"io"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
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
	_, found := m.FileIndex(name)
	return found
}

// FileIndex is where the manifest (sorted, as read) has the file of this name.
func (m *Manifest) FileIndex(name string) (int, bool) {
	return slices.BinarySearchFunc(m.Files, name, func(e File, name string) int { return strings.Compare(e.Name, name) })
}

// Path returns the directory of that name, nil when there is none. The list must be sorted. The pointer is into Paths.
func (m *Manifest) Path(name string) *Path {
	i, found := slices.BinarySearchFunc(m.Paths, name, func(p Path, name string) int { return strings.Compare(p.Name, name) })
	if !found {
		return nil
	}
	return &m.Paths[i]
}

// EncodeTo is Encode in pieces, so that memory does not grow with the manifest.
func (m *Manifest) EncodeTo(w io.Writer) error { return m.encode(w) }

// Sum is what a map of this checksum size keeps of one block's checksum.
func (m *BlockMap) Sum(block []byte) (sum [MaxBlockChecksum]byte) {
	h := xxh3.Hash128(block).Bytes()
	copy(sum[:m.ChecksumSize], h[:])
	return sum
}
