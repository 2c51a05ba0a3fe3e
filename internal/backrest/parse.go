package backrest

import (
	"io/fs"
	"slices"
	"strconv"
	"strings"
)

// Source says where a value was found.
type Source uint8

// Sources, strongest first.
const (
	FromCommandLine Source = iota
	FromEnvironment
	FromFile
	FromDefault
)

// value is what was found for one option and index. At most one of text, negated and reset says something.
type value struct {
	text           []string
	source         Source
	negated, reset bool
}

type place struct {
	o   *Option
	key int
}

// Config is one command line with everything that holds for it.
type Config struct {
	Command  Command
	Params   []string // words that are neither command nor option
	Help     bool     // help for Command, which may be 0, was asked for
	Warnings []string // of the environment and of the files: what was passed over
	Stanzas  []string // that the files have sections for, in their order

	values map[place]*value
}

// Parse reads the words after the program's name, the environment ("NAME=value") and the configuration files below the
// root of files. The error is an *Error.
func Parse(args, environ []string, files fs.FS) (*Config, error) {
	c := &Config{values: map[place]*value{}}
	if err := c.parseArgs(args); err != nil {
		return nil, err
	}
	if c.Command == 0 {
		return c, nil
	}
	if c.Command != onVersion {
		for o := range all {
			for at := range c.values {
				if at.o == o && o.On&c.Command == 0 {
					return nil, &Error{CodeOptionInvalid, "option '" + o.Name + "' not valid for command '" + c.Command.String() + "'"}
				}
			}
		}
	}
	if err := c.fill(environ, files); err != nil && !c.Help { // help is what one asks for when something is wrong
		return nil, err
	}
	return c, nil
}

// fill takes what the command line did not set from the environment and the files, and checks all of it.
func (c *Config) fill(environ []string, files fs.FS) error {
	if c.Command == onVersion { // the original takes any option with it
		if v := c.find(named("output"), 1); v != nil {
			if err := c.checkValue(named("output"), 1, v.text[0]); err != nil {
				return err
			}
		}
		return nil
	}
	if err := c.parseEnvironment(environ); err != nil {
		return err
	}
	f, err := c.load(files)
	if err != nil {
		return err
	}
	for _, s := range f.sections {
		name, _, _ := strings.Cut(s.name, ":")
		if name != "global" && !slices.Contains(c.Stanzas, name) {
			c.Stanzas = append(c.Stanzas, name)
		}
	}
	if err := c.takeFile(f); err != nil {
		return err
	}
	if err := c.check(); err != nil {
		return err
	}
	return nil
}

func (c *Config) find(o *Option, key int) *value { return c.values[place{o, key}] }

// match is what a name means.
type match struct {
	o              *Option
	key            int
	negated, reset bool
}

// lookup finds the option that a name means: with an index, a leading no- or reset-, an earlier name; on the command line
// (short) also by a beginning that fits one option only. o is nil when nothing does.
func lookup(name string, short bool) (m match, err *Error) {
	bad := func(what string) (match, *Error) {
		return match{}, &Error{CodeOptionInvalid, "option '" + name + "' " + what}
	}
	base := name
	if base, m.negated = strings.CutPrefix(base, "no-"); !m.negated {
		base, m.reset = strings.CutPrefix(base, "reset-")
	}
	indexed := false
	if dash := strings.IndexByte(base, '-'); dash == 0 {
		return bad("cannot begin with a dash")
	} else if dash > 0 {
		letters := strings.TrimRight(base[:dash], "0123456789")
		if letters == "" {
			return bad("cannot begin with a number")
		}
		if digits := base[len(letters):dash]; digits != "" {
			n, cerr := strconv.Atoi(digits)
			if cerr != nil || n > maxKey {
				return bad("key exceeds maximum of " + strconv.Itoa(maxKey))
			}
			if n == 0 {
				return bad("key must be at least 1")
			}
			indexed, m.key, base = true, n, letters+base[dash:]
		}
	}
	old := false
	if m.o, old = resolve(base, indexed, short); m.o == nil {
		return m, nil
	}
	switch {
	case m.negated && !m.o.negatable():
		return bad("cannot be negated")
	case m.reset && m.o.Section == CommandLine:
		return bad("cannot be reset")
	case indexed && m.o.Group == None:
		return bad("cannot have an index")
	case !indexed && m.o.Group != None && !old:
		return bad("requires an index\nHINT: add the required index, e.g. " + m.o.keyed(1) + ".")
	}
	m.key = max(m.key, 1)
	return m, nil
}

