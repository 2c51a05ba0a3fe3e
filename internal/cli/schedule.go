package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"holdfast/internal/conf"
	"holdfast/internal/durable"
	"holdfast/internal/instance"
	"holdfast/internal/schedule"
)

// Names of the jobs that the daemon does, in logs, metrics and the state file.
const (
	jobBackup = "backup"
	jobLogs   = "logs"
	jobVerify = "verify"
	jobCopy   = "copy"
)

// backupTimes is the schedule of backups in words of package schedule, whether it is on or off.
func backupTimes(v *conf.Values) string {
	times := v.String(conf.KeyScheduleBackup)
	if times == "" {
		days := "*"
		if d := v.List(conf.KeyScheduledDay); len(d) > 0 {
			days = strings.Join(d, ",")
		}
		times = fmt.Sprintf("%d %d * * %s", v.Int(conf.KeyScheduledMinute), v.Int(conf.KeyScheduledHour), days)
	}
	return inZone(v, times)
}

// inZone adds the schedule's zone to five fields; none stay none.
func inZone(v *conf.Values, times string) string {
	if zone := v.String(conf.KeyScheduleZone); times != "" && zone != "UTC" {
		return times + " " + zone
	}
	return times
}

// jobSpec is when a job is to run by the parameters.
func jobSpec(v *conf.Values, job string) (schedule.Spec, error) {
	switch job {
	case jobBackup:
		if !v.Bool(conf.KeySnapshotEnabled) {
			return schedule.Spec{}, nil
		}
		return schedule.Parse(backupTimes(v))
	case jobVerify:
		return schedule.Parse(inZone(v, v.String(conf.KeyScheduleVerify)))
	case jobCopy:
		if !v.Bool(conf.KeyRedundancyEnabled) && !v.Bool(conf.KeyTarballCopies) {
			return schedule.Spec{}, nil
		}
		return schedule.Every(v.Duration(conf.KeyScheduleCopyEvery)), nil
	}
	return schedule.Parse("0 0 * * *")
}

// newRunID is the id of one run: "<pid>-<8 hex>", as ExecID.
func newRunID() string { return fmt.Sprintf("%d-%08x", os.Getpid(), rand.Uint32()) }

// stateFile keeps what the daemon has done, beside the lock of the instance. Only the daemon writes it.
type stateFile struct {
	path  string
	owner *durable.Owner
}

func newStateFile(in *instance.Instance) (*stateFile, error) {
	owner, err := in.Owner()
	return &stateFile{filepath.Join(in.LockDir(), "schedule.json"), owner}, err
}

// Load implements schedule.Store. A file that can't be read is an error with what to do: to guess would be to run twice.
func (f *stateFile) Load() (schedule.State, error) {
	var s schedule.State
	b, err := instance.ReadSmall(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil {
		return s, fmt.Errorf("%s: %w; to begin anew, from now on: rm %s", f.path, err, f.path)
	}
	return s, nil
}

// Save implements schedule.Store.
func (f *stateFile) Save(s schedule.State) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFileOwned(f.path, append(b, '\n'), 0o640, f.owner)
}

// daemonInfo is what a daemon says about itself in its lock file.
type daemonInfo struct {
	PID       int       `json:"pid"`
	Since     time.Time `json:"since"`
	Run       string    `json:"run,omitempty"`       // under which it is in the log
	Namespace string    `json:"namespace,omitempty"` // in which PID is its process, as /proc/self/ns/pid names it
}

// instanceLock is held by whatever works on the instance.
func instanceLock(in *instance.Instance) string { return filepath.Join(in.LockDir(), "instance.lock") }

func daemonLock(in *instance.Instance) string { return filepath.Join(in.LockDir(), "daemon.lock") }

// daemonErrors is the file with what a daemon in the background says on standard error.
func daemonErrors(in *instance.Instance) string { return filepath.Join(in.LockDir(), "daemon.err") }

// runningDaemon is the daemon of the instance; nil: none runs. A PID of 0: it does not say which process it is. It takes the daemon's lock for a moment, in which the lock says
// nothing about its holder.
func runningDaemon(in *instance.Instance) (*daemonInfo, error) {
	if !exists(daemonLock(in)) {
		return nil, nil
	}
	owner, err := in.Owner()
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		l, err := durable.TryLockOwned(daemonLock(in), nil, owner)
		if err == nil {
			return nil, l.Unlock()
		}
		var locked *durable.LockedError
		if !errors.As(err, &locked) {
			return nil, err
		}
		info := &daemonInfo{}
		if json.Unmarshal(locked.Info, info) == nil {
			return info, nil
		}
		if try == lockTries { // it is no other who looks: it has just begun, or could not write who it is
			return &daemonInfo{}, nil
		}
		time.Sleep(stopPoll)
	}
}

// pidNamespace names the namespace in which this process has its PID; empty: that can't be told.
func pidNamespace() string {
	name, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return ""
	}
	return name
}

// elsewhere reports whether the PID is one of another namespace: here it may be any process's.
func (d *daemonInfo) elsewhere() bool {
	here := pidNamespace()
	return d.PID != 0 && d.Namespace != "" && here != "" && d.Namespace != here
}

func (d *daemonInfo) String() string {
	if d.PID == 0 {
		return "it has just been started"
	}
	if d.elsewhere() {
		return fmt.Sprintf("process %d of the PID namespace %s since %s", d.PID, d.Namespace, d.Since.Format("2006-01-02 15:04:05 MST"))
	}
	return fmt.Sprintf("process %d since %s", d.PID, d.Since.Format("2006-01-02 15:04:05 MST"))
}

// hostTimes are the five fields of a crontab line that mean the same as the schedule of backups on a host whose cron counts in
// the zone local. exact is false when they do so only until a clock is changed.
func hostTimes(v *conf.Values, local *time.Location, now time.Time) (fields string, exact bool, err error) {
	zone, err := schedule.Zone(v.String(conf.KeyScheduleZone))
	if err != nil {
		return "", false, err
	}
	apart := func(t time.Time) int {
		_, there := t.In(zone).Zone()
		_, here := t.In(local).Zone()
		return (here - there) / 60
	}
	minutes, exact := apart(now), true
	for month := range 12 {
		exact = exact && apart(now.AddDate(0, month, 0)) == minutes
	}
	if times := v.String(conf.KeyScheduleBackup); times != "" {
		return times, exact && minutes == 0, nil
	}
	at := v.Int(conf.KeyScheduledHour)*60 + v.Int(conf.KeyScheduledMinute) + minutes
	days := "*"
	if list := v.List(conf.KeyScheduledDay); len(list) > 0 {
		days = shiftDays(list, floorDiv(at, 24*60))
	}
	at -= floorDiv(at, 24*60) * 24 * 60
	return strconv.Itoa(at%60) + " " + strconv.Itoa(at/60) + " * * " + days, exact, nil
}

func floorDiv(a, b int) int {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// shiftDays names the days that come by days after those of the list.
func shiftDays(list []string, by int) string {
	week := []string{"mon", "tue", "wed", "thu", "fri", "sat", "sun"}
	chosen := map[string]bool{}
	for i, d := range week {
		for _, l := range list {
			if l == d {
				chosen[week[((i+by)%7+7)%7]] = true
			}
		}
	}
	var out []string
	for _, d := range week {
		if chosen[d] {
			out = append(out, d)
		}
	}
	return strings.Join(out, ",")
}
