package action

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"sync"
)

// Create leaves a stanza of this cluster alone. The tool works offline: what it would ask the server is in the control file.
func (t *tool) Create(ctx context.Context, c pg.Control) (engine.CreateOutcome, error) {
	switch err := t.look.Belongs(ctx, c); {
	case err == nil:
		return engine.Existed, nil
	case !errors.Is(err, engine.ErrStanzaMissing) && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	_, err := t.run(ctx, "stanza-create", "--no-online")
	return engine.Created, err
}

func (t *tool) Upgrade(ctx context.Context, _ pg.Control) (engine.CreateOutcome, error) {
	_, err := t.run(ctx, "stanza-upgrade", "--no-online")
	return engine.Upgraded, err
}

// Backup makes the backup that p plans. For a tarball it goes through the staging repository: the tool can't write anywhere
// else, so that it needs the space of a second copy for as long as the run takes.
func (t *tool) Backup(ctx context.Context, p *engine.BackupPlan) (*engine.BackupResult, error) {
	ball, _ := t.st.(*tarRepo)
	if ball != nil {
		if err := t.a.clearStaged(ctx, t.c.Stanza, ball.Storage, nil); err != nil { // of a run that died
			return nil, err
		}
	}
	began := t.a.o.Now()
	if _, err := t.run(ctx, "backup", "--type="+string(p.Type)); err != nil {
		return nil, err
	}
	res, err := t.newest(ctx)
	if err != nil {
		return nil, err
	}
	if res.Line.TimeStop < began.Unix() {
		return nil, fmt.Errorf("stanza %s: pgbackrest backup ended well, but the newest backup in %s is still %s", t.c.Stanza, t.dir, res.Label)
	}
	res.Duration = t.a.o.Now().Sub(began)
	if ball == nil {
		return res, nil
	}
	if err := ball.takeBackup(ctx, t.c.Stanza, res.Label); err != nil {
		return nil, err
	}
	return res, t.a.clearStaged(ctx, t.c.Stanza, ball.Storage, nil)
}

// newest is what the tool says of the newest backup.
func (t *tool) newest(ctx context.Context) (*engine.BackupResult, error) {
	all, err := t.info(ctx)
	if err != nil {
		return nil, err
	}
	if len(all.Backup) == 0 {
		return nil, fmt.Errorf("stanza %s: %w: pgbackrest info lists none in %s", t.c.Stanza, engine.ErrNoBackup, t.dir)
	}
	label := all.Backup[len(all.Backup)-1].Label
	one, err := t.info(ctx, "--set="+label) // only with --set it names files with bad pages
	if err != nil {
		return nil, err
	}
	if len(one.Backup) != 1 {
		return nil, fmt.Errorf("stanza %s: pgbackrest info lists %d backups %s", t.c.Stanza, len(one.Backup), label)
	}
	b := one.Backup[0]
	if b.Archive.Start == nil || b.Archive.Stop == nil || b.LSN == nil || len(*b.Archive.Start) != 24 || len(*b.Archive.Stop) != 24 {
		return nil, fmt.Errorf("stanza %s: pgbackrest info names no WAL range for backup %s", t.c.Stanza, label)
	}
	res := &engine.BackupResult{Label: repo.Label(label), ArchiveStart: *b.Archive.Start, ArchiveStop: *b.Archive.Stop, PageErrors: b.ErrorList,
		Line: repo.BackupLine{Label: repo.Label(label), Type: repo.BackupType(b.Type), DBID: b.Database.ID, TimeStart: b.Timestamp.Start, TimeStop: b.Timestamp.Stop,
			ArchiveStart: *b.Archive.Start, ArchiveStop: *b.Archive.Stop, LSNStart: b.LSN.Start, LSNStop: b.LSN.Stop,
			Size: b.Info.Size, SizeDelta: b.Info.Delta, RepoSizeDelta: b.Info.Repository.Delta, RepoSize: b.Info.Repository.Delta}}
	if b.Prior != nil {
		res.Line.Prior = repo.Label(*b.Prior)
	}
	for _, l := range b.Reference {
		res.Line.References = append(res.Line.References, repo.Label(l))
	}
	if b.Info.Repository.Size != nil {
		res.Line.RepoSize = *b.Info.Repository.Size
	}
	for _, db := range one.DB {
		if db.ID == b.Database.ID {
			res.DB = repo.DB{ID: db.ID, SystemID: db.SystemID, Version: db.Version}
		}
	}
	if res.DB.ID == 0 {
		return nil, fmt.Errorf("stanza %s: pgbackrest info does not describe cluster %d of backup %s", t.c.Stanza, b.Database.ID, label)
	}
	return res, nil
}

func (t *tool) info(ctx context.Context, args ...string) (*engine.StanzaInfo, error) {
	out, err := t.run(ctx, "info", append(args, "--output=json")...)
	if err != nil {
		return nil, err
	}
	var all []engine.StanzaInfo
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, fmt.Errorf("stanza %s: pgbackrest info: %w", t.c.Stanza, err)
	}
	if len(all) != 1 {
		return nil, fmt.Errorf("stanza %s: pgbackrest info describes %d stanzas", t.c.Stanza, len(all))
	}
	return &all[0], nil
}

