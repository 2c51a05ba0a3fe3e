package conf

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"holdfast/internal/durable"
)

// newStore makes an empty store in a temporary directory.
func newStore(t *testing.T) *Store {
	t.Helper()
	dir := t.TempDir()
	s := NewStore(Options{Path: filepath.Join(dir, "conf.json"), KeyPath: filepath.Join(dir, "conf.key")})
	if err := s.Create(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	return s
}

func pairs(words ...string) []Pair {
	var all []Pair
	for i := 0; i < len(words); i += 2 {
		all = append(all, Pair{words[i], NewSecret(words[i+1])})
	}
	return all
}

func load(t *testing.T, s *Store) *Values {
	t.Helper()
	v, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestSetGetUnset(t *testing.T) {
	s := newStore(t)
	got, err := s.Set(t.Context(), pairs("alation.backup.scheduled_day", "SAT,tue", "alation.backup.scheduled_hour", " 09",
		"pgsql.pgbackrest.redundancy.s3.endpoint", "", "alation.version", "10-0-0-147420"))
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range got {
		lines = append(lines, e.String())
	}
	want := []string{"alation.backup.scheduled_day = tue,sat", "alation.backup.scheduled_hour = 9", "pgsql.pgbackrest.redundancy.s3.endpoint = ", "alation.version = 10.0.0.147420"}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("Set printed %q, want %q", lines, want)
	}
	v := load(t, s)
	if days := v.List(KeyScheduledDay); !reflect.DeepEqual(days, []string{"tue", "sat"}) {
		t.Errorf("days %q", days)
	}
	if v.Int(KeyScheduledHour) != 9 || v.Duration(KeyChefTimeout) != 6*time.Hour || !v.Bool(KeySnapshotEnabled) || v.Path(KeyRepoDir) != "data2/pgbackrest" || v.String(KeyCompressType) != "zst" {
		t.Error("a getter returned something else than what was set or the default")
	}
	if c := v.Clusters(KeyClusters); len(c) != 1 || c[0] != (Cluster{Stanza: "rosemeta", DataDir: "/data1/pgsql/data", Host: "/tmp", Port: 5432, User: "alation"}) {
		t.Errorf("default clusters %+v", c)
	}
	if v.List(KeyBusTopics) != nil || !v.IsSet("alation.version") || v.IsSet("snapshot.enabled") {
		t.Error("emptiness or IsSet is wrong")
	}
	if _, err := s.Unset(t.Context(), []string{"alation.backup.scheduled_hour"}); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Get("alation.backup.scheduled_hour"); err != nil || e.String() != "alation.backup.scheduled_hour = 4" || e.Set {
		t.Errorf("after unset: %v %v", e, err)
	}
	if all, err := s.List("pgsql.pgbackrest.redundancy."); err != nil || len(all) != 40 {
		t.Errorf("List: %d entries, %v", len(all), err)
	}
}

// TestWrongTypes sets every parameter to values that its type refuses.
func TestWrongTypes(t *testing.T) {
	s := newStore(t)
	before, err := os.ReadFile(s.o.Path)
	if err != nil {
		t.Fatal(err)
	}
	wrong := map[Type][]string{
		Bool: {"", "1", "yes", "Truee"}, Int: {"", "x", "1.5", "99999999999999999999", "-8", "1e3"},
		Seconds: {"", "0", "-1", "6h"}, String: {"a\nb", "a\x00b", "\xff"}, Enum: {"", "nothing such", "a,b"},
		Path: {"a\nb", strings.Repeat("x", 4097)}, List: {"a,,b", ",", "a\nb"}, SecretT: {"a\nb", "\xff"},
		URL: {"ftp://host", "http://", "host", "http://u:p@host/"}, Version: {"1.2.3", "1.2.3.x", "1..2.3", "1.2.3.4.5", "-1.2.3.4"},
		Cron: {"4", "0 4 * *", "61 4 * * *", "0 0 30 2 *", "0 4 * * * UTC", "@daily", "every 5m", "a\nb"}, Zone: {"", "Local", "Mars/Olympus", "../etc"},
		Listen:   {"9876", "localhost", "localhost:", "localhost:0", "localhost:65536", "a b:80", "/run/x:80", ":http"},
		Clusters: {"", "x", "a:b", "a:data=/", "a:data=/x,port=0", "a:data=/x,port=65536", "a:data=/x;a:data=/y", "a:data=/x;b:data=/x/", "-a:data=/x", "a:data=/x,colour=red", `[{"stanza":"a"}]`, `[] `, `[{"stanza":"a","data":"/x","host":"h h"}]`},
	}
	for i := range table {
		k := &table[i]
		values := wrong[k.Type]
		if k.Required && k.Type == Path {
			values = append(values, "", "/", "a/..", "../..")
		}
		if k.Type == List && k.Allowed != nil {
			values = append(values, "mon,xyz", "mon tue")
		}
		if len(values) == 0 {
			t.Fatalf("no wrong values for type %s", k.Type)
		}
		for _, value := range values {
			if value == "0" && k.Min == 0 {
				continue // off
			}
			_, err := s.Set(t.Context(), pairs(k.Name, value))
			var ve *ValueError
			if !errors.As(err, &ve) || ve.Name != k.Name || ve.Allowed == "" || !errors.Is(err, ErrRefused) {
				t.Errorf("%s = %.40q: %v", k.Name, value, err)
			}
			if k.Secret() && len(value) > 1 && strings.Contains(err.Error(), value) {
				t.Errorf("%s: the error shows the value", k.Name)
			}
		}
	}
	if after, err := os.ReadFile(s.o.Path); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file changed: %v", err)
	}
}

