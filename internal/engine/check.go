package engine

import (
	"context"
	"errors"
	"fmt"
	"time"

	"holdfast/internal/pg"
)

// CheckOptions says which cluster to check.
type CheckOptions struct {
	Conn           pg.ConnOptions
	DataDir        string
	ArchiveTimeout time.Duration
}

// CheckResult names the segment that was seen to travel.
type CheckResult struct {
	Segment string        `json:"segment"`
	Took    time.Duration `json:"took_ns"`
}

// Check proves that archiving works: stanza and cluster belong together, and a WAL segment that is forced now arrives in
// the repository.
func (s *Stanza) Check(ctx context.Context, o CheckOptions) (*CheckResult, error) {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	control, _, err := pg.ReadControl(ctx, o.DataDir)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	if err := s.matches(ai, bi, control); err != nil {
		return nil, err
	}
	conn, err := pg.Connect(ctx, o.Conn)
	if err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	began := s.o.Now()
	segment, err := s.forceSegment(ctx, conn, control)
	if err = errors.Join(err, conn.Close()); err != nil {
		return nil, fmt.Errorf("stanza %s: %w", s.o.Stanza, err)
	}
	if err := s.await(ctx, ai.DB(), []string{segment}, o.ArchiveTimeout, o.Conn, o.DataDir); err != nil {
		return nil, err
	}
	return &CheckResult{Segment: segment, Took: s.o.Now().Sub(began)}, nil
}

func (s *Stanza) forceSegment(ctx context.Context, conn *pg.Conn, control pg.Control) (string, error) {
	f, err := conn.Facts(ctx)
	if err != nil {
		return "", err
	}
	if f.SystemID != control.SystemID {
		return "", fmt.Errorf("the server that answers has system identifier %d, the data directory %d", f.SystemID, control.SystemID)
	}
	if f.InRecovery {
		return "", errors.New("the server is a standby (in recovery): check on the primary")
	}
	if f.ArchiveMode == "off" {
		return "", errors.New("archive_mode is off: set it to on and restart PostgreSQL")
	}
	if _, err := conn.CreateRestorePoint(ctx, "Holdfast archive check"); err != nil {
		return "", err
	}
	_, segment, err := conn.SwitchWAL(ctx)
	return segment, err
}
