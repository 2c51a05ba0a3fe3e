package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

	Delta bool // keep what is in DataDir where it matches, remove what does not belong
	Force bool // overwrite what is in DataDir; with Delta: trust size and time stamp instead of checksums

	DBInclude []string // names or oids: all other user databases become empty shells to be dropped
	DBExclude []string // names or oids: these databases become empty shells

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
	Files       int               `json:"files"`
	Bytes       int64             `json:"bytes"` // to be written
	Warnings    []string          `json:"warnings,omitempty"`

	s       *Stanza
	o       RestoreOptions
	m       *repo.Manifest
	version pg.Version
	roots   []restoreRoot // longest manifest prefix first
}

// restoreRoot maps a manifest directory to a directory on disk.
type restoreRoot struct {
	prefix string // "pg_data", "pg_data/<link>", "pg_tblspc/<oid>"
	dir    string // absolute
	root   *os.Root
}

// PlanRestore chooses the backup, loads its manifest, maps its directories and checks that nothing is in the way. It
// changes nothing. ErrNoBackup, ErrTargetNotEmpty and ErrTargetRunning may be asked for.
func (s *Stanza) PlanRestore(ctx context.Context, o RestoreOptions) (*RestorePlan, error) {
	if o.Type == "" {
		o.Type = TargetDefault
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	o.DataDir = filepath.Clean(o.DataDir)
	o.ProcessMax = max(o.ProcessMax, 1)
	_, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	label, err := s.chooseBackup(bi, o)
	if err != nil {
		return nil, err
	}
	m, err := repo.LoadManifest(ctx, s.o.Storage, s.o.Stanza, label, bi.CipherPass)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: backup %s: load the manifest: %w", s.o.Stanza, label, err)
	}
	version, err := pg.ParseVersion(m.DB.Version)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: backup %s: %w", s.o.Stanza, label, err)
	}
	p := &RestorePlan{Stanza: s.o.Stanza, Label: label, BackupStop: time.Unix(m.TimeStop, 0).UTC(), Version: m.DB.Version, SystemID: m.DB.SystemID,
		DataDir: o.DataDir, Type: o.Type, Target: o.Target, s: s, o: o, m: m, version: version}
	if m.ArchiveStart == "" && o.Type == TargetDefault {
		p.Type = TargetNone // an offline backup is consistent as it is
	}
	for i := range m.Files {
		if m.Files[i].BlockMapSize > 0 {
			return nil, fmt.Errorf("stanza %s: backup %s holds block incremental files, which this version can't read; restore it with pgbackrest 2.46 or later", s.o.Stanza, label)
		}
		p.Bytes += m.Files[i].Size
	}
	p.Files = len(m.Files)
	if err := p.mapTargets(); err != nil {
		return nil, fmt.Errorf("stanza %s: backup %s: %w", s.o.Stanza, label, err)
	}
	if o.SkipTargetCheck {
		return p, nil
	}
	if pid, running, err := pg.Running(o.DataDir); err != nil {
		return nil, err
	} else if running {
		return nil, fmt.Errorf("%w: %s (process %d): stop it first: pg_ctl stop -D %s", ErrTargetRunning, o.DataDir, pid, o.DataDir)
	}
	return p, p.checkEmpty()
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
			return err
		}
	}
	if o.Type == TargetXID {
		if _, err := strconv.ParseUint(o.Target, 10, 64); err != nil {
			return fmt.Errorf("target %q is not a transaction number", o.Target)
		}
	}
	switch o.Action {
	case "", "pause", "promote", "shutdown":
	default:
		return fmt.Errorf("target action %q: allowed are pause, promote, shutdown", o.Action)
	}
	if o.Timeline != "" && o.Timeline != "current" && o.Timeline != "latest" {
		if _, err := strconv.ParseUint(o.Timeline, 0, 32); err != nil {
			return fmt.Errorf("target timeline %q: give a number, current or latest", o.Timeline)
		}
	}
	if o.RestoreCommand == "" && o.Type != TargetNone && o.Type != TargetPreserve {
		return errors.New("recovery needs a restore_command")
	}
	return nil
}

// chooseBackup follows the format page, section 16.2.
func (s *Stanza) chooseBackup(bi *repo.BackupInfo, o RestoreOptions) (repo.Label, error) {
	if o.Set != "" {
		if !slices.ContainsFunc(bi.Backups, func(l repo.BackupLine) bool { return l.Label == o.Set }) {
			return "", fmt.Errorf("stanza %s: %w: there is no backup %s; see: holdfast pg info --stanza=%s", s.o.Stanza, ErrNoBackup, o.Set, s.o.Stanza)
		}
		return o.Set, nil
	}
	fits := func(repo.BackupLine) bool { return true }
	what := "the repository has no backup of the current cluster"
	switch o.Type {
	case TargetTime:
		t, err := ParseTargetTime(o.Target, s.o.Local)
		if err != nil {
			return "", err
		}
		fits = func(l repo.BackupLine) bool { return l.TimeStop < t.Unix() }
		what = "no backup ended before " + o.Target
	case TargetLSN:
		lsn, _ := pg.ParseLSN(o.Target) // checked before
		fits = func(l repo.BackupLine) bool {
			stop, err := pg.ParseLSN(l.LSNStop)
			return err == nil && stop <= lsn
		}
		what = "no backup ended at or before " + o.Target
	}
	for i := len(bi.Backups) - 1; i >= 0; i-- {
		l := bi.Backups[i]
		if l.DBID == bi.Current && fits(l) {
			return l.Label, nil
		}
	}
	return "", fmt.Errorf("stanza %s: %w: %s; see: holdfast pg info --stanza=%s", s.o.Stanza, ErrNoBackup, what, s.o.Stanza)
}

