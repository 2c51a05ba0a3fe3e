package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/semaphore"

	"holdfast/test/stores"
)

// latencies are the times added to the way to the bucket and back.
var latencies = []time.Duration{0, 30 * time.Millisecond}

const (
	s3Key, s3Secret = "benchkey", "bench-secret-key"
	s3Region        = "us-east-1"
	s3Bucket        = "bench"
)

// measureS3 takes full backups in a bucket and restores them, with each latency. The server is versitygw on a directory of the
// same disk, so that it takes part of the cores from both tools.
func (w *world) measureS3(ctx context.Context) (err error) {
	dir := filepath.Join(w.dir, "s3")
	objects := filepath.Join(dir, "objects")
	for _, d := range []string{dir, objects} {
		if err := w.fresh(d); err != nil {
			return err
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // the tools read the authority's certificate
		return err
	}
	ca, err := stores.MakeCA(dir)
	if err != nil {
		return err
	}
	port, stop, err := w.startS3(ctx, ca, objects)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	defer func() { w.where = "" }()
	for _, latency := range latencies {
		if err := w.measureBucket(ctx, ca, objects, port, latency); err != nil {
			return err
		}
	}
	return nil
}

// measureBucket measures with one latency.
func (w *world) measureBucket(ctx context.Context, ca *stores.CA, objects, port string, latency time.Duration) (err error) {
	w.where = fmt.Sprintf(", S3 + %d ms", latency.Milliseconds())
	if latency > 0 {
		near, stop, err := w.startRelay(ctx, port, latency)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, stop()) }()
		port = near
	}
	conf := filepath.Join(w.dir, "s3.conf")
	text := fmt.Sprintf("[global]\nrepo1-type=s3\nrepo1-s3-bucket=%s\nrepo1-s3-region=%s\nrepo1-s3-endpoint=localhost\nrepo1-s3-uri-style=path\nrepo1-storage-port=%s\nrepo1-storage-ca-file=%s\nrepo1-s3-key=%s\nrepo1-s3-key-secret=%s\n",
		s3Bucket, s3Region, port, ca.File, s3Key, s3Secret)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		return err
	}
	if err := w.own(conf); err != nil {
		return err
	}
	kind := w.set.types[0]
	for round := range w.set.rounds {
		for _, t := range order(round, w.s3Tools()...) {
			t.repo += "-s3" // a local directory of that name stays empty
			t.common = append([]string{"--config=" + conf}, t.common[1:]...)
			bucket := filepath.Join(objects, s3Bucket)
			t.kept = bucket
			if err := os.RemoveAll(bucket); err != nil {
				return err
			}
			if err := os.Mkdir(bucket, 0o755); err != nil {
				return err
			}
			if err := w.fullAndRestore(ctx, t, kind, round); err != nil {
				return err
			}
		}
	}
	return nil
}

// s3Tools are the tools with bundles, and if asked for without.
func (w *world) s3Tools() []tool {
	var list []tool
	for _, t := range []tool{w.ours, w.theirs} {
		bundled := t
		bundled.backup = []string{"--repo1-bundle"}
		list = append(list, bundled)
		if w.set.plain {
			t.name += " plain"
			list = append(list, t)
		}
	}
	return list
}

// startS3 starts the server on a free port.
func (w *world) startS3(ctx context.Context, ca *stores.CA, objects string) (port string, stop func() error, err error) {
	if port, err = freePort(); err != nil {
		return "", nil, err
	}
	cache := os.Getenv("HOLDFAST_CACHE")
	if cache == "" {
		cache = "/var/cache/holdfast"
	}
	cmd := exec.CommandContext(ctx, filepath.Join(cache, "bin", "versitygw"), "--port", "127.0.0.1:"+port, "--cert", ca.Cert, "--key", ca.Key, "--region", s3Region, "--quiet", "--keep-alive", "posix", objects)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + w.dir, "ROOT_ACCESS_KEY=" + s3Key, "ROOT_SECRET_KEY=" + s3Secret}
	stop, err = background(ctx, cmd, port)
	return port, stop, err
}

