package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// CheckOptions says which cluster to check.
type CheckOptions struct {
	Conn           pg.ConnOptions
	DataDir        string // empty: the server is on another host
	ArchiveTimeout time.Duration
	SkipSettings   bool // don't look at the server's archive settings before the segment is forced
	Standby        bool // the server must be a standby, which can't be made to archive: no segment is forced
	RefuseAlways   bool // archive_mode=always is an error
}

// CheckResult names the segment that was seen to travel.
type CheckResult struct {
	Segment string        `json:"segment"`          // empty: none was forced
	Object  string        `json:"object,omitempty"` // where it is in the repository
	Took    time.Duration `json:"took_ns"`
}

// Check proves that archiving works: stanza and cluster belong together, and a WAL segment that is forced now arrives in
// the repository.
func (s *Stanza) Check(ctx context.Context, o CheckOptions) (*CheckResult, error) {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := pg.Connect(ctx, o.Conn)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	began := s.o.Now()
	segment := ""
	control, err := s.checkServer(ctx, conn, o)
	if err == nil {
		err = s.matches(ai, bi, control)
	}
	if err == nil && !o.Standby {
		segment, err = forceSegment(ctx, conn)
	}
	if err = errors.Join(err, conn.Close()); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	res := &CheckResult{Segment: segment}
	if segment == "" {
		return res, nil
	}
	if err := s.await(ctx, ai.DB(), []string{segment}, o.ArchiveTimeout, o.Conn, o.DataDir); err != nil {
		return nil, err
	}
	res.Took = s.o.Now().Sub(began)
	res.Object, err = s.segmentObject(ctx, repo.ArchiveID(ai.DB().Version, ai.DB().ID), segment)
	return res, err
}

// checkServer compares the server with its data directory, where that is here, and looks at its archive settings. The
// result has the system identifier and the version.
func (s *Stanza) checkServer(ctx context.Context, conn *pg.Conn, o CheckOptions) (pg.Control, error) {
	f, err := conn.Facts(ctx)
	if err != nil {
		return pg.Control{}, err
	}
	control := pg.Control{SystemID: f.SystemID, Version: f.Version}
	if o.DataDir != "" {
		if control, err = s.readControl(ctx, o.DataDir); err != nil {
			return control, err
		}
		if err := sameCluster(f, control, o.DataDir); err != nil {
			return control, err
		}
	}
	switch {
	case o.Standby && !f.InRecovery:
		return control, errors.New("the server is no standby: it is not in recovery")
	case o.Standby:
		return control, nil
	case f.InRecovery:
		return control, errors.New("the server is a standby (in recovery): check on the primary")
	case o.SkipSettings:
		return control, nil
	}
	return control, archiveSettings(ctx, conn, f, o.RefuseAlways)
}

// sameCluster compares what a server says of itself with a data directory.
func sameCluster(f pg.ServerFacts, control pg.Control, dataDir string) error {
	if f.SystemID != control.SystemID {
		return fmt.Errorf("%w: it has system identifier %d, but %s has %d: port or socket of another cluster", ErrOtherServer, f.SystemID, dataDir, control.SystemID)
	}
	if realPath(f.DataDirectory) != realPath(dataDir) {
		return fmt.Errorf("%w: it says that its data directory is %s, not %s", ErrOtherServer, f.DataDirectory, dataDir)
	}
	return nil
}

// archiveSettings finds what keeps a primary from archiving at all, before anybody waits for it.
func archiveSettings(ctx context.Context, conn *pg.Conn, f pg.ServerFacts, refuseAlways bool) error {
	switch {
	case f.ArchiveMode == "off":
		return fmt.Errorf("%w: set it to on, restart PostgreSQL, and run: holdfast pg check", ErrArchiveOff)
	case f.ArchiveMode == "always" && refuseAlways:
		return fmt.Errorf("%w: every standby archives as well; set it to on, or run with --no-archive-mode-check", ErrArchiveAlways)
	case f.ArchiveCommand != "":
		return nil
	}
	a, err := conn.Archiver(ctx)
	if err == nil && a.Library == "" {
		return fmt.Errorf("%w, so that nothing is archived: set it to archive-push and reload PostgreSQL", ErrArchiveCommand)
	}
	return err
}

func forceSegment(ctx context.Context, conn *pg.Conn) (string, error) {
	if _, err := conn.CreateRestorePoint(ctx, "Holdfast archive check"); err != nil {
		return "", err
	}
	_, segment, err := conn.SwitchWAL(ctx)
	return segment, err
}

// segmentObject names the stored object of a segment that is in the archive.
func (s *Stanza) segmentObject(ctx context.Context, archiveID, segment string) (string, error) {
	dir := repo.SegmentDir(s.o.Stanza, archiveID, segment)
	for info, err := range s.o.Storage.List(ctx, dir, storage.ListOptions{}) {
		if err != nil {
			return "", fmt.Errorf("list %s: %w", dir, err)
		}
		if seg, _, _, ok := repo.ParseSegmentObject(path.Base(info.Name)); ok && seg == segment {
			return info.Name, nil
		}
	}
	return "", fmt.Errorf("%s: %w", segment, ErrWALMissing) // expired meanwhile
}
