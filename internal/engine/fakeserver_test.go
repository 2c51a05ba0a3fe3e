package engine_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"

	"holdfast/internal/pg"
)

const (
	segmentSize = 1 << 20
	fakePort    = 5432
)

// fakeServer answers the questions that a backup asks of PostgreSQL, over the real protocol on a socket, with a small
// data directory of its own: hundreds of backups a minute, each at a chosen moment, on a machine without PostgreSQL. What
// a real server makes of a backup is proven by test/interop and test/whole.
type fakeServer struct {
	dir     string // data directory
	sockets string
	version pg.Version
	system  uint64

	mu        sync.Mutex
	sessions  map[net.Conn]bool // true: in backup mode
	stopping  bool
	position  pg.LSN // end of the WAL
	timeline  uint32
	clock     time.Time // of the server; each backup takes a minute and begins an hour after the one before
	databases []pg.Database
	spaces    []pg.Tablespace
	archive   func(file string) error // archive_command, given a complete segment; nil: archiving is broken
	checksums uint32                  // data checksum version of pg_control; 0: off

	// What the server says of itself, when it is not the plain truth.
	saysDir, archiveMode string
	spaceMap             string // of the tablespaces, as it comes at the end of a backup
	saysSystem           uint64
	standby              bool
	elsewhere            bool   // it writes its control file in another data directory
	onReplay             func() // called with mu held when a backup has found that the standby may be read
}

// newFakeServer lays the data directory out and listens. Everything ends with the test.
func newFakeServer(t testing.TB, version pg.Version) *fakeServer {
	t.Helper()
	f := &fakeServer{dir: filepath.Join(scratch(t), "data"), sockets: scratch(t), version: version, sessions: map[net.Conn]bool{},
		clock: time.Date(2026, 3, 1, 10, 0, 0, 0, time.UTC), position: 0x2000000, timeline: 1}
	f.databases = []pg.Database{{Name: "app", OID: 16384, LastSystemID: 4}, {Name: "postgres", OID: 5, LastSystemID: 4},
		{Name: "template0", OID: 4, LastSystemID: 4}, {Name: "template1", OID: 1, LastSystemID: 4}}
	for _, d := range []string{"global", "base/1", "base/5", "base/16384", "pg_wal/archive_status", "pg_tblspc", "pg_xact"} {
		mkdir(t, filepath.Join(f.dir, d))
	}
	for _, name := range []string{"PG_VERSION", "base/1/PG_VERSION", "base/5/PG_VERSION"} {
		f.write(t, name, version.String()+"\n")
	}
	f.write(t, "base/16384/16385", strings.Repeat("row ", 5000))
	f.write(t, "base/16384/16386", "")
	f.write(t, "pg_xact/0000", strings.Repeat("x", 256))
	f.write(t, "postgresql.auto.conf", "# made by a test\nrecovery_target_name = 'old'\nwork_mem = '4MB'\n")
	if err := f.checkpoint(); err != nil {
		t.Fatal(err)
	}
	c, _, err := pg.ReadControl(t.Context(), f.dir)
	if err != nil {
		t.Fatal(err)
	}
	f.system = c.SystemID
	f.listen(t)
	return f
}

func (f *fakeServer) listen(t testing.TB) {
	l, err := net.Listen("unix", filepath.Join(f.sockets, fmt.Sprintf(".s.PGSQL.%d", fakePort)))
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed below
			}
			f.mu.Lock()
			f.sessions[c] = false
			f.mu.Unlock()
			served.Go(func() {
				if err := f.serve(c); err != nil {
					t.Errorf("fake server: %v", err)
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close() // nothing depends on it
		f.mu.Lock()
		f.stopping = true
		for c := range f.sessions {
			_ = c.Close() // ends its goroutine
		}
		f.mu.Unlock()
		served.Wait()
	})
}

func (f *fakeServer) conn() pg.ConnOptions {
	return pg.ConnOptions{Host: f.sockets, Port: fakePort, User: "postgres"}
}

// inBackup says how many sessions have the server in backup mode.
func (f *fakeServer) inBackup() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, active := range f.sessions {
		if active {
			n++
		}
	}
	return n
}

// dropBackups ends every session that has the server in backup mode, as a crash of its process does.
func (f *fakeServer) dropBackups() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c, active := range f.sessions {
		if active {
			_ = c.Close() // that is the point
		}
	}
}

