package pg

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	defaultConnectTimeout = 30 * time.Second
	closeTimeout          = 5 * time.Second
	applicationName       = "holdfast"

	invalidAuthorization = "28000" // SQLSTATE: among others, "peer" authentication failed
)

// ConnOptions says how to reach a server. Nothing else does: PG… variables have no effect, nor has ~/.pgpass (except that
// the driver refuses to work if PGSERVICE names a service that does not exist).
type ConnOptions struct {
	Host     string // host name or socket directory
	Port     int    // default 5432
	User     string
	Password Secret
	Database string        // default "postgres"
	Timeout  time.Duration // for connecting, not for queries; default 30 s, or Query when that is less
	Query    time.Duration // for one query, which the server then ends with an error, and we if it does not; 0: as long as it takes

	PassFile          string // in libpq's form (~/.pgpass), asked when Password is empty; "": none
	SSLMode, SSLRoots string // as PGSSLMODE and PGSSLROOTCERT; "": encrypted if the server can, whoever it is
}

// ErrConnect says that no session could be opened: there is no server, or it does not let us in.
var ErrConnect = errors.New("no connection to PostgreSQL")

// connectError is err, which is an ErrConnect.
type connectError struct{ error }

func (e connectError) Is(target error) bool { return target == ErrConnect }
func (e connectError) Unwrap() error        { return e.error }

// Conn is one session; not safe for concurrent use. A context that ends during a call closes the session, because the
// answer of the server could no longer be told from the next one.
type Conn struct {
	c           session
	version     Version
	segmentSize uint32
	inBackup    bool
}

// Connect opens a session with all timeouts of the server off, but the one asked for, and application_name holdfast. It fails with
// *UnsupportedVersionError on servers outside 13 to 18. Root connects to a socket as the role's namesake, so that "peer"
// authentication lets it in. No error contains the password.
func Connect(ctx context.Context, o ConnOptions) (*Conn, error) {
	config, err := connConfig(o)
	if err != nil {
		return nil, fmt.Errorf("connect to PostgreSQL: %w", err)
	}
	raw, err := connect(ctx, config, peerUser(o))
	if err != nil {
		return nil, connectError{fmt.Errorf("connect to PostgreSQL at %s port %d as %s: %w", config.Host, config.Port, config.User, err)}
	}
	c := &Conn{c: newSession(raw, o.Query)}
	if err := c.prepare(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to PostgreSQL at %s port %d: %w", config.Host, config.Port, err), c.Close())
	}
	return c, nil
}

// connect opens the session as the given user of the operating system, if that is not 0; as this process is, if it
// is 0 or the server does not let that one in.
func connect(ctx context.Context, config *pgx.ConnConfig, uid int) (*pgx.Conn, error) {
	if uid != 0 {
		as := config.Copy()
		as.DialFunc = dialAs(uid)
		raw, err := pgx.ConnectConfig(ctx, as)
		var said *pgconn.PgError
		refused := errors.As(err, &said) && said.Code == invalidAuthorization
		if !refused && !errors.Is(err, fs.ErrPermission) {
			return raw, err
		}
	}
	return pgx.ConnectConfig(ctx, config)
}

// connConfig builds the driver's configuration. The driver reads the environment for what a connection string does not
// name, so this one names everything.
func connConfig(o ConnOptions) (*pgx.ConnConfig, error) {
	if o.Port == 0 {
		o.Port = 5432
	}
	if o.Database == "" {
		o.Database = "postgres"
	}
	if o.Timeout == 0 {
		o.Timeout = defaultConnectTimeout
		if o.Query > 0 {
			o.Timeout = min(o.Timeout, o.Query)
		}
	}
	switch {
	case o.Host == "" || strings.ContainsRune(o.Host, ','):
		return nil, fmt.Errorf("host %q is not one host name or socket directory", o.Host)
	case o.User == "":
		return nil, errors.New("no user given")
	case o.Port < 1 || o.Port > 65535:
		return nil, fmt.Errorf("port %d is out of range", o.Port)
	}
	tls := cmp.Or(o.SSLMode, "prefer")
	if strings.HasPrefix(o.Host, "/") || strings.HasPrefix(o.Host, "@") {
		tls = "disable" // a socket of this machine
	}
	var text strings.Builder
	for _, pair := range [][2]string{
		{"host", o.Host}, {"port", strconv.Itoa(o.Port)}, {"user", o.User}, {"dbname", o.Database},
		{"password", ""}, {"passfile", o.PassFile}, {"options", ""}, {"target_session_attrs", "any"},
		{"sslmode", tls}, {"sslcertmode", "disable"}, {"sslcert", ""}, {"sslkey", ""}, {"sslrootcert", o.SSLRoots}, {"sslpassword", ""},
		{"sslsni", "1"}, {"sslnegotiation", "postgres"}, {"channel_binding", "prefer"}, {"require_auth", ""},
		{"min_protocol_version", "3.0"}, {"max_protocol_version", "3.0"}, {"connect_timeout", "0"},
	} {
		value := strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(pair[1])
		fmt.Fprintf(&text, "%s='%s' ", pair[0], value)
	}
	config, err := pgx.ParseConfig(text.String())
	if err != nil {
		return nil, err
	}
	if o.Password != "" {
		config.Password = string(o.Password)
	}
	config.ConnectTimeout = o.Timeout
	// Sent with the first message, these also win over settings of the role. The rest is for prepare.
	config.RuntimeParams = map[string]string{
		"application_name": applicationName, "client_encoding": "UTF8", "search_path": "pg_catalog",
		"standard_conforming_strings": "on", "statement_timeout": strconv.FormatInt(o.Query.Milliseconds(), 10), "lock_timeout": "0",
	}
	return config, nil
}

