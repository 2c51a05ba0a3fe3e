package pg

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Right is one that a role lacks, and the statement with which a superuser gives it.
type Right struct {
	Name  string // "to run pg_backup_start"
	Grant string
}

// MissingRights lists what this session's role may not do and a backup needs: reading settings, and the functions that begin and
// end a backup, name a restore point and end a WAL segment. Empty: it may do all.
func (c *Conn) MissingRights(ctx context.Context) ([]Right, error) {
	functions := []string{"pg_backup_start(text, boolean)", "pg_backup_stop(boolean)", "pg_create_restore_point(text)", "pg_switch_wal()"}
	if c.version < 15 {
		functions[0], functions[1] = "pg_start_backup(text, boolean, boolean)", "pg_stop_backup(boolean, boolean)"
	}
	var role string
	var reads bool
	if err := c.c.QueryRow(ctx, "select quote_ident(current_user), pg_has_role(current_user, 'pg_read_all_settings', 'USAGE')").Scan(&role, &reads); err != nil {
		return nil, fmt.Errorf("ask for the role's rights: %w", err)
	}
	missing := []Right{}
	if !reads {
		missing = append(missing, Right{"to read all settings", "grant pg_read_all_settings to " + role})
	}
	rows, err := c.c.Query(ctx, "select f from unnest($1::text[]) f where not has_function_privilege(current_user, 'pg_catalog.' || f, 'EXECUTE')", functions)
	if err != nil {
		return nil, fmt.Errorf("ask for the role's rights: %w", err)
	}
	denied, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("ask for the role's rights: %w", err)
	}
	for _, f := range denied {
		name, _, _ := strings.Cut(f, "(")
		missing = append(missing, Right{"to run " + name, fmt.Sprintf("grant execute on function pg_catalog.%s to %s", f, role)})
	}
	return missing, nil
}

// Slot is a replication slot that nobody uses at the moment and that keeps WAL.
type Slot struct {
	Name   string
	Kind   string // physical or logical
	Held   int64  // bytes of WAL that it keeps
	Status string // pg_replication_slots.wal_status
}

// IdleSlots lists them, the one that keeps most first.
func (c *Conn) IdleSlots(ctx context.Context) ([]Slot, error) {
	rows, err := c.c.Query(ctx, `select slot_name::text, slot_type, coalesce(pg_wal_lsn_diff(
		case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end, restart_lsn), 0)::int8 as held, coalesce(wal_status, '')
		from pg_replication_slots where not active and restart_lsn is not null order by held desc, slot_name`)
	if err == nil {
		var list []Slot
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Slot]); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list replication slots: %w", err)
}

// ArchiverTimes says when archiving last worked and last failed, by the server's clock. A zero time: never, since its statistics began.
type ArchiverTimes struct {
	Done, Failed time.Time
	FailedFile   string // that failed last
	FailedCount  int64
	Now          time.Time
}

// Failing says whether the last attempt was a failure.
func (t ArchiverTimes) Failing() bool { return t.Failed.After(t.Done) }

// ArchiverTimes asks pg_stat_archiver.
func (c *Conn) ArchiverTimes(ctx context.Context) (ArchiverTimes, error) {
	var t ArchiverTimes
	var done, failed *time.Time
	err := c.c.QueryRow(ctx, "select last_archived_time, last_failed_time, coalesce(last_failed_wal, ''), failed_count, clock_timestamp() from pg_stat_archiver").
		Scan(&done, &failed, &t.FailedFile, &t.FailedCount, &t.Now)
	if err != nil {
		return t, fmt.Errorf("ask pg_stat_archiver: %w", err)
	}
	if done != nil {
		t.Done = *done
	}
	if failed != nil {
		t.Failed = *failed
	}
	return t, nil
}

// Sizes is how large a cluster's databases are, in bytes, with their tablespaces, and how much WAL it lets itself keep.
type Sizes struct {
	Databases  int64
	MaxWALSize int64
}

