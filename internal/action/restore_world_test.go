package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/storage"
)

// world is an application of files and an event bus, without PostgreSQL: quick enough to fail in many ways.
type world struct {
	t        *testing.T
	o        Options
	kafka    *kfake.Cluster
	brokers  []string
	at       map[string]func() // by step, called when a verb gets there
	imported int
	warned   []string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, at: map[string]func(){}}
	var err error
	if w.kafka, err = kfake.NewCluster(kfake.NumBrokers(1)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.kafka.Close() })
	w.brokers = w.kafka.ListenAddrs()
	now := time.Date(2026, 11, 22, 4, 0, 0, 0, time.UTC)
	w.o = Options{Root: filepath.Join(dir, "root"), DumpDir: filepath.Join(dir, "dump"), TempDir: filepath.Join(dir, "tmp"), LockPath: filepath.Join(dir, "lock/instance.lock"),
		JournalPath: filepath.Join(dir, "lock/restore.json"), Catalog: catalog.NewStore(storage.NewMem(nil)), AppVersion: "1-0", Program: "holdfast test", Host: "here",
		ExecID: "1-abcdef01", Mode: catalog.Included, RepoDir: filepath.Join(dir, "dump/pgbackrest"), ProcessMax: 1, Owner: nil,
		OpenRepo: func(d string) (storage.Storage, error) { return storage.NewPosix(d, storage.PosixOptions{}) },
		Files:    FilesOptions{Trees: []catalog.Tree{{Name: "app", Path: "srv/app"}, {Name: "more", Path: "srv/more"}}, Exclude: []string{"cache/**", "**/*.tmp"}},
		Bus:      &eventbus.Options{Brokers: w.brokers, Timeout: 5 * time.Second},
		ImportParams: func(context.Context, string) ([]string, error) {
			w.imported++
			return []string{"some.parameter"}, nil
		},
		Now: func() time.Time { now = now.Add(time.Second); return now },
		Events: func(e engine.Event) {
			switch e := e.(type) {
			case engine.Step:
				if f := w.at[e.Verb+":"+e.Name]; f != nil {
					f()
				}
			case engine.Warning:
				w.warned = append(w.warned, e.Text)
			}
		}}
	w.write("srv/app/a", "one")
	w.write("srv/app/sub/b", "two")
	w.write("srv/more/c", "three")
	w.produce("events", "1", "2")
	return w
}

func (w *world) app() *App { return New(w.o) }

func (w *world) path(rel string) string { return filepath.Join(w.o.Root, rel) }

func (w *world) write(rel, text string) {
	w.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(w.path(rel)), 0o755), os.WriteFile(w.path(rel), []byte(text), 0o600)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) client() *kgo.Client {
	w.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.MetadataMinAge(20*time.Millisecond))
	if err != nil {
		w.t.Fatal(err)
	}
	return cl
}

func (w *world) produce(topic string, values ...string) {
	w.t.Helper()
	cl := w.client()
	defer cl.Close()
	if _, err := kadm.NewClient(cl).CreateTopic(context.Background(), 1, 1, nil, topic); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		w.t.Fatal(err)
	}
	for _, v := range values {
		if err := cl.ProduceSync(context.Background(), &kgo.Record{Topic: topic, Partition: 0, Value: []byte(v)}).FirstErr(); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) deleteTopic(topic string) {
	w.t.Helper()
	cl := w.client()
	defer cl.Close()
	if _, err := kadm.NewClient(cl).DeleteTopics(w.t.Context(), topic); err != nil {
		w.t.Fatal(err)
	}
}

// backup makes a set and returns what a restore of it takes.
func (w *world) backup() RestoreOptions {
	w.t.Helper()
	set, err := w.app().BackupAll(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return RestoreOptions{RestoreFile: set.Piece(catalog.Application).Path, EBRestoreFile: set.Piece(catalog.EventBus).Path}
}

func (w *world) plan(o RestoreOptions) *RestorePlan {
	w.t.Helper()
	p, err := w.app().PlanRestoreAll(w.t.Context(), o)
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func (w *world) restore(o RestoreOptions) *RestoreResult {
	w.t.Helper()
	res, err := w.plan(o).Run(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return res
}

// state is every file below the root with its content, and every topic with its records.
func (w *world) state() string {
	w.t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(w.o.Root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		text := "directory"
		if d.Type().IsRegular() {
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text = string(content)
		}
		rel, err := filepath.Rel(w.o.Root, path)
		fmt.Fprintf(&b, "%s: %s\n", rel, text)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return b.String() + w.topics()
}

func (w *world) topics() string {
	w.t.Helper()
	cl := w.client()
	defer cl.Close()
	adm := kadm.NewClient(cl)
	ends, err := adm.ListEndOffsets(kadm.WithAuthorizedOps(w.t.Context()))
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	from := map[string]map[int32]kgo.Offset{}
	want := int64(0)
	ends.Each(func(o kadm.ListedOffset) {
		out = append(out, fmt.Sprintf("%s/%d ends at %d", o.Topic, o.Partition, o.Offset))
		if from[o.Topic] == nil {
			from[o.Topic] = map[int32]kgo.Offset{}
		}
		from[o.Topic][o.Partition] = kgo.NewOffset().AtStart()
		want += o.Offset
	})
	reader, err := kgo.NewClient(kgo.SeedBrokers(w.brokers...), kgo.ConsumePartitions(from))
	if err != nil {
		w.t.Fatal(err)
	}
	defer reader.Close()
	for n := int64(0); n < want; {
		ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
		fetches := reader.PollFetches(ctx)
		cancel()
		if err := fetches.Err(); err != nil {
			w.t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			n++
			out = append(out, fmt.Sprintf("%s/%d %d: %s", r.Topic, r.Partition, r.Offset, r.Value))
		})
	}
	slices.Sort(out)
	return strings.Join(out, "\n")
}

// same compares two states, and wants nothing of a restore left.
func (w *world) same(what, want string) {
	w.t.Helper()
	if got := w.state(); got != want {
		w.t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
	if exists(w.o.JournalPath) {
		w.t.Errorf("%s: the journal is still there", what)
	}
}
