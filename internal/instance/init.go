package instance

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"holdfast/internal/durable"
)

// Names are the names under which Init installs the program.
var names = [...]string{"holdfast", "alation_conf", "alation_action"}

// InitOptions says what to lay out.
type InitOptions struct {
	Root       string // what path parameters are seen from; "/" = the host's own paths
	State      string // directory of Holdfast's own files if Root is "/": "" = "/", which needs root
	DataDisk   string // "" = a plain directory data1 below the root
	BackupDisk string // "" = a plain directory data2 below the root
	User       string // "" = alation if it exists, else the one that runs this
	Binary     string // the program to install under its names
	Version    string // of the application, major.minor.patch.build; "" = as before, else DefaultVersion
	HostScript string // also install the init script at this path of the host, e.g. /etc/init.d/alation; "" = do not
	AdoptDisks bool   // take over disks that carry the mark of another instance
	Now        time.Time

	// CreateStore makes the parameter store and its key (ConfPath, KeyPath) if they are missing. It is called before the
	// marker is written, so that an instance that Open finds has them. nil = none is made.
	CreateStore func(context.Context, *Instance, *durable.Owner) error
}

// InitResult says what Init did.
type InitResult struct {
	Instance *Instance
	New      bool     // there was no instance before
	Kept     []string // files of somebody else's that stand where ours would; left as they are
}

var versionPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{1,9}(\.[0-9]{1,9}){3}$`) })

// Init lays out an instance, or completes and renews one: run again with the same disks it repairs what is missing and
// replaces program and scripts; it never touches a parameter store, data or anything that is not its own. Other disks, or
// another user, than before are refused. The marker is written last: an Init that was interrupted is repeated. A second
// Init at once is refused. When ctx is done it stops between two steps.
func Init(ctx context.Context, o InitOptions) (*InitResult, error) {
	i, err := o.plan()
	if err != nil {
		return nil, fmt.Errorf("init: %w", err)
	}
	if err := durable.MkdirAll(i.own("etc/holdfast"), 0o755); err != nil {
		return nil, fmt.Errorf("init: %w", o.hint(err))
	}
	lock, err := durable.TryLock(i.own("etc/holdfast/.init.lock"), fmt.Appendf(nil, "pid %d", os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("init: another init runs, or the place cannot be written: %w", o.hint(err))
	}
	defer func() { _ = lock.Unlock() }() // the lock ends with the process in any case
	result := &InitResult{Instance: i}
	before, err := Open(i.dir)
	switch {
	case errors.Is(err, ErrNoInstance):
		result.New = true
		i.m.Created = o.Now.UTC()
		if i.m.ID = i.earlierID(); i.m.ID == "" {
			i.m.ID = newID()
		}
	case err != nil:
		return nil, fmt.Errorf("init: %w", err)
	default:
		if err := i.follow(before, o); err != nil {
			return nil, fmt.Errorf("init: %w", err)
		}
	}
	if err := i.layOut(ctx, o, result); err != nil {
		return nil, fmt.Errorf("init: %w", o.hint(err))
	}
	return result, nil
}

// plan checks the options and makes the instance they describe, without looking at what is there.
func (o *InitOptions) plan() (*Instance, error) {
	if o.Root == "" {
		return nil, errors.New("no root named")
	}
	i := &Instance{m: marker{Format: markerFormat, User: o.User, Version: o.Version}}
	var err error
	if i.dir, err = filepath.Abs(o.Root); err != nil {
		return nil, err
	}
	i.m.HostPaths = i.dir == "/"
	if o.State != "" && !i.m.HostPaths {
		return nil, errors.New("a state directory goes with the root / only")
	}
	if o.State != "" {
		if i.dir, err = filepath.Abs(o.State); err != nil {
			return nil, err
		}
	}
	if i.m.HostPaths && (o.DataDisk == "" || o.BackupDisk == "") {
		return nil, errors.New("with the root / both disks must be named")
	}
	for _, d := range []struct{ from, to *string }{{&o.DataDisk, &i.m.DataDisk}, {&o.BackupDisk, &i.m.BackupDisk}} {
		if *d.from == "" {
			continue
		}
		if *d.to, err = filepath.Abs(*d.from); err != nil {
			return nil, err
		}
		if *d.to == "/" || strings.ContainsAny(*d.to, ",;\n\x00") {
			return nil, fmt.Errorf("disk %q: neither the root itself nor a path with a comma, semicolon or line break can be a disk", *d.to)
		}
	}
	if i.m.DataDisk != "" && i.m.DataDisk == i.m.BackupDisk {
		return nil, fmt.Errorf("data disk and backup disk are both %s: losing it would lose both", i.m.DataDisk)
	}
	if strings.ContainsAny(i.dir, "\n\x00:") {
		return nil, fmt.Errorf("root %q: a path with a colon or line break cannot stand in PATH", i.dir)
	}
	if o.Version != "" && !versionPattern().MatchString(o.Version) {
		return nil, fmt.Errorf("version %q is not four numbers, such as %s", o.Version, DefaultVersion)
	}
	return i, nil
}

// hint adds what an ordinary user can do about a place that only root can write.
func (o *InitOptions) hint(err error) error {
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return fmt.Errorf("%w: run it with sudo, or choose a directory of yours: --root DIR, or --root / --state DIR for the host's own paths", err)
	}
	return err
}

// follow takes over from an earlier Init what stays, and refuses what cannot change under an instance.
func (i *Instance) follow(before *Instance, o InitOptions) error {
	b := before.m
	if b.HostPaths != i.m.HostPaths {
		return fmt.Errorf("%s is an instance of the other kind (host paths: %t): choose another directory", i.dir, b.HostPaths)
	}
	for _, d := range []struct {
		word string
		now  *string
		then string
	}{{"data", &i.m.DataDisk, b.DataDisk}, {"backup", &i.m.BackupDisk, b.BackupDisk}} {
		if *d.now == "" {
			*d.now = d.then
		}
		if *d.now != d.then {
			return fmt.Errorf("the instance %s has its %s disk at %q, not %q: nothing was changed", i.dir, d.word, d.then, *d.now)
		}
	}
	if o.User != "" && o.User != b.User {
		return fmt.Errorf("the instance %s belongs to the user %s, not %s: nothing was changed", i.dir, b.User, o.User)
	}
	i.m.User, i.m.ID, i.m.Created = b.User, b.ID, b.Created
	if i.m.Version == "" {
		i.m.Version = b.Version
	}
	return nil
}

func newID() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // crypto/rand never fails: it ends the program instead
	return hex.EncodeToString(id[:])
}

// layOut does Init's steps in order; each can be repeated.
func (i *Instance) layOut(ctx context.Context, o InitOptions, result *InitResult) error {
	a, err := i.chooseUser(i.m.User)
	if err != nil {
		return err
	}
	i.m.User = a.name
	var owner *durable.Owner
	if os.Geteuid() == 0 {
		owner = &durable.Owner{UID: a.uid, GID: a.gid}
	} else if a.uid != os.Geteuid() {
		return fmt.Errorf("only root can make an instance that belongs to another user (%s)", a.name)
	}
	steps := []func() error{
		func() error { return i.ownDirs(owner) },
		func() error { return i.attach(dataRole, owner, o.AdoptDisks) },
		func() error { return i.attach(backupRole, owner, o.AdoptDisks) },
		func() error { return i.diskDirs(owner) },
		func() error { return i.install(o.Binary) },
		func() error { return i.scripts(o, result) },
		func() error {
			if o.CreateStore == nil {
				return nil
			}
			return o.CreateStore(ctx, i, owner)
		},
		func() error { return i.writeMarker() },
	}
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// ownDirs makes Holdfast's directories. etc/holdfast belongs to the instance's user, who replaces files in it.
func (i *Instance) ownDirs(owner *durable.Owner) error {
	for _, dir := range []string{"usr/local/bin", "usr/local/lib/holdfast", "etc/init.d", "opt/alation/ops"} {
		if err := durable.MkdirAll(i.own(dir), 0o755); err != nil {
			return err
		}
	}
	for _, dir := range []string{"var/lib/holdfast", "var/lib/holdfast/lock", "var/lib/pgsql", "opt/alation/site", "opt/alation/site/logs"} {
		if err := durable.MkdirAllOwned(i.own(dir), 0o755, owner); err != nil {
			return err
		}
	}
	if owner == nil {
		return nil
	}
	if err := os.Chown(i.own("etc/holdfast"), owner.UID, owner.GID); err != nil {
		return err
	}
	return durable.SyncDir(i.own("etc"))
}

// diskDirs makes the directories of the default layout on the disks themselves, mounted or not. PostgreSQL's user, who need
// not be the instance's, has to get through those that a repository may lie in; nobody else can list them.
// The repository becomes that user's with the first object in it (storage.PosixOptions.Owner).
func (i *Instance) diskDirs(owner *durable.Owner) error {
	data, backup := i.disk(dataRole).source, i.disk(backupRole).source
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{
		{filepath.Join(data, "site_data"), 0o750},
		{filepath.Join(backup, "backup"), 0o711},
		{filepath.Join(backup, "tmp"), 0o711},
		{filepath.Join(backup, "pgbackrest"), 0o711},
		{filepath.Join(backup, "holdfast"), 0o750},
		{filepath.Join(backup, "holdfast/catalog"), 0o750},
	} {
		if err := durable.MkdirAllOwned(d.path, d.mode, owner); err != nil {
			return err
		}
	}
	return nil
}

// install copies the program below the root and gives it its names as hard links. A running program keeps its old file.
func (i *Instance) install(binary string) error {
	if binary == "" {
		return errors.New("no program named to install")
	}
	lib := i.own("usr/local/lib/holdfast")
	main := filepath.Join(lib, names[0])
	same, err := sameContent(binary, main)
	if err != nil {
		return err
	}
	if !same {
		if err := copyFile(main, binary); err != nil {
			return err
		}
	}
	for _, name := range names[1:] {
		if err := relink(main, filepath.Join(lib, name)); err != nil {
			return err
		}
	}
	return durable.SyncDir(lib)
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := durable.Create(to, 0o755)
	if err != nil {
		return err
	}
	defer func() { _ = out.Abort() }() // does nothing after Commit; otherwise the copy's error is the one to report
	if _, err := io.Copy(out, in); err != nil {
		return fmt.Errorf("copy %s to %s: %w", from, to, err)
	}
	return out.Commit()
}

// relink makes name a hard link to main, replacing what is there in one step.
func relink(main, name string) error {
	a, err := os.Stat(main)
	if err != nil {
		return err
	}
	if b, err := os.Lstat(name); err == nil && os.SameFile(a, b) {
		return nil
	}
	temp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+durable.TempMark+"link")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(main, temp); err != nil {
		return err
	}
	return os.Rename(temp, name)
}

// sameContent compares two files; a missing second one differs.
func sameContent(a, b string) (bool, error) {
	sumA, err := sum(a)
	if err != nil {
		return false, err
	}
	sumB, err := sum(b)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Equal(sumA, sumB), err
}

func sum(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return h.Sum(nil), nil
}

// scripts writes the commands, the constants, the shell's files and the init script.
func (i *Instance) scripts(o InitOptions, result *InitResult) error {
	type file struct {
		path string
		mode fs.FileMode
		data []byte
	}
	files := []file{
		{i.own("opt/alation/ops/alation_constants"), 0o644, i.constants()},
		{i.own("etc/holdfast/shellrc"), 0o644, i.shellFile(i.BinDir())},
		{i.own("etc/init.d/alation"), 0o755, i.initScript()},
	}
	for _, name := range names {
		files = append(files, file{filepath.Join(i.BinDir(), name), 0o755, wrapper(name)})
	}
	if i.isChroot() {
		if err := durable.MkdirAll(i.own("etc/profile.d"), 0o755); err != nil {
			return err
		}
		files = append(files, file{i.own("etc/profile.d/holdfast.sh"), 0o644, i.shellFile("/usr/local/bin")})
	}
	if o.HostScript != "" {
		files = append(files, file{o.HostScript, 0o755, i.initScript()})
	}
	for _, f := range files {
		kept, err := writeOurs(f.path, f.data, f.mode)
		if err != nil {
			return err
		}
		if kept { // the program itself may have been installed there
			if same, err := sameContent(o.Binary, f.path); err == nil && same {
				continue
			}
		}
		if kept {
			result.Kept = append(result.Kept, f.path)
		}
	}
	return nil
}

// writeOurs writes a script unless somebody else's file is there.
func writeOurs(path string, data []byte, mode fs.FileMode) (kept bool, err error) {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, durable.WriteFile(path, data, mode)
	case err != nil:
		return false, err
	case !info.Mode().IsRegular() || info.Size() > readMax:
		return true, nil
	}
	have, err := ReadSmall(path)
	if err != nil {
		return false, err
	}
	if !bytes.Contains(have, []byte(ours)) {
		return true, nil
	}
	if bytes.Equal(have, data) && info.Mode().Perm() == mode {
		return false, nil
	}
	return false, durable.WriteFile(path, data, mode)
}

// writeMarker publishes the instance. The disks' paths stand in .disk1_cache and .disk2_cache of a root too, where
// operators' scripts look for them.
func (i *Instance) writeMarker() error {
	if !i.m.HostPaths {
		for name, r := range map[string]role{".disk1_cache": dataRole, ".disk2_cache": backupRole} {
			if err := durable.WriteFile(i.own(name), []byte(i.disk(r).source+"\n"), 0o644); err != nil {
				return err
			}
		}
	}
	data, err := json.MarshalIndent(i.m, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(i.own(markerPath), append(data, '\n'), 0o644)
}
