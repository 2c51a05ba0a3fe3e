// Package scrub takes secrets out of texts that are about to be shown to somebody else.
//
// It does so in two ways, one for each way to fail. By value: every secret that is known goes, in the forms in which programs write
// one (as it is, in URLs, in JSON, in base64 also in the middle of something longer, in hexadecimal, quoted for a shell or for libpq).
// By pattern: what looks like a secret that nobody told us goes, too: passwords in URLs and connection strings, values of names
// that speak of passwords, keys and tokens, keys of AWS and Azure, signatures of presigned URLs, private keys, bearer tokens.
// The second takes too much now and then; a support bundle is for reading, and Mark says where something was.
//
// What a secret shares with an ordinary word can't be told: values of fewer than shortValue bytes are replaced only where they
// stand alone.
package scrub

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// Mark stands where a secret was.
const Mark = "******"

const (
	shortValue = 6 // bytes
	lineValue  = 8 // bytes of a line of a secret of several lines, at least, that is a secret by itself
)

// Scrubber takes secrets out of texts. It may be used by many goroutines at once.
type Scrubber struct {
	long  *strings.Replacer
	short []*regexp.Regexp
}

// New knows the values of secrets; empty ones and Mark are passed over.
func New(values []string) *Scrubber {
	forms := map[string]bool{}
	s := &Scrubber{}
	for _, v := range values {
		for _, v := range append([]string{v}, lines(v)...) {
			if v = strings.TrimRight(v, "\r\n"); v == "" || v == Mark {
				continue
			}
			if len(v) < shortValue {
				s.short = append(s.short, regexp.MustCompile(`(^|[^\pL\pN])(`+regexp.QuoteMeta(v)+`)($|[^\pL\pN])`))
				continue
			}
			for _, f := range formsOf(v) {
				forms[f] = true
			}
		}
	}
	// A Replacer takes the first of its pairs that matches at a place: the longest has to come first.
	all := make([]string, 0, len(forms))
	for f := range forms {
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	pairs := make([]string, 0, 2*len(all))
	for _, f := range all {
		pairs = append(pairs, f, Mark)
	}
	s.long = strings.NewReplacer(pairs...)
	return s
}

// lines are the lines of a secret of several, such as a private key, that are long enough to be secrets themselves.
func lines(v string) (out []string) {
	if !strings.Contains(strings.TrimRight(v, "\r\n"), "\n") {
		return nil
	}
	for _, l := range strings.Split(v, "\n") {
		if l = strings.TrimSpace(l); len(l) >= lineValue && !strings.HasPrefix(l, "-----") {
			out = append(out, l)
		}
	}
	return out
}

// formsOf are the ways in which programs write a value.
func formsOf(v string) []string {
	out := []string{v, url.QueryEscape(v), url.PathEscape(v), strings.ReplaceAll(url.QueryEscape(v), "+", "%20"),
		strings.ReplaceAll(v, `'`, `'\''`), strings.ReplaceAll(v, `'`, `''`), strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(v), strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v),
		inner(strconv.Quote(v)), inner(strconv.QuoteToASCII(v)), strings.ReplaceAll(v, "%", `\%`), strings.ReplaceAll(v, "%", "%%")}
	if b, err := json.Marshal(v); err == nil { // a text
		out = append(out, inner(string(b)))
	}
	var plain strings.Builder
	e := json.NewEncoder(&plain)
	e.SetEscapeHTML(false)
	if e.Encode(v) == nil { // as above
		text := inner(strings.TrimSpace(plain.String()))
		out = append(out, text, strings.ReplaceAll(text, "/", `\/`))
	}
	for _, f := range out {
		if l := lowerPercent(f); l != f {
			out = append(out, l)
		}
	}
	small := hex.EncodeToString([]byte(v))
	large := strings.ToUpper(small)
	out = append(out, small, large, percentAll(small), percentAll(large))
	return append(out, base64Of(v)...)
}

func inner(quoted string) string {
	if len(quoted) < 2 {
		return quoted
	}
	return quoted[1 : len(quoted)-1]
}

// lowerPercent is a URL-encoded text with its hexadecimal digits in lower case.
func lowerPercent(s string) string {
	b := []byte(s)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			b[i+1], b[i+2] = lower(b[i+1]), lower(b[i+2])
		}
	}
	return string(b)
}

func lower(c byte) byte {
	if c >= 'A' && c <= 'F' {
		return c + 'a' - 'A'
	}
	return c
}

// percentAll encodes every byte; digits are the hexadecimal ones of all.
func percentAll(digits string) string {
	var b strings.Builder
	for i := 0; i < len(digits); i += 2 {
		b.WriteByte('%')
		b.WriteString(digits[i : i+2])
	}
	return b.String()
}

// base64Of is what base64 makes of v, in both alphabets, wherever in a longer text it stands ("user:password"): the digits that
// depend on v alone, at each of the three places at which it can begin.
func base64Of(v string) (out []string) {
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		out = append(out, enc.EncodeToString([]byte(v)))
		for before := range 3 {
			text := enc.EncodeToString(append(make([]byte, before), v...))
			from := []int{0, 2, 3}[before]
			bits := 8 * (before + len(v))
			to := bits / 6 // digits that are full of what is known
			if to-from >= shortValue {
				out = append(out, text[from:to])
			}
		}
	}
	return out
}

// Text is s without secrets.
func (s *Scrubber) Text(text string) string {
	text = s.long.Replace(text)
	for _, r := range s.short {
		// Twice: what ends one match may begin the next.
		text = r.ReplaceAllString(r.ReplaceAllString(text, "${1}"+Mark+"${3}"), "${1}"+Mark+"${3}")
	}
	for _, p := range patterns() {
		text = p.match.ReplaceAllString(text, p.with)
	}
	return text
}

