package sftp_test

import (
	"bytes"
	"context"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"holdfast/internal/storage"
	"holdfast/internal/storage/sftp"
	"holdfast/internal/storage/storagetest"
	"holdfast/test/stores"
)

var paths atomic.Int32

// store returns a store in a directory of its own of a running server.
func store(t testing.TB, server *stores.SSHServer, change func(*sftp.Options)) *sftp.Store {
	t.Helper()
	o := sftp.Options{Host: "127.0.0.1", Port: server.Port, User: server.User, Path: filepath.Join(server.Dir, fmt.Sprintf("deep/repo%d", paths.Add(1))),
		PrivateKeyFile: server.KeyFile, KnownHosts: []string{server.KnownHosts}}
	if change != nil {
		change(&o)
	}
	s, err := sftp.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// atOnce is a back-off without pauses.
func atOnce(attempts int) storage.Backoff {
	return storage.Backoff{Attempts: attempts, Sleep: func(ctx context.Context, _ time.Duration) error { return ctx.Err() }}
}

// stack adds the decorators of real life.
func stack(s storage.Storage) storage.Storage {
	return storage.NewResume(storage.NewRetry(s, storage.RetryOptions{Backoff: atOnce(4)}), atOnce(4))
}

func TestConformance(t *testing.T) {
	server := stores.SSH(t)
	storagetest.Run(t, func(t *testing.T) storage.Storage { return store(t, server, nil) })
}

func TestConformanceOfTheStack(t *testing.T) {
	server := stores.SSH(t)
	storagetest.Run(t, func(t *testing.T) storage.Storage { return stack(storage.NewLimit(store(t, server, nil), 4)) })
}

// Directories are synced, too: the server is asked to, and does not say that it cannot.
func TestModesAndSyncs(t *testing.T) {
	server := stores.SSH(t)
	s := store(t, server, nil)
	if err := storage.WriteAll(t.Context(), s, "a/b", []byte("x")); err != nil {
		t.Fatal(err)
	}
	roots, err := filepath.Glob(server.Dir + "/deep/repo*")
	if err != nil || len(roots) != 1 {
		t.Fatal(roots, err)
	}
	for name, want := range map[string]fs.FileMode{"a/b": 0o640, "a": fs.ModeDir | 0o750, ".": fs.ModeDir | 0o750} {
		if fi, err := os.Stat(filepath.Join(roots[0], name)); err != nil || fi.Mode() != want {
			t.Errorf("%s: %v %v", name, fi.Mode(), err)
		}
	}
	if err := s.FsyncDir(t.Context(), "a"); err != nil {
		t.Errorf("OpenSSH does sync directories: %v", err)
	}
}

// Whatever packet the connection breaks at: the story ends well, or in a clear error with nothing half published, and the
// next run ends well. Nothing hangs.
func TestEveryPacketMayBeTheLast(t *testing.T) {
	server := stores.SSH(t)
	w := stores.NewWire(t, server.Port)
	known := filepath.Join(t.TempDir(), "known")
	cuts, failed := 0, 0
	for at := 1; ; at += 1 + at/10 {
		s := stack(store(t, server, func(o *sftp.Options) {
			o.Port, o.KnownHosts, o.HostKeyCheck = w.Port, []string{known}, sftp.CheckAcceptNew
		}))
		w.CutAfter(at)
		err := storagetest.Story(t, s, 700<<10)
		fired := w.Fired()
		w.CutAfter(0)
		if !fired {
			if err != nil {
				t.Error(err)
			}
			break
		}
		cuts++
		if err == nil {
			continue
		}
		failed++
		for in, lerr := range s.List(t.Context(), "", storage.ListOptions{Recursive: true}) {
			if lerr != nil {
				t.Fatal(lerr)
			}
			sizes := map[string][]int64{"a/big": {700 << 10, 700<<10 - 1}, "a/small": {5, 8}, "b/1": {100}, "b/2": {200}}
			if want := sizes[in.Name]; want != nil && !slices.Contains(want, in.Size) {
				t.Errorf("cut at packet %d: %s has %d bytes", at, in.Name, in.Size)
			}
		}
		if err := storagetest.Story(t, s, 700<<10); err != nil {
			t.Errorf("cut at packet %d, then again: %v", at, err)
		}
	}
	if cuts < 20 || failed == cuts {
		t.Errorf("%d cuts, %d failed runs", cuts, failed)
	}
	t.Logf("%d cuts, of which %d ended a write", cuts, failed)
}

// A rename whose answer is lost is found done when Commit is called again.
func TestCommitAfterLostConnection(t *testing.T) {
	server := stores.SSH(t)
	w := stores.NewWire(t, server.Port)
	s := store(t, server, func(o *sftp.Options) { o.Port, o.HostKeyCheck = w.Port, sftp.CheckNone })
	retry := storage.NewRetry(s, storage.RetryOptions{Backoff: atOnce(4)})
	if err := storage.WriteAll(t.Context(), s, "a", []byte("old")); err != nil {
		t.Fatal(err)
	}
	done, gaveUp := 0, 0
	for at := 1; at < 40; at++ {
		wr, err := retry.Create(t.Context(), "a", storage.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		content := fmt.Sprintf("new %d", at)
		if _, err := wr.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
		w.CutAfter(at)
		err = wr.Commit(t.Context())
		fired := w.Fired()
		w.CutAfter(0)
		if aerr := wr.Abort(); aerr != nil {
			t.Error(aerr)
		}
		b, rerr := storage.ReadAll(t.Context(), stack(s), "a", 100)
		if rerr != nil || err == nil && string(b) != content {
			t.Errorf("cut at %d: commit %v, then %q %v", at, err, b, rerr)
		}
		if !fired {
			break
		}
		if err == nil {
			done++
		} else {
			gaveUp++
		}
	}
	if done == 0 || gaveUp == 0 {
		t.Errorf("%d commits went through a cut, %d were given up", done, gaveUp)
	}
}

// fingerprints of the server's key, in the ways in which people write them.
func fingerprints(key ssh.PublicKey) map[string][2]string {
	m, s1, s2 := md5.Sum(key.Marshal()), sha1.Sum(key.Marshal()), sha256.Sum256(key.Marshal())
	return map[string][2]string{"md5": {"md5", hex.EncodeToString(m[:])}, "md5 with colons": {"md5", "MD5:" + ssh.FingerprintLegacyMD5(key)}, "sha1": {"sha1", hex.EncodeToString(s1[:])},
		"sha256": {"sha256", strings.ToUpper(hex.EncodeToString(s2[:]))}, "as ssh-keygen prints it": {"", ssh.FingerprintSHA256(key)}}
}

func TestHostKeys(t *testing.T) {
	server := stores.SSH(t)
	dir := t.TempDir()
	empty, other := filepath.Join(dir, "none"), filepath.Join(dir, "other")
	text, err := os.ReadFile(server.KnownHosts)
	if err != nil {
		t.Fatal(err)
	}
	fields := strings.Fields(string(text))
	wrong := fields[0] + " ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl\n"
	if err := os.WriteFile(other, []byte(wrong), 0o600); err != nil {
		t.Fatal(err)
	}
	try := func(change func(*sftp.Options)) error {
		_, err := store(t, server, change).Stat(t.Context(), "x")
		if errors.Is(err, fs.ErrNotExist) {
			return nil // so we were let in
		}
		return err
	}
	for name, c := range map[string]struct {
		change func(*sftp.Options)
		ok     bool
	}{
		"strict, known":         {nil, true},
		"strict, unknown":       {func(o *sftp.Options) { o.KnownHosts = []string{empty} }, false},
		"strict, another key":   {func(o *sftp.Options) { o.KnownHosts = []string{other} }, false},
		"accept-new, changed":   {func(o *sftp.Options) { o.HostKeyCheck, o.KnownHosts = sftp.CheckAcceptNew, []string{other} }, false},
		"none":                  {func(o *sftp.Options) { o.HostKeyCheck, o.KnownHosts = sftp.CheckNone, nil }, true},
		"fingerprint, another":  {func(o *sftp.Options) { o.HostKeyCheck, o.Fingerprint = sftp.CheckFingerprint, "00ff" }, false},
		"strict and a wrong fp": {func(o *sftp.Options) { o.Fingerprint = "00ff" }, false},
		"strict and a right fp": {func(o *sftp.Options) { o.Fingerprint, o.KnownHosts = ssh.FingerprintSHA256(server.HostKey), nil }, true},
	} {
		err := try(c.change)
		if (err == nil) != c.ok || err != nil && (!errors.Is(err, sftp.ErrHostKey) || storage.IsTemporary(err) || !storage.IsUnavailable(err)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, fp := range fingerprints(server.HostKey) {
		if err := try(func(o *sftp.Options) {
			o.HostKeyCheck, o.HostKeyHash, o.Fingerprint, o.KnownHosts = sftp.CheckFingerprint, fp[0], fp[1], nil
		}); err != nil {
			t.Errorf("fingerprint %s: %v", name, err)
		}
	}
	fresh := filepath.Join(dir, "ssh", "known_hosts")
	for _, check := range []string{sftp.CheckAcceptNew, sftp.CheckAcceptNew, sftp.CheckStrict} {
		if err := try(func(o *sftp.Options) { o.HostKeyCheck, o.KnownHosts = check, []string{fresh} }); err != nil {
			t.Errorf("%s: %v", check, err)
		}
	}
	if b, err := os.ReadFile(fresh); err != nil || strings.Count(string(b), "\n") != 1 {
		t.Errorf("remembered %q, %v", b, err)
	}
}

func TestKeys(t *testing.T) {
	server := stores.SSH(t)
	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: server.Signer}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = agent.ServeAgent(keyring, c) // ends with the connection
			}()
		}
	}()
	for name, change := range map[string]func(*sftp.Options){
		"plain": nil,
		"passphrase": func(o *sftp.Options) {
			o.PrivateKeyFile, o.Passphrase = server.LockedKey, storage.Secret(server.Passphrase)
		},
		"agent":          func(o *sftp.Options) { o.PrivateKeyFile, o.AgentSocket = "", socket },
		"and public key": func(o *sftp.Options) { o.PublicKeyFile = server.KeyFile + ".pub" },
	} {
		if _, err := store(t, server, change).Stat(t.Context(), "x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other := stores.SSH(t)
	_, err = store(t, server, func(o *sftp.Options) { o.PrivateKeyFile = other.KeyFile }).Stat(t.Context(), "x")
	if !errors.Is(err, sftp.ErrAuth) || storage.IsTemporary(err) {
		t.Errorf("a key that the server does not know: %v", err)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	server := stores.SSH(t)
	open := filepath.Join(t.TempDir(), "open")
	if b, err := os.ReadFile(server.KeyFile); err != nil || os.WriteFile(open, b, 0o600) != nil || os.Chmod(open, 0o644) != nil {
		t.Fatal(err)
	}
	ok := sftp.Options{Host: "h", User: "u", PrivateKeyFile: server.KeyFile}
	for i, change := range []func(*sftp.Options){func(o *sftp.Options) { o.Host = "" }, func(o *sftp.Options) { o.User = "" }, func(o *sftp.Options) { o.HostKeyCheck = "other" },
		func(o *sftp.Options) { o.HostKeyCheck = sftp.CheckFingerprint }, func(o *sftp.Options) { o.PrivateKeyFile = "" }, func(o *sftp.Options) { o.PrivateKeyFile = open },
		func(o *sftp.Options) { o.PrivateKeyFile = server.LockedKey }, func(o *sftp.Options) { o.PrivateKeyFile, o.Passphrase = server.LockedKey, "planted-wrong" },
		func(o *sftp.Options) { o.PrivateKeyFile = server.KnownHosts }, func(o *sftp.Options) { o.PublicKeyFile = server.KnownHosts }} {
		o := ok
		change(&o)
		if _, err := sftp.New(o); err == nil || strings.Contains(err.Error(), "planted") {
			t.Errorf("case %d: %v", i, err)
		}
	}
	o := ok
	o.Passphrase = "planted"
	if text := fmt.Sprintf("%v %+v %#v", o, o, o); strings.Contains(text, "planted") {
		t.Error(text)
	}
	s, err := sftp.New(ok)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// A server that is away is a temporary error that says which one.
func TestServerAway(t *testing.T) {
	server := stores.SSH(t)
	port := stores.FreePort(t)
	_, err := store(t, server, func(o *sftp.Options) { o.Port = port }).Stat(t.Context(), "x")
	if !storage.IsTemporary(err) || !strings.Contains(err.Error(), fmt.Sprintf("@127.0.0.1:%d", port)) {
		t.Error(err)
	}
}

// A server that says nothing any more is noticed, also by those who wait for an answer.
func TestSilence(t *testing.T) {
	server := stores.SSH(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = store(t, server, func(o *sftp.Options) { o.Port, o.Timeout = l.Addr().(*net.TCPAddr).Port, 100*time.Millisecond }).Stat(t.Context(), "x")
	if !storage.IsTemporary(err) {
		t.Error(err)
	}
}

// Tree removal, sweeping and links keep to what they should.
func TestLinksAndSweep(t *testing.T) {
	s := store(t, stores.SSH(t), nil)
	for _, err := range []error{storage.WriteAll(t.Context(), s, "a/b", []byte("one")), storage.WriteAll(t.Context(), s, "c/d/e", []byte("two")),
		s.Link(t.Context(), "a/b", "c/d/e"), s.Link(t.Context(), "a/b", "c/d/e"), s.Symlink(t.Context(), "b", "a/object"), s.Symlink(t.Context(), "missing", "a/dangling")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Link(t.Context(), "a/none", "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("link of what is missing: %v", err)
	}
	b, err := storage.ReadAll(t.Context(), s, "c/d/e", 100)
	if err != nil || !bytes.Equal(b, []byte("one")) {
		t.Errorf("%q %v", b, err)
	}
	w, err := s.Create(t.Context(), "a/unfinished", storage.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for in, err := range s.List(t.Context(), "", storage.ListOptions{Recursive: true}) {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, in.Name)
	}
	if want := []string{"a/b", "a/object", "c/d/e"}; !slices.Equal(names, want) {
		t.Errorf("listed %q", names)
	}
	if n, err := s.Sweep(t.Context(), "", time.Hour); n != 0 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if n, err := s.Sweep(t.Context(), "", -time.Hour); n != 1 || err != nil {
		t.Errorf("swept %d, %v", n, err)
	}
	if err := w.Commit(t.Context()); err == nil {
		t.Error("a writer whose file was swept commits")
	}
	if err := w.Abort(); err != nil {
		t.Error(err)
	}
}
