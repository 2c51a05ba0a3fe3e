package backrest

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

// tree is a file system with one configuration file in its usual place, and more.
func tree(conf string, more ...string) fstest.MapFS {
	m := fstest.MapFS{"etc/pgbackrest/pgbackrest.conf": {Data: []byte(conf)}}
	for i := 0; i < len(more); i += 2 {
		m[more[i]] = &fstest.MapFile{Data: []byte(more[i+1])}
	}
	return m
}

func mustParse(t *testing.T, line, env string, files fstest.MapFS) *Config {
	t.Helper()
	c, err := Parse(strings.Fields(line), strings.Fields(env), files)
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	return c
}

// TestPrecedence sets one option everywhere and takes the strongest away, one after the other.
func TestPrecedence(t *testing.T) {
	sections := []string{"[demo:backup]\nprocess-max=3\n", "[demo]\nprocess-max=4\n", "[global:backup]\nprocess-max=5\n", "[global]\nprocess-max=6\n"}
	for want := int64(1); want <= 7; want++ {
		line, env := "--stanza=demo --pg1-path=/pg backup", ""
		if want <= 1 {
			line += " --process-max=1"
		}
		if want <= 2 {
			env = "PGBACKREST_PROCESS_MAX=2"
		}
		conf := ""
		for i, s := range sections {
			if want <= int64(i+3) {
				conf = s + conf // the order in the file does not matter
			}
		}
		if want == 7 {
			want = 1 // the default
			line += " --reset-process-max"
			conf = "[global]\nprocess-max=9\n"
		}
		if got := mustParse(t, line, env, tree(conf)).Int("process-max", 0); got != want {
			t.Errorf("%s %s %q: %d, want %d", line, env, conf, got, want)
		}
		if conf == "[global]\nprocess-max=9\n" {
			return
		}
	}
}

