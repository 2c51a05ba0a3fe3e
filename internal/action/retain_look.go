package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// shelf is the backups of one stanza in one repository here that sets have, or had.
type shelf struct {
	dir, stanza string
	st          storage.Storage
	s           *engine.Stanza
	absent      bool  // there is no such stanza
	err         error // why it can't be told what is there
	lines       []repo.BackupLine
	owners      map[repo.Label][]string // ids of the sets that have it
}

// line is a backup that is listed, nil without.
func (h *shelf) line(l repo.Label) *repo.BackupLine {
	i := slices.IndexFunc(h.lines, func(b repo.BackupLine) bool { return b.Label == l })
	if i < 0 {
		return nil
	}
	return &h.lines[i]
}

// chain is a backup with all that it is built on, as far as that is listed.
func (h *shelf) chain(l repo.Label) []repo.Label {
	out := []repo.Label{l}
	for i := 0; i < len(out); i++ {
		b := h.line(out[i])
		if b == nil {
			continue
		}
		for _, on := range append([]repo.Label{b.Prior}, b.References...) {
			if on != "" && !slices.Contains(out, on) {
				out = append(out, on)
			}
		}
	}
	return out
}

// look is everything that the retention, or a deletion, goes by.
type look struct {
	*App
	sets    []standing // oldest first
	shelves []*shelf
	notes   []string
	damaged []error // entries of the catalogue that can't be read
}

// look reads the catalogue and every repository here that it names. What can't be asked is not taken for gone: sets with a piece there
// are unknown.
func (a *App) look(ctx context.Context) (*look, error) {
	sets, damaged, err := a.o.Catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	// By the time at which they began: an id may be of a later minute than its run, where runs follow each other closely.
	slices.SortStableFunc(sets, func(a, b *catalog.Set) int { return a.Began.Compare(b.Began) })
	l := &look{App: a, damaged: damaged}
	for _, d := range damaged {
		l.note("a set is left alone with all that it has: %v", d)
	}
	for _, s := range sets {
		l.sets = append(l.sets, standing{set: s})
		for _, p := range s.Pieces {
			if err := l.shelve(ctx, s, p); err != nil {
				return nil, err
			}
		}
	}
	for i := range l.sets {
		l.pieces(&l.sets[i])
	}
	return l, nil
}

func (l *look) note(format string, args ...any) {
	l.notes = append(l.notes, fmt.Sprintf(format, args...))
}

// held says whether a piece is a backup in a repository here.
func (l *look) held(p catalog.Piece) bool {
	return p.Kind == catalog.Postgres && p.Tool == "" && !p.OnRDS() && p.Stanza != "" && p.Label != "" && !l.inStore(p.Path)
}

