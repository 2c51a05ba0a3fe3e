package interop

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
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

// fixtures are the repositories that the real pgbackrest wrote; "conf" stands for the passphrase in pgbackrest.conf.
var fixtures = []struct {
	name string
	pass repo.Secret
}{
	{"v245-gz-pg15", ""},
	{"v245-lz4-bundle-aes-pg15", "conf"},
	{"v2591-zst-bundle-block-pg15", ""},
	{"v2591-zst-bundle-block-aes-pg18", "conf"},
}

// TestFixtures restores every backup of every repository, file for file: to an empty directory, and with --delta over what
// was restored from the backup before, forwards and back.
func TestFixtures(t *testing.T) {
	for _, fix := range fixtures {
		t.Run(fix.name, func(t *testing.T) {
			dir, repoDir := fixture(t, fix.name)
			if fix.pass != "" {
				fix.pass = passOf(t, filepath.Join(dir, "pgbackrest.conf"))
			}
			st, err := storage.NewPosix(repoDir, storage.PosixOptions{})
			if err != nil {
				t.Fatal(err)
			}
			s, err := engine.New(engine.Options{Stanza: "demo", Storage: st, Pass: fix.pass})
			if err != nil {
				t.Fatal(err)
			}
			labels := sameInfo(t, s, filepath.Join(dir, "info.json"))
			res, err := s.Verify(t.Context(), engine.VerifyOptions{ProcessMax: 2})
			if err != nil || len(res.Findings) > 0 {
				t.Errorf("verify: %v %v", err, res)
			}
			if len(labels) != 3 {
				t.Fatalf("backups %v", labels)
			}
			expected := func(l repo.Label) string { return filepath.Join(dir, "expected-"+string(l)+".sha256") }
			for _, l := range labels {
				restoreFixture(t, s, engine.RestoreOptions{Set: l, DataDir: filepath.Join(t.TempDir(), "data")}, expected(l))
			}
			again := filepath.Join(t.TempDir(), "data")
			for i, l := range []repo.Label{labels[0], labels[1], labels[2], labels[0], labels[2], labels[2]} {
				res := restoreFixture(t, s, engine.RestoreOptions{Set: l, DataDir: again, Delta: i > 0, Force: i == 5}, expected(l))
				if i > 0 && res.Kept < 500 {
					t.Errorf("%s: delta restore kept only %d of %d files", l, res.Kept, res.Files)
				}
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

// sameInfo compares our info with the real one's, value by value, and returns the backups' labels. The passphrase of the
// set is in neither; the restore lock, which only new versions report, is left out.
func sameInfo(t *testing.T, s *engine.Stanza, want string) (labels []repo.Label) {
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
	for _, v := range []any{a, b} {
		for _, stanza := range v.([]any) {
			delete(stanza.(map[string]any)["status"].(map[string]any)["lock"].(map[string]any), "restore")
		}
	}
	if !reflect.DeepEqual(a, b) {
		t.Errorf("info\nholdfast   %s\npgbackrest %s", ours, theirs)
	}
	for _, backup := range b.([]any)[0].(map[string]any)["backup"].([]any) {
		labels = append(labels, repo.Label(backup.(map[string]any)["label"].(string)))
	}
	return labels
}

// restoreFixture restores and compares every file with its SHA-256; nothing else may be there.
func restoreFixture(t *testing.T, s *engine.Stanza, o engine.RestoreOptions, expected string) *engine.RestoreResult {
	t.Helper()
	spaces := o.DataDir + "-spaces"
	o.TablespaceMapAll, o.Type, o.NoneRecovers, o.ProcessMax = spaces, engine.TargetNone, true, 2
	plan, err := s.PlanRestore(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	res, err := plan.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// pg_control: ours has an unusable checkpoint on purpose, which 2.45 did not yet do.
	f, err := os.Open(expected)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := map[string]string{}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		sum, name, _ := strings.Cut(sc.Text(), "  ")
		name = strings.TrimPrefix(name, "./")
		file := filepath.Join(o.DataDir, name)
		if rest, ok := strings.CutPrefix(name, "TS/"); ok {
			file = filepath.Join(spaces, rest)
		}
		want[file] = sum
	}
	if len(want) < 500 {
		t.Errorf("%s: only %d files expected", o.Set, len(want))
	}
	control := ""
	if strings.Contains(expected, "/v245-") {
		control = filepath.Join(o.DataDir, "global/pg_control")
	}
	for _, dir := range []string{o.DataDir, spaces} {
		if err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			sum, ok := want[file]
			delete(want, file)
			if !ok {
				t.Errorf("%s: %s is not expected", o.Set, file)
			} else if got := hashFile(t, file); got != sum && file != control {
				t.Errorf("%s: %s: SHA-256 %s, expected %s", o.Set, file, got, sum)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	}
	for file := range want {
		t.Errorf("%s: %s is missing", o.Set, file)
	}
	return res
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
