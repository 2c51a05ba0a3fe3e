package engine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// VerifyOptions chooses what to read.
type VerifyOptions struct {
	Set        repo.Label // empty: every backup and the whole archive
	ProcessMax int
}

// Finding is one thing wrong with one object.
type Finding struct {
	Label  repo.Label `json:"label,omitempty"` // the backup that it damages; empty: none by itself
	Object string     `json:"object"`
	What   string     `json:"what"`
}

func (f Finding) String() string { return f.Object + ": " + f.What }

// Verdict is what can be said of one backup: valid, invalid, manifest missing, in progress, or could not be read.
type Verdict struct {
	Label  repo.Label `json:"label"`
	Status string     `json:"status"`
	Files  int        `json:"files"`            // in its manifest, those of earlier backups included
	Damage int        `json:"damage"`           // files or WAL segments of it that are not as they should be
	Unread int        `json:"unread,omitempty"` // files or WAL segments of which the storage gave no answer
}

// The statuses of a Verdict.
const (
	VerdictValid           = "valid"
	VerdictInvalid         = "invalid"
	VerdictManifestMissing = "manifest missing"
	VerdictInProgress      = "in progress"
	VerdictUnread          = "could not be read" // a part of it, and nothing else is wrong
)

// VerifyResult lists everything that was found; no findings means that every byte is as the manifests say.
type VerifyResult struct {
	Backups  []repo.Label `json:"backups"`
	Verdicts []Verdict    `json:"verdicts"`
	Archives []WALRange   `json:"archive"` // runs of segments without a gap, by archive id and timeline
	Files    int          `json:"files"`   // read
	Segments int          `json:"segments"`
	Bytes    int64        `json:"bytes"` // stored bytes read
	Findings []Finding    `json:"findings"`
	Unread   []Finding    `json:"unread,omitempty"` // objects of which the storage gave no answer: nothing is known of them
}

// Verify reads every file of the chosen backups, the WAL, and both copies of every info file and manifest; it decodes them
// and compares sizes and checksums. It goes on after a finding, so that all are known at once, and after an object of which the
// storage gives no answer, unless that happens to several in a row. The error is for what kept it from looking: the end of the
// context, or storage.ErrUnavailable, from which nothing follows for what is stored. With the latter the result holds what was
// found all the same, unless the info files are what could not be read.
func (s *Stanza) Verify(ctx context.Context, o VerifyOptions) (*VerifyResult, error) {
	ai, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	v := &verifier{s: s, ai: ai, bi: bi, set: o.Set, known: map[uint64]outcome{}, badWAL: map[string]outcome{},
		segmentSize: map[string]uint32{}, timelines: map[timelineKey][]pg.TimelineEntry{}}
	v.workers, v.turns = s.crewOf(max(o.ProcessMax, 1))
	for _, l := range bi.Backups {
		if o.Set == "" || l.Label == o.Set {
			v.res.Backups = append(v.res.Backups, l.Label)
		}
	}
	if o.Set != "" && len(v.res.Backups) == 0 {
		return nil, fmt.Errorf("stanza %s: %w: there is no backup %s", s.o.Stanza, ErrNoBackup, o.Set)
	}
	err = v.run(ctx)
	if err != nil && !storage.IsUnavailable(err) {
		return nil, fmt.Errorf("verify stanza %s: %w", s.o.Stanza, err)
	}
	for _, list := range [][]Finding{v.res.Findings, v.res.Unread} {
		slices.SortStableFunc(list, func(a, b Finding) int { return strings.Compare(a.Object, b.Object) })
	}
	switch {
	case err != nil:
		err = fmt.Errorf("verify stanza %s: the storage could not be asked, which says nothing about the backups in it: %w; run it again when the storage answers", s.o.Stanza, err)
	case len(v.res.Unread) > 0:
		err = fmt.Errorf("verify stanza %s: %d object(s) could not be read, which says nothing about what is in them, the first: %w; see to these objects in the storage, and run it again", s.o.Stanza, len(v.res.Unread), v.silence)
	}
	return &v.res, err
}

type verifier struct {
	s       *Stanza
	ai      *repo.ArchiveInfo
	bi      *repo.BackupInfo
	workers int
	turns   turns
	set     repo.Label

	mu      sync.Mutex
	res     VerifyResult
	known   map[uint64]outcome // by key: what was read already
	badWAL  map[string]outcome // by "<archive id>/<segment>": those that are not sound
	silent  int                // objects without an answer since the last that had one
	silence error              // of the first

	segmentSize map[string]uint32                  // by archive id
	timelines   map[timelineKey][]pg.TimelineEntry // what their history files say
}

