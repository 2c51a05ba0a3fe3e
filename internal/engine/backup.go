package engine

import (
	"bytes"
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
	"holdfast/internal/storage"
)

// BackupOptions chooses what a backup is made of and how it is stored.
type BackupOptions struct {
	Type           repo.BackupType // empty: Full. Diff and Incr become Full, with a warning, when there is nothing to build on
	Conn           pg.ConnOptions
	DataDir        string
	Fast           bool // ask for an immediate checkpoint instead of waiting for the next one
	Compress       repo.CompressType
	Level          int
	ProcessMax     int   // workers that copy files; at least 1
	ChecksumPage   *bool // nil: as the cluster has data checksums
	NoPageHeaders  bool  // the cluster encrypts its pages: of their headers only the checksum is looked at
	ArchiveCheck   bool  // wait for the WAL that the backup needs
	ArchiveCopy    bool  // store that WAL in the backup too; needs ArchiveCheck
	ArchiveTimeout time.Duration
	RefuseAlways   bool     // archive_mode=always is an error, with ArchiveCheck
	Exclude        []string // paths relative to the data directory; a trailing slash leaves out contents only
	Annotations    map[string]string

	Delta         bool  // diff, incr, resume: tell unchanged files by their checksums, not by size and time stamp
	Bundle        bool  // store small files together
	BundleSize    int64 // bytes of original files in one bundle; 0: 20 MiB
	BundleLimit   int64 // largest file that is bundled, bytes; 0: 2 MiB
	Block         bool  // block incremental: store the blocks that changed instead of whole files
	BlockSizes    BlockSizes
	Hardlink      bool  // link unchanged files into a diff or incr; only on a file system, not with Bundle
	Resume        bool  // a full backup takes over what an interrupted one left
	Rate          int64 // bytes of original files read per second, by all workers together; 0: no limit
	SaveThreshold int64 // bytes copied between two saves of the unfinished manifest; 0: 1 GiB

	Offline bool // the server is stopped: no session, no WAL
	Force   bool // Offline although there is a postmaster.pid

	Standby        StandbyMode    // where most files are read
	StandbyConn    pg.ConnOptions // the standby's session
	StandbyDataDir string         // the standby's data directory, on this host
	Remote         bool           // the primary is on another host: every file is read from the standby; DataDir is not used
}

// StandbyMode says whether a backup reads the bulk of the files from a standby.
type StandbyMode string

const (
	StandbyNo     StandbyMode = ""       // everything from the primary
	StandbyYes    StandbyMode = "y"      // from the standby, or the backup fails
	StandbyPrefer StandbyMode = "prefer" // from the standby if it answers, else from the primary
)

// BackupPlan is what a backup would do, computed without any change to cluster or repository.
type BackupPlan struct {
	Stanza       string            `json:"stanza"`
	Type         repo.BackupType   `json:"type"`            // what it will be
	Why          string            `json:"why,omitempty"`   // why it is of this type; set by who chose the type
	Prior        repo.Label        `json:"prior,omitempty"` // the backup that a diff or incr builds on
	PriorVersion string            `json:"-"`               // of the program that made it
	DataDir      string            `json:"data_dir"`
	Version      string            `json:"pg_version"`
	SystemID     uint64            `json:"system_id"`
	Files        int               `json:"files"`           // to copy
	Bytes        int64             `json:"bytes"`           // original bytes to copy, or to compare
	Unchanged    int               `json:"unchanged"`       // files left to the backups before
	UnchangedB   int64             `json:"unchanged_bytes"` // their original bytes
	Compress     repo.CompressType `json:"compress"`
	ChecksumPage bool              `json:"checksum_page"`
	Warnings     []string          `json:"warnings,omitempty"`

	s       *Stanza
	o       BackupOptions
	control pg.Control
	prior   *repo.Manifest // nil for a full backup
	level   int            // of the compression
}

