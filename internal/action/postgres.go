package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/storage"
)

// worker does what changes a stanza or a data directory: the built-in engine, or an external pgbackrest. Both work on the
// same repository format, so that whatever only looks (plans, waiting for WAL, checks of a tarball) is the engine's for both.
type worker interface {
	Create(ctx context.Context, c pg.Control) (engine.CreateOutcome, error)  // as engine.Stanza.Create
	Upgrade(ctx context.Context, c pg.Control) (engine.CreateOutcome, error) // as engine.Stanza.Upgrade
	Verify(ctx context.Context, o engine.VerifyOptions) (*engine.VerifyResult, error)
	Backup(ctx context.Context, p *engine.BackupPlan) (*engine.BackupResult, error)
	Restore(ctx context.Context, p *engine.RestorePlan, o engine.RestoreOptions) error // o: what p was made from
	Remove(ctx context.Context, p *engine.RemovePlan) error
}

// builtin is the engine, whose plans run themselves.
type builtin struct{ *engine.Stanza }

func (builtin) Backup(ctx context.Context, p *engine.BackupPlan) (*engine.BackupResult, error) {
	return p.Run(ctx)
}

func (builtin) Restore(ctx context.Context, p *engine.RestorePlan, _ engine.RestoreOptions) error {
	_, err := p.Run(ctx)
	return err
}

func (builtin) Remove(ctx context.Context, p *engine.RemovePlan) error { return p.Run(ctx) }

// worker is who works on one cluster's stanza in the repository dir, which st has open. A cluster that is not configured any
// more (c has its name only) still has backups to be verified and removed.
func (a *App) worker(c Cluster, dir string, st storage.Storage) (worker, error) {
	s, err := a.stanza(c.Stanza, st)
	if err != nil {
		return nil, err
	}
	if a.o.Tool == nil {
		return builtin{s}, nil
	}
	return &tool{a: a, c: c, dir: dir, st: st, look: s}, nil
}

// workerAt is worker for a repository that may be on external storage: an external program is not given the keys to it.
func (a *App) workerAt(c Cluster, dir string, st storage.Storage) (worker, error) {
	if !a.inStore(dir) {
		return a.worker(c, dir, st)
	}
	s, err := a.storeStanza(c.Stanza, st)
	return builtin{s}, err
}

// clusterOrName is the configured cluster of a stanza, or one that has its name only: its backups outlive the configuration.
func (a *App) clusterOrName(stanza string) Cluster {
	if c := a.cluster(stanza); c != nil {
		return *c
	}
	return Cluster{Stanza: stanza}
}

// createStanza makes the stanza of a cluster in the configured repository, or upgrades it to the cluster.
func (a *App) createStanza(ctx context.Context, c Cluster, st storage.Storage) (engine.CreateOutcome, error) {
	w, err := a.worker(c, a.o.RepoDir, st)
	if err != nil {
		return "", err
	}
	control, _, err := pg.ReadControl(ctx, c.DataDir)
	if err != nil {
		return "", err
	}
	out, err := w.Create(ctx, control)
	if errors.Is(err, engine.ErrStanzaMismatch) {
		out, err = w.Upgrade(ctx, control)
	}
	if err != nil {
		return "", a.explainPass(err)
	}
	return out, a.handOver(c)
}

// handOver writes what archive_command and restore_command read: the passphrase, and the configuration of an external tool.
// To be called when the repository is known to open with the passphrase: a wrong one must not replace a right one.
func (a *App) handOver(c Cluster) error {
	if a.o.Tool != nil {
		if err := a.configureTool(c); err != nil {
			return err
		}
	}
	if a.o.RepoPass == "" {
		return nil
	}
	return wrap(replaceOwned(a.o.PassFile, []byte(string(a.o.RepoPass)+"\n"), a.serverOwner(c)), "passphrase for archive_command")
}

// serverOwner is the user whom archive_command runs as; nil: this process's own.
func (a *App) serverOwner(c Cluster) *durable.Owner {
	if os.Geteuid() != 0 {
		return nil
	}
	uid, gid := ownerOf(c.DataDir, a.fallbackOwner())
	return &durable.Owner{UID: uid, GID: gid}
}

// fallbackOwner is whose a data directory is that is not there.
func (a *App) fallbackOwner() *durable.Owner {
	if a.o.ServerOwner != nil {
		return a.o.ServerOwner
	}
	return a.o.Owner
}

// replaceOwned makes file have this content, this owner and mode 0600, durably; one that is right already is left alone.
func replaceOwned(file string, content []byte, owner *durable.Owner) error {
	if err := durable.MkdirAllOwned(filepath.Dir(file), 0o750, owner); err != nil {
		return err
	}
	if info, err := os.Lstat(file); err == nil && info.Mode() == 0o600 {
		uid, _ := ownerOf(file, nil)
		if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, content) && (owner == nil || owner.UID == uid) {
			return nil
		}
	}
	return durable.WriteFileOwned(file, content, 0o600, owner)
}

// explainPass adds to a misfit of passphrase and repository what an operator of an instance can do.
func (a *App) explainPass(err error) error {
	if !errors.Is(err, engine.ErrPassphrase) {
		return err
	}
	anew := "alation_conf pgsql.pgbackrest.repo_dir_name -s NEW_DIRECTORY"
	if a.o.Mode == catalog.Included {
		anew = "move " + a.o.RepoDir + " away"
	}
	return fmt.Errorf("%w; set pgsql.pgbackrest.cipher_pass to what the repository was made with (unset it for one without). "+
		"A repository keeps its passphrase; to have another, begin a new one: %s, then run alation_action enable_backupv2 and alation_action backup_all. "+
		"Sets made before need the passphrase of before", err, anew)
}
