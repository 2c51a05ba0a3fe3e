package backrest

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// check looks at every value that was given: that what it needs is there, and that it is one the option takes. An option
// in a file may stand there for another command; on the command line it must have its effect.
func (c *Config) check() *Error {
	for _, at := range c.places() {
		o, v := at.o, c.values[at]
		if v.reset {
			continue
		}
		if ok, missing := c.active(o, at.key); !ok {
			if dep := named(o.Needs); dep != nil && dep.Required&c.Command != 0 && c.wanted(dep, at.key) {
				return &Error{CodeOptionRequired, c.Command.String() + " command requires option: " + dep.keyed(at.key) + "\nHINT: does this stanza exist?"}
			}
			if v.source == FromCommandLine && (!v.negated || o.Kind == Bool) {
				return &Error{CodeOptionInvalid, "option '" + o.keyed(at.key) + "' not valid without option " + missing}
			}
			continue
		}
		for i, t := range v.text {
			if err := c.checkValue(o, at.key, t); err != nil {
				return err
			}
			if o.Kind == Path && len(t) > 1 {
				v.text[i] = strings.TrimSuffix(t, "/")
			}
		}
	}
	return nil
}

// places are the places that have a value, by name and index.
func (c *Config) places() []place {
	return slices.SortedFunc(maps.Keys(c.values), func(a, b place) int {
		if n := strings.Compare(a.o.Name, b.o.Name); n != 0 {
			return n
		}
		return a.key - b.key
	})
}

// active says whether what o needs is there; if not, what is missing.
func (c *Config) active(o *Option, key int) (ok bool, missing string) {
	for _, w := range words(o.Needs, c.Command) {
		name, values, listed := strings.Cut(w, "=")
		dep := named(name)
		if dep.Group != o.Group {
			key = 1
		}
		have := c.text(dep, key)
		full := dep.keyed(key)
		switch {
		case !listed && have == "":
			return false, "'" + full + "'"
		case listed && !slices.Contains(strings.Split(values, "|"), have):
			switch {
			case values == "n":
				full = "no-" + full
			case strings.Contains(values, "|"):
				return false, "'" + full + "' in ('" + strings.ReplaceAll(values, "|", "', '") + "')"
			case values != "y":
				full += "' = '" + values
			}
			return false, "'" + full + "'"
		}
	}
	return true, ""
}

// wanted says whether what o needs is there.
func (c *Config) wanted(o *Option, key int) bool {
	ok, _ := c.active(o, key)
	return ok
}

// text is the option's value, its first if it has several; empty: none.
func (c *Config) text(o *Option, key int) string {
	if ok, _ := c.active(o, key); !ok {
		return ""
	}
	if v := c.find(o, key); v != nil && !v.reset {
		switch {
		case v.negated && (o.Kind == Bool || o.Kind == Switch):
			return "n"
		case v.negated:
			return ""
		case o.Kind == Bool:
			return "y"
		}
		return v.text[0]
	}
	if w := words(o.Default, c.Command); len(w) > 0 && o.On&c.Command != 0 {
		return w[0]
	}
	return ""
}

// Complete says which option the command cannot do without is missing. It is apart from Parse so that options which a
// program does not do at all can be named first.
func (c *Config) Complete() error {
	missing := func(o *Option) error {
		if o.Required&c.Command == 0 {
			return nil
		}
		keys := []int{1}
		if o.Group != None {
			keys = c.Keys(o.Group)
		}
		for _, key := range keys {
			if ok, _ := c.active(o, key); ok && c.text(o, key) == "" {
				hint := ""
				if o.Section == StanzaOnly {
					hint = "\nHINT: does this stanza exist?"
				}
				return &Error{CodeOptionRequired, c.Command.String() + " command requires option: " + o.keyed(key) + hint}
			}
		}
		return nil
	}
	if err := missing(named("stanza")); err != nil {
		return err
	}
	for o := range all {
		if err := missing(o); err != nil {
			return err
		}
	}
	if repo := c.String("repo", 0); repo != "" && !slices.Contains(c.Keys(Repo), int(c.Int("repo", 0))) {
		return &Error{CodeOptionValue, "key '" + repo + "' is not valid for 'repo' option"}
	}
	return nil
}

// Keys are the indexes in use of a group, ascending; index 1 when none is.
func (c *Config) Keys(g Group) []int {
	used := map[int]bool{}
	for at, v := range c.values {
		if ok, _ := c.active(at.o, at.key); ok && at.o.Group == g && !v.reset {
			used[at.key] = true
		}
	}
	if len(used) == 0 {
		return []int{1}
	}
	return slices.Sorted(maps.Keys(used))
}

