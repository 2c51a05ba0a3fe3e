package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/backrest"
	"holdfast/internal/pg"
)

// localServers are the servers whose data directories are on this host: those without a pg-host.
func localServers(c *backrest.Config) []int {
	var keys []int
	for _, key := range c.Keys(backrest.PG) {
		if c.String("pg-host", key) == "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// dataDir is the first data directory on this host; empty: there is none.
func (r *backrestRun) dataDir() string {
	if keys := localServers(r.c); len(keys) > 0 {
		return r.c.String("pg-path", keys[0])
	}
	return ""
}

// conn is how the server of pg<key> is reached: by its socket or, with a pg-host, over the network. What is not set is as
// PostgreSQL's own programs have it, from PGHOST, PGUSER, PGPASSWORD, ~/.pgpass and so on; the user is else who runs us.
func (r *backrestRun) conn(key int) pg.ConnOptions {
	o := pg.ConnOptions{Host: r.c.String("pg-socket-path", key), Port: int(r.c.Int("pg-port", key)), User: r.c.String("pg-user", key), Database: r.c.String("pg-database", key),
		Query: r.dbTimeout(), Password: pg.Secret(r.env.Getenv("PGPASSWORD")), PassFile: r.passFile(), SSLMode: r.env.Getenv("PGSSLMODE"), SSLRoots: r.env.Getenv("PGSSLROOTCERT")}
	if host := r.c.String("pg-host", key); host != "" {
		o.Host = host
	}
	if o.User == "" {
		o.User = r.env.Getenv("PGUSER")
	}
	if o.User == "" {
		o.User = "postgres" // for root, who has no role as a rule
		if u, err := user.Current(); err == nil && os.Geteuid() != 0 {
			o.User = u.Username
		}
	}
	if o.Host == "" {
		o.Host = r.env.Getenv("PGHOST")
	}
	if o.Host == "" {
		o.Host = "/var/run/postgresql"
	}
	return o
}

// passFile is PostgreSQL's file of passwords, if there is one that nobody else can read.
func (r *backrestRun) passFile() string {
	name := r.env.Getenv("PGPASSFILE")
	if name == "" {
		home := r.env.Getenv("HOME")
		if home == "" {
			return ""
		}
		name = filepath.Join(home, ".pgpass")
	}
	if info, err := os.Stat(name); err != nil || !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 {
		return ""
	}
	return name
}

// dbTimeout is how long one query may take: less than protocol-timeout, as the original has it, when only that was set.
func (r *backrestRun) dbTimeout() time.Duration {
	db, protocol := r.c.Duration("db-timeout", 0), r.c.Duration("protocol-timeout", 0)
	if r.given("db-timeout") || protocol == 0 || db < protocol {
		return db
	}
	if less := protocol - 30*time.Second; less >= 15*time.Second {
		return less
	}
	return protocol / 2
}

// servers are the primary and, if there is one, a standby among pg1-…, pg2-…; 0 is none.
type servers struct{ primary, standby int }

// findServers asks each server whether it is in recovery; one that does not answer is a warning. A standby counts when its
// data directory is on this host.
func (r *backrestRun) findServers(ctx context.Context) (servers, error) {
	var s servers
	for _, key := range r.c.Keys(backrest.PG) {
		local := r.c.String("pg-host", key) == ""
		facts, err := r.askServer(ctx, key, local)
		switch {
		case ctx.Err() != nil:
			return s, ctx.Err()
		case err != nil:
			r.log.at(logWarn, fmt.Sprintf("unable to check pg%d: %v", key, err))
		case facts.InRecovery && s.standby == 0 && local:
			s.standby = key
		case !facts.InRecovery && s.primary != 0:
			return s, coded(codeConnect, fmt.Sprintf("more than one primary cluster found: pg%d and pg%d\nHINT: remove one of them from the configuration.", s.primary, key))
		case !facts.InRecovery:
			s.primary = key
		}
	}
	return s, nil
}

// findPrimary is findServers for commands that can't do without a primary.
func (r *backrestRun) findPrimary(ctx context.Context) (servers, error) {
	s, err := r.findServers(ctx)
	if err == nil && s.primary == 0 {
		err = coded(codeConnect, "unable to find primary cluster - cannot proceed\nHINT: are all available clusters in recovery?\nHINT: on a standby's host, name the primary with its pg-host, pg-port and pg-user.")
	}
	return s, err
}

func (r *backrestRun) askServer(ctx context.Context, key int, local bool) (pg.ServerFacts, error) {
	if local { // an unmounted data directory is better found before anything is begun
		if _, _, err := pg.ReadControlAs(ctx, r.c.String("pg-path", key), r.version); err != nil {
			return pg.ServerFacts{}, err
		}
	}
	conn, err := pg.Connect(ctx, r.conn(key))
	if err != nil {
		return pg.ServerFacts{}, err
	}
	facts, err := conn.Facts(ctx)
	return facts, errors.Join(err, conn.Close())
}

// needsFiles says of a command that it can't do its work without a data directory on this host; empty: it can.
func needsFiles(c *backrest.Config) string {
	keys := c.Keys(backrest.PG)
	name := c.Command.String()
	if len(localServers(c)) > 0 || !strings.Contains(" archive-get archive-push backup restore stanza-create stanza-delete stanza-upgrade ", " "+name+" ") {
		return ""
	}
	return fmt.Sprintf("option 'pg%d-host=%s' is not done by Holdfast: %s needs the files of a data directory on this host\n"+
		"HINT: run it on the host of PostgreSQL, without pg%[1]d-host; a primary on another host can be named beside a standby on this one.", keys[0], c.String("pg-host", keys[0]), name)
}
