package tally

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCount(t *testing.T) {
	name := filepath.Join(t.TempDir(), "tally")
	t.Setenv(File, name)
	Count(t, "apples", 3)
	Count(t, "pears", 4)
	if b, err := os.ReadFile(name); err != nil || string(b) != "3\tapples\n4\tpears\n" {
		t.Errorf("%q %v", b, err)
	}
	t.Setenv(File, "")
	Count(t, "nothing", 1)
}