// Sizes asks the server. Databases that the role may not measure count as nothing.
func (c *Conn) Sizes(ctx context.Context) (Sizes, error) {
	var s Sizes
	err := c.c.QueryRow(ctx, `select coalesce(sum(case when has_database_privilege(oid, 'CONNECT') or pg_has_role(current_user, 'pg_read_all_stats', 'USAGE')
		then pg_database_size(oid) end), 0)::int8, pg_size_bytes(current_setting('max_wal_size')) from pg_database`).Scan(&s.Databases, &s.MaxWALSize)
	if err != nil {
		return s, fmt.Errorf("measure the databases: %w", err)
	}
	return s, nil
}

// Extension is one that a database has.
type Extension struct{ Name, Version string }

// Locale is what the order of text in a database depends on.
type Locale struct {
	Database string
	Connects bool   // sessions are allowed
	Provider string // libc, icu or builtin
	Collate  string // libc's names, also where another provider sorts
	Ctype    string
	Name     string // of the provider that is not libc
	Version  string // of the default collation when the database was made or refreshed; "" where none is recorded (before 15: always)
	Actual   string // of the default collation on this machine; "" where it has none
}

// Text is the name of the locale that sorts.
func (l Locale) Text() string {
	if l.Provider == "libc" {
		return l.Collate
	}
	return l.Name
}

// providers are PostgreSQL's letters for who knows a collation's order.
func provider(letter string) string {
	switch letter {
	case "i":
		return "icu"
	case "b":
		return "builtin"
	}
	return "libc"
}

// Locales lists those of all databases, by name in byte order.
func (c *Conn) Locales(ctx context.Context) ([]Locale, error) {
	actual := "''"
	if c.version >= 15 {
		actual = "coalesce(pg_database_collation_actual_version(d.oid), '')"
	}
	// Columns have come and changed their names: a row as JSON has those that there are.
	rows, err := c.c.Query(ctx, `select datname::text, datallowconn, coalesce(j->>'datlocprovider', 'c'), datcollate::text, datctype::text,
		coalesce(j->>'datlocale', j->>'daticulocale', ''), coalesce(j->>'datcollversion', ''), `+actual+`
		from pg_database d, lateral to_jsonb(d) j order by datname::text collate "C"`)
	if err == nil {
		var list []Locale
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Locale]); err == nil {
			for i := range list {
				list[i].Provider = provider(list[i].Provider)
			}
			return list, nil
		}
	}
	return nil, fmt.Errorf("list locales of the databases: %w", err)
}

// Extensions lists those of the session's database, by name.
func (c *Conn) Extensions(ctx context.Context) ([]Extension, error) {
	rows, err := c.c.Query(ctx, `select extname::text, extversion from pg_extension order by extname::text collate "C"`)
	if err == nil {
		var list []Extension
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Extension]); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list extensions: %w", err)
}

// Installation is what a server needs of its machine to start.
type Installation struct {
	Server  string   // its own words for its version: "15.14 (Debian 15.14-0+deb12u1)"
	Preload []string // names in shared_preload_libraries, as they are there
	Locales []string // libc's names in lc_messages and the like, sorted, each once
}

// Installation asks the server.
func (c *Conn) Installation(ctx context.Context) (Installation, error) {
	var i Installation
	var preload string
	var locales []string
	err := c.c.QueryRow(ctx, `select current_setting('server_version'), current_setting('shared_preload_libraries'),
		array(select distinct setting from pg_settings where name in ('lc_messages', 'lc_monetary', 'lc_numeric', 'lc_time') and setting <> '')`).Scan(&i.Server, &preload, &locales)
	if err != nil {
		return i, fmt.Errorf("ask the server for what it needs to start: %w", err)
	}
	for name := range strings.SplitSeq(preload, ",") {
		if name = strings.Trim(strings.TrimSpace(name), `"`); name != "" {
			i.Preload = append(i.Preload, name)
		}
	}
	slices.Sort(locales)
	i.Locales = locales
	return i, nil
}
