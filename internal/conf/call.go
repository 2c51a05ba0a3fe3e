package conf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Op is what a call of alation_conf asks for.
type Op int

const (
	OpGet   Op = iota // print one parameter
	OpSet             // set all pairs or none
	OpList            // print all parameters, or those that begin with a prefix
	OpUnset           // give parameters their default again
	OpHelp            // print CallHelp
)

// CallHelp is the text of `alation_conf --help`.
const CallHelp = `usage: alation_conf KEY                              print one parameter
       alation_conf KEY -s VALUE [KEY -s VALUE]...   set parameters: all, or on any error none
       alation_conf -s VALUE KEY [-s VALUE KEY]...   the same
       alation_conf KEY -s                           set the empty value
       alation_conf KEY -s -                         read the value from standard input, one line a parameter
       alation_conf --list [PREFIX]                  print all parameters
       alation_conf --unset KEY...                   go back to the default
options, before a KEY: --root DIR (the instance; else HOLDFAST_ROOT), --json, --help
exit codes: 0 done; 1 the store cannot be read or written; 2 bad use, nothing was changed;
3 done, but the external storage that the parameters now describe cannot be used
`

// Call is a parsed command line of alation_conf.
type Call struct {
	Op     Op
	Names  []string // OpGet: one; OpUnset: one or more; OpList: none or one prefix
	Pairs  []Pair   // OpSet: one or more
	Stdin  []int    // indexes of Pairs whose value ReadValues reads from standard input
	Root   string   // --root, else ""
	JSON   bool     // --json
	prefix bool     // pairs are written -s VALUE KEY
}

// callParser walks over the words of a call.
type callParser struct {
	args  []string
	at    int
	call  Call
	given bool // an Op was given by an option
}

// ParseCall parses the words after "alation_conf". The first of "KEY" and "-s" decides which of the two forms all pairs
// have. A value may be any word but "-s", so "-5" and "--json" after -s are values; options stand where a KEY could.
// "KEY -s" at the end, or before another "KNOWN_KEY -s", sets the empty value. It looks names up only for that last rule:
// unknown ones are for the store to report. Errors are *UsageError.
func ParseCall(args []string) (Call, error) {
	p := &callParser{args: args}
	for p.at < len(p.args) {
		if err := p.word(); err != nil {
			return Call{}, err
		}
	}
	return p.finish()
}

// word consumes one option, pair or name.
func (p *callParser) word() error {
	word := p.args[p.at]
	switch {
	case word == "-s":
		return p.valueFirst()
	case strings.HasPrefix(word, "-"):
		return p.option(word)
	case word == "":
		return &UsageError{"an empty word stands where a parameter is expected"}
	}
	p.at++
	if p.call.prefix {
		return &UsageError{fmt.Sprintf("%q stands without -s VALUE before it", shorten(word))}
	}
	if p.given || p.at >= len(p.args) || p.args[p.at] != "-s" {
		p.call.Names = append(p.call.Names, word)
		return nil
	}
	p.at++ // the -s
	if p.emptyValueHere() {
		p.pair(word, "")
		return nil
	}
	value := p.args[p.at]
	p.at++
	if value == "-s" {
		return &UsageError{fmt.Sprintf("-s stands twice after %q", shorten(word))}
	}
	p.pair(word, value)
	return nil
}

// emptyValueHere reports whether the -s just read has no value: nothing follows, or "KNOWN_KEY -s" does, which could
// not be a value and its successor.
func (p *callParser) emptyValueHere() bool {
	if p.at >= len(p.args) {
		return true
	}
	return p.at+1 < len(p.args) && p.args[p.at+1] == "-s" && Lookup(p.args[p.at]) != nil
}

// valueFirst consumes "-s VALUE KEY".
func (p *callParser) valueFirst() error {
	if len(p.call.Names) > 0 || len(p.call.Pairs) > 0 && !p.call.prefix {
		return &UsageError{"-s stands without a parameter before it"}
	}
	if p.given {
		return &UsageError{"-s cannot be used with --list, --unset or --help"}
	}
	if p.at+2 >= len(p.args) || p.args[p.at+1] == "-s" || p.args[p.at+2] == "-s" || p.args[p.at+2] == "" {
		return &UsageError{"-s VALUE needs a parameter after it (or write: KEY -s VALUE)"}
	}
	p.call.prefix = true
	p.pair(p.args[p.at+2], p.args[p.at+1])
	p.at += 3
	return nil
}

