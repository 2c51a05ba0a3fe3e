package whole

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"filippo.io/age"

	"holdfast/test/stores"
	"holdfast/test/tally"
)

// TestRansom: an instance whose credentials may only add copies to a locked bucket that keeps versions. Somebody removes everything
// there that can be removed; as of before that, everything is there, and a bare machine gets it back. What the retention would
// remove is named, asked for by nobody with these credentials, and removed with others.
func TestRansom(t *testing.T) {
	server := stores.StartS3(t, "minio")
	limited, denied := server.AppendOnly(t)
	bucket := server.VersionedBucket(t)
	id, err := age.GenerateX25519Identity()
	must(t, err)
	identity := filepath.Join(t.TempDir(), "identity")
	must(t, os.WriteFile(identity, []byte(id.String()+"\n"), 0o600))
	w := newWorld(t, true, "alation.backup_v2.retention.sets", "-s", "1", "alation.backup.recovery_kit.recipient", "-s", id.Recipient().String(), "pgsql.pgbackrest.cipher_pass", "-s", passphrase)
	pem, err := os.ReadFile(server.CA.File)
	must(t, err, os.WriteFile(filepath.Join(w.Root, "ca.pem"), pem, 0o644))
	out, err := w.As(t.Context(), "alation_conf", "", "pgsql.pgbackrest.redundancy.s3.ca_file", "-s", "/ca.pem", "pgsql.pgbackrest.redundancy.s3.uri_style", "-s", "path",
		"pgsql.pgbackrest.redundancy.enabled", "-s", "True", "alation.backup.redundancy.enabled", "-s", "True", "pgsql.pgbackrest.redundancy.append_only", "-s", "True",
		"pgsql.pgbackrest.redundancy.s3.object_lock_mode", "-s", "governance", "pgsql.pgbackrest.redundancy.s3.object_lock_days", "-s", "1",
		"pgsql.pgbackrest.redundancy.s3.endpoint", "-s", limited.Endpoint, "pgsql.pgbackrest.redundancy.s3.bucket", "-s", bucket,
		"pgsql.pgbackrest.redundancy.s3.region", "-s", server.Region, "pgsql.pgbackrest.redundancy.s3.key", "-s", server.Key, "pgsql.pgbackrest.redundancy.s3.secret", "-s", server.Secret)
	for _, want := range []string{"can be written, read and listed", "these credentials may not remove objects", "governance for 1 days"} {
		if err != nil || out.Code != 0 || !strings.Contains(out.Stderr, want) {
			t.Errorf("code %d %v, want %q:\n%s", out.Code, err, want, out.Stderr)
		}
	}
	first := backup(t, w)
	want := prove(t, w)
	second := backup(t, w) // and its retention removes the first one here, but not there
	kit := theKit(t, w)
	if all := sets(t, w); len(all) != 1 || all[0].ID != second.ID {
		t.Errorf("there are %+v", all)
	}
	asked := denied.Load()
	report, err := w.As(t.Context(), "holdfast", "", "sets", "copy")
	if err != nil || report.Code != 0 || !strings.Contains(report.Stdout, "left to other credentials (holdfast sets expire-store): "+first.ID) || denied.Load() != asked {
		t.Errorf("code %d %v, %d removals were tried:\n%s%s", report.Code, err, denied.Load()-asked, report.Stdout, report.Stderr)
	}
	var facts struct {
		Facts []struct{ Name, Grade string }
	}
	check, err := w.As(t.Context(), "holdfast", "", "repo", "check", "--json")
	must(t, err, json.Unmarshal([]byte(check.Stdout), &facts))
	for _, f := range facts.Facts {
		if f.Grade == "weak" {
			t.Errorf("%+v", f)
		}
	}
	time.Sleep(1100 * time.Millisecond) // the store notes whole seconds
	then := time.Now().UTC().Format("2006-01-02 15:04:05+00")
	time.Sleep(1100 * time.Millisecond)
	if n := wipe(t, server, bucket); n < 10 {
		t.Fatalf("only %d objects were removed", n)
	}
	must(t, w.Close(t.Context()))
	n := bareMachine(t, w)
	words := recoverWords(n, kit, "--identity", identity, "--yes")
	gone, err := n.As(t.Context(), "holdfast", "", words...)
	if err == nil || !strings.Contains(gone.Stderr, "there is no set on s3://"+bucket) {
		t.Errorf("code %d:\n%s", gone.Code, gone.Stderr)
	}
	got, err := n.As(t.Context(), "holdfast", "", append(words, "--as-of", then)...)
	must(t, err)
	if !strings.Contains(got.Stdout, "set "+second.ID+" is restored") {
		t.Error(got.Stdout)
	}
	same(t, "recovered as of before the wipe", want, prove(t, n.World))
	// What lies there as of then goes to another repository, too.
	far := filepath.Join(t.TempDir(), "far")
	cmd := n.Command(t.Context(), "holdfast", "repo", "copy", "--stanza=rosemeta", "--from=s3://"+bucket+"/holdfast/pgbackrest", "--to="+far, "--all", "--as-of", then)
	cmd.Env = append(cmd.Env, "PGBACKREST_REPO1_S3_KEY="+server.Key, "PGBACKREST_REPO1_S3_KEY_SECRET="+server.Secret, "PGBACKREST_REPO1_S3_ENDPOINT="+server.Endpoint, "PGBACKREST_REPO1_S3_REGION="+server.Region,
		"PGBACKREST_REPO1_S3_URI_STYLE=path", "PGBACKREST_REPO1_STORAGE_CA_FILE="+server.CA.File, "PGBACKREST_REPO1_CIPHER_PASS="+passphrase, "PGBACKREST_REPO2_CIPHER_PASS="+passphrase)
	text, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(text), "2 backup(s) copied") {
		t.Errorf("%v\n%s", err, text)
	}
	// The recovered instance fills the bucket again, and others expire what is due: here by the door that lets them.
	third, fourth := backup(t, n.World), backup(t, n.World)
	ok(t, n.World, "alation_conf", "pgsql.pgbackrest.redundancy.s3.endpoint", "-s", server.Endpoint)
	expire := n.Command(t.Context(), "holdfast", "sets", "expire-store", "--yes")
	expire.Env = append(expire.Env, "PGBACKREST_REPO1_S3_KEY="+server.Key, "PGBACKREST_REPO1_S3_KEY_SECRET="+server.Secret)
	text, err = expire.CombinedOutput()
	if err != nil || !strings.Contains(string(text), third.ID) || strings.Contains(string(text), fourth.ID) {
		t.Errorf("%v\n%s", err, text)
	}
	if list := ok(t, n.World, "holdfast", "sets", "list", "--store"); strings.Contains(list, third.ID) || !strings.Contains(list, fourth.ID) {
		t.Error(list)
	}
	tally.Count(t, "recoveries of a bare machine", 1)
}

// wipe removes every object of a bucket, as credentials do that were stolen, and every version that can be removed.
func wipe(t *testing.T, server *stores.S3, bucket string) (removed int) {
	t.Helper()
	c := server.Client()
	pages := awss3.NewListObjectVersionsPaginator(c, &awss3.ListObjectVersionsInput{Bucket: &bucket})
	for pages.HasMorePages() {
		page, err := pages.NextPage(t.Context())
		must(t, err)
		for _, v := range page.Versions {
			if _, err := c.DeleteObject(t.Context(), &awss3.DeleteObjectInput{Bucket: &bucket, Key: v.Key, VersionId: v.VersionId}); err == nil && !strings.Contains(aws.ToString(v.Key), "holdfast-check") {
				t.Errorf("%s was removed for good", aws.ToString(v.Key))
			}
			if aws.ToBool(v.IsLatest) {
				_, err := c.DeleteObject(t.Context(), &awss3.DeleteObjectInput{Bucket: &bucket, Key: v.Key})
				must(t, err)
				removed++
			}
		}
	}
	return removed
}
