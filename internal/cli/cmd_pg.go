package cli

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/action"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// pgFlags are the flags of one holdfast pg command, in pgBackRest's words.
type pgFlags struct {
	stanzaFlags
	typ, set                                string
	compressType                            string
	compressLevel                           int
	fast, noArchiveCheck, noChecksumPage    bool
	archiveTimeout                          time.Duration
	exclude                                 []string
	annotations                             map[string]string
	target, action, timeline                string
	exclusive, linkAll                      bool
	tablespaceMap, linkMap, recoveryOptions map[string]string
	tablespaceMapAll, archiveMode           string

	rebuild                                                                bool
	delta, bundle, block, hardlink, noResume, noOnline, force, archiveCopy bool
	bundleSize, bundleLimit, rate                                          int64
	standby, standbyPath, standbyHost                                      string
	standbyPort                                                            int
	dbInclude, dbExclude                                                   []string
}

func (r *root) pgCommand() *cobra.Command {
	c := &cobra.Command{Use: "pg", Short: "the PostgreSQL engine's own verbs, on one stanza",
		Long: `The engine's own verbs, with pgBackRest's names and options. The repository is a pgBackRest repository: either program
may read and write it.`}
	c.AddCommand(r.pgBackup(), r.pgRestore(), r.pgInfo(), r.pgCheck(), r.pgVerify(), r.pgStanza("stanza-create"), r.pgStanza("stanza-upgrade"), r.pgExpire(),
		r.pgAnnotate(), r.pgStop("start"), r.pgStop("stop"), r.pgStanzaDelete(), r.pgRepoLs(), r.pgRepoGet(),
		&cobra.Command{Use: "archive-push", Short: "archive_command: store one WAL file", DisableFlagParsing: true, RunE: func(cmd *cobra.Command, args []string) error {
			return archiveMain(cmd.Context(), r.env, "archive-push", args)
		}},
		&cobra.Command{Use: "archive-get", Short: "restore_command: fetch one WAL file", DisableFlagParsing: true, RunE: func(cmd *cobra.Command, args []string) error {
			return archiveMain(cmd.Context(), r.env, "archive-get", args)
		}})
	return group(c)
}

// common adds the flags that say which stanza, which repository, which cluster.
func (f *pgFlags) common(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.stanza, "stanza", "", "name of the cluster in the repository")
	f.repoFlags(fl)
	fl.StringVar(&f.pgPath, "pg1-path", "", "data directory")
	fl.StringVar(&f.lockPath, "lock-path", pgLockDir, "directory of lock and stop files")
	fl.StringVar(&f.passFile, "repo1-cipher-pass-file", "", "file with the passphrase of an encrypted repository (else: the environment's PGBACKREST_REPO1_CIPHER_PASS)")
}

func (f *pgFlags) server(c *cobra.Command) {
	fl := c.Flags()
	fl.StringVar(&f.host, "pg1-socket-path", "", "socket directory (or host name) of the server")
	fl.IntVar(&f.port, "pg1-port", 5432, "port of the server")
	fl.StringVar(&f.user, "pg1-user", "postgres", "role that backs up")
}

func (f *pgFlags) timeout(c *cobra.Command) {
	c.Flags().DurationVar(&f.archiveTimeout, "archive-timeout", time.Minute, "how long to wait for a WAL segment")
}

// checkServer asks the server that the flags name, if they name one, whether it runs on the data directory of control.
func (f *pgFlags) checkServer(cmd *cobra.Command, control pg.Control) error {
	if !slices.ContainsFunc([]string{"pg1-socket-path", "pg1-port", "pg1-user"}, cmd.Flags().Changed) {
		return nil
	}
	conn, err := pg.Connect(cmd.Context(), f.conn())
	if err != nil {
		return err
	}
	facts, err := conn.Facts(cmd.Context())
	if err = errors.Join(err, conn.Close()); err != nil {
		return err
	}
	if facts.SystemID != control.SystemID {
		return &usageError{fmt.Sprintf("the server that answers has system identifier %d and data directory %s, --pg1-path=%s has %d: "+
			"name the server that runs on that directory", facts.SystemID, facts.DataDirectory, f.pgPath, control.SystemID)}
	}
	return nil
}

