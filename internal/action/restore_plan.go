package action

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/pg"
	"holdfast/internal/storage"
	"holdfast/internal/tarball"
)

// RestoreOptions are the inputs of destructive_restore_all.
type RestoreOptions struct {
	RestoreFile   string    // the application tarball
	EBRestoreFile string    // the Event Bus tarball; empty: the one of the same set beside RestoreFile, if the set has one
	Until         time.Time // recover to this time instead of the set's recovery point; zero: the recovery point
	FromStore     bool      // take the separate PostgreSQL backup from external storage
	KeepReplaced  bool      // leave what was replaced beside it, under its .holdfast-replaced name
}

// RestorePlan is what a restore would do. Missing is everything that stands in the way, all at once; while it is not
// empty Run refuses.
type RestorePlan struct {
	Set         *catalog.Set      `json:"set"`
	From        []catalog.Piece   `json:"from"`
	Until       time.Time         `json:"until,omitzero"`
	Replaces    []string          `json:"replaces"`      // directories that exist and will be moved aside
	Creates     []string          `json:"creates"`       // directories that do not exist yet
	StopsServer []string          `json:"stops"`         // data directories of running servers
	Topics      []string          `json:"topics"`        // topics that exist and will be replaced
	RDS         []RDSRestore      `json:"rds,omitempty"` // DB instances that will be made
	Tablespaces map[string]string `json:"tablespaces"`   // stanza/name → where it will be
	NeedBytes   int64             `json:"need_bytes"`    // beside what exists, while both stand
	FreeBytes   uint64            `json:"free_bytes"`
	KeepsAside  bool              `json:"keeps_replaced"`
	GivesBack   string            `json:"gives_back,omitempty"` // run of an interrupted restore that is undone first
	Notes       []string          `json:"notes,omitempty"`
	Findings    []Finding         `json:"findings,omitempty"` // what is not here as it was where the set was made
	Missing     []string          `json:"missing,omitempty"`

	a       *App
	o       RestoreOptions
	appSums inspected
	busSums inspected
	outline *storage.Mem // of the repository inside the tarball
	dir     string       // repository here that the set's PostgreSQL backup is in, where that is not the configured one
	fetched bool         // the set's PostgreSQL backup is known to be on external storage
}

// inspected is what one reading of a whole tarball tells.
type inspected struct {
	id     identityDoc
	set    *catalog.Set
	size   int64
	sha256 string
	index  string                         // SHA-256 of the index of its files
	totals map[string]tarball.MemberTotal // by top-level name
	file   fs.FileInfo                    // as it was before it was read
}

// same says whether a later reading of the tarball, which gave err or else the SHA-256, was one of the same bytes.
// What goes wrong with a file that was replaced or written to since is put down to that as well.
func (in *inspected) same(path, sha256 string, err error) error {
	if err == nil && sha256 != in.sha256 {
		return fmt.Errorf("%s changed since the plan was made", path)
	}
	if err == nil {
		return nil
	}
	now, serr := os.Stat(path)
	if serr == nil && (!os.SameFile(now, in.file) || now.Size() != in.file.Size() || !now.ModTime().Equal(in.file.ModTime())) {
		return fmt.Errorf("%w; %s changed since the plan was made", err, path)
	}
	return err
}

// inspect reads a tarball to its end: whatever is damaged shows here, before anything is touched. member (may be nil) is
// called with the objects of the repository inside, and need not read them.
func inspect(ctx context.Context, path string, member func(name string, r io.Reader) error) (in inspected, err error) {
	in.totals = map[string]tarball.MemberTotal{}
	f, err := os.Open(path)
	if err != nil {
		return in, err
	}
	defer f.Close() // opened for reading: nothing to lose
	if in.file, err = f.Stat(); err != nil {
		return in, err
	}
	err = eachMember(ctx, f, func(m *tarball.Member) error {
		switch m.Name {
		case identityName:
			b, err := io.ReadAll(io.LimitReader(m, 1<<16))
			if err != nil {
				return err
			}
			return json.Unmarshal(b, &in.id)
		case setName:
			b, err := io.ReadAll(io.LimitReader(m, 16<<20))
			if err != nil {
				return err
			}
			in.set, err = catalog.Parse(b)
			return err
		}
		top, _, _ := strings.Cut(m.Name, "/")
		t := in.totals[top]
		t.Prefix, t.Count, t.Bytes = top, t.Count+1, t.Bytes+m.Size
		in.totals[top] = t
		if name, ok := repoMember(m.Name); ok && member != nil {
			if err := member(name, m); err != nil {
				return err
			}
		}
		if m.Name != tarball.IndexName {
			_, err := io.Copy(io.Discard, m)
			return err
		}
		sum := sha256.New()
		_, err := io.Copy(sum, m)
		in.index = hex.EncodeToString(sum.Sum(nil))
		return err
	}, func(size int64, sha string) { in.size, in.sha256 = size, sha })
	if err != nil {
		return in, fmt.Errorf("%s: %w", path, err)
	}
	if in.id.Format != 1 {
		return in, fmt.Errorf("%s is not a backup made by Holdfast: it does not begin with %s", path, identityName)
	}
	return in, nil
}

