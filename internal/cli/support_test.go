package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/runlog"
)

// unpack reads a bundle: its files by name.
func unpack(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for in := tar.NewReader(z); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		top, name, _ := strings.Cut(h.Name, "/")
		if !strings.HasPrefix(top, "holdfast-support-") || h.Mode != 0o600 {
			t.Errorf("%s has mode %o", h.Name, h.Mode)
		}
		files[name] = string(b)
	}
}

// supportSecrets are set as parameters; none may be in a bundle, in whatever form.
var supportSecrets = map[string]string{
	"eventbus.security.sasl_password":             `sasl "Pl4nted'\/ %41`,
	"pgsql.pgbackrest.redundancy.s3.key":          "AKIAPL4NTEDKEY234567",
	"pgsql.pgbackrest.redundancy.s3.secret":       "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",
	"pgsql.pgbackrest.cipher_pass":                "Pl4nted-cipher-Ünïcode-passphrase",
	"alation.backup.recovery_kit.passphrase":      "Pl4nted kit passphrase",
	"pgsql.pgbackrest.redundancy.azure.key":       base64.StdEncoding.EncodeToString([]byte(strings.Repeat("Pl4nted-azure", 5)[:64])),
	"pgsql.pgbackrest.redundancy.sftp.passphrase": "a&b=Pl4nted<sftp>",
}

// unknownSecrets are in no parameter; they look like what they are.
var unknownSecrets = map[string]string{
	"postgres://repl:Unkn0wn-url@db/x": "Unkn0wn-url", "primary_conninfo = 'host=h password=Unkn0wn-conn'": "Unkn0wn-conn", "AWS_SECRET_ACCESS_KEY=Unkn0wn-aws": "Unkn0wn-aws", "ASIAUNKN0WN234567890": "ASIAUNKN0WN",
	"-----BEGIN PRIVATE KEY-----; Unkn0wn-pem; -----END PRIVATE KEY-----": "Unkn0wn-pem", "GET https://b/o?X-Amz-Signature=Unkn0wn-sig": "Unkn0wn-sig", "Authorization: Bearer Unkn0wn-bearer": "Unkn0wn-bearer",
}

// leaks says which planted secrets stand in text, in clear, encoded, or inside a longer base64.
func leaks(text string) (found []string) {
	lower := strings.ToLower(text)
	for name, s := range supportSecrets {
		j, _ := json.Marshal(s)
		for _, form := range []string{s, string(j[1 : len(j)-1]), url.QueryEscape(s), url.PathEscape(s), base64.StdEncoding.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte("me:" + s))[8:], fmt.Sprintf("%x", s), strings.ReplaceAll(s, "%", `\%`)} {
			if strings.Contains(lower, strings.ToLower(strings.TrimRight(form, "="))) {
				found = append(found, name+": "+form)
			}
		}
	}
	for _, s := range unknownSecrets {
		if strings.Contains(lower, strings.ToLower(s)) {
			found = append(found, s)
		}
	}
	if strings.Contains(lower, "pl4nted") {
		found = append(found, "part of a planted secret")
	}
	return found
}

