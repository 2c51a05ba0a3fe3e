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

// Where the tool that makes the PostgreSQL backups changes, WAL goes to the old tool's archive and to the new one's until the first
// backup of the new tool is complete, so that every moment until then can be reached from the sets of before, and every moment
// after it from that backup. archive_command then runs the new tool's command and, if that ended well, the old one's; PostgreSQL
// keeps a segment until both have it.

// both joins the two commands of archive_command.
const both = " && "

// ofProbackup and ofPgbackrest say whose an archive_command is. Built-in engine and pgbackrest write the same archive.
func ofProbackup(command string) bool {
	return strings.Contains(command, "archive-push") && strings.Contains(command, "--instance")
}

func ofPgbackrest(command string) bool {
	return strings.Contains(command, "archive-push") && strings.Contains(command, "--stanza")
}

// formerCommand is the part of an archive_command that pushes to the other tool's archive; empty: there is none.
func formerCommand(command string, useProbackup bool) string {
	parts := strings.Split(command, both)
	if len(parts) > 2 { // nothing that we wrote
		return ""
	}
	for _, p := range parts {
		if useProbackup && ofPgbackrest(p) && !ofProbackup(p) || !useProbackup && ofProbackup(p) && !ofPgbackrest(p) {
			return p
		}
	}
	return ""
}

// keepFormer makes the command that c is to get push to the other tool's archive as well, if the server's does so now. It returns
// that part.
func (a *App) keepFormer(ctx context.Context, conn *pg.Conn, c *Cluster) (string, error) {
	now, _, err := conn.Setting(ctx, "archive_command")
	if err != nil {
		return "", err
	}
	return a.andFormer(now, c), nil
}

func (a *App) andFormer(now string, c *Cluster) string {
	if a.o.Probackup == nil {
		return ""
	}
	former := formerCommand(now, a.useProbackup())
	if former != "" {
		c.ArchiveCommand += both + former
	}
	return former
}

// confirmFormer makes sure that a segment that the new archive has is in the other one as well: PostgreSQL counts it only then. If
// it does not get there the new archive alone is used from now on, since WAL would pile up, and that is said.
func (a *App) confirmFormer(ctx context.Context, c Cluster, own, former string, res *ArchivingResult) error {
	if former == "" || res.Segment == "" {
		return nil
	}
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return err
	}
	err = awaitCounted(ctx, conn, res.Segment, a.o.ArchiveTimeout)
	res.Both = err == nil
	if errors.Is(err, engine.ErrArchiveTimeout) {
		err = useCommand(ctx, conn, own)
		a.warn("cluster %s: the archive of the tool before does not take WAL any more (its command was: %s), so that it is not given any: the sets of before can be recovered to any time until now. "+
			"Make a backup at once: alation_action backup_all", c.Stanza, former)
	} else if err == nil {
		res.Notes = append(res.Notes, "WAL goes to the archive of the tool before as well, until the first backup is complete: run alation_action backup_all soon")
	}
	return errors.Join(err, conn.Close())
}

