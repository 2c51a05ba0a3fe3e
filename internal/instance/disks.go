package instance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"holdfast/internal/durable"
)

// diskMarker is the file on each disk that says whose disk it is.
const diskMarker = ".holdfast-disk"

// role is what a disk is for.
type role string

const (
	dataRole   role = "data"
	backupRole role = "backup"
)

// diskID is the content of a disk's marker.
type diskID struct {
	Instance string `json:"instance"`
	Role     role   `json:"role"`
	Host     string `json:"host"` // where the instance was when it took the disk
	Root     string `json:"root"` // likewise
}

// disk is one of the two disks of an instance.
type disk struct {
	role   role
	source string // host directory; at itself for a plain directory
	at     string // where the instance sees it
	bind   bool   // Start binds source at at
}

// disk works out how one disk is attached.
func (i *Instance) disk(r role) disk {
	d := disk{role: r, source: i.m.DataDisk, at: i.own("data1")}
	if r == backupRole {
		d.source, d.at = i.m.BackupDisk, i.own("data2")
	}
	switch {
	case i.m.HostPaths && d.source != "":
		d.at = d.source
	case d.source == "" || d.source == d.at:
		d.source = d.at
	case i.isChroot() && !below(d.source, i.dir):
		d.bind = true
	}
	return d
}

// isChroot reports whether the root is a system of its own that can be entered with chroot. From inside (the root is
// "/") it is not: there is nothing left to enter.
func (i *Instance) isChroot() bool {
	if i.m.HostPaths || i.dir == "/" {
		return false
	}
	_, err := os.Lstat(filepath.Join(i.dir, "bin/sh")) // a link in it may be absolute and so leads nowhere from here
	return err == nil
}

// below reports whether p is dir or lies in it, as text.
func below(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// Ready checks that both disks are attached and are this instance's. A run must not start without it: on a disk that is
// not mounted the backup would fill the mount point's file system, and be hidden once the disk is back.
func (i *Instance) Ready() error {
	return errors.Join(i.checkDisk(dataRole), i.checkDisk(backupRole))
}

// DiskState says how one disk stands.
type DiskState struct {
	Backup  bool   // the backup disk; else the data disk
	Source  string // host directory; At if it is a plain directory of the instance
	At      string // where the instance sees it
	Problem error  // why it is not attached; nil: it is
}

// DiskStates looks at the data disk and the backup disk, in this order.
func (i *Instance) DiskStates() []DiskState {
	var all []DiskState
	for _, r := range []role{dataRole, backupRole} {
		d := i.disk(r)
		all = append(all, DiskState{Backup: r == backupRole, Source: d.source, At: d.at, Problem: i.checkDisk(r)})
	}
	return all
}

func (i *Instance) checkDisk(r role) error {
	d := i.disk(r)
	id, err := readDisk(d.at)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s disk: nothing of this instance at %s: is the disk mounted? then run: %s start", r, d.at, i.own("etc/init.d/alation"))
	}
	if err != nil {
		return fmt.Errorf("%s disk at %s: %w", r, d.at, err)
	}
	if id.Instance != i.m.ID || id.Role != r {
		return fmt.Errorf("%s disk: %s holds the %s disk of the instance %s (%s on %s), not of this one (%s)", r, d.at, id.Role, id.Instance, id.Root, id.Host, i.m.ID)
	}
	return nil
}

func readDisk(dir string) (diskID, error) {
	var id diskID
	data, err := ReadSmall(filepath.Join(dir, diskMarker))
	if err != nil {
		return id, err
	}
	if err := json.Unmarshal(data, &id); err != nil {
		return id, fmt.Errorf("%s: %w", diskMarker, err)
	}
	return id, nil
}

// earlierID returns the name of the instance that had this root on this host, from a disk that it had: of an Init that
// was interrupted before it wrote the marker, or of an instance whose root was lost. "" if no disk tells.
func (i *Instance) earlierID() string {
	host, err := os.Hostname()
	if err != nil {
		return "" // without a host name nothing can be recognised, and attach asks for --adopt-disks
	}
	for _, r := range []role{dataRole, backupRole} {
		// A disk that cannot be read is reported by attach, a moment later.
		if id, err := readDisk(i.disk(r).source); err == nil && id.Role == r && id.Root == i.dir && id.Host == host {
			return id.Instance
		}
	}
	return ""
}

