package instance

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
)

// CronEntry is a line of a crontab that backs this instance up.
type CronEntry struct {
	Number   int      `json:"line"` // from 1
	Text     string   `json:"text"`
	Shell    string   `json:"shell"`              // that cron gives the command to
	Problems []string `json:"problems,omitempty"` // why it can't work as it is written
	Ours     bool     `json:"ours"`               // as CronLine makes it, whatever its times
	More     bool     `json:"more,omitempty"`     // it does something else after the backup
}

// CronLine renders the line of root's crontab on the host that backs the instance up at the times of when, five fields.
// It names everything by its whole path and needs no other shell than sh: cron's PATH is short, and its shell is often no
// bash. In a crontab a bare % would end the command (crontab(5)), whatever the quotes. An error is a root with a line break.
func (i *Instance) CronLine(when string) (string, error) {
	command := i.cronCommand()
	if strings.ContainsAny(i.dir, "\n\r") {
		return "", fmt.Errorf("crontab: the path of the instance has a line break: %q", i.dir)
	}
	return when + " " + command, nil
}

func (i *Instance) cronCommand() string {
	return strings.ReplaceAll(quote(i.own("etc/init.d/alation"))+" shell -c 'alation_action backup_all'", "%", `\%`)
}

// cronPatterns are made when they are first needed: archive-push starts a process for every segment.
var cronPatterns = sync.OnceValue(func() (p struct{ assignment, backup, source, unquoted, noRoot, root, other *regexp.Regexp }) {
	p.assignment = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*?)\s*$`)
	program := `(^|[\s;&|(/]|-[a-z]*c\s+["'])holdfast["']?(\s+--?[a-z-]+([= ]\S+)?)*\s+` // with options before the verb
	p.backup = regexp.MustCompile(`\balation_action["']?\s+["']?backup_all\b|` + program + `(backup|backup_all)\b|` + program + `schedule\s+run(\s+backup\b)?\s*($|[;&|>"')\d-])`)
	p.root = regexp.MustCompile(`--root[= ]|\bHOLDFAST_ROOT=`)
	p.source = regexp.MustCompile(`(^|[;&|\s])source\s`)
	p.unquoted = regexp.MustCompile(`\s-c\s+alation_action\s+backup_all`)
	p.noRoot = regexp.MustCompile(`\bchroot\s+(""|'')?\s*/bin/su\b`)
	p.other = regexp.MustCompile(`--root|HOLDFAST_ROOT=|\bchroot\b|alation_constants|init\.d/`)
	return p
})

// CronEntries finds the lines of a crontab that back this instance up: they run a backup, and name the instance by its
// constants file, its init script or its root, or name none where the instance is the host itself.
func (i *Instance) CronEntries(crontab string) []CronEntry {
	p := cronPatterns()
	var found []CronEntry
	shell := "/bin/sh"
	for n, line := range strings.Split(crontab, "\n") {
		text := strings.TrimSpace(line)
		if m := p.assignment.FindStringSubmatch(text); m != nil {
			if m[1] == "SHELL" {
				shell = strings.Trim(m[2], `"'`)
			}
			continue
		}
		at := p.backup.FindStringIndex(text)
		if text == "" || text[0] == '#' || at == nil || strings.Contains(text, "--dry-run") || !strings.HasSuffix(text, i.cronCommand()) && !i.named(text) {
			continue
		}
		rest := text[at[1]-1:] // what ended the command among it
		e := CronEntry{Number: n + 1, Text: text, Shell: shell, Ours: strings.HasSuffix(text, i.cronCommand()), More: strings.ContainsAny(rest, ";|") || strings.Contains(rest, "&&")}
		if p.unquoted.MatchString(text) {
			e.Problems = append(e.Problems, "what comes after -c is not quoted: su takes only its first word for the command")
		}
		if p.noRoot.MatchString(text) {
			e.Problems = append(e.Problems, "chroot gets no directory: the variable was replaced when the line was entered")
		}
		found = append(found, e)
	}
	return found
}

// Sources reports whether the command uses source, which is bash's word and unknown to many an sh.
func (e CronEntry) Sources() bool { return cronPatterns().source.MatchString(e.Text) }

// named reports whether a command line names this instance.
func (i *Instance) named(text string) bool {
	bare := strings.ReplaceAll(text, `\%`, "%")
	root := `(--root[= ]|HOLDFAST_ROOT=|\bchroot\s+)["']?` + regexp.QuoteMeta(i.dir) + `/?($|["'\s;])`
	if ok, err := regexp.MatchString(root, bare); err == nil && ok {
		return true
	}
	if cronPatterns().root.MatchString(bare) {
		return false // of another one, wherever its program lies
	}
	for _, p := range []string{i.own("opt/alation/ops/alation_constants"), i.own("etc/init.d/alation"), i.own("usr/local/bin"), i.own("usr/local/lib/holdfast")} {
		if hasPath(bare, p) {
			return true
		}
	}
	return i.dir == "/" && !cronPatterns().other.MatchString(bare)
}

// hasPath reports whether text has path as a word, or as the beginning of a longer path.
func hasPath(text, path string) bool {
	for {
		at := strings.Index(text, path)
		if at < 0 {
			return false
		}
		before := at == 0 || strings.ContainsRune("\"' \t;&|=(", rune(text[at-1]))
		rest := text[at+len(path):]
		if before && (rest == "" || strings.ContainsRune("\"' \t;&|)/", rune(rest[0]))) {
			return true
		}
		text = text[at+1:]
	}
}

// EditCrontab takes the entries out of a crontab and, unless line is empty, adds it at the end. Everything else stays as it
// is.
func EditCrontab(crontab string, entries []CronEntry, line string) string {
	out := make([]string, 0)
	gone := map[int]bool{}
	for _, e := range entries {
		gone[e.Number] = true
	}
	for n, l := range strings.Split(strings.TrimSuffix(crontab, "\n"), "\n") {
		if !gone[n+1] && (l != "" || crontab != "") {
			out = append(out, l)
		}
	}
	if line != "" {
		out = append(out, line)
	}
	if len(out) == 0 {
		return ""
	}
	return strings.Join(out, "\n") + "\n"
}
