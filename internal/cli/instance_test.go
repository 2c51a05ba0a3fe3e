package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/catalog"
)

func document(t *testing.T, got said, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(got.out), v); err != nil {
		t.Fatalf("%v in: %s%s", err, got.out, got.errs)
	}
}

// TestInstanceAsJSON: init, status, version and give-back are documents with --json.
func TestInstanceAsJSON(t *testing.T) {
	r := newRig(t)
	var version struct{ Program, Version string }
	document(t, bare(t, "", "holdfast", "version", "--json"), &version)
	if version.Program != "Holdfast" || version.Version != Version {
		t.Errorf("version: %+v", version)
	}
	exe := filepath.Join(filepath.Dir(r.root), "program")
	env, out, errs := bareEnv(strings.NewReader(""), "holdfast", "init", filepath.Join(filepath.Dir(r.root), "data"), filepath.Join(filepath.Dir(r.root), "backup"), "--root", r.root, "--json")
	env.Exe = exe
	var made struct {
		Instance, ID, Root string
		New                bool
		Kept               []string
	}
	code := Main(t.Context(), env)
	document(t, said{out.String(), errs.String(), code}, &made)
	if made.Instance != r.root || made.ID != r.in.ID() || made.New || made.Kept == nil {
		t.Errorf("init: %+v", made)
	}
	var gave map[string]bool
	document(t, r.run("holdfast", "restore", "--give-back", "--json"), &gave)
	if done, there := gave["given_back"]; done || !there {
		t.Errorf("give-back: %v", gave)
	}
	type status struct {
		Instance, ID, Root, User string
		DataDisk                 struct{ Path, Disk string } `json:"data_disk"`
		BackupDisk               struct {
			Attached bool
			Problem  string
		} `json:"backup_disk"`
		Newest *catalog.Set `json:"newest_set"`
	}
	var s status
	document(t, r.run("holdfast", "status", "--json"), &s)
	if s.Instance != r.root || s.ID != r.in.ID() || s.Root != r.root || s.User != r.in.User() || s.Newest != nil || !s.BackupDisk.Attached ||
		s.DataDisk.Path != filepath.Join(r.root, "data1") || s.DataDisk.Disk != filepath.Join(filepath.Dir(r.root), "data") {
		t.Errorf("status: %+v", s)
	}
	const id = "202611231800_10-0-0-1"
	r.put(someSet(id))
	document(t, r.run("holdfast", "status", "--json"), &s)
	if s.Newest == nil || s.Newest.ID != id {
		t.Errorf("newest set: %+v", s.Newest)
	}
	// With a disk away there is no catalogue to look at; what is known is shown all the same.
	backup := filepath.Join(filepath.Dir(r.root), "backup")
	if err := os.Rename(backup, backup+".away"); err != nil {
		t.Fatal(err)
	}
	s = status{}
	got := r.run("holdfast", "status", "--json")
	got.has(t, exitWarnings)
	document(t, got, &s)
	if s.BackupDisk.Attached || !strings.Contains(s.BackupDisk.Problem, "is the disk mounted?") || s.Newest != nil || s.Instance != r.root {
		t.Errorf("status without the backup disk: %+v", s)
	}
	r.run("holdfast", "status").has(t, exitWarnings, "instance "+r.root, "warning: backup disk: nothing of this instance at", "etc/init.d/alation start")
}
