package conf

import (
	"encoding/json"
	"fmt"
	"io"
)

// redacted stands wherever a secret would.
const redacted = "******"

// Secret is a text that no formatting verb and no encoder prints. It holds a pointer, so that even a Secret in an
// unexported field of a printed struct, whose methods fmt cannot call, shows an address and not the text.
type Secret struct{ text *string }

// NewSecret returns the secret s.
func NewSecret(s string) Secret { return Secret{&s} }

// Reveal returns the text. The caller keeps it out of logs, errors and process arguments.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty reports whether there is no secret.
func (s Secret) Empty() bool { return s.Reveal() == "" }

func (s Secret) String() string   { return redacted }
func (s Secret) GoString() string { return redacted }

// Format prints the same stars for every verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) } // fmt.State keeps its own error

func (s Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (s Secret) MarshalJSON() ([]byte, error) { return json.Marshal(redacted) }
