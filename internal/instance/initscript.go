package instance

import (
	"bytes"
	"fmt"
	"strings"
)

// ours marks the scripts that Init writes; only a file with this mark is replaced.
const ours = "# written by `holdfast init`"

// quote makes one word of s for a POSIX shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// initScript renders etc/init.d/alation. It carries the root, so that a copy or link at /etc/init.d/alation of the host
// works too; inside a chroot the root is "/", which it notices by the program. Every verb is a holdfast command.
func (i *Instance) initScript() []byte {
	where := `--root "$HOLDFAST_ROOT"`
	if i.m.HostPaths {
		where = `--root / --state "$HOLDFAST_ROOT"`
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `#!/bin/sh
%s
### BEGIN INIT INFO
# Provides:          alation
# Required-Start:    $local_fs $remote_fs $network
# Required-Stop:     $local_fs $remote_fs $network
# Default-Start:     2 3 4 5
# Default-Stop:      0 1 6
# Short-Description: the application and its backups
### END INIT INFO
root=%s
[ -x "$root/usr/local/lib/holdfast/holdfast" ] || root=
HOLDFAST_ROOT=${root:-/}
export HOLDFAST_ROOT
program=$root/usr/local/lib/holdfast/holdfast
usage() {
	echo "usage: $0 init DATA_DISK BACKUP_DISK | start | stop | restart | status | shell [-c COMMAND]" >&2
	exit 2
}
[ $# -ge 1 ] || usage
verb=$1
shift
case $verb in
init)
	[ $# -ge 2 ] || usage
	exec "$program" init "$@" %s
	;;
start | stop | status | shell)
	exec "$program" "$verb" --root "$HOLDFAST_ROOT" "$@"
	;;
restart)
	"$program" stop --root "$HOLDFAST_ROOT" && exec "$program" start --root "$HOLDFAST_ROOT"
	;;
*)
	usage
	;;
esac
`, ours, quote(i.dir), where)
	return b.Bytes()
}

// wrapper renders one command of usr/local/bin. It finds the root from its own place, which is right from outside a
// chroot, from inside, and after the instance was moved.
func wrapper(name string) []byte {
	return fmt.Appendf(nil, `#!/bin/sh
%s
self=$(readlink -f -- "$0") || exit 1
root=${self%%/usr/local/bin/*}
HOLDFAST_ROOT=${root:-/}
export HOLDFAST_ROOT
exec "$root/usr/local/lib/holdfast/%s" "$@"
`, ours, name)
}

// constants renders opt/alation/ops/alation_constants, which host crontabs source.
func (i *Instance) constants() []byte {
	return fmt.Appendf(nil, `%s; for sh and bash, as seen from the host
ALATION_CHROOT=%s
ALATION_USER=%s
ALATION_DATA_DISK=%s
ALATION_BACKUP_DISK=%s
`, ours, quote(i.dir), quote(i.m.User), quote(i.disk(dataRole).source), quote(i.disk(backupRole).source))
}

// shellFile renders etc/holdfast/shellrc, and etc/profile.d/holdfast.sh of a real chroot: PATH and prompt.
func (i *Instance) shellFile(bin string) []byte {
	return fmt.Appendf(nil, `%s; PATH and prompt of the Alation shell
case ":$PATH:" in
*:%[2]s:*) ;;
*) PATH=%[3]s:$PATH ;;
esac
export PATH
case $- in
*i*)
	if [ -n "${BASH_VERSION-}" ]; then
		PS1='[%[4]s@\h \W]\$ '
	else
		PS1="[%[4]s@$(hostname 2>/dev/null || echo alation)]\$ "
	fi
	;;
esac
`, ours, strings.ReplaceAll(quote(bin), "*", `\*`), quote(bin), i.m.User)
}
