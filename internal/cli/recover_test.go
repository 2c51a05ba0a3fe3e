package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/kit"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// TestKitParameters: who a kit is encrypted to is looked at when it is set, and a secret key given by mistake is not shown.
func TestKitParameters(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	r.run("alation_conf", "alation.backup.recovery_kit.recipient", "-s", "age1nobody").has(t, exitUsage, "not a public key of age", "nothing was changed")
	said := r.run("alation_conf", "alation.backup.recovery_kit.recipient", "-s", id.String())
	said.has(t, exitUsage, "this is a secret key")
	if strings.Contains(said.errs, id.String()) {
		t.Error(said.errs)
	}
	r.run("alation_conf", "alation.backup.recovery_kit.passphrase", "-s", "short").has(t, exitUsage, "12 characters")
	r.run("alation_conf", "alation.backup.recovery_kit.recipient", "-s", id.Recipient().String()).has(t, exitOK, id.Recipient().String())
	r.run("alation_conf", "alation.backup.recovery_kit.passphrase", "-s", "long enough for it").has(t, exitUsage, "exclude each other")
}

// lost is what is left of an instance: its kit and a directory as external storage with one set of nothing but files.
type lost struct {
	kit, identity, far string
	set                *catalog.Set
	params             map[string]kit.Secret
}

