package action

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkLock says who works on the instance. It does not try the lock: a run that began in that moment would be refused.
func (a *App) checkLock() []Finding {
	text, err := os.ReadFile(a.o.LockPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return []Finding{warns(AreaSets, a.o.LockPath, "", "who works on the instance can't be read: %v", err)}
	}
	pid, locked, err := lockHolder("/proc/locks", a.o.LockPath)
	if err != nil {
		return []Finding{warns(AreaSets, a.o.LockPath, "", "whether another run works can't be found out: %v", err)}
	}
	var h holder
	said := len(bytes.TrimSpace(text)) > 0 && json.Unmarshal(text, &h) == nil
	switch {
	case locked && said && a.o.Now().Sub(h.Since) > longRun:
		return []Finding{warns(AreaSets, a.o.LockPath, fmt.Sprintf("look whether it gets on: tail %s/alation_backup.log; ps -fp %d", a.o.LogDir, pid),
			"%s (process %s) works on the instance since %s: nothing else can be done meanwhile", h.Verb, h.Exec, h.Since.Format("2006-01-02 15:04:05 MST"))}
	case locked && said:
		return []Finding{warns(AreaSets, a.o.LockPath, "wait for it to end", "%s (process %s) works on the instance since %s", h.Verb, h.Exec, h.Since.Format("2006-01-02 15:04:05 MST"))}
	case locked:
		return []Finding{warns(AreaSets, a.o.LockPath, "wait for it to end", "process %d holds the lock of the instance", pid)}
	case said && isRemote(a.o.LockPath):
		return []Finding{warns(AreaSets, a.o.LockPath, "see on that host whether the process is there; the lock of one that is not goes with its lease, or when the file server is told (NFS: rpc.statd)",
			"the lock lies on a file system of another machine; %s (process %s) took it at %s, here or on another host, and has not given it back", h.Verb, h.Exec, h.Since.Format("2006-01-02 15:04:05 MST"))}
	case said:
		return []Finding{warns(AreaSets, a.o.LockPath, "the next run puts it right: alation_action backup_all", "%s (process %s), which began at %s, did not end properly: the process or the host died", h.Verb, h.Exec, h.Since.Format("2006-01-02 15:04:05 MST"))}
	}
	return nil
}

// lockHolder looks in the kernel's list (proc(5), "/proc/locks": "1: FLOCK  ADVISORY  WRITE 4021 fe:00:1835021 0 EOF") for who has a file locked.
func lockHolder(list, path string) (pid int, locked bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, false, errors.New("the file has no number")
	}
	text, err := os.ReadFile(list)
	if err != nil {
		return 0, false, err
	}
	want := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range strings.SplitSeq(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != want { // one that waits has an arrow before its kind
			continue
		}
		n, err := strconv.Atoi(f[4])
		return n, true, err
	}
	return 0, false, nil
}

// isRemote knows the numbers of file systems on other machines: NFS, CIFS, SMB2, 9p, Ceph, AFS, FUSE.
func isRemote(path string) bool {
	var s unix.Statfs_t
	if unix.Statfs(path, &s) != nil {
		return false
	}
	switch uint32(s.Type) {
	case 0x6969, 0xFF534D42, 0xFE534D42, 0x01021997, 0x00C36400, 0x5346414F, 0x65735546:
		return true
	}
	return false
}
