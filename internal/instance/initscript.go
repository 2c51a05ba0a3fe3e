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
// works too; inside a chroot the root is "/", which it notices by the program. Every verb is a holdfast command. Exit codes of
// status, start, stop and restart are those of the Linux Standard Base (LSB Core 5.0, "Init Script Actions");
// init and shell end with those of the command.
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
verbs="start | stop | restart | reload | force-reload | status | shell [-c COMMAND]"
say() {
	echo "$0: $*" >&2
}
usage() {
	echo "usage: $0 init DATA_DISK BACKUP_DISK | $verbs" >&2
	exit 2
}
# run VERB: what the Linux Standard Base has a code of its own for gets it.
run() {
	"$program" "$@"
	code=$?
	[ "$code" -ne 5 ] || code=6 # there is no instance: not configured
	return "$code"
}
# The disks come before the daemon and go after it.
start() {
	run start --root "$HOLDFAST_ROOT" "$@" && run daemon start --root "$HOLDFAST_ROOT"
}
stop() {
	run daemon stop --root "$HOLDFAST_ROOT" && run stop --root "$HOLDFAST_ROOT" "$@"
}
[ $# -ge 1 ] || usage
verb=$1
shift
if [ ! -x "$program" ]; then
	say "$program is not installed"
	[ "$verb" != status ] || exit 4
	exit 5
fi
case $verb in
init)
	[ $# -ge 2 ] || usage
	exec "$program" init "$@" %s
	;;
shell)
	exec "$program" shell --root "$HOLDFAST_ROOT" "$@"
	;;
start)
	start "$@"
	;;
stop)
	stop "$@"
	;;
restart | force-reload)
	stop "$@" && start "$@"
	;;
reload)
	run daemon reload --root "$HOLDFAST_ROOT" "$@"
	;;
status)
	"$program" status --root "$HOLDFAST_ROOT" "$@"
	code=$?
	case $code in
	0 | 3) exit "$code" ;; # 3: not running, which is a disk that is not attached
	*) exit 4 ;;           # not known
	esac
	;;
try-restart)
	say "$verb is not done; there are: $verbs"
	exit 3
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
