package engine

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// RepoEntry is one line of a repository's listing. Links are not shown: a Storage passes over them.
type RepoEntry struct {
	Name string // relative to the path that was listed; "." for itself
	Dir  bool
	Size int64 // bytes as stored
	Time int64 // Unix seconds
}

// RepoListing marshals as pgbackrest's repo-ls --output=json prints it, in its own order.
type RepoListing []RepoEntry

// RepoLsOptions says what to list.
type RepoLsOptions struct {
	Path       string         // "" = the repository's root
	Recurse    bool           // all below, too
	Filter     *regexp.Regexp // on the name relative to Path; nil = everything
	Descending bool
}

// RepoLs lists a directory of the repository, or one file as ".". A path that is not there lists nothing but ".", as
// pgbackrest has it. The names come in the order asked for.
func RepoLs(ctx context.Context, st storage.Storage, o RepoLsOptions) (RepoListing, error) {
	var list RepoListing
	dir := strings.Trim(o.Path, "/")
	add := func(e RepoEntry) {
		if o.Filter == nil || o.Filter.MatchString(e.Name) {
			list = append(list, e)
		}
	}
	if dir != "" {
		info, err := st.Stat(ctx, dir)
		if err == nil {
			add(RepoEntry{Name: ".", Size: info.Size, Time: info.ModTime.Unix()})
			return list, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list %s: %w", dir, err)
		}
	}
	add(RepoEntry{Name: ".", Dir: true})
	var walk func(rel string) error
	walk = func(rel string) error {
		at := path.Join(dir, rel)
		for info, err := range st.List(ctx, at, storage.ListOptions{}) {
			if err != nil {
				return fmt.Errorf("list %s: %w", at, err)
			}
			e := RepoEntry{Name: path.Join(rel, path.Base(info.Name)), Dir: info.Dir}
			if !info.Dir {
				e.Size, e.Time = info.Size, info.ModTime.Unix()
			}
			add(e)
			if info.Dir && o.Recurse {
				if err := walk(e.Name); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk(""); err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b RepoEntry) int {
		if o.Descending {
			a, b = b, a
		}
		return cmp.Compare(a.Name, b.Name)
	})
	return list, nil
}

// MarshalJSON gives one object, a member for each entry.
func (l RepoListing) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, e := range l {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(e.Name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		if e.Dir {
			b.WriteString(`:{"type":"path"}`)
		} else {
			fmt.Fprintf(&b, `:{"type":"file","size":%d,"time":%d}`, e.Size, e.Time)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// RepoGetOptions says in which form RepoGet gives an object. The zero value is pgbackrest's: decrypted, not decompressed.
type RepoGetOptions struct {
	Raw        bool // as it is stored
	Decompress bool // also decompressed, by the extension of the name; nothing with Raw
}

// RepoGet writes one object of the repository to w, decrypted with the passphrase that its kind has: pass is the
// repository's, the others are found through it. An object that is not there is fs.ErrNotExist. On an error some of it may
// have been written. Memory is bounded.
func RepoGet(ctx context.Context, st storage.Storage, pass repo.Secret, name string, o RepoGetOptions, w io.Writer) error {
	name = strings.Trim(name, "/")
	return wrap(repoGet(ctx, st, pass, name, o, w), "get %s", name)
}

func repoGet(ctx context.Context, st storage.Storage, pass repo.Secret, name string, o RepoGetOptions, w io.Writer) error {
	f, err := st.Open(ctx, name, 0, -1)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	spec := repo.StreamSpec{Compress: repo.None}
	if c, err := repo.ParseCompressType(strings.TrimPrefix(path.Ext(name), ".")); err == nil && o.Decompress && c.Ext() == path.Ext(name) {
		spec.Compress = c
	}
	if o.Raw || pass == "" && !o.Decompress {
		_, err = io.Copy(w, f)
		return err
	}
	if elem := strings.Split(name, "/"); len(elem) > 4 && elem[0] == "backup" && (elem[3] == "bundle" || path.Ext(name) == ".pgbi") {
		return errors.New("a bundle or block incremental file holds many pieces, each stored by itself: get it with --raw, or restore the backup")
	}
	if spec.Pass, err = objectPass(ctx, st, pass, name); err != nil {
		return err
	}
	if spec.Pass != "" && isText(name) && (spec.Compress != repo.None || path.Ext(name) != ".gz") {
		w = &keyedText{w: w}
	}
	_, err = repo.Decode(w, &ctxReader{ctx, f}, spec)
	return err
}

// isText says whether an object of this name is an info file or a manifest.
func isText(name string) bool {
	elem := strings.Split(name, "/")
	at := func(n int, begin string) bool { return len(elem) == n+1 && strings.HasPrefix(elem[n], begin) }
	switch elem[0] {
	case "archive":
		return at(2, "archive.info")
	case "backup":
		return at(2, "backup.info") || at(3, "backup.manifest") || len(elem) == 5 && elem[2] == "backup.history"
	}
	return false
}

// keyedText lets an info file or a manifest through, and nothing that does not begin like one: it was decrypted with the wrong
// passphrase, which its end does not always show.
type keyedText struct {
	w     io.Writer
	begun bool
}

func (k *keyedText) Write(p []byte) (int, error) {
	const begin = "[backrest]"
	if n := min(len(p), len(begin)); !k.begun && string(p[:n]) != begin[:n] {
		return 0, repo.ErrCipher
	}
	k.begun = k.begun || len(p) > 0
	return k.w.Write(p)
}

// objectPass finds the passphrase of an object by where it lies (format page, sections 4.6 and 8.3):
//
//	repository's pass ─► archive.info ─► its pass: all below an archive id
//	                  └► backup.info  ─► its pass: manifests ─► their pass: the files of the backup
func objectPass(ctx context.Context, st storage.Storage, pass repo.Secret, name string) (repo.Secret, error) {
	elem := strings.SplitN(name, "/", 5)
	switch {
	case pass == "" || len(elem) < 3:
		return pass, nil
	case elem[0] == "archive":
		if strings.HasPrefix(elem[2], "archive.info") {
			return pass, nil
		}
		ai, err := repo.LoadArchiveInfo(ctx, st, elem[1], pass)
		if err != nil {
			return "", err
		}
		return ai.CipherPass, nil
	case elem[0] != "backup" || strings.HasPrefix(elem[2], "backup.info"):
		return pass, nil
	}
	bi, err := repo.LoadBackupInfo(ctx, st, elem[1], pass)
	if err != nil {
		return "", err
	}
	label, err := repo.ParseLabel(elem[2])
	if err != nil || len(elem) == 4 && strings.HasPrefix(elem[3], "backup.manifest") {
		return bi.CipherPass, nil
	}
	m, err := repo.LoadManifest(ctx, st, elem[1], label, bi.CipherPass)
	if err != nil {
		return "", err
	}
	return m.CipherPass, nil
}
