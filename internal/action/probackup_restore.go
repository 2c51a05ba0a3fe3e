package action

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/pg"
	"holdfast/internal/probackup"
	"holdfast/internal/storage"
)

// byProbackup says whether the PostgreSQL backups of the set are pg_probackup's.
func (p *RestorePlan) byProbackup() bool { return toolOf(p.Set) == catalog.Probackup }

// includedBytes is the size of the PostgreSQL backup inside the tarball, unpacked.
func (p *RestorePlan) includedBytes() int64 {
	return p.appSums.totals["pgbackrest"].Bytes + p.appSums.totals["pg_probackup"].Bytes
}

// includedCount is how many files of the set's tool are in the tarball.
func includedCount(in *inspected) int64 {
	if toolOf(in.set) == catalog.Probackup {
		return in.totals["pg_probackup"].Count
	}
	return in.totals["pgbackrest"].Count
}

// repoMember says whether a member of the application tarball belongs to the PostgreSQL backup, and its name there: that of an
// object in the repository, or with its prefix that of a file in a backup catalog of pg_probackup.
func repoMember(name string) (string, bool) {
	if strings.HasPrefix(name, probackupPrefix) {
		return name, true
	}
	return strings.CutPrefix(name, repoPrefix)
}

// probackupOutline keeps of a backup catalog in a tarball what says what is in it: the names of WAL, and the small files that
// describe a backup. handled is false for everything else.
func probackupOutline(ctx context.Context, mem *storage.Mem, name string, r io.Reader) (handled bool, err error) {
	rest, ok := strings.CutPrefix(name, probackupPrefix)
	switch base := path.Base(rest); {
	case !ok:
		return false, nil
	case strings.HasPrefix(rest, "wal/"):
		return true, storage.WriteAll(ctx, mem, name, nil)
	case base == "backup.control" || base == "pg_probackup.conf" || strings.HasSuffix(rest, "/database/tablespace_map"):
		b, err := io.ReadAll(io.LimitReader(r, 1<<20))
		if err != nil {
			return true, err
		}
		return true, storage.WriteAll(ctx, mem, name, b)
	}
	return true, nil
}

// checkProbackupSet finds what a restore of one cluster by pg_probackup needs and does not have: the program, the backup with its
// chain, the WAL up to the recovery point, and where its tablespaces go.
func (p *RestorePlan) checkProbackupSet(ctx context.Context, c Cluster, point catalog.PostgresPoint) error {
	if err := probackup.CheckID(point.Label); err != nil {
		return err
	}
	dir := p.a.probackupFrom(p.Set)
	t, _, err := p.a.checkProbackup(ctx, c, point.Version, dir, "restore")
	if err != nil {
		return err
	}
	if p.o.FromStore {
		p.Notes = append(p.Notes, "backups of pg_probackup are not copied to external storage: PostgreSQL is restored from "+dir)
	}
	var has func(name string) bool
	var spaces []byte
	if p.Set.Mode == catalog.Included {
		base := probackupPrefix + "backups/" + point.Stanza + "/"
		for _, name := range []string{base + "pg_probackup.conf", base + point.Label + "/backup.control"} {
			if _, err := p.outline.Stat(ctx, name); err != nil {
				return fmt.Errorf("the tarball has no %s", name)
			}
		}
		has = func(name string) bool {
			wal := probackupPrefix + "wal/" + point.Stanza + "/" + name
			_, err1 := p.outline.Stat(ctx, wal)
			_, err2 := p.outline.Stat(ctx, wal+".gz")
			return err1 == nil || err2 == nil
		}
		spaces, err = storage.ReadAll(ctx, p.outline, base+point.Label+"/database/tablespace_map", 1<<20)
	} else {
		if err := p.checkChain(ctx, t, point); err != nil {
			return err
		}
		has = func(name string) bool { _, err := t.WALFile(point.Stanza, name); return err == nil }
		spaces, err = os.ReadFile(tablespaceMapOf(dir, point))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	missing, err := lackedWAL(point, has)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		return fmt.Errorf("instance %s: WAL that the recovery needs is missing in pg_probackup's archive: %s", point.Stanza, firstFew(missing))
	}
	return p.probackupSpaces(c, point, spaces)
}

