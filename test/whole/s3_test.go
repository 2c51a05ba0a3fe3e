package whole

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/stores"
	"holdfast/test/tally"
)

// TestRedundancyS3 types the lines of the source's section "Configure External Storage on Amazon S3", each by itself as it is
// printed there, with what a server of our own needs beside them. The next run fills the bucket; the repository and the tarballs
// lost, everything comes back from it. The keys are in no file that others may read.
func TestRedundancyS3(t *testing.T) {
	server := stores.StartS3(t, "versitygw")
	bucket := server.Bucket(t)
	w := newWorld(t, true)
	pem, err := os.ReadFile(server.CA.File)
	must(t, err, os.WriteFile(filepath.Join(w.Root, "ca.pem"), pem, 0o644))
	for _, line := range []string{
		"pgsql.pgbackrest.redundancy.s3.ca_file -s /ca.pem",
		"pgsql.pgbackrest.redundancy.s3.uri_style -s path",
		"pgsql.pgbackrest.redundancy.enabled -s True",
		"pgsql.pgbackrest.redundancy.type -s s3",
		"pgsql.pgbackrest.redundancy.s3.endpoint -s " + server.Endpoint,
		"pgsql.pgbackrest.redundancy.s3.bucket -s " + bucket,
		"pgsql.pgbackrest.redundancy.s3.region -s " + server.Region,
		"pgsql.pgbackrest.redundancy.s3.key -s " + server.Key,
	} {
		ok(t, w, "alation_conf", strings.Fields(line)...)
	}
	out, err := w.As(t.Context(), "alation_conf", "", "pgsql.pgbackrest.redundancy.s3.secret", "-s", server.Secret)
	if err != nil || !strings.Contains(out.Stderr, "s3://"+bucket) || !strings.Contains(out.Stderr, "can be written, read, listed and removed from") {
		t.Errorf("the check of the storage: %v\n%s%s", err, out.Stdout, out.Stderr)
	}
	ok(t, w, "alation_conf", "alation.backup.redundancy.enabled", "-s", "True")
	if out, err := w.As(t.Context(), "alation_action", "", "backup_all"); err != nil || out.Code != 0 {
		t.Fatalf("code %d %v\n%s", out.Code, err, out.Stderr)
	}
	c := copies(t, w)
	if len(c) != 1 || c[0].Copy == nil || !c[0].Copy.Postgres || !c[0].Copy.Tarballs || c[0].Copy.Error != "" {
		t.Fatalf("%+v", c)
	}
	want := prove(t, w)
	change(t, w)
	must(t, os.RemoveAll(w.Repo), os.RemoveAll(w.Dump))
	ok(t, w, "alation_conf", "pgsql.pgbackrest.restore.source", "-s", "s3")
	if list := ok(t, w, "holdfast", "sets", "list", "--store"); !strings.Contains(list, c[0].ID) {
		t.Error(list)
	}
	ok(t, w, "holdfast", "sets", "fetch", c[0].ID)
	ok(t, w, "holdfast", "restore", "--set", c[0].ID, "--yes")
	same(t, "restored from the bucket", want, prove(t, w))
	must(t, filepath.WalkDir(w.Root, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if strings.Contains(string(b), server.Secret) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	}))
	tally.Count(t, "restores from external storage alone", 1)
}
