package tarball

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"strings"
)

const (
	filesPrefix = "files/"
	// IndexName is the member that holds the index of the files component, its last.
	IndexName = "files.index.jsonl"
	// maxName bounds member names and link targets, in bytes. PATH_MAX is 4096; a tree may be a little deeper than that.
	maxName = 16384
)

var (
	// ErrDamaged marks a tarball or index that is truncated or whose bytes are not what was written.
	ErrDamaged = errors.New("damaged")
	// ErrUnsafe marks a member or index entry that would reach outside the place it is restored to.
	ErrUnsafe = errors.New("unsafe")
)

// checkName accepts relative slash-separated names in their shortest form.
func checkName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w name: empty", ErrUnsafe)
	case len(name) > maxName:
		return fmt.Errorf("%w name: %d bytes long, at most %d are allowed", ErrUnsafe, len(name), maxName)
	case strings.HasPrefix(name, "/"):
		return fmt.Errorf("%w name: absolute", ErrUnsafe)
	case strings.IndexByte(name, 0) >= 0:
		return fmt.Errorf("%w name: holds a zero byte", ErrUnsafe)
	}
	for part := range strings.SplitSeq(name, "/") {
		switch part {
		case "..":
			return fmt.Errorf("%w name: climbs with \"..\"", ErrUnsafe)
		case "", ".":
			return fmt.Errorf("%w name: holds an empty element or \".\"", ErrUnsafe)
		}
	}
	return nil
}

// checkTreeName accepts one path element.
func checkTreeName(name string) error {
	if strings.Contains(name, "/") {
		return fmt.Errorf("%w tree name %q: holds a slash", ErrUnsafe, name)
	}
	return checkName(name)
}

// memberName is the name in the tarball of a path in a tree; the tree itself is the empty path.
func memberName(tree, rel string) string {
	if rel == "" {
		return filesPrefix + tree
	}
	return filesPrefix + tree + "/" + rel
}

// splitMember is the reverse of memberName.
func splitMember(name string) (tree, rel string, ok bool) {
	rest, ok := strings.CutPrefix(name, filesPrefix)
	if !ok {
		return "", "", false
	}
	tree, rel, _ = strings.Cut(rest, "/")
	return tree, rel, true
}

// comparePaths orders paths as a walk meets them: "/" before every other byte.
func comparePaths(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] == b[i] {
			continue
		}
		switch {
		case a[i] == '/':
			return -1
		case b[i] == '/':
			return 1
		}
		return cmp.Compare(a[i], b[i])
	}
	return cmp.Compare(len(a), len(b))
}

func joinRel(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// excludes is a list of patterns, each cut into its elements. "**" stands for any number of elements; the others are those
// of path.Match. A pattern names a whole path relative to its tree; what is below an excluded directory is excluded with it.
type excludes [][]string

func parseExcludes(patterns []string) (excludes, error) {
	var list excludes
	for _, p := range patterns {
		parts := strings.Split(strings.Trim(p, "/"), "/")
		for _, part := range parts {
			if _, err := path.Match(part, ""); err != nil {
				return nil, fmt.Errorf("exclude pattern %q: %w", p, err)
			}
		}
		list = append(list, parts)
	}
	return list, nil
}

// Excludes returns what says whether the patterns leave out a path, given relative to its tree.
func Excludes(patterns []string) (func(rel string) bool, error) {
	x, err := parseExcludes(patterns)
	return x.match, err
}

func (x excludes) match(rel string) bool {
	if len(x) == 0 || rel == "" {
		return false
	}
	parts := strings.Split(rel, "/")
	for _, pattern := range x {
		if matchParts(pattern, parts) {
			return true
		}
	}
	return false
}

// matchParts runs in len(pattern)*len(parts): it goes back only to the last "**" met.
func matchParts(pattern, parts []string) bool {
	p, s, star, from := 0, 0, -1, 0
	for s < len(parts) {
		if p < len(pattern) && pattern[p] == "**" {
			star, from = p, s
			p++
			continue
		}
		if p < len(pattern) {
			if ok, _ := path.Match(pattern[p], parts[s]); ok { // patterns were checked when parsed
				p++
				s++
				continue
			}
		}
		if star < 0 {
			return false
		}
		from++
		p, s = star+1, from
	}
	for p < len(pattern) && pattern[p] == "**" {
		p++
	}
	return p == len(pattern)
}
