package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"time"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
	"holdfast/internal/repo"
)

// set is the label that --set names; empty: none was named.
func (r *backrestRun) set() (repo.Label, error) {
	v := r.c.String("set", 0)
	if v == "" || v == "latest" {
		return "", nil
	}
	label, err := repo.ParseLabel(v)
	if err != nil {
		return "", coded(codeValue, "'"+v+"' is not a valid backup label format")
	}
	return label, nil
}

// expire removes what retention does not ask for, from every repository.
func (r *backrestRun) expire(ctx context.Context) error {
	if _, err := r.set(); err != nil {
		return err
	}
	return r.eachRepo(ctx, codeCommand, func(ctx context.Context, key int, s *engine.Stanza) error { return r.expireOn(ctx, key, s) })
}

func (r *backrestRun) expireOn(ctx context.Context, key int, s *engine.Stanza) error {
	c := r.c
	o := engine.ExpireOptions{Full: int(c.Int("repo-retention-full", key)), FullType: engine.RetentionType(c.String("repo-retention-full-type", key)),
		Diff: int(c.Int("repo-retention-diff", key)), Archive: int(c.Int("repo-retention-archive", key)), ArchiveType: repo.BackupType(c.String("repo-retention-archive-type", key))}
	if c.String("repo-retention-history", key) != "" {
		days := int(c.Int("repo-retention-history", key))
		o.HistoryDays = &days
	}
	dry := false
	if c.Command.String() == "expire" { // after a backup these do not exist
		var err error
		if o.Set, err = r.set(); err != nil {
			return err
		}
		o.Oldest, o.ArchiveBefore, dry = c.Bool("oldest", 0), c.String("archive-expire-before", 0), c.Bool("dry-run", 0)
	}
	plan, err := s.PlanExpire(ctx, o)
	if err != nil {
		return err
	}
	if dry {
		r.logExpire(plan)
		return nil
	}
	r.log.first = func() { r.logExpire(plan) } // when nobody else has the lock
	return plan.Run(ctx)
}

func (r *backrestRun) logExpire(p *engine.ExpirePlan) {
	head := fmt.Sprintf("repo%d: ", p.Repo)
	for _, w := range p.Warnings {
		r.log.at(logWarn, head+w)
	}
	for _, b := range p.Backups {
		r.log.at(logInfo, head+"expire backup "+string(b.Label)+" ("+b.Reason+")")
	}
	for _, d := range p.Directories {
		r.log.at(logInfo, head+"remove directory "+string(d.Label)+" ("+d.Reason+")")
	}
	for _, w := range p.WAL {
		if len(w.Ranges) == 0 {
			r.log.logf(logInfo, "%s%s remove archive directory %s, %d files", head, w.ArchiveID, w.Dir, w.Files)
		}
		for _, seg := range w.Ranges {
			r.log.logf(logInfo, "%s%s remove archive, start = %s, stop = %s", head, w.ArchiveID, seg.First, seg.Last)
		}
	}
	for _, h := range p.History {
		r.log.at(logInfo, head+"remove history manifest "+string(h))
	}
}

// annotate sets notes on a backup, in every repository that has it.
func (r *backrestRun) annotate(ctx context.Context) error {
	label, err := r.set()
	if err != nil {
		return err
	}
	found := false
	var missing error
	err = r.eachRepo(ctx, codeCommand, func(ctx context.Context, key int, s *engine.Stanza) error {
		err := s.Annotate(ctx, label, r.c.Hash("annotation", 0))
		if errors.Is(err, engine.ErrNoBackup) { // of several repositories one may not have it
			missing = err
			return nil
		}
		found = found || err == nil
		return err
	})
	if err == nil && !found {
		return missing
	}
	return err
}

// stanzaDelete removes the stanza from one repository, and its stop file. One that is not there needs none.
func (r *backrestRun) stanzaDelete(ctx context.Context) error {
	o := engine.DeleteOptions{DataDir: r.dataDir(), Force: r.c.Bool("force", 0)}
	return r.eachRepo(ctx, codeCommand, func(ctx context.Context, key int, s *engine.Stanza) error {
		if file := repo.StopPath(r.c.String("lock-path", 0), s.Name()); !exists(file) {
			if absent, err := s.Absent(ctx); absent || err != nil {
				return err
			}
			return coded(codeMissing, "stop file does not exist for stanza '"+s.Name()+"'\nHINT: has the pgbackrest stop command been run on this server for this stanza?")
		}
		return s.Delete(ctx, o)
	})
}

