package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
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
	env *Env
	c   *backrest.Config
	log *backrestLog
}

// quietCommands log their beginning and end at the level debug: what they print is for programs.
const quietCommands = " help info repo-get repo-ls version "

// backrestMain answers to pgBackRest's command line, environment and configuration files, with its log and exit codes.
func backrestMain(ctx context.Context, env *Env) int {
	r := &backrestRun{env: env, log: newBackrestLog(env)}
	began, begun := env.Now(), logOff // begun is the level of the lines that say so
	err := r.parse()
	if err == nil && (r.c.Help || r.c.Command.String() == "version") {
		return r.helpOrVersion()
	}
	if err == nil {
		begun = logInfo
		if strings.Contains(quietCommands, " "+r.c.Command.String()+" ") {
			begun = logDebug
		}
		r.begin(begun)
		err = r.do(ctx)
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
		end = fmt.Sprintf("completed successfully (%dms)", env.Now().Sub(began).Milliseconds())
	}
	if begun != logOff {
		r.log.logf(begun, "%s command end: %s", r.c.Command, end)
	}
	if err := r.log.close(); err != nil {
		fmt.Fprintf(env.Stderr, "WARN: close log file: %v\n", err)
	}
	return code
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
	if err := refuse(c); err != nil {
		return err
	}
	if err := c.Complete(); err != nil {
		return err
	}
	r.log.configure(c)
	return nil
}

func (r *backrestRun) begin(level int) {
	words := ""
	if len(r.c.Params) > 0 {
		words = " [" + strings.Join(r.c.Params, ", ") + "]"
	}
	r.log.logf(level, "%s command begin %s:%s %s", r.c.Command, Version, words, strings.Join(r.c.Words(), " "))
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
	}
	return coded(codeOption, "command '"+r.c.Command.String()+"' is not done by Holdfast")
}

// repoKeys are the repositories a command works on: the one that --repo names; for a backup else the first; else all.
func repoKeys(c *backrest.Config) []int {
	keys := c.Keys(backrest.Repo)
	if n := int(c.Int("repo", 0)); n > 0 && slices.Contains(keys, n) {
		return []int{n}
	}
	if name := c.Command.String(); name == "backup" || name == "repo-ls" || name == "repo-get" {
		return keys[:1]
	}
	return keys
}

// storage opens the repository of that number. Run by root, new files belong to whom the data directory belongs to.
func (r *backrestRun) storage(key int) (storage.Storage, error) {
	return openRepo(r.env, r.c, key, r.owner(key))
}

// owner is whom new files belong to; nil: us.
func (r *backrestRun) owner(key int) *durable.Owner {
	if os.Geteuid() != 0 {
		return nil
	}
	var at []action.Cluster
	for _, n := range r.c.Keys(backrest.PG) {
		if d := r.c.String("pg-path", n); d != "" {
			at = append(at, action.Cluster{DataDir: d})
		}
	}
	if r.c.String("repo-type", key) != "posix" {
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
		ExecID: r.env.ExecID, Version: programVersion(), Now: r.env.Now, Events: func(e engine.Event) {
			r.log.on(e)
			tests.on(e)
		}})
	if err != nil {
		return nil, &codeError{codeValue, err}
	}
	return s, nil
}

// eachRepo does something on every repository of the command. One that fails is logged and does not keep the others from
// their turn; if any failed the command ends with code, or for a single repository with that of its error.
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
		if len(keys) == 1 || ctx.Err() != nil {
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

// conn is how the server of pg<key> is reached. What is not set is as PostgreSQL's own
// programs have it: the user is PGUSER, or who runs us.
func (r *backrestRun) conn(key int) pg.ConnOptions {
	o := pg.ConnOptions{Host: r.c.String("pg-socket-path", key), Port: int(r.c.Int("pg-port", key)), User: r.c.String("pg-user", key), Database: r.c.String("pg-database", key)}
	if o.User == "" {
		o.User = r.env.Getenv("PGUSER")
	}
	if o.User == "" {
		o.User = "postgres" // for root, who has no role as a rule
		if u, err := user.Current(); err == nil && os.Geteuid() != 0 {
			o.User = u.Username
		}
	}
	if o.Host == "" {
		o.Host = "/var/run/postgresql"
	}
	return o
}

// servers are the primary and, if there is one, a standby among pg1-…, pg2-…; 0 is none.
type servers struct{ primary, standby int }

// findServers asks each server whether it is in recovery. One that does not answer is a warning as long as a primary does.
func (r *backrestRun) findServers(ctx context.Context) (servers, error) {
	var s servers
	var errs []error
	for _, key := range r.c.Keys(backrest.PG) {
		conn, err := pg.Connect(ctx, r.conn(key))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		facts, err := conn.Facts(ctx)
		switch err = errors.Join(err, conn.Close()); {
		case err != nil:
			errs = append(errs, err)
		case facts.InRecovery && s.standby == 0:
			s.standby = key
		case !facts.InRecovery && s.primary != 0:
			return s, coded(codeConfig, fmt.Sprintf("pg%d and pg%d are both primaries\nHINT: remove one of them from the configuration.", s.primary, key))
		case !facts.InRecovery:
			s.primary = key
		}
	}
	if s.primary == 0 && len(errs) > 0 {
		return s, &codeError{codeConnect, errors.Join(errs...)}
	}
	for _, err := range errs {
		r.log.at(logWarn, err.Error())
	}
	if s.primary == 0 {
		return s, coded(codeConnect, "every server that answers is a standby: no primary among the pg-path options\nHINT: add the primary's pg-path, or run this on the primary.")
	}
	return s, nil
}

// helpOrVersion prints what is asked for.
func (r *backrestRun) helpOrVersion() int {
	text := "Holdfast " + Version + "\n"
	if r.c.Help {
		text = r.helpText()
	}
	if _, err := io.WriteString(r.env.Stdout, text); err != nil {
		return codeUnknown
	}
	return exitOK
}

func (r *backrestRun) helpText() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Holdfast %s, under the name pgbackrest\n\n", Version)
	command := r.c.Command
	if command == 0 {
		b.WriteString("usage: pgbackrest [options] COMMAND\n\ncommands:\n")
		for _, n := range backrest.Commands() {
			b.WriteString("    " + n + "\n")
		}
		b.WriteString("\n\"pgbackrest help COMMAND\" lists its options; \"pgbackrest help COMMAND OPTION\" tells about one.\n")
		return b.String()
	}
	fmt.Fprintf(&b, "options of %s:\n\n", command)
	for _, o := range backrest.Options() {
		if o.On&command == 0 || len(r.c.Params) > 0 && o.Name != r.c.Params[0] {
			continue
		}
		fmt.Fprintf(&b, "  --%-30s %s\n", o.Name, optionHelp(&o, command))
	}
	return b.String()
}

// optionHelp says of an option what it takes and what becomes of it.
func optionHelp(o *backrest.Option, command backrest.Command) string {
	var parts []string
	if v := o.Values(command); v != "" {
		parts = append(parts, v)
	}
	if d := o.DefaultFor(command); d != "" {
		parts = append(parts, "default "+d)
	}
	if slices.Contains(strings.Fields(neutralOptions), o.Name) {
		parts = append(parts, "taken, and changes nothing here")
	}
	for _, x := range refusedOptions {
		prefix, family := strings.CutSuffix(x.name, "*")
		if x.name == o.Name || family && strings.HasPrefix(o.Name, prefix) {
			parts = append(parts, "not done by Holdfast: "+x.instead)
		}
	}
	return strings.Join(parts, "; ")
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

// took is a span as results name it.
func took(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) + "ms" }
