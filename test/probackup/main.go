// Command probackup stands in for pg_probackup 2.5, which is not in Debian: for tests of what drives it. It takes the command lines
// that Holdfast writes and no others, keeps a backup catalog of the same layout, and does copy a running cluster's files between
// pg_backup_start and pg_backup_stop, archive WAL, validate and restore. What it prints, and how it ends, is as documented in
// docs/pg_probackup.md. What is left out: other ways to say the same, streaming, pages (DELTA and PAGE store changed files),
// compression of data files, retention, merging.
//
// Two files beside the program control it: PROGRAM.notes gets a line for each command (the user's name, the words), and PROGRAM.fail
// says what goes wrong: "VERB STEP HOW" with HOW exit, kill or hang.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const version = "2.5.16"

// failure is an ERROR of the program.
type failure string

func (f failure) Error() string { return string(f) }

func fail(format string, args ...any) error { return failure(fmt.Sprintf(format, args...)) }

func say(level, format string, args ...any) {
	fmt.Fprintf(os.Stderr, level+": "+format+"\n", args...)
}

// program is where this one is.
func program() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

func main() {
	signal.Notify(interrupted, syscall.SIGINT, syscall.SIGTERM)
	if err := run(os.Args[1:]); err != nil {
		say("ERROR", "%v", err)
		os.Exit(1)
	}
}

var interrupted = make(chan os.Signal, 1)

func stopped() error {
	select {
	case <-interrupted:
		return fail("interrupted")
	default:
		return nil
	}
}

// call is one command.
type call struct {
	verb string
	opts map[string]string // "" for those without a value
	many []string          // --tablespace-mapping, which may come several times
}

func (c *call) dir() string      { return c.opts["backup-path"] }
func (c *call) instance() string { return c.opts["instance"] }

// spec says which options a command must and may have, and what their values look like. A command line that is not exactly like
// this is an error: a real program may take it for something else.
type spec struct {
	must, may map[string]string // option → pattern of its value; "-": it has none
	exclusive []string          // exactly one of them
	run       func(*call) error
}

const (
	path     = `/.*`
	name     = `[a-z0-9][a-z0-9_-]*`
	id       = `[0-9A-Z]+`
	number   = `[1-9][0-9]*`
	pgname   = `[A-Za-z0-9_]+`
	anything = `(?s).+`
)

func specs() map[string]spec {
	compress := map[string]string{"compress-algorithm": "zlib|none", "compress-level": "[1-9]"}
	with := func(more ...map[string]string) map[string]string {
		all := map[string]string{}
		for _, m := range more {
			for k, v := range m {
				all[k] = v
			}
		}
		return all
	}
	on := map[string]string{"backup-path": path, "instance": name}
	quiet := map[string]string{"log-level-console": "info"}
	local := map[string]string{"remote-proto": "none"}
	return map[string]spec{
		"init":         {must: map[string]string{"backup-path": path}, run: initCatalog},
		"add-instance": {must: with(on, local, quiet, map[string]string{"pgdata": path}), run: addInstance},
		"show":         {must: with(on, map[string]string{"format": "json"}), run: show},
		"show-config":  {must: with(on, map[string]string{"format": "json"}), run: showConfig},
		"backup": {must: with(on, local, quiet, map[string]string{"backup-mode": "FULL|DELTA|PAGE", "threads": number, "archive-timeout": number, "external-dirs": "none", "note": `.{1,1000}`,
			"pgdata": path, "pgdatabase": "postgres", "no-password": "-", "compress-algorithm": "zlib|none"}),
			may: map[string]string{"pghost": anything, "pgport": number, "pguser": pgname, "compress-level": "[1-9]"}, run: backup},
		"validate": {must: with(on, quiet, map[string]string{"backup-id": id, "threads": number}), run: validate},
		"delete":   {must: with(on, quiet), may: map[string]string{"backup-id": id, "delete-wal": "-", "wal-depth": "0"}, run: remove},
		"restore": {must: with(on, local, quiet, map[string]string{"backup-id": id, "pgdata": path, "threads": number, "no-validate": "-", "skip-external-dirs": "-",
			"recovery-target-action": "promote", "recovery-target-timeline": number, "restore-command": anything}),
			may:       map[string]string{"recovery-target-name": anything, "recovery-target-time": `[0-9]{4}-[0-9][0-9]-[0-9][0-9] [0-9:.]+\+00`, "tablespace-mapping": `/.*=/.*`},
			exclusive: []string{"recovery-target-name", "recovery-target-time"}, run: restore},
		"archive-push": {must: with(on, local, compress, map[string]string{"wal-file-path": anything, "wal-file-name": `[0-9A-F]{8}[0-9A-Fa-z.]*`}), run: archivePush},
		"archive-get":  {must: with(on, local, map[string]string{"wal-file-path": anything, "wal-file-name": `[0-9A-F]{8}[0-9A-Fa-z.]*`}), run: archiveGet},
	}
}

