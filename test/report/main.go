// Command report makes what `go test -json ./...` writes readable: a line for each package as it ends, the whole output of
// each test that failed, and, when all is done, which tests took longest.
//
//	go test -json ./... | report [-slowest 20]
//
// What the compiler and the linker say, and lines that are not JSON, are shown as they come. The exit code is 0 when the
// stream ends without a failure: what go test itself returned is for the caller to look at (set -o pipefail).
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	most := flag.Int("slowest", 20, "how many of the slowest tests are `listed`")
	flag.Parse()
	failed, err := report(os.Stdin, os.Stdout, *most)
	if err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(2)
	}
	if failed {
		os.Exit(1)
	}
}

// event is a line of `go test -json`; see `go doc test2json`.
type event struct {
	Action     string
	Package    string
	ImportPath string
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

type slow struct {
	name    string
	elapsed time.Duration
}

// mostKept bounds what is remembered of one test's output, in bytes: its end says why it failed.
const mostKept = 256 << 10

// report reads the stream to its end. failed: something in it did.
func report(in io.Reader, out io.Writer, most int) (failed bool, err error) {
	output := map[string]string{} // of tests and packages that have not ended
	var tests []slow
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
				fmt.Fprint(out, line)
			} else if e.take(out, output, &tests) {
				failed = true
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return failed, err
		}
	}
	for name, text := range output { // begun and never ended: the process died
		if text = strings.TrimSpace(text); text != "" && strings.Contains(name, " ") {
			failed = true
			fmt.Fprintf(out, "--- DIED: %s\n%s\n", name, text)
		}
	}
	slices.SortStableFunc(tests, func(a, b slow) int { return int(b.elapsed - a.elapsed) })
	for i, t := range tests {
		if i == most {
			break
		}
		fmt.Fprintf(out, "slowest: %5.0f s  %s\n", t.elapsed.Seconds(), t.name)
	}
	return failed, nil
}

// take deals with one event, and says whether it tells of a failure.
func (e event) take(out io.Writer, output map[string]string, tests *[]slow) (failed bool) {
	key := e.Package
	if e.Test != "" {
		key += " " + e.Test
	}
	switch e.Action {
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "build-fail":
		return true
	case "start", "run":
		output[key] = ""
	case "output":
		text := output[key] + e.Output
		if len(text) > mostKept {
			text = text[len(text)-mostKept:]
		}
		output[key] = text
	case "pass", "skip", "fail":
		text := output[key]
		delete(output, key)
		if e.Test == "" {
			e.ended(out, text)
		} else {
			if e.Action == "fail" {
				fmt.Fprintf(out, "%s: %s\n%s", e.Package, e.Test, text)
			}
			if e.Action != "skip" && !strings.Contains(e.Test, "/") {
				*tests = append(*tests, slow{key, time.Duration(e.Elapsed * float64(time.Second))})
			}
		}
		return e.Action == "fail"
	}
	return false
}

// ended shows how a package ended: go test's own line of it, and the rest when it failed outside of a test.
func (e event) ended(out io.Writer, text string) {
	if e.Action == "fail" {
		fmt.Fprint(out, text)
		return
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "? ") {
			fmt.Fprint(out, line)
		}
	}
}
