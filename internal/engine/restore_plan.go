package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// TargetType is where recovery stops (PostgreSQL manual, section "Recovery Target").
type TargetType string

const (
	TargetDefault   TargetType = "default"   // the end of the archive
	TargetImmediate TargetType = "immediate" // as soon as the backup is consistent
	TargetTime      TargetType = "time"
	TargetXID       TargetType = "xid"
	TargetLSN       TargetType = "lsn"
	TargetName      TargetType = "name"
	TargetStandby   TargetType = "standby"
	TargetPreserve  TargetType = "preserve"
	TargetNone      TargetType = "none" // no recovery settings: the files as they were
)

// RestoreOptions chooses a backup, where it goes and how far recovery will replay.
type RestoreOptions struct {
	Set     repo.Label // empty: chosen by the target
	DataDir string

	Type      TargetType
	Target    string
	Exclusive bool   // stop before the target
	Action    string // pause, promote, shutdown; empty: PostgreSQL's default (pause)
	Timeline  string // number, "current" or "latest"; empty: PostgreSQL's default

	RestoreCommand  string            // restore_command for postgresql.auto.conf; needed unless Type is none or preserve
	RecoveryOptions map[string]string // further settings written with it
	ArchiveModeOff  bool

	TablespaceMap    map[string]string // name or oid → directory
	TablespaceMapAll string            // base: every tablespace goes to base/<name>
	RootFrom, RootTo string            // a tablespace below RootFrom goes to the same place below RootTo; empty: where it was
	LinkAll          bool
	LinkMap          map[string]string // path below the data directory → destination

	NoneRecovers bool // with TargetNone, of an online backup that no pgbackrest from 2.47 on made: recovery.signal all the same, for recovery settings of the cluster's own

	Delta bool // keep what is in DataDir where it matches, remove what does not belong
	Force bool // overwrite what is in DataDir; with Delta: trust size and time stamp instead of checksums

	DBInclude []string // names or oids: all other user databases become empty shells to be dropped
	DBExclude []string // names or oids: these databases become empty shells

	SpoolDir string // of asynchronous archiving: what it holds of this stanza belongs to the time before and is removed; empty: none

	Rate       int64 // bytes written per second, by all workers together; 0: no limit
	ProcessMax int
	Owners     bool // apply the manifest's owners (root)
	DefaultUID int  // owner of everything when Owners is set and a name is unknown here
	DefaultGID int

	SkipTargetCheck bool // only a look: the target is neither required to be empty nor to be stopped; Run checks again
}

// RestorePlan is what a restore would do.
type RestorePlan struct {
	Stanza      string            `json:"stanza"`
	Label       repo.Label        `json:"label"`
	BackupStop  time.Time         `json:"backup_stop"`
	Version     string            `json:"pg_version"`
	SystemID    uint64            `json:"system_id"`
	DataDir     string            `json:"data_dir"`
	Tablespaces map[string]string `json:"tablespaces,omitempty"` // name → directory
	Links       map[string]string `json:"links,omitempty"`       // path below the data directory → destination
	Type        TargetType        `json:"type"`
	Target      string            `json:"target,omitempty"`
	Delta       bool              `json:"delta,omitempty"`      // what matches is kept
	Overwrites  bool              `json:"overwrites,omitempty"` // what is in the directories is replaced, what does not belong is removed
	Emptied     []string          `json:"emptied,omitempty"`    // databases that come back as empty shells
	Files       int               `json:"files"`
	Bytes       int64             `json:"bytes"` // of all files
	Warnings    []string          `json:"warnings,omitempty"`

	s       *Stanza
	o       RestoreOptions
	m       *repo.Manifest
	version pg.Version
	roots   []restoreRoot     // longest manifest prefix first
	links   map[string]string // manifest name of a link that will be made → what it says
	trust   bool              // size and time stamp prove that a file is unchanged
	emptied map[uint32]bool   // oids of the databases that come back as empty shells
}

// What callers may ask of a refused restore, besides the errors in options.go.
var (
	ErrTarget        = errors.New("recovery target") // it can't be one, whatever the repository holds
	ErrTargetOwner   = errors.New("target directory is not ours")
	ErrTimeline      = errors.New("the backup is not on the way to the target timeline")
	ErrTablespaceMap = errors.New("tablespace map does not fit the backup")
	ErrLinkMap       = errors.New("link map does not fit the backup")
	ErrLinkInside    = errors.New("destinations lie within each other")
	ErrDBMissing     = errors.New("the backup has no such database")
	ErrDBInvalid     = errors.New("choice of databases contradicts itself")
)

