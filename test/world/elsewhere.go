package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// AsServer runs any program as the server's user and returns what it printed.
func (w *World) AsServer(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: w.owner}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// Elsewhere is the application's cluster as another program restored it to data. It listens in sock only, so that it may
// run beside the application's own. The caller starts and closes it; the rest of it is not to be used.
func (w *World) Elsewhere(data, sock string) (*World, error) {
	o := *w
	o.Data, o.Sock, o.Lineage = data, sock, nil
	f, err := os.OpenFile(filepath.Join(data, "postgresql.auto.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(f, "unix_socket_directories = '%s'\n", sock)
	return &o, errors.Join(err, f.Close())
}

// Rows proves the rows only: table → count and hash of every row.
func (w *World) Rows(ctx context.Context) (map[string]string, error) {
	p := &Proof{Rows: map[string]string{}}
	return p.Rows, w.proveRows(ctx, p)
}

// Bare is a machine for the application that has nothing of it yet: only the names of places, below dir. Its server will have the
// port of w's, which must not run any more.
func (w *World) Bare(dir string) (*World, error) {
	n := &World{Dir: dir, Root: filepath.Join(dir, "root"), Port: w.Port, o: w.o, owner: w.owner}
	n.Data, n.Sock = filepath.Join(n.Root, "data1/pgsql/data"), filepath.Join(n.Root, "run/pg")
	n.Files, n.Dump, n.Repo = filepath.Join(n.Root, "data1/site_data"), filepath.Join(n.Root, "data2/backup"), filepath.Join(n.Root, "data2/pgbackrest")
	if w.Lineage != nil {
		n.Lineage = n.second(w.Lineage.Port)
	}
	return n, os.Chmod(dir, 0o755)
}

// OnBus is the same application with its event bus elsewhere.
func (w *World) OnBus(brokers []string) *World {
	o := *w
	o.o.Brokers = brokers
	return &o
}
