package engine

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/durable"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Options is what every verb on a stanza needs.
type Options struct {
	Stanza  string
	Storage storage.Storage
	RepoKey int         // the repository's number as operators know it (repo1-…); at least 1
	Pass    repo.Secret // repository passphrase; empty: not encrypted
	LockDir string      // directory of lock and stop files, shared with pgbackrest; empty: no locks (tests)
	// LockOwner owns LockDir when we make it (nil: we do): archive-push and pgbackrest run as PostgreSQL's user and must be
	// able to look into it, whoever came first.
	LockOwner *durable.Owner
	ExecID    string // who holds the lock, for the lock file: "<pid>-<8 hex>"

	PGVersion  pg.Version // of a fork of PostgreSQL with numbers of its own: the version it is built on; 0: PostgreSQL
	NoSymlinks bool       // no symbolic links in the repository, for file systems that have none

	Version string           // written as backrest-version
	Now     func() time.Time // the clock; nil: time.Now
	Local   *time.Location   // zone of labels and of targets without one; nil: time.Local
	Events  func(Event)      // nil: nobody listens. Called from several goroutines at once.
}

// Stanza is one PostgreSQL cluster as the repository knows it, with the verbs as methods. Safe for use by one verb at a
// time; independent verbs take independent values.
type Stanza struct {
	o Options
}

// New checks o and returns the stanza. It does no I/O: the stanza need not exist yet.
func New(o Options) (*Stanza, error) {
	if err := CheckStanzaName(o.Stanza); err != nil {
		return nil, err
	}
	if o.Storage == nil {
		return nil, errors.New("no storage given for the repository")
	}
	if o.RepoKey == 0 {
		o.RepoKey = 1
	}
	if o.Version == "" {
		o.Version = "Holdfast"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Local == nil {
		o.Local = time.Local
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	return &Stanza{o: o}, nil
}

// Name is the stanza's name.
func (s *Stanza) Name() string { return s.o.Stanza }

// CheckStanzaName refuses names that could not be a directory and a lock file on every system.
func CheckStanzaName(name string) error {
	ok := name != "" && len(name) <= 128 && name[0] != '.' && name[0] != '-'
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("stanza name %q: use letters, digits, '.', '_' and '-', starting with a letter or digit", name)
	}
	return nil
}

// lock takes the stanza's lock of one kind ("backup", "archive") on this repository; release is never nil.
func (s *Stanza) lock(kinds ...string) (release func() error, err error) {
	var held []*repo.Lock
	release = func() error {
		var errs []error
		for _, l := range held {
			errs = append(errs, l.Release())
		}
		held = nil
		return errors.Join(errs...)
	}
	if s.o.LockDir == "" {
		return release, nil
	}
	pid, _, _ := strings.Cut(s.o.ExecID, "-")
	holder := repo.LockContent{ExecID: s.o.ExecID}
	if n, err := strconv.Atoi(pid); err == nil {
		holder.PID = n
	}
	content, err := holder.Encode()
	if err != nil {
		return release, err
	}
	if err := durable.MkdirAllOwned(s.o.LockDir, 0o770, s.o.LockOwner); err != nil {
		return release, fmt.Errorf("stanza %s: make lock path: %w", s.o.Stanza, err)
	}
	for _, kind := range kinds {
		l, err := repo.AcquireLock(s.o.LockDir, s.o.Stanza, kind, s.o.RepoKey, content)
		if err != nil {
			return release, errors.Join(fmt.Errorf("stanza %s: %s lock: %w", s.o.Stanza, kind, err), release())
		}
		held = append(held, l)
	}
	return release, nil
}

// stopped refuses to work while a stop file of this stanza or of all exists.
func (s *Stanza) stopped() error {
	if s.o.LockDir == "" {
		return nil
	}
	file, stopped, err := repo.Stopped(s.o.LockDir, s.o.Stanza)
	if err != nil {
		return fmt.Errorf("stanza %s: look for a stop file: %w", s.o.Stanza, err)
	}
	if stopped && file == repo.StopPath(s.o.LockDir, "") {
		return fmt.Errorf("stanza %s: %w: stop file exists for all stanzas (%s); to go on run: holdfast pg start", s.o.Stanza, ErrStopped, file)
	}
	if stopped {
		return fmt.Errorf("stanza %s: %w: stop file exists for stanza %[1]s (%[3]s); to go on run: holdfast pg start --stanza=%[1]s", s.o.Stanza, ErrStopped, file)
	}
	return nil
}

// What callers may ask with errors.Is.
var (
	ErrStopped         = errors.New("stopped by the operator")
	ErrStanzaMissing   = errors.New("stanza does not exist in this repository")
	ErrStanzaMismatch  = errors.New("stanza belongs to another PostgreSQL cluster")
	ErrArchiveMismatch = errors.New("WAL belongs to another PostgreSQL cluster")
	ErrArchiveConflict = errors.New("another WAL segment of this name is in the archive")
	ErrArchiveTimeout  = errors.New("WAL segment did not reach the archive in time")
	ErrWALMissing      = errors.New("not in the archive")
	ErrPartly          = errors.New("not in every repository")
	ErrNoBackup        = errors.New("no usable backup")
	ErrTargetNotEmpty  = errors.New("target directory is not empty")
	ErrTargetRunning   = errors.New("PostgreSQL is running on the target directory")
	ErrCorrupt         = errors.New("content does not match its checksum")
	ErrWALName         = errors.New("not the name of a WAL segment, a timeline history or a backup history file")
	ErrOtherServer     = errors.New("the server that answers does not run on this data directory")
	ErrArchiveOff      = errors.New("archive_mode is off")
	ErrArchiveAlways   = errors.New("archive_mode=always is not supported")
	ErrArchiveCommand  = errors.New("archive_command is empty")
)
