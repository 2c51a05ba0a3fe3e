package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/probackup"
	"holdfast/internal/repo"
	"holdfast/internal/tarball"
)

// probackupPrefix is where the backup catalog stands in the application tarball: unpacked, pg_probackup --backup-path can be pointed
// at it.
const probackupPrefix = "pg_probackup/"

// probackupNote begins the note that our backups have in the catalog; those of others are never removed.
const probackupNote = "holdfast "

// ProbackupPlan is what backup_all would have pg_probackup do for one cluster.
type ProbackupPlan struct {
	Stanza   string   `json:"stanza"`
	Type     string   `json:"type"` // FULL, DELTA or PAGE
	Why      string   `json:"why"`
	DataDir  string   `json:"data_dir"`
	Version  string   `json:"pg_version"`
	Catalog  string   `json:"catalog"` // directory
	Program  string   `json:"program"`
	Says     string   `json:"program_version"`
	Warnings []string `json:"warnings,omitempty"`

	tool    *probackup.Tool
	control pg.Control
	before  []probackup.Backup
}

// planProbackup looks at everything that pg_probackup needs for a backup of one cluster, and decides what kind it will be. It
// changes nothing.
func (a *App) planProbackup(ctx context.Context, c Cluster) (*ProbackupPlan, error) {
	version, err := versionOf(c)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.Stanza, err)
	}
	dir := a.probackupDir()
	t, v, err := a.checkProbackup(ctx, c, version, dir, "backup")
	if err != nil {
		return nil, err
	}
	p := &ProbackupPlan{Stanza: c.Stanza, DataDir: c.DataDir, Version: version, Catalog: dir, Program: t.Program, Says: v.String(), tool: t}
	if err := a.checkProbackupReach(ctx, c, dir); err != nil {
		return nil, err
	}
	if p.control, _, err = pg.ReadControl(ctx, c.DataDir); err != nil {
		return nil, err
	}
	if err := a.checkInstance(ctx, c, t, p.control.SystemID); err != nil {
		return nil, err
	}
	tli, err := a.checkPushing(ctx, c, t, p.control)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.Stanza, err)
	}
	if p.before, err = t.Show(ctx, c.Stanza); err != nil {
		return nil, err
	}
	p.Type, p.Why = probackupMode(p.before, tli, a.o.Probackup.FullEvery, func(parent *probackup.Backup) (int64, bool) {
		return archivedSince(t, c.Stanza, parent, p.control)
	})
	if a.o.RepoPass != "" {
		p.Warnings = append(p.Warnings, fmt.Sprintf("cluster %s: pg_probackup does not encrypt: its backups and WAL are stored in clear, although pgsql.pgbackrest.cipher_pass is set", c.Stanza))
	}
	return p, nil
}

// checkInstance makes sure that the catalog has the cluster's instance.
func (a *App) checkInstance(ctx context.Context, c Cluster, t *probackup.Tool, systemID uint64) error {
	made, err := t.Initialized()
	if err == nil && made {
		made, err = t.HasInstance(c.Stanza)
	}
	if err != nil {
		return err
	}
	if !made {
		return fmt.Errorf("the backup catalog %s of pg_probackup has no instance %s yet: run: alation_action enable_backupv2", t.Dir, c.Stanza)
	}
	conf, err := t.Config(ctx, c.Stanza)
	if err == nil && conf.SystemID != systemID {
		err = fmt.Errorf("instance %s of the backup catalog %s belongs to a cluster with system identifier %d, %s has %d: run: alation_action enable_backupv2", c.Stanza, t.Dir, conf.SystemID, c.DataDir, systemID)
	}
	return err
}

// checkPushing makes sure that the server's WAL goes to the catalog, without which a backup would wait in vain, and returns the
// timeline that the server is on.
func (a *App) checkPushing(ctx context.Context, c Cluster, t *probackup.Tool, control pg.Control) (uint32, error) {
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return 0, err
	}
	f, err := conn.Facts(ctx)
	if err = errors.Join(err, conn.Close()); err != nil {
		return 0, err
	}
	pushes := func() bool {
		for _, w := range append([]string{"archive-push"}, t.PushWords(c.Stanza, 0)[2:4]...) {
			if !strings.Contains(f.ArchiveCommand, a.o.Probackup.Quote(w)) {
				return false
			}
		}
		return true
	}
	switch {
	case f.SystemID != control.SystemID:
		return 0, fmt.Errorf("%w: it has system identifier %d, but %s has %d: port or socket of another cluster", engine.ErrOtherServer, f.SystemID, c.DataDir, control.SystemID)
	case f.InRecovery:
		return 0, errors.New("the server is a standby (in recovery): its primary is backed up")
	case f.ArchiveMode == "off" || !pushes():
		return 0, fmt.Errorf("archive_command does not push WAL into pg_probackup's catalog %s: run: alation_action enable_backupv2", t.Dir)
	}
	return control.CheckpointTimeline, nil
}

