package storage

import "fmt"

const redacted = "******"

// Secret is a key, token or pass phrase of a store. No way of printing or encoding it shows it; string(s) does, on purpose,
// so that a reviewer can search for it. The empty Secret prints alike.
type Secret string

// String implements fmt.Stringer.
func (Secret) String() string { return redacted }

// GoString implements fmt.GoStringer.
func (Secret) GoString() string { return redacted }

// Format implements fmt.Formatter: also %x and %q, which would not ask String.
func (Secret) Format(f fmt.State, _ rune) {
	_, _ = f.Write([]byte(redacted)) // fmt has no way to report an error of its own buffer
}

// MarshalJSON implements json.Marshaler.
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// MarshalText implements encoding.TextMarshaler.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