// PlanRestore chooses the backup, loads its manifest, maps its directories and checks that nothing is in the way. It
// changes nothing. ErrNoBackup, ErrTargetNotEmpty, ErrTargetRunning and the errors above may be asked for.
func (s *Stanza) PlanRestore(ctx context.Context, o RestoreOptions) (*RestorePlan, error) {
	if o.Type == "" {
		o.Type = TargetDefault
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	o.DataDir = filepath.Clean(o.DataDir)
	o.ProcessMax = max(o.ProcessMax, 1)
	ai, aerr := s.loadArchiveInfo(ctx)
	bi, err := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	switch {
	case aerr != nil && (err != nil || ctx.Err() != nil || !errors.Is(aerr, ErrStanzaMissing) && !damaged(aerr)):
		return nil, aerr
	case err != nil:
		return nil, s.notLoaded(ctx, repo.BackupDir(s.o.Stanza)+"/backup.info", err)
	}
	label, err := s.chooseBackup(bi, o)
	if err != nil {
		return nil, err
	}
	m, err := repo.LoadManifest(ctx, s.o.Storage, s.o.Stanza, label, bi.CipherPass)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: backup %s: load the manifest: %w", s.o.Stanza, label, err)
	}
	p := &RestorePlan{Stanza: s.o.Stanza, Label: label, BackupStop: time.Unix(m.TimeStop, 0).UTC(), Version: m.DB.Version, SystemID: m.DB.SystemID,
		DataDir: o.DataDir, Type: o.Type, Target: o.Target, Files: len(m.Files), s: s, o: o, m: m}
	if m.ArchiveStart == "" && o.Type == TargetDefault {
		p.Type = TargetNone // an offline backup is consistent as it is
		if o.ArchiveModeOff || len(o.RecoveryOptions) > 0 {
			p.warnOnce("the backup is an offline one and restored with --type=none: no settings are written, archive mode and recovery options included; choose a --type to have them")
		}
	}
	for i := range m.Files {
		p.Bytes += m.Files[i].Size
	}
	if err := p.prepare(ctx, ai, aerr); err != nil {
		return nil, fmt.Errorf("stanza %s: backup %s: %w", s.o.Stanza, label, err)
	}
	if o.SkipTargetCheck {
		return p, nil
	}
	return p, p.checkTarget(ctx)
}

// withoutArchive decides what can be done when archive.info is lost: what needs no WAL but that of the backup itself.
func (p *RestorePlan) withoutArchive(aerr error) error {
	switch p.Type {
	case TargetNone, TargetPreserve, TargetImmediate:
		p.warnOnce(fmt.Sprintf("archive.info can't be used, and with it no WAL of the archive (%v): recovery has only what WAL the backup holds (archive-copy)", aerr))
		return nil
	}
	return fmt.Errorf("%w; the backup itself is there: with --type=immediate it recovers from the WAL in it, if there is any, with --type=none it comes back as it is", aerr)
}

// prepare does what needs the manifest and not the target. aerr says why there is no ai.
func (p *RestorePlan) prepare(ctx context.Context, ai *repo.ArchiveInfo, aerr error) error {
	var err error
	if p.version, err = pg.ParseVersion(p.m.DB.Version); err != nil {
		return err
	}
	if err := p.checkManifest(); err != nil {
		return err
	}
	if err := p.mapTargets(); err != nil {
		return err
	}
	if err := p.chooseDatabases(); err != nil {
		return err
	}
	p.warnOwners()
	if aerr != nil {
		return p.withoutArchive(aerr)
	}
	return p.checkTimeline(ctx, ai)
}

func (o *RestoreOptions) check() error {
	if o.DataDir == "" {
		return errors.New("no data directory given to restore to (--pg1-path)")
	}
	if !filepath.IsAbs(o.DataDir) {
		return fmt.Errorf("data directory %q: give an absolute path", o.DataDir)
	}
	switch o.Type {
	case TargetTime, TargetXID, TargetLSN, TargetName:
		if o.Target == "" {
			return fmt.Errorf("restore type %s needs a target (--target)", o.Type)
		}
	case TargetDefault, TargetImmediate, TargetStandby, TargetPreserve, TargetNone:
		if o.Target != "" {
			return fmt.Errorf("restore type %s takes no target: choose --type=time, xid, lsn or name", o.Type)
		}
	default:
		return fmt.Errorf("restore type %q: allowed are default, immediate, time, xid, lsn, name, standby, preserve, none", o.Type)
	}
	if o.Type == TargetLSN {
		if _, err := pg.ParseLSN(o.Target); err != nil {
			return fmt.Errorf("%w: %w", ErrTarget, err)
		}
	}
	if o.Type == TargetXID {
		if _, err := strconv.ParseUint(o.Target, 10, 64); err != nil {
			return fmt.Errorf("%w %q is not a transaction number", ErrTarget, o.Target)
		}
	}
	switch o.Action {
	case "", "pause", "promote", "shutdown":
	default:
		return fmt.Errorf("target action %q: allowed are pause, promote, shutdown", o.Action)
	}
	if o.Timeline != "" && o.Timeline != "current" && o.Timeline != "latest" {
		if n, err := parseTimeline(o.Timeline); err != nil || n == 0 {
			return fmt.Errorf("%w timeline %q: give a number, current or latest", ErrTarget, o.Timeline)
		}
	}
	writes := o.Type != TargetNone && o.Type != TargetPreserve
	if o.ArchiveModeOff && !writes {
		return fmt.Errorf("archive mode off is a recovery setting, and restore type %s writes none; choose another --type", o.Type)
	}
	for k := range o.RecoveryOptions {
		if k = strings.ReplaceAll(k, "-", "_"); !settingName().MatchString(k) {
			return fmt.Errorf("recovery option %q: not the name of a PostgreSQL setting", k)
		} else if k == "standby_mode" || k == "trigger_file" {
			return fmt.Errorf("recovery option %s: PostgreSQL 12 and later have no such setting; use --type=standby", k)
		}
	}
	if o.RestoreCommand == "" && writes {
		return errors.New("recovery needs a restore_command")
	}
	return nil
}

