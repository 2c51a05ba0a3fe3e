# Runs in a mount namespace of its own, as root: what is mounted here nobody else sees.
# usage: cron.sh DIRECTORY HOLDFAST
# Lays an instance out at /opt/alation/alation, a chroot with PostgreSQL in it, and lets the host's own cron back it up: by the
# line of the source document, and by the one of `holdfast schedule cron --install`.
set -euo pipefail
dir=$1 bin=$2 root=/opt/alation/alation pgbin=/usr/lib/postgresql/15/bin
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
say() { printf '== %s\n' "$*"; }
hf() { HOLDFAST_ROOT=$root "$bin" "$@"; }
inside() { chroot "$root" /bin/su - postgres -c "$1"; }
mounts=()
bind() { mount --bind "$1" "$2" && mounts=("$2" "${mounts[@]}"); }
unbind() { umount "${mounts[0]}" && mounts=("${mounts[@]:1}"); } # the last one
cleanup() {
	[ -z "${cron-}" ] || kill "$cron" || true
	inside "$pgbin/pg_ctl -D /data1/pgsql/data -m immediate -s stop" || true
	hf stop || true
	local m
	for m in "${mounts[@]}"; do umount --lazy "$m" || true; done
}
trap cleanup EXIT

# The host, as far as cron sees it: no crontab but ours, nobody asked for a password.
mkdir -p "$dir"/{spool,empty,pam,data,backup,opt,run,hostlocal}
chown root:crontab "$dir/spool" && chmod 1730 "$dir/spool"
touch "$dir/crontab"
for service in cron su su-l sudo other; do
	printf 'auth sufficient pam_rootok.so\nauth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n' >"$dir/pam/$service"
done
bind "$dir/spool" /var/spool/cron/crontabs
bind "$dir/empty" /etc/cron.d
bind "$dir/crontab" /etc/crontab
bind "$dir/pam" /etc/pam.d
bind "$dir/opt" /opt
bind "$dir/run" /run

# A minimal root: the host's /usr, with a /usr/local of its own.
mkdir -p "$root"/{usr,etc,proc,dev,tmp,run/pg,var,opt,root} "$dir/local"
for link in bin sbin lib lib64; do ln -s "usr/$link" "$root/$link"; done
bind /usr "$root/usr" && bind "$dir/local" "$root/usr/local"
bind /proc "$root/proc" && bind /dev "$root/dev"
chmod 1777 "$root/tmp"
cp -r "$dir/pam" "$root/etc/pam.d"
grep -E '^(root|postgres):' /etc/passwd | sed 's|/var/lib/postgresql|/|' >"$root/etc/passwd"
grep -E '^(root|postgres):' /etc/group >"$root/etc/group"

hf init "$dir/data" "$dir/backup" --root "$root" --user postgres
hf start
mkdir -p "$root/data1/pgsql" "$root/data1/site_data" && echo content >"$root/data1/site_data/file"
chown -R postgres: "$root/data1/pgsql" "$root/data1/site_data" "$root/run/pg"
inside "$pgbin/initdb -D /data1/pgsql/data -U postgres -A trust --no-sync >/dev/null"
printf "unix_socket_directories='/run/pg'\nlisten_addresses=''\narchive_mode=on\narchive_command='false'\n" >>"$root/data1/pgsql/data/postgresql.conf"
inside "$pgbin/pg_ctl -D /data1/pgsql/data -l /tmp/server.log -w -s start"
# In the shell, as the document has it.
inside "alation_conf pgsql.clusters -s rosemeta:data=/data1/pgsql/data,host=/run/pg,port=5432,user=postgres eventbus.enabled -s False"
inside "alation_action enable_backupv2"
say "in the shell"
inside "alation_conf snapshot.enabled -s False"
inside "alation_conf snapshot.enabled"

# wait_for N: until the catalogue has N complete sets.
wait_for() {
	local try
	for try in $(seq 300); do
		[ "$(hf sets list | grep -c ' complete ' || true)" -lt "$1" ] || return 0
		sleep 1
	done
	echo "no set after five minutes" >&2
	hf sets list >&2
	crontab -l >&2
	tail -n 50 "$root/opt/alation/site/logs/alation_backup.log" >&2 || true
	return 1
}

say "the command of the document"
echo '* * * * * /opt/alation/alation/opt/alation/ops/actions/unjailed_update_auto_alation > /dev/null 2>&1' | crontab -
sudo crontab -l | { cat; echo "0 4 * * * source /opt/alation/alation/opt/alation/ops/alation_constants; sudo chroot "${ALATION_CHROOT-}" /bin/su - ${ALATION_USER-} -c "alation_action backup_all""; } | sudo crontab -
sudo crontab -l
hf schedule show 2>&1 || true

say "the result that the document shows"
cat >"$dir/shown" <<'TAB'
* * * * * /opt/alation/alation/opt/alation/ops/actions/unjailed_update_auto_alation > /dev/null 2>&1
0 4 * * * source /opt/alation/alation/opt/alation/ops/alation_constants; sudo chroot "${ALATION_CHROOT}" /bin/su - ${ALATION_USER} -c "alation_action backup_all"
TAB
sed 's/^0 4/* */' "$dir/shown" | crontab -
hf schedule show 2>&1 || true # here sh is dash, which has no source
bind /bin/bash /usr/bin/dash
cron -f &
cron=$!
wait_for 1
crontab -l | sed 's/^\* \* \* \* \* source/0 4 * * * source/' | crontab - # no further one
unbind

say "ours"
hf conf schedule.backup -s '* * * * *'
hf schedule cron --install
crontab -l
# Beside it an instance whose path has everything that cron and shells stumble over.
odd="/opt/it's 100% \"odd\" \$HOME"
mkdir -p "$dir/odd-data" "$dir/odd-backup"
"$bin" init "$dir/odd-data" "$dir/odd-backup" --root "$odd" --user root
printf '#!/bin/sh\nprintf "%%s|" "$@" >%s/odd-ran\n' "$dir" >"$odd/etc/init.d/alation"
"$bin" --root "$odd" conf schedule.backup -s '* * * * *'
"$bin" --root "$odd" schedule cron --install || true # it warns that nothing else runs it
crontab -l | wc -l
n=$(hf sets list | grep -c ' complete ')
wait_for $((n + 1))
for try in $(seq 180); do # a minute may have begun between the two installs
	[ ! -s "$dir/odd-ran" ] || break
	sleep 1
done
cat "$dir/odd-ran"
echo
say "removed"
hf schedule cron --remove || true
crontab -l
