package whole

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"holdfast/test/world"
)

// hostLine is what the source document has an operator type on the host.
const hostLine = "sudo /etc/init.d/alation shell"

// shell runs lines in the Alation shell of the instance, entered from the host by the printed line: root sees the instance's
// init script at /etc/init.d in a mount namespace of the test's own. An ordinary user enters by the script where it is.
func shell(t *testing.T, w *world.World, lines ...string) string {
	t.Helper()
	script := filepath.Join(w.Root, "etc/init.d")
	typed := strings.Join(append(lines, "exit"), "\n") + "\n"
	cmd := exec.CommandContext(t.Context(), filepath.Join(script, "alation"), "shell")
	if os.Geteuid() == 0 {
		const enter = `mount --bind "$1" /etc/init.d && { command -v sudo >/dev/null || { sudo() { "$@"; }; export -f sudo; }; } && exec bash`
		cmd = exec.CommandContext(t.Context(), "bash", "-c", enter, "bash", script)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		typed = hostLine + "\n" + typed + "exit\n"
	}
	out, err := world.Run(cmd, typed)
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
	// Exclude the Postgres backup. The directory is to be made in the root first; where the instance's user may not, the way is shown.
	exclude := []string{"alation_conf alation.backup_v2.pgbackup_compression -s False", "alation_conf pgsql.pgbackrest.repo_dir_name -s path/to/directory"}
	if os.Geteuid() == 0 {
		got := shell(t, w, append(exclude, "alation_action enable_backupv2 || true")...)
		m := regexp.MustCompile(`run as root: (install .*)`).FindStringSubmatch(got)
		if m == nil {
			t.Fatalf("no command that makes the directory in:\n%s", got)
		}
		if out, err := exec.CommandContext(t.Context(), "sh", "-c", m[1]).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v %s", m[1], err, out)
		}
	}
	started, err := w.Text(t.Context(), "select pg_postmaster_start_time()::text")
	must(t, err)
	expect(shell(t, w, append(exclude, "alation_action enable_backupv2", "alation_action backup_all")...),
		"alation.backup_v2.pgbackup_compression = False", "pgsql.pgbackrest.repo_dir_name = path/to/directory", "arrived in the archive", "path/to/directory")
	if now, err := w.Text(t.Context(), "select pg_postmaster_start_time()::text"); err != nil || now != started {
		t.Errorf("no restart is required, but the server started at %s and then at %s %v", started, now, err)
	}
	threeBackups(t, w)
	// Amazon S3: the parameters are kept; the secrets are never printed. Copying is another issue's.
	got := shell(t, w, "alation_conf pgsql.pgbackrest.redundancy.enabled -s True", "alation_conf pgsql.pgbackrest.redundancy.type -s s3", "alation_conf pgsql.pgbackrest.redundancy.s3.endpoint -s",
		"alation_conf pgsql.pgbackrest.redundancy.s3.bucket -s my-bucket", "alation_conf pgsql.pgbackrest.redundancy.s3.region -s eu-central-1",
		"alation_conf pgsql.pgbackrest.redundancy.s3.key -s PLANTEDKEY", "alation_conf pgsql.pgbackrest.redundancy.s3.secret -s PLANTEDSECRET")
	expect(got, "redundancy.enabled = True", "redundancy.s3.endpoint = \n", "redundancy.s3.bucket = my-bucket", "redundancy.s3.key = ******", "redundancy.s3.secret = ******")
	shell(t, w, "alation_conf pgsql.pgbackrest.redundancy.enabled -s False", "alation_action backup_all")
	plantedNowhere(t, w, got)
	// Location of pgBackRest logs.
	expect(shell(t, w, "cat var/lib/pgsql/15/backup.log"), "backup: start", "backup: stop")
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

// threeBackups: the newest set is two tarballs, the first without PostgreSQL, and a repository in the directory that was named.
func threeBackups(t *testing.T, w *world.World) {
	t.Helper()
	all := sets(t, w)
	paths := map[string]string{}
	for _, p := range all[len(all)-1].Pieces {
		paths[p.Kind] = p.Path
	}
	if !strings.HasSuffix(paths["application"], "_alation_backup.tar.gz") || !strings.HasSuffix(paths["eventbus"], "_alation_eb_backup.tar.gz") || paths["postgres"] != filepath.Join(w.Root, "path/to/directory") {
		t.Fatalf("the pieces are %v", paths)
	}
	list, err := exec.CommandContext(t.Context(), "tar", "tzf", paths["application"]).Output()
	if err != nil || strings.Contains(string(list), "pgbackrest/") || !strings.Contains(string(list), "files/") {
		t.Errorf("the application's tarball: %v\n%s", err, list)
	}
	if _, err := os.Stat(filepath.Join(w.Root, "path/to/directory/backup", world.Stanza, "backup.info")); err != nil {
		t.Error(err)
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
