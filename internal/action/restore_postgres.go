package action

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// server is how Holdfast starts and stops the cluster's server.
func (c *Cluster) server(args []string) pg.ServerOptions {
	return pg.ServerOptions{DataDir: c.DataDir, BinDir: c.BinDir, Args: args, LogFile: c.LogFile, Timeout: 10 * time.Minute}
}

// startServer starts the cluster's server, as the owner of its data directory; the directory of its log is made for it.
// before ("" is none) is the data directory that stood in its place.
func (a *App) startServer(ctx context.Context, c *Cluster, before string) error {
	uid, gid := ownerOf(c.DataDir, a.fallbackOwner())
	if err := durable.MkdirAllOwned(filepath.Dir(c.LogFile), 0o750, &durable.Owner{UID: uid, GID: gid}); err != nil {
		return fmt.Errorf("directory of the server's log: %w", err)
	}
	var args []string
	if conf := pg.ConfigFile(c.DataDir, before); conf != "" && !exists(filepath.Join(c.DataDir, "postgresql.conf")) {
		args = []string{"-c", "config_file=" + conf}
	}
	return pg.Start(ctx, c.server(args))
}

// segmentRange names every WAL segment from the backup's start to the recovery point.
func segmentRange(point catalog.PostgresPoint) ([]string, error) {
	lsn, err := pg.ParseLSN(point.LSN)
	if err != nil {
		return nil, err
	}
	if !pg.IsSegmentName(point.WALStart) || !pg.IsSegmentName(point.Segment) {
		return nil, fmt.Errorf("cluster %s: the set names no WAL segments", point.Stanza)
	}
	for mb := uint32(1); mb <= 1024; mb *= 2 { // the size is not in the set; only one makes name and position agree
		size := mb << 20
		if pg.SegmentName(point.Timeline, lsn, size) != point.Segment {
			continue
		}
		start, err := segmentStart(point.WALStart, size)
		if err != nil {
			return nil, err
		}
		return pg.SegmentsBetween(point.Timeline, start, lsn, size), nil
	}
	return nil, fmt.Errorf("cluster %s: position %s does not lie in segment %s", point.Stanza, point.LSN, point.Segment)
}

// segmentStart is the first position of a segment.
func segmentStart(name string, size uint32) (pg.LSN, error) {
	hi, err1 := strconv.ParseUint(name[8:16], 16, 32)
	lo, err2 := strconv.ParseUint(name[16:24], 16, 32)
	return pg.LSN(hi<<32 + lo*uint64(size)), errors.Join(err1, err2)
}

// engineRestore is how one cluster of a set is restored here. onlyPlan leaves the target unchecked: it is moved aside later.
func (a *App) engineRestore(c Cluster, point catalog.PostgresPoint, set *catalog.Set, until time.Time, repoDir string, onlyPlan bool) engine.RestoreOptions {
	repos := []string{repoDir}
	if repoDir != a.o.RepoDir { // also what was archived since, and the timelines that earlier restores began
		repos = append(repos, a.o.RepoDir)
	}
	o := engine.RestoreOptions{Set: repo.Label(point.Label), DataDir: c.DataDir, Type: engine.TargetName, Target: set.Recovery.Name, Action: "promote",
		Timeline: strconv.FormatUint(uint64(point.Timeline), 10), RestoreCommand: a.andProbackup(c.RestoreCommand(repos...), c, point.Version), ProcessMax: a.o.ProcessMax,
		RecoveryOptions: map[string]string{"archive_command": a.archiveCommand(c, point.Version)}, SkipTargetCheck: onlyPlan}
	if c.Conn.Port != 0 {
		o.RecoveryOptions["port"] = strconv.Itoa(c.Conn.Port)
	}
	if filepath.IsAbs(c.Conn.Host) {
		o.RecoveryOptions["unix_socket_directories"] = c.Conn.Host
	}
	if !until.IsZero() {
		o.Type, o.Target = engine.TargetTime, until.UTC().Format("2006-01-02 15:04:05.999999+00")
	}
	if os.Geteuid() == 0 {
		o.Owners = true
		o.DefaultUID, o.DefaultGID = ownerOf(c.DataDir, a.fallbackOwner())
	}
	o.RootFrom, o.RootTo = set.Root, a.o.Root
	return o
}

// restorePostgres stops, moves aside, restores, starts, recovers and checks every cluster of the set.
func (r *restoreRun) restorePostgres(ctx context.Context) error {
	if len(pointsOf(r.Set)) == 0 {
		return nil
	}
	if r.byProbackup() {
		return r.restoreProbackup(ctx)
	}
	st, err := r.a.o.OpenRepo(r.repoDir)
	if r.fromStore() {
		st, _, err = r.source()
	}
	if err != nil {
		return err
	}
	for _, point := range pointsOf(r.Set) {
		c := r.a.cluster(point.Stanza)
		if c == nil {
			return fmt.Errorf("cluster %s is not configured", point.Stanza)
		}
		if err := r.restoreCluster(ctx, *c, point, st); err != nil {
			return fmt.Errorf("cluster %s: %w", point.Stanza, err)
		}
	}
	return nil
}

