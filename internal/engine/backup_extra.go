package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"strings"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"sync"
)

// linker is the repository as a file system, nil when it is none.
func (s *Stanza) linker() storage.Linker {
	if l, ok := s.o.Storage.(storage.Linker); ok && s.o.Storage.Abilities().Links {
		return l
	}
	return nil
}

// makeDirs completes an unbundled full or hard-linked backup on a file system so that its directory could be copied away
// and started: empty directories and the tablespace links (format page, section 2).
func (s *Stanza) makeDirs(ctx context.Context, m *repo.Manifest) error {
	l := s.linker()
	if l == nil || m.Bundle || m.Type != repo.Full && !m.Options.Hardlink {
		return nil
	}
	base := repo.BackupDir(s.o.Stanza) + "/" + string(m.Label) + "/"
	for _, p := range m.Paths {
		if err := l.MakeDir(ctx, base+p.Name); err != nil {
			return fmt.Errorf("make %s: %w", p.Name, err)
		}
	}
	for _, t := range m.Targets {
		if t.TablespaceID == "" || s.o.NoSymlinks {
			continue
		}
		if err := l.Symlink(ctx, "../../pg_tblspc/"+t.TablespaceID, base+"pg_data/pg_tblspc/"+t.TablespaceID); err != nil {
			return fmt.Errorf("link tablespace %s: %w", t.TablespaceID, err)
		}
	}
	return nil
}

// hardlinks gives the files that a backup made with that option leaves to earlier ones a name in it, too. A store without links
// goes without.
func (s *Stanza) hardlinks(ctx context.Context, m *repo.Manifest) error {
	l := s.linker()
	if !m.Options.Hardlink || l == nil {
		return nil
	}
	for i := range m.Files {
		f := m.Files[i]
		if f.Reference == "" || f.BundleID != 0 {
			continue
		}
		from, _, _, _ := m.Object(s.o.Stanza, &f)
		f.Reference = ""
		to, _, _, _ := m.Object(s.o.Stanza, &f)
		if err := l.Link(ctx, from, to); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return nil
}

// copyWAL stores the WAL that the backup needs as files of the backup (format page, section 13, step 10).
func (r *backupRun) copyWAL(ctx context.Context, segments []string) error {
	owner := r.m.FileDefault
	owner.Mode = r.m.PathDefault.Mode & 0o640
	id := repo.ArchiveID(r.db.Version, r.db.ID)
	for _, seg := range segments {
		if err := r.copySegment(ctx, id, seg, owner); err != nil {
			return fmt.Errorf("copy WAL segment %s into the backup: %w", seg, err)
		}
	}
	return nil
}

func (r *backupRun) copySegment(ctx context.Context, id, seg string, owner repo.Owner) error {
	found, err := r.s.segmentObjects(ctx, repo.SegmentDir(r.Stanza, id, seg), seg)
	if err != nil {
		return err
	}
	if len(found) == 0 {
		return ErrWALMissing
	}
	if !sameContent(found) {
		return fmt.Errorf("%w: %d different copies", ErrArchiveConflict, len(found))
	}
	in, err := r.s.o.Storage.Open(ctx, found[0].name, 0, -1)
	if err != nil {
		return err
	}
	defer in.Close() // opened for reading: nothing to lose
	sr, err := repo.NewStreamReader(in, repo.StreamSpec{Compress: found[0].compress, Pass: r.ai.CipherPass})
	if err != nil {
		return err
	}
	defer sr.Close() // as above
	f := repo.File{Name: "pg_data/pg_wal/" + seg, Owner: owner, Size: int64(r.control.WALSegmentSize), SizeOrig: -1, Timestamp: r.m.TimeStop}
	w := fileWork{backupRun: r, f: &f, src: io.Reader(sr), buf: make([]byte, copyBuffer)}
	if err := w.storeWhole(ctx); err != nil {
		return err
	}
	if f.SHA1 != found[0].sha1 {
		return fmt.Errorf("%w: %s gives SHA-1 %s", ErrCorrupt, found[0].name, f.SHA1)
	}
	f.RepoSHA1 = "" // as the original leaves it
	r.m.AddFile(f)
	return nil
}

// standby is the second server of a backup: most files are read from its data directory.
type standby struct {
	conn *pg.Conn
	dir  string
}

// findStandby connects to the standby and makes sure that it is one, of this cluster.
func (r *backupRun) findStandby(ctx context.Context) (*standby, error) {
	conn, err := pg.Connect(ctx, r.o.StandbyConn)
	if err != nil {
		return nil, err
	}
	f, err := conn.Facts(ctx)
	switch {
	case err != nil:
	case !f.InRecovery:
		err = fmt.Errorf("the server on port %d is no standby: it is not in recovery", f.Port)
	case f.SystemID != r.control.SystemID:
		err = fmt.Errorf("the standby has system identifier %d, the primary %d: it is of another cluster", f.SystemID, r.control.SystemID)
	case realPath(f.DataDirectory) != realPath(r.o.StandbyDataDir):
		err = fmt.Errorf("the standby says that its data directory is %s, not %s", f.DataDirectory, r.o.StandbyDataDir)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &standby{conn: conn, dir: filepath.Clean(r.o.StandbyDataDir)}, nil
}

// stillStandby fails when the standby was promoted while its files were read: they may be of a timeline that this backup's
// WAL does not lead to.
func (r *backupRun) stillStandby(ctx context.Context) error {
	if r.standby == nil {
		return nil
	}
	f, err := r.standby.conn.Facts(ctx)
	if err == nil && !f.InRecovery {
		err = errors.New("it was promoted during the backup, its files are worth nothing for it; run the backup again")
	}
	return wrap(err, "standby %s", r.standby.dir)
}

// fromStandby matches the files whose changes are all in the WAL (format page, section 13.5): only these may be read
// from another server than the one that starts and stops the backup.
var fromStandby = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(pg_data/(base|global|pg_xact|pg_multixact)/|pg_tblspc/)`)
})

// sourcePath is where a manifest file is read.
func (r *backupRun) sourcePath(name string) string {
	if r.standby == nil || !fromStandby().MatchString(name) {
		return r.sc.path(name)
	}
	if rest, ok := strings.CutPrefix(name, "pg_data/"); ok {
		return filepath.Join(r.standby.dir, rest)
	}
	return filepath.Join(r.standby.dir, name) // pg_tblspc/<oid> is a link there as well
}
