// Package instance knows one installed application as a place: its root directory, its two disks, where Holdfast keeps
// its own files below the root, the user it runs as, and the shell, script and constants file through which operators
// enter it. It knows nothing of parameters and backups.
//
// An instance is a directory with the marker etc/holdfast/instance.json:
//
//	<root>/etc/holdfast/            instance.json conf.json conf.key shellrc        0755, the key file 0600
//	<root>/var/lib/holdfast/lock/   locks of runs
//	<root>/var/lib/holdfast/pgbackrest/  what archive_command reads: passphrase, an external tool's configuration
//	<root>/usr/local/bin/           holdfast alation_conf alation_action: scripts that set HOLDFAST_ROOT
//	<root>/usr/local/lib/holdfast/  the program under these names
//	<root>/etc/init.d/alation       init start stop status shell
//	<root>/opt/alation/ops/alation_constants
//	<root>/opt/alation/site/logs/
//	<root>/data1                    the data disk
//	<root>/data2                    the backup disk: backup/ tmp/ pgbackrest/ holdfast/catalog/
//	<disk>/.holdfast-disk           whose disk it is, so that a disk that is not mounted is noticed (Ready)
//
// The root may be a real chroot (it has its own /bin/sh): a disk outside it is then bind-mounted at data1 or data2 by
// Start, since a link could not be followed from inside. Otherwise data1 and data2 are links to the disks.
//
// On an ordinary host path parameters are the host's own (path root "/"). The files above then lie below a state
// directory, "/" for root or any directory for an ordinary user, and the disks are used where they are. --root and
// HOLDFAST_ROOT name the directory that holds the marker.
package instance

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const (
	markerPath   = "etc/holdfast/instance.json"
	markerFormat = 1
	readMax      = 1 << 20 // bytes of a small file that is read whole
)

// ErrNoInstance is what errors.Is finds when a directory is not the root of an instance.
var ErrNoInstance = errors.New("no instance")

// marker is the content of etc/holdfast/instance.json.
type marker struct {
	Format     int       `json:"format"`
	ID         string    `json:"id"`          // random, names this instance on its disks
	HostPaths  bool      `json:"host_paths"`  // path parameters are the host's own
	DataDisk   string    `json:"data_disk"`   // as seen from the host; "" = a plain directory below the root
	BackupDisk string    `json:"backup_disk"` // likewise
	User       string    `json:"user"`
	Version    string    `json:"version"` // of the application, major.minor.patch.build
	Created    time.Time `json:"created"`
}

// Instance is an opened instance. It holds nothing open.
type Instance struct {
	dir string // absolute; holds the marker
	m   marker
}

// Open reads the marker of the instance in root. If there is none the error answers to ErrNoInstance.
func Open(root string) (*Instance, error) {
	dir, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("instance %s: %w", root, err)
	}
	data, err := ReadSmall(filepath.Join(dir, markerPath))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w there: name the right one with --root, or run: holdfast init DATA_DISK BACKUP_DISK --root %s", dir, ErrNoInstance, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("instance %s: %w", dir, err)
	}
	i := &Instance{dir: dir}
	if err := json.Unmarshal(data, &i.m); err != nil {
		return nil, fmt.Errorf("instance %s: %s: %w", dir, markerPath, err)
	}
	if i.m.Format < 1 || i.m.Format > markerFormat {
		return nil, fmt.Errorf("instance %s: %s has format %d, this version of Holdfast knows %d", dir, markerPath, i.m.Format, markerFormat)
	}
	if i.m.ID == "" || i.m.User == "" {
		return nil, fmt.Errorf("instance %s: %s lacks id or user: run `holdfast init` again", dir, markerPath)
	}
	return i, nil
}

// Dir returns the directory that holds the marker: what --root and HOLDFAST_ROOT name.
func (i *Instance) Dir() string { return i.dir }

// Root returns the directory that path parameters are seen from: Dir, or "/" if the instance uses the host's paths.
func (i *Instance) Root() string {
	if i.m.HostPaths {
		return "/"
	}
	return i.dir
}

// HostPaths reports whether path parameters are the host's own.
func (i *Instance) HostPaths() bool { return i.m.HostPaths }

// ID returns the random name of the instance.
func (i *Instance) ID() string { return i.m.ID }

// User returns the name of the user that owns the instance.
func (i *Instance) User() string { return i.m.User }

// Disks returns the data and the backup disk as they were given to Init; "" for a plain directory below the root.
func (i *Instance) Disks() (data, backup string) { return i.m.DataDisk, i.m.BackupDisk }

