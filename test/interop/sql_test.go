package interop

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"holdfast/internal/pg"
)

func connect(ctx context.Context, o pg.ConnOptions) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("host=%s port=%d user=%s dbname=postgres sslmode=disable", o.Host, o.Port, o.User))
}

func queryInt(t testing.TB, o pg.ConnOptions, sql string) int64 {
	t.Helper()
	c, err := connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var n int64
	err = c.QueryRow(t.Context(), sql).Scan(&n)
	if err := errors.Join(err, c.Close(context.Background())); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return n
}

func recovered(ctx context.Context, o pg.ConnOptions) bool {
	return truth(ctx, o, "select not pg_is_in_recovery()")
}

// truth asks a question; a server that does not answer says no.
func truth(ctx context.Context, o pg.ConnOptions, sql string) bool {
	c, err := connect(ctx, o)
	if err != nil {
		return false
	}
	defer c.Close(ctx)
	var yes bool
	return c.QueryRow(ctx, sql).Scan(&yes) == nil && yes
}

func queryText(t testing.TB, o pg.ConnOptions, sql string) string {
	t.Helper()
	c, err := connect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var s string
	err = c.QueryRow(t.Context(), sql).Scan(&s)
	if err := errors.Join(err, c.Close(context.Background())); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return s
}

// churn makes, fills and drops a table.
func churn(ctx context.Context, o pg.ConnOptions, n int) error {
	c, err := connect(ctx, o)
	if err != nil {
		return err
	}
	defer c.Close(context.Background())
	for _, sql := range []string{fmt.Sprintf("create table churn%d as select g, md5(g::text) from generate_series(1, 2000) g", n), fmt.Sprintf("insert into churn%d select * from churn%d", n, n),
		fmt.Sprintf("drop table churn%d", n)} {
		if _, err := c.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}
