package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// world is the work directory, the cluster in it, the two tools, and what was measured so far.
type world struct {
	set        *settings
	log        io.Writer
	dir        string
	data       string
	locks      string // the option that keeps the tools' locks in dir
	port       string
	owner      *user.User
	credential *syscall.Credential // nil: we already are the bench user
	native     string              // our binary under its own name
	ours       tool                // our binary under the name pgbackrest
	theirs     tool
	files      int   // of the cluster
	bytes      int64 // of the cluster
	started    bool
	samples    []sample
	where      string // is put behind the name of what is measured
	sum        sample // of all commands since total began
}

func (w *world) say(format string, args ...any) {
	fmt.Fprintf(w.log, "bench: "+format+"\n", args...)
}

// newWorld makes the work directory and copies our binary into it, where the bench user can run it.
func newWorld(s *settings, log io.Writer) (*world, error) {
	w := &world{set: s, log: log}
	for _, p := range []string{s.holdfast, s.pgbackrest, filepath.Join(s.pgBin, "initdb"), "/usr/bin/pgbench"} {
		if _, err := os.Stat(p); err != nil {
			return nil, fmt.Errorf("%w; run: make setup build", err)
		}
	}
	if err := enoughRoom(s); err != nil {
		return nil, err
	}
	var err error
	if w.owner, w.credential, err = benchUser(); err != nil {
		return nil, err
	}
	if w.dir, err = os.MkdirTemp(s.dir, "holdfast-bench-"); err != nil {
		return nil, err
	}
	if err := w.fill(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(w.dir))
	}
	return w, nil
}

func (w *world) fill() error {
	if err := w.own(w.dir); err != nil {
		return err
	}
	empty := filepath.Join(w.dir, "empty.conf")
	w.native = filepath.Join(w.dir, "holdfast")
	asTheirs := filepath.Join(w.dir, "pgbackrest")
	if err := copyProgram(w.set.holdfast, w.native); err != nil {
		return err
	}
	if err := os.Symlink("holdfast", asTheirs); err != nil {
		return err
	}
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		return err
	}
	w.data, w.locks = filepath.Join(w.dir, "data"), "--lock-path="+filepath.Join(w.dir, "lock")
	common := []string{"--config=" + empty, "--log-level-file=off", "--log-level-console=error", "--log-level-stderr=off"}
	w.ours = tool{name: "holdfast", argv: []string{asTheirs}, repo: filepath.Join(w.dir, "repo-holdfast"), common: common}
	w.theirs = tool{name: "pgbackrest", argv: []string{w.set.pgbackrest}, repo: filepath.Join(w.dir, "repo-pgbackrest"), common: common}
	return nil
}

func copyProgram(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// enoughRoom wants space for the cluster, the repositories, one restore and the WAL at the same time.
func enoughRoom(s *settings) error {
	var st syscall.Statfs_t
	if err := syscall.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	const mib = 1 << 20
	need := int64(s.scale)*22*mib*4 + int64(s.segments)*16*mib*4 + 1024*mib
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("%s has %d MiB free, scale %d needs about %d MiB; use --dir, --scale or --quick",
			s.dir, free/mib, s.scale, need/mib)
	}
	return nil
}

