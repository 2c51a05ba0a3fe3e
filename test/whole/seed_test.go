package whole

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/world"
)

// shell runs lines in the Alation shell of the instance, entered by its own init script, as an operator would type them.
func shell(t *testing.T, w *world.World, lines ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.Root, "etc/init.d/alation"), "shell")
	out, err := world.Run(cmd, strings.Join(append(lines, "exit"), "\n")+"\n")
	if err != nil {
		t.Fatal(err)
	}
	return out.Stdout + out.Stderr
}

// TestSeed types every command line of the source document that belongs to backups on the host, as printed there.
func TestSeed(t *testing.T) {
	w := newWorld(t, false)
	expect := func(got string, want ...string) {
		t.Helper()
		for _, s := range want {
			if !strings.Contains(got, s) {
				t.Errorf("want %q in:\n%s", s, got)
			}
		}
	}
	// Check if pgBackRest is in use.
	expect(shell(t, w, "alation_conf alation.feature_flags.enable_pgbackrest"), "alation.feature_flags.enable_pgbackrest = True")
	// Enable pgBackRest.
	expect(shell(t, w, "alation_conf alation.feature_flags.enable_pgbackrest -s True", "alation_action enable_backupv2", "alation_conf snapshot.enabled -s False", "alation_conf snapshot.enabled"),
		"alation.feature_flags.enable_pgbackrest = True", "arrived in the archive", "snapshot.enabled = False")
	// The default: inside the tarball.
	expect(shell(t, w, "alation_conf alation.backup_v2.pgbackup_compression", "alation_action backup_all"), "alation.backup_v2.pgbackup_compression = True", "_alation_backup.tar.gz", "_alation_eb_backup.tar.gz")
	// Exclude the Postgres backup.
	expect(shell(t, w, "alation_conf alation.backup_v2.pgbackup_compression -s False", "alation_conf pgsql.pgbackrest.repo_dir_name -s data2/pgbackrest/other", "alation_action enable_backupv2", "alation_action backup_all"),
		"alation.backup_v2.pgbackup_compression = False", "pgsql.pgbackrest.repo_dir_name = data2/pgbackrest/other", "arrived in the archive", "data2/pgbackrest/other")
	if _, err := os.Stat(filepath.Join(w.Root, "data2/pgbackrest/other/backup", world.Stanza, "backup.info")); err != nil {
		t.Error(err)
	}
	// Amazon S3: the parameters are kept; the secrets are never printed. Copying is another issue's.
	got := shell(t, w, "alation_conf pgsql.pgbackrest.redundancy.enabled -s True", "alation_conf pgsql.pgbackrest.redundancy.type -s s3", "alation_conf pgsql.pgbackrest.redundancy.s3.endpoint -s",
		"alation_conf pgsql.pgbackrest.redundancy.s3.bucket -s my-bucket", "alation_conf pgsql.pgbackrest.redundancy.s3.region -s eu-central-1",
		"alation_conf pgsql.pgbackrest.redundancy.s3.key -s PLANTEDKEY", "alation_conf pgsql.pgbackrest.redundancy.s3.secret -s PLANTEDSECRET")
	expect(got, "redundancy.enabled = True", "redundancy.s3.endpoint = \n", "redundancy.s3.bucket = my-bucket", "redundancy.s3.key = ******", "redundancy.s3.secret = ******")
	shell(t, w, "alation_conf pgsql.pgbackrest.redundancy.enabled -s False", "alation_action backup_all")
	plantedNowhere(t, w, got)
	// The cron line's own part: a login shell's -c.
	out, err := w.Holdfast(t.Context(), "shell", "-c", "alation_action backup_all")
	if err != nil {
		t.Fatal(err)
	}
	expect(out.Stdout, "complete")
	if n := len(sets(t, w)); n != 4 {
		t.Errorf("%d sets, not 4", n)
	}
}

// plantedNowhere looks for the planted secrets in everything that was printed and in every file outside tarballs.
func plantedNowhere(t *testing.T, w *world.World, printed string) {
	t.Helper()
	if strings.Contains(printed, "PLANTED") {
		t.Errorf("a secret was printed:\n%s", printed)
	}
	out, err := exec.Command("grep", "-rlE", "PLANTED(KEY|SECRET)", "--exclude-dir=pg_wal", w.Root+"/", filepath.Join(w.Dir, "backup")).CombinedOutput()
	if len(out) > 0 {
		t.Errorf("a planted secret stands in clear in:\n%s", out)
	}
	if err == nil {
		t.Error("grep found something")
	}
}
