package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"holdfast/internal/eventbus/kafkatest"
	"holdfast/test/world"
)

func (d *demo) startBroker(ctx context.Context, port int, name string) (err error) {
	d.broker, err = kafkatest.Run(ctx, filepath.Join(d.dir, name), port)
	return err
}

// build makes the application: tables, a tablespace, files of every kind, topics, a consumer group.
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
	fmt.Fprintf(d.out, "%6.1fs  an instance at %s, called ROOT below; its PostgreSQL archives WAL with Holdfast\n", time.Since(d.began).Seconds(), d.w.Root)
	space, err := d.w.MakeDir("data1/space")
	if err != nil {
		return err
	}
	if err := errors.Join(d.w.Exec(ctx,
		"create tablespace side location '"+space+"'",
		"create table accounts as select g as id, md5(g::text) as owner, (g::bigint*7919) % 100000 as balance, repeat(md5(g::text), 3) as note from generate_series(1, 300000) g",
		"create index on accounts (id)",
		"create table side_accounts tablespace side as select * from accounts where id % 50 = 0",
		"create table log (n int primary key, at timestamptz not null default clock_timestamp())"),
		d.w.SampleFiles(), d.events(ctx, 5000)); err != nil {
		return err
	}
	d.say("300,000 accounts, some in a tablespace; files with hard links, holes, extended attributes and odd owners")
	d.say("5,000 events in the topic orders; the consumer group billing has read 1,000, 1,500 and all of its 3 partitions")
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
	if err := cl.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	return d.w.Commit(ctx, "billing", map[string]map[int32]int64{"orders": {0: 1000, 1: 1500, 2: 1666}})
}

// numbers are the last ones that the writer had written.
type numbers struct{ before, after, last int }

// loseAndRestore is the main job.
func (d *demo) loseAndRestore(ctx context.Context) error {
	d.act("Back everything up while it is written to, lose everything, bring everything back")
	if err := d.w.MakeLedger(ctx, 1); err != nil {
		return err
	}
	before, err := d.w.Prove(ctx)
	if err != nil {
		return err
	}
	n, err := d.backUnderWrites(ctx)
	if err != nil {
		return err
	}
	d.say("meanwhile a writer wrote 1, 2, 3 … to a table, a file and a topic: %d when backup_all began, %d when it ended, %d now", n.before, n.after, n.last)
	names, err := d.w.Tarballs(false)
	if err != nil {
		return err
	}
	if len(names) != 2 {
		return fmt.Errorf("the dump directory holds %v, not two tarballs", names)
	}
	if err := d.lose(ctx); err != nil {
		return err
	}
	for _, name := range names {
		key := "alation.backup.restore_file"
		if strings.Contains(name, "_eb_") {
			key = "alation.backup.eb_restore_file"
		}
		if err := d.conf(ctx, key, "/data2/backup/"+name); err != nil {
			return err
		}
	}
	if err := d.typed(ctx, "YES\n", "alation_action", "destructive_restore_all"); err != nil {
		return err
	}
	after, err := d.w.Prove(ctx)
	if err != nil {
		return err
	}
	if err := d.compare(before, after); err != nil {
		return err
	}
	return d.compareLedger(ctx, n)
}

// backUnderWrites types backup_all while a writer is at work.
func (d *demo) backUnderWrites(ctx context.Context) (n numbers, err error) {
	wctx, stop := context.WithCancel(ctx)
	defer stop()
	wrote, ended := make(chan int), make(chan error, 1)
	go func() {
		err := d.w.WriteLedger(wctx, 2, func(i int, _ world.Token) { wrote <- i })
		close(wrote)
		ended <- err
	}()
	backed := make(chan error, 1)
	for i := range wrote {
		n.last = i
		switch {
		case n.before == 0 && i == 100:
			n.before = i
			go func() { backed <- d.typed(ctx, "", "alation_action", "backup_all") }()
		case n.after > 0 && i >= n.after+100:
			stop()
		}
		select {
		case err = <-backed:
			n.after = i
		default:
		}
	}
	if err := errors.Join(err, <-ended); err != nil {
		return n, err
	}
	if n.after == 0 {
		return n, errors.New("the writer ended before the backup")
	}
	return n, nil
}

