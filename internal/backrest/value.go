package backrest

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Codes of the original that reading a configuration can end with.
const (
	CodeFormat          = 29
	CodeCommandRequired = 30
	CodeOptionInvalid   = 31
	CodeOptionValue     = 32
	CodeOptionRequired  = 37
	CodeFileOpen        = 41
	CodeFileRead        = 42
	CodeCommandInvalid  = 48
	CodeFileMissing     = 55
	CodePathMissing     = 73
	CodeParamInvalid    = 96
)

// Error is a refusal with the code that the original exits with.
type Error struct {
	Code int
	Text string
}

func (e *Error) Error() string { return e.Text }

var errNumber = errors.New("not a number of this kind")

// ParseSize reads a number of bytes: digits and a unit (b, k, m, g, t, p, each also as kb or kib); every unit is a power of
// 1024, in any case of letters.
func ParseSize(v string) (int64, error) {
	n, unit, err := number(v)
	if err != nil || strings.ContainsRune(n, '.') {
		return 0, errNumber
	}
	shift := 0
	if unit != "" && unit != "b" {
		i := strings.IndexByte("kmgtp", unit[0])
		if rest := unit[1:]; i < 0 || rest != "" && rest != "b" && rest != "ib" {
			return 0, errNumber
		}
		shift = 10 * (i + 1)
	}
	i, err := strconv.ParseInt(n, 10, 64)
	if err != nil || i > math.MaxInt64>>shift {
		return 0, errNumber
	}
	return i << shift, nil
}

// ParseTime reads a span: a number, decimals allowed, and a unit (ms, s, m, h, d, w); without one it is seconds.
func ParseTime(v string) (time.Duration, error) {
	n, unit, err := number(v)
	if err != nil {
		return 0, err
	}
	units := []struct {
		name string
		span time.Duration
	}{{"", time.Second}, {"ms", time.Millisecond}, {"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}, {"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour}}
	for _, u := range units {
		if u.name != unit {
			continue
		}
		f, err := strconv.ParseFloat(n, 64)
		if f *= float64(u.span); err != nil || f >= math.MaxInt64 {
			return 0, errNumber
		}
		return time.Duration(math.Round(f)), nil
	}
	return 0, errNumber
}

// number splits "12.5kib" into its digits and its unit in small letters.
func number(v string) (digits, unit string, err error) {
	i := strings.IndexFunc(v, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(v)
	}
	if digits = v[:i]; digits == "" || digits == "." || strings.Count(digits, ".") > 1 {
		return "", "", errNumber
	}
	return digits, strings.ToLower(v[i:]), nil
}

// quantity is the value of a numeric option in its unit: a plain number, bytes, nanoseconds.
func quantity(k Kind, v string) (int64, error) {
	switch k {
	case Size:
		return ParseSize(v)
	case Time:
		d, err := ParseTime(v)
		return int64(d), err
	default:
		return strconv.ParseInt(v, 10, 64)
	}
}

// checkValue says what is wrong with a value of o for the configuration's command.
func (c *Config) checkValue(o *Option, key int, v string) *Error {
	bad := func(what string) *Error {
		if o.Secret {
			v = "<redacted>"
		}
		return &Error{CodeOptionValue, "'" + v + "' " + what + " '" + o.keyed(key) + "' option"}
	}
	switch o.Kind {
	case Int, Size, Time:
		n, err := quantity(o.Kind, v)
		if err != nil && o.Kind == Time && strings.HasPrefix(v, "-") {
			n, err = quantity(o.Kind, v[1:])
			n = -n
		}
		if err != nil {
			return bad("is not valid for")
		}
		if lo, hi, when := c.rangeOf(o, key); lo != "" {
			low, err1 := quantity(o.Kind, lo)
			high, err2 := quantity(o.Kind, hi)
			if err1 != nil || err2 != nil || n < low || n > high {
				e := bad("is out of range for")
				e.Text += when + "\nHINT: it takes " + lo + " to " + hi
				return e
			}
		}
		if o.Allow != "" && !slices.ContainsFunc(words(o.Allow, c.Command), func(w string) bool { a, err := quantity(o.Kind, w); return err == nil && a == n }) {
			return bad("is not allowed for")
		}
	case Enum, Switch:
		if allow := words(o.Allow, c.Command); !slices.Contains(allow, v) {
			e := bad("is not allowed for")
			e.Text += "\nHINT: it takes " + strings.Join(allow, ", ")
			return e
		}
	case Hash:
		if !strings.Contains(v, "=") {
			return &Error{CodeOptionInvalid, "key/value '" + v + "' not valid for '" + o.keyed(key) + "' option"}
		}
	case String, Path:
		switch {
		case v == "":
			return bad("must be >= 1 character for")
		case o.Kind == Path && v[0] != '/':
			return bad("must begin with / for")
		case o.Kind == Path && strings.Contains(v, "//"):
			return bad("cannot contain // for")
		}
	}
	return nil
}

// rangeOf is the range of o; when says which other value it depends on.
func (c *Config) rangeOf(o *Option, key int) (lo, hi, when string) {
	f := strings.Fields(o.Range)
	if len(f) < 2 {
		return "", "", ""
	}
	if !strings.Contains(f[1], "=") {
		return f[0], f[1], ""
	}
	other := c.text(named(f[0]), key)
	for _, w := range f[1:] {
		if name, span, _ := strings.Cut(w, "="); name == other {
			lo, hi, _ = strings.Cut(span, "..")
			return lo, hi, " when '" + f[0] + "' option = '" + other + "'"
		}
	}
	return "", "", ""
}