func TestConfig(t *testing.T) {
	conf := `[global]
repo1-path=/r1/
repo3-path=/r3
repo3-cipher-type=aes-256-cbc
repo3-cipher-pass=hidden
compress-type=zst
archive-timeout=90s
start-fast=y
exclude=a
exclude=b/
unknown=1
[demo]
pg1-path=/pg
tablespace-map=t=/x
`
	c := mustParse(t, "--stanza=demo --type=full --no-resume backup --annotation=k=v=w", "PGBACKREST_EXPIRE_AUTO=n", tree(conf, "etc/pgbackrest/conf.d/a.conf", "[global]\nprocess-max=7\n", "etc/pgbackrest/conf.d/b.txt", "x"))
	for name, want := range map[string]string{"compress-type": "zst", "type": "full", "stanza": "demo", "log-level-console": "warn", "checksum-page": "", "log-path": "/var/log/pgbackrest"} {
		if got := c.String(name, 0); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := c.String("repo-path", 1) + c.String("repo-path", 3) + c.String("repo-path", 2); got != "/r1/r3/var/lib/pgbackrest" {
		t.Error(got)
	}
	if c.Duration("archive-timeout", 0) != 90*time.Second || c.Int("process-max", 0) != 7 || c.Int("manifest-save-threshold", 0) != 1<<30 {
		t.Error(c.Duration("archive-timeout", 0), c.Int("process-max", 0), c.Int("manifest-save-threshold", 0))
	}
	if c.Bool("resume", 0) || c.Bool("expire-auto", 0) || !c.Bool("start-fast", 0) || c.Bool("repo-block", 1) || !c.Bool("archive-check", 0) {
		t.Error("a switch is wrong")
	}
	if got := c.List("exclude", 0); !slices.Equal(got, []string{"a", "b/"}) {
		t.Error(got)
	}
	if got := c.Hash("annotation", 0)["k"]; got != "v=w" {
		t.Error(got)
	}
	if got := c.Keys(Repo); !slices.Equal(got, []int{1, 3}) {
		t.Error(got)
	}
	if got := c.Warnings; !slices.Equal(got, []string{"configuration file contains invalid option 'unknown'"}) {
		t.Error(got)
	}
	words := strings.Join(c.Words(), " ")
	if words != "--annotation=k=v=w --archive-timeout=90s --compress-type=zst --exclude=a --exclude=b/ --no-expire-auto --pg1-path=/pg --process-max=7 "+
		"--repo3-cipher-pass=<redacted> --repo3-cipher-type=aes-256-cbc --repo1-path=/r1 --repo3-path=/r3 --no-resume --stanza=demo --start-fast --type=full" {
		t.Error(words)
	}
	for _, g := range c.Given() {
		if g.Secret != (g.Full == "repo3-cipher-pass") || strings.HasPrefix(g.Name, "repo-") != (g.Key != 0) && g.Name != "pg-path" {
			t.Errorf("%+v", g)
		}
	}
	if err := c.Complete(); err != nil {
		t.Error(err)
	}
}

// TestForward: restore_command repeats what cannot be read from the files, and no secret.
func TestForward(t *testing.T) {
	conf := "[global]\nrepo1-path=/r1\n[demo]\npg1-path=/old\n"
	c := mustParse(t, "--config=/c.conf --stanza=demo --pg1-path=/new --delta --type=immediate --set=20200101-000000F --process-max=2 --repo=1 --log-level-console=info restore",
		"PGBACKREST_LOCK_PATH=/l PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc PGBACKREST_REPO1_CIPHER_PASS=hidden", tree("", "c.conf", conf))
	want := "--config=/c.conf --lock-path=/l --pg1-path=/new --repo1-cipher-type=aes-256-cbc --stanza=demo"
	if got := strings.Join(c.Forward("archive-get"), " "); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestStandsForNothing: a switch that needs another is off without it, wherever it was set.
func TestStandsForNothing(t *testing.T) {
	c := mustParse(t, "--stanza=demo --no-online backup", "", tree("[global]\narchive-copy=y\nrepo1-bundle-size=1MiB\nbackup-standby=prefer\n[demo]\npg1-path=/pg\n"))
	if c.Bool("archive-check", 0) || c.Bool("archive-copy", 0) || c.String("repo-bundle-size", 1) != "" || c.String("backup-standby", 0) != "prefer" {
		t.Error("an option without what it needs has an effect")
	}
	if words := strings.Join(c.Words(), " "); words != "--backup-standby=prefer --no-online --pg1-path=/pg --stanza=demo" {
		t.Error(words)
	}
}

func TestNumbers(t *testing.T) {
	for v, want := range map[string]int64{"1": 1, "10b": 10, "1k": 1 << 10, "2Kb": 2 << 10, "3KiB": 3 << 10, "4MB": 4 << 20, "5g": 5 << 30, "1TiB": 1 << 40, "7PB": 7 << 50, "007": 7,
		"": -1, "b": -1, "1.5k": -1, "1kk": -1, "1bb": -1, "1bib": -1, "-1": -1, "1 k": -1, "8192PB": -1, "99999999999999999999": -1, "1e3": -1, "1ÄB": -1} {
		got, err := ParseSize(v)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("size %q: %d %v, want %d", v, got, err, want)
		}
	}
	for v, want := range map[string]time.Duration{"60": time.Minute, "1.5": 1500 * time.Millisecond, ".5s": 500 * time.Millisecond, "100ms": 100 * time.Millisecond, "2m": 2 * time.Minute,
		"3H": 3 * time.Hour, "1d": 24 * time.Hour, "1w": 168 * time.Hour, "0": 0,
		"": -1, ".": -1, "1..2": -1, "1min": -1, "1d1h": -1, "-1": -1, "m": -1, "99999999999999w": -1} {
		got, err := ParseTime(v)
		if want < 0 && err == nil || want >= 0 && (err != nil || got != want) {
			t.Errorf("time %q: %v %v, want %v", v, got, err, want)
		}
	}
}

// TestTable: the rows hold together, so that no command line can meet a row that means nothing.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for o := range all {
		if seen[o.Name] {
			t.Errorf("%s: twice in the table", o.Name)
		}
		seen[o.Name] = true
		if o.Required&^o.On != 0 {
			t.Errorf("%s: required by a command that does not know it", o.Name)
		}
		if (o.Group != None) != strings.HasPrefix(o.Name, o.Group.String()+"-") {
			t.Errorf("%s: its group is %q", o.Name, o.Group)
		}
		if o.Old != "" && o.Group == None && strings.Contains(o.Old, "?") {
			t.Errorf("%s: an old name with an index for one without", o.Name)
		}
		for i, name := range Commands() {
			cmd := Command(1) << i
			c := &Config{Command: cmd, values: map[place]*value{}}
			for _, w := range words(o.Needs, cmd) {
				dep, _, _ := strings.Cut(w, "=")
				if d := named(dep); d == nil {
					t.Errorf("%s needs %s, which is not in the table", o.Name, dep)
				} else if o.On&cmd != 0 && d.On&cmd == 0 {
					t.Errorf("%s needs %s, which %s does not know", o.Name, dep, name)
				}
			}
			if d := o.DefaultFor(cmd); d != "" && d != "latest" && o.On&cmd != 0 {
				if err := c.checkValue(o, 1, d); err != nil {
					t.Errorf("%s: its default: %v", o.Name, err)
				}
			}
			if o.Kind == Enum && o.On&cmd != 0 && len(words(o.Allow, cmd)) == 0 {
				t.Errorf("%s: no values for %s", o.Name, name)
			}
		}
		if f := strings.Fields(o.Range); len(f) > 0 && !strings.Contains(o.Range, "=") {
			for _, v := range f {
				if _, err := quantity(o.Kind, v); err != nil || len(f) != 2 {
					t.Errorf("%s: range %s", o.Name, o.Range)
				}
			}
		}
	}
	if len(seen) < 180 {
		t.Errorf("%d options", len(seen))
	}
}