// isPlainName says whether a name has the form of the restore points that runs make.
func isPlainName(s string) bool {
	plain := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '_' || r == '.' || r == '-'
	}
	return s != "" && len(s) <= 200 && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0
}

// eachMember reads every member of a tarball to the end; sums (may be nil) gets the size and SHA-256 of the file.
func eachMember(ctx context.Context, r io.Reader, each func(*tarball.Member) error, sums func(int64, string)) error {
	tr, err := tarball.NewReader(r)
	if err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		m, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := each(m); err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
	}
	if sums != nil {
		sums(tr.Sums())
	}
	return nil
}

// PlanRestoreAll reads both tarballs to their end, looks at the repository, the disks, the servers and the event bus, and
// changes nothing.
func (a *App) PlanRestoreAll(ctx context.Context, o RestoreOptions) (*RestorePlan, error) {
	p := &RestorePlan{a: a, o: o, Until: o.Until, KeepsAside: o.KeepReplaced, Tablespaces: map[string]string{}}
	if j, err := a.readJournal(); err != nil {
		return nil, err
	} else if j != nil && j.State == journalMoving {
		p.GivesBack = j.Run
	}
	a.step("restore", "inspect", o.RestoreFile)
	p.application(ctx)
	p.eventBus(ctx)
	if p.Set == nil {
		p.alsoMissing(ctx)
		return p, ctx.Err()
	}
	p.matchCatalogue(ctx)
	p.postgres(ctx)
	p.outline = nil // may be large
	p.files()
	p.mounts()
	p.space()
	return p, ctx.Err()
}

func (p *RestorePlan) missing(format string, args ...any) {
	p.Missing = append(p.Missing, fmt.Sprintf(format, args...))
}

func (p *RestorePlan) application(ctx context.Context) {
	if p.o.RestoreFile == "" {
		p.missing("no application backup named: alation_conf alation.backup.restore_file -s FILE%s", appSuffix)
		return
	}
	p.outline = storage.NewMem(p.a.o.Now)
	in, err := inspect(ctx, p.o.RestoreFile, outlineInto(ctx, p.outline))
	if err != nil {
		p.missing("application backup: %v", err)
		return
	}
	if in.id.Kind != catalog.Application {
		p.missing("application backup: %s holds the %s of set %s", p.o.RestoreFile, in.id.Kind, in.id.Set)
		return
	}
	if in.set == nil || in.set.ID != in.id.Set || in.set.Recovery == nil {
		p.missing("application backup: %s has no complete %s", p.o.RestoreFile, setName)
		return
	}
	if !isPlainName(in.set.Recovery.Name) { // it is shown, and becomes a setting of PostgreSQL
		p.missing("application backup: %s names the restore point %.80q, which no run of Holdfast does", p.o.RestoreFile, in.set.Recovery.Name)
		return
	}
	p.appSums, p.Set = in, in.set
	p.From = append(p.From, catalog.Piece{Kind: catalog.Application, Path: p.o.RestoreFile, Size: in.size, SHA256: in.sha256})
	if f := p.Set.Recovery.Files; f != nil && f.IndexSHA256 != in.index {
		p.missing("application backup: the index of files in %s has the SHA-256 %s, its set says %s", p.o.RestoreFile, in.index, f.IndexSHA256)
	}
	if p.Set.Mode == catalog.Included && len(pointsOf(p.Set)) > 0 && includedCount(&in) == 0 {
		p.missing("application backup: %s says that PostgreSQL is inside, but it is not", p.o.RestoreFile)
	}
}

