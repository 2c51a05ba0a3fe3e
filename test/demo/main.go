// Demo tells the whole story on a real PostgreSQL, real files and a real Kafka: back up, lose everything, restore, and
// prove that every row, file and event is back; then bring the instance back to an earlier time; then let the real
// pgbackrest restore what Holdfast wrote.
//
//	go run ./test/demo bin/holdfast
//
// Everything lives in one temporary directory, which is removed at the end. Exit code 0 only if every proof holds.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

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
	d := &demo{began: time.Now(), bin: os.Args[1]}
	err := errors.Join(d.run(ctx), d.cleanup())
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo: FAILED:", err)
		os.Exit(1)
	}
	fmt.Printf("\nThe story took %s. Every proof held.\n", time.Since(d.began).Round(time.Second))
}

type demo struct {
	began  time.Time
	bin    string
	dir    string
	broker *kafkatest.Broker
	w      *world.World
}

func (d *demo) run(ctx context.Context) error {
	bin, err := filepath.Abs(d.bin)
	if err != nil {
		return err
	}
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

func (d *demo) say(format string, a ...any) {
	fmt.Printf("%6.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, a...))
}

func (d *demo) act(title string) { fmt.Printf("\n── %s\n", title) }

// typed runs a command as an operator types it and shows both.
func (d *demo) typed(ctx context.Context, stdin, name string, args ...string) (world.Output, error) {
	line := name + " " + strings.Join(args, " ")
	if stdin != "" {
		line = "echo " + strings.TrimSpace(stdin) + " | " + line
	}
	d.say("$ %s", line)
	out, err := d.w.As(ctx, name, stdin, args...)
	for l := range strings.Lines(out.Stdout) {
		fmt.Printf("         %s\n", strings.TrimRight(l, "\n"))
	}
	return out, err
}

func (d *demo) startBroker(ctx context.Context, port int, name string) error {
	var err error
	d.broker, err = kafkatest.Run(ctx, filepath.Join(d.dir, name), port)
	return err
}

// build makes the application: tables, a tablespace, files of every kind, topics.
func (d *demo) build(ctx context.Context) error {
	d.act("An application: PostgreSQL 15, files, Kafka")
	if err := d.startBroker(ctx, 0, "kafka1"); err != nil {
		return err
	}
	d.say("a Kafka broker answers at %s", d.broker.Brokers()[0])
	var err error
	if d.w, err = world.New(ctx, world.Options{Dir: filepath.Join(d.dir, "app"), Bin: d.bin, Brokers: d.broker.Brokers()}); err != nil {
		return err
	}
	d.say("an instance at %s; alation_action enable_backupv2 pointed WAL archiving at it", d.w.Root)
	space, err := d.w.MakeDir("data1/space")
	if err != nil {
		return err
	}
	if err := d.w.Exec(ctx,
		"create tablespace side location '"+space+"'",
		"create table accounts as select g as id, md5(g::text) as owner, (g::bigint*7919) % 100000 as balance, repeat(md5(g::text), 3) as note from generate_series(1, 300000) g",
		"create index on accounts (id)",
		"create table side_accounts tablespace side as select * from accounts where id % 50 = 0",
		"create table log (n int primary key, at timestamptz not null default clock_timestamp())"); err != nil {
		return err
	}
	if err := d.w.SampleFiles(); err != nil {
		return err
	}
	if err := d.events(ctx, 5000); err != nil {
		return err
	}
	d.say("300,000 accounts, a tablespace, files with links and holes, 5,000 events in 3 partitions")
	return nil
}

func (d *demo) events(ctx context.Context, n int) error {
	cl, err := d.w.Kafka()
	if err != nil {
		return err
	}
	defer cl.Close()
	if err := d.w.CreateTopic(ctx, "orders", 3); err != nil {
		return err
	}
	var records []*kgo.Record
	for i := range n {
		records = append(records, &kgo.Record{Topic: "orders", Partition: int32(i % 3), Key: []byte("order-" + strconv.Itoa(i)), Value: []byte(strings.Repeat("event "+strconv.Itoa(i)+" ", 8)),
			Headers: []kgo.RecordHeader{{Key: "source", Value: []byte("demo")}}, Timestamp: d.began.Add(time.Duration(i) * time.Millisecond)})
	}
	return cl.ProduceSync(ctx, records...).FirstErr()
}

// loseAndRestore is the main job.
func (d *demo) loseAndRestore(ctx context.Context) error {
	d.act("Back everything up, lose everything, bring everything back")
	before, err := d.w.Prove(ctx)
	if err != nil {
		return err
	}
	if _, err := d.typed(ctx, "", "alation_action", "backup_all"); err != nil {
		return err
	}
	names, err := d.w.Tarballs(false)
	if err != nil {
		return err
	}
	if len(names) != 2 {
		return fmt.Errorf("the dump directory holds %v, not two tarballs", names)
	}
	d.broker.Kill()
	port := d.broker.Brokers()[0]
	if err := errors.Join(d.w.Lose(ctx), os.RemoveAll(filepath.Join(d.dir, "kafka1"))); err != nil {
		return err
	}
	n, err := strconv.Atoi(port[strings.LastIndexByte(port, ':')+1:])
	if err != nil {
		return err
	}
	if err := d.startBroker(ctx, n, "kafka2"); err != nil {
		return err
	}
	d.say("the server is dead, its data, tablespace and files are deleted, the broker is a new, empty one")
	for _, name := range names {
		key := "alation.backup.restore_file"
		if strings.Contains(name, "_eb_") {
			key = "alation.backup.eb_restore_file"
		}
		if _, err := d.typed(ctx, "", "alation_conf", key, "-s", "/data2/backup/"+name); err != nil {
			return err
		}
	}
	if _, err := d.typed(ctx, "YES\n", "alation_action", "destructive_restore_all"); err != nil {
		return err
	}
	after, err := d.w.Prove(ctx)
	if err != nil {
		return err
	}
	return d.compare(before, after)
}

func (d *demo) compare(before, after *world.Proof) error {
	if diff := before.Diff(after); len(diff) > 0 {
		return fmt.Errorf("NOT EQUAL:\n  %s", strings.Join(diff, "\n  "))
	}
	if len(after.Rows) == 0 || len(after.Files) == 0 || len(after.Events) == 0 {
		return errors.New("the proof is empty")
	}
	for part, sum := range after.Events {
		if strings.HasPrefix(sum, "0 records") {
			return fmt.Errorf("%s holds no event: the proof would say nothing", part)
		}
	}
	d.say("proof: %d tables, %d files and directories, %d partitions: every hash is equal", len(after.Rows), len(after.Files), len(after.Events))
	for t, sum := range after.Rows {
		fmt.Printf("         %-24s %s\n", t, sum)
	}
	for t, sum := range after.Events {
		fmt.Printf("         %-24s %s\n", t, sum)
	}
	return nil
}

// earlierTime keeps PostgreSQL apart and goes back to a moment between two writes.
func (d *demo) earlierTime(ctx context.Context) error {
	d.act("PostgreSQL kept apart, and back to an earlier time")
	d.w.Repo = filepath.Join(d.w.Root, "data2/pgbackrest")
	for _, c := range [][]string{{"alation_conf", "alation.backup_v2.pgbackup_compression", "-s", "False"}, {"alation_action", "enable_backupv2"}, {"alation_action", "backup_all"}} {
		if _, err := d.typed(ctx, "", c[0], c[1:]...); err != nil {
			return err
		}
	}
	if err := d.w.Exec(ctx, "insert into log(n) select generate_series(1, 100)"); err != nil {
		return err
	}
	time.Sleep(1100 * time.Millisecond) // the target lies between the two writes
	target := time.Now().UTC().Format("2006-01-02 15:04:05.000+00")
	time.Sleep(1100 * time.Millisecond)
	if err := d.w.Exec(ctx, "delete from log where n <= 90", "drop table side_accounts", "select pg_switch_wal()"); err != nil {
		return err
	}
	d.say("100 rows were written; after %s somebody deleted 90 of them and dropped a table", target)
	id, err := d.newestSet(ctx)
	if err != nil {
		return err
	}
	if _, err := d.typed(ctx, "", "holdfast", "restore", "--set", id, "--until", target, "--yes"); err != nil {
		return err
	}
	rows, err := d.w.Int(ctx, "select count(*) from log")
	if err != nil {
		return err
	}
	side, err := d.w.Int(ctx, "select count(*) from side_accounts")
	if err != nil {
		return err
	}
	if rows != 100 || side != 6000 {
		return fmt.Errorf("at %s there were 100 rows and 6000 side accounts; restored were %d and %d", target, rows, side)
	}
	d.say("proof: log has %d rows again, side_accounts is back with %d", rows, side)
	return nil
}

func (d *demo) newestSet(ctx context.Context) (string, error) {
	out, err := d.w.Holdfast(ctx, "sets", "list", "--json")
	if err != nil {
		return "", err
	}
	var sets []struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal([]byte(out.Stdout), &sets); err != nil || len(sets) == 0 {
		return "", fmt.Errorf("sets list: %q: %w", out.Stdout, err)
	}
	return sets[len(sets)-1].ID, nil
}

// oracle lets the real pgbackrest check and restore the repository.
func (d *demo) oracle(ctx context.Context) error {
	d.act("The real pgbackrest reads the same repository")
	for _, dir := range []string{"log", "restored", "spaces"} {
		if err := d.w.MakeOwned(filepath.Join(d.dir, "oracle", dir), 0o700); err != nil {
			return err
		}
	}
	base := []string{"--stanza=" + world.Stanza, "--repo1-path=" + d.w.Repo, "--log-path=" + filepath.Join(d.dir, "oracle/log"),
		"--log-level-console=info", "--log-level-file=off"}
	for _, args := range [][]string{{"info"}, {"verify"},
		{"--pg1-path=" + filepath.Join(d.dir, "oracle/restored"), "--tablespace-map-all=" + filepath.Join(d.dir, "oracle/spaces"), "--type=immediate", "restore"}} {
		d.say("$ pgbackrest %s", args[len(args)-1])
		out, err := d.asPostgres(ctx, "pgbackrest", append(base, args...)...)
		for l := range strings.Lines(out) {
			fmt.Printf("         %s\n", strings.TrimRight(l, "\n"))
		}
		if err != nil {
			return err
		}
		// verify ends with 0 whatever it finds, and says it at the level info.
		if strings.Contains(out, "ERROR") || args[0] == "verify" && (strings.Contains(out, "status: error") || strings.Contains(out, "invalid") || strings.Contains(out, "missing")) {
			return errors.New("pgbackrest found an error")
		}
	}
	if _, err := os.Stat(filepath.Join(d.dir, "oracle/restored/global/pg_control")); err != nil {
		return err
	}
	d.say("proof: pgbackrest verified the repository and restored the backup from it")
	return nil
}

func (d *demo) asPostgres(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = "/"
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			return "", err
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			return "", err
		}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", name, args[len(args)-1], err, out)
	}
	return string(out), err
}
