package cli

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// copyRig runs command lines on repositories of offline backups of a stopped cluster.
type copyRig struct {
	t           *testing.T
	data, locks string
	src, dst    string
	one, two    string // files with passphrases
	clock       time.Time
	environ     []string
	taken       int
}

func newCopyRig(t *testing.T) *copyRig {
	top := t.TempDir()
	r := &copyRig{t: t, data: stoppedCluster(t), locks: t.TempDir(), src: filepath.Join(top, "src"), dst: filepath.Join(top, "dst"),
		one: filepath.Join(top, "one"), two: filepath.Join(top, "two"), clock: time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC)}
	for file, pass := range map[string]string{r.one: "a planted passphrase", r.two: "another planted passphrase"} {
		if err := os.WriteFile(file, []byte(pass+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *copyRig) run(words ...string) said {
	r.t.Helper()
	r.clock = r.clock.Add(time.Minute)
	env, out, errs := bareEnv(strings.NewReader(""), append([]string{"holdfast"}, words...)...)
	env.Now = func() time.Time { return r.clock }
	env.Environ = func() []string { return r.environ }
	env.Getenv = func(name string) string {
		for _, e := range r.environ {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	}
	code := Main(r.t.Context(), env)
	s := said{out.String(), errs.String(), code}
	if strings.Contains(s.out+s.errs, "planted") {
		r.t.Errorf("%v prints a passphrase:\n%s%s", words, s.out, s.errs)
	}
	return s
}

// pg is a verb of the engine on one of the repositories.
func (r *copyRig) pg(dir, pass, verb string, words ...string) said {
	r.t.Helper()
	argv := []string{"pg", verb, "--stanza=s", "--lock-path=" + r.locks, "--repo1-path=" + dir}
	if pass != "" {
		argv = append(argv, "--repo1-cipher-pass-file="+pass)
	}
	return r.run(append(argv, words...)...)
}

// backup makes one and returns its label. Each is of another state of the cluster.
func (r *copyRig) backup(typ string) string {
	r.t.Helper()
	r.taken++
	file, old := filepath.Join(r.data, "pg_hba.conf"), time.Date(2026, 3, 1, r.taken, 0, 0, 0, time.UTC)
	if err := errors.Join(os.WriteFile(file, []byte(strings.Repeat("x", 100*r.taken)), 0o600), os.Chtimes(file, old, old)); err != nil {
		r.t.Fatal(err)
	}
	s := r.pg(r.src, r.one, "backup", "--pg1-path="+r.data, "--no-online", "--type="+typ, "--repo1-bundle")
	s.has(r.t, 0)
	return regexp.MustCompile(`backup (\S+)`).FindStringSubmatch(s.out)[1]
}

// repo is repo copy, sync or diff from one to the other.
func (r *copyRig) repo(verb string, words ...string) said {
	r.t.Helper()
	argv := []string{"repo", verb, "--from=" + r.src, "--to=" + r.dst, "--from-cipher-pass-file=" + r.one, "--to-cipher-pass-file=" + r.two}
	if verb != "diff" {
		argv = append(argv, "--lock-path="+r.locks)
	}
	return r.run(append(argv, words...)...)
}

func (r *copyRig) nothing(dir string) {
	r.t.Helper()
	if _, err := os.Stat(dir); err == nil {
		r.t.Errorf("%s was made", dir)
	}
}

// TestRepoCopy goes through a copy as an operator types it.
func TestRepoCopy(t *testing.T) {
	r := newCopyRig(t)
	r.pg(r.src, r.one, "stanza-create", "--pg1-path="+r.data).has(t, 0, "created")
	full, incr := r.backup("full"), r.backup("incr")
	second := r.backup("full")

	r.repo("diff").has(t, exitWarnings, "< s backup "+full, "< s backup "+second)
	r.repo("copy", "--stanza=s", "--set="+incr, "--dry-run").has(t, 0, "it is made", "copy      "+full, incr+" is built on it", "copy      "+incr)
	r.nothing(r.dst)
	r.repo("copy", "--stanza=s", "--set="+incr).has(t, 0, "2 backup(s) copied, 0 there before")
	r.pg(r.dst, r.two, "info").has(t, 0, full, incr)
	r.pg(r.dst, r.two, "verify").has(t, 0, "0 finding(s)")
	r.pg(r.dst, r.one, "info").has(t, exitRefused, "passphrase does not fit")
	var plans []struct {
		Objects int
		Backups []struct{ Label, State string }
	}
	out := r.repo("copy", "--stanza=s", "--all", "--dry-run", "--json")
	if err := json.Unmarshal([]byte(out.out), &plans); err != nil || len(plans) != 1 || len(plans[0].Backups) != 3 || plans[0].Backups[0].State != "there" || plans[0].Backups[2].State != "new" {
		t.Errorf("%v\n%s", err, out.out)
	}
	var results []struct{ Backups, There []string }
	out = r.repo("copy", "--stanza=s", "--all", "--wal=all", "--json")
	if err := json.Unmarshal([]byte(out.out), &results); err != nil || len(results) != 1 || len(results[0].Backups) != 1 || results[0].Backups[0] != second || len(results[0].There) != 2 {
		t.Errorf("%v\n%s", err, out.out)
	}
	r.repo("diff").has(t, 0, "the target has everything")

	dir := filepath.Join(t.TempDir(), "restored")
	r.pg(r.dst, r.two, "restore", "--pg1-path="+dir, "--set="+incr, "--type=none").has(t, 0, "restored")
	b, err := os.ReadFile(filepath.Join(dir, "pg_hba.conf"))
	if err != nil || len(b) != 200 {
		t.Errorf("%d bytes were restored, %v", len(b), err)
	}
	plantedIn(t, r.dst)
}

// plantedIn fails when a passphrase, or something of the cluster, is in a file in clear.
func plantedIn(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if strings.Contains(string(b), "planted") || strings.Contains(string(b), "[backrest]") {
			t.Errorf("%s is in clear", p)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// TestRepoSync: what is new, of every stanza, and the target's own retention.
func TestRepoSync(t *testing.T) {
	r := newCopyRig(t)
	r.pg(r.src, r.one, "stanza-create", "--pg1-path="+r.data).has(t, 0)
	first, second := r.backup("full"), r.backup("full")
	r.repo("sync", "--prune").has(t, exitUsage, "nothing says what stays")
	r.repo("sync", "--retention-full=1").has(t, exitUsage, "goes with --prune")
	if s := r.repo("sync", "--prune", "--retention-full=1"); strings.Contains(s.out+s.errs, first) || s.code != 0 {
		t.Errorf("%d: %s%s", s.code, s.out, s.errs)
	}
	third := r.backup("full")
	r.repo("sync", "--prune", "--retention-full=1").has(t, 0, "1 backup(s) copied", "removed backup "+second)
	if info := r.pg(r.dst, r.two, "info"); strings.Contains(info.out, second) || !strings.Contains(info.out, third) {
		t.Error(info.out)
	}
	r.repo("diff").has(t, exitWarnings, "< s backup "+first)
	r.repo("sync").has(t, 0, "2 backup(s) copied, 1 there before")
	r.repo("diff").has(t, 0, "has everything")
	r.pg(r.dst, r.two, "verify").has(t, 0, "0 finding(s)")
}

// TestRepoPlaces: how the two sides are named, and what is refused.
func TestRepoPlaces(t *testing.T) {
	r := newCopyRig(t)
	r.pg(r.src, r.one, "stanza-create", "--pg1-path="+r.data).has(t, 0)
	label := r.backup("full")
	config := filepath.Join(t.TempDir(), "pgbackrest.conf")
	text := "[global]\nrepo1-path=" + r.src + "\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=a planted passphrase\nrepo3-path=" + r.dst + "\nrepo3-cipher-type=aes-256-cbc\nrepo3-cipher-pass=another planted passphrase\n"
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	sync := []string{"repo", "sync", "--lock-path=" + r.locks}
	r.run(append(sync, "--config="+config, "--from=repo1", "--to=repo3")...).has(t, 0, "1 backup(s) copied")
	r.pg(r.dst, r.two, "info").has(t, 0, label)
	r.run("repo", "diff", "--config="+config, "--from=repo1", "--to=repo3").has(t, 0, "has everything")

	r.environ = []string{"PGBACKREST_REPO1_CIPHER_PASS=a planted passphrase", "PGBACKREST_REPO2_CIPHER_PASS=another planted passphrase"}
	r.run(append(sync, "--from="+r.src, "--to="+r.dst)...).has(t, 0, "0 backup(s) copied, 1 there before")
	r.run(append(sync, "--from="+r.src, "--to="+r.src+"/.")...).has(t, exitUsage, "the same repository")
	r.environ = nil
	plain := r.dst + "-plain"
	r.run(append(sync, "--from="+r.src, "--to="+plain, "--from-cipher-pass-file="+r.one)...).has(t, exitRefused, "no passphrase is given for the target")
	r.nothing(plain)
	r.run(append(sync, "--from="+r.src, "--to="+plain, "--from-cipher-pass-file="+r.one, "--decrypt")...).has(t, 0, "decrypted on the way")
	r.pg(plain, "", "verify").has(t, 0, "0 finding(s)")
	for name, c := range map[string]struct {
		words []string
		want  string
	}{
		"no target":           {[]string{"sync", "--from=" + r.src}, "--from and --to are needed"},
		"no stanza":           {[]string{"copy", "--from=" + r.src, "--to=" + r.dst, "--all"}, "--stanza is missing"},
		"no choice":           {[]string{"copy", "--stanza=s", "--from=" + r.src, "--to=" + r.dst}, "say which backups"},
		"two choices":         {[]string{"copy", "--stanza=s", "--from=" + r.src, "--to=" + r.dst, "--all", "--set=" + label}, "one of the three"},
		"a wrong label":       {[]string{"copy", "--stanza=s", "--from=" + r.src, "--to=" + r.dst, "--set=x"}, "--set"},
		"an end alone":        {[]string{"copy", "--stanza=s", "--from=" + r.src, "--to=" + r.dst, "--to-time=2026-01-01 00:00:00"}, "--to-time goes with --from-time"},
		"a wrong time":        {[]string{"copy", "--stanza=s", "--from=" + r.src, "--to=" + r.dst, "--from-time=yesterday"}, "--from-time"},
		"dependents of all":   {[]string{"copy", "--stanza=s", "--from=" + r.src, "--to=" + r.dst, "--all", "--dependents"}, "goes with --set"},
		"until without all":   {[]string{"copy", "--stanza=s", "--from=" + r.src, "--to=" + r.dst, "--all", "--wal-until=2026-01-01 00:00:00"}, "goes with --wal=all"},
		"a key in an address": {[]string{"sync", "--from=" + r.src, "--to=s3://key:secret@bucket/path"}, "no place for keys"},
		"an unknown scheme":   {[]string{"sync", "--from=" + r.src, "--to=ftp://host/path"}, "begins with s3://"},
		"an empty source":     {[]string{"sync", "--from=" + t.TempDir(), "--to=" + r.dst}, "no stanza in it"},
	} {
		t.Run(name, func(t *testing.T) { r.run(append([]string{"repo"}, c.words...)...).has(t, exitUsage, c.want) })
	}
}

// TestRepoCopyDies kills a copy at every step and runs it again; test/interop kills the real program, also between its objects.
func TestRepoCopyDies(t *testing.T) {
	r := newCopyRig(t)
	r.pg(r.src, r.one, "stanza-create", "--pg1-path="+r.data).has(t, 0)
	r.backup("full")
	r.backup("incr")
	for _, step := range []string{"copy:plan", "copy:stanza", "copy:backup", "copy:objects", "copy:publish", "copy:catalogue"} {
		r.dst = filepath.Join(t.TempDir(), "dst")
		r.environ = []string{"HOLDFAST_TEST_KILL_AT=" + step}
		if !panics(func() { r.repo("sync") }) {
			t.Errorf("no step %s", step)
		}
		r.environ = nil
		if err := os.RemoveAll(r.locks); err != nil { // a killed process holds no lock; this one goes on
			t.Fatal(err)
		}
		r.repo("sync").has(t, 0)
		r.pg(r.dst, r.two, "verify").has(t, 0, "2 backup(s)", "0 finding(s)")
		r.repo("diff").has(t, 0)
	}
}

func panics(f func()) (did bool) {
	defer func() { did = recover() != nil }()
	f()
	return false
}

// TestS3Words: the S3 parameters say what pgBackRest's options say, and the keys are not among the words.
func TestS3Words(t *testing.T) {
	r := newRig(t)
	r.typed("planted key\nplanted secret\n", "alation_conf", "pgsql.pgbackrest.redundancy.s3.bucket", "-s", "buck", "pgsql.pgbackrest.redundancy.s3.region", "-s", "eu-1",
		"pgsql.pgbackrest.redundancy.s3.key", "-s", "-", "pgsql.pgbackrest.redundancy.s3.secret", "-s", "-", "pgsql.pgbackrest.redundancy.s3.uri_style", "-s", "path").has(t, 0)
	words := func() (string, []string, error) {
		st, err := store(r.in)
		if err != nil {
			t.Fatal(err)
		}
		v, err := st.Load()
		if err != nil {
			t.Fatal(err)
		}
		words, environ, err := s3Words(&wired{in: r.in, values: v})
		if name := storeName(r.in.Resolve, v); name != "s3://buck/holdfast" {
			t.Errorf("it is called %s", name)
		}
		return strings.Join(words, " "), environ, err
	}
	got, environ, err := words()
	if err != nil || strings.Contains(got, "planted") || !strings.Contains(got, "--repo1-s3-bucket=buck --repo1-s3-uri-style=path --repo1-s3-endpoint=s3.eu-1.amazonaws.com") ||
		!strings.Contains(got, "--repo1-s3-region=eu-1") || len(environ) != 2 || environ[0] != "PGBACKREST_REPO1_S3_KEY=planted key" || environ[1] != "PGBACKREST_REPO1_S3_KEY_SECRET=planted secret" {
		t.Errorf("%s, %d, %v", got, len(environ), err)
	}
	r.run("alation_conf", "pgsql.pgbackrest.redundancy.s3.endpoint", "-s", "http://127.0.0.1:9000", "--unset").has(t, 2)
	r.run("alation_conf", "pgsql.pgbackrest.redundancy.s3.endpoint", "-s", "store:9000", "pgsql.pgbackrest.redundancy.s3.sse", "-s", "aws:kms").has(t, 0)
	r.run("alation_conf", "--unset", "pgsql.pgbackrest.redundancy.s3.secret").has(t, 0)
	if _, _, err := words(); err == nil || !strings.Contains(err.Error(), "both or neither") {
		t.Errorf("with one of two keys: %v", err)
	}
	r.run("alation_conf", "--unset", "pgsql.pgbackrest.redundancy.s3.key").has(t, 0)
	if got, environ, err := words(); err != nil || len(environ) > 0 || !strings.Contains(got, "--repo1-s3-endpoint=store:9000") || !strings.Contains(got, "--repo1-s3-sse=kms") || !strings.Contains(got, "--repo1-s3-key-type=auto") {
		t.Errorf("%s, %v", got, err)
	}
}
