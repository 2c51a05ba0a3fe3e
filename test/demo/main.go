// Demo tells the whole story on a real PostgreSQL, real files and a real Kafka: back up under writes, lose everything,
// restore, and prove that every row, file and event is back; then bring the instance back to an earlier time; then let the
// real pgbackrest restore what Holdfast wrote. The story itself is in story.go.
//
//	go run ./test/demo bin/holdfast
//
// Everything lives in one temporary directory, which is removed at the end. Exit code 0 only if every proof holds.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"holdfast/internal/eventbus/kafkatest"
	"holdfast/test/world"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: demo PATH-TO-HOLDFAST")
		os.Exit(2)
	}
	if err := tell(ctx, os.Args[1], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo: FAILED:", err)
		os.Exit(1)
	}
}

type demo struct {
	out    io.Writer
	began  time.Time
	bin    string
	dir    string
	broker *kafkatest.Broker
	w      *world.World
}

// tell runs the story with a program and writes it to out. An error says which proof does not hold.
func tell(ctx context.Context, bin string, out io.Writer) error {
	d := &demo{out: out, began: time.Now()}
	fmt.Fprint(out, `This demonstration makes an application, backs it up with Holdfast, destroys it and restores it.
  $ …      is what an operator types; below it stands what the program answers
  proof:   is a comparison that was made; if one fails, the story ends there with an error
`)
	err := d.run(ctx, bin)
	if err != nil && d.w != nil {
		err = fmt.Errorf("%w\nthe PostgreSQL log ends with\n%s", err, d.w.LogTail())
	}
	if err := errors.Join(err, d.cleanup()); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nThe story took %s. Every proof held.\n", time.Since(d.began).Round(time.Second))
	return nil
}

func (d *demo) run(ctx context.Context, bin string) error {
	var err error
	if d.dir, err = os.MkdirTemp("", "hf-demo-"); err != nil {
		return err
	}
	if err := os.Chmod(d.dir, 0o755); err != nil {
		return err
	}
	// The server's user must be able to run the program, wherever the tree is.
	d.bin = filepath.Join(d.dir, "holdfast")
	if out, err := exec.CommandContext(ctx, "install", "-m", "755", bin, d.bin).CombinedOutput(); err != nil {
		return fmt.Errorf("install: %w: %s", err, out)
	}
	for _, act := range []func(context.Context) error{d.build, d.loseAndRestore, d.earlierTime, d.oracle} {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) cleanup() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var err error
	if d.w != nil {
		err = d.w.Close(ctx)
	}
	if d.broker != nil {
		d.broker.Stop(ctx)
	}
	return errors.Join(err, os.RemoveAll(d.dir))
}

// act begins a part of the story.
func (d *demo) act(title string) { fmt.Fprintf(d.out, "\n── %s\n", title) }

func (d *demo) say(format string, a ...any) {
	fmt.Fprintf(d.out, "%6.1fs  %s\n", time.Since(d.began).Seconds(), d.short(fmt.Sprintf(format, a...)))
}

// quote shows what a program printed.
func (d *demo) quote(text string) {
	for l := range strings.Lines(text) {
		fmt.Fprintf(d.out, "         %s\n", d.short(strings.TrimRight(l, "\n")))
	}
}

// short names the long temporary directories as the story introduces them.
func (d *demo) short(text string) string {
	if d.w != nil {
		text = strings.ReplaceAll(text, d.w.Root+"/", "ROOT/")
	}
	return text
}

// typed runs a command as an operator types it and shows both.
func (d *demo) typed(ctx context.Context, stdin, name string, args ...string) error {
	line := name
	for _, a := range args {
		if strings.Contains(a, " ") {
			a = "'" + a + "'"
		}
		line += " " + a
	}
	if stdin != "" {
		line = "echo " + strings.TrimSpace(stdin) + " | " + line
	}
	d.say("$ %s", line)
	out, err := d.w.As(ctx, name, stdin, args...)
	d.quote(out.Stdout)
	return err
}

// conf types KEY -s VALUE.
func (d *demo) conf(ctx context.Context, key, value string) error {
	return d.typed(ctx, "", "alation_conf", key, "-s", value)
}
