package action

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Tarballs on external storage, one directory for each set:
//
//	<id>/<tarball>       as it is here; with a passphrase <tarball>.aes, encrypted as the repository's files are
//	<id>/<recovery kit>  as it is here: it is encrypted, and holds that passphrase
//	<id>/set.json(.aes)  the set's document, last: without it the set is not there

const (
	sealedSuffix = ".aes"
	maxSet       = 16 << 20 // bytes of a set's document

	tarballsError = "tarballs: " // begins what a set's entry says of them
)

// sealed is the name of an object on external storage, and how it is stored.
func (a *App) sealed(name string) (string, repo.StreamSpec) {
	spec := repo.StreamSpec{Compress: repo.None, Pass: a.o.RepoPass}
	if a.o.RepoPass != "" {
		name += sealedSuffix
	}
	return name, spec
}

// tarballs copies the tarballs of every set that are not there and are still here.
func (c *copyOut) tarballs(ctx context.Context) {
	if !c.store.Tarballs {
		return
	}
	st, err := c.store.OpenSets()
	if err != nil {
		c.warn("tarballs are not copied to %s: %v", c.store.Name, err)
		return
	}
	for _, s := range c.sets {
		if s.Copy != nil && s.Copy.Store == c.store.Name && s.Copy.Tarballs {
			continue
		}
		err := c.setTarballs(ctx, st, s)
		n := c.note(s)
		switch {
		case err == nil:
			n.Tarballs = true
			if strings.HasPrefix(n.Error, tarballsError) {
				n.Error = ""
			}
		case errors.Is(err, fs.ErrNotExist) && ctx.Err() == nil: // relocated before they could be copied
			if n.Error == "" {
				n.Error = tarballsError + err.Error()
				c.warn("set %s: %v; it can't be copied to %s any more", s.ID, err, c.store.Name)
			}
		default:
			if storage.IsUnavailable(err) {
				c.away = err
			}
			n.Error = tarballsError + err.Error()
			c.warn("the tarballs of set %s are not on %s; the next run copies them, or now: holdfast sets copy (%v)", s.ID, c.store.Name, err)
			return
		}
	}
	c.prune(ctx, false, true)
}

// setTarballs copies the tarballs of one set, and then its document.
func (c *copyOut) setTarballs(ctx context.Context, st storage.Storage, s *catalog.Set) error {
	for _, p := range s.Pieces {
		if p.Kind == catalog.Postgres {
			continue
		}
		c.step("copy", "tarball", p.Path)
		if err := c.tarball(ctx, st, s.ID, p); err != nil {
			return err
		}
	}
	if err := c.kit(ctx, st, s); err != nil {
		return err
	}
	stored := *s
	stored.Unsettled = false // what this instance has still to do is nobody else's
	doc, err := stored.Encode()
	if err != nil {
		return err
	}
	name, spec := c.sealed(path.Join(s.ID, setName))
	return storeStream(ctx, st, name, spec, strings.NewReader(string(doc)), int64(len(doc)), "")
}

// tarball copies one, unless it is there with its size. What is read is compared with what the run wrote before anything appears.
func (c *copyOut) tarball(ctx context.Context, st storage.Storage, id string, p catalog.Piece) error {
	name, spec := c.sealed(path.Join(id, filepath.Base(p.Path)))
	return c.file(ctx, st, name, spec, p)
}

