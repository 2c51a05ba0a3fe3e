package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// walObject is one object of the archive: a segment (or .partial), a timeline history or a .backup file.
type walObject struct {
	segment  string // "" for a history file
	from, to string // objects
	size     int64  // as stored in the source
	sha1     string // of a segment, from its name
	compress repo.CompressType
}

// walListing is what a source and a target have of one cluster's archive, as far as it was looked at.
type walListing struct {
	from, to string                 // directories of the two archive ids
	src      map[string][]walObject // by segment, or by the base name of other files
	held     map[string]string      // SHA-1 of the target's segments, "" for its other files; by the same names
	history  []walObject            // of the source
}

// archive works out which WAL is to be copied, and refuses backups whose WAL is not there.
func (p *CopyPlan) archive(ctx context.Context) error {
	for i := range p.Clusters {
		c := &p.Clusters[i]
		l, from, err := p.listWAL(ctx, c)
		if err != nil {
			return err
		}
		for j := range p.Backups {
			b := &p.Backups[j]
			if b.line.DBID == c.from.ID && (b.State == CopyNew || b.State == CopyUnfinished) {
				p.hasWAL(b, l)
			}
		}
		if err := p.named(c, l); err != nil {
			return err
		}
		p.closed()
		if err := p.sameTimelines(ctx, l); err != nil {
			return err
		}
		w, err := p.chooseWAL(c, l, from)
		if err != nil {
			return err
		}
		p.wal[c.From] = w
	}
	return nil
}

// hasWAL refuses a backup of which neither side has all of the WAL that it can't do without.
func (p *CopyPlan) hasWAL(b *CopyBackup, l *walListing) {
	for _, seg := range b.segments {
		_, held := l.held[seg]
		switch objects := l.src[seg]; {
		case len(objects) == 0 && !held && !b.line.ArchiveCheck:
			p.warn("backup %s was made without a check of the archive, and WAL segment %s of it is not there: it may not restore", b.Label, seg)
			return
		case len(objects) == 0 && !held:
			b.refuse("%v: WAL segment %s is not in the archive", ErrNotClosed, seg)
			return
		case differ(objects):
			b.refuse("%v: the archive has different copies of WAL segment %s, and which is right can't be told", ErrNotClosed, seg)
			return
		}
	}
}

// named refuses a plan for whose named segments there is no whole copy.
func (p *CopyPlan) named(c *CopyCluster, l *walListing) error {
	for _, seg := range p.segmentsOf(c) {
		_, held := l.held[seg]
		if objects := l.src[seg]; len(objects) == 0 && !held || len(objects) > 0 && differ(objects) {
			return fmt.Errorf("%w: WAL segment %s: %w", ErrNotClosed, seg, ErrWALMissing)
		}
	}
	return nil
}

// segmentsOf are the named segments, if they are of this cluster.
func (p *CopyPlan) segmentsOf(c *CopyCluster) []string {
	if len(p.o.Sets) == 1 && p.src.bi.Find(p.o.Sets[0]).DBID == c.from.ID {
		return p.o.Segments
	}
	return nil
}

// differ says whether the copies of a segment do not all have the same content.
func differ(objects []walObject) bool {
	return slices.ContainsFunc(objects, func(o walObject) bool { return o.sha1 != objects[0].sha1 })
}

// listWAL lists the directories of a cluster's archive that may hold what is to be copied. from is the position from which on
// everything is, "" when only what backups need is.
func (p *CopyPlan) listWAL(ctx context.Context, c *CopyCluster) (l *walListing, from string, err error) {
	l = &walListing{from: repo.ArchiveDir(p.Stanza) + "/" + c.From, to: repo.ArchiveDir(p.ToStanza) + "/" + c.To, src: map[string][]walObject{}, held: map[string]string{}}
	need := map[string]bool{} // directories
	for _, seg := range p.segmentsOf(c) {
		need[seg[:16]] = true
	}
	for i := range p.Backups {
		b := &p.Backups[i]
		if b.line.DBID != c.from.ID || b.State == CopyRefused {
			continue
		}
		for _, seg := range b.segments {
			need[seg[:16]] = true
		}
		if p.o.WAL == WALAll {
			from = oldest(from, position(b.line.ArchiveStart))
		}
	}
	for i := range p.dst.bi.Backups {
		if b := &p.dst.bi.Backups[i]; p.o.WAL == WALAll && b.DBID == c.to.ID {
			from = oldest(from, position(b.ArchiveStart))
		}
	}
	var dirs []string
	for info, err := range p.from.o.Storage.List(ctx, l.from, storage.ListOptions{}) {
		if err != nil {
			return nil, "", fmt.Errorf("list %s: %w", l.from, err)
		}
		name := path.Base(info.Name)
		switch {
		case !info.Dir && pg.IsHistoryName(name):
			l.history = append(l.history, walObject{from: info.Name, to: l.to + "/" + name, size: info.Size, compress: repo.None})
		case info.Dir && isSegmentDir(name) && (need[name] || from != "" && name[8:] >= from[:8]):
			dirs = append(dirs, name)
		}
	}
	for info, err := range p.to.o.Storage.List(ctx, l.to, storage.ListOptions{}) {
		if err != nil {
			return nil, "", fmt.Errorf("target: list %s: %w", l.to, err)
		}
		if name := path.Base(info.Name); !info.Dir && pg.IsHistoryName(name) {
			l.held[name] = ""
		}
	}
	return l, from, p.listDirs(ctx, l, dirs)
}