func (r *root) pgBackup() *cobra.Command {
	var f pgFlags
	c := &cobra.Command{Use: "backup", Short: "back a running cluster up", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		l := newListener(r.env, r.f.json, nil)
		s, err := f.open(r.env, l)
		if err != nil {
			return err
		}
		o := engine.BackupOptions{Type: repo.BackupType(f.typ), Conn: f.conn(), DataDir: f.pgPath, Fast: f.fast, ProcessMax: f.processMax, ArchiveCheck: !f.noArchiveCheck,
			ArchiveTimeout: f.archiveTimeout, Exclude: f.exclude, Annotations: f.annotations, ArchiveCopy: f.archiveCopy,
			Delta: f.delta, Bundle: f.bundle, BundleSize: f.bundleSize << 20, BundleLimit: f.bundleLimit << 20, Block: f.block, Hardlink: f.hardlink, Resume: !f.noResume,
			Rate: f.rate << 20, Offline: f.noOnline, Force: f.force, Standby: engine.StandbyMode(f.standby), StandbyDataDir: f.standbyPath,
			StandbyConn: pg.ConnOptions{Host: f.standbyHost, Port: f.standbyPort, User: f.user}}
		switch f.standby {
		case "n":
			o.Standby = engine.StandbyNo
		case "y", "prefer":
		default:
			return &usageError{fmt.Sprintf("--backup-standby=%s: n, y or prefer", f.standby)}
		}
		if o.Compress, o.Level, err = f.compression(cmd); err != nil {
			return err
		}
		if f.noChecksumPage {
			off := false
			o.ChecksumPage = &off
		}
		plan, err := s.PlanBackup(cmd.Context(), o)
		if err != nil {
			l.done()
			return err
		}
		for _, w := range plan.Warnings {
			fmt.Fprintf(r.env.Stderr, "warning: %s\n", w)
		}
		if r.f.dryRun {
			l.done()
			if r.f.json {
				return r.env.printJSON(plan)
			}
			_, err := fmt.Fprintf(r.env.Stdout, "%s backup of stanza %s: %d files, %s to copy or compare; %d files, %s unchanged\n", plan.Type, plan.Stanza, plan.Files, engine.Size(plan.Bytes), plan.Unchanged, engine.Size(plan.UnchangedB))
			return err
		}
		res, err := plan.Run(cmd.Context())
		warnings := len(l.done()) + len(plan.Warnings)
		if err != nil {
			return err
		}
		if r.f.json {
			err = r.env.printJSON(res)
		} else {
			_, err = fmt.Fprintf(r.env.Stdout, "backup %s of stanza %s: %s stored as %s in %s\n", res.Label, f.stanza, engine.Size(res.Line.Size), engine.Size(res.Line.RepoSizeDelta), res.Duration.Round(time.Millisecond))
		}
		if err == nil && warnings > 0 {
			err = &warningsError{warnings}
		}
		return err
	}}
	f.common(c)
	f.server(c)
	f.timeout(c)
	fl := c.Flags()
	fl.StringVar(&f.typ, "type", "full", "full, diff (changes since the last full) or incr (changes since the last backup)")
	fl.StringVar(&f.compressType, "compress-type", "zst", "none, gz, lz4, zst or bz2")
	fl.IntVar(&f.compressLevel, "compress-level", 0, "level of the compression (default: the type's)")
	fl.IntVar(&f.processMax, "process-max", runtime.NumCPU(), "workers")
	fl.BoolVar(&f.fast, "start-fast", false, "begin with an immediate checkpoint")
	fl.BoolVar(&f.noArchiveCheck, "no-archive-check", false, "do not wait for the WAL that the backup needs: it is then not known to be restorable")
	fl.BoolVar(&f.noChecksumPage, "no-checksum-page", false, "do not verify page checksums")
	fl.StringSliceVar(&f.exclude, "exclude", nil, "path below the data directory to leave out")
	fl.StringToStringVar(&f.annotations, "annotation", nil, "key=value stored with the backup")
	fl.BoolVar(&f.delta, "delta", false, "tell unchanged files by their checksums, not by size and time stamp")
	fl.BoolVar(&f.bundle, "repo1-bundle", false, "store small files together")
	fl.Int64Var(&f.bundleSize, "repo1-bundle-size", 20, "original size of a bundle, MiB")
	fl.Int64Var(&f.bundleLimit, "repo1-bundle-limit", 2, "largest file that goes into a bundle, MiB")
	fl.BoolVar(&f.block, "repo1-block", false, "store the blocks that changed, not whole files (needs pgbackrest 2.46 or later to read)")
	fl.BoolVar(&f.hardlink, "repo1-hardlink", false, "link unchanged files into a diff or incr")
	fl.BoolVar(&f.noResume, "no-resume", false, "do not take over what an interrupted full backup left")
	fl.BoolVar(&f.noOnline, "no-online", false, "the server is stopped: copy its files without asking it")
	fl.BoolVar(&f.force, "force", false, "with --no-online: although there is a postmaster.pid")
	fl.Int64Var(&f.rate, "rate", 0, "MiB of the cluster's files read per second at most; 0: no limit")
	fl.BoolVar(&f.archiveCopy, "archive-copy", false, "store the WAL that the backup needs in it")
	fl.StringVar(&f.standby, "backup-standby", "n", "y: read most files from the standby pg2; prefer: if it answers")
	fl.StringVar(&f.standbyPath, "pg2-path", "", "data directory of the standby, on this host")
	fl.StringVar(&f.standbyHost, "pg2-socket-path", "", "socket directory (or host name) of the standby")
	fl.IntVar(&f.standbyPort, "pg2-port", 5432, "port of the standby")
	fl.BoolVar(&r.f.dryRun, "dry-run", false, "show the plan, change nothing")
	return c
}

