package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/test/stores"
	"holdfast/test/tally"
)

// cloudRepos are the lines of a configuration file for a repository on a store that pgbackrest 2.45 knows, too; without SFTP,
// which it learnt in 2.46.
var cloudRepos = map[string]func(t *testing.T) string{
	"azure": func(t *testing.T) string {
		s := stores.Azure(t)
		return fmt.Sprintf("repo1-type=azure\nrepo1-azure-account=%s\nrepo1-azure-container=%s\nrepo1-azure-key=%s\nrepo1-storage-host=localhost\nrepo1-storage-port=%d\nrepo1-storage-ca-file=%s\n",
			stores.Account, stores.Container, s.Key, s.Port, s.CAFile)
	},
	"gcs": func(t *testing.T) string {
		s := stores.GCS(t)
		return fmt.Sprintf("repo1-type=gcs\nrepo1-gcs-bucket=%s\nrepo1-gcs-key-type=token\nrepo1-gcs-key=planted-token\nrepo1-gcs-endpoint=localhost:%d\nrepo1-storage-ca-file=%s\n", stores.Bucket, s.Port, s.CAFile)
	},
}

// TestCloudRepositoriesAreShared: with one configuration file, the real pgbackrest and our program under its name keep a repository
// on Azure and on Google Cloud Storage in turn: one takes the full backup while the other archives, then the other way round for
// the one built on it. Both tell the same of it, find nothing wrong, and restore it alike.
func TestCloudRepositoriesAreShared(t *testing.T) {
	for kind, lines := range cloudRepos {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, 15, "zst")
			r.encrypted, r.bundled, r.repo = true, true, "/repo"
			r.configure("zst")
			text, err := os.ReadFile(r.conf)
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(err)
			must(os.WriteFile(r.conf, []byte(strings.Replace(string(text), "[global]\n", "[global]\nprocess-max=2\n"+lines(t), 1)), 0o644))
			ours, theirs := filepath.Join(r.dir, "ours", "pgbackrest"), "pgbackrest"
			must(os.Mkdir(filepath.Dir(ours), 0o755))
			must(os.Symlink(r.bin, ours))
			do := func(program string, words ...string) string {
				t.Helper()
				return r.run(program, append([]string{"--config=" + r.conf, "--stanza=" + stanza}, words...)...)
			}
			one, other := ours, theirs
			if kind == "gcs" {
				one, other = theirs, ours
			}
			r.c.Exec(t, "create table big as select g as id, md5(g::text) as h from generate_series(1, 20000) g")
			do(one, "stanza-create")
			for i, b := range []struct{ typ, by, wal string }{{"full", one, other}, {"incr", other, one}} {
				r.archiveWith(fmt.Sprintf("%s --config=%s --stanza=%s archive-push %%p", b.wal, r.conf, stanza))
				r.c.Exec(t, fmt.Sprintf("create table t%d as select * from big where id %% 7 = %d", i, i))
				do(b.by, "--type="+b.typ, "--repo1-retention-full=1", "backup")
			}
			do(theirs, "check")
			do(ours, "check")
			if a, b := do(theirs, "info", "--output=json"), do(ours, "info", "--output=json"); strings.TrimSpace(a) != strings.TrimSpace(b) {
				t.Errorf("info JSON\npgbackrest %s\nholdfast   %s", a, b)
			}
			do(ours, "verify")
			if out := do(theirs, "--log-level-console=info", "verify"); strings.Contains(out, "ERROR") || strings.Contains(out, "WARN") || strings.Contains(out, "invalid") || strings.Contains(out, "missing") {
				t.Errorf("pgbackrest verify:\n%s", out)
			}
			a, b := r.dirFor("by-us"), r.dirFor("by-them")
			do(ours, "--pg1-path="+a, "--type=none", "restore")
			do(theirs, "--pg1-path="+b, "--type=none", "restore")
			r.sameTrees(r.tree(a), r.tree(b))
			tally.Count(t, "chains on cloud stores that both programs made and restore alike", 1)
		})
	}
}
