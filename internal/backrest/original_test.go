package backrest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ours is the code that reading this command line ends with; 0: it is taken.
func ours(args, environ []string) (int, string) {
	c, err := Parse(args, environ, os.DirFS("/"))
	if err == nil && !c.Help && c.Command != onVersion {
		err = c.Complete()
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code, e.Text
	}
	return 0, ""
}

// reading are the codes that the original ends with before it does anything. 55 is not among them: it also stands for a
// missing repository, so the cases with a missing file use info, which is content without one.
var reading = map[int]bool{29: true, 30: true, 31: true, 32: true, 37: true, 42: true, 48: true, 73: true, 96: true}

// TestLikeTheOriginal runs each command line through this package and through pgbackrest 2.45. Either both take it, or
// both refuse it with the same code.
func TestLikeTheOriginal(t *testing.T) {
	if testing.Short() {
		t.Skip("needs pgbackrest; run make test")
	}
	program, err := exec.LookPath("pgbackrest")
	if err != nil {
		t.Fatal("pgbackrest is not installed: scripts/setup installs it")
	}
	const pg = "--no-config --stanza=x --pg1-path=/nx "
	const info = "--no-config --stanza=x info "
	cases := []struct {
		line     string // words; a value of @ is the empty word
		env      string
		conf     string // a configuration file, given with --config
		code     int
		original int // when it differs on purpose: why is in the comment beside it
	}{
		// The command.
		{line: "nocommand", code: 48}, {line: "--no-config", code: 30}, {line: "--no-config check", code: 37},
		{line: pg + "backup extra", code: 96}, {line: "version x", code: 96}, {line: "version --delta"}, {line: "help backup"}, {line: "help nocommand", code: 48},
		{line: "-x backup", code: 31}, {line: pg + "backup -x", code: 31}, {line: "--no-config --stanza=x backup", code: 37}, {line: pg + "Backup", code: 48},
		{line: "--no-config archive-push", code: 37}, {line: "--no-config --stanza=x archive-get", code: 37}, {line: "--no-config verify", code: 37},
		{line: "--no-config info"}, {line: "--no-config repo-ls"}, {line: pg + "annotate", code: 31}, {line: "--no-config --stanza=x annotate", code: 37},
		{line: "--no-config --stanza=x expire --set=a --repo=2", code: 32}, {line: "--no-config --stanza=x stanza-delete", code: 37},
		{line: "--no-config --stanza=x annotate --set=20200101-000000F", code: 37},
		// Names.
		{line: pg + "check --foo=1", code: 31}, {line: "--no-config --stanz=x info"}, {line: pg + "backup --db=5", code: 31}, {line: pg + "backup --db-time=5"},
		{line: pg + "backup --pg-path=/y", code: 31}, {line: info + "--repo1-pat=/r"}, {line: info + "--repo-path=/r"}, {line: info + "--pg1-path=/x", code: 31},
		{line: pg + "backup --pg257-path=/x", code: 31}, {line: info + "--repo256-path=/x"}, {line: pg + "backup --1-path=/x", code: 31}, {line: pg + "backup ---path=/x", code: 31},
		{line: pg + "backup --stanza1=x", code: 31}, {line: pg + "backup --log1-path=/x", code: 31}, {line: "--no-config --stanza=x --db-path=/nx backup"},
		{line: "--no-config --stanza=x --db1-path=/nx backup"}, {line: pg + "backup --retention-full=2"}, {line: pg + "backup --hardlink"}, {line: pg + "backup --repo1-hardlink"},
		{line: pg + "backup --db2-path=/y"}, {line: pg + "backup --retention1-full=2", code: 31}, {line: pg + "--process=1 backup", code: 31},
		{line: pg + "backup --pg0-path=/x", code: 31, original: 139}, // the original crashes
		// Repetition, negation, reset.
		{line: pg + "--pg1-path=/y backup", code: 31}, {line: pg + "backup --no-stanza", code: 31}, {line: pg + "backup --delta --delta", code: 31},
		{line: pg + "backup --delta --no-delta", code: 31}, {line: pg + "backup --no-delta --no-delta", code: 31}, {line: pg + "backup --reset-delta --delta", code: 31},
		{line: pg + "backup --reset-delta --reset-delta", code: 31}, {line: pg + "backup --reset-delta --no-delta", code: 31}, {line: pg + "backup --no-delta=y", code: 31},
		{line: pg + "backup --reset-stanza", code: 31}, {line: "--no-config --stanza=x expire --no-dry-run", code: 31}, {line: pg + "backup --no-online"},
		{line: pg + "backup --delta=y"}, {line: pg + "backup --delta=n"}, {line: pg + "backup --delta=z", code: 32}, {line: pg + "backup --delta=n --delta", code: 31},
		{line: pg + "backup --no-compress-type", code: 31}, {line: pg + "backup --reset-compress-type"}, {line: pg + "backup --reset-pg1-path", code: 31},
		{line: pg + "backup --exclude=a --exclude=b"}, {line: pg + "backup --process-max", code: 31}, {line: pg + "backup --process-max 2"}, {line: pg + "--config=/x backup", code: 31},
		// Secrets.
		{line: pg + "backup --repo1-cipher-pass=a", code: 31}, {line: pg + "backup --repo1-s3-key a", code: 31}, {line: info, env: "PGBACKREST_REPO1_CIPHER_PASS=a"},
		{line: info + "--repo1-cipher-type=aes-256-cbc", code: 37}, {line: info + "--repo1-cipher-type=aes-256-cbc", env: "PGBACKREST_REPO1_CIPHER_PASS=a"},
		// Values.
		{line: pg + "backup --process-max=0", code: 32}, {line: pg + "backup --process-max=1000", code: 32}, {line: pg + "backup --process-max=2k", code: 32}, {line: pg + "backup --process-max=1.5", code: 32},
		{line: pg + "backup --process-max=0x3", code: 32}, {line: pg + "backup --pg1-port=99999", code: 32}, {line: pg + "backup --buffer-size=3", code: 32}, {line: pg + "backup --buffer-size=32kib"},
		{line: pg + "backup --buffer-size=32768"}, {line: pg + "backup --compress-type=foo", code: 32}, {line: pg + "backup --compress-level=99", code: 32}, {line: pg + "backup --compress-type=zst --compress-level=19"},
		{line: pg + "backup --compress-type=none --compress-level=3", code: 31, original: 55}, // since 2.50 the original refuses it too
		{line: pg + "backup --log-path=rel", code: 32}, {line: pg + "backup --log-path=/x//y", code: 32}, {line: pg + "backup --log-path=/x/"}, {line: pg + "backup --log-path=/"},
		{line: pg + "backup --log-level-console=loud", code: 32}, {line: "--no-config --stanza= backup", code: 32}, {line: "--no-config --stanza @ backup", code: 32},
		{line: pg + "backup --manifest-save-threshold=1KiB"}, {line: pg + "backup --manifest-save-threshold=2MIB"}, {line: pg + "backup --manifest-save-threshold=5k"},
		{line: pg + "backup --manifest-save-threshold=1.5MB", code: 32}, {line: pg + "backup --manifest-save-threshold=-1", code: 32}, {line: pg + "backup --manifest-save-threshold=2XB", code: 32},
		{line: pg + "backup --manifest-save-threshold=1PB", code: 32}, {line: pg + "backup --manifest-save-threshold=007"}, {line: pg + "backup --manifest-save-threshold=0x10", code: 32},
		{line: pg + "backup --manifest-save-threshold=99999999999PB", code: 32}, {line: pg + "backup --manifest-save-threshold=@", code: 32},
		{line: pg + "backup --archive-timeout=0.1"}, {line: pg + "backup --archive-timeout=.5"}, {line: pg + "backup --archive-timeout=0.05", code: 32}, {line: pg + "backup --archive-timeout=86401", code: 32},
		{line: pg + "backup --archive-timeout=x", code: 32}, {line: pg + "backup --archive-timeout=@", code: 32},
		{line: pg + "backup --archive-timeout=1min", code: 32, original: 55}, // 2.45 takes this for one second
		{line: pg + "backup --archive-timeout=99ms", code: 32, original: 55}, // 2.45 takes this for 99 seconds
		{line: pg + "backup --archive-timeout=1500ms"}, {line: pg + "backup --archive-timeout=1h"},
		{line: pg + "backup --type=foo", code: 32}, {line: pg + "backup --type=diff"}, {line: info + "--type=diff"}, {line: info + "--type=time", code: 32}, {line: pg + "restore --type=foo", code: 32},
		{line: pg + "backup --backup-standby"}, {line: pg + "backup --no-backup-standby"}, {line: pg + "backup --backup-standby=y"},
		{line: pg + "restore --archive-mode=on", code: 32}, {line: info + "--output=json"}, {line: info + "--output=none", code: 32}, {line: "--no-config --stanza=x verify --output=json", code: 32},
		{line: pg + "restore --tablespace-map=x", code: 31}, {line: pg + "restore --tablespace-map=x=/y --tablespace-map=z=/z"}, {line: pg + "restore --recovery-option=a=b"},
		// What needs what.
		{line: pg + "restore --target=x", code: 31}, {line: pg + "restore --type=time", code: 37}, {line: pg + "restore --type=time --target=@", code: 32}, {line: pg + "restore --type=xid --target=12"},
		{line: pg + "restore --type=name --target=a --target-exclusive", code: 31}, {line: pg + "restore --type=lsn --target=0/1 --target-exclusive --target-action=promote"},
		{line: pg + "restore --target-timeline=2"}, {line: pg + "restore --type=immediate --target-timeline=2", code: 31}, {line: pg + "restore --type=preserve --recovery-option=a=b", code: 31},
		{line: pg + "backup --repo1-bundle-size=1MiB", code: 31}, {line: pg + "backup --repo1-bundle --repo1-bundle-size=8MiB"}, {line: pg + "backup --repo1-bundle --repo1-hardlink", code: 31},
		{line: pg + "backup --force", code: 31}, {line: pg + "backup --no-online --force"}, {line: pg + "backup --no-online --archive-copy", code: 31}, {line: pg + "backup --archive-copy"},
		{line: pg + "backup --no-online --no-archive-check", code: 31}, {line: pg + "--repo1-s3-bucket=b backup", code: 31}, {line: pg + "--repo1-type=s3 backup", code: 37},
		{line: info + "--set=20200101-000000F --repo1-path=/nonexistent"}, {line: "--no-config info --set=20200101-000000F", code: 31}, {line: pg + "backup --pg2-port=5433", code: 37},
		{line: info + "--repo=1"}, {line: info + "--repo=2", code: 32}, {line: info + "--repo=257", code: 32}, {line: info + "--repo1-path=/a --repo2-path=/b --repo=2"},
		{line: pg + "archive-push --spool-path=/x a", code: 31}, {line: info + "--delta", code: 31}, {line: "--no-config --stanza=x expire --db-timeout=9", code: 31},
		{line: pg + "stanza-create --repo=1", code: 31}, {line: pg + "check --repo=1", code: 31}, {line: "--no-config --stanza=x start --repo=1", code: 31},
		// The environment.
		{line: info, env: "PGBACKREST_FOO=1"}, {line: info, env: "PGBACKREST_REPO1_PATH=", code: 32}, {line: info, env: "PGBACKREST_DELTA=x"}, {line: info, env: "PGBACKREST_NO_DELTA=x"},
		{line: info, env: "PGBACKREST_LOG_TIMESTAMP=x", code: 32}, {line: info, env: "PGBACKREST_REPO_PATH=/r"}, {line: info, env: "PGBACKREST_PG_PATH=/r", code: 31}, {line: info, env: "PGBACKREST_TARGET=t"},
		{line: "--no-config check", env: "PGBACKREST_STANZA=x PGBACKREST_PG1_PATH=/nx"}, {line: info, env: "PGBACKREST_SET=20200101-000000F"}, {line: info, env: "PGBACKREST_TYPE=banana", code: 32},
		{line: "--stanza=x info", env: "PGBACKREST_CONFIG=/nonexistent", code: 55}, {line: "--stanza=x --no-config --pg1-path=/nx restore", env: "PGBACKREST_DB_INCLUDE=a:b"},
		// Files.
		{line: "--stanza=x info", conf: "[global]\nrepo1-path=/r\nfoo=1\n"}, {line: "--stanza=x info", conf: "[global]\nrepo1-path=/r\nrepo1-path=/b\n", code: 31},
		{line: "--stanza=x info", conf: "[global]\nrepo1-path=/r\nrepo-path=/b\n", code: 31}, {line: "--stanza=x info", conf: "[global]\nrepo1-path=\n", code: 32},
		{line: "--stanza=x info", conf: "[global]\nrepo1-path\n", code: 29}, {line: "--stanza=x info", conf: "repo1-path=/a\n", code: 29}, {line: "--stanza=x info", conf: "[global\nrepo1-path=/a\n", code: 29},
		{line: "--stanza=x info", conf: "[global]\n =x\n", code: 29}, {line: "--stanza=x info", conf: "[global]\n  repo1-path = /r  \n# c\n  # c\n"}, {line: "--stanza=x info", conf: "[global]\n; c\n", code: 29},
		{line: "--stanza=x info", conf: "[]\n", code: 29}, {line: "--stanza=x info", conf: "[a] b\n", code: 29}, {line: "--stanza=x info", conf: ""}, {line: "--stanza=x info", conf: "[global]\r\nrepo1-path=/r\r\n"},
		{line: "--stanza=x info", conf: "[global]\nno-delta=y\nreset-delta=y\ndelta=x\n"}, {line: "--stanza=x info", conf: "[global]\ntarget=x\ndry-run=y\npg1-path=/x\nstanza=y\n"},
		{line: "--stanza=x info", conf: "[global:info]\ndelta=y\n[x]\nrepo1-path=/r\n"}, {line: "--stanza=x info", conf: "[global]\nlog-level-console=banana\n", code: 32},
		{line: "--stanza=x info", conf: "[global]\nlog-timestamp=yes\n", code: 32}, {line: "--stanza=x info", conf: "[global]\nlog-timestamp=n\n[global]\nlog-level-file=off\n"},
		{line: "--stanza=x restore", conf: "[x]\npg1-path=/nx\ndb-include=a\ndb-include=b\n"}, {line: "--stanza=x restore", conf: "[global]\npg1-path=/nx\n", code: 37},
		{line: "--stanza=x expire", conf: "[global]\nrepo1-retention-full=x\n", code: 32}, {line: "--stanza=x expire", conf: "[x:expire]\nrepo1-retention-full=0\n", code: 32},
		{line: "--stanza=x expire --repo1-retention-full=1", conf: "[global]\nrepo1-retention-full=x\n"}, {line: "--stanza=x backup", conf: "[x]\npg1-path=/nx\nrepo1-bundle-size=1MiB\n"},
		{line: "--stanza=x backup --reset-pg1-path", conf: "[x]\npg1-path=/nx\n", code: 37}, {line: "--stanza=x info", conf: "[global]\npg-path=/x\n", code: 31}, {line: "--stanza=x info", conf: "[global]\nrepo1=x\n"},
		{line: "--config-include-path=/nonexistent --stanza=x info", code: 73}, {line: "--config=/etc --stanza=x info", code: 42}, {line: "--config=relative --stanza=x info", code: 55},
	}
	dir := t.TempDir()
	for _, c := range cases {
		args := strings.Fields(c.line)
		for i, a := range args {
			args[i] = strings.Replace(a, "@", "", 1)
		}
		if c.conf != "" {
			name := filepath.Join(dir, "c.conf")
			if err := os.WriteFile(name, []byte(c.conf), 0o600); err != nil {
				t.Fatal(err)
			}
			args = append([]string{"--config=" + name}, args...)
		}
		env := strings.Fields(c.env)
		code, text := ours(args, env)
		if code != c.code {
			t.Errorf("%s %q %s: code %d (%s), want %d", c.line, c.conf, c.env, code, text, c.code)
		}
		cmd := exec.Command(program, args...)
		cmd.Env = append(env, "PGBACKREST_LOCK_PATH="+dir, "PGBACKREST_LOG_LEVEL_FILE=off") // the environment is weaker than the rest
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		var exit *exec.ExitError
		if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		theirs, want := cmd.ProcessState.ExitCode(), c.code
		if c.original != 0 {
			want = c.original
		}
		if got := theirs; got != want && (want != 0 || reading[got]) && !(c.original == 139 && got == -1) {
			t.Errorf("%s %q %s: pgbackrest says %d, want %d\n%s", c.line, c.conf, c.env, got, want, &out)
		}
	}
	t.Logf("%d command lines", len(cases))
}