// kit copies the set's recovery kit, if it has one. One that somebody took away is no reason to leave the tarballs.
func (c *copyOut) kit(ctx context.Context, st storage.Storage, s *catalog.Set) error {
	if s.Kit == nil {
		return nil
	}
	if _, err := os.Lstat(s.Kit.Path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	c.step("copy", "recovery-kit", s.Kit.Path)
	name := path.Join(s.ID, filepath.Base(s.Kit.Path))
	return c.file(ctx, st, name, repo.StreamSpec{Compress: repo.None}, catalog.Piece{Path: s.Kit.Path, Size: s.Kit.Size, SHA256: s.Kit.SHA256})
}

// file copies one file under a name, unless it is there with its size.
func (c *copyOut) file(ctx context.Context, st storage.Storage, name string, spec repo.StreamSpec, p catalog.Piece) error {
	info, err := st.Stat(ctx, name)
	if err == nil && info.Size == storedSize(p.Size, spec) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.Open(p.Path)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading: nothing to lose
	return storeStream(ctx, st, name, spec, f, p.Size, p.SHA256)
}

// storedSize is how long n bytes are when they are stored.
func storedSize(n int64, spec repo.StreamSpec) int64 {
	if spec.Pass == "" {
		return n
	}
	return 16 + (n/16+1)*16 // magic and salt, whole blocks, at least one byte of padding
}

// storeStream stores what r gives as one object; want (may be empty) is the SHA-256 that it has to have.
func storeStream(ctx context.Context, st storage.Storage, name string, spec repo.StreamSpec, r io.Reader, size int64, want string) error {
	w, err := st.Create(ctx, name, storage.CreateOptions{Size: storedSize(size, spec)})
	if err != nil {
		return err
	}
	defer w.Abort() // after Commit it does nothing
	sw, err := repo.NewStreamWriter(w, spec)
	if err != nil {
		return err
	}
	h := sha256.New()
	_, err = io.Copy(io.MultiWriter(sw, h), &contextReader{ctx, r})
	if err = errors.Join(err, sw.Close()); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); want != "" && got != want {
		return fmt.Errorf("%s: its SHA-256 is %s, the run wrote %s: it is damaged", name, got, want)
	}
	return w.Commit(ctx)
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// removeStored removes a set's tarballs, the document first: from then on it is not there.
func removeStored(ctx context.Context, st storage.Storage, id string) error {
	doc := path.Join(id, setName)
	if err := st.Remove(ctx, doc, doc+sealedSuffix); err != nil {
		return err
	}
	var names []string
	for info, err := range st.List(ctx, id, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return err
		}
		names = append(names, info.Name)
	}
	return st.Remove(ctx, names...)
}