// eventBus checks the Event Bus tarball; one that is not named is looked for beside the application tarball.
func (p *RestorePlan) eventBus(ctx context.Context) {
	if p.o.EBRestoreFile == "" {
		if p.Set == nil || p.Set.Recovery.EventBus == nil {
			return
		}
		beside := filepath.Join(filepath.Dir(p.o.RestoreFile), p.Set.ID+busSuffix)
		if _, err := os.Stat(beside); err != nil {
			p.missing("the set %s has an Event Bus backup, which is not beside %s: alation_conf alation.backup.eb_restore_file -s FILE%s", p.Set.ID, p.o.RestoreFile, busSuffix)
			return
		}
		p.o.EBRestoreFile = beside
	}
	in, err := inspect(ctx, p.o.EBRestoreFile, nil)
	if err != nil {
		p.missing("Event Bus backup: %v", err)
		return
	}
	if in.id.Kind != catalog.EventBus {
		p.missing("Event Bus backup: %s holds the %s of set %s", p.o.EBRestoreFile, in.id.Kind, in.id.Set)
		return
	}
	if p.Set != nil && (in.id.Set != p.Set.ID || in.id.Run != p.Set.Run) {
		p.missing("the pieces are of different runs: %s is of set %s, %s of set %s", p.o.RestoreFile, p.Set.ID, p.o.EBRestoreFile, in.id.Set)
		return
	}
	p.busSums = in
	p.From = append(p.From, catalog.Piece{Kind: catalog.EventBus, Path: p.o.EBRestoreFile, Size: in.size, SHA256: in.sha256})
	if piece := p.setPiece(catalog.EventBus); piece != nil && (piece.Size != in.size || piece.SHA256 != in.sha256) {
		p.missing("Event Bus backup: %s is not the file that the run wrote (SHA-256 %s, the set says %s)", p.o.EBRestoreFile, in.sha256, piece.SHA256)
	}
	p.bus(ctx)
}

func (p *RestorePlan) setPiece(k catalog.Kind) *catalog.Piece {
	if p.Set == nil {
		return nil
	}
	return p.Set.Piece(k)
}

// bus looks at the topics that a load would replace.
func (p *RestorePlan) bus(ctx context.Context) {
	if p.a.o.Bus == nil {
		p.missing("the set has an event bus, this instance has none: alation_conf eventbus.enabled -s True eventbus.brokers -s HOST:PORT")
		return
	}
	sum, err := verifyBus(ctx, p.o.EBRestoreFile)
	if err != nil {
		p.missing("Event Bus backup: %v", err)
		return
	}
	b, err := p.a.openBus(ctx)
	if err != nil {
		p.missing("event bus: %v", err)
		return
	}
	defer b.Close()
	var names []string
	for _, t := range sum.Topics {
		names = append(names, t.Name)
	}
	m, err := b.MarksOf(ctx, names)
	if err != nil {
		p.missing("event bus: %v", err)
		return
	}
	for _, t := range m.Topics {
		p.Topics = append(p.Topics, t.Name)
	}
}

// matchCatalogue compares the application tarball with what this instance's catalogue knows of it.
func (p *RestorePlan) matchCatalogue(ctx context.Context) {
	known, err := p.a.o.Catalog.Get(ctx, p.Set.ID)
	if err != nil { // not made here, or a damaged entry: the tarballs speak for themselves
		p.Notes = append(p.Notes, "the catalogue of this instance does not know the set: it was made elsewhere")
		return
	}
	if known.Removal != nil { // the run was good, and the pieces are looked at
		p.Notes = append(p.Notes, fmt.Sprintf("the set is being removed here since %s (%s)", known.Removal.At.UTC().Format(time.RFC3339), known.Removal.Reason))
	} else if known.State != catalog.Complete {
		p.missing("the catalogue says that set %s is %s: %s", known.ID, known.State, known.Error)
	}
	if f, g := filesOf(known), filesOf(p.Set); f != nil && g != nil && f.IndexSHA256 != g.IndexSHA256 {
		p.missing("application backup: the set in %s has an index of files with the SHA-256 %s, the catalogue's has %s", p.o.RestoreFile, g.IndexSHA256, f.IndexSHA256)
	}
	if piece := known.Piece(catalog.Application); piece != nil && p.appSums.sha256 != "" && piece.SHA256 != p.appSums.sha256 {
		p.missing("application backup: %s is not the file that the run wrote (SHA-256 %s, the catalogue says %s)", p.o.RestoreFile, p.appSums.sha256, piece.SHA256)
	}
}

