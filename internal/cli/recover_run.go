package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/instance"
	"holdfast/internal/repo"
)

// recoverMark stands in a place while a recovery is under way, so that the same command goes on with it and none other does.
type recoverMark struct {
	Format     int       `json:"format"`
	Instance   string    `json:"instance"` // whose kit: a digest of its key
	Set        string    `json:"set"`
	DataDisk   string    `json:"data_disk"`
	BackupDisk string    `json:"backup_disk"`
	Began      time.Time `json:"began"`
	Restored   bool      `json:"restored"` // the set is back: nothing but the mark is left to do
}

const recoverMarkFormat = 1

func markPath(state string) string { return filepath.Join(state, "etc/holdfast/recover.json") }

// readMark reads the mark of a place; nil without.
func readMark(state string) (*recoverMark, error) {
	b, err := os.ReadFile(markPath(state))
	if errors.Is(err, fs.ErrNotExist) || err != nil && errors.Is(err, fs.ErrInvalid) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m recoverMark
	if err := json.Unmarshal(b, &m); err != nil || m.Format != recoverMarkFormat || catalog.CheckID(m.Set) != nil {
		return nil, fmt.Errorf("%s is damaged, or of another version: empty the place and begin anew", markPath(state))
	}
	return &m, nil
}

// instanceOf names the instance whose kit this is: all its kits carry its key.
func (r *recovery) instanceOf() string {
	sum := sha256.Sum256(append([]byte("holdfast recovery\x00"), r.kit.Key...))
	return hex.EncodeToString(sum[:8])
}

func knownUser(name string) bool {
	_, err := user.Lookup(name)
	return err == nil
}

func secretOf(s conf.Secret) repo.Secret { return repo.Secret(s.Reveal()) }

// run recovers: instance, parameters, files, tarballs, and then everything else. Each step may be repeated: killed at any point, the
// same command goes on.
func (r *recovery) run(ctx context.Context) (*action.RestoreResult, error) {
	r.step("begin", r.plan.Set.ID)
	if err := r.begin(); err != nil {
		return nil, err
	}
	r.step("lay-out", r.state)
	in, err := r.layOut(ctx)
	if err != nil {
		return nil, err
	}
	r.step("parameters", fmt.Sprint(len(r.pairs)))
	if err := r.setParameters(ctx, in); err != nil {
		return nil, err
	}
	r.step("files", fmt.Sprint(len(r.kit.Files)))
	if err := r.layFiles(in); err != nil {
		return nil, err
	}
	w, err := openAppAt(r.env, r.state, r.l, r.f.asOf)
	if err != nil {
		return nil, err
	}
	if r.mark.Restored {
		return nil, r.end()
	}
	r.step("fetch", r.plan.Set.ID)
	set, err := w.app.FetchSet(ctx, r.plan.Set.ID)
	if err != nil {
		return nil, err
	}
	w.log.began("recover")
	r.step("restore", set.ID)
	res, err := r.restore(ctx, w, set)
	w.log.ended("recover", err)
	if err != nil {
		return nil, err
	}
	r.mark.Restored = true
	if err := r.writeMark(); err != nil {
		return nil, err
	}
	r.step("finish", set.ID)
	return res, r.end()
}

// begin marks the place.
func (r *recovery) begin() error {
	m := recoverMark{Format: recoverMarkFormat, Instance: r.instanceOf(), Set: r.plan.Set.ID, DataDisk: r.plan.DataDisk, BackupDisk: r.plan.BackupDisk, Began: r.env.Now().UTC()}
	if r.mark != nil && r.mark.Set == m.Set {
		m.Began, m.Restored = r.mark.Began, r.mark.Restored
	}
	r.mark = &m
	return r.writeMark()
}

func (r *recovery) writeMark() error {
	b, err := json.Marshal(r.mark)
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(markPath(r.state)), 0o755); err != nil {
		return err
	}
	return durable.WriteFile(markPath(r.state), append(b, '\n'), 0o600)
}

