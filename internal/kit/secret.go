package kit

import "fmt"

const redacted = "******"

// Secret is a text that no way of printing or encoding shows; string(s) does, on purpose.
type Secret string

func (Secret) String() string               { return redacted }
func (Secret) GoString() string             { return redacted }
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }

// Format covers every verb, also %x and %q, which would not ask String.
func (Secret) Format(f fmt.State, _ rune) {
	_, _ = f.Write([]byte(redacted)) // fmt has no way to report an error of its own buffer
}
