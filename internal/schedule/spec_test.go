package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

func parse(t testing.TB, text string) Spec {
	t.Helper()
	s, err := Parse(text)
	if err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	return s
}

// rule is a cron expression as its maker knows it: which numbers each field permits.
type rule struct {
	text                          string
	minute, hour, dom, month, dow map[int]bool // nil: every one
	either                        bool         // of the two day fields suffices
}

func (r rule) matches(wall time.Time) bool {
	in := func(set map[int]bool, n int) bool { return set == nil || set[n] }
	dom, dow := in(r.dom, wall.Day()), in(r.dow, int(wall.Weekday()))
	days := dom && dow
	if r.either {
		days = dom || dow
	}
	return days && in(r.minute, wall.Minute()) && in(r.hour, wall.Hour()) && in(r.month, int(wall.Month()))
}

// field makes one field of a cron expression.
func field(r *rand.Rand, lo, hi int, names []string) (string, map[int]bool) {
	number := func(n int) string {
		if names != nil && r.IntN(2) == 0 {
			return names[n-lo]
		}
		return fmt.Sprint(n)
	}
	set := map[int]bool{}
	switch r.IntN(5) {
	case 0, 1:
		return "*", nil
	case 2:
		step := 2 + r.IntN(6)
		for n := lo; n <= hi; n += step {
			set[n] = true
		}
		return fmt.Sprintf("*/%d", step), set
	}
	var parts []string
	for range 1 + r.IntN(3) {
		a := lo + r.IntN(hi-lo+1)
		b := a + r.IntN(hi-a+1)
		step := 1 + r.IntN(3)
		switch r.IntN(3) {
		case 0:
			set[a] = true
			parts = append(parts, number(a))
			continue
		case 1:
			step = 1
			parts = append(parts, number(a)+"-"+number(b))
		case 2:
			step = min(step, max(1, b-a)) // the library takes a longer one for a mistake
			parts = append(parts, fmt.Sprintf("%d-%d/%d", a, b, step))
		}
		for n := a; n <= b; n += step {
			set[n] = true
		}
	}
	return strings.Join(parts, ","), set
}

func randomRule(r *rand.Rand) rule {
	var x rule
	var f [5]string
	f[0], x.minute = field(r, 0, 59, nil)
	f[1], x.hour = field(r, 0, 23, nil)
	f[2], x.dom = field(r, 1, 31, nil)
	f[3], x.month = field(r, 1, 12, strings.Fields("jan feb mar apr may jun jul aug sep oct nov dec"))
	f[4], x.dow = field(r, 0, 6, strings.Fields("sun mon tue wed thu fri sat"))
	x.either = f[2][0] != '*' && f[4][0] != '*'
	x.text = strings.Join(f[:], " ")
	return x
}

func set(n ...int) map[int]bool {
	m := map[int]bool{}
	for _, k := range n {
		m[k] = true
	}
	return m
}

// oracle looks at the clock on the wall every minute: a reading that has not been shown before happens now, and so do those
// that the clock has just jumped over, together. It returns the times of each rule.
func oracle(rules []rule, from, to time.Time, zone *time.Location) [][]time.Time {
	due := make([][]time.Time, len(rules))
	highest := onWall(from.Add(-time.Minute).In(zone))
	for t := from; t.Before(to); t = t.Add(time.Minute) {
		for wall := onWall(t.In(zone)); highest.Before(wall); {
			highest = highest.Add(time.Minute)
			for i := range rules {
				if n := len(due[i]); (n == 0 || !due[i][n-1].Equal(t)) && rules[i].matches(highest) {
					due[i] = append(due[i], t)
				}
			}
		}
	}
	return due
}

// TestYearAgainstOracle compares a year of each schedule with looking at the clock every minute, in zones whose rules do
// everything that rules have done: half hours, two hours, at midnight, a day left out, a change of the rules themselves.
func TestYearAgainstOracle(t *testing.T) {
	fixed := []rule{
		{text: "0 4 * * *", minute: set(0), hour: set(4)},
		{text: "30 2 * * *", minute: set(30), hour: set(2)},
		{text: "30 1 * * *", minute: set(30), hour: set(1)},
		{text: "0 0 * * *", minute: set(0), hour: set(0)},
		{text: "*/20 * * * *", minute: set(0, 20, 40)},
		{text: "15 2 * * 7", minute: set(15), hour: set(2), dow: set(0)},
		{text: "0 12 13 * fri", minute: set(0), hour: set(12), dom: set(13), dow: set(5), either: true},
		{text: "59 23 31 12 *", minute: set(59), hour: set(23), dom: set(31), month: set(12)},
	}
	r := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		zone string
		year int
	}{
		{"UTC", 2026}, {"Europe/Zurich", 2026}, {"America/New_York", 2026}, {"Australia/Lord_Howe", 2026}, {"Antarctica/Troll", 2026},
		{"America/Sao_Paulo", 2018}, {"Pacific/Apia", 2011}, {"America/Scoresbysund", 2024}, {"Africa/Casablanca", 2026}, {"Asia/Kolkata", 2026},
		{"Europe/Moscow", 2014}, {"Asia/Pyongyang", 2018},
	} {
		t.Run(c.zone, func(t *testing.T) {
			zone, err := Zone(c.zone)
			if err != nil {
				t.Fatal(err)
			}
			from := time.Date(c.year, 1, 1, 0, 0, 0, 0, time.UTC)
			to := from.AddDate(1, 0, 0)
			rules := slices.Clone(fixed)
			for range 2 {
				rules = append(rules, randomRule(r))
			}
			due := oracle(rules, from, to, zone)
			for n, rule := range rules {
				want := due[n]
				s, err := Parse(rule.text + " " + c.zone)
				if err != nil {
					if len(want) > 0 {
						t.Fatalf("%s: %v", rule.text, err)
					}
					continue
				}
				i := 0
				for got := s.Next(from.Add(-time.Nanosecond)); got.Before(to) && !got.IsZero(); got = s.Next(got) {
					if i == len(want) || !got.Equal(want[i]) {
						t.Fatalf("%s: time %d is %v, want %v", s, i, got, append(want, time.Time{})[i].In(zone))
					}
					i++
				}
				if i != len(want) {
					t.Fatalf("%s: %d times, want %d; the next would be %v", s, i, len(want), want[i].In(zone))
				}
			}
		})
	}
}

