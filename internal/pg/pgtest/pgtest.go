// Package pgtest makes throw-away PostgreSQL clusters for tests: one call initialises and starts a cluster of a wanted
// major version, and the end of the test stops and removes it. It also does the damage that tests need.
//
// Version 15 is Debian's; the others are put below /var/cache/holdfast (or HOLDFAST_CACHE) by scripts/setup-pg. As root
// the cluster runs as the user postgres. It listens on a socket in a directory of its own only, trusts everybody who can
// reach that, and does not sync to disk. Tests that call New are skipped by go test -short.
package pgtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg"
)

const (
	superuser = "postgres"
	timeout   = 2 * time.Minute // of one start, stop or query: only a hang takes so long
)

// Options describes a cluster. The zero value is a PostgreSQL 15 without checksums, with segments of 16 MiB.
type Options struct {
	Version   pg.Version // default 15
	Checksums bool
	WALSegMB  int               // 0: PostgreSQL's default
	Port      int               // 0: a free one
	Settings  map[string]string // for postgresql.conf, over the package's own
}

// Cluster is one running (unless stopped) server.
type Cluster struct {
	dir     string // holds data, socket, log, tablespaces
	binDir  string
	port    int
	version pg.Version

	mu    sync.Mutex // of admin, for tests with several goroutines
	admin *pgx.Conn  // of Exec and Query…, opened when needed
}

// New makes and starts a cluster, which ends with the test. It fails the test if the version is not installed, naming
// the command that installs it.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Version == 0 {
		o.Version = 15
	}
	if testing.Short() {
		t.Skip("needs PostgreSQL " + o.Version.String() + "; run make test")
	}
	c := &Cluster{version: o.Version, binDir: BinDir(t, o.Version), port: o.Port}
	if c.port == 0 {
		c.port = freePort(t)
	}
	var err error
	// Not t.TempDir: the path of a socket is limited to about 100 bytes, and other users must get through.
	if c.dir, err = os.MkdirTemp("", "pgtest-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.remove(t) })
	for _, name := range []string{".", "socket"} {
		c.makeDir(t, name)
	}
	c.initialise(t, o)
	c.Start(t)
	return c
}

// BinDir finds the server programs of a version or fails the test.
func BinDir(t testing.TB, v pg.Version) string {
	t.Helper()
	dir, err := findBinDir(v)
	if err != nil {
		t.Fatalf("%v; run make setup (scripts/setup-pg %s)", err, v)
	}
	return dir
}

func findBinDir(v pg.Version) (string, error) {
	cache := os.Getenv("HOLDFAST_CACHE")
	if cache == "" {
		cache = "/var/cache/holdfast"
	}
	return pg.FindBinDir(v, filepath.Join(cache, "pg", v.String(), "bin"))
}

