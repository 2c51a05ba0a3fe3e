package cli

import (
	"fmt"
	"path/filepath"

	"holdfast/internal/action"
	"holdfast/internal/conf"
	"holdfast/internal/probackup"
	"holdfast/internal/repo"
)

// wireProbackup: the earlier tool. It is wired when the other one is in use, too: sets that it made are restored, verified and
// deleted by it.
func wireProbackup(env *Env, w *wired, o *action.Options) error {
	v := w.values
	pb := &action.ProbackupOptions{Active: !v.Bool(conf.KeyEnablePgbackrest), ApartDir: w.in.Resolve(v.Path(conf.KeyProbackupDir)),
		StagingDir: filepath.Join(w.in.BackupDir(), "backup/pg_probackup"), Env: toolEnv(env), FullEvery: 1, Quote: shellQuote}
	if pass := env.Getenv("PGPASSFILE"); pass != "" {
		pb.Env = append(pb.Env, "PGPASSFILE="+pass)
	}
	for _, in := range []string{pb.StagingDir, w.in.Resolve(v.Path(conf.KeyRepoDir)), filepath.Join(w.in.BackupDir(), "backup/pgbackrest")} { // what is in the first is removed when a tarball has it
		if pb.Active && (within(pb.ApartDir, in) || within(in, pb.ApartDir)) {
			return &refusedError{fmt.Sprintf("pgsql.pg_probackup.dir_name is %s, and %s is for something else: name a directory of its own: alation_conf pgsql.pg_probackup.dir_name -s DIRECTORY", pb.ApartDir, in)}
		}
	}
	if pb.Active && v.Bool(conf.KeyRedundancyEnabled) { // alation_conf refuses to set both; a file may have been edited
		return &refusedError{"pgsql.pgbackrest.redundancy.enabled is True, and a backup catalog of pg_probackup is not copied; run: alation_conf pgsql.pgbackrest.redundancy.enabled -s False"}
	}
	if v.Bool(conf.KeyIncrementalEnabled) {
		pb.FullEvery = v.Int(conf.KeyIncrementalFull)
	}
	if o.Compress != repo.None { // of its kinds only zlib is also one for WAL
		pb.Compression = 1
		if o.Compress == repo.GZ {
			pb.Compression = probackup.Compression(max(o.Level, 0))
		}
	}
	named := ""
	if path := v.Path(conf.KeyProbackupPath); path != "" {
		named = w.in.Resolve(path)
	}
	dirs := filepath.SplitList(env.Getenv("PATH"))
	pb.Find = func(version string) (string, error) {
		if named != "" {
			return named, nil
		}
		path, err := probackup.Find(dirs, version)
		if err != nil {
			err = fmt.Errorf("pgsql.pg_probackup.path is empty and %w: install it, or name the program with alation_conf pgsql.pg_probackup.path -s FILE", err)
		}
		return path, err
	}
	o.Probackup = pb
	return nil
}

// within says whether path is dir or lies in it.
func within(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
