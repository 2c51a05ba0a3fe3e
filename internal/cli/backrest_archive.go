package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// quietExit ends a command with a code of its own and no error in the log.
type quietExit struct {
	code int
	err  error
}

func (e *quietExit) Error() string { return e.err.Error() }
func (e *quietExit) Unwrap() error { return e.err }

// compression is the kind and level of the options compress, compress-type and compress-level.
func (r *backrestRun) compression() (repo.CompressType, int, error) {
	name := r.c.String("compress-type", 0)
	if !r.c.Bool("compress", 0) && !r.given("compress-type") {
		name = "none"
	}
	c, err := repo.ParseCompressType(name)
	if err != nil {
		return "", 0, &codeError{codeOption, err}
	}
	if r.c.String("compress-level", 0) == "" {
		return c, repo.DefaultLevel(c), nil
	}
	return c, int(r.c.Int("compress-level", 0)), nil
}

// archivePush stores one WAL file in every repository.
func (r *backrestRun) archivePush(ctx context.Context) error {
	if len(r.c.Params) != 1 {
		return coded(codeParam, "WAL segment to push required\nHINT: archive_command = 'pgbackrest --stanza=… archive-push %p'")
	}
	shortRun()
	path, err := r.walPath(r.c.Params[0])
	if err != nil {
		return err
	}
	if done, err := r.archiveAsync(ctx, path); done || err != nil {
		return err
	}
	o := engine.PushOptions{Path: path, DataDir: r.dataDir(), HeaderCheck: r.c.Bool("archive-header-check", 0), Again: !r.c.Bool("archive-mode-check", 0)}
	if o.Compress, o.Level, err = r.compression(); err != nil {
		return err
	}
	name := filepath.Base(o.Path)
	if limit := r.c.Int("archive-push-queue-max", 0); limit > 0 && o.DataDir != "" {
		full, err := engine.QueueExceeds(filepath.Join(o.DataDir, "pg_wal"), limit)
		if err != nil {
			return err
		}
		if full {
			r.log.logf(logWarn, "dropped WAL file '%s' because archive queue exceeded %s\nHINT: the archive has a gap from here on; make a new backup.", name, engine.Size(limit))
			return nil
		}
	}
	if err := r.pushEverywhere(ctx, o); err != nil {
		return err
	}
	r.log.logf(logInfo, "pushed WAL file '%s' to the archive", name)
	return nil
}

// walPath makes a path absolute that PostgreSQL gave.
func (r *backrestRun) walPath(path string) (string, error) {
	dir := r.dataDir()
	if dir == "" && !filepath.IsAbs(path) {
		return "", coded(codeRequired, "option 'pg1-path' must be specified when relative wal paths are used\nHINT: is %f passed to archive-push instead of %p?")
	}
	path, err := inDataDir(r.env, dir, path)
	if err != nil {
		return "", coded(codeValue, err.Error()+"\nHINT: is the PostgreSQL data_directory configured the same as the pg1-path option?")
	}
	return path, nil
}

// pushEverywhere stores one WAL file in every repository; one that fails does not keep the others from their turn.
func (r *backrestRun) pushEverywhere(ctx context.Context, o engine.PushOptions) error {
	keys := repoKeys(r.c)
	var failed []repoError
	conflict := false
	for _, key := range keys {
		s, err := r.stanza(r.c.String("stanza", 0), key)
		if err == nil {
			_, err = s.Push(ctx, o)
		}
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			failed = append(failed, repoError{key, err})
			conflict = conflict || errors.Is(err, engine.ErrArchiveConflict)
		}
	}
	switch {
	case len(failed) == 0:
		return nil
	case len(failed) == len(keys) && !slices.ContainsFunc(failed, func(f repoError) bool { return !unusable(f.err) }):
		return noRepository(failed)
	case len(keys) == 1:
		return failed[0].err
	}
	for _, f := range failed {
		r.log.logf(logError, "[%03d]: repo%d: %v", backrestCode(f.err), f.key, f.err)
	}
	code := codeCommand
	if conflict {
		code = codeDuplicate
	}
	return coded(code, fmt.Sprintf("%s command encountered %d error(s), see above", r.c.Command, len(failed)))
}

// repoError is what went wrong with one repository.
type repoError struct {
	key int
	err error
}

// unusable says that nothing could be done with a repository at all: the stanza is not in it, or can't be read.
func unusable(err error) bool {
	for _, e := range []error{engine.ErrStanzaMissing, engine.ErrPassphrase, repo.ErrFormat, repo.ErrChecksum, repo.ErrSealed} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// noRepository is the error of archive-push and archive-get when there is no repository to work with.
func noRepository(failed []repoError) error {
	lines := []string{"unable to find a valid repository:"}
	for _, f := range failed {
		lines = append(lines, fmt.Sprintf("repo%d: %v", f.key, f.err))
	}
	return coded(codeRepo, strings.Join(lines, "\n"))
}

// archiveGet fetches one WAL file from the first repository that has it.
func (r *backrestRun) archiveGet(ctx context.Context) error {
	switch len(r.c.Params) {
	case 0:
		return coded(codeParam, "WAL segment to get required")
	case 1:
		return coded(codeParam, "path to copy WAL segment required")
	case 2:
	default:
		return coded(backrest.CodeParamInvalid, "extra parameters found")
	}
	shortRun()
	dest, err := r.walPath(r.c.Params[1])
	if err != nil {
		return err
	}
	if done, err := r.archiveAsync(ctx, dest); done || err != nil {
		return err
	}
	o := engine.GetOptions{Name: r.c.Params[0], Dest: dest, DataDir: r.dataDir()}
	missing := 0
	var failed []repoError
	keys := repoKeys(r.c)
	for _, key := range keys {
		s, err := r.stanza(r.c.String("stanza", 0), key)
		if err == nil {
			err = s.Get(ctx, o)
		}
		switch {
		case err == nil:
			r.log.logf(logInfo, "found %s in the repo%d archive", o.Name, key)
			return nil
		case ctx.Err() != nil:
			return err
		case errors.Is(err, engine.ErrWALMissing):
			missing++
		default:
			failed = append(failed, repoError{key, err})
		}
	}
	if missing == len(keys) {
		return &quietExit{1, errors.New("unable to find " + o.Name + " in the archive")} // PostgreSQL ends recovery, or waits
	}
	if len(keys) == 1 && !unusable(failed[0].err) && !errors.Is(failed[0].err, engine.ErrArchiveMismatch) {
		return failed[0].err
	}
	return noRepository(failed)
}