// chooseBackup follows the format page, section 16.2: for a time, the newest backup that stopped before it (in whole
// seconds, so that a stop within the target's second does not count); for a position, the newest that stopped at or before
// it; else the newest.
func (s *Stanza) chooseBackup(bi *repo.BackupInfo, o RestoreOptions) (repo.Label, error) {
	var after func(l repo.BackupLine) bool // the backup ended too late for the target
	switch o.Type {
	case TargetTime:
		t, err := ParseTargetTime(o.Target, s.o.Local)
		if err != nil && o.Set == "" {
			return "", fmt.Errorf("%w: no backup can be chosen for %w", ErrTarget, err)
		} else if err != nil {
			break // PostgreSQL knows more ways to write a time
		}
		after = func(l repo.BackupLine) bool { return l.TimeStop >= t.Unix() }
		if o.Set != "" { // the operator's choice, refused only when recovery must fail
			after = func(l repo.BackupLine) bool { return l.TimeStop > t.Unix() }
		}
	case TargetLSN:
		lsn, _ := pg.ParseLSN(o.Target) // checked before
		after = func(l repo.BackupLine) bool {
			stop, err := pg.ParseLSN(l.LSNStop)
			return err == nil && stop > lsn
		}
	}
	see := fmt.Sprintf("see: holdfast pg info --stanza=%s", s.o.Stanza)
	if o.Set != "" {
		l := bi.Find(o.Set)
		switch {
		case l == nil:
			return "", fmt.Errorf("stanza %s: %w: there is no backup %s; %s", s.o.Stanza, ErrNoBackup, o.Set, see)
		case after != nil && after(*l):
			return "", fmt.Errorf("stanza %s: %w: backup %s ended after the target %s, and recovery can't stop before its end; leave --set away to have an earlier one chosen; %s",
				s.o.Stanza, ErrNoBackup, o.Set, o.Target, see)
		}
		return o.Set, nil
	}
	for i := len(bi.Backups) - 1; i >= 0; i-- {
		l := bi.Backups[i]
		switch {
		// Positions of two clusters can't be compared; a time can.
		case (after == nil || o.Type == TargetLSN) && l.DBID != bi.Current:
			return "", fmt.Errorf("stanza %s: %w: the newest one left, %s, is of the cluster before the last stanza-upgrade; take a backup, or name the old one with --set; %s",
				s.o.Stanza, ErrNoBackup, l.Label, see)
		case o.Type == TargetLSN && l.LSNStop == "": // an offline backup: older ones are not compared across it
			i = 0
		case after == nil || !after(l):
			return l.Label, nil
		}
	}
	what := "the repository has none"
	switch o.Type {
	case TargetTime:
		what = "none ended before " + o.Target
	case TargetLSN:
		what = "none ended at or before " + o.Target
	}
	return "", fmt.Errorf("stanza %s: %w: %s; %s", s.o.Stanza, ErrNoBackup, what, see)
}

// ParseTargetTime reads YYYY-MM-DD HH:MM:SS[.fraction][±zone], also with a T between date and time; without zone it is in
// local. Names of zones but UTC and GMT are refused, as PostgreSQL does: some stand for several.
func ParseTargetTime(v string, local *time.Location) (time.Time, error) {
	t, _, err := parseTargetTime(v, local)
	return t, err
}

// parseTargetTime also gives the time as PostgreSQL is told it: always with its zone in numbers, for the server's own may be
// another than that by which the backup was chosen.
func parseTargetTime(v string, local *time.Location) (t time.Time, told string, err error) {
	text := v
	if len(v) > 10 && v[10] == 'T' {
		text = v[:10] + " " + v[11:]
	}
	const layout = "2006-01-02 15:04:05"
	if t, err := time.ParseInLocation(layout, text, local); err == nil {
		return t, v + t.Format("-07:00"), nil
	}
	for _, zone := range []string{"Z07:00", "Z0700", "Z07"} {
		if t, err := time.Parse(layout+zone, text); err == nil {
			return t, v, nil
		}
	}
	for _, zone := range []string{" UTC", " GMT"} {
		if t, err := time.Parse(layout+zone, text); err == nil {
			return t, strings.TrimSuffix(v, zone) + "+00", nil
		}
	}
	return time.Time{}, "", fmt.Errorf("time %q: write YYYY-MM-DD HH:MM:SS, with fraction and zone (+02) if wanted", v)
}