func TestAllOrNone(t *testing.T) {
	s := newStore(t)
	_, err := s.Set(t.Context(), pairs("snapshot.enabled", "False", "alation.backup.scheduled_hour", "24", "snapshot.enable", "x"))
	var unknown *UnknownKeyError
	var value *ValueError
	if !errors.As(err, &unknown) || unknown.Nearest != "snapshot.enabled" || !errors.As(err, &value) {
		t.Fatalf("both errors are to be reported: %v", err)
	}
	if load(t, s).IsSet("snapshot.enabled") {
		t.Error("one of the pairs was set")
	}
	if _, err := s.Set(t.Context(), pairs("snapshot.enabled", "False", "snapshot.enabled", "True")); !errors.Is(err, ErrRefused) {
		t.Errorf("the same parameter twice: %v", err)
	}
	if _, err := s.Unset(t.Context(), []string{"snapshot.enabled", "no.such"}); !errors.Is(err, ErrRefused) {
		t.Errorf("unset of an unknown parameter: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Set(ctx, pairs("snapshot.enabled", "False")); !errors.Is(err, context.Canceled) || load(t, s).IsSet("snapshot.enabled") {
		t.Errorf("a cancelled set: %v", err)
	}
}

func TestRules(t *testing.T) {
	for _, c := range []struct {
		name    string
		before  []string
		set     []string
		refused bool
	}{
		{"redundancy with compression", nil, []string{"pgsql.pgbackrest.redundancy.enabled", "True"}, true},
		{"redundancy without", []string{"alation.backup_v2.pgbackup_compression", "False"}, []string{"pgsql.pgbackrest.redundancy.enabled", "True"}, false},
		{"both in one call", nil, []string{"pgsql.pgbackrest.redundancy.enabled", "True", "alation.backup_v2.pgbackup_compression", "False"}, false},
		{"compression with redundancy", []string{"alation.backup_v2.pgbackup_compression", "False", "pgsql.pgbackrest.redundancy.enabled", "True"}, []string{"alation.backup_v2.pgbackup_compression", "True"}, true},
		{"level of gz", nil, []string{"pgsql.pgbackrest.compress_type", "gz", "pgsql.pgbackrest.compress_level", "10"}, true},
		{"level of zst", nil, []string{"pgsql.pgbackrest.compress_level", "19"}, false},
		{"block alone", nil, []string{"pgsql.pgbackrest.block", "True"}, true},
		{"staging is the dump directory", nil, []string{"alation.backup.data_temp_dir", "data2/../data2/backup/"}, true},
		{"staging around the repository", nil, []string{"alation.backup.data_temp_dir", "/data2"}, true},
		{"a kit in two ways", []string{"alation.backup.recovery_kit.passphrase", "a good passphrase"}, []string{"alation.backup.recovery_kit.recipient", "age1x"}, true},
		{"a lock without days", nil, []string{"pgsql.pgbackrest.redundancy.s3.object_lock_mode", "governance"}, true},
		{"days without a lock", nil, []string{"pgsql.pgbackrest.redundancy.s3.object_lock_days", "30"}, true},
		{"a lock", nil, []string{"pgsql.pgbackrest.redundancy.s3.object_lock_days", "30", "pgsql.pgbackrest.redundancy.s3.object_lock_mode", "Compliance"}, false},
		{"a customer key beside another", []string{"pgsql.pgbackrest.redundancy.s3.sse", "AES256"}, []string{"pgsql.pgbackrest.redundancy.s3.sse_customer_key", "x"}, true},
		{"a key of a service not used", nil, []string{"pgsql.pgbackrest.redundancy.s3.kms_key_id", "x"}, true},
		{"staging beside", nil, []string{"alation.backup.data_temp_dir", "/data2/back"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newStore(t)
			if _, err := s.Set(t.Context(), pairs(c.before...)); err != nil {
				t.Fatal(err)
			}
			_, err := s.Set(t.Context(), pairs(c.set...))
			var rule *RuleError
			if errors.As(err, &rule) != c.refused || (err != nil) != c.refused {
				t.Errorf("got %v", err)
			}
		})
	}
	s := newStore(t)
	if _, err := s.Set(t.Context(), pairs("alation.backup_v2.pgbackup_compression", "False", "pgsql.pgbackrest.redundancy.enabled", "True")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Unset(t.Context(), []string{"alation.backup_v2.pgbackup_compression"}); !errors.Is(err, ErrRefused) {
		t.Errorf("unset brings compression back while redundancy is on: %v", err)
	}
}

func TestSecretsStaySecret(t *testing.T) {
	const text = "p4ss-w0rd/with=signs"
	s := newStore(t)
	entries, err := s.Set(t.Context(), pairs("pgsql.pgbackrest.redundancy.s3.secret", text))
	if err != nil {
		t.Fatal(err)
	}
	v := load(t, s)
	secret, err := v.Secret(KeyS3Secret)
	if err != nil || secret.Reveal() != text {
		t.Fatalf("opened %v", err)
	}
	if other, err := v.Secret(KeyS3Key); err != nil || !other.Empty() {
		t.Errorf("an unset secret: %v", err)
	}
	file, err := os.ReadFile(s.o.Path)
	if err != nil || bytes.Contains(file, []byte(text)) {
		t.Errorf("the file shows the secret (%v)", err)
	}
	if entries[0].String() != "pgsql.pgbackrest.redundancy.s3.secret = ******" {
		t.Errorf("Set prints %q", entries[0])
	}
	hidden := struct{ inner Secret }{secret}
	call, err := ParseCall([]string{"pgsql.pgbackrest.cipher_pass", "-s", text})
	if err != nil {
		t.Fatal(err)
	}
	for _, what := range []any{secret, &secret, hidden, &hidden, []Secret{secret}, map[string]Secret{"a": secret}, v, entries, call, call.Pairs, pairs("a", text), &ValueError{Name: "x", Value: secret}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			out := fmt.Sprintf(verb, what)
			if strings.Contains(out, text) || strings.Contains(out, fmt.Sprintf("%x", text)) {
				t.Errorf("%s of %T shows the secret", verb, what)
			}
		}
		if out, err := json.Marshal(what); err != nil || bytes.Contains(out, []byte(text)) {
			t.Errorf("JSON of %T: %v, or it shows the secret", what, err)
		}
	}
	if _, err := s.Set(t.Context(), pairs("pgsql.pgbackrest.redundancy.s3.secret", "")); err != nil || load(t, s).IsSet("pgsql.pgbackrest.redundancy.s3.secret") {
		t.Errorf("the empty secret is still set: %v", err)
	}
}

func TestSealingRefuses(t *testing.T) {
	s := newStore(t)
	if _, err := s.Set(t.Context(), pairs("pgsql.pgbackrest.redundancy.s3.secret", "one")); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(s.o.Path)
	if err != nil {
		t.Fatal(err)
	}
	open := func() error {
		_, err := load(t, s).Secret(KeyS3Secret)
		return err
	}
	// A sealed value moved to another parameter does not open.
	moved := strings.Replace(string(file), "redundancy.s3.secret", "redundancy.s3.key", 1)
	if err := os.WriteFile(s.o.Path, []byte(moved), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, s).Secret(KeyS3Key); err == nil {
		t.Error("a sealed value opened under another name")
	}
	// A secret that somebody typed into the file is named.
	clear := `{"format":1,"values":{"pgsql.pgbackrest.redundancy.s3.secret":"hush-hush"}}`
	if err := os.WriteFile(s.o.Path, []byte(clear), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); !errors.Is(err, ErrRefused) || strings.Contains(err.Error(), "hush-hush") {
		t.Errorf("a secret in clear: %v", err)
	}
	if err := os.WriteFile(s.o.Path, file, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o660} {
		if err := os.Chmod(s.o.KeyPath, mode); err != nil {
			t.Fatal(err)
		}
		if err := open(); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("key file of mode %o: %v", mode, err)
		}
	}
	if err := os.Chmod(s.o.KeyPath, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(s.o.KeyPath, bytes.Repeat([]byte{7}, 32), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := open(); err == nil {
		t.Error("another key opened the value")
	}
	if err := os.Remove(s.o.KeyPath); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), nil); err == nil {
		t.Error("Create made a new key for sealed values")
	}
	if _, err := s.Set(t.Context(), pairs("pgsql.pgbackrest.redundancy.s3.key", "two")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("sealing without a key: %v", err)
	}
}

