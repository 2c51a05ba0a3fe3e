package pg

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// TimelineEntry is one line of a .history file: Timeline ended at Switch, and the next one began there.
type TimelineEntry struct {
	Timeline uint32
	Switch   LSN
	Reason   string
}

// Bounds of what ParseHistory keeps in memory. PostgreSQL writes one line of under 300 bytes per promotion.
const (
	maxHistoryLine    = 8 << 10
	maxHistoryEntries = 100_000
)

// ParseHistory reads a timeline history file: lines of timeline, switch position and reason with white space between,
// comments starting with #, empty lines (PostgreSQL manual, 26.3.6 Timelines). Timelines and positions must not go
// backwards, as in PostgreSQL itself. Errors name the line.
func ParseHistory(r io.Reader) ([]TimelineEntry, error) {
	var entries []TimelineEntry
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, maxHistoryLine)
	line := 1
	for ; scanner.Scan(); line++ {
		text := strings.TrimSpace(scanner.Text())
		if text == "" || text[0] == '#' {
			continue
		}
		e, err := parseHistoryLine(text)
		if err != nil {
			return nil, fmt.Errorf("timeline history, line %d: %w", line, err)
		}
		if n := len(entries); n == maxHistoryEntries {
			return nil, fmt.Errorf("timeline history, line %d: more than %d timelines", line, maxHistoryEntries)
		} else if n > 0 && e.Timeline <= entries[n-1].Timeline {
			return nil, fmt.Errorf("timeline history, line %d: timeline %d follows timeline %d", line, e.Timeline, entries[n-1].Timeline)
		} else if n > 0 && e.Switch < entries[n-1].Switch {
			return nil, fmt.Errorf("timeline history, line %d: timeline %d ends at %s, before timeline %d began at %s",
				line, e.Timeline, e.Switch, e.Timeline, entries[n-1].Switch)
		}
		entries = append(entries, e)
	}
	if err := scanner.Err(); err != nil {
		return nil, fmt.Errorf("timeline history, line %d: %w", line, err)
	}
	return entries, nil
}

func parseHistoryLine(text string) (TimelineEntry, error) {
	number, rest, _ := strings.Cut(strings.ReplaceAll(text, "\t", " "), " ")
	position, reason, _ := strings.Cut(strings.TrimSpace(rest), " ")
	timeline, err := strconv.ParseUint(number, 10, 32)
	if err != nil || timeline == 0 {
		return TimelineEntry{}, fmt.Errorf("%.40q is no timeline", number)
	}
	lsn, err := ParseLSN(position)
	if err != nil {
		return TimelineEntry{}, err
	}
	return TimelineEntry{Timeline: uint32(timeline), Switch: lsn, Reason: strings.TrimSpace(reason)}, nil
}
