package pg

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// BackupStarted is the answer of pg_backup_start.
type BackupStarted struct {
	LSN     LSN
	Segment string    // that holds LSN
	Time    time.Time // the server's clock just before
}

// BackupStopped is the answer of pg_backup_stop.
type BackupStopped struct {
	LSN           LSN
	Segment       string // as the server names it: before 17 the one before, if LSN is the first of a segment
	BackupLabel   []byte // content for the file backup_label
	TablespaceMap []byte // content for the file tablespace_map, blank without tablespaces
	Time          time.Time
}

// backupFunctions is how a major version calls its backup functions (PostgreSQL manual, 26.3.3 Making a Base Backup
// Using the Low Level API). 15 renamed them and dropped the exclusive mode.
func (v Version) backupFunctions() (start, stop string) {
	if v < 15 {
		return "pg_start_backup($1, $2, exclusive := false)", "pg_stop_backup(exclusive := false, wait_for_archive := false)"
	}
	return "pg_backup_start($1, $2)", "pg_backup_stop(wait_for_archive := false)"
}

// walFileName is an SQL expression for the segment name of lsn. The server's own function refuses to work on a
// standby; there NULL is sent, and the caller computes the name.
const walFileName = "case when pg_is_in_recovery() then null else pg_walfile_name(lsn) end"

// BackupStart begins a non-exclusive backup: the session must stay open until BackupStop, because losing it (a crash of
// Holdfast, the network, a cancelled context) makes the server abort the backup, with nothing to clean up. fast asks for
// an immediate checkpoint; otherwise the server spreads it, and this call can take minutes. An empty label becomes
// "pgBackRest backup started at <the server's time>".
func (c *Conn) BackupStart(ctx context.Context, label string, fast bool) (BackupStarted, error) {
	if c.inBackup {
		return BackupStarted{}, errors.New("start backup: this session is in a backup already")
	}
	var s BackupStarted
	var defaultLabel string
	err := c.c.QueryRow(ctx, "select t, 'pgBackRest backup started at ' || to_char(t, 'YYYY-MM-DD HH24:MI:SS TZ') from clock_timestamp() t").Scan(&s.Time, &defaultLabel)
	if err != nil {
		return BackupStarted{}, fmt.Errorf("start backup: ask for the server's time: %w", err)
	}
	if label == "" {
		label = defaultLabel
	}
	var lsn string
	var segment *string
	var timeline uint32
	start, _ := c.version.backupFunctions()
	// The checkpoint that starts the backup has been written when the second query reads the timeline.
	err = c.c.QueryRow(ctx, "select lsn::text, "+walFileName+" from "+start+" as lsn", label, fast).Scan(&lsn, &segment)
	if err == nil {
		c.inBackup = true
		err = c.c.QueryRow(ctx, "select timeline_id from pg_control_checkpoint()").Scan(&timeline)
	}
	if err != nil {
		return BackupStarted{}, c.abandon(fmt.Errorf("start backup: %w", c.sessionLost(err)))
	}
	if s.LSN, err = parseServerLSN("start backup", lsn); err != nil {
		return BackupStarted{}, c.abandon(err)
	}
	if segment == nil {
		s.Segment = SegmentName(timeline, s.LSN, c.segmentSize)
	} else {
		s.Segment = *segment
	}
	return s, nil
}

// BackupStop ends the backup that BackupStart of this session began, without waiting for the archive. If it fails the
// backup is worth nothing: the session is closed, so that the server is not left in backup mode.
func (c *Conn) BackupStop(ctx context.Context) (BackupStopped, error) {
	if !c.inBackup {
		return BackupStopped{}, errors.New("stop backup: this session has not started a backup")
	}
	var s BackupStopped
	var lsn, backupLabel, tablespaceMap string
	var segment *string
	var timeline uint32
	_, stop := c.version.backupFunctions()
	err := c.c.QueryRow(ctx, "select lsn::text, "+walFileName+", labelfile, spcmapfile, clock_timestamp(), (select timeline_id from pg_control_checkpoint()) from "+stop).
		Scan(&lsn, &segment, &backupLabel, &tablespaceMap, &s.Time, &timeline)
	if err != nil {
		return BackupStopped{}, c.abandon(fmt.Errorf("stop backup: %w", c.sessionLost(err)))
	}
	c.inBackup = false
	if s.LSN, err = parseServerLSN("stop backup", lsn); err != nil {
		return BackupStopped{}, err
	}
	if segment == nil {
		s.Segment = SegmentName(timeline, s.LSN, c.segmentSize)
	} else {
		s.Segment = *segment
	}
	if strings.TrimSpace(backupLabel) == "" {
		return BackupStopped{}, errors.New("stop backup: the server returned an empty backup_label")
	}
	s.BackupLabel, s.TablespaceMap = []byte(backupLabel), []byte(tablespaceMap)
	return s, nil
}

