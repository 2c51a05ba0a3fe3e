package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/backrest"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// backrestRun is one command line under the name pgbackrest.
type backrestRun struct {
	env     *Env
	c       *backrest.Config
	log     *backrestLog
	verb    string     // the command as the log names it; "": it has not begun
	level   int        // of the lines that say when it began and ended
	began   time.Time  // of verb
	version pg.Version // of pg-version-force; 0: read from the cluster
	umask   int        // that holds for files of the repository
}

// quietCommands log their beginning and end at the level debug: what they print is for programs.
const quietCommands = " help info manifest repo-get repo-ls version "

// backrestMain answers to pgBackRest's command line, environment and configuration files, with its log and exit codes.
func backrestMain(ctx context.Context, env *Env) int {
	r := &backrestRun{env: env, log: newBackrestLog(env), began: env.Now()}
	err := r.parse()
	if err == nil && (r.c.Help || r.c.Command.String() == "version") {
		return r.helpOrVersion()
	}
	if err == nil {
		r.level = logInfo
		if strings.Contains(quietCommands, " "+r.c.Command.String()+" ") {
			r.level = logDebug
		}
		r.verb = r.c.Command.String()
		r.begin(r.c.Words())
		err = r.settle()
		if err == nil {
			err = r.takePlace()
		}
		if err == nil {
			err = r.do(ctx)
		}
	}
	code := backrestCode(err)
	end := fmt.Sprintf("aborted with exception [%03d]", code)
	var quiet *quietExit
	if errors.As(err, &quiet) { // what was asked for is not there, which is an answer and not a failure
		r.log.at(logInfo, err.Error())
		code, err = quiet.code, nil
	} else if err != nil {
		r.log.logf(logError, "[%03d]: %s", code, err)
	}
	if err == nil {
		end = r.success()
	}
	if r.verb != "" {
		r.log.logf(r.level, "%s command end: %s", r.verb, end)
	}
	if err := r.log.close(); err != nil {
		fmt.Fprintf(env.Stderr, "WARN: close log file: %v\n", err)
	}
	return code
}

func (r *backrestRun) success() string {
	return fmt.Sprintf("completed successfully (%dms)", r.env.Now().Sub(r.began).Milliseconds())
}

// parse reads the configuration. Warnings of the configuration are logged where it says; what is refused is named before
// what is missing.
func (r *backrestRun) parse() error {
	c, err := backrest.Parse(r.env.Args[1:], r.env.Environ(), os.DirFS("/"))
	if err != nil {
		return err
	}
	r.c = c
	if c.Help || c.Command.String() == "version" {
		return nil
	}
	for _, w := range c.Warnings {
		r.log.at(logWarn, w)
	}
	if err := r.complete(); err != nil {
		return err
	}
	r.neutralUmask()
	r.log.configure(c)
	return nil
}

// complete makes sure that the command can do all that it was told, and was told all that it needs.
func (r *backrestRun) complete() error {
	if err := refuse(r.c); err != nil {
		return err
	}
	if r.c.Command.String() == "check" && r.c.String("stanza", 0) == "" {
		return nil // of every stanza, each by itself
	}
	return r.c.Complete()
}

// begin logs the first line of a command.
func (r *backrestRun) begin(options []string) {
	words := ""
	if len(r.c.Params) > 0 {
		words = " [" + strings.Join(r.c.Params, ", ") + "]"
	}
	r.log.logf(r.level, "%s command begin %s:%s %s", r.verb, Version, words, strings.Join(options, " "))
}

// next ends the command in the log and begins another one that it leads to.
func (r *backrestRun) next(command string) {
	r.log.logf(r.level, "%s command end: %s", r.verb, r.success())
	r.verb, r.began = command, r.env.Now()
	r.begin(r.c.WordsFor(command))
}

// do runs the command.
func (r *backrestRun) do(ctx context.Context) error {
	switch r.c.Command.String() {
	case "archive-push":
		return r.archivePush(ctx)
	case "archive-get":
		return r.archiveGet(ctx)
	case "backup":
		return r.backup(ctx)
	case "restore":
		return r.restore(ctx)
	case "info":
		return r.info(ctx)
	case "check":
		return r.check(ctx)
	case "verify":
		return r.verify(ctx)
	case "stanza-create", "stanza-upgrade":
		return r.stanzaCreate(ctx)
	case "stanza-delete":
		return r.stanzaDelete(ctx)
	case "expire":
		return r.expire(ctx)
	case "annotate":
		return r.annotate(ctx)
	case "start", "stop":
		return r.startStop()
	case "repo-ls":
		return r.repoLs(ctx)
	case "repo-get":
		return r.repoGet(ctx)
	case "manifest":
		return r.manifest(ctx)
	}
	return coded(codeOption, "command '"+r.c.Command.String()+"' is not done by Holdfast")
}

