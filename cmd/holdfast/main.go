// Command holdfast backs up and restores a whole application: PostgreSQL, files and the event bus. It also answers to
// alation_conf and alation_action by the name it is run under.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"holdfast/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := cli.Main(ctx, cli.Process())
	stop()
	os.Exit(code)
}
