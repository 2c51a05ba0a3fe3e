package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"holdfast/internal/repo"
)

// CopyResult is what a copy did.
type CopyResult struct {
	Stanza   string            `json:"stanza"`
	Backups  []repo.Label      `json:"backups"`          // copied by this run
	There    []repo.Label      `json:"there"`            // were in the target before
	Failed   []CopyFailure     `json:"failed,omitempty"` // what could not be copied, although everything else was
	Objects  int               `json:"objects"`          // copied, WAL included
	Bytes    int64             `json:"bytes"`            // as stored in the source
	Segments int               `json:"segments"`         // WAL segments among them
	LastWAL  map[string]string `json:"last_wal"`         // by archive id of the target: the highest segment that the plan had
	Duration time.Duration     `json:"duration_ns"`
}

// CopyFailure is a backup or WAL object that could not be copied.
type CopyFailure struct {
	Label  repo.Label `json:"label,omitempty"` // empty: WAL that no backup needs
	Object string     `json:"object,omitempty"`
	Reason string     `json:"reason"`
}

func (f CopyFailure) String() string {
	if f.Label != "" {
		return fmt.Sprintf("backup %s: %s", f.Label, f.Reason)
	}
	return f.Reason
}

// copyRun is one copy in progress.
type copyRun struct {
	*CopyPlan
	res    CopyResult
	sent   map[string]bool
	sender *walCopy
}

// Run copies what the plan says. Backups come one after the other, each existing in the target from the moment that it is whole;
// then the rest of the WAL. What is damaged in the source is left out, with what is built on it, and reported in Failed and in
// the error, which is ErrNotClosed then; everything else is copied all the same. Any other error ends the run, as does a
// cancelled context, after which the target is not changed any more. Running a new plan goes on where this one stopped.
//
// The target's backup lock is taken for moments only; ErrStopped while a stop file is there.
func (p *CopyPlan) Run(ctx context.Context) (*CopyResult, error) {
	began := p.to.o.Now()
	r := &copyRun{CopyPlan: p, sent: map[string]bool{}, res: CopyResult{Stanza: p.ToStanza, Backups: []repo.Label{}, There: []repo.Label{}, LastWAL: map[string]string{}}}
	if err := r.run(ctx); err != nil {
		return nil, fmt.Errorf("copy stanza %s: %w", p.Stanza, err)
	}
	r.res.Duration = p.to.o.Now().Sub(began)
	if n := len(r.res.Failed); n > 0 {
		return &r.res, fmt.Errorf("copy stanza %s: %w: %s%s", p.Stanza, ErrNotClosed, r.res.Failed[0], more(n-1))
	}
	return &r.res, nil
}

func more(n int) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("; and %d more", n)
}

func (r *copyRun) run(ctx context.Context) error {
	if err := r.to.stopped(); err != nil {
		return err
	}
	if err := r.stanza(ctx); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	r.sender = &walCopy{from: r.from, to: r.to, pass: r.src.ai.CipherPass, toPass: r.dst.ai.CipherPass, processMax: r.o.ProcessMax, rate: newRate(r.o.Rate, r.to.o.Now)}
	for i := range r.Backups {
		b := &r.Backups[i]
		r.closed() // a failure refuses what is built on it
		switch b.State {
		case CopyThere:
			r.res.There = append(r.res.There, b.Label)
			continue
		case CopyRefused:
			r.fail(CopyFailure{Label: b.Label, Reason: b.Reason})
			continue
		}
		r.from.step("copy", "backup", string(b.Label))
		if err := r.refused(ctx, b, r.backup(ctx, b)); err != nil {
			return err
		}
		if b.State == CopyRefused {
			r.fail(CopyFailure{Label: b.Label, Reason: b.Reason})
		}
	}
	if err := r.otherWAL(ctx); err != nil {
		return err
	}
	return r.to.sweep(ctx, "copy")
}

func (r *copyRun) fail(f CopyFailure) {
	r.res.Failed = append(r.res.Failed, f)
	r.from.warn("not copied: %s", f)
}

// stanza makes the target's stanza, or adds to its history, and mends what a run that died left of the info files.
func (r *copyRun) stanza(ctx context.Context) error {
	kinds := []string{repo.LockBackup}
	if r.Creates || slices.ContainsFunc(r.Clusters, func(c CopyCluster) bool { return c.New }) {
		kinds = []string{repo.LockArchive, repo.LockBackup}
	}
	release, err := r.to.lockWait(ctx, kinds...)
	if err != nil {
		return err
	}
	return errors.Join(r.writeStanza(ctx), release())
}