// TestSupportBundle plants secrets everywhere and looks for them in the bundle.
func TestSupportBundle(t *testing.T) {
	c := newCronRig(t)
	for name, value := range supportSecrets {
		c.run("alation_conf", name, "-s", value)
		if got := c.rig.run("alation_conf", name); !strings.Contains(got.out, "******") {
			t.Fatalf("%s is not set: %+v", name, got)
		}
	}
	c.run("alation_conf", "eventbus.security.sasl_user", "-s", "postgres://repl:Unkn0wn-url@db/x", "eventbus.enabled", "-s", "False", "pgsql.clusters", "-s", "rosemeta:data=/nowhere,host=/nowhere").has(t, exitOK)
	log := logPath(c.in.LogDir())
	run := "11-aaaaaaaa"
	at := time.Date(2026, 11, 23, 4, 0, 0, 0, time.UTC)
	var lines []runlog.Entry
	for name, s := range supportSecrets {
		j, _ := json.Marshal(map[string]string{"x": s})
		for _, form := range []string{s, string(j), url.QueryEscape(s), url.PathEscape(s), base64.StdEncoding.EncodeToString([]byte(s)), base64.StdEncoding.EncodeToString([]byte("me:" + s)), fmt.Sprintf("%x", s), fmt.Sprintf("%q", s)} {
			lines = append(lines, runlog.New(at, run, "warning: "+name+" said "+form+" and went on"))
		}
	}
	for text := range unknownSecrets {
		lines = append(lines, runlog.New(at, run, text))
	}
	logged(t, log, append(lines, runlog.New(at, run, "backup_all: an ordinary line"))...)
	logged(t, log+".2026-11-22.gz", lines...)
	logged(t, log+".2026-10-01", runlog.New(at, run, "long ago"))
	old, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := old.WriteString("-----BEGIN RSA PRIVATE KEY-----\nUnkn0wn-pem\n-----END RSA PRIVATE KEY-----\n" + strings.Repeat("x", supportLineMax) + supportSecrets["pgsql.pgbackrest.cipher_pass"] + "\nthe last line\n"); err != nil || old.Close() != nil {
		t.Fatal(err)
	}
	cipher := supportSecrets["pgsql.pgbackrest.redundancy.s3.secret"]
	line := "0 4 * * * AWS_SECRET_ACCESS_KEY='" + cipher + "' S='" + strings.ReplaceAll(supportSecrets["eventbus.security.sasl_password"], "%", `\%`) + "' holdfast --root " + c.root + " backup\n"
	if err := os.WriteFile(c.file, []byte("# Pl4nted in somebody else's line\n"+line), 0o600); err != nil {
		t.Fatal(err)
	}
	c.put(&catalog.Set{ID: loggedSet, Run: run, State: catalog.Failed, Mode: catalog.Included, Began: at, Error: "no login for " + supportSecrets["pgsql.pgbackrest.cipher_pass"], Warnings: []string{"postgres://repl:Unkn0wn-url@db/x"}})
	for name, text := range map[string]string{filepath.Join(c.in.LockDir(), "daemon.err"): "panic: " + cipher + "\n", instanceLock(c.in): `{"verb":"` + supportSecrets["alation.backup.recovery_kit.passphrase"] + `"}`} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	plan := c.run("holdfast", "support-bundle", "--dry-run")
	plan.has(t, exitOK, "parameters.json", "logs/alation_backup.log.2026-11-22", "from "+log)
	out := filepath.Join(t.TempDir(), "b.tar.gz")
	got := c.run("holdfast", "support-bundle", "-o", out)
	got.has(t, exitOK, "wrote "+out)
	info, err := os.Stat(out)
	if err != nil || info.Mode() != 0o600 {
		t.Fatal(info, err)
	}
	if left, err := os.ReadDir(filepath.Dir(out)); err != nil || len(left) != 1 {
		t.Error(left, err)
	}
	files := unpack(t, out)
	all := got.out + got.errs
	for name, text := range files {
		all += name + text
		if strings.HasSuffix(name, ".json") && !json.Valid([]byte(text)) {
			t.Errorf("%s is no JSON: %s", name, text)
		}
	}
	if found := leaks(all); len(found) > 0 {
		t.Errorf("%q", found)
		for name, text := range files {
			for _, l := range strings.Split(text, "\n") {
				if len(leaks(l)) > 0 {
					t.Logf("%s: %s", name, l)
				}
			}
		}
	}
	for name, want := range map[string][]string{
		"parameters.json": {`"pgsql.pgbackrest.cipher_pass"`, `"value": "******"`, `"logs.keep"`}, "catalogue.json": {loggedSet, "no login for ******"}, "schedule.json": {`"enabled": true`}, "versions.json": {`"holdfast"`},
		"host.json": {"/etc/os-release"}, "instance.json": {c.root}, "locks.json": {"******"}, "disks.json": {"backup disk", `"free_bytes"`}, "repositories.json": {`"stanzas"`}, "postgresql.json": {`"stanza": "rosemeta"`, "/nowhere"},
		"service.json": {"holdfast --root " + c.root + " backup"}, "logs/alation_backup.log": {"an ordinary line", "and went on", "was left out", "the last line"}, "logs/alation_backup.log.2026-11-22": {"and went on"},
		"logs/daemon.err": {"panic: ******"}, "README.txt": {"parameters.json", "Secrets were taken out"}, "spool.json": {"/var/spool/pgbackrest"},
	} {
		for _, w := range want {
			if !strings.Contains(files[name], w) {
				t.Errorf("no %q in %s:\n%s", w, name, files[name])
			}
		}
	}
	if _, there := files["logs/alation_backup.log.2026-10-01"]; there {
		t.Error("an old log is in it")
	}
	for name := range files { // what the dry run listed is what is in it
		if name != "README.txt" && !strings.Contains(plan.out, name+" ") {
			t.Errorf("%s was not listed", name)
		}
	}
	c.run("holdfast", "support-bundle", "-o", out).has(t, exitRefused, "is there already")
}