// pair adds one pair; the value "-" is to be read from standard input.
func (p *callParser) pair(name, value string) {
	if value == "-" {
		p.call.Stdin = append(p.call.Stdin, len(p.call.Pairs))
		value = ""
	}
	p.call.Pairs = append(p.call.Pairs, Pair{Name: name, Value: NewSecret(value)})
}

// option consumes an option and its argument.
func (p *callParser) option(word string) error {
	p.at++
	name, value, hasValue := strings.Cut(word, "=")
	if hasValue && name != "--root" {
		return &UsageError{fmt.Sprintf("unknown option %q: see `alation_conf --help`", shorten(name))}
	}
	switch name {
	case "--root":
		if !hasValue && p.at < len(p.args) {
			value = p.args[p.at]
			p.at++
		}
		if value == "" {
			return &UsageError{"--root needs a directory"}
		}
		p.call.Root = value
	case "--json":
		p.call.JSON = true
	case "--help", "-h":
		return p.op(OpHelp)
	case "--list":
		return p.op(OpList)
	case "--unset":
		return p.op(OpUnset)
	default:
		return &UsageError{fmt.Sprintf("unknown option %q: see `alation_conf --help`", shorten(word))}
	}
	return nil
}

// op notes what an option asks for; --help wins over all.
func (p *callParser) op(op Op) error {
	if op == OpHelp || p.call.Op == OpHelp {
		p.call.Op, p.given = OpHelp, true
		return nil
	}
	if p.given || len(p.call.Names) > 0 || len(p.call.Pairs) > 0 {
		return &UsageError{"--list and --unset stand before the names, one of them once"}
	}
	p.call.Op, p.given = op, true
	return nil
}

// finish checks that the parts make one call.
func (p *callParser) finish() (Call, error) {
	c := p.call
	switch {
	case c.Op == OpHelp:
		return Call{Op: OpHelp, Root: c.Root, JSON: c.JSON}, nil
	case c.Op == OpUnset && len(c.Names) == 0:
		return Call{}, &UsageError{"--unset needs a parameter"}
	case c.Op == OpList && len(c.Names) > 1:
		return Call{}, &UsageError{"--list takes one prefix"}
	case p.given:
		return c, nil
	case len(c.Pairs) > 0 && len(c.Names) > 0:
		return Call{}, &UsageError{fmt.Sprintf("%q has no -s VALUE; nothing was changed", shorten(c.Names[0]))}
	case len(c.Pairs) > 0:
		c.Op = OpSet
		return c, nil
	case len(c.Names) == 0:
		return Call{}, &UsageError{"which parameter? see `alation_conf --help`"}
	case len(c.Names) > 1:
		return Call{}, &UsageError{fmt.Sprintf("one parameter can be printed at a time; to set it: alation_conf %s -s VALUE", shorten(c.Names[0]))}
	}
	return c, nil
}

// ReadValues fills in the values that the call wants from standard input: one line for each, in the order of the pairs.
// Too few lines, or a further line that is not empty, is a *UsageError. Without such pairs r is not read.
func (c *Call) ReadValues(r io.Reader) error {
	if len(c.Stdin) == 0 {
		return nil
	}
	in := bufio.NewReader(io.LimitReader(r, int64(len(c.Stdin)+1)*(maxValue+2)))
	for _, i := range c.Stdin {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) {
			return &UsageError{fmt.Sprintf("standard input ended before the value of %s; nothing was changed", c.Pairs[i].Name)}
		}
		if err != nil {
			return fmt.Errorf("read the value of %s from standard input: %w", c.Pairs[i].Name, err)
		}
		c.Pairs[i].Value = NewSecret(line)
	}
	rest, err := readLine(in)
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read values from standard input: %w", err)
	}
	if rest != "" {
		return &UsageError{fmt.Sprintf("standard input has more lines than parameters that read it (%d); nothing was changed", len(c.Stdin))}
	}
	return nil
}

// readLine returns one line without its end; io.EOF only if there is nothing more at all.
func readLine(in *bufio.Reader) (string, error) {
	line, err := in.ReadString('\n')
	if err != nil && (line == "" || !errors.Is(err, io.EOF)) {
		return "", err
	}
	return strings.TrimSuffix(strings.TrimSuffix(line, "\n"), "\r"), nil
}