// outcome is what reading something came to.
type outcome int8

const (
	isSound outcome = iota
	isDamaged
	isUnread // the storage gave no answer
)

// silentMax is how many objects in a row may have no answer before the storage itself is taken for away.
const silentMax = 10

// look says whether an attempt to read an object, which ended with err, has answered anything. One that could not be read is noted;
// cut, the end of the context or a storage that is away, ends the verification.
func (v *verifier) look(ctx context.Context, l repo.Label, object string, err error) (silent bool, cut error) {
	cut = blind(ctx, err)
	v.mu.Lock()
	defer v.mu.Unlock()
	if cut == nil {
		v.silent = 0
		return false, nil
	}
	if ctx.Err() != nil {
		return true, cut
	}
	if v.silence == nil {
		v.silence = fmt.Errorf("%s: %w", object, err)
	}
	v.res.Unread = append(v.res.Unread, Finding{l, object, err.Error()})
	if v.silent++; v.silent < silentMax {
		return true, nil
	}
	return true, fmt.Errorf("%d objects in a row, the last: %s: %w", v.silent, object, err)
}

// blind is what kept us from looking, where err is that and says nothing of an object: the end of the context, or a store that
// could not be asked. nil: err, if it is one, is a finding.
func blind(ctx context.Context, err error) error {
	if cerr := ctx.Err(); cerr != nil {
		return cerr
	}
	if storage.IsUnavailable(err) {
		return err
	}
	return nil
}

func (v *verifier) run(ctx context.Context) error {
	if err := v.copies(ctx, repo.ArchiveDir(v.s.o.Stanza)+"/archive.info", "", v.s.o.Pass); err != nil {
		return err
	}
	if err := v.copies(ctx, repo.BackupDir(v.s.o.Stanza)+"/backup.info", "", v.s.o.Pass); err != nil {
		return err
	}
	v.histories()
	if v.set == "" {
		if err := v.archive(ctx); err != nil {
			return err
		}
		if err := v.unlisted(ctx); err != nil {
			return err
		}
	}
	for _, label := range v.res.Backups {
		if err := v.backup(ctx, label); err != nil {
			return fmt.Errorf("backup %s: %w", label, err)
		}
	}
	return nil
}

func (v *verifier) find(l repo.Label, object, format string, a ...any) {
	v.mu.Lock()
	v.res.Findings = append(v.res.Findings, Finding{l, object, fmt.Sprintf(format, a...)})
	v.mu.Unlock()
}

// copies reports damage to an info file or manifest, or to its copy.
func (v *verifier) copies(ctx context.Context, name string, l repo.Label, pass repo.Secret) error {
	faults, err := repo.CheckCopies(ctx, v.s.o.Storage, name, pass)
	if silent, cut := v.look(ctx, l, name, err); silent || cut != nil {
		return cut
	}
	if len(faults) == 2 {
		hint := ""
		if l != "" && errors.Is(faults[0].Err, fs.ErrNotExist) && errors.Is(faults[1].Err, fs.ErrNotExist) {
			hint = "; if the backup was being removed, the next backup or expire takes it off the list"
		}
		v.find(l, name, "%v; nor is its copy good: %v%s", faults[0].Err, faults[1].Err, hint)
		return err
	}
	for _, f := range faults {
		v.find(l, f.Object, "%v", f.Err)
	}
	return err
}

// histories: both info files must name the same clusters.
func (v *verifier) histories() {
	for _, a := range v.ai.History {
		for _, b := range v.bi.History {
			if a.ID == b.ID && (a.SystemID != b.SystemID || a.Version != b.Version) {
				v.find("", repo.ArchiveDir(v.s.o.Stanza)+"/archive.info", "history id %d is cluster %d (version %s) here, %d (%s) in backup.info", a.ID, a.SystemID, a.Version, b.SystemID, b.Version)
			}
		}
	}
}

// unlisted gives a verdict on label directories that backup.info does not name.
func (v *verifier) unlisted(ctx context.Context) error {
	for d, err := range repo.Labels(ctx, v.s.o.Storage, v.s.o.Stanza) {
		if err != nil {
			return err
		}
		switch listed := slices.Contains(v.res.Backups, d.Label); {
		case listed:
		case d.Manifest:
			v.find("", repo.ManifestPath(v.s.o.Stanza, d.Label), "backup %s is not listed in backup.info; the next backup or expire lists it again", d.Label)
		default:
			v.res.Verdicts = append(v.res.Verdicts, Verdict{Label: d.Label, Status: VerdictInProgress})
		}
	}
	return nil
}

