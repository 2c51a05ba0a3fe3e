package whole

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"holdfast/test/stores"
	"holdfast/test/tally"
	"holdfast/test/world"
)

// machine is one that has nothing on it, for the application of another world, and an event bus.
type machine struct {
	*world.World
	brokers string
}

func bareMachine(t *testing.T, w *world.World) machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-bare-")
	must(t, err)
	n, err := w.Bare(dir)
	must(t, err, os.Mkdir(filepath.Join(dir, "data"), 0o755), os.Mkdir(filepath.Join(dir, "backup"), 0o755))
	brokers := newBus(t).ListenAddrs()
	n = n.OnBus(brokers)
	t.Cleanup(func() { must(t, n.Close(context.Background()), os.RemoveAll(dir)) })
	return machine{n, strings.Join(brokers, ",")}
}

// theKit is the recovery kit of the newest set, moved out of the instance.
func theKit(t *testing.T, w *world.World) string {
	t.Helper()
	kits, err := filepath.Glob(filepath.Join(w.Dump, "*_recovery_kit.age"))
	if err != nil || len(kits) == 0 {
		t.Fatalf("no recovery kit: %v", err)
	}
	newest := kits[len(kits)-1]
	info, err := os.Stat(newest)
	if err != nil || info.Mode() != 0o600 {
		t.Fatalf("%v %v", info.Mode(), err)
	}
	to := filepath.Join(t.TempDir(), filepath.Base(newest))
	b, err := os.ReadFile(newest)
	must(t, err, os.WriteFile(to, b, 0o600))
	return to
}

// forKey encrypts a kit anew to a key, as the tool age would, and returns it with the file of the key.
func forKey(t *testing.T, kit, pass string) (file, identity string) {
	t.Helper()
	old, err := age.NewScryptIdentity(pass)
	must(t, err)
	id, err := age.GenerateX25519Identity()
	must(t, err)
	in, err := os.Open(kit)
	must(t, err)
	defer in.Close()
	r, err := age.Decrypt(in, old)
	must(t, err)
	file, identity = kit+".key", kit+".identity"
	must(t, os.WriteFile(identity, []byte(id.String()+"\n"), 0o600))
	out, err := os.Create(file)
	must(t, err)
	sealed, err := age.Encrypt(out, id.Recipient())
	must(t, err)
	_, err = io.Copy(sealed, r)
	must(t, err, sealed.Close(), out.Close())
	return file, identity
}

// recoverWords are a command line of holdfast recover for a machine.
func recoverWords(n machine, kit string, more ...string) []string {
	return append([]string{"recover", "--kit", kit, filepath.Join(n.Dir, "data"), filepath.Join(n.Dir, "backup"), "--root", n.Root, "--conf", "eventbus.brokers=" + n.brokers}, more...)
}

