package sftp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/pkg/sftp"
	"golang.org/x/crypto/ssh"

	"holdfast/internal/storage"
)

// Defaults.
const (
	defaultPort        = 22
	defaultConnections = 4
	defaultTimeout     = time.Minute
	defaultFileMode    = fs.FileMode(0o640)
	defaultDirMode     = fs.FileMode(0o750)
	callsPerConnection = 8 // more of them at once open a further connection, up to Options.Connections
)

// Options says where the server is and who we are. The comments name pgBackRest's options.
type Options struct {
	Host           string         // repo-sftp-host
	Port           int            // repo-sftp-host-port; 0: 22
	User           string         // repo-sftp-host-user
	Path           string         // repo-path; relative to the user's home if it has no leading slash
	PrivateKeyFile string         // repo-sftp-private-key-file; "": the agent's keys
	Passphrase     storage.Secret // repo-sftp-private-key-passphrase
	PublicKeyFile  string         // repo-sftp-public-key-file: needed only if it is a certificate
	AgentSocket    string         // of ssh-agent (SSH_AUTH_SOCK)
	HostKeyCheck   string         // repo-sftp-host-key-check-type; "" = strict
	KnownHosts     []string       // repo-sftp-known-host: files; missing ones are passed over
	HostKeyHash    string         // repo-sftp-host-key-hash-type, of Fingerprint; "" = sha256
	Fingerprint    string         // repo-sftp-host-fingerprint: hexadecimal, or as ssh-keygen -l prints it
	Timeout        time.Duration  // io-timeout: longest silence of the server; 0: one minute
	Connections    int            // most connections; 0: 4
	FileMode       fs.FileMode    // 0: 0640
	DirMode        fs.FileMode    // 0: 0750
}

// Store is a directory on the server. It implements storage.Storage, Linker and Sweeper.
type Store struct {
	o     Options
	root  string
	auth  []ssh.AuthMethod
	hosts *hostKeys
	now   func() time.Time

	mu      sync.Mutex
	conns   []*conn
	dialing int
	closed  bool
}

// noDeadline takes a deadline away.
var noDeadline time.Time

// New checks the options and reads the private key. It connects to nothing.
func New(o Options) (*Store, error) {
	if o.Host == "" || o.User == "" {
		return nil, errors.New("sftp: no host or no user given")
	}
	o.Port, o.HostKeyCheck, o.Timeout = cmp.Or(o.Port, defaultPort), cmp.Or(o.HostKeyCheck, CheckStrict), cmp.Or(o.Timeout, defaultTimeout)
	o.Connections, o.FileMode, o.DirMode = cmp.Or(o.Connections, defaultConnections), cmp.Or(o.FileMode, defaultFileMode), cmp.Or(o.DirMode, defaultDirMode)
	switch o.HostKeyCheck {
	case CheckStrict, CheckAcceptNew, CheckNone:
	case CheckFingerprint:
		if o.Fingerprint == "" {
			return nil, errors.New("sftp: host key check fingerprint needs the fingerprint")
		}
	default:
		return nil, fmt.Errorf("sftp: host key check %q: use strict, accept-new, fingerprint or none", o.HostKeyCheck)
	}
	auth, err := authMethods(o)
	if err != nil {
		return nil, fmt.Errorf("sftp: %w", err)
	}
	return &Store{o: o, root: path.Clean(cmp.Or(o.Path, ".")), auth: auth, hosts: &hostKeys{o: o}, now: time.Now}, nil
}

// Close ends the connections. No call may be in flight, none may follow. A program that ends need not call it.
func (s *Store) Close() error {
	s.mu.Lock()
	conns := s.conns
	s.conns, s.closed = nil, true
	s.mu.Unlock()
	for _, c := range conns {
		c.end()
	}
	return nil
}

// Abilities says that links and sweeping are offered, over a network.
func (s *Store) Abilities() storage.Abilities {
	return storage.Abilities{Connections: s.o.Connections * callsPerConnection, Links: true, Sweeps: true, Remote: true}
}

