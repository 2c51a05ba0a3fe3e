package engine_test

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/engine"
)

// TestChoiceAfterUpgrade: after stanza-upgrade no backup of the cluster before is chosen by a WAL position, which means
// nothing in another cluster; by name, and by a time before the upgrade, it still is.
func TestChoiceAfterUpgrade(t *testing.T) {
	r := newRig(t, 15)
	m, made := r.withBackups(1)
	next := r.control
	next.SystemID++
	_, err := r.stanza(m).Upgrade(t.Context(), next)
	must(t, err)
	o := r.restoreOptions(filepath.Join(scratch(t), "new"), "")
	for typ, target := range map[engine.TargetType]string{engine.TargetLSN: "FFFF/0", engine.TargetDefault: ""} {
		o.Type, o.Target = typ, target
		if _, err := r.stanza(m).PlanRestore(t.Context(), o); !errors.Is(err, engine.ErrNoBackup) || !strings.Contains(err.Error(), "before the last stanza-upgrade") {
			t.Errorf("%s: %v", typ, err)
		}
	}
	o.Type, o.Target = engine.TargetTime, "2030-01-01 00:00:00"
	if plan, err := r.stanza(m).PlanRestore(t.Context(), o); err != nil || plan.Label != made[0].Label {
		t.Errorf("by time: %v", err)
	}
	o.Type, o.Target, o.Set = engine.TargetDefault, "", made[0].Label
	if _, err := r.stanza(m).PlanRestore(t.Context(), o); err != nil {
		t.Errorf("by name: %v", err)
	}
}
