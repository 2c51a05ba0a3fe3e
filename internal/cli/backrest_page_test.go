package cli

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/backrest"
)

// partly says of options that are used but not with every value, or not by every command, where the limit is.
var partly = map[string]string{
	"pg-host":          "of a primary beside a standby on this host; else refused: run the command on the host of PostgreSQL ([below](#a-primary-on-another-host))",
	"repo-s3-service":  "`s3`; else refused: requests are signed for the service s3 only",
	"repo-target-time": "of a bucket on S3; else [refused](#refused-by-name)",
	"compress-type":    "all; `bz2` is written by one core",
}

// ofTheOriginal are the options of pgBackRest, with the version that an option came with; empty: 2.45 has it.
func ofTheOriginal(t *testing.T) map[string]string {
	t.Helper()
	b, err := os.ReadFile("testdata/pgbackrest-options.txt")
	if err != nil {
		t.Fatal(err)
	}
	list := map[string]string{}
	for line := range strings.Lines(string(b)) {
		if name, since, _ := strings.Cut(strings.TrimSpace(line), " "); name != "#" {
			list[name] = since
		}
	}
	return list
}

// becomes says what becomes of an option: "yes", or why it changes nothing, or what to do instead.
func becomes(name string) string {
	if slices.Contains(strings.Fields(neutralOptions), name) {
		return "taken, [changes nothing](#taken-and-without-any-effect)"
	}
	for _, r := range refusedOptions {
		if prefix, family := strings.CutSuffix(r.name, "*"); r.name == name || family && strings.HasPrefix(name, prefix) {
			return "refused: " + r.instead
		}
	}
	if p := partly[name]; p != "" {
		return "yes, " + p
	}
	return "yes"
}

// optionsTable is the table of the page.
func optionsTable(t *testing.T) string {
	t.Helper()
	original := ofTheOriginal(t)
	options := backrest.Options()
	slices.SortFunc(options, func(a, b backrest.Option) int { return strings.Compare(a.Name, b.Name) })
	var b strings.Builder
	b.WriteString("| option | for | since | here |\n|---|---|---|---|\n")
	for _, o := range options {
		since, known := original[o.Name]
		switch {
		case strings.HasPrefix(becomes(o.Name), "refused: it is internal"):
			continue
		case !known && slices.Contains([]string{"repo-storage-prefetch", "repo-storage-read-over"}, o.Name):
			since = "2.60"
		case !known:
			since = "only here"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", o.Name, strings.ReplaceAll(o.Text(), "|", `\|`), since, becomes(o.Name))
	}
	return b.String()
}

// TestOptionsPage: the page names every option with what becomes of it, and nothing else.
func TestOptionsPage(t *testing.T) {
	const path, begin, end = "../../docs/coming-from-pgbackrest.md", "<!-- every option: written by go test ./internal/cli -run TestOptionsPage -update -->\n", "<!-- end of every option -->\n"
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(have), begin)
	table, tail, closed := strings.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("%s has no place for the options: %s", path, begin)
	}
	want := optionsTable(t)
	if *update {
		if err := os.WriteFile(path, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		table = want
	}
	if table != want {
		t.Error("docs/coming-from-pgbackrest.md is stale: run: go test ./internal/cli -run TestOptionsPage -update")
	}
	for name := range partly {
		if !strings.HasPrefix(becomes(name), "yes, ") || !strings.Contains(want, "| `"+name+"` |") {
			t.Errorf("%s is not an option that is done in part", name)
		}
	}
	for name := range ofTheOriginal(t) {
		if !strings.Contains(want, "| `"+name+"` |") && !strings.HasPrefix(becomes(name), "refused: it is internal") && name != "help" && name != "version" {
			t.Errorf("the original's option %s is not on the page", name)
		}
	}
	// A link leads to a heading that is there.
	headings := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(have), -1) {
		headings[strings.NewReplacer(" ", "-", ",", "", "`", "", "'", "").Replace(strings.ToLower(m[1]))] = true
	}
	for _, m := range regexp.MustCompile(`\]\(#([^)]+)\)`).FindAllStringSubmatch(string(have), -1) {
		if !headings[m[1]] {
			t.Errorf("no heading for the link #%s", m[1])
		}
	}
}

// TestOptionsOfTheOriginal: what the list says of 2.45 is what that program's own help says, and each is in our table.
func TestOptionsOfTheOriginal(t *testing.T) {
	if testing.Short() {
		t.Skip("needs pgbackrest; run make test")
	}
	program, err := exec.LookPath("pgbackrest")
	if err != nil {
		t.Fatal("pgbackrest is not installed: scripts/setup installs it")
	}
	listed := ofTheOriginal(t)
	ours := map[string]bool{"help": true, "version": true} // as commands are
	for _, o := range backrest.Options() {
		ours[o.Name] = true
	}
	for name := range listed {
		if !ours[name] {
			t.Errorf("%s is not in the table", name)
		}
	}
	seen := map[string]bool{}
	option := regexp.MustCompile(`(?m)^  --([a-z0-9-]+)`)
	for _, command := range backrest.Commands() {
		out, err := exec.Command(program, "help", command).CombinedOutput()
		if err != nil {
			t.Fatalf("help %s: %v\n%s", command, err, out)
		}
		for _, m := range option.FindAllStringSubmatch(string(out), -1) {
			seen[m[1]] = true
			if since, known := listed[m[1]]; !known || since != "" {
				t.Errorf("2.45 has %s, the list says %q %t", m[1], since, known)
			}
		}
	}
	if len(seen) < 120 {
		t.Errorf("only %d options in the help of 2.45", len(seen))
	}
}