// attach makes data1 or data2 (a directory, or a link to the disk) and claims the disk for this instance.
func (i *Instance) attach(r role, owner *durable.Owner, adopt bool) error {
	d := i.disk(r)
	if err := i.attachAt(d, owner); err != nil {
		return fmt.Errorf("%s disk: %w", r, err)
	}
	id, err := readDisk(d.source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("%s disk %s: %w", r, d.source, err)
	case id.Instance == i.m.ID && id.Role == r:
		return nil
	case id.Instance == i.m.ID:
		return fmt.Errorf("%s disk: %s is already this instance's %s disk; they must be two directories", r, d.source, id.Role)
	case !adopt:
		return fmt.Errorf("%s disk: %s is the %s disk of another instance (%s, %s on %s): if that one is gone and this one shall take the disk over, run again with --adopt-disks",
			r, d.source, id.Role, id.Instance, id.Root, id.Host)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("%s disk: %w", r, err)
	}
	data, err := json.Marshal(diskID{Instance: i.m.ID, Role: r, Host: host, Root: i.dir})
	if err != nil {
		return fmt.Errorf("%s disk: %w", r, err)
	}
	if err := durable.WriteFileOwned(filepath.Join(d.source, diskMarker), append(data, '\n'), 0o644, owner); err != nil {
		return fmt.Errorf("%s disk: %w", r, err)
	}
	return nil
}

func (i *Instance) attachAt(d disk, owner *durable.Owner) error {
	if d.source == d.at {
		return durable.MkdirAllOwned(d.at, 0o755, owner)
	}
	info, err := os.Stat(d.source)
	if err != nil {
		return fmt.Errorf("%w: mount or make it first", err)
	}
	if !info.IsDir() {
		return fmt.Errorf("%s is not a directory", d.source)
	}
	if d.bind {
		return durable.MkdirAll(d.at, 0o755)
	}
	target := d.source
	if below(d.source, i.dir) { // relative, so that it holds inside a chroot too
		if target, err = filepath.Rel(i.dir, d.source); err != nil {
			return err
		}
	}
	err = os.Symlink(target, d.at)
	if errors.Is(err, fs.ErrExist) {
		if have, rerr := os.Readlink(d.at); rerr == nil && have == target {
			return nil
		}
		return fmt.Errorf("%s exists and is not a link to %s: move it away first", d.at, d.source)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(i.dir)
}

// Start attaches the disks that are bound into a chroot. It does nothing where they are attached already. Binding needs
// root and a machine that allows mounts; the error names the line for /etc/fstab that does the same.
func (i *Instance) Start(ctx context.Context) error {
	for _, r := range []role{dataRole, backupRole} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("start: %w", err)
		}
		d := i.disk(r)
		if !d.bind || i.checkDisk(r) == nil {
			continue
		}
		entries, err := os.ReadDir(d.at)
		if err != nil {
			return fmt.Errorf("start: %s disk: %w", r, err)
		}
		if len(entries) > 0 {
			return fmt.Errorf("start: %s disk: %s is not empty (%s …): something was written there while the disk was away; move it onto %s first", r, d.at, entries[0].Name(), d.source)
		}
		if id, err := readDisk(d.source); err != nil || id.Instance != i.m.ID {
			return errors.Join(fmt.Errorf("start: %s disk: %s is not this instance's disk: is it mounted on the host?", r, d.source), err)
		}
		if err := unix.Mount(d.source, d.at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("start: %s disk: bind %s at %s: %w; a line in /etc/fstab does the same: %s %s none bind 0 0", r, d.source, d.at, err, d.source, d.at)
		}
	}
	return i.Ready()
}

// Stop detaches what Start attached. A disk that is in use stays and is an error.
func (i *Instance) Stop(ctx context.Context) error {
	var all []error
	for _, r := range []role{backupRole, dataRole} {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stop: %w", err)
		}
		d := i.disk(r)
		if !d.bind {
			continue
		}
		if err := unix.Unmount(d.at, 0); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: not mounted
			all = append(all, fmt.Errorf("stop: %s disk: unmount %s: %w", r, d.at, err))
		}
	}
	return errors.Join(all...)
}
