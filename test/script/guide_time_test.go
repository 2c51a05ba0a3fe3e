package script

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/test/stores"
)

// TestAnEarlierTime: the guide's second repository in a bucket, which is deleted by mistake; the bucket keeps versions, so that it is
// read, and restored from, as it was before.
func TestAnEarlierTime(t *testing.T) {
	r := newRig(t, "repo1-path=@/repo1\nrepo1-retention-full=2")
	s := stores.StartS3(t, "minio")
	ca, err := os.ReadFile(s.CA.File)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.dir, "ca.crt"), ca, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.configure("repo1-path=@/repo1\nrepo1-retention-full=2\nrepo2-type=s3\nrepo2-path=/demo-repo\nrepo2-retention-full=2\nrepo2-s3-bucket=" + s.VersionedBucket(t) + "\nrepo2-s3-endpoint=" + s.Endpoint +
		"\nrepo2-s3-region=" + s.Region + "\nrepo2-s3-uri-style=path\nrepo2-s3-key=" + s.Key + "\nrepo2-s3-key-secret=" + s.Secret + "\nrepo2-storage-ca-file=@/ca.crt\nrepo2-bundle=y")
	has(t, r.run("--stanza=demo --log-level-console=info stanza-create"), "on repo1", "on repo2")
	r.insert("a")
	label := r.backup("--repo=2")
	r.archive()
	time.Sleep(1100 * time.Millisecond) // a store knows times to the second
	moment := r.c.QueryString(t, "select date_trunc('seconds', current_timestamp)::text")
	time.Sleep(1100 * time.Millisecond)
	r.c.Stop(t, "fast")
	r.run("--stanza=demo stop")
	r.run("--stanza=demo --repo=2 stanza-delete")
	has(t, r.run("--stanza=demo --repo=2 info"), "missing stanza path")
	then := func(code int, args string) string {
		t.Helper()
		got := r.program(r.name, append([]string{"--config=" + r.conf, "--repo-target-time=" + moment}, strings.Fields(args)...)...)
		if got.code != code {
			t.Fatalf("%s: %+v", args, got)
		}
		return got.out + got.errs
	}
	has(t, then(0, "--stanza=demo --repo=2 info"), "status: ok", "full backup: "+label)
	has(t, then(0, "--repo=2 repo-ls backup/demo"), "backup.info\n", label+"\n")
	has(t, then(0, "--repo=2 repo-get backup/demo/backup.info"), label)
	then(0, "--stanza=demo --repo=2 verify")
	then(31, "--stanza=demo info") // of which one?
	has(t, then(32, "--stanza=demo --repo=1 verify"), "a repository of the type posix has no versions")
	then(31, "--stanza=demo --repo=2 --start-fast backup") // the past is not written to
	then(0, "--stanza=demo --repo=2 --delta restore")
	auto, err := os.ReadFile(filepath.Join(r.c.DataDir(), "postgresql.auto.conf"))
	if err != nil {
		t.Fatal(err)
	}
	has(t, string(auto), "--repo=2 ", "--repo-target-time="+moment)
	r.start()
	if got := r.rows(); got != "a" {
		t.Error(got)
	}
	// The repository is made anew where the deleted one was.
	r.run("--stanza=demo stanza-create")
	again := r.backup("--repo=2")
	has(t, r.run("--stanza=demo --repo=2 info"), again)
}