// Value is a value as encoding/json decodes it into an any, without secrets: in texts, in the names of members, and the whole text
// of a member whose name speaks of a secret.
func (s *Scrubber) Value(v any) any {
	switch v := v.(type) {
	case string:
		return s.Text(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = s.Value(v[i])
		}
		return out
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, m := range v {
			if text, is := m.(string); is && text != "" && secretName().MatchString(k) {
				m = Mark
			}
			out[s.Text(k)] = s.Value(m)
		}
		return out
	}
	return v
}

// JSON encodes v without secrets, indented.
func (s *Scrubber) JSON(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(strings.NewReader(string(b)))
	d.UseNumber()
	var tree any
	if err := d.Decode(&tree); err != nil {
		return nil, err
	}
	if b, err = json.MarshalIndent(s.Value(tree), "", "  "); err != nil {
		return nil, err
	}
	return append(b, '\n'), nil
}

// Lines scrubs a text that comes line by line: a private key may go over several.
type Lines struct {
	s   *Scrubber
	key int // how many lines of one may still come; 0: none
}

// keyLines is more than a private key has. One that was cut off must not take the rest of a log with it.
const keyLines = 200

// Lines begins a text.
func (s *Scrubber) Lines() *Lines { return &Lines{s: s} }

// Line is one line without secrets. A line that isn't text is left out but for its length.
func (l *Lines) Line(line string) string {
	if !utf8.ValidString(line) {
		line = strings.ToValidUTF8(line, "?")
	}
	begin, end := strings.LastIndex(line, "-----BEGIN "), strings.LastIndex(line, "-----END ")
	inside := l.key > 0
	switch {
	case begin > end && strings.Contains(line[begin:], "PRIVATE KEY"):
		l.key = keyLines
	case end >= 0:
		l.key = 0
	case inside:
		l.key--
	}
	switch {
	case inside && end >= 0 && l.key == 0:
		return Mark + l.s.Text(afterEnd(line[end:]))
	case inside:
		return Mark
	}
	return l.s.Text(line)
}

// afterEnd is what follows the last line of a private key.
func afterEnd(text string) string {
	rest := strings.TrimPrefix(text, "-----END ")
	if _, after, found := strings.Cut(rest, "-----"); found {
		return after
	}
	return ""
}

// secretWord is in the names of what is secret. "key" alone is not: keys of tables, of maps, of a repository have names with it.
const secretWord = `pass(?:word|wd|phrase)?|pwd|secret(?:[_.-]?(?:access[_.-]?)?key)?|token|credentials?|api[_.-]?key|access[_.-]?key|account[_.-]?key|private[_.-]?key|customer[_.-]?key|shared[_.-]?key|cipher[_.-]?pass|s3[_.-]key|azure[_.-]key|sas|signature`

// secretName matches a whole name that speaks of a secret, and not of a file, an identifier or a fact of one.
var secretName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?i)(?:^|[_.-]|[a-z])(?:` + secretWord + `)$`)
})

type pattern struct {
	match *regexp.Regexp
	with  string
}

// patterns are what secrets look like.
var patterns = sync.OnceValue(func() []pattern {
	name := `[A-Za-z0-9_.-]*(?:` + secretWord + `)`
	value := `(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.|'')*'|[^\s"'&,;)}\]][^\s"'&]*)`
	typed := `(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.|'')*'|[^\s"'-][^\s"'&]*|-[^\s"'&]+)` // after -s, where - is standard input
	return []pattern{
		// Private keys, on one line or several, complete or cut off.
		{regexp.MustCompile(`(?s)-----BEGIN [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----|$)`), Mark},
		{regexp.MustCompile(`AGE-SECRET-KEY-[A-Z0-9-]+`), Mark},
		// scheme://user:password@host, whatever stands in the password but a blank.
		{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@"'<>]*:)[^\s"'<>]+@`), "${1}" + Mark + "@"},
		// Authorization: Basic …, Bearer …
		{regexp.MustCompile(`(?i)\b(basic|bearer|digest|sharedkey|aws4-hmac-sha256)(\s+)[A-Za-z0-9+/=_.~:,-]{8,}`), "${1}${2}" + Mark},
		{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.?[A-Za-z0-9_-]*`), Mark},
		// Keys of AWS, an account key of Azure, a presigned URL.
		{regexp.MustCompile(`\b(?:AKIA|ASIA|AROA|AIDA|AGPA|ANPA|ABIA|ACCA)[A-Z0-9]{12,}\b`), Mark},
		{regexp.MustCompile(`[A-Za-z0-9+/]{86}==`), Mark},
		{regexp.MustCompile(`(?i)([?&](?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|sig|signature|token|access_token|key)=)[^\s&"'<>]+`), "${1}" + Mark},
		// NAME=value, NAME: value, "NAME": "value" and the same quoted once more.
		{regexp.MustCompile(`(?i)(` + name + `\\?["']?\s*(?:=>|:=|[=:])\s*\\?)` + value), "${1}" + Mark},
		// NAME -s value, as alation_conf takes it, and the other way round; --name value.
		{regexp.MustCompile(`(?i)(` + name + `\s+-s\s+)` + typed), "${1}" + Mark},
		{regexp.MustCompile(`(?i)(-s\s+)` + typed + `(\s+` + name + `)`), "${1}" + Mark + "${2}"},
		{regexp.MustCompile(`(?i)((?:^|\s)--?` + name + `\s+)` + value), "${1}" + Mark},
	}
})
