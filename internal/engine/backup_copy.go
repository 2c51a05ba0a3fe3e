package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"holdfast/internal/repo"
)

// copyBuffer is how much of a file one worker reads at once, in bytes.
const copyBuffer = 1 << 20

// clockGrain is how far the clock by which the kernel stamps files may lag behind the time of day: one tick.
const clockGrain = 20 * time.Millisecond

// hotWait is more than ever has to be waited for a second to be over. A clock that was put back would ask for it.
const hotWait = 2 * time.Second

const controlName = "pg_data/global/pg_control"

// Defaults of BackupOptions, in bytes.
const (
	defaultBundleSize    = 20 << 20
	defaultBundleLimit   = 2 << 20
	defaultSaveThreshold = 1 << 30

	superBlockFull = 1 << 20   // original bytes in a super block of a full backup
	superBlockDiff = 256 << 10 // … of a diff or incr
)

// job is what one worker does at a time: one large file, or the files of one bundle.
type job struct {
	files  []todo
	bundle int64 // its number; 0: not bundled
	hot    bool  // some file's time stamp may still stay the same when it is written again
}

// jobs cuts the work: large files first and by size, then bundles in the order of names, which is that of directories.
// Files whose time stamp lies in the current second or later come last, when that second is over: written again within it
// they would keep their time stamp, and a later incremental backup would take them for unchanged (format page, 13.4).
func (r *backupRun) jobs(work []todo) []job {
	files := r.m.Files
	var list, bundles []job
	var open job
	var bytes int64
	next := int64(1)
	closeBundle := func() {
		if len(open.files) > 0 {
			open.bundle = next
			next++
			bundles = append(bundles, open)
		}
		open, bytes = job{}, 0
	}
	for _, hot := range []bool{false, true} {
		space := ""
		for _, t := range work {
			f := &files[t.index]
			switch {
			case f.Timestamp >= r.scanned.Add(-clockGrain).Unix() != hot:
			case !r.m.Bundle || f.Size > r.o.BundleLimit:
				list = append(list, job{files: []todo{t}, hot: hot})
			case f.Size == 0: // of these a bundled backup stores nothing
			default:
				if s := spaceOf(f.Name); s != space { // one bundle, one tablespace
					closeBundle()
					space = s
				}
				open.files, open.hot = append(open.files, t), hot
				if bytes += f.Size; bytes >= r.o.BundleSize {
					closeBundle()
				}
			}
		}
		closeBundle()
	}
	slices.SortStableFunc(list, func(a, b job) int { return cmp.Compare(files[b.files[0].index].Size, files[a.files[0].index].Size) })
	list = append(list, bundles...)
	slices.SortStableFunc(list, func(a, b job) int { return hotLast(a) - hotLast(b) })
	return list
}

func hotLast(j job) int {
	if j.hot {
		return 1
	}
	return 0
}

// spaceOf is the tablespace of a manifest name.
func spaceOf(name string) string {
	if rest, ok := strings.CutPrefix(name, "pg_tblspc/"); ok {
		oid, _, _ := strings.Cut(rest, "/")
		return oid
	}
	return ""
}

// copier is the state that the workers of one backup share.
type copier struct {
	*backupRun
	mu       sync.Mutex // guards what follows, and the manifest's files
	vanished []bool     // by index in the manifest's files
	unsaved  int64      // bytes stored since the manifest was last saved
	saving   bool       // the manifest is being saved: its files stay as they are
	waiting  []jobDone  // to enter into it after that
}

// jobDone is what the manifest is to say of the files of a job.
type jobDone struct {
	job   job
	files []repo.File
}

