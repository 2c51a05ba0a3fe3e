package conf

import (
	"errors"
	"fmt"
	"strings"
)

// ErrRefused is what every error answers to that means "bad use, nothing was changed": an unknown parameter, a value of
// the wrong type or out of range, a combination that makes no sense, a command line outside the grammar. The command
// line ends with exit code 2 on it.
var ErrRefused = errors.New("refused")

// UnknownKeyError says that there is no such parameter.
type UnknownKeyError struct {
	Name    string
	Nearest string // the known parameter most like it; "" = none is near
}

func (e *UnknownKeyError) Error() string {
	hint := "see `alation_conf --list`"
	if e.Nearest != "" {
		hint = "did you mean " + e.Nearest + "?"
	}
	return fmt.Sprintf("unknown parameter %q: %s", e.Name, hint)
}

func (e *UnknownKeyError) Is(target error) bool { return target == ErrRefused }

// ValueError says that a parameter cannot have a value. It never carries a secret value.
type ValueError struct {
	Name    string
	Value   Secret // shown only by Error, and only if the parameter is not a secret
	Allowed string // what is allowed
	Reason  string // more about what is wrong; may be ""
}

func (e *ValueError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: ", e.Name)
	if k := Lookup(e.Name); k != nil && !k.Secret() {
		fmt.Fprintf(&b, "%q is not allowed", shorten(e.Value.Reveal()))
	} else {
		b.WriteString("this value is not allowed")
	}
	if e.Reason != "" {
		fmt.Fprintf(&b, " (%s)", e.Reason)
	}
	fmt.Fprintf(&b, "; allowed: %s", e.Allowed)
	return b.String()
}

func (e *ValueError) Is(target error) bool { return target == ErrRefused }

// shorten keeps a message readable when somebody sets a file's content as a value.
func shorten(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// RuleError says that two parameters cannot have these values together.
type RuleError struct {
	Names  []string // the parameters of the rule
	Reason string   // what is wrong, why, and the command that helps
}

func (e *RuleError) Error() string        { return e.Reason }
func (e *RuleError) Is(target error) bool { return target == ErrRefused }

// UsageError says that a command line is outside the grammar.
type UsageError struct{ Reason string }

func (e *UsageError) Error() string        { return e.Reason }
func (e *UsageError) Is(target error) bool { return target == ErrRefused }
