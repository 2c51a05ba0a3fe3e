package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/internal/action"
	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/kit"
	"holdfast/internal/pg"
)

// recovery is what holdfast recover would do on a machine that has nothing but the kit, and then does.
type recovery struct {
	env     *Env
	l       *listener
	f       *recoverFlags
	kit     *kit.Kit
	root    string // that path parameters are seen from
	state   string // that holds Holdfast's own files: root, or with the root / another directory
	pairs   []conf.Pair
	app     *action.App // of the external storage only
	mounted string      // directory that is the external storage; empty: it is none
	open    []*os.File  // the kit's files, in memory

	mark *recoverMark // of an unfinished recovery in the same place; nil: none
	plan recoverPlan
}

// recoverPlan is what is shown before the question.
type recoverPlan struct {
	Kit        kitSummary         `json:"kit"`
	Store      string             `json:"store"`
	Set        *action.StoredSet  `json:"set,omitempty"`
	Root       string             `json:"root"`
	State      string             `json:"state,omitempty"` // with the root / only, where it is not /
	DataDisk   string             `json:"data_disk"`
	BackupDisk string             `json:"backup_disk"`
	User       string             `json:"user,omitempty"` // empty: the usual
	Parameters []string           `json:"parameters"`     // names
	Files      []string           `json:"files,omitempty"`
	Continues  bool               `json:"continues"` // an interrupted recovery goes on
	Notes      []string           `json:"notes,omitempty"`
	Missing    []string           `json:"missing,omitempty"`
	Sets       []action.StoredSet `json:"-"`
}

// kitSummary is what may be shown of a kit.
type kitSummary struct {
	File    string `json:"file"`
	Made    string `json:"made"`
	Set     string `json:"set"`
	Host    string `json:"host"`
	Program string `json:"program"`
}

func (r *recovery) missing(format string, args ...any) {
	r.plan.Missing = append(r.plan.Missing, fmt.Sprintf(format, args...))
}

func (r *recovery) note(format string, args ...any) {
	r.plan.Notes = append(r.plan.Notes, fmt.Sprintf(format, args...))
}

