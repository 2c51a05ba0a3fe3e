package pg

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// peerUser is as which user of the operating system root connects to the socket of a server: "peer" authentication, which
// Debian's clusters begin with, lets only the role's namesake in. 0: as itself, since it is not root, the server is reached
// over the network, or the role has no namesake.
func peerUser(o ConnOptions) int {
	if os.Geteuid() != 0 || !filepath.IsAbs(o.Host) {
		return 0
	}
	u, err := user.Lookup(o.User)
	if err != nil {
		return 0
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return 0
	}
	return uid
}

// dialAs returns a dialer of sockets that connects as another user. Only root may. A ctx that ends leaves the attempt behind,
// which ends by itself.
func dialAs(uid int) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !strings.HasPrefix(network, "unix") {
			return new(net.Dialer).DialContext(ctx, network, addr)
		}
		type result struct {
			c   net.Conn
			err error
		}
		done := make(chan result, 1)
		go func() {
			c, err := connectAs(uid, addr)
			done <- result{c, err}
		}()
		select {
		case r := <-done:
			return r.c, r.err
		case <-ctx.Done():
			go func() {
				if r := <-done; r.c != nil {
					_ = r.c.Close() // nobody was given it
				}
			}()
			return nil, ctx.Err()
		}
	}
}

// connectAs connects while its own thread, and no other, acts as the user.
func connectAs(uid int, addr string) (net.Conn, error) {
	const keep = ^uintptr(0)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close() // net.FileConn has a copy
	runtime.LockOSThread()
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, uintptr(uid), keep); errno != 0 {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("act as user %d: %w", uid, errno)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: addr})
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, keep, 0, keep); errno == 0 {
		runtime.UnlockOSThread() // otherwise the thread ends with this goroutine
	}
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "unix", Addr: &net.UnixAddr{Name: addr, Net: "unix"}, Err: os.NewSyscallError("connect", err)}
	}
	return net.FileConn(f)
}
