package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// timelineKey names a timeline of one archive id.
type timelineKey struct {
	archiveID string
	timeline  uint32
}

// history reads a timeline history file.
func (v *verifier) history(ctx context.Context, id, object string) error {
	n, err := strconv.ParseUint(path.Base(object)[:8], 16, 32)
	if err != nil {
		return err // IsHistoryName has looked at it
	}
	var entries []pg.TimelineEntry
	var end lastByte
	err = v.plain(ctx, object, func(r io.Reader) (err error) {
		entries, err = pg.ParseHistory(io.TeeReader(r, &end))
		return err
	})
	silent, cut := v.look(ctx, "", object, err)
	if cut != nil {
		return cut
	}
	switch {
	case err != nil:
	case len(entries) > 0 && end != '\n':
		err = errors.New("it ends in the middle of a line")
	case len(entries) == 0:
		err = errors.New("it names no timeline that this one came from")
	case entries[len(entries)-1].Timeline >= uint32(n):
		err = fmt.Errorf("it names timeline %d as one that timeline %d came from", entries[len(entries)-1].Timeline, n)
	}
	if err != nil && !silent {
		v.find("", object, "%v", err)
	}
	// Even a damaged one is there: only its absence is looked for later.
	v.timelines[timelineKey{id, uint32(n)}] = entries
	return nil
}

// plain opens an object of the archive that is never compressed, and hands what is in it to read.
func (v *verifier) plain(ctx context.Context, object string, read func(io.Reader) error) error {
	r, err := v.s.o.Storage.Open(ctx, object, 0, -1)
	if err != nil {
		return err
	}
	sr, err := repo.NewStreamReader(&ctxReader{ctx, r}, repo.StreamSpec{Compress: repo.None, Pass: v.ai.CipherPass})
	if err == nil {
		err = errors.Join(read(sr), sr.Close())
	}
	return errors.Join(err, r.Close())
}

// lastByte remembers how what was written to it ended.
type lastByte byte

func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		*l = lastByte(p[len(p)-1])
	}
	return len(p), nil
}

// backupHistory reads a backup history file. No recovery needs it, but damage to it tells of the store.
func (v *verifier) backupHistory(ctx context.Context, object string) error {
	err := v.plain(ctx, object, func(r io.Reader) error { return pg.CheckBackupHistory(path.Base(object), r) })
	if silent, cut := v.look(ctx, "", object, err); silent || cut != nil {
		return cut
	}
	if err != nil {
		v.find("", object, "%v", err)
	}
	return nil
}

// beginnings finds WAL of a timeline that lies before the switch at which its history file has it begin.
func (v *verifier) beginnings(id string) {
	size := v.segmentSize[id]
	for key, entries := range v.timelines {
		if key.archiveID != id || len(entries) == 0 || size == 0 {
			continue
		}
		begin := entries[len(entries)-1].Switch
		if first, _ := v.span(id, key.timeline); first != "" && first < pg.SegmentName(key.timeline, begin, size) {
			name := fmt.Sprintf("%08X.history", key.timeline)
			v.find("", repo.SegmentDir(v.s.o.Stanza, id, name)+"/"+name, "it has timeline %d begin at %s, and there is WAL of it from %s on", key.timeline, begin, first)
		}
	}
}

// timelineOf is the timeline in a segment's name.
func timelineOf(segment string) uint32 {
	n, _ := strconv.ParseUint(segment[:8], 16, 32) // a segment's name has been checked
	return uint32(n)
}

// span says from which segment to which a timeline's WAL is in the archive, gaps disregarded; "" when none of it is.
func (v *verifier) span(id string, timeline uint32) (first, last string) {
	for _, r := range v.res.Archives {
		if r.ArchiveID == id && timelineOf(r.Start) == timeline {
			if first == "" {
				first = r.Start
			}
			last = r.Stop
		}
	}
	return first, last
}

// switches follows the timelines from the newest backup, which starts in segment newest, to the latest one: at each
// switch the WAL of the old timeline must reach to where the new one's begins, and PostgreSQL must be able to find the way.
func (v *verifier) switches(id, newest string) {
	size, from := v.segmentSize[id], timelineOf(newest)
	_, start, err := pg.ParseSegmentName(newest, size)
	if err != nil {
		return // no WAL, or none that could be read: found already
	}
	var latest []pg.TimelineEntry
	top := from
	for key, entries := range v.timelines {
		i := slices.IndexFunc(entries, func(e pg.TimelineEntry) bool { return e.Timeline == from && e.Switch > start })
		if key.archiveID == id && key.timeline > top && i >= 0 {
			top, latest = key.timeline, entries[i:]
		}
	}
	for _, r := range v.res.Archives {
		t := timelineOf(r.Start)
		key := timelineKey{id, t}
		if _, known := v.timelines[key]; r.ArchiveID == id && t > from && !known {
			v.timelines[key] = nil // said once
			name := fmt.Sprintf("%08X.history", t)
			v.find("", repo.SegmentDir(v.s.o.Stanza, id, name)+"/"+name, "missing: recovery does not find timeline %d, of which there is WAL; archive the file, which the server has in pg_wal, or make a new backup", t)
		}
	}
	for i, e := range latest {
		next := top
		if i+1 < len(latest) {
			next = latest[i+1].Timeline
		}
		at := pg.SegmentName(next, e.Switch, size) // it begins with a copy of what the old timeline had of it
		_, last := v.span(id, e.Timeline)
		if begin := max(start, e.Switch-e.Switch%pg.LSN(size)); begin > start {
			if last < pg.SegmentName(e.Timeline, begin-1, size) {
				missing := start
				if last != "" {
					_, stop, _ := pg.ParseSegmentName(last, size) // it was read
					missing = max(start, stop+pg.LSN(size))
				}
				v.switchGap(id, pg.SegmentName(e.Timeline, missing, size), e, next)
			}
		}
		if first, _ := v.span(id, next); first > at {
			v.switchGap(id, at, e, next)
		}
		start = e.Switch
	}
}

func (v *verifier) switchGap(id, segment string, e pg.TimelineEntry, next uint32) {
	v.find("", repo.SegmentDir(v.s.o.Stanza, id, segment)+"/"+segment, "gap: missing, and timeline %d went on from timeline %d at %s behind it; no recovery of an earlier backup can pass it: make a new backup", next, e.Timeline, e.Switch)
}
