package script

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestStartCostsLittle: PostgreSQL starts the program for every WAL segment, so that what packages make before the first
// line of ours runs is paid each time. The runtime tells how much they allocate, which, unlike the time it takes, is the same
// on every machine. Make large tables and regular expressions when they are first used (sync.OnceValue).
func TestStartCostsLittle(t *testing.T) {
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	const ours, all = 32 << 10, 1200 << 10 // bytes; the SDKs of the object stores take most of it, the daemon's metrics 200 KiB
	cmd := exec.Command(bin, "version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("version: %v: %s", err, out)
	}
	sum, own, packages := 0, 0, 0
	for line := range strings.Lines(string(out)) { // init <package> @0.5 ms, 0.01 ms clock, 1544 bytes, 11 allocs
		var name string
		var at, clock float64
		var bytes, allocs int
		if n, _ := fmt.Sscanf(line, "init %s @%f ms, %f ms clock, %d bytes, %d allocs", &name, &at, &clock, &bytes, &allocs); n != 5 {
			continue
		}
		packages++
		sum += bytes
		if strings.HasPrefix(name, "holdfast/") {
			own += bytes
		}
		if bytes > 64<<10 {
			t.Logf("%s: %d bytes", name, bytes)
		}
	}
	t.Logf("%d packages allocate %d bytes, ours %d of them", packages, sum, own)
	if packages < 10 {
		t.Fatalf("no trace of the packages' initialisation: %s", out)
	}
	if own > ours {
		t.Errorf("our own packages allocate %d bytes before main, %d are allowed", own, ours)
	}
	if sum > all {
		t.Errorf("all packages allocate %d bytes before main, %d are allowed", sum, all)
	}
}
