package pg_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/pg/pgtest"
)

var update = flag.Bool("update", false, "write testdata from the servers of this machine")

// allVersions runs f on 15 and 18, and on the other versions that are installed.
func allVersions(t *testing.T, f func(t *testing.T, v pg.Version)) {
	versions := append(pgtest.Installed(13, 14, 16, 17), 15, 18)
	slices.Sort(versions)
	for _, v := range versions {
		t.Run(v.String(), func(t *testing.T) { f(t, v) })
	}
}

// TestServer goes through everything that one cluster of each version can show; a start costs seconds.
func TestServer(t *testing.T) {
	allVersions(t, func(t *testing.T, v pg.Version) {
		c := pgtest.New(t, pgtest.Options{Version: v, Checksums: true, WALSegMB: 1, Settings: map[string]string{"autovacuum": "off"}})
		conn := c.Conn(t)
		t.Run("control", func(t *testing.T) { testControl(t, c, conn) })
		t.Run("wal", func(t *testing.T) { testWAL(t, c, conn) })
		t.Run("backup", func(t *testing.T) { testBackup(t, c) })
		t.Run("lists", func(t *testing.T) { testLists(t, c, conn) })
		t.Run("settings", func(t *testing.T) { testSettings(t, c, conn) })
		t.Run("pages", func(t *testing.T) { testPages(t, c) })
	})
}

