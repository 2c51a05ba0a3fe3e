package pg

import (
	"os"
	"path/filepath"
	"regexp"
	"sync"
)

var (
	// postmaster.opts is one line, each argument in double quotes.
	optsConfig = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`"(?:-c" "|--)config_file=([^"]+)"`) })
	confData   = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`(?m)^[ \t]*data_directory[ \t]*=?[ \t]*'([^'\n]+)'`) })
)

// etcPostgres is where Debian keeps the configuration of its clusters, <version>/<name>/postgresql.conf.
const etcPostgres = "/etc/postgresql"

// ConfigFile finds the configuration file of a cluster that has it outside its data directory, as Debian does: the one that a
// server was last started with on dataDir, or on before (what stood in its place; "" is none), else the one below
// /etc/postgresql that names dataDir. "" where there is none.
func ConfigFile(dataDir, before string) string { return configFile(dataDir, before, etcPostgres) }

func configFile(dataDir, before, etc string) string {
	for _, dir := range []string{before, dataDir} {
		if dir == "" {
			continue
		}
		text, err := readHead(filepath.Join(dir, "postmaster.opts"), 64<<10)
		if err != nil {
			continue // a server that never ran has none
		}
		if m := optsConfig().FindSubmatch(text); m != nil && filepath.IsAbs(string(m[1])) && isFile(string(m[1])) {
			return string(m[1])
		}
	}
	names, _ := filepath.Glob(filepath.Join(etc, "*", "*", "postgresql.conf")) // the pattern is well-formed
	for _, name := range names {
		text, err := readHead(name, 1<<20)
		if err != nil {
			continue // of another user's cluster
		}
		if m := confData().FindSubmatch(text); m != nil && filepath.Clean(string(m[1])) == filepath.Clean(dataDir) {
			return name
		}
	}
	return ""
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
