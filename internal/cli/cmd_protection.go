package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"holdfast/internal/action"
	"holdfast/internal/storage"
)

// printProtection says how well a store protects what is on it, a line for each fact.
func printProtection(w io.Writer, p *action.Protection) {
	rows := [][]string{}
	for _, f := range p.Facts {
		text := f.Text
		if f.Advice != "" && f.Grade != storage.Good {
			text += ": " + f.Advice
		}
		rows = append(rows, []string{"  " + f.Name, string(f.Grade), text})
	}
	fmt.Fprint(w, table(rows))
}

// repoCheck is holdfast repo check.
func (r *root) repoCheck() *cobra.Command {
	p := place{side: "repo", key: 1}
	c := &cobra.Command{Use: "check", Short: "say how well a repository's store protects it: versions, locks, who may remove", Args: noArgs,
		Long: `Asks the store of a repository, without --repo the instance's external storage, what protects what is on it: whether it keeps
versions, whether what is written is locked and for how long, whether the credentials in use may remove objects and versions,
whether anybody may read, whether it is encrypted, and whether the clocks agree. It writes one small object and removes it.
What should be otherwise is marked weak, with what to do about it; then the command ends with 3.

--repo is a directory, an address such as s3://BUCKET/PATH, or repo1, repo2, … of pgBackRest's configuration file (--config).
What else the store needs is said with pgBackRest's options, in the configuration or in the environment: PGBACKREST_REPO1_S3_KEY.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			found, err := r.protection(cmd, p)
			if err != nil {
				return err
			}
			if r.f.json {
				err = r.env.printJSON(found)
			} else {
				_, err = fmt.Fprintf(r.env.Stdout, "%s:\n", found.Store)
				printProtection(r.env.Stdout, found)
			}
			if err == nil && found.Weak() > 0 {
				err = &warningsError{found.Weak()}
			}
			return err
		}}
	fl := c.Flags()
	fl.StringVar(&p.where, "repo", "", "the repository (default: the instance's external storage)")
	fl.StringVar(&p.config, "config", "", "pgBackRest's configuration file, for repo1, repo2, … and the options of stores")
	fl.StringVar(&p.passFile, "cipher-pass-file", "", "file with its passphrase (else: the environment's PGBACKREST_REPO1_CIPHER_PASS)")
	return c
}

func (r *root) protection(cmd *cobra.Command, p place) (*action.Protection, error) {
	if p.where == "" {
		w, l, err := r.app()
		if err != nil {
			return nil, err
		}
		defer l.done()
		return w.app.StoreProtection(cmd.Context())
	}
	run, err := p.settings(r.env, "all")
	if err != nil {
		return nil, err
	}
	st, err := run.storage(p.key)
	if err != nil {
		return nil, err
	}
	pass, err := p.pass(r.env, run)
	if err != nil {
		return nil, err
	}
	return action.ProtectionOf(cmd.Context(), p.where, st, pass != "")
}

// setsExpireStore is holdfast sets expire-store.
func (r *root) setsExpireStore() *cobra.Command {
	c := &cobra.Command{Use: "expire-store", Short: "remove from the external storage what the retention does not keep", Args: noArgs,
		Long: `Shows which backups and tarballs on the external storage are beyond alation.backup_v2.retention and not in this instance's
catalogue, asks, and removes them. backup_all and sets copy do the same at their end, unless pgsql.pgbackrest.redundancy.append_only
keeps the instance from it: then this is run with credentials that may remove, which are taken from the environment
(PGBACKREST_REPO1_S3_KEY, PGBACKREST_REPO1_S3_KEY_SECRET, PGBACKREST_REPO1_S3_TOKEN), else from the parameters.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var keys []string
			for _, name := range []string{"PGBACKREST_REPO1_S3_KEY", "PGBACKREST_REPO1_S3_KEY_SECRET", "PGBACKREST_REPO1_S3_TOKEN"} {
				if v := r.env.Getenv(name); v != "" {
					keys = append(keys, name+"="+v)
				}
			}
			l := newListener(r.env, r.f.json, nil)
			w, err := openAppAt(r.env, r.f.root, l, "", keys...)
			if err != nil {
				return err
			}
			plan, err := w.app.PlanExpireStore(cmd.Context())
			l.done()
			if err != nil {
				return err
			}
			out := r.env.Stdout
			if r.f.json {
				out = r.env.Stderr
			}
			if r.f.json && r.f.dryRun {
				return r.env.printJSON(plan)
			}
			all := append(append([]string{}, plan.Backups...), plan.Sets...)
			fmt.Fprintf(out, "the retention removes %d from %s\n", len(all), plan.Store)
			if len(all) > 0 {
				fmt.Fprintf(out, "  %s\n", strings.Join(all, "\n  "))
			}
			if r.f.dryRun || len(all) == 0 {
				return nil
			}
			if !r.f.yes {
				if err := r.env.confirm(cmd.Context(), "Type YES to remove", "YES"); err != nil {
					return err
				}
			}
			w.log.began("sets expire-store")
			removed, err := plan.Run(cmd.Context())
			l.done()
			w.log.ended("sets expire-store", err)
			if err != nil {
				return err
			}
			if r.f.json {
				return r.env.printJSON(map[string]any{"store": plan.Store, "removed": removed})
			}
			_, err = fmt.Fprintf(out, "%d removed\n", len(removed))
			return err
		}}
	c.Flags().BoolVar(&r.f.dryRun, "dry-run", false, "show what would go, remove nothing")
	c.Flags().BoolVar(&r.f.yes, "yes", false, "do not ask")
	return c
}
