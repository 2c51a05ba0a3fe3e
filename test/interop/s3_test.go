package interop

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"holdfast/internal/pg/pgtest"
	"holdfast/test/stores"
	"holdfast/test/tally"
)

// s3Case is a repository in a bucket: on what server, how it is written, and which program makes what.
type s3Case struct {
	server, compress         string
	aes, bundle              bool
	full, diff, inc, archive string // "ours" or "theirs"
}

var s3Cases = []s3Case{
	{"versitygw", "lz4", false, false, "ours", "theirs", "ours", "theirs"},
	{"minio", "zst", true, true, "theirs", "ours", "theirs", "ours"},
}

// s3Rig is a rig whose repository is in a bucket. Both programs are called pgbackrest and have the same configuration file.
type s3Rig struct {
	*rig
	compress string
}

// configure names the bucket instead of a directory, as pgBackRest's user guide has it for S3.
func (r *s3Rig) configure(server *stores.S3, bucket string, c s3Case) {
	r.t.Helper()
	r.rig.configure(c.compress)
	b, err := os.ReadFile(r.conf)
	if err != nil {
		r.t.Fatal(err)
	}
	more := []string{"[global]", "repo1-type=s3", "repo1-s3-bucket=" + bucket, "repo1-s3-region=" + server.Region, "repo1-s3-endpoint=localhost", "repo1-s3-uri-style=path",
		"repo1-storage-port=" + strconv.Itoa(server.Port), "repo1-storage-ca-file=" + server.CA.File, "repo1-s3-key=" + server.Key, "repo1-s3-key-secret=" + server.Secret, "process-max=2"}
	text := strings.Replace(string(b), "[global]\n", strings.Join(more, "\n")+"\n", 1)
	text = strings.Replace(text, "repo1-path="+r.repo, "repo1-path=/an/own/path", 1)
	if err := os.Remove(r.conf); err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(r.conf, []byte(text), 0o640); err != nil {
		r.t.Fatal(err)
	}
	if cred := postgres(r.t); cred != nil {
		if err := os.Chown(r.conf, int(cred.Uid), int(cred.Gid)); err != nil {
			r.t.Fatal(err)
		}
	}
}

// command is one of the programs with the file.
func (r *s3Rig) program(by string) string {
	if by == "theirs" {
		return "pgbackrest"
	}
	return r.dropIn()
}

// do runs one of the programs; the verb comes last.
func (r *s3Rig) do(by string, args ...string) string {
	r.t.Helper()
	return r.run(r.program(by), append([]string{"--config=" + r.conf, "--stanza=" + stanza}, args...)...)
}

// archived says whose archive_command the server has.
func (r *s3Rig) archived(by string) {
	r.t.Helper()
	r.archiveWith(fmt.Sprintf("%s --config=%s --stanza=%s archive-push %%p", r.program(by), r.conf, stanza))
}

// labels are the backups as the original lists them.
func (r *s3Rig) labels() []string {
	r.t.Helper()
	var all []struct {
		Backup []struct{ Label string }
	}
	if err := json.Unmarshal([]byte(r.do("theirs", "--output=json", "info")), &all); err != nil || len(all) != 1 {
		r.t.Fatalf("info: %v, %d stanzas", err, len(all))
	}
	var labels []string
	for _, b := range all[0].Backup {
		labels = append(labels, b.Label)
	}
	return labels
}

// agree: both find nothing wrong and say the same.
func (r *s3Rig) agree() {
	r.t.Helper()
	for _, form := range []string{"--output=json", "--output=text"} {
		if theirs, ours := r.do("theirs", form, "info"), r.do("ours", form, "info"); strings.TrimSpace(theirs) != strings.TrimSpace(ours) {
			r.t.Errorf("info %s\ntheirs %s\nours   %s", form, theirs, ours)
		}
	}
	for _, by := range []string{"theirs", "ours"} {
		if out := r.do(by, "--log-level-console=info", "verify"); strings.Contains(out, "ERROR") || strings.Contains(out, "WARN") || strings.Contains(out, "invalid") || strings.Contains(out, "missing") {
			r.t.Errorf("verify by %s:\n%s", by, out)
		}
	}
}

