package pg

import (
	"fmt"
	"io"
)

const redacted = "******"

// Secret is a password. No way of printing or encoding it shows it; string(s) does, on purpose.
type Secret string

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Format covers every verb, also %x and %q, which would not ask String.
func (Secret) Format(f fmt.State, _ rune) {
	// fmt has no way to report an error of its own buffer.
	_, _ = io.WriteString(f, redacted)
}