// Resolve returns the host path of a path parameter. Absolute or relative, p is below the root; ".." does not climb out.
// Links inside the instance are not looked at: data1 and data2 may be links to the disks.
func (i *Instance) Resolve(p string) string {
	return filepath.Join(i.Root(), path.Clean("/"+p))
}

// Inside is the reverse of Resolve: the path of a host file as seen from the root; ok is false if it lies outside.
func (i *Instance) Inside(host string) (p string, ok bool) {
	rel, err := filepath.Rel(i.Root(), host)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "", false
	}
	return path.Clean("/" + rel), true
}

// own returns a path below the directory that holds Holdfast's own files.
func (i *Instance) own(p string) string { return filepath.Join(i.dir, p) }

// ConfPath returns the file of the parameter store.
func (i *Instance) ConfPath() string { return i.own("etc/holdfast/conf.json") }

// KeyPath returns the file of the key that seals the store's secrets.
func (i *Instance) KeyPath() string { return i.own("etc/holdfast/conf.key") }

// LockDir returns the directory of the locks of runs. It is below var/lib, not run: it must outlive a reboot, since the
// instance's user could not make it again.
func (i *Instance) LockDir() string { return i.own("var/lib/holdfast/lock") }

// ArchiverDir returns the directory of what PostgreSQL's archive_command and restore_command read. It belongs to
// PostgreSQL's user.
func (i *Instance) ArchiverDir() string { return i.own("var/lib/holdfast/pgbackrest") }

// LogDir returns the directory of alation_backup.log.
func (i *Instance) LogDir() string { return i.own("opt/alation/site/logs") }

// BinDir returns the directory of the commands.
func (i *Instance) BinDir() string { return i.own("usr/local/bin") }

// DataDir returns where the data disk is seen.
func (i *Instance) DataDir() string { return i.disk(dataRole).at }

// BackupDir returns where the backup disk is seen.
func (i *Instance) BackupDir() string { return i.disk(backupRole).at }

// CatalogDir returns the directory of the catalogue of backup sets, on the backup disk.
func (i *Instance) CatalogDir() string { return filepath.Join(i.BackupDir(), "holdfast/catalog") }

// StagingDir returns the staging directory that alation.backup.data_temp_dir names by default.
func (i *Instance) StagingDir() string { return filepath.Join(i.BackupDir(), "tmp") }

// versionFile is where the application says its version, one NAME = number a line.
const versionFile = "/opt/alation/django/main/alation_version.py"

// DefaultVersion is used for an application that does not say its version and an Init that was not told.
const DefaultVersion = "10.0.0.147420"

// Version returns the application's version, major.minor.patch.build: from the application's version file, else as given
// to Init. A version file that lacks one of the four numbers is an error: tarballs would carry a wrong name.
func (i *Instance) Version() (string, error) {
	data, err := ReadSmall(i.Resolve(versionFile))
	if errors.Is(err, fs.ErrNotExist) {
		if i.m.Version == "" {
			return DefaultVersion, nil
		}
		return i.m.Version, nil
	}
	if err != nil {
		return "", fmt.Errorf("version of the application: %w", err)
	}
	version, err := parseVersionFile(string(data))
	if err != nil {
		return "", fmt.Errorf("version of the application: %s: %w: set it with: alation_conf alation.version -s MAJOR.MINOR.PATCH.BUILD", i.Resolve(versionFile), err)
	}
	return version, nil
}

func parseVersionFile(text string) (string, error) {
	parts := make([]string, 0, 4)
	for _, name := range []string{"MAJOR", "MINOR", "PATCH", "BUILD"} {
		number := ""
		lines := bufio.NewScanner(strings.NewReader(text))
		for lines.Scan() {
			left, right, found := strings.Cut(lines.Text(), "=")
			if found && strings.TrimSpace(left) == "ALATION_"+name+"_VERSION" {
				number = strings.Trim(strings.TrimSpace(right), `'"`)
			}
		}
		if err := lines.Err(); err != nil {
			return "", err
		}
		n, err := strconv.ParseUint(number, 10, 32)
		if err != nil {
			return "", fmt.Errorf("ALATION_%s_VERSION is missing or not a number", name)
		}
		parts = append(parts, strconv.FormatUint(n, 10))
	}
	return strings.Join(parts, "."), nil
}

// ReadSmall reads a whole file of at most readMax bytes.
func ReadSmall(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, readMax+1))
	if err != nil {
		return nil, err
	}
	if len(data) > readMax {
		return nil, fmt.Errorf("%s: larger than %d bytes", name, readMax)
	}
	return data, nil
}
