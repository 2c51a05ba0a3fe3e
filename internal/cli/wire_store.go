package cli

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/backrest"
	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/storage"
)

// settings reads options of repositories in pgBackRest's words, with what environ adds, for one that is opened with storageFor:
// the one door to repositories of every kind. The error is a text for the operator.
func settings(env *Env, words, environ []string) (*backrestRun, error) {
	c, err := backrest.Parse(words, environ, os.DirFS("/"))
	if err == nil {
		if err = refuse(c); err == nil {
			err = c.Complete()
		}
	}
	return &backrestRun{env: env, c: c}, err
}

// wireStore: the external storage that the parameters describe, and what is copied to it.
func wireStore(env *Env, w *wired, o *action.Options) error {
	v := w.values
	o.Keep = action.RetentionRule{Sets: v.Int(conf.KeyRetentionSets), Days: v.Int(conf.KeyRetentionDays)}
	name := storeName(w.resolve, v)
	wanted := v.Bool(conf.KeyRedundancyEnabled) || v.Bool(conf.KeyTarballCopies)
	if name == "" && !wanted {
		return nil
	}
	open := func(sub string, owner *durable.Owner) func() (storage.Storage, error) {
		return func() (storage.Storage, error) { return openStore(env, w, sub, owner) }
	}
	if name == "" {
		name = v.String(conf.KeyRedundancyType) + " storage"
	}
	o.Store = &action.StoreOptions{Name: name, OpenRepo: open(storeRepository, repositoryOwner(o.Clusters, o.Owner)), OpenSets: open(storeSets, o.Owner),
		Postgres: v.Bool(conf.KeyRedundancyEnabled), Tarballs: v.Bool(conf.KeyTarballCopies), ProcessMax: max(8, 2*runtime.NumCPU()),
		AppendOnly: v.Bool(conf.KeyAppendOnly), KeepSets: v.Int(conf.KeyRetentionSets), KeepDays: v.Int(conf.KeyRetentionDays)}
	return nil
}

// The two places on the external storage.
const (
	storeRepository = "pgbackrest"
	storeSets       = "sets"
)

// wirePostScript: the program that relocates the tarballs.
func wirePostScript(env *Env, w *wired, o *action.Options) error {
	program := w.values.Path(conf.KeyPostScript)
	if program == "" {
		return nil
	}
	p := &action.PostScriptOptions{Path: w.in.Resolve(program), Timeout: w.values.Duration(conf.KeyPostScriptTimeout)}
	for _, name := range []string{"PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR"} {
		if v := env.Getenv(name); v != "" {
			p.Env = append(p.Env, name+"="+v)
		}
	}
	o.PostScript = p
	return nil
}

// storeCheckTime bounds the check of the external storage when its parameters are set.
const storeCheckTime = 30 * time.Second

// checkSet looks whether the external storage can be used, when a call that set parameters of it made them complete. Parameters are
// set one after the other: as long as something is missing nothing is said. The error is a warning, what was set stays.
func checkSet(ctx context.Context, env *Env, root string, names []string) error {
	ours := func(n string) bool {
		return strings.HasPrefix(n, "pgsql.pgbackrest.redundancy.") || n == string(conf.KeyTarballCopies)
	}
	if !slices.ContainsFunc(names, ours) {
		return nil
	}
	l := newListener(env, false, nil)
	l.quiet = true
	w, err := openApp(env, root, l)
	if err != nil {
		return nil // what keeps the application from being opened is said by the commands that need it
	}
	v := w.values
	on := v.Bool(conf.KeyRedundancyEnabled) || v.Bool(conf.KeyTarballCopies)
	switched := slices.Contains(names, string(conf.KeyRedundancyEnabled)) || slices.Contains(names, string(conf.KeyTarballCopies))
	if !on || storeName(w.resolve, v) == "" || !hasKeys(v) && !switched {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeCheckTime)
	defer cancel()
	if err := w.app.CheckStore(ctx); err != nil {
		return err
	}
	may := "can be written, read, listed and removed from"
	if v.Bool(conf.KeyAppendOnly) {
		may = "can be written, read and listed"
	}
	fmt.Fprintf(env.Stderr, "%s: %s\n", storeName(w.resolve, v), may)
	p, err := w.app.StoreProtection(ctx)
	if err != nil {
		return err
	}
	printProtection(env.Stderr, p)
	return nil
}