func (r *copyRun) writeStanza(ctx context.Context) error {
	r.to.step("copy", "stanza", r.ToStanza)
	now, creates, err := r.to.copyTarget(ctx, r.src, &r.o)
	if err != nil {
		return err
	}
	if creates != r.Creates {
		return errChanged
	}
	if creates {
		now = r.dst // with the passphrases that the plan chose
	}
	clusters, changed, err := r.places(now)
	if err != nil {
		return err
	}
	for i := range clusters {
		if clusters[i].to.ID != r.Clusters[i].to.ID {
			return errChanged
		}
	}
	if creates || changed {
		// archive.info first, as at a creation: alone it is completed by the next run.
		now.ai.BackrestVersion, now.bi.BackrestVersion = r.to.o.Version, r.to.o.Version
		if err := repo.SaveArchiveInfo(ctx, r.to.o.Storage, r.ToStanza, now.ai, r.to.o.Pass); err != nil {
			return fmt.Errorf("save archive.info: %w", err)
		}
		if err := repo.SaveBackupInfo(ctx, r.to.o.Storage, r.ToStanza, now.bi, r.to.o.Pass); err != nil {
			return fmt.Errorf("save backup.info: %w", err)
		}
	} else if _, err := r.to.repairCopies(ctx, now.ai, now.bi); err != nil {
		return err
	}
	if now.ai.CipherPass != r.dst.ai.CipherPass || now.bi.CipherPass != r.dst.bi.CipherPass {
		return errChanged
	}
	r.dst = now
	return nil
}

// errChanged says that somebody else changed the target's stanza.
var errChanged = errors.New("the stanza changed since the plan was made: make the plan again")

// places finds the clusters of the plan in the target's history again.
func (r *copyRun) places(now infos) ([]CopyCluster, bool, error) {
	var used []int
	for _, c := range r.Clusters {
		used = append(used, c.from.ID)
	}
	return placeClusters(now, r.src, used)
}

// backup copies one backup with its WAL and makes it exist.
func (r *copyRun) backup(ctx context.Context, b *CopyBackup) error {
	c, err := r.prepare(ctx, b)
	if err != nil {
		return err
	}
	if err := c.copyObjects(ctx); err != nil {
		return r.vanished(ctx, b, err)
	}
	if err := r.neededWAL(ctx, b); err != nil {
		return err
	}
	if err := r.publish(ctx, c); err != nil {
		return err
	}
	r.res.Backups = append(r.res.Backups, b.Label)
	r.res.Objects += len(c.units)
	for _, u := range c.units {
		r.res.Bytes += u.size
	}
	return nil
}

// vanished says so when objects are missing because the whole backup was removed from the source meanwhile.
func (r *copyRun) vanished(ctx context.Context, b *CopyBackup, err error) error {
	if !errors.Is(err, errSourceGone) {
		return err
	}
	if _, serr := r.from.o.Storage.Stat(ctx, repo.ManifestPath(r.Stanza, b.Label)); errors.Is(serr, fs.ErrNotExist) {
		return fmt.Errorf("%w: it was removed from the source while it was copied", errSourceGone)
	}
	return err
}

// archiveOf is the WAL plan of a backup's cluster.
func (r *copyRun) archiveOf(b *CopyBackup) *CopyWAL {
	return r.wal[repo.ArchiveID(findDB(r.src.bi.History, b.line.DBID).Version, b.line.DBID)]
}

// neededWAL copies the WAL without which a backup does not restore, and the histories of its cluster's timelines.
func (r *copyRun) neededWAL(ctx context.Context, b *CopyBackup) error {
	need := map[string]bool{}
	for _, s := range b.segments {
		need[s] = true
	}
	w := r.archiveOf(b)
	return r.sendWAL(ctx, w, func(o *walObject) bool {
		return o.segment == "" || need[o.segment]
	})
}

