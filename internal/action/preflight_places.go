package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/pg"
	"holdfast/internal/storage"
)

// checkTrees looks whether the configured files are there.
func (a *App) checkTrees(ctx context.Context) []Finding {
	var found []Finding
	for _, t := range a.o.Files.Trees {
		dir := filepath.Join(a.o.Root, t.Path)
		if _, err := os.Stat(dir); err != nil {
			found = append(found, unsure(ctx, AreaFiles, dir, "bring it back, or name what there is: alation_conf files.paths -s …", fmt.Errorf("files.paths: %w", err)))
		}
	}
	if len(found) == 0 {
		found = append(found, fine(AreaFiles, a.o.Root, "%d directories are there", len(a.o.Files.Trees)))
	}
	return found
}

// checkBus looks whether the brokers answer and have the topics that are named.
func (a *App) checkBus(ctx context.Context) []Finding {
	object := strings.Join(a.o.Bus.Brokers, ",")
	const do = "start the brokers, or correct their addresses: alation_conf eventbus.brokers -s HOST:PORT"
	b, err := eventbus.Open(ctx, *a.o.Bus)
	if err != nil {
		return []Finding{unsure(ctx, AreaBus, object, do, err)}
	}
	defer b.Close()
	n, err := b.Topics(ctx)
	if err != nil {
		return []Finding{unsure(ctx, AreaBus, object, "", err)}
	}
	return []Finding{fine(AreaBus, object, "answers, %d topics are backed up", n)}
}

// checkStoreUse looks whether the external storage can be used. That it can't be is a warning: a run ends well and catches up later.
func (a *App) checkStoreUse(ctx context.Context, probe bool) []Finding {
	name := a.o.Store.Name
	const do = "holdfast repo check says more; the parameters: alation_conf --list pgsql.pgbackrest.redundancy"
	if !probe {
		st, err := a.o.Store.OpenRepo()
		if err == nil {
			for _, lerr := range st.List(ctx, "", storage.ListOptions{}) {
				err = lerr
				break
			}
		}
		if err != nil {
			return []Finding{warns(AreaStore, name, do, "it can't be listed: %v", err)}
		}
		return []Finding{fine(AreaStore, name, "can be listed")}
	}
	if err := a.CheckStore(ctx); err != nil {
		return []Finding{warns(AreaStore, name, do, "%v", err)}
	}
	found := []Finding{fine(AreaStore, name, "can be written, read and listed")}
	p, err := a.StoreProtection(ctx)
	if err != nil {
		return append(found, warns(AreaStore, name, do, "what protects it can't be found out: %v", err))
	}
	for _, f := range p.Facts {
		if f.Name == "clock" && f.Grade == storage.Weak {
			found = append(found, warns(AreaStore, name, f.Advice, "%s", f.Text))
		}
	}
	return found
}

// checkRights looks whether runs may write where they have to, as whom they are made: this process, and when that is root the user of the instance.
func (a *App) checkRights(ctx context.Context) []Finding {
	var found []Finding
	for _, dir := range []string{a.o.DumpDir, a.o.TempDir, a.o.LogDir, filepath.Dir(a.o.LockPath)} {
		if dir == "" {
			continue
		}
		at := downTo(dir)
		last := "/"
		if len(at) > 0 {
			last = at[len(at)-1]
		}
		if err := unix.Faccessat(unix.AT_FDCWD, last, unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
			found = append(found, blocked(AreaRights, dir, mendCommand(dir, a.o.Owner), fmt.Errorf("this process cannot write into %s: %w", last, err)))
			continue
		}
		if f := a.asOwner(ctx, dir, at); f != nil {
			found = append(found, *f)
		}
	}
	found = append(found, a.checkStaging()...)
	found = append(found, a.checkPassFile()...)
	if len(found) == 0 {
		found = append(found, fine(AreaRights, a.o.DumpDir, "runs may write where they have to, also those of the instance's user"))
	}
	return found
}

