package repo

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestSecretDoesNotPrint(t *testing.T) {
	s := Secret("hunter2")
	holder := struct {
		Pass Secret
		Ptr  *Secret
		Map  map[string]Secret
	}{s, &s, map[string]Secret{"pass": s}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s"} {
		for _, value := range []any{s, holder.Pass, []Secret{s}, holder.Map, holder} {
			got := fmt.Sprintf(verb, value)
			if strings.Contains(got, "hunter2") || strings.Contains(strings.ToLower(got), "68756e746572") || strings.Contains(got, "104 117") {
				t.Errorf("%s prints %s", verb, got)
			}
		}
	}
	b, err := json.Marshal(holder)
	if err != nil || strings.Contains(string(b), "hunter2") || !strings.Contains(string(b), "******") {
		t.Errorf("JSON: %s, %v", b, err)
	}
	if err := fmt.Errorf("pass %s: %v", s, s); strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error: %v", err)
	}
}
