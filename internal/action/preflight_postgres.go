package action

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
)

const enableDo = "alation_action enable_backupv2"

// unsure is a finding of something that went wrong: certain, or, when the time of the look was over, only a warning.
func unsure(ctx context.Context, area, object, do string, err error) Finding {
	f := blocked(area, object, do, err)
	if ctx.Err() != nil {
		f.Severity = Warns
	}
	return f
}

// checkCluster is what every run needs of one cluster: the server of that data directory, which is no standby, archives, and lets the
// role in; the stanza; and that PostgreSQL's user gets to the repository.
func (a *App) checkCluster(ctx context.Context, c Cluster) []Finding {
	var found []Finding
	wrong := func(area, object, do string, err error) {
		if err != nil {
			found = append(found, unsure(ctx, area, object, do, err))
		}
	}
	control, _, err := pg.ReadControl(ctx, c.DataDir)
	wrong(AreaPostgres, c.DataDir, "start PostgreSQL there, or name the right data directory: alation_conf pgsql.clusters -s …", err)
	if a.useProbackup() {
		a.lookAtProbackup(ctx, c, control, err == nil, wrong)
	} else {
		wrong(AreaPrograms, c.Stanza, "", a.checkTool(c))
		wrong(AreaRights, a.o.RepoDir, "", a.checkReach(ctx, c))
		if err == nil {
			wrong(AreaRepository, a.o.RepoDir, enableDo, a.checkBelongs(ctx, c, control))
		}
	}
	found = append(found, a.checkServerOf(ctx, c, control, err == nil)...)
	if len(found) == 0 {
		found = append(found, fine(AreaPostgres, c.Stanza, "PostgreSQL %s in %s answers, archives, and is the one of the stanza", control.Version, c.DataDir))
	}
	return found
}

// lookAtProbackup is what a run by pg_probackup needs in place of a repository: the program, and its backup catalog with the
// cluster's instance.
func (a *App) lookAtProbackup(ctx context.Context, c Cluster, control pg.Control, known bool, wrong func(area, object, do string, err error)) {
	dir := a.probackupDir()
	wrong(AreaRights, dir, "", a.checkProbackupReach(ctx, c, dir))
	if !known {
		return
	}
	t, _, err := a.checkProbackup(ctx, c, control.Version.String(), dir, "preflight")
	if err != nil {
		wrong(AreaPrograms, c.Stanza, "", err)
		return
	}
	wrong(AreaRepository, dir, enableDo, a.checkInstance(ctx, c, t, control.SystemID))
}

// checkBelongs looks whether the stanza is the cluster's and may be worked with.
func (a *App) checkBelongs(ctx context.Context, c Cluster, control pg.Control) error {
	st, err := a.repository()
	if err != nil {
		return err
	}
	s, err := a.stanza(c.Stanza, st)
	if err != nil {
		return err
	}
	if err := s.Stopped(); err != nil {
		return err
	}
	return a.explainPass(s.Belongs(ctx, control))
}

func (a *App) checkServerOf(ctx context.Context, c Cluster, control pg.Control, known bool) (found []Finding) {
	wrong := func(area, do string, err error) {
		if err != nil {
			found = append(found, unsure(ctx, area, c.Stanza, do, err))
		}
	}
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		wrong(AreaPostgres, "start PostgreSQL, or correct host, port and user: alation_conf pgsql.clusters -s …", err)
		return found
	}
	defer conn.Close() // a session that only reads
	rights, err := conn.MissingRights(ctx)
	if err != nil { // what it can't be asked it may let us do
		found = append(found, warns(AreaPostgres, c.Stanza, "", "what the role %s may do can't be found out: %v", c.Conn.User, err))
	}
	for _, r := range rights {
		wrong(AreaPostgres, "as a superuser of that server: "+r.Grant, fmt.Errorf("the role %s lacks the right %s", c.Conn.User, r.Name))
	}
	if len(rights) > 0 {
		return found
	}
	facts, err := conn.Facts(ctx)
	if err != nil {
		wrong(AreaPostgres, "", err)
		return found
	}
	if known {
		wrong(AreaPostgres, "correct data, host and port: alation_conf pgsql.clusters -s …", engine.SameCluster(facts, control, c.DataDir))
	}
	if facts.InRecovery {
		wrong(AreaPostgres, "run it on the primary", errors.New("the server is a standby (in recovery): a restore point can't be made there"))
		return found
	}
	wrong(AreaArchiving, enableDo, engine.ArchiveSettings(ctx, conn, facts))
	return found
}

