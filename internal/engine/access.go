package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// ErrPassphrase says that the repository and the passphrase given do not belong together.
var ErrPassphrase = errors.New("the passphrase does not fit the repository")

// Belongs says whether the stanza is there and is the one of the cluster that c describes, changing nothing:
// ErrStanzaMissing, ErrStanzaMismatch and ErrPassphrase may be asked for.
func (s *Stanza) Belongs(ctx context.Context, c pg.Control) error {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return err
	}
	return s.matches(ai, bi, c)
}

// Exists says why the stanza can't be worked with: ErrStanzaMissing, ErrPassphrase, or what is wrong with its info files.
func (s *Stanza) Exists(ctx context.Context) error {
	_, _, err := s.loadInfos(ctx)
	return err
}

// notLoaded says why one of the stanza's two info files could not be loaded, told apart for the operator: the repository is
// somewhere else, the stanza is missing, the passphrase is wrong, or what err says.
func (s *Stanza) notLoaded(ctx context.Context, object string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(object, "/archive.info") {
		return s.missing(ctx, err)
	}
	if why := s.misfit(ctx, object); why != "" {
		return fmt.Errorf("stanza %s: %w: %s %s", s.o.Stanza, ErrPassphrase, object, why)
	}
	return fmt.Errorf("stanza %s: load %s: %w", s.o.Stanza, object[strings.LastIndexByte(object, '/')+1:], err)
}

// missing tells a stanza that is not there from a repository that is not there.
func (s *Stanza) missing(ctx context.Context, err error) error {
	names, lerr := Stanzas(ctx, s.o.Storage)
	if lerr != nil {
		return fmt.Errorf("stanza %s: look for it in the repository: %w", s.o.Stanza, lerr)
	}
	has := "the repository has the stanzas " + strings.Join(names, ", ")
	if len(names) == 0 {
		has = "there is no repository yet where the path says: if there should be one, the path is wrong"
	}
	return fmt.Errorf("stanza %s: %w; %s; to make it run: holdfast pg stanza-create --stanza=%s (%w)", s.o.Stanza, ErrStanzaMissing, has, s.o.Stanza, err)
}

// misfit compares the encryption of an info file, or of its copy, with the passphrase given; "" when that is not what is wrong.
func (s *Stanza) misfit(ctx context.Context, object string) string {
	const sealed, plain = "Salted__", "[backrest]" // what encrypted and plain info files begin with
	why := ""
	for _, name := range []string{object, object + ".copy"} {
		head, err := s.head(ctx, name, len(plain), "")
		switch {
		case err != nil:
			continue // not readable at all: says nothing about the passphrase
		case strings.HasPrefix(head, sealed) && s.o.Pass == "":
			return "is encrypted, and no passphrase is given"
		case strings.HasPrefix(head, sealed):
			if text, err := s.head(ctx, name, len(plain), s.o.Pass); err == nil && text == plain {
				return "" // it opens this one: the rest of the file is damaged
			}
			why = "was encrypted with another one"
		case head == plain && s.o.Pass != "":
			return "is not encrypted, and a passphrase is given"
		}
	}
	return why
}

// head is the first n bytes of an object, decrypted when pass is not empty.
func (s *Stanza) head(ctx context.Context, object string, n int, pass repo.Secret) (string, error) {
	in, err := s.o.Storage.Open(ctx, object, 0, -1)
	if err != nil {
		return "", err
	}
	defer in.Close() // only read; what could fail has been seen by the reader
	sr, err := repo.NewStreamReader(in, repo.StreamSpec{Compress: repo.None, Pass: pass})
	if err != nil {
		return "", err
	}
	defer sr.Close() // likewise
	b := make([]byte, n)
	_, err = io.ReadFull(sr, b)
	return string(b), err
}