// otherWAL copies what is left, and goes on after damaged segments.
func (r *copyRun) otherWAL(ctx context.Context) error {
	for _, c := range r.Clusters {
		w := r.wal[c.From]
		if w == nil {
			continue
		}
		if w.Last != "" {
			r.res.LastWAL[w.To] = w.Last
		}
		for {
			err := r.sendWAL(ctx, w, func(*walObject) bool { return true })
			if err == nil {
				break
			}
			failed := r.sender.failed
			if ctx.Err() != nil || failed == "" || !isDamage(err) {
				return err
			}
			r.sent[failed] = true
			r.fail(CopyFailure{Object: failed, Reason: err.Error()})
		}
	}
	return nil
}

// sendWAL copies the objects that are chosen and were not yet sent.
func (r *copyRun) sendWAL(ctx context.Context, w *CopyWAL, choose func(*walObject) bool) error {
	if w == nil {
		return nil
	}
	var list []walObject
	for i := range w.objects {
		if o := &w.objects[i]; !r.sent[o.from] && choose(o) {
			list = append(list, *o)
		}
	}
	if len(list) > 0 {
		r.from.step("copy", "wal", fmt.Sprintf("%d objects of %s", len(list), w.To))
		var total int64
		for i := range list {
			total += list[i].size
		}
		r.from.o.Events(Amount{"copy", len(list), total})
	}
	return r.sender.run(ctx, list, func(o *walObject) {
		r.sent[o.from] = true
		r.res.Objects++
		r.res.Bytes += o.size
		if o.segment != "" {
			r.res.Segments++
		}
	})
}

// publish makes the backup exist in the target, as a backup does it: everything durable, manifest, history, backup.info. The info
// files are read again under the lock, because others may have changed them.
func (r *copyRun) publish(ctx context.Context, c *backupCopy) error {
	s := r.to
	s.step("copy", "publish", string(c.m.Label))
	c.t.BackrestVersion = c.m.BackrestVersion
	if err := s.hardlinks(ctx, c.t); err != nil {
		return err
	}
	if err := s.makeDirs(ctx, c.t); err != nil {
		return err
	}
	if err := s.o.Storage.Sync(ctx); err != nil {
		return fmt.Errorf("sync the target: %w", err)
	}
	if err := c.complete(ctx); err != nil {
		return err
	}
	release, err := s.lockWait(ctx, repo.LockBackup)
	if err != nil {
		return err
	}
	return errors.Join(r.publishLocked(ctx, c), release())
}

func (r *copyRun) publishLocked(ctx context.Context, c *backupCopy) error {
	s, label := r.to, c.m.Label
	unfinished := repo.ManifestPath(r.ToStanza, label) + ".copy"
	sum, err := repo.ManifestCopySum(ctx, s.o.Storage, r.ToStanza, label)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is gone: the copy was removed while it was made; see whether a backup or expire runs on the target, and copy again", unfinished)
	}
	if err != nil {
		return err
	}
	if sum != c.sum {
		return fmt.Errorf("%s is not what this copy saved: another host copies the same backup to this target; copy again when it has ended", unfinished)
	}
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return err
	}
	if bi.CipherPass != r.dst.bi.CipherPass || ai.CipherPass != r.dst.ai.CipherPass || !isCluster(findDB(bi.History, c.t.DB.ID), c.t.DB) {
		return errChanged
	}
	if prior := c.m.Prior; prior != "" && bi.Find(prior) == nil {
		return fmt.Errorf("backup %s, which %s is built on, was removed from the target while it was copied: copy again", prior, label)
	}
	if err := repo.PublishManifest(ctx, s.o.Storage, r.ToStanza, c.t, bi.CipherPass); err != nil {
		return err
	}
	s.step("copy", "catalogue", string(label))
	bi.Put(targetLine(c.b.line, c.t.DB, c.t.BackupLine()))
	bi.BackrestVersion, ai.BackrestVersion = s.o.Version, s.o.Version
	if err := repo.SaveBackupInfo(ctx, s.o.Storage, r.ToStanza, bi, s.o.Pass); err != nil {
		return fmt.Errorf("save backup.info: %w", err)
	}
	if err := repo.SaveArchiveInfo(ctx, s.o.Storage, r.ToStanza, ai, s.o.Pass); err != nil {
		return fmt.Errorf("save archive.info: %w", err)
	}
	s.relinkLatest(ctx, bi)
	r.dst = infos{ai, bi}
	i := slices.IndexFunc(r.Backups, func(b CopyBackup) bool { return b.Label == label })
	r.Backups[i].State = CopyThere
	return nil
}
