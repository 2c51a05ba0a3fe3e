package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/probackup"
)

// ProbackupOptions describes pg_probackup, the earlier tool, and its backup catalogs.
type ProbackupOptions struct {
	Active      bool                                 // new backups are made with it; otherwise only sets that were are looked after
	Find        func(version string) (string, error) // its program for a major version of PostgreSQL; the error names the parameter
	ApartDir    string                               // backup catalog of the separate PostgreSQL backup
	StagingDir  string                               // backup catalog from which a backup goes into the tarball
	Env         []string                             // what it finds in its environment (NAME=value) besides passwords
	Compression probackup.Compression                // of backups and WAL
	FullEvery   int                                  // backups from one full one to the next; 1: every one is full
	Quote       func(word string) string             // one word for archive_command and restore_command
}

// probackupGrace is how long pg_probackup may take to end when it is cancelled: it ends the server's backup mode, for which
// PostgreSQL may wait for WAL.
const probackupGrace = 30 * time.Second

// minimal and maximal version of pg_probackup, see docs/pg_probackup.md.
const (
	probackupMajor = 2
	probackupMinor = 5
)

// useProbackup says whether new backups are made by pg_probackup.
func (a *App) useProbackup() bool { return a.o.Probackup != nil && a.o.Probackup.Active }

// probackupDir is the backup catalog that new backups go to.
func (a *App) probackupDir() string {
	if a.o.Mode == catalog.Apart {
		return a.o.Probackup.ApartDir
	}
	return a.o.Probackup.StagingDir
}

// ErrTool says that pg_probackup is not to be had, or is not of a version that is driven.
var ErrTool = errors.New("pg_probackup can't be used")

// probackupAt is pg_probackup for a cluster of a version of PostgreSQL on the backup catalog dir. It runs as the server's user. It
// does not look whether the program is fit: checkProbackup does.
func (a *App) probackupAt(c Cluster, version, dir, verb string) (*probackup.Tool, error) {
	if a.o.Probackup == nil {
		return nil, fmt.Errorf("%w: this instance has no parameters for it", ErrTool)
	}
	program, err := a.o.Probackup.Find(version)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTool, err)
	}
	t := &probackup.Tool{Program: program, Dir: dir, Grace: probackupGrace, Env: a.probackupEnv(c),
		Warn: func(line string) { a.warn("pg_probackup %s: %s", verb, line) },
		Say:  func(line string) { a.o.Events(engine.Step{Verb: verb, Name: "says", Detail: line}) }}
	if owner := a.serverOwner(c); owner != nil {
		_, groups, err := groupsOf(owner.UID)
		if err != nil {
			return nil, err
		}
		t.User = &probackup.User{UID: uint32(owner.UID), GID: uint32(owner.GID), Groups: groups}
	}
	return t, nil
}

// probackupEnv is its environment: passwords come to it this way, as libpq takes them, and never by an argument.
func (a *App) probackupEnv(c Cluster) []string {
	env := a.o.Probackup.Env[:len(a.o.Probackup.Env):len(a.o.Probackup.Env)]
	for _, v := range [][2]string{{"PGPASSWORD", string(c.Conn.Password)}, {"PGPASSFILE", c.Conn.PassFile}, {"PGSSLMODE", c.Conn.SSLMode}, {"PGSSLROOTCERT", c.Conn.SSLRoots}} {
		if v[1] != "" {
			env = append(env, v[0]+"="+v[1])
		}
	}
	return env
}

// checkProbackup is probackupAt for a program that has been asked for its version.
func (a *App) checkProbackup(ctx context.Context, c Cluster, version, dir, verb string) (*probackup.Tool, probackup.Version, error) {
	t, err := a.probackupAt(c, version, dir, verb)
	if err != nil {
		return nil, probackup.Version{}, err
	}
	if info, err := os.Stat(t.Program); err != nil {
		return nil, probackup.Version{}, fmt.Errorf("%w: pgsql.pg_probackup.path: %w; name the program with alation_conf pgsql.pg_probackup.path -s FILE", ErrTool, err)
	} else if !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return nil, probackup.Version{}, fmt.Errorf("%w: pgsql.pg_probackup.path: %s is not a program; name it with alation_conf pgsql.pg_probackup.path -s FILE", ErrTool, t.Program)
	}
	v, err := t.Version(ctx)
	switch {
	case ctx.Err() != nil:
		return nil, v, ctx.Err()
	case err != nil:
		return nil, v, fmt.Errorf("%w: pgsql.pg_probackup.path: %s: %w; name the program with alation_conf pgsql.pg_probackup.path -s FILE", ErrTool, t.Program, err)
	case v.Major != probackupMajor || v.Minor < probackupMinor:
		return nil, v, fmt.Errorf("%w: pgsql.pg_probackup.path: %s is %s; versions %d.%d and later of %[4]d are driven", ErrTool, t.Program, v, probackupMajor, probackupMinor)
	case version != "" && v.Server != version:
		return nil, v, fmt.Errorf("%w: pgsql.pg_probackup.path: %s is %s, but cluster %s is of PostgreSQL %s: name the program for that version (its packages call it pg_probackup-%[5]s)", ErrTool, t.Program, v, c.Stanza, version)
	}
	return t, v, nil
}