// Bounds of what waits to be archived and of what slots keep.
const (
	backlogFiles = 16
	backlogAge   = 10 * time.Minute
	slotHeld     = 64 << 20
	walReserve   = 64 << 20
)

// checkArchiving looks how archiving goes, and what else keeps WAL on the disk.
func (a *App) checkArchiving(ctx context.Context, c Cluster) []Finding {
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return nil // which is a finding of checkCluster
	}
	defer conn.Close() // a session that only reads
	facts, err := conn.Facts(ctx)
	if err != nil {
		return nil // likewise
	}
	var found []Finding
	state, err := conn.Archiver(ctx)
	times, terr := conn.ArchiverTimes(ctx)
	if err := errors.Join(err, terr); err != nil {
		return []Finding{unsure(ctx, AreaArchiving, c.Stanza, "", err)}
	}
	if f := a.checkCommand(ctx, c, facts, state, times.Failing()); f != nil {
		found = append(found, *f)
	}
	waiting, err := engine.WaitingWAL(c.DataDir)
	if err != nil {
		found = append(found, unsure(ctx, AreaArchiving, c.DataDir, "", err))
	}
	if times.Failing() {
		found = append(found, blocked(AreaArchiving, c.Stanza, "look into PostgreSQL's log for the reason, then: "+enableDo,
			fmt.Errorf("archiving fails: %s at %s, %d failures so far; a backup waits for its WAL in vain", times.FailedFile, times.Failed.UTC().Format(time.RFC3339), times.FailedCount)))
	}
	if waiting.Files >= backlogFiles || waiting.Files > 0 && a.o.Now().Sub(waiting.Oldest) > backlogAge {
		found = append(found, warns(AreaArchiving, c.DataDir, "see whether archiving fails or is too slow: holdfast pg check --stanza="+c.Stanza,
			"%d WAL file(s) wait to be archived, the oldest since %s, the next is %s", waiting.Files, waiting.Oldest.UTC().Format(time.RFC3339), waiting.First))
	}
	slots, err := conn.IdleSlots(ctx)
	if err != nil {
		found = append(found, unsure(ctx, AreaArchiving, c.Stanza, "", err))
	}
	for _, s := range slots {
		if s.Held >= slotHeld {
			found = append(found, warns(AreaArchiving, c.Stanza, fmt.Sprintf("if nobody needs it any more: select pg_drop_replication_slot('%s')", strings.ReplaceAll(s.Name, "'", "''")),
				"the %s replication slot %s, which nobody uses, keeps %s of WAL from being removed", s.Kind, s.Name, engine.Size(s.Held)))
		}
	}
	found = append(found, a.checkWALDisk(ctx, c, conn, int64(waiting.Files)*int64(facts.WALSegmentSize))...)
	if len(found) == 0 {
		found = append(found, fine(AreaArchiving, c.Stanza, "archive_command is Holdfast's, nothing waits"))
	}
	return found
}

