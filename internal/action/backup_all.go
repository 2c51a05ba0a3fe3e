package action

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/tarball"
)

// File name endings of the two tarballs.
const (
	appSuffix = "_alation_backup.tar.gz"
	busSuffix = "_alation_eb_backup.tar.gz"
)

// BackupPlan is what backup_all would do.
type BackupPlan struct {
	Mode        catalog.Mode         `json:"mode"`
	Postgres    []*engine.BackupPlan `json:"postgres"`
	RDS         []RDSPlan            `json:"rds,omitempty"`
	Probackup   []*ProbackupPlan     `json:"pg_probackup,omitempty"` // in place of Postgres
	Notes       []string             `json:"notes,omitempty"`
	Trees       []catalog.Tree       `json:"files"`
	EventBus    bool                 `json:"eventbus"`
	DumpDir     string               `json:"dump_dir"`
	Repository  string               `json:"repository"`
	Store       string               `json:"store,omitempty"`      // external storage that gets a copy afterwards
	Staging     *StagingPlan         `json:"staging,omitempty"`    // mode included with incremental backups
	FreeBytes   uint64               `json:"free_bytes"`           // on the dump directory's file system
	Unfinished  []string             `json:"unfinished,omitempty"` // what the run settles first
	WhatIsWrong []string             `json:"wrong,omitempty"`      // every reason why a run would fail, at once
	Findings    []Finding            `json:"findings"`             // of the preflight
}

// PlanBackupAll looks at every component without changing anything and lists all that is wrong at once.
func (a *App) PlanBackupAll(ctx context.Context) (*BackupPlan, error) {
	p := &BackupPlan{Mode: a.o.Mode, Trees: a.o.Files.Trees, EventBus: a.o.Bus != nil, DumpDir: a.o.DumpDir, Repository: a.o.RepoDir}
	if s := a.o.Store; s != nil && (s.Postgres || s.Tarballs) {
		p.Store = s.Name
	}
	wrong := func(err error) {
		if err != nil {
			p.WhatIsWrong = append(p.WhatIsWrong, err.Error())
		}
	}
	if err := a.planTool(ctx, p, wrong); err != nil {
		wrong(err)
	}
	st, err := a.repository()
	if err != nil {
		wrong(err)
	} else if !a.useProbackup() {
		for _, c := range a.o.Clusters {
			plan, err := a.planCluster(ctx, c, st)
			if err != nil {
				wrong(err)
				continue
			}
			p.Postgres = append(p.Postgres, plan)
		}
	}
	p.RDS = a.planRDS(ctx, wrong)
	for _, t := range a.o.Files.Trees {
		if _, err := os.Stat(filepath.Join(a.o.Root, t.Path)); err != nil {
			wrong(fmt.Errorf("files.paths: %w", err))
		}
	}
	if a.o.Bus != nil {
		b, err := eventbus.Open(ctx, *a.o.Bus)
		if err != nil {
			wrong(fmt.Errorf("event bus: %w", err))
		} else {
			b.Close()
		}
	}
	if j, err := a.readJournal(); err != nil {
		wrong(err)
	} else if j != nil && j.State == journalCommitted {
		p.Unfinished = append(p.Unfinished, fmt.Sprintf("the restore of set %s has ended well; what it replaced is removed first", j.Set))
	} else if j != nil {
		wrong(errInterrupted)
	}
	free, ferr := freeBytes(a.o.DumpDir)
	wrong(ferr)
	p.FreeBytes = free
	if a.keepsChain() && err == nil && ferr == nil {
		staging, short, err := a.planStaging(ctx, p.Postgres, st, free)
		wrong(errors.Join(err, short))
		p.Staging = staging
	}
	p.addFindings(a.Preflight(ctx, false))
	return p, ctx.Err()
}

