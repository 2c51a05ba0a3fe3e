package action

import (
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
)

// TestRetentionLeavesOtherTools: only pg_probackup knows what is built on a backup of its catalog, so that the retention removes no set
// that has one, however old.
func TestRetentionLeavesOtherTools(t *testing.T) {
	now := time.Date(2026, 11, 29, 4, 0, 0, 0, time.UTC)
	sets := make([]standing, 6)
	for i := range sets {
		began := now.AddDate(0, 0, i-len(sets))
		sets[i] = standing{set: &catalog.Set{ID: began.Format("200601021504") + "_1", State: catalog.Complete, Began: began, Ended: began}}
	}
	sets[0].tool, sets[1].tool = catalog.Probackup, catalog.Probackup
	sets[1].set.State = catalog.Failed
	out := RetentionRule{Sets: 2}.choose(sets, now)
	for i, c := range out {
		if want := i == 2 || i == 3; c.goes != want || c.strip {
			t.Errorf("set %d: goes %v, %q", i, c.goes, c.reasons)
		}
	}
	if text := strings.Join(out[0].reasons, "; "); !strings.Contains(text, "pg_probackup") {
		t.Errorf("the reason is %q", text)
	}
}
