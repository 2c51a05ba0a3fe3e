package conf

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"holdfast/internal/schedule"
)

// maxValue bounds a value, in bytes.
const maxValue = 64 << 10

// Parse checks text as a value of k and returns its canonical form, the one that is stored and printed. The error is a
// *ValueError, which never shows the text of a secret.
func (k *Key) Parse(text string) (string, error) {
	canonical, err := k.parse(text)
	if err != nil {
		return "", &ValueError{Name: k.Name, Value: NewSecret(text), Allowed: k.AllowedText(), Reason: err.Error()}
	}
	return canonical, nil
}

// AllowedText says in words what Parse accepts.
func (k *Key) AllowedText() string {
	empty := ", or nothing"
	if k.Required || k.Default != "" && k.Type != List && k.Type != Cron {
		empty = ""
	}
	switch k.Type {
	case Bool:
		return "True or False"
	case Int, Seconds:
		return fmt.Sprintf("a whole number from %d to %d (%s)", k.Min, k.Max, k.Unit)
	case Enum:
		return "one of " + strings.Join(k.Allowed, ", ")
	case List:
		if k.Allowed != nil {
			return "a list of " + strings.Join(k.Allowed, ", ") + ", separated by commas without spaces" + empty
		}
		return "a list separated by commas" + empty
	case Path:
		return "a path of at most 4096 bytes, seen from the instance's root" + empty
	case URL:
		return "an http:// or https:// address with a host" + empty
	case Version:
		return "four numbers, such as 10.0.0.147420" + empty
	case Cron:
		return "five fields as in a crontab: minute hour day-of-month month day-of-week" + empty
	case Zone:
		return "the name of a time zone, such as UTC or Europe/Zurich" + empty
	case Listen:
		return "an address and a port, such as 127.0.0.1:9876, or :9876 for every address" + empty
	case Clusters:
		return "stanza:data=DIR,host=HOST,port=PORT,user=USER,bin=DIR;… or a JSON list of such objects"
	}
	return "one line of text" + empty
}

// parse does Parse's work; its errors are reasons, without the parameter's name and without the text.
func (k *Key) parse(text string) (string, error) {
	if err := checkText(text); err != nil {
		return "", err
	}
	if k.Type != String && k.Type != SecretT {
		text = strings.TrimSpace(text)
	}
	if text == "" {
		return "", k.parseEmpty()
	}
	switch k.Type {
	case Bool:
		return parseBool(text)
	case Int, Seconds:
		return k.parseInt(text)
	case Enum:
		return matchFold(k.Allowed, text)
	case List:
		return k.parseList(text)
	case Path:
		return k.parsePath(text)
	case URL:
		return parseURL(text)
	case Version:
		return parseVersion(text)
	case Clusters:
		clusters, err := ParseClusters(text)
		if err != nil {
			return "", err
		}
		return FormatClusters(clusters), nil
	case Cron:
		return parseCron(text)
	case Zone:
		zone, err := schedule.Zone(text)
		if err != nil {
			return "", err
		}
		return zone.String(), nil
	case Listen:
		return parseListen(text)
	}
	return text, nil
}

// parseEmpty decides about the empty value.
func (k *Key) parseEmpty() error {
	switch k.Type {
	case Bool, Int, Seconds:
		return errors.New("empty; to have the default again use --unset")
	}
	if k.Required {
		return errors.New("must not be empty; to have the default again use --unset")
	}
	return nil
}

// checkText refuses what would break a line of output or a file of configuration.
func checkText(text string) error {
	if len(text) > maxValue {
		return fmt.Errorf("longer than %d bytes", maxValue)
	}
	if !utf8.ValidString(text) {
		return errors.New("not UTF-8")
	}
	if strings.IndexFunc(text, unicode.IsControl) >= 0 || strings.ContainsAny(text, "\u2028\u2029") {
		return errors.New("contains a line break or another control character")
	}
	return nil
}

