package schedule

import (
	"errors"
	"fmt"
	"strings"
	"time"
	_ "time/tzdata" // zone rules where the host, or a chroot, has none

	cron "github.com/netresearch/go-cron"
)

// maxText bounds the text of a Spec, in bytes.
const maxText = 512

// maxYears is how far ahead a time is looked for: 29 February on a given weekday comes every 28 years, but 40 around 2100.
const maxYears = 40

// Spec says when something happens. The zero Spec is never.
type Spec struct {
	text  string
	every time.Duration
	times cron.Schedule // on the wall clock, written as if it were UTC's; nil without
	zone  *time.Location
}

// Parse reads the text of a Spec, the form that String gives back:
//
//	never, or nothing
//	every 5m                         a span of at least a second, as time.ParseDuration reads it
//	30 4 * * mon-fri                 minute, hour, day of month, month, day of week, as crontab(5) has them, in UTC
//	30 4 * * mon-fri Europe/Zurich   the same on that zone's wall clock
//
// When neither day field begins with a star, one of them has to match. A time that never comes, such as 30 February, is an
// error, and so is a step that is as long as its range.
func Parse(text string) (Spec, error) {
	if len(text) > maxText {
		return Spec{}, fmt.Errorf("longer than %d bytes", maxText)
	}
	fields := strings.Fields(text)
	switch {
	case len(fields) == 0, len(fields) == 1 && fields[0] == "never":
		return Spec{}, nil
	case fields[0] == "every":
		return parseEvery(fields[1:])
	case len(fields) != 5 && len(fields) != 6:
		return Spec{}, fmt.Errorf("%d fields; five are needed: minute hour day-of-month month day-of-week", len(fields))
	}
	zone := time.UTC
	if len(fields) == 6 {
		var err error
		if zone, err = Zone(fields[5]); err != nil {
			return Spec{}, err
		}
	}
	return parseTimes(fields[:5], zone)
}

func parseEvery(fields []string) (Spec, error) {
	if len(fields) != 1 {
		return Spec{}, errors.New("every: one span is needed, such as 5m")
	}
	d, err := time.ParseDuration(fields[0])
	if err != nil || d < time.Second {
		return Spec{}, fmt.Errorf("every: %q is no span of at least a second", fields[0])
	}
	return Every(d), nil
}

func parseTimes(fields []string, zone *time.Location) (Spec, error) {
	for _, f := range fields {
		if strings.ContainsAny(f, "@=") { // the library's own words, which crontab(5) does not have here
			return Spec{}, fmt.Errorf("%q is not a field of a crontab line", f)
		}
	}
	text := strings.ToLower(strings.Join(fields, " "))
	options := cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow
	if !strings.ContainsAny(fields[2][:1]+fields[4][:1], "*?") { // else both have to match, as crontab(5) has it for */2, too
		options |= cron.DowOrDom
	}
	parser, err := cron.TryNewParser(options)
	if err != nil {
		return Spec{}, err
	}
	times, err := parser.WithMaxSearchYears(maxYears).Parse(text)
	if err != nil {
		return Spec{}, err
	}
	if times.Next(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return Spec{}, errors.New("this date never comes")
	}
	if zone != time.UTC {
		text += " " + zone.String()
	}
	return Spec{text: text, times: times, zone: zone}, nil
}

// Zone is a zone of the IANA data base by its name, such as Europe/Zurich. What the host takes for local time is not one:
// a schedule has to mean the same on every host.
func Zone(name string) (*time.Location, error) {
	if name == "Local" || name == "" {
		return nil, fmt.Errorf("%q is not the name of a time zone, such as UTC or Europe/Zurich", name)
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("%q is not the name of a time zone, such as UTC or Europe/Zurich", name)
	}
	if name == "UTC" {
		return time.UTC, nil
	}
	return zone, nil
}

// Every is a Spec of one span after another. A span of zero or less is never.
func Every(d time.Duration) Spec {
	if d <= 0 {
		return Spec{}
	}
	return Spec{text: "every " + d.String(), every: d}
}

// String is what Parse reads: two Specs of one text are equal.
func (s Spec) String() string {
	if s.text == "" {
		return "never"
	}
	return s.text
}

// Never reports whether s has no time at all.
func (s Spec) Never() bool { return s.text == "" }

// Next is the first time after the given one; the zero time if there is none. It is in the zone of s, UTC for a span.
func (s Spec) Next(after time.Time) time.Time {
	switch {
	case s.every > 0:
		return after.UTC().Add(s.every)
	case s.times == nil:
		return time.Time{}
	}
	// What stands on the wall up to now has happened: instant never runs backwards. What follows on the wall may have
	// happened too, while the clock shows an hour for the second time.
	for wall := s.times.Next(onWall(after.In(s.zone))); !wall.IsZero(); wall = s.times.Next(wall) {
		if t := s.instant(wall); t.After(after) {
			return t
		}
	}
	return time.Time{}
}

// onWall writes what a zone's clock shows as a time of UTC, where every time exists once.
func onWall(t time.Time) time.Time {
	_, offset := t.Zone()
	return t.UTC().Add(time.Duration(offset) * time.Second)
}

// farthest is more than any zone has ever been from UTC, twice.
const farthest = 36 * time.Hour

// instant is when the clock first shows wall, or, if it never does, when it jumps over it.
func (s Spec) instant(wall time.Time) time.Time {
	period := wall.Add(-farthest).In(s.zone)
	for {
		_, offset := period.Zone()
		_, end := period.ZoneBounds()
		t := wall.Add(-time.Duration(offset) * time.Second)
		if end.IsZero() || t.Before(end) {
			if t.Before(period) {
				t = period // the period before ended too early for it, this one begins too late
			}
			return t.In(s.zone)
		}
		period = end.In(s.zone)
	}
}