func (f *pgFlags) compression(cmd *cobra.Command) (repo.CompressType, int, error) {
	c, err := repo.ParseCompressType(f.compressType)
	if err != nil {
		return "", 0, &usageError{err.Error()}
	}
	level := f.compressLevel
	if !cmd.Flags().Changed("compress-level") {
		level = repo.DefaultLevel(c)
	}
	if lo, hi := repo.LevelRange(c); level < lo || level > hi {
		return "", 0, &usageError{fmt.Sprintf("--compress-level=%d: %s takes %d to %d", level, c, lo, hi)}
	}
	return c, level, nil
}

func (r *root) pgRestore() *cobra.Command {
	var f pgFlags
	c := &cobra.Command{Use: "restore", Short: "restore a backup into an empty data directory, or bring one up to it (--delta)", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		l := newListener(r.env, r.f.json, nil)
		s, err := f.open(r.env, l)
		if err != nil {
			return err
		}
		plan, err := s.PlanRestore(cmd.Context(), r.restoreOptions(&f))
		if err != nil {
			l.done()
			return err
		}
		for _, w := range plan.Warnings {
			fmt.Fprintf(r.env.Stderr, "warning: %s\n", w)
		}
		if r.f.dryRun {
			l.done()
			if r.f.json {
				return r.env.printJSON(plan)
			}
			_, err := fmt.Fprintf(r.env.Stdout, "backup %s of stanza %s to %s: %d files, %s, type %s %s\n", plan.Label, plan.Stanza, plan.DataDir, plan.Files, engine.Size(plan.Bytes), plan.Type, plan.Target)
			return err
		}
		res, err := plan.Run(cmd.Context())
		l.done()
		if err != nil {
			return err
		}
		if r.f.json {
			return r.env.printJSON(res)
		}
		_, err = fmt.Fprintf(r.env.Stdout, "backup %s restored to %s: %d files, %s in %s\n", res.Label, plan.DataDir, res.Files, engine.Size(res.Bytes), res.Duration.Round(time.Millisecond))
		return err
	}}
	f.common(c)
	fl := c.Flags()
	fl.StringVar(&f.set, "set", "", "label of the backup (default: chosen by the target)")
	fl.StringVar(&f.typ, "type", "default", "default, immediate, time, xid, lsn, name, standby, preserve or none")
	fl.StringVar(&f.target, "target", "", "where recovery stops, for time, xid, lsn and name")
	fl.StringVar(&f.action, "target-action", "", "pause, promote or shutdown when the target is reached")
	fl.StringVar(&f.timeline, "target-timeline", "", "a number, current or latest")
	fl.BoolVar(&f.exclusive, "target-exclusive", false, "stop before the target")
	fl.StringToStringVar(&f.tablespaceMap, "tablespace-map", nil, "name or oid=directory")
	fl.StringVar(&f.tablespaceMapAll, "tablespace-map-all", "", "directory below which every tablespace goes")
	fl.BoolVar(&f.linkAll, "link-all", false, "restore links of the data directory as links")
	fl.StringToStringVar(&f.linkMap, "link-map", nil, "path below the data directory=destination")
	fl.StringToStringVar(&f.recoveryOptions, "recovery-option", nil, "name=value for postgresql.auto.conf")
	fl.Int64Var(&f.rate, "rate", 0, "MiB written per second at most; 0: no limit")
	fl.BoolVar(&f.delta, "delta", false, "keep what is in the data directory where it matches the backup, remove what does not belong")
	fl.BoolVar(&f.force, "force", false, "overwrite what is in the data directory; with --delta: trust sizes and time stamps")
	fl.StringSliceVar(&f.dbInclude, "db-include", nil, "restore only this database (and the system's); the others become empty shells to be dropped")
	fl.StringSliceVar(&f.dbExclude, "db-exclude", nil, "make this database an empty shell to be dropped")
	fl.StringVar(&f.archiveMode, "archive-mode", "preserve", "preserve, or off to keep the restored cluster from archiving")
	fl.IntVar(&f.processMax, "process-max", runtime.NumCPU(), "workers")
	fl.BoolVar(&r.f.dryRun, "dry-run", false, "show the plan, change nothing")
	return c
}