func filesOf(s *catalog.Set) *catalog.FilesPoint {
	if s.Recovery == nil {
		return nil
	}
	return s.Recovery.Files
}

// postgres checks every cluster of the set: the repository (apart), the server binaries, the targets.
func (p *RestorePlan) postgres(ctx context.Context) {
	p.onRDS(ctx)
	var st storage.Storage = p.outline
	if p.byProbackup() && p.Set.Mode == catalog.Apart {
		p.From = append(p.From, catalog.Piece{Kind: catalog.Postgres, Path: p.a.probackupFrom(p.Set)})
	} else if p.Set.Mode == catalog.Apart && len(pointsOf(p.Set)) > 0 {
		var err error
		var name string
		p.findSource(ctx)
		if st, name, err = p.source(); err != nil {
			p.missing("PostgreSQL backup: %v", err)
			return
		}
		p.From = append(p.From, catalog.Piece{Kind: catalog.Postgres, Path: name})
	}
	for _, point := range pointsOf(p.Set) {
		c := p.a.cluster(point.Stanza)
		if c == nil && p.a.onRDS(point.Stanza) != nil {
			p.missing("cluster %s is on Amazon RDS here, and the set's was not: give it a data directory in pgsql.clusters, or bring its data there by dump and restore", point.Stanza)
			continue
		}
		if c == nil {
			p.missing("the set has the cluster %s, this instance has not: add it to pgsql.clusters", point.Stanza)
			continue
		}
		if err := p.checkServer(c, point); err != nil {
			p.missing("cluster %s: %v", point.Stanza, err)
		}
		p.checkHost(ctx, *c, point)
		if point.ConfigFile != "" && pg.ConfigFile(c.DataDir, "") == "" {
			p.missing("cluster %s: its configuration was outside its data directory (%s), so it is in no backup of the cluster, and there is none for %s here: on Debian make the cluster first: pg_createcluster -d %s %s main",
				point.Stanza, point.ConfigFile, c.DataDir, c.DataDir, point.Version)
		}
		p.target(c.DataDir)
		if pid, running, err := pg.Running(c.DataDir); err != nil {
			p.missing("cluster %s: %v", point.Stanza, err)
		} else if running {
			p.StopsServer = append(p.StopsServer, fmt.Sprintf("%s (process %d)", c.DataDir, pid))
		}
		p.NeedBytes += point.Bytes
		err := p.checkRepository(ctx, st, *c, point)
		if errors.Is(err, engine.ErrPassphrase) {
			err = fmt.Errorf("%w; set pgsql.pgbackrest.cipher_pass to the passphrase that the set was made with (unset it for a set without)", err)
		}
		if err != nil {
			p.missing("PostgreSQL backup: %v", p.elsewhere(err))
		}
		if err := p.checkArchive(ctx, *c); err != nil {
			p.missing("cluster %s: %v", point.Stanza, err)
		}
	}
	if p.Set.Mode == catalog.Included {
		p.NeedBytes += p.includedBytes() // unpacked into staging
	}
	if !p.Until.IsZero() {
		p.Notes = append(p.Notes, fmt.Sprintf("PostgreSQL is recovered to %s and the event bus is cut there; the files are those of the set's recovery point (%s)",
			p.Until.Format(time.RFC3339), p.Set.Recovery.Skew.From.Format(time.RFC3339)))
	}
}

func (p *RestorePlan) checkServer(c *Cluster, point catalog.PostgresPoint) error {
	v, err := pg.ParseVersion(point.Version)
	if err != nil {
		return err
	}
	if c.BinDir != "" {
		_, err = os.Stat(filepath.Join(c.BinDir, "pg_ctl"))
		return err
	}
	_, err = pg.FindBinDir(v)
	return err
}

