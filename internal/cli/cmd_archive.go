package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// archiveMain is archive-push and archive-get, parsed by hand: they are on PostgreSQL's critical path, once per segment.
// Options are --name=value or --name value, in pgBackRest's words; an unknown one is refused by name.
func archiveMain(ctx context.Context, env *Env, verb string, args []string) error {
	opts := map[string]string{}
	var words []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		if !strings.HasPrefix(a, "--") {
			words = append(words, a)
			continue
		}
		name, value, ok := strings.Cut(a[2:], "=")
		if name == "help" {
			_, err := io.WriteString(env.Stdout, archiveHelp)
			return err
		}
		if rest, no := strings.CutPrefix(name, "no-"); no && !ok {
			opts[rest] = "n"
			continue
		}
		if !ok {
			if i++; i == len(args) {
				return &usageError{a + " needs a value"}
			}
			value = args[i]
		}
		opts[name] = value
	}
	f := stanzaFlags{lockPath: pgLockDir}
	f.stanza, f.pgPath = opts["stanza"], opts["pg1-path"]
	if v, ok := opts["lock-path"]; ok {
		f.lockPath = v
	}
	for name := range opts {
		known := name == "stanza" || name == "pg1-path" || name == "lock-path" || isRepoPath(name) ||
			verb == "archive-push" && (name == "compress-type" || name == "compress-level" || name == "archive-header-check")
		if !known {
			return &usageError{fmt.Sprintf("%s: option --%s is not known; see: holdfast pg %s --help", verb, name, verb)}
		}
	}
	if verb == "archive-push" {
		return push(ctx, env, f, opts, words)
	}
	return get(ctx, env, f, opts, words)
}

const archiveHelp = `usage: holdfast pg archive-push --stanza=S --repo1-path=DIR --pg1-path=DIR [--compress-type=zst] [--compress-level=1] [--no-archive-header-check] PATH
       holdfast pg archive-get  --stanza=S --repo1-path=DIR [--repo2-path=DIR …] --pg1-path=DIR NAME DESTINATION

archive_command = 'holdfast pg archive-push --stanza=S --repo1-path=DIR --pg1-path=DIR "%p"'
restore_command = 'holdfast pg archive-get --stanza=S --repo1-path=DIR --pg1-path=DIR %f "%p"'

exit codes: 0 done; 1 archive-get: not in the archive, archive-push: failed, PostgreSQL tries again; 2 bad use
`

func isRepoPath(name string) bool {
	n, ok := strings.CutPrefix(name, "repo")
	if n, ok2 := strings.CutSuffix(n, "-path"); ok && ok2 {
		_, err := strconv.ParseUint(n, 10, 8)
		return err == nil
	}
	return false
}

func push(ctx context.Context, env *Env, f stanzaFlags, opts map[string]string, words []string) error {
	if len(words) != 1 {
		return &usageError{"archive-push needs one path (%p)"}
	}
	o := engine.PushOptions{Path: words[0], DataDir: f.pgPath, Compress: repo.ZST, Level: 1, HeaderCheck: opts["archive-header-check"] != "n"}
	if v, ok := opts["compress-type"]; ok {
		c, err := repo.ParseCompressType(v)
		if err != nil {
			return &usageError{err.Error()}
		}
		o.Compress, o.Level = c, repo.DefaultLevel(c)
	}
	if v, ok := opts["compress-level"]; ok {
		n, err := strconv.Atoi(v)
		if err != nil {
			return &usageError{fmt.Sprintf("--compress-level=%s is not a number", v)}
		}
		o.Level = n
	}
	if o.DataDir == "" {
		dir, err := env.Getwd() // PostgreSQL runs archive_command in the data directory
		if err != nil {
			return err
		}
		o.Path = absolute(dir, o.Path)
	}
	f.repoPath = opts["repo1-path"]
	s, err := f.open(env, newListener(env, false, nil))
	if err != nil {
		return err
	}
	_, err = s.Push(ctx, o)
	return err
}

func absolute(dir, p string) string {
	if strings.HasPrefix(p, "/") {
		return p
	}
	return dir + "/" + p
}

func get(ctx context.Context, env *Env, f stanzaFlags, opts map[string]string, words []string) error {
	if len(words) != 2 {
		return &usageError{"archive-get needs a name and a destination (%f and %p)"}
	}
	o := engine.GetOptions{Name: words[0], Dest: words[1], DataDir: f.pgPath}
	if o.DataDir == "" {
		dir, err := env.Getwd()
		if err != nil {
			return err
		}
		o.Dest = absolute(dir, o.Dest)
	}
	var errs []error
	tried := 0
	for n := 1; n <= 256; n++ {
		path, ok := opts["repo"+strconv.Itoa(n)+"-path"]
		if !ok {
			continue
		}
		tried++
		f.repoPath = path
		s, err := f.open(env, nil)
		if err == nil {
			err = s.Get(ctx, o)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	if tried == 0 {
		return &usageError{"--repo1-path is missing"}
	}
	// Not found anywhere outranks a repository that could not answer only if all answered: recovery must not take an
	// outage for the end of the archive.
	for _, err := range errs {
		if !errors.Is(err, engine.ErrWALMissing) && !errors.Is(err, engine.ErrStanzaMissing) && !errors.Is(err, engine.ErrArchiveMismatch) {
			return &unavailableError{errors.Join(errs...)}
		}
	}
	return errs[0]
}

// unavailableError ends recovery instead of letting it go on with less WAL than there is: PostgreSQL aborts on exit codes
// above 125.
type unavailableError struct{ err error }

func (e *unavailableError) Error() string { return e.err.Error() }
func (e *unavailableError) Unwrap() error { return e.err }
