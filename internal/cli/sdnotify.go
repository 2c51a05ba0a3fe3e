package cli

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// notifier tells the service manager how the daemon is: sd_notify(3). Without NOTIFY_SOCKET it says nothing.
type notifier struct {
	socket string
	every  time.Duration // how often the watchdog is to be told; 0: there is none
	told   time.Time
}

func newNotifier(env *Env) *notifier {
	n := &notifier{socket: env.Getenv("NOTIFY_SOCKET")}
	if usec, err := strconv.ParseInt(env.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && usec > 0 {
		n.every = time.Duration(usec) * time.Microsecond / 3
	}
	return n
}

// say sends lines such as READY=1. A manager that does not listen is not the daemon's problem: the error is for a log.
func (n *notifier) say(lines ...string) error {
	if n.socket == "" {
		return nil
	}
	name := n.socket
	if strings.HasPrefix(name, "@") { // an abstract socket
		name = "\x00" + name[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	_, err = c.Write([]byte(strings.Join(lines, "\n")))
	if cerr := c.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// alive tells the watchdog when it is time to.
func (n *notifier) alive(now time.Time) error {
	if n.every == 0 || now.Sub(n.told) < n.every && !now.Before(n.told) {
		return nil
	}
	n.told = now
	return n.say("WATCHDOG=1")
}
