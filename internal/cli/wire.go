package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/instance"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// pgLockDir is pgbackrest's default lock-path: both tools then never work on one stanza at once.
const pgLockDir = "/tmp/pgbackrest"

// openInstance finds the instance: --root, else HOLDFAST_ROOT, else "/".
func openInstance(env *Env, root string) (*instance.Instance, error) {
	if root == "" {
		root = env.Getenv("HOLDFAST_ROOT")
	}
	if root == "" {
		root = "/"
	}
	in, err := instance.Open(root)
	if errors.Is(err, instance.ErrNoInstance) {
		return nil, &refusedError{fmt.Sprintf("%v; name one with --root or HOLDFAST_ROOT, or make one: holdfast init DATA_DISK BACKUP_DISK --root DIR", err)}
	}
	return in, err
}

// store is the instance's parameter store.
func store(in *instance.Instance) (*conf.Store, error) {
	owner, err := in.Owner()
	if err != nil {
		return nil, err
	}
	return conf.NewStore(conf.Options{Path: in.ConfPath(), KeyPath: in.KeyPath(), Owner: owner}), nil
}

// wired is an application with what the commands need of its parameters.
type wired struct {
	in      *instance.Instance
	store   *conf.Store
	values  *conf.Values
	resolve func(string) string // the host's path of a path parameter
	asOf    string              // show the external storage as it was at that time; empty: now
	keys    []string            // credentials of the external storage, as an environment has them, in place of the parameters'
	app     *action.App
	log     *runLog
	pgLogs  []*runLog // below var/lib/pgsql
}

// openApp wires the application of one instance.
func openApp(env *Env, root string, l *listener) (*wired, error) { return openAppAt(env, root, l, "") }

// openAppAt is openApp with the external storage as it was at a time; empty: now. keys are credentials for it, as an environment has
// them; none: the parameters'.
func openAppAt(env *Env, root string, l *listener, asOf string, keys ...string) (*wired, error) {
	return openParts(env, root, l, asOf, keys, func(err error) error { return err })
}

// openParts is openAppAt that goes on as long as wrong, which is told each thing that is wrong, returns nil.
func openParts(env *Env, root string, l *listener, asOf string, keys []string, wrong func(error) error) (*wired, error) {
	in, err := openInstance(env, root)
	if err != nil {
		return nil, err
	}
	if err := in.Ready(); err != nil {
		if err = wrong(err); err != nil {
			return nil, err
		}
	}
	st, err := store(in)
	if err != nil {
		return nil, err
	}
	values, err := st.Load()
	if err != nil {
		if err = wrong(err); err != nil {
			return nil, err
		}
		if values, err = st.LoadAllowed(); err != nil {
			return nil, err
		}
	}
	owner, err := in.Owner()
	if err != nil {
		return nil, err
	}
	w := &wired{in: in, store: st, values: values, resolve: in.Resolve, asOf: asOf, keys: keys}
	o := action.Options{Root: in.Root(), DumpDir: in.Resolve(values.Path(conf.KeyDataDumpDir)), TempDir: in.Resolve(values.Path(conf.KeyDataTempDir)),
		LockPath: instanceLock(in), JournalPath: filepath.Join(in.LockDir(), "restore.json"), LogDir: in.LogDir(),
		Program: programVersion(), ExecID: env.ExecID, Yields: env.Yields, PGLockDir: stanzaLocks(in), Owner: owner, Now: env.Now, Events: l.on,
		ArchiveTimeout: values.Duration(conf.KeyArchiveTimeout), Params: params(in, st),
		ImportParams: func(ctx context.Context, dir string) ([]string, error) { return importParams(ctx, st, dir) }}
	if o.Host, err = os.Hostname(); err != nil {
		return nil, err
	}
	for _, wire := range []func(*Env, *wired, *action.Options) error{wireVersion, wireClusters, wireRDS, wireRepository, wireStore, wireKit, wirePostScript, wireFiles, wireBus, wireCatalog} {
		if err := wire(env, w, &o); err != nil {
			if err = wrong(err); err != nil {
				return nil, err
			}
		}
	}
	if o.OpenRepo == nil { // only where wrong has let it pass
		o.OpenRepo = notOpened
	}
	w.app = action.New(o)
	w.log = newRunLog(env, in.LogDir(), owner)
	l.logs = w.log.line
	w.pgLogs = newPGLogs(env, o.Clusters, cmp.Or(o.ServerOwner, owner))
	l.pgLogs = func(line string) {
		for _, p := range w.pgLogs {
			p.line(line)
		}
	}
	return w, nil
}

