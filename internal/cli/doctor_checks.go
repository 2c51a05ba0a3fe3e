package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"syscall"
	"time"

	"holdfast/internal/action"
	"holdfast/internal/catalog"
	"holdfast/internal/conf"
	"holdfast/internal/instance"
	"holdfast/internal/schedule"
)

// instanceChecks are the looks at what only this package knows: parameters, keys, disks of the instance, the schedule.
func (r *root) instanceChecks(in *instance.Instance, scheduled bool) []action.Check {
	checks := []action.Check{
		{Area: action.AreaParameters, Object: in.ConfPath(), Run: func(context.Context) []action.Finding { return checkParameters(in) }},
		{Area: action.AreaParameters, Object: in.KeyPath(), Run: func(context.Context) []action.Finding { return checkKey(in) }},
		{Area: action.AreaDisks, Object: in.Dir(), Run: func(context.Context) []action.Finding { return checkDisks(in) }},
	}
	if scheduled {
		checks = append(checks, action.Check{Area: action.AreaSchedule, Object: "schedule", Run: func(ctx context.Context) []action.Finding { return r.checkSchedule(ctx, in) }})
	}
	return checks
}

// seenElsewhere says whether what keeps a part from being opened is a finding of one of instanceChecks.
func seenElsewhere(in *instance.Instance, err error) bool {
	var all []error
	for _, d := range in.DiskStates() {
		all = append(all, d.Problem)
	}
	if ready := errors.Join(all...); ready != nil && ready.Error() == err.Error() {
		return true
	}
	st, serr := store(in)
	if serr != nil {
		return false
	}
	if errors.Is(err, conf.ErrRefused) {
		return true // checkParameters
	}
	v, verr := st.LoadAllowed()
	return verr == nil && slices.ContainsFunc(secretsProblems(v), func(p error) bool { return p.Error() == err.Error() }) // checkKey
}

// checkParameters looks for values that are not allowed, alone or together.
func checkParameters(in *instance.Instance) []action.Finding {
	st, err := store(in)
	if err != nil {
		return []action.Finding{action.Block(action.AreaParameters, in.ConfPath(), "", err)}
	}
	v, err := st.LoadAllowed()
	if err != nil {
		return []action.Finding{action.Block(action.AreaParameters, in.ConfPath(), "bring the file back from a set: it is in the application tarball", err)}
	}
	var found []action.Finding
	if _, err := st.Load(); err != nil {
		found = append(found, action.Block(action.AreaParameters, in.ConfPath(), "alation_conf NAME -s VALUE", err))
	}
	for _, p := range v.Problems() {
		found = append(found, action.Block(action.AreaParameters, in.ConfPath(), "", p))
	}
	for _, name := range v.Unknown() {
		found = append(found, action.Warn(action.AreaParameters, name, "install the version of Holdfast that knows it, or: alation_conf --unset "+name, "this version of Holdfast does not know the parameter that is set: it has no effect"))
	}
	for _, name := range []conf.PathKey{conf.KeySFTPPrivateKey, conf.KeyGCSKeyFile} {
		if p := v.Path(name); p != "" {
			found = append(found, checkSecretFile(string(name), in.Resolve(p))...)
		}
	}
	if info, err := os.Stat(in.ConfPath()); err == nil && info.Mode().Perm()&0o022 != 0 {
		found = append(found, action.Warn(action.AreaParameters, in.ConfPath(), "chmod go-w "+in.ConfPath(), "mode %04o lets others change the parameters, and so the commands that are run", info.Mode().Perm()))
	}
	if len(found) == 0 {
		found = append(found, action.OK(action.AreaParameters, in.ConfPath(), "every value is allowed"))
	}
	return found
}

func checkSecretFile(name, path string) []action.Finding {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return []action.Finding{action.Warn(action.AreaParameters, path, "bring it back, or: alation_conf "+name+" -s FILE", "the file of %s: %v", name, err)}
	case info.Mode().Perm()&0o077 != 0:
		return []action.Finding{action.Warn(action.AreaParameters, path, "make sure that nobody did, then: chmod 600 "+path, "mode %04o lets others read the file of %s", info.Mode().Perm(), name)}
	}
	return nil
}