// probackupMode decides what kind of backup is made next, and says why. A backup that builds on another is made on the newest valid
// one of the newest valid full backup of the timeline: pg_probackup chooses the same. DELTA reads every data file and needs nothing
// else. PAGE reads the WAL since its parent in their place, which is quicker when there is little of it; it needs all of it.
// archived tells how many bytes of WAL the archive has since a backup, and whether they are all there.
func probackupMode(backups []probackup.Backup, timeline uint32, fullEvery int, archived func(parent *probackup.Backup) (int64, bool)) (mode, why string) {
	if fullEvery <= 1 {
		return "FULL", "every backup is a full one"
	}
	var full, parent *probackup.Backup
	for i := range backups {
		if b := &backups[i]; b.Full() && b.Valid() && b.Timeline == timeline {
			full = b
		}
	}
	if full == nil {
		return "FULL", fmt.Sprintf("there is no valid full backup on timeline %d to build on", timeline)
	}
	since := 0
	for i := range backups {
		b := &backups[i]
		if !b.Valid() || !slices.Contains(probackup.Descendants(backups, full.ID), b.ID) {
			continue
		}
		chain, err := probackup.Chain(backups, b.ID)
		if err != nil || slices.ContainsFunc(chain, func(b probackup.Backup) bool { return !b.Valid() }) {
			continue
		}
		parent = b
		since++
	}
	if since >= fullEvery {
		return "FULL", fmt.Sprintf("%d backups were made since and with the full backup %s", since, full.ID)
	}
	if wal, whole := archived(parent); whole && wal <= parent.PGDataBytes/4 {
		return "PAGE", fmt.Sprintf("it builds on %s, since which there are %s of WAL", parent.ID, engine.Size(wal))
	}
	return "DELTA", "it builds on " + parent.ID
}

// archivedSince is how much WAL the archive has from a backup's start to the segment before the server's newest checkpoint, and
// whether none is missing.
func archivedSince(t *probackup.Tool, instance string, parent *probackup.Backup, control pg.Control) (int64, bool) {
	start, err := pg.ParseLSN(parent.StartLSN)
	if err != nil || start > control.Checkpoint || parent.Timeline != control.CheckpointTimeline {
		return 0, false
	}
	segments := pg.SegmentsBetween(control.CheckpointTimeline, start, control.Checkpoint, control.WALSegmentSize)
	for _, s := range segments[:len(segments)-1] {
		if _, err := t.WALFile(instance, s); err != nil {
			return 0, false
		}
	}
	return int64(len(segments)) * int64(control.WALSegmentSize), true
}

// probackupBackup is one cluster's backup in a run.
type probackupBackup struct {
	tool  *probackup.Tool
	chain []probackup.Backup // what a restore needs, the backup itself last
}

// backupProbackup backs every cluster up with pg_probackup: into the catalog apart, or into the one for staging and from there into
// the tarball, with every backup that it builds on.
func (r *run) backupProbackup(ctx context.Context) error {
	for _, c := range r.o.Clusters {
		r.step("backup_all", "postgres", c.Stanza)
		p, err := r.planProbackup(ctx, c)
		if err != nil {
			return err
		}
		r.set.Warnings = append(r.set.Warnings, p.Warnings...)
		if err := r.clearProbackup(ctx, p); err != nil {
			return err
		}
		b, err := r.runProbackup(ctx, c, p)
		if err != nil {
			return err
		}
		r.backups = append(r.backups, b)
		if r.o.Mode == catalog.Apart { // known from now on, so that a failed set's backup can be found and deleted
			r.set.Pieces = append(r.set.Pieces, catalog.Piece{Kind: catalog.Postgres, Tool: catalog.Probackup, Path: p.Catalog, Size: b.res.Line.RepoSizeDelta, Stanza: c.Stanza, Label: string(b.res.Label)})
			if err := r.o.Catalog.Put(ctx, r.set); err != nil {
				return err
			}
			continue
		}
		r.step("backup_all", "take-backup", c.Stanza)
		if err := r.takeProbackup(ctx, c, b.pb); err != nil {
			return err
		}
	}
	return nil
}