func (a *App) planCluster(ctx context.Context, c Cluster, st storage.Storage) (*engine.BackupPlan, error) {
	if err := a.checkTool(c); err != nil {
		return nil, err
	}
	if err := a.checkReach(ctx, c); err != nil {
		return nil, err
	}
	s, err := a.stanza(c.Stanza, st)
	if err != nil {
		return nil, err
	}
	t, err := a.chooseType(ctx, c, s)
	if err != nil {
		return nil, a.explainPass(err)
	}
	apart := a.o.Mode == catalog.Apart
	p, err := s.PlanBackup(ctx, engine.BackupOptions{Type: t.typ, Conn: c.Conn, DataDir: c.DataDir, Fast: true, Compress: a.o.Compress, Level: a.o.Level,
		ProcessMax: a.o.ProcessMax, ArchiveCheck: true, ArchiveTimeout: a.o.ArchiveTimeout,
		Resume: a.onDisk(),                                                    // a large catalog's interrupted copy is not begun anew
		Bundle: a.o.Bundle && apart, Block: a.o.Bundle && a.o.Block && apart}) // a tarball is one object anyway, and bundles would pass through temporary files on their way into it
	if err != nil {
		return nil, a.explainPass(err)
	}
	p.Why = t.why
	if t.warn {
		p.Warnings = append(p.Warnings, fmt.Sprintf("stanza %s: a full backup: %s", c.Stanza, t.why))
	}
	return p, nil
}

// run is one backup_all in progress.
type run struct {
	*App
	set       *catalog.Set
	staging   string
	base      storage.Storage // the configured repository
	repo      *tarRepo        // included mode: base with the tarball on top
	app       *outFile
	appTar    *tarball.Writer
	bus       *eventbus.Bus
	backups   []*clusterBackup
	snapshots []*rdsBackup
	capture   *tarball.Capture
	marks     *eventbus.Marks
}

type clusterBackup struct {
	Cluster
	s       *engine.Stanza
	pb      *probackupBackup // in place of s
	res     *engine.BackupResult
	control pg.Control
	point   catalog.PostgresPoint
	chain   []repo.BackupLine // in the staging repository, oldest first; nil: it is not kept there
}

// BackupAll backs everything up to one recovery point. The returned set is in the catalogue: complete, or failed when the
// error is not nil (nil set: nothing was begun). Cancelled: PostgreSQL is out of backup mode, no tarball appears, the next
// run clears what was left.
func (a *App) BackupAll(ctx context.Context) (*catalog.Set, error) {
	unlock, err := a.lock(ctx, "backup_all")
	if err != nil {
		return nil, err
	}
	set, err := a.backupAll(ctx)
	return set, errors.Join(err, unlock())
}

func (a *App) backupAll(ctx context.Context) (*catalog.Set, error) {
	a.step("backup_all", "prepare", "")
	settled, err := a.clearAway(ctx)
	if err != nil {
		return nil, err
	}
	base, err := a.repository()
	if err != nil {
		return nil, err
	}
	began := a.o.Now().UTC()
	id, err := a.chooseID(ctx, began)
	if err != nil {
		return nil, err
	}
	r := &run{App: a, base: base, set: &catalog.Set{ID: id, Run: a.o.ExecID, State: catalog.Running, Mode: a.o.Mode, Began: began, Host: a.o.Host,
		AppVersion: a.o.AppVersion, Program: a.o.Program, Root: a.o.Root}}
	if err := a.o.Catalog.Put(ctx, r.set); err != nil {
		return nil, err
	}
	err = r.everything(ctx)
	if err != nil && r.set.State == catalog.Running {
		r.dropSnapshots(context.WithoutCancel(ctx))
	}
	err = errors.Join(err, r.cleanup())
	r.set.Ended = a.o.Now().UTC()
	if err != nil {
		// The run's own context may be cancelled; that it failed is still to be recorded.
		if r.set.State == catalog.Running { // a publishing one is complete in substance: the next run names its files
			r.set.State, r.set.Error = catalog.Failed, err.Error()
		}
		return r.set, errors.Join(err, a.o.Catalog.Put(context.WithoutCancel(ctx), r.set))
	}
	if err := a.o.Catalog.Put(ctx, r.set); err != nil {
		return r.set, err
	}
	return r.set, a.afterwards(ctx, r.set, settled)
}

