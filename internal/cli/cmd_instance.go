package cli

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/instance"
)

func (r *root) initCommand() *cobra.Command {
	var o instance.InitOptions
	c := &cobra.Command{Use: "init DATA_DISK BACKUP_DISK", Short: "lay an instance out, or complete one", Args: exactArgs(2, "DATA_DISK and BACKUP_DISK"),
		Long: `Makes the directories, the parameter store and its key, the commands alation_conf, alation_action and holdfast,
the init script and the constants file below --root (default: the host itself). Run again it repairs what is missing;
it never touches parameters, data or anything that is not its own.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.DataDisk, o.BackupDisk, o.Now, o.Binary = args[0], args[1], r.env.Now(), r.env.Exe
			o.Root = r.f.root
			if o.Root == "" {
				o.Root = r.env.Getenv("HOLDFAST_ROOT")
			}
			if o.Root == "" {
				o.Root = "/"
			}
			o.CreateStore = func(ctx context.Context, in *instance.Instance, owner *durable.Owner) error {
				var pairs []conf.Pair
				if in.HostPaths() {
					pairs = conf.HostDefaults(in.DataDir(), in.BackupDir())
				}
				return conf.NewStore(conf.Options{Path: in.ConfPath(), KeyPath: in.KeyPath(), Owner: owner}).Create(ctx, pairs)
			}
			res, err := instance.Init(cmd.Context(), o)
			if err != nil {
				return err
			}
			for _, k := range res.Kept {
				fmt.Fprintf(r.env.Stderr, "warning: %s is not ours and stays as it is\n", k)
			}
			if r.f.json {
				return r.env.printJSON(map[string]any{"instance": res.Instance.Dir(), "id": res.Instance.ID(), "root": res.Instance.Root(), "host_paths": res.Instance.HostPaths(),
					"user": res.Instance.User(), "new": res.New, "kept": append([]string{}, res.Kept...)})
			}
			what := "completed"
			if res.New {
				what = "made"
			}
			_, err = fmt.Fprintf(r.env.Stdout, "instance %s %s; enter it: %s/etc/init.d/alation shell\n", res.Instance.Dir(), what, strings.TrimSuffix(res.Instance.Dir(), "/"))
			return err
		}}
	f := c.Flags()
	f.StringVar(&o.State, "state", "", "with the root /: directory of Holdfast's own files")
	f.StringVar(&o.User, "user", "", "the instance's user (default: alation if it exists, else you)")
	f.StringVar(&o.Version, "app-version", "", "version of the application, major.minor.patch.build")
	f.StringVar(&o.HostScript, "host-script", "", "also install the init script at this path, e.g. /etc/init.d/alation")
	f.BoolVar(&o.AdoptDisks, "adopt-disks", false, "take over disks that carry another instance's mark")
	return c
}

func (r *root) shellCommand() *cobra.Command {
	var command string
	c := &cobra.Command{Use: "shell", Short: "enter the Alation shell", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		in, err := openInstance(r.env, r.f.root)
		if err != nil {
			return err
		}
		sc, err := in.ShellCommand(instance.ShellOptions{Command: command, Interactive: r.env.StdinTerminal, Env: r.env.Environ()})
		if err != nil {
			return err
		}
		x := sc.Cmd(cmd.Context())
		x.Stdin, x.Stdout, x.Stderr = r.env.Stdin, r.env.Stdout, r.env.Stderr
		err = x.Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() >= 0 {
			return &shellExit{exit.ExitCode()}
		}
		return err
	}}
	c.Flags().StringVarP(&command, "command", "c", "", "run this command in the shell and return")
	return c
}

func (r *root) startCommand() *cobra.Command {
	return &cobra.Command{Use: "start", Short: "attach the instance's disks", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		in, err := openInstance(r.env, r.f.root)
		if err != nil {
			return err
		}
		return in.Start(cmd.Context())
	}}
}

func (r *root) stopCommand() *cobra.Command {
	return &cobra.Command{Use: "stop", Short: "detach the instance's disks", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		in, err := openInstance(r.env, r.f.root)
		if err != nil {
			return err
		}
		return in.Stop(cmd.Context())
	}}
}

// diskDoc is one disk as status shows it.
type diskDoc struct {
	Path     string `json:"path"` // as the instance sees it
	Disk     string `json:"disk"` // what Init was given; the same if it is a plain directory
	Attached bool   `json:"attached"`
	Problem  string `json:"problem,omitempty"`
}

// statusDoc is the instance as status shows it.
type statusDoc struct {
	Instance   string       `json:"instance"`
	ID         string       `json:"id"`
	Root       string       `json:"root"`       // what path parameters are seen from
	HostPaths  bool         `json:"host_paths"` // path parameters are the host's own
	User       string       `json:"user"`
	DataDisk   diskDoc      `json:"data_disk"`
	BackupDisk diskDoc      `json:"backup_disk"`
	Daemon     *daemonInfo  `json:"daemon"`     // null: it is not running
	Newest     *catalog.Set `json:"newest_set"` // null: none yet, or the disks are not there
}

func (r *root) statusCommand() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "show the instance, its disks, its daemon and its newest set", Args: noArgs,
		Long: "Shows the instance, its disks, its daemon and its newest set. A disk that is not attached is a warning: the exit code is then 3.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			in, err := openInstance(r.env, r.f.root)
			if err != nil {
				return err
			}
			doc := &statusDoc{Instance: in.Dir(), ID: in.ID(), Root: in.Root(), HostPaths: in.HostPaths(), User: in.User()}
			away := 0
			for _, d := range in.DiskStates() {
				dd := diskDoc{Path: d.At, Disk: d.Source, Attached: d.Problem == nil}
				if d.Problem != nil {
					dd.Problem = d.Problem.Error()
					away++
				}
				if d.Backup {
					doc.BackupDisk = dd
				} else {
					doc.DataDisk = dd
				}
			}
			if doc.Daemon, err = runningDaemon(in); err != nil {
				return err
			}
			if away == 0 {
				if doc.Newest, err = r.newestSet(cmd.Context()); err != nil {
					return err
				}
			}
			if r.f.json {
				err = r.env.printJSON(doc)
			} else {
				err = r.env.printStatus(doc)
			}
			if err == nil && away > 0 {
				err = &warningsError{away}
			}
			return err
		}}
}

// newestSet is the last of the catalogue; nil: there is none.
func (r *root) newestSet(ctx context.Context) (*catalog.Set, error) {
	w, err := openApp(r.env, r.f.root, newListener(r.env, r.f.json, nil))
	if err != nil {
		return nil, err
	}
	sets, _, err := w.app.Sets(ctx)
	if err != nil || len(sets) == 0 {
		return nil, err
	}
	return sets[len(sets)-1], nil
}

func (e *Env) printStatus(d *statusDoc) error {
	var p page
	p.f("instance %s, user %s\ndata disk %s, backup disk %s\n", d.Instance, d.User, d.DataDisk.Disk, d.BackupDisk.Disk)
	for _, disk := range []diskDoc{d.DataDisk, d.BackupDisk} {
		if disk.Problem != "" {
			p.f("warning: %s\n", disk.Problem)
		}
	}
	if d.Daemon != nil {
		p.f("daemon: %s\n", d.Daemon)
	} else {
		p.f("daemon: not running\n")
	}
	switch {
	case !d.DataDisk.Attached || !d.BackupDisk.Attached:
	case d.Newest == nil:
		p.f("no backup set yet: alation_action backup_all\n")
	default:
		p.f("newest set %s: %s\n", d.Newest.ID, d.Newest.State)
		p.copyOf(d.Newest)
	}
	return p.to(e.Stdout)
}

func (r *root) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "print the program's version", Args: noArgs, RunE: func(*cobra.Command, []string) error {
		if r.f.json {
			return r.env.printJSON(map[string]string{"program": "Holdfast", "version": Version})
		}
		_, err := fmt.Fprintln(r.env.Stdout, programVersion())
		return err
	}}
}
