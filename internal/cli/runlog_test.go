package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLogThroughLink: who owns the directory of the logs can't have another file written to, or waited for.
func TestLogThroughLink(t *testing.T) {
	for name, put := range map[string]func(log, other string) error{
		"link":          func(log, other string) error { return os.Symlink(other, log) },
		"dangling link": func(log, other string) error { return os.Symlink(other+".new", log) },
		"FIFO":          func(log, _ string) error { return unix.Mkfifo(log, 0o600) },
	} {
		dir := t.TempDir()
		other := filepath.Join(dir, "other")
		var said bytes.Buffer
		l := newRunLog(&Env{Now: time.Now, Stderr: &said}, dir, nil)
		if err := os.WriteFile(other, []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := put(l.path, other); err != nil {
			t.Fatal(err)
		}
		l.line("a line")
		b, err := os.ReadFile(other)
		if _, nerr := os.Lstat(other + ".new"); err != nil || string(b) != "mine" || nerr == nil {
			t.Errorf("%s: the file behind the link holds %q %v %v", name, b, err, nerr)
		}
		if !strings.Contains(said.String(), "can't be written") {
			t.Errorf("%s: nothing was said: %q", name, said.String())
		}
	}
}