// abandon closes the session after a failed start or stop.
func (c *Conn) abandon(cause error) error { return errors.Join(cause, c.Close()) }

// CreateRestorePoint writes a named point into the WAL to which recovery_target_name can lead, and returns the position
// after it. The name has 1 to 63 bytes; the server must not be in recovery.
func (c *Conn) CreateRestorePoint(ctx context.Context, name string) (LSN, error) {
	if len(name) < 1 || len(name) > 63 || strings.ContainsRune(name, 0) {
		return 0, fmt.Errorf("create restore point: name %.70q must have 1 to 63 bytes", name)
	}
	var text string
	if err := c.c.QueryRow(ctx, "select pg_create_restore_point($1)::text", name).Scan(&text); err != nil {
		return 0, fmt.Errorf("create restore point %q: %w", name, err)
	}
	return parseServerLSN("create restore point", text)
}

// Commit writes a commit that changes nothing into the WAL, with the server's time. Recovery to a time ends before the first commit
// that is later, and fails where there is none: a cluster that nobody writes to needs one. The server must not be in recovery.
func (c *Conn) Commit(ctx context.Context) error {
	if err := c.c.QueryRow(ctx, "select pg_current_xact_id()::text").Scan(new(string)); err != nil {
		return fmt.Errorf("write a commit: %w", err)
	}
	return nil
}

// SwitchWAL ends the current segment, so that the server archives it, and returns the position of that end and the name
// of the ended segment. If nothing was written since the last switch the server does nothing: lsn is the start of the
// untouched segment, and segment the one before it. CreateRestorePoint first makes sure that there is something to
// switch. The server must not be in recovery.
func (c *Conn) SwitchWAL(ctx context.Context) (lsn LSN, segment string, err error) {
	var text, current string
	err = c.c.QueryRow(ctx, "select pg_switch_wal()::text, pg_walfile_name(pg_current_wal_lsn())").Scan(&text, &current)
	if err != nil {
		return 0, "", fmt.Errorf("switch WAL segment: %w", err)
	}
	if lsn, err = parseServerLSN("switch WAL segment", text); err != nil {
		return 0, "", err
	}
	timeline, _, err := ParseSegmentName(current, c.segmentSize)
	if err != nil {
		return 0, "", fmt.Errorf("switch WAL segment: answer of the server: %w", err)
	}
	if lsn == 0 {
		return 0, "", errors.New("switch WAL segment: the server answered position 0/0")
	}
	return lsn, SegmentName(timeline, lsn-1, c.segmentSize), nil
}

// AwaitReplay waits on a standby until it has replayed the WAL up to lsn and has a restart point at or after it, so that
// its files may be copied for a backup that starts at lsn. It gives up when nothing was replayed for timeout.
func (c *Conn) AwaitReplay(ctx context.Context, lsn LSN, timeout time.Duration) error {
	moved, last := time.Now(), LSN(0)
	asked := false
	for {
		var replayed, checkpoint string
		err := c.c.QueryRow(ctx, "select coalesce(pg_last_wal_replay_lsn(), '0/0')::text, (select checkpoint_lsn::text from pg_control_checkpoint())").Scan(&replayed, &checkpoint)
		if err != nil {
			return fmt.Errorf("wait for the standby: %w", err)
		}
		at, err := parseServerLSN("wait for the standby", replayed)
		if err != nil {
			return err
		}
		point, err := parseServerLSN("wait for the standby", checkpoint)
		if err != nil {
			return err
		}
		if at >= lsn && point >= lsn {
			return nil
		}
		if at >= lsn && !asked {
			asked = true
			if _, err := c.c.Exec(ctx, "checkpoint"); err != nil {
				return fmt.Errorf("wait for the standby: ask for a restart point: %w", err)
			}
			continue
		}
		if at > last {
			moved, last = time.Now(), at
		}
		if time.Since(moved) > timeout {
			return fmt.Errorf("the standby has replayed WAL up to %s (last restart point %s), the backup starts at %s: is replication running? See pg_stat_wal_receiver on the standby", at, point, lsn)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}