// openRecovery opens the kit and the external storage that it names. Nothing is written. The
// caller closes it.
func openRecovery(ctx context.Context, env *Env, l *listener, f *recoverFlags) (*recovery, error) {
	k, err := openKit(ctx, env, f)
	if err != nil {
		return nil, err
	}
	r := &recovery{env: env, l: l, f: f, kit: k}
	r.plan.Kit = kitSummary{File: f.kit, Made: k.Made.Format("2006-01-02 15:04:05 MST"), Set: k.Set, Host: k.Host, Program: k.Program}
	if k.Store == nil {
		return nil, fmt.Errorf("%s is of an instance without external storage: there is nothing to recover from; lay an instance out (holdfast init) and restore from the tarballs (holdfast restore --file)", f.kit)
	}
	if err := r.place(); err != nil {
		return nil, err
	}
	if err := r.parameters(); err != nil {
		return nil, err
	}
	if err := r.storage(); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

// place decides where the instance goes.
func (r *recovery) place() (err error) {
	theirs := r.kit.Instance.Root
	r.root = r.f.root
	if r.root == "" {
		r.root = "/"
	}
	if r.root, err = filepath.Abs(r.root); err != nil {
		return err
	}
	switch {
	case theirs != "/" && r.root == "/":
		return &usageError{fmt.Sprintf("the kit is of an instance with a root directory of its own (%s): say where it is to be with --root DIR", theirs)}
	case theirs == "/" && r.root != "/":
		return &usageError{"the kit is of an instance that uses the host's own paths: leave --root out (an ordinary user adds --state DIR)"}
	case r.f.state != "" && r.root != "/":
		return &usageError{"--state goes with an instance that uses the host's own paths"}
	}
	r.state = r.root
	if r.f.state != "" {
		if r.state, err = filepath.Abs(r.f.state); err != nil {
			return err
		}
		r.plan.State = r.state
	}
	r.plan.Root = r.root
	for _, d := range []struct {
		word string
		into *string
	}{{r.f.dataDisk, &r.plan.DataDisk}, {r.f.backupDisk, &r.plan.BackupDisk}} {
		if d.word == "" {
			continue
		}
		if *d.into, err = filepath.Abs(d.word); err != nil {
			return err
		}
	}
	return nil
}

// notRecovered are parameters that belong to what was lost.
var notRecovered = []string{string(conf.KeyRestoreFile), string(conf.KeyEBRestoreFile), string(conf.KeyRestoreSource)}

// parameters are those of the kit, with the disks where they are here, and what --conf says otherwise.
func (r *recovery) parameters() error {
	other := map[string]string{}
	for _, text := range r.f.conf {
		name, value, ok := strings.Cut(text, "=")
		if !ok {
			return &usageError{fmt.Sprintf("--conf %s: it is KEY=VALUE", name)}
		}
		if k := conf.Lookup(name); k == nil {
			return &usageError{fmt.Sprintf("--conf: there is no parameter %s", name)}
		} else if k.Secret() {
			return &usageError{fmt.Sprintf("--conf %s: a secret does not belong on a command line; set it afterwards: alation_conf %[1]s -s -", name)}
		}
		other[name] = value
	}
	for _, k := range conf.Table() {
		theirs, known := r.kit.Parameters[k.Name]
		value, set := other[k.Name]
		switch {
		case set:
		case !known || slices.Contains(notRecovered, k.Name):
			continue
		default:
			value = r.moved(&k, string(theirs))
		}
		r.pairs = append(r.pairs, conf.Pair{Name: k.Name, Value: conf.NewSecret(value)})
		r.plan.Parameters = append(r.plan.Parameters, k.Name)
	}
	for name := range r.kit.Parameters {
		if conf.Lookup(name) == nil {
			r.note("parameter %s is of a newer version and is left out", name)
		}
	}
	slices.Sort(r.plan.Notes)
	for _, f := range r.kit.Files {
		r.plan.Files = append(r.plan.Files, f.Parameter)
	}
	return nil
}

// moved is a parameter's value with the disks where they are here. Only paths of the host change: those below a root go with it.
func (r *recovery) moved(k *conf.Key, value string) string {
	if r.kit.Instance.Root != "/" || r.plan.DataDisk == "" {
		return value
	}
	path := func(p string) string {
		for _, d := range []struct{ from, to string }{{r.kit.Instance.DataDir, r.plan.DataDisk}, {r.kit.Instance.BackupDir, r.plan.BackupDisk}} {
			if rest, ok := strings.CutPrefix(p, d.from); ok && d.from != "" && (rest == "" || rest[0] == '/') {
				return d.to + rest
			}
		}
		return p
	}
	switch {
	case k.Type == conf.Path:
		return path(value)
	case k.Name == string(conf.KeyFilesPaths):
		list := strings.Split(value, ",")
		for i := range list {
			list[i] = path(list[i])
		}
		return strings.Join(list, ",")
	case k.Type == conf.Clusters:
		clusters, err := conf.ParseClusters(value)
		if err != nil {
			return value // ValuesOf says what is wrong with it
		}
		for i := range clusters {
			clusters[i].DataDir, clusters[i].Host, clusters[i].BinDir = path(clusters[i].DataDir), path(clusters[i].Host), path(clusters[i].BinDir)
		}
		return conf.FormatClusters(clusters)
	}
	return value
}

// storage opens the external storage with the kit's parameters alone.
func (r *recovery) storage() error {
	values, err := conf.ValuesOf(r.pairs)
	if err != nil {
		return fmt.Errorf("parameters of the kit: %w", err)
	}
	files := map[string]string{}
	for _, f := range r.kit.Files {
		file, err := inMemory(f)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Parameter, err)
		}
		r.open = append(r.open, file)
		if k := conf.Lookup(f.Parameter); k != nil && carried(k) {
			files[values.Path(conf.PathKey(k.Name))] = fmt.Sprintf("/proc/self/fd/%d", file.Fd())
		}
	}
	w := &wired{values: values, asOf: r.f.asOf, resolve: func(p string) string {
		if f, ok := files[p]; ok {
			return f
		}
		return r.resolve(p)
	}}
	o := action.Options{Now: r.env.Now, Events: r.l.on, Program: programVersion(), ExecID: r.env.ExecID}
	pass, err := values.Secret(conf.KeyCipherPass)
	if err != nil {
		return err
	}
	o.RepoPass = secretOf(pass)
	if err := wireStore(r.env, w, &o); err != nil {
		return err
	}
	if o.Store == nil {
		return fmt.Errorf("%s: its parameters name no external storage", r.f.kit)
	}
	r.plan.Store = o.Store.Name
	if dir := values.Path(conf.KeyRedundancyPath); dir != "" && isDirectory(values.String(conf.KeyRedundancyType)) {
		r.mounted = r.resolve(dir)
	}
	r.app = action.New(o)
	return nil
}

