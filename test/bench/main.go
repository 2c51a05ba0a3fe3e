// Command bench measures Holdfast's engine beside Debian's pgbackrest, on the same cluster and machine.
//
// It makes a pgbench cluster (plus text rows that do not compress like pgbench's blanks, and many small tables) in a
// temporary directory, fills it, keeps it idle, and then runs both tools in turn with the same compression type, level
// and number of processes:
//
//	full backup, and the restore of that backup to an empty directory   for each compression type
//	incremental backup after 1 % of the pages changed                    for the first type, and:
//	delta restore when nothing changed, and after 1 % of the pages did
//	archive-push and archive-get of real, full segments                  one invocation each, as PostgreSQL does it
//	the same with asynchronous archiving
//	cold start: version, push of an almost empty segment, get of a segment that is not there
//	full backup and restore in a bucket, with 0 and with 30 ms added to every way there and back
//	backup_all of an instance around the cluster                         memory and cores in use; no rival has it
//	floor: cp -a of the cluster and sync
//
// Small files are bundled on both sides, pgbackrest's quicker mode; --plain adds the mode without. Holdfast is also
// measured with block incremental, which pgbackrest 2.45 does not have. It runs under the name pgbackrest with the very
// command line of the rival; its own name is measured where the start counts.
//
// The tool that goes first changes with every round; caches are dropped before each run when we may. Wall time, user
// and system time of the whole process tree, and the memory of the largest process come from wait4(2). What was restored
// is compared with the cluster, and what archive-get brought with the segment itself: a fast wrong answer is an error. The
// report is Markdown on standard output: medians, with ratios Holdfast/pgbackrest of the medians and of the least wall
// times, which say more on a machine that others use too; progress goes to standard error.
//
// When run as root, everything runs as the postgres user, for PostgreSQL refuses root.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// settings are the command line and environment, parsed.
type settings struct {
	holdfast   string   // our binary
	pgbackrest string   // theirs
	pgBin      string   // directory of initdb, pg_ctl
	dir        string   // parent of the work directory
	scale      int      // pgbench scale, 15 MB each
	rounds     int      // runs of each measurement and tool
	processes  int      // --process-max
	segments   int      // segments pushed and fetched
	types      []string // "zst-1", "none", …
	warm       bool     // leave caches alone
	plain      bool     // full backups without bundles, too
	parts      []string // what to measure
	json       string   // file for the raw samples
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	if len(os.Args) == 4 && os.Args[1] == relayWord { // see startRelay
		fmt.Fprintln(os.Stderr, "bench:", relay(os.Args[2], os.Args[3]))
		os.Exit(1)
	}
	err := run(ctx, os.Args[1:], os.Getenv("HOLDFAST_BENCH_SCALE"), os.Stdout, os.Stderr)
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string, scale string, stderr io.Writer) (*settings, error) {
	s := &settings{scale: 200}
	if scale != "" {
		n, err := strconv.Atoi(scale)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("HOLDFAST_BENCH_SCALE=%q is not a positive number", scale)
		}
		s.scale = n
	}
	var types, parts string
	var quick bool
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&s.holdfast, "holdfast", "bin/holdfast", "Holdfast's `binary`")
	f.StringVar(&s.pgbackrest, "pgbackrest", "/usr/bin/pgbackrest", "pgbackrest's `binary`")
	f.StringVar(&s.pgBin, "pgbin", "/usr/lib/postgresql/15/bin", "`directory` of PostgreSQL's server programs")
	f.StringVar(&s.dir, "dir", "/var/tmp", "parent `directory` of the work directory; on a real disk")
	f.IntVar(&s.scale, "scale", s.scale, "pgbench scale; also HOLDFAST_BENCH_SCALE")
	f.IntVar(&s.rounds, "rounds", 3, "runs of each measurement and tool")
	f.IntVar(&s.processes, "processes", 2, "process-max of both tools")
	f.IntVar(&s.segments, "segments", 64, "WAL segments to push and get")
	f.StringVar(&types, "types", "zst-1,zst-3,lz4-1,none", "compression `list`, type-level; gz-6 takes long")
	f.StringVar(&parts, "parts", "floor,backup,archive,async,start,s3,instance", "what to measure, a `list`")
	f.BoolVar(&s.plain, "plain", false, "full backups without bundles, too")
	f.BoolVar(&s.warm, "warm", false, "do not drop the caches before each run")
	f.StringVar(&s.json, "json", "", "write every sample to this `file`")
	f.BoolVar(&quick, "quick", false, "scale 20, one round, zst-1 only, 16 segments, unless given")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; see --help", f.Arg(0))
	}
	if quick {
		given := map[string]bool{}
		f.Visit(func(f *flag.Flag) { given[f.Name] = true })
		for name, value := range map[string]string{"scale": "20", "rounds": "1", "types": "zst-1", "segments": "16"} {
			if !given[name] {
				if err := f.Set(name, value); err != nil {
					return nil, err
				}
			}
		}
	}
	s.types, s.parts = strings.Split(types, ","), strings.Split(parts, ",")
	if s.scale < 1 || s.rounds < 1 || s.segments < 1 || s.processes < 1 {
		return nil, errors.New("scale, rounds, processes and segments must be positive")
	}
	return s, nil
}

func run(ctx context.Context, args []string, scale string, stdout, stderr io.Writer) (err error) {
	s, err := parse(args, scale, stderr)
	if err != nil {
		return err
	}
	w, err := newWorld(s, stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.makeCluster(ctx); err != nil {
		return err
	}
	for _, name := range s.parts {
		step := map[string]func(context.Context) error{
			"floor": w.measureFloor, "backup": w.measureBackups, "archive": w.measureArchive, "async": w.measureAsync,
			"start": w.measureStart, "s3": w.measureS3, "instance": w.measureInstance,
		}[name]
		if step == nil {
			return fmt.Errorf("--parts: %q is not known", name)
		}
		if err := step(ctx); err != nil {
			return err
		}
	}
	if s.json != "" {
		raw, err := json.MarshalIndent(w.samples, "", " ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(s.json, append(raw, '\n'), 0o644); err != nil {
			return err
		}
	}
	return w.report(stdout)
}

// order gives the tools in turn, the last one first in every second round.
func order(round int, tools ...tool) []tool {
	tools = slices.Clone(tools)
	if round%2 == 1 {
		slices.Reverse(tools)
	}
	return tools
}
