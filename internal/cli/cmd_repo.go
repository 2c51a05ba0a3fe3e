package cli

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// place is one side of a copy: where its repository is, and how it is opened.
type place struct {
	side     string // "from" or "to", as in the flags
	key      int    // which pgBackRest repository number the options of a directory or URL have in the environment: 1 and 2
	where    string // directory, URL, or repo<N> of a configuration file
	passFile string
	config   string
	asOf     string // read it as it was at that time; empty: now
}

var repoWord = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^repo([0-9]+)$`) })

// settings are what is known of the place as pgBackRest's options, so that one door opens repositories of every kind.
func (p *place) settings(env *Env, stanza string) (*backrestRun, error) {
	key, words := p.key, []string{}
	if p.config == "" {
		words = append(words, "--no-config")
	} else {
		words = append(words, "--config="+p.config)
	}
	option := func(name, value string) { words = append(words, fmt.Sprintf("--repo%d-%s=%s", key, name, value)) }
	u, err := url.Parse(p.where)
	switch m := repoWord().FindStringSubmatch(p.where); {
	case m != nil:
		if key, err = strconv.Atoi(m[1]); err != nil {
			return nil, err
		}
		if p.config == "" {
			words = nil // the file is where pgBackRest has it
		}
	case err == nil && u.Scheme != "" && u.Host != "":
		if err := p.address(u, option); err != nil {
			return nil, err
		}
	default:
		dir, err := filepath.Abs(p.where)
		if err != nil {
			return nil, err
		}
		option("path", dir)
	}
	if p.asOf != "" {
		words = append(words, "--repo-target-time="+p.asOf)
	}
	run, err := settings(env, append(words, "--stanza="+stanza, fmt.Sprintf("--repo=%d", key), "info"), env.Environ())
	if err != nil {
		return nil, &usageError{fmt.Sprintf("--%s=%s: %v", p.side, p.where, err)}
	}
	p.key = key
	return run, nil
}

// address gives the options that an address of a store stands for.
func (p *place) address(u *url.URL, option func(name, value string)) error {
	name, known := map[string]string{"s3": "s3-bucket", "gcs": "gcs-bucket", "azure": "azure-container", "sftp": "sftp-host"}[u.Scheme]
	if !known {
		return &usageError{fmt.Sprintf("--%s: a directory, an address that begins with s3://, gcs://, azure:// or sftp://, or repo<N> of --config", p.side)}
	}
	form, user, host := "SCHEME://NAME/PATH", u.User, u.Host
	if u.Scheme == "sftp" {
		form, host = "sftp://USER@HOST:PORT/PATH", u.Hostname()
		if _, secret := user.Password(); user != nil && !secret {
			option("sftp-host-user", user.Username())
			user = nil
		}
		if u.Port() != "" {
			option("sftp-host-port", u.Port())
		}
	}
	if user != nil || u.RawQuery != "" || u.Fragment != "" {
		return &usageError{fmt.Sprintf("--%s: the address is %s and no more: a command line is no place for keys; they come from PGBACKREST_REPO%d_… in the environment, or from --config", p.side, form, p.key)}
	}
	option("type", u.Scheme)
	option(name, host)
	option("path", "/"+strings.Trim(u.Path, "/"))
	return nil
}

// pass is the passphrase of the place: from its file, else from the environment or the configuration.
func (p *place) pass(env *Env, r *backrestRun) (repo.Secret, error) {
	if p.passFile != "" {
		return (&stanzaFlags{passFile: p.passFile}).passphrase(env)
	}
	if pass := env.Getenv(fmt.Sprintf("PGBACKREST_REPO%d_CIPHER_PASS", p.key)); pass != "" { // where nothing says that it is encrypted, too
		return repo.Secret(pass), nil
	}
	return r.pass(p.key), nil
}

// repoFlags are the flags of repo copy, sync and diff.
type repoFlags struct {
	from, to                  place
	stanza, toStanza, config  string
	lockPath                  string
	sets                      []string
	dependents, all           bool
	fromTime, toTime          string
	wal, walUntil             string
	reencrypt, decrypt, prune bool
	recheck                   bool
	processMax                int
	rate                      int64
	keep                      engine.ExpireOptions
	fullType, archiveType     string
}

func (r *root) repoCommand() *cobra.Command {
	c := &cobra.Command{Use: "repo", Short: "copy backups between repositories, compare them, and check how well one is protected"}
	c.AddCommand(r.repoCopy(), r.repoSync(), r.repoDiff(), r.repoCheck())
	return group(c)
}

const placesHelp = `
--from and --to are a directory, an address (s3://BUCKET/PATH, gcs://BUCKET/PATH, azure://CONTAINER/PATH,
sftp://USER@HOST/PATH), or repo1, repo2, … of pgBackRest's configuration file (--config). What else a store needs is said with
pgBackRest's options, in the configuration or in the environment, where the source is repo1 and the target repo2:
PGBACKREST_REPO2_S3_KEY. No key or passphrase is taken from the command line.`

const cipherHelp = `

The two sides may have different passphrases. Info files and manifests get the target's. Files keep the passphrase that
their manifest holds, so that they pass as they are: who has the source's passphrase and can read the target's objects can
read them. --reencrypt gives them new ones. A target with a passphrase never holds anything in clear.`

// common adds the flags that all three have.
func (f *repoFlags) common(c *cobra.Command) {
	f.from, f.to = place{side: "from", key: 1}, place{side: "to", key: 2}
	fl := c.Flags()
	fl.StringVar(&f.stanza, "stanza", "", "name of the cluster in the source")
	fl.StringVar(&f.from.where, "from", "", "the source")
	fl.StringVar(&f.to.where, "to", "", "the target")
	fl.StringVar(&f.config, "config", "", "pgBackRest's configuration file, for repo1, repo2, … and the options of stores")
	fl.StringVar(&f.from.passFile, "from-cipher-pass-file", "", "file with the passphrase of the source (else: the environment's PGBACKREST_REPO1_CIPHER_PASS)")
	fl.StringVar(&f.to.passFile, "to-cipher-pass-file", "", "file with the passphrase of the target (else: the environment's PGBACKREST_REPO2_CIPHER_PASS)")
	fl.StringVar(&f.from.asOf, "as-of", "", "take the source as it was at that time: YYYY-MM-DD HH:MM:SS[+zone]; its bucket must keep versions")
	fl.BoolVar(&f.recheck, "recheck", false, "also look whether each object of the backups that the target has is there, with its size")
	fl.IntVar(&f.processMax, "at-once", 0, "objects copied at the same time (default: twice the number of CPUs, at least 8: a store far away answers late)")
}

// copying adds the flags of those two that write.
func (f *repoFlags) copying(c *cobra.Command, dryRun *bool) {
	fl := c.Flags()
	fl.StringVar(&f.lockPath, "lock-path", pgLockDir, "directory of lock and stop files")
	fl.BoolVar(&f.reencrypt, "reencrypt", false, "give the files new passphrases")
	fl.BoolVar(&f.decrypt, "decrypt", false, "permit a target in clear for an encrypted source")
	fl.Int64Var(&f.rate, "rate", 0, "MiB read from the source per second at most; 0: no limit")
	fl.BoolVar(dryRun, "dry-run", false, "show the plan, copy nothing")
}

func (r *root) repoCopy() *cobra.Command {
	var f repoFlags
	c := &cobra.Command{Use: "copy", Short: "copy backups, with all that a restore of them needs, to another repository", Args: noArgs,
		Long: `Copies backups whole: with the backups that they are built on, the WAL from their start to their stop, and the timelines'
histories. The plan is shown first. Each file's content is checked while it passes. What is there already is not sent again,
an interrupted copy goes on where it stopped, and a backup is listed in the target only when all of it is there. Nothing
is removed from the target; other backups of the same cluster that it has stay.
` + placesHelp + cipherHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			o, err := f.options()
			if err != nil {
				return err
			}
			if f.stanza == "" {
				return &usageError{"--stanza is missing"}
			}
			return r.copyRepo(cmd.Context(), &f, o, []string{f.stanza})
		}}
	f.common(c)
	fl := c.Flags()
	fl.StringVar(&f.toStanza, "to-stanza", "", "name in the target, if it is another")
	fl.StringSliceVar(&f.sets, "set", nil, "label of a backup; what it is built on comes along")
	fl.BoolVar(&f.dependents, "dependents", false, "with --set: also what is built on it")
	fl.BoolVar(&f.all, "all", false, "every backup")
	fl.StringVar(&f.fromTime, "from-time", "", "with --to-time: what every moment of that window needs: YYYY-MM-DD HH:MM:SS[+zone]")
	fl.StringVar(&f.toTime, "to-time", "", "end of the window (default: now)")
	fl.StringVar(&f.wal, "wal", "needed", "needed: from each backup's start to its stop; all: everything from the oldest backup on")
	fl.StringVar(&f.walUntil, "wal-until", "", "with --wal=all: WAL after this time need not come along")
	f.copying(c, &r.f.dryRun)
	return c
}

func (r *root) repoSync() *cobra.Command {
	var f repoFlags
	c := &cobra.Command{Use: "sync", Short: "bring a repository up to another: every backup and all WAL", Args: noArgs,
		Long: `Copies every backup and all WAL that the target does not have, as repo copy does, of one stanza or of all. Nothing is removed
from the target unless --prune is given: then its own retention is applied there afterwards, and what it would not keep is
not sent in the first place.
` + placesHelp + cipherHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return err
			}
			f.all, f.wal = true, "all"
			o, err := f.options()
			if err != nil {
				return err
			}
			if err := f.pruning(cmd, &o); err != nil {
				return err
			}
			names, err := f.stanzas(cmd.Context(), r.env)
			if err != nil {
				return err
			}
			return r.copyRepo(cmd.Context(), &f, o, names)
		}}
	f.common(c)
	fl := c.Flags()
	fl.BoolVar(&f.prune, "prune", false, "apply the retention below to the target afterwards")
	fl.IntVar(&f.keep.Full, "retention-full", 0, "full backups that stay in the target, or days (see the type)")
	fl.StringVar(&f.fullType, "retention-full-type", "count", "count or time")
	fl.IntVar(&f.keep.Diff, "retention-diff", 0, "diff (and full) backups that stay")
	fl.IntVar(&f.keep.Archive, "retention-archive", 0, "backups whose WAL stays without a gap")
	fl.StringVar(&f.archiveType, "retention-archive-type", "full", "which backups count for it: full, diff or incr")
	f.copying(c, &r.f.dryRun)
	return c
}

func (r *root) repoDiff() *cobra.Command {
	var f repoFlags
	c := &cobra.Command{Use: "diff", Short: "show what one repository has that another lacks", Args: noArgs,
		Long: `Compares two repositories and changes nothing: backups and WAL that only one of them has, or has otherwise. It reads info files,
manifests and listings; whether every byte is right is for holdfast pg verify. Ends with code 3 when the target lacks
something.
` + placesHelp,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := f.stanzas(cmd.Context(), r.env)
			if err != nil {
				return err
			}
			return r.diffRepo(cmd.Context(), &f, names)
		}}
	f.common(c)
	return c
}

// options are what the flags say of the copy.
func (f *repoFlags) options() (engine.CopyOptions, error) {
	o := engine.CopyOptions{Dependents: f.dependents, All: f.all, WAL: engine.WALChoice(f.wal), Recheck: f.recheck, Reencrypt: f.reencrypt, Decrypt: f.decrypt, ProcessMax: f.processMax, Rate: f.rate << 20}
	for _, s := range f.sets {
		l, err := repo.ParseLabel(s)
		if err != nil {
			return o, &usageError{"--set: " + err.Error()}
		}
		o.Sets = append(o.Sets, l)
	}
	for _, t := range []struct {
		flag, text string
		into       *time.Time
	}{{"from-time", f.fromTime, &o.Since}, {"to-time", f.toTime, &o.Until}, {"wal-until", f.walUntil, &o.WALUntil}} {
		if t.text == "" {
			continue
		}
		var err error
		if *t.into, err = engine.ParseTargetTime(t.text, time.Local); err != nil {
			return o, &usageError{"--" + t.flag + ": " + err.Error()}
		}
	}
	ways := 0
	for _, is := range []bool{len(f.sets) > 0, f.all, f.fromTime != "" || f.toTime != ""} {
		if is {
			ways++
		}
	}
	switch {
	case ways != 1:
		return o, &usageError{"say which backups: --set LABEL, --from-time TIME [--to-time TIME] or --all; one of the three"}
	case f.toTime != "" && f.fromTime == "":
		return o, &usageError{"--to-time goes with --from-time"}
	case f.dependents && len(f.sets) == 0:
		return o, &usageError{"--dependents goes with --set"}
	case f.walUntil != "" && f.wal != "all":
		return o, &usageError{"--wal-until goes with --wal=all"}
	case f.wal != "needed" && f.wal != "all":
		return o, &usageError{fmt.Sprintf("--wal=%s: needed or all", f.wal)}
	}
	return o, nil
}

// pruning adds the target's retention.
func (f *repoFlags) pruning(cmd *cobra.Command, o *engine.CopyOptions) error {
	given := f.keep.Full != 0 || f.keep.Diff != 0 || f.keep.Archive != 0
	switch {
	case f.prune && !given:
		return &usageError{"--prune: nothing says what stays: give --retention-full, --retention-diff or --retention-archive"}
	case !f.prune && (given || cmd.Flags().Changed("retention-full-type") || cmd.Flags().Changed("retention-archive-type")):
		return &usageError{"a retention goes with --prune"}
	case !f.prune:
		return nil
	}
	f.keep.FullType, f.keep.ArchiveType = engine.RetentionType(f.fullType), repo.BackupType(f.archiveType)
	o.Keep = &f.keep
	return nil
}

// check wants both sides, and them to differ.
func (f *repoFlags) check() error {
	if f.from.where == "" || f.to.where == "" {
		return &usageError{"--from and --to are needed: where the backups are, and where they go"}
	}
	f.from.config, f.to.config = f.config, f.config
	if f.processMax < 1 {
		f.processMax = max(8, 2*runtime.NumCPU())
	}
	return nil
}

// stanzas are the one that the flags name, or all of the source.
func (f *repoFlags) stanzas(ctx context.Context, env *Env) ([]string, error) {
	if err := f.check(); err != nil || f.stanza != "" {
		return []string{f.stanza}, err
	}
	from := f.from
	run, err := from.settings(env, "all")
	if err != nil {
		return nil, err
	}
	st, err := run.storage(from.key)
	if err != nil {
		return nil, err
	}
	names, err := engine.Stanzas(ctx, st)
	if err == nil && len(names) == 0 {
		err = &usageError{fmt.Sprintf("--from=%s: there is no stanza in it", f.from.where)}
	}
	return names, err
}

// open opens a stanza on both sides. Locks are those of the target.
func (f *repoFlags) open(env *Env, l *listener, stanza string) (from, to *engine.Stanza, err error) {
	if err := f.check(); err != nil {
		return nil, nil, err
	}
	var owner *durable.Owner
	side := func(p place, stanza, locks string) (*engine.Stanza, storage.Storage, error) {
		run, err := p.settings(env, stanza)
		if err != nil {
			return nil, nil, err
		}
		if owner == nil {
			owner = run.owner(p.key) // what root writes into a new directory belongs to whom the source belongs to
		}
		st, err := run.storageFor(p.key, owner)
		if err != nil {
			return nil, nil, err
		}
		pass, err := p.pass(env, run)
		if err != nil {
			return nil, nil, fmt.Errorf("--%s: %w", p.side, err)
		}
		s, err := engine.New(engine.Options{Stanza: stanza, Storage: st, RepoKey: p.key, Pass: pass, LockDir: locks, LockOwner: owner, ExecID: env.ExecID,
			Version: programVersion(), Now: env.Now, Events: l.on})
		return s, st, err
	}
	from, st, err := side(f.from, stanza, "")
	if err != nil {
		return nil, nil, err
	}
	name := stanza
	if f.toStanza != "" {
		name = f.toStanza
	}
	to, st2, err := side(f.to, name, f.lockPath)
	if err != nil {
		return nil, nil, err
	}
	a, aok := st.(*storage.Posix)
	b, bok := st2.(*storage.Posix)
	if aok && bok && samePlace(a.Root(), b.Root()) && name == stanza {
		return nil, nil, &usageError{fmt.Sprintf("--from and --to are the same repository: %s", a.Root())}
	}
	return from, to, nil
}

// samePlace compares two directories, through links.
func samePlace(a, b string) bool {
	ia, aerr := os.Stat(a)
	ib, berr := os.Stat(b)
	return a == b || aerr == nil && berr == nil && os.SameFile(ia, ib)
}

// repoResult is what repo copy and repo sync print for one stanza.
type repoResult struct {
	*engine.CopyResult
	Pruned *engine.ExpirePlan `json:"pruned,omitempty"`
}

// copyRepo copies stanza after stanza; one that fails does not keep the others from their turn.
func (r *root) copyRepo(ctx context.Context, f *repoFlags, o engine.CopyOptions, stanzas []string) error {
	l := newListener(r.env, r.f.json, nil)
	var plans []*engine.CopyPlan
	var results []repoResult
	var errs []error
	for _, name := range stanzas {
		plan, res, err := r.copyStanza(ctx, l, f, o, name)
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if plan != nil {
			plans = append(plans, plan)
		}
		if res != nil {
			results = append(results, *res)
		}
		errs = append(errs, err)
	}
	warnings := len(l.done())
	err := errors.Join(errs...)
	switch {
	case r.f.json && r.f.dryRun && len(plans) > 0:
		err = shown(r.env.printJSON(plans), err)
	case r.f.json && len(results) > 0:
		err = shown(r.env.printJSON(results), err)
	}
	for _, p := range plans {
		warnings += len(p.Warnings)
	}
	if err == nil && warnings > 0 {
		err = &warningsError{warnings}
	}
	return err
}

// copyStanza copies one stanza, plan first.
func (r *root) copyStanza(ctx context.Context, l *listener, f *repoFlags, o engine.CopyOptions, name string) (*engine.CopyPlan, *repoResult, error) {
	from, to, err := f.open(r.env, l, name)
	if err != nil {
		return nil, nil, err
	}
	plan, err := engine.PlanCopy(ctx, from, to, o)
	l.done()
	if err != nil {
		return nil, nil, err
	}
	if !r.f.json {
		out := r.env.Stderr
		if r.f.dryRun {
			out = r.env.Stdout
		}
		if err := printCopyPlan(out, plan, f.from.where, f.to.where); err != nil {
			return nil, nil, err
		}
	}
	if r.f.dryRun {
		return plan, nil, refusedBackups(plan)
	}
	res, err := plan.Run(ctx)
	l.done()
	if res == nil {
		return plan, nil, err
	}
	out := &repoResult{CopyResult: res}
	if o.Keep != nil && ctx.Err() == nil {
		var perr error
		if out.Pruned, perr = to.PlanExpire(ctx, *o.Keep); perr == nil {
			perr = out.Pruned.Run(ctx)
		}
		err = errors.Join(err, perr)
	}
	if !r.f.json {
		err = errors.Join(err, printCopied(r.env.Stdout, out))
	}
	return plan, out, err
}

// refusedBackups is the error of a dry run whose copy would leave backups out.
func refusedBackups(p *engine.CopyPlan) error {
	n := 0
	for _, b := range p.Backups {
		if b.State == engine.CopyRefused {
			n++
		}
	}
	if n == 0 {
		return nil
	}
	return &refusedError{fmt.Sprintf("stanza %s: %d backup(s) can't be copied, for the reasons listed above", p.Stanza, n)}
}

// diffRepo prints what a sync would copy, and what only the target has.
func (r *root) diffRepo(ctx context.Context, f *repoFlags, stanzas []string) error {
	l := newListener(r.env, r.f.json, nil)
	var plans []*engine.CopyPlan
	lacks := 0
	for _, name := range stanzas {
		from, to, err := f.open(r.env, l, name)
		if err != nil {
			return err
		}
		plan, err := engine.PlanCopy(ctx, from, to, engine.CopyOptions{All: true, WAL: engine.WALAll, Recheck: f.recheck, Decrypt: true, ProcessMax: f.processMax})
		l.done()
		if err != nil {
			return err
		}
		plans = append(plans, plan)
		if !r.f.json {
			if err := printDiff(r.env.Stdout, plan); err != nil {
				return err
			}
		}
		lacks += differences(plan)
	}
	var err error
	if r.f.json {
		err = r.env.printJSON(plans)
	}
	if err == nil && lacks > 0 {
		err = &lacksError{lacks}
	}
	return err
}
