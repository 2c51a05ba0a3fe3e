package whole

import (
	"context"
	"errors"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"holdfast/internal/cli"
)

// unattendedWord makes this test program a daemon of an instance whose clock goes faster: root, program, when both clocks were the same, how fast.
const unattendedWord = "daemon-left-alone"

func unattendedHelper(args []string) int {
	began, err1 := strconv.ParseInt(args[2], 10, 64)
	clock, err2 := strconv.Atoi(args[3])
	if errors.Join(err1, err2) != nil {
		return 99
	}
	base := time.UnixMilli(began)
	env := cli.Process()
	env.Args, env.Exe = []string{"holdfast", "daemon", "--root", args[0]}, args[1]
	env.Tick = 10 * time.Second / time.Duration(clock)
	env.Now = func() time.Time { return base.Add(time.Duration(clock) * time.Since(base)) }
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return cli.Main(ctx, env)
}