// String is the value of an option as text. name is its name in the table, without index; key is its index, 0 for an
// option that has none. It panics on a name that is not in the table.
func (c *Config) String(name string, key int) string { return c.text(c.row(name), max(key, 1)) }

func (c *Config) row(name string) *Option {
	o := named(name)
	if o == nil {
		panic("backrest: no option " + name)
	}
	return o
}

// Bool is the value of a Bool; one that does not exist here, for want of another option, is false.
func (c *Config) Bool(name string, key int) bool { return c.String(name, key) == "y" }

// Int is the value of an Int, or of a Size in bytes; 0 when there is none. Parse has checked it.
func (c *Config) Int(name string, key int) int64 {
	n, err := quantity(c.row(name).Kind, c.String(name, key))
	if err != nil {
		return 0
	}
	return n
}

// Duration is the value of a Time.
func (c *Config) Duration(name string, key int) time.Duration {
	return time.Duration(c.Int(name, key))
}

// List is every value of a List.
func (c *Config) List(name string, key int) []string {
	o := c.row(name)
	v := c.find(o, max(key, 1))
	if ok, _ := c.active(o, max(key, 1)); !ok || v == nil || v.reset {
		return nil
	}
	return v.text
}

// Hash is every value of a Hash; nil when there is none.
func (c *Config) Hash(name string, key int) map[string]string {
	var m map[string]string
	for _, pair := range c.List(name, key) {
		if m == nil {
			m = map[string]string{}
		}
		k, v, _ := strings.Cut(pair, "=")
		m[k] = v
	}
	return m
}

// Given is one option that holds for the command and was set by somebody.
type Given struct {
	Name   string // in the table
	Key    int    // 0 for an option without index
	Full   string // as the operator writes it: repo1-path
	Text   string // the value, or the first of several; y or n for a Bool
	Secret bool   // Text is for no log
}

// Given lists what was set and holds, by name.
func (c *Config) Given() []Given {
	var out []Given
	for _, at := range c.places() {
		if ok, _ := c.active(at.o, at.key); !ok || c.values[at].reset {
			continue
		}
		g := Given{Name: at.o.Name, Full: at.o.keyed(at.key), Text: c.text(at.o, at.key), Secret: at.o.Secret}
		if at.o.Group != None {
			g.Key = at.key
		}
		out = append(out, g)
	}
	return out
}

// Words writes the options that were set as a command line would have them, for a log; secrets are hidden.
func (c *Config) Words() []string {
	return c.words(func(place, *value) bool { return true }, "<redacted>")
}

// WordsFor is Words with only those that another command knows, too.
func (c *Config) WordsFor(command string) []string {
	to := commandNamed(command)
	return c.words(func(at place, _ *value) bool { return at.o.On&to != 0 }, "<redacted>")
}

// Forward are the options of this command line and environment that another command needs to work on the same stanza
// elsewhere, where the configuration files can be read but this environment cannot. Secrets are left out, and what was meant for
// this run alone.
func (c *Config) Forward(command string) []string {
	to := commandNamed(command)
	return c.words(func(at place, v *value) bool {
		which := at.o.Section != CommandLine || at.o.Name == "stanza" || strings.HasPrefix(at.o.Name, "config") ||
			at.o.Name == "repo" && c.String("repo-target-time", 0) != "" // a time is that of one repository
		return v.source <= FromEnvironment && at.o.On&to != 0 && which && !at.o.Secret && !strings.Contains(ownRun, " "+at.o.Name+" ")
	}, "")
}

// ownRun are options that are meant for the run that they were given to, and not for commands that it leaves behind.
const ownRun = " allow-root cmd exec-id job-retry job-retry-interval log-level-console log-level-file log-level-stderr log-subprocess log-timestamp priority process-max "

func (c *Config) words(want func(place, *value) bool, hidden string) []string {
	var out []string
	for _, at := range c.places() {
		v, full := c.values[at], at.o.keyed(at.key)
		if ok, _ := c.active(at.o, at.key); !ok || !want(at, v) {
			continue
		}
		switch {
		case v.reset:
			out = append(out, "--reset-"+full)
		case v.negated:
			out = append(out, "--no-"+full)
		case at.o.Kind == Bool:
			out = append(out, "--"+full)
		}
		for _, t := range v.text {
			if at.o.Secret {
				t = hidden
			}
			out = append(out, "--"+full+"="+t)
		}
	}
	return out
}