func run(args []string) error {
	if err := note(args); err != nil {
		return err
	}
	if len(args) == 0 {
		return fail("No subcommand specified. Please run with \"help\" argument to see possible subcommands.")
	}
	if len(args) == 1 && args[0] == "version" {
		_, err := fmt.Printf("%s %s (PostgreSQL 15.4)\n", filepath.Base(os.Args[0]), version)
		return err
	}
	s, ok := specs()[args[0]]
	if !ok {
		return fail("Unknown subcommand %q", args[0])
	}
	c := &call{verb: args[0], opts: map[string]string{}}
	for _, word := range args[1:] {
		if err := c.take(s, word); err != nil {
			return err
		}
	}
	if err := c.complete(s); err != nil {
		return err
	}
	return s.run(c)
}

// take reads one option: --name=value or --name, as spec allows it.
func (c *call) take(s spec, word string) error {
	opt, value, valued := strings.Cut(strings.TrimPrefix(word, "--"), "=")
	pattern, ok := s.must[opt]
	if !ok {
		pattern, ok = s.may[opt]
	}
	if !strings.HasPrefix(word, "--") || !ok {
		return fail("stand-in: %s does not take %q", c.verb, word)
	}
	if _, twice := c.opts[opt]; twice && opt != "tablespace-mapping" {
		return fail("stand-in: %s: --%s twice", c.verb, opt)
	}
	if valued == (pattern == "-") || valued && !regexp.MustCompile("^(?:"+pattern+")$").MatchString(value) {
		return fail("stand-in: %s: bad value in %q", c.verb, word)
	}
	c.opts[opt] = value
	if opt == "tablespace-mapping" {
		c.many = append(c.many, value)
	}
	return nil
}

func (c *call) complete(s spec) error {
	for opt := range s.must {
		if _, ok := c.opts[opt]; !ok && !(opt == "compress-level" && c.opts["compress-algorithm"] == "none") {
			return fail("stand-in: %s lacks --%s", c.verb, opt)
		}
	}
	n := 0
	for _, opt := range s.exclusive {
		if _, ok := c.opts[opt]; ok {
			n++
		}
	}
	if len(s.exclusive) > 0 && n != 1 {
		return fail("stand-in: %s wants one of %v", c.verb, s.exclusive)
	}
	if _, level := c.opts["compress-level"]; c.opts["compress-algorithm"] != "" && level != (c.opts["compress-algorithm"] == "zlib") {
		return fail("stand-in: %s: a level goes with zlib and with nothing else", c.verb)
	}
	return c.environment()
}

// environment refuses variables that the real program would take orders from, and a user who is not the server's.
func (c *call) environment() error {
	for _, v := range []string{"BACKUP_PATH", "BACKUP_MODE", "PGDATA", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE"} {
		if c.verb != "archive-push" && c.verb != "archive-get" && os.Getenv(v) != "" { // PostgreSQL sets some for its children
			return fail("stand-in: %s is set", v)
		}
	}
	if c.verb != "archive-push" && c.verb != "archive-get" && (os.Getenv("LC_ALL") != "C" || os.Getenv("TZ") != "UTC") {
		return fail("stand-in: LC_ALL and TZ are %q and %q", os.Getenv("LC_ALL"), os.Getenv("TZ"))
	}
	if os.Geteuid() == 0 {
		return fail("stand-in: run as root, whose files PostgreSQL's user could not use")
	}
	return nil
}

// note writes down who ran what.
func note(args []string) error {
	f, err := os.OpenFile(program()+".notes", os.O_APPEND|os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	who := strconv.Itoa(os.Geteuid())
	if u, err := user.Current(); err == nil {
		who = u.Username
	}
	_, err = fmt.Fprintf(f, "%s %s\n", who, strings.Join(args, " "))
	return errors.Join(err, f.Close())
}

// step is a place at which the test may want something to go wrong.
func (c *call) step(name string) error {
	if err := stopped(); err != nil {
		return err
	}
	b, err := os.ReadFile(program() + ".fail")
	if err != nil {
		return nil
	}
	words := strings.Fields(string(b))
	if len(words) != 3 || words[0] != c.verb || words[1] != name {
		return nil
	}
	switch words[2] {
	case "exit":
		return fail("failing at %s, as the test wants it", name)
	case "kill":
		return syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "hang":
		child, err := os.StartProcess("/bin/sleep", []string{"sleep", "600"}, &os.ProcAttr{}) // which must not outlive a cancelled run
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(c.dir(), "hanging"), fmt.Appendf(nil, "%d %d", os.Getpid(), child.Pid), 0o644); err != nil {
			return err
		}
		select {
		case <-interrupted:
			return fail("interrupted while hanging")
		case <-time.After(10 * time.Minute):
			return fail("nobody ended the hanging program")
		}
	case "deaf":
		if err := os.WriteFile(filepath.Join(c.dir(), "hanging"), fmt.Appendf(nil, "%d", os.Getpid()), 0o644); err != nil {
			return err
		}
		time.Sleep(10 * time.Minute)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