func (r *root) restoreOptions(f *pgFlags) engine.RestoreOptions {
	o := engine.RestoreOptions{Set: repo.Label(f.set), DataDir: f.pgPath, Type: engine.TargetType(f.typ), Target: f.target, Exclusive: f.exclusive, Action: f.action, Timeline: f.timeline,
		RestoreCommand: restoreCommand(r.env.Exe, f.stanza, f.pgPath, f.passFile, f.repoArguments(r.env)), RecoveryOptions: f.recoveryOptions, ArchiveModeOff: f.archiveMode == "off",
		TablespaceMap: f.tablespaceMap, TablespaceMapAll: f.tablespaceMapAll, LinkAll: f.linkAll, LinkMap: f.linkMap, ProcessMax: f.processMax,
		Rate: f.rate << 20, Delta: f.delta, Force: f.force, DBInclude: f.dbInclude, DBExclude: f.dbExclude}
	if os.Geteuid() == 0 {
		o.Owners = true
		owner := postgresUser() // nobody owns a bucket here
		if f.plain(r.env) {
			owner = repositoryOwner([]action.Cluster{{DataDir: f.repoPath}}, &durable.Owner{})
		}
		if owner != nil {
			o.DefaultUID, o.DefaultGID = owner.UID, owner.GID
		}
	}
	return o
}

func (r *root) pgInfo() *cobra.Command {
	var f pgFlags
	var output string
	c := &cobra.Command{Use: "info", Short: "what the repository holds", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		names := []string{f.stanza}
		src, err := f.first(r.env)
		if err != nil {
			return err
		}
		if f.stanza == "" {
			if names, err = engine.Stanzas(cmd.Context(), src.storage); err != nil {
				return err
			}
		}
		out := []*engine.StanzaInfo{}
		for _, n := range names {
			g := f.stanzaFlags
			g.stanza = n
			s, err := g.openOn(r.env, src, nil)
			if err != nil {
				return err
			}
			info, err := s.Info(cmd.Context(), repo.Label(f.set))
			if err != nil {
				return err
			}
			out = append(out, info)
		}
		if r.f.json || output == "json" {
			return r.env.printCompactJSON(out)
		}
		return engine.WriteInfo(r.env.Stdout, out, time.Local)
	}}
	f.common(c)
	c.Flags().StringVar(&f.set, "set", "", "one backup, with details")
	c.Flags().StringVar(&output, "output", "text", "text or json")
	return c
}

