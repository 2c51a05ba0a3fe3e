package repo

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// fixturePass is the repository pass of the encrypted fixtures (their pgbackrest.conf).
const fixturePass = Secret("fixture-pass")

// fixtureDir finds shared/fixtures beside the project's root, walking up from the test's directory.
func fixtureDir(t testing.TB) string {
	t.Helper()
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		found := filepath.Join(dir, "shared", "fixtures")
		if _, err := os.Stat(found); err == nil {
			return found
		}
		if dir == filepath.Dir(dir) {
			t.Fatalf("repositories of the real pgbackrest are expected in shared/fixtures beside the project's root, above %s", wd)
		}
	}
}

// fixture is one of them in memory.
type fixture struct {
	name  string
	pass  Secret
	files map[string][]byte // without repo/
}

func fixtures(t *testing.T) []fixture {
	t.Helper()
	tars, err := filepath.Glob(filepath.Join(fixtureDir(t), "*", "repo.tar"))
	if err != nil || len(tars) == 0 {
		t.Fatalf("no */repo.tar in %s (%v)", fixtureDir(t), err)
	}
	var list []fixture
	for _, name := range tars {
		f := fixture{name: filepath.Base(filepath.Dir(name)), files: readTar(t, name)}
		if strings.Contains(f.name, "aes") {
			f.pass = fixturePass
		}
		list = append(list, f)
	}
	return list
}

// text gives the original bytes of a stored info file.
func (f fixture) text(t *testing.T, name string, spec StreamSpec) []byte {
	t.Helper()
	stored, ok := f.files[name]
	if !ok {
		t.Fatalf("%s: no %s", f.name, name)
	}
	var out bytes.Buffer
	if _, err := Decode(&out, bytes.NewReader(stored), spec); err != nil {
		t.Fatalf("%s: %s: %v", f.name, name, err)
	}
	return out.Bytes()
}

func same(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	g, w := strings.Split(string(got), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Fatalf("%s: line %d:\n got %s\nwant %s", what, i+1, g[i], w[i])
		}
	}
	t.Fatalf("%s: %d lines, want %d", what, len(g), len(w))
}

// TestFixtureRoundTrip: everything that the real pgbackrest wrote comes back byte for byte, and each line of backup.info
// follows from its manifest.
func TestFixtureRoundTrip(t *testing.T) {
	for _, f := range fixtures(t) {
		t.Run(f.name, func(t *testing.T) {
			spec := StreamSpec{Compress: None, Pass: f.pass}
			manifests := 0
			var info *BackupInfo
			for _, suffix := range []string{"", ".copy"} {
				text := f.text(t, "archive/demo/archive.info"+suffix, spec)
				archive, err := ParseArchiveInfo(text)
				if err != nil {
					t.Fatal(err)
				}
				encoded, err := archive.Encode()
				if err != nil {
					t.Fatal(err)
				}
				same(t, "archive.info", encoded, text)
				text = f.text(t, "backup/demo/backup.info"+suffix, spec)
				if info, err = ParseBackupInfo(text); err != nil {
					t.Fatal(err)
				}
				if encoded, err = info.Encode(); err != nil {
					t.Fatal(err)
				}
				same(t, "backup.info", encoded, text)
				if archive.DB().SystemID != info.DB().SystemID || archive.DB().SystemID == 0 {
					t.Fatal("archive.info and backup.info disagree")
				}
			}
			if len(info.Backups) != 3 {
				t.Fatalf("%d backups listed", len(info.Backups))
			}
			for _, line := range info.Backups {
				for _, name := range []string{ManifestPath("demo", line.Label), ManifestPath("demo", line.Label) + ".copy",
					HistoryManifestPath("demo", line.Label)} {
					spec := StreamSpec{Compress: None, Pass: info.CipherPass}
					if strings.HasSuffix(name, ".gz") {
						spec.Compress = GZ
					}
					f.manifest(t, name, f.text(t, name, spec), line)
					manifests++
				}
			}
			if manifests != 9 {
				t.Fatalf("%d manifests seen", manifests)
			}
		})
	}
}

func (f fixture) manifest(t *testing.T, name string, text []byte, line BackupLine) {
	t.Helper()
	m, err := ParseManifest(text)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	encoded, err := m.Encode()
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	same(t, name, encoded, text)
	if err := m.ValidateComplete(); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	got := m.BackupLine()
	if !reflect.DeepEqual(got, line) {
		t.Errorf("%s: line from the manifest\n got %s\nwant %s", name, got.append(nil), line.append(nil))
	}
	for i := range m.Files {
		file := &m.Files[i]
		if file.Size == 0 {
			continue
		}
		object, offset, length, _ := m.Object("demo", file)
		stored, ok := f.files[object]
		if !ok || offset+length > int64(len(stored)) {
			t.Errorf("%s: %s should be in %s at %d+%d: object has %d bytes", name, file.Name, object, offset, length, len(stored))
		}
	}
}

// TestFixtureFiles reads every plainly stored file through Object.
func TestFixtureFiles(t *testing.T) {
	for _, f := range fixtures(t) {
		info, err := ParseBackupInfo(f.text(t, "backup/demo/backup.info", StreamSpec{Compress: None, Pass: f.pass}))
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		for _, line := range info.Backups {
			m, err := ParseManifest(f.text(t, ManifestPath("demo", line.Label), StreamSpec{Compress: None, Pass: info.CipherPass}))
			if err != nil {
				t.Fatal(err)
			}
			for i := range m.Files {
				file := &m.Files[i]
				if file.Size == 0 || file.BlockMapSize > 0 || file.Reference != "" {
					continue
				}
				object, offset, length, spec := m.Object("demo", file)
				var out bytes.Buffer
				sums, err := Decode(&out, bytes.NewReader(f.files[object][offset:offset+length]), spec)
				if err != nil || sums.SHA1 != file.SHA1 || sums.Size != file.Size {
					t.Fatalf("%s: %s %s: %v, %+v", f.name, line.Label, file.Name, err, sums)
				}
				if file.RepoSHA1 != "" && sums.RepoSHA1 != file.RepoSHA1 {
					t.Fatalf("%s: %s %s: stored bytes differ from rck", f.name, line.Label, file.Name)
				}
				read++
			}
		}
		if read < 10 {
			t.Errorf("%s: only %d files read", f.name, read)
		}
	}
}