// copyFiles stores the files of the work list and drops from the manifest those that vanished.
func (r *backupRun) copyFiles(ctx context.Context, work []todo) error {
	jobs := r.jobs(work)
	var total int64
	for _, t := range work {
		total += r.m.Files[t.index].Size
	}
	r.s.step("backup", "copy", string(r.m.Label))
	r.s.o.Events(Amount{"backup", len(work), total})
	c := &copier{backupRun: r, vanished: make([]bool, len(r.m.Files))}
	threshold := max(r.o.SaveThreshold, total/100)
	queue := make(chan job)
	g := newCrew(ctx, 0)
	ctx = g.ctx
	g.run(func() error {
		defer close(queue)
		waited := false
		for _, j := range jobs {
			if j.hot && !waited {
				waited = true
				if err := sleepUntil(ctx, r.s.o.Now, time.Unix(r.m.TimeCopyStart, 0).Add(clockGrain), hotWait); err != nil {
					return err
				}
			}
			select {
			case queue <- j:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range r.o.ProcessMax {
		g.run(func() error {
			buf := make([]byte, copyBuffer)
			for j := range queue {
				if err := c.do(ctx, j, buf); err != nil {
					return err
				}
				if c.saveDue(threshold) {
					g.run(func() error { return c.save(ctx) })
				}
			}
			return nil
		})
	}
	if err := g.wait(r.s.o.Storage); err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
			return cause
		}
		return err
	}
	slices.Sort(r.res.PageErrors)
	before := len(r.m.Files)
	i := -1
	r.m.Files = slices.DeleteFunc(r.m.Files, func(repo.File) bool { i++; return c.vanished[i] })
	r.res.Vanished = before - len(r.m.Files)
	if !r.m.HasFile(controlName) {
		return errors.New("global/pg_control was not copied: the data directory was removed during the backup")
	}
	return nil
}

// do copies the files of one job.
func (c *copier) do(ctx context.Context, j job, buf []byte) error {
	var shared *output
	if j.bundle != 0 {
		shared = c.newOutput(ctx, fmt.Sprintf("%s/%s/bundle/%d", repo.BackupDir(c.Stanza), c.m.Label, j.bundle), 0)
		defer shared.abort()
	}
	done := make([]repo.File, 0, len(j.files))
	maps := c.newMapsAhead(ctx, j)
	defer maps.close()
	for i, t := range j.files {
		f := c.m.Files[t.index] // a copy: others read the list when they save the manifest
		w := fileWork{backupRun: c.backupRun, todo: t, f: &f, bundle: j.bundle, shared: shared, buf: buf, maps: maps, nth: i}
		gone, err := w.run(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		if gone {
			c.vanished[t.index] = true // each index belongs to one worker
		}
		done = append(done, f)
	}
	if shared != nil {
		if err := shared.commit(ctx); err != nil {
			return fmt.Errorf("bundle %d: %w", j.bundle, err)
		}
	}
	// Only now: what the manifest says of a file must be in the repository.
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.saving {
		c.waiting = append(c.waiting, jobDone{j, done})
	} else {
		c.enter(jobDone{j, done})
	}
	return nil
}

// enter puts files that are stored into the manifest. The caller holds mu.
func (c *copier) enter(s jobDone) {
	for i, t := range s.job.files {
		f := s.files[i]
		if c.vanished[t.index] {
			continue
		}
		c.m.Files[t.index] = f
		c.unsaved += f.Size
		if f.Reference == "" && f.PageChecked && !f.PageOK {
			c.res.PageErrors = append(c.res.PageErrors, f.Name)
		}
	}
}

// saveDue says whether the manifest of the unfinished backup is to be saved, which it is now and then, so that an interrupted run
// can be resumed. The caller must then save it.
func (c *copier) saveDue(threshold int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.saving || c.unsaved < threshold {
		return false
	}
	c.unsaved, c.saving = 0, true
	return true
}

// save writes the manifest while the workers go on: on a store behind a network it takes several times the way there and back.
func (c *copier) save(ctx context.Context) error {
	err := c.stillOurs(ctx)
	if err == nil {
		err = c.saveCopy(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saving = false
	for _, s := range c.waiting {
		c.enter(s)
	}
	c.waiting = nil
	return err
}

// sleepUntil waits for a moment, at most so long.
func sleepUntil(ctx context.Context, now func() time.Time, t time.Time, most time.Duration) error {
	for most > 0 {
		d := min(t.Sub(now()), most, time.Second)
		if d <= 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(d):
		}
		most -= d
	}
	return nil
}
