package action

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"holdfast/internal/durable"
	"holdfast/internal/eventbus"
)

// keepTries is how often the topics about to be replaced are copied because records arrive meanwhile.
const keepTries = 3

// openBus reaches the bus, with every topic in sight: those of a set are not those that this instance backs up.
func (a *App) openBus(ctx context.Context) (*eventbus.Bus, error) {
	o := *a.o.Bus
	o.Topics = nil
	return eventbus.Open(ctx, o)
}

// loadBus keeps a safety copy of the topics that exist, replaces them, and compares.
func (r *restoreRun) loadBus(ctx context.Context) error {
	if r.o.EBRestoreFile == "" || r.a.o.Bus == nil {
		return nil
	}
	r.a.step("restore", "eventbus", r.o.EBRestoreFile)
	return wrap(r.replaceTopics(ctx), "event bus")
}

func (r *restoreRun) replaceTopics(ctx context.Context) error {
	b, err := r.a.openBus(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	sum, err := verifyBus(ctx, r.o.EBRestoreFile)
	if err != nil {
		return r.busSums.same(r.o.EBRestoreFile, "", err)
	}
	for try := 1; ; try++ {
		kept, err := r.keepTopics(ctx, b, sum)
		if err != nil {
			return err
		}
		err = r.loadTopics(ctx, b, kept)
		if !errors.Is(err, eventbus.ErrMoved) {
			return err
		}
		r.j.Bus = nil // the load has changed nothing, and what has come since is in no copy
		if err := r.a.writeJournal(r.j); err != nil {
			return err
		}
		if try == keepTries {
			return fmt.Errorf("%w: the topics were copied %d times; stop the producers, then run the restore again", err, try)
		}
		r.a.warn("event bus: %v; it is copied again", err)
	}
}

// keepTopics dumps those topics of the set that exist now into staging. The journal says which they are, and which the load
// will create.
func (r *restoreRun) keepTopics(ctx context.Context, b *eventbus.Bus, set *eventbus.Summary) (*eventbus.Marks, error) {
	var names []string
	for _, t := range set.Topics {
		names = append(names, t.Name)
	}
	marks, err := b.MarksOf(ctx, names)
	if err != nil {
		return nil, err
	}
	r.a.step("restore", "eventbus-keep", fmt.Sprintf("%d topics", len(marks.Topics)))
	bus := &busJournal{}
	here := map[string]bool{}
	for _, t := range marks.Topics {
		here[t.Name] = true
		bus.Topics = append(bus.Topics, t.Name)
	}
	for _, n := range names {
		if !here[n] {
			bus.Creates = append(bus.Creates, n)
		}
	}
	if len(bus.Topics) > 0 {
		bus.Dump = filepath.Join(r.staging, "eventbus")
		if err := errors.Join(os.RemoveAll(bus.Dump), os.Mkdir(bus.Dump, 0o700)); err != nil {
			return nil, err
		}
		if _, err := b.Dump(ctx, marks, &dirSink{dir: bus.Dump}, nil); err != nil {
			return nil, err
		}
		if err := durable.SyncFS(bus.Dump); err != nil {
			return nil, err
		}
	}
	r.j.Bus = bus
	r.started = true
	return marks, r.a.writeJournal(r.j)
}

// loadTopics replaces the topics; Load itself compares what it loaded with the archive, before retention may take any of it.
func (r *restoreRun) loadTopics(ctx context.Context, b *eventbus.Bus, kept *eventbus.Marks) error {
	src, err := openBusSource(r.o.EBRestoreFile)
	if err != nil {
		return err
	}
	r.a.step("restore", "eventbus-load", r.o.EBRestoreFile)
	res, err := b.Load(ctx, src, eventbus.LoadOptions{Replace: true, Until: r.Until, Kept: kept})
	_, sha := src.r.Sums()
	err = errors.Join(err, src.Close())
	if err = r.busSums.same(r.o.EBRestoreFile, sha, err); err != nil { // this reading is what the topics hold now
		return err
	}
	r.res.Bus = &BusProof{Topics: len(res.Topics), Records: res.Records, Left: res.Skipped, Notes: res.Notes}
	return nil
}

// giveBackBus deletes the topics that the restore made, and loads what those held that it replaced. A topic that it did not
// get to is left as it is: records may have come since the copy. It can be repeated.
func (a *App) giveBackBus(ctx context.Context, j *journal) error {
	if j.Bus == nil {
		return nil
	}
	if a.o.Bus == nil {
		return fmt.Errorf("this instance has no event bus any more, but the interrupted restore was replacing the topics %s (their copy is %s): alation_conf eventbus.enabled -s True eventbus.brokers -s HOST:PORT",
			strings.Join(append(j.Bus.Topics, j.Bus.Creates...), ", "), j.Bus.Dump)
	}
	b, err := a.openBus(ctx)
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.Delete(ctx, j.Bus.Creates...); err != nil {
		return err
	}
	if j.Bus.Dump == "" {
		return nil
	}
	src, err := newDirSource(j.Bus.Dump)
	if err != nil {
		return err
	}
	_, err = b.Load(ctx, src, eventbus.LoadOptions{Replace: true, KeepSame: true})
	return err
}