// TestRecover: an empty directory, the kit and its passphrase; one command, and everything is back from the bucket. What can be wrong
// with the kit, the passphrase, the place or the storage is one clear error each, and changes nothing.
func TestRecover(t *testing.T) {
	server := stores.StartS3(t, "versitygw")
	bucket := server.Bucket(t)
	w := newWorld(t, true, "pgsql.pgbackrest.cipher_pass", "-s", passphrase)
	pem, err := os.ReadFile(server.CA.File)
	must(t, err, os.MkdirAll(filepath.Join(w.Root, "etc/ssl"), 0o755), os.WriteFile(filepath.Join(w.Root, "etc/ssl/store.pem"), pem, 0o644))
	const pass = "correct horse battery"
	ok(t, w, "alation_conf", "pgsql.pgbackrest.redundancy.s3.ca_file", "-s", "/etc/ssl/store.pem", "pgsql.pgbackrest.redundancy.s3.uri_style", "-s", "path",
		"pgsql.pgbackrest.redundancy.enabled", "-s", "True", "pgsql.pgbackrest.redundancy.s3.endpoint", "-s", server.Endpoint, "pgsql.pgbackrest.redundancy.s3.bucket", "-s", bucket,
		"pgsql.pgbackrest.redundancy.s3.region", "-s", server.Region, "pgsql.pgbackrest.redundancy.s3.key", "-s", server.Key, "pgsql.pgbackrest.redundancy.s3.secret", "-s", server.Secret,
		"alation.backup.redundancy.enabled", "-s", "True", "alation.backup.recovery_kit.passphrase", "-s", pass)
	backup(t, w)
	kit := theKit(t, w)
	must(t, w.Exec(t.Context(), "insert into ledger values (4711)"))
	want := prove(t, w)
	newest := backup(t, w) // after the kit: its set is found in the bucket
	must(t, w.Close(t.Context()))
	n := bareMachine(t, w)
	passFile, wrong := filepath.Join(t.TempDir(), "pass"), filepath.Join(t.TempDir(), "wrong")
	must(t, os.WriteFile(passFile, []byte(pass+"\n"), 0o600), os.WriteFile(wrong, []byte("another passphrase\n"), 0o600))
	refused := func(code int, what, kit string, more ...string) {
		t.Helper()
		out, err := n.As(t.Context(), "holdfast", "", recoverWords(n, kit, more...)...)
		if err == nil || out.Code != code || !strings.Contains(out.Stderr, what) || strings.Contains(out.Stdout+out.Stderr, pass) {
			t.Errorf("%v: code %d, want %d and %q:\n%s%s", more, out.Code, code, what, out.Stdout, out.Stderr)
		}
		if left, err := filepath.Glob(n.Dir + "/*/*"); err != nil || len(left) > 0 && !strings.Contains(what, "empty places") || exists(n.Root) {
			t.Errorf("%v left %v", more, left)
		}
	}
	refused(5, "the passphrase is not the one", kit, "--passphrase-file", wrong)
	refused(2, "leave --identity out", kit, "--identity", wrong)
	refused(2, "there is no terminal to ask on", kit)
	quick, key := forKey(t, kit, pass) // a passphrase takes its second every time
	damaged := kit + ".damaged"
	b, err := os.ReadFile(quick)
	must(t, err)
	b[len(b)-100] ^= 1
	must(t, os.WriteFile(damaged, b, 0o600))
	refused(1, "it is damaged", damaged, "--identity", key)
	refused(1, "not a file that age has encrypted", passFile, "--passphrase-file", passFile)
	refused(2, "there is no set 200001010000_1-0-0-0", quick, "--identity", key, "--set", "200001010000_1-0-0-0")
	refused(8, "external storage", quick, "--identity", key, "--conf", "pgsql.pgbackrest.redundancy.s3.bucket=not-there")
	must(t, os.Mkdir(filepath.Join(n.Dir, "data/old"), 0o755), os.WriteFile(filepath.Join(n.Dir, "data/old/file"), []byte("precious"), 0o600))
	refused(5, "data/old/file): a recovery wants empty places", quick, "--identity", key, "--yes")
	must(t, os.RemoveAll(filepath.Join(n.Dir, "data/old")), os.Rename(filepath.Join(n.Dir, "data"), filepath.Join(n.Dir, "d")))
	refused(5, "mount it, or make the directory", quick, "--identity", key, "--yes")
	must(t, os.Rename(filepath.Join(n.Dir, "d"), filepath.Join(n.Dir, "data")))
	list := ok(t, n.World, "holdfast", "recover", "--list", "--kit", quick, "--identity", key, "--root", n.Root)
	if !strings.Contains(list, "s3://"+bucket) || strings.Count(list, "whole") != 2 || !strings.Contains(list, newest.ID) {
		t.Error(list)
	}
	plan := ok(t, n.World, "holdfast", recoverWords(n, quick, "--identity", key, "--dry-run")...)
	if !strings.Contains(plan, "set: "+newest.ID) || strings.Contains(plan, pass) || exists(n.Root) {
		t.Error(plan)
	}
	out, err := n.As(t.Context(), "holdfast", pass+"\nNO\n", recoverWords(n, kit, "--passphrase-file", "-")...)
	if err == nil || out.Code != 5 || exists(n.Root) {
		t.Errorf("not confirmed: code %d\n%s", out.Code, out.Stderr)
	}
	out, err = n.As(t.Context(), "holdfast", pass+"\nYES\n", recoverWords(n, kit, "--passphrase-file", "-")...)
	must(t, err)
	if out.Code != 0 {
		t.Errorf("code %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
	same(t, "recovered from the kit and the bucket", want, prove(t, n.World))
	b, err = os.ReadFile(filepath.Join(n.Root, "etc/ssl/store.pem"))
	if err != nil || string(b) != string(pem) || exists(filepath.Join(n.Root, "etc/holdfast/recover.json")) {
		t.Errorf("the storage's certificate, or the mark: %v", err)
	}
	refusedNow, err := n.As(t.Context(), "holdfast", "", recoverWords(n, quick, "--identity", key, "--yes")...)
	if err == nil || refusedNow.Code != 5 || !strings.Contains(refusedNow.Stderr, "there is an instance in") {
		t.Errorf("once more: code %d\n%s", refusedNow.Code, refusedNow.Stderr)
	}
	// The instance goes on where the other one ended: archiving, copies, kits.
	backup(t, n.World)
	theKit(t, n.World)
	tally.Count(t, "recoveries of a bare machine", 1)
}

// TestRecoverKilled kills a recovery at every step of its own and of what it calls; the same command goes on and ends right. In the
// end the set that was interrupted in the middle of its copy is passed over for the newest whole one.
func TestRecoverKilled(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	must(t, err)
	identity := filepath.Join(t.TempDir(), "identity")
	must(t, os.WriteFile(identity, []byte(id.String()+"\n"), 0o600))
	w := newWorld(t, true, append([]string{"alation.backup.recovery_kit.recipient", "-s", id.Recipient().String()}, storeConf...)...)
	first := backup(t, w)
	want := prove(t, w)
	kit := theKit(t, w)
	killAt(t, w, "backup_all:copy-postgres", "holdfast", "backup_all")
	must(t, w.Close(t.Context()))
	n := bareMachine(t, w)
	must(t, os.MkdirAll(n.Root, 0o755), os.Rename(far(w), far(n.World)))
	words := recoverWords(n, kit, "--identity", identity, "--yes")
	kills := 0
	for _, step := range []string{"recover:begin", "recover:lay-out", "recover:parameters", "recover:files", "recover:fetch", "fetch:tarball", "recover:restore", "restore:unpack", "restore:stage-wal",
		"restore:recover", "restore:swap-files", "restore:commit", "recover:finish"} {
		killAt(t, n.World, step, "holdfast", words...)
		kills++
	}
	out, err := n.As(t.Context(), "holdfast", "", words...)
	must(t, err)
	if !strings.Contains(out.Stderr, "set "+first.ID+" was restored before") {
		t.Errorf("%s%s", out.Stdout, out.Stderr)
	}
	same(t, "recovered after "+first.ID, want, prove(t, n.World))
	if exists(filepath.Join(n.Root, "etc/holdfast/recover.json")) {
		t.Error("the mark is still there")
	}
	backup(t, n.World)
	tally.Count(t, "kills of a recovery", kills)
	tally.Count(t, "recoveries of a bare machine", 1)
}
