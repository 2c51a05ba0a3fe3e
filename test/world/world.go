// Package world makes a whole application for the demonstration and for tests of the whole program: an instance, a
// PostgreSQL cluster, files, and topics on an event bus that the caller runs. It drives the real binary as operators do
// and looks at the result through PostgreSQL, the file system and Kafka only, never through Holdfast's own packages.
package world

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Options describes the application.
type Options struct {
	Dir     string   // an empty or missing directory; everything is below it
	Bin     string   // the holdfast program
	PGBin   string   // directory of initdb and pg_ctl; empty: Debian's PostgreSQL 15
	Brokers []string // of the event bus; empty: the application has none
	Conf    []string // further words for alation_conf: KEY -s VALUE …
	Apart   bool     // the PostgreSQL backup is kept apart
	// Host: no root of its own and no root user. Path parameters are the host's, Dir/state has the instance's own files, and
	// everything is done by the server's user.
	Host bool

	Lineage string // directory of initdb and pg_ctl of a second cluster, lineage; empty: there is none
	Clone   bool   // there is a second cluster, lineage, that is a copy of the first: the same system identifier
}

// World is one application.
type World struct {
	Dir   string // of everything
	Root  string // of the instance
	Data  string // PostgreSQL's data directory
	Sock  string // its socket directory
	Port  int
	Files string // the application's files
	Dump  string // where tarballs land
	Temp  string // staging
	Repo  string // the repository in use

	Lineage *World // the second cluster, see second; nil: there is none

	o     Options
	owner *syscall.Credential // of PostgreSQL, when the caller is root
}

// Stanza is the cluster's name in the repository.
const Stanza = "rosemeta"

// New lays the instance out, starts an empty cluster, sets the parameters and turns archiving on.
func New(ctx context.Context, o Options) (*World, error) {
	if o.PGBin == "" {
		o.PGBin = "/usr/lib/postgresql/15/bin"
	}
	w := &World{Dir: o.Dir, o: o}
	w.place()
	var err error
	if w.Port, err = freePort(); err != nil {
		return nil, err
	}
	if err := w.findOwner(); err != nil {
		return nil, err
	}
	for _, d := range []string{o.Dir, w.disk("data"), w.disk("backup")} {
		if err := w.openDir(d); err != nil {
			return nil, err
		}
	}
	if _, err := w.Holdfast(ctx, w.initArgs()...); err != nil {
		return nil, err
	}
	return w, w.begin(ctx)
}

// place says where everything is.
func (w *World) place() {
	data, backup := "data1", "data2"
	w.Root = filepath.Join(w.Dir, "root")
	if w.o.Host {
		w.Root = filepath.Join(w.Dir, "state")
		data, backup = "../data", "../backup"
	}
	in := func(elements ...string) string { return filepath.Join(append([]string{w.Root}, elements...)...) }
	w.Data, w.Sock, w.Files = in(data, "pgsql/data"), in("run/pg"), in(data, "site_data")
	w.Dump, w.Temp, w.Repo = in(backup, "backup"), in(backup, "tmp"), in(backup, "backup/pgbackrest")
	if w.o.Apart {
		w.Repo = in(backup, "pgbackrest")
	}
	if w.o.Host {
		w.Sock = filepath.Join(w.Dir, "run")
	}
}

// openDir makes a directory through which the server's user gets, whatever the umask; where there is no root user it is his.
func (w *World) openDir(dir string) error {
	if w.o.Host {
		return w.MakeOwned(dir, 0o755)
	}
	return errors.Join(os.MkdirAll(dir, 0o755), os.Chmod(dir, 0o755))
}

func (w *World) disk(name string) string { return filepath.Join(w.Dir, name) }

func (w *World) initArgs() []string {
	args := []string{"init", w.disk("data"), w.disk("backup")}
	if w.o.Host {
		return append(args, "--root", "/", "--state", w.Root)
	}
	args = append(args, "--root", w.Root)
	if w.owner != nil {
		args = append(args, "--user", "postgres")
	}
	return args
}

// inside is a path as the instance's parameters name it.
func (w *World) inside(path string) string {
	if w.o.Host {
		return path
	}
	return strings.TrimPrefix(path, w.Root)
}