// inMemory is a file of the kit that has a path for this process only: until the instance is there nothing of it is on a disk.
func inMemory(f kit.File) (*os.File, error) {
	fd, err := unix.MemfdCreate(f.Parameter, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), f.Parameter)
	_, err = file.Write([]byte(f.Data))
	return file, err
}

// close gives the kit's files in memory up.
func (r *recovery) close() {
	for _, f := range r.open {
		f.Close() // memory: nothing to lose
	}
}

// resolve is the host's path of a path parameter.
func (r *recovery) resolve(p string) string { return filepath.Join(r.root, filepath.Clean("/"+p)) }

// sets reads from the external storage what is there.
func (r *recovery) sets(ctx context.Context) error {
	sets, damaged, err := r.app.RecoverableSets(ctx)
	if err != nil {
		return err
	}
	r.plan.Sets = sets
	for _, d := range damaged {
		r.note("%v", d)
	}
	if len(sets) == 0 {
		return fmt.Errorf("there is no set on %s: the kit says %d, made by runs up to %s; see that alation.backup.redundancy.enabled was True on the instance, and that the storage is the right one", r.plan.Store, len(r.kit.Sets), r.kit.Set)
	}
	return nil
}

// choose finds the set that is asked for: by its ID, or the newest that is there whole.
func (r *recovery) choose() error {
	id := r.f.set
	if id == "" && r.mark != nil {
		id = r.mark.Set
	}
	if id != "" && id != "latest" {
		i := slices.IndexFunc(r.plan.Sets, func(s action.StoredSet) bool { return s.ID == id })
		if i < 0 {
			return &usageError{fmt.Sprintf("there is no set %s on %s; see: holdfast recover --list", id, r.plan.Store)}
		}
		r.plan.Set = &r.plan.Sets[i]
	} else {
		for i := len(r.plan.Sets) - 1; i >= 0 && r.plan.Set == nil; i-- {
			if s := &r.plan.Sets[i]; len(s.Lacks) == 0 {
				r.plan.Set = s
			} else {
				r.note("set %s is newer and not whole there: it lacks %s", s.ID, strings.Join(s.Lacks, ", "))
			}
		}
		if r.plan.Set == nil {
			r.plan.Set = &r.plan.Sets[len(r.plan.Sets)-1]
		}
	}
	for _, l := range r.plan.Set.Lacks {
		r.missing("set %s on %s lacks %s", r.plan.Set.ID, r.plan.Store, l)
	}
	if newest := r.plan.Sets[len(r.plan.Sets)-1].ID; newest != r.kit.Set {
		r.note("the kit was written by the run of set %s; the newest set there is %s", r.kit.Set, newest)
	}
	return nil
}

// look lists everything that stands in the way here.
func (r *recovery) look() error {
	values, err := conf.ValuesOf(r.pairs)
	if err != nil {
		return err
	}
	if values.Bool(conf.KeyRedundancyEnabled) || values.Bool(conf.KeyTarballCopies) {
		r.note("the parameters are the kit's: this instance will copy its backups to %s and remove old ones there. Where the old instance still lives and this is a trial, add --conf %s=False --conf %s=False", r.plan.Store, conf.KeyRedundancyEnabled, conf.KeyTarballCopies)
	}
	if r.mark, err = readMark(r.state); err != nil {
		return err
	}
	if r.mark != nil && r.mark.Instance != r.instanceOf() {
		return &refusedError{fmt.Sprintf("%s holds an unfinished recovery from another instance's kit: finish that one, or empty the place; nothing was changed", r.state)}
	}
	if r.mark != nil && (r.mark.DataDisk != r.plan.DataDisk || r.mark.BackupDisk != r.plan.BackupDisk) {
		return &refusedError{fmt.Sprintf("%s holds an unfinished recovery onto the disks %s and %s: run it with these, or empty the place; nothing was changed", r.state, r.mark.DataDisk, r.mark.BackupDisk)}
	}
	if r.plan.Continues = r.mark != nil; r.plan.Continues && !r.mark.Restored {
		r.note("an interrupted recovery goes on: what is in the way of the restore by now is kept beside it, under names with .holdfast-replaced in them")
	}
	if r.plan.DataDisk == r.plan.BackupDisk {
		r.missing("data disk and backup disk are both %s", r.plan.DataDisk)
	}
	if r.mark == nil {
		r.empty()
	}
	if os.Geteuid() == 0 {
		r.plan.User = r.f.user
		if r.plan.User == "" && knownUser(r.kit.Instance.User) {
			r.plan.User = r.kit.Instance.User
		}
		if r.plan.User == "" {
			r.note("there is no user %s on this host: the instance will belong to the usual one; --user names another", r.kit.Instance.User)
		}
	}
	return nil
}