// asOwner tries what the instance's user, as whom cron makes backups, may do; nil when that is all.
func (a *App) asOwner(ctx context.Context, dir string, down []string) *Finding {
	if os.Geteuid() != 0 || a.o.Owner == nil || a.o.Owner.UID == 0 || len(down) == 0 || down[len(down)-1] != filepath.Clean(dir) {
		return nil
	}
	var used []string
	for _, d := range down {
		used = append(used, "e", d)
	}
	name, what, path, err := tryAs(ctx, *a.o.Owner, append(used, "w", dir))
	if err == nil && what == 0 {
		return nil
	}
	if err == nil && what == 'e' {
		err = fmt.Errorf("the instance's user %s cannot enter %s, so a backup that it makes would fail", name, path)
	} else if err == nil {
		err = fmt.Errorf("the instance's user %s cannot write into %s, so a backup that it makes would fail", name, path)
	}
	f := warns(AreaRights, dir, mendCommand(path, a.o.Owner), "%v", err)
	if what == 'e' {
		f.Do = "chmod o+x " + shellWord(path)
	}
	return &f
}

// tryAs tries as a user what pairs of a letter and a path (reachScript) say: what of them can't be done, 0 if all can.
func tryAs(ctx context.Context, owner durable.Owner, used []string) (name string, what byte, path string, err error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", append([]string{"-c", reachScript, "sh"}, used...)...)
	var out bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stdout = "/", []string{"LC_ALL=C"}, &out
	cred := &syscall.Credential{Uid: uint32(owner.UID), Gid: uint32(owner.GID)}
	if name, cred.Groups, err = groupsOf(owner.UID); err != nil {
		return name, 0, "", err
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	err = cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() == 9 && out.Len() > 1 {
		return name, out.String()[0], out.String()[1:], nil
	}
	return name, 0, "", wrap(err, "look for what the user %s cannot reach", name)
}

func mendCommand(path string, owner *durable.Owner) string {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err == nil && st.Flags&syscall.MS_RDONLY != 0 {
		return "mount -o remount,rw " + shellWord(path)
	}
	if owner == nil {
		return "chmod u+rwx " + shellWord(path) + ", or run as its owner"
	}
	return fmt.Sprintf("chown %d:%d %s && chmod u+rwx %[3]s", owner.UID, owner.GID, shellWord(path))
}

// checkStaging looks for what is not ours in the staging directory, which stops every run.
func (a *App) checkStaging() []Finding {
	foreign, err := a.foreignStaging()
	if errors.Is(err, os.ErrNotExist) {
		return nil // it is made when it is needed
	}
	if err != nil {
		return []Finding{blocked(AreaRights, a.o.TempDir, mendCommand(a.o.TempDir, a.o.Owner), fmt.Errorf("staging directory: %w", err))}
	}
	if len(foreign) > 0 {
		return []Finding{blocked(AreaDisks, a.o.TempDir, "move them away, or use a directory of its own: alation_conf alation.backup.data_temp_dir -s DIR",
			fmt.Errorf("the staging directory holds files that Holdfast did not put there: %s", firstFew(foreign)))}
	}
	return nil
}

func (a *App) foreignStaging() (foreign []string, err error) {
	entries, err := os.ReadDir(a.o.TempDir)
	for _, e := range entries {
		info, serr := os.Lstat(filepath.Join(a.o.TempDir, e.Name(), stagingMark))
		if e.Name() != "lost+found" && (!e.IsDir() || serr != nil || !info.Mode().IsRegular()) {
			foreign = append(foreign, e.Name())
		}
	}
	return foreign, err
}

// checkPassFile looks at the file with the passphrase that archive_command reads.
func (a *App) checkPassFile() []Finding {
	if a.o.RepoPass == "" {
		return nil
	}
	info, err := os.Stat(a.o.PassFile)
	switch {
	case err != nil:
		return []Finding{blocked(AreaRights, a.o.PassFile, enableDo, fmt.Errorf("the passphrase for archive_command: %w", err))}
	case info.Mode().Perm()&0o077 != 0:
		return []Finding{warns(AreaRights, a.o.PassFile, "make sure that nobody did, then: chmod 600 "+shellWord(a.o.PassFile), "mode %04o lets others read the repository's passphrase", info.Mode().Perm())}
	}
	return nil
}

// checkPrograms looks at the programs that runs and restores call.
func (a *App) checkPrograms(ctx context.Context) []Finding {
	var found []Finding
	if p := a.o.PostScript; p != nil {
		info, err := os.Stat(p.Path)
		if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
			err = fmt.Errorf("mode %s: it can't be executed", info.Mode())
		}
		if err != nil {
			found = append(found, warns(AreaPrograms, p.Path, "chmod +x "+shellWord(p.Path)+", or name another: alation_conf alation.backup.post_script.path -s FILE",
				"the program of alation.backup.post_script.path: %v; every run would end with it failing", err))
		}
	}
	if a.o.Tool != nil {
		if text, err := a.toolVersion(ctx); err != nil {
			found = append(found, unsure(ctx, AreaPrograms, a.o.Tool.Path, "alation_conf pgsql.backup.tool_path -s FILE, or the built-in engine: alation_conf --unset pgsql.backup.tool_path", err))
		} else {
			found = append(found, fine(AreaPrograms, a.o.Tool.Path, "%s", text))
		}
	}
	for _, c := range a.o.Clusters {
		control, _, err := pg.ReadControl(ctx, c.DataDir)
		if err != nil {
			continue // which is a finding of its own
		}
		dir := c.BinDir
		if dir == "" {
			dir, err = pg.FindBinDir(control.Version)
		} else {
			err = pg.CheckBinDir(ctx, dir, control.Version)
		}
		if err != nil {
			found = append(found, warns(AreaPrograms, c.Stanza, "install postgresql-"+control.Version.String()+", or name its directory: bin= in alation_conf pgsql.clusters", "a restore could not start PostgreSQL: %v", err))
			continue
		}
		found = append(found, fine(AreaPrograms, c.Stanza, "a restore starts PostgreSQL %s from %s", control.Version, dir))
	}
	return found
}