// Restore restores what p plans, o being what it was made from.
func (t *tool) Restore(ctx context.Context, p *engine.RestorePlan, o engine.RestoreOptions) error {
	owner := t.a.serverOwner(t.c)
	if o.Owners { // the data directory that said whose it is has been moved aside
		owner = &durable.Owner{UID: o.DefaultUID, GID: o.DefaultGID}
	}
	args := []string{"--set=" + string(p.Label), "--pg1-path=" + p.DataDir, "--type=" + string(p.Type), recoveryOption("restore_command", o.RestoreCommand)}
	for name, value := range map[string]string{"target": p.Target, "target-action": o.Action, "target-timeline": o.Timeline} {
		if value != "" {
			args = append(args, "--"+name+"="+value)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(o.RecoveryOptions)) {
		args = append(args, recoveryOption(k, o.RecoveryOptions[k]))
	}
	dirs := []string{p.DataDir}
	for name, dir := range p.Tablespaces {
		args = append(args, "--tablespace-map="+name+"="+dir)
		dirs = append(dirs, dir)
	}
	for _, dir := range dirs {
		if err := durable.MkdirAllOwned(dir, 0o700, owner); err != nil {
			return err
		}
	}
	_, err := t.run(ctx, "restore", args...)
	return err
}

// recoveryOption is a setting for the tool to write: it puts the value between quotes as it is, and PostgreSQL reads
// doubled quotes and escapes there.
func recoveryOption(name, value string) string {
	return "--recovery-option=" + name + "=" + strings.NewReplacer("'", "''", `\`, `\\`).Replace(value)
}

// What verify --output=text says of each part of a stanza, and the counts below it.
var (
	verifyPart = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^\s*(archiveId|backup): ([^,\s]+),(?: status: (\w[\w ]*\w),)? total`)
	})
	verifyCounts = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`: [1-9]`) })
)

// Verify has the tool read the whole stanza, which is all that older versions can, and keeps what concerns the WAL and the
// backup o.Set (empty: every backup).
func (t *tool) Verify(ctx context.Context, o engine.VerifyOptions) (*engine.VerifyResult, error) {
	out, err := t.run(ctx, "verify", "--output=text", "--verbose")
	res, findings := t.readVerify(out, o.Set)
	if err != nil && len(findings) == 0 {
		return nil, err
	}
	if o.Set != "" && !slices.Contains(res.Backups, o.Set) {
		findings = append(findings, engine.Finding{Label: o.Set, Object: repo.BackupDir(t.c.Stanza) + "/" + string(o.Set), What: "pgbackrest verify does not list the backup"})
	}
	res.Findings = findings
	return res, nil
}

func (t *tool) readVerify(out string, set repo.Label) (*engine.VerifyResult, []engine.Finding) {
	res := &engine.VerifyResult{}
	var found []engine.Finding
	object := ""      // of the part that the counts belong to; empty: of no interest
	unexplained := "" // the stanza's status, if bad and no part of it says why
	for line := range strings.Lines(out) {
		line = strings.TrimRight(line, "\n")
		m := verifyPart().FindStringSubmatch(line)
		if m != nil && m[3] != "" && m[3] != "valid" || m == nil && verifyCounts().MatchString(line) {
			unexplained = ""
		}
		switch {
		case m != nil && m[1] == "archiveId":
			object = repo.ArchiveDir(t.c.Stanza) + "/" + m[2]
		case m != nil && (set == "" || m[2] == string(set)):
			object = repo.BackupDir(t.c.Stanza) + "/" + m[2]
			res.Backups = append(res.Backups, repo.Label(m[2]))
			if m[3] != "valid" {
				found = append(found, engine.Finding{Object: object, What: "status " + m[3]})
			}
		case m != nil:
			object = ""
		case object != "" && verifyCounts().MatchString(line):
			found = append(found, engine.Finding{Object: object, What: strings.TrimSpace(line)})
		case strings.HasPrefix(line, "status: ") && line != "status: ok":
			unexplained = line
		}
	}
	if unexplained != "" {
		found = append(found, engine.Finding{Object: "stanza " + t.c.Stanza, What: unexplained})
	}
	return res, found
}

// Remove has the tool expire the backup, and the WAL before the oldest that stays. It refuses to expire the last full backup
// of a cluster and what a removal that died has left; those are removed without it.
func (t *tool) Remove(ctx context.Context, p *engine.RemovePlan) error {
	info, err := t.info(ctx)
	if err != nil {
		return err
	}
	set := p.Backups[len(p.Backups)-1]
	stays, current, listed := 0, 0, false
	for _, db := range info.DB {
		current = max(current, db.ID)
	}
	fulls := 0
	for _, b := range info.Backup {
		gone := slices.Contains(p.Backups, repo.Label(b.Label))
		listed = listed || b.Label == string(set)
		if b.Type == string(repo.Full) && !gone {
			fulls++
			if b.Database.ID == current {
				stays++
			}
		}
	}
	if !listed || stays == 0 {
		return p.Run(ctx)
	}
	_, err = t.run(ctx, "expire", "--set="+string(set), "--repo1-retention-full="+strconv.Itoa(fulls))
	return err
}
