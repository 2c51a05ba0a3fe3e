package engine_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// fixturesDir finds shared/fixtures beside the project's root, walking up from the test's directory.
func fixturesDir(t testing.TB) string {
	t.Helper()
	wd, err := os.Getwd()
	must(t, err)
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

// fixture loads one into memory.
func fixture(t testing.TB, name string) (*storage.Mem, repo.Secret) {
	t.Helper()
	f, err := os.Open(filepath.Join(fixturesDir(t), name, "repo.tar"))
	must(t, err)
	defer f.Close() // only read
	m := storage.NewMem(nil)
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		must(t, err)
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(tr)
		must(t, err)
		must(t, storage.WriteAll(t.Context(), m, strings.TrimPrefix(h.Name, "repo/"), b))
	}
	if strings.Contains(name, "aes") {
		return m, "fixture-pass"
	}
	return m, ""
}

// info is what the commands print: JSON and text.
func info(t testing.TB, o engine.Options, set repo.Label) (asJSON, asText string) {
	t.Helper()
	s, err := engine.New(o)
	must(t, err)
	i, err := s.Info(t.Context(), set)
	must(t, err)
	var j, text bytes.Buffer
	enc := json.NewEncoder(&j)
	enc.SetEscapeHTML(false)
	must(t, enc.Encode([]*engine.StanzaInfo{i}))
	must(t, engine.WriteInfo(&text, []*engine.StanzaInfo{i}, time.UTC))
	return strings.TrimSpace(j.String()), text.String()
}

// TestInfoFixtures compares with what the real pgbackrest said of its own repositories: info.json lies with the fixture,
// testdata/info-*.txt is what its 2.45 printed for the list and then for each backup with --set.
func TestInfoFixtures(t *testing.T) {
	for _, name := range []string{"v245-gz-pg15", "v245-lz4-bundle-aes-pg15", "v2591-zst-bundle-block-pg15", "v2591-zst-bundle-block-aes-pg18"} {
		m, pass := fixture(t, name)
		o := engine.Options{Stanza: "demo", Storage: m, Pass: pass}
		got, text := info(t, o, "")
		want, err := os.ReadFile(filepath.Join(fixturesDir(t), name, "info.json"))
		must(t, err)
		// 2.59 also tells of a lock that 2.45, whose output ours is, does not have.
		plain := strings.ReplaceAll(strings.TrimSpace(string(want)), `,"restore":{"held":false}`, "")
		if got != plain {
			t.Errorf("%s:\n%s\npgbackrest:\n%s", name, got, plain)
		}
		golden, err := os.ReadFile(filepath.Join("testdata", "info-"+name+".txt"))
		if os.IsNotExist(err) && strings.HasPrefix(name, "v2591") {
			continue
		}
		must(t, err)
		bi, err := repo.LoadBackupInfo(t.Context(), m, "demo", pass)
		must(t, err)
		for _, l := range bi.Backups {
			_, one := info(t, o, l.Label)
			text += one
		}
		if text != string(golden) {
			t.Errorf("%s: text\n%s\npgbackrest:\n%s", name, text, golden)
		}
	}
}