// resolve finds an option by its name without index; old: by one that needs no index for the first.
func resolve(base string, indexed, short bool) (o *Option, old bool) {
	if o = named(base); o == nil && short && base != "" {
		fits := 0
		for x := range all {
			if strings.HasPrefix(x.Name, base) {
				o, fits = x, fits+1
			}
		}
		if fits != 1 {
			o = nil
		}
	}
	for x := range all {
		if o != nil && x != o {
			continue
		}
		for _, w := range strings.Fields(x.Old) {
			if plain := strings.Replace(w, "?", "", 1); plain == base && (plain != w) == indexed {
				return x, !indexed
			}
		}
	}
	return o, false
}

func (c *Config) parseArgs(args []string) *Error {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--help":
			c.Help = true
		case a == "--version":
			c.Command = onVersion
			return nil
		case strings.HasPrefix(a, "--"):
			used, err := c.parseArg(a[2:], args[i+1:])
			if err != nil {
				return err
			}
			i += used
		case strings.HasPrefix(a, "-"):
			return &Error{CodeOptionInvalid, "option '" + a + "' must begin with --"}
		case c.Command == 0 && commandNamed(a) == onHelp:
			c.Help = true
		case c.Command == 0:
			if c.Command = commandNamed(a); c.Command == 0 {
				return &Error{CodeCommandInvalid, "invalid command '" + a + "'"}
			}
		default:
			c.Params = append(c.Params, a)
		}
	}
	switch {
	case c.Help:
		return c.helpOn()
	case len(args) == 0:
		c.Help = true
	case c.Command == 0:
		return &Error{CodeCommandRequired, "no command found"}
	case c.Params != nil && c.Command&onParams == 0:
		return &Error{CodeParamInvalid, "command does not allow parameters"}
	}
	return nil
}

// helpOn finds the option that help was asked for and leaves its name in the table in Params, which is then all they hold.
func (c *Config) helpOn() *Error {
	switch len(c.Params) {
	case 0:
		return nil
	case 1:
	default:
		return &Error{CodeParamInvalid, "only one option allowed for option help"}
	}
	o := named(c.Params[0])
	if o == nil {
		if m, err := lookup(c.Params[0], false); err == nil {
			o = m.o
		}
	}
	if o == nil || o.On&c.Command == 0 {
		return &Error{CodeOptionInvalid, "option '" + c.Params[0] + "' is not valid for command '" + c.Command.String() + "'"}
	}
	c.Params[0] = o.Name
	return nil
}

// parseArg takes one option without its dashes; rest are the words that follow, of which it uses one at most.
func (c *Config) parseArg(arg string, rest []string) (used int, err *Error) {
	name, text, given := strings.Cut(arg, "=")
	bad := func(what string) (int, *Error) { return 0, &Error{CodeOptionInvalid, what} }
	m, err := lookup(name, true)
	switch {
	case err != nil:
		return 0, err
	case m.o == nil:
		return bad("invalid option '--" + name + "'")
	case m.o.Secret:
		return bad("option '" + m.o.keyed(m.key) + "' is not allowed on the command-line\n" +
			"HINT: this option could expose secrets in the process list.\n" +
			"HINT: specify the option in a configuration file or an environment variable instead.")
	case (m.negated || m.reset) && given:
		return bad("option '" + name + "' does not allow an argument")
	case m.negated || m.reset:
	case m.o.Kind == Bool && given && text != "y" && text != "n":
		return 0, &Error{CodeOptionValue, "boolean option '--" + name + "' argument must be 'y' or 'n'"}
	case m.o.Kind == Bool || m.o.Kind == Switch && !given:
		m.negated = text == "n"
		if m.o.Kind == Switch {
			text, given = "y", true
		}
	case !given && len(rest) == 0:
		return bad("option '--" + name + "' requires an argument")
	case !given:
		text, given, used = rest[0], true, 1
	}
	now := &value{negated: m.negated, reset: m.reset}
	if given && m.o.Kind != Bool {
		now.text = []string{text}
	}
	at := place{m.o, m.key}
	before := c.values[at]
	if before == nil {
		c.values[at] = now
		return used, nil
	}
	full := m.o.keyed(m.key)
	switch {
	case before.negated && now.negated:
		return bad("option '" + full + "' is negated multiple times")
	case before.reset && now.reset:
		return bad("option '" + full + "' is reset multiple times")
	case before.reset && now.negated || before.negated && now.reset:
		return bad("option '" + full + "' cannot be negated and reset")
	case before.negated != now.negated:
		return bad("option '" + full + "' cannot be set and negated")
	case before.reset != now.reset:
		return bad("option '" + full + "' cannot be set and reset")
	case !m.o.Kind.multi():
		return bad("option '" + full + "' cannot be set multiple times")
	}
	before.text = append(before.text, text)
	return used, nil
}

