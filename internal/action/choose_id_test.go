package action

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/storage"
)

// TestIDsKeepTheOrderOfRuns: names are in the order in which sets were made, whatever was removed between them, and a set of a clock
// that was put back pushes nobody into the future.
func TestIDsKeepTheOrderOfRuns(t *testing.T) {
	now := time.Date(2026, 11, 30, 1, 33, 20, 0, time.UTC)
	for name, c := range map[string]struct {
		sets, tarballs []string
		want           string
	}{
		"none":                          {nil, nil, "202611300133"},
		"older ones":                    {[]string{"202611300131", "202611300132"}, nil, "202611300133"},
		"the minute is taken":           {[]string{"202611300133"}, nil, "202611300134"},
		"this one has become free":      {[]string{"202611300135", "202611300136"}, nil, "202611300137"},
		"a tarball without an entry":    {[]string{"202611300133"}, []string{"202611300134"}, "202611300135"},
		"over midnight and the month":   {[]string{"202611302359"}, nil, "202612010000"},
		"a clock that was put back":     {[]string{"202612310000", "202611300131"}, nil, "202611300133"},
		"the minute, and one a year on": {[]string{"202711300133", "202611300133"}, nil, "202611300134"},
	} {
		t.Run(name, func(t *testing.T) {
			a := &App{o: Options{Catalog: catalog.NewStore(storage.NewMem(nil)), DumpDir: t.TempDir(), AppVersion: "10-0-0-1"}}
			for _, id := range c.sets {
				s := &catalog.Set{ID: id + "_9-0-0-1", State: catalog.Complete, Mode: catalog.Apart, Began: now, Ended: now, Recovery: &catalog.Recovery{Name: "x"}}
				if err := a.o.Catalog.Put(t.Context(), s); err != nil {
					t.Fatal(err)
				}
			}
			for _, id := range c.tarballs {
				if err := os.WriteFile(filepath.Join(a.o.DumpDir, id+"_10-0-0-1"+busSuffix), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if id, err := a.chooseID(t.Context(), now); err != nil || id != c.want+"_10-0-0-1" {
				t.Errorf("want %s\n got %s, %v", c.want, id, err)
			}
		})
	}
}