// checkCommand looks whether archive_command is the one that the parameters give. Another that brings WAL here is only strange.
func (a *App) checkCommand(ctx context.Context, c Cluster, facts pg.ServerFacts, state pg.Archiver, failing bool) *Finding {
	into := a.o.RepoDir
	if a.useProbackup() {
		c.ArchiveCommand, into = a.archiveCommand(c, facts.Version.String()), a.probackupDir()
	}
	if former := formerCommand(facts.ArchiveCommand, a.useProbackup()); former != "" { // the other tool's, too, until the first backup
		facts.ArchiveCommand = strings.TrimSuffix(facts.ArchiveCommand, both+former)
	}
	if c.ArchiveCommand == "" || facts.ArchiveMode == "off" || facts.ArchiveCommand == c.ArchiveCommand && state.Library == "" {
		return nil
	}
	is := "archive_command is " + facts.ArchiveCommand
	if state.Library != "" {
		is = "archive_library is " + state.Library
	}
	if !failing && a.arrived(ctx, c, facts, state.LastDone) {
		f := warns(AreaArchiving, c.Stanza, enableDo, "%s, which is not what the parameters give; the last segment has arrived all the same", is)
		return &f
	}
	f := unsure(ctx, AreaArchiving, c.Stanza, enableDo, fmt.Errorf("%s: it does not bring WAL into %s", is, into))
	return &f
}

// arrived says whether the segment that the server archived last is in the repository, or in pg_probackup's archive.
func (a *App) arrived(ctx context.Context, c Cluster, facts pg.ServerFacts, segment string) bool {
	if a.useProbackup() {
		t, err := a.probackupAt(c, facts.Version.String(), a.probackupDir(), "doctor")
		if err != nil || !pg.IsSegmentName(segment) {
			return false
		}
		_, err = t.WALFile(c.Stanza, segment)
		return err == nil
	}
	st, err := a.repository()
	if err != nil {
		return false
	}
	s, err := a.stanza(c.Stanza, st)
	if err != nil {
		return false
	}
	has, err := s.HasSegment(ctx, facts.SystemID, facts.Version, segment)
	return err == nil && has
}

// checkWALDisk looks whether the disk of pg_wal has room for what the server lets itself keep: when it is full, PostgreSQL stops.
func (a *App) checkWALDisk(ctx context.Context, c Cluster, conn *pg.Conn, waiting int64) []Finding {
	dir := c.DataDir + "/pg_wal"
	volumes, err := volumesOf(dir)
	if err != nil {
		return []Finding{unsure(ctx, AreaDisks, dir, "", err)}
	}
	sizes, err := conn.Sizes(ctx)
	if err != nil {
		return []Finding{unsure(ctx, AreaPostgres, c.Stanza, "", err)}
	}
	const do = "make room there: when it is full PostgreSQL stops"
	switch free := volumes[0].freeBytes(); {
	case free < walReserve:
		return []Finding{blocked(AreaDisks, dir, do, fmt.Errorf("the disk of PostgreSQL's WAL is full: %s free", engine.Size(free)))}
	case free < sizes.MaxWALSize:
		return []Finding{warns(AreaDisks, dir, do, "the disk of PostgreSQL's WAL has %s free, less than max_wal_size (%s); %s wait to be archived", engine.Size(free), engine.Size(sizes.MaxWALSize), engine.Size(waiting))}
	}
	return nil
}

// checkStanza looks at the repository's info files, each of which exists twice.
func (a *App) checkStanza(ctx context.Context, c Cluster) []Finding {
	if a.useProbackup() {
		return nil // which has none
	}
	st, err := a.repository()
	if err != nil {
		return nil // which is a finding of checkCluster
	}
	s, err := a.stanza(c.Stanza, st)
	if err != nil || s.Exists(ctx) != nil {
		return nil // likewise
	}
	faults, err := s.InfoFaults(ctx)
	if err != nil {
		return []Finding{unsure(ctx, AreaRepository, a.o.RepoDir, "", err)}
	}
	var found []Finding
	for _, f := range faults {
		found = append(found, warns(AreaRepository, a.o.RepoDir, enableDo, "one of the two copies of an info file is of no use, and the other is the last: %s", f))
	}
	if len(found) == 0 {
		found = append(found, fine(AreaRepository, a.o.RepoDir, "opens, and stanza %s has both copies of its info files", c.Stanza))
	}
	return found
}