// checkChain asks pg_probackup for the backup and those that it builds on.
func (p *RestorePlan) checkChain(ctx context.Context, t *probackup.Tool, point catalog.PostgresPoint) error {
	known, err := t.HasInstance(point.Stanza)
	if err == nil && !known {
		err = fmt.Errorf("the backup catalog %s has no instance %s", t.Dir, point.Stanza)
	}
	if err != nil {
		return err
	}
	all, err := t.Show(ctx, point.Stanza)
	if err != nil {
		return err
	}
	chain, err := probackup.Chain(all, point.Label)
	if err != nil {
		return fmt.Errorf("backup catalog %s: instance %s: %w", t.Dir, point.Stanza, err)
	}
	for _, b := range chain {
		if !b.Valid() {
			return fmt.Errorf("backup catalog %s: instance %s: backup %s has the status %s; to have it looked at again: holdfast sets verify %s", t.Dir, point.Stanza, b.ID, b.Status, p.Set.ID)
		}
	}
	conf, err := t.Config(ctx, point.Stanza)
	if err == nil && conf.SystemID != point.SystemID {
		err = fmt.Errorf("instance %s of the backup catalog %s has system identifier %d, the set's cluster %d", point.Stanza, t.Dir, conf.SystemID, point.SystemID)
	}
	return err
}

func tablespaceMapOf(dir string, point catalog.PostgresPoint) string {
	return filepath.Join(dir, "backups", point.Stanza, point.Label, "database", "tablespace_map")
}

// probackupFrom is the backup catalog that a set's PostgreSQL is restored from, apart from the tarball.
func (a *App) probackupFrom(set *catalog.Set) string {
	if a.o.Probackup == nil { // which checkProbackup says
		return ""
	}
	if set.Mode == catalog.Apart {
		return a.o.Probackup.ApartDir
	}
	return a.o.Probackup.StagingDir
}

// probackupSpaces says where tablespaces go, and refuses places that are not the cluster's.
func (p *RestorePlan) probackupSpaces(c Cluster, point catalog.PostgresPoint, text []byte) error {
	spaces, err := parseTablespaceMap(string(text))
	if err != nil {
		return fmt.Errorf("instance %s: backup %s: %w", point.Stanza, point.Label, err)
	}
	v, err := pg.ParseVersion(point.Version)
	if err != nil {
		return err
	}
	for _, oid := range slices.Sorted(maps.Keys(spaces)) {
		to := p.a.moved(p.Set, spaces[oid])
		p.Tablespaces[point.Stanza+"/"+oid] = to
		dir := filepath.Join(to, v.TablespaceDirName())
		p.target(dir)
		if err := p.a.checkTablespaces(c, []string{dir}); err != nil {
			p.missing("cluster %s: %v", point.Stanza, err)
		}
		// It refuses directories that hold anything; PostgreSQL's own is moved aside.
		entries, err := os.ReadDir(to)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if e.Name() != filepath.Base(dir) {
				p.missing("cluster %s: pg_probackup restores a tablespace into an empty directory only, and %s holds %s: move it away", point.Stanza, to, e.Name())
			}
		}
	}
	return nil
}

// moved is where a directory of the host of the backup is here: at the same place below this instance's root, if it was below that
// one's.
func (a *App) moved(set *catalog.Set, dir string) string {
	from := strings.TrimSuffix(set.Root, "/")
	if rest, ok := strings.CutPrefix(dir, from+"/"); ok && from != "" && set.Root != a.o.Root {
		return filepath.Join(a.o.Root, rest)
	}
	return filepath.Clean(dir)
}

// parseTablespaceMap reads PostgreSQL's file: lines of an OID and a directory, in which a backslash stands before a newline, a
// carriage return and a backslash.
func parseTablespaceMap(text string) (map[string]string, error) {
	spaces := map[string]string{}
	var line strings.Builder
	end := func() error {
		s := line.String()
		line.Reset()
		if s == "" {
			return nil
		}
		oid, dir, ok := strings.Cut(s, " ")
		if _, err := strconv.ParseUint(oid, 10, 32); err != nil || !ok || !filepath.IsAbs(dir) {
			return fmt.Errorf("tablespace_map: %.100q is not an OID and a directory", s)
		}
		if spaces[oid] != "" {
			return fmt.Errorf("tablespace_map: %s twice", oid)
		}
		spaces[oid] = dir
		return nil
	}
	r := bufio.NewReader(strings.NewReader(text))
	for escaped := false; ; {
		b, err := r.ReadByte()
		switch {
		case err == io.EOF && escaped:
			return nil, errors.New("tablespace_map ends with a backslash")
		case err == io.EOF:
			return spaces, end()
		case err != nil:
			return nil, err
		case escaped || b != '\n' && b != '\r' && b != '\\':
			line.WriteByte(b)
			escaped = false
		case b == '\\':
			escaped = true
		default:
			if err := end(); err != nil {
				return nil, err
			}
		}
	}
}

