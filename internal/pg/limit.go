package pg

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrNoAnswer says that a query took longer than ConnOptions.Query and the server did not end it either: it is stopped, or the
// network between is gone. The session is closed.
var ErrNoAnswer = errors.New("the server does not answer")

// noAnswerGrace is how much longer than the server itself we wait at most for it to end a query that takes too long.
const noAnswerGrace = 10 * time.Second

// session is the driver's, with a limit to how long one query may take. That the server was told the same does not help when it
// hangs.
type session struct {
	*pgx.Conn
	limit time.Duration // 0: none
}

// newSession limits the queries of raw to query (0: not at all) and some grace.
func newSession(raw *pgx.Conn, query time.Duration) session {
	if query <= 0 {
		return session{Conn: raw}
	}
	return session{raw, query + min(query, noAnswerGrace)}
}

// bound is ctx with the limit.
func (s session) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.limit == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, s.limit, fmt.Errorf("%w: nothing came within %v; see whether the server or the network to it hangs (its log, pg_stat_activity), or allow more time (db-timeout)", ErrNoAnswer, s.limit))
}

// explain adds why ctx ended to err if that was the limit.
func explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, ErrNoAnswer) {
		return fmt.Errorf("%w (%w)", cause, err)
	}
	return err
}

func (s session) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	tag, err := s.Conn.Exec(ctx, sql, args...)
	return tag, explain(ctx, err)
}

func (s session) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	ctx, cancel := s.bound(ctx)
	return boundRow{s.Conn.QueryRow(ctx, sql, args...), ctx, cancel}
}

// Query's result must be closed or read to its end, which frees the limit as well.
func (s session) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	ctx, cancel := s.bound(ctx)
	rows, err := s.Conn.Query(ctx, sql, args...)
	if err != nil {
		cancel()
		return nil, explain(ctx, err)
	}
	return boundRows{rows, ctx, cancel}, nil
}

type boundRow struct {
	pgx.Row
	ctx    context.Context // of this query
	cancel context.CancelFunc
}

func (r boundRow) Scan(dest ...any) error {
	defer r.cancel()
	return explain(r.ctx, r.Row.Scan(dest...))
}

type boundRows struct {
	pgx.Rows
	ctx    context.Context // of this query
	cancel context.CancelFunc
}

func (r boundRows) Next() bool {
	more := r.Rows.Next()
	if !more {
		r.cancel()
	}
	return more
}

func (r boundRows) Close() {
	r.Rows.Close()
	r.cancel()
}

func (r boundRows) Err() error { return explain(r.ctx, r.Rows.Err()) }
