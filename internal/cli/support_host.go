package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/action"
	"holdfast/internal/conf"
	"holdfast/internal/instance"
)

func (s *support) versions(ctx context.Context) (any, error) {
	doc := map[string]any{"holdfast": Version, "program": s.r.env.Exe, "go": runtime.Version(), "system": runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, set := range info.Settings {
			if strings.HasPrefix(set.Key, "vcs.") {
				doc[set.Key] = set.Value
			}
		}
	}
	if s.values == nil {
		return doc, nil
	}
	tool := s.values.Path(conf.KeyToolPath)
	if tool == "" {
		return doc, nil
	}
	out, err := exec.CommandContext(ctx, s.in.Resolve(tool), "version").CombinedOutput()
	doc["backup_tool"] = strings.TrimSpace(string(out))
	if err != nil {
		err = fmt.Errorf("%s version: %w", tool, err)
	}
	return doc, err
}

// hostFiles are small files of the host that say what it is.
var hostFiles = []string{"/etc/os-release", "/etc/debian_version", "/proc/meminfo", "/proc/loadavg", "/proc/uptime", "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/cpu.max", "/etc/timezone"}

func (s *support) host(context.Context) (any, error) {
	name, err := os.Hostname()
	doc := map[string]any{"name": name, "processors": runtime.NumCPU(), "local_time": s.now.Local().Format(time.RFC3339), "zone": s.now.Local().Format("MST"), "user_id": os.Geteuid()}
	var u unix.Utsname
	if uerr := unix.Uname(&u); uerr == nil {
		doc["kernel"] = fmt.Sprintf("%s %s %s", unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:]), unix.ByteSliceToString(u.Machine[:]))
	}
	files := map[string]string{}
	for _, f := range hostFiles {
		b, ferr := instance.ReadSmall(f)
		if ferr != nil {
			continue // no host has all of them
		}
		files[f] = string(b[:min(len(b), 4096)])
	}
	doc["files"] = files
	environment := map[string]string{}
	for _, n := range []string{"LANG", "LC_ALL", "TZ", "PATH", "HOLDFAST_ROOT"} {
		if v := s.r.env.Getenv(n); v != "" {
			environment[n] = v
		}
	}
	doc["environment"] = environment
	return doc, err
}

// diskView is the file system at one place.
type diskView struct {
	action.Place
	Free       uint64 `json:"free_bytes"` // for an ordinary user
	Total      uint64 `json:"total_bytes"`
	FreeInodes uint64 `json:"free_inodes"`
	Inodes     uint64 `json:"inodes"`
	Type       string `json:"type"` // of the file system, as statfs(2) numbers it
	Problem    string `json:"problem,omitempty"`
}

func (s *support) disks(context.Context) (any, error) {
	places := []action.Place{{Name: "data disk", Path: s.in.DataDir()}, {Name: "backup disk", Path: s.in.BackupDir()}, {Name: "logs", Path: s.in.LogDir()}, {Name: "locks", Path: s.in.LockDir()}, {Name: "temporary files", Path: os.TempDir()}}
	if s.w != nil {
		places = append(places, s.w.app.Places()...)
	}
	if s.values != nil {
		if p := s.values.Path(conf.KeyRedundancyPath); p != "" {
			places = append(places, action.Place{Name: "external storage", Path: s.in.Resolve(p)})
		}
	}
	all := []diskView{}
	for _, p := range places {
		d := diskView{Place: p}
		var st unix.Statfs_t
		if err := unix.Statfs(p.Path, &st); err != nil {
			d.Problem = err.Error()
		} else {
			size := uint64(st.Bsize)
			d.Free, d.Total, d.FreeInodes, d.Inodes, d.Type = st.Bavail*size, st.Blocks*size, st.Ffree, st.Files, fmt.Sprintf("%#x", st.Type)
		}
		all = append(all, d)
	}
	return all, nil
}

// spoolDir is where pgBackRest's asynchronous archiving keeps what it does, unless it was told otherwise.
const spoolDir = "/var/spool/pgbackrest"

// Bounds of what is told of a spool.
const (
	spoolFiles = 1000
	spoolText  = 4096 // bytes of an error
)

type spoolFile struct {
	Path string    `json:"path"`
	Size int64     `json:"size"`
	Time time.Time `json:"time"`
	Text string    `json:"text,omitempty"` // of an error
}

// spool lists what is in the spool of the instance's stanzas. What waits without a spool is in postgresql.json.
func (s *support) spool(ctx context.Context) (any, error) {
	if s.w == nil {
		return nil, nil // noted already
	}
	all, more := []spoolFile{}, 0
	var problems []error
	for _, stanza := range s.w.app.Stanzas() {
		err := filepath.WalkDir(filepath.Join(spoolDir, "archive", stanza), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			if len(all) == spoolFiles {
				more++
				return ctx.Err()
			}
			info, err := d.Info()
			if err != nil {
				return nil // it has gone
			}
			f := spoolFile{Path: path, Size: info.Size(), Time: info.ModTime().UTC()}
			if strings.HasSuffix(path, ".error") {
				if b, err := instance.ReadSmall(path); err == nil {
					f.Text = string(b[:min(len(b), spoolText)])
				}
			}
			all = append(all, f)
			return ctx.Err()
		})
		if !errors.Is(err, fs.ErrNotExist) {
			problems = append(problems, err)
		}
	}
	return map[string]any{"directory": spoolDir, "files": all, "more": more}, errors.Join(problems...)
}

// service is what starts the daemon or backups: only what is the instance's.
func (s *support) service(ctx context.Context) (any, error) {
	doc := map[string]any{"unit_name": s.in.UnitName(), "unit_enabled": unitEnabled(s.in.UnitName())}
	units := map[string]string{}
	drops, err := filepath.Glob(unitPath(s.in) + ".d/*.conf")
	for _, path := range append(drops, unitPath(s.in)) {
		b, rerr := instance.ReadSmall(path)
		if rerr == nil {
			units[path] = string(b)
		} else if !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
	}
	doc["units"] = units
	v := &scheduleView{}
	cerr := s.r.lookAtCron(ctx, s.in, v)
	doc["cron"], doc["warnings"] = v.Cron, v.Warnings
	return doc, errors.Join(err, cerr)
}