// path is where an object is on the server.
func (s *Store) path(name string) string { return path.Join(s.root, name) }

// fail describes an error by the object's address. (A time limit of the network is a context.DeadlineExceeded, too.)
func (s *Store) fail(op, name string, err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return &fs.PathError{Op: op, Path: "sftp://" + s.o.User + "@" + net.JoinHostPort(s.o.Host, strconv.Itoa(s.o.Port)) + "/" + strings.TrimPrefix(s.path(name), "/"), Err: err}
}

// check is what every call with a name begins with.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return storage.CheckName(name)
}

// conn is one connection.
type conn struct {
	ssh  *ssh.Client
	sftp *sftp.Client
	done chan struct{} // closed when the connection has ended
	once sync.Once

	users            int  // guarded by Store.mu
	canSync, canLink bool // extensions of the server
}

// end ends the connection; calls that wait for an answer return.
func (c *conn) end() {
	c.once.Do(func() {
		close(c.done)
		c.ssh.Close()  // unblocks everything
		c.sftp.Close() // as above; what was open is of no use any more
	})
}

// ended reports whether the connection is gone.
func (c *conn) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// connect opens a connection and starts to watch it.
func (s *Store) connect(ctx context.Context) (*conn, error) {
	client, err := s.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", err)
	}
	f, err := sftp.NewClient(client, sftp.UseConcurrentWrites(true))
	if err != nil {
		client.Close() // the error above is the one to report
		return nil, fmt.Errorf("connect: the server does not offer SFTP: %w", storage.Temporary(err))
	}
	c := &conn{ssh: client, sftp: f, done: make(chan struct{})}
	if _, ok := f.HasExtension("posix-rename@openssh.com"); !ok {
		c.end()
		return nil, errors.New("the server cannot replace a file in one step (posix-rename@openssh.com): a repository is not safe there")
	}
	_, c.canSync = f.HasExtension("fsync@openssh.com")
	_, c.canLink = f.HasExtension("hardlink@openssh.com")
	go func() {
		// Why it ended is told to whoever was waiting for an answer.
		_ = client.Wait()
		c.end()
	}()
	go s.watch(c)
	return c, nil
}

// watch asks the server for a sign of life, and ends a connection on which there is none: everybody who waits is told.
func (s *Store) watch(c *conn) {
	tick := time.NewTicker(s.o.Timeout / 2)
	defer tick.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-tick.C:
		}
		answered := make(chan struct{})
		go func() {
			// A server that does not know the question says so, which is a sign of life as well.
			_, _, err := c.ssh.SendRequest("keepalive@openssh.com", true, nil)
			if err == nil {
				close(answered)
			}
		}()
		patience := time.NewTimer(s.o.Timeout)
		select {
		case <-answered:
		case <-c.done:
		case <-patience.C:
			c.end()
		}
		patience.Stop()
	}
}

// acquire returns a connection, a new one if the others are busy and there may be more.
func (s *Store) acquire(ctx context.Context) (*conn, error) {
	s.mu.Lock()
	var best *conn
	alive := s.conns[:0]
	for _, c := range s.conns {
		if c.ended() {
			continue
		}
		alive = append(alive, c)
		if best == nil || c.users < best.users {
			best = c
		}
	}
	s.conns = alive
	if s.closed {
		s.mu.Unlock()
		return nil, fs.ErrClosed
	}
	if best != nil && (best.users < callsPerConnection || len(s.conns)+s.dialing >= s.o.Connections) {
		best.users++
		s.mu.Unlock()
		return best, nil
	}
	s.dialing++
	s.mu.Unlock()
	c, err := s.connect(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dialing--
	if err != nil {
		if best != nil && !best.ended() && ctx.Err() == nil { // a server that allows no more connections: share
			best.users++
			return best, nil
		}
		if ctx.Err() == nil {
			err = storage.Unavailable(err)
		}
		return nil, err
	}
	if s.closed {
		c.end()
		return nil, fs.ErrClosed
	}
	c.users++
	s.conns = append(s.conns, c)
	return c, nil
}

func (s *Store) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.users--
}