// backup reads one backup and gives the verdict on it.
func (v *verifier) backup(ctx context.Context, label repo.Label) error {
	v.s.step("verify", "backup", string(label))
	name := repo.ManifestPath(v.s.o.Stanza, label)
	found := len(v.res.Findings)
	if err := v.copies(ctx, name, label, v.bi.CipherPass); err != nil {
		return err
	}
	found = len(v.res.Findings) - found
	history := repo.HistoryManifestPath(v.s.o.Stanza, label)
	err := repo.CheckHistoryManifest(ctx, v.s.o.Storage, v.s.o.Stanza, label, v.bi.CipherPass)
	silent, cut := v.look(ctx, label, history, err)
	if cut != nil {
		return cut
	}
	if err != nil && !silent {
		v.find(label, history, "%v", err)
	}
	m, err := repo.LoadManifest(ctx, v.s.o.Storage, v.s.o.Stanza, label, v.bi.CipherPass)
	if silent, cut = v.look(ctx, label, name, err); cut != nil {
		return cut
	}
	if silent {
		v.res.Verdicts = append(v.res.Verdicts, Verdict{Label: label, Status: VerdictUnread})
		return nil
	}
	if err != nil {
		if found == 0 { // whole, with the right checksum, and yet no manifest that may be used
			v.find(label, name, "%v", err)
		}
		v.res.Verdicts = append(v.res.Verdicts, Verdict{Label: label, Status: VerdictManifestMissing})
		return nil
	}
	v.listedAs(m, name)
	var total int64
	for i := range m.Files {
		if m.Files[i].Reference == "" || v.set != "" {
			total += m.Files[i].Size
		}
	}
	v.s.o.Events(Amount{"verify", len(m.Files), total})
	damage, unreadFiles := 0, 0
	var read []*repo.File
	for i := range m.Files {
		f := &m.Files[i]
		if f.Size == 0 && (m.Bundle || f.Reference != "") { // nothing is stored of it, or not here
			continue
		}
		if f.Reference != "" && v.set == "" {
			if v.bi.Find(f.Reference) == nil {
				v.find(label, name, "%s is in backup %s, which is not there", f.Name, f.Reference)
				damage++
				continue
			}
			// Read with the backup that stored it, before this one; unless that one's manifest is lost or says otherwise.
			if was, read := v.state(fileKey(m, f)); read {
				switch was {
				case isDamaged:
					damage++
				case isUnread:
					unreadFiles++
				}
				continue
			}
		}
		read = append(read, f)
	}
	c := v.newCrew(ctx)
	for _, j := range verifyJobs(read) {
		c.run(func(ctx context.Context) error { return v.do(ctx, m, j) })
	}
	if err := c.g.Wait(); err != nil {
		return err
	}
	lost, unreadWAL, err := v.backupWAL(ctx, m)
	if err != nil {
		return err
	}
	for _, f := range read {
		if was, _ := v.state(fileKey(m, f)); was == isUnread {
			unreadFiles++
		}
	}
	verdict := Verdict{Label: label, Status: VerdictValid, Files: len(m.Files), Damage: damage + lost, Unread: unreadFiles + unreadWAL}
	for _, f := range v.res.Findings {
		if f.Label == label && f.Object != name && f.Object != name+".copy" && f.Object != history { // one good manifest is enough to restore
			verdict.Damage++
		}
	}
	switch {
	case verdict.Damage > 0:
		verdict.Status = VerdictInvalid
	case verdict.Unread > 0:
		verdict.Status = VerdictUnread
	}
	v.res.Verdicts = append(v.res.Verdicts, verdict)
	return nil
}

// listedAs compares a manifest, which is the object name, with its line in backup.info.
func (v *verifier) listedAs(m *repo.Manifest, name string) {
	line, got := v.bi.Find(m.Label), m.BackupLine()
	if line != nil && (got.Type != line.Type || got.Prior != line.Prior || got.ArchiveStart != line.ArchiveStart || got.ArchiveStop != line.ArchiveStop || got.DBID != line.DBID) {
		v.find(m.Label, name, "backup.info and the manifest disagree on type, prior or WAL range")
	}
}

// verifyCrew is an errgroup whose members take turns.
type verifyCrew struct {
	g   *errgroup.Group
	ctx context.Context
	t   turns
}

func (v *verifier) newCrew(ctx context.Context) *verifyCrew {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(v.workers)
	return &verifyCrew{g, v.turns.with(ctx), v.turns}
}

func (c *verifyCrew) run(work func(context.Context) error) {
	c.g.Go(func() error {
		c.t.take()
		defer c.t.give()
		return work(c.ctx)
	})
}

