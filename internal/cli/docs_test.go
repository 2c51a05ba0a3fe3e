package cli

import (
	"bytes"
	"cmp"
	"flag"
	"os"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"holdfast/internal/conf"
)

var update = flag.Bool("update", false, "rewrite generated files")

// oldNames are what Alation's own tools call a command.
var oldNames = map[string]string{
	"holdfast init": "/etc/init.d/alation init", "holdfast start": "/etc/init.d/alation start", "holdfast stop": "/etc/init.d/alation stop",
	"holdfast status": "/etc/init.d/alation status", "holdfast shell": "/etc/init.d/alation shell", "holdfast conf": "alation_conf",
	"holdfast backup": "alation_action backup_all", "holdfast enable": "alation_action enable_backupv2", "holdfast restore": "alation_action destructive_restore_all",
}

// ownHelp is the text of the commands that take their command line apart themselves.
var ownHelp = map[string]string{"holdfast conf": conf.CallHelp, "holdfast pg archive-push": archiveHelp, "holdfast pg archive-get": archiveHelp}

// docCommand is one command of the page.
type docCommand struct {
	Path, Old, Short, Long, Usage, Own string
	Flags                              []docFlag
}

type docFlag struct{ Name, Default, Help string }

// valueWords says what follows a flag, for readers who do not write Go.
var valueWords = map[string]string{"string": "VALUE", "strings": "VALUE,…", "stringToString": "NAME=VALUE,…", "int": "N", "duration": "TIME"}

// leaves lists what can be run, in the tree's order, cobra's own help and completion left out.
func leaves(c *cobra.Command) []docCommand {
	var all []docCommand
	for _, sub := range c.Commands() {
		switch {
		case sub.Hidden:
		case sub.HasSubCommands():
			if sub.Annotations[runsItself] != "" {
				all = append(all, docOf(sub))
			}
			all = append(all, leaves(sub)...)
		default:
			all = append(all, docOf(sub))
		}
	}
	return all
}

// shared takes the flags that all verbs of holdfast pg have out of them: they are said once.
func shared(commands []docCommand) (common []docFlag) {
	first := true
	pg := func(d docCommand) bool { return strings.HasPrefix(d.Path, "holdfast pg ") && d.Own == "" }
	for _, d := range commands {
		if !pg(d) {
			continue
		}
		if first {
			common, first = slices.Clone(d.Flags), false
			continue
		}
		common = slices.DeleteFunc(common, func(f docFlag) bool { return !slices.Contains(d.Flags, f) })
	}
	for i := range commands {
		if pg(commands[i]) {
			commands[i].Flags = slices.DeleteFunc(commands[i].Flags, func(f docFlag) bool { return slices.Contains(common, f) })
		}
	}
	return common
}

// places takes the flags that say where a repository is out of all verbs that have them: they are said once.
func places(commands []docCommand) []docFlag {
	var once []docFlag
	where := func(f docFlag) bool {
		name, _, _ := strings.Cut(f.Name, " ")
		return name == "--config" || name == "--as-of" && strings.HasPrefix(f.Help, "the same as") || slices.ContainsFunc(repoHelp, func(h struct{ name, help string }) bool { return name == "--repo1-"+h.name })
	}
	for i := range commands {
		for _, f := range commands[i].Flags {
			if where(f) && !slices.Contains(once, f) {
				once = append(once, f)
			}
		}
		commands[i].Flags = slices.DeleteFunc(commands[i].Flags, where)
	}
	return once
}

func docOf(c *cobra.Command) docCommand {
	d := docCommand{Path: c.CommandPath(), Old: oldNames[c.CommandPath()], Long: c.Long, Own: ownHelp[c.CommandPath()],
		Usage: strings.TrimSuffix(c.CommandPath(), c.Name()) + strings.TrimSuffix(c.Use, " [flags]")}
	d.Short = strings.TrimSuffix(c.Short, ": "+d.Old)
	c.Flags().VisitAll(func(f *pflag.Flag) {
		word, help := pflag.UnquoteUsage(f)
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if word != "" {
			name += " " + cmp.Or(valueWords[word], word)
		}
		value := "`" + f.DefValue + "`"
		switch {
		case f.Name == "process-max":
			value = "number of CPUs" // of the machine that runs it, not of the one that writes the page
		case slices.Contains([]string{"", "false", "[]"}, f.DefValue), f.DefValue == "0" && f.Value.Type() == "int":
			value = ""
		}
		d.Flags = append(d.Flags, docFlag{name, value, help})
	})
	return d
}

// commandsPage fills the template with what the program itself knows.
func commandsPage(t *testing.T) []byte {
	t.Helper()
	tmpl, err := template.New("commands.md.tmpl").Funcs(template.FuncMap{
		"cell":   func(s string) string { return strings.ReplaceAll(s, "|", `\|`) },
		"anchor": func(s string) string { return strings.ReplaceAll(s, " ", "-") },
		"indent": func(s string) string {
			lines := strings.SplitAfter(s, "\n")
			for i, l := range lines {
				if strings.TrimSpace(l) != "" {
					lines[i] = "    " + l
				}
			}
			return strings.Join(lines, "")
		},
	}).ParseFiles("testdata/commands.md.tmpl")
	if err != nil {
		t.Fatal(err)
	}
	env, _, _ := bareEnv(strings.NewReader(""))
	tree := (&root{env: env}).command()
	type exit struct {
		Code  int
		Whole string
	}
	var exits []exit
	for _, c := range exitCodes {
		exits = append(exits, exit{c.code, c.whole})
	}
	commands := leaves(tree)
	where := places(commands)
	common := shared(commands)
	var b bytes.Buffer
	if err := tmpl.Execute(&b, map[string]any{"Commands": commands, "PG": common, "Where": where, "Exits": exits, "Conf": conf.CallHelp, "Action": actionHelp + exitHelp() + "\n", "Archive": archiveHelp}); err != nil {
		t.Fatal(err)
	}
	return append(bytes.TrimRight(b.Bytes(), "\n"), '\n')
}

// TestCommandsPage: docs/commands.md is what the command tree says today.
func TestCommandsPage(t *testing.T) {
	const path = "../../docs/commands.md"
	want := commandsPage(t)
	if *update {
		if err := os.WriteFile(path, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, want) {
		t.Error("docs/commands.md is stale: run: go test ./internal/cli -run TestCommandsPage -update")
	}
}

// TestOldNamesAnswer: every old name of the table is a command, or an alias of one, and alation_action knows its verbs.
func TestOldNamesAnswer(t *testing.T) {
	env, _, _ := bareEnv(strings.NewReader(""))
	tree := (&root{env: env}).command()
	for path, old := range oldNames {
		c, _, err := tree.Find(strings.Fields(path)[1:])
		if err != nil || c.CommandPath() != path {
			t.Errorf("%s is not in the tree", path)
			continue
		}
		words := strings.Fields(old)
		if words[0] != "alation_action" {
			continue
		}
		if !slices.Contains(c.Aliases, words[1]) || !strings.Contains(actionHelp, "  "+words[1]+" ") {
			t.Errorf("%s: %s is not an alias of it, or not in the help of alation_action", path, words[1])
		}
		if !strings.Contains(c.Short, old) {
			t.Errorf("%s: its help does not say %q", path, old)
		}
	}
	for path := range ownHelp {
		if c, _, err := tree.Find(strings.Fields(path)[1:]); err != nil || c.CommandPath() != path || !c.DisableFlagParsing {
			t.Errorf("%s is not a command that takes its words apart itself", path)
		}
	}
}
