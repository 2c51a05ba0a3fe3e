package repo

import (
	"errors"
	"fmt"
	"time"
)

// BackupType is the kind of a backup, spelled as in the info files and on the command line.
type BackupType string

// The three kinds. A diff holds what changed since its full, an incr what changed since its prior.
const (
	Full BackupType = "full"
	Diff BackupType = "diff"
	Incr BackupType = "incr"
)

// Label is a backup label, such as 20261122-212241F_20261122-212245D (format page, section 3). Labels sort by bytes, and
// that order is the order in time.
type Label string

const (
	stampLayout  = "20060102-150405"
	stampLen     = len(stampLayout)
	fullLabelLen = stampLen + 1
	longLabelLen = fullLabelLen + 1 + stampLen + 1
)

// maxLabelShift is how far NewLabel moves a label forward. Labels are local time, so a change of the time zone, or of
// daylight saving, can put the clock back by at most the distance between UTC+14 and UTC-12.
const maxLabelShift = 26 * time.Hour

// ErrClock says that the newest label lies so far in the future that the clock must be wrong.
var ErrClock = errors.New("clock is behind the newest backup")

// ParseLabel checks the form of a label and returns it; anything else is ErrFormat. Whether the digits are a date is not
// asked, as in the original.
func ParseLabel(s string) (Label, error) {
	l := Label(s)
	ok := false
	switch len(s) {
	case fullLabelLen:
		ok = isStamp(s[:stampLen]) && s[stampLen] == 'F'
	case longLabelLen:
		kind := s[longLabelLen-1]
		ok = isStamp(s[:stampLen]) && s[stampLen] == 'F' && s[fullLabelLen] == '_' &&
			isStamp(s[fullLabelLen+1:longLabelLen-1]) && (kind == 'D' || kind == 'I')
	}
	if !ok {
		return "", fmt.Errorf("%w: %.60q is not a backup label", ErrFormat, s)
	}
	return l, nil
}

// isStamp reports whether s is YYYYMMDD-HHMMSS in digits.
func isStamp(s string) bool {
	for i := range len(s) {
		if i == 8 {
			if s[i] != '-' {
				return false
			}
		} else if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return len(s) == stampLen
}

// Type tells the kind of backup from the label's letter; "" for something that is not a label.
func (l Label) Type() BackupType {
	switch {
	case len(l) == fullLabelLen:
		return Full
	case len(l) == longLabelLen && l[longLabelLen-1] == 'D':
		return Diff
	case len(l) == longLabelLen && l[longLabelLen-1] == 'I':
		return Incr
	}
	return ""
}

// FullLabel is the label of the full backup at the root of l's set: l itself for a full; "" for something that is not a
// label.
func (l Label) FullLabel() Label {
	if l.Type() == "" {
		return ""
	}
	return l[:fullLabelLen]
}

// lastStamp is the greatest time stamp in a label.
func (l Label) lastStamp() string {
	stamp := string(l[:stampLen])
	if l.Type() != Full {
		stamp = max(stamp, string(l[fullLabelLen+1:longLabelLen-1]))
	}
	return stamp
}

// Ahead says how far the start that l names lies after t, in t's own location; 0 when it does not. It calculates on the digits, as
// NewLabel does. l is a label that ParseLabel accepts.
func (l Label) Ahead(t time.Time) time.Duration {
	was, err1 := time.Parse(stampLayout, l.lastStamp())
	now, err2 := time.Parse(stampLayout, t.Format(stampLayout))
	if err1 != nil || err2 != nil || !was.After(now) {
		return 0
	}
	return was.Sub(now) - time.Duration(t.Nanosecond())
}

// NewLabel makes the label of a backup started at t, rendered in t's own location: the caller passes local time, as the
// original does. full is the root of the set for a diff or incr and "" for a full.
//
// newest is the newest label known (NewestLabel; "" for none); the new one always sorts after it. Where the clock does
// not give that, the label is moved to the second after newest; further than a change of time zone explains is ErrClock.
// For a diff or incr a newest of another set says nothing and is ignored.
func NewLabel(t time.Time, typ BackupType, full Label, newest Label) (Label, error) {
	stamp := t.Format(stampLayout)
	if !isStamp(stamp) {
		return "", fmt.Errorf("%w: %s cannot be written as a backup label", ErrClock, t)
	}
	if typ != Full {
		if full.Type() != Full {
			return "", fmt.Errorf("%w: a %s backup needs the label of its full backup, not %.60q", ErrFormat, typ, full)
		}
		// A set cannot grow behind its own full, even when the clock stands before it.
		if newest.FullLabel() != full {
			newest = full
		}
	}
	if newest != "" {
		if newest.Type() == "" {
			return "", fmt.Errorf("%w: newest label %.60q is not a backup label", ErrFormat, newest)
		}
		var err error
		if stamp, err = stampAfter(stamp, newest); err != nil {
			return "", err
		}
	}
	switch typ {
	case Full:
		return Label(stamp + "F"), nil
	case Diff:
		return full + Label("_"+stamp+"D"), nil
	case Incr:
		return full + Label("_"+stamp+"I"), nil
	}
	return "", fmt.Errorf("%w: %q is not a backup type", ErrFormat, string(typ))
}

// stampAfter returns stamp, or the second after newest when stamp does not come after it. It calculates on the digits and
// not on instants: local time repeats an hour when daylight saving ends.
func stampAfter(stamp string, newest Label) (string, error) {
	last := newest.lastStamp()
	if stamp > last {
		return stamp, nil
	}
	was, err := time.Parse(stampLayout, last)
	if err != nil {
		return "", fmt.Errorf("%w: label %s is not a date; remove backup directory %s if it is foreign", ErrClock, newest, newest)
	}
	now, err := time.Parse(stampLayout, stamp)
	if err != nil {
		return "", fmt.Errorf("read label time %s: %w", stamp, err)
	}
	next := was.Add(time.Second)
	if next.Sub(now) > maxLabelShift {
		return "", fmt.Errorf("%w: it says %s, label %s exists; correct the clock or the time zone", ErrClock, stamp, newest)
	}
	if stamp = next.Format(stampLayout); !isStamp(stamp) {
		return "", fmt.Errorf("%w: no label comes after %s", ErrClock, newest)
	}
	return stamp, nil
}
