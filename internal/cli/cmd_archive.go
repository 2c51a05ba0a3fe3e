package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// archiveMain is archive-push and archive-get, parsed by hand: they are on PostgreSQL's critical path, once per segment.
// Options are --name=value or --name value, in pgBackRest's words; an unknown one is refused by name.
func archiveMain(ctx context.Context, env *Env, verb string, args []string) error {
	opts, words, err := parseArchive(verb, args)
	if err != nil {
		return err
	}
	if _, help := opts["help"]; help {
		_, err := io.WriteString(env.Stdout, archiveHelp)
		return err
	}
	f := stanzaFlags{lockPath: pgLockDir, stanza: opts["stanza"], pgPath: opts["pg1-path"], passFile: opts["repo1-cipher-pass-file"], config: opts["config"]}
	for _, name := range slices.Sorted(maps.Keys(opts)) {
		if isRepoOption(name) {
			f.repoWords = append(f.repoWords, "--"+name+"="+opts[name])
		}
	}
	if v, ok := opts["lock-path"]; ok {
		f.lockPath = v
	}
	shortRun()
	if verb == "archive-push" {
		return push(ctx, env, f, opts, words)
	}
	return get(ctx, env, f, opts, words)
}

// shortRun is for a process that handles one WAL file and ends: nothing is collected before there are 32 MiB, which a
// segment of the usual size does not need. Collecting a few MiB several times would cost about a tenth of the process.
func shortRun() { debug.SetGCPercent(800) }

// parseArchive splits the words after the verb into options and the rest. What is not known is refused by name, so that
// nothing an operator wrote into archive_command is passed over.
func parseArchive(verb string, args []string) (opts map[string]string, words []string, err error) {
	opts = map[string]string{}
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--help" || a == "-h" {
			return map[string]string{"help": ""}, nil, nil
		}
		if !strings.HasPrefix(a, "-") {
			words = append(words, a)
			continue
		}
		name, value, given := strings.Cut(strings.TrimPrefix(a, "--"), "=")
		plain, no := strings.CutPrefix(name, "no-")
		switch {
		case isArchiveSwitch(verb, plain) && !given:
			name, value = plain, "y"
			if no {
				value = "n"
			}
		case isArchiveSwitch(verb, name) && (value == "y" || value == "n"):
		case isArchiveSwitch(verb, name):
			return nil, nil, &usageError{fmt.Sprintf("%s: --%s=%s: it takes y or n", verb, name, value)}
		case !isArchiveOption(verb, name):
			return nil, nil, &usageError{fmt.Sprintf("%s: option %s is not known; see: holdfast pg %s --help", verb, strings.SplitN(a, "=", 2)[0], verb)}
		case !given:
			if i++; i == len(args) {
				return nil, nil, &usageError{fmt.Sprintf("%s: %s needs a value", verb, a)}
			}
			value = args[i]
		}
		if _, twice := opts[name]; twice {
			return nil, nil, &usageError{fmt.Sprintf("%s: --%s is given twice", verb, name)}
		}
		if value == "" {
			return nil, nil, &usageError{fmt.Sprintf("%s: --%s is empty", verb, name)}
		}
		opts[name] = value
	}
	return opts, words, nil
}

func isArchiveSwitch(verb, name string) bool {
	return verb == "archive-push" && name == "archive-header-check"
}

func isArchiveOption(verb, name string) bool {
	switch name {
	case "stanza", "pg1-path", "lock-path", "repo1-path", "repo1-cipher-pass-file", "config":
		return true
	case "compress-type", "compress-level":
		return verb == "archive-push"
	}
	return isRepoOption(name) || verb == "archive-get" && isRepoPath(name)
}

// isRepoOption reports whether name is repo<N>- and something that says where a repository is, other than its path.
func isRepoOption(name string) bool {
	key, rest, _ := strings.Cut(name, "-")
	return isRepoPath(key+"-path") && slices.ContainsFunc(repoHelp, func(h struct{ name, help string }) bool { return h.name == rest })
}

const archiveHelp = `usage: holdfast pg archive-push --stanza=S --repo1-path=DIR --pg1-path=DIR [--compress-type=zst] [--compress-level=1] [--no-archive-header-check] PATH
       holdfast pg archive-get  --stanza=S --repo1-path=DIR [--repo2-path=DIR …] --pg1-path=DIR NAME DESTINATION

archive_command = 'holdfast pg archive-push --stanza=S --repo1-path=DIR --pg1-path=DIR "%p"'
restore_command = 'holdfast pg archive-get --stanza=S --repo1-path=DIR --pg1-path=DIR %f "%p"'

--repo1-cipher-pass-file=FILE or PGBACKREST_REPO1_CIPHER_PASS in the environment: passphrase of an encrypted repository
--config=FILE, --repo1-type=s3 and the other flags of a repository that is not a directory: as of the other verbs, see
"holdfast pg info --help"; with several repositories archive-push stores the file in each

exit codes: 0 done; 1 archive-get: not in the archive, archive-push: failed, PostgreSQL tries again; 2 bad use;
126 archive-get: a repository could not be asked, PostgreSQL stops instead of ending recovery early
`

