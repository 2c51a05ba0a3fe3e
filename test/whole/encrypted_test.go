package whole

import (
	"bytes"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/test/world"
)

// passphrase of the encrypted repositories; it must be seen nowhere but in the file that archive_command names.
const passphrase = `open "sesame" $HOME 'now' 42`

// sealedBelow reads every object of a repository: all are encrypted, apart from links.
func sealedBelow(t *testing.T, dir string) {
	t.Helper()
	n := 0
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if !bytes.HasPrefix(b, []byte("Salted__")) && len(b) > 0 {
			t.Errorf("%s is not encrypted", path)
		}
		n++
		return err
	}))
	if n < 6 {
		t.Errorf("%s: only %d files to look at", dir, n)
	}
}

// passNowhere looks for the passphrase in every file below dir but the one that is to hold it, which must be closed.
func passNowhere(t *testing.T, w *world.World, dir string) {
	t.Helper()
	holder := filepath.Join(w.Root, "var/lib/holdfast/pgbackrest/cipher_pass")
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || path == holder {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(passphrase)) {
			t.Errorf("%s shows the passphrase", path)
		}
		return err
	}))
	info, err := os.Stat(holder)
	must(t, err)
	data, err := os.Stat(w.Data)
	must(t, err)
	if info.Mode() != 0o600 || info.Sys().(*syscall.Stat_t).Uid != data.Sys().(*syscall.Stat_t).Uid {
		t.Errorf("%s: %s, user %d", holder, info.Mode(), info.Sys().(*syscall.Stat_t).Uid)
	}
}

// TestEncrypted: repository and tarball tell nothing without the passphrase; with it everything works: restore after a loss,
// to an earlier time, on another instance.
func TestEncrypted(t *testing.T) {
	for mode, apart := range map[string]bool{"included": false, "apart": true} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, apart, "pgsql.pgbackrest.cipher_pass", "-s", passphrase, "pgsql.pgbackrest.bundle", "-s", "True")
			roundTrip(t, w)
			if bundles, err := filepath.Glob(filepath.Join(w.Repo, "backup", world.Stanza, "*F/bundle")); err != nil || (len(bundles) > 0) != apart {
				t.Errorf("bundles: %v %v", bundles, err)
			}
			sealedBelow(t, w.Repo)
			earlier(t, w)
			for _, n := range mustTarballs(t, w) {
				dir := filepath.Join(w.Dir, "unpacked", n)
				must(t, os.MkdirAll(dir, 0o700))
				if out, err := exec.Command("tar", "xzf", filepath.Join(w.Dump, n), "-C", dir).CombinedOutput(); err != nil {
					t.Fatalf("%v %s", err, out)
				}
				if strings.Contains(n, "_eb_") {
					continue
				}
				if !apart {
					sealedBelow(t, filepath.Join(dir, "pgbackrest"))
				}
				if b, err := os.ReadFile(filepath.Join(dir, "params/conf.json")); err != nil || bytes.Contains(b, []byte("cipher_pass")) {
					t.Errorf("%s carries the passphrase, though sealed: %v", n, err)
				}
			}
			passNowhere(t, w, w.Dir)
			settings, err := w.Text(t.Context(), "select string_agg(setting, ' ') from pg_settings")
			if err != nil || strings.Contains(settings, passphrase) || !strings.Contains(settings, "--repo1-cipher-pass-file=") {
				t.Errorf("settings: %v", err)
			}
			wrongPassphrase(t, w)
			beginAnew(t, w, apart)
		})
	}
}

// earlier restores to a moment after the set.
func earlier(t *testing.T, w *world.World) {
	t.Helper()
	s := backup(t, w)
	must(t, w.Exec(t.Context(), "insert into ledger values (77)"))
	time.Sleep(20 * time.Millisecond)
	at := time.Now().UTC().Format("2006-01-02 15:04:05.999999+00")
	time.Sleep(20 * time.Millisecond)
	must(t, w.Exec(t.Context(), "insert into ledger values (78)", "select pg_switch_wal()"))
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		waiting, err := w.Text(t.Context(), "select count(*)::text from pg_ls_archive_statusdir() where name like '%.ready'")
		must(t, err)
		if waiting == "0" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%s WAL files are not archived", waiting)
		}
	}
	ok(t, w, "holdfast", "restore", "--set", s.ID, "--until", at, "--yes")
	if got, err := w.Text(t.Context(), "select string_agg(n::text, ',' order by n) from ledger where n > 70"); err != nil || got != "77" {
		t.Errorf("at %s the ledger has %s %v", at, got, err)
	}
}