// benchUser is postgres when we are root, else ourselves.
func benchUser() (*user.User, *syscall.Credential, error) {
	if os.Geteuid() != 0 {
		u, err := user.Current()
		return u, nil, err
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return nil, nil, fmt.Errorf("%w; run: make setup", err)
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	if err != nil {
		return nil, nil, err
	}
	return u, &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

func (w *world) own(name string) error {
	if w.credential == nil {
		return nil
	}
	return os.Chown(name, int(w.credential.Uid), int(w.credential.Gid))
}

// close stops the cluster and removes the work directory. It must work after a cancelled run.
func (w *world) close() error {
	var stopped error
	if w.started {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, stopped = w.exec(ctx, []string{filepath.Join(w.set.pgBin, "pg_ctl"), "-D", w.data, "-m", "immediate", "-w", "stop"})
		if stopped != nil {
			return stopped // the directory is in use; leave it
		}
	}
	return os.RemoveAll(w.dir)
}

func (w *world) psql(ctx context.Context, sql string) error {
	_, err := w.exec(ctx, []string{
		"/usr/bin/psql", "-qAtX", "-v", "ON_ERROR_STOP=1", "-h", w.dir, "-p", w.port, "-d", "postgres", "-c", sql,
	})
	return err
}

func (w *world) pgbench(ctx context.Context, args ...string) error {
	argv := append([]string{"/usr/bin/pgbench", "-h", w.dir, "-p", w.port}, args...)
	_, err := w.exec(ctx, append(argv, "postgres"))
	return err
}

// freePort asks the kernel for one; the cluster listens on a socket in its own directory, so only the name matters.
func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	return port, err
}

// makeCluster makes, starts and fills the cluster, then collects WAL segments with ordinary transactions.
func (w *world) makeCluster(ctx context.Context) error {
	w.say("making a cluster of scale %d in %s", w.set.scale, w.dir)
	var err error
	if w.port, err = freePort(); err != nil {
		return err
	}
	wal := filepath.Join(w.dir, "wal")
	if err := w.fresh(wal); err != nil {
		return err
	}
	if err := w.fresh(filepath.Join(w.dir, "lock")); err != nil {
		return err
	}
	w.ours.create, w.theirs.create = w.server(), w.server()
	_, err = w.exec(ctx, []string{
		filepath.Join(w.set.pgBin, "initdb"), "-D", w.data, "-U", w.owner.Username, "-A", "trust", "--no-locale", "-E", "UTF8", "-k", "-N",
	})
	if err != nil {
		return err
	}
	// The segments are kept by a copy; the tools are measured on them later, by us, not by the server.
	config := fmt.Sprintf(`
listen_addresses = ''
port = %s
unix_socket_directories = '%s'
shared_buffers = 256MB
max_wal_size = 2GB
fsync = off
autovacuum = off
wal_level = replica
archive_mode = on
archive_command = 'true'
`, w.port, w.dir)
	file, err := os.OpenFile(filepath.Join(w.data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(config)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	_, err = w.exec(ctx, []string{filepath.Join(w.set.pgBin, "pg_ctl"), "-D", w.data, "-l", filepath.Join(w.dir, "pg.log"), "-w", "-t", "120", "start"})
	if err != nil {
		return err
	}
	w.started = true
	if err := w.fillCluster(ctx); err != nil {
		return err
	}
	if err := w.collectSegments(ctx, wal); err != nil {
		return err
	}
	if err := w.psql(ctx, "checkpoint"); err != nil {
		return err
	}
	if w.files, w.bytes, err = measureTree(filepath.Join(w.data, "base")); err != nil {
		return err
	}
	w.say("cluster ready: %d files, %d MiB", w.files, w.bytes>>20)
	return nil
}

func (w *world) fillCluster(ctx context.Context) error {
	if err := w.pgbench(ctx, "-i", "-q", "-s", strconv.Itoa(w.set.scale)); err != nil {
		return err
	}
	rows, tables := w.set.scale*10_000, w.set.scale*10
	sql := []string{
		// About 350 bytes a row, of which a third is as good as random.
		fmt.Sprintf(`create table texts as select g as id, now() - g * interval '1 second' as at,
			format('{"order":%%s,"customer":"%%s","note":"%%s","state":"%%s"}', g, md5(g::text), repeat(md5((g%%97)::text), 6),
			(array['new','paid','sent'])[1 + g%%3]) as body from generate_series(1, %d) g`, rows),
		"create index on texts (id)",
	}
	for first := 0; first < tables; first += 500 { // one transaction holds a lock for each table
		sql = append(sql, fmt.Sprintf(`do $$ begin for i in %d..%d loop
			execute format('create table small_%%s as select %%s as id, md5(%%L) as t', i, i, i); end loop; end $$`,
			first, min(first+500, tables)-1))
	}
	for _, s := range append(sql, "checkpoint") {
		if err := w.psql(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// collectSegments runs transactions until enough full segments were archived to wal.
func (w *world) collectSegments(ctx context.Context, wal string) error {
	command := fmt.Sprintf("cp %%p %s/%%f.part && mv %s/%%f.part %s/%%f", wal, wal, wal)
	for _, s := range []string{"alter system set archive_command = '" + command + "'", "select pg_reload_conf()", "select pg_switch_wal()"} {
		if err := w.psql(ctx, s); err != nil {
			return err
		}
	}
	for range 60 {
		if err := w.pgbench(ctx, "-n", "-c", "4", "-j", "2", "-T", "5"); err != nil {
			return err
		}
		if err := w.psql(ctx, "checkpoint"); err != nil { // full pages again: WAL as a busy server writes it
			return err
		}
		if have, err := w.segmentFiles(); err != nil {
			return err
		} else if len(have) > w.set.segments { // the first one was cut short by the switch
			return errors.Join(w.psql(ctx, "alter system set archive_command = 'true'"), w.psql(ctx, "select pg_reload_conf()"))
		}
	}
	return fmt.Errorf("five minutes of pgbench did not make %d segments; use --segments with less", w.set.segments)
}

func (w *world) segmentFiles() ([]string, error) {
	return filepath.Glob(filepath.Join(w.dir, "wal", strings.Repeat("[0-9A-F]", 24)))
}

// fullSegments gives the wanted number of segments without the first, which ends in zeros.
func (w *world) fullSegments() ([]string, error) {
	all, err := w.segmentFiles()
	if err != nil {
		return nil, err
	}
	if len(all) <= w.set.segments {
		return nil, fmt.Errorf("%d segments collected, %d wanted", len(all), w.set.segments+1)
	}
	return all[1 : w.set.segments+1], nil
}