// maxRepos is the number of repositories that archive-get asks at most, as in the original.
const maxRepos = 256

// isRepoPath reports whether name is repo<N>-path, N from 1 to maxRepos without leading zeros.
func isRepoPath(name string) bool {
	n, ok := strings.CutPrefix(name, "repo")
	n, ok2 := strings.CutSuffix(n, "-path")
	i, err := strconv.Atoi(n)
	return ok && ok2 && err == nil && i >= 1 && i <= maxRepos && strconv.Itoa(i) == n
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
	if lo, hi := repo.LevelRange(o.Compress); o.Compress != repo.None && (o.Level < lo || o.Level > hi) {
		return &usageError{fmt.Sprintf("--compress-level=%d: %s takes %d to %d", o.Level, o.Compress, lo, hi)}
	}
	f.repoPath = opts["repo1-path"]
	all, err := f.sources(env)
	if err != nil {
		return err
	}
	if o.Path, err = inDataDir(env, o.DataDir, o.Path); err != nil {
		return fmt.Errorf("archive-push: %w: is --pg1-path that of the cluster which archives?", err)
	}
	var errs []error
	for _, src := range all { // every repository has its turn; PostgreSQL asks again until all have the file
		s, err := f.openOn(env, src, newListener(env, false, nil))
		if err == nil {
			_, err = s.Push(ctx, o)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// inDataDir makes a path absolute that PostgreSQL gave to a command. It runs commands in the data directory: if that is
// another one than the option says, the option is of another cluster, and a file of that cluster with the same name would
// be taken for the one that is meant. dataDir may be empty.
func inDataDir(env *Env, dataDir, path string) (string, error) {
	if strings.HasPrefix(path, "/") {
		return path, nil
	}
	dir, err := env.Getwd()
	switch {
	case err != nil && dataDir == "":
		return "", err
	case err != nil:
		return absolute(dataDir, path), nil
	case dataDir == "":
		return absolute(dir, path), nil
	}
	here, err1 := os.Stat(dir)
	there, err2 := os.Stat(dataDir)
	if err := errors.Join(err1, err2); err != nil {
		return "", err
	}
	if !os.SameFile(here, there) {
		return "", fmt.Errorf("PostgreSQL working directory '%s' is not the same as option pg1-path '%s'", dir, dataDir)
	}
	return absolute(dataDir, path), nil
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
	all, err := f.getSources(env, opts)
	if err != nil {
		return err
	}
	var errs []error
	for _, src := range all {
		s, err := f.openOn(env, src, nil)
		if err == nil {
			err = s.Get(ctx, o)
		}
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	// It is the end of the archive only where all repositories answered and one at least has an archive of this cluster:
	// recovery must not take an outage for it, nor the empty directory that a lost mount leaves.
	answered := false
	for _, err := range errs {
		answered = answered || errors.Is(err, engine.ErrWALMissing)
		if !errors.Is(err, engine.ErrWALMissing) && !errors.Is(err, engine.ErrStanzaMissing) && !errors.Is(err, engine.ErrArchiveMismatch) {
			return &unavailableError{errors.Join(errs...)}
		}
	}
	if !answered {
		return &unavailableError{errors.Join(errs...)}
	}
	return errs[0]
}

// getSources are the repositories that archive-get looks in. Directories may be named by their paths alone.
func (f *stanzaFlags) getSources(env *Env, opts map[string]string) ([]source, error) {
	if !f.plain(env) {
		for n := 2; n <= maxRepos; n++ {
			name := "repo" + strconv.Itoa(n) + "-path"
			if v, ok := opts[name]; ok {
				f.repoWords = append(f.repoWords, "--"+name+"="+v)
			}
		}
		f.repoPath = opts["repo1-path"]
		return f.sources(env)
	}
	var all []source
	for n := 1; n <= maxRepos; n++ {
		path, ok := opts["repo"+strconv.Itoa(n)+"-path"]
		if !ok {
			continue
		}
		f.repoPath = path
		src, err := f.source(env, nil, 1)
		if err != nil {
			return nil, err
		}
		all = append(all, src)
	}
	if len(all) == 0 {
		return nil, &usageError{"--repo1-path is missing"}
	}
	return all, nil
}

// unavailableError ends recovery instead of letting it go on with less WAL than there is: PostgreSQL aborts on exit codes
// above 125.
type unavailableError struct{ err error }

func (e *unavailableError) Error() string { return e.err.Error() }
func (e *unavailableError) Unwrap() error { return e.err }
