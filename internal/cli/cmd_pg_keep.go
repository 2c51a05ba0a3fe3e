package cli

import (
	"fmt"
	"io"
	"os"
	"os/user"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// The verbs of holdfast pg that keep a repository in order: retention, notes, stopping, looking into it.

func (r *root) pgExpire() *cobra.Command {
	var f pgFlags
	var o engine.ExpireOptions
	var set, fullType, archiveType string
	history := -1
	c := &cobra.Command{Use: "expire", Short: "remove backups that retention does not ask for, and WAL that nothing needs", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		o.Set, o.FullType, o.ArchiveType = repo.Label(set), engine.RetentionType(fullType), repo.BackupType(archiveType)
		if history >= 0 {
			o.HistoryDays = &history
		}
		if o.Set == "" && !o.Oldest && o.Full == 0 && o.Diff == 0 && o.Archive == 0 && o.ArchiveBefore == "" && history < 0 {
			return &usageError{"nothing says what may go: give --repo1-retention-full, --repo1-retention-diff, --repo1-retention-archive, --set or --oldest"}
		}
		s, err := f.open(r.env, newListener(r.env, r.f.json, nil))
		if err != nil {
			return err
		}
		plan, err := s.PlanExpire(cmd.Context(), o)
		if err != nil {
			return err
		}
		for _, w := range plan.Warnings {
			fmt.Fprintf(r.env.Stderr, "warning: %s\n", w)
		}
		if !r.f.dryRun {
			if err := plan.Run(cmd.Context()); err != nil {
				return err
			}
		}
		if r.f.json {
			return r.env.printJSON(plan)
		}
		return printExpire(r.env.Stdout, plan, r.f.dryRun)
	}}
	f.common(c)
	fl := c.Flags()
	fl.StringVar(&set, "set", "", "remove this backup and what is built on it, nothing else")
	fl.BoolVar(&o.Oldest, "oldest", false, "remove the oldest full backup with what is built on it")
	fl.IntVar(&o.Full, "repo1-retention-full", 0, "full backups that stay, or days (see the type)")
	fl.StringVar(&fullType, "repo1-retention-full-type", "count", "count or time")
	fl.IntVar(&o.Diff, "repo1-retention-diff", 0, "diff (and full) backups that stay")
	fl.IntVar(&o.Archive, "repo1-retention-archive", 0, "backups whose WAL stays without a gap")
	fl.StringVar(&archiveType, "repo1-retention-archive-type", "full", "which backups count for it: full, diff or incr")
	fl.IntVar(&history, "repo1-retention-history", -1, "days that manifests of removed backups stay")
	fl.StringVar(&o.ArchiveBefore, "archive-expire-before", "", "WAL segment: it and what follows stays")
	fl.BoolVar(&r.f.dryRun, "dry-run", false, "show what would go, remove nothing")
	return c
}

func printExpire(out io.Writer, p *engine.ExpirePlan, dry bool) error {
	var b strings.Builder
	verb := "removed"
	if dry {
		verb = "would remove"
	}
	for _, x := range p.Backups {
		fmt.Fprintf(&b, "%s backup %s: %s\n", verb, x.Label, x.Reason)
	}
	for _, d := range p.Directories {
		fmt.Fprintf(&b, "%s directory %s: %s\n", verb, d.Label, d.Reason)
	}
	for _, w := range p.WAL {
		if w.First == "" {
			fmt.Fprintf(&b, "%s archive %s, %d files\n", verb, w.Dir, w.Files)
		} else {
			fmt.Fprintf(&b, "%s WAL of %s from %s to %s, %d files\n", verb, w.ArchiveID, w.First, w.Last, w.Files)
		}
	}
	fmt.Fprintf(&b, "stanza %s: %d backup(s), %d WAL file(s) (%s)\n", p.Stanza, len(p.Backups), p.WALFiles, engine.Size(p.WALBytes))
	_, err := io.WriteString(out, b.String())
	return err
}

func (r *root) pgAnnotate() *cobra.Command {
	var f pgFlags
	c := &cobra.Command{Use: "annotate", Short: "add, change or remove notes of a backup", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if f.set == "" || len(f.annotations) == 0 {
			return &usageError{"annotate needs --set=LABEL and at least one --annotation=KEY=VALUE (an empty value removes the note)"}
		}
		s, err := f.open(r.env, newListener(r.env, r.f.json, nil))
		if err != nil {
			return err
		}
		return s.Annotate(cmd.Context(), repo.Label(f.set), f.annotations)
	}}
	f.common(c)
	c.Flags().StringVar(&f.set, "set", "", "label of the backup")
	c.Flags().StringToStringVar(&f.annotations, "annotation", nil, "key=value; an empty value removes the note")
	return c
}