// TestSupportBundleOfARuin: whatever is broken, there is a bundle, and it says what.
func TestSupportBundleOfARuin(t *testing.T) {
	r := loggedRig(t)
	const planted = "Pl4nted-cipher-passphrase"
	r.run("alation_conf", "pgsql.pgbackrest.cipher_pass", "-s", planted).has(t, exitOK)
	log := logPath(r.in.LogDir())
	logged(t, log+".2026-11-21", runlog.New(time.Now(), "1-a", "cipher_pass="+planted))
	if err := os.WriteFile(log+".2026-11-20.gz", []byte("no gzip"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(r.in.ConfPath())
	if err != nil {
		t.Fatal(err)
	}
	broken := bytes.Replace(text, []byte(`"values": {`), []byte(`"values": { "logs.keep": "many", "pgsql.pgbackrest.redundancy.s3.secret": "Pl4nted-unsealed", `), 1)
	if bytes.Equal(broken, text) {
		t.Fatalf("%s", text)
	}
	for name, b := range map[string][]byte{r.in.ConfPath(): broken, filepath.Join(r.in.LockDir(), "schedule.json"): []byte("{"), filepath.Join(r.in.CatalogDir(), loggedSet+".json"): []byte("{")} {
		if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "b.tar.gz")
	r.run("holdfast", "support-bundle", "-o", out, "--days", "30").has(t, exitOK, "not in it: parameters:", "not in it: logs/alation_backup.log.2026-11-20:", "not in it: schedule-state.json:")
	files := unpack(t, out)
	if !strings.Contains(files["README.txt"], "logs.keep") || !strings.Contains(files["catalogue.json"], "damaged") || !strings.Contains(files["logs/alation_backup.log.2026-11-21"], "cipher_pass=******") {
		t.Errorf("%q", files)
	}
	for name, text := range files {
		if len(leaks(text)) > 0 {
			t.Errorf("%s: %s", name, text)
		}
	}
	if err := os.Remove(r.in.KeyPath()); err != nil { // then they are known by their looks only
		t.Fatal(err)
	}
	out += ".2"
	r.run("holdfast", "support-bundle", "-o", out, "--days", "30", "--json").has(t, exitWarnings, `"secrets_unread": [`, "the parameter store")
	for name, text := range unpack(t, out) {
		if len(leaks(text)) > 0 {
			t.Errorf("%s: %s", name, text)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	out += ".3"
	r.main(ctx, nil, "holdfast", "support-bundle", "-o", out).has(t, exitSignal)
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(out), "*.3*")); err != nil || len(left) > 0 {
		t.Error(left, err)
	}
}
