package world

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// LineageStanza is the second cluster's name in the repository.
const LineageStanza = "lineage"

// second is the world of the second cluster: the same application, another server. What is done with a server or a database
// works on it; the rest is not to be used.
func (w *World) second(port int) *World {
	o := *w
	o.Lineage, o.Port = nil, port
	o.Data = filepath.Join(filepath.Dir(filepath.Dir(w.Data)), LineageStanza, "data")
	if w.o.Lineage != "" {
		o.o.PGBin = w.o.Lineage
	}
	return &o
}

// beginLineage makes the second cluster, empty or as a copy of the first, and starts it.
func (w *World) beginLineage(ctx context.Context) error {
	if w.o.Lineage == "" && !w.o.Clone {
		return nil
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	l := w.second(port)
	w.Lineage = l
	if err := w.mkdir(filepath.Dir(l.Data)); err != nil {
		return err
	}
	if !w.o.Clone {
		return errors.Join(l.initdb(ctx), l.StartServer(ctx))
	}
	if err := w.StopServer(ctx, "fast"); err != nil {
		return err
	}
	if out, err := exec.CommandContext(ctx, "cp", "-a", w.Data, l.Data).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the cluster: %w: %s", err, out)
	}
	f, err := os.OpenFile(filepath.Join(l.Data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "port = %d\n", port)
	return errors.Join(err, f.Close(), w.StartServer(ctx), l.StartServer(ctx))
}

// clusters is the value of pgsql.clusters.
func (w *World) clusters() string {
	one := func(stanza string, c *World) string {
		text := fmt.Sprintf("%s:data=%s,host=%s,port=%d,user=postgres", stanza, w.inside(c.Data), w.inside(c.Sock), c.Port)
		if !strings.HasPrefix(c.o.PGBin, "/usr/") {
			text += ",bin=" + w.inside(filepath.Join(w.Root, "pg-"+stanza, "bin"))
		}
		return text
	}
	text := one(Stanza, w)
	if w.Lineage != nil {
		text += ";" + one(LineageStanza, w.Lineage)
	}
	return text
}

// linkPrograms puts server programs that are not the system's below the instance's root, where pgsql.clusters can name them.
func (w *World) linkPrograms() error {
	for stanza, c := range map[string]*World{Stanza: w, LineageStanza: w.Lineage} {
		if c == nil || strings.HasPrefix(c.o.PGBin, "/usr/") {
			continue
		}
		if err := os.Symlink(filepath.Dir(c.o.PGBin), filepath.Join(w.Root, "pg-"+stanza)); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// Servers are the clusters by their stanzas.
func (w *World) Servers() map[string]*World {
	all := map[string]*World{Stanza: w}
	if w.Lineage != nil {
		all[LineageStanza] = w.Lineage
	}
	return all
}