// toolVersion asks the external program what it is.
func (a *App) toolVersion(ctx context.Context) (string, error) {
	info, err := os.Stat(a.o.Tool.Path)
	if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
		return "", errors.Join(err, fmt.Errorf("pgsql.backup.tool_path: %s is no program", a.o.Tool.Path))
	}
	cmd := exec.CommandContext(ctx, a.o.Tool.Path, "version")
	cmd.Dir, cmd.Env, cmd.WaitDelay = "/", a.o.Tool.Env, time.Second
	out, err := cmd.Output()
	text := strings.TrimSpace(string(out))
	if err != nil || !strings.HasPrefix(text, "pgBackRest ") {
		return "", fmt.Errorf("pgsql.backup.tool_path: %s is no pgbackrest: version prints %.60q (%v)", a.o.Tool.Path, text, err)
	}
	return text, nil
}

// checkUsage looks at every file system that runs use: one without inodes or that is read-only takes nothing, however much is free.
func (a *App) checkUsage(ctx context.Context) []Finding {
	dirs := []string{a.o.DumpDir, a.o.TempDir, a.o.RepoDir}
	for _, c := range a.o.Clusters {
		dirs = append(dirs, c.DataDir)
	}
	dirs = append(dirs, a.o.LogDir)
	volumes, err := volumesOf(dirs...)
	if err != nil {
		return []Finding{unsure(ctx, AreaDisks, a.o.Root, "look whether the disk is there and can be read", err)}
	}
	var found []Finding
	for _, v := range volumes {
		object := strings.Join(v.dirs, ", ")
		switch {
		case v.fixed:
			found = append(found, blocked(AreaDisks, object, "mount -o remount,rw "+shellWord(v.dirs[0]), errors.New("the file system is read-only")))
		case v.counts && v.inodes == 0:
			found = append(found, blocked(AreaDisks, object, "remove files there, or make the file system anew with more inodes", errors.New("the file system has no free inode: no file can be made")))
		case v.counts && v.inodes < smallInodes:
			found = append(found, warns(AreaDisks, object, "remove files there; pgsql.pgbackrest.bundle makes fewer files", "the file system has only %d free inodes", v.inodes))
		case v.free < v.total/50 && v.free < 1<<30:
			found = append(found, warns(AreaDisks, object, "make room there", "the file system is nearly full: %s of %s free", engine.Size(v.freeBytes()), engine.Size(int64(min(v.total, 1<<62)))))
		}
	}
	return found
}

