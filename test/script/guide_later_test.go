package script

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dry is what a dry run of expire would remove, in order, without what only one program says of it.
func dry(out string) (list []string) {
	for _, line := range strings.Split(out, "\n") {
		for _, of := range []string{"expire full backup ", "expire diff backup ", "expire incr backup ", "expire backup ", "remove expired backup ", "remove archive, "} {
			if _, what, ok := strings.Cut(line, of); ok {
				list = append(list, what)
			}
		}
	}
	return list
}

// TestArchiveRetention: WAL older than the differential backup that asks for continuous WAL goes, but what the older backups
// need to be consistent stays; the original decides the same.
func TestArchiveRetention(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-retention-diff=2\ncompress-type=none")
	r.run("--stanza=demo stanza-create")
	full := r.backup("--type=full")
	var between []string
	for _, row := range []string{"a", "b"} {
		between = append(between, r.switchWAL(row))
	}
	first := r.backup("--type=diff")
	between = append(between, r.switchWAL("c"), r.switchWAL("d"))
	second := r.backup("--type=diff")
	after := r.switchWAL("e")
	r.archive()
	const narrow = "--stanza=demo --log-level-console=detail --repo1-retention-archive-type=diff --repo1-retention-archive=1 "
	before := r.run("--recurse --filter=[0-9A-F]{24} repo-ls archive/demo")
	has(t, before, append(between, after)...)
	if ours, theirs := dry(r.run(narrow+"--dry-run expire")), dry(r.original(narrow+"--dry-run expire")); len(ours) == 0 || strings.Join(ours, "\n") != strings.Join(theirs, "\n") {
		t.Errorf("%q, the original %q", ours, theirs)
	}
	if now := r.run("--recurse --filter=[0-9A-F]{24} repo-ls archive/demo"); now != before {
		t.Errorf("a dry run removed something:\n%s\n%s", before, now)
	}
	has(t, r.run(narrow+"expire"), "remove archive")
	left := r.run("--recurse --filter=[0-9A-F]{24} repo-ls archive/demo")
	hasNot(t, left, between...)
	has(t, left, after)
	for _, label := range []string{full, first, second} {
		info := r.run("--stanza=demo --set=" + label + " info")
		_, wal, _ := strings.Cut(info, "wal start/stop: ")
		for _, segment := range strings.Split(strings.SplitN(wal, "\n", 2)[0], " / ") {
			has(t, left, segment)
		}
	}
	r.run("--stanza=demo verify")
	// Each of them is consistent; only from the newest on every moment can be reached.
	r.lose()
	r.run("--stanza=demo --set=" + full + " --type=immediate --target-action=promote --recovery-option=archive_mode=off restore")
	r.start()
	r.lose()
	r.run("--stanza=demo restore")
	r.start()
	if got := r.rows(); got != "a b c d e" {
		t.Error(got)
	}
}

// TestTimelines: after a restore to a point the cluster goes on in a new timeline. target-timeline=current stays in that of the
// backup, the default follows the newest, and a number names one.
func TestTimelines(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2")
	r.run("--stanza=demo stanza-create")
	r.insert("a")
	label := r.backup("--type=full")
	r.c.Exec(t, "select pg_create_restore_point('fork')")
	r.insert("b") // only in the first timeline
	r.archive()
	r.lose()
	r.run("--stanza=demo --type=name --target=fork --target-action=promote restore")
	r.start()
	r.insert("c") // only in the second
	r.archive()
	r.lose()
	for _, c := range []struct{ timeline, want string }{{"--target-timeline=current", "a b"}, {"", "a c"}, {"--target-timeline=2", "a c"}, {"--target-timeline=0x1", "a b"}} {
		r.run("--stanza=demo --set=" + label + " --recovery-option=archive_mode=off " + c.timeline + " restore")
		auto, err := os.ReadFile(filepath.Join(r.c.DataDir(), "postgresql.auto.conf"))
		if err != nil {
			t.Fatal(err)
		}
		if _, value, given := strings.Cut(c.timeline, "="); given {
			has(t, string(auto), "recovery_target_timeline = '"+value+"'")
		} else {
			hasNot(t, string(auto), "recovery_target_timeline")
		}
		r.start()
		if got := r.rows(); got != c.want {
			t.Errorf("%q: %s, want %s", c.timeline, got, c.want)
		}
		r.lose()
	}
	has(t, r.run("--stanza=demo --output=json info"), `"label":"`+label+`"`)
}