// repoKeys are the repositories a command works on: the one that --repo names; for a backup else the first; else all.
func repoKeys(c *backrest.Config) []int {
	keys := c.Keys(backrest.Repo)
	if n := int(c.Int("repo", 0)); n > 0 && slices.Contains(keys, n) {
		return []int{n}
	}
	if name := c.Command.String(); name == "backup" || name == "manifest" || name == "repo-ls" || name == "repo-get" {
		return keys[:1]
	}
	return keys
}

// storage opens the repository of that number. Run by root, new files belong to whom the data directory belongs to.
func (r *backrestRun) storage(key int) (storage.Storage, error) {
	return r.storageFor(key, r.owner(key))
}

// storageFor opens it for another owner of new files.
func (r *backrestRun) storageFor(key int, owner *durable.Owner) (storage.Storage, error) {
	if kind := r.c.String("repo-type", key); r.umask != 0 && isDirectory(kind) {
		return openPosixAs(r.c.String("repo-path", key), storage.PosixOptions{Owner: owner, Mount: kind == "cifs",
			FileMode: 0o640 &^ fs.FileMode(r.umask), DirMode: 0o750 &^ fs.FileMode(r.umask)})
	}
	return openRepo(r.env, r.c, key, owner)
}

// owner is whom new files belong to; nil: us.
func (r *backrestRun) owner(key int) *durable.Owner {
	if os.Geteuid() != 0 {
		return nil
	}
	var at []action.Cluster
	for _, n := range localServers(r.c) {
		if d := r.c.String("pg-path", n); d != "" {
			at = append(at, action.Cluster{DataDir: d})
		}
	}
	if !isDirectory(r.c.String("repo-type", key)) {
		return repositoryOwner(at, postgresUser()) // of lock files; nobody owns a bucket here
	}
	return repositoryOwner(append(at, action.Cluster{DataDir: r.c.String("repo-path", key)}), nil)
}

// pass is the passphrase of the repository of that number.
func (r *backrestRun) pass(key int) repo.Secret {
	if r.c.String("repo-cipher-type", key) == "none" {
		return ""
	}
	return repo.Secret(r.c.String("repo-cipher-pass", key))
}

// stanza opens a stanza on the repository of that number.
func (r *backrestRun) stanza(name string, key int) (*engine.Stanza, error) {
	st, err := r.storage(key)
	if err != nil {
		return nil, err
	}
	tests := newListener(r.env, false, nil) // the steps that tests stop or die at
	tests.quiet = true
	s, err := engine.New(engine.Options{Stanza: name, Storage: st, RepoKey: key, Pass: r.pass(key), LockDir: r.c.String("lock-path", 0), LockOwner: r.owner(key),
		PGVersion: r.version, NoSymlinks: !r.c.Bool("repo-symlink", key),
		ExecID: r.env.ExecID, Version: programVersion(), Now: r.env.Now, Events: func(e engine.Event) {
			r.log.on(e)
			tests.on(e)
		}})
	if err != nil {
		return nil, &codeError{codeValue, err}
	}
	return s, nil
}

// countedCommands end with the code for "some repository failed" even if there is but one.
const countedCommands = " annotate expire "

// eachRepo does something on every repository of the command. One that fails is logged and does not keep the others from
// their turn; if any failed the command ends with code, or for a single repository, where the original does so too, with
// that of its error.
func (r *backrestRun) eachRepo(ctx context.Context, code int, do func(ctx context.Context, key int, s *engine.Stanza) error) error {
	keys := repoKeys(r.c)
	failed := 0
	for _, key := range keys {
		s, err := r.stanza(r.c.String("stanza", 0), key)
		if err == nil {
			err = do(ctx, key, s)
		}
		if err == nil {
			continue
		}
		here := errors.Is(err, engine.ErrStopped) || errors.Is(err, repo.ErrLocked) // whatever the repository
		if len(keys) == 1 && (here || !strings.Contains(countedCommands, " "+r.c.Command.String()+" ")) || ctx.Err() != nil {
			return err
		}
		r.log.logf(logError, "[%03d]: repo%d: %v", backrestCode(err), key, err)
		failed++
	}
	if failed > 0 {
		return coded(code, fmt.Sprintf("%s command encountered %d error(s), see above", r.c.Command, failed))
	}
	return nil
}

// self is the program as restore_command should name it: by the name it was run under, since that is what it answers to.
func (r *backrestRun) self() string {
	name := r.env.Args[0]
	if !strings.Contains(name, "/") {
		for _, dir := range filepath.SplitList(r.env.Getenv("PATH")) {
			if info, err := os.Stat(filepath.Join(dir, name)); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				name = filepath.Join(dir, name)
				break
			}
		}
	}
	if abs, err := filepath.Abs(name); err == nil && strings.Contains(name, "/") {
		return abs
	}
	return r.env.Exe
}

// archiveGetCommand is the restore_command that a restore under this name writes.
func (r *backrestRun) archiveGetCommand() string {
	words := []string{shellQuote(r.self())}
	for _, w := range r.c.Forward("archive-get") {
		words = append(words, shellQuote(w))
	}
	return strings.Join(append(words, "archive-get", "%f", `"%p"`), " ")
}
