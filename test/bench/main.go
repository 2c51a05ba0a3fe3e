// Command bench measures Holdfast's engine beside Debian's pgbackrest, on the same cluster and machine.
//
// It makes a pgbench cluster (plus text rows that do not compress like pgbench's blanks, and many small tables) in a
// temporary directory, fills it, keeps it idle, and then runs both tools in turn with the same compression type, level
// and number of processes:
//
//	full backup, and the restore of that backup to an empty directory   for each compression type
//	archive-push and archive-get of real, full segments                  one invocation each, as PostgreSQL does it
//	cold start: version, and archive-get of a segment that is not there
//	backup_all of an instance around the cluster                         memory and cores in use; no rival has it
//	floor: cp -a of the cluster and sync
//
// Backup and restore are also measured with pgbackrest's bundles of small files, its quicker mode, which Holdfast does not
// write yet: a lead over the plain mode alone would flatter us.
//
// The tool that goes first changes with every round; caches are dropped before each run when we may. Wall time, user
// and system time of the whole process tree, and the memory of the largest process come from wait4(2). What was restored
// is compared file by file with the cluster's list, and what archive-get brought with the segment itself: a fast wrong
// answer is an error. The report is Markdown on standard output, medians with ratios Holdfast/pgbackrest; progress goes
// to standard error.
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
	json       string   // file for the raw samples
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
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
	var types string
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
	s.types = strings.Split(types, ",")
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
	steps := []func(context.Context) error{w.measureFloor}
	for _, t := range s.types {
		steps = append(steps, func(ctx context.Context) error { return w.measureBackup(ctx, t) })
	}
	steps = append(steps,
		func(ctx context.Context) error { return w.measureArchive(ctx, s.types[0]) },
		w.measureStart, w.measureInstance)
	for _, step := range steps {
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
	if round%2 == 1 {
		slices.Reverse(tools)
	}
	return tools
}