// checkRepository asks the repository (the separate one, or the outline of the one in the tarball) for the backup, where its
// tablespaces go, and every WAL segment up to the recovery point.
func (p *RestorePlan) checkRepository(ctx context.Context, st storage.Storage, c Cluster, point catalog.PostgresPoint) error {
	if p.byProbackup() {
		return p.checkProbackupSet(ctx, c, point)
	}
	s, err := p.stanza(point.Stanza, st)
	if err != nil {
		return err
	}
	plan, err := s.PlanRestore(ctx, p.a.engineRestore(c, point, p.Set, p.Until, cmp.Or(p.dir, p.a.o.RepoDir), true))
	if err != nil {
		return err
	}
	if plan.SystemID != point.SystemID {
		return fmt.Errorf("stanza %s: backup %s is of system identifier %d, the set's of %d", point.Stanza, point.Label, plan.SystemID, point.SystemID)
	}
	for name, dir := range plan.Tablespaces {
		p.Tablespaces[point.Stanza+"/"+name] = dir
	}
	for _, dir := range plan.TablespaceDirs() {
		p.target(dir)
		if err := p.a.checkTablespaces(c, []string{dir}); err != nil {
			p.missing("cluster %s: %v", point.Stanza, err)
		}
	}
	for _, w := range plan.Warnings {
		p.Notes = append(p.Notes, fmt.Sprintf("cluster %s: %s", point.Stanza, w))
	}
	segments, err := segmentRange(point)
	if err != nil {
		return err
	}
	db, err := p.cluster(ctx, s, point)
	if err != nil {
		return err
	}
	if p.fromStore() {
		p.NeedBytes += int64(len(segments)) << 24 // staged; as stored it is less
	}
	_, err = s.WALObjects(ctx, db, segments)
	return err
}

// checkArchive sees to it that the restored server will be able to archive, and to read what is unpacked: the configured
// repository opens, both can be reached, and an external tool can be run.
func (p *RestorePlan) checkArchive(ctx context.Context, c Cluster) error {
	if p.a.useProbackup() {
		return p.checkProbackupArchive(ctx, c)
	}
	if err := p.a.checkTool(c); err != nil {
		return err
	}
	dirs := []string{p.a.o.TempDir}
	if p.dir != "" {
		dirs = append(dirs, p.dir)
	}
	if err := p.a.checkReach(ctx, c, dirs...); err != nil {
		return err
	}
	if p.Set.Mode == catalog.Apart && !p.fromStore() && !p.byProbackup() && p.dir == "" { // it is the one that the backup is in
		return nil
	}
	st, err := p.a.repository()
	if err != nil {
		return err
	}
	s, err := p.a.stanza(c.Stanza, st)
	if err != nil {
		return err
	}
	if err := s.Belongs(ctx, pg.Control{}); errors.Is(err, engine.ErrPassphrase) {
		return p.a.explainPass(err)
	}
	return nil // what else may be wrong with it is mended, or made
}

func (a *App) cluster(stanza string) *Cluster {
	for i := range a.o.Clusters {
		if a.o.Clusters[i].Stanza == stanza {
			return &a.o.Clusters[i]
		}
	}
	return nil
}

// verifyBus checks an Event Bus tarball's content and counts it. Errors name the file.
func verifyBus(ctx context.Context, path string) (*eventbus.Summary, error) {
	src, err := openBusSource(path)
	if err != nil {
		return nil, err
	}
	sum, err := eventbus.Verify(ctx, src)
	return sum, errors.Join(wrap(err, "%s", path), src.Close())
}

// busSource yields the event bus's members of its tarball.
type busSource struct {
	f *os.File
	r *tarball.Reader
}

func openBusSource(path string) (*busSource, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	r, err := tarball.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &busSource{f, r}, nil
}

func (s *busSource) Next(ctx context.Context) (string, io.Reader, error) {
	for {
		if err := ctx.Err(); err != nil {
			return "", nil, err
		}
		m, err := s.r.Next()
		if err != nil {
			return "", nil, err
		}
		if m.Name != identityName {
			return m.Name, m, nil
		}
	}
}

func (s *busSource) Close() error { return s.f.Close() }