func TestNewerVersionsValuesAreKept(t *testing.T) {
	s := newStore(t)
	text := `{"format": 1, "note": {"by": "v9"}, "values": {"alation.new.key": {"a": [1, 2]}, "snapshot.enabled": "False"}}`
	if err := os.WriteFile(s.o.Path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Set(t.Context(), pairs("alation.backup.scheduled_hour", "5")); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(s.o.Path)
	if err != nil {
		t.Fatal(err)
	}
	var got, want any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(strings.Replace(text, `"snapshot`, `"alation.backup.scheduled_hour": "5", "snapshot`, 1)), &want); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %s", data)
	}
	if unknown := load(t, s).Unknown(); !reflect.DeepEqual(unknown, []string{"alation.new.key"}) {
		t.Errorf("unknown %q", unknown)
	}
	if _, err := s.Unset(t.Context(), []string{"alation.new.key"}); err != nil || load(t, s).Unknown() != nil {
		t.Errorf("unset of a newer version's value: %v", err)
	}
}

func TestBadFiles(t *testing.T) {
	s := newStore(t)
	for _, text := range []string{"", "null", "[]", "{}", `{"format":"1"}`, `{"format":2}`, `{"format":1,"values":[]}`, `{"format":1} x`, `{"format":0}`} {
		if err := os.WriteFile(s.o.Path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); err == nil {
			t.Errorf("%q loads", text)
		}
		if _, err := s.Set(t.Context(), pairs("snapshot.enabled", "False")); err == nil {
			t.Errorf("%q was overwritten", text)
		}
	}
	if err := os.WriteFile(s.o.Path, []byte(`{"format":1,"values":{"alation.backup.scheduled_hour":"99","snapshot.enabled":false}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := s.Load()
	if err == nil || !strings.Contains(err.Error(), "scheduled_hour") || !strings.Contains(err.Error(), "snapshot.enabled") {
		t.Errorf("both wrong values are to be named: %v", err)
	}
	if _, err := s.Set(t.Context(), pairs("alation.backup.scheduled_hour", "3", "snapshot.enabled", "True")); err != nil {
		t.Errorf("wrong values can be set right: %v", err)
	}
	load(t, s)
	if err := os.Remove(s.o.Path); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing store: %v", err)
	}
}

// TestConcurrentSetters lets separate stores and processes set different parameters at once; each one's last value must be there.
func TestConcurrentSetters(t *testing.T) {
	s := newStore(t)
	names := []string{"alation.backup.scheduled_hour", "alation.backup.scheduled_minute", "alation.backup_v2.retention.sets", "pgsql.pgbackrest.process_max", "alation.backup_v2.incremental.full_every"}
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			own := NewStore(Options{Path: s.o.Path, KeyPath: s.o.KeyPath, LockWait: time.Minute})
			for n := 1; n <= 20; n++ {
				if _, err := own.Set(context.Background(), pairs(name, fmt.Sprint(n))); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	for _, name := range []string{"pgsql.pgbackrest.redundancy.s3.bucket", "pgsql.pgbackrest.redundancy.s3.secret"} {
		wg.Go(func() {
			cmd := exec.Command(os.Args[0], "-test.run=^TestHelperSetter$")
			cmd.Env = append(os.Environ(), "CONF_TEST_STORE="+s.o.Path, "CONF_TEST_KEY="+s.o.KeyPath, "CONF_TEST_NAME="+name)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		})
	}
	wg.Wait()
	v := load(t, s)
	for _, name := range names {
		if n := v.Int(IntKey(name)); n != 20 {
			t.Errorf("%s = %d, want 20", name, n)
		}
	}
	secret, err := v.Secret(KeyS3Secret)
	if err != nil || secret.Reveal() != "n20" || v.String(KeyS3Bucket) != "n20" {
		t.Errorf("the other processes' values: %q, %v", v.String(KeyS3Bucket), err)
	}
}

// TestHelperSetter is the other process of TestConcurrentSetters.
func TestHelperSetter(t *testing.T) {
	path := os.Getenv("CONF_TEST_STORE")
	if path == "" {
		return // an ordinary run: the test above starts this one with its environment
	}
	s := NewStore(Options{Path: path, KeyPath: os.Getenv("CONF_TEST_KEY"), LockWait: time.Minute})
	for n := 1; n <= 20; n++ {
		if _, err := s.Set(t.Context(), pairs(os.Getenv("CONF_TEST_NAME"), fmt.Sprintf("n%d", n))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInterruptedWrite leaves behind what a crash between writing the temporary file and the rename leaves.
func TestInterruptedWrite(t *testing.T) {
	s := newStore(t)
	if _, err := s.Set(t.Context(), pairs("snapshot.enabled", "False")); err != nil {
		t.Fatal(err)
	}
	f, err := durable.Create(s.o.Path, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte(`{"format":1,"val`)); err != nil {
		t.Fatal(err)
	}
	if load(t, s).Bool(KeySnapshotEnabled) {
		t.Error("the old value is gone")
	}
	if _, err := s.Set(t.Context(), pairs("alation.backup.scheduled_hour", "1")); err != nil {
		t.Fatal(err)
	}
	v := load(t, s)
	if v.Bool(KeySnapshotEnabled) || v.Int(KeyScheduledHour) != 1 {
		t.Error("a value was lost")
	}
	if err := f.Abort(); err != nil {
		t.Fatal(err)
	}
}

func TestLockIsWaitedFor(t *testing.T) {
	s := newStore(t)
	l, err := durable.TryLock(s.o.Path+".lock", []byte("pid 4711"))
	if err != nil {
		t.Fatal(err)
	}
	s.o.LockWait = 20 * time.Millisecond
	if _, err := s.Set(t.Context(), pairs("snapshot.enabled", "False")); !errors.Is(err, durable.ErrLocked) || !strings.Contains(err.Error(), "pid 4711") {
		t.Errorf("a held lock: %v", err)
	}
	if err := l.Unlock(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Set(t.Context(), pairs("snapshot.enabled", "False")); err != nil {
		t.Error(err)
	}
}

func TestCreateKeepsWhatExists(t *testing.T) {
	s := newStore(t)
	if _, err := s.Set(t.Context(), pairs("pgsql.pgbackrest.cipher_pass", "x")); err != nil {
		t.Fatal(err)
	}
	if err := s.Create(t.Context(), pairs("snapshot.enabled", "False")); err != nil {
		t.Fatal(err)
	}
	v := load(t, s)
	if pass, err := v.Secret(KeyCipherPass); err != nil || pass.Reveal() != "x" || !v.Bool(KeySnapshotEnabled) {
		t.Errorf("Create changed an existing store: %v", err)
	}
	info, err := os.Stat(s.o.KeyPath)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != 32 {
		t.Errorf("key file: %v %v", info, err)
	}
	fresh := NewStore(Options{Path: filepath.Join(t.TempDir(), "c"), KeyPath: filepath.Join(t.TempDir(), "k")})
	if err := fresh.Create(t.Context(), HostDefaults("/mnt/d", "/mnt/b")); err != nil {
		t.Fatal(err)
	}
	if v := load(t, fresh); v.Path(KeyRepoDir) != "/mnt/b/pgbackrest" || v.Clusters(KeyClusters)[0].DataDir != "/mnt/d/pgsql/data" {
		t.Error("host defaults are not in the store")
	}
}