// clearProbackup removes what earlier runs of ours have left: backups that did not end, and in the catalog for staging those that
// nothing will be built on.
func (r *run) clearProbackup(ctx context.Context, p *ProbackupPlan) error {
	gone := map[string]bool{}
	for _, b := range p.before {
		ours := strings.HasPrefix(b.Note, probackupNote)
		if !ours || gone[b.ID] || b.Valid() && (r.o.Mode == catalog.Apart || p.Type != "FULL") {
			continue
		}
		r.step("backup_all", "clear", b.ID)
		if err := p.tool.Delete(ctx, p.Stanza, b.ID, false); err != nil {
			return err
		}
		for _, id := range probackup.Descendants(p.before, b.ID) {
			gone[id] = true
		}
	}
	return nil
}

func (r *run) runProbackup(ctx context.Context, c Cluster, p *ProbackupPlan) (*clusterBackup, error) {
	note := probackupNote + r.set.ID + " " + r.set.Run
	r.step("backup", "tool", p.Says+", "+p.Type+": "+p.Why)
	err := p.tool.Backup(ctx, c.Stanza, probackup.BackupOptions{Mode: p.Type, Note: note, Compression: r.o.Probackup.Compression, Threads: r.o.ProcessMax, ArchiveTimeout: r.o.ArchiveTimeout,
		Server: probackup.Server{DataDir: c.DataDir, Host: c.Conn.Host, Port: c.Conn.Port, User: c.Conn.User}})
	if err != nil {
		return nil, err
	}
	after, err := p.tool.Show(ctx, c.Stanza)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(after, func(b probackup.Backup) bool { return b.Note == note })
	if i < 0 {
		return nil, fmt.Errorf("cluster %s: pg_probackup backup ended well, but %s lists no backup with the note %q", c.Stanza, p.Catalog, note)
	}
	made := after[i]
	if made.Status != "OK" || made.Mode != p.Type {
		return nil, fmt.Errorf("cluster %s: pg_probackup backup ended well, but the %s backup %s has the status %s", c.Stanza, made.Mode, made.ID, made.Status)
	}
	chain, err := probackup.Chain(after, made.ID)
	if err != nil {
		return nil, fmt.Errorf("cluster %s: %w", c.Stanza, err)
	}
	control, _, err := pg.ReadControl(ctx, c.DataDir)
	if err != nil {
		return nil, err
	}
	start, err1 := pg.ParseLSN(made.StartLSN)
	stop, err2 := pg.ParseLSN(made.StopLSN)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("cluster %s: backup %s: %w", c.Stanza, made.ID, err)
	}
	stored := int64(0)
	for _, b := range chain {
		stored += b.DataBytes
	}
	res := &engine.BackupResult{Label: repo.Label(made.ID), DB: repo.DB{SystemID: control.SystemID, Version: p.Version},
		ArchiveStart: pg.SegmentName(made.Timeline, start, control.WALSegmentSize), ArchiveStop: pg.SegmentName(made.Timeline, stop, control.WALSegmentSize),
		Line: repo.BackupLine{LSNStart: made.StartLSN, LSNStop: made.StopLSN, Size: made.PGDataBytes, RepoSize: stored, RepoSizeDelta: made.DataBytes}}
	return &clusterBackup{Cluster: c, res: res, control: control, pb: &probackupBackup{tool: p.tool, chain: chain}}, nil
}

// takeProbackup puts an instance's settings and the chain of a backup into the tarball.
func (r *run) takeProbackup(ctx context.Context, c Cluster, b *probackupBackup) error {
	base := filepath.Join("backups", c.Stanza)
	if err := r.takeFile(b.tool.Dir, filepath.Join(base, "pg_probackup.conf")); err != nil {
		return err
	}
	for _, one := range b.chain {
		err := filepath.WalkDir(filepath.Join(b.tool.Dir, base, one.ID), func(path string, e fs.DirEntry, err error) error {
			if err = errors.Join(err, ctx.Err()); err != nil || e.IsDir() || strings.HasSuffix(e.Name(), ".pid") { // a lock of the program's
				return err
			}
			if !e.Type().IsRegular() {
				return fmt.Errorf("%s is no regular file, which pg_probackup does not make", path)
			}
			rel, err := filepath.Rel(b.tool.Dir, path)
			if err != nil {
				return err
			}
			return r.takeFile(b.tool.Dir, rel)
		})
		if err != nil {
			return fmt.Errorf("backup %s for the tarball: %w", one.ID, err)
		}
	}
	return nil
}