// awaitCounted waits until PostgreSQL says that a segment is archived.
func awaitCounted(ctx context.Context, conn *pg.Conn, segment string, timeout time.Duration) error {
	for deadline := time.Now().Add(timeout); ; {
		s, err := conn.Archiver(ctx)
		if err != nil {
			return err
		}
		if len(s.LastDone) >= len(segment) && s.LastDone[:len(segment)] >= segment {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: PostgreSQL has not archived %s after %s", engine.ErrArchiveTimeout, segment, timeout)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// useCommand makes the server use an archive_command.
func useCommand(ctx context.Context, conn *pg.Conn, command string) error {
	if err := conn.AlterSystem(ctx, "archive_command", command); err != nil {
		return err
	}
	if err := conn.Reload(ctx); err != nil {
		return err
	}
	return awaitSetting(ctx, conn, "archive_command", command)
}

// endBoth ends the archiving to the other tool's archive: there is a complete set of this tool. What goes wrong is a warning of
// the set; the next run tries again.
func (r *run) endBoth(ctx context.Context) {
	if r.o.Probackup == nil {
		return
	}
	for _, b := range r.backups {
		if err := r.endBothOf(ctx, b.Cluster); err != nil {
			r.set.Warnings = append(r.set.Warnings, fmt.Sprintf("cluster %s: WAL still goes to the archive of the tool before as well: %v", b.Stanza, err))
		}
	}
}

func (r *run) endBothOf(ctx context.Context, c Cluster) error {
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return err
	}
	now, _, err := conn.Setting(ctx, "archive_command")
	if err == nil {
		former := formerCommand(now, r.useProbackup())
		if own, ok := strings.CutSuffix(now, both+former); ok && former != "" {
			r.step("backup_all", "end-both", c.Stanza)
			err = useCommand(ctx, conn, own)
		}
	}
	return errors.Join(err, conn.Close())
}

// enableProbackup is enableCluster with pg_probackup: makes the catalog and the instance, and points archiving at them.
func (a *App) enableProbackup(ctx context.Context, c Cluster) (ArchivingResult, error) {
	res := ArchivingResult{Stanza: c.Stanza}
	a.step("enable_backupv2", "catalog", c.Stanza)
	version, err := versionOf(c)
	if err != nil {
		return res, err
	}
	t, _, err := a.checkProbackup(ctx, c, version, a.probackupDir(), "enable_backupv2")
	if err != nil {
		return res, err
	}
	if err := a.checkProbackupReach(ctx, c, t.Dir); err != nil {
		return res, err
	}
	if res.Outcome, err = a.createProbackup(ctx, c, t); err != nil {
		return res, err
	}
	if err := a.checkProbackupReach(ctx, c, t.Dir); err != nil { // what has just been made
		return res, err
	}
	own := a.archiveCommand(c, version)
	c.ArchiveCommand = own
	former, segment, err := a.pointArchiving(ctx, &c, &res)
	if err != nil {
		return res, err
	}
	if err := a.awaitProbackup(ctx, t, c, []string{segment}); err != nil {
		return res, err
	}
	res.Segment = segment
	return res, a.confirmFormer(ctx, c, own, former, &res)
}

// pointArchiving writes the settings and forces a segment.
func (a *App) pointArchiving(ctx context.Context, c *Cluster, res *ArchivingResult) (former, segment string, err error) {
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return "", "", err
	}
	former, err = a.keepFormer(ctx, conn, c)
	if err == nil {
		err = a.writeSettings(ctx, conn, *c, res)
	}
	if err == nil && len(res.NeedsRestart) > 0 {
		err = needsRestart(*c, res)
	}
	if err == nil {
		a.step("enable_backupv2", "check", c.Stanza)
		if _, err = conn.CreateRestorePoint(ctx, "Holdfast archive check"); err == nil {
			_, segment, err = conn.SwitchWAL(ctx)
		}
	}
	return former, segment, errors.Join(err, conn.Close())
}

func needsRestart(c Cluster, res *ArchivingResult) error {
	return fmt.Errorf("%w for %s: restart the server on %s, then run alation_action enable_backupv2 again", ErrRestart, strings.Join(res.NeedsRestart, " and "), c.DataDir)
}

// ArchivingPlan is what enable_backupv2 would do for one cluster.
type ArchivingPlan struct {
	Stanza string   `json:"stanza"`
	Tool   string   `json:"tool"`
	Place  string   `json:"place"` // repository, or backup catalog
	Now    string   `json:"now"`   // archive_command
	Then   string   `json:"then"`
	Both   bool     `json:"both"` // WAL goes to the archive of the tool before as well
	Notes  []string `json:"notes,omitempty"`
	Wrong  string   `json:"wrong,omitempty"`
}

// PlanArchiving says what EnableArchiving would do. It changes nothing.
func (a *App) PlanArchiving(ctx context.Context) ([]ArchivingPlan, error) {
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return nil, err
	}
	var plans []ArchivingPlan
	for _, c := range a.o.Clusters {
		p := ArchivingPlan{Stanza: c.Stanza, Tool: toolName(a.currentTool()), Place: a.o.RepoDir}
		if a.useProbackup() {
			p.Place = a.probackupDir()
		}
		if note := a.chainNote(sets, c.Stanza); note != "" {
			p.Notes = append(p.Notes, note)
		}
		if err := a.planArchiving(ctx, c, &p); err != nil {
			p.Wrong = err.Error()
		}
		plans = append(plans, p)
	}
	return plans, ctx.Err()
}

func (a *App) planArchiving(ctx context.Context, c Cluster, p *ArchivingPlan) error {
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return err
	}
	p.Now, _, err = conn.Setting(ctx, "archive_command")
	if err = errors.Join(err, conn.Close()); err != nil {
		return err
	}
	if a.useProbackup() {
		version, err := versionOf(c)
		if err == nil {
			_, _, err = a.checkProbackup(ctx, c, version, a.probackupDir(), "enable_backupv2")
		}
		if err != nil {
			return err
		}
		c.ArchiveCommand = a.archiveCommand(c, version)
	} else if err := a.checkTool(c); err != nil {
		return err
	}
	former := a.andFormer(p.Now, &c)
	p.Then, p.Both = c.ArchiveCommand, former != ""
	if p.Both {
		p.Notes = append(p.Notes, fmt.Sprintf("until the first backup of %s is complete WAL goes to both archives, so that no moment is lost between the sets of before and that backup", p.Tool))
	}
	return nil
}
