// Kafkabroker runs a real Kafka broker for the demonstration:
//
//	go run ./test/kafkabroker DIR [PORT]
//
// It keeps its data in DIR, prints the address as its only line once the
// broker answers, and stops the broker on SIGINT or SIGTERM.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"holdfast/internal/eventbus/kafkatest"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "kafkabroker:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 1 || len(args) > 2 {
		return fmt.Errorf("usage: kafkabroker DIR [PORT]")
	}
	port := 0
	if len(args) == 2 {
		n, err := strconv.ParseUint(args[1], 10, 16)
		if err != nil {
			return fmt.Errorf("port %q: %w", args[1], err)
		}
		port = int(n)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := kafkatest.Run(ctx, args[0], port)
	if err != nil {
		return err
	}
	fmt.Println(b.Brokers()[0])
	select {
	case <-ctx.Done():
		b.Stop(context.Background())
		return nil
	case <-b.Done():
		return fmt.Errorf("the broker ended by itself; see broker.log in %s", args[0])
	}
}