func newLost(t *testing.T) *lost {
	t.Helper()
	dir := t.TempDir()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	l := &lost{kit: filepath.Join(dir, "kit.age"), identity: filepath.Join(dir, "identity"), far: filepath.Join(dir, "far")}
	root := filepath.Join(dir, "was")
	site := filepath.Join(root, "srv/app")
	st := func(d string) storage.Storage {
		s, err := storage.NewPosix(d, storage.PosixOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	store := &action.StoreOptions{Name: filepath.Join(l.far, "holdfast"), Tarballs: true, ProcessMax: 1,
		OpenRepo: func() (storage.Storage, error) { return st(filepath.Join(l.far, "holdfast", storeRepository)), nil },
		OpenSets: func() (storage.Storage, error) { return st(filepath.Join(l.far, "holdfast", storeSets)), nil }}
	if err := errors.Join(os.MkdirAll(site, 0o755), os.WriteFile(filepath.Join(site, "a"), []byte("content"), 0o600)); err != nil {
		t.Fatal(err)
	}
	app := action.New(action.Options{Root: root, DumpDir: filepath.Join(dir, "dump"), TempDir: filepath.Join(dir, "tmp"), LockPath: filepath.Join(dir, "lock/l"),
		JournalPath: filepath.Join(dir, "lock/j"), Catalog: catalog.NewStore(storage.NewMem(nil)), AppVersion: "1-0-0-0", Program: "test", Host: "old", ExecID: "1-abcdef01",
		Mode: catalog.Included, RepoDir: filepath.Join(dir, "dump/pgbackrest"), ProcessMax: 1, Store: store,
		OpenRepo: func(d string) (storage.Storage, error) { return storage.NewPosix(d, storage.PosixOptions{}) },
		Files:    action.FilesOptions{Trees: []catalog.Tree{{Name: "app", Path: "srv/app"}}}})
	if l.set, err = app.BackupAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.params = map[string]kit.Secret{"pgsql.pgbackrest.redundancy.type": "posix", "pgsql.pgbackrest.redundancy.posix.path": kit.Secret(l.far), "eventbus.enabled": "False",
		"files.paths": "/srv/app", "alation.backup.redundancy.enabled": "True", "eventbus.security.sasl_password": "PLANTED-password", "alation.backup.restore_file": "/old",
		"eventbus.security.ca_file": "/etc/ssl/bus.pem", "of.a.newer.version": "x"}
	k := &kit.Kit{Made: time.Unix(1e9, 0), Program: "test", Host: "old", Set: l.set.ID, Instance: kit.Instance{Root: "/was", User: u.Username, AppVersion: "1.0.0.0"},
		Key: kit.Secret(strings.Repeat("k", kit.KeySize)), Parameters: l.params, Files: []kit.File{{Parameter: "eventbus.security.ca_file", Mode: 0o644, Data: "PEM"}},
		Store: &kit.Store{Kind: "posix", Name: store.Name}}
	l.write(t, k, id)
	if err := os.WriteFile(l.identity, []byte(id.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *lost) write(t *testing.T, k *kit.Kit, id *age.X25519Identity) {
	t.Helper()
	doc, err := k.Encode()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := kit.Seal(doc, kit.Lock{Recipients: []string{id.Recipient().String()}})
	if err == nil {
		err = os.WriteFile(l.kit, sealed, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// recover runs the command into dir; at is the step at which it dies, if any. The storage is at far below the new root.
func (l *lost) recover(t *testing.T, dir, at string, more ...string) (said, any) {
	t.Helper()
	for _, d := range []string{"data", "backup", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe := filepath.Join(dir, "program")
	if err := os.WriteFile(exe, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(dir, "root", l.far)
	if err := os.MkdirAll(filepath.Dir(inside), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(l.far, inside); err != nil && !errors.Is(err, os.ErrExist) {
		t.Fatal(err)
	}
	words := append([]string{"holdfast", "recover", "--kit", l.kit, "--identity", l.identity, "--root", filepath.Join(dir, "root"), filepath.Join(dir, "data"), filepath.Join(dir, "backup")}, more...)
	env, out, errs := bareEnv(strings.NewReader(""), words...)
	env.Exe = exe
	env.Getenv = func(name string) string {
		if name == "HOLDFAST_TEST_KILL_AT" {
			return at
		}
		return ""
	}
	code, died := -1, any(nil)
	func() {
		defer func() { died = recover() }()
		code = Main(t.Context(), env)
	}()
	return said{out.String(), errs.String(), code}, died
}

// TestRecoverSteps: a recovery that dies at a step, or that finds the set damaged, is gone on with by the same command. What an operator
// set meanwhile stays; a secret is in nothing that is printed; a foreign kit is not mixed in.
func TestRecoverSteps(t *testing.T) {
	l := newLost(t)
	dir := t.TempDir()
	got, _ := l.recover(t, dir, "", "--dry-run", "--json")
	got.has(t, exitOK, l.set.ID, "of.a.newer.version", "eventbus.security.ca_file")
	if strings.Contains(got.out+got.errs, "PLANTED") {
		t.Error(got.out)
	}
	died := 0
	for _, step := range []string{"begin", "lay-out", "parameters", "files", "fetch", "restore", "finish"} {
		got, how := l.recover(t, dir, "recover:"+step, "--yes")
		if how == nil {
			t.Fatalf("at %s it did not die: %d %s%s", step, got.code, got.out, got.errs)
		}
		died++
		if step == "lay-out" { // somebody puts a file in the way
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, "root/srv/app"), 0o755), os.WriteFile(filepath.Join(dir, "root/srv/app/precious"), []byte("precious"), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		if step == "files" { // an operator mends something between two calls
			env, _, errs := bareEnv(strings.NewReader(""), "alation_conf", "--root", filepath.Join(dir, "root"), "alation.backup.scheduled_hour", "-s", "7")
			if code := Main(t.Context(), env); code != 0 {
				t.Fatal(errs)
			}
		}
	}
	got, _ = l.recover(t, dir, "", "--yes")
	got.has(t, exitOK, "was restored before")
	root := filepath.Join(dir, "root")
	if kept, err := filepath.Glob(filepath.Join(root, "srv/app.holdfast-replaced-*/precious")); err != nil || len(kept) != 1 {
		t.Errorf("what was in the way: kept are %v, %v", kept, err)
	}
	b, err := os.ReadFile(filepath.Join(root, "srv/app/a"))
	key, err2 := os.ReadFile(filepath.Join(root, "etc/holdfast/conf.key"))
	pem, err3 := os.ReadFile(filepath.Join(root, "etc/ssl/bus.pem"))
	if err := errors.Join(err, err2, err3); err != nil || string(b) != "content" || string(key) != strings.Repeat("k", kit.KeySize) || string(pem) != "PEM" {
		t.Errorf("%v: %q, key %q, certificate %q", err, b, key, pem)
	}
	v, err := conf.NewStore(conf.Options{Path: filepath.Join(root, "etc/holdfast/conf.json"), KeyPath: filepath.Join(root, "etc/holdfast/conf.key")}).Load()
	if err != nil {
		t.Fatal(err)
	}
	if s, err := v.Secret(conf.KeyBusSASLPassword); err != nil || s.Reveal() != "PLANTED-password" || v.Int(conf.KeyScheduledHour) != 7 || v.IsSet("alation.backup.restore_file") {
		t.Errorf("%v: the parameters are not those of the kit and the operator", err)
	}
	if _, err := os.Stat(filepath.Join(root, "etc/holdfast/recover.json")); !os.IsNotExist(err) {
		t.Errorf("the mark: %v", err)
	}
	got, _ = l.recover(t, dir, "", "--yes")
	got.has(t, exitRefused, "there is an instance in")
	tally.Count(t, "kills of a recovery", died)
}

// TestRecoverForeign: a place in which another instance's recovery is under way is left alone; so is one with files in it.
func TestRecoverForeign(t *testing.T) {
	one, two := newLost(t), newLost(t)
	dir := t.TempDir()
	if _, how := one.recover(t, dir, "recover:fetch", "--yes"); how == nil {
		t.Fatal("it did not die")
	}
	id, err := age.ParseX25519Identity(strings.TrimSpace(string(mustRead(t, two.identity))))
	if err != nil {
		t.Fatal(err)
	}
	k, err := kit.Open(mustRead(t, two.kit), kit.Unlock{Identities: kit.Secret(id.String())})
	if err != nil {
		t.Fatal(err)
	}
	k.Key = kit.Secret(strings.Repeat("z", kit.KeySize))
	two.write(t, k, id)
	got, _ := two.recover(t, dir, "", "--yes")
	got.has(t, exitRefused, "another instance's kit")
	elsewhere := filepath.Join(dir, "elsewhere")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	words := []string{"holdfast", "recover", "--kit", one.kit, "--identity", one.identity, "--root", filepath.Join(dir, "root"), elsewhere, filepath.Join(dir, "backup"), "--yes"}
	bare(t, "", words...).has(t, exitRefused, "an unfinished recovery onto the disks "+filepath.Join(dir, "data"))
	full := t.TempDir()
	if err := errors.Join(os.MkdirAll(filepath.Join(full, "backup/x"), 0o755), os.WriteFile(filepath.Join(full, "backup/x/y"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	got, _ = one.recover(t, full, "", "--yes")
	got.has(t, exitRefused, "backup/x/y): a recovery wants empty places")
	got, _ = one.recover(t, t.TempDir(), "", "--set", "202001010000_1-0", "--yes")
	got.has(t, exitUsage, "there is no set")
	got, _ = one.recover(t, t.TempDir(), "", "--conf", "eventbus.security.sasl_password=x", "--yes")
	got.has(t, exitUsage, "a secret does not belong on a command line")
	if err := os.RemoveAll(filepath.Join(one.far, "holdfast", storeSets)); err != nil {
		t.Fatal(err)
	}
	got, _ = one.recover(t, t.TempDir(), "", "--list")
	got.has(t, exitFailed, "there is no set on", "alation.backup.redundancy.enabled")
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRecoverMoved: on the host's own paths the disks may be elsewhere, and every parameter that names a place on them follows.
func TestRecoverMoved(t *testing.T) {
	r := &recovery{kit: &kit.Kit{Instance: kit.Instance{Root: "/", DataDir: "/mnt/d", BackupDir: "/mnt/b"}}}
	r.plan.DataDisk, r.plan.BackupDisk = "/new/data", "/new/back"
	for name, c := range map[string][2]string{
		"alation.backup.data_dump_dir": {"/mnt/b/backup", "/new/back/backup"}, "pgsql.pgbackrest.repo_dir_name": {"/mnt/backup", "/mnt/backup"},
		"files.paths":      {"/mnt/d/site,/srv/x", "/new/data/site,/srv/x"},
		"pgsql.clusters":   {"rosemeta:data=/mnt/d/pg,host=/tmp,port=5432,user=alation", "rosemeta:data=/new/data/pg,host=/tmp,port=5432,user=alation"},
		"eventbus.brokers": {"/mnt/d:1", "/mnt/d:1"}} {
		got := r.moved(conf.Lookup(name), c[0])
		if name == "pgsql.clusters" {
			a, err1 := conf.ParseClusters(got)
			b, err2 := conf.ParseClusters(c[1])
			if errors.Join(err1, err2) != nil || fmt.Sprint(a) != fmt.Sprint(b) {
				t.Errorf("%s: %s", name, got)
			}
		} else if got != c[1] {
			t.Errorf("%s: %s, want %s", name, got, c[1])
		}
	}
	line, err := readLineOf(strings.NewReader("one\r\ntwo\n"))
	if err != nil || line != "one" {
		t.Errorf("%q %v", line, err)
	}
	if _, err := readLineOf(strings.NewReader(strings.Repeat("x", maxAnswer+1))); err == nil {
		t.Error("a line without end is read")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := readLineOf(&cancelReader{ctx: ctx, r: strings.NewReader("")}); err == nil {
		t.Error("nothing is a line")
	}
}

// TestKitLacks: a file that a parameter names and that is not there is named, and the kit holds everything else.
func TestKitLacks(t *testing.T) {
	r := newRig(t)
	there := filepath.Join(r.root, "etc/there.pem")
	if err := os.WriteFile(there, []byte("PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run("alation_conf", "eventbus.security.ca_file", "-s", "/etc/gone.pem", "pgsql.pgbackrest.redundancy.s3.ca_file", "-s", "/etc/there.pem").has(t, exitOK)
	env, _, _ := bareEnv(strings.NewReader(""), "holdfast")
	w, err := openAppAt(env, r.root, newListener(env, true, nil), "")
	if err != nil {
		t.Fatal(err)
	}
	k, lacks, err := w.kit(env, nil, &catalog.Set{ID: "202611231200_10-0-0-1"}, nil)
	if err != nil || len(lacks) != 1 || !strings.Contains(lacks[0], "eventbus.security.ca_file") || !strings.Contains(lacks[0], "gone.pem") {
		t.Fatalf("%v %q", err, lacks)
	}
	if len(k.Files) != 1 || string(k.Files[0].Data) != "PEM" || k.Parameters["eventbus.security.ca_file"] != "/etc/gone.pem" {
		t.Errorf("%d files, parameters %d", len(k.Files), len(k.Parameters))
	}
}
