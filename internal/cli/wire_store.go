package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
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
	name := storeName(w.in.Resolve, v)
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
	o.Store = &action.StoreOptions{Name: name, OpenRepo: open("pgbackrest", repositoryOwner(o.Clusters, o.Owner)), OpenSets: open("sets", o.Owner),
		Postgres: v.Bool(conf.KeyRedundancyEnabled), Tarballs: v.Bool(conf.KeyTarballCopies), ProcessMax: max(8, 2*runtime.NumCPU()),
		KeepSets: v.Int(conf.KeyRetentionSets), KeepDays: v.Int(conf.KeyRetentionDays)}
	return nil
}

// storeName says where the external storage is; "" when the parameters do not.
func storeName(resolve func(string) string, v *conf.Values) string {
	kind, prefix := v.String(conf.KeyRedundancyType), strings.Trim(v.String(conf.KeyRedundancyPrefix), "/")
	if kind == "posix" {
		if dir := v.Path(conf.KeyRedundancyPath); dir != "" {
			return filepath.Join(resolve(dir), prefix)
		}
		return ""
	}
	bucket := v.String(conf.KeyS3Bucket)
	if bucket == "" {
		return ""
	}
	return strings.TrimSuffix(kind+"://"+path.Join(bucket, prefix), "/")
}

// openStore opens one of the two places on the external storage.
func openStore(env *Env, w *wired, sub string, owner *durable.Owner) (storage.Storage, error) {
	v := w.values
	kind := v.String(conf.KeyRedundancyType)
	name := storeName(w.in.Resolve, v)
	if name == "" {
		missing := conf.KeyS3Bucket
		if kind == "posix" {
			missing = conf.StringKey(conf.KeyRedundancyPath)
		}
		return nil, fmt.Errorf("%s is not set: alation_conf %s -s VALUE", missing, missing)
	}
	if kind == "posix" {
		return openPosix(filepath.Join(name, sub), owner)
	}
	words := []string{"--no-config", "--stanza=all", "--repo=1", "--repo1-type=" + kind, "--repo1-path=/" + path.Join(strings.Trim(v.String(conf.KeyRedundancyPrefix), "/"), sub)}
	if kind != "s3" {
		return nil, fmt.Errorf("pgsql.pgbackrest.redundancy.type = %s: this storage has no parameters yet; use s3 or posix", kind)
	}
	more, environ, err := s3Words(w)
	if err != nil {
		return nil, err
	}
	run, err := settings(env, append(append(words, more...), "info"), environ)
	if err != nil {
		return nil, err
	}
	return run.storageFor(1, owner)
}

// s3Words are the S3 parameters in pgBackRest's words; the keys come apart, as an environment has them.
func s3Words(w *wired) (words, environ []string, err error) {
	v := w.values
	endpoint := cmp.Or(v.String(conf.KeyS3Endpoint), "s3."+v.String(conf.KeyS3Region)+".amazonaws.com")
	words = []string{"--repo1-s3-bucket=" + v.String(conf.KeyS3Bucket), "--repo1-s3-uri-style=" + v.String(conf.KeyS3URIStyle), "--repo1-s3-endpoint=" + endpoint}
	for option, value := range map[string]string{"s3-region": v.String(conf.KeyS3Region), "s3-storage-class": v.String(conf.KeyS3StorageClass),
		"s3-sse": map[string]string{"AES256": "s3", "aws:kms": "kms"}[v.String(conf.KeyS3SSE)]} {
		if value != "" {
			words = append(words, "--repo1-"+option+"="+value)
		}
	}
	if ca := v.Path(conf.KeyS3CAFile); ca != "" {
		words = append(words, "--repo1-storage-ca-file="+w.in.Resolve(ca))
	}
	key, err := v.Secret(conf.KeyS3Key)
	if err != nil {
		return nil, nil, err
	}
	secret, err := v.Secret(conf.KeyS3Secret)
	if err != nil {
		return nil, nil, err
	}
	switch k, s := key.Reveal(), secret.Reveal(); {
	case k == "" && s == "":
		words = append(words, "--repo1-s3-key-type=auto")
	case k == "" || s == "":
		return nil, nil, fmt.Errorf("%s and %s are set both or neither", conf.KeyS3Key, conf.KeyS3Secret)
	default:
		environ = []string{"PGBACKREST_REPO1_S3_KEY=" + k, "PGBACKREST_REPO1_S3_KEY_SECRET=" + s}
	}
	return words, environ, nil
}

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
	keys := v.IsSet(string(conf.KeyS3Key)) && v.IsSet(string(conf.KeyS3Secret))
	switched := slices.Contains(names, string(conf.KeyRedundancyEnabled)) || slices.Contains(names, string(conf.KeyTarballCopies))
	if !on || storeName(w.in.Resolve, v) == "" || v.String(conf.KeyRedundancyType) != "posix" && !keys && !switched {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, storeCheckTime)
	defer cancel()
	if err := w.app.CheckStore(ctx); err != nil {
		return err
	}
	fmt.Fprintf(env.Stderr, "%s: can be written, read, listed and removed from\n", storeName(w.in.Resolve, v))
	return nil
}
