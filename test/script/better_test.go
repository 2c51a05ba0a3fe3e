package script

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// originally runs Debian's pgbackrest and returns what it said, whatever its exit code.
func (r *rig) originally(args string) said {
	r.t.Helper()
	return r.program("/usr/bin/pgbackrest", append([]string{"--config=" + r.conf}, strings.Fields(args)...)...)
}

// TestBetterThanTheOriginal holds what docs/coming-from-pgbackrest.md says about both programs, on one damaged repository.
func TestBetterThanTheOriginal(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\ncompress-type=none\nlog-level-console=warn")
	r.run("--stanza=demo stanza-create")
	r.insert("a")
	label := r.backup("")
	segment := r.switchWAL("b")
	r.archive()
	objects, err := filepath.Glob(filepath.Join(r.dir, "repo/archive/demo/15-1/*/"+segment+"-*"))
	if err != nil || len(objects) != 1 {
		t.Fatal(objects, err)
	}
	whole, err := os.ReadFile(objects[0])
	if err != nil {
		t.Fatal(err)
	}
	damaged := append([]byte(nil), whole...)
	damaged[len(damaged)/2] ^= 1
	write := func(b []byte) {
		t.Helper()
		if err := os.WriteFile(objects[0], b, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	write(damaged)
	// A damaged segment is not delivered; the original delivers it.
	dest := filepath.Join(r.dir, "delivered")
	has(t, r.want(26, "--stanza=demo archive-get "+segment+" "+dest), "ERROR: [026]", "SHA-1")
	if exists(dest) {
		t.Error("a damaged segment was delivered")
	}
	if s := r.originally("--stanza=demo archive-get " + segment + " " + dest); s.code != 0 || !exists(dest) {
		t.Errorf("the original no longer delivers a damaged segment: %+v", s)
	}
	// A script sees what verify finds.
	has(t, r.want(103, "--stanza=demo verify"), segment, "ERROR: [103]: 1 finding(s)")
	if s := r.originally("--stanza=demo verify"); s.code != 0 {
		t.Errorf("the original's verify has an exit code now: %+v", s)
	}
	// A segment that is not there is a gap.
	if err := os.Remove(objects[0]); err != nil {
		t.Fatal(err)
	}
	has(t, r.want(103, "--stanza=demo verify"), "gap: ")
	write(whole)
	r.run("--stanza=demo verify")
	// Wrong path, missing stanza, wrong passphrase: three messages.
	has(t, r.want(55, "--stanza=demo --repo1-path="+r.dir+"/nowhere verify"), "there is no repository yet where the path says")
	missing := r.want(55, "--stanza=other verify")
	has(t, missing, "stanza does not exist in this repository")
	hasNot(t, missing, "where the path says")
	// Both info files of backups are lost: stanza-create says what to do, and it helps.
	for _, name := range []string{"backup.info", "backup.info.copy"} {
		if err := os.Remove(filepath.Join(r.dir, "repo/backup/demo", name)); err != nil {
			t.Fatal(err)
		}
	}
	t.Log(r.program(r.name, "--config="+r.conf, "--stanza=demo", "stanza-create"))
	_ = label
}

// TestBlocksAndTheOriginal: 2.45 can't read block incremental, and says nothing of it before a restore.
func TestBlocksAndTheOriginal(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-bundle=y\ncompress-type=zst\nlog-level-console=warn")
	r.run("--stanza=demo stanza-create")
	r.insert("a")
	r.backup("--repo1-block")
	r.archive()
	t.Log(r.originally("--stanza=demo info"))
	t.Log(r.originally("--stanza=demo verify"))
	r.lose()
	t.Log(r.originally("--stanza=demo restore"))
}