// BackupResult is what a finished backup says of itself.
type BackupResult struct {
	Label        repo.Label      `json:"label"`
	Line         repo.BackupLine `json:"line"`
	DB           repo.DB         `json:"db"`
	ArchiveStart string          `json:"archive_start"`
	ArchiveStop  string          `json:"archive_stop"`
	Duration     time.Duration   `json:"duration_ns"`
	PageErrors   []string        `json:"page_errors,omitempty"` // files with bad pages: recorded, never fatal
	Vanished     int             `json:"vanished"`
}

// PlanBackup connects, checks cluster and stanza against each other, chooses the backup to build on and looks at the files
// of the data directory.
func (s *Stanza) PlanBackup(ctx context.Context, o BackupOptions) (*BackupPlan, error) {
	if err := o.complete(); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	ai, bi, dirs, err := s.loadAll(ctx)
	if err != nil {
		return nil, err
	}
	if _, _, err := s.reconcileReadable(ctx, bi, dirs); err != nil { // Run tells what it finds
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	control, err := s.readControl(ctx, o.DataDir)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	if err := s.matches(ai, bi, control); err != nil {
		return nil, err
	}
	p := &BackupPlan{Stanza: s.o.Stanza, Type: o.Type, DataDir: o.DataDir, Version: control.Version.String(), SystemID: control.SystemID,
		s: s, o: o, control: control}
	warn := func(f string, a ...any) { p.Warnings = append(p.Warnings, fmt.Sprintf(f, a...)) }
	if err := p.look(ctx); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	if err := p.settle(ctx, bi, warn); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	sc := p.newScan(ctx, &repo.Manifest{Bundle: o.Bundle}, nil)
	sc.m.Options.Online = !o.Offline
	sc.warn = warn
	if err := sc.run(); err != nil {
		return nil, fmt.Errorf("stanza %s: look through %s: %w", s.o.Stanza, o.DataDir, err)
	}
	work, _ := p.merge(sc.m, fmt.Sprintf("%08X", control.CheckpointTimeline), s.o.Now().Unix()+1, o.Delta, warn)
	for _, t := range work {
		p.Files++
		p.Bytes += sc.m.Files[t.index].Size
	}
	for i := range sc.m.Files {
		p.UnchangedB += sc.m.Files[i].Size
	}
	p.Unchanged, p.UnchangedB = len(sc.m.Files)-p.Files, p.UnchangedB-p.Bytes
	p.prior = nil // Run loads it again, under the lock
	return p, nil
}

// complete sets defaults and refuses what does not go together.
func (o *BackupOptions) complete() error {
	switch o.Type {
	case "":
		o.Type = repo.Full
	case repo.Full, repo.Diff, repo.Incr:
	default:
		return fmt.Errorf("backup type %q: allowed are full, diff, incr", o.Type)
	}
	o.ProcessMax = max(o.ProcessMax, 1)
	if o.ArchiveTimeout <= 0 {
		o.ArchiveTimeout = time.Minute
	}
	for _, v := range []struct {
		at    *int64
		value int64
	}{{&o.BundleSize, defaultBundleSize}, {&o.BundleLimit, defaultBundleLimit}, {&o.SaveThreshold, defaultSaveThreshold}} {
		if *v.at <= 0 {
			*v.at = v.value
		}
	}
	if o.Offline {
		o.ArchiveCheck = false
	}
	if o.Remote {
		o.DataDir = o.StandbyDataDir
	}
	if err := o.BlockSizes.complete(); err != nil {
		return err
	}
	switch {
	case o.Hardlink && o.Bundle:
		return errors.New("hard links and bundles exclude each other: files in a bundle can't be linked")
	case o.ArchiveCopy && !o.ArchiveCheck:
		return errors.New("WAL can only be copied into the backup (archive-copy) when it is waited for (archive-check) and the server is running")
	case o.Remote && o.Standby == StandbyNo:
		return errors.New("the primary is on another host, where its files can't be read: back up from a standby on this host (backup-standby), or on that host")
	case o.Offline && o.Standby != StandbyNo:
		return errors.New("a backup from a standby needs a running server")
	}
	return nil
}

// look asks the server about itself, or makes sure that there is none.
func (p *BackupPlan) look(ctx context.Context) error {
	if p.o.Offline {
		if _, err := os.Stat(filepath.Join(p.o.DataDir, "postmaster.pid")); err == nil {
			if !p.o.Force {
				return fmt.Errorf("%w: %s has a postmaster.pid; stop the server for an offline backup, or make an online one", ErrTargetRunning, p.o.DataDir)
			}
			p.Warnings = append(p.Warnings, "the data directory has a postmaster.pid: if the server runs, this backup is not consistent")
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		p.decidePages()
		return nil
	}
	conn, err := pg.Connect(ctx, p.o.Conn)
	if err != nil {
		return err
	}
	facts, err := conn.Facts(ctx)
	if err == nil {
		err = p.check(ctx, conn, facts)
	}
	return errors.Join(err, conn.Close())
}

// check compares the running server with the data directory and decides on page checksums.
func (p *BackupPlan) check(ctx context.Context, conn *pg.Conn, f pg.ServerFacts) error {
	if p.o.Remote {
		if f.SystemID != p.control.SystemID {
			return fmt.Errorf("the primary at %s has system identifier %d, the standby's %s has %d: they are different clusters", p.o.Conn.Host, f.SystemID, p.o.DataDir, p.control.SystemID)
		}
	} else if err := sameCluster(f, p.control, p.o.DataDir); err != nil {
		return err
	}
	if f.InRecovery {
		return errors.New("the server is a standby (in recovery): back up the primary")
	}
	if p.o.ArchiveCheck {
		if err := archiveSettings(ctx, conn, f, p.o.RefuseAlways); err != nil {
			return err
		}
	}
	p.decidePages()
	return nil
}

func (p *BackupPlan) decidePages() {
	p.ChecksumPage = p.control.DataChecksumVersion != 0
	if want := p.o.ChecksumPage; want != nil {
		if *want && !p.ChecksumPage {
			p.Warnings = append(p.Warnings, "the cluster has no data checksums: page checksums are not verified")
		}
		p.ChecksumPage = p.ChecksumPage && *want
	}
}

func realPath(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return filepath.Clean(p)
}

func (p *BackupPlan) newScan(ctx context.Context, m *repo.Manifest, spaces []pg.Tablespace) *scan {
	sc := &scan{ctx: ctx, m: m, root: filepath.Clean(p.o.DataDir), version: p.control.Version, spaceDir: p.control.Version.TablespaceDirOf(p.control.CatalogVersion), online: !p.o.Offline, names: newOwnerNames(), warn: p.s.warn,
		exclude: make(map[string]bool)}
	for _, e := range p.o.Exclude {
		sc.exclude["pg_data/"+e] = true
	}
	if spaces != nil {
		sc.spaces = make(map[string]pg.Tablespace)
		for _, t := range spaces {
			sc.spaces[strconv.FormatUint(uint64(t.OID), 10)] = t
		}
	}
	return sc
}

// Run makes the backup. On error, or when ctx is cancelled, PostgreSQL is out of backup mode and the repository's backups
// are as before; what was copied is resumed or removed by the next backup. Result.Label exists once Run returns nil.
func (p *BackupPlan) Run(ctx context.Context) (*BackupResult, error) {
	s := p.s
	if err := s.stopped(); err != nil {
		return nil, err
	}
	release, err := s.lock("backup")
	if err != nil {
		return nil, err
	}
	res, err := p.run(ctx)
	if err = errors.Join(err, release()); err != nil {
		return nil, fmt.Errorf("backup of stanza %s: %w", s.o.Stanza, err)
	}
	return res, nil
}

// backupRun is the state of one running backup.
type backupRun struct {
	*BackupPlan
	began   time.Time
	ai      *repo.ArchiveInfo
	bi      *repo.BackupInfo
	db      repo.DB
	conn    *pg.Conn // nil when offline
	standby *standby // nil: everything is read from the primary
	m       *repo.Manifest
	sc      *scan
	newest  repo.Label     // the label must sort after it
	resume  *repo.Manifest // of an interrupted run that this one takes over
	delta   bool           // time stamps are not trusted
	scanned time.Time      // when the files' time stamps were known

	compareResumed bool // nor are those of the interrupted run
	rate           *rate
	start          pg.BackupStarted
	started        time.Time // by our clock
	tli            uint32
	saved          saved // the manifest of the unfinished backup
	res            BackupResult
}

func (p *BackupPlan) run(ctx context.Context) (*BackupResult, error) {
	r := &backupRun{BackupPlan: p, began: p.s.o.Now(), rate: newRate(p.o.Rate, p.s.o.Now)}
	if err := r.prepare(ctx); err != nil {
		return nil, err
	}
	var err error
	if p.o.Offline {
		err = r.copyOffline(ctx)
	} else {
		err = r.copyOnline(ctx)
	}
	if err != nil {
		return nil, err
	}
	if err := r.awaitWAL(ctx); err != nil {
		return nil, err
	}
	if err := r.publish(ctx); err != nil {
		return nil, err
	}
	r.letLabelPass(ctx)
	r.res.Duration = p.s.o.Now().Sub(r.began)
	return &r.res, nil
}

// copyOnline copies the files of a running cluster, between pg_backup_start and pg_backup_stop.
func (r *backupRun) copyOnline(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, r.disconnect()) }() // closing the session takes PostgreSQL out of backup mode
	if err := r.connect(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work, err := r.begin(ctx)
	if err != nil {
		return err
	}
	waited := make(chan error, 1)
	go func() {
		err := r.awaitFirst(ctx)
		if err != nil {
			cancel(err) // broken archiving ends the copy early instead of after it
		}
		waited <- err
	}()
	err = r.copyFiles(ctx, work)
	if err != nil {
		cancel(err) // ends the wait at once
	}
	if werr := <-waited; werr != nil && !errors.Is(werr, context.Canceled) {
		err = werr
	}
	if err == nil {
		err = r.stillStandby(ctx)
	}
	if err == nil {
		err = r.stop(ctx)
	}
	if err == nil { // a store may still be sending backup_label, under the context that ends here
		err = wrap(r.s.o.Storage.Sync(ctx), "sync the repository")
	}
	return err
}

// copyOffline copies the files of a stopped cluster. A server that runs for a moment of it, whether or not it is there at the
// end, changes pg_control.
func (r *backupRun) copyOffline(ctx context.Context) error {
	r.start.Time = r.s.o.Now()
	r.started = r.start.Time
	_, before, err := pg.ReadControlAs(ctx, r.o.DataDir, r.s.o.PGVersion)
	if err != nil {
		return err
	}
	work, err := r.scan(ctx, nil, nil)
	if err != nil {
		return err
	}
	if err := r.copyFiles(ctx, work); err != nil {
		return err
	}
	_, after, err := pg.ReadControlAs(ctx, r.o.DataDir, r.s.o.PGVersion)
	if err != nil {
		return err
	}
	_, err = os.Stat(filepath.Join(r.o.DataDir, "postmaster.pid"))
	if (err == nil || !bytes.Equal(before, after)) && !r.o.Force {
		return fmt.Errorf("%w: the server was started during the offline backup", ErrTargetRunning)
	}
	r.m.TimeStop = r.s.o.Now().Unix()
	return nil
}

// prepare loads the info files under the lock and deals with what interrupted runs left.
func (r *backupRun) prepare(ctx context.Context) error {
	s := r.s
	s.step("backup", "prepare", s.o.Stanza)
	var err error
	var dirs []repo.LabelDir
	if r.ai, r.bi, dirs, err = s.loadAll(ctx); err != nil {
		return err
	}
	if err := s.matches(r.ai, r.bi, r.control); err != nil {
		return err
	}
	added, warnings, err := s.reconcileReadable(ctx, r.bi, dirs)
	if err != nil {
		return err
	}
	for _, w := range warnings {
		s.warn("%s", w)
	}
	if err := s.completeHistory(ctx, r.bi, added); err != nil {
		return err
	}
	r.db = r.bi.DB()
	if err := r.settle(ctx, r.bi, func(string, ...any) {}); err != nil { // the plan has said it all
		return err
	}
	var full repo.Label // of the set that this backup goes into; a full backup comes after every other
	if r.prior != nil {
		full = r.prior.Label.FullLabel()
	}
	if r.newest, err = repo.NewestLabel(ctx, s.o.Storage, s.o.Stanza, full); err != nil {
		return err
	}
	for _, l := range r.bi.Backups {
		if full == "" || l.Label.FullLabel() == full {
			r.newest = max(r.newest, l.Label)
		}
	}
	return r.clearUnfinished(ctx, dirs)
}

func (r *backupRun) connect(ctx context.Context) (err error) {
	if r.conn, err = pg.Connect(ctx, r.o.Conn); err != nil || r.o.Standby == StandbyNo {
		return err
	}
	r.standby, err = r.findStandby(ctx)
	if err != nil && r.o.Standby == StandbyPrefer && !r.o.Remote && ctx.Err() == nil {
		r.s.warn("no standby to read from, the primary serves the whole backup: %v", err)
		return nil
	}
	return err
}

func (r *backupRun) disconnect() error {
	var errs []error
	if r.standby != nil {
		errs = append(errs, r.standby.conn.Close())
	}
	if r.conn != nil {
		errs = append(errs, r.conn.Close())
	}
	return errors.Join(errs...)
}

// removeTree deletes every object below dir, in batches; on a file system also directories and links.
func (s *Stanza) removeTree(ctx context.Context, dir string) error {
	if l := s.linker(); l != nil {
		return wrap(l.RemoveTree(ctx, dir), "remove %s", dir)
	}
	var names []string
	flush := func() error {
		err := s.o.Storage.Remove(ctx, names...)
		names = names[:0]
		return wrap(err, "remove %s", dir)
	}
	for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{Recursive: true}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		if names = append(names, info.Name); len(names) == 1000 {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// begin puts PostgreSQL into backup mode and builds the manifest and the list of files to copy.
func (r *backupRun) begin(ctx context.Context) ([]todo, error) {
	s := r.s
	s.step("backup", "start", "pg_backup_start")
	var err error
	label := "pgBackRest backup started at " + s.o.Now().In(s.o.Local).Format("2006-01-02 15:04:05 -07")
	if r.start, err = r.conn.BackupStart(ctx, label, r.o.Fast); err != nil {
		return nil, err
	}
	r.started = s.o.Now()
	s.step("backup", "started", fmt.Sprintf("%s, lsn = %s", r.start.Segment, r.start.LSN))
	if r.standby != nil {
		s.step("backup", "standby", r.o.StandbyDataDir)
		if err := r.standby.conn.AwaitReplay(ctx, r.start.LSN, r.o.ArchiveTimeout); err != nil {
			return nil, err
		}
	}
	control, err := s.readControl(ctx, r.o.DataDir)
	if err != nil {
		return nil, err
	}
	tli, err := strconv.ParseUint(r.start.Segment[:8], 16, 32)
	if err != nil {
		return nil, fmt.Errorf("WAL segment name %q: %w", r.start.Segment, err)
	}
	r.tli = uint32(tli)
	if control.Checkpoint < r.start.LSN || control.CheckpointTimeline != r.tli {
		return nil, fmt.Errorf("pg_control of %s has checkpoint %s on timeline %d, but the backup started at %s on timeline %d: the data directory is not that of the server which answers",
			r.o.DataDir, control.Checkpoint, control.CheckpointTimeline, r.start.LSN, r.tli)
	}
	r.control = control
	if err := r.ensureHistory(ctx); err != nil {
		return nil, err
	}
	spaces, err := r.conn.Tablespaces(ctx)
	if err != nil {
		return nil, err
	}
	dbs, err := r.conn.Databases(ctx)
	if err != nil {
		return nil, err
	}
	return r.scan(ctx, spaces, dbs)
}

// scan builds the manifest from the data directory, decides what is to be copied, names the backup and saves the manifest
// so that the run can be resumed.
func (r *backupRun) scan(ctx context.Context, spaces []pg.Tablespace, dbs []pg.Database) ([]todo, error) {
	s := r.s
	r.m = r.newManifest(dbs)
	r.sc = r.newScan(ctx, r.m, spaces)
	s.step("backup", "manifest", r.o.DataDir)
	if err := r.sc.run(); err != nil {
		return nil, fmt.Errorf("look through %s: %w", r.o.DataDir, err)
	}
	// One second later than now: see jobs, which holds back files whose time stamp could still stay the same.
	r.scanned = s.o.Now()
	r.m.TimeCopyStart = r.scanned.Unix() + 1
	timeline := ""
	if !r.o.Offline {
		timeline = r.start.Segment[:8]
	}
	var work []todo
	work, r.delta = r.merge(r.m, timeline, r.m.TimeCopyStart, r.o.Delta, s.warn)
	r.m.Options.Delta = r.delta
	if err := r.name(); err != nil {
		return nil, err
	}
	if err := r.resumeFiles(ctx, work); err != nil {
		return nil, err
	}
	return work, r.saveCopy(ctx)
}

// name gives the backup its label and its place in the list of references.
func (r *backupRun) name() error {
	if r.resume != nil {
		r.m.Label, r.m.CipherPass = r.resume.Label, r.resume.CipherPass
		r.m.References = []repo.Label{r.m.Label}
		return nil
	}
	var full repo.Label
	if r.prior != nil {
		full = r.prior.Label.FullLabel()
		r.m.References = slices.Clone(r.prior.References)
	}
	var err error
	if r.m.Label, err = repo.NewLabel(r.start.Time.In(r.s.o.Local), r.Type, full, r.newest); err != nil {
		return err
	}
	r.m.References = append(r.m.References, r.m.Label)
	return nil
}

// labelWait bounds how long a backup waits for the second in its label. A label further ahead is one of a clock that was put back.
const labelWait = 3 * time.Second

// letLabelPass waits, after backups in quick succession, until the second in the label has begun. The original shifts the label of
// its own next backup by one second and refuses it when that is not enough. A context that ends ends the wait: the backup is complete.
func (r *backupRun) letLabelPass(ctx context.Context) {
	if ahead := r.m.Label.Ahead(r.start.Time.In(r.s.o.Local)); ahead <= labelWait {
		_ = sleepUntil(ctx, r.s.o.Now, r.started.Add(ahead), labelWait)
	}
}

// ensureHistory puts the history file of the current timeline into the archive if it is not there. PostgreSQL hands it to
// archive_command once, at promotion; a repository that came into use later would never see it, and recovery refuses a
// timeline without it.
func (r *backupRun) ensureHistory(ctx context.Context) error {
	if r.tli == 1 {
		return nil
	}
	name := fmt.Sprintf("%08X.history", r.tli)
	object := repo.ArchiveDir(r.s.o.Stanza) + "/" + repo.ArchiveID(r.db.Version, r.db.ID) + "/" + name
	if _, err := r.s.o.Storage.Stat(ctx, object); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return wrap(err, "look for %s", object)
	}
	f, err := os.Open(filepath.Join(r.o.DataDir, "pg_wal", name))
	if err != nil {
		return fmt.Errorf("the history of timeline %d is neither in the archive nor in the data directory: %w", r.tli, err)
	}
	err = r.s.store(ctx, object, repo.StreamSpec{Compress: repo.None, Pass: r.ai.CipherPass}, f, "")
	return wrap(errors.Join(err, f.Close()), "archive %s", name)
}

func (r *backupRun) newManifest(dbs []pg.Database) *repo.Manifest {
	m := &repo.Manifest{BackrestVersion: r.s.o.Version, Type: r.Type, Prior: r.Prior, TimeStart: r.start.Time.Unix(), DB: r.db, Annotations: r.o.Annotations,
		Bundle: r.o.Bundle, BlockIncr: r.o.Block,
		Options: repo.ManifestOptions{ArchiveCheck: r.o.ArchiveCheck, ArchiveCopy: r.o.ArchiveCopy, BackupStandby: r.standby != nil,
			ChecksumPage: r.ChecksumPage, Compress: r.Compress != repo.None, Hardlink: r.o.Hardlink, Online: !r.o.Offline,
			BufferSize: copyBuffer, CompressLevel: r.level, CompressLevelNetwork: 1, CompressType: r.Compress, ProcessMax: r.o.ProcessMax}}
	if !r.o.Offline {
		m.LSNStart, m.ArchiveStart = r.start.LSN.String(), r.start.Segment
	}
	if r.prior != nil {
		m.CipherPass, m.BundleRaw = r.prior.CipherPass, r.prior.BundleRaw
	} else {
		m.CipherPass, m.BundleRaw = r.s.subPass(), r.o.Block
	}
	for _, d := range dbs {
		if strings.ContainsAny(d.Name, "\n\x00") { // the list serves to choose databases at a restore, nothing else
			r.s.warn("database %q: the repository format can't hold its name; its files are backed up, but it can't be chosen by name at a restore", d.Name)
			continue
		}
		m.Databases = append(m.Databases, repo.Database{Name: d.Name, OID: d.OID, LastSystemID: d.LastSystemID})
	}
	return m
}

// primaryDir is the primary's data directory; empty when it is on another host.
func (r *backupRun) primaryDir() string {
	if r.o.Remote {
		return ""
	}
	return r.o.DataDir
}

// awaitFirst makes the segment that the backup starts in complete and waits for it in the archive.
func (r *backupRun) awaitFirst(ctx context.Context) error {
	if !r.o.ArchiveCheck {
		return nil
	}
	conn, err := pg.Connect(ctx, r.o.Conn)
	if err != nil {
		return err
	}
	_, err = conn.CreateRestorePoint(ctx, "Holdfast archive check")
	if err == nil {
		_, _, err = conn.SwitchWAL(ctx)
	}
	if err = errors.Join(err, conn.Close()); err != nil {
		return err
	}
	return r.s.await(ctx, r.db, []string{r.start.Segment}, r.o.ArchiveTimeout, r.o.Conn, r.primaryDir())
}

// stop takes PostgreSQL out of backup mode and stores the files that it hands over.
func (r *backupRun) stop(ctx context.Context) error {
	r.s.step("backup", "stop", "pg_backup_stop")
	stopped, err := r.conn.BackupStop(ctx)
	if err != nil {
		return err
	}
	r.m.LSNStop, r.m.ArchiveStop, r.m.TimeStop = stopped.LSN.String(), pg.SegmentName(r.tli, stopped.LSN, r.control.WALSegmentSize), stopped.Time.Unix()
	r.s.step("backup", "stopped", fmt.Sprintf("%s, lsn = %s", r.m.ArchiveStop, r.m.LSNStop))
	owner := r.m.FileDefault
	owner.Mode = r.m.PathDefault.Mode & 0o644
	for _, f := range []struct {
		name string
		data []byte
	}{{"pg_data/backup_label", stopped.BackupLabel}, {"pg_data/tablespace_map", stopped.TablespaceMap}} {
		if len(f.data) == 0 {
			continue
		}
		file := repo.File{Name: f.name, Owner: owner, Size: int64(len(f.data)), SizeOrig: -1, Timestamp: stopped.Time.Unix()}
		if err := r.storeBytes(ctx, &file, f.data); err != nil {
			return err
		}
		r.m.AddFile(file)
	}
	return nil
}

// awaitWAL waits for every segment that a restore of this backup needs (format page, section 11.4).
func (r *backupRun) awaitWAL(ctx context.Context) error {
	if err := r.s.o.Storage.Sync(ctx); err != nil {
		return fmt.Errorf("sync the repository: %w", err)
	}
	if !r.o.ArchiveCheck {
		return nil
	}
	stop, err := pg.ParseLSN(r.m.LSNStop)
	if err != nil {
		return err
	}
	segments := pg.SegmentsBetween(r.tli, r.start.LSN, stop, r.control.WALSegmentSize)
	r.s.step("backup", "wal", fmt.Sprintf("%s to %s", segments[0], segments[len(segments)-1]))
	if err := r.s.await(ctx, r.db, segments, r.o.ArchiveTimeout, r.o.Conn, r.primaryDir()); err != nil || !r.o.ArchiveCopy {
		return err
	}
	return r.copyWAL(ctx, segments)
}

// oursFor is how long what stillOursExactly said is relied on. Reading the info files can take minutes where a store does not answer
// at once.
const oursFor = 2 * time.Second

// publish makes the backup exist: manifest, history, link, backup.info; archive.info is saved again so that life-cycle
// rules of object stores do not age it away.
func (r *backupRun) publish(ctx context.Context) error {
	s := r.s
	s.step("backup", "publish", string(r.m.Label))
	if err := r.m.ValidateComplete(); err != nil {
		return err
	}
	if r.o.Hardlink && s.linker() == nil {
		return errors.New("this repository's storage has no hard links: leave the option out")
	}
	if err := s.hardlinks(ctx, r.m); err != nil {
		return err
	}
	if err := s.makeDirs(ctx, r.m); err != nil {
		return err
	}
	if err := s.o.Storage.Sync(ctx); err != nil {
		return fmt.Errorf("sync the files of backup %s: %w", r.m.Label, err)
	}
	// Before the two that follow, which must not be old when the manifest is written: this may take minutes.
	if err := r.allThere(ctx); err != nil {
		return err
	}
	asked := s.o.Now()
	if err := s.together(ctx, r.refresh, r.stillOursExactly); err != nil {
		return err
	}
	if s.o.Now().Sub(asked) > oursFor {
		if err := r.stillOursExactly(ctx); err != nil {
			return err
		}
	}
	if err := repo.PublishManifest(ctx, s.o.Storage, s.o.Stanza, r.m, r.bi.CipherPass); err != nil {
		return err
	}
	s.step("backup", "catalogue", "backup.info")
	line := r.m.BackupLine()
	r.bi.Put(line)
	r.bi.BackrestVersion, r.ai.BackrestVersion = s.o.Version, s.o.Version
	err := s.together(ctx, func(ctx context.Context) error {
		return wrap(repo.SaveBackupInfo(ctx, s.o.Storage, s.o.Stanza, r.bi, s.o.Pass), "save backup.info")
	}, func(ctx context.Context) error {
		return wrap(repo.SaveArchiveInfo(ctx, s.o.Storage, s.o.Stanza, r.ai, s.o.Pass), "save archive.info")
	})
	if err != nil {
		return err
	}
	if l := s.linker(); l != nil && !s.o.NoSymlinks {
		if err := l.Symlink(ctx, string(r.m.Label), repo.BackupDir(s.o.Stanza)+"/latest"); err != nil {
			s.warn("the link backup/%s/latest could not be set (it is for people only): %v", s.o.Stanza, err)
		}
	}
	r.res.Label, r.res.Line, r.res.DB, r.res.ArchiveStart, r.res.ArchiveStop = r.m.Label, line, r.db, r.m.ArchiveStart, r.m.ArchiveStop
	return nil
}
