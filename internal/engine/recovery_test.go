package engine

import (
	"strings"
	"testing"
	"time"
)

// TestRecoverySettingsQuote: PostgreSQL's configuration files know doubled quotes and backslashes, and no line breaks in a
// string.
func TestRecoverySettingsQuote(t *testing.T) {
	for value, want := range map[string]string{
		"plain":                     `'plain'`,
		"it's":                      `'it''s'`,
		`'/it'\''s/holdfast' get`:   `'''/it''\\''''s/holdfast'' get'`,
		"x\\'\nshared_preload = 'y": `'x\\''\nshared_preload = ''y'`,
		`ends with \`:               `'ends with \\'`,
	} {
		p := &RestorePlan{Type: TargetName, s: &Stanza{o: Options{Now: time.Now, Local: time.UTC}}, o: RestoreOptions{Target: value, RestoreCommand: value}}
		got := p.recoverySettings("")
		for _, line := range []string{"restore_command = " + want + "\n", "recovery_target_name = " + want + "\n"} {
			if !strings.Contains(got, line) {
				t.Errorf("%q: want %s in:\n%s", value, line, got)
			}
		}
	}
}