// servers looks whether PostgreSQL of the set's versions is installed.
func (r *recovery) servers() error {
	values, err := conf.ValuesOf(r.pairs)
	if err != nil {
		return err
	}
	for _, p := range r.plan.Set.Local() {
		i := slices.IndexFunc(values.Clusters(conf.KeyClusters), func(c conf.Cluster) bool { return c.Stanza == p.Stanza })
		if i < 0 {
			r.missing("cluster %s of the set is not in the kit's pgsql.clusters", p.Stanza)
			continue
		}
		c := values.Clusters(conf.KeyClusters)[i]
		if c.OnRDS() {
			r.missing("cluster %s of the set was on its host, and is on Amazon RDS in the kit's pgsql.clusters", p.Stanza)
			continue
		}
		v, err := pg.ParseVersion(p.Version)
		if err == nil && c.BinDir != "" {
			_, err = os.Stat(filepath.Join(r.resolve(c.BinDir), "pg_ctl"))
		} else if err == nil {
			_, err = pg.FindBinDir(v)
		}
		if err != nil {
			r.missing("PostgreSQL %s for cluster %s: %v", p.Version, p.Stanza, err)
		}
	}
	return nil
}

// planRecovery is the whole plan.
func (r *recovery) planRecovery(ctx context.Context) error {
	if err := r.sets(ctx); err != nil {
		return err
	}
	if err := r.look(); err != nil {
		return err
	}
	if err := r.choose(); err != nil {
		return err
	}
	if r.plan.Set.Recovery == nil {
		return nil
	}
	return r.servers()
}

// refuse is the error of a plan that can't be carried out.
func (p *recoverPlan) refuse() error {
	if len(p.Missing) == 0 {
		return nil
	}
	return &refusedError{"nothing was changed: " + strings.Join(p.Missing, "; ")}
}

// empty refuses places that hold something: a recovery makes an instance where none is.
func (r *recovery) empty() {
	if _, err := os.Lstat(filepath.Join(r.state, "etc/holdfast/instance.json")); err == nil {
		r.missing("there is an instance in %s already: to restore a set there: holdfast sets list --store, sets fetch, restore", r.state)
		return
	}
	kept := []string{r.plan.DataDisk, r.plan.BackupDisk}
	if r.mounted != "" {
		kept = append(kept, r.mounted)
	}
	dirs := []string{r.plan.DataDisk, r.plan.BackupDisk}
	if r.root != "/" {
		dirs = append(dirs, r.root)
	}
	for _, disk := range dirs[:2] {
		if info, err := os.Stat(disk); err != nil || !info.IsDir() {
			r.missing("the disk %s is not there: mount it, or make the directory", disk)
		}
	}
	for _, dir := range dirs {
		found, err := strangers(dir, kept)
		if err != nil {
			r.missing("%v", err)
		} else if len(found) > 0 {
			r.missing("%s is not empty (%s): a recovery wants empty places", dir, strings.Join(found[:min(len(found), 5)], ", "))
		}
	}
}

// strangers are the first few files in a directory that are neither kept nor below what is kept. Directories that hold no file are
// as good as none: an earlier call may have died before it had marked the place.
func strangers(dir string, kept []string) ([]string, error) {
	const enough = 5
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	var found []string
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case len(found) >= enough:
			return found, nil
		case e.Name() == "lost+found" || slices.Contains(kept, path) || durable.IsTemp(e.Name()):
		case e.IsDir():
			more, err := strangers(path, kept)
			if err != nil {
				return nil, err
			}
			found = append(found, more...)
		default:
			found = append(found, path)
		}
	}
	return found, err
}

// step tells of a step of the recovery.
func (r *recovery) step(name, detail string) {
	r.l.on(engine.Step{Verb: "recover", Name: name, Detail: detail})
}
