// Package kafkatest starts real Apache Kafka brokers: single nodes in KRaft
// mode, from the jars that scripts/setup-kafka has put into the cache. The
// tests of the event bus use [Start], the demonstration uses [Run].
package kafkatest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Broker is a running broker.
type Broker struct {
	address string
	cmd     *exec.Cmd
	log     string
	done    chan struct{} // closed when the process has ended
}

// Brokers returns the addresses to connect to.
func (b *Broker) Brokers() []string { return []string{b.address} }

// Done is closed when the broker's process has ended.
func (b *Broker) Done() <-chan struct{} { return b.done }

// Kill ends the broker at once and waits for it.
func (b *Broker) Kill() {
	_ = b.cmd.Process.Kill() // an error means that it has ended already
	<-b.done
}

// Stop asks the broker to shut down and waits for it; after ten seconds, or
// when ctx is done, it is killed.
func (b *Broker) Stop(ctx context.Context) {
	_ = b.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended already
	t := time.NewTimer(10 * time.Second)
	defer t.Stop()
	select {
	case <-b.done:
	case <-t.C:
		b.Kill()
	case <-ctx.Done():
		b.Kill()
	}
}

// Start starts a broker on an empty directory and ends it with the test.
func Start(t testing.TB) *Broker {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Kafka broker; run make test")
	}
	var last error
	for range 3 { // a port found free may be taken before the broker has it
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		b, err := Run(ctx, t.TempDir(), 0)
		cancel()
		if err == nil {
			t.Cleanup(b.Kill)
			return b
		}
		if last = err; !strings.Contains(err.Error(), "Address already in use") {
			break
		}
	}
	t.Fatal(last)
	return nil
}

// Run starts a broker that keeps its data in dir, on 127.0.0.1 at port (0: a
// free one), and returns when it answers. A directory that a broker has used
// before goes on where that one ended. Cancelling ctx while it starts ends it;
// afterwards it runs until Stop, Kill, or the end of this process.
func Run(ctx context.Context, dir string, port int) (*Broker, error) {
	libs := filepath.Join(cache(), "kafka", "libs")
	if _, err := os.Stat(filepath.Join(libs, ".complete")); err != nil {
		return nil, fmt.Errorf("kafka broker: its jars are not in %s; run: make setup", libs)
	}
	java, err := exec.LookPath("java")
	if err != nil {
		return nil, fmt.Errorf("kafka broker: no java on the PATH; run: make setup: %w", err)
	}
	ports, err := freePorts(2)
	if err != nil {
		return nil, fmt.Errorf("kafka broker: %w", err)
	}
	if port == 0 {
		port = ports[0]
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("kafka broker: %w", err)
	}
	properties := filepath.Join(dir, "server.properties")
	if err := os.WriteFile(properties, []byte(config(dir, port, ports[1])), 0o600); err != nil {
		return nil, fmt.Errorf("kafka broker: %w", err)
	}
	jvm := []string{
		"-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto",
		"-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", filepath.Join(libs, "*"),
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "meta.properties")); err != nil {
		format := exec.CommandContext(ctx, java, append(jvm[:len(jvm):len(jvm)],
			"kafka.tools.StorageTool", "format", "-t", "aG9sZGZhc3QtdGVzdC1raw", "-c", properties)...)
		if out, err := format.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("kafka broker: format %s: %w: %s", dir, err, out)
		}
	}
	b := &Broker{address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), log: filepath.Join(dir, "broker.log"), done: make(chan struct{})}
	if err := b.start(java, append(jvm, "kafka.Kafka", properties)); err != nil {
		return nil, fmt.Errorf("kafka broker: %w", err)
	}
	if err := b.await(ctx); err != nil {
		b.Kill()
		text, _ := os.ReadFile(b.log) // only to make the message richer
		return nil, fmt.Errorf("kafka broker at %s: %w; its log %s:\n%s", b.address, err, b.log, tail(text))
	}
	return b, nil
}

// start runs the process from a thread that lives as long as it does, because
// the kernel ends it (Pdeathsig) with the thread that started it.
func (b *Broker) start(java string, args []string) error {
	log, err := os.OpenFile(b.log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	b.cmd = exec.Command(java, args...)
	b.cmd.Stdout, b.cmd.Stderr = log, log
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		defer close(b.done)
		defer func() { _ = log.Close() }() // written by the process, not by us
		err := b.cmd.Start()
		started <- err
		if err == nil {
			_ = b.cmd.Wait() // how it ended is in its log
		}
	}()
	return <-started
}

// await asks until the broker answers and has a controller.
func (b *Broker) await(ctx context.Context) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.address), kgo.RetryTimeout(time.Second), kgo.MetadataMinAge(50*time.Millisecond))
	if err != nil {
		return err
	}
	defer cl.Close()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		md, err := kadm.NewClient(cl).BrokerMetadata(ctx)
		if err == nil && len(md.Brokers) == 1 {
			return nil
		}
		select {
		case <-b.done:
			return errors.New("the process has ended")
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func config(dir string, port, controller int) string {
	return fmt.Sprintf(`process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:%[3]d
listeners=PLAINTEXT://127.0.0.1:%[2]d,CONTROLLER://127.0.0.1:%[3]d
advertised.listeners=PLAINTEXT://127.0.0.1:%[2]d
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=%[1]s
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
log.retention.check.interval.ms=1000
log.cleaner.backoff.ms=1000
log.initial.task.delay.ms=100
num.network.threads=2
num.io.threads=4
`, filepath.Join(dir, "data"), port, controller)
}

func cache() string {
	if c := os.Getenv("HOLDFAST_CACHE"); c != "" {
		return c
	}
	return "/var/cache/holdfast"
}

// freePorts finds ports that nobody listens on, below those that the kernel gives to whoever asks it for any.
func freePorts(n int) (ports []int, err error) {
	for try := 0; len(ports) < n; try++ {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(20_000+rand.IntN(12_000))))
		if err != nil && try < 100 {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("find a free port: %w", err)
		}
		defer func() { _ = l.Close() }() // only held to be given away
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports, nil
}

func tail(text []byte) string {
	const most = 4000
	return string(text[max(0, len(text)-most):])
}