// probackupCommand makes archive_command or restore_command of the words that begin it.
func (a *App) probackupCommand(words []string) string {
	quoted := make([]string, len(words), len(words)+1)
	for i, w := range words {
		quoted[i] = a.o.Probackup.Quote(w)
	}
	return strings.Join(append(quoted, probackup.Segment), " ")
}

// archiveCommand is the archive_command of the tool that makes new backups, for a cluster of a version. Empty: pg_probackup is not
// there, which every plan says.
func (a *App) archiveCommand(c Cluster, version string) string {
	if !a.useProbackup() {
		return c.ArchiveCommand
	}
	t, err := a.probackupAt(c, version, a.probackupDir(), "archive-push")
	if err != nil {
		return ""
	}
	return a.probackupCommand(t.PushWords(c.Stanza, a.o.Probackup.Compression))
}

// versionOf is the major version of a cluster's data directory.
func versionOf(c Cluster) (string, error) {
	v, err := pg.ReadVersionFile(c.DataDir)
	if err != nil {
		return "", err
	}
	return v.String(), nil
}

// createProbackup makes the backup catalog and the cluster's instance in it, where they are not there.
func (a *App) createProbackup(ctx context.Context, c Cluster, t *probackup.Tool) (engine.CreateOutcome, error) {
	control, _, err := pg.ReadControl(ctx, c.DataDir)
	if err != nil {
		return "", err
	}
	made, err := t.Initialized()
	if err != nil {
		return "", fmt.Errorf("%w; name another directory: alation_conf pgsql.pg_probackup.dir_name -s DIRECTORY", err)
	}
	if !made {
		if err := durable.MkdirAllOwned(t.Dir, 0o700, a.serverOwner(c)); err != nil {
			return "", fmt.Errorf("backup catalog: %w", err)
		}
		if err := t.Init(ctx); err != nil {
			return "", err
		}
	}
	known, err := t.HasInstance(c.Stanza)
	if err != nil {
		return "", fmt.Errorf("backup catalog %s: %w", t.Dir, err)
	}
	if !known {
		return engine.Created, t.AddInstance(ctx, c.Stanza, c.DataDir)
	}
	conf, err := t.Config(ctx, c.Stanza)
	if err != nil {
		return "", err
	}
	if conf.SystemID != control.SystemID {
		return "", fmt.Errorf("instance %s of the backup catalog %s belongs to a cluster with system identifier %d, %s has %d: after an initdb or pg_upgrade begin a new catalog: alation_conf pgsql.pg_probackup.dir_name -s NEW_DIRECTORY (or move %[2]s away), then run alation_action enable_backupv2",
			c.Stanza, t.Dir, conf.SystemID, c.DataDir, control.SystemID)
	}
	return engine.Existed, nil
}

// checkProbackupReach is checkReach for a backup catalog, where PostgreSQL's user does everything.
func (a *App) checkProbackupReach(ctx context.Context, c Cluster, dir string, dirs ...string) error {
	var used []string
	for _, d := range []string{dir, filepath.Join(dir, "wal"), filepath.Join(dir, "wal", c.Stanza), filepath.Join(dir, "backups"), filepath.Join(dir, "backups", c.Stanza)} {
		if _, err := os.Stat(d); err == nil || !errors.Is(err, fs.ErrNotExist) {
			used = append(used, "e", d, "w", d)
		}
	}
	return a.checkReachOf(ctx, c, dir, used, dirs...)
}

// toolOf is the tool that made the PostgreSQL backups of a set.
func toolOf(s *catalog.Set) string {
	for _, p := range pointsOf(s) {
		if p.Tool != "" {
			return p.Tool
		}
	}
	for _, p := range s.Pieces { // of a run that did not get to its recovery point
		if p.Tool != "" {
			return p.Tool
		}
	}
	return ""
}

// toolName is what operators call the tool.
func toolName(tool string) string {
	if tool == catalog.Probackup {
		return "pg_probackup"
	}
	return "pgBackRest"
}

// currentTool is the tool that makes new backups.
func (a *App) currentTool() string {
	if a.useProbackup() {
		return catalog.Probackup
	}
	return ""
}

// newestTool is the tool of the newest complete set that holds a cluster. ok is false where there is none.
func newestTool(sets []*catalog.Set, stanza string) (tool string, ok bool) {
	for _, s := range sets { // oldest first
		if s.State != catalog.Complete {
			continue
		}
		for _, p := range pointsOf(s) {
			if p.Stanza == stanza {
				tool, ok = p.Tool, true
			}
		}
	}
	return tool, ok
}

// chainNote says that a chain of backups ends where the tool changes; empty: it does not change.
func (a *App) chainNote(sets []*catalog.Set, stanza string) string {
	before, ok := newestTool(sets, stanza)
	now := a.currentTool()
	if !ok || before == now {
		return ""
	}
	return fmt.Sprintf("cluster %s: the sets until now were made with %s. One tool's chain of backups can't be continued by the other: the first backup of %s is a full one, and begins its chain. "+
		"The sets of before stay restorable, with %[2]s, as long as it and its backups are kept", stanza, toolName(before), toolName(now))
}