// shelve notes the backup of a set, and reads its repository once. The error is for the end of ctx only.
func (l *look) shelve(ctx context.Context, s *catalog.Set, p catalog.Piece) error {
	if !l.held(p) {
		return nil
	}
	h := l.shelf(p)
	if h == nil {
		h = &shelf{dir: p.Path, stanza: p.Stanza, owners: map[repo.Label][]string{}}
		l.shelves = append(l.shelves, h)
		if h.err = l.read(ctx, h); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if label := repo.Label(p.Label); !slices.Contains(h.owners[label], s.ID) {
		h.owners[label] = append(h.owners[label], s.ID)
	}
	return nil
}

func (a *App) read(ctx context.Context, h *shelf) (err error) {
	if h.st, err = a.o.OpenRepo(h.dir); err == nil {
		h.s, err = a.stanza(h.stanza, h.st)
	}
	if err == nil {
		h.lines, err = h.s.Lines(ctx)
	}
	if errors.Is(err, engine.ErrStanzaMissing) {
		h.absent, err = true, nil
	}
	return wrap(err, "repository %s", h.dir)
}

func (l *look) shelf(p catalog.Piece) *shelf {
	i := slices.IndexFunc(l.shelves, func(h *shelf) bool { return h.dir == p.Path && h.stanza == p.Stanza })
	if i < 0 {
		return nil
	}
	return l.shelves[i]
}

// pieces finds out where the pieces of a set are, and which other sets they are built on.
func (l *look) pieces(s *standing) {
	c := s.set.Copy
	copied := func(postgres bool) bool {
		return c != nil && l.o.Store != nil && c.Store == l.o.Store.Name && (postgres && c.Postgres || !postgres && c.Tarballs)
	}
	for _, p := range s.set.Pieces {
		switch {
		case p.Kind == catalog.Application || p.Kind == catalog.EventBus:
			info, err := os.Stat(p.Path)
			switch {
			case err != nil && !errors.Is(err, fs.ErrNotExist):
				s.unknown = err
			case err == nil && info.Mode().IsRegular() && info.Size() == p.Size:
			case err == nil:
				s.away, s.missing = true, append(s.missing, filepath.Base(p.Path)+" as the run wrote it")
			case copied(false), s.set.PostScript != nil && s.set.PostScript.Error == "":
				s.away = true
			default:
				s.away, s.missing = true, append(s.missing, filepath.Base(p.Path))
			}
		case l.held(p):
			h, label := l.shelf(p), repo.Label(p.Label)
			if h.err != nil {
				s.unknown = h.err
				continue
			}
			if h.line(label) == nil {
				s.away = true
				if !copied(true) {
					s.missing = append(s.missing, "backup "+p.Label+" of stanza "+p.Stanza)
				}
			}
			l.built(s, h, label)
		case p.OnRDS(): // where it belongs; removing it asks whether it is the set's
		case p.Tool == catalog.Probackup:
			s.tool = p.Tool
			if l.goneFromCatalog(p) {
				s.away, s.missing = true, append(s.missing, "backup "+p.Label+" of instance "+p.Stanza+" in "+p.Path)
			}
		case p.Kind == catalog.Postgres && l.inStore(p.Path):
			s.away = true
		default:
			s.strange = fmt.Sprintf("the piece %s %s", p.Kind, p.Path)
		}
	}
}

// goneFromCatalog says whether a backup of pg_probackup surely is neither in the catalog that it was made in nor in the one of now,
// from which a restore takes it. What can't be asked may be there: only PostgreSQL's user gets into a catalog.
func (l *look) goneFromCatalog(p catalog.Piece) bool {
	dirs := []string{p.Path}
	if l.o.Probackup != nil {
		dirs = append(dirs, l.o.Probackup.ApartDir)
	}
	return !slices.ContainsFunc(dirs, func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, "backups", p.Stanza, p.Label, "backup.control"))
		return !errors.Is(err, fs.ErrNotExist)
	})
}

// built notes what the backup of a set is built on, and a backup of no set that is built on it.
func (l *look) built(s *standing, h *shelf, label repo.Label) {
	for _, on := range h.chain(label) {
		for _, id := range h.owners[on] {
			if id != s.set.ID && !slices.Contains(s.built, id) {
				s.built = append(s.built, id)
			}
		}
	}
	for i := range h.lines {
		b := &h.lines[i]
		if len(h.owners[b.Label]) == 0 && slices.Contains(h.chain(b.Label), label) {
			s.unnamed = string(b.Label)
		}
	}
}

// needed are the backups of a shelf that a set which stays, or a backup of no set, is built on, those themselves among them.
func (h *shelf) needed(stays func(id string) bool) map[repo.Label]bool {
	out := map[repo.Label]bool{}
	for _, b := range h.lines {
		if owners := h.owners[b.Label]; len(owners) > 0 && !slices.ContainsFunc(owners, stays) {
			continue
		}
		for _, l := range h.chain(b.Label) {
			out[l] = true
		}
	}
	return out
}

// belongs says whether a file bears the name of a set: a doctored catalogue must not name other files.
func belongs(file, id string) bool {
	return strings.HasPrefix(strings.TrimPrefix(filepath.Base(file), hiddenPrefix), id+"_")
}
