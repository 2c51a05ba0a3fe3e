package repo

import "fmt"

// redacted is what every way of printing a Secret gives.
const redacted = "******"

// Secret is a pass phrase or key that cannot be printed: every verb of fmt, JSON and text marshalling give asterisks. The
// value is reached only by the explicit conversion string(s), so that a reviewer can search for it. The empty Secret means
// "none" and prints alike. (One gap remains: package json takes map keys of string kind as they are, so a Secret is no map key.)
type Secret string

// String implements fmt.Stringer and gives asterisks.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer (%#v) and gives asterisks.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter: every verb, %x and %q too, gives asterisks.
func (Secret) Format(f fmt.State, _ rune) {
	// A formatter cannot report an error, and fmt's own buffer does not fail.
	_, _ = f.Write([]byte(redacted))
}

// MarshalJSON implements json.Marshaler and gives asterisks.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText implements encoding.TextMarshaler and gives asterisks.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