func parseBool(text string) (string, error) {
	switch strings.ToLower(text) {
	case "true":
		return "True", nil
	case "false":
		return "False", nil
	}
	return "", errors.New("neither True nor False")
}

func (k *Key) parseInt(text string) (string, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if errors.Is(err, strconv.ErrRange) || err == nil && (n < k.Min || n > k.Max) {
		return "", errors.New("out of range")
	}
	if err != nil {
		return "", errors.New("not a whole number")
	}
	return strconv.FormatInt(n, 10), nil
}

// matchFold returns the element of allowed that equals text in any case.
func matchFold(allowed []string, text string) (string, error) {
	for _, a := range allowed {
		if strings.EqualFold(a, text) {
			return a, nil
		}
	}
	return "", errors.New("not one of these")
}

// parseList checks the elements. Those of a fixed set are put in its order, without repetitions; others stay as they are.
func (k *Key) parseList(text string) (string, error) {
	elements := strings.Split(text, ",")
	for i, e := range elements {
		e = strings.TrimSpace(e)
		if e == "" {
			return "", errors.New("an element is empty")
		}
		if k.Allowed != nil {
			known, err := matchFold(k.Allowed, e)
			if err != nil {
				return "", fmt.Errorf("%q is %w", shorten(e), err)
			}
			e = known
		}
		elements[i] = e
	}
	if k.Allowed == nil {
		return strings.Join(elements, ","), nil
	}
	ordered := make([]string, 0, len(k.Allowed))
	for _, a := range k.Allowed {
		if slices.Contains(elements, a) {
			ordered = append(ordered, a)
		}
	}
	return strings.Join(ordered, ","), nil
}

// parsePath keeps the path as typed. A required directory must lie below the root: the root itself as staging or
// repository directory would be a disaster.
func (k *Key) parsePath(text string) (string, error) {
	if len(text) > 4096 {
		return "", errors.New("longer than 4096 bytes")
	}
	if k.Required && cleanPath(text) == "/" {
		return "", errors.New("names the instance's root itself")
	}
	return text, nil
}

// cleanPath gives a path parameter the form in which two of them can be compared.
func cleanPath(p string) string { return path.Clean("/" + p) }

func parseURL(text string) (string, error) {
	u, err := url.Parse(text)
	if err != nil {
		return "", errors.New("not an address")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil || strings.ContainsAny(text, " ") {
		return "", errors.New("not an http or https address with a host, without user and spaces")
	}
	return text, nil
}

// parseVersion accepts dots and the dashes of file names and returns dots.
func parseVersion(text string) (string, error) {
	parts := strings.FieldsFunc(text, func(r rune) bool { return r == '.' || r == '-' })
	if len(parts) != 4 || strings.Count(text, ".")+strings.Count(text, "-") != 3 {
		return "", errors.New("not four numbers")
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 32)
		if err != nil {
			return "", errors.New("not four numbers")
		}
		parts[i] = strconv.FormatUint(n, 10)
	}
	return strings.Join(parts, "."), nil
}

// parseCron accepts what package schedule does, without its spans and without a zone, which is a parameter of its own.
func parseCron(text string) (string, error) {
	if n := len(strings.Fields(text)); n != 5 {
		return "", fmt.Errorf("%d fields, not five", n)
	}
	spec, err := schedule.Parse(text)
	if err != nil {
		return "", err
	}
	return spec.String(), nil
}

// parseListen accepts a port with or without an address.
func parseListen(text string) (string, error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		return "", errors.New("not an address and a port")
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", errors.New("the port is no number from 1 to 65535")
	}
	if strings.HasPrefix(host, "/") || checkHost(host) != nil {
		return "", errors.New("the address is none")
	}
	return net.JoinHostPort(host, port), nil
}

// checkHost accepts a socket directory (begins with "/") or a host name or address without port.
func checkHost(host string) error {
	if strings.HasPrefix(host, "/") || net.ParseIP(host) != nil {
		return nil
	}
	for _, r := range host {
		if (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-._", r) {
			return errors.New("host is neither a socket directory nor a host name or address")
		}
	}
	return nil
}
