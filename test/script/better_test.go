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
		if err := os.WriteFile(objects[0], b, 0o644); err != nil {
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
	for _, args := range []string{"--repo1-path=" + r.dir + "/nowhere --stanza=demo verify", "--stanza=other verify"} {
		if s := r.originally(args); s.code != 0 || s.errs != "" {
			t.Errorf("the original says something of %s now: %+v", args, s)
		}
	}
	// Lost info files are written anew from the manifests and the WAL.
	for _, name := range []string{"backup.info", "backup.info.copy"} {
		if err := os.Remove(filepath.Join(r.dir, "repo/backup/demo", name)); err != nil {
			t.Fatal(err)
		}
	}
	has(t, r.want(55, "--stanza=demo stanza-create"), "run: holdfast pg stanza-create --rebuild --stanza=demo")
	holdfast, err := built()
	if err != nil {
		t.Fatal(err)
	}
	if s := r.program(holdfast, "pg", "stanza-create", "--rebuild", "--stanza=demo", "--repo1-path="+r.dir+"/repo", "--lock-path="+r.dir+"/lock", "--pg1-path="+r.c.DataDir()); s.code != 0 && s.code != 3 {
		t.Errorf("%+v", s)
	}
	has(t, r.run("--stanza=demo info"), label)
	has(t, r.originally("--stanza=demo info").out, label)
	r.run("--stanza=demo verify")
}

// TestBlocksAndTheOriginal: 2.45 can't restore block incremental. It says so neither in info nor in verify, which is why
// repo-block is only for those whose pgbackrest is 2.46 or later.
func TestBlocksAndTheOriginal(t *testing.T) {
	r := newRig(t, "repo1-retention-full=2\nrepo1-bundle=y\ncompress-type=zst\nlog-level-console=warn")
	r.run("--stanza=demo stanza-create")
	r.insert("a")
	r.backup("--repo1-block")
	r.archive()
	for _, command := range []string{"info", "verify"} {
		if s := r.originally("--stanza=demo " + command); s.code != 0 {
			t.Errorf("%s: %+v", command, s)
		}
	}
	r.lose()
	if s := r.originally("--stanza=demo --job-retry=0 restore"); s.code != 29 {
		t.Errorf("the original restores blocks: %+v", s)
	}
	r.run("--stanza=demo --delta restore") // on what that left
	r.start()
	if got := r.rows(); got != "a" {
		t.Error(got)
	}
}