// everything is the run, step by step; see the package comment.
func (r *run) everything(ctx context.Context) error {
	err := r.beforeRun(ctx)
	if err != nil {
		return err
	}
	if r.staging, _, err = r.newStaging(r.set.ID); err != nil {
		return err
	}
	if r.app, err = r.createOut(r.set.ID + appSuffix); err != nil {
		return err
	}
	r.appTar = tarball.NewWriter(r.app, tarball.WriterOptions{Workers: r.o.ProcessMax, ModTime: r.set.Began})
	if err := r.appTar.AddBytes(identityName, 0o600, identity(r.set, catalog.Application)); err != nil {
		return err
	}
	if r.o.Bus != nil {
		if r.bus, err = eventbus.Open(ctx, *r.o.Bus); err != nil {
			return fmt.Errorf("event bus: %w", err)
		}
	}
	if err := r.prepareSnapshots(ctx); err != nil {
		return err
	}
	if err := r.backupPostgres(ctx); err != nil {
		return err
	}
	if err := r.filesFirst(ctx); err != nil {
		return err
	}
	if err := r.recoveryPoint(ctx); err != nil {
		return err
	}
	if err := r.settleWAL(ctx); err != nil {
		return err
	}
	busOut, err := r.dumpBus(ctx)
	if err != nil {
		return err
	}
	if err := r.settleSnapshots(ctx); err != nil {
		return errors.Join(err, abortOut(busOut))
	}
	if err := r.finishApplication(ctx, busOut); err != nil {
		return errors.Join(err, abortOut(busOut))
	}
	return r.publish(ctx, busOut)
}

// cleanup gives up what is unfinished and empties the staging directory.
func (r *run) cleanup() error {
	if r.bus != nil {
		r.bus.Close()
	}
	errs := []error{}
	if r.capture != nil {
		errs = append(errs, r.capture.Close())
	}
	if r.appTar != nil && r.set.State == catalog.Running {
		_ = r.appTar.Close() // ends its goroutines; the file is given up anyway
	}
	if r.set.State == catalog.Running {
		errs = append(errs, abortOut(r.app))
	}
	if r.staging != "" {
		errs = append(errs, removeMarked(r.staging))
	}
	return errors.Join(errs...)
}