func (c *Config) warn(text string) { c.Warnings = append(c.Warnings, text) }

// envPrefix begins the names of our variables.
const envPrefix = "PGBACKREST_"

func (c *Config) parseEnvironment(environ []string) *Error {
	for _, e := range environ {
		name, text, _ := strings.Cut(e, "=")
		name, ours := strings.CutPrefix(name, envPrefix)
		if !ours {
			continue
		}
		name = strings.ReplaceAll(strings.ToLower(name), "_", "-")
		m, err := lookup(name, false)
		switch {
		case err != nil:
			return err
		case m.o == nil:
			c.warn("environment contains invalid option '" + name + "'")
		case m.negated:
			c.warn("environment contains invalid negate option '" + name + "'")
		case m.reset:
			c.warn("environment contains invalid reset option '" + name + "'")
		case m.o.On&c.Command == 0:
		case text == "":
			return &Error{CodeOptionValue, "environment variable '" + name + "' must have a value"}
		case c.find(m.o, m.key) != nil:
		default:
			v := []string{text}
			if m.o.Kind.multi() {
				v = strings.Split(text, ":")
			}
			if !c.put(m, FromEnvironment, v) {
				return &Error{CodeOptionValue, "environment boolean option '" + name + "' must be 'y' or 'n'"}
			}
		}
	}
	return nil
}

// put stores values; false: a Bool that is neither y nor n.
func (c *Config) put(m match, from Source, text []string) bool {
	v := &value{source: from, text: text}
	if m.o.Kind == Bool {
		if text[0] != "y" && text[0] != "n" {
			return false
		}
		v.negated, v.text = text[0] == "n", nil
	}
	c.values[place{m.o, m.key}] = v
	return true
}

// takeFile takes from each section what no stronger source has set.
func (c *Config) takeFile(f *file) *Error {
	names := []string{"global:" + c.Command.String(), "global"}
	if stanza := c.text(named("stanza"), 1); stanza != "" {
		names = append([]string{stanza + ":" + c.Command.String(), stanza}, names...)
	}
	for _, name := range names {
		if s := f.section(name); s != nil {
			if err := c.takeSection(s); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Config) takeSection(s *section) *Error {
	seen := map[place]string{}
	_, global := strings.CutPrefix(s.name, "global")
	global = global && (s.name == "global" || s.name[len("global")] == ':')
	ofCommand := strings.HasSuffix(s.name, ":"+c.Command.String())
	for _, e := range s.entries {
		m, err := lookup(e.name, false)
		if err != nil {
			return err
		}
		quoted := "'" + e.name + "'"
		switch {
		case m.o == nil:
			c.warn("configuration file contains invalid option " + quoted)
			continue
		case m.negated:
			c.warn("configuration file contains negate option " + quoted)
			continue
		case m.reset:
			c.warn("configuration file contains reset option " + quoted)
			continue
		case m.o.Section == CommandLine:
			c.warn("configuration file contains command-line only option " + quoted)
			continue
		}
		at := place{m.o, m.key}
		if other, twice := seen[at]; twice {
			return &Error{CodeOptionInvalid, "configuration file contains duplicate options (" + quoted + ", '" + other + "') in section '[" + s.name + "]'"}
		}
		seen[at] = e.name
		switch {
		case m.o.On&c.Command == 0 && ofCommand:
			c.warn("configuration file contains option " + quoted + " invalid for section '" + s.name + "'")
		case m.o.On&c.Command == 0:
		case m.o.Section == StanzaOnly && global:
			c.warn("configuration file contains stanza-only option " + quoted + " in global section '" + s.name + "'")
		case c.values[at] != nil:
		case len(e.values) > 1 && !m.o.Kind.multi():
			return &Error{CodeOptionInvalid, "option '" + m.o.keyed(m.key) + "' cannot be set multiple times"}
		case slices.Contains(e.values, ""):
			return &Error{CodeOptionValue, "section '" + s.name + "', key " + quoted + " must have a value"}
		case !c.put(m, FromFile, e.values):
			return &Error{CodeOptionValue, "boolean option " + quoted + " must be 'y' or 'n'"}
		}
	}
	return nil
}
