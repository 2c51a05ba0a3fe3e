package whole

import (
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/stores"
	"holdfast/test/tally"
	"holdfast/test/world"
)

// TestSecretsOfStore plants a secret in every place that a copy to external storage has, runs what succeeds and what fails, and looks
// for them in command lines, output, logs at their loudest, settings, the catalogue, tarballs in clear, and every file.
func TestSecretsOfStore(t *testing.T) {
	server := stores.StartS3(t, "minio")
	bucket := server.Bucket(t)
	secret := map[string]string{"the storage's key": server.Key, "the storage's secret": server.Secret, "the repository's passphrase": "PLANTED-cipher-77c1e0", "the kit's passphrase": "PLANTED-kit-4410aa",
		"the bus's password": "PLANTED-sasl-12ff09", "the customer key": base64.StdEncoding.EncodeToString([]byte("PLANTED-customer-key-of-32-bytes")), "a wrong secret": "PLANTED-wrong-secret-3f",
		"an address": "PLANTED-in-url-900b", "PostgreSQL's password": "PLANTED-pgpassword-6d"}
	w := newWorld(t, true, "pgsql.pgbackrest.cipher_pass", "-s", secret["the repository's passphrase"])
	pem, err := os.ReadFile(server.CA.File)
	must(t, err, os.WriteFile(filepath.Join(w.Root, "ca.pem"), pem, 0o644))
	var printed strings.Builder
	said := func(out world.Output, err error) world.Output {
		if err != nil {
			printed.WriteString(err.Error())
		}
		printed.WriteString(out.Stdout + out.Stderr)
		return out
	}
	// Secrets come in by standard input, so that no command line of ours has them either.
	ctx, stop := context.WithCancel(t.Context())
	watched := make(chan []string, 1)
	seen := 0
	go func() {
		bad, ours := watchCommandLines(ctx, secret)
		seen = ours
		watched <- bad
	}()
	for _, p := range []struct{ name, what string }{{"pgsql.pgbackrest.redundancy.s3.key", "the storage's key"}, {"pgsql.pgbackrest.redundancy.s3.secret", "the storage's secret"},
		{"alation.backup.recovery_kit.passphrase", "the kit's passphrase"}, {"eventbus.security.sasl_password", "the bus's password"}, {"pgsql.pgbackrest.redundancy.s3.sse_customer_key", "the customer key"}} {
		out, err := w.As(t.Context(), "alation_conf", secret[p.what]+"\n", p.name, "-s", "-")
		must(t, err)
		said(out, nil)
	}
	out, err := w.As(t.Context(), "alation_conf", "", "pgsql.pgbackrest.redundancy.s3.ca_file", "-s", "/ca.pem", "pgsql.pgbackrest.redundancy.s3.uri_style", "-s", "path", "pgsql.pgbackrest.redundancy.enabled", "-s", "True",
		"pgsql.pgbackrest.redundancy.s3.endpoint", "-s", server.Endpoint, "pgsql.pgbackrest.redundancy.s3.bucket", "-s", bucket, "pgsql.pgbackrest.redundancy.s3.region", "-s", server.Region,
		"alation.backup.redundancy.enabled", "-s", "True", "pgsql.pgbackrest.restore.source", "-s", "s3")
	must(t, err)
	if said(out, nil); out.Code != 0 || !strings.Contains(out.Stderr, "SSE-C") {
		t.Errorf("code %d\n%s", out.Code, out.Stderr)
	}
	made := said(w.As(t.Context(), "alation_action", "", "backup_all", "--json"))
	if made.Code != 0 {
		t.Errorf("code %d\n%s", made.Code, made.Stderr)
	}
	id := sets(t, w)[0].ID
	said(w.As(t.Context(), "holdfast", "", "backup", "--dry-run", "--json"))
	must(t, os.RemoveAll(w.Repo))
	for _, words := range [][]string{{"sets", "show", id}, {"sets", "list", "--store", "--json"}, {"repo", "check", "--json"}, {"sets", "verify", id}, {"conf", "--list"}, {"conf", "--list", "--json"},
		{"restore", "--set", id, "--dry-run", "--json"}, {"restore", "--set", id, "--yes"}} {
		if out := said(w.As(t.Context(), "holdfast", "", words...)); out.Code != 0 && words[1] != "verify" && words[1] != "check" { // the repository here is gone, and the storage keeps no versions
			t.Errorf("%v: code %d\n%s%s", words, out.Code, out.Stdout, out.Stderr)
		}
	}
	if got := ok(t, w, "holdfast", "sets", "show", id); !strings.Contains(got, "tarballs") {
		t.Error(got)
	}
	fail := func(code int, name, stdin string, words ...string) {
		t.Helper()
		cmd := w.Command(t.Context(), name, words...)
		cmd.Env = append(cmd.Env, "PGPASSWORD="+secret["PostgreSQL's password"], "PGBACKREST_REPO1_S3_KEY="+server.Key, "PGBACKREST_REPO1_S3_KEY_SECRET="+secret["a wrong secret"], "PGBACKREST_REPO1_CIPHER_PASS="+secret["the repository's passphrase"])
		if out := said(world.Run(cmd, stdin)); out.Code == 0 || code != 0 && out.Code != code {
			t.Errorf("%s %v: code %d, want %d\n%s%s", name, words, out.Code, code, out.Stdout, out.Stderr)
		}
	}
	// What is refused, wrong or away: errors are the likeliest to show what they failed with.
	fail(3, "alation_conf", secret["a wrong secret"]+"\n", "pgsql.pgbackrest.redundancy.s3.secret", "-s", "-")
	fail(3, "alation_action", "", "backup_all")
	fail(3, "holdfast", "", "sets", "copy", "--json")
	fail(0, "holdfast", "", "sets", "list", "--store")
	fail(0, "holdfast", "", "repo", "check")
	fail(0, "pgbackrest", "", "--no-config", "--stanza=rosemeta", "--repo1-type=s3", "--repo1-s3-bucket="+bucket, "--repo1-s3-endpoint="+server.Endpoint, "--repo1-s3-region="+server.Region, "--repo1-s3-uri-style=path",
		"--repo1-storage-ca-file="+server.CA.File, "--repo1-path=/holdfast/pgbackrest", "--repo1-cipher-type=aes-256-cbc", "--log-level-console=trace", "repo-ls")
	fail(0, "pgbackrest", "", "--no-config", "--stanza=rosemeta", "--repo1-path="+w.Repo, "--repo1-cipher-type=aes-256-cbc", "--pg1-path="+w.Data, "--pg1-socket-path=/nowhere", "--log-level-console=trace", "check")
	kit := theKit(t, w)
	fail(5, "holdfast", "another passphrase\n", "recover", "--kit", kit, "--passphrase-file", "-", "--list", "--root", t.TempDir())
	stop()
	if bad := <-watched; len(bad) > 0 || seen == 0 {
		t.Errorf("of %d command lines, these show a secret: %q", seen, bad)
	}
	// These two are typed with the secret on the command line, which is the typist's; the answer must not repeat it.
	fail(2, "alation_conf", "", "pgsql.pgbackrest.redundancy.s3.endpoint", "-s", "https://user:"+secret["an address"]+"@"+server.Endpoint)
	out, err = w.As(t.Context(), "holdfast", "", "repo", "copy", "--stanza=rosemeta", "--all", "--from="+w.Repo, "--to=s3://user:"+secret["an address"]+"@"+bucket+"/x")
	if err == nil || out.Code != 2 || len(showsOf(secret, []byte(out.Stdout+out.Stderr))) > 0 {
		t.Errorf("code %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
	text := strings.ReplaceAll(printed.String(), "-s https://user:"+secret["an address"], "") // the test's own words, of the command that it ran
	if found := showsOf(secret, []byte(text)); len(found) > 0 || len(text) < 5000 {
		t.Errorf("%v in the output:\n%s", found, text)
	}
	settings, err := w.Text(t.Context(), "select string_agg(setting, ' ') from pg_settings")
	must(t, err)
	if found := showsOf(secret, []byte(settings)); len(found) > 0 {
		t.Errorf("PostgreSQL's settings show %v", found)
	}
	for _, n := range mustTarballs(t, w) {
		dir := filepath.Join(w.Dir, "unpacked", n)
		must(t, os.MkdirAll(dir, 0o700))
		if out, err := exec.Command("tar", "xzf", filepath.Join(w.Dump, n), "-C", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	tally.Count(t, "files searched for planted secrets", noneBelow(t, secret, w.Dir, filepath.Join(w.Root, "var/lib/holdfast/pgbackrest/cipher_pass")))
	closedBelow(t, w.Dump, filepath.Join(w.Root, "data2/holdfast"), filepath.Join(w.Root, "data2/tmp"))
}

// noneBelow looks for secrets in every file below dir. Only keeper may hold one, and nobody but its owner may read that.
func noneBelow(t *testing.T, secret map[string]string, dir, keeper string) (files int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b, err := os.ReadFile(path)
		found := showsOf(secret, b)
		if path == keeper && fmt.Sprint(found) == "[the repository's passphrase]" && info.Mode().Perm()&0o077 == 0 {
			found = nil
		}
		if len(found) > 0 {
			t.Errorf("%s (%s) shows %v", path, info.Mode(), found)
		}
		files++
		return err
	}))
	if files < 1000 {
		t.Errorf("only %d files were looked at", files)
	}
	return files
}
