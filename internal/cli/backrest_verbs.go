package cli

import (
	"context"
	"errors"
	"fmt"
	"os"

	"holdfast/internal/action"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// backup backs up to one repository, then expires there what retention no longer asks for.
func (r *backrestRun) backup(ctx context.Context) error {
	key := repoKeys(r.c)[0]
	o := engine.BackupOptions{Type: repo.BackupType(r.c.String("type", 0)), Fast: r.c.Bool("start-fast", 0), ProcessMax: int(r.c.Int("process-max", 0)),
		ArchiveCheck: r.c.Bool("archive-check", 0), ArchiveCopy: r.c.Bool("archive-copy", 0), ArchiveTimeout: r.c.Duration("archive-timeout", 0),
		Exclude: r.c.List("exclude", 0), Annotations: r.c.Hash("annotation", 0), Delta: r.c.Bool("delta", 0),
		Bundle: r.c.Bool("repo-bundle", key), BundleSize: r.c.Int("repo-bundle-size", key), BundleLimit: r.c.Int("repo-bundle-limit", key),
		Block: r.c.Bool("repo-block", key), Hardlink: r.c.Bool("repo-hardlink", key), Resume: r.c.Bool("resume", 0),
		SaveThreshold: r.c.Int("manifest-save-threshold", 0), Offline: !r.c.Bool("online", 0), Force: r.c.Bool("force", 0),
		RefuseAlways: r.c.Bool("archive-mode-check", 0), NoPageHeaders: !r.c.Bool("page-header-check", 0)}
	var err error
	if o.Compress, o.Level, err = r.compression(); err != nil {
		return err
	}
	if v := r.c.String("checksum-page", 0); v != "" {
		pages := v == "y"
		o.ChecksumPage = &pages
	}
	if o.BlockSizes, err = r.blockSizes(key); err != nil {
		return err
	}
	s, err := r.stanza(r.c.String("stanza", 0), key)
	if err != nil {
		return err
	}
	if err := s.Exists(ctx); err != nil { // before any server is asked
		return err
	}
	if err := r.backupFrom(ctx, &o); err != nil {
		return err
	}
	plan, err := s.PlanBackup(ctx, o)
	if err != nil {
		if errors.Is(err, engine.ErrStanzaMismatch) {
			return &codeError{codeBackupMismatch, err}
		}
		return err
	}
	for _, w := range plan.Warnings {
		r.log.warn(w)
	}
	if plan.Prior != "" {
		r.log.logf(logInfo, "last backup label = %s, version = %s", plan.Prior, plan.PriorVersion)
	}
	res, err := plan.Run(ctx)
	if err != nil {
		return err
	}
	for _, f := range res.PageErrors {
		r.log.logf(logWarn, "invalid page checksums found in file %s", f)
	}
	r.log.logf(logInfo, "new backup label = %s", res.Label)
	r.log.logf(logInfo, "%s backup size = %s, file total = %d", plan.Type, engine.Size(plan.Bytes+plan.UnchangedB), plan.Files+plan.Unchanged)
	if !r.c.Bool("expire-auto", 0) {
		return nil
	}
	r.next("expire")
	if !r.retention(key) {
		return nil
	}
	return r.expireOn(ctx, key, s)
}

// backupFrom says which server is the primary and where most files are read.
func (r *backrestRun) backupFrom(ctx context.Context, o *engine.BackupOptions) error {
	standby := r.c.String("backup-standby", 0)
	if o.Offline {
		o.DataDir = r.dataDir()
		if standby != "n" {
			r.log.at(logWarn, "option backup-standby is enabled but backup is offline - backups will be performed from the primary")
		}
		return nil
	}
	from, err := r.findPrimary(ctx)
	if err != nil {
		return err
	}
	o.Conn, o.DataDir = r.conn(from.primary), r.c.String("pg-path", from.primary)
	o.Remote = r.c.String("pg-host", from.primary) != ""
	if standby == "n" {
		return nil
	}
	o.Standby = engine.StandbyMode(standby)
	switch {
	case from.standby != 0:
		o.StandbyConn, o.StandbyDataDir = r.conn(from.standby), r.c.String("pg-path", from.standby)
	case standby == "y" || o.Remote:
		return coded(codeConnect, "unable to find standby cluster - cannot proceed\nHINT: its data directory must be on this host; start it, or set backup-standby=prefer.")
	default:
		r.log.at(logWarn, "no standby answers: everything is read from the primary")
		o.Standby = engine.StandbyNo
	}
	return nil
}

const codeBackupMismatch = 51

// retention says whether any retention is configured for the repository.
func (r *backrestRun) retention(key int) bool {
	for _, name := range []string{"repo-retention-full", "repo-retention-diff", "repo-retention-archive", "repo-retention-history"} {
		if r.c.String(name, key) != "" {
			return true
		}
	}
	return false
}

// restore takes the first repository that has a backup for the target.
func (r *backrestRun) restore(ctx context.Context) error {
	c := r.c
	o := engine.RestoreOptions{DataDir: r.dataDir(), Type: engine.TargetType(c.String("type", 0)), Target: c.String("target", 0),
		Exclusive: c.Bool("target-exclusive", 0), Timeline: c.String("target-timeline", 0), RestoreCommand: r.archiveGetCommand(),
		RecoveryOptions: c.Hash("recovery-option", 0), ArchiveModeOff: c.String("archive-mode", 0) == "off",
		TablespaceMap: c.Hash("tablespace-map", 0), TablespaceMapAll: c.String("tablespace-map-all", 0), LinkAll: c.Bool("link-all", 0), LinkMap: c.Hash("link-map", 0),
		Delta: c.Bool("delta", 0), Force: c.Bool("force", 0), DBInclude: c.List("db-include", 0), DBExclude: c.List("db-exclude", 0),
		NoneRecovers: true, SpoolDir: c.String("spool-path", 0), ProcessMax: int(c.Int("process-max", 0))}
	if set := c.String("set", 0); set != "latest" {
		o.Set = repo.Label(set) // one that is no label is not there, as the original has it
	}
	if action := c.String("target-action", 0); action != "pause" {
		o.Action = action
	}
	keys := repoKeys(c)
	for _, key := range keys {
		plan, err := r.planRestore(ctx, key, o)
		if err != nil {
			if ctx.Err() != nil || restoreMistake(err) || len(keys) == 1 && !unusable(err) {
				return err
			}
			r.log.logf(logWarn, "repo%d: %v", key, err)
			continue
		}
		return r.runRestore(ctx, key, plan)
	}
	return coded(codeBackupSet, "no backup set found to restore")
}

// restoreMistake says that a restore can't be made as it was asked for, whatever the repository holds.
func restoreMistake(err error) bool {
	for _, e := range []error{engine.ErrTargetNotEmpty, engine.ErrTargetRunning, engine.ErrTargetOwner, engine.ErrTarget, engine.ErrTablespaceMap, engine.ErrLinkMap, engine.ErrLinkInside, engine.ErrDBMissing, engine.ErrDBInvalid} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func (r *backrestRun) runRestore(ctx context.Context, key int, plan *engine.RestorePlan) error {
	for _, w := range plan.Warnings {
		r.log.warn(w)
	}
	r.log.logf(logInfo, "repo%d: restore backup set %s", key, plan.Label)
	res, err := plan.Run(ctx)
	if err != nil {
		return err
	}
	r.log.logf(logInfo, "restore size = %s, file total = %d", engine.Size(res.Bytes), res.Files)
	return nil
}

func (r *backrestRun) planRestore(ctx context.Context, key int, o engine.RestoreOptions) (*engine.RestorePlan, error) {
	if os.Geteuid() == 0 {
		o.Owners = true
		owner := postgresUser()
		if isDirectory(r.c.String("repo-type", key)) {
			owner = repositoryOwner([]action.Cluster{{DataDir: r.c.String("repo-path", key)}}, &durable.Owner{})
		}
		if owner != nil {
			o.DefaultUID, o.DefaultGID = owner.UID, owner.GID
		}
	}
	s, err := r.stanza(r.c.String("stanza", 0), key)
	if err != nil {
		return nil, err
	}
	return s.PlanRestore(ctx, o)
}

// stanzaCreate is stanza-create and stanza-upgrade, on every repository.
func (r *backrestRun) stanzaCreate(ctx context.Context) error {
	at := localServers(r.c)[0]
	online := r.c.Bool("online", 0)
	var from servers
	if online {
		var err error
		if from, err = r.findPrimary(ctx); err != nil {
			return err
		}
		if r.c.String("pg-host", from.primary) == "" {
			at = from.primary
		}
	}
	control, _, err := pg.ReadControlAs(ctx, r.c.String("pg-path", at), r.version)
	if err != nil {
		return err
	}
	if online {
		if err := r.sameCluster(ctx, from.primary, control); err != nil {
			return err
		}
	}
	name := r.c.String("stanza", 0)
	return r.eachRepo(ctx, codeCommand, func(ctx context.Context, key int, s *engine.Stanza) error {
		r.log.logf(logInfo, "%s for stanza '%s' on repo%d", r.c.Command, name, key)
		do, already := s.Create, "stanza '%s' already exists on repo%d and is valid"
		if r.c.Command.String() == "stanza-upgrade" {
			do, already = s.Upgrade, "stanza '%s' on repo%d is already up to date"
		}
		out, err := do(ctx, control)
		if err == nil && out == engine.Existed {
			r.log.logf(logInfo, already, name, key)
		}
		return err
	})
}

// sameCluster compares the server that answers with the data directory it should run on.
func (r *backrestRun) sameCluster(ctx context.Context, key int, control pg.Control) error {
	conn, err := pg.Connect(ctx, r.conn(key))
	if err != nil {
		return &codeError{codeConnect, err}
	}
	facts, err := conn.Facts(ctx)
	if err = errors.Join(err, conn.Close()); err != nil {
		return &codeError{codeConnect, err}
	}
	if facts.SystemID != control.SystemID {
		return coded(codeDBMismatch, fmt.Sprintf("the server that answers on pg%d-port=%d runs on %s, not on pg%d-path=%s\nHINT: is the pg%d-path and pg%d-port of the same cluster?",
			key, r.c.Int("pg-port", key), facts.DataDirectory, key, r.c.String("pg-path", key), key, key))
	}
	return nil
}

const codeDBMismatch = 58