// backupPostgres makes a backup of every cluster: into the repository, into the tarball, or into the staging repository and from
// there into the tarball.
func (r *run) backupPostgres(ctx context.Context) error {
	if r.useProbackup() {
		return r.backupProbackup(ctx)
	}
	target := r.base
	if r.o.Mode == catalog.Included {
		r.repo = newTarRepo(r.base, r.appTar, r.staging, r.o.Now)
		if !r.keepsChain() {
			target = r.repo
		}
	}
	plans, err := r.planClusters(ctx, target)
	if err != nil {
		return err
	}
	for i, c := range r.o.Clusters {
		r.step("backup_all", "postgres", c.Stanza)
		plan := plans[i]
		if i > 0 { // time has passed since it was looked at
			if plan, err = r.planCluster(ctx, c, target); err != nil {
				return err
			}
		}
		for _, w := range plan.Warnings {
			r.warn("%s", w)
		}
		r.set.Warnings = append(r.set.Warnings, plan.Warnings...)
		if target != r.base { // a chain of before would be listed in the tarball's backup.info
			if err := r.clearStaged(ctx, c.Stanza, r.base, nil); err != nil {
				return err
			}
		}
		if err := r.handOver(c); err != nil { // before the server archives the WAL of this backup
			return err
		}
		w, err := r.worker(c, r.o.RepoDir, target)
		if err != nil {
			return err
		}
		res, err := w.Backup(ctx, plan)
		if err != nil {
			return err
		}
		s, err := r.stanza(c.Stanza, r.base)
		if err != nil {
			return err
		}
		control, _, err := pg.ReadControl(ctx, c.DataDir)
		if err != nil {
			return err
		}
		for _, f := range res.PageErrors {
			r.set.Warnings = append(r.set.Warnings, fmt.Sprintf("stanza %s: bad page checksums in %s", c.Stanza, f))
		}
		b := &clusterBackup{Cluster: c, s: s, res: res, control: control}
		r.backups = append(r.backups, b)
		r.set.Backups = append(r.set.Backups, noted(plan, res))
		if r.o.Mode == catalog.Apart { // known from now on, so that a failed set's backup can be found and deleted
			r.set.Pieces = append(r.set.Pieces, catalog.Piece{Kind: catalog.Postgres, Path: r.o.RepoDir, Size: res.Line.RepoSizeDelta, Stanza: c.Stanza, Label: string(res.Label)})
		}
		if err := r.o.Catalog.Put(ctx, r.set); err != nil {
			return err
		}
		if r.keepsChain() {
			if err := r.packChain(ctx, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *run) filesFirst(ctx context.Context) error {
	r.step("backup_all", "files", fmt.Sprintf("%d directories", len(r.o.Files.Trees)))
	var err error
	var trees []tarball.Tree
	for _, t := range r.o.Files.Trees {
		trees = append(trees, tarball.Tree{Name: t.Name, Path: filepath.Join(r.o.Root, t.Path)})
	}
	r.capture, err = tarball.NewCapture(tarball.CaptureOptions{Root: r.o.Root, Trees: trees, Exclude: r.o.Files.Exclude, SkipDirs: r.skipDirs(), SpoolDir: r.staging,
		UserName: r.o.Files.UserName, GroupName: r.o.Files.GroupName})
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return wrap(r.capture.First(ctx, r.appTar), "files")
}

// recoveryPoint takes the point that all components share, as quickly as it can, and measures how quick that was.
func (r *run) recoveryPoint(ctx context.Context) error {
	name := "holdfast_" + r.set.ID
	r.step("backup_all", "recovery-point", name)
	rec := &catalog.Recovery{Name: name}
	r.set.Recovery = rec
	begun, err := r.beginSnapshots(ctx)
	if err != nil {
		return err
	}
	conns, err := r.connectAll(ctx)
	if err != nil {
		return err
	}
	if rec.Skew.From = begun; begun.IsZero() {
		rec.Skew.From = r.o.Now().UTC()
	}
	err = r.restorePoints(ctx, conns, name)
	for _, c := range conns {
		err = errors.Join(err, c.Close())
	}
	if err != nil {
		return err
	}
	if r.bus != nil {
		if r.marks, err = r.bus.Marks(ctx); err != nil {
			return fmt.Errorf("event bus: %w", err)
		}
	}
	res, err := r.capture.Final(ctx, r.appTar)
	if err != nil {
		return fmt.Errorf("files: %w", err)
	}
	rec.Skew.To = r.o.Now().UTC()
	rec.Skew.Milliseconds = rec.Skew.To.Sub(rec.Skew.From).Milliseconds()
	files := &catalog.FilesPoint{Taken: catalog.Interval{From: res.Start.UTC(), To: res.End.UTC()}, Files: res.Files, Bytes: res.Bytes,
		IndexSHA256: res.IndexSHA256, Trees: r.o.Files.Trees}
	for _, is := range res.Inconsistent {
		text := is.Path + ": " + is.Reason
		files.Inconsistent = append(files.Inconsistent, text)
		r.set.Warnings = append(r.set.Warnings, "files: "+text)
	}
	rec.Files = files
	for _, b := range r.backups {
		rec.Postgres = append(rec.Postgres, b.point)
	}
	return nil
}

// connectAll opens the sessions before the clock of the skew starts.
func (r *run) connectAll(ctx context.Context) ([]*pg.Conn, error) {
	var conns []*pg.Conn
	for _, b := range r.backups {
		c, err := pg.Connect(ctx, b.Conn)
		if err != nil {
			for _, open := range conns {
				err = errors.Join(err, open.Close())
			}
			return nil, fmt.Errorf("stanza %s: %w", b.Stanza, err)
		}
		conns = append(conns, c)
	}
	return conns, nil
}

func (r *run) postgresPoint(b *clusterBackup, lsn pg.LSN, taken catalog.Interval) catalog.PostgresPoint {
	tli, err := strconv.ParseUint(b.res.ArchiveStart[:8], 16, 32)
	if err != nil {
		tli = uint64(b.control.CheckpointTimeline)
	}
	return catalog.PostgresPoint{Stanza: b.Stanza, Label: string(b.res.Label), Tool: r.currentTool(), Version: b.res.DB.Version, SystemID: b.res.DB.SystemID, HistoryID: b.res.DB.ID,
		Timeline: uint32(tli), LSN: lsn.String(), Segment: pg.SegmentName(uint32(tli), lsn, b.control.WALSegmentSize), WALStart: b.res.ArchiveStart,
		DataDir: b.DataDir, Bytes: b.res.Line.Size, RepoBytes: b.res.Line.RepoSize, Taken: taken, PageErrors: b.res.PageErrors, Compress: string(r.o.Compress)}
}

// settleWAL closes the segment that holds the restore point and waits until the archive has everything up to it. In the
// included mode the WAL, and then the info files, go into the tarball.
func (r *run) settleWAL(ctx context.Context) error {
	r.step("backup_all", "wal", "")
	for i, b := range r.backups {
		conn, err := pg.Connect(ctx, b.Conn)
		if err != nil {
			return fmt.Errorf("stanza %s: %w", b.Stanza, err)
		}
		// Only a role that may not see it gets an error here.
		if conf, _, cerr := conn.Setting(ctx, "config_file"); cerr == nil && !below(conf, b.DataDir) {
			b.point.ConfigFile = conf
		}
		if err = conn.Commit(ctx); err == nil { // every time up to now can be recovered to, however quiet the cluster is
			_, _, err = conn.SwitchWAL(ctx)
		}
		dbs, derr := conn.Databases(ctx)
		if err = errors.Join(err, derr, conn.Close()); err != nil {
			return fmt.Errorf("stanza %s: %w", b.Stanza, err)
		}
		for _, d := range dbs {
			b.point.Databases = append(b.point.Databases, d.Name)
		}
		slices.Sort(b.point.Databases)
		b.point.Host = r.hostOf(ctx, b.Cluster)
		r.set.Recovery.Postgres[i] = b.point
		start, err1 := pg.ParseLSN(b.res.Line.LSNStart)
		end, err2 := pg.ParseLSN(b.point.LSN)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		segments := pg.SegmentsBetween(b.point.Timeline, start, end, b.control.WALSegmentSize)
		if b.pb != nil {
			if err := r.settleProbackup(ctx, b, segments); err != nil {
				return err
			}
			continue
		}
		if err := b.s.WaitForSegments(ctx, b.res.DB, segments, r.o.ArchiveTimeout); err != nil {
			return err
		}
		if r.repo == nil {
			continue
		}
		names, err := b.s.WALObjects(ctx, b.res.DB, segments)
		if err != nil {
			return err
		}
		older, err := r.chainWAL(ctx, b)
		if err != nil {
			return err
		}
		names = append(append(names, older...), repo.ArchiveDir(b.Stanza)+"/archive.info", repo.ArchiveDir(b.Stanza)+"/archive.info.copy")
		slices.Sort(names)
		names = slices.Compact(names) // histories are named with each backup
		if err := r.repo.copyObjects(ctx, names); err != nil {
			return err
		}
	}
	if r.repo != nil {
		return r.repo.flush()
	}
	return nil
}

// dumpBus writes the event bus's tarball: complete, synced, under its hidden name. nil without an event bus.
func (r *run) dumpBus(ctx context.Context) (*outFile, error) {
	if r.bus == nil {
		return nil, nil
	}
	r.step("backup_all", "eventbus", fmt.Sprintf("%d topics", len(r.marks.Topics)))
	out, err := r.createOut(r.set.ID + busSuffix)
	if err != nil {
		return nil, err
	}
	w := tarball.NewWriter(out, tarball.WriterOptions{Workers: r.o.ProcessMax, ModTime: r.set.Began})
	err = w.AddBytes(identityName, 0o600, identity(r.set, catalog.EventBus))
	var sum *eventbus.Summary
	if err == nil {
		sum, err = r.bus.Dump(ctx, r.marks, tarSink{w}, nil)
	}
	if err = errors.Join(err, w.Close()); err == nil {
		err = out.Finish()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("event bus: %w", err), out.Abort())
	}
	r.set.Recovery.EventBus = busPoint(r.marks, sum)
	if sum.Lost() > 0 {
		r.set.Warnings = append(r.set.Warnings, fmt.Sprintf("event bus: %d offsets were removed by the broker's retention before they could be read", sum.Lost()))
	}
	if sum.Undecided() > 0 {
		r.set.Warnings = append(r.set.Warnings, fmt.Sprintf("event bus: an open transaction held %d offsets back; they are not in the backup", sum.Undecided()))
	}
	size, sha := w.Sums()
	r.set.Pieces = append(r.set.Pieces, catalog.Piece{Kind: catalog.EventBus, Path: out.final, Size: size, SHA256: sha})
	return out, nil
}

func busPoint(m *eventbus.Marks, s *eventbus.Summary) *catalog.BusPoint {
	p := &catalog.BusPoint{Taken: catalog.Interval{From: m.Taken.From.UTC(), To: m.Taken.To.UTC()}, Topics: len(s.Topics)}
	for _, t := range s.Topics {
		p.Partitions += len(t.Partitions)
		for _, q := range t.Partitions {
			p.Records += q.Records
			for _, l := range q.Lost {
				p.Lost = append(p.Lost, fmt.Sprintf("%s/%d: offsets %d to %d", t.Name, q.Partition, l.From, l.To))
			}
		}
	}
	return p
}

// finishApplication adds the parameters and the set's document and completes the application tarball.
func (r *run) finishApplication(ctx context.Context, busOut *outFile) error {
	r.step("backup_all", "finish", "")
	for _, p := range r.o.Params {
		b, err := p.Read()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("parameters: %w", err)
		}
		if err := r.appTar.AddBytes(paramsPrefix+p.Name, 0o600, b); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r.set.State = catalog.Complete // as the document in the tarball will be read
	doc, err := r.set.Encode()
	r.set.State = catalog.Running
	if err != nil {
		return err
	}
	if err := errors.Join(r.appTar.AddBytes(setName, 0o600, doc), r.appTar.Close()); err != nil {
		return err
	}
	if err := r.app.Finish(); err != nil {
		return err
	}
	size, sha := r.appTar.Sums()
	r.set.Pieces = append([]catalog.Piece{{Kind: catalog.Application, Path: r.app.final, Size: size, SHA256: sha}}, r.set.Pieces...)
	return nil
}

// publish gives the tarballs their final names. From the entry "publishing" on the set is complete in substance: a run
// that dies here is completed by settleUnfinished.
func (r *run) publish(ctx context.Context, busOut *outFile) error {
	r.step("backup_all", "publish", r.set.ID)
	if err := ctx.Err(); err != nil {
		return errors.Join(err, abortOut(busOut))
	}
	r.set.State = catalog.Publishing
	if err := r.o.Catalog.Put(ctx, r.set); err != nil {
		r.set.State = catalog.Running
		return errors.Join(err, abortOut(busOut))
	}
	r.step("backup_all", "rename", r.set.ID)
	for _, out := range []*outFile{busOut, r.app} {
		if out != nil {
			if err := out.Publish(); err != nil {
				return err
			}
		}
	}
	r.set.State, r.set.Unsettled = catalog.Complete, r.o.Kit != nil || r.o.PostScript != nil
	r.set.Ended = r.o.Now().UTC()
	r.step("backup_all", "catalogue", r.set.ID)
	if err := r.o.Catalog.Put(ctx, r.set); err != nil {
		return err
	}
	r.endBoth(ctx)
	if r.o.Mode == catalog.Included {
		if err := r.trimStaging(ctx); err != nil { // old WAL stays a run longer: the set itself is complete
			r.set.Warnings = append(r.set.Warnings, err.Error())
		}
	}
	return nil
}

// trimStaging removes from the staging repository the WAL before this run's backup, for each tarball carries its own, and the
// backups that the next run does not build on.
func (r *run) trimStaging(ctx context.Context) error {
	r.step("backup_all", "trim", r.o.RepoDir)
	if r.useProbackup() {
		return r.trimProbackup(ctx)
	}
	for _, b := range r.backups {
		why, err := r.alsoSeparate(ctx, b.Stanza)
		if err != nil {
			return err
		}
		if why != "" {
			r.set.Warnings = append(r.set.Warnings, why)
			continue
		}
		trim := func() error { return b.s.TrimWAL(ctx, b.res.DB, b.res.ArchiveStart) }
		if b.chain != nil {
			trim = func() error { return r.trimChain(ctx, b) }
		}
		if err := trim(); err != nil {
			return fmt.Errorf("staging repository: %w", err)
		}
	}
	return nil
}

// settleUnfinished looks at sets that a dead run left: "publishing" ones get their final names, "running" ones are failed.
// Hidden tarballs that belong to no publishing set are removed. It returns the sets that it completed, and those that were complete
// when the run died, without what comes after.
func (a *App) settleUnfinished(ctx context.Context) (completed []*catalog.Set, err error) {
	sets, damaged, err := a.o.Catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range damaged {
		a.warn("%v", d)
	}
	for _, s := range sets {
		switch s.State {
		case catalog.Running:
			s.State, s.Error, s.Ended = catalog.Failed, "the run was interrupted", a.o.Now().UTC()
		case catalog.Publishing:
			if err := a.finishPublishing(s); err != nil {
				return nil, err
			}
			if s.State == catalog.Complete {
				completed = append(completed, s)
			}
		case catalog.Complete:
			if s.Unsettled && s.Removal == nil {
				completed = append(completed, s)
			}
			continue
		default:
			continue
		}
		if err := a.o.Catalog.Put(ctx, s); err != nil {
			return nil, err
		}
	}
	return completed, a.removeHidden()
}

// Settle does now what the next run would do first: a dead run's set that was complete in substance gets its final names, and
// what comes after a set; the others are marked failed; staging is emptied. It returns the sets that it completed.
func (a *App) Settle(ctx context.Context) ([]*catalog.Set, error) {
	unlock, err := a.lock(ctx, "settle")
	if err != nil {
		return nil, err
	}
	settled, err := a.clearAway(ctx)
	if n := len(settled); n > 0 && err == nil {
		err = a.afterwards(ctx, settled[n-1], settled[:n-1])
	}
	return settled, errors.Join(err, unlock())
}

// clearAway deals with what dead runs left, and returns the sets that it completed.
func (a *App) clearAway(ctx context.Context) ([]*catalog.Set, error) {
	if err := a.refuseInterrupted(ctx); err != nil {
		return nil, err
	}
	if err := durable.MkdirAllOwned(a.o.DumpDir, 0o711, a.o.Owner); err != nil {
		return nil, fmt.Errorf("dump directory: %w", err)
	}
	settled, err := a.settleUnfinished(ctx)
	if err != nil {
		return nil, err
	}
	if err := a.sweepSnapshots(ctx); err != nil {
		return nil, err
	}
	return settled, a.clearStaging()
}

func (a *App) finishPublishing(s *catalog.Set) error {
	s.State, s.Unsettled = catalog.Complete, true
	if s.Ended.IsZero() {
		s.Ended = a.o.Now().UTC()
	}
	for _, p := range s.Pieces {
		if p.Kind == catalog.Postgres {
			continue
		}
		if info, err := os.Stat(p.Path); err == nil && info.Size() == p.Size {
			continue
		}
		hidden := hiddenName(p.Path)
		info, err := os.Stat(hidden)
		if err != nil || info.Size() != p.Size {
			s.State, s.Unsettled, s.Error = catalog.Failed, false, "the run was interrupted while its tarballs got their names, and "+filepath.Base(p.Path)+" is gone"
			return nil
		}
		if err := durable.Rename(hidden, p.Path); err != nil {
			return err
		}
	}
	return nil
}

// removeHidden removes unfinished tarballs and recovery kits from the dump directory; the lock says that nobody is writing them.
func (a *App) removeHidden() error {
	entries, err := os.ReadDir(a.o.DumpDir)
	if err != nil {
		return fmt.Errorf("dump directory: %w", err)
	}
	for _, e := range entries {
		n := e.Name()
		if strings.HasPrefix(n, hiddenPrefix) && e.Type().IsRegular() && slices.ContainsFunc([]string{appSuffix, busSuffix, kitSuffix}, func(s string) bool { return strings.HasSuffix(n, s) }) {
			if err := os.Remove(filepath.Join(a.o.DumpDir, n)); err != nil {
				return fmt.Errorf("remove an unfinished tarball: %w", err)
			}
		}
	}
	return nil
}

func wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf(format+": %w", append(args, err)...)
}