// stanzaLocks is where the locks of an instance's stanzas are: on an ordinary host where pgbackrest has its own, so that
// both never work on one stanza at once; below a root of its own, beside the instance's lock, since two instances on one
// host may well have stanzas of one name.
func stanzaLocks(in *instance.Instance) string {
	if in.Root() == "/" {
		return pgLockDir
	}
	return in.LockDir()
}

// wireVersion: the application's version, in the form of file names.
func wireVersion(_ *Env, w *wired, o *action.Options) error {
	v := w.values.String(conf.KeyVersion)
	if v == "" {
		var err error
		if v, err = w.in.Version(); err != nil {
			return err
		}
	}
	o.AppVersion = strings.ReplaceAll(v, ".", "-")
	return nil
}

// wireClusters: where PostgreSQL is, and the two commands that it calls us with.
func wireClusters(env *Env, w *wired, o *action.Options) error {
	for _, c := range w.values.Clusters(conf.KeyClusters) {
		if c.OnRDS() {
			continue
		}
		host := c.Host
		if filepath.IsAbs(host) {
			host = w.in.Resolve(host)
		}
		cluster := action.Cluster{Stanza: c.Stanza, DataDir: w.in.Resolve(c.DataDir), Conn: pg.ConnOptions{Host: host, Port: c.Port, User: c.User}}
		if c.BinDir != "" {
			cluster.BinDir = w.in.Resolve(c.BinDir)
		}
		version := ""
		if v, err := pg.ReadVersionFile(cluster.DataDir); err == nil { // else the data directory is lost
			version = v.String()
		}
		cluster.LogFile = filepath.Join(w.in.Dir(), "var/lib/pgsql", version, c.Stanza+".log")
		o.Clusters = append(o.Clusters, cluster)
	}
	return nil
}

// wireFiles: directories below the root, named in the tarball by their paths.
func wireFiles(_ *Env, w *wired, o *action.Options) error {
	used := map[string]bool{}
	for _, p := range w.values.List(conf.KeyFilesPaths) {
		host := w.in.Resolve(p)
		rel, err := filepath.Rel(w.in.Root(), host)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(host); os.IsNotExist(err) && !w.values.IsSet(string(conf.KeyFilesPaths)) {
			o.Files.Absent = append(o.Files.Absent, rel)
			continue // a directory of the default list that this application does not have
		}
		name := strings.Trim(strings.Map(func(r rune) rune {
			if r == '/' || r == ' ' {
				return '_'
			}
			return r
		}, rel), "._")
		for n := name; used[name] || name == ""; name = n + strconv.Itoa(len(used)) {
		}
		used[name] = true
		o.Files.Trees = append(o.Files.Trees, catalog.Tree{Name: name, Path: rel})
	}
	slices.SortFunc(o.Files.Trees, func(a, b catalog.Tree) int { return strings.Compare(a.Path, b.Path) })
	o.Files.Exclude = w.values.List(conf.KeyFilesExclude)
	o.Files.SkipDirs = []string{w.in.CatalogDir(), w.in.LockDir(), w.in.ArchiverDir()}
	names, err := w.in.Accounts()
	if err == nil && names != nil {
		o.Files.UserName, o.Files.GroupName, o.Files.UserID, o.Files.GroupID = names.UserName, names.GroupName, names.UserID, names.GroupID
	}
	return err
}