// end takes the mark away: the place is an instance like any other.
func (r *recovery) end() error {
	if err := os.Remove(markPath(r.state)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return durable.SyncDir(filepath.Dir(markPath(r.state)))
}

// layOut makes the instance, its store sealed with the kit's key: what of the old instance turns up anywhere can be opened.
func (r *recovery) layOut(ctx context.Context) (*instance.Instance, error) {
	o := instance.InitOptions{Root: r.root, State: r.f.state, DataDisk: r.plan.DataDisk, BackupDisk: r.plan.BackupDisk, User: r.plan.User, Binary: r.env.Exe,
		Version: r.kit.Instance.AppVersion, Now: r.env.Now()}
	o.CreateStore = func(ctx context.Context, in *instance.Instance, owner *durable.Owner) error {
		if _, err := os.Lstat(in.KeyPath()); errors.Is(err, fs.ErrNotExist) && r.kit.Key != "" {
			if err := durable.WriteFileOwned(in.KeyPath(), []byte(r.kit.Key), 0o600, owner); err != nil {
				return err
			}
		}
		return conf.NewStore(conf.Options{Path: in.ConfPath(), KeyPath: in.KeyPath(), Owner: owner}).Create(ctx, nil)
	}
	res, err := instance.Init(ctx, o)
	if err != nil {
		return nil, err
	}
	for _, k := range res.Kept {
		r.note("%s is not ours and stays as it is", k)
	}
	return res.Instance, nil
}

// setParameters sets all of the kit's parameters at once, the first time: what was set since by an operator stays.
func (r *recovery) setParameters(ctx context.Context, in *instance.Instance) error {
	st, err := store(in)
	if err != nil {
		return err
	}
	ours, err := st.Load()
	if err != nil {
		return err
	}
	var pairs []conf.Pair
	for _, p := range r.pairs {
		if !ours.IsSet(p.Name) {
			pairs = append(pairs, p)
		}
	}
	if len(pairs) > 0 {
		_, err = st.Set(ctx, pairs)
	}
	return err
}

// layFiles puts the certificates and keys of the kit where the parameters say, unless something is there, and makes the directories of
// PostgreSQL's sockets.
func (r *recovery) layFiles(in *instance.Instance) error {
	st, err := store(in)
	if err != nil {
		return err
	}
	values, err := st.Load()
	if err != nil {
		return err
	}
	owner, err := in.Owner()
	if err != nil {
		return err
	}
	for _, f := range r.kit.Files {
		k := conf.Lookup(f.Parameter)
		if k == nil || !carried(k) || values.Path(conf.PathKey(k.Name)) == "" {
			continue
		}
		path := in.Resolve(values.Path(conf.PathKey(k.Name)))
		if _, err := os.Lstat(path); err == nil {
			continue
		}
		if err := durable.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := durable.WriteFileOwned(path, []byte(f.Data), fs.FileMode(f.Mode)&0o755, owner); err != nil {
			return fmt.Errorf("%s: %w", k.Name, err)
		}
	}
	var clusters []action.Cluster
	local := slices.DeleteFunc(values.Clusters(conf.KeyClusters), func(c conf.Cluster) bool { return c.OnRDS() })
	for _, c := range local {
		clusters = append(clusters, action.Cluster{DataDir: in.Resolve(c.DataDir)})
	}
	server := serverUser(clusters, owner)
	if os.Geteuid() != 0 {
		server = nil
	}
	for i, c := range local {
		dirs := []string{filepath.Dir(clusters[i].DataDir)}
		if filepath.IsAbs(c.Host) {
			dirs = append(dirs, in.Resolve(c.Host))
		}
		for _, dir := range dirs {
			if err := durable.MkdirAllOwned(dir, 0o755, server); err != nil {
				return fmt.Errorf("cluster %s: %w", c.Stanza, err)
			}
		}
	}
	return nil
}

// restore brings the fetched set back. The first time the places were empty; later something may be there that is not ours, so what
// is replaced then is kept beside.
func (r *recovery) restore(ctx context.Context, w *wired, set *catalog.Set) (*action.RestoreResult, error) {
	o := action.RestoreOptions{FromStore: set.Mode == catalog.Apart && len(set.Local()) > 0, KeepReplaced: r.plan.Continues}
	if p := set.Piece(catalog.Application); p != nil {
		o.RestoreFile = p.Path
	}
	if p := set.Piece(catalog.EventBus); p != nil {
		o.EBRestoreFile = p.Path
	}
	plan, err := w.app.PlanRestoreAll(ctx, o)
	if err != nil {
		return nil, err
	}
	if len(plan.Missing) > 0 {
		return nil, &refusedError{fmt.Sprintf("the instance is laid out and set %s is fetched, but it can't be restored yet: %s; mend that and run the same command again", set.ID, strings.Join(plan.Missing, "; "))}
	}
	return plan.Run(ctx)
}
