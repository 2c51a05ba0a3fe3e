package action

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"path"

	"holdfast/internal/storage"
)

// Protection is how well the external storage protects what is on it.
type Protection struct {
	Store string         `json:"store"`
	Facts []storage.Fact `json:"facts"`
}

// Weak counts what should be otherwise.
func (p *Protection) Weak() (n int) {
	for _, f := range p.Facts {
		if f.Grade == storage.Weak {
			n++
		}
	}
	return n
}

// StoreProtection asks the external storage how it protects what is on it, and tries what its credentials may do.
func (a *App) StoreProtection(ctx context.Context) (*Protection, error) {
	s, err := a.store()
	if err != nil {
		return nil, err
	}
	st, err := s.OpenRepo()
	if err != nil {
		return nil, fmt.Errorf("external storage %s: %w", s.Name, err)
	}
	p, err := ProtectionOf(ctx, s.Name, st, a.o.RepoPass != "")
	return p, wrap(err, "external storage %s", s.Name)
}

// ProtectionOf is StoreProtection for any repository; encrypted says that we encrypt what is in it.
func ProtectionOf(ctx context.Context, name string, st storage.Storage, encrypted bool) (*Protection, error) {
	p := &Protection{Store: name, Facts: []storage.Fact{}}
	if asked, ok := st.(storage.Protector); ok {
		var random [8]byte
		rand.Read(random[:]) // crypto/rand.Read never fails (Go 1.24)
		facts, err := asked.Protection(ctx, path.Join(checkDir, hex.EncodeToString(random[:])))
		if err != nil {
			return nil, err
		}
		p.Facts = append(p.Facts, facts...)
	} else {
		p.Facts = append(p.Facts, storage.Fact{Name: "removal", Grade: storage.Weak, Text: "whoever may write may remove and overwrite: this kind of storage has no versions and no lock that Holdfast knows of",
			Advice: "snapshots on the machine that holds it, or a store with object lock"})
	}
	own := storage.Fact{Name: "own-encryption", Grade: storage.Good, Text: "what is written is encrypted before it leaves this host"}
	if !encrypted {
		own.Grade, own.Text, own.Advice = storage.Weak, "what is written is in clear: whoever can read the storage can read the database", "a repository with pgsql.pgbackrest.cipher_pass (for a new one only)"
	}
	p.Facts = append(p.Facts, own)
	return p, nil
}