// background starts a server and waits until it listens.
func background(ctx context.Context, cmd *exec.Cmd, port string) (stop func() error, err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w; run: make setup", err)
	}
	stop = func() error {
		err := cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
		if errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("%s ended by itself", cmd.Path)
		}
		return err
	}
	var d net.Dialer
	for range 500 {
		c, err := d.DialContext(ctx, "tcp", "127.0.0.1:"+port)
		if err == nil {
			return stop, c.Close()
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), stop())
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil, errors.Join(fmt.Errorf("%s does not listen on port %s", cmd.Path, port), stop())
}

// relayWord makes this program a relay: relay PORT/TO-PORT LATENCY.
const relayWord = "relay"

// startRelay starts this program again as the relay: its memory must not be counted as that of what is measured.
func (w *world) startRelay(ctx context.Context, to string, latency time.Duration) (port string, stop func() error, err error) {
	if port, err = freePort(); err != nil {
		return "", nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return "", nil, err
	}
	stop, err = background(ctx, exec.CommandContext(ctx, self, relayWord, port+"/"+to, latency.String()), port)
	return port, stop, err
}

// window is how many bytes may be on their way in one direction of one connection.
const window = 4 << 20

// relay hands connections on, and holds what it gets for half of the latency in each direction.
func relay(ports, latency string) error {
	near, far, _ := strings.Cut(ports, "/")
	d, err := time.ParseDuration(latency)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:"+near)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			time.Sleep(d) // the handshake takes one way there and back
			s, err := net.Dial("tcp", "127.0.0.1:"+far)
			if err != nil {
				_ = c.Close() // the client sees it
				return
			}
			go hold(s, c, d/2)
			hold(c, s, d/2)
		}()
	}
}

// piece is how much the relay reads at once.
const piece = 64 << 10

var pieces = sync.Pool{New: func() any { return new([piece]byte) }}

// hold copies with a delay: a line on which bytes travel for d, as many at once as the window of a connection allows. It must cost
// little, for it takes part of the cores that are measured: buffers are used again and filled, and what is due goes out together.
func hold(dst, src net.Conn, d time.Duration) {
	type chunk struct {
		b    []byte
		due  time.Time
		last *[piece]byte // to be given back with this chunk
	}
	queue := make(chan chunk, window/1024)
	free := semaphore.NewWeighted(window)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		defer close(queue)
		buf, used := pieces.Get().(*[piece]byte), 0
		for {
			n, err := src.Read(buf[used:])
			if n > 0 {
				if free.Acquire(ctx, int64(n)) != nil {
					return
				}
				c := chunk{b: buf[used : used+n], due: time.Now().Add(d)}
				if used += n; piece-used < piece/4 {
					c.last = buf
					buf, used = pieces.Get().(*[piece]byte), 0
				}
				queue <- c
			}
			if err != nil {
				return
			}
		}
	}()
	var out net.Buffers
	var given []*[piece]byte
	add := func(c chunk) {
		out = append(out, c.b)
		if c.last != nil {
			given = append(given, c.last)
		}
	}
	var next *chunk
	for {
		if next == nil {
			c, ok := <-queue
			if !ok {
				break
			}
			next = &c
		}
		time.Sleep(time.Until(next.due))
		out, given = out[:0], given[:0]
		now, size := time.Now(), int64(0)
		for next != nil && !next.due.After(now) && len(out) < 64 {
			add(*next)
			size += int64(len(next.b))
			next = nil
			select {
			case c, ok := <-queue:
				if ok {
					next = &c
				}
			default:
			}
		}
		to := out
		if _, err := to.WriteTo(dst); err != nil {
			break
		}
		for _, b := range given {
			pieces.Put(b)
		}
		free.Release(size)
	}
	_ = dst.Close() // both ends learn of it by that
	cancel()
	for range queue { // so that the reader ends
	}
}