func (r *root) pgStop(verb string) *cobra.Command {
	var f pgFlags
	short := "let work on a stanza (or all) go on"
	if verb == "stop" {
		short = "keep backup, expire and archive-push from working on a stanza (or all)"
	}
	c := &cobra.Command{Use: verb, Short: short, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		if verb == "start" {
			res, err := engine.Start(f.lockPath, f.stanza)
			if err == nil && res.Already {
				fmt.Fprintln(r.env.Stderr, "warning: nothing was stopped")
			}
			if err == nil && res.Also != "" {
				fmt.Fprintf(r.env.Stderr, "warning: %s still stops it; run: holdfast pg start\n", res.Also)
			}
			return err
		}
		res, err := engine.Stop(engine.StopOptions{LockDir: f.lockPath, LockOwner: postgresUser(), Stanza: f.stanza, Force: f.force})
		if res != nil {
			for _, pid := range res.Terminated {
				fmt.Fprintf(r.env.Stdout, "ended process %d\n", pid)
			}
		}
		return err
	}}
	c.Flags().StringVar(&f.stanza, "stanza", "", "one stanza; all when not given")
	c.Flags().StringVar(&f.lockPath, "lock-path", pgLockDir, "directory of lock and stop files")
	if verb == "stop" {
		c.Flags().BoolVar(&f.force, "force", false, "also end the processes that are at work")
	}
	return c
}

// postgresUser is PostgreSQL's usual user, to whom root gives what archiving must reach; nil for another caller, or where
// there is no such user.
func postgresUser() *durable.Owner {
	u, err := user.Lookup("postgres")
	if err != nil || os.Geteuid() != 0 {
		return nil
	}
	uid, err1 := strconv.Atoi(u.Uid)
	gid, err2 := strconv.Atoi(u.Gid)
	if err1 != nil || err2 != nil {
		return nil
	}
	return &durable.Owner{UID: uid, GID: gid}
}

func (r *root) pgStanzaDelete() *cobra.Command {
	var f pgFlags
	c := &cobra.Command{Use: "stanza-delete", Short: "remove a stanza with all its backups and WAL; needs holdfast pg stop --stanza before", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		s, err := f.open(r.env, newListener(r.env, r.f.json, nil))
		if err != nil {
			return err
		}
		return s.Delete(cmd.Context(), engine.DeleteOptions{DataDir: f.pgPath, Force: f.force})
	}}
	f.common(c)
	c.Flags().BoolVar(&f.force, "force", false, "although PostgreSQL is running")
	return c
}

func (r *root) pgRepoLs() *cobra.Command {
	var f pgFlags
	var o engine.RepoLsOptions
	var filter string
	c := &cobra.Command{Use: "repo-ls [PATH]", Short: "list a directory of the repository", Args: cobra.MaximumNArgs(1), RunE: func(cmd *cobra.Command, args []string) (err error) {
		if len(args) == 1 {
			o.Path = args[0]
		}
		if filter != "" {
			if o.Filter, err = regexp.Compile(filter); err != nil {
				return &usageError{"--filter: " + err.Error()}
			}
		}
		src, err := f.first(r.env)
		if err != nil {
			return err
		}
		list, err := engine.RepoLs(cmd.Context(), src.storage, o)
		if err != nil {
			return err
		}
		if r.f.json {
			return r.env.printCompactJSON(list)
		}
		for _, e := range list {
			if e.Name != "." || !e.Dir {
				fmt.Fprintln(r.env.Stdout, e.Name)
			}
		}
		return nil
	}}
	fl := c.Flags()
	f.repoFlags(fl)
	fl.BoolVar(&o.Recurse, "recurse", false, "directories below, too")
	fl.StringVar(&filter, "filter", "", "regular expression that names must match")
	return c
}

func (r *root) pgRepoGet() *cobra.Command {
	var f pgFlags
	var o engine.RepoGetOptions
	c := &cobra.Command{Use: "repo-get FILE", Short: "write a file of the repository, decrypted, to standard output", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		src, err := f.first(r.env)
		if err != nil {
			return err
		}
		return engine.RepoGet(cmd.Context(), src.storage, src.pass, args[0], o, r.env.Stdout)
	}}
	fl := c.Flags()
	f.repoFlags(fl)
	fl.StringVar(&f.passFile, "repo1-cipher-pass-file", "", "file with the passphrase of an encrypted repository")
	fl.BoolVar(&o.Raw, "raw", false, "as it is stored")
	fl.BoolVar(&o.Decompress, "decompress", false, "decompressed as well")
	return c
}