// prepare looks at the version and switches off the remaining timeouts.
func (c *Conn) prepare(ctx context.Context) error {
	num := c.c.PgConn().ParameterStatus("server_version_num")
	if num == "" {
		if err := c.c.QueryRow(ctx, "select pg_catalog.current_setting('server_version_num')").Scan(&num); err != nil {
			return fmt.Errorf("ask for the version: %w", err)
		}
	}
	n, err := strconv.Atoi(num)
	if err != nil {
		return fmt.Errorf("server version %q is no number", num)
	}
	if c.version, err = versionOfServer(n); err != nil {
		return err
	}
	var segmentSize int64
	// Not every version has all of these timeouts: those that the server knows are switched off. The count makes the
	// server execute the first part, which it would otherwise leave out.
	err = c.c.QueryRow(ctx, `with session as (
		select set_config(name, '0', false) from pg_settings
		 where name in ('idle_in_transaction_session_timeout', 'idle_session_timeout', 'transaction_timeout'))
		select setting::int8, (select count(set_config) from session) from pg_settings where name = 'wal_segment_size'`).Scan(&segmentSize, nil)
	if err != nil {
		return fmt.Errorf("prepare the session: %w", err)
	}
	if c.segmentSize = uint32(segmentSize); segmentSize != int64(c.segmentSize) || !ValidSegmentSize(c.segmentSize) {
		return fmt.Errorf("WAL segment size %d is not allowed", segmentSize)
	}
	return nil
}

// Close ends the session, within a few seconds whatever the network does. A backup that it started and did not stop is
// aborted by the server.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	c.inBackup = false
	if err := c.c.Close(ctx); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("close the session: %w", err)
	}
	return nil
}

// ServerFacts is what one look at a server tells.
type ServerFacts struct {
	Version        Version
	VersionNum     int // server_version_num
	SystemID       uint64
	DataDirectory  string
	ArchiveMode    string
	ArchiveCommand string // as SHOW prints it: "(disabled)" while archive_mode is off
	Port           int
	InRecovery     bool
	WALSegmentSize uint32 // bytes
	BlockSize      uint32 // bytes
	DataChecksums  bool
	Now            time.Time // the server's clock
}

// Facts asks the server. The user needs the rights of pg_read_all_settings.
func (c *Conn) Facts(ctx context.Context) (ServerFacts, error) {
	f := ServerFacts{Version: c.version, WALSegmentSize: c.segmentSize}
	var systemID int64
	var blockSize int32
	var checksums string
	err := c.c.QueryRow(ctx, `select current_setting('server_version_num')::int4, (select system_identifier from pg_control_system()),
		current_setting('data_directory'), current_setting('archive_mode'), current_setting('archive_command'),
		current_setting('port')::int4, pg_is_in_recovery(), current_setting('block_size')::int4,
		current_setting('data_checksums'), clock_timestamp()`).Scan(
		&f.VersionNum, &systemID, &f.DataDirectory, &f.ArchiveMode, &f.ArchiveCommand,
		&f.Port, &f.InRecovery, &blockSize, &checksums, &f.Now)
	if err != nil {
		return ServerFacts{}, fmt.Errorf("ask the server for its settings: %w", err)
	}
	f.SystemID = uint64(systemID) // bigint in SQL, unsigned in pg_control
	f.BlockSize = uint32(blockSize)
	f.DataChecksums = checksums == "on"
	return f, nil
}

// Database is one row of pg_database.
type Database struct {
	Name         string
	OID          uint32
	LastSystemID uint32 // oid of template0, as in the manifest (format page, section 7.5)
}

