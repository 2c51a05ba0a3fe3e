package conf

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Values is one consistent reading of the store. Its getters cannot fail: what was wrong was found by Load. A getter
// called with a name that the table does not have panics, as does one of the wrong type: the constants prevent both.
type Values struct {
	text     map[string]string // set values in canonical form; secrets not among them
	sealed   map[string]string // set secrets, sealed
	problems map[string]error  // set values that are not allowed
	unknown  []string          // set, but not in this version's table
	keyPath  string
	open     map[string]Secret // of ValuesOf: the secrets themselves
}

// read interprets the file's values.
func (f *file) read(keyPath string) *Values {
	v := &Values{text: map[string]string{}, sealed: map[string]string{}, problems: map[string]error{}, keyPath: keyPath}
	for _, name := range slices.Sorted(maps.Keys(f.values)) {
		k := Lookup(name)
		if k == nil {
			v.unknown = append(v.unknown, name)
			continue
		}
		if k.Secret() {
			v.readSecret(name, f.values[name])
			continue
		}
		var text string
		if err := json.Unmarshal(f.values[name], &text); err != nil {
			v.problems[name] = &ValueError{Name: name, Value: NewSecret(string(f.values[name])), Allowed: k.AllowedText(), Reason: "not a string in the file"}
			continue
		}
		canonical, err := k.Parse(text)
		if err != nil {
			v.problems[name] = err
			continue
		}
		v.text[name] = canonical
	}
	return v
}

func (v *Values) readSecret(name string, raw json.RawMessage) {
	var s sealedValue
	if err := json.Unmarshal(raw, &s); err != nil || s.Sealed == "" {
		v.problems[name] = &ValueError{Name: name, Allowed: "a sealed value: set it with: alation_conf " + name + " -s -", Reason: "not sealed in the file"}
		return
	}
	v.sealed[name] = s.Sealed
}

// problem joins what is wrong with single values, by name.
func (v *Values) problem() error {
	var all []error
	for _, name := range slices.Sorted(maps.Keys(v.problems)) {
		all = append(all, v.problems[name])
	}
	return errors.Join(all...)
}

// Problems lists combinations of values that should not be, such as redundancy without a separate backup. Setting them
// is refused; they can come from an edited file.
func (v *Values) Problems() []error {
	var all []error
	for i := range rules {
		if err := rules[i].check(v); err != nil {
			all = append(all, err)
		}
	}
	return all
}

// Unknown returns the names of values that a newer version has set, sorted.
func (v *Values) Unknown() []string { return slices.Clone(v.unknown) }

// IsSet reports whether name has been set (else it has its default).
func (v *Values) IsSet(name string) bool {
	_, text := v.text[name]
	_, sealed := v.sealed[name]
	return text || sealed
}

// value returns the canonical text of a parameter of one of types.
func (v *Values) value(name string, types ...Type) string {
	k := Lookup(name)
	if k == nil || !slices.Contains(types, k.Type) {
		panic(fmt.Sprintf("conf: %s is not in the table with one of the types %v", name, types))
	}
	if text, ok := v.text[name]; ok {
		return text
	}
	return k.Default
}

// Bool returns a switch.
func (v *Values) Bool(name BoolKey) bool { return v.value(string(name), Bool) == "True" }

// Int returns a number in the table's unit.
func (v *Values) Int(name IntKey) int {
	n, err := strconv.Atoi(v.value(string(name), Int))
	if err != nil { // canonical values and defaults are numbers, the registry test holds the table to it
		panic(err)
	}
	return n
}

// Duration returns a time span.
func (v *Values) Duration(name SecondsKey) time.Duration {
	n, err := strconv.ParseInt(v.value(string(name), Seconds), 10, 64)
	if err != nil { // as in Int
		panic(err)
	}
	return time.Duration(n) * time.Second
}

// String returns a text, an element of an enumeration, an address, a version, a cron expression or the name of a zone.
func (v *Values) String(name StringKey) string {
	return v.value(string(name), String, Enum, URL, Version, Cron, Zone, Listen)
}

// Path returns a path as it was set, possibly empty. It is seen from the instance's root: resolve it with
// instance.Resolve before use.
func (v *Values) Path(name PathKey) string { return v.value(string(name), Path) }

// List returns the elements of a list; none for the empty value.
func (v *Values) List(name ListKey) []string {
	text := v.value(string(name), List)
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}

// Clusters returns PostgreSQL's clusters, defaults filled in. Paths in them are seen from the instance's root.
func (v *Values) Clusters(name ClustersKey) []Cluster {
	clusters, err := ParseClusters(v.value(string(name), Clusters))
	if err != nil { // as in Int
		panic(err)
	}
	return clusters
}

// Secret opens a secret; the empty Secret if it is not set. The key file is read only if it is set. Errors: the key file
// is missing, readable by others, or not the one that sealed the value.
func (v *Values) Secret(name SecretKey) (Secret, error) {
	v.value(string(name), SecretT) // the check of name
	sealed, ok := v.sealed[string(name)]
	if !ok {
		return Secret{}, nil
	}
	if v.open != nil {
		return v.open[string(name)], nil
	}
	s, err := loadSealer(v.keyPath)
	if err != nil {
		return Secret{}, fmt.Errorf("%s: %w", name, err)
	}
	return s.open(string(name), sealed)
}

// Entry is one parameter as the operator sees it.
type Entry struct {
	Name    string `json:"name"`
	Type    string `json:"type"`
	Value   string `json:"value"` // canonical; ****** for a secret that is set
	Default string `json:"default"`
	Set     bool   `json:"set"`
	Secret  bool   `json:"secret"`
	Problem string `json:"problem,omitempty"` // the stored value is not allowed, Value shows the default
	After   string `json:"after,omitempty"`   // what to run so that a change takes effect
}

// String is the line that alation_conf prints.
func (e Entry) String() string { return e.Name + " = " + e.Value }

// Entry describes one parameter; the error is an *UnknownKeyError.
func (v *Values) Entry(name string) (Entry, error) {
	k := Lookup(name)
	if k == nil {
		return Entry{}, &UnknownKeyError{Name: name, Nearest: Nearest(name)}
	}
	e := Entry{Name: name, Type: k.Type.String(), Value: k.Default, Default: k.Default, Set: v.IsSet(name), Secret: k.Secret(), After: k.After}
	if text, ok := v.text[name]; ok {
		e.Value = text
	}
	if e.Secret && e.Set {
		e.Value = redacted
	}
	if err := v.problems[name]; err != nil {
		e.Set, e.Problem = true, err.Error()
	}
	return e, nil
}
