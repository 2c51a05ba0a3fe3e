package script

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// lineCase is one command line for both programs. In it and in conf, @/ is the rig's directory, @R the program's own
// repository; conf is a configuration file instead of the rig's.
type lineCase struct {
	line, env, conf string
	code            int
	original        int    // its code where it differs, and why says for what reason
	why             string // also where the codes are the same and the texts of a refusal are not
}

// codes of the original that are about the command line and the configuration alone: there the text is the same, too.
var refusals = map[int]bool{30: true, 31: true, 32: true, 37: true, 48: true, 96: true}

var firstError = regexp.MustCompile(`(?m)^.*ERROR: (.*)$`)

// TestLinesLikeTheOriginal runs each command line through this program and Debian's pgbackrest, on one cluster, with a
// repository and a lock path for each: the exit code is the same, and the text of what is refused.
func TestLinesLikeTheOriginal(t *testing.T) {
	r := newRig(t, "repo1-path=@/ours\nrepo1-retention-full=2\narchive-check=n")
	ours, err := os.ReadFile(r.conf)
	if err != nil {
		t.Fatal(err)
	}
	for i, line := range []string{r.conf + ".ours", r.conf + ".theirs"} {
		text := strings.Replace(string(ours), "log-level-file=detail", "log-level-file=off", 1)
		if i == 1 {
			text = strings.NewReplacer(r.dir+"/ours", r.dir+"/theirs", r.dir+"/lock", r.dir+"/lock-theirs").Replace(text)
		}
		if err := os.WriteFile(line, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	full := filepath.Join(r.dir, "full")
	for _, command := range [][]string{{"/bin/mkdir", full}, {"/bin/cp", "/etc/hostname", full}} {
		if s := r.program(command[0], command[1:]...); s.code != 0 {
			t.Fatal(s.errs)
		}
	}
	r.insert("a")
	for _, args := range []string{"--stanza=demo stanza-create", "--stanza=demo --start-fast backup"} {
		for _, own := range []bool{true, false} {
			if s := r.line(lineCase{line: args}, own); s.code != 0 {
				t.Fatalf("%s: %+v", args, s)
			}
		}
	}
	cases := append(append(optionLines, stateLines...), confLines()...)
	for _, c := range cases {
		s, o := r.line(c, true), r.line(c, false)
		want := c.code
		switch c.original {
		case 0:
		case zero:
			want = 0
		default:
			want = c.original
		}
		show := strings.TrimSpace(fmt.Sprintf("%s %s %.60q", c.line, c.env, c.conf))
		if s.code != c.code {
			t.Errorf("%s: code %d, want %d\n%s%s", show, s.code, c.code, s.out, s.errs)
		}
		if o.code != want {
			t.Errorf("%s: the original's code is %d, want %d\n%s%s", show, o.code, want, o.out, o.errs)
		}
		if a, b := refusal(s, r.dir+"/ours"), refusal(o, r.dir+"/theirs"); a != b && c.why == "" && refusals[s.code] {
			t.Errorf("%s: %q, the original says %q", show, a, b)
		}
	}
	t.Logf("%d command lines", len(cases))
}

// line runs a case, by our program or by the original.
func (r *rig) line(c lineCase, own bool) said {
	r.t.Helper()
	program, which := "/usr/bin/pgbackrest", "theirs"
	if own {
		program, which = r.name, "ours"
	}
	expand := strings.NewReplacer("@R", r.dir+"/"+which, "@L", r.dir+"/lock-"+which, "@P", r.c.DataDir(), "@S", r.c.SocketDir(), "@/", r.dir+"/", "~", "").Replace
	conf := r.conf + "." + which
	if c.conf != "" {
		conf = filepath.Join(r.dir, "case.conf")
		if err := os.WriteFile(conf, []byte(expand(c.conf)), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	var args []string
	if c.line != "" && !strings.Contains(c.line, "--no-config") {
		args = []string{"--config=" + conf}
	}
	for _, w := range strings.Fields(c.line) {
		args = append(args, expand(w))
	}
	r.env = strings.Fields(expand(c.env))
	defer func() { r.env = nil }()
	return r.program(program, args...)
}

// refusal is the first line of the error, with R for the program's own repository.
func refusal(s said, repo string) string {
	if m := firstError.FindStringSubmatch(s.errs + s.out); m != nil {
		return strings.ReplaceAll(m[1], repo, "R")
	}
	return ""
}

const (
	zero     = -2 // as the code of the original: it ends with 0
	d        = "--stanza=demo "
	newer    = "the original has this since 2.54"
	clearer  = "says more"
	crashes  = "the original crashes"
	notDone  = "is not done, and refused by name"
	tells    = "the original ends with 0 whatever is wrong"
	noSlash  = "a stanza is a directory of the repository, so that its name must not lead elsewhere"
	noSecret = "what is written there may be a secret"
)

// optionLines are about options, values and names.
var optionLines = []lineCase{
	{line: ""}, {line: "nocommand", code: 48}, {line: "--no-config", code: 30}, {line: "info"}, {line: "info x", code: 96}, {line: "version"}, {line: "version x", code: 96}, {line: "version --delta"},
	{line: "--version", original: 31, why: newer}, {line: "--help", original: 31, why: newer}, {line: "backup --help", original: 31, why: newer},
	{line: "help"}, {line: "help backup"}, {line: "help nocommand", code: 48}, {line: "help backup nooption", code: 31}, {line: "help backup delta x", code: 96}, {line: "help info output"},
	{line: "help backup pg", code: 31}, {line: "help backup repo-path"}, {line: "help backup repo1-path"}, {line: "--delta help info", code: 31}, {line: "Backup", code: 48},
	{line: "backup", code: 37}, {line: "verify", code: 37}, {line: "expire", code: 37}, {line: "restore", code: 37}, {line: "stanza-create", code: 37}, {line: "stanza-delete", code: 37}, {line: "stanza-upgrade", code: 37},
	{line: "archive-push", code: 37}, {line: "archive-get", code: 37}, {line: "annotate", code: 37}, {line: "manifest", code: 37}, {line: "repo-get", code: 43}, {line: "repo-ls"},
	{line: "--no-config check", original: 37, why: "without a stanza all are checked, as the original does it since 2.47"},
	{line: "repo-rm", code: 31, why: notDone}, {line: "repo-put", code: 31, original: 43, why: notDone}, {line: "server", code: 31, original: 37, why: notDone},
	// Names.
	{line: d + "backup --foo=1", code: 31, why: noSecret}, {line: d + "backup --foo", code: 31}, {line: d + "backup --pg-path=/y", code: 31}, {line: d + "info --pg1-path=/y", code: 31},
	{line: d + "backup --pg0-path=/x", code: 31, original: -1, why: crashes}, {line: d + "backup --pg257-path=/x", code: 31}, {line: d + "backup --1-path=/x", code: 31}, {line: d + "backup ---path=/x", code: 31},
	{line: d + "backup --log1-path=/x", code: 31}, {line: d + "info --repo-path=@R"}, {line: d + "info --repo1-pat=@R"}, {line: d + "info --delta", code: 31}, {line: d + "expire --db-timeout=9", code: 31},
	{line: d + "stanza-create --repo=1", code: 31}, {line: d + "check --repo=1", code: 31}, {line: "start --repo=1", code: 31}, {line: d + "backup -x", code: 31}, {line: "-x backup", code: 31},
	{line: d + "backup --", code: 31}, {line: d + "info --no-", code: 31}, {line: d + "info --reset-", code: 31},
	// Repetition, negation, reset.
	{line: d + "backup --delta --delta", code: 31}, {line: d + "backup --delta --no-delta", code: 31}, {line: d + "backup --no-delta --no-delta", code: 31}, {line: d + "backup --reset-delta --delta", code: 31},
	{line: d + "backup --reset-delta --no-delta", code: 31}, {line: d + "backup --reset-delta --reset-delta", code: 31}, {line: d + "info --output=json --output=text", code: 31}, {line: d + "--stanza=b info", code: 31},
	{line: d + "backup --process-max=1 --process-max=2", code: 31}, {line: d + "backup --no-stanza", code: 31}, {line: d + "backup --reset-stanza", code: 31}, {line: d + "expire --no-dry-run", code: 31},
	{line: d + "expire --reset-dry-run", code: 31}, {line: d + "backup --no-delta=y", code: 31}, {line: d + "backup --no-compress-type", code: 31}, {line: d + "backup --reset-pg1-path", code: 37},
	{line: d + "backup --process-max", code: 31}, {line: d + "info --output", code: 31}, {line: d + "info --set=", code: 32}, {line: d + "--db-path=/nx info", code: 31}, {line: d + "--retention-full=3 --dry-run expire"},
	{line: d + "--archive-queue-max=1GB archive-push", code: 43},
	// Values.
	{line: d + "backup --process-max=0", code: 32}, {line: d + "backup --process-max=1000", code: 32}, {line: d + "backup --process-max=-1", code: 32}, {line: d + "backup --process-max=2k", code: 32},
	{line: d + "backup --process-max=1.5", code: 32}, {line: d + "backup --process-max=", code: 32}, {line: d + "backup --process-max=0x3", code: 32}, {line: d + "backup --pg1-port=99999", code: 32},
	{line: d + "backup --pg1-port=-1", code: 32}, {line: d + "backup --buffer-size=3", code: 32}, {line: d + "backup --buffer-size=1gib", code: 32}, {line: d + "backup --compress-type=foo", code: 32},
	{line: d + "backup --compress-level=99", code: 32}, {line: d + "backup --compress-type=lz4 --compress-level=13", code: 32}, {line: d + "backup --compress-type=zst --compress-level=-8", code: 32},
	{line: d + "backup --log-path=rel", code: 32}, {line: d + "backup --log-path=/x//y", code: 32}, {line: d + "backup --log-level-console=loud", code: 32}, {line: d + "backup --manifest-save-threshold=1PB", code: 32},
	{line: d + "backup --manifest-save-threshold=1.5MB", code: 32}, {line: d + "backup --manifest-save-threshold=2XB", code: 32}, {line: d + "backup --manifest-save-threshold=-5", code: 32},
	{line: d + "backup --archive-timeout=0.05", code: 32}, {line: d + "backup --archive-timeout=86401", code: 32}, {line: d + "backup --archive-timeout=x", code: 32}, {line: d + "backup --archive-timeout=-1", code: 32},
	{line: d + "backup --type=foo", code: 32}, {line: d + "info --type=time", code: 32}, {line: d + "restore --type=foo", code: 32}, {line: d + "restore --archive-mode=on", code: 32}, {line: d + "info --output=none", code: 32},
	{line: d + "verify --output=json", code: 32}, {line: d + "repo-ls --sort=up", code: 32}, {line: d + "restore --target-action=stop --type=immediate", code: 32}, {line: d + "backup --delta=maybe", code: 32},
	{line: d + "backup --annotation=x", code: 31}, {line: d + "backup --repo1-retention-full=0", code: 32}, {line: d + "backup --repo1-retention-full=10000000", code: 32},
	{line: d + "expire --repo1-retention-archive-type=none", code: 32}, {line: d + "expire --repo1-retention-full-type=days", code: 32}, {line: d + "restore --tablespace-map=x", code: 31},
	{line: d + "restore --recovery-option=x", code: 31}, {line: d + "restore --link-map=x", code: 31}, {line: d + "info --repo=2", code: 32}, {line: d + "info --repo=0", code: 32}, {line: d + "info --repo=257", code: 32},
	{line: d + "backup --repo=2", code: 32}, {line: d + "info --repo=x", code: 32}, {line: d + "--repo1-path=relative info", code: 32}, {line: d + "--pg1-path=rel restore", code: 32},
	{line: d + "--db-timeout=10 --protocol-timeout=5 backup", code: 32}, {line: d + "--repo2-path=@R info", code: 32},
	// What needs what.
	{line: d + "restore --target=x", code: 31}, {line: d + "restore --type=time", code: 37}, {line: d + "restore --type=time --target=", code: 32}, {line: d + "restore --type=name --target=a --target-exclusive", code: 31},
	{line: d + "restore --type=immediate --target-timeline=2", code: 31}, {line: d + "restore --type=preserve --recovery-option=a=b", code: 31}, {line: d + "restore --type=standby --target-action=promote", code: 31},
	{line: d + "restore --target-action=promote", code: 31}, {line: d + "backup --repo1-bundle-size=1MiB", code: 31}, {line: d + "backup --repo1-bundle --repo1-hardlink", code: 31}, {line: d + "backup --force", code: 31},
	{line: d + "backup --no-online --archive-copy", code: 31}, {line: d + "backup --repo1-s3-bucket=b", code: 31}, {line: d + "backup --repo1-cipher-pass=x", code: 31}, {line: d + "backup --repo1-s3-key=a", code: 31},
	{line: d + "info --repo1-cipher-type=aes-256-cbc", code: 37}, {line: d + "backup --pg2-port=5433", code: 37}, {line: d + "--repo2-path=/two stanza-delete", code: 37}, {line: d + "--archive-async archive-push", code: 43},
	// The environment.
	{line: "info", env: "PGBACKREST_FOO=1"}, {line: "info", env: "PGBACKREST_REPO1_PATH=", code: 32}, {line: "info", env: "PGBACKREST_DELTA=x"}, {line: "info", env: "PGBACKREST_NO_DELTA=x"},
	{line: "info", env: "PGBACKREST_RESET_DELTA=x"}, {line: "info", env: "PGBACKREST_LOG_TIMESTAMP=x", code: 32}, {line: "info", env: "PGBACKREST_REPO_PATH=@R"}, {line: "info", env: "PGBACKREST_PG_PATH=/r", code: 31},
	{line: "info", env: "PGBACKREST_TARGET=t"}, {line: "info", env: "PGBACKREST_TYPE=banana", code: 32}, {line: "info", env: "PGBACKREST_CONFIG=/nonexistent"}, {line: "info", env: "PGBACKREST_STANZA=other"},
	{line: "info", env: "PGBACKREST_REPO999_PATH=/x", code: 31}, {line: "info", env: "PGBACKREST_LOG_LEVEL_CONSOLE=loud", code: 32}, {line: "info", env: "pgbackrest_process_max=2"}, {line: "info", env: "PGBACKREST_=x"},
	{line: d + "expire --dry-run", env: "PGBACKREST_REPO1_RETENTION_FULL=x", code: 32}, {line: d + "expire --dry-run", env: "PGBACKREST_SET=bogus", code: 32}, {line: d + "verify", env: "PGBACKREST_PROCESS_MAX=many", code: 32},
}

// wrongPass is a passphrase for a repository that is not encrypted.
const wrongPass = "PGBACKREST_REPO1_CIPHER_TYPE=aes-256-cbc PGBACKREST_REPO1_CIPHER_PASS=wrong"

// stateLines are about what the command lines find: repositories, servers, files.
var stateLines = []lineCase{
	{line: d + "info --set=bogus"}, {line: d + "info --set=20200101-000000F"}, {line: d + "expire --set=bogus", code: 32}, {line: d + "expire --set=20200101-000000F"}, {line: d + "annotate --set=bogus --annotation=a=b", code: 32},
	{line: d + "annotate --set=20200101-000000F --annotation=a=b", code: 75}, {line: d + "verify --set=bogus", code: 32, original: zero, why: tells},
	{line: d + "backup --backup-standby", code: 56}, {line: d + "restore", code: 38}, {line: d + "restore --delta", code: 38}, {line: d + "stanza-delete", code: 55}, {line: d + "stanza-create"}, {line: d + "stanza-upgrade"},
	{line: d + "stanza-create --no-online"}, {line: d + "stanza-create --force"}, {line: d + "backup --no-online", code: 38}, {line: d + "--priority=19 info", original: 31, why: "the original has this since 2.58"},
	// Another stanza, another repository.
	{line: "--stanza=other info"}, {line: "--stanza=other backup", code: 37}, {line: "--stanza=other --pg1-path=/nx backup", code: 55}, {line: "--stanza=other --pg1-path=/nx check", code: 27},
	{line: "--stanza=other --pg1-path=/nx restore", code: 75}, {line: "--stanza=other expire", code: 104}, {line: "--stanza=other verify", code: 55, original: zero, why: tells}, {line: "--stanza=other --pg1-path=@P archive-get 000000010000000000000001 @/f", code: 103},
	{line: "--stanza=other --pg1-path=@P --pg1-socket-path=@S stanza-upgrade --no-online", code: 55}, {line: "--stanza=other --pg1-path=@P stanza-delete"}, {line: "--stanza=other --set=20200101-000000F --annotation=a=b annotate", code: 104},
	{line: d + "--pg1-path=/nx stanza-create", code: 56}, {line: d + "--pg1-port=1 stanza-create", code: 56}, {line: d + "--pg1-port=1 backup", code: 56}, {line: d + "--pg1-port=1 check", code: 27}, {line: d + "--pg1-path=@/log backup", code: 56},
	{line: "--stanza=.. info", code: 32, original: zero, why: noSlash}, {line: "--stanza=a/b info", code: 32, original: zero, why: noSlash}, {line: d + "--repo1-path=/nowhere/x backup", code: 55}, {line: d + "--repo1-path=/nowhere/x info"},
	{line: d + "--repo1-path=/nowhere/x --pg1-path=@/new restore", code: 75}, {line: d + "--repo1-path=/nowhere/x verify", code: 55, original: zero, why: tells},
	{line: d + "info", env: wrongPass}, {line: d + "verify", env: wrongPass, code: 95, original: zero, why: tells}, {line: d + "expire", env: wrongPass, code: 104}, {line: d + "--pg1-path=@/new restore", env: wrongPass, code: 75},
	{line: d + "backup", env: wrongPass, code: 95}, {line: d + "stanza-create", env: wrongPass, code: 95}, {line: d + "repo-ls", env: wrongPass}, {line: d + "repo-get backup/demo/backup.info", env: wrongPass, code: 95},
	{line: d + "archive-get 000000010000000000000001 @/f", env: wrongPass, code: 103}, {line: d + "archive-push @P/pg_wal/000000010000000000000001", env: wrongPass, code: 103},
	// Restore, without a file being written.
	{line: d + "--pg1-path=@/new restore --set=bogus", code: 75}, {line: d + "--pg1-path=@/new restore --set=20200101-000000F", code: 75}, {line: d + "--pg1-path=@/new restore --type=time --target=yesterday", code: 29},
	{line: d + "--pg1-path=@/new restore --type=time --target=2001-13-01", code: 29}, {line: d + "--pg1-path=@/new restore --type=lsn --target=zz", code: 29}, {line: d + "--pg1-path=@/new restore --type=lsn --target=0/1", code: 75},
	{line: d + "--pg1-path=@/new restore --db-include=nosuch", code: 80}, {line: d + "--pg1-path=@/new restore --db-include=postgres", code: 81}, {line: d + "--pg1-path=@/new restore --db-exclude=nosuch", code: 80},
	{line: d + "--pg1-path=@/new restore --tablespace-map=nosuch=/x", code: 76}, {line: d + "--pg1-path=@/new restore --link-map=nosuch=/x", code: 78}, {line: d + "--pg1-path=@/new restore --link-map=../x=/x", code: 78},
	{line: d + "--pg1-path=@/log restore", code: 53}, {line: d + "--pg1-path=@/full restore", code: 40}, {line: d + "--pg1-path=@/full restore --force", code: 40},
	// WAL and files.
	{line: d + "archive-push", code: 43}, {line: d + "archive-push /a /b", code: 43}, {line: d + "archive-push /nx/000000010000000000000001", code: 55}, {line: d + "archive-push pg_wal/000000010000000000000001", code: 32},
	{line: d + "--reset-pg1-path archive-push pg_wal/000000010000000000000001", code: 37}, {line: d + "archive-get", code: 43}, {line: d + "archive-get a", code: 43}, {line: d + "archive-get a b c", code: 96},
	{line: d + "archive-get 0000000100000000000000FF @/f", code: 1}, {line: d + "archive-get 00000009.history @/f", code: 1}, {line: d + "archive-get nonsense @/f", code: 1}, {line: d + "--pg1-path=/nx archive-get 000000010000000000000001 @/f", code: 55},
	{line: d + "archive-get 0000000100000000000000FF pg_wal/f", code: 32}, {line: d + "--archive-async archive-get 0000000100000000000000FF @/f", code: 1}, {line: d + "repo-get a b", code: 43}, {line: d + "repo-get nothing", code: 55},
	{line: d + "repo-get --ignore-missing nothing", code: 1}, {line: d + "repo-get /elsewhere", code: 96}, {line: d + "repo-ls nothing"}, {line: d + "repo-ls /elsewhere", code: 96}, {line: d + "repo-ls a b", code: 96},
	{line: d + "repo-ls --filter=[ backup", code: 29}, {line: d + "archive-push PG_VERSION~", code: 32},
	// Stopped.
	{line: "start"}, {line: "--lock-path=@L stop"}, {line: "--lock-path=@L stop"}, {line: d + "--lock-path=@L backup", code: 62}, {line: d + "--lock-path=@L archive-push @P/pg_wal/000000010000000000000001", code: 62},
	{line: d + "--lock-path=@L expire", code: 62}, {line: d + "--lock-path=@L stanza-create", code: 62}, {line: d + "--lock-path=@L stanza-upgrade", code: 62}, {line: d + "--lock-path=@L stanza-delete", code: 55},
	{line: d + "--lock-path=@L --annotation=a=b --set=20200101-000000F annotate", code: 75}, {line: d + "--lock-path=@L start"}, {line: "--lock-path=@L start"}, {line: d + "--lock-path=@L stop"}, {line: d + "--lock-path=@L expire", code: 62},
	{line: d + "--lock-path=@L start"}, {line: d + "--lock-path=@L start"}, {line: "--stanza=../x stop", code: 32, original: zero, why: noSlash},
	{line: d + "--no-hardlink --no-online --force --type=full backup"},
}

// confLines are configuration files with something in them.
func confLines() []lineCase {
	const global = "[global]\nrepo1-path=@R\nlock-path=@L\nlog-path=@/log\nlog-level-file=off\nrepo1-retention-full=2\n"
	const stanza = "[demo]\npg1-path=@P\npg1-socket-path=@S\n"
	list := []lineCase{
		{line: d + "info", conf: "\n\n#\n"}, {line: d + "info", conf: "[global]\r\nrepo1-path=@R\r\n"}, {line: d + "info", conf: global + "foo=1\n" + stanza}, {line: "--config=/nonexistent info~", code: 31},
		{line: d + "--config-include-path=/nonexistent info", code: 73, conf: global}, {line: d + "restore", conf: "[global]\npg1-path=/nx\n", code: 37}, {line: d + "backup", conf: global, code: 37},
	}
	for _, c := range []struct {
		text string
		code int
		why  string
	}{
		{"foo=1\n", 0, ""}, {"repo1-path=/b\n", 31, ""}, {"repo-path=/b\n", 31, ""}, {"repo2-path=\n", 32, ""}, {"repo1-path\n", 29, noSecret}, {"[global\nx=y\n", 29, clearer}, {" =x\n", 29, noSecret}, {"  # c\n", 0, ""}, {"; c\n", 29, noSecret},
		{"[]\n", 29, clearer}, {"[a] b\n", 29, clearer}, {"no-delta=y\n", 0, ""}, {"reset-delta=y\n", 0, ""}, {"delta=x\n", 0, ""}, {"target=x\n", 0, ""}, {"dry-run=y\n", 0, ""}, {"pg1-path=/x\n", 0, ""}, {"stanza=y\n", 0, ""},
		{"log-level-console=banana\n", 32, ""}, {"log-timestamp=yes\n", 32, ""}, {"process-max=\n", 0, ""}, {"process-max=two\n", 0, ""}, {"compress-type=foo\n", 0, ""}, {"repo1-retention-full-type=days\n", 32, ""}, {"pg-path=/x\n", 31, ""},
		{"repo1=x\n", 0, ""}, {"1x=y\n", 0, ""}, {"-x=y\n", 31, ""}, {"x-=y\n", 0, ""}, {"exclude=a\nexclude=b\n", 0, ""}, {"[global:expire]\ndelta=y\n", 0, ""}, {"[global:nocommand]\ndelta=y\n", 0, ""},
		{"[global:expire]\nrepo1-retention-diff=x\n", 32, ""}, {"[demo:expire]\nrepo1-retention-full=1\n", 0, ""}, {"[other]\npg1-path=/x\nfoo=1\n", 0, ""}, {"repo1-type=banana\n", 32, ""}, {"repo1-cipher-type=aes-256-cbc\n", 37, ""},
		{"repo1-cipher-type=aes-256-cbc\nrepo1-cipher-pass=x\n", 104, ""}, {"io-timeout=1\n", 0, ""}, {"io-timeout=2h\n", 32, "2.45 takes this for two seconds"}, {"buffer-size=3\n", 32, ""}, {"repo257-path=/x\n", 31, ""}, {"repo1-bundle-size=1MiB\n", 0, ""},
		{"repo1-hardlink=y\nrepo1-bundle=y\n", 0, ""}, {"recovery-option=x\n", 0, ""}, {"hardlink=y\n", 0, ""}, {"retention-full=3\n", 31, ""}, {"beta=y\n", 0, ""}, {"repo2-path=@/none\nrepo2-retention-full=3\n", 104, ""},
		{"repo2-path=@R\n", 32, ""}, {"log-level-stderr=off\nfoo=bar\n", 0, ""}, {"archive-timeout=1\narchive-timeout=2\n", 0, ""}, {"process-max=1\nprocess-max=2\n", 0, ""}, {"repo1-retention-diff=1\nrepo1-retention-diff=2\n", 31, ""},
	} {
		one := lineCase{line: d + "--dry-run expire", conf: global + c.text + stanza, code: c.code, why: c.why}
		if strings.HasPrefix(c.why, "2.45 takes") {
			one.original = zero
		}
		list = append(list, one)
	}
	return list
}