// storedSets are the ids of the directories there, oldest first.
func storedSets(ctx context.Context, st storage.Storage) (ids []string, err error) {
	for info, err := range st.List(ctx, "", storage.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		if info.Dir && catalog.CheckID(info.Name) == nil {
			ids = append(ids, info.Name)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// StoreSets reads the documents of the sets whose tarballs are on external storage, oldest first, and what is damaged there.
func (a *App) StoreSets(ctx context.Context) (sets []*catalog.Set, damaged []error, err error) {
	s, err := a.store()
	if err != nil {
		return nil, nil, err
	}
	st, err := s.OpenSets()
	if err != nil {
		return nil, nil, fmt.Errorf("external storage %s: %w", s.Name, err)
	}
	ids, err := storedSets(ctx, st)
	if err != nil {
		return nil, nil, fmt.Errorf("external storage %s: %w", s.Name, err)
	}
	for _, id := range ids {
		set, err := a.storedSet(ctx, st, id)
		switch {
		case ctx.Err() != nil:
			return nil, nil, ctx.Err()
		case storage.IsUnavailable(err): // which sets there are can't be told
			return nil, nil, fmt.Errorf("external storage %s: %w", s.Name, err)
		case errors.Is(err, fs.ErrNotExist): // begun, or half removed
		case err != nil:
			damaged = append(damaged, err)
		default:
			sets = append(sets, set)
		}
	}
	return sets, damaged, nil
}

// storedSet reads one set's document on external storage.
func (a *App) storedSet(ctx context.Context, st storage.Storage, id string) (*catalog.Set, error) {
	name, spec := a.sealed(path.Join(id, setName))
	b, err := storage.ReadAll(ctx, st, name, maxSet)
	if errors.Is(err, fs.ErrNotExist) && spec.Pass == "" {
		if _, serr := st.Stat(ctx, name+sealedSuffix); serr == nil {
			return nil, fmt.Errorf("set %s is encrypted there: set pgsql.pgbackrest.cipher_pass", id)
		}
	}
	if err != nil {
		return nil, err
	}
	var text strings.Builder
	if _, err := repo.Decode(&text, strings.NewReader(string(b)), spec); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	set, err := catalog.Parse([]byte(text.String()))
	if err == nil && set.ID != id {
		err = fmt.Errorf("it is of set %s", set.ID)
	}
	return set, wrap(err, "%s", name)
}

// FetchSet brings the tarballs of a set back from external storage into the dump directory, every byte compared with what the run
// wrote, and enters the set into the catalogue if it does not have it. What is here already stays. Its PostgreSQL backup stays
// where it is: a restore takes it from there.
func (a *App) FetchSet(ctx context.Context, id string) (*catalog.Set, error) {
	s, err := a.store()
	if err != nil {
		return nil, err
	}
	unlock, err := a.lock(ctx, "sets fetch")
	if err != nil {
		return nil, err
	}
	set, err := a.fetchSet(ctx, s, id)
	if err = errors.Join(wrap(err, "fetch set %s from %s", id, s.Name), unlock()); err != nil {
		return nil, err
	}
	return set, nil
}

func (a *App) fetchSet(ctx context.Context, s *StoreOptions, id string) (*catalog.Set, error) {
	if err := catalog.CheckID(id); err != nil {
		return nil, err
	}
	st, err := s.OpenSets()
	if err != nil {
		return nil, err
	}
	set, err := a.storedSet(ctx, st, id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w there; see: holdfast sets list --store", catalog.ErrUnknown)
	}
	if err != nil {
		return nil, err
	}
	if err := durable.MkdirAllOwned(a.o.DumpDir, 0o750, a.o.Owner); err != nil {
		return nil, fmt.Errorf("dump directory: %w", err)
	}
	relocated := false
	if known, err := a.o.Catalog.Get(ctx, id); err == nil {
		relocated = a.relocated(known)
	}
	for i := range set.Pieces {
		p := &set.Pieces[i]
		if p.OnRDS() {
			continue // it is where it was
		}
		if p.Kind == catalog.Postgres {
			if p.Tool == "" { // else it is where it was made, and nowhere else
				p.Path = s.Name
			}
			continue
		}
		base := filepath.Base(p.Path)
		if !strings.HasPrefix(base, id+"_") { // a doctored document must not name other files
			return nil, fmt.Errorf("its document names the tarball %q", base)
		}
		p.Path = filepath.Join(a.o.DumpDir, base)
		if err := a.fetchTarball(ctx, st, id, *p); err != nil {
			return nil, err
		}
	}
	if known, err := a.o.Catalog.Get(ctx, id); err == nil {
		if known.Unsettled && relocated { // or the next run would give what has come back to the program that took it away
			known.Unsettled = false
			return known, a.o.Catalog.Put(ctx, known)
		}
		return known, nil
	} else if !errors.Is(err, catalog.ErrUnknown) {
		return nil, err
	}
	set.Pin = &catalog.Pin{Reason: "fetched from " + s.Name, At: a.o.Now().UTC(), Until: a.o.Now().UTC().Add(fetchedPin)}
	set.Removal, set.Retention, set.Unsettled = nil, nil, false
	set.Copy = &catalog.Copy{Store: s.Name, At: a.o.Now().UTC(), Postgres: set.Mode == catalog.Apart && len(set.Local()) > 0 && toolOf(set) == "", Tarballs: true}
	return set, a.o.Catalog.Put(ctx, set)
}

// fetchTarball brings one tarball, unless a file of its name and size is here.
func (a *App) fetchTarball(ctx context.Context, st storage.Storage, id string, p catalog.Piece) error {
	if info, err := os.Lstat(p.Path); err == nil {
		if info.Size() == p.Size {
			return nil
		}
		return fmt.Errorf("%s is here with %d bytes, the set's has %d: move it away", p.Path, info.Size(), p.Size)
	}
	a.step("fetch", "tarball", p.Path)
	name, spec := a.sealed(path.Join(id, filepath.Base(p.Path)))
	in, err := st.Open(ctx, name, 0, -1)
	if err != nil {
		return err
	}
	defer in.Close()                                                             // opened for reading: nothing to lose
	if err := os.Remove(hiddenName(p.Path)); err != nil && !os.IsNotExist(err) { // of a fetch that died
		return err
	}
	out, err := a.createOut(filepath.Base(p.Path))
	if err != nil {
		return err
	}
	defer func() { _ = out.Abort() }() // after Publish it does nothing; else the error at hand counts
	h := sha256.New()
	sums, err := repo.Decode(io.MultiWriter(out, h), &contextReader{ctx, in}, spec)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.SHA256 || sums.Size != p.Size {
		return fmt.Errorf("%s: SHA-256 %s and %d bytes; the run wrote %s and %d: it is damaged there", name, got, sums.Size, p.SHA256, p.Size)
	}
	if err := out.Finish(); err != nil {
		return err
	}
	return out.Publish()
}