func (r *restoreRun) restoreCluster(ctx context.Context, c Cluster, point catalog.PostgresPoint, st storage.Storage) error {
	s, err := r.stanza(point.Stanza, st)
	if err != nil {
		return err
	}
	opts := r.a.engineRestore(c, point, r.Set, r.Until, r.repoDir, true)
	plan, err := s.PlanRestore(ctx, opts) // before anything is touched: the backup can be read, the maps are right
	if err != nil {
		return err
	}
	if err := r.a.checkTablespaces(c, plan.TablespaceDirs()); err != nil {
		return err
	}
	for _, dir := range plan.TablespaceDirs() {
		if !slices.Contains(r.Replaces, dir) && !slices.Contains(r.Creates, dir) {
			return fmt.Errorf("tablespace directory %s is not in the plan: the repository has changed since; plan again", dir)
		}
	}
	r.a.step("restore", "stop-server", point.Stanza)
	if err := r.stopServer(ctx, &c); err != nil {
		return err
	}
	r.a.step("restore", "move-aside", c.DataDir)
	r.started = true
	if err := r.a.moveAside(r.j, move{From: c.DataDir}); err != nil {
		return err
	}
	for _, dir := range plan.TablespaceDirs() {
		if err := r.a.moveAside(r.j, move{From: dir}); err != nil {
			return err
		}
	}
	opts.SkipTargetCheck = false
	if plan, err = s.PlanRestore(ctx, opts); err != nil {
		return err
	}
	var w worker = builtin{s} // an external program is not given the keys to external storage
	if !r.fromStore() {
		if w, err = r.a.worker(c, r.repoDir, st); err != nil {
			return err
		}
	}
	if err := w.Restore(ctx, plan, opts); err != nil {
		return err
	}
	if err := r.prepareArchive(ctx, c); err != nil {
		return err
	}
	r.a.step("restore", "recover", r.Set.Recovery.Name)
	r.j.Ran = append(r.j.Ran, c.Stanza)
	if err := r.a.writeJournal(r.j); err != nil {
		return err
	}
	if err := r.a.startServer(ctx, &c, r.j.moveOf(c.DataDir).Aside); err != nil {
		return r.explainTime(ctx, err)
	}
	return r.checkCluster(ctx, c, point, st)
}

// checkTablespaces refuses tablespace directories that hold something and are not known to be this cluster's: not linked
// from its pg_tblspc and not below the instance's root. They may be the live ones of another cluster on this host.
func (a *App) checkTablespaces(c Cluster, dirs []string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
			continue
		}
		if err != nil {
			return err
		}
		if a.o.Root != "/" && strings.HasPrefix(dir, strings.TrimSuffix(a.o.Root, "/")+"/") {
			continue
		}
		links, err := filepath.Glob(globEscape(filepath.Join(c.DataDir, "pg_tblspc")) + "/*")
		if err != nil {
			return err
		}
		own := slices.ContainsFunc(links, func(l string) bool {
			dest, err := os.Readlink(l)
			return err == nil && filepath.Clean(dest) == filepath.Dir(dir)
		})
		if !own {
			return fmt.Errorf("tablespace directory %s holds files and does not belong to %s: it may be another cluster's; move it away if it is not used; nothing was changed in it", dir, c.DataDir)
		}
	}
	return nil
}

func (r *restoreRun) stopServer(ctx context.Context, c *Cluster) error {
	_, running, err := pg.Running(c.DataDir)
	if err != nil || !running {
		return err
	}
	r.j.Starts = append(r.j.Starts, c.Stanza)
	if err := r.a.writeJournal(r.j); err != nil {
		return err
	}
	r.started = true
	if err := r.commitBefore(ctx, c); err != nil {
		r.a.warn("cluster %s: %v", c.Stanza, err)
	}
	return pg.Stop(ctx, c.server(nil), "fast")
}

// prepareArchive makes sure that the restored cluster's archive_command finds its stanza.
func (r *restoreRun) prepareArchive(ctx context.Context, c Cluster) error {
	if r.a.useProbackup() {
		return r.a.prepareProbackup(ctx, c)
	}
	st, err := r.a.repository()
	if err != nil {
		return err
	}
	_, err = r.a.createStanza(ctx, c, st)
	return err
}

