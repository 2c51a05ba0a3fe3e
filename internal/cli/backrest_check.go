package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// checkAll runs check for every stanza that the configuration has a section for. One that fails, unlike in the original, does not
// keep the others from their turn.
func (r *backrestRun) checkAll(ctx context.Context) error {
	if len(r.c.Stanzas) == 0 {
		r.log.at(logWarn, "no stanzas found to check\nHINT: are there non-empty stanza sections in the configuration?")
	}
	var failed []error
	for _, name := range r.c.Stanzas {
		r.log.logf(logInfo, "check stanza '%s'", name)
		err := r.checkNamed(ctx, name)
		if ctx.Err() != nil {
			return err
		}
		if err != nil && !strings.Contains(err.Error(), "stanza "+name) {
			err = fmt.Errorf("stanza %s: %w", name, err)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// checkNamed checks one of several stanzas, with what holds for it.
func (r *backrestRun) checkNamed(ctx context.Context, name string) error {
	c, err := backrest.Parse(append(r.env.Args[1:len(r.env.Args):len(r.env.Args)], "--stanza="+name), r.env.Environ(), os.DirFS("/"))
	if err != nil {
		return err
	}
	one := &backrestRun{env: r.env, c: c, log: r.log, umask: r.umask}
	if err := one.complete(); err != nil {
		return err
	}
	if err := one.settle(); err != nil {
		return err
	}
	return one.check(ctx)
}

// check proves that a WAL segment arrives in every repository. On the host of a standby, which can't be made to archive,
// it looks whether the repositories are those of its cluster.
func (r *backrestRun) check(ctx context.Context) error {
	if r.c.String("stanza", 0) == "" {
		return r.checkAll(ctx)
	}
	from, err := r.findServers(ctx)
	if err != nil {
		return err
	}
	switch {
	case from.primary == 0 && from.standby == 0:
		return coded(codeConfig, "no database found\nHINT: check indexed pg-path/pg-host configurations")
	case from.primary == 0 && len(r.c.Keys(backrest.PG)) > 1:
		return coded(codeConfig, "primary database not found\nHINT: check indexed pg-path/pg-host configurations")
	case from.standby == 0 && r.c.String("backup-standby", 0) != "n":
		r.log.at(logWarn, "option 'backup-standby' is enabled but standby is not properly configured")
	}
	if from.standby != 0 {
		if err := r.checkStandby(ctx, from.standby); err != nil {
			return err
		}
	}
	if from.primary == 0 {
		return nil
	}
	o := engine.CheckOptions{Conn: r.conn(from.primary), DataDir: r.c.String("pg-path", from.primary), ArchiveTimeout: r.c.Duration("archive-timeout", 0),
		SkipSettings: !r.c.Bool("archive-check", 0), RefuseAlways: r.c.Bool("archive-mode-check", 0)}
	if r.c.String("pg-host", from.primary) != "" {
		o.DataDir = ""
	}
	return r.eachRepo(ctx, codeCommand, func(ctx context.Context, key int, s *engine.Stanza) error {
		r.log.logf(logInfo, "check repo%d configuration (primary)", key)
		res, err := s.Check(ctx, o)
		if err == nil {
			r.log.logf(logInfo, "WAL segment %s successfully archived to '%s/%s' on repo%d", res.Segment, r.c.String("repo-path", key), res.Object, key)
		}
		return err
	})
}

func (r *backrestRun) checkStandby(ctx context.Context, at int) error {
	o := engine.CheckOptions{Conn: r.conn(at), DataDir: r.c.String("pg-path", at), Standby: true}
	err := r.eachRepo(ctx, codeCommand, func(ctx context.Context, key int, s *engine.Stanza) error {
		r.log.logf(logInfo, "check repo%d (standby)", key)
		_, err := s.Check(ctx, o)
		return err
	})
	if err == nil {
		r.log.at(logInfo, "switch wal not performed because this is a standby")
	}
	return err
}

// verify reads everything. Findings are an error, which the original only logs.
func (r *backrestRun) verify(ctx context.Context) error {
	set, err := r.set()
	if err != nil {
		return err
	}
	findings := 0
	err = r.eachRepo(ctx, codeRepo, func(ctx context.Context, key int, s *engine.Stanza) error {
		res, err := s.Verify(ctx, engine.VerifyOptions{Set: set, ProcessMax: int(r.c.Int("process-max", 0))})
		if res == nil {
			return err
		}
		for _, f := range res.Findings {
			r.log.logf(logError, "repo%d: %s", key, f)
		}
		for _, f := range res.Unread {
			r.log.logf(logWarn, "repo%d: could not be read: %s", key, f)
		}
		findings += len(res.Findings)
		r.log.logf(logInfo, "repo%d: %d backup(s), %d files and %d WAL segments checked, %s read", key, len(res.Backups), res.Files, res.Segments, engine.Size(res.Bytes))
		if r.c.String("output", 0) != "text" {
			return err
		}
		_, werr := r.env.Stdout.Write([]byte(verifyText(s.Name(), res, r.c.Bool("verbose", 0))))
		return errors.Join(werr, err)
	})
	if findings > 0 {
		err = errors.Join(&findingsError{findings}, err)
	}
	return err
}

// verifyText says what a verification saw as the original does: what is wrong or, with verbose, all of it.
func verifyText(stanza string, res *engine.VerifyResult, verbose bool) string {
	if len(res.Findings) == 0 && len(res.Unread) == 0 && !verbose {
		return ""
	}
	status := "ok"
	if len(res.Findings) > 0 || len(res.Unread) > 0 {
		status = "error"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "stanza: %s\nstatus: %s\n", stanza, status)
	damaged := func(n int) {
		if n > 0 || verbose {
			fmt.Fprintf(&b, "    missing or damaged: %d\n", n)
		}
	}
	for i, a := range res.Archives {
		if i > 0 && res.Archives[i-1].ArchiveID == a.ArchiveID {
			continue // counted with the first range of this archive
		}
		bad, total := 0, 0
		for _, f := range res.Findings {
			if strings.HasPrefix(f.Object, repo.ArchiveDir(stanza)+"/"+a.ArchiveID+"/") {
				bad++
			}
		}
		for _, other := range res.Archives {
			if other.ArchiveID == a.ArchiveID {
				total += other.Segments
			}
		}
		if bad > 0 || verbose {
			fmt.Fprintf(&b, "  archiveId: %s, total WAL checked: %d, total valid WAL: %d\n", a.ArchiveID, total, max(total-bad, 0))
			damaged(bad)
		}
	}
	for _, v := range res.Verdicts {
		if v.Damage == 0 && (v.Status == engine.VerdictValid || v.Status == engine.VerdictInProgress) && !verbose {
			continue
		}
		fmt.Fprintf(&b, "  backup: %s, status: %s, total files checked: %d, total valid files: %d\n", v.Label, strings.ReplaceAll(v.Status, " ", "-"), v.Files-v.Unread, v.Files-v.Damage-v.Unread)
		if v.Files > 0 {
			damaged(v.Damage)
		}
	}
	for _, f := range res.Findings {
		fmt.Fprintf(&b, "  %s\n", f)
	}
	for _, f := range res.Unread {
		fmt.Fprintf(&b, "  could not be read: %s\n", f)
	}
	return b.String()
}
