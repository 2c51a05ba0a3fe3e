package interop

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"holdfast/internal/pg"
)

// second is a server beside the rig's own: on a restored directory, or a standby.
type second struct {
	opts pg.ServerOptions
	conn pg.ConnOptions
}

// server2 describes a server on dir, with a socket of its own.
func (r *rig) server2(dir string) *second {
	r.t.Helper()
	s := &second{conn: r.c.ConnOptions()}
	s.conn.Host = r.dirFor("s-" + filepath.Base(dir))
	s.opts = pg.ServerOptions{DataDir: dir, BinDir: r.c.BinDir(), LogFile: filepath.Join(r.dir, filepath.Base(dir)+".log"), Timeout: time.Minute,
		Args: []string{"-k", s.conn.Host, "-p", strconv.Itoa(s.conn.Port)}}
	return s
}

func (s *second) start(t testing.TB) {
	t.Helper()
	if err := pg.Start(t.Context(), s.opts); err != nil {
		t.Fatal(err)
	}
}

func (s *second) stop(t testing.TB, mode string) {
	t.Helper()
	if err := pg.Stop(context.Background(), s.opts, mode); err != nil {
		t.Error(err)
	}
}

// await waits until a question has the answer true.
func (s *second) await(t testing.TB, sql string) {
	t.Helper()
	for range 7200 {
		if truth(t.Context(), s.conn, sql) {
			return
		}
		time.Sleep(25 * time.Millisecond)
	}
	log, _ := os.ReadFile(s.opts.LogFile)
	t.Fatalf("never came true: %s\n%s", sql, log[max(0, len(log)-8<<10):])
}

// exec runs statements, each in its own transaction.
func (s *second) exec(t testing.TB, sql ...string) {
	t.Helper()
	c, err := connect(t.Context(), s.conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	for _, q := range sql {
		if _, err := c.Exec(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
}