// checkProbackupArchive sees to it that the restored server will be able to archive with pg_probackup.
func (p *RestorePlan) checkProbackupArchive(ctx context.Context, c Cluster) error {
	dir := p.a.probackupDir()
	if _, _, err := p.a.checkProbackup(ctx, c, versionIn(p.Set, c.Stanza), dir, "archive-push"); err != nil {
		return err
	}
	return p.a.checkProbackupReach(ctx, c, dir, p.a.o.TempDir)
}

// restoreProbackup restores every cluster of a set of pg_probackup.
func (r *restoreRun) restoreProbackup(ctx context.Context) error {
	for _, point := range pointsOf(r.Set) {
		c := r.a.cluster(point.Stanza)
		if c == nil {
			return fmt.Errorf("cluster %s is not configured", point.Stanza)
		}
		if err := r.restoreProbackupCluster(ctx, *c, point); err != nil {
			return fmt.Errorf("cluster %s: %w", point.Stanza, err)
		}
	}
	return nil
}

// restoreProbackupCluster has the backup validated before anything is touched; then the server is stopped, what is there moved
// aside, the backup restored, recovered and checked.
func (r *restoreRun) restoreProbackupCluster(ctx context.Context, c Cluster, point catalog.PostgresPoint) error {
	t, _, err := r.a.checkProbackup(ctx, c, point.Version, r.probackupSource(), "restore")
	if err != nil {
		return err
	}
	r.a.step("restore", "validate", point.Label)
	if err := t.Validate(ctx, point.Stanza, point.Label, r.a.o.ProcessMax); err != nil {
		return err
	}
	text, err := os.ReadFile(tablespaceMapOf(t.Dir, point))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	spaces, err := parseTablespaceMap(string(text))
	if err != nil {
		return err
	}
	v, err := pg.ParseVersion(point.Version)
	if err != nil {
		return err
	}
	o := probackup.RestoreOptions{ID: point.Label, DataDir: c.DataDir, TargetName: r.Set.Recovery.Name, Timeline: point.Timeline, RestoreCommand: r.probackupRestoreCommand(c, point, t),
		Tablespaces: map[string]string{}, Threads: r.a.o.ProcessMax}
	if !r.Until.IsZero() {
		o.TargetName, o.TargetTime = "", r.Until.UTC().Format("2006-01-02 15:04:05.999999+00")
	}
	var dirs []string
	for _, from := range spaces {
		to := r.a.moved(r.Set, from)
		dir := filepath.Join(to, v.TablespaceDirName())
		if !slices.Contains(r.Replaces, dir) && !slices.Contains(r.Creates, dir) {
			return fmt.Errorf("tablespace directory %s is not in the plan: the catalog has changed since; plan again", dir)
		}
		o.Tablespaces[from] = to
		dirs = append(dirs, dir)
	}
	owner := r.a.serverOwner(c) // before the data directory that says whose it is goes
	r.a.step("restore", "stop-server", point.Stanza)
	if err := r.stopServer(ctx, &c); err != nil {
		return err
	}
	r.a.step("restore", "move-aside", c.DataDir)
	r.started = true
	for _, dir := range append([]string{c.DataDir}, dirs...) {
		if err := r.a.moveAside(r.j, move{From: dir}); err != nil {
			return err
		}
	}
	if err := durable.MkdirAllOwned(c.DataDir, 0o700, owner); err != nil {
		return err
	}
	for _, to := range o.Tablespaces {
		if err := durable.MkdirAllOwned(to, 0o700, owner); err != nil {
			return err
		}
	}
	r.a.step("restore", "tool", t.Program)
	if err := t.Restore(ctx, point.Stanza, o); err != nil {
		return err
	}
	if err := r.a.addSettings(c, point.Version, owner); err != nil {
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
		return err
	}
	return r.checkCluster(ctx, c, point, nil)
}

