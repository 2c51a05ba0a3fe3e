package script

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/pg"
)

// standby is a second server beside the rig's, with a data directory, a socket and a configuration file of its own.
type standby struct {
	*rig
	data, socket string
	server       pg.ServerOptions
}

// newStandby makes a place for one. The rig's methods work on it with its own configuration, but for those that touch the
// cluster, which is the primary.
func (r *rig) newStandby() *standby {
	r.t.Helper()
	dir := ownDir(r.t)
	own := *r
	s := &standby{rig: &own, data: filepath.Join(dir, "data"), socket: filepath.Join(dir, "socket")}
	s.conf = filepath.Join(dir, "pgbackrest.conf")
	s.server = pg.ServerOptions{DataDir: s.data, BinDir: r.c.BinDir(), LogFile: filepath.Join(dir, "server.log"), Timeout: time.Minute,
		Args: []string{"-k", s.socket, "-p", strconv.Itoa(r.c.Port()), "-c", "listen_addresses="}}
	if made := r.program("/bin/mkdir", s.socket); made.code != 0 {
		r.t.Fatal(made.errs)
	}
	r.t.Cleanup(func() {
		if exists(filepath.Join(s.data, "postmaster.pid")) {
			if err := pg.Stop(context.Background(), s.server, "immediate"); err != nil {
				r.t.Error(err)
			}
		}
	})
	return s
}

// here are the lines of a stanza's section for this server, as that of this number.
func (s *standby) here(key int) string {
	return fmt.Sprintf("pg%[1]d-path=%[2]s\npg%[1]d-socket-path=%[3]s\npg%[1]d-port=%[4]d\n", key, s.data, s.socket, s.c.Port())
}

// configure writes the server's own configuration: lines after those that every test has, @ is the rig's directory.
func (s *standby) configure(lines string) {
	s.t.Helper()
	text := "[global]\nrepo1-path=@/repo\nlock-path=@/lock\nlog-path=@/log\nlog-level-file=off\narchive-timeout=30\n" + lines
	if err := os.WriteFile(s.conf, []byte(strings.ReplaceAll(text, "@", s.dir)), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *standby) start() {
	s.t.Helper()
	if err := pg.Start(s.t.Context(), s.server); err != nil {
		s.t.Fatal(err)
	}
}

func (s *standby) stop() {
	s.t.Helper()
	if err := pg.Stop(s.t.Context(), s.server, "fast"); err != nil {
		s.t.Fatal(err)
	}
}

// query is what psql says on the standby; empty while the server does not have what is asked for yet.
func (s *standby) query(sql string) string {
	s.t.Helper()
	out := s.program(filepath.Join(s.c.BinDir(), "psql"), "-h", s.socket, "-p", strconv.Itoa(s.c.Port()), "-U", "postgres", "-d", "postgres", "-Atc", sql)
	return strings.TrimSpace(out.out)
}

// shows waits until the query has this answer.
func (s *standby) shows(sql, want string) {
	s.t.Helper()
	for end := time.Now().Add(time.Minute); s.query(sql) != want; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			log, err := os.ReadFile(s.server.LogFile)
			s.t.Fatalf("never: %s = %s\n%s", sql, want, errors.Join(err, errors.New(string(log))))
		}
	}
}