// checkCluster waits for the end of recovery and proves that it ended where the set says.
func (r *restoreRun) checkCluster(ctx context.Context, c Cluster, point catalog.PostgresPoint, st storage.Storage) error {
	conn, err := awaitPromotion(ctx, c)
	if err != nil {
		return r.explainTime(ctx, err)
	}
	defer conn.Close() // a read-only session: its end can't lose anything
	facts, err := conn.Facts(ctx)
	if err != nil {
		return err
	}
	if facts.SystemID != point.SystemID {
		return fmt.Errorf("the restored server has system identifier %d, the set says %d", facts.SystemID, point.SystemID)
	}
	proof, err := reachedPoint(c.DataDir, point.Timeline)
	if err != nil {
		return err
	}
	proof.Stanza = c.Stanza
	if want := fmt.Sprintf("at restore point %q", r.Set.Recovery.Name); r.Until.IsZero() && proof.Reached != want {
		return fmt.Errorf("recovery ended %q, not %q", proof.Reached, want)
	}
	dbs, err := conn.Databases(ctx)
	if err != nil {
		return err
	}
	for _, d := range dbs {
		proof.Databases = append(proof.Databases, d.Name)
	}
	slices.Sort(proof.Databases)
	if r.Until.IsZero() && !slices.Equal(proof.Databases, point.Databases) {
		return fmt.Errorf("the restored server has the databases %s, the set says %s", strings.Join(proof.Databases, ", "), strings.Join(point.Databases, ", "))
	}
	for _, name := range []string{"restore_command", "recovery_target_name", "recovery_target_time", "recovery_target_timeline", "recovery_target_action"} {
		if err := conn.AlterSystemReset(ctx, name); err != nil {
			return err
		}
	}
	r.res.Postgres = append(r.res.Postgres, proof)
	if err := conn.Reload(ctx); err != nil {
		return err
	}
	r.collations(ctx, c, point)
	return ctx.Err()
}

// awaitPromotion connects as soon as the server lets it and waits until recovery has ended. A server that dies or pauses
// for good is an error.
func awaitPromotion(ctx context.Context, c Cluster) (*pg.Conn, error) {
	var last error
	for {
		if _, running, err := pg.Running(c.DataDir); err != nil {
			return nil, err
		} else if !running {
			return nil, errors.Join(fmt.Errorf("the server stopped during recovery; its log is %s", c.LogFile), last)
		}
		conn, err := pg.Connect(ctx, c.Conn)
		if err == nil {
			var f pg.ServerFacts
			if f, err = conn.Facts(ctx); err == nil && !f.InRecovery {
				return conn, nil
			}
			err = errors.Join(err, conn.Close())
		}
		last = err
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// reachedPoint reads why and where the restored cluster left the backup's timeline.
func reachedPoint(dataDir string, from uint32) (PostgresProof, error) {
	var newest string
	entries, err := os.ReadDir(filepath.Join(dataDir, "pg_wal"))
	if err != nil {
		return PostgresProof{}, err
	}
	for _, e := range entries {
		if pg.IsHistoryName(e.Name()) {
			newest = max(newest, e.Name())
		}
	}
	if newest == "" {
		return PostgresProof{}, errors.New("the restored server has begun no timeline of its own: recovery did not end by promotion")
	}
	f, err := os.Open(filepath.Join(dataDir, "pg_wal", newest))
	if err != nil {
		return PostgresProof{}, err
	}
	history, err := pg.ParseHistory(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return PostgresProof{}, err
	}
	tli, err := strconv.ParseUint(newest[:8], 16, 32)
	if err != nil {
		return PostgresProof{}, err
	}
	for _, h := range history {
		if h.Timeline == from {
			return PostgresProof{Reached: h.Reason, LSN: h.Switch.String(), Timeline: uint32(tli)}, nil
		}
	}
	return PostgresProof{}, fmt.Errorf("%s does not mention timeline %d", newest, from)
}

// openStagedRepo returns the function that stores the tarball's repository members, and sets repoDir.
func (r *restoreRun) openStagedRepo() (func(context.Context, string, io.Reader) error, error) {
	r.repoDir = cmp.Or(r.dir, r.a.o.RepoDir)
	if r.Set.Mode == catalog.Apart {
		return func(context.Context, string, io.Reader) error {
			return errors.New("a repository inside the tarball of a set that keeps it apart")
		}, nil
	}
	r.repoDir = filepath.Join(r.staging, "pgbackrest")
	st, err := r.a.o.OpenRepo(r.repoDir)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, name string, src io.Reader) error {
		if err := storage.CheckName(name); err != nil {
			return err
		}
		w, err := st.Create(ctx, name, storage.CreateOptions{Deferred: true})
		if err != nil {
			return err
		}
		defer w.Abort() // after Commit it does nothing
		if _, err := io.Copy(w, src); err != nil {
			return err
		}
		return w.Commit(ctx)
	}, nil
}

// ownerOf is who owns the directory now, else the instance's owner, else root.
func ownerOf(dir string, fallback *durable.Owner) (uid, gid int) {
	if info, err := os.Stat(dir); err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return int(st.Uid), int(st.Gid)
		}
	}
	if fallback != nil {
		return fallback.UID, fallback.GID
	}
	return 0, 0
}
