package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

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
	if !r.c.Bool("compress", 0) {
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
	if done, err := r.archiveAsync(ctx); done || err != nil {
		return err
	}
	o := engine.PushOptions{Path: r.c.Params[0], DataDir: r.c.String("pg-path", 1), HeaderCheck: r.c.Bool("archive-header-check", 0)}
	if o.DataDir == "" && !filepath.IsAbs(o.Path) {
		return coded(codeRequired, "option 'pg1-path' must be specified when relative wal paths are used\nHINT: is %f passed to archive-push instead of %p?")
	}
	var err error
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
	err = r.eachRepo(ctx, codeCommand, func(ctx context.Context, _ int, s *engine.Stanza) error {
		_, err := s.Push(ctx, o)
		return err
	})
	if err == nil {
		r.log.logf(logInfo, "pushed WAL file '%s' to the archive", name)
	}
	return err
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
		return coded(codeParam, "extra parameters found")
	}
	shortRun()
	if done, err := r.archiveAsync(ctx); done || err != nil {
		return err
	}
	o := engine.GetOptions{Name: r.c.Params[0], Dest: r.c.Params[1], DataDir: r.c.String("pg-path", 1)}
	if !filepath.IsAbs(o.Dest) { // PostgreSQL runs restore_command in the data directory, which may have another name
		dir, err := r.env.Getwd()
		if err != nil {
			return err
		}
		o.Dest = absolute(dir, o.Dest)
	}
	missing := 0
	var texts []string
	var first error
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
			continue
		case first == nil:
			first = err
		}
		texts = append(texts, fmt.Sprintf("repo%d: %v", key, err))
	}
	if missing == len(keys) {
		return &quietExit{1, errors.New("unable to find " + o.Name + " in the archive")} // PostgreSQL ends recovery, or waits
	}
	if len(keys) == 1 {
		return first
	}
	return &codeError{codeRepo, fmt.Errorf("unable to get %s:\n%s", o.Name, strings.Join(texts, "\n"))}
}