// waitIdle waits until no session has the server in backup mode: a lost session ends a moment after the client left it.
func (f *fakeServer) waitIdle() error {
	for range 3000 {
		if f.inBackup() == 0 {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("the server is still in backup mode")
}

// write makes a file below the data directory that was last changed long ago.
func (f *fakeServer) write(t testing.TB, name, content string) string {
	t.Helper()
	file := filepath.Join(f.dir, name)
	if filepath.IsAbs(name) {
		file = name
	}
	mkdir(t, filepath.Dir(file))
	if err := writeOld(file, []byte(content)); err != nil {
		t.Fatal(err)
	}
	return file
}

// writeOld backdates: files of the current second are copied only when the second is over.
func writeOld(file string, content []byte) error {
	old := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return errors.Join(os.WriteFile(file, content, 0o600), os.Chtimes(file, old, old))
}

// churn changes the data: round n touches a third of the blocks of one file and adds another.
func (f *fakeServer) churn(t testing.TB, n int) {
	t.Helper()
	var b []byte
	for i := range 16 {
		round := 0
		if i%3 == n%3 {
			round = n
		}
		b = append(b, bytes.Repeat(fmt.Appendf(nil, "block %4d of %4d.", i, round), 8<<10/16)...)
	}
	// Recent enough, as the server's clock goes, for block incremental backup.
	when := f.clock.Add(time.Duration(n-100) * time.Minute)
	for _, name := range []string{"50000", fmt.Sprint(50001 + n)} {
		file := f.write(t, "base/16384/"+name, string(b))
		must(t, os.Chtimes(file, when, when))
	}
}

// checkpoint writes pg_control with the current position: a real control file of the version, its CRC made right again.
func (f *fakeServer) checkpoint() error {
	b, err := os.ReadFile(filepath.Join("..", "pg", "testdata", "control-"+f.version.String()))
	if err != nil {
		return err
	}
	const checkpoint, timeline, dataChecksum = 32, 48, 252
	binary.LittleEndian.PutUint64(b[checkpoint:], uint64(f.position))
	binary.LittleEndian.PutUint32(b[timeline:], f.timeline)
	binary.LittleEndian.PutUint32(b[dataChecksum:], f.checksums)
	crc := 288
	if f.version >= 18 {
		crc = 292
	}
	binary.LittleEndian.PutUint32(b[crc:], crc32.Checksum(b[:crc], crc32.MakeTable(crc32.Castagnoli)))
	return writeOld(filepath.Join(f.dir, "global/pg_control"), append(b, make([]byte, pg.ControlFileSize-len(b))...))
}

// segment makes a WAL segment of this cluster: a real header with its place, and filler.
func (f *fakeServer) segment(name string) (string, error) {
	b, err := os.ReadFile(filepath.Join("..", "pg", "testdata", "wal-"+f.version.String()))
	if err != nil {
		return "", err
	}
	timeline, start, err := pg.ParseSegmentName(name, segmentSize)
	if err != nil {
		return "", err
	}
	binary.LittleEndian.PutUint32(b[4:], timeline)
	binary.LittleEndian.PutUint64(b[8:], uint64(start))
	b = append(b, make([]byte, segmentSize-len(b))...)
	copy(b[100:], name)
	file := filepath.Join(f.dir, "pg_wal", name)
	return file, writeOld(file, b)
}

// switchWAL completes and archives the current segment.
func (f *fakeServer) switchWAL() error {
	name := pg.SegmentName(f.timeline, f.position, segmentSize)
	f.position = (f.position/segmentSize + 1) * segmentSize
	file, err := f.segment(name)
	if err == nil && f.archive != nil {
		err = f.archive(file)
	}
	return err
}

// value is one column of an answer.
type value struct {
	oid uint32
	v   any
}

func text(s string) value { return value{pgtype.TextOID, s} }

// answer executes (or, for a description, only shapes) one query.
func (f *fakeServer) answer(c net.Conn, sql string, execute bool) (rows [][]value, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	has := func(s string) bool { return strings.Contains(sql, s) }
	switch {
	case has("select t, 'pgBackRest"):
		return [][]value{{{pgtype.TimestamptzOID, f.clock}, text("default label")}}, nil
	case has("backup_stop(") || has("stop_backup("):
		at := f.position + 0x100
		name := pg.SegmentName(f.timeline, at, segmentSize)
		row := []value{text(at.String()), text(name), text("START WAL LOCATION: 0/0 (file " + name + ")\n"), text(f.spaceMap),
			{pgtype.TimestamptzOID, f.clock.Add(time.Minute)}, {pgtype.Int4OID, int32(1)}}
		if execute {
			f.sessions[c] = false
			f.clock = f.clock.Add(time.Hour)
			err = f.switchWAL()
		}
		return [][]value{row}, err
	case has("backup_start(") || has("start_backup("):
		if execute {
			f.sessions[c] = true
			f.position += 0x28
			if !f.elsewhere {
				err = f.checkpoint()
			}
		}
		return [][]value{{text(f.position.String()), text(pg.SegmentName(f.timeline, f.position, segmentSize))}}, err
	case has("timeline_id"):
		return [][]value{{{pgtype.Int4OID, int32(f.timeline)}}}, nil
	case has("with session"):
		return [][]value{{{pgtype.Int8OID, int64(segmentSize)}, {pgtype.Int8OID, int64(0)}}}, nil
	case has("pg_control_system"):
		return [][]value{{{pgtype.Int4OID, int32(f.version) * 10000}, {pgtype.Int8OID, int64(cmp.Or(f.saysSystem, f.system))}, text(cmp.Or(f.saysDir, f.dir)), text(cmp.Or(f.archiveMode, "on")), text("true"),
			{pgtype.Int4OID, int32(fakePort)}, {pgtype.BoolOID, f.standby}, {pgtype.Int4OID, int32(8192)}, text("off"), {pgtype.TimestamptzOID, f.clock}}}, nil
	case has("server_version_num"):
		return [][]value{{text(fmt.Sprint(int(f.version) * 10000))}}, nil
	case has("pg_last_wal_replay_lsn"): // a standby that has replayed everything
		if f.onReplay != nil && execute {
			f.onReplay()
		}
		return [][]value{{text("FF/0"), text("FF/0")}}, nil
	case has("pg_create_restore_point"):
		return [][]value{{text(f.position.String())}}, nil
	case has("pg_switch_wal"):
		if execute {
			err = f.switchWAL()
		}
		return [][]value{{text(f.position.String()), text(pg.SegmentName(f.timeline, f.position, segmentSize))}}, err
	case has("pg_stat_archiver"):
		return [][]value{{{pgtype.Int8OID, int64(0)}, {pgtype.TextOID, nil}, {pgtype.TimestamptzOID, nil}, {pgtype.TextOID, nil}, text("true"), text("")}}, nil
	case has("from pg_database"):
		for _, d := range f.databases {
			rows = append(rows, []value{text(d.Name), {pgtype.OIDOID, d.OID}, {pgtype.OIDOID, d.LastSystemID}})
		}
		return rows, nil
	case has("from pg_tablespace"):
		for _, s := range f.spaces {
			rows = append(rows, []value{{pgtype.OIDOID, s.OID}, text(s.Name), text(s.Path)})
		}
		return rows, nil
	}
	return nil, fmt.Errorf("unknown query %.100q", sql)
}

// columns are the types of an answer; an empty list of tablespaces has them too.
func columns(sql string, rows [][]value) []value {
	if len(rows) == 0 && strings.Contains(sql, "from pg_tablespace") {
		return []value{{pgtype.OIDOID, nil}, text(""), text("")}
	}
	return rows[0]
}

// serve speaks the protocol with one client until it leaves.
func (f *fakeServer) serve(c net.Conn) error {
	defer func() {
		_ = c.Close() // the client may have done so already
		f.mu.Lock()
		delete(f.sessions, c) // a lost session takes the server out of backup mode
		f.mu.Unlock()
	}()
	b := pgproto3.NewBackend(c, c)
	start, err := b.ReceiveStartupMessage()
	if err != nil {
		return nil // gone before it said anything
	}
	if _, ok := start.(*pgproto3.StartupMessage); !ok {
		return nil // a request to cancel
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.BackendKeyData{ProcessID: 1, SecretKey: []byte{0, 0, 0, 1}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	types := pgtype.NewMap()
	statements := map[string]string{}
	var sql string // bound last
	var formats []int16
	for {
		if err := b.Flush(); err != nil {
			return nil // a client that lost interest
		}
		m, err := b.Receive()
		if err != nil {
			return nil
		}
		switch m := m.(type) {
		case *pgproto3.Parse:
			statements[m.Name] = m.Query
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Describe:
			q := sql
			if m.ObjectType == 'S' {
				q, formats = statements[m.Name], nil
				b.Send(&pgproto3.ParameterDescription{ParameterOIDs: parameters(q)})
			}
			rows, err := f.answer(c, q, false)
			if err != nil {
				return err
			}
			b.Send(describe(columns(q, rows), formats))
		case *pgproto3.Bind:
			sql, formats = statements[m.PreparedStatement], append([]int16(nil), m.ResultFormatCodes...)
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Execute:
			rows, err := f.answer(c, sql, true)
			if err != nil {
				b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", Code: "XX000", Message: err.Error()})
				continue
			}
			for _, row := range rows {
				data := &pgproto3.DataRow{}
				for i, v := range row {
					enc, err := types.Encode(v.oid, format(formats, i), v.v, []byte{})
					if err != nil {
						return err
					}
					data.Values = append(data.Values, enc)
				}
				b.Send(data)
			}
			b.Send(&pgproto3.CommandComplete{CommandTag: fmt.Appendf(nil, "SELECT %d", len(rows))})
		case *pgproto3.Sync:
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
		case *pgproto3.Terminate:
			return nil
		}
	}
}

func parameters(sql string) []uint32 {
	switch {
	case strings.Contains(sql, "$2"):
		return []uint32{pgtype.TextOID, pgtype.BoolOID}
	case strings.Contains(sql, "$1"):
		return []uint32{pgtype.TextOID}
	}
	return nil
}

// format is the wire format that the client asked for a column: none given is text, one given is for all.
func format(codes []int16, i int) int16 {
	switch len(codes) {
	case 0:
		return pgtype.TextFormatCode
	case 1:
		return codes[0]
	}
	return codes[i]
}

func describe(cols []value, formats []int16) *pgproto3.RowDescription {
	d := &pgproto3.RowDescription{}
	for i, v := range cols {
		d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: fmt.Appendf(nil, "c%d", i), DataTypeOID: v.oid, DataTypeSize: -1, TypeModifier: -1, Format: format(formats, i)})
	}
	return d
}