func (w *World) begin(ctx context.Context) error {
	for _, d := range []string{w.Sock, filepath.Dir(w.Data), w.Files} {
		if err := w.mkdir(d); err != nil {
			return err
		}
	}
	if err := w.initdb(ctx); err != nil {
		return err
	}
	if err := w.StartServer(ctx); err != nil {
		return err
	}
	if err := errors.Join(w.beginLineage(ctx), w.linkPrograms()); err != nil {
		return err
	}
	conf := []string{"pgsql.clusters", "-s", w.clusters(),
		"alation.backup_v2.pgbackup_compression", "-s", map[bool]string{true: "False", false: "True"}[w.o.Apart],
		"eventbus.enabled", "-s", map[bool]string{true: "True", false: "False"}[len(w.o.Brokers) > 0]}
	if len(w.o.Brokers) > 0 {
		conf = append(conf, "eventbus.brokers", "-s", strings.Join(w.o.Brokers, ","))
	}
	if _, err := w.As(ctx, "alation_conf", "", append(conf, w.o.Conf...)...); err != nil {
		return err
	}
	_, err := w.As(ctx, "alation_action", "", "enable_backupv2")
	return err
}

func (w *World) findOwner() error {
	if os.Geteuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("%w; run: make setup", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	w.owner = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if w.o.Host { // as at a login
		ids, err := u.GroupIds()
		if err != nil {
			return err
		}
		for _, id := range ids {
			n, err := strconv.ParseUint(id, 10, 32)
			if err != nil {
				return err
			}
			w.owner.Groups = append(w.owner.Groups, uint32(n))
		}
	}
	return errors.Join(err1, err2)
}

// OtherGroup is a group of the server's user that is not its first; -1: it has none.
func (w *World) OtherGroup() int {
	own := os.Getegid()
	groups, err := os.Getgroups()
	if w.owner != nil {
		own, groups = int(w.owner.Gid), nil
		for _, g := range w.owner.Groups {
			groups = append(groups, int(g))
		}
	}
	if i := slices.IndexFunc(groups, func(g int) bool { return g != own }); err == nil && i >= 0 {
		return groups[i]
	}
	return -1
}

func (w *World) mkdir(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if w.owner == nil {
		return nil
	}
	return os.Chown(dir, int(w.owner.Uid), int(w.owner.Gid))
}

func (w *World) initdb(ctx context.Context) error {
	if _, err := w.server(ctx, "initdb", "-D", w.Data, "-U", "postgres", "-A", "trust", "-k", "--no-locale", "-E", "UTF8", "--no-sync"); err != nil {
		return err
	}
	conf := fmt.Sprintf("port = %d\nunix_socket_directories = '%s'\nlisten_addresses = ''\nwal_level = replica\narchive_mode = on\narchive_command = 'false'\nmax_wal_size = 256MB\n", w.Port, w.Sock)
	f, err := os.OpenFile(filepath.Join(w.Data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(conf)
	return errors.Join(err, f.Close())
}

// server runs one of PostgreSQL's programs as the server's user.
func (w *World) server(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(w.o.PGBin, program), args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.owner}
	if lib := filepath.Join(filepath.Dir(w.o.PGBin), "lib"); !strings.HasPrefix(w.o.PGBin, "/usr/") {
		cmd.Env = append(os.Environ(), "LD_LIBRARY_PATH="+lib)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, out)
	}
	return string(out), nil
}

// StartServer and StopServer use pg_ctl.
func (w *World) StartServer(ctx context.Context) error {
	_, err := w.server(ctx, "pg_ctl", "-D", w.Data, "-l", w.serverLog(), "-w", "-t", "60", "-s", "start")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, w.LogTail())
	}
	return nil
}

func (w *World) serverLog() string { return filepath.Join(w.Sock, fmt.Sprintf("start-%d.log", w.Port)) } // of two clusters in one directory each its own

// LogTail is the end of the server's log, to make the message of an error richer.
func (w *World) LogTail() string {
	text, err := os.ReadFile(w.serverLog())
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-2000):])
}

func (w *World) StopServer(ctx context.Context, mode string) error {
	_, err := w.server(ctx, "pg_ctl", "-D", w.Data, "-m", mode, "-w", "-s", "stop")
	return err
}

