package pg

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5"
)

// AlterSystemReset removes one parameter from postgresql.auto.conf; it takes effect like AlterSystem.
func (c *Conn) AlterSystemReset(ctx context.Context, name string) error {
	if !parameterName().MatchString(name) {
		return fmt.Errorf("alter system: %.60q is no parameter name", name)
	}
	sql := "alter system reset " + pgx.Identifier(strings.Split(name, ".")).Sanitize()
	if _, err := c.c.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		return fmt.Errorf("alter system reset %s: %w", name, err)
	}
	return nil
}

// ReadVersionFile reads the major version that PG_VERSION of a data directory names.
func ReadVersionFile(dataDir string) (Version, error) {
	text, err := os.ReadFile(filepath.Join(dataDir, "PG_VERSION"))
	if err != nil {
		return 0, fmt.Errorf("find the version of the data directory: %w", err)
	}
	v, err := ParseVersion(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", dataDir, err)
	}
	return v, nil
}