// TestNoSecretInErrors: what an operator pastes into a ticket.
func TestNoSecretInErrors(t *testing.T) {
	for _, conf := range []string{"[global]\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass hunter2\n", "[global]\nrepo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=hunter2\nrepo1-cipher-pass=hunter2\n",
		"repo1-cipher-pass=hunter2\n", "[global]\n=hunter2\n"} {
		_, err := Parse([]string{"--stanza=demo", "info"}, nil, tree(conf))
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", conf, err)
		}
	}
	_, err := Parse([]string{"--repo1-cipher-pass=hunter2", "info"}, nil, tree(""))
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

// TestWhere: which files are read, and what happens to one that is not there.
func TestWhere(t *testing.T) {
	files := fstest.MapFS{}
	for name, max := range map[string]string{"etc/pgbackrest.conf": "1", "a/pgbackrest.conf": "2", "a/conf.d/x.conf": "", "b.conf": "4", "inc/y.conf": "5"} {
		text := "[global]\nprocess-max=" + max + "\n"
		if max == "" {
			text = "[global]\nlog-path=/x\n"
		}
		files[name] = &fstest.MapFile{Data: []byte(text)}
	}
	for line, want := range map[string]string{
		"":                                       "1 /var/log/pgbackrest",
		"--no-config":                            "8 /var/log/pgbackrest",
		"--config-path=/a":                       "2 /x",
		"--config-path=/a/ --no-config":          "8 /x",
		"--config=/b.conf":                       "4 /var/log/pgbackrest",
		"--config=/b.conf --config-path=/a":      "4 /x",
		"--config-include-path=/inc":             "31",
		"--no-config --config-include-path=/inc": "5 /var/log/pgbackrest",
		"--config=/none":                         "55",
		"--config-include-path=/none":            "73",
		"--config-path=/none":                    "8 /var/log/pgbackrest",
	} {
		got := ""
		c, err := Parse(append(strings.Fields(line), "--stanza=demo", "verify"), nil, files)
		var e *Error
		if errors.As(err, &e) {
			got = map[int]string{CodeOptionInvalid: "31", CodeFileMissing: "55", CodePathMissing: "73"}[e.Code]
		} else {
			max := c.String("process-max", 0)
			if max == "1" && !strings.Contains(strings.Join(c.Words(), " "), "process-max") {
				max = "8" // nothing read: the default
			}
			got = max + " " + c.String("log-path", 0)
		}
		if got != want {
			t.Errorf("%s: %s, want %s (%v)", line, got, want, err)
		}
	}
}

func FuzzFile(f *testing.F) {
	for _, s := range []string{"[global]\nrepo1-path=/r\n", "[demo]\npg1-path=/p\ndb-include=a\ndb-include=b\n# c\n", "[global\n", "x=y", "[a]\n=\n", "[demo:info]\nrepo256-path=/\nrepo-path=//\n", "[global]\nno-x=y\nreset-=\n-=\n9-=1\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, conf string) {
		c, err := Parse([]string{"--stanza=demo", "restore"}, nil, tree(conf))
		var e *Error
		if err != nil {
			if !errors.As(err, &e) || e.Code < 25 {
				t.Fatalf("not one of ours: %v", err)
			}
			return
		}
		for _, g := range c.Given() { // everything can be asked for without a panic
			c.Int(g.Name, g.Key)
			c.List(g.Name, g.Key)
		}
		if err := c.Complete(); err != nil && !errors.As(err, &e) {
			t.Fatal(err)
		}
		line := strings.Join(c.Words(), " ")
		if strings.Contains(line, "<redacted>") || len(strings.Fields(line)) != len(c.Words()) {
			return // cannot be typed again
		}
		again := mustParse(t, "--no-config restore "+line, "", tree(""))
		if got := strings.Replace(strings.Join(again.Words(), " "), "--no-config ", "", 1); got != line {
			t.Fatalf("%q read again is %q", line, got)
		}
	})
}

// TestOptionsOfAnotherKind: what an environment says of a kind that the repository is not of, asks for nothing; of the kind
// that it is of, it does.
func TestOptionsOfAnotherKind(t *testing.T) {
	const env = "PGBACKREST_REPO2_PATH=/r PGBACKREST_REPO2_SFTP_PRIVATE_KEY_FILE=/key PGBACKREST_REPO2_SFTP_KNOWN_HOST=/known"
	c := mustParse(t, "--no-config --stanza=x --repo1-path=/r info", env, tree(""))
	if err := c.Complete(); err != nil {
		t.Error(err)
	}
	if _, err := Parse(strings.Fields("--no-config --stanza=x info"), strings.Fields(env+" PGBACKREST_REPO2_TYPE=sftp"), tree("")); err == nil || !strings.Contains(err.Error(), "requires option: repo2-sftp-host") {
		t.Errorf("a server without a host: %v", err)
	}
	c = mustParse(t, "--no-config --stanza=x info", "PGBACKREST_REPO1_TYPE=sftp PGBACKREST_REPO1_SFTP_HOST=h", tree(""))
	if err := c.Complete(); err == nil || !strings.Contains(err.Error(), "requires option: repo1-sftp-host-user") {
		t.Errorf("a server without a user: %v", err)
	}
}