// wrongPassphrase: another or no passphrase is refused by name before anything changes, and archiving goes on.
func wrongPassphrase(t *testing.T, w *world.World) {
	t.Helper()
	s := backup(t, w)
	before := prove(t, w)
	for _, c := range []struct{ conf, says string }{{"another", "was encrypted with another one"}, {"", "no passphrase is given"}} {
		ok(t, w, "alation_conf", "pgsql.pgbackrest.cipher_pass", "-s", c.conf)
		for _, args := range [][]string{{"alation_action", "enable_backupv2"}, {"alation_action", "backup_all"}, {"holdfast", "restore", "--set", s.ID, "--yes"}} {
			fails(t, w, 5, c.says, args[0], args[1:]...)
			fails(t, w, 5, "begin a new one", "alation_action", "enable_backupv2")
		}
		if out, err := w.Holdfast(t.Context(), "sets", "verify", s.ID); err == nil || out.Code != 6 {
			t.Errorf("sets verify with %q: %d %s%s", c.conf, out.Code, out.Stdout, out.Stderr)
		}
	}
	same(t, "refused", before, prove(t, w))
	ok(t, w, "alation_conf", "pgsql.pgbackrest.cipher_pass", "-s", passphrase)
	ok(t, w, "holdfast", "sets", "verify", backup(t, w).ID)
}

// beginAnew does what the refusal says: a new repository, here without a passphrase, which then lies about no longer.
func beginAnew(t *testing.T, w *world.World, apart bool) {
	t.Helper()
	if apart {
		ok(t, w, "alation_conf", "pgsql.pgbackrest.repo_dir_name", "-s", "/data2/other")
	} else {
		must(t, os.Rename(w.Repo, w.Repo+".old"))
	}
	ok(t, w, "alation_conf", "pgsql.pgbackrest.cipher_pass", "-s", "")
	ok(t, w, "alation_action", "enable_backupv2")
	if _, err := os.Stat(filepath.Join(w.Root, "var/lib/holdfast/pgbackrest/cipher_pass")); !os.IsNotExist(err) {
		t.Errorf("the file of the passphrase: %v", err)
	}
	want := prove(t, w)
	s := backup(t, w)
	must(t, w.Exec(t.Context(), "insert into ledger values (99)"))
	restore(t, w, s.ID)
	same(t, "without a passphrase", want, prove(t, w))
}

// TestEncryptedElsewhere restores an encrypted tarball on a new instance: refused by name without the passphrase or with a
// wrong one, right with it.
func TestEncryptedElsewhere(t *testing.T) {
	w := newWorld(t, false, "pgsql.pgbackrest.cipher_pass", "-s", passphrase)
	s := backup(t, w)
	want, err := w.Rows(t.Context())
	must(t, err)
	args := []string{"restore", "--file", w.Dump + "/" + s.ID + "_alation_backup.tar.gz", "--eb-file", w.Dump + "/" + s.ID + "_alation_eb_backup.tar.gz", "--yes"}
	for _, c := range []struct{ pass, says string }{{"", "no passphrase is given"}, {"wrong", "was encrypted with another one"}, {passphrase, ""}} {
		fresh := newWorld(t, false, "pgsql.pgbackrest.cipher_pass", "-s", c.pass)
		must(t, fresh.Exec(t.Context(), "drop table t"))
		if c.says != "" {
			fails(t, fresh, 5, c.says, "holdfast", args...)
			continue
		}
		ok(t, fresh, "holdfast", args...)
		got, err := fresh.Rows(t.Context())
		must(t, err)
		if len(got) == 0 || len(got) != len(want) {
			t.Errorf("tables: %v, want %v", got, want)
		}
		for table, rows := range want {
			if got[table] != rows {
				t.Errorf("%s: %s, want %s", table, got[table], rows)
			}
		}
		ok(t, fresh, "holdfast", "sets", "verify", backup(t, fresh).ID)
	}
}