func testControl(t *testing.T, c *pgtest.Cluster, conn *pg.Conn) {
	facts, err := conn.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	control, b, err := pg.ReadControl(t.Context(), c.DataDir())
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile("testdata/control-"+c.Version().String(), b[:512], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	onDisk, err := os.ReadFile(filepath.Join(c.DataDir(), "global", "pg_control"))
	if err != nil || !bytes.Equal(onDisk, b) {
		t.Errorf("ReadControl returned other bytes than the file has (%v)", err)
	}
	if facts.Version != c.Version() || facts.SystemID != control.SystemID || facts.DataDirectory != c.DataDir() || facts.Port != c.Port() ||
		facts.InRecovery || facts.WALSegmentSize != 1<<20 || facts.BlockSize != 8192 || !facts.DataChecksums || facts.ArchiveMode != "off" ||
		facts.ArchiveCommand != "(disabled)" || facts.VersionNum/10000 != int(c.Version()) || time.Since(facts.Now).Abs() > time.Hour {
		t.Errorf("facts: %+v", facts)
	}
	got := fmt.Sprintf("%d %d %d %s %d %d %d %d", control.ControlVersion, control.CatalogVersion, control.SystemID, control.Checkpoint,
		control.CheckpointTimeline, control.PageSize, control.WALSegmentSize, control.DataChecksumVersion)
	want := c.QueryString(t, `select concat_ws(' ', pg_control_version, catalog_version_no, system_identifier, checkpoint_lsn, timeline_id,
		database_block_size, bytes_per_wal_segment, data_page_checksum_version) from pg_control_system(), pg_control_checkpoint(), pg_control_init()`)
	if got != want {
		t.Errorf("pg_control reads as\n%s, the server says\n%s", got, want)
	}
	if control.Version != c.Version() || control.State != pg.StateInProduction {
		t.Errorf("control: %+v", control)
	}
}

func testWAL(t *testing.T, c *pgtest.Cluster, conn *pg.Conn) {
	restorePoint, err := conn.CreateRestorePoint(t.Context(), "here")
	if err != nil {
		t.Fatal(err)
	}
	lsn, segment, err := conn.SwitchWAL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if lsn < restorePoint || segment != pg.SegmentName(1, restorePoint, 1<<20) {
		t.Errorf("restore point %s, switched to %s, segment %s", restorePoint, lsn, segment)
	}
	if again, same, err := conn.SwitchWAL(t.Context()); err != nil || same != segment {
		t.Errorf("a second switch without work: %s, %s, %v", again, same, err)
	}
	if _, err := conn.CreateRestorePoint(t.Context(), strings.Repeat("x", 64)); err == nil {
		t.Error("a name of 64 bytes was accepted, which the server cuts")
	}
	entries, err := os.ReadDir(filepath.Join(c.DataDir(), "pg_wal"))
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, e := range entries {
		if !pg.IsSegmentName(e.Name()) || e.Name() > segment {
			continue // later ones are old ones under a new name
		}
		head := make([]byte, 40)
		f, err := os.Open(filepath.Join(c.DataDir(), "pg_wal", e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadFull(f, head)
		if err := errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
		h, err := pg.ParseWALHeader(head)
		if err != nil || h.Version != c.Version() || pg.SegmentName(h.Timeline, h.PageAddr, h.SegmentSize) != e.Name() {
			t.Errorf("segment %s: %+v, %v", e.Name(), h, err)
		}
		if *update && e.Name() == segment {
			if err := os.WriteFile("testdata/wal-"+c.Version().String(), head, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		seen++
	}
	if seen == 0 {
		t.Error("no segments seen")
	}
}

func testBackup(t *testing.T, c *pgtest.Cluster) {
	conn := c.Conn(t)
	if _, err := conn.BackupStop(t.Context()); err == nil {
		t.Error("stop without start")
	}
	start, err := conn.BackupStart(t.Context(), "", true)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.BackupStart(t.Context(), "second", true); err == nil {
		t.Error("second start in the same session")
	}
	if start.Segment != pg.SegmentName(1, start.LSN, 1<<20) || time.Since(start.Time).Abs() > time.Hour {
		t.Errorf("start: %+v", start)
	}
	control, _, err := pg.ReadControl(t.Context(), c.DataDir())
	if err != nil || control.Checkpoint < start.LSN {
		t.Errorf("checkpoint %s before backup start %s (%v)", control.Checkpoint, start.LSN, err)
	}
	c.Exec(t, "create table during_backup as select generate_series(1, 20000) as n")
	stop, err := conn.BackupStop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if stop.LSN <= start.LSN || !pg.IsSegmentName(stop.Segment) || stop.Time.Before(start.Time) {
		t.Errorf("stop: %+v after %+v", stop, start)
	}
	label := string(stop.BackupLabel)
	for _, want := range []string{
		"START WAL LOCATION: " + start.LSN.String(), start.Segment, "BACKUP METHOD: streamed", "START TIMELINE: 1",
		"LABEL: pgBackRest backup started at " + start.Time.UTC().Format("2006-01-02 15:04:05 UTC"),
	} {
		if !strings.Contains(label, want) {
			t.Errorf("backup_label lacks %q:\n%s", want, label)
		}
	}
	if len(bytes.TrimSpace(stop.TablespaceMap)) != 0 {
		t.Errorf("tablespace_map without tablespaces: %q", stop.TablespaceMap)
	}
	if names := pg.SegmentsBetween(1, start.LSN, stop.LSN, 1<<20); names[0] != start.Segment || !slices.Contains(names, stop.Segment) {
		t.Errorf("segments %v of %+v, %+v", names, start, stop)
	}
	testBackupLost(t, c, conn)
}

// testBackupLost ends sessions in a backup in both ways: by the server and by the context.
func testBackupLost(t *testing.T, c *pgtest.Cluster, conn *pg.Conn) {
	if _, err := conn.BackupStart(t.Context(), "lost", true); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'holdfast' and query like '%pg_control_checkpoint%'")
	_, err := conn.BackupStop(t.Context())
	if err == nil || !strings.Contains(err.Error(), "run the backup again") {
		t.Errorf("stop after the session was ended: %v", err)
	}
	cancelled := c.Conn(t)
	if _, err := cancelled.BackupStart(t.Context(), "cancelled", true); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := cancelled.BackupStop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("stop when cancelled: %v", err)
	}
	if _, err := cancelled.BackupStop(t.Context()); err == nil {
		t.Error("the cancelled backup could be stopped later")
	}
}

func testLists(t *testing.T, c *pgtest.Cluster, conn *pg.Conn) {
	path := c.AddTablespace(t, "Big ones")
	c.Exec(t, `create database "büro"`)
	databases, err := conn.Databases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	template0 := uint32(c.QueryInt(t, "select oid from pg_database where datname = 'template0'"))
	for _, d := range databases {
		names = append(names, d.Name)
		if d.OID == 0 || d.LastSystemID != template0 {
			t.Errorf("database: %+v", d)
		}
	}
	if want := []string{"büro", "postgres", "template0", "template1"}; !slices.Equal(names, want) {
		t.Errorf("databases %v, want %v", names, want)
	}
	tablespaces, err := conn.Tablespaces(t.Context())
	if err != nil || len(tablespaces) != 1 || tablespaces[0].Name != "Big ones" || tablespaces[0].Path != path || tablespaces[0].OID < 16384 {
		t.Errorf("tablespaces %+v, %v", tablespaces, err)
	}
	if _, err := os.Stat(filepath.Join(path, c.Version().TablespaceDirName())); err != nil {
		t.Error(err)
	}
	other := c.Conn(t)
	if _, err := other.BackupStart(t.Context(), "with a tablespace", true); err != nil {
		t.Fatal(err)
	}
	stop, err := other.BackupStop(t.Context())
	if want := fmt.Sprintf("%d %s\n", tablespaces[0].OID, path); err != nil || string(stop.TablespaceMap) != want {
		t.Errorf("tablespace_map %q, %v; want %q", stop.TablespaceMap, err, want)
	}
}

func testSettings(t *testing.T, c *pgtest.Cluster, conn *pg.Conn) {
	const command = `test -f "%p" # it's \ $x`
	for name, value := range map[string]string{"archive_command": command, "archive_mode": "on"} {
		if err := conn.AlterSystem(t.Context(), name, value); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "a b", "x;drop", `a"`, "no_such_parameter"} {
		if err := conn.AlterSystem(t.Context(), name, "1"); err == nil {
			t.Errorf("alter system set %q succeeded", name)
		}
	}
	if err := conn.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.Restart(t)
	if _, _, err := conn.Setting(t.Context(), "port"); err == nil {
		t.Error("a session survived the restart of its server")
	}
	conn = c.Conn(t)
	for name, want := range map[string]string{"archive_command": command, "archive_mode": "on", "statement_timeout": "0", "application_name": "holdfast", "search_path": "pg_catalog", "TimeZone": "UTC"} {
		if got, pending, err := conn.Setting(t.Context(), name); err != nil || got != want || pending {
			t.Errorf("%s = %q, %v, %v; want %q", name, got, pending, err, want)
		}
	}
	if _, _, err := conn.Setting(t.Context(), "no_such"); err == nil || !strings.Contains(err.Error(), "no_such") {
		t.Errorf("unknown parameter: %v", err)
	}
}

var relationFile = regexp.MustCompile(`(^|/)(global|base/\d+|PG_[^/]+/\d+)/\d+(_[a-z]+)?(\.\d+)?$`)

// testPages checks every relation file of the stopped cluster, then damages one.
func testPages(t *testing.T, c *pgtest.Cluster) {
	c.Exec(t, `create table spread (n int, t text) tablespace "Big ones"`, "insert into spread select n, repeat('x', n % 500) from generate_series(1, 20000) n", "create index on spread (n)")
	classFile := c.QueryString(t, "select pg_relation_filepath('pg_class')")
	c.Stop(t, "fast")
	files := 0
	err := filepath.WalkDir(filepath.Dir(c.DataDir()), func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || !relationFile.MatchString(path) {
			return err
		}
		files++
		if bad, aligned := checkFile(t, path); len(bad) > 0 || !aligned {
			t.Errorf("%s: bad pages %v, aligned %v", path, bad, aligned)
		}
		return nil
	})
	if err != nil || files < 500 {
		t.Errorf("checked %d files, %v", files, err)
	}
	if *update && c.Version() == 15 {
		b, err := os.ReadFile(filepath.Join(c.DataDir(), classFile))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile("testdata/page-0", b[:8192], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	c.CorruptPage(t, classFile, 2)
	if bad, aligned := checkFile(t, filepath.Join(c.DataDir(), classFile)); !slices.Equal(bad, []pg.PageRange{{First: 2, Last: 2}}) || !aligned {
		t.Errorf("damaged %s: %v, %v", classFile, bad, aligned)
	}
}

func checkFile(t *testing.T, path string) ([]pg.PageRange, bool) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	checker := pg.NewPageChecker(8192, pg.PageSegmentNumber(filepath.Base(path)), func(offset int64, page []byte) (int, error) { return f.ReadAt(page, offset) })
	if _, err := io.Copy(checker, f); err != nil {
		t.Fatal(err)
	}
	return checker.Finish()
}

// TestServerHangs: a server that is stopped in the middle of a session, or before one, ends a query after the time that it may take
// and a little more, although it can't do so itself.
func TestServerHangs(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{})
	o := c.ConnOptions()
	o.Query = 2 * time.Second
	stop := func(pid int) {
		t.Helper()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Kill(pid, syscall.SIGCONT) }) // it may have been ended
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for name, query := range map[string]func(*pg.Conn) error{
		"a row":     func(conn *pg.Conn) error { _, err := conn.Facts(ctx); return err },
		"rows":      func(conn *pg.Conn) error { _, err := conn.Databases(ctx); return err },
		"a command": func(conn *pg.Conn) error { return conn.AlterSystem(ctx, "work_mem", "4MB") },
	} {
		conn, err := pg.Connect(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		pid := c.QueryInt(t, "select pid from pg_stat_activity where application_name = 'holdfast'")
		stop(int(pid))
		if err := query(conn); !errors.Is(err, pg.ErrNoAnswer) || ctx.Err() != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := conn.Close(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := syscall.Kill(int(pid), syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		for c.QueryInt(t, "select count(*) from pg_stat_activity where application_name = 'holdfast'") > 0 && ctx.Err() == nil {
			time.Sleep(10 * time.Millisecond)
		}
	}
	b, err := os.ReadFile(filepath.Join(c.DataDir(), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	postmaster, err := strconv.Atoi(strings.SplitN(string(b), "\n", 2)[0])
	if err != nil {
		t.Fatal(err)
	}
	stop(postmaster)
	if _, err := pg.Connect(ctx, o); !errors.Is(err, pg.ErrConnect) || ctx.Err() != nil {
		t.Errorf("no session: %v", err)
	}
}