// listDirs lists 16-digit directories of both sides.
func (p *CopyPlan) listDirs(ctx context.Context, l *walListing, dirs []string) error {
	type side struct{ src, dst []storage.Info }
	found := make([]side, len(dirs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(questions(p.from.o.Storage, questions(p.to.o.Storage, p.o.ProcessMax)))
	list := func(st storage.Storage, dir string, into *[]storage.Info) func() error {
		return func() error {
			for info, err := range st.List(gctx, dir, storage.ListOptions{}) {
				if err != nil {
					return fmt.Errorf("list %s: %w", dir, err)
				}
				*into = append(*into, info)
			}
			return nil
		}
	}
	for i, d := range dirs {
		g.Go(list(p.from.o.Storage, l.from+"/"+d, &found[i].src))
		g.Go(list(p.to.o.Storage, l.to+"/"+d, &found[i].dst))
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, d := range dirs {
		for _, info := range found[i].src {
			name := path.Base(info.Name)
			seg, sum, compress, ok := repo.ParseSegmentObject(name)
			if o := (walObject{from: info.Name, to: l.to + "/" + d + "/" + name, size: info.Size, sha1: sum, compress: compress}); ok {
				o.segment = seg
				l.src[seg] = append(l.src[seg], o)
			} else if pg.IsBackupHistoryName(name) {
				o.compress = repo.None
				l.src[name] = append(l.src[name], o)
			}
		}
		for _, info := range found[i].dst {
			name := path.Base(info.Name)
			if seg, sum, _, ok := repo.ParseSegmentObject(name); ok {
				l.held[seg] = sum
			} else {
				l.held[name] = ""
			}
		}
	}
	return nil
}

// chooseWAL picks from a listing what is to be copied.
func (p *CopyPlan) chooseWAL(c *CopyCluster, l *walListing, from string) (*CopyWAL, error) {
	w := &CopyWAL{From: c.From, To: c.To}
	need := map[string]bool{}
	for _, seg := range p.segmentsOf(c) {
		need[seg] = true
	}
	for i := range p.Backups {
		if b := &p.Backups[i]; b.line.DBID == c.from.ID && b.State != CopyRefused {
			for _, seg := range b.segments {
				need[seg] = true
			}
		}
	}
	until := ""
	if from != "" {
		until = p.lastWAL(c)
	}
	names := make([]string, 0, len(l.src))
	for name := range l.src {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		at := position(name)
		if wanted := need[name] || l.src[name][0].segment == "" && need[name[:24]] || from != "" && at >= from && (until == "" || at <= until) && (c.cut == nil || c.cut.stays(name[:24])); !wanted {
			continue
		}
		if err := p.addWAL(w, name, l); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(w.objects, func(a, b walObject) int { return strings.Compare(a.to, b.to) })
	for _, h := range l.history {
		if _, there := l.held[path.Base(h.to)]; !there {
			w.objects, w.Files, w.Bytes = append(w.objects, h), w.Files+1, w.Bytes+h.size
		}
	}
	return w, nil
}

// addWAL adds one segment or .backup file, if the target does not have it. ErrCopyConflict: it has another of that name.
func (p *CopyPlan) addWAL(w *CopyWAL, name string, l *walListing) error {
	objects := l.src[name]
	o := objects[0]
	sum, there := l.held[name]
	if o.segment == "" {
		if !there {
			w.objects, w.Files, w.Bytes = append(w.objects, o), w.Files+1, w.Bytes+o.size
		}
		return nil
	}
	if differ(objects) {
		p.warn("the source's archive has different copies of WAL segment %s: it is left out", name)
		return nil
	}
	if pg.IsSegmentName(name) {
		if w.First == "" {
			w.First = name
		}
		w.First, w.Last = min(w.First, name), max(w.Last, name)
	}
	switch {
	case there && sum != o.sha1:
		return fmt.Errorf("%w: WAL segment %s has the SHA-1 %s in %s, and %s in the source: the two archives are of clusters that went different ways; copy to another target, or under another stanza name", ErrCopyConflict, name, sum, l.to, o.sha1)
	case there:
		w.There++
	default:
		w.objects, w.Segments, w.Bytes = append(w.objects, o), w.Segments+1, w.Bytes+o.size
	}
	return nil
}

// lastWAL is the position beyond which no WAL is asked for, "" for none: where the first backup after that time starts, because
// everything that was committed before lies in front of it. The archive itself does not say when.
func (p *CopyPlan) lastWAL(c *CopyCluster) string {
	if p.o.WALUntil.IsZero() {
		return ""
	}
	for i := range p.src.bi.Backups {
		l := &p.src.bi.Backups[i]
		if l.DBID == c.from.ID && l.TimeStart > p.o.WALUntil.Unix() && l.ArchiveStart != "" {
			return position(l.ArchiveStart)
		}
	}
	return ""
}

// walCopy copies the archive of one cluster.
type walCopy struct {
	from, to   *Stanza
	pass       repo.Secret // of the source's WAL
	toPass     repo.Secret
	processMax int
	rate       *rate
	failed     string // see run
}

// run copies objects, as many at once as permitted; done is told each, one at a time. failed is then the
// object that ended it, "" if none did.
func (w *walCopy) run(ctx context.Context, objects []walObject, done func(*walObject)) error {
	var mu sync.Mutex
	var first error
	w.failed = ""
	workers, t := copyCrew(w.from, w.to, w.processMax)
	g, gctx := errgroup.WithContext(t.with(ctx))
	g.SetLimit(workers)
	for i := range objects {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			t.take()
			defer t.give()
			err := w.object(gctx, &objects[i])
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				done(&objects[i])
			} else if first == nil {
				w.failed, first = objects[i].from, fmt.Errorf("%s: %w", objects[i].from, err)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return first
	}
	return ctx.Err()
}

// object copies one object. Its Commit is durable: a segment is never written a second time, so a torn one would stay.
func (w *walCopy) object(ctx context.Context, o *walObject) error {
	in, err := w.from.open(ctx, o.from, 0, -1)
	if err != nil {
		return sourceErr(err)
	}
	defer in.Close() // opened for reading: nothing to lose
	out, err := w.to.o.Storage.Create(ctx, o.to, storage.CreateOptions{Size: o.size})
	if err != nil {
		return err
	}
	defer out.Abort() // after Commit it does nothing
	g := &passage{ctx: ctx, r: in, rate: w.rate, note: w.from.o.Events}
	spec := repo.StreamSpec{Compress: o.compress, Pass: w.pass}
	var sums repo.Sums
	var head bytes.Buffer
	text := io.Discard
	if o.segment == "" { // has no checksum: what it says has to do
		text = &head
	}
	if w.pass == w.toPass {
		g.w = out
		sums, err = repo.Decode(text, g, spec)
	} else {
		toSpec := spec
		toSpec.Pass = w.toPass
		sums, _, err = recode(out, text, g, spec, toSpec)
	}
	if err == nil && pg.IsHistoryName(path.Base(o.to)) {
		if _, herr := pg.ParseHistory(&head); herr != nil {
			err = fmt.Errorf("%w: %w", ErrCorrupt, herr)
		}
	}
	switch {
	case err != nil:
		return g.finish(err)
	case o.sha1 != "" && sums.SHA1 != o.sha1:
		return fmt.Errorf("%w: SHA-1 is %s, its name says otherwise", ErrCorrupt, sums.SHA1)
	case g.n != o.size:
		return fmt.Errorf("%w: %d bytes, %d when it was listed", ErrCorrupt, g.n, o.size)
	}
	if err := aside(ctx, func() error { return out.Commit(ctx) }); err != nil {
		return err
	}
	w.from.o.Events(FileDone{"copy", o.to, sums.Size, sums.RepoSize, sums.SHA1})
	return nil
}

// sameTimelines compares the timeline histories that both sides have: another one means that the target's cluster went another
// way.
func (p *CopyPlan) sameTimelines(ctx context.Context, l *walListing) error {
	for _, h := range l.history {
		if _, there := l.held[path.Base(h.to)]; !there {
			continue
		}
		want, err := readSmall(ctx, p.from.o.Storage, h.from, p.src.ai.CipherPass)
		if err != nil {
			return err
		}
		have, err := readSmall(ctx, p.to.o.Storage, h.to, p.dst.ai.CipherPass)
		if err != nil {
			return fmt.Errorf("target: %w", err)
		}
		if !bytes.Equal(have, want) {
			return fmt.Errorf("%w: %s: the timelines went different ways; copy to another target, or under another stanza name", ErrCopyConflict, h.to)
		}
	}
	return nil
}

// readSmall reads a history file.
func readSmall(ctx context.Context, st storage.Storage, name string, pass repo.Secret) ([]byte, error) {
	b, err := storage.ReadAll(ctx, st, name, 16<<20)
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	_, err = repo.Decode(&text, bytes.NewReader(b), repo.StreamSpec{Compress: repo.None, Pass: pass})
	return text.Bytes(), err
}

// CopyArchive copies the WAL of one cluster to a repository that holds nothing else: what a recovery reads it from. segments
// are those that it can't do without; with more set, everything that the source has of their timeline after them comes along.
// The target gets the source's archive.info, last. It returns the last segment.
//
// Errors: ErrWALMissing names the first segment that the source does not have.
func CopyArchive(ctx context.Context, from, to *Stanza, db repo.DB, segments []string, more bool, processMax int) (last string, err error) {
	if len(segments) == 0 {
		return "", errors.New("no WAL segment named")
	}
	ai, err := from.loadArchiveInfo(ctx)
	if err != nil {
		return "", err
	}
	p := &CopyPlan{Stanza: from.o.Stanza, ToStanza: to.o.Stanza, from: from, to: to, o: CopyOptions{ProcessMax: max(processMax, 1)}}
	id := repo.ArchiveID(db.Version, db.ID)
	l := &walListing{from: repo.ArchiveDir(p.Stanza) + "/" + id, to: repo.ArchiveDir(p.ToStanza) + "/" + id, src: map[string][]walObject{}, held: map[string]string{}}
	end := segments[len(segments)-1]
	var dirs []string
	var objects []walObject
	for info, err := range from.o.Storage.List(ctx, l.from, storage.ListOptions{}) {
		if err != nil {
			return "", fmt.Errorf("list %s: %w", l.from, err)
		}
		name := path.Base(info.Name)
		switch {
		case !info.Dir && pg.IsHistoryName(name):
			objects = append(objects, walObject{from: info.Name, to: l.to + "/" + name, size: info.Size, compress: repo.None})
		case info.Dir && isSegmentDir(name) && name >= segments[0][:16] && (name <= end[:16] || more && name[:8] == end[:8]):
			dirs = append(dirs, name)
		}
	}
	if err := p.listDirs(ctx, l, dirs); err != nil {
		return "", err
	}
	for _, seg := range segments {
		if found := l.src[seg]; len(found) == 0 {
			return "", fmt.Errorf("stanza %s: WAL segment %s: %w", p.Stanza, seg, ErrWALMissing)
		} else if differ(found) {
			return "", fmt.Errorf("stanza %s: WAL segment %s: %w", p.Stanza, seg, ErrArchiveConflict)
		}
		objects, last = append(objects, l.src[seg][0]), max(last, seg)
	}
	for seg, found := range l.src {
		if more && pg.IsSegmentName(seg) && seg > end && !differ(found) {
			objects, last = append(objects, found[0]), max(last, seg)
		}
	}
	w := &walCopy{from: from, to: to, pass: ai.CipherPass, toPass: ai.CipherPass, processMax: p.o.ProcessMax}
	if to.o.Pass == "" {
		w.toPass = ""
	}
	if err := w.run(ctx, objects, func(*walObject) {}); err != nil {
		return "", err
	}
	ai.CipherPass = w.toPass
	return last, repo.SaveArchiveInfo(ctx, to.o.Storage, p.ToStanza, ai, to.o.Pass)
}
