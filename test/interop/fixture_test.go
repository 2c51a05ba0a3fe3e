package interop

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// fixture unpacks one of the repositories that the real pgbackrest wrote.
func fixture(t *testing.T, name string) (dir, repoDir string) {
	t.Helper()
	at, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; at != "/"; at = filepath.Dir(at) {
		dir = filepath.Join(at, "shared/fixtures", name)
		if _, err := os.Stat(dir); err == nil {
			break
		}
	}
	tmp := t.TempDir()
	if out, err := exec.Command("tar", "xf", filepath.Join(dir, "repo.tar"), "-C", tmp).CombinedOutput(); err != nil {
		t.Fatalf("the fixtures are expected beside the project, at ../shared/fixtures: %v %s", err, out)
	}
	return dir, filepath.Join(tmp, "repo")
}

// TestFixtures restores every backup of the repositories without block incrementals, file for file.
func TestFixtures(t *testing.T) {
	for name, pass := range map[string]repo.Secret{"v245-gz-pg15": "", "v245-lz4-bundle-aes-pg15": "conf"} {
		t.Run(name, func(t *testing.T) {
			dir, repoDir := fixture(t, name)
			if pass != "" {
				pass = passOf(t, filepath.Join(dir, "pgbackrest.conf"))
			}
			st, err := storage.NewPosix(repoDir, storage.PosixOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s, err := engine.New(engine.Options{Stanza: "demo", Storage: st, Pass: pass})
			if err != nil {
				t.Fatal(err)
			}
			sameInfo(t, s, filepath.Join(dir, "info.json"))
			res, err := s.Verify(t.Context(), engine.VerifyOptions{ProcessMax: 2})
			if err != nil || len(res.Findings) > 0 {
				t.Errorf("verify: %v %v", err, res)
			}
			if len(res.Backups) != 3 {
				t.Errorf("%d backups", len(res.Backups))
			}
			for _, label := range res.Backups {
				restoreFixture(t, s, label, filepath.Join(dir, "expected-"+string(label)+".sha256"))
			}
		})
	}
}

func passOf(t *testing.T, conf string) repo.Secret {
	t.Helper()
	b, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "repo1-cipher-pass="); ok {
			return repo.Secret(v)
		}
	}
	t.Fatal("no passphrase in " + conf)
	return ""
}

// sameInfo compares our info with the real one's, value by value; the passphrase of the set is in neither.
func sameInfo(t *testing.T, s *engine.Stanza, want string) {
	t.Helper()
	info, err := s.Info(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	ours, err := json.Marshal([]any{info})
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.ReadFile(want)
	if err != nil {
		t.Fatal(err)
	}
	var a, b any
	if err := json.Unmarshal(ours, &a); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(theirs, &b); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("info\nholdfast   %s\npgbackrest %s", ours, theirs)
	}
}

func restoreFixture(t *testing.T, s *engine.Stanza, label repo.Label, expected string) {
	t.Helper()
	target := filepath.Join(t.TempDir(), "data")
	spaces := filepath.Join(t.TempDir(), "spaces")
	plan, err := s.PlanRestore(context.Background(), engine.RestoreOptions{Set: label, DataDir: target, TablespaceMapAll: spaces, Type: engine.TargetNone, ProcessMax: 2})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := plan.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(expected)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n := 0
	for sc := bufio.NewScanner(f); sc.Scan(); {
		sum, name, _ := strings.Cut(sc.Text(), "  ")
		name = strings.TrimPrefix(name, "./")
		// recovery.signal: 2.45 leaves an empty one; pg_control: ours has an unusable checkpoint on purpose.
		if name == "recovery.signal" || name == "global/pg_control" {
			continue
		}
		file := filepath.Join(target, name)
		if rest, ok := strings.CutPrefix(name, "TS/"); ok {
			file = filepath.Join(spaces, rest)
		}
		if got := hashFile(t, file); got != sum {
			t.Errorf("%s: %s: SHA-256 %s, expected %s", label, name, got, sum)
		}
		n++
	}
	if n < 500 {
		t.Errorf("%s: only %d files compared", label, n)
	}
}

func hashFile(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Error(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
