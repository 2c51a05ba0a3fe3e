package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/backrest"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// backup backs up to one repository, then expires there what retention no longer asks for.
func (r *backrestRun) backup(ctx context.Context) error {
	key := repoKeys(r.c)[0]
	r.warnRetention(key)
	o := engine.BackupOptions{Type: repo.BackupType(r.c.String("type", 0)), Fast: r.c.Bool("start-fast", 0), ProcessMax: int(r.c.Int("process-max", 0)),
		ArchiveCheck: r.c.Bool("archive-check", 0), ArchiveCopy: r.c.Bool("archive-copy", 0), ArchiveTimeout: r.c.Duration("archive-timeout", 0),
		Exclude: r.c.List("exclude", 0), Annotations: r.c.Hash("annotation", 0), Delta: r.c.Bool("delta", 0),
		Bundle: r.c.Bool("repo-bundle", key), BundleSize: r.c.Int("repo-bundle-size", key), BundleLimit: r.c.Int("repo-bundle-limit", key),
		Block: r.c.Bool("repo-block", key), Hardlink: r.c.Bool("repo-hardlink", key), Resume: r.c.Bool("resume", 0),
		SaveThreshold: r.c.Int("manifest-save-threshold", 0), Offline: !r.c.Bool("online", 0), Force: r.c.Bool("force", 0)}
	var err error
	if o.Compress, o.Level, err = r.compression(); err != nil {
		return err
	}
	if v := r.c.String("checksum-page", 0); v != "" {
		pages := v == "y"
		o.ChecksumPage = &pages
	}
	if err := r.backupFrom(ctx, &o); err != nil {
		return err
	}
	s, err := r.stanza(r.c.String("stanza", 0), key)
	if err != nil {
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
		r.log.logf(logInfo, "last backup label = %s", plan.Prior)
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
	if !r.c.Bool("expire-auto", 0) || !r.retention(key) {
		return nil
	}
	return r.expireOn(ctx, key, s)
}

// backupFrom says which server is the primary and where most files are read.
func (r *backrestRun) backupFrom(ctx context.Context, o *engine.BackupOptions) error {
	keys := r.c.Keys(backrest.PG)
	from := servers{primary: keys[0]}
	standby := r.c.String("backup-standby", 0)
	if !o.Offline && (len(keys) > 1 || standby != "n") {
		var err error
		if from, err = r.findServers(ctx); err != nil {
			return err
		}
	}
	o.Conn, o.DataDir = r.conn(from.primary), r.c.String("pg-path", from.primary)
	if standby == "n" {
		return nil
	}
	o.Standby = engine.StandbyMode(standby)
	switch {
	case from.standby != 0:
		o.StandbyConn, o.StandbyDataDir = r.conn(from.standby), r.c.String("pg-path", from.standby)
	case standby == "y":
		return coded(codeConfig, "no standby among the pg-path options, and backup-standby=y wants one\nHINT: start it, or set backup-standby=prefer.")
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

func (r *backrestRun) warnRetention(key int) {
	if r.c.String("repo-retention-full", key) == "" {
		r.log.logf(logWarn, "option 'repo%[1]d-retention-full' is not set for 'repo%[1]d-retention-full-type=%[2]s', the repository may run out of space\n"+
			"HINT: to retain full backups indefinitely (without warning), set option 'repo%[1]d-retention-full' to the maximum.", key, r.c.String("repo-retention-full-type", key))
	}
}

// restore takes the first repository that has a backup for the target.
func (r *backrestRun) restore(ctx context.Context) error {
	c := r.c
	o := engine.RestoreOptions{DataDir: c.String("pg-path", c.Keys(backrest.PG)[0]), Type: engine.TargetType(c.String("type", 0)), Target: c.String("target", 0),
		Exclusive: c.Bool("target-exclusive", 0), Timeline: c.String("target-timeline", 0), RestoreCommand: r.archiveGetCommand(),
		RecoveryOptions: c.Hash("recovery-option", 0), ArchiveModeOff: c.String("archive-mode", 0) == "off",
		TablespaceMap: c.Hash("tablespace-map", 0), TablespaceMapAll: c.String("tablespace-map-all", 0), LinkAll: c.Bool("link-all", 0), LinkMap: c.Hash("link-map", 0),
		Delta: c.Bool("delta", 0), Force: c.Bool("force", 0), DBInclude: c.List("db-include", 0), DBExclude: c.List("db-exclude", 0),
		SpoolDir: c.String("spool-path", 0), ProcessMax: int(c.Int("process-max", 0))}
	var err error
	if o.Set, err = r.set(); err != nil {
		return err
	}
	if action := c.String("target-action", 0); action != "pause" {
		o.Action = action
	}
	var failed []string
	keys := repoKeys(c)
	for _, key := range keys {
		plan, err := r.planRestore(ctx, key, o)
		if err != nil {
			if len(keys) == 1 || ctx.Err() != nil || errors.Is(err, engine.ErrTargetNotEmpty) || errors.Is(err, engine.ErrTargetRunning) {
				return err
			}
			r.log.logf(logWarn, "repo%d: %v", key, err)
			failed = append(failed, fmt.Sprintf("repo%d", key))
			continue
		}
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
	return coded(codeBackupSet, "no backup set found to restore in "+strings.Join(failed, ", "))
}

func (r *backrestRun) planRestore(ctx context.Context, key int, o engine.RestoreOptions) (*engine.RestorePlan, error) {
	if os.Geteuid() == 0 {
		o.Owners = true
		owner := postgresUser()
		if r.c.String("repo-type", key) == "posix" {
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
	from := servers{primary: r.c.Keys(backrest.PG)[0]}
	online := r.c.Bool("online", 0)
	if online {
		var err error
		if from, err = r.findServers(ctx); err != nil {
			return err
		}
	}
	control, _, err := pg.ReadControl(ctx, r.c.String("pg-path", from.primary))
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
		do := s.Create
		if r.c.Command.String() == "stanza-upgrade" {
			do = s.Upgrade
		}
		out, err := do(ctx, control)
		if err == nil && out == engine.Existed {
			r.log.logf(logInfo, "stanza '%s' already exists on repo%d and is valid", name, key)
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

// check proves that a WAL segment arrives in every repository.
func (r *backrestRun) check(ctx context.Context) error {
	from, err := r.findServers(ctx)
	if err != nil {
		return err
	}
	o := engine.CheckOptions{Conn: r.conn(from.primary), DataDir: r.c.String("pg-path", from.primary), ArchiveTimeout: r.c.Duration("archive-timeout", 0)}
	return r.eachRepo(ctx, codeCommand, func(ctx context.Context, key int, s *engine.Stanza) error {
		r.log.logf(logInfo, "check repo%d configuration (primary)", key)
		res, err := s.Check(ctx, o)
		if err == nil {
			r.log.logf(logInfo, "WAL segment %s successfully archived to repo%d after %s", res.Segment, key, took(res.Took))
		}
		return err
	})
}

// verify reads everything. Findings are an error, which the original only logs.
func (r *backrestRun) verify(ctx context.Context) error {
	set, err := r.set()
	if err != nil {
		return err
	}
	text := r.c.String("output", 0) == "text"
	findings := 0
	err = r.eachRepo(ctx, codeRepo, func(ctx context.Context, key int, s *engine.Stanza) error {
		res, err := s.Verify(ctx, engine.VerifyOptions{Set: set, ProcessMax: int(r.c.Int("process-max", 0))})
		if err != nil {
			return err
		}
		for _, f := range res.Findings {
			r.log.logf(logError, "repo%d: %s", key, f)
		}
		findings += len(res.Findings)
		var b strings.Builder
		fmt.Fprintf(&b, "stanza: %s\nstatus: %s\n", s.Name(), map[bool]string{true: "ok", false: "error"}[len(res.Findings) == 0])
		for _, v := range res.Verdicts {
			fmt.Fprintf(&b, "  backup: %s, status: %s, total files checked: %d, total valid files: %d\n", v.Label, v.Status, v.Files, v.Files-v.Damage)
		}
		fmt.Fprintf(&b, "  read: %d files, %d WAL segments, %s", res.Files, res.Segments, engine.Size(res.Bytes))
		r.log.at(logInfo, b.String())
		if text {
			_, err = fmt.Fprintln(r.env.Stdout, b.String())
		}
		return err
	})
	if err == nil && findings > 0 {
		err = &findingsError{findings}
	}
	return err
}

// info prints what the repositories hold.
func (r *backrestRun) info(ctx context.Context) error {
	set, err := r.set()
	if err != nil {
		return err
	}
	if set != "" && len(r.c.Keys(backrest.Repo)) > 1 && r.c.String("repo", 0) == "" {
		return coded(codeRequired, "option 'repo' is required with option 'set' when there are several repositories")
	}
	var merged []*engine.StanzaInfo
	for _, key := range repoKeys(r.c) {
		names := []string{r.c.String("stanza", 0)}
		if names[0] == "" {
			st, err := r.storage(key)
			if err != nil {
				return err
			}
			if names, err = engine.Stanzas(ctx, st); err != nil {
				return err
			}
		}
		for _, name := range names {
			s, err := r.stanza(name, key)
			if err != nil {
				return err
			}
			one, err := s.Info(ctx, set)
			if err != nil {
				return err
			}
			if typ := r.c.String("type", 0); typ != "" {
				one.Backup = slices.DeleteFunc(one.Backup, func(b engine.BackupInfo) bool { return b.Type != typ })
			}
			merged = mergeInfo(merged, one)
		}
	}
	slices.SortFunc(merged, func(a, b *engine.StanzaInfo) int { return strings.Compare(a.Name, b.Name) })
	if r.c.String("detail-level", 0) == "progress" {
		return r.infoProgress(merged)
	}
	if r.c.String("output", 0) == "json" {
		if merged == nil {
			merged = []*engine.StanzaInfo{}
		}
		return r.env.printCompactJSON(merged)
	}
	return engine.WriteInfo(r.env.Stdout, merged, time.Local)
}

// infoProgress prints names and states only.
func (r *backrestRun) infoProgress(stanzas []*engine.StanzaInfo) error {
	if r.c.String("output", 0) == "text" {
		for _, s := range stanzas {
			if _, err := fmt.Fprintf(r.env.Stdout, "stanza: %s\n    status: %s\n", s.Name, s.Status.Message); err != nil {
				return err
			}
		}
		return nil
	}
	type short struct {
		Name   string            `json:"name"`
		Status engine.InfoStatus `json:"status"`
	}
	out := []short{}
	for _, s := range stanzas {
		out = append(out, short{s.Name, s.Status})
	}
	return r.env.printCompactJSON(out)
}

// mergeInfo adds what another repository says of a stanza.
func mergeInfo(all []*engine.StanzaInfo, one *engine.StanzaInfo) []*engine.StanzaInfo {
	i := slices.IndexFunc(all, func(s *engine.StanzaInfo) bool { return s.Name == one.Name })
	if i < 0 {
		return append(all, one)
	}
	s := all[i]
	s.Archive, s.DB, s.Repo = append(s.Archive, one.Archive...), append(s.DB, one.DB...), append(s.Repo, one.Repo...)
	s.Backup = append(s.Backup, one.Backup...)
	slices.SortStableFunc(s.Backup, func(a, b engine.BackupInfo) int { return strings.Compare(a.Label, b.Label) })
	if s.Cipher != one.Cipher {
		s.Cipher = "mixed"
	}
	if s.Status.Code != one.Status.Code {
		s.Status.Code, s.Status.Message = 4, "different across repos"
	}
	return all
}