// lose destroys the server, its data and the files, and puts a new, empty broker in the place of the old one.
func (d *demo) lose(ctx context.Context) error {
	_, port, err := net.SplitHostPort(d.broker.Brokers()[0])
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	d.broker.Kill()
	if err := errors.Join(d.w.Lose(ctx), os.RemoveAll(filepath.Join(d.dir, "kafka1")), d.startBroker(ctx, n, "kafka2")); err != nil {
		return err
	}
	d.say("the server is dead; its data, tablespace and files are deleted; the broker is a new, empty one")
	return nil
}

// compare wants two proofs to be equal but for the ledger, which a writer wrote to in between.
func (d *demo) compare(before, after *world.Proof) error {
	for _, p := range []*world.Proof{before, after} {
		delete(p.Rows, "public.ledger")
		delete(p.Files, "ledger")
		delete(p.Events, "ledger/0")
	}
	if wrong := before.Diff(after); len(wrong) > 0 {
		return fmt.Errorf("NOT EQUAL:\n  %s", d.short(strings.Join(wrong, "\n  ")))
	}
	d.say("proof: equal to what was lost are")
	for _, part := range []struct {
		name string
		got  map[string]string
		show []string
	}{
		{"tables, every row", after.Rows, []string{"public.accounts", "public.side_accounts"}},
		{"files and directories: content, owner, mode, time, attributes, links, holes", after.Files, []string{"part6/third name", "holes"}},
		{"partitions: key, value, headers and time of every event", after.Events, []string{"orders/0", "orders/1", "orders/2"}},
		{"positions of the consumer group", after.Groups, slices.Sorted(maps.Keys(after.Groups))},
	} {
		if len(part.got) == 0 || len(part.show) == 0 {
			return fmt.Errorf("the proof of %s is empty", part.name)
		}
		fmt.Fprintf(d.out, "         %3d %s\n", len(part.got), part.name)
		for _, name := range part.show {
			if part.got[name] == "" || strings.HasPrefix(part.got[name], "0 r") {
				return fmt.Errorf("the proof of %s says nothing about %s", part.name, name)
			}
			fmt.Fprintf(d.out, "             %-22s %s\n", name, part.got[name])
		}
	}
	return nil
}

// compareLedger wants the ledger as it was at the recovery point.
func (d *demo) compareLedger(ctx context.Context, n numbers) error {
	have, err := d.w.ReadLedger(ctx)
	if err != nil {
		return err
	}
	for name, last := range map[string]int{"table": have.Postgres, "file": have.File, "topic": have.Bus} {
		if last < n.before || last > n.after+1 {
			return fmt.Errorf("the %s ends with %d; there were %d when backup_all began and %d when it ended", name, last, n.before, n.after)
		}
	}
	d.say("proof: at the recovery point the writer was at %d in the table, %d in the topic, %d in the file: no number before is missing", have.Postgres, have.Bus, have.File)
	d.say("proof: what was written after backup_all, the numbers %d to %d, is gone from all three", n.after+2, n.last)
	return nil
}

