package action

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"holdfast/internal/durable"
	"holdfast/internal/tarball"
)

// carryOver moves what files.exclude leaves out of backups from a replaced tree into the new one: it is in no set, so it
// would be lost with the old tree. What the set brought itself stays as the set has it.
func (a *App) carryOver(m move) error {
	excluded, err := tarball.Excludes(a.o.Files.Exclude)
	if err != nil || len(a.o.Files.Exclude) == 0 {
		return err
	}
	c := &carrier{old: m.Aside, fresh: m.From, excluded: excluded}
	if err := c.walk(""); err != nil {
		return err
	}
	if len(c.left) > 0 {
		a.warn("%s: excluded files have no place among what the set brought and are lost: %s", m.From, firstFew(c.left))
	}
	if c.moved == 0 {
		return nil
	}
	return durable.SyncFS(m.From)
}

type carrier struct {
	old, fresh string
	excluded   func(rel string) bool
	moved      int
	left       []string // relative: where the set has something else than a directory above
}

// walk looks for excluded entries below old/rel.
func (c *carrier) walk(rel string) error {
	entries, err := os.ReadDir(filepath.Join(c.old, rel))
	if err != nil {
		return err
	}
	for _, e := range entries {
		child := filepath.Join(rel, e.Name())
		switch {
		case c.excluded(child):
			err = c.move(child)
		case e.IsDir():
			err = c.walk(child)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// move renames old/rel to fresh/rel; a directory that is on both sides is gone into.
func (c *carrier) move(rel string) error {
	from, to := filepath.Join(c.old, rel), filepath.Join(c.fresh, rel)
	switch ok, err := c.parents(filepath.Dir(rel)); {
	case err != nil:
		return err
	case !ok:
		c.left = append(c.left, rel)
		return nil
	}
	there, err := os.Lstat(to)
	if errors.Is(err, fs.ErrNotExist) {
		c.moved++
		return os.Rename(from, to) // old and new tree stand beside each other
	}
	if err != nil {
		return err
	}
	if info, err := os.Lstat(from); err != nil || !info.IsDir() || !there.IsDir() {
		return err
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := c.move(filepath.Join(rel, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// parents makes the directories above, as they were in the old tree. ok is false where the set has something else there: a
// symbolic link of a set must not lead what is moved out of the tree.
func (c *carrier) parents(rel string) (ok bool, err error) {
	path := ""
	for part := range strings.SplitSeq(rel, string(filepath.Separator)) {
		path = filepath.Join(path, part)
		to := filepath.Join(c.fresh, path)
		there, err := os.Lstat(to)
		if err == nil {
			if !there.IsDir() {
				return false, nil
			}
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		was, err := os.Lstat(filepath.Join(c.old, path))
		if err != nil {
			return false, err
		}
		if err := os.Mkdir(to, 0o700); err != nil {
			return false, err
		}
		if err := likeOld(to, was); err != nil {
			return false, err
		}
	}
	return true, nil
}

// likeOld gives a new directory the owner and mode of the old one, as far as this user may: the set-gid bit goes where the
// group could not be kept.
func likeOld(dir string, was fs.FileInfo) error {
	mode := was.Mode()
	st, ok := was.Sys().(*syscall.Stat_t)
	if !ok {
		return os.Chmod(dir, mode)
	}
	uid := int(st.Uid)
	if os.Geteuid() != 0 {
		uid = -1
	}
	err := os.Lchown(dir, uid, int(st.Gid))
	if uid < 0 && errors.Is(err, syscall.EPERM) {
		mode, err = mode&^fs.ModeSetgid, nil
	}
	if err != nil {
		return err
	}
	return os.Chmod(dir, mode)
}