func exists(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}

// startStop writes or removes a stop file.
func (r *backrestRun) startStop() error {
	dir, stanza := r.c.String("lock-path", 0), r.c.String("stanza", 0)
	which := " for all stanzas"
	if stanza != "" {
		which = " for stanza " + stanza
	}
	if r.c.Command.String() == "start" {
		res, err := engine.Start(dir, stanza)
		if err != nil {
			return err
		}
		if res.Already && stanza == "" {
			which = ""
		}
		if res.Already {
			r.log.at(logWarn, "stop file does not exist"+which)
		}
		if res.Also != "" {
			r.log.at(logWarn, "stop file still exists: "+res.Also+"\nHINT: run pgbackrest start without --stanza.")
		}
		return nil
	}
	owner := postgresUser()
	if keys := r.c.Keys(backrest.Repo); len(keys) > 0 && r.owner(keys[0]) != nil {
		owner = r.owner(keys[0])
	}
	res, err := engine.Stop(engine.StopOptions{LockDir: dir, LockOwner: owner, Stanza: stanza, Force: r.c.Bool("force", 0)})
	if res != nil {
		if res.Already {
			r.log.at(logWarn, "stop file already exists"+which)
		}
		for _, pid := range res.Terminated {
			r.log.logf(logInfo, "sent term signal to process %d", pid)
		}
	}
	return err
}

// inRepo is a path that an operator gave as a name in the repository: it may be absolute.
func (r *backrestRun) inRepo(key int, name string) (string, error) {
	if !strings.HasPrefix(name, "/") {
		return name, nil
	}
	root := r.c.String("repo-path", key)
	rest, ok := strings.CutPrefix(name, root)
	if !ok || rest != "" && rest[0] != '/' {
		return "", coded(backrest.CodeParamInvalid, "absolute path '"+name+"' is not in base path '"+root+"'")
	}
	return strings.Trim(rest, "/"), nil
}

// repoLs lists a directory of the repository.
func (r *backrestRun) repoLs(ctx context.Context) error {
	key := repoKeys(r.c)[0]
	o := engine.RepoLsOptions{Recurse: r.c.Bool("recurse", 0), Descending: r.c.String("sort", 0) == "desc"}
	var err error
	switch len(r.c.Params) {
	case 0:
	case 1:
		if o.Path, err = r.inRepo(key, r.c.Params[0]); err != nil {
			return err
		}
	default:
		return coded(backrest.CodeParamInvalid, "only one path may be specified")
	}
	if f := r.c.String("filter", 0); f != "" {
		if o.Filter, err = regexp.Compile(f); err != nil {
			return coded(codeFormat, "--filter: "+err.Error())
		}
	}
	st, err := r.storage(key)
	if err != nil {
		return err
	}
	list, err := engine.RepoLs(ctx, st, o)
	if err != nil {
		return err
	}
	if r.c.String("output", 0) == "json" {
		return r.env.printCompactJSON(list)
	}
	var b bytes.Buffer
	for _, e := range list {
		if e.Name != "." || !e.Dir {
			b.WriteString(e.Name + "\n")
		}
	}
	_, err = b.WriteTo(r.env.Stdout)
	return err
}

// repoGet writes a file of the repository to standard output.
func (r *backrestRun) repoGet(ctx context.Context) error {
	if len(r.c.Params) != 1 {
		return coded(codeParam, "source file required")
	}
	key := repoKeys(r.c)[0]
	name, err := r.inRepo(key, r.c.Params[0])
	if err != nil {
		return err
	}
	st, err := r.storage(key)
	if err != nil {
		return err
	}
	err = engine.RepoGet(ctx, st, r.pass(key), name, engine.RepoGetOptions{Raw: r.c.Bool("raw", 0)}, r.env.Stdout)
	if r.c.Bool("ignore-missing", 0) && backrestCode(err) == codeMissing {
		return &quietExit{1, err}
	}
	return err
}

// manifest lists the files of a backup.
func (r *backrestRun) manifest(ctx context.Context) error {
	set, err := r.set()
	if err != nil {
		return err
	}
	s, err := r.stanza(r.c.String("stanza", 0), repoKeys(r.c)[0])
	if err != nil {
		return err
	}
	return s.ListManifest(ctx, r.env.Stdout, engine.ListManifestOptions{Set: set, File: r.c.String("filter", 0), Reference: r.c.String("reference", 0),
		JSON: r.c.String("output", 0) == "json", Local: time.Local})
}
