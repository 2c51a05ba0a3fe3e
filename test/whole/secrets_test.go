package whole

import (
	"bytes"
	"context"
	"encoding/base64"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"holdfast/test/world"
)

// planted are the secrets of an instance; none may be seen anywhere.
var planted = map[string]string{
	"eventbus.security.sasl_password":       "PLANTED-sasl-0f3a77",
	"pgsql.pgbackrest.redundancy.s3.key":    "PLANTED-s3key-51be20",
	"pgsql.pgbackrest.redundancy.s3.secret": "PLANTED-s3secret-9c04d1",
}

// shows says which secrets stand in b, in clear or in base64.
func shows(b []byte) []string { return showsOf(planted, b) }

func showsOf(planted map[string]string, b []byte) []string {
	var found []string
	for key, secret := range planted {
		coded := strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(secret)), "=")
		if bytes.Contains(b, []byte(secret)) || bytes.Contains(b, []byte(coded[:len(coded)-1])) {
			found = append(found, key)
		}
	}
	return found
}

// watchCommandLines looks at the command lines of all processes until ctx ends. It returns those that show a secret, and how
// many it saw that are the program's.
func watchCommandLines(ctx context.Context, planted map[string]string) (bad []string, ours int) {
	for ; ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			return []string{err.Error()}, 0
		}
		for _, l := range lines {
			b, err := os.ReadFile(l)
			if err != nil {
				continue // it has ended
			}
			if found := showsOf(planted, b); len(found) > 0 {
				bad = append(bad, string(bytes.ReplaceAll(b, []byte{0}, []byte{' '})))
			}
			if bytes.Contains(b, []byte("backup_all")) || bytes.Contains(b, []byte("archive-push")) {
				ours++
			}
		}
	}
	return bad, ours
}

// noSecretBelow reads every file below dir.
func noSecretBelow(t *testing.T, dir string) (files int) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if found := shows(b); len(found) > 0 {
			t.Errorf("%s shows %v", path, found)
		}
		files++
		return err
	}))
	return files
}

// closedBelow looks at the modes of what Holdfast keeps in a directory: the world must be able to read none of it.
func closedBelow(t *testing.T, dirs ...string) (files int) {
	t.Helper()
	for _, dir := range dirs {
		must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			if d.Type()&fs.ModeSymlink == 0 && info.Mode().Perm()&0o006 != 0 {
				t.Errorf("%s: %s", path, info.Mode())
			}
			if strings.HasSuffix(path, ".tar.gz") && info.Mode() != 0o600 {
				t.Errorf("%s: %s", path, info.Mode())
			}
			if info.Mode().IsRegular() {
				files++
			}
			return nil
		}))
	}
	return files
}

// TestSecrets: a configured secret is on no command line, in no output, log, tarball or setting of PostgreSQL, and what
// Holdfast writes is closed to the world, also while it works.
func TestSecrets(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) { secrets(t, apart) })
	}
}

func secrets(t *testing.T, apart bool) {
	w := newWorld(t, apart)
	var printed strings.Builder
	for key, secret := range planted {
		printed.WriteString(ok(t, w, "alation_conf", key, "-s", secret))
	}
	printed.WriteString(ok(t, w, "alation_conf", "eventbus.security.sasl_user", "-s", "somebody"))
	own := []string{w.Dump, w.Repo, filepath.Join(w.Root, "data2/holdfast"), filepath.Join(w.Root, "data2/tmp")}
	ctx, stop := context.WithCancel(t.Context())
	type seen struct {
		bad  []string
		ours int
	}
	watched := make(chan seen, 1)
	go func() {
		bad, ours := watchCommandLines(ctx, planted)
		watched <- seen{bad, ours}
	}()
	run := func(p *world.Paused) {
		t.Helper()
		locks, err := filepath.Glob(filepath.Join(w.Root, "var/lib/holdfast/lock/*"))
		must(t, err)
		if n := closedBelow(t, append(locks, own...)...); n == 0 {
			t.Error("there was nothing to look at")
		}
		noSecretBelow(t, w.Dir)
		out, err := p.Resume()
		must(t, err)
		printed.WriteString(out.Stdout + out.Stderr)
	}
	run(paused(t, w, "backup_all:eventbus", "alation_action", "backup_all"))
	all := sets(t, w)
	s := all[len(all)-1]
	printed.WriteString(ok(t, w, "holdfast", "sets", "show", s.ID))
	run(paused(t, w, "restore:recover", "holdfast", "restore", "--set", s.ID, "--yes"))
	// A login that the broker refuses is the error that is likeliest to show its password.
	ok(t, w, "alation_conf", "eventbus.security.protocol", "-s", "sasl_plaintext")
	out, err := w.As(t.Context(), "alation_action", "", "backup_all")
	failed(t, out, err, 1, "event bus")
	printed.WriteString(out.Stdout + out.Stderr)
	stop()
	res := <-watched
	if len(res.bad) > 0 || res.ours == 0 {
		t.Errorf("of %d command lines, these show a secret: %q", res.ours, res.bad)
	}
	if found := shows([]byte(printed.String())); len(found) > 0 || printed.Len() < 500 {
		t.Errorf("secrets %v in the output:\n%s", found, printed.String())
	}
	settings, err := w.Text(t.Context(), "select string_agg(setting, ' ') from pg_settings")
	must(t, err)
	if found := shows([]byte(settings)); len(found) > 0 {
		t.Errorf("PostgreSQL's settings show %v", found)
	}
	closedBelow(t, own...)
	bundle := filepath.Join(w.Dir, "unpacked", "support")
	must(t, os.MkdirAll(bundle, 0o755))
	must(t, os.Chmod(bundle, 0o777)) // whoever the commands run as
	if out := ok(t, w, "holdfast", "support-bundle", "-o", bundle+"/b.tar.gz"); !strings.Contains(out, "logs/alation_backup.log") || len(shows([]byte(out))) > 0 {
		t.Error(out)
	}
	if out, err := exec.Command("tar", "xzf", bundle+"/b.tar.gz", "-C", bundle).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	for _, n := range mustTarballs(t, w) {
		dir := filepath.Join(w.Dir, "unpacked", n)
		must(t, os.MkdirAll(dir, 0o700))
		if out, err := exec.Command("tar", "xzf", filepath.Join(w.Dump, n), "-C", dir).CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	}
	if n := noSecretBelow(t, w.Dir); n < 1000 {
		t.Errorf("only %d files were looked at", n)
	}
	for key := range planted {
		if got := ok(t, w, "alation_conf", key); !strings.Contains(got, "******") {
			t.Errorf("the secret is not there to be seen: %s", got)
		}
	}
}
