package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/kit"
)

// wireKit: the recovery kit that each run writes, when it is said to whom it is encrypted.
func wireKit(env *Env, w *wired, o *action.Options) error {
	pass, err := w.values.Secret(conf.KeyKitPassphrase)
	if err != nil {
		return err
	}
	lock := kit.Lock{Recipients: w.values.List(conf.KeyKitRecipient), Passphrase: kit.Secret(pass.Reveal())}
	if len(lock.Recipients) == 0 && lock.Passphrase == "" {
		return nil
	}
	store := o.Store
	o.Kit = &action.KitOptions{Seal: func(_ context.Context, run *catalog.Set, sets []*catalog.Set) ([]byte, []string, error) {
		k, lacks, err := w.kit(env, store, run, sets)
		if err != nil {
			return nil, nil, err
		}
		doc, err := k.Encode()
		if err != nil {
			return nil, nil, err
		}
		sealed, err := kit.Seal(doc, lock)
		return sealed, lacks, err
	}}
	return nil
}

// kit gathers what a bare machine needs. A file that a parameter names and that can't be read is left out and named in lacks: the
// parameter may be of a storage that is not used, and a kit without a certificate is better than none.
func (w *wired) kit(env *Env, store *action.StoreOptions, run *catalog.Set, sets []*catalog.Set) (k *kit.Kit, lacks []string, err error) {
	version, err := w.in.Version()
	if err != nil {
		return nil, nil, err
	}
	k = &kit.Kit{Made: env.Now().UTC(), Program: programVersion(), Host: run.Host, Set: run.ID, Parameters: map[string]kit.Secret{},
		Instance: kit.Instance{Root: w.in.Root(), DataDir: w.in.DataDir(), BackupDir: w.in.BackupDir(), User: w.in.User(), AppVersion: version}}
	key, err := os.ReadFile(w.in.KeyPath())
	if err != nil {
		return nil, nil, fmt.Errorf("key of the parameter store: %w", err)
	}
	k.Key = kit.Secret(key)
	for _, p := range conf.Table() {
		if !w.values.IsSet(p.Name) {
			continue
		}
		value, err := w.valueOf(&p)
		if err != nil {
			return nil, nil, err
		}
		k.Parameters[p.Name] = kit.Secret(value)
		if !carried(&p) || value == "" {
			continue
		}
		f, err := carry(p.Name, w.resolve(value))
		if err != nil {
			lacks = append(lacks, fmt.Sprintf("the file of %s (%v): mend that, or run: holdfast conf --unset %[1]s", p.Name, err))
			continue
		}
		k.Files = append(k.Files, f)
	}
	if store != nil {
		k.Store = &kit.Store{Kind: w.values.String(conf.KeyRedundancyType), Name: store.Name, Repository: storeRepository, Sets: storeSets}
	}
	if run.Recovery != nil {
		for _, p := range run.Recovery.Postgres {
			k.Stanzas = append(k.Stanzas, kit.Stanza{Name: p.Stanza, Version: p.Version, SystemID: p.SystemID})
		}
	}
	for _, s := range sets {
		k.Sets = append(k.Sets, kitSet(s))
	}
	return k, lacks, nil
}

// valueOf is the text of a parameter that is set, also of a secret.
func (w *wired) valueOf(p *conf.Key) (string, error) {
	if p.Secret() {
		s, err := w.values.Secret(conf.SecretKey(p.Name))
		return s.Reveal(), err
	}
	e, err := w.values.Entry(p.Name)
	return e.Value, err
}

// kitSet is a set's line in the kit.
func kitSet(s *catalog.Set) kit.Set {
	line := kit.Set{ID: s.ID, Mode: string(s.Mode), Began: s.Began, Size: s.Size(), InStore: s.Copy != nil && s.Copy.Tarballs && (s.Copy.Postgres || s.Mode == catalog.Included || len(s.Local()) == 0)}
	for _, p := range s.Pieces {
		if p.Kind == catalog.Postgres {
			line.Backups = append(line.Backups, p.Stanza+" "+p.Label)
		} else {
			line.Tarballs = append(line.Tarballs, filepath.Base(p.Path))
		}
	}
	return line
}

// carried says whether the file that a parameter names goes into the kit: certificates and keys, without which nothing can be
// reached. What is named for a restore is not among them.
func carried(p *conf.Key) bool {
	return p.Type == conf.Path && strings.HasSuffix(p.Name, "_file") && p.Name != string(conf.KeyRestoreFile) && p.Name != string(conf.KeyEBRestoreFile)
}

// carry reads one file for the kit.
func carry(name, path string) (kit.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return kit.File{}, err
	}
	b, err := readBounded(path, kit.MaxFile)
	return kit.File{Parameter: name, Mode: uint32(info.Mode().Perm()), Data: kit.Secret(b)}, err
}

// checkPairs refuses, before they are set, a recipient that is none and a passphrase that is too short: a kit that nobody can open is
// found out when it is too late; and credentials in an address, which is shown.
func checkPairs(pairs []conf.Pair) error {
	var all []error
	for _, p := range pairs {
		text := p.Value.Reveal()
		k := conf.Lookup(p.Name)
		if k == nil {
			continue
		}
		_, wrong := k.Parse(text)
		switch {
		case text == "" || wrong != nil: // the store says what is wrong with it
		case strings.HasSuffix(p.Name, ".endpoint") && strings.Contains(text, "@"):
			all = append(all, fmt.Errorf("%s: an address is no place for a user and a key: it is shown; they have parameters of their own", p.Name))
		case p.Name == string(conf.KeyKitRecipient):
			for i, r := range strings.Split(text, ",") {
				if err := kit.CheckRecipient(strings.TrimSpace(r)); err != nil {
					all = append(all, fmt.Errorf("%s: recipient %d: %w", p.Name, i+1, err))
				}
			}
		case p.Name == string(conf.KeyKitPassphrase) && len([]rune(text)) < kit.MinPassphrase:
			all = append(all, fmt.Errorf("%s: it needs %d characters at least: the kit lies on external storage and holds every secret", p.Name, kit.MinPassphrase))
		}
	}
	if err := errors.Join(all...); err != nil {
		return &usageError{err.Error() + "; nothing was changed"}
	}
	return nil
}
