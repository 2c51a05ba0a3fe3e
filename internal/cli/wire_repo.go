package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// wireRepository: the separate repository, or the staging one beside the tarballs, how it is written, and by whom.
func wireRepository(env *Env, w *wired, o *action.Options) error {
	o.Mode, o.RepoDir = catalog.Apart, w.in.Resolve(w.values.Path(conf.KeyRepoDir))
	if w.values.Bool(conf.KeyPgbackupCompression) {
		o.Mode, o.RepoDir = catalog.Included, filepath.Join(w.in.BackupDir(), "backup/pgbackrest")
	}
	if o.Mode == catalog.Included && w.values.Bool(conf.KeyRedundancyEnabled) { // alation_conf refuses to set both; a file may have been edited
		return &refusedError{"pgsql.pgbackrest.redundancy.enabled is True, and with alation.backup_v2.pgbackup_compression there is no separate PostgreSQL backup that could be copied; run: alation_conf alation.backup_v2.pgbackup_compression -s False"}
	}
	var err error
	if o.Compress, err = repo.ParseCompressType(w.values.String(conf.KeyCompressType)); err != nil {
		return err
	}
	o.Level = w.values.Int(conf.KeyCompressLevel)
	if lo, hi := repo.LevelRange(o.Compress); o.Level < lo || o.Level > hi {
		o.Level = repo.DefaultLevel(o.Compress)
	}
	o.Bundle, o.Block = w.values.Bool(conf.KeyBundle), w.values.Bool(conf.KeyBlock)
	if o.Incremental, err = wireIncremental(w.values); err != nil {
		return err
	}
	o.ProcessMax = w.values.Int(conf.KeyProcessMax)
	if o.ProcessMax == 0 {
		o.ProcessMax = runtime.NumCPU()
	}
	pass, err := w.values.Secret(conf.KeyCipherPass)
	if err != nil {
		return err
	}
	o.RepoPass, o.PassFile = repo.Secret(pass.Reveal()), filepath.Join(w.in.ArchiverDir(), "cipher_pass")
	clusterOwner := serverUser(o.Clusters, o.Owner)
	o.OpenRepo = func(dir string) (storage.Storage, error) { return openPosix(dir, clusterOwner) }
	if os.Geteuid() == 0 {
		o.ServerOwner = clusterOwner
	}
	if path := w.values.Path(conf.KeyToolPath); path != "" {
		o.Tool = &action.ToolOptions{Path: w.in.Resolve(path), Dir: w.in.ArchiverDir(), Env: toolEnv(env)}
		if w.in.Root() != "/" { // the tool runs as PostgreSQL's user, who can't write where our own locks are
			o.PGLockDir = filepath.Join(w.in.ArchiverDir(), "lock")
		}
	}
	for i := range o.Clusters {
		wireCommands(w.programPath(env), &o.Clusters[i], o)
	}
	return wireProbackup(env, w, o)
}

// wireCommands: archive_command and restore_command are self-contained, since PostgreSQL's user need not read the parameter
// store, and PostgreSQL shows them to its users: a passphrase is in a file that they name.
func wireCommands(exe string, c *action.Cluster, o *action.Options) {
	passFile := ""
	if o.RepoPass != "" {
		passFile = o.PassFile
	}
	if o.Tool != nil {
		c.ArchiveCommand = toolCommand(o.Tool, c.Stanza, passFile, nil, "archive-push", `"%p"`)
		c.RestoreCommand = func(dirs ...string) string {
			return toolCommand(o.Tool, c.Stanza, passFile, dirs, "archive-get", "%f", `"%p"`)
		}
		return
	}
	c.ArchiveCommand = archiveCommand(exe, c.Stanza, o.RepoDir, c.DataDir, passFile, o.Compress, o.Level)
	c.RestoreCommand = func(dirs ...string) string {
		return restoreCommand(exe, c.Stanza, c.DataDir, passFile, directories(dirs))
	}
}

// toolEnv is what an external pgbackrest sees of our environment: nothing that would change what it does, so no PGBACKREST_…
// and no PG… of the operator's shell.
func toolEnv(env *Env) []string {
	var out []string
	for _, name := range []string{"PATH", "TZ", "LD_LIBRARY_PATH", "TMPDIR"} {
		if v := env.Getenv(name); v != "" {
			out = append(out, name+"="+v)
		}
	}
	return out
}

