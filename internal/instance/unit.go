package instance

import (
	"errors"
	"fmt"
	"strings"
)

// UnitName is the name of the instance's systemd unit: holdfast.service on an ordinary host, holdfast-opt-alation.service
// for /opt/alation, so that several instances of one host each have one.
func (i *Instance) UnitName() string {
	words := strings.FieldsFunc(i.dir, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_'
	})
	return strings.Join(append([]string{"holdfast"}, words...), "-") + ".service"
}

// Unit renders the systemd unit of the daemon (systemd.service(5), systemd.exec(5)). It runs as root, since it reads what
// belongs to PostgreSQL and gives what it writes to the instance's user, but with no more of root's abilities than that
// takes, and can write nowhere but below the instance and on its disks, and below further: directories that parameters name.
// An error is a path that a unit can't name.
func (i *Instance) Unit(further ...string) ([]byte, error) {
	data, backup := i.Disks()
	writable := append([]string{i.dir, data, backup, "/tmp", "/run", "/var/lib/pgsql", "/var/lib/postgresql"}, further...)
	var paths []string
	for _, p := range writable {
		if p == "" {
			continue
		}
		w, err := unitWord(p)
		if err != nil {
			return nil, err
		}
		paths = append(paths, `"-`+w[1:])
	}
	if strings.ContainsAny(i.dir, "\"'$\\`") {
		return nil, fmt.Errorf("unit: systemd starts no program from a directory with quotes or $ in its name: %s; use the init script: %s start", i.dir, i.own("etc/init.d/alation"))
	}
	program, err1 := unitWord(i.own("usr/local/lib/holdfast/holdfast"))
	root, err2 := unitWord(i.dir)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	protect := "strict"
	if i.dir == "/" { // the instance is the host
		protect = "false"
	}
	return fmt.Appendf(nil, `%[1]s
# To change something: systemctl edit %[2]s
[Unit]
Description=Holdfast: backups of %[3]s
Documentation=man:systemd.service(5)
After=network-online.target local-fs.target remote-fs.target postgresql.service
Wants=network-online.target
RequiresMountsFor=%[5]s

[Service]
Type=notify
NotifyAccess=main
# Attaches the disks of a chroot after a reboot; outside the restrictions below, which do not let it mount.
ExecStartPre=+%[6]s start --root %[5]s
ExecStart=%[6]s daemon --root %[5]s
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=10
WatchdogSec=120
TimeoutStartSec=60
# A run that is told to end gets PostgreSQL out of backup mode and empties its staging directory first.
TimeoutStopSec=120
KillMode=mixed
Nice=5
IOSchedulingClass=best-effort
IOSchedulingPriority=6

CapabilityBoundingSet=CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID CAP_SYS_CHROOT
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectSystem=%[4]s
ReadWritePaths=%[7]s
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
SystemCallArchitectures=native
UMask=0027

[Install]
WantedBy=multi-user.target
`, ours, i.UnitName(), strings.ReplaceAll(i.dir, "%", "%%"), protect, root, program, strings.Join(paths, " ")), nil
}

// unitWord quotes one word of a unit file; specifiers begin with % there.
func unitWord(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", fmt.Errorf("unit: a path has a line break: %q", s)
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(s) + `"`, nil
}

// OursMark reports whether a file was written by Holdfast: only such a unit is replaced or removed.
func OursMark(text []byte) bool { return strings.HasPrefix(string(text), ours) }
