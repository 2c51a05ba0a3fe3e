package stores

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// SSHServer is a running OpenSSH server that lets one key in, for SFTP.
type SSHServer struct {
	Port       int
	User       string
	Dir        string // that the user may write in
	KeyFile    string // private key without a passphrase
	LockedKey  string // the same key, with Passphrase
	Passphrase string
	KnownHosts string // file with the server's key
	HostKey    ssh.PublicKey
	Signer     any // the private key itself, for an agent
	log        string
}

// Log is what the server has written so far.
func (s *SSHServer) Log(t testing.TB) string { return (&Server{log: s.log}).Log(t) }

// SSH starts OpenSSH's server as an ordinary user; as root, as the user postgres.
func SSH(t testing.TB) *SSHServer {
	t.Helper()
	if testing.Short() {
		t.Skip("needs OpenSSH's server; run make test")
	}
	dir := publicDir(t)
	s := &SSHServer{Port: FreePort(t), Dir: filepath.Join(dir, "data"), KeyFile: filepath.Join(dir, "id"), LockedKey: filepath.Join(dir, "id-locked"),
		Passphrase: "planted-passphrase", KnownHosts: filepath.Join(dir, "known_hosts")}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	account, err := user.Current()
	must(err)
	var cred *syscall.Credential
	if os.Geteuid() == 0 {
		account, err = user.Lookup("postgres")
		must(err)
		uid, err1 := strconv.Atoi(account.Uid)
		gid, err2 := strconv.Atoi(account.Gid)
		must(err1)
		must(err2)
		cred = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), NoSetGroups: false}
	}
	s.User = account.Username
	must(os.Mkdir(s.Dir, 0o777))
	must(os.Chmod(s.Dir, 0o777))
	write := func(name string, b []byte) string {
		t.Helper()
		file := filepath.Join(dir, name)
		must(os.WriteFile(file, b, 0o600))
		if cred != nil {
			must(os.Chown(file, int(cred.Uid), int(cred.Gid)))
		}
		return file
	}
	key := func(passphrase string, private ed25519.PrivateKey) []byte {
		t.Helper()
		var block *pem.Block
		var err error
		if passphrase == "" {
			block, err = ssh.MarshalPrivateKey(private, "")
		} else {
			block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
		}
		must(err)
		return pem.EncodeToMemory(block)
	}
	hostPublic, hostPrivate, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	public, private, err := ed25519.GenerateKey(rand.Reader)
	must(err)
	s.HostKey, err = ssh.NewPublicKey(hostPublic)
	must(err)
	ours, err := ssh.NewPublicKey(public)
	must(err)
	s.Signer = &private
	must(os.WriteFile(s.KeyFile, key("", private), 0o600))
	must(os.WriteFile(s.LockedKey, key(s.Passphrase, private), 0o600))
	must(os.WriteFile(s.KeyFile+".pub", ssh.MarshalAuthorizedKey(ours), 0o644))
	must(os.WriteFile(s.KnownHosts, []byte(knownhosts.Line([]string{net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port))}, s.HostKey)+"\n"), 0o644))
	config := write("sshd_config", fmt.Appendf(nil, "Port %d\nListenAddress 127.0.0.1\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"+
		"KbdInteractiveAuthentication no\nPidFile none\nMaxStartups 100\nMaxSessions 100\nLogLevel VERBOSE\nSubsystem sftp internal-sftp\n",
		s.Port, write("host_key", key("", hostPrivate)), write("authorized_keys", ssh.MarshalAuthorizedKey(ours))))
	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", config) // sshd wants its own absolute path
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	s.log = start(t, cmd, func(ctx context.Context) error {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)))
		if err != nil {
			return err
		}
		defer c.Close() // only looked at
		hello := make([]byte, 4)
		if _, err := io.ReadFull(c, hello); err != nil || !strings.HasPrefix(string(hello), "SSH-") {
			return fmt.Errorf("not an SSH server: %q %v", hello, err)
		}
		return nil
	}).log
	return s
}

// Wire is a TCP connection's way through us, which can be cut.
type Wire struct {
	Port int

	mu    sync.Mutex
	conns map[net.Conn]bool
	after int // packets until all connections are cut; 0: never
	fired bool
}

// NewWire forwards a free port to another one of this machine.
func NewWire(t testing.TB, to int) *Wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{Port: l.Addr().(*net.TCPAddr).Port, conns: map[net.Conn]bool{}}
	var copies sync.WaitGroup
	t.Cleanup(func() {
		l.Close() // ends accepting
		w.Cut()
		copies.Wait()
	})
	copies.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			back, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(to)))
			if err != nil {
				c.Close() // nobody there
				continue
			}
			w.mu.Lock()
			w.conns[c], w.conns[back] = true, true
			w.mu.Unlock()
			copies.Go(func() { w.pass(c, back) })
			copies.Go(func() { w.pass(back, c) })
		}
	})
	return w
}

// CutAfter cuts all connections once that many packets have passed, in either direction, counted from now.
func (w *Wire) CutAfter(packets int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.after, w.fired = packets, false
}

// Fired reports whether that has happened.
func (w *Wire) Fired() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fired
}

// Cut cuts all connections.
func (w *Wire) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut()
}

func (w *Wire) cut() {
	for c := range w.conns {
		c.Close() // that is the point
	}
	clear(w.conns)
}

func (w *Wire) pass(from, to net.Conn) {
	defer from.Close() // one direction ends the other
	defer to.Close()
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			w.mu.Lock()
			if w.after > 0 {
				if w.after--; w.after == 0 {
					w.fired = true
					w.cut()
				}
			}
			w.mu.Unlock()
			if _, err := to.Write(b[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