// toolCommand is a command line for PostgreSQL that runs the external pgbackrest. dirs (empty: the configured one) are the
// repositories, which all have the same passphrase; it comes from the file to the environment, never to the command line.
func toolCommand(t *action.ToolOptions, stanza, passFile string, dirs []string, verb string, args ...string) string {
	var words []string
	if passFile != "" {
		for i := range max(len(dirs), 1) {
			words = append(words, fmt.Sprintf(`PGBACKREST_REPO%d_CIPHER_PASS="$(cat %s)"`, i+1, shellQuote(passFile)))
		}
	}
	words = append(words, shellQuote(t.Path), shellQuote("--config="+t.Config(stanza)), "--stanza="+stanza)
	for i, d := range dirs {
		words = append(words, shellQuote(fmt.Sprintf("--repo%d-path=%s", i+1, d)))
		if passFile != "" {
			words = append(words, fmt.Sprintf("--repo%d-cipher-type=aes-256-cbc", i+1))
		}
	}
	return strings.Join(append(append(words, verb), args...), " ")
}

// programPath is the program that archive_command names: the one installed in the instance, else this one.
func (w *wired) programPath(env *Env) string {
	installed := filepath.Join(w.in.Dir(), "usr/local/lib/holdfast/holdfast")
	if info, err := os.Stat(installed); err == nil && info.Mode().IsRegular() {
		return installed
	}
	return env.Exe
}

// openPosix opens a repository directory; owner nil: this process's own.
func openPosix(dir string, owner *durable.Owner) (storage.Storage, error) {
	return openPosixAs(dir, storage.PosixOptions{Owner: owner})
}

// openPosixAs opens one whose files are made in a way of their own. Only root gives files away.
func openPosixAs(dir string, o storage.PosixOptions) (storage.Storage, error) {
	if os.Geteuid() != 0 {
		o.Owner = nil
	}
	return storage.NewPosix(dir, o)
}

// repositoryOwner: archive-push runs as PostgreSQL's user and has to write where we do.
func repositoryOwner(clusters []action.Cluster, fallback *durable.Owner) *durable.Owner {
	for _, c := range clusters {
		if info, err := os.Stat(c.DataDir); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok && st.Uid != 0 {
				return &durable.Owner{UID: int(st.Uid), GID: int(st.Gid)}
			}
		}
	}
	return fallback
}

// serverUser is whose the repositories of an instance are. Where the data directories are lost it goes by who owns the
// directories they were in, then by the instance's owner, who can't be root: PostgreSQL refuses to run as root.
func serverUser(clusters []action.Cluster, owner *durable.Owner) *durable.Owner {
	above := slices.Clone(clusters)
	for i := range above {
		above[i].DataDir = filepath.Dir(above[i].DataDir)
	}
	u := repositoryOwner(clusters, repositoryOwner(above, owner))
	if usual := postgresUser(); usual != nil && u != nil && u.UID == 0 {
		return usual
	}
	return u
}

// archiveCommand is archive_command with the built-in engine; passFile is empty without encryption.
func archiveCommand(exe, stanza, repoDir, dataDir, passFile string, c repo.CompressType, level int) string {
	words := []string{shellQuote(exe), "pg", "archive-push", "--stanza=" + stanza, shellQuote("--repo1-path=" + repoDir), shellQuote("--pg1-path=" + dataDir)}
	if passFile != "" {
		words = append(words, shellQuote("--repo1-cipher-pass-file="+passFile))
	}
	return strings.Join(append(words, "--compress-type="+string(c), "--compress-level="+strconv.Itoa(level), `"%p"`), " ")
}

// directories are the words for repositories that are directories.
func directories(dirs []string) []string {
	words := make([]string, len(dirs))
	for i, d := range dirs {
		words[i] = fmt.Sprintf("--repo%d-path=%s", i+1, d)
	}
	return words
}

// restoreCommand is restore_command with the built-in engine; repos are the words that name the repositories.
func restoreCommand(exe, stanza, dataDir, passFile string, repos []string) string {
	words := []string{shellQuote(exe), "pg", "archive-get", "--stanza=" + stanza, shellQuote("--pg1-path=" + dataDir)}
	if passFile != "" {
		words = append(words, shellQuote("--repo1-cipher-pass-file="+passFile))
	}
	for _, w := range repos {
		words = append(words, shellQuote(w))
	}
	return strings.Join(append(words, "%f", `"%p"`), " ")
}

// shellQuote leaves plain words as they are. A percent sign is doubled: PostgreSQL replaces %p, %f and %%.
func shellQuote(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if s != "" && strings.IndexFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("-_./=:,+@%", r)
	}) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