// TestReplication: the guide's hot standby, fed from the archive and then by streaming as well, each on one configuration file; then
// the backups are made on the standby's host, with the primary on another one that is reached by SQL alone.
func TestReplication(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2")
	r.c.Exec(t, "alter system set listen_addresses = '127.0.0.1'")
	r.c.Restart(t)
	r.run("--stanza=demo stanza-create")
	r.insert("before")
	r.backup("")
	r.archive()

	// Hot standby.
	s := r.newStandby()
	s.configure("[demo]\n" + s.here(1))
	s.run("--stanza=demo --type=standby restore")
	if !exists(filepath.Join(s.data, "standby.signal")) {
		t.Fatal("no standby.signal")
	}
	s.start()
	s.shows("select string_agg(message, ' ') from important_table", "before")
	r.insert("replicated")
	r.archive()
	s.shows("select string_agg(message, ' ' order by message) from important_table", "before replicated")
	if n := r.c.QueryInt(t, "select count(*) from pg_stat_replication"); n != 0 {
		t.Errorf("%d connections to a primary: that was not the archive", n)
	}
	has(t, s.run("--stanza=demo --log-level-console=info check"), "check repo1 (standby)", "switch wal not performed because this is a standby")

	// Streaming: the configuration says how, the password file whose word is taken for it.
	r.c.Exec(t, "create user replicator password 'jw8s0F4' replication")
	hba := filepath.Join(r.c.DataDir(), "pg_hba.conf")
	rules, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	const ask = "host replication replicator 127.0.0.1/32 scram-sha-256\nhost all pgbackrest 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(hba, append([]byte(ask), rules...), 0o600); err != nil {
		t.Fatal(err)
	}
	r.c.Exec(t, "select pg_reload_conf()")
	passwords := filepath.Join(filepath.Dir(s.data), "pgpass")
	if made := r.program("/bin/sh", "-c", "umask 077; printf '127.0.0.1:*:replication:replicator:jw8s0F4\n127.0.0.1:*:postgres:pgbackrest:br\n' >"+passwords); made.code != 0 {
		t.Fatal(made.errs)
	}
	s.stop()
	s.configure("[demo]\n" + s.here(1) + fmt.Sprintf("recovery-option=primary_conninfo=host=127.0.0.1 port=%d user=replicator passfile=%s\n", r.c.Port(), passwords))
	s.run("--stanza=demo --delta --type=standby restore")
	auto, err := os.ReadFile(filepath.Join(s.data, "postgresql.auto.conf"))
	if err != nil {
		t.Fatal(err)
	}
	has(t, string(auto), "primary_conninfo = 'host=127.0.0.1 port=", "restore_command = '"+r.name+" --config="+s.conf)
	s.start()
	s.shows("select count(*) from pg_stat_wal_receiver where status = 'streaming'", "1")
	r.insert("streamed") // in a segment that is not full
	s.shows("select count(*) from important_table where message = 'streamed'", "1")

	// Backups on the standby's host. What the guide grants is enough for the primary's user.
	r.c.Exec(t, "create user pgbackrest password 'br'", "grant pg_read_all_settings to pgbackrest", "grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean), pg_create_restore_point(text), pg_switch_wal() to pgbackrest")
	elsewhere := fmt.Sprintf("repo1-retention-full=2\nbackup-standby=y\nstart-fast=y\n[demo]\npg1-path=/on/the/other/host\npg1-host=127.0.0.1\npg1-port=%d\npg1-user=pgbackrest\n", r.c.Port())
	s.configure(elsewhere + s.here(2))
	s.env = []string{"PGPASSFILE=" + passwords}
	has(t, s.run("--stanza=demo --log-level-console=info check"), "check repo1 (standby)", "' on repo1")
	label := s.backup("--type=full")
	has(t, s.run("repo-get backup/demo/"+label+"/backup.manifest"), "option-backup-standby=true")
	r.insert("late")
	incr := s.backup("--type=incr")
	has(t, s.run("info"), label, incr, "status: ok")
	s.run("--stanza=demo stanza-upgrade")
	// Without the standby there are no files, and without a password no primary.
	has(t, s.want(56, "--stanza=demo --pg2-path=/nowhere backup"), "WARN: unable to check pg2", "unable to find standby cluster")
	s.env = nil
	has(t, s.want(56, "--stanza=demo backup"), "WARN: unable to check pg1", "unable to find primary cluster")
	s.stop()
	// A restore needs the files' place and no server.
	r.archive()
	r.lose()
	r.run("--stanza=demo restore")
	r.start()
	if got := r.rows(); got != "before late replicated streamed" {
		t.Error(got)
	}
	r.run("--stanza=demo verify")
}
