package engine

import (
	"errors"
	"strings"
	"testing"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestAccess: a wrong passphrase, a wrong path and a missing stanza are three different messages, and damage is none of them.
func TestAccess(t *testing.T) {
	control := pg.Control{SystemID: 7, Version: pg.Version(15)}
	stanza := func(name string, st storage.Storage, pass repo.Secret) *Stanza {
		s, err := New(Options{Stanza: name, Storage: st, Pass: pass})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	made := func(pass repo.Secret) *storage.Mem {
		st := storage.NewMem(nil)
		if _, err := stanza("main", st, pass).Create(t.Context(), control); err != nil {
			t.Fatal(err)
		}
		return st
	}
	damaged := made("right")
	for _, name := range []string{"archive/main/archive.info", "archive/main/archive.info.copy"} {
		b, err := storage.ReadAll(t.Context(), damaged, name, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := storage.WriteAll(t.Context(), damaged, name, b[:len(b)-32]); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, stanza string
		st           storage.Storage
		pass         repo.Secret
		is           error
		says         string
	}{
		{"wrong passphrase", "main", made("right"), "wrong", ErrPassphrase, "encrypted with another one"},
		{"missing passphrase", "main", made("right"), "", ErrPassphrase, "no passphrase is given"},
		{"passphrase too many", "main", made(""), "any", ErrPassphrase, "not encrypted"},
		{"damage", "main", damaged, "right", repo.ErrCorrupt, "load archive.info"},
		{"missing stanza", "other", made("right"), "right", ErrStanzaMissing, "has the stanzas main"},
		{"wrong path", "main", storage.NewMem(nil), "right", ErrStanzaMissing, "the path is wrong"},
		{"right", "main", made("right"), "right", nil, ""},
	} {
		err := stanza(c.stanza, c.st, c.pass).Belongs(t.Context(), control)
		if !errors.Is(err, c.is) || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
		if errors.Is(err, ErrPassphrase) != (c.is == ErrPassphrase) {
			t.Errorf("%s is taken for another: %v", c.name, err)
		}
		if c.is != ErrPassphrase {
			continue
		}
		if _, err := stanza(c.stanza, c.st, c.pass).Create(t.Context(), control); !errors.Is(err, ErrPassphrase) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("create, %s: %v", c.name, err)
		}
	}
}