func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// serverUser is the account that the server runs under as root, and nil otherwise.
func serverUser(t testing.TB) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	account, err := user.Lookup(superuser)
	if err != nil {
		t.Fatalf("%v; run make setup (apt-get install postgresql-15 creates the user)", err)
	}
	uid, errUID := strconv.ParseUint(account.Uid, 10, 32)
	gid, errGID := strconv.ParseUint(account.Gid, 10, 32)
	if errUID != nil || errGID != nil {
		t.Fatalf("user %s has ids %s, %s", superuser, account.Uid, account.Gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// makeDir makes a directory of the server's user inside the cluster's.
func (c *Cluster) makeDir(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if u := serverUser(t); u != nil {
		if err := os.Chown(path, int(u.Uid), int(u.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func (c *Cluster) initialise(t testing.TB, o Options) {
	t.Helper()
	args := []string{"-D", c.DataDir(), "-U", superuser, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"}
	switch {
	case o.Checksums:
		args = append(args, "--data-checksums")
	case o.Version >= 18: // where checksums are the default
		args = append(args, "--no-data-checksums")
	}
	if o.WALSegMB != 0 {
		args = append(args, "--wal-segsize="+strconv.Itoa(o.WALSegMB))
	}
	cmd := exec.Command(filepath.Join(c.binDir, "initdb"), args...)
	cmd.Dir = c.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "HOME=" + c.dir}
	if u := serverUser(t); u != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: u}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("initdb of PostgreSQL %s: %v\n%s", o.Version, err, out)
	}
	settings := map[string]string{
		"listen_addresses": "", "unix_socket_directories": c.SocketDir(), "port": strconv.Itoa(c.port),
		"fsync": "off", "shared_buffers": "16MB", "max_connections": "30", "timezone": "UTC", "log_timezone": "UTC",
	}
	for name, value := range o.Settings {
		settings[name] = value
	}
	var text bytes.Buffer
	fmt.Fprintln(&text, "\n# pgtest")
	for name, value := range settings {
		fmt.Fprintf(&text, "%s = '%s'\n", name, strings.NewReplacer("'", "''", `\`, `\\`).Replace(value))
	}
	conf, err := os.OpenFile(filepath.Join(c.DataDir(), "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conf.Write(text.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := conf.Close(); err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) remove(t testing.TB) {
	c.disconnect()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if _, err := os.Stat(filepath.Join(c.DataDir(), "PG_VERSION")); err == nil {
		if err := pg.Stop(ctx, c.ServerOptions(), "immediate"); err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		t.Logf("end of the server's log:\n%s", c.LogTail(4<<10))
	}
	if err := os.RemoveAll(c.dir); err != nil {
		t.Error(err)
	}
}

func (c *Cluster) Version() pg.Version { return c.version }
func (c *Cluster) DataDir() string     { return filepath.Join(c.dir, "data") }
func (c *Cluster) SocketDir() string   { return filepath.Join(c.dir, "socket") }
func (c *Cluster) LogFile() string     { return filepath.Join(c.dir, "server.log") }
func (c *Cluster) BinDir() string      { return c.binDir }
func (c *Cluster) Port() int           { return c.port }

// ConnOptions leads to the cluster as its superuser.
func (c *Cluster) ConnOptions() pg.ConnOptions {
	return pg.ConnOptions{Host: c.SocketDir(), Port: c.port, User: superuser}
}

// ServerOptions is what pg.Start and pg.Stop need for the cluster.
func (c *Cluster) ServerOptions() pg.ServerOptions {
	return pg.ServerOptions{DataDir: c.DataDir(), BinDir: c.binDir, LogFile: c.LogFile(), Timeout: timeout}
}

// LogTail is the end of the server's log, or why it cannot be read.
func (c *Cluster) LogTail(n int) string {
	b, err := os.ReadFile(c.LogFile())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-n):])
}

// Conn opens a session of package pg, which ends with the test.
func (c *Cluster) Conn(t testing.TB) *pg.Conn {
	t.Helper()
	conn, err := pg.Connect(t.Context(), c.ConnOptions())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // the server may be gone by the test's own doing
	return conn
}

// Start starts a stopped cluster.
func (c *Cluster) Start(t testing.TB) {
	t.Helper()
	if err := pg.Start(t.Context(), c.ServerOptions()); err != nil {
		t.Fatal(err)
	}
}

// Stop stops it in mode smart, fast or immediate.
func (c *Cluster) Stop(t testing.TB, mode string) {
	t.Helper()
	c.disconnect()
	if err := pg.Stop(t.Context(), c.ServerOptions(), mode); err != nil {
		t.Fatal(err)
	}
}

// Restart stops it fast and starts it again.
func (c *Cluster) Restart(t testing.TB) {
	t.Helper()
	c.Stop(t, "fast")
	c.Start(t)
}

// Kill ends the server without a checkpoint, so that the next start recovers.
func (c *Cluster) Kill(t testing.TB) {
	t.Helper()
	c.Stop(t, "immediate")
}

func (c *Cluster) disconnect() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.admin != nil {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		_ = c.admin.Close(ctx) // the server ends the session in any case
		c.admin = nil
	}
}

// with runs f on the cluster's own session to the database postgres.
func (c *Cluster) with(t testing.TB, f func(ctx context.Context, conn *pgx.Conn) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), timeout)
	defer cancel()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.admin == nil || c.admin.IsClosed() {
		conn, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=%s dbname=postgres sslmode=disable", c.SocketDir(), c.port, superuser))
		if err != nil {
			t.Fatalf("%v\n%s", err, c.LogTail(2<<10))
		}
		c.admin = conn
	}
	if err := f(ctx, c.admin); err != nil {
		t.Fatal(err)
	}
}

// Exec runs statements one after the other in the database postgres. Each may be several with semicolons between, then
// in one transaction.
func (c *Cluster) Exec(t testing.TB, sql ...string) {
	t.Helper()
	for _, s := range sql {
		c.with(t, func(ctx context.Context, conn *pgx.Conn) error {
			if _, err := conn.Exec(ctx, s, pgx.QueryExecModeSimpleProtocol); err != nil {
				return fmt.Errorf("%.200s: %w", s, err)
			}
			return nil
		})
	}
}

// ExecIn is Exec in another database, in a session of its own.
func (c *Cluster) ExecIn(t testing.TB, database string, sql ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), timeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", c.SocketDir(), c.port, superuser, database))
	if err != nil {
		t.Fatalf("%v\n%s", err, c.LogTail(2<<10))
	}
	defer conn.Close(ctx)
	for _, s := range sql {
		if _, err := conn.Exec(ctx, s, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%.200s: %v", s, err)
		}
	}
}

// QueryString returns the one value that sql selects, as text.
func (c *Cluster) QueryString(t testing.TB, sql string) string {
	t.Helper()
	return c.queryText(t, sql)
}

// QueryInt returns the one integer that sql selects.
func (c *Cluster) QueryInt(t testing.TB, sql string) int64 {
	t.Helper()
	text := c.queryText(t, sql)
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func (c *Cluster) queryText(t testing.TB, sql string) string {
	t.Helper()
	var text string
	c.with(t, func(ctx context.Context, conn *pgx.Conn) error {
		results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
		if err != nil {
			return fmt.Errorf("%.200s: %w", sql, err)
		}
		if len(results) != 1 || len(results[0].Rows) != 1 || len(results[0].Rows[0]) != 1 {
			return fmt.Errorf("%.200s: not one value", sql)
		}
		text = string(results[0].Rows[0][0])
		return nil
	})
	return text
}

// AddTablespace creates a tablespace in a new directory beside the data directory and returns that directory.
func (c *Cluster) AddTablespace(t testing.TB, name string) string {
	t.Helper()
	path := c.makeDir(t, "tablespace-"+name)
	c.Exec(t, fmt.Sprintf("create tablespace %s location '%s'", pgx.Identifier{name}.Sanitize(), path))
	return path
}

// CorruptPage flips one byte in a page of a file below the data directory. The server writes the page again if it has
// changed it in memory, so checkpoint first, or stop the server.
func (c *Cluster) CorruptPage(t testing.TB, relpath string, page int) {
	t.Helper()
	const pageSize = 8192
	f, err := os.OpenFile(filepath.Join(c.DataDir(), relpath), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	offset := int64(page)*pageSize + pageSize - 200
	var b [1]byte
	if _, err := f.ReadAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x55
	if _, err := f.WriteAt(b[:], offset); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Installed are the versions of want that are on this machine, for tests that take what is there.
func Installed(want ...pg.Version) []pg.Version {
	return slices.DeleteFunc(slices.Clone(want), func(v pg.Version) bool {
		_, err := findBinDir(v)
		return err != nil
	})
}
