package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

// root is what every command of the tree shares.
type root struct {
	env *Env
	f   actionFlags
}

// rootMain runs holdfast.
func rootMain(ctx context.Context, env *Env) int {
	r := &root{env: env}
	cmd := r.command()
	cmd.SetArgs(env.Args[1:])
	cmd.SetIn(env.Stdin)
	cmd.SetOut(env.Stdout)
	cmd.SetErr(env.Stderr)
	err := cmd.ExecuteContext(ctx)
	var code *shellExit
	if errors.As(err, &code) {
		return code.code
	}
	return env.exit("holdfast", err, r.f.json)
}

// shellExit carries the exit code of the shell that a command ran.
type shellExit struct{ code int }

func (e *shellExit) Error() string { return fmt.Sprintf("the shell ended with code %d", e.code) }

func (r *root) command() *cobra.Command {
	c := &cobra.Command{
		Use:   "holdfast",
		Short: "back up and restore a whole application: PostgreSQL, files and event bus",
		Long: `Holdfast backs up a self-hosted application to one recovery point and brings it back, here or on a new host.

  holdfast init DATA_DISK BACKUP_DISK    lay an instance out
  holdfast enable                        point PostgreSQL's WAL archiving at it
  holdfast backup                        back everything up now
  holdfast restore --set ID              bring a set back

The same verbs answer under their old names: alation_conf, alation_action.

exit codes: ` + exitHelp(),
		SilenceErrors: true, SilenceUsage: true, Version: Version,
	}
	c.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{fmt.Sprintf("%v; see: %s --help", err, cmd.CommandPath())}
	})
	c.PersistentFlags().StringVar(&r.f.root, "root", "", "the instance's root directory (else HOLDFAST_ROOT, else /)")
	c.PersistentFlags().BoolVar(&r.f.json, "json", false, "print one JSON document")
	c.AddCommand(r.initCommand(), r.shellCommand(), r.startCommand(), r.stopCommand(), r.statusCommand(), r.confCommand(), r.backupCommand(), r.restoreCommand(), r.recoverCommand(), r.enableCommand(),
		r.setsCommand(), r.rdsCommand(), r.doctorCommand(), r.scheduleCommand(), r.daemonCommand(), r.logsCommand(), r.supportCommand(), r.pgCommand(), r.repoCommand(), r.versionCommand())
	return group(c)
}

// group makes a command that only holds others print its help, and refuse a word that is none of them: without this a
// mistyped verb would print the help and end with code 0.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		hint := "see: " + cmd.CommandPath() + " --help"
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = "did you mean: " + cmd.CommandPath() + " " + near[0]
		}
		return &usageError{fmt.Sprintf("%s has no command %q; %s", cmd.CommandPath(), args[0], hint)}
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	c.SuggestionsMinimumDistance = 2
	return c
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return &usageError{fmt.Sprintf("%q is not understood; see: %s --help", args[0], cmd.CommandPath())}
	}
	return nil
}

// exactArgs wants n words and says which.
func exactArgs(n int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != n {
			return &usageError{fmt.Sprintf("%s needs %s; see: %s --help", cmd.CommandPath(), what, cmd.CommandPath())}
		}
		return nil
	}
}

func (r *root) confCommand() *cobra.Command {
	return &cobra.Command{Use: "conf KEY | KEY -s VALUE … | --list [PREFIX] | --unset KEY", Short: "get and set parameters: alation_conf", DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if r.f.root != "" {
				args = append([]string{"--root", r.f.root}, args...)
			}
			asJSON, err := confMain(cmd.Context(), r.env, args)
			r.f.json = r.f.json || asJSON
			return err
		}}
}

func (r *root) backupCommand() *cobra.Command {
	c := &cobra.Command{Use: "backup", Aliases: []string{"backup_all"}, Short: "back everything up to one recovery point: alation_action backup_all", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return backupAll(cmd.Context(), r.env, r.f)
	}}
	c.Flags().BoolVar(&r.f.dryRun, "dry-run", false, "show the plan and what is wrong, change nothing")
	c.Flags().BoolVar(&r.f.skipPreflight, "skip-preflight", false, skipPreflightHelp)
	c.Flags().StringVar(&r.f.typ, "type", "", "the PostgreSQL backup of this run, whatever is configured: full, diff or incr; what can't be incremental becomes full")
	return c
}

func (r *root) restoreCommand() *cobra.Command {
	var rf restoreFlags
	c := &cobra.Command{Use: "restore", Aliases: []string{"destructive_restore_all"}, Short: "bring a set back: alation_action destructive_restore_all", Args: noArgs,
		Long: `Restores the set that --set, --file or the parameters alation.backup.restore_file and .eb_restore_file name. The plan is
shown first. What exists is moved aside and given back if the restore fails.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := rf.check(r.f); err != nil {
				return err
			}
			return restoreAll(cmd.Context(), r.env, r.f, rf)
		}}
	f := c.Flags()
	f.BoolVar(&r.f.dryRun, "dry-run", false, "show the plan and what is missing, change nothing")
	f.BoolVar(&r.f.yes, "yes", false, "do not ask")
	f.StringVar(&rf.set, "set", "", "a set of this instance's catalogue")
	f.StringVar(&rf.file, "file", "", "the application tarball")
	f.StringVar(&rf.busFile, "eb-file", "", "the Event Bus tarball, with --file")
	f.StringVar(&rf.until, "until", "", "recover PostgreSQL and the event bus to this time: YYYY-MM-DD HH:MM:SS[+zone]")
	f.StringVar(&rf.source, "source", "", "where PostgreSQL's separate backup comes from: local or s3 (default: pgsql.pgbackrest.restore.source)")
	f.StringVar(&rf.asOf, "as-of", "", asOfHelp)
	f.BoolVar(&rf.keep, "keep-replaced", false, "leave what was replaced beside it")
	f.BoolVar(&rf.giveBack, "give-back", false, "undo an interrupted restore and do nothing else")
	return c
}

// check refuses flags of which one would silently be passed over.
func (rf *restoreFlags) check(f actionFlags) error {
	switch {
	case rf.set != "" && rf.file != "":
		return &usageError{"--set and --file exclude each other: each names what is restored"}
	case rf.busFile != "" && rf.file == "":
		return &usageError{"--eb-file goes with --file: a set names its own Event Bus tarball"}
	case rf.source != "" && rf.source != "local" && rf.source != "s3":
		return &usageError{fmt.Sprintf("--source=%s: local or s3 (whatever type of external storage there is)", rf.source)}
	case rf.giveBack && (f.dryRun || rf.source != "" || rf.asOf != "" || rf.keep || rf.set != "" || rf.file != "" || rf.until != ""):
		return &usageError{"--give-back undoes an interrupted restore and takes no other option but --yes"}
	}
	return nil
}

func (r *root) enableCommand() *cobra.Command {
	c := &cobra.Command{Use: "enable", Aliases: []string{"enable_backupv2"}, Short: "set up WAL archiving and prove that it works: alation_action enable_backupv2", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return enableArchiving(cmd.Context(), r.env, r.f)
	}}
	c.Flags().BoolVar(&r.f.dryRun, "dry-run", false, "show what archive_command would be and what is wrong, change nothing")
	return c
}
