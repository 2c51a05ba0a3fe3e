package pg_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/pg"
	"holdfast/internal/pg/pgtest"
)

func TestStartStop(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{})
	pid, running, err := pg.Running(c.DataDir())
	if err != nil || !running || pid <= 1 {
		t.Fatalf("Running = %d, %v, %v", pid, running, err)
	}
	o := c.ServerOptions()
	if err := pg.Start(t.Context(), o); !errors.Is(err, pg.ErrServerRunning) {
		t.Errorf("second start: %v", err)
	}
	if err := pg.Stop(t.Context(), o, "quickly"); err == nil {
		t.Error("stop in mode quickly")
	}
	for range 2 { // the second finds nothing to do
		if err := pg.Stop(t.Context(), o, ""); err != nil {
			t.Error(err)
		}
	}
	if _, running, err := pg.Running(c.DataDir()); running || err != nil {
		t.Errorf("running after stop: %v, %v", running, err)
	}
	// A number left by a crash that now belongs to another process, this one.
	stale := filepath.Join(c.DataDir(), "postmaster.pid")
	if err := os.WriteFile(stale, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, running, err := pg.Running(c.DataDir()); running || err != nil {
		t.Errorf("another process's number: %v, %v", running, err)
	}
	if err := os.Remove(stale); err != nil {
		t.Fatal(err)
	}
	o.Args = []string{"-c", "cluster_name=it's one", "-c", "port=" + strconv.Itoa(c.Port())}
	o.BinDir = "" // found by PG_VERSION
	if err := pg.Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if got, _, err := c.Conn(t).Setting(t.Context(), "cluster_name"); err != nil || got != "it's one" {
		t.Errorf("cluster_name = %q, %v", got, err)
	}
	c.Kill(t)
	o.Args = []string{"-c", "no_such_parameter=1"}
	if err := pg.Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), `unrecognized configuration parameter "no_such_parameter"`) {
		t.Errorf("a failed start does not show the server's log: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o.Args = nil
	if err := pg.Start(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled start: %v", err)
	}
	o.LogFile = c.DataDir() + `/$(touch x)`
	if err := pg.Start(t.Context(), o); err == nil || !strings.Contains(err.Error(), "cannot take") {
		t.Errorf("log file with shell characters: %v", err)
	}
}

func TestRunningWithoutServer(t *testing.T) {
	dir := t.TempDir()
	if pid, running, err := pg.Running(dir); pid != 0 || running || err != nil {
		t.Errorf("no postmaster.pid: %d, %v, %v", pid, running, err)
	}
	for text, fails := range map[string]bool{"": true, "x\n": true, "4194305\n/data\n": false} { // above the kernel's limit
		if err := os.WriteFile(filepath.Join(dir, "postmaster.pid"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, running, err := pg.Running(dir); running || (err != nil) != fails {
			t.Errorf("postmaster.pid %q: %v, %v", text, running, err)
		}
	}
}

func TestFindBinDir(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"postgres", "pg_ctl"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho 'postgres (PostgreSQL) 17.2'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := pg.FindBinDir(17, "", "/nowhere", dir); err != nil || got != dir {
		t.Errorf("FindBinDir(17) = %s, %v", got, err)
	}
	if got, err := pg.FindBinDir(1, dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("FindBinDir(1) = %s, %v; want an error that names where it looked", got, err)
	}
}

func TestConnectErrors(t *testing.T) {
	t.Setenv("PGPASSWORD", "from-the-environment")
	t.Setenv("PGHOST", "192.0.2.1")
	for _, o := range []pg.ConnOptions{
		{}, {Host: "/nowhere"}, {Host: "/nowhere", User: "u", Port: 70000}, {Host: "a,b", User: "u"},
		{Host: t.TempDir() + `/it's \ here`, User: "o'brien", Password: "hunter2 '\\"},
	} {
		conn, err := pg.Connect(t.Context(), o)
		if err == nil {
			t.Fatalf("%+v connected: %+v", o, conn)
		}
		for _, secret := range []string{"hunter2", "from-the-environment", "192.0.2.1"} {
			if strings.Contains(err.Error(), secret) {
				t.Errorf("error shows %s: %v", secret, err)
			}
		}
	}
}

func TestPassword(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{Settings: map[string]string{"password_encryption": "scram-sha-256", "listen_addresses": "127.0.0.1"}})
	c.Exec(t, `create role "o'brien" superuser login password 'it''s \ secret'`, `alter role "o'brien" set statement_timeout = '1ms'`)
	hba := filepath.Join(c.DataDir(), "pg_hba.conf")
	if err := os.WriteFile(hba, []byte("local all postgres trust\nhost all all 127.0.0.1/32 scram-sha-256\nlocal all all scram-sha-256\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c.Exec(t, "select pg_reload_conf()")
	c.Restart(t)
	for _, host := range []string{c.SocketDir(), "127.0.0.1"} {
		o := pg.ConnOptions{Host: host, Port: c.Port(), User: "o'brien", Password: `it's \ secret`}
		conn, err := pg.Connect(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if got, _, err := conn.Setting(t.Context(), "statement_timeout"); err != nil || got != "0" {
			t.Errorf("statement_timeout = %s, %v", got, err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		o.Password = "wrong-horse"
		if _, err := pg.Connect(t.Context(), o); err == nil || strings.Contains(err.Error(), "wrong-horse") {
			t.Errorf("wrong password: %v", err)
		}
	}
}
