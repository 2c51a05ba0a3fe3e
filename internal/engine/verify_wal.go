package engine

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// WALRange is a run of WAL segments of one timeline without a gap.
type WALRange struct {
	ArchiveID string `json:"archive_id"`
	Start     string `json:"start"`
	Stop      string `json:"stop"`
	Segments  int    `json:"segments"`
}

// archive reads all WAL and every history file.
func (v *verifier) archive(ctx context.Context) error {
	for _, db := range v.ai.History {
		id := repo.ArchiveID(db.Version, db.ID)
		v.s.step("verify", "archive", id)
		dir := repo.ArchiveDir(v.s.o.Stanza) + "/" + id
		for info, err := range v.s.o.Storage.List(ctx, dir, storage.ListOptions{}) {
			if err != nil {
				return fmt.Errorf("list %s: %w", dir, err)
			}
			name := path.Base(info.Name)
			switch {
			case info.Dir && len(name) == 16:
				if err := v.walDir(ctx, id, info.Name); err != nil {
					return err
				}
			case pg.IsHistoryName(name):
				if err := v.history(ctx, id, info.Name); err != nil {
					return err
				}
			}
		}
		v.beginnings(id)
		v.gaps(db, id)
	}
	return nil
}

// walDir reads the segments of one 16-digit directory. Listings come in the order of names, so that the ranges grow.
func (v *verifier) walDir(ctx context.Context, id, dir string) error {
	copies := map[string][]segmentObject{}
	var names []string
	for info, err := range v.s.o.Storage.List(ctx, dir, storage.ListOptions{}) {
		if err != nil {
			return fmt.Errorf("list %s: %w", dir, err)
		}
		base := path.Base(info.Name)
		seg, sum, c, ok := repo.ParseSegmentObject(base)
		if !ok {
			if !pg.IsBackupHistoryName(base) {
				v.find("", info.Name, "does not belong into the archive")
			} else if err := v.backupHistory(ctx, info.Name); err != nil {
				return err
			}
			continue
		}
		if len(copies[seg]) == 0 {
			names = append(names, seg)
		}
		copies[seg] = append(copies[seg], segmentObject{info.Name, sum, c})
	}
	crew := v.newCrew(ctx)
	sizes := make([]int64, len(names))
	for i, seg := range names {
		crew.run(func(ctx context.Context) (err error) {
			sizes[i], err = v.segment(ctx, id, seg, copies[seg])
			return err
		})
	}
	if err := crew.g.Wait(); err != nil {
		return err
	}
	for i, seg := range names {
		if pg.IsSegmentName(seg) { // a .partial segment is no part of a range
			v.extend(id, seg, uint32(sizes[i]))
		}
	}
	return nil
}

// segment reads one WAL segment and returns its size, 0 when it could not be read. It may be there several times, of which one
// good copy is enough.
func (v *verifier) segment(ctx context.Context, id, seg string, copies []segmentObject) (size int64, err error) {
	v.mu.Lock()
	v.res.Segments++
	v.mu.Unlock()
	is := isDamaged // unless a copy turns out to be good
	if sameContent(copies) {
		for _, o := range copies {
			n, copyIs, err := v.segmentCopy(ctx, seg, o)
			if err != nil {
				return 0, err
			}
			if copyIs == isUnread {
				is = isUnread
			}
			size = max(size, n)
		}
	} else {
		v.find("", path.Dir(copies[0].name)+"/"+seg, "%d different copies in the archive: which is right can't be told", len(copies))
	}
	if size == 0 {
		v.mu.Lock()
		v.badWAL[id+"/"+seg] = is
		v.mu.Unlock()
	}
	return size, nil
}

// segmentCopy reads one stored copy of a segment and returns its size, 0 when it is not as it should be.
func (v *verifier) segmentCopy(ctx context.Context, seg string, o segmentObject) (size int64, is outcome, err error) {
	spec := repo.StreamSpec{Compress: o.compress, Pass: v.ai.CipherPass}
	r, err := v.s.open(ctx, o.name, 0, -1)
	var sum string
	var head headWriter
	if err == nil {
		sum, size, err = decodeTo(ctx, &head, r, spec)
		err = errors.Join(err, r.Close())
	}
	if silent, cut := v.look(ctx, "", o.name, err); silent || cut != nil {
		return 0, isUnread, cut
	}
	v.mu.Lock()
	v.res.Bytes += size
	v.mu.Unlock()
	switch {
	case err != nil:
	case sum != o.sha1:
		err = fmt.Errorf("SHA-1 is %s, should be %s", sum, o.sha1)
	case size == 0:
		err = errors.New("the segment is empty")
	default:
		err = head.check(seg, size)
	}
	if err != nil {
		v.find("", o.name, "%v", err)
		return 0, isDamaged, nil
	}
	return size, isSound, nil
}

// headWriter keeps the beginning of a segment, where its page header is.
type headWriter struct{ b []byte }

