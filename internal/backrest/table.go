// Package backrest reads what operators wrote for pgBackRest: its command line, its environment and its configuration
// files, by its rules. The result says for one command which options hold; what to do with them is the caller's matter.
//
// Where a value comes from, strongest first:
//
//	command line  >  PGBACKREST_… in the environment  >  [stanza:command]  >  [stanza]  >  [global:command]  >  [global]
//
// The table of options is plain data that the linker lays out: a program that is started once per WAL segment pays
// nothing for it before it looks an option up.
package backrest

import (
	"slices"
	"strconv"
	"strings"
)

// Command is one command, and a set of commands when combined.
type Command uint32

// The commands, in the order of commandNames.
const (
	onAnnotate Command = 1 << iota
	onArchiveGet
	onArchivePush
	onBackup
	onCheck
	onExpire
	onHelp
	onInfo
	onManifest
	onRepoCreate
	onRepoGet
	onRepoLs
	onRepoPut
	onRepoRm
	onRestore
	onServer
	onServerPing
	onStanzaCreate
	onStanzaDelete
	onStanzaUpgrade
	onStart
	onStop
	onVerify
	onVersion
)

const commandNames = "annotate archive-get archive-push backup check expire help info manifest repo-create repo-get repo-ls repo-put repo-rm restore server server-ping " +
	"stanza-create stanza-delete stanza-upgrade start stop verify version"

// Sets of commands that share options.
const (
	onArchive = onArchiveGet | onArchivePush
	onStanza  = onStanzaCreate | onStanzaDelete | onStanzaUpgrade
	onSession = onStanza | onBackup | onCheck // those that talk to PostgreSQL
	onPG      = onSession | onArchive | onRestore
	onWorkers = onArchive | onBackup | onRestore | onVerify
	onObjects = onRepoCreate | onRepoGet | onRepoLs | onRepoPut | onRepoRm
	onRemote  = onPG | onAnnotate | onInfo | onManifest | onObjects | onVerify // those that may work on another host
	onRepo    = onRemote | onExpire
	onLock    = onRepo&^onCheck&^onManifest&^onObjects&^onVerify | onStart | onStop
	onNet     = onRepo | onServer | onServerPing
	onRun     = onNet | onStart | onStop
	onParams  = onArchive | onHelp | onObjects // those that take words beside options
)

// commandNamed finds a command; 0: there is none of this name.
func commandNamed(name string) Command {
	for i, n := range strings.Fields(commandNames) {
		if n == name {
			return 1 << i
		}
	}
	return 0
}

// String is the command's name.
func (c Command) String() string {
	for i, n := range strings.Fields(commandNames) {
		if c == 1<<i {
			return n
		}
	}
	return "command " + strconv.Itoa(int(c))
}

// Commands lists the names of all commands.
func Commands() []string { return strings.Fields(commandNames) }

// Kind is the type of an option's value.
type Kind uint8

// Kinds of values. Switch is an Enum that may also be given like a Bool.
const (
	Bool Kind = iota
	Int
	Size
	Time
	String
	Path
	Enum
	Switch
	List
	Hash
)

func (k Kind) multi() bool { return k == List || k == Hash }

// Group says which index an option carries.
type Group uint8

// Groups of options: repo1-path, pg1-path.
const (
	None Group = iota
	PG
	Repo
)

func (g Group) String() string { return [...]string{"", "pg", "repo"}[g] }

// Section says where in a configuration file an option may stand.
type Section uint8

// Sections.
const (
	CommandLine Section = iota // nowhere
	Global                     // anywhere
	StanzaOnly                 // in the sections of a stanza
)

// maxKey is the largest index of pg1-… and repo1-….
const maxKey = 256

// Option is one row of the table. In Default, Allow and Needs a word "command:value" holds for that command and replaces
// the words without a command.
type Option struct {
	Name     string // without index: repo-path
	Kind     Kind
	Group    Group
	Section  Section
	On       Command // commands that know it
	Required Command // commands that fail without it
	Default  string
	Allow    string // the values of an Enum, the sizes of a Size
	Range    string // "lowest highest", or "other-option value=lowest..highest …"
	Needs    string // "option", or "option=value|value": without it the option does not exist
	Old      string // names of earlier versions; '?' is an index
	Secret   bool   // refused on the command line, never logged
	No       bool   // may be negated although it stands on the command line only
}

// all yields every row.
func all(yield func(*Option) bool) {
	for _, part := range [][]Option{general, hosts, beyond} {
		for i := range part {
			if !yield(&part[i]) {
				return
			}
		}
	}
}

// Options lists the table.
func Options() []Option { return slices.Concat(general, hosts, beyond) }

// named finds an option by its exact name without index.
func named(name string) *Option {
	for o := range all {
		if o.Name == name {
			return o
		}
	}
	return nil
}

// words are the entries of a row's text that hold for c.
func words(text string, c Command) []string {
	if text == "" {
		return nil
	}
	var own, plain []string
	for _, w := range strings.Fields(text) {
		cmd, v, scoped := strings.Cut(w, ":")
		switch {
		case !scoped:
			plain = append(plain, w)
		case cmd == c.String():
			own = append(own, v)
		}
	}
	if own != nil {
		return own
	}
	return plain
}

// keyed is the option's name with its index.
func (o *Option) keyed(key int) string {
	if o.Group == None {
		return o.Name
	}
	return o.Group.String() + strconv.Itoa(key) + strings.TrimPrefix(o.Name, o.Group.String())
}

func (o *Option) negatable() bool {
	return o.No || o.Section != CommandLine && (o.Kind == Bool || o.Kind == Switch)
}

// Values says in words what the option takes for a command; empty: anything.
func (o *Option) Values(c Command) string {
	switch {
	case o.Kind == Bool:
		return "y or n"
	case o.Allow != "":
		return "one of " + strings.Join(words(o.Allow, c), ", ")
	case o.Range != "":
		return "from " + strings.Replace(o.Range, " ", " to ", 1)
	}
	return ""
}

// DefaultFor is the option's default for a command; empty: none.
func (o *Option) DefaultFor(c Command) string {
	if w := words(o.Default, c); len(w) > 0 {
		return w[0]
	}
	return ""
}
