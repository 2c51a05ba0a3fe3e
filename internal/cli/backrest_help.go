package cli

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"holdfast/internal/backrest"
)

// helpOrVersion prints what is asked for.
func (r *backrestRun) helpOrVersion() int {
	text := "Holdfast " + Version + "\n"
	switch {
	case r.c.Help:
		text = r.helpText()
	case r.c.String("output", 0) == "num":
		text = versionNumber(Version)
	}
	if _, err := io.WriteString(r.env.Stdout, text); err != nil {
		return codeUnknown
	}
	return exitOK
}

// versionNumber is a version as one number that can be compared: 1.2.3 is 1002003.
func versionNumber(version string) string {
	number := 0
	for i, part := range strings.SplitN(version+"..", ".", 4) {
		var n int
		if i < 3 {
			fmt.Sscanf(part, "%d", &n) // what is no number counts as 0
			number = number*1000 + n
		}
	}
	return fmt.Sprint(number)
}

// helpWidth is the column that the text of an option begins in, and helpEnd the one it ends at.
const (
	helpWidth = 34
	helpEnd   = 112
)

func (r *backrestRun) helpText() string {
	var b strings.Builder
	command := r.c.Command
	if command == 0 {
		fmt.Fprintf(&b, "Holdfast %s, under the name pgbackrest\n\nUsage:\n    pgbackrest [options] [command]\n\nCommands:\n", Version)
		for _, n := range backrest.Commands() {
			if !slices.Contains(refusedCommands, n) {
				fmt.Fprintf(&b, "    %-16s%s\n", n, backrest.CommandText(n))
			}
		}
		b.WriteString("\nUse 'pgbackrest help [command]' for more information, and 'pgbackrest help [command] [option]'.\n")
		return b.String()
	}
	if len(r.c.Params) == 1 {
		r.helpOption(&b, r.c.Params[0])
		return b.String()
	}
	fmt.Fprintf(&b, "Holdfast %s - '%s' command help\n\n%s\n", Version, command, capital(backrest.CommandText(command.String())))
	if slices.Contains(refusedCommands, command.String()) {
		fmt.Fprintf(&b, "\nNot done by Holdfast: %s.\n", refusedCommand(command.String()))
	}
	b.WriteString("\nOptions:\n\n")
	var other []string
	for _, o := range backrest.Options() {
		switch {
		case o.On&command == 0 || strings.HasPrefix(o.Text(), "internal "):
		case r.optionRefused(&o) != "":
			other = append(other, o.Name)
		default:
			writeOption(&b, &o, r.optionHelp(&o, command))
		}
	}
	if len(other) > 0 {
		b.WriteString("\nNot done by Holdfast; help of one says what to do instead:\n\n")
		wrapText(&b, "  ", 2, strings.Join(other, ", "))
	}
	return b.String()
}

// helpOption tells about one option.
func (r *backrestRun) helpOption(b *strings.Builder, name string) {
	command := r.c.Command
	for _, o := range backrest.Options() {
		if o.Name != name {
			continue
		}
		fmt.Fprintf(b, "Holdfast %s - '%s' command - '%s' option help\n\n%s.\n", Version, command, name, capital(o.Text()))
		if instead := r.optionRefused(&o); instead != "" {
			fmt.Fprintf(b, "\nNot done by Holdfast: %s.\n", instead)
		}
		if slices.Contains(strings.Fields(neutralOptions), name) {
			b.WriteString("\nTaken, and changes nothing here.\n")
		}
		for _, line := range []struct{ label, text string }{{"values", o.Values(command)}, {"current", r.current(&o)}, {"default", o.DefaultFor(command)}} {
			if line.text != "" {
				fmt.Fprintf(b, "\n%s: %s", line.label, line.text)
			}
		}
		b.WriteString("\n")
	}
}

// current is what was set for an option by the command line, the environment or a file; of several indexes, all.
func (r *backrestRun) current(o *backrest.Option) string {
	var all []string
	for _, g := range r.c.Given() {
		if g.Name != o.Name {
			continue
		}
		text := g.Text
		if o.Kind == backrest.List || o.Kind == backrest.Hash {
			text = strings.Join(r.c.List(o.Name, g.Key), ", ")
		}
		if g.Secret {
			text = "<redacted>"
		}
		if o.Group != backrest.None {
			text = g.Full + ": " + text
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// optionRefused says what to do instead of an option that is never done; empty: it is done.
func (r *backrestRun) optionRefused(o *backrest.Option) string {
	for _, x := range refusedOptions {
		prefix, family := strings.CutSuffix(x.name, "*")
		if x.fine == "" && (x.name == o.Name || family && strings.HasPrefix(o.Name, prefix)) {
			return x.instead
		}
	}
	return ""
}

// optionHelp says of an option what it is for, what it takes and what holds.
func (r *backrestRun) optionHelp(o *backrest.Option, command backrest.Command) string {
	text := o.Text()
	var more []string
	if v := o.Values(command); v != "" && o.Kind != backrest.Bool {
		more = append(more, v)
	}
	if v := r.current(o); v != "" {
		more = append(more, "current="+v)
	}
	if d := o.DefaultFor(command); d != "" {
		more = append(more, "default="+d)
	}
	if slices.Contains(strings.Fields(neutralOptions), o.Name) {
		more = append(more, "changes nothing here")
	}
	if len(more) > 0 {
		text += " [" + strings.Join(more, "; ") + "]"
	}
	return text
}

func writeOption(b *strings.Builder, o *backrest.Option, text string) {
	wrapText(b, fmt.Sprintf("  --%-*s ", helpWidth-5, o.Name), helpWidth, text)
}

// wrapText writes head and then words, in lines that begin at a column.
func wrapText(b *strings.Builder, head string, column int, text string) {
	b.WriteString(head)
	at := len(head)
	for i, w := range strings.Fields(text) {
		if i > 0 && at+1+len(w) > helpEnd {
			b.WriteString("\n" + strings.Repeat(" ", column))
			at = column
		} else if i > 0 {
			b.WriteByte(' ')
			at++
		}
		b.WriteString(w)
		at += len(w)
	}
	b.WriteByte('\n')
}

func capital(text string) string {
	if text == "" {
		return text
	}
	return strings.ToUpper(text[:1]) + text[1:]
}