func TestZoneRuleChanges(t *testing.T) {
	next := func(text, after string) string {
		at, err := time.Parse(time.RFC3339, after)
		if err != nil {
			t.Fatal(err)
		}
		return parse(t, text).Next(at).Format(time.RFC3339)
	}
	for _, c := range []struct{ text, after, want string }{
		{"30 2 * * * Europe/Zurich", "2026-03-29T00:00:00Z", "2026-03-29T03:00:00+02:00"}, // does not exist: when the gap ends
		{"30 2 * * * Europe/Zurich", "2026-03-29T01:00:00Z", "2026-03-30T02:30:00+02:00"}, // and not again
		{"30 2 * * * Europe/Zurich", "2026-10-24T22:00:00Z", "2026-10-25T02:30:00+02:00"}, // exists twice: the first
		{"30 2 * * * Europe/Zurich", "2026-10-25T00:30:00Z", "2026-10-26T02:30:00+01:00"}, // and not again
		{"30 2 * * * Europe/Zurich", "2026-10-25T00:45:00Z", "2026-10-26T02:30:00+01:00"}, // nor when asked in between
		{"0 4 * * *", "2026-03-29T00:00:00Z", "2026-03-29T04:00:00Z"},
		{"0 9 * * sun", "2026-11-27T00:00:00Z", "2026-11-29T09:00:00Z"},
		{"0 9 30 12 * Pacific/Apia", "2011-12-29T20:00:00Z", "2011-12-31T00:00:00+14:00"}, // the day that Samoa left out
		{"0 0 29 2 mon", "2026-11-27T00:00:00Z", "2027-02-01T00:00:00Z"},                  // one of the day fields suffices
		{"0 0 29 2 *", "2026-11-27T00:00:00Z", "2028-02-29T00:00:00Z"},
		{"every 90s", "2026-11-27T00:00:10Z", "2026-11-27T00:01:40Z"},
	} {
		if got := next(c.text, c.after); got != c.want {
			t.Errorf("%q after %s: %s, want %s", c.text, c.after, got, c.want)
		}
	}
}

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"": "never", " never ": "never", "every 5m": "every 5m0s", "0  4\t* * MON,tue": "0 4 * * mon,tue", "0 4 * * * UTC": "0 4 * * *",
		"0 4 * * * Europe/Zurich": "0 4 * * * Europe/Zurich",
	} {
		s, err := Parse(text)
		if err != nil || s.String() != want || s.Never() != (want == "never") {
			t.Errorf("%q: %q, %v", text, s, err)
		}
	}
	for _, text := range []string{
		"4", "0 4 * *", "60 4 * * *", "0 24 * * *", "0 0 0 * *", "0 0 * 13 *", "0 0 * * 8", "0 0 30 2 *", "0 4 * * * Mars/Olympus", "0 4 * * * Local", "0 4 * * * ../x",
		"@daily", "@every 1h * * *", "TZ=Asia/Tokyo 0 4 * * *", "0-1/5 * * * *", "every", "every 1", "every 0s", "every 5m 6m", "*/0 * * * *", "a b c d e", strings.Repeat("1,", 600) + " * * * *",
	} {
		if s, err := Parse(text); err == nil {
			t.Errorf("%q is taken for %q", text, s)
		}
	}
	var never Spec
	if !never.Next(time.Now()).IsZero() || !never.Never() || Every(0) != never {
		t.Error("the zero Spec is not never")
	}
}

func FuzzParse(f *testing.F) {
	for _, text := range []string{"0 4 * * *", "30 2 * * mon-fri Europe/Zurich", "every 5m", "*/7 1-5/2 1,31 feb 0-7", "never", "? ? L * 5#3", "22-2 * * * *"} {
		f.Add(text, int64(1790000000))
	}
	f.Fuzz(func(t *testing.T, text string, unix int64) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q is printed as %q, which is read as %q, %v", text, s, again, err)
		}
		after := time.Unix(unix%(1<<32), 0)
		next := s.Next(after)
		if s.Never() != next.IsZero() {
			t.Fatalf("%q: next after %v: %v", s, after, next)
		}
		if !s.Never() && (!next.After(after) || !again.Next(after).Equal(next)) {
			t.Fatalf("%q: %v after %v", s, next, after)
		}
	})
}
