package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
)

// ArchivingResult is what enable_backupv2 did for one cluster.
type ArchivingResult struct {
	Stanza       string               `json:"stanza"`
	Outcome      engine.CreateOutcome `json:"outcome"`
	Changed      []string             `json:"changed"`           // settings written
	NeedsRestart []string             `json:"restart,omitempty"` // settings that wait for a restart
	Segment      string               `json:"segment,omitempty"` // the segment that was seen to arrive
	Both         bool                 `json:"both,omitempty"`    // WAL goes to the archive of the tool before as well, for now
	Notes        []string             `json:"notes,omitempty"`
}

// ErrRestart says that archiving is configured but begins only after a restart of PostgreSQL.
var ErrRestart = errors.New("PostgreSQL has to be restarted once")

// EnableArchiving points the WAL archiving of every cluster at the configured repository: creates or upgrades the stanza,
// writes archive_command (and wal_level, archive_mode where they are unfit) with ALTER SYSTEM, reloads, forces a segment
// and waits until it is in the archive. Where archive_mode was off PostgreSQL needs a restart: ErrRestart says so, with
// everything else done. It can be repeated.
func (a *App) EnableArchiving(ctx context.Context) ([]ArchivingResult, error) {
	unlock, err := a.lock(ctx, "enable_backupv2")
	if err != nil {
		return nil, err
	}
	var results []ArchivingResult
	var restart error
	for _, c := range a.o.Clusters {
		var res ArchivingResult
		if res, err = a.enableCluster(ctx, c); err != nil && !errors.Is(err, ErrRestart) {
			err = fmt.Errorf("cluster %s: %w", c.Stanza, err)
			break
		}
		if err != nil {
			restart, err = errors.Join(restart, fmt.Errorf("cluster %s: %w", c.Stanza, err)), nil
		}
		results = append(results, res)
	}
	if err == nil && restart == nil && a.o.RepoPass == "" && a.o.PassFile != "" { // no archive_command names it any more
		if err = os.Remove(a.o.PassFile); errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
	}
	return results, errors.Join(err, restart, unlock())
}

func (a *App) enableCluster(ctx context.Context, c Cluster) (ArchivingResult, error) {
	if a.useProbackup() {
		return a.enableProbackup(ctx, c)
	}
	res := ArchivingResult{Stanza: c.Stanza}
	a.step("enable_backupv2", "stanza", c.Stanza)
	st, err := a.repository()
	if err != nil {
		return res, err
	}
	s, err := a.stanza(c.Stanza, st)
	if err != nil {
		return res, err
	}
	if err := a.checkTool(c); err != nil {
		return res, err
	}
	if err := a.checkReach(ctx, c); err != nil {
		return res, err
	}
	if res.Outcome, err = a.createStanza(ctx, c, st); err != nil {
		return res, err
	}
	if err := a.checkReach(ctx, c); err != nil { // what has just been made
		return res, err
	}
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return res, err
	}
	own := c.ArchiveCommand
	former, err := a.keepFormer(ctx, conn, &c)
	if err == nil {
		err = a.writeSettings(ctx, conn, c, &res)
	}
	if err = errors.Join(err, conn.Close()); err != nil {
		return res, err
	}
	if len(res.NeedsRestart) > 0 {
		return res, needsRestart(c, &res)
	}
	a.step("enable_backupv2", "check", c.Stanza)
	check, err := s.Check(ctx, engine.CheckOptions{Conn: c.Conn, DataDir: c.DataDir, ArchiveTimeout: a.o.ArchiveTimeout})
	if err != nil {
		return res, err
	}
	res.Segment = check.Segment
	return res, a.confirmFormer(ctx, c, own, former, &res)
}

// writeSettings changes only what is unfit, so that a repeated call changes nothing.
func (a *App) writeSettings(ctx context.Context, conn *pg.Conn, c Cluster, res *ArchivingResult) error {
	a.step("enable_backupv2", "settings", c.Stanza)
	for _, want := range []struct {
		name  string
		fit   func(string) bool
		value string
	}{
		{"wal_level", fitLevel, "replica"},
		{"archive_mode", fitMode, "on"},
		{"archive_command", func(v string) bool { return v == c.ArchiveCommand }, c.ArchiveCommand},
	} {
		value, _, err := conn.Setting(ctx, want.name)
		if err != nil {
			return err
		}
		// With archive_mode off the server shows "(disabled)" for the command, whatever it is.
		if want.fit(value) {
			continue
		}
		if err := conn.AlterSystem(ctx, want.name, want.value); err != nil {
			return err
		}
		res.Changed = append(res.Changed, want.name)
	}
	if err := conn.Reload(ctx); err != nil {
		return err
	}
	for name, fit := range map[string]func(string) bool{"wal_level": fitLevel, "archive_mode": fitMode} {
		value, _, err := conn.Setting(ctx, name) // these two only change with a restart
		if err != nil {
			return err
		}
		if !fit(value) {
			res.NeedsRestart = append(res.NeedsRestart, name)
		}
	}
	slices.Sort(res.NeedsRestart)
	if len(res.NeedsRestart) > 0 {
		return nil
	}
	return awaitSetting(ctx, conn, "archive_command", c.ArchiveCommand)
}

func fitLevel(v string) bool { return v == "replica" || v == "logical" }
func fitMode(v string) bool  { return v == "on" || v == "always" }

// awaitSetting waits until the server has read its configuration again.
func awaitSetting(ctx context.Context, conn *pg.Conn, name, want string) error {
	for range 100 {
		value, _, err := conn.Setting(ctx, name)
		if err != nil {
			return err
		}
		if value == want {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("%s is set with ALTER SYSTEM, but the server does not use it: it may be given on the server's command line, which wins", name)
}