// takeFile puts one file of a backup catalog into the tarball.
func (r *run) takeFile(dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return fmt.Errorf("for the tarball: %w", err)
	}
	info, err := f.Stat()
	if err == nil {
		err = addFile(r.appTar, probackupPrefix+filepath.ToSlash(name), info, f)
	}
	return errors.Join(wrap(err, "%s for the tarball", name), f.Close())
}

func addFile(w *tarball.Writer, name string, info fs.FileInfo, f *os.File) error {
	return w.AddStored(name, 0o600, info.Size(), info.ModTime(), f)
}

// settleProbackup waits until the archive has the segments, and puts them, and the histories of timelines, into the tarball.
func (r *run) settleProbackup(ctx context.Context, b *clusterBackup, segments []string) error {
	if err := r.awaitProbackup(ctx, b.pb.tool, b.Cluster, segments); err != nil {
		return err
	}
	if r.o.Mode == catalog.Apart {
		return nil
	}
	files := []string{}
	for _, s := range segments {
		path, err := b.pb.tool.WALFile(b.Stanza, s)
		if err != nil {
			return err
		}
		files = append(files, path)
	}
	entries, err := os.ReadDir(b.pb.tool.WALDir(b.Stanza))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if pg.IsHistoryName(e.Name()) {
			files = append(files, filepath.Join(b.pb.tool.WALDir(b.Stanza), e.Name()))
		}
	}
	for _, f := range files {
		if err := errors.Join(ctx.Err(), r.takeFile(b.pb.tool.Dir, filepath.Join("wal", b.Stanza, filepath.Base(f)))); err != nil {
			return err
		}
	}
	return nil
}

// awaitProbackup waits until the catalog's archive has every one of the segments, at most the archive timeout for the next one.
func (a *App) awaitProbackup(ctx context.Context, t *probackup.Tool, c Cluster, segments []string) error {
	deadline := a.o.Now().Add(a.o.ArchiveTimeout)
	for len(segments) > 0 {
		_, err := t.WALFile(c.Stanza, segments[0])
		if err == nil {
			segments, deadline = segments[1:], a.o.Now().Add(a.o.ArchiveTimeout)
			continue
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if a.o.Now().After(deadline) {
			return fmt.Errorf("cluster %s: %w: %s is not in %s after %s; look at archive_command and its errors in the PostgreSQL log (pg_stat_archiver), then run: alation_action enable_backupv2",
				c.Stanza, engine.ErrArchiveTimeout, segments[0], t.WALDir(c.Stanza), a.o.ArchiveTimeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// trimProbackup removes from the catalog for staging what the tarball carries: the WAL before this run's backup, and the backup,
// unless the next one is to build on it.
func (r *run) trimProbackup(ctx context.Context) error {
	for _, b := range r.backups {
		t, full := b.pb.tool, b.pb.chain[0].ID
		all, err := t.Show(ctx, b.Stanza)
		if err != nil {
			return fmt.Errorf("staging catalog: %w", err)
		}
		stays := probackup.Descendants(all, full)
		for _, old := range all {
			if old.Full() && strings.HasPrefix(old.Note, probackupNote) && !slices.Contains(stays, old.ID) {
				if err := t.Delete(ctx, b.Stanza, old.ID, false); err != nil {
					return fmt.Errorf("staging catalog: %w", err)
				}
			}
		}
		if err := t.PurgeWAL(ctx, b.Stanza); err != nil { // while the backup says what is needed
			return fmt.Errorf("staging catalog: %w", err)
		}
		if r.o.Probackup.FullEvery <= 1 && strings.HasPrefix(b.pb.chain[0].Note, probackupNote) {
			if err := t.Delete(ctx, b.Stanza, full, false); err != nil {
				return fmt.Errorf("staging catalog: %w", err)
			}
		}
	}
	return nil
}

// planTool plans pg_probackup's part, and says what a change of the tool means.
func (a *App) planTool(ctx context.Context, p *BackupPlan, wrong func(error)) error {
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return err
	}
	for _, c := range a.o.Clusters {
		if note := a.chainNote(sets, c.Stanza); note != "" {
			p.Notes = append(p.Notes, note)
		}
		if !a.useProbackup() {
			continue
		}
		p.Repository = a.probackupDir()
		plan, err := a.planProbackup(ctx, c)
		if err != nil {
			wrong(err)
			continue
		}
		p.Probackup = append(p.Probackup, plan)
		p.Notes = append(p.Notes, plan.Warnings...)
	}
	return nil
}