// translate makes the library's errors ours: what a lost connection did is temporary.
func translate(ctx context.Context, c *conn, err error) error {
	if err == nil {
		return nil
	}
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	if errors.Is(err, sftp.ErrSSHFxConnectionLost) || errors.Is(err, io.EOF) || c.ended() {
		c.end() // so that nobody else is given it
		return storage.Temporary(fmt.Errorf("the connection is lost: %w", err))
	}
	var said *sftp.StatusError
	if errors.As(err, &said) && said.FxCode() == sftp.ErrSSHFxFailure {
		return fmt.Errorf("the server cannot do it, and does not say why (is its disk full?): %w", err)
	}
	return err
}

// call does one thing on a connection.
func (s *Store) call(ctx context.Context, do func(c *conn) error) error {
	c, err := s.acquire(ctx)
	if err != nil {
		return err
	}
	defer s.release(c)
	return translate(ctx, c, do(c))
}

// Stat implements storage.Storage.
func (s *Store) Stat(ctx context.Context, name string) (storage.Info, error) {
	if err := check(ctx, name); err != nil {
		return storage.Info{}, err
	}
	var fi fs.FileInfo
	err := s.call(ctx, func(c *conn) (err error) {
		fi, err = c.sftp.Stat(s.path(name))
		return err
	})
	if err == nil && fi.IsDir() {
		err = fs.ErrNotExist
	}
	if err == nil && !fi.Mode().IsRegular() {
		err = errors.New("neither a file nor a directory")
	}
	if err != nil {
		return storage.Info{}, s.fail("stat", name, err)
	}
	return storage.Info{Name: name, Size: fi.Size(), ModTime: fi.ModTime()}, nil
}

// Sync implements storage.Storage: every Commit has waited for the server's disk.
func (s *Store) Sync(ctx context.Context) error { return ctx.Err() }

// syncDir makes the entries of a directory durable, where the server lets a directory be opened for it.
func (s *Store) syncDir(c *conn, dir string) error {
	if !c.canSync {
		return nil
	}
	d, err := c.sftp.Open(dir)
	if err != nil {
		if errors.Is(err, sftp.ErrSSHFxConnectionLost) {
			return err
		}
		return nil // it went away, or this server does not open directories: it has been asked
	}
	err = d.Sync()
	d.Close() // opened for reading: nothing to lose
	return err
}

// makeDirs makes a directory and its missing parents, durably.
func (s *Store) makeDirs(c *conn, dir string) error {
	err := c.sftp.Mkdir(dir)
	if errors.Is(err, fs.ErrNotExist) && path.Dir(dir) != dir {
		if err := s.makeDirs(c, path.Dir(dir)); err != nil {
			return err
		}
		err = c.sftp.Mkdir(dir)
	}
	if err != nil {
		if fi, serr := c.sftp.Stat(dir); serr == nil && fi.IsDir() {
			return nil // it is there already
		}
		return err
	}
	if err := c.sftp.Chmod(dir, s.o.DirMode); err != nil && !errors.Is(err, fs.ErrNotExist) { // another remover may have been faster
		return err
	}
	return s.syncDir(c, path.Dir(dir))
}

// raceTries is how often a directory is made again when another process keeps removing it while it is empty.
const raceTries = 16

// inDir calls do, and makes the directory as needed, again if it vanishes before do could put something into it.
func (s *Store) inDir(c *conn, dir string, do func() error) error {
	for try := 0; ; try++ {
		err := do()
		if !errors.Is(err, fs.ErrNotExist) || try == raceTries {
			return err
		}
		if err := s.makeDirs(c, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
}