// Bounds of what is strange about sets.
const (
	futureSlack = 5 * time.Minute
	longRun     = 24 * time.Hour
)

// checkSets looks at the catalogue: what the last runs and checks came to, and who works on the instance now.
func (a *App) checkSets(ctx context.Context) []Finding {
	var found []Finding
	if j, err := a.readJournal(); err != nil {
		found = append(found, unsure(ctx, AreaSets, a.o.JournalPath, "", err))
	} else if j != nil && j.State != journalCommitted {
		found = append(found, blocked(AreaSets, a.o.JournalPath, "holdfast restore --give-back", errInterrupted))
	}
	found = append(found, a.checkLock()...)
	sets, damaged, err := a.o.Catalog.List(ctx)
	if err != nil {
		return append(found, unsure(ctx, AreaSets, "catalogue", "", err))
	}
	for _, d := range damaged {
		found = append(found, warns(AreaSets, "catalogue", "holdfast sets list", "%v", d))
	}
	if len(sets) == 0 {
		return append(found, warns(AreaSets, "catalogue", "alation_action backup_all", "there is no backup yet"))
	}
	last := sets[len(sets)-1]
	if late := last.Began.Sub(a.o.Now()); late > futureSlack {
		found = append(found, warns(AreaSets, last.ID, "set this host's clock (timedatectl status)", "the last set was begun %s in the future: this host's clock is wrong, or was", late.Round(time.Second)))
	}
	if last.State == catalog.Failed {
		found = append(found, warns(AreaSets, last.ID, "mend that, then: alation_action backup_all", "the last run failed: %s", last.Error))
	}
	good := slices.DeleteFunc(slices.Clone(sets), func(s *catalog.Set) bool { return s.State != catalog.Complete })
	if len(good) == 0 {
		return append(found, warns(AreaSets, "catalogue", "alation_action backup_all", "no set is complete"))
	}
	for _, s := range good {
		if v := lastVerify(s); v != nil && !v.OK {
			found = append(found, warns(AreaSets, s.ID, "holdfast sets verify "+s.ID+", then make another: alation_action backup_all", "verification of %s found damage: %s", v.At.UTC().Format(time.RFC3339), firstFew(v.Findings)))
		}
	}
	newest := good[len(good)-1]
	found = append(found, a.treesOf(newest)...)
	said := "not verified yet"
	if v := lastVerify(newest); v != nil && v.OK {
		said = "verified " + v.At.UTC().Format(time.RFC3339)
	}
	return append(found, fine(AreaSets, newest.ID, "is the newest complete set, of %s; %s", newest.Began.UTC().Format(time.RFC3339), said))
}

// treesOf finds files that the last set has and the next would not: a directory of the default list that is gone is passed over
// without a word.
func (a *App) treesOf(s *catalog.Set) (found []Finding) {
	f := filesOf(s)
	if f == nil {
		return nil
	}
	for _, t := range f.Trees {
		if !slices.ContainsFunc(a.o.Files.Trees, func(now catalog.Tree) bool { return now.Path == t.Path }) {
			dir := filepath.Join(a.o.Root, t.Path)
			found = append(found, warns(AreaFiles, dir, "bring it back, or take it out of files.paths if it is not to be backed up", "the set %s has %s; it is not there, or not in files.paths, any more, and the next backup goes without it", s.ID, dir))
		}
	}
	return found
}

// lastVerify is the last verdict of a verification; nil: there was none.
func lastVerify(s *catalog.Set) *catalog.Verdict {
	for i := len(s.Verdicts) - 1; i >= 0; i-- {
		if s.Verdicts[i].Check == "verify" {
			return &s.Verdicts[i]
		}
	}
	return nil
}
