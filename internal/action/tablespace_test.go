package action

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestForeignTablespace: a directory with files is replaced only when it is this cluster's own.
func TestForeignTablespace(t *testing.T) {
	dir := t.TempDir()
	data, foreign, own, empty, inside := filepath.Join(dir, "root/data"), filepath.Join(dir, "foreign/PG_15_1"), filepath.Join(dir, "own/PG_15_1"), filepath.Join(dir, "empty/PG_15_1"), filepath.Join(dir, "root/space/PG_15_1")
	var errs []error
	for _, d := range []string{filepath.Join(data, "pg_tblspc"), foreign, own, empty, inside} {
		errs = append(errs, os.MkdirAll(d, 0o700))
	}
	for _, d := range []string{foreign, own, inside} {
		errs = append(errs, os.WriteFile(filepath.Join(d, "16384"), []byte("page"), 0o600))
	}
	errs = append(errs, os.Symlink(filepath.Dir(own), filepath.Join(data, "pg_tblspc/16385")))
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	a, c := New(Options{Root: filepath.Join(dir, "root")}), Cluster{DataDir: data}
	if err := a.checkTablespaces(c, []string{own, empty, inside, filepath.Join(dir, "missing/PG_15_1")}); err != nil {
		t.Error(err)
	}
	if err := a.checkTablespaces(c, []string{foreign}); err == nil {
		t.Error("another cluster's tablespace would be replaced")
	}
}
