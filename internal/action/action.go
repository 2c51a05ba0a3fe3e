package action

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Options is the application as package cli wires it from parameters. Every path is absolute on this host.
type Options struct {
	Root        string // the instance's root
	DumpDir     string // where tarballs land
	TempDir     string // staging
	LockPath    string // file of the instance's lock
	JournalPath string // file of the restore journal
	LogDir      string // of this host; a restore keeps it when it lies inside a replaced tree
	Catalog     *catalog.Store

	AppVersion string // of the application, for names and sets: 10-0-0-147420
	Program    string // of Holdfast
	Host       string
	ExecID     string // "<pid>-<8 hex>": who holds locks
	Yields     bool   // the verbs of this App may be ended for another at any time (Wanted)

	Mode           catalog.Mode
	RepoDir        string                                    // repository: the separate one (apart) or the staging one (included)
	OpenRepo       func(dir string) (storage.Storage, error) // a repository below dir, its files owned as PostgreSQL's
	RepoPass       repo.Secret                               // of that repository and every other; empty: not encrypted
	PassFile       string                                    // where archive_command finds RepoPass
	Tool           *ToolOptions                              // nil: the built-in engine
	Probackup      *ProbackupOptions                         // nil: pg_probackup is never asked
	PGLockDir      string                                    // lock files shared with pgbackrest
	ServerOwner    *durable.Owner                            // PostgreSQL's user, whose PGLockDir and lost data directories are; nil: this process
	Compress       repo.CompressType
	Level          int
	Bundle         bool // small files of a repository apart are stored together
	Block          bool // with Bundle: of files that changed the changed blocks are stored
	Incremental    IncrementalOptions
	Type           repo.BackupType // of the next run's PostgreSQL backup; empty: what Incremental says
	ProcessMax     int
	ArchiveTimeout time.Duration

	Keep       RetentionRule      // which sets stay; the zero value: all
	Store      *StoreOptions      // external storage; nil: none is described
	PostScript *PostScriptOptions // nil: none
	Kit        *KitOptions        // nil: no recovery kit is written

	Clusters []Cluster
	RDS      RDSOptions // databases that are DB instances of Amazon RDS
	Files    FilesOptions
	Bus      *eventbus.Options // nil: the application has no event bus

	Params       []ParamFile                                             // parameter store and keys, for the tarball
	ImportParams func(ctx context.Context, dir string) ([]string, error) // takes the set's parameters over; returns what it did

	SkipPreflight bool // begin a run whatever the looks before it find

	Owner  *durable.Owner // of tarballs and staging; nil: this process
	Now    func() time.Time
	Events func(engine.Event) // from several goroutines at once
}

// Cluster is one PostgreSQL cluster of the application.
type Cluster struct {
	Stanza  string
	DataDir string
	Conn    pg.ConnOptions
	BinDir  string // empty: found by version
	LogFile string // server log when Holdfast starts it

	// ArchiveCommand is the text for archive_command; RestoreCommand makes restore_command from repository directories,
	// asked in order.
	ArchiveCommand string
	RestoreCommand func(repoDirs ...string) string
}

// FilesOptions is the files component.
type FilesOptions struct {
	Trees    []catalog.Tree // Path below the root
	Absent   []string       // below the root: configured, but not there (yet); a restore may put a tree there too
	Exclude  []string
	SkipDirs []string // absolute; never entered

	// Owners by the names that the instance knows; nil: those of the host.
	UserName, GroupName func(id uint32) string
	UserID, GroupID     func(name string) (id uint32, ok bool)
}

// ParamFile is one small file that goes into the tarball under params/.
type ParamFile struct {
	Name string
	Read func() ([]byte, error) // os.ErrNotExist: it is left out
}

// App does verbs on one application. One verb at a time; the instance's lock keeps other processes out.
type App struct{ o Options }

// New returns the application. It does no I/O.
func New(o Options) *App {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events == nil {
		o.Events = func(engine.Event) {}
	}
	if o.ArchiveTimeout <= 0 {
		o.ArchiveTimeout = time.Minute
	}
	return &App{o: o}
}

// ErrBusy says that another run works on the instance.
var ErrBusy = errors.New("another run holds the instance")

// BusyError is an ErrBusy that says who. Verb is empty in the instant before the holder has said it.
type BusyError struct {
	Path  string // of the lock
	Verb  string // "backup_all", "restore", "sets copy", …
	Exec  string
	Since time.Time

	Yields bool // it gives way to who asks: see awaitYield
}

func (e *BusyError) Error() string {
	if e.Verb == "" {
		return fmt.Sprintf("%v: %s is locked; wait for it to end", ErrBusy, e.Path)
	}
	return fmt.Sprintf("%v: %s (process %s) since %s; wait for it to end", ErrBusy, e.Verb, e.Exec, e.Since.Format("2006-01-02 15:04:05 MST"))
}

// Unwrap makes errors.Is(err, ErrBusy) true.
func (e *BusyError) Unwrap() error { return ErrBusy }