// earlierTime keeps PostgreSQL apart and goes back to a moment between two writes.
func (d *demo) earlierTime(ctx context.Context) error {
	d.act("PostgreSQL kept apart, and back to an earlier time")
	d.w.Repo = filepath.Join(d.w.Root, "data2/pgbackrest")
	for _, step := range []func() error{
		func() error { return d.conf(ctx, "alation.backup_v2.pgbackup_compression", "False") },
		func() error { return d.typed(ctx, "", "alation_action", "enable_backupv2") },
		func() error { return d.typed(ctx, "", "alation_action", "backup_all") },
		func() error { return d.w.Exec(ctx, "insert into log(n) select generate_series(1, 100)") },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	time.Sleep(1100 * time.Millisecond) // the target lies between the two writes
	target := time.Now().UTC().Format("2006-01-02 15:04:05.000+00")
	time.Sleep(1100 * time.Millisecond)
	if err := d.w.Exec(ctx, "delete from log where n <= 90", "drop table side_accounts", "select pg_switch_wal()"); err != nil {
		return err
	}
	d.say("100 rows were written to the table log; after %s somebody deleted 90 of them and dropped the table side_accounts", target)
	id, err := d.newestSet(ctx)
	if err != nil {
		return err
	}
	if err := d.typed(ctx, "", "holdfast", "restore", "--set", id, "--until", target, "--yes"); err != nil {
		return err
	}
	got, err := d.w.Text(ctx, "select (select count(*) from log) || ' and ' || (select count(*) from side_accounts)")
	if err != nil {
		return err
	}
	if got != "100 and 6000" {
		return fmt.Errorf("at %s log and side_accounts had 100 and 6000 rows; restored were %s", target, got)
	}
	d.say("proof: log has 100 rows again, side_accounts is back with 6000")
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

// oracle lets the real pgbackrest check and restore the repository, and PostgreSQL recover what it restored.
func (d *demo) oracle(ctx context.Context) error {
	d.act("The real pgbackrest reads the same repository")
	dir := filepath.Join(d.dir, "oracle")
	for _, sub := range []string{"log", "restored", "spaces", "socket"} {
		if err := d.w.MakeOwned(filepath.Join(dir, sub), 0o700); err != nil {
			return err
		}
	}
	id, err := d.newestSet(ctx)
	if err != nil {
		return err
	}
	base := []string{"--stanza=" + world.Stanza, "--repo1-path=" + d.w.Repo, "--log-path=" + filepath.Join(dir, "log"),
		"--log-level-console=info", "--log-level-file=off", "--log-timestamp=n"}
	for _, args := range [][]string{{"info"}, {"verify"}, {"restore", "--pg1-path=" + filepath.Join(dir, "restored"), "--tablespace-map-all=" + filepath.Join(dir, "spaces"),
		"--archive-mode=off", "--type=name", "--target=holdfast_" + id, "--target-action=promote"}} {
		d.say("$ pgbackrest %s", strings.Join(append(args[:1:1], args[min(len(args), 4):]...), " "))
		out, err := d.w.AsServer(ctx, "pgbackrest", append(base, args...)...)
		for l := range strings.Lines(out) {
			if !strings.Contains(l, "command begin") { // it repeats every option
				d.quote(l)
			}
		}
		if err != nil {
			return err
		}
		// verify ends with 0 whatever it finds, and says it at the level info.
		if strings.Contains(out, "ERROR") || args[0] == "verify" && (strings.Contains(out, "status: error") || strings.Contains(out, "invalid") || strings.Contains(out, "missing")) {
			return errors.New("pgbackrest found an error")
		}
	}
	return d.startRestored(ctx, dir)
}

// startRestored starts the cluster that pgbackrest restored and compares it with the application's. The table log was
// still empty at the recovery point.
func (d *demo) startRestored(ctx context.Context, dir string) (err error) {
	other, err := d.w.Elsewhere(filepath.Join(dir, "restored"), filepath.Join(dir, "socket"))
	if err != nil {
		return err
	}
	if err := other.StartServer(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, other.Close(context.WithoutCancel(ctx))) }()
	for still := "true"; still == "true"; {
		if still, err = other.Text(ctx, "select pg_is_in_recovery()::text"); err != nil {
			return err
		}
	}
	want, err := d.w.Rows(ctx)
	if err != nil {
		return err
	}
	got, err := other.Rows(ctx)
	if err != nil {
		return err
	}
	want["public.log"] = "0 rows, -"
	if diff := (&world.Proof{Rows: want}).Diff(&world.Proof{Rows: got}); len(diff) > 0 {
		return fmt.Errorf("pgbackrest restored something else:\n  %s", strings.Join(diff, "\n  "))
	}
	d.say("proof: PostgreSQL runs on what pgbackrest restored; %d tables hold the rows of the recovery point, for example", len(got))
	fmt.Fprintf(d.out, "             %-22s %s\n", "public.accounts", got["public.accounts"])
	return nil
}