func (h *headWriter) Write(p []byte) (int, error) {
	if room := 8192 - len(h.b); room > 0 {
		h.b = append(h.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}

// check compares the size with that of the header. What does not begin with one (a segment of zeros) is left alone.
func (h *headWriter) check(seg string, size int64) error {
	head, err := pg.ParseWALHeader(h.b)
	if err == nil && pg.IsSegmentName(seg) && int64(head.SegmentSize) != size {
		return fmt.Errorf("size is %d, its header says %d", size, head.SegmentSize)
	}
	return nil
}

// extend adds a segment to the last range, or begins one after a gap.
func (v *verifier) extend(id, seg string, size uint32) {
	if pg.ValidSegmentSize(size) {
		v.segmentSize[id] = size
	}
	n := len(v.res.Archives)
	if n > 0 && pg.ValidSegmentSize(size) {
		last := &v.res.Archives[n-1]
		if last.ArchiveID == id && follows(last.Stop, seg, size) {
			last.Stop = seg
			last.Segments++
			return
		}
	} else if n > 0 && size == 0 && v.res.Archives[n-1].ArchiveID == id && v.res.Archives[n-1].Stop[:8] == seg[:8] {
		v.res.Archives[n-1].Stop = seg // damaged: that is a finding of its own, not a gap
		v.res.Archives[n-1].Segments++
		return
	}
	v.res.Archives = append(v.res.Archives, WALRange{id, seg, seg, 1})
}

func follows(a, b string, size uint32) bool {
	tli, lsn, err := pg.ParseSegmentName(a, size)
	return err == nil && pg.SegmentName(tli, lsn+pg.LSN(size), size) == b
}

// gaps reports breaks in a timeline's WAL that neither retention nor a copy made. Retention never removes WAL after the start of
// the newest backup. With the archive's retention by diff or incr backups it may after that of the newest full one, but then from
// the end of one backup to the start of another, as a copy with no more WAL than the backups need leaves it, too.
func (v *verifier) gaps(db repo.DB, id string) {
	full, newest := "", ""
	starts, stops := map[string]bool{}, map[string]bool{}
	for _, l := range v.bi.Backups {
		if l.DBID != db.ID || l.ArchiveStart == "" {
			continue
		}
		newest = l.ArchiveStart
		starts[l.ArchiveStart], stops[l.ArchiveStop] = true, true
		if l.Type == repo.Full {
			full = l.ArchiveStart
		}
	}
	for i := 1; i < len(v.res.Archives); i++ {
		a, b := v.res.Archives[i-1], v.res.Archives[i]
		if a.ArchiveID != id || b.ArchiveID != id || a.Stop[:8] != b.Start[:8] || newest == "" {
			continue
		}
		if a.Stop >= newest || full != "" && a.Stop >= full && !(stops[a.Stop] && starts[b.Start]) {
			v.find("", repo.SegmentDir(v.s.o.Stanza, id, b.Start)+"/"+b.Start, "gap: the segments between %s and %s are missing; no recovery can pass it: make a new backup", a.Stop, b.Start)
		}
	}
	if newest != "" {
		v.switches(id, newest)
	}
}

// backupWAL makes sure that the WAL which a backup needs is there and sound; it returns how many segments are not, and of how many
// the storage gave no answer.
func (v *verifier) backupWAL(ctx context.Context, m *repo.Manifest) (lost, silent int, err error) {
	if m.ArchiveStart == "" || !m.Options.ArchiveCheck {
		return 0, 0, nil
	}
	id := repo.ArchiveID(m.DB.Version, m.DB.ID)
	segments, err := neededSegments(m)
	if err != nil {
		v.find(m.Label, repo.ManifestPath(v.s.o.Stanza, m.Label), "%v", err)
		return 0, 0, nil
	}
	for _, seg := range segments {
		if v.set == "" && len(v.badWAL) == 0 && v.inRange(id, seg) {
			continue // read and sound: not asked for again
		}
		found, err := v.s.segmentObjects(ctx, repo.SegmentDir(v.s.o.Stanza, id, seg), seg)
		if err != nil {
			return 0, 0, err
		}
		switch {
		case len(found) == 0:
			v.find(m.Label, repo.SegmentDir(v.s.o.Stanza, id, seg)+"/"+seg, "WAL segment missing: backup %s can't be made consistent", m.Label)
			continue
		case v.set != "":
			if _, err := v.segment(ctx, id, seg, found); err != nil {
				return 0, 0, err
			}
		}
		switch v.badWAL[id+"/"+seg] {
		case isDamaged:
			lost++
		case isUnread:
			silent++
		}
	}
	return lost, silent, nil
}

// inRange says whether the archive was seen to have a segment.
func (v *verifier) inRange(id, seg string) bool {
	return slices.ContainsFunc(v.res.Archives, func(r WALRange) bool {
		return r.ArchiveID == id && r.Start[:8] == seg[:8] && r.Start <= seg && seg <= r.Stop
	})
}

// neededSegments names the WAL that a restore of the backup needs. The repository does not record the segment size (format
// page, section 11.1): it is the one that makes the manifest's positions and names agree.
func neededSegments(m *repo.Manifest) ([]string, error) {
	start, err1 := pg.ParseLSN(m.LSNStart)
	stop, err2 := pg.ParseLSN(m.LSNStop)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	sizes := []uint32{16, 1, 2, 4, 8, 32, 64, 128, 256, 512, 1024}
	i := slices.IndexFunc(sizes, func(mb uint32) bool {
		tli, _, err := pg.ParseSegmentName(m.ArchiveStart, mb<<20)
		return err == nil && pg.SegmentName(tli, start, mb<<20) == m.ArchiveStart && pg.SegmentName(tli, stop, mb<<20) == m.ArchiveStop
	})
	if i < 0 {
		return nil, fmt.Errorf("its WAL range %s to %s does not fit its positions %s to %s", m.ArchiveStart, m.ArchiveStop, m.LSNStart, m.LSNStop)
	}
	size := sizes[i] << 20
	tli, _, err := pg.ParseSegmentName(m.ArchiveStart, size)
	if err != nil {
		return nil, err
	}
	return pg.SegmentsBetween(tli, start, stop, size), nil
}
