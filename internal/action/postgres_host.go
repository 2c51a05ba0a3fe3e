package action

import (
	"context"
	"errors"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg"
)

// Bounds of a look into the databases of a cluster, for which no run waits longer.
const (
	hostTime      = 30 * time.Second
	hostDatabases = 500
)

// hostOf notes what a cluster needs of its machine. What can't be found out is left out: a backup is none the worse for it. It
// uses sessions of its own, since one that is told to hurry is lost.
func (a *App) hostOf(ctx context.Context, c Cluster) *catalog.PostgresHost {
	ctx, cancel := context.WithTimeout(ctx, hostTime)
	defer cancel()
	conn, err := pg.Connect(ctx, c.Conn)
	if err != nil {
		return nil
	}
	facts, ferr := conn.Facts(ctx)
	inst, ierr := conn.Installation(ctx)
	locales, lerr := conn.Locales(ctx)
	if errors.Join(ferr, ierr, lerr, conn.Close()) != nil {
		return nil
	}
	m := pg.MachineOf(ctx, binDirOf(c, facts.Version))
	h := &catalog.PostgresHost{Server: inst.Server, Arch: m.Arch, Libc: m.Libc, ICU: m.ICU, Preload: inst.Preload, Locales: inst.Locales, Databases: []catalog.DatabaseHost{}}
	for i, l := range locales {
		d := catalog.DatabaseHost{Name: l.Database, Provider: l.Provider, Locale: l.Text(), Collate: l.Collate, Ctype: l.Ctype, Version: l.Version}
		ext, err := []pg.Extension(nil), errors.New("not looked into")
		if l.Connects && i < hostDatabases && ctx.Err() == nil {
			ext, err = extensionsOf(ctx, c.Conn, l.Database)
		}
		if err != nil && l.Database != "template0" {
			h.Unseen = append(h.Unseen, l.Database)
		}
		for _, e := range ext {
			d.Extensions = append(d.Extensions, catalog.Extension{Name: e.Name, Version: e.Version})
		}
		h.Databases = append(h.Databases, d)
	}
	return h
}

func extensionsOf(ctx context.Context, o pg.ConnOptions, database string) ([]pg.Extension, error) {
	o.Database = database
	conn, err := pg.Connect(ctx, o)
	if err != nil {
		return nil, err
	}
	list, err := conn.Extensions(ctx)
	return list, errors.Join(err, conn.Close())
}

// binDirOf is where the server programs of a cluster are; "" when they are not found.
func binDirOf(c Cluster, v pg.Version) string {
	if c.BinDir != "" {
		return c.BinDir
	}
	dir, err := pg.FindBinDir(v)
	if err != nil {
		return "" // who needs them says so
	}
	return dir
}
