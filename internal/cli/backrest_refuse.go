package cli

import (
	"slices"
	"strings"

	"holdfast/internal/backrest"
)

// What becomes of each option of pgBackRest's table: it is used, or it cannot change anything here, or it is refused by
// name. A test holds the three lists against the table, so that none is ever passed over.

// neutralOptions cannot change anything here. There is one process without sub-processes, no channel between hosts and no
// buffer to choose; what they set for the original has no counterpart.
const neutralOptions = "allow-root beta buffer-size cmd cmd-ssh " +
	"compress-level-network exec-id job-retry job-retry-interval log-subprocess repo-storage-prefetch repo-storage-read-over " +
	"sck-block sck-keep-alive stop-auto tcp-keep-alive-count tcp-keep-alive-idle tcp-keep-alive-interval " +
	"tls-cipher-12 tls-cipher-13"

// refusedOptions are done by pgBackRest and not by us. A name that ends in '*' stands for all that begin like it. fine are
// the values that ask for what we do anyway.
var refusedOptions = []struct {
	name, fine string
	instead    string
}{
	{"pg-host-*", "", "PostgreSQL on another host is reached by its own protocol, at pg1-port as pg1-user; remove the option"},
	{"repo-host*", "", "run the command on the host that has the repository, or mount the repository here and set repo1-path"},
	{"tls-server-*", "", "there is no server; commands work on the host they are run on"},
	{"cipher-pass", "", "the passphrase is found by the kind of the file; remove the option"},
	{"lock", "", "it is internal to pgbackrest; remove the option"},
	{"pg", "", "it is internal to pgbackrest; remove the option"},
	{"process", "", "it is internal to pgbackrest; remove the option"},
	{"pg-local", "", "it is internal to pgbackrest; remove the option"},
	{"remote-type", "", "it is internal to pgbackrest; remove the option"},
	{"repo-local", "", "it is internal to pgbackrest; remove the option"},
	{"report", "", "it is internal to pgbackrest; remove the option"},
}

// refuse names the first option of c that we do not do. Options of a repository that the command leaves alone do not count.
func refuse(c *backrest.Config) error {
	if name := c.Command.String(); slices.Contains(refusedCommands, name) {
		return coded(codeOption, "command '"+name+"' is not done by Holdfast\nHINT: "+refusedCommand(name)+".")
	}
	for _, g := range c.Given() {
		if strings.HasPrefix(g.Name, "repo-") && !slices.Contains(repoKeys(c), g.Key) {
			continue
		}
		for _, r := range refusedOptions {
			prefix, family := strings.CutSuffix(r.name, "*")
			if r.name != g.Name && !(family && strings.HasPrefix(g.Name, prefix)) || g.Text == r.fine {
				continue
			}
			return refusal(g, r.instead)
		}
	}
	if text := needsFiles(c); text != "" {
		return coded(codeOption, text)
	}
	return nil
}

// refusedCommands are those of pgBackRest that we do not do.
var refusedCommands = []string{"repo-create", "repo-put", "repo-rm", "server", "server-ping"}

// refusedCommand says what to do instead of a command that we do not do.
func refusedCommand(name string) string {
	switch name {
	case "repo-create":
		return "the directory of a repository is made by stanza-create"
	case "repo-put", "repo-rm":
		return "a repository is not edited by hand; remove a backup with expire --set, a stanza with stanza-delete"
	}
	return "there is no server; commands work on the host they are run on"
}

func refusal(g backrest.Given, instead string) error {
	set := g.Full + "=" + g.Text
	if g.Secret {
		set = g.Full
	}
	return coded(codeOption, "option '"+set+"' is not done by Holdfast\nHINT: "+instead+".")
}