// wireBus: the event bus, when the application has one.
func wireBus(_ *Env, w *wired, o *action.Options) error {
	if !w.values.Bool(conf.KeyBusEnabled) {
		return nil
	}
	b := &eventbus.Options{Brokers: w.values.List(conf.KeyBusBrokers), Topics: w.values.List(conf.KeyBusTopics), ClientID: "holdfast"}
	protocol := strings.ToLower(w.values.String(conf.KeyBusProtocol))
	if strings.Contains(protocol, "ssl") {
		b.TLS = &eventbus.TLSOptions{}
		if ca := w.values.Path(conf.KeyBusCAFile); ca != "" {
			b.TLS.CAFile = w.in.Resolve(ca)
		}
	}
	if strings.Contains(protocol, "sasl") {
		pass, err := w.values.Secret(conf.KeyBusSASLPassword)
		if err != nil {
			return err
		}
		b.SASL = &eventbus.SASLOptions{Mechanism: w.values.String(conf.KeyBusSASLMechanism), User: w.values.String(conf.KeyBusSASLUser), Password: eventbus.Secret(pass.Reveal())}
	}
	o.Bus = b
	return nil
}

func wireCatalog(_ *Env, w *wired, o *action.Options) error {
	st, err := openPosix(w.in.CatalogDir(), o.Owner)
	if err != nil {
		return err
	}
	o.Catalog = catalog.NewStore(st)
	return nil
}

// params are the files of the parameter store that travel in the tarball. The repository's passphrase stays behind: beside
// the key that opens it, it would give away the very backup that it protects; and so does that of the recovery kit, which holds it.
func params(in *instance.Instance, st *conf.Store) []action.ParamFile {
	return []action.ParamFile{{Name: "conf.json", Read: func() ([]byte, error) { return st.Without(string(conf.KeyCipherPass), string(conf.KeyKitPassphrase)) }},
		{Name: "conf.key", Read: func() ([]byte, error) { return os.ReadFile(in.KeyPath()) }}}
}

// stanzaFlags are the options that every engine verb shares, with pgBackRest's names.
type stanzaFlags struct {
	stanza, pgPath, host, user, repoPath, lockPath string
	passFile                                       string   // holds the repository's passphrase; empty: from the environment, or none
	config                                         string   // pgBackRest's configuration file; empty: none is read
	repoWords                                      []string // further options of repositories, as pgBackRest's words
	port, processMax                               int
}

// passphrase reads the repository's passphrase from its file or the environment. It is never on a command line, which
// every user of the host can read.
func (f *stanzaFlags) passphrase(env *Env) (repo.Secret, error) {
	if f.passFile == "" {
		return repo.Secret(env.Getenv("PGBACKREST_REPO1_CIPHER_PASS")), nil
	}
	info, err := os.Stat(f.passFile)
	if err != nil {
		return "", fmt.Errorf("passphrase of the repository: %w", err)
	}
	if info.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("passphrase of the repository: every user can read %s; run: chmod o= %s", f.passFile, f.passFile)
	}
	b, err := os.ReadFile(f.passFile)
	if err != nil {
		return "", fmt.Errorf("passphrase of the repository: %w", err)
	}
	pass := strings.TrimRight(string(b), "\r\n")
	if pass == "" {
		return "", fmt.Errorf("passphrase of the repository: %s is empty", f.passFile)
	}
	return repo.Secret(pass), nil
}

// open returns the stanza on the repository of the flags.
func (f *stanzaFlags) open(env *Env, l *listener) (*engine.Stanza, error) {
	if f.stanza == "" {
		return nil, &usageError{"--stanza is missing"}
	}
	src, err := f.first(env)
	if err != nil {
		return nil, err
	}
	return f.openOn(env, src, l)
}

// openOn returns the stanza on an opened repository.
func (f *stanzaFlags) openOn(env *Env, src source, l *listener) (*engine.Stanza, error) {
	if f.stanza == "" {
		return nil, &usageError{"--stanza is missing"}
	}
	events := func(engine.Event) {}
	if l != nil {
		events = l.on
	}
	return engine.New(engine.Options{Stanza: f.stanza, Storage: src.storage, RepoKey: src.key, Pass: src.pass, LockDir: f.lockPath, LockOwner: src.owner,
		ExecID: env.ExecID, Version: programVersion(), Now: env.Now, Events: events})
}

func (f *stanzaFlags) conn() pg.ConnOptions {
	return pg.ConnOptions{Host: f.host, Port: f.port, User: f.user}
}