func (r *root) pgCheck() *cobra.Command {
	var f pgFlags
	c := &cobra.Command{Use: "check", Short: "prove that archiving works", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		s, err := f.open(r.env, newListener(r.env, r.f.json, nil))
		if err != nil {
			return err
		}
		res, err := s.Check(cmd.Context(), engine.CheckOptions{Conn: f.conn(), DataDir: f.pgPath, ArchiveTimeout: f.archiveTimeout})
		if err != nil {
			return err
		}
		if r.f.json {
			return r.env.printJSON(res)
		}
		_, err = fmt.Fprintf(r.env.Stdout, "stanza %s: WAL segment %s arrived in the archive after %s\n", f.stanza, res.Segment, res.Took.Round(time.Millisecond))
		return err
	}}
	f.common(c)
	f.server(c)
	f.timeout(c)
	return c
}

func (r *root) pgVerify() *cobra.Command {
	var f pgFlags
	c := &cobra.Command{Use: "verify", Short: "read every file of the backups and the WAL they need", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		l := newListener(r.env, r.f.json, nil)
		s, err := f.open(r.env, l)
		if err != nil {
			return err
		}
		res, err := s.Verify(cmd.Context(), engine.VerifyOptions{Set: repo.Label(f.set), ProcessMax: f.processMax})
		l.done()
		if res == nil {
			return err
		}
		var perr error
		if r.f.json {
			perr = r.env.printJSON(res)
		} else {
			perr = printVerify(r.env.Stdout, f.stanza, res)
		}
		if perr != nil {
			return errors.Join(perr, err)
		}
		return verified(res, err)
	}}
	f.common(c)
	c.Flags().StringVar(&f.set, "set", "", "one backup")
	c.Flags().IntVar(&f.processMax, "process-max", runtime.NumCPU(), "workers")
	return c
}

func (r *root) pgStanza(verb string) *cobra.Command {
	var f pgFlags
	short := "make a stanza for a cluster"
	if verb == "stanza-upgrade" {
		short = "make a new or upgraded cluster the stanza's current one"
	}
	c := &cobra.Command{Use: verb, Short: short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if f.pgPath == "" {
			return &usageError{"--pg1-path is missing"}
		}
		s, err := f.open(r.env, newListener(r.env, r.f.json, nil))
		if err != nil {
			return err
		}
		control, _, err := pg.ReadControl(cmd.Context(), f.pgPath)
		if err != nil {
			return err
		}
		if err := f.checkServer(cmd, control); err != nil {
			return err
		}
		if f.rebuild {
			return r.pgRebuild(cmd, s, &f, control)
		}
		do := s.Create
		if verb == "stanza-upgrade" {
			do = s.Upgrade
		}
		out, err := do(cmd.Context(), control)
		if err != nil {
			return err
		}
		if r.f.json {
			return r.env.printJSON(map[string]string{"stanza": f.stanza, "outcome": string(out)})
		}
		_, err = fmt.Fprintf(r.env.Stdout, "stanza %s: %s\n", f.stanza, out)
		return err
	}}
	f.common(c)
	f.server(c)
	if verb == "stanza-create" {
		c.Flags().BoolVar(&f.rebuild, "rebuild", false, "write lost info files anew from the manifests and WAL that are there")
	}
	return c
}

// pgRebuild is stanza-create --rebuild.
func (r *root) pgRebuild(cmd *cobra.Command, s *engine.Stanza, f *pgFlags, control pg.Control) error {
	res, err := s.Rebuild(cmd.Context(), control)
	if err != nil {
		return err
	}
	if r.f.json {
		return r.env.printJSON(res)
	}
	if len(res.Files) == 0 {
		_, err = fmt.Fprintf(r.env.Stdout, "stanza %s: both info files can be read, nothing was written\n", f.stanza)
		return err
	}
	_, err = fmt.Fprintf(r.env.Stdout, "stanza %s: %s written anew: %d backup(s), archives %s; now run: holdfast pg verify --stanza=%s\n", f.stanza, strings.Join(res.Files, " and "), len(res.Backups), strings.Join(res.History, ", "), f.stanza)
	return err
}
