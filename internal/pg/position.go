package pg

import (
	"context"
	"fmt"
	"time"
)

// Position is what a server says of itself to a role without rights, as one that somebody else manages.
type Position struct {
	SystemID   uint64 // 0: the role may not see it
	Timeline   uint32 // 0: likewise
	LSN        LSN    // written durably; on a standby: replayed
	InRecovery bool
	Databases  []string // names, in byte order
	Now        time.Time
}

// Position asks for it.
func (c *Conn) Position(ctx context.Context) (Position, error) {
	var p Position
	var lsn string
	err := c.c.QueryRow(ctx, `select pg_is_in_recovery(), coalesce(case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_flush_lsn() end, '0/0')::text,
		clock_timestamp()`).Scan(&p.InRecovery, &lsn, &p.Now)
	if err == nil {
		p.LSN, err = ParseLSN(lsn)
	}
	if err != nil {
		return Position{}, fmt.Errorf("ask the server where it is: %w", err)
	}
	var may bool
	if err := c.c.QueryRow(ctx, `select has_function_privilege('pg_control_system()', 'execute') and has_function_privilege('pg_control_checkpoint()', 'execute')`).Scan(&may); err != nil {
		return Position{}, fmt.Errorf("ask the server for its identity: %w", err)
	}
	if may {
		var id int64
		var timeline int32
		if err := c.c.QueryRow(ctx, `select s.system_identifier, c.timeline_id from pg_control_system() s, pg_control_checkpoint() c`).Scan(&id, &timeline); err != nil {
			return Position{}, fmt.Errorf("ask the server for its identity: %w", err)
		}
		p.SystemID, p.Timeline = uint64(id), uint32(timeline) // bigint and int4 in SQL, unsigned in pg_control
	}
	dbs, err := c.Databases(ctx)
	if err != nil {
		return Position{}, err
	}
	for _, d := range dbs {
		p.Databases = append(p.Databases, d.Name)
	}
	return p, nil
}