// ParseTargetTime reads YYYY-MM-DD HH:MM:SS[.fraction][±zone]; without zone it is in local.
func ParseTargetTime(v string, local *time.Location) (time.Time, error) {
	for _, layout := range []string{"2006-01-02 15:04:05Z07:00", "2006-01-02 15:04:05Z0700", "2006-01-02 15:04:05Z07"} {
		if t, err := time.Parse(layout, strings.Replace(v, "T", " ", 1)); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"2006-01-02 15:04:05 MST", "2006-01-02 15:04:05"} {
		if t, err := time.ParseInLocation(layout, strings.Replace(v, "T", " ", 1), local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("target time %q: write YYYY-MM-DD HH:MM:SS, with fraction and zone (+02) if wanted", v)
}

// mapTargets decides where each manifest directory goes.
func (p *RestorePlan) mapTargets() error {
	p.Tablespaces, p.Links = map[string]string{}, map[string]string{}
	p.roots = []restoreRoot{{prefix: "pg_data", dir: p.o.DataDir}}
	used := map[string]bool{}
	var linkLeft int
	for _, t := range p.m.Targets {
		switch {
		case !t.Link:
		case t.TablespaceID != "":
			dir, ok := p.o.TablespaceMap[t.TablespaceName]
			if d, byID := p.o.TablespaceMap[t.TablespaceID]; byID {
				dir, ok = d, true
				used[t.TablespaceID] = true
			}
			used[t.TablespaceName] = true
			if !ok && p.o.TablespaceMapAll != "" {
				dir, ok = filepath.Join(p.o.TablespaceMapAll, t.TablespaceName), true
			}
			if !ok {
				dir = p.relocate(t.Path)
			}
			if !filepath.IsAbs(dir) {
				dir = filepath.Join(p.o.DataDir, "pg_tblspc", dir)
			}
			p.Tablespaces[t.TablespaceName] = filepath.Clean(dir)
			p.roots = append(p.roots, restoreRoot{prefix: "pg_tblspc/" + t.TablespaceID, dir: filepath.Clean(dir)})
		default:
			rel := strings.TrimPrefix(t.Name, "pg_data/")
			dest, mapped := p.o.LinkMap[rel]
			if !mapped && !p.o.LinkAll {
				linkLeft++
				continue
			}
			used["link:"+rel] = true
			if !mapped {
				dest = filepath.Join(t.Path, t.File)
			}
			p.Links[rel] = dest
			if t.File == "" {
				abs := dest
				if !filepath.IsAbs(abs) {
					abs = filepath.Join(p.o.DataDir, filepath.Dir(rel), dest)
				}
				p.roots = append(p.roots, restoreRoot{prefix: t.Name, dir: filepath.Clean(abs)})
			}
		}
	}
	if linkLeft > 0 {
		p.Warnings = append(p.Warnings, fmt.Sprintf("%d link(s) of the data directory become plain files and directories in it; use --link-all or --link-map to keep them", linkLeft))
	}
	for k := range p.o.TablespaceMap {
		if !used[k] {
			return fmt.Errorf("tablespace map: the backup has no tablespace %q", k)
		}
	}
	for k := range p.o.LinkMap {
		if !used["link:"+k] {
			return fmt.Errorf("link map: the backup has no link %q", k)
		}
	}
	slices.SortFunc(p.roots, func(a, b restoreRoot) int { return len(b.prefix) - len(a.prefix) })
	for i, a := range p.roots {
		for _, b := range p.roots[i+1:] {
			if within(a.dir, b.dir) || within(b.dir, a.dir) {
				return fmt.Errorf("%s and %s would be restored into each other: %s, %s; use --tablespace-map or --link-map", a.prefix, b.prefix, a.dir, b.dir)
			}
		}
	}
	return nil
}

// relocate moves a path from below RootFrom to below RootTo.
func (p *RestorePlan) relocate(dir string) string {
	if p.o.RootFrom != "" && p.o.RootTo != "" && within(dir, p.o.RootFrom) {
		return filepath.Join(p.o.RootTo, strings.TrimPrefix(dir, p.o.RootFrom))
	}
	return dir
}

// TablespaceDirs are the directories, one per tablespace, that the restore will fill: what stands there must be moved
// away before.
func (p *RestorePlan) TablespaceDirs() []string {
	var dirs []string
	for _, r := range p.roots {
		if strings.HasPrefix(r.prefix, "pg_tblspc/") {
			dirs = append(dirs, filepath.Join(r.dir, p.version.TablespaceDirName()))
		}
	}
	slices.Sort(dirs)
	return dirs
}

// checkEmpty refuses directories that hold anything, naming all of them.
func (p *RestorePlan) checkEmpty() error {
	var full []string
	for _, r := range p.roots {
		dir := r.dir
		if strings.HasPrefix(r.prefix, "pg_tblspc/") {
			dir = filepath.Join(dir, p.version.TablespaceDirName()) // other versions' directories may stand beside
		}
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() != "lost+found" }) {
			full = append(full, dir)
		}
	}
	if len(full) > 0 {
		return fmt.Errorf("%w: %s: move it away or restore to another directory; nothing was changed", ErrTargetNotEmpty, strings.Join(full, ", "))
	}
	return nil
}

// place is the root and the path below it of a manifest name.
func (p *RestorePlan) place(name string) (*restoreRoot, string) {
	for i := range p.roots {
		r := &p.roots[i]
		if name == r.prefix {
			return r, "."
		}
		if rest, ok := strings.CutPrefix(name, r.prefix+"/"); ok {
			return r, rest
		}
	}
	return nil, ""
}