// Databases lists all databases, templates too, by name in byte order.
func (c *Conn) Databases(ctx context.Context) ([]Database, error) {
	rows, err := c.c.Query(ctx, `select datname::text, oid, coalesce((select oid from pg_database where datname = 'template0'), 0::oid)
		from pg_database order by datname::text collate "C"`)
	if err == nil {
		var list []Database
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Database]); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list databases: %w", err)
}

// Tablespace is one tablespace of the operator's, not pg_default or pg_global.
type Tablespace struct {
	OID  uint32
	Name string
	Path string // where pg_tblspc/OID points, on the server
}

// Tablespaces lists them by OID.
func (c *Conn) Tablespaces(ctx context.Context) ([]Tablespace, error) {
	rows, err := c.c.Query(ctx, `select oid, spcname::text, pg_tablespace_location(oid)
		from pg_tablespace where spcname not in ('pg_default', 'pg_global') order by oid`)
	if err == nil {
		var list []Tablespace
		if list, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Tablespace]); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list tablespaces: %w", err)
}

var parameterName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)?$`)
})

// AlterSystem sets one parameter in postgresql.auto.conf; it takes effect with Reload, or at the next start (Setting
// tells). The value is one string: of a parameter that is a list it becomes the only element.
func (c *Conn) AlterSystem(ctx context.Context, name, value string) error {
	if !parameterName().MatchString(name) {
		return fmt.Errorf("alter system: %.60q is no parameter name", name)
	}
	if strings.ContainsRune(value, 0) {
		return fmt.Errorf("alter system set %s: the value contains a zero byte", name)
	}
	// No parameters are possible in this statement. standard_conforming_strings is on (prepare).
	sql := fmt.Sprintf("alter system set %s = '%s'", pgx.Identifier(strings.Split(name, ".")).Sanitize(), strings.ReplaceAll(value, "'", "''"))
	if _, err := c.c.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("alter system set %s: %w", name, err)
	}
	return nil
}

// Reload asks the server to read its configuration again. The server does so soon after, not before this returns.
func (c *Conn) Reload(ctx context.Context) error {
	var sent bool
	if err := c.c.QueryRow(ctx, "select pg_reload_conf()").Scan(&sent); err != nil {
		return fmt.Errorf("reload the server's configuration: %w", err)
	}
	if !sent {
		return errors.New("reload the server's configuration: the server could not signal itself; see its log")
	}
	return nil
}

// Setting returns a parameter as SHOW prints it, and whether a changed value waits for a restart of the server. A
// parameter that the server does not know is an error.
func (c *Conn) Setting(ctx context.Context, name string) (value string, pendingRestart bool, err error) {
	err = c.c.QueryRow(ctx, "select current_setting(name), pending_restart from pg_settings where lower(name) = lower($1)", name).Scan(&value, &pendingRestart)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, fmt.Errorf("PostgreSQL %s has no parameter %q", c.version, name)
	}
	if err != nil {
		return "", false, fmt.Errorf("read parameter %s: %w", name, err)
	}
	return value, pendingRestart, nil
}

// parseServerLSN reads an LSN that the server sent as text.
func parseServerLSN(what, text string) (LSN, error) {
	lsn, err := ParseLSN(text)
	if err != nil {
		return 0, fmt.Errorf("%s: answer of the server: %w", what, err)
	}
	return lsn, nil
}

// sessionLost explains an error that ended the session.
func (c *Conn) sessionLost(err error) error {
	var serverError *pgconn.PgError
	if !c.c.IsClosed() || errors.As(err, &serverError) && serverError.Severity != "FATAL" {
		return err
	}
	return fmt.Errorf("%w (the session is lost and the server has given up the backup; run the backup again)", err)
}

// Archiver is what pg_stat_archiver says.
type Archiver struct {
	Failed     int64
	LastFailed string    // name of the file; empty: none failed
	FailedAt   time.Time // of LastFailed
	LastDone   string    // the last file archived
	Command    string    // archive_command, or "(disabled)"
	Library    string    // archive_library (PostgreSQL 15 and later)
}

// Archiver asks how archiving goes.
func (c *Conn) Archiver(ctx context.Context) (Archiver, error) {
	var a Archiver
	var failed, done *string
	var at *time.Time
	err := c.c.QueryRow(ctx, `select failed_count, last_failed_wal, last_failed_time, last_archived_wal, current_setting('archive_command'),
		coalesce(current_setting('archive_library', true), '') from pg_stat_archiver`).Scan(&a.Failed, &failed, &at, &done, &a.Command, &a.Library)
	if err != nil {
		return Archiver{}, fmt.Errorf("ask pg_stat_archiver: %w", err)
	}
	if failed != nil {
		a.LastFailed = *failed
	}
	if done != nil {
		a.LastDone = *done
	}
	if at != nil {
		a.FailedAt = *at
	}
	return a, nil
}