// probackupSource is the catalog to restore from: unpacked into staging, or apart.
func (r *restoreRun) probackupSource() string {
	if r.Set.Mode == catalog.Included {
		return filepath.Join(r.staging, "pg_probackup")
	}
	return r.a.o.Probackup.ApartDir
}

// probackupRestoreCommand asks the catalog that the backup is in, then the one that is in use, then, where there is one, the
// repository of the other tool: WAL since the tool was changed may be there alone.
func (r *restoreRun) probackupRestoreCommand(c Cluster, point catalog.PostgresPoint, t *probackup.Tool) string {
	commands := []string{r.a.probackupCommand(t.GetWords(c.Stanza))}
	if dir := r.a.probackupFrom(r.Set); dir != t.Dir && exists(filepath.Join(dir, "wal", c.Stanza)) {
		other := *t
		other.Dir = dir
		commands = append(commands, r.a.probackupCommand(other.GetWords(c.Stanza)))
	}
	if exists(filepath.Join(r.a.o.RepoDir, "archive", c.Stanza)) && r.a.checkTool(c) == nil {
		commands = append(commands, c.RestoreCommand(r.a.o.RepoDir))
	}
	return orNext(commands)
}

// orNext is a restore_command that asks one archive after the other. The next one is asked when one says that it does not have the
// file, with 1, and not when it could not look: that must not be taken for the end of WAL.
func orNext(commands []string) string {
	text := commands[len(commands)-1]
	for _, c := range slices.Backward(commands[:len(commands)-1]) {
		text = c + " || { s=$?; test $s -eq 1 || exit $s; " + text + "; }"
	}
	return text
}

// andProbackup adds pg_probackup's archive, where there is one, to a restore_command of the other tool.
func (a *App) andProbackup(command string, c Cluster, version string) string {
	if a.o.Probackup == nil {
		return command
	}
	commands := []string{command}
	for _, dir := range []string{a.o.Probackup.ApartDir, a.o.Probackup.StagingDir} {
		if !exists(filepath.Join(dir, "wal", c.Stanza)) {
			continue
		}
		// Not a program that is missing: PostgreSQL gives recovery up when a shell can't run its command.
		if t, err := a.probackupAt(c, version, dir, "archive-get"); err == nil && isProgram(t.Program) {
			commands = append(commands, a.probackupCommand(t.GetWords(c.Stanza)))
		}
	}
	return orNext(commands)
}

func isProgram(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// addSettings gives a restored cluster what it needs here: where it archives to and where it is reached. The last of several lines
// counts.
func (a *App) addSettings(c Cluster, version string, owner *durable.Owner) error {
	settings := [][2]string{{"archive_command", a.archiveCommand(c, version)}}
	if c.Conn.Port != 0 {
		settings = append(settings, [2]string{"port", strconv.Itoa(c.Conn.Port)})
	}
	if filepath.IsAbs(c.Conn.Host) {
		settings = append(settings, [2]string{"unix_socket_directories", c.Conn.Host})
	}
	file := filepath.Join(c.DataDir, "postgresql.auto.conf")
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	quoted := strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`)
	for _, s := range settings {
		text = fmt.Appendf(text, "%s = '%s'\n", s[0], quoted.Replace(s[1]))
	}
	return wrap(durable.WriteFileOwned(file, text, 0o600, owner), "settings of the restored cluster")
}

// stageProbackup stores one file of the backup catalog inside the tarball in staging.
func (r *restoreRun) stageProbackup(name string, src io.Reader) error {
	if !r.byProbackup() || r.Set.Mode != catalog.Included {
		return errors.New("a backup catalog of pg_probackup inside the tarball of a set that has none there")
	}
	if r.catalogOut == nil {
		var owner *durable.Owner
		for _, point := range pointsOf(r.Set) {
			owner = r.a.serverOwner(r.a.clusterOrName(point.Stanza))
		}
		var err error
		if r.catalogOut, err = newCatalogDir(r.probackupSource(), owner); err != nil {
			return err
		}
	}
	return r.catalogOut.store(name, src)
}

// prepareProbackup makes sure that the restored cluster's archive_command finds its instance.
func (a *App) prepareProbackup(ctx context.Context, c Cluster) error {
	version, err := versionOf(c)
	if err != nil {
		return err
	}
	t, err := a.probackupAt(c, version, a.probackupDir(), "restore")
	if err != nil {
		return err
	}
	_, err = a.createProbackup(ctx, c, t)
	return err
}