// restored are the files of one backup as one of the programs restores it.
func (r *s3Rig) restored(by, label string, more ...string) map[string]string {
	r.t.Helper()
	dir, spaces := r.dirFor(by+label), r.dirFor(by+"s"+label)
	r.do(by, append([]string{"--set=" + label, "--pg1-path=" + dir, "--tablespace-map-all=" + spaces, "--type=none", "--log-level-console=warn", "restore"}, more...)...)
	files := r.tree(dir, spaces)
	for _, d := range []string{dir, spaces} {
		if err := os.RemoveAll(d); err != nil {
			r.t.Fatal(err)
		}
	}
	return files
}

// recovers restores the newest backup with one of the programs and replays all WAL, which the same program fetches.
func (r *s3Rig) recovers(by string, rows int64) {
	r.t.Helper()
	dir, spaces := r.dirFor("end-"+by), r.dirFor("end-spaces-"+by)
	r.do(by, "--pg1-path="+dir, "--tablespace-map-all="+spaces, "--archive-mode=off", "--log-level-console=warn", "restore")
	conf, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf"))
	if err != nil || !strings.Contains(string(conf), "archive-get") {
		r.t.Fatalf("%v\n%s", err, conf)
	}
	if n := queryInt(r.t, r.start(dir), "select count(*) from big"); n != rows {
		r.t.Errorf("restored by %s, big has %d rows, not %d", by, n, rows)
	}
}

// TestS3 has both programs write one repository in a bucket in turn, over TLS with an authority of our own, and from one and the
// same configuration file: each verifies, lists, restores and recovers what the other wrote, and builds its next incremental on it.
func TestS3(t *testing.T) {
	restored := 0
	for _, c := range s3Cases {
		t.Run(fmt.Sprintf("%s %s aes=%t bundle=%t full %s", c.server, c.compress, c.aes, c.bundle, c.full), func(t *testing.T) {
			server := stores.StartS3(t, c.server)
			r := &s3Rig{newRigFor(t, pgtest.Options{Checksums: true, WALSegMB: 16}, c.compress), c.compress}
			r.encrypted, r.bundled = c.aes, c.bundle
			r.configure(server, server.Bucket(t), c)
			r.do(c.full, "stanza-create")
			r.archived(c.archive)
			r.c.Exec(t, "alter system set autovacuum = off", "alter system set bgwriter_lru_maxpages = 0", "select pg_reload_conf()")
			r.fill()
			for _, b := range []struct{ typ, by, change string }{
				{"full", c.full, "update big set pad = 'diff' where id % 1000 = 0"},
				{"diff", c.diff, "create table later as select * from big where id < 2000"},
				{"incr", c.inc, "drop table later; truncate empty_t; delete from big where id % 5000 = 1"},
			} {
				r.do(b.by, "--type="+b.typ, "--log-level-console=error", "backup")
				r.c.Exec(t, append(strings.Split(b.change, ";"), "checkpoint")...)
			}
			for _, by := range []string{"theirs", "ours"} {
				r.do(by, "--type=incr", "--log-level-console=error", "backup")
			}
			r.do("ours", "check")
			r.do("theirs", "check") // from here on no WAL is on its way
			r.agree()
			labels := r.labels()
			if len(labels) != 5 {
				t.Errorf("the backups are %v", labels)
			}
			for i, label := range labels {
				if !c.bundle && i%2 == 1 {
					continue // a request for each file takes its time
				}
				r.sameTrees(r.restored("ours", label), r.restored("theirs", label))
				restored++
			}
			r.recovers("ours", 30000-6)
			r.recovers("theirs", 30000-6)
			// Either lets go what the other wrote.
			other := map[string]string{"ours": "theirs", "theirs": "ours"}[c.full]
			r.do(c.full, "--type=full", "--log-level-console=error", "backup")
			r.do(other, "--repo1-retention-full=1", "--log-level-console=warn", "expire")
			r.agree()
			if labels := r.labels(); len(labels) != 1 {
				t.Errorf("after expire by %s there are the backups %v", other, labels)
			}
		})
	}
	tally.Count(t, "backups in a bucket that both programs restore alike", restored)
}
