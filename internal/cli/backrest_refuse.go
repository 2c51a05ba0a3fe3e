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
const neutralOptions = "allow-root archive-push-batch-size beta buffer-size cmd cmd-ssh " +
	"compress-level-network db-timeout exec-id job-retry job-retry-interval log-subprocess neutral-umask priority " +
	"protocol-timeout sck-block sck-keep-alive stop-auto tcp-keep-alive-count tcp-keep-alive-idle tcp-keep-alive-interval " +
	"tls-cipher-12 tls-cipher-13 verbose"

// refusedOptions are done by pgBackRest and not by us. A name that ends in '*' stands for all that begin like it. fine are
// the values that ask for what we do anyway.
var refusedOptions = []struct {
	name, fine string
	instead    string
}{
	{"pg-host*", "", "this program works on the PostgreSQL host itself: run it there, without pg1-host"},
	{"pg-version-force", "", "the version is read from the cluster; remove the option"},
	{"repo-host*", "", "run the command on the host that has the repository, or mount the repository here and set repo1-path"},
	{"repo-azure-*", "", mountInstead},
	{"repo-gcs-*", "", mountInstead},
	{"repo-sftp-*", "", mountInstead},
	{"repo-symlink", "y", "the repository must be on a file system with symbolic links"},
	{"repo-block-age-map", "", "the sizes of blocks are chosen as the original does by default; remove the option"},
	{"repo-block-checksum-size-map", "", "the sizes of blocks are chosen as the original does by default; remove the option"},
	{"repo-block-size-*", "", "the sizes of blocks are chosen as the original does by default; remove the option"},
	{"archive-mode-check", "y", "archive_mode=always archives every segment twice; set archive_mode=on on the standby"},
	{"page-header-check", "y", "run with --no-checksum-page to leave the pages of an encrypted cluster unchecked"},
	{"tls-server-*", "", "there is no server; commands work on the host they are run on"},
	{"cipher-pass", "", "the passphrase is found by the kind of the file; remove the option"},
	{"lock", "", "it is internal to pgbackrest; remove the option"},
	{"pg", "", "it is internal to pgbackrest; remove the option"},
	{"process", "", "it is internal to pgbackrest; remove the option"},
	{"remote-type", "", "it is internal to pgbackrest; remove the option"},
}

// mountInstead is what helps where we have no adapter.
const mountInstead = "mount the storage as a directory and set repo1-type=posix"

// refusedHere are options that only some commands do.
var refusedHere = []struct{ command, name, fine, instead string }{
	{"check", "archive-check", "y", "check proves that archiving works, which needs a WAL segment to arrive"},
	{"check", "backup-standby", "n", "run check without it, on the primary"},
}

// refuse names the first option of c that we do not do. Options of a repository that the command leaves alone do not count.
func refuse(c *backrest.Config) error {
	for _, g := range c.Given() {
		if strings.HasPrefix(g.Name, "repo-") && !slices.Contains(repoKeys(c), g.Key) {
			continue
		}
		if g.Name == "repo-type" && !slices.Contains(repoKinds, g.Text) {
			return refusal(g, mountInstead)
		}
		for _, r := range refusedOptions {
			prefix, family := strings.CutSuffix(r.name, "*")
			if r.name != g.Name && !(family && strings.HasPrefix(g.Name, prefix)) || g.Text == r.fine {
				continue
			}
			return refusal(g, r.instead)
		}
		for _, r := range refusedHere {
			if r.command == c.Command.String() && r.name == g.Name && r.fine != g.Text {
				return refusal(g, r.instead)
			}
		}
	}
	if name := c.Command.String(); slices.Contains([]string{"server", "server-ping"}, name) {
		return coded(codeOption, "command '"+name+"' is not done by Holdfast\nHINT: there is no server; commands work on the host they are run on.")
	}
	return nil
}

func refusal(g backrest.Given, instead string) error {
	set := g.Full + "=" + g.Text
	if g.Secret {
		set = g.Full
	}
	return coded(codeOption, "option '"+set+"' is not done by Holdfast\nHINT: "+instead+".")
}
