package action

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/durable"
)

// TestReach: what PostgreSQL's user can't use of a repository is named with the command that mends it; what it does not need,
// what is not there and what archive_command never touches is not asked for. An ordinary user asks for himself, root for another.
func TestReach(t *testing.T) {
	dir, err := os.MkdirTemp("", "reach-") // a t.TempDir lets no other user through
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534
	}
	repo, data := filepath.Join(dir, "it's a repo"), filepath.Join(dir, "data")
	a := New(Options{RepoDir: repo, ServerOwner: &durable.Owner{UID: uid, GID: uid}})
	c := Cluster{Stanza: "s", DataDir: data}
	ids := filepath.Join(repo, "archive/s")
	wal := filepath.Join(ids, "15-10/0000000100000000")
	for _, d := range []string{filepath.Join(ids, "15-9/0000000100000009"), filepath.Join(ids, "15-10/00000000FFFFFFFF"), wal, data} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{filepath.Join(ids, "archive.info"), filepath.Join(wal, "000000010000000000000001-ab.zst"), filepath.Join(ids, "15-9/old")} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	owned := []string{dir, data, filepath.Join(ids, "15-10"), wal}
	for _, d := range owned {
		if err := os.Chown(d, uid, -1); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := a.checkReach(t.Context(), c); err != nil {
		t.Errorf("all is well: %v", err)
	}
	for path, want := range map[string]string{
		repo: "cannot enter " + repo, ids: "cannot enter " + ids, wal: "cannot write into " + wal, filepath.Join(ids, "15-10"): "cannot write into ",
		filepath.Join(ids, "archive.info"): "cannot read ", filepath.Join(wal, "000000010000000000000001-ab.zst"): "cannot read ",
		filepath.Join(ids, "15-9"): "", filepath.Join(ids, "15-9/old"): "", filepath.Join(ids, "15-10/00000000FFFFFFFF"): "",
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0)
		if strings.HasPrefix(want, "cannot write") {
			mode = 0o555
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		err = a.checkReach(t.Context(), c)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s does not matter, but: %v", path, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) || !strings.HasSuffix(err.Error(), shellWord(path))):
			t.Errorf("%s: %v, want %q and a command", path, err, want)
		}
		if err := os.Chmod(path, info.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
	a.o.RepoDir = filepath.Join(dir, "none")
	if err := a.checkReach(t.Context(), c); err != nil {
		t.Errorf("no repository yet: %v", err)
	}
	if got := shellWord("it's"); got != `'it'\''s'` {
		t.Errorf("shellWord: %s", got)
	}
}
