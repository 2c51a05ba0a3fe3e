package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report prints the medians as a Markdown table. A ratio is Holdfast's to the tool of its row: below 1 is better.
func (w *world) report(out io.Writer) error {
	b := bufio.NewWriter(out)
	caches := "caches dropped before backup and restore"
	if w.set.warm || os.Geteuid() != 0 {
		caches = "caches warm"
	}
	fmt.Fprintf(b, "# Holdfast beside pgbackrest, %s\n\n", time.Now().UTC().Format("2 January 2006 15:04 MST"))
	fmt.Fprintf(b, "%s, %s; %d cores; PostgreSQL cluster of %d files, %d MiB; %d processes; %s; medians of %d rounds in turns.\n\n",
		version(w.native), version(w.theirs.argv[0]), runtime.NumCPU(), w.files, w.bytes>>20, w.set.processes, caches, w.set.rounds)
	fmt.Fprintln(b, "CPU is user and system of the process tree, memory the largest process, stored what the repository grew by. Ratios are")
	fmt.Fprintln(b, "Holdfast's to pgbackrest's, below 1 is better: of the medians, and in brackets of the least wall times.")
	fmt.Fprintln(b, "Small files are bundled except where it says plain; block is block incremental, which pgbackrest 2.45 does not have.")
	fmt.Fprintln(b)
	fmt.Fprintln(b, "| what | tool | wall s (min–max) | CPU s | cores | memory MiB | stored MiB | wall | CPU | memory | stored |")
	fmt.Fprintln(b, "|---|---|---|---|---|---|---|---|---|---|---|")
	for _, what := range w.measured() {
		for _, name := range w.toolsOf(what) {
			m := w.median(what, name)
			stored, ratios := "", " | | | "
			if m.Stored > 0 {
				stored = fmt.Sprintf("%.1f", float64(m.Stored)/(1<<20))
			}
			if r := w.median(what, w.rival(name)); r != nil {
				ratios = fmt.Sprintf("%s (%s) | %s | %s | %s", ratio(m.Wall, r.Wall), ratio(m.least, r.least), ratio(m.CPU, r.CPU),
					ratio(m.Memory, r.Memory), ratio(m.Stored, r.Stored))
			}
			fmt.Fprintf(b, "| %s | %s | %.2f (%.2f–%.2f) | %.2f | %.1f | %d | %s | %s |\n", what, m.Tool,
				m.Wall.Seconds(), m.least.Seconds(), m.most.Seconds(), m.CPU.Seconds(), m.CPU.Seconds()/m.Wall.Seconds(), m.Memory>>20, stored, ratios)
		}
	}
	return b.Flush()
}

// toolsOf lists who was measured at what: ours first, then by name.
func (w *world) toolsOf(what string) []string {
	var names []string
	for _, s := range w.samples {
		if s.What == what && !slices.Contains(names, s.Tool) {
			names = append(names, s.Tool)
		}
	}
	slices.Sort(names)
	return names
}

// rival is the tool whose figures ours are divided by, "" for none.
func (w *world) rival(name string) string {
	rest, ours := strings.CutPrefix(name, w.ours.name)
	switch {
	case !ours:
		return ""
	case rest == " plain":
		return w.theirs.name + rest
	}
	return w.theirs.name
}

// measured lists what was measured, in the order of measuring.
func (w *world) measured() []string {
	var names []string
	for _, s := range w.samples {
		if !slices.Contains(names, s.What) {
			names = append(names, s.What)
		}
	}
	return names
}

// summary is the median of a tool's rounds, each column by itself.
type summary struct {
	sample
	least, most time.Duration
}

func (w *world) median(what, tool string) *summary {
	var wall, cpu []time.Duration
	var memory, stored []int64
	for _, s := range w.samples {
		if s.What == what && s.Tool == tool {
			wall, cpu = append(wall, s.Wall), append(cpu, s.CPU)
			memory, stored = append(memory, s.Memory), append(stored, s.Stored)
		}
	}
	if len(wall) == 0 {
		return nil
	}
	return &summary{
		sample: sample{What: what, Tool: tool, Wall: middle(wall), CPU: middle(cpu), Memory: middle(memory), Stored: middle(stored)},
		least:  slices.Min(wall), most: slices.Max(wall),
	}
}

func middle[T ~int64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

func ratio[T ~int64](ours, theirs T) string {
	if theirs <= 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f", float64(ours)/float64(theirs))
}

// version is a label for the report; a program that does not tell its version is named by its path.
func version(program string) string {
	out, err := exec.Command(program, "version").Output()
	if line, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n"); err == nil && line != "" {
		return line
	}
	return program
}
