package cli

import (
	"fmt"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
)

// settle looks at options that are right by themselves and wrong together, as the original does before it runs a command.
func (r *backrestRun) settle() error {
	c := r.c
	if name := c.String("stanza", 0); name != "" {
		if err := engine.CheckStanzaName(name); err != nil {
			return &codeError{codeValue, err}
		}
	}
	if v := c.String("pg-version-force", 0); v != "" {
		var err error
		if r.version, err = pg.ParseVersion(v); err != nil {
			return &codeError{codeValue, fmt.Errorf("'%s' is not valid for 'pg-version-force' option: %w", v, err)}
		}
	}
	keys := c.Keys(backrest.Repo)
	if c.Command.String() == "stanza-delete" && c.String("repo", 0) == "" && (len(keys) > 1 || keys[0] != 1) {
		return coded(codeRequired, "stanza-delete command requires option: repo\nHINT: this command requires a specific repository to operate on")
	}
	if r.given("repo-target-time") && !r.given("repo") {
		return coded(codeOption, "option 'repo-target-time' not valid without option 'repo'")
	}
	at := map[string]int{}
	for _, key := range keys {
		path := c.String("repo-path", key)
		if path == "" || !isDirectory(c.String("repo-type", key)) { // elsewhere a path is not the whole place
			continue
		}
		if other := at[path]; other != 0 {
			return coded(codeValue, fmt.Sprintf("local repo%d and repo%d paths are both '%s' but must be different", other, key, path))
		}
		at[path] = key
	}
	db, protocol := c.Duration("db-timeout", 0), c.Duration("protocol-timeout", 0)
	if db >= protocol && r.given("db-timeout") && r.given("protocol-timeout") && protocol > 0 {
		text := c.String("protocol-timeout", 0)
		return coded(codeValue, fmt.Sprintf("'%s' is not valid for 'protocol-timeout' option\nHINT: 'protocol-timeout' option (%s) should be greater than 'db-timeout' option (%s).", text, text, c.String("db-timeout", 0)))
	}
	if r.given("compress") && r.given("compress-type") {
		r.log.at(logWarn, "'compress' and 'compress-type' options should not both be set\nHINT: 'compress-type' is preferred and 'compress' is deprecated.")
	}
	if name := c.Command.String(); name == "backup" || name == "expire" {
		for _, key := range keys {
			r.warnRetention(key)
		}
	}
	if c.Command.String() == "stanza-create" && c.Bool("force", 0) {
		r.log.at(logWarn, "option --force is no longer supported")
	}
	return nil
}

// takePlace sets the priority of the process.
func (r *backrestRun) takePlace() error {
	if r.given("priority") && r.env.Nice != nil {
		if err := r.env.Nice(int(r.c.Int("priority", 0))); err != nil {
			return coded(codeKernel, "unable to set process priority: "+err.Error())
		}
	}
	return nil
}

// neutralUmask keeps the umask of whoever started us from the modes of all that is made, the log file first; unless it is wanted.
func (r *backrestRun) neutralUmask() {
	if r.env.Umask == nil {
		return
	}
	if mask := r.env.Umask(0); r.c.String("neutral-umask", 0) == "n" {
		r.env.Umask(mask)
		r.umask = mask
	}
}

// given says whether somebody set an option without index, so that it holds.
func (r *backrestRun) given(name string) bool {
	for _, g := range r.c.Given() {
		if g.Name == name {
			return true
		}
	}
	return false
}

// warnRetention says what will never be removed from the repository of that number.
func (r *backrestRun) warnRetention(key int) {
	c := r.c
	if c.String("repo-retention-full", key) == "" {
		r.log.logf(logWarn, "option 'repo%[1]d-retention-full' is not set for 'repo%[1]d-retention-full-type=%[2]s', the repository may run out of space\n"+
			"HINT: to retain full backups indefinitely (without warning), set option 'repo%[1]d-retention-full' to the maximum.", key, c.String("repo-retention-full-type", key))
	}
	typ, archive, diff := c.String("repo-retention-archive-type", key), c.String("repo-retention-archive", key), c.String("repo-retention-diff", key)
	const never = "WAL segments will not be expired: option 'repo%[1]d-retention-archive-type=%[2]s' but "
	switch {
	case typ == "incr" && archive == "":
		r.log.logf(logWarn, never+"option 'repo%[1]d-retention-archive' is not set", key, typ)
	case typ == "diff" && archive == "" && diff == "":
		r.log.logf(logWarn, never+"neither option 'repo%[1]d-retention-archive' nor option 'repo%[1]d-retention-diff' is set", key, typ)
	case typ == "diff" && archive != "" && diff == "":
		r.log.logf(logWarn, "option 'repo%[1]d-retention-diff' is not set for 'repo%[1]d-retention-archive-type=diff'\n"+
			"HINT: to retain differential backups indefinitely (without warning), set option 'repo%[1]d-retention-diff' to the maximum.", key)
	}
}
