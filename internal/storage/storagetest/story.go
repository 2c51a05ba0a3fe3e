package storagetest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"

	"holdfast/internal/storage"
)

// Story is a short life of a repository with every verb in it: objects below and above a part's size are written,
// replaced, read whole and in part, listed, and removed one by one and many at once. It returns what was not as it should
// be. For running it again and again over a network that fails at one request after the other; big is the size of the
// object that goes in parts.
func Story(t *testing.T, s storage.Storage, big int) error {
	ctx := t.Context()
	content := bytes.Repeat([]byte("0123456789abcdef"), big/16+1)[:big]
	for _, c := range []struct {
		name string
		data []byte
	}{{"a/small", []byte("small")}, {"a/big", content}, {"a/empty", nil}, {"b/1", content[:100]}, {"b/2", content[:200]}, {"b/3", nil}, {"b/4", nil}} {
		if err := storage.WriteAll(ctx, s, c.name, c.data); err != nil {
			return fmt.Errorf("write %s: %w", c.name, err)
		}
	}
	if err := storage.WriteAll(ctx, s, "a/small", []byte("replaced")); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	if err := storage.WriteAll(ctx, s, "a/big", content[1:]); err != nil {
		return fmt.Errorf("replace: %w", err)
	}
	for _, c := range []struct {
		name           string
		offset, length int64
		want           []byte
	}{{"a/small", 0, -1, []byte("replaced")}, {"a/big", 0, -1, content[1:]}, {"a/big", 10, int64(big) / 2, content[11 : 11+big/2]}, {"a/empty", 0, -1, nil}} {
		got, err := read(ctx, s, c.name, c.offset, c.length)
		if err != nil || !bytes.Equal(got, c.want) {
			return fmt.Errorf("read %s: %d bytes for %d: %w", c.name, len(got), len(c.want), err)
		}
	}
	if in, err := s.Stat(ctx, "a/big"); err != nil || in.Size != int64(big)-1 {
		return fmt.Errorf("stat: %+v, %w", in, err)
	}
	if _, err := s.Stat(ctx, "a/none"); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("stat of what is not there: %w", err)
	}
	if err := errors.Join(s.Remove(ctx, "b/1"), s.Remove(ctx, "b/2", "b/3", "b/none", "b/4"), s.Sync(ctx)); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	var names []string
	for in, err := range s.List(ctx, "", storage.ListOptions{Recursive: true}) {
		if err != nil {
			return fmt.Errorf("list: %w", err)
		}
		names = append(names, in.Name)
	}
	if want := []string{"a/big", "a/empty", "a/small"}; !slices.Equal(names, want) {
		return fmt.Errorf("listed %q, want %q", names, want)
	}
	return nil
}