// holder is what the lock file says.
type holder struct {
	Verb  string    `json:"verb"`
	Exec  string    `json:"exec"`
	Since time.Time `json:"since"`

	Yields bool `json:"yields,omitempty"` // Options.Yields
}

// lock keeps every other backup_all, restore and deletion on this instance out. A holder that gives way is asked to, and waited
// for until ctx ends. The error names who holds it.
func (a *App) lock(ctx context.Context, verb string) (func() error, error) {
	unlock, err := a.tryLock(verb)
	var busy *BusyError
	if !a.o.Yields && errors.As(err, &busy) && busy.Yields {
		return a.awaitYield(ctx, verb, busy)
	}
	return unlock, err
}

// tryLock is lock that does not wait.
func (a *App) tryLock(verb string) (func() error, error) {
	if err := durable.MkdirAllOwned(filepath.Dir(a.o.LockPath), 0o750, a.o.Owner); err != nil {
		return nil, err
	}
	text, err := json.Marshal(holder{verb, a.o.ExecID, a.o.Now().UTC().Truncate(time.Second), a.o.Yields})
	if err != nil {
		return nil, err
	}
	l, err := durable.TryLockOwned(a.o.LockPath, text, a.o.Owner)
	var locked *durable.LockedError
	if errors.As(err, &locked) {
		var h holder
		if json.Unmarshal(locked.Info, &h) != nil {
			h = holder{}
		}
		return nil, &BusyError{Path: a.o.LockPath, Verb: h.Verb, Exec: h.Exec, Since: h.Since, Yields: h.Yields}
	}
	if err != nil {
		return nil, fmt.Errorf("lock the instance: %w", err)
	}
	return l.Unlock, nil
}

func (a *App) step(verb, name, detail string) {
	a.o.Events(engine.Step{Verb: verb, Name: name, Detail: detail})
}

func (a *App) warn(format string, args ...any) {
	a.o.Events(engine.Warning{Text: fmt.Sprintf(format, args...)})
}

// stanza is the engine on one cluster with one repository.
func (a *App) stanza(name string, st storage.Storage) (*engine.Stanza, error) {
	return engine.New(engine.Options{Stanza: name, Storage: st, Pass: a.o.RepoPass, LockDir: a.o.PGLockDir, LockOwner: a.o.ServerOwner, ExecID: a.o.ExecID, Version: a.o.Program,
		Now: a.o.Now, Events: a.o.Events})
}

// repository opens the configured repository.
func (a *App) repository() (storage.Storage, error) {
	st, err := a.o.OpenRepo(a.o.RepoDir)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", a.o.RepoDir, err)
	}
	return st, nil
}

// stagingMark stands in every staging directory that Holdfast made; nothing without it is ever removed.
const stagingMark = ".holdfast-staging"

// clearStaging removes what interrupted runs left in the staging directory and refuses to go on when anything else is in
// it: it could be somebody's.
func (a *App) clearStaging() error {
	if err := durable.MkdirAllOwned(a.o.TempDir, 0o711, a.o.Owner); err != nil {
		return fmt.Errorf("staging directory: %w", err)
	}
	entries, err := os.ReadDir(a.o.TempDir)
	if err != nil {
		return fmt.Errorf("staging directory: %w", err)
	}
	var foreign []string
	for _, e := range entries {
		dir := filepath.Join(a.o.TempDir, e.Name())
		if e.Name() == "lost+found" {
			continue
		}
		if info, err := os.Lstat(filepath.Join(dir, stagingMark)); !e.IsDir() || err != nil || !info.Mode().IsRegular() {
			foreign = append(foreign, e.Name())
			continue
		}
		if err := removeMarked(dir); err != nil {
			return fmt.Errorf("clear staging: %w", err)
		}
	}
	if len(foreign) > 0 {
		return fmt.Errorf("staging directory %s holds files that Holdfast did not put there: %s; move them away (or set alation.backup.data_temp_dir to a directory of its own); nothing was removed",
			a.o.TempDir, firstFew(foreign))
	}
	return nil
}

// removeMarked removes a staging directory, its mark last, so that an interrupted removal goes on next time.
func removeMarked(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != stagingMark {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(dir)
}

// newStaging makes this run's staging directory; done removes it.
func (a *App) newStaging(run string) (dir string, done func() error, err error) {
	dir = filepath.Join(a.o.TempDir, "holdfast-"+run)
	if err := durable.MkdirAllOwned(dir, 0o711, a.o.Owner); err != nil {
		return "", nil, fmt.Errorf("staging: %w", err)
	}
	if err := durable.WriteFileOwned(filepath.Join(dir, stagingMark), []byte(run+"\n"), 0o600, a.o.Owner); err != nil {
		return "", nil, fmt.Errorf("staging: %w", err)
	}
	return dir, func() error { return removeMarked(dir) }, nil
}

func firstFew(names []string) string {
	const most = 10
	out := ""
	for i, n := range names {
		if i == most {
			return out + fmt.Sprintf(" and %d more", len(names)-most)
		}
		if i > 0 {
			out += ", "
		}
		out += n
	}
	return out
}
