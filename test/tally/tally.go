// Package tally collects what the long suites counted: combinations, recovery targets, mutations, fault positions.
// scripts/test prints the sums at its end, so that a suite which quietly shrank is seen.
package tally

import (
	"fmt"
	"os"
	"testing"
)

// File is the environment variable that names the file to which counts are appended; unset: they are only logged.
const File = "HOLDFAST_TALLY"

// Count adds n of something to the tally.
func Count(t testing.TB, what string, n int) {
	t.Helper()
	t.Logf("%d %s", n, what)
	name := os.Getenv(File)
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Error(err)
		return
	}
	if _, err := fmt.Fprintf(f, "%d\t%s\n", n, what); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}