// state tells whether something was read already and what it was like.
func (v *verifier) state(key uint64) (was outcome, read bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	was, read = v.known[key]
	return was, read
}

func (v *verifier) setState(key uint64, is outcome) {
	v.mu.Lock()
	v.known[key] = is
	v.mu.Unlock()
}

// keySeed makes the keys of known: hashes, because there are as many as files in all backups.
var keySeed = maphash.MakeSeed()

// fileKey stands for the stored bytes of a file and what they should be.
func fileKey(m *repo.Manifest, f *repo.File) uint64 {
	return maphash.Comparable(keySeed, [...]any{storedIn(m, f), f.Name, f.SHA1, f.Size, f.RepoSize, f.BundleID, f.BundleOffset, f.BlockMapSize})
}

// storedIn is the backup that holds a file's bytes.
func storedIn(m *repo.Manifest, f *repo.File) repo.Label {
	return cmp.Or(f.Reference, m.Label)
}

// file reads one file as this manifest describes it. stored gives its bytes; nil: they are asked for.
func (v *verifier) file(ctx context.Context, m *repo.Manifest, f *repo.File, stored io.Reader) error {
	object, offset, length, spec := m.Object(v.s.o.Stanza, f)
	var is outcome
	var err error
	switch {
	case f.Size == 0:
		is, err = v.compare(ctx, m.Label, part{object, 0, -1, nil}, spec, emptySHA1, 0)
	case f.BlockMapSize > 0:
		is, err = v.image(ctx, m, f, part{object, offset, length, stored}, spec)
	default:
		is, err = v.compare(ctx, m.Label, part{object, offset, length, stored}, spec, f.SHA1, f.Size)
	}
	v.setState(fileKey(m, f), is)
	return err
}

// read counts.
func (v *verifier) read(stored, original int64) {
	v.mu.Lock()
	v.res.Bytes += stored
	v.res.Files++
	v.mu.Unlock()
	v.s.o.Events(Moved{original})
}

// open gives length bytes of an object. One that is not a bundle ends with them, or reading gives an error: bytes behind what
// the manifest names harm no restore, but nothing that writes repositories leaves them. length < 0: all of it.
func (v *verifier) open(ctx context.Context, object string, offset, length int64) (io.ReadCloser, error) {
	if length < 0 || path.Base(path.Dir(object)) == "bundle" {
		return v.s.open(ctx, object, offset, length)
	}
	r, err := v.s.open(ctx, object, offset, -1)
	if err != nil {
		return nil, err
	}
	return &exactReader{r, length}, nil
}

// exactReader gives an error instead of more than left bytes.
type exactReader struct {
	io.ReadCloser
	left int64
}

func (r *exactReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if int64(n) > r.left {
		return int(r.left), fmt.Errorf("%w: more bytes than the manifest names", repo.ErrCorrupt)
	}
	r.left -= int64(n)
	return n, err
}

// part is where a file's stored bytes are: length from offset of an object, which stored gives if it is not nil.
type part struct {
	object         string
	offset, length int64
	stored         io.Reader
}

// openPart opens it.
func (v *verifier) openPart(ctx context.Context, p part) (io.ReadCloser, error) {
	if p.stored != nil {
		return io.NopCloser(p.stored), nil
	}
	return v.open(ctx, p.object, p.offset, p.length)
}

// compare decodes one object and records what differs; only what ends the verification is an error.
func (v *verifier) compare(ctx context.Context, label repo.Label, at part, spec repo.StreamSpec, sha1 string, size int64) (outcome, error) {
	if err := ctx.Err(); err != nil {
		return isUnread, err
	}
	object := at.object
	r, err := v.openPart(ctx, at)
	if errors.Is(err, fs.ErrNotExist) {
		v.find(label, object, "missing")
		return isDamaged, nil
	}
	var sums repo.Sums
	if err == nil {
		sums, err = repo.Decode(io.Discard, &ctxReader{ctx, r}, spec)
		err = errors.Join(err, r.Close())
	}
	if silent, cut := v.look(ctx, label, object, err); silent || cut != nil {
		return isUnread, cut
	}
	v.read(sums.RepoSize, sums.Size)
	switch {
	case err != nil:
		v.find(label, object, "%v", err)
	case sums.SHA1 != sha1:
		v.find(label, object, "SHA-1 is %s, should be %s", sums.SHA1, sha1)
	case size >= 0 && sums.Size != size:
		v.find(label, object, "size is %d, should be %d", sums.Size, size)
	default:
		return isSound, nil
	}
	return isDamaged, nil
}