// checkKey looks at the key of the parameter store and opens every secret with it.
func checkKey(in *instance.Instance) []action.Finding {
	path := in.KeyPath()
	var v *conf.Values
	st, err := store(in)
	if err == nil {
		v, err = st.LoadAllowed()
	}
	if err != nil {
		return nil // a finding of checkParameters
	}
	if problems := secretsProblems(v); len(problems) > 0 { // one key, one reason
		return []action.Finding{action.Block(action.AreaParameters, path, "", problems[0])}
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return []action.Finding{action.Warn(action.AreaParameters, path, "holdfast init … again makes one", "the key of the parameter store is missing; no secret is set, so that nothing is lost")}
	}
	if err != nil {
		return []action.Finding{action.Block(action.AreaParameters, path, "", err)}
	}
	if info.Mode().Perm()&0o077 != 0 {
		return []action.Finding{action.Block(action.AreaParameters, path, "make sure that nobody did, then: chmod 600 "+path, fmt.Errorf("mode %04o lets others read the key of the parameter store", info.Mode().Perm()))}
	}
	if owner, oerr := in.Owner(); oerr == nil && owner != nil {
		if s, ok := info.Sys().(*syscall.Stat_t); ok && int(s.Uid) != owner.UID {
			return []action.Finding{action.Warn(action.AreaParameters, path, fmt.Sprintf("chown %d:%d %s", owner.UID, owner.GID, path), "the key of the parameter store belongs to user id %d: the instance's user %s could not use it", s.Uid, in.User())}
		}
	}
	return []action.Finding{action.OK(action.AreaParameters, path, "opens every secret; nobody else may read it")}
}

// secretsProblems are the reasons why secrets can't be opened.
func secretsProblems(v *conf.Values) (all []error) {
	for _, k := range conf.Table() {
		if k.Secret() && v.IsSet(k.Name) {
			if _, err := v.Secret(conf.SecretKey(k.Name)); err != nil {
				all = append(all, err)
			}
		}
	}
	return all
}

// checkDisks looks whether the two disks of the instance are attached.
func checkDisks(in *instance.Instance) []action.Finding {
	var found []action.Finding
	for _, d := range in.DiskStates() {
		if d.Problem != nil {
			found = append(found, action.Block(action.AreaDisks, d.At, "", d.Problem))
		}
	}
	return found
}

// neglected is after how long without a schedule a newest set is too old.
const neglected = 8 * 24 * time.Hour

// checkSchedule looks whether backups are made by themselves, and whether they were.
func (r *root) checkSchedule(ctx context.Context, in *instance.Instance) []action.Finding {
	store, err := store(in)
	if err != nil {
		return nil // a finding of checkParameters
	}
	values, err := store.LoadAllowed()
	if err != nil {
		return nil // likewise
	}
	v, err := r.viewOf(ctx, in, values)
	if err != nil {
		return []action.Finding{action.Warn(action.AreaSchedule, "schedule", "holdfast schedule show", "%v", err)}
	}
	var found []action.Finding
	for _, w := range v.Warnings {
		found = append(found, action.Warn(action.AreaSchedule, "schedule", "", "%s", w))
	}
	st, err := openPosix(in.CatalogDir(), nil)
	if err != nil {
		return found // a finding of the catalogue's
	}
	sets, _, err := catalog.NewStore(st).List(ctx)
	if err != nil {
		return found
	}
	for i := len(sets) - 1; i >= 0; i-- {
		if sets[i].State == catalog.Complete {
			if f := tooOld(v, sets[i], r.env.Now()); f != nil {
				found = append(found, *f)
			}
			break
		}
	}
	if len(found) == 0 {
		found = append(found, action.OK(action.AreaSchedule, "schedule", "backups are made by themselves at %s", zoned(v.Times)))
	}
	return found
}

// tooOld says whether two times of the schedule have passed since the newest complete set.
func tooOld(v *scheduleView, s *catalog.Set, now time.Time) *action.Finding {
	late := now.Sub(s.Began) > neglected
	if spec, err := schedule.Parse(v.Times); err == nil && v.Enabled {
		next := spec.Next(s.Began)
		second := spec.Next(next)
		late = !next.IsZero() && !second.IsZero() && now.After(second)
	}
	if !late {
		return nil
	}
	f := action.Warn(action.AreaSchedule, s.ID, "find out why, holdfast schedule show, then: alation_action backup_all", "the newest complete set is of %s: scheduled times have passed since", s.Began.UTC().Format(time.RFC3339))
	return &f
}
