package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// stoppedCluster is the data directory of a cluster that is not running: enough for offline backups.
func stoppedCluster(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	control, err := os.ReadFile("../pg/testdata/control-15")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{"PG_VERSION": "15\n", "global/pg_control": string(control) + strings.Repeat("\x00", 8192-len(control)), "base/1/PG_VERSION": "15\n",
		"base/1/1259": strings.Repeat("\x00", 5*8192), "pg_wal/archive_status/x": ""} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
		old := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestKeepingARepository goes through the verbs that keep a repository in order, on offline backups of a stopped cluster.
func TestKeepingARepository(t *testing.T) {
	data, repoDir, locks := stoppedCluster(t), filepath.Join(t.TempDir(), "repo"), t.TempDir()
	pass := filepath.Join(t.TempDir(), "pass")
	if err := os.WriteFile(pass, []byte("a passphrase\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	clock := time.Date(2026, 11, 24, 3, 0, 0, 0, time.UTC)
	pg := func(verb string, words ...string) said {
		t.Helper()
		clock = clock.Add(time.Minute)
		argv := []string{"holdfast", "pg", verb}
		if !strings.HasPrefix(verb, "repo-") {
			argv = append(argv, "--stanza=s", "--lock-path="+locks)
		}
		if verb != "stop" && verb != "start" {
			argv = append(argv, "--repo1-path="+repoDir)
			if verb != "repo-ls" {
				argv = append(argv, "--repo1-cipher-pass-file="+pass)
			}
		}
		env, out, errs := bareEnv(strings.NewReader(""), append(argv, words...)...)
		env.Now = func() time.Time { return clock }
		code := Main(t.Context(), env)
		return said{out.String(), errs.String(), code}
	}
	pg("stanza-create", "--pg1-path="+data).has(t, 0, "created")
	for range 3 {
		pg("backup", "--pg1-path="+data, "--no-online", "--type=full", "--repo1-bundle").has(t, 0, "backup 20261124-")
	}
	incr := pg("backup", "--pg1-path="+data, "--no-online", "--type=incr", "--repo1-bundle")
	incr.has(t, 0, "_20261124-")
	label := regexp.MustCompile(`\S+I`).FindString(incr.out)

	pg("annotate", "--set="+label, "--annotation=why=before the upgrade").has(t, 0)
	pg("annotate", "--set="+label).has(t, exitUsage, "at least one --annotation")
	pg("info", "--set="+label).has(t, 0, "why: before the upgrade")
	pg("verify").has(t, 0, "valid", "0 finding(s)")

	pg("expire").has(t, exitUsage, "nothing says what may go")
	pg("expire", "--repo1-retention-full=2", "--dry-run").has(t, 0, "would remove backup 20261124-0302", "1 backup(s)")
	listing := pg("repo-ls", "backup/s")
	if n := strings.Count(listing.out, "F"); n != 4 {
		t.Errorf("after a dry run there are %d backups:\n%s", n, listing.out)
	}
	pg("expire", "--repo1-retention-full=2").has(t, 0, "removed backup 20261124-0302")
	var plan struct{ Backups []struct{ Label string } }
	out := pg("expire", "--repo1-retention-full=1", "--dry-run", "--json")
	if err := json.Unmarshal([]byte(out.out), &plan); err != nil || len(plan.Backups) != 1 {
		t.Errorf("plan %v %v\n%s", plan, err, out.out)
	}
	pg("verify").has(t, 0, "0 finding(s)")

	pg("repo-get", "backup/s/backup.info").has(t, 0, "[backup:current]", label)
	if raw := pg("repo-get", "backup/s/backup.info", "--raw"); !strings.HasPrefix(raw.out, "Salted__") {
		t.Errorf("--raw gives %.20q", raw.out)
	}
	pg("repo-ls", "archive/s", "--filter=^archive", "--recurse").has(t, 0, "archive.info")
	pg("repo-ls", "--filter=(").has(t, exitUsage, "--filter")

	pg("stanza-delete", "--pg1-path="+data).has(t, exitFailed, "run: holdfast pg stop")
	pg("stop").has(t, 0)
	pg("backup", "--pg1-path="+data, "--no-online").has(t, 5, "stopped by the operator")
	pg("stanza-delete", "--pg1-path="+data).has(t, 0)
	pg("start").has(t, 0, "nothing was stopped") // stanza-delete took the stop file with it
	pg("stanza-create", "--pg1-path="+data, "--rebuild").has(t, exitFailed, "encrypted")
}
