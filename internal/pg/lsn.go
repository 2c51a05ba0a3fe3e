package pg

import (
	"fmt"
	"strconv"
	"strings"
)

// LSN is a position in the write-ahead log, in bytes.
type LSN uint64

// ParseLSN reads the text form of PostgreSQL (data type pg_lsn): two hexadecimal numbers of one to eight digits, the
// high and the low half, with a slash between.
func ParseLSN(s string) (LSN, error) {
	high, low, found := strings.Cut(s, "/")
	if !found || !isHexWord(high) || !isHexWord(low) {
		return 0, fmt.Errorf("LSN %.40q is not of the form 16/B374D848", s)
	}
	// isHexWord leaves nothing for ParseUint to refuse.
	h, errHigh := strconv.ParseUint(high, 16, 32)
	l, errLow := strconv.ParseUint(low, 16, 32)
	if errHigh != nil || errLow != nil {
		return 0, fmt.Errorf("LSN %.40q is not of the form 16/B374D848", s)
	}
	return LSN(h<<32 | l), nil
}

// String is the text form of PostgreSQL, "16/B374D848".
func (l LSN) String() string { return fmt.Sprintf("%X/%X", uint64(l)>>32, uint32(l)) }

// isHexWord reports whether s is one to eight hexadecimal digits, without the signs and underscores that strconv
// would take.
func isHexWord(s string) bool {
	if len(s) < 1 || len(s) > 8 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'A' && c <= 'F' || c >= 'a' && c <= 'f') {
			return false
		}
	}
	return true
}