// Close ends the servers; what is on disk is the caller's to remove.
func (w *World) Close(ctx context.Context) error {
	var err error
	for _, s := range w.Servers() {
		if _, serr := os.Stat(filepath.Join(s.Data, "postmaster.pid")); serr == nil {
			err = errors.Join(err, s.StopServer(ctx, "immediate"))
		}
	}
	return err
}

// Output is what a command printed and its exit code.
type Output struct {
	Stdout, Stderr string
	Code           int
}

// Command prepares the program under one of its names, with the instance named by HOLDFAST_ROOT.
func (w *World) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, w.o.Bin, args...)
	cmd.Args[0] = name
	cmd.Env = append(os.Environ(), "HOLDFAST_ROOT="+w.Root)
	if w.o.Host {
		w.AsOwner(cmd)
	}
	return cmd
}

// AsOwner makes a command one of the server's user, with all groups of that user. Nothing changes if the caller is no root.
func (w *World) AsOwner(cmd *exec.Cmd) {
	cmd.Dir = w.Dir
	if w.owner != nil {
		cmd.Env = append(cmd.Env, "HOME="+w.Dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.owner}
	}
}

// As runs the program under one of its names; an exit code other than 0 and 3 (done with warnings) is an error.
func (w *World) As(ctx context.Context, name, stdin string, args ...string) (Output, error) {
	return Run(w.Command(ctx, name, args...), stdin)
}

// Holdfast runs it under its own name.
func (w *World) Holdfast(ctx context.Context, args ...string) (Output, error) {
	return w.As(ctx, "holdfast", "", args...)
}

// Run runs a prepared command with a text as its standard input.
func Run(cmd *exec.Cmd, stdin string) (Output, error) {
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	o := Output{Stdout: out.String(), Stderr: errs.String(), Code: cmd.ProcessState.ExitCode()}
	if err != nil && o.Code != 3 {
		return o, fmt.Errorf("%s %s: %w\n%s%s", cmd.Args[0], strings.Join(cmd.Args[1:], " "), err, o.Stdout, o.Stderr)
	}
	return o, nil
}

// DB opens a session as the superuser.
func (w *World) DB(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=postgres dbname=postgres sslmode=disable", w.Sock, w.Port))
}

// Exec runs statements, each by itself.
func (w *World) Exec(ctx context.Context, statements ...string) error {
	c, err := w.DB(ctx)
	if err != nil {
		return err
	}
	for _, s := range statements {
		if _, err = c.Exec(ctx, s); err != nil {
			err = fmt.Errorf("%s: %w", s, err)
			break
		}
	}
	return errors.Join(err, c.Close(ctx))
}

// Kafka opens a client of the event bus.
func (w *World) Kafka(opts ...kgo.Opt) (*kgo.Client, error) {
	return kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(w.o.Brokers...), kgo.AllowAutoTopicCreation(), kgo.RecordPartitioner(kgo.ManualPartitioner())}, opts...)...)
}

// Lose destroys the application as a lost disk would: the server dies, data and files are gone. Topics are the caller's.
func (w *World) Lose(ctx context.Context) error {
	if err := w.Close(ctx); err != nil {
		return err
	}
	if w.Lineage != nil {
		if err := os.RemoveAll(w.Lineage.Data); err != nil {
			return err
		}
	}
	return errors.Join(os.RemoveAll(w.Data), os.RemoveAll(filepath.Join(w.Root, "data1/space")), os.RemoveAll(w.Files), os.RemoveAll(filepath.Join(w.Root, "opt/alation/site/app")))
}

// Tarballs are the final names in the dump directory, oldest first; with the hidden ones of unfinished runs if asked.
func (w *World) Tarballs(hidden bool) ([]string, error) {
	entries, err := os.ReadDir(w.Dump)
	var names []string
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tar.gz") && (hidden || !strings.HasPrefix(e.Name(), ".")) {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// WaitNewMinute is for runs that must not share a minute with another instance's.
func WaitNewMinute(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute))):
		return nil
	}
}

// freePort finds a port number for a socket that is a file: any number that no other server of the test run has.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}