// TestInfoStates asks pgbackrest itself about repositories of ours in every state that a stanza can be in.
func TestInfoStates(t *testing.T) {
	if testing.Short() {
		t.Skip("needs Debian's pgbackrest; run make test")
	}
	r := newRig(t, 15)
	space := filepath.Join(scratch(t), "fast")
	r.server.write(t, filepath.Join(space, "PG_15_202209061/16384/30000"), "in a tablespace")
	link(t, space, filepath.Join(r.server.dir, "pg_tblspc/24576"))
	r.server.spaces = []pg.Tablespace{{OID: 24576, Name: "fast", Path: space}}
	logs := filepath.Join(scratch(t), "logs")
	r.server.write(t, filepath.Join(logs, "today"), "hello")
	link(t, logs, filepath.Join(r.server.dir, "log"))
	dir := filepath.Join(scratch(t), "repo")
	st := posix(t, dir)
	var last repo.Label
	upgrade := func(ctx context.Context, v pg.Version) *rig {
		next := newRig(t, v)
		_, err := next.stanza(st).Upgrade(ctx, next.control)
		must(t, err)
		return next
	}
	for _, step := range []struct {
		state string
		reach func(ctx context.Context)
		sets  []repo.Label
	}{
		{"nothing there", func(context.Context) {}, nil},
		{"missing stanza data", func(context.Context) {
			mkdir(t, filepath.Join(dir, "backup/demo"))
			mkdir(t, filepath.Join(dir, "archive/demo/15-1"))
		}, nil},
		{"no backup", func(ctx context.Context) {
			must(t, os.RemoveAll(filepath.Join(dir, "archive")))
			must(t, r.create(ctx, st))
		}, nil},
		{"only WAL", func(context.Context) {
			file, err := r.server.segment("00000001000000000000001F")
			must(t, err)
			_, err = r.push(st, file, repo.GZ)
			must(t, err)
		}, nil},
		{"one backup", func(ctx context.Context) {
			res, err := r.backupWith(ctx, st, st, engine.BackupOptions{Compress: repo.GZ, Annotations: map[string]string{"why": "a <test> & more", "also": "Ü"}})
			must(t, err)
			last = res.Label
		}, []repo.Label{"last", "20200101-000000F"}},
		{"a backup with bad pages", func(ctx context.Context) {
			r.server.checksums = 1
			must(t, r.server.checkpoint())
			page, err := os.ReadFile(filepath.Join("..", "pg", "testdata", "page-0"))
			must(t, err)
			page[5000] ^= 1
			r.server.write(t, "base/16384/40000", string(page))
			res, err := r.backupWith(ctx, st, st, engine.BackupOptions{Compress: repo.LZ4})
			must(t, err)
			last = res.Label
		}, []repo.Label{"last"}},
		{"upgraded", func(ctx context.Context) { upgrade(ctx, 16) }, []repo.Label{"last"}},
		{"upgraded and archiving", func(ctx context.Context) {
			next := upgrade(ctx, 17)
			file, err := next.server.segment(segmentA)
			must(t, err)
			_, err = next.push(st, file, repo.GZ)
			must(t, err)
		}, []repo.Label{"last"}},
		{"backups of two clusters", func(ctx context.Context) {
			next := upgrade(ctx, 18)
			next.server.clock = next.server.clock.Add(24 * time.Hour)
			_, err := next.backup(ctx, st, st)
			must(t, err)
		}, []repo.Label{"last"}},
	} {
		step.reach(t.Context())
		for _, set := range append([]repo.Label{""}, step.sets...) {
			if set == "last" {
				set = last
			}
			gotJSON, gotText := info(t, engine.Options{Stanza: "demo", Storage: st, Pass: r.pass}, set)
			for output, got := range map[string]string{"json": gotJSON, "text": gotText} {
				args := []string{"--config=/dev/null", "--stanza=demo", "--repo1-path=" + dir, "--repo1-cipher-type=aes-256-cbc", "--log-level-file=off", "--lock-path=" + scratch(t), "--output=" + output}
				if set != "" {
					args = append(args, "--set="+string(set))
				}
				cmd := exec.CommandContext(t.Context(), "pgbackrest", append(args, "info")...)
				cmd.Env = []string{"PATH=/usr/bin:/bin", "TZ=UTC", "PGBACKREST_REPO1_CIPHER_PASS=" + string(r.pass)}
				want, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v: %v: %s", cmd.Args, err, want)
				}
				if strings.TrimSpace(got) != strings.TrimSpace(string(want)) {
					t.Errorf("%s, set %q, %s:\n%s\npgbackrest:\n%s", step.state, set, output, got, want)
				}
			}
		}
	}
}

// TestInfoSize: sizes as pgbackrest prints them.
func TestInfoSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1KB", 1536: "1.5KB", 32487264: "31.0MB", 32528224: "31MB", 1 << 30: "1GB", 5<<30 + 1<<29: "5.5GB", 1 << 41: "2048GB"} {
		if got := engine.Size(n); got != want {
			t.Errorf("Size(%d) = %s, want %s", n, got, want)
		}
	}
}

// TestInfoHeldLock: a running backup shows.
func TestInfoHeldLock(t *testing.T) {
	locks := scratch(t)
	m := storage.NewMem(nil)
	r := newRig(t, 15)
	must(t, r.create(t.Context(), m))
	o := engine.Options{Stanza: "demo", Storage: m, Pass: r.pass, LockDir: locks, ExecID: "77-0123abcd"}
	for _, held := range []bool{true, false} {
		if held {
			content, err := (repo.LockContent{ExecID: "88-0123abcd", PID: os.Getpid()}).Encode()
			must(t, err)
			l, err := repo.AcquireLock(locks, "demo", "backup", 1, content)
			must(t, err)
			defer func() { must(t, l.Release()) }()
			asJSON, text := info(t, o, "")
			if !strings.Contains(asJSON, `"lock":{"backup":{"held":true}}`) || !strings.Contains(text, "no valid backups") {
				t.Errorf("lock held: %s\n%s", asJSON, text)
			}
			continue
		}
		other := o
		other.LockDir = scratch(t)
		if asJSON, _ := info(t, other, ""); !strings.Contains(asJSON, `"held":false`) {
			t.Errorf("no lock: %s", asJSON)
		}
	}
}
