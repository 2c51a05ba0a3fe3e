package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// Copying closed backups from one repository to another. What makes a backup closed: the backups that it is built on, the WAL
// from its start to its stop, and the histories of its timelines. The order on the target:
//
//	stanza (empty, or its clusters added) → for each backup, oldest first:
//	  backup.manifest.copy (what is done so far; again and again) → its files (workers, content hashed as it passes) → its WAL
//	  → Sync → every object is there → backup.manifest (from here on the backup exists) → history → backup.info
//	→ the rest of the WAL
//
// A copy that dies leaves a label directory without backup.manifest, which no reader takes for a backup and which the next
// copy completes. Nothing on the target is removed or replaced but what an earlier copy left unfinished.
//
// Passphrases. The files of a backup keep the passphrase that its manifest holds as long as both sides are encrypted, so that
// they pass through as they are; info files and manifests have those of the target. With Reencrypt, and where only one side is
// encrypted, files get a new passphrase for each full backup with all that is built on it (see recode).

// WALChoice says how much WAL beyond what the backups need is copied.
type WALChoice string

const (
	WALNeeded WALChoice = "needed" // from the start of each backup to its stop: every backup restores, no point after it does
	WALAll    WALChoice = "all"    // everything from the start of the oldest backup on that the target then has
)

// CopyOptions says which backups are copied, and how.
type CopyOptions struct {
	// Which: exactly one of Sets, All, or a window of time. What a backup is built on always comes along.
	Sets       []repo.Label
	Dependents bool // with Sets: also what is built on them
	All        bool
	// The target is to reach every moment of the window: the backups that ended in it, and the last one before it. A zero
	// Until is now.
	Since, Until time.Time

	Segments []string  // with a single label: WAL segments of its cluster that the target must have as well, such as those up to a recovery point
	WAL      WALChoice // empty: WALNeeded; a window has WALAll
	WALUntil time.Time // with WALAll: WAL after this time need not come along; zero: all that there is

	Keep *ExpireOptions // retention of the target: what it would let go is not copied; nil: everything stays

	Recheck       bool  // look whether the objects of backups that the target has are there, and copy those that are not
	Reencrypt     bool  // files get new passphrases although they are encrypted already
	Decrypt       bool  // permits copying an encrypted repository to one that is not
	ProcessMax    int   // objects copied at once
	Rate          int64 // bytes read from the source per second at most, by all workers together; 0: no limit
	SaveThreshold int64 // bytes copied of a backup from one note of what is done to the next; 0: a 20th of it, at least 256 MiB
}

// States of a backup in a CopyPlan.
const (
	CopyNew        = "new"
	CopyUnfinished = "unfinished" // an earlier copy left some of its objects
	CopyThere      = "there"
	CopyRefused    = "refused"
)

// CopyBackup is one backup of a CopyPlan.
type CopyBackup struct {
	Label   repo.Label      `json:"label"`
	Type    repo.BackupType `json:"type"`
	Why     string          `json:"why"` // it was asked for, or what is built on it
	State   string          `json:"state"`
	Objects int             `json:"objects"`          // to be copied, without WAL
	Bytes   int64           `json:"bytes"`            // of these, as stored in the source
	Done    int             `json:"done,omitempty"`   // objects that an earlier copy left
	Reason  string          `json:"reason,omitempty"` // why it is refused

	line     repo.BackupLine // in the source
	db       repo.DB         // in the target
	segments []string        // WAL that it can't do without
}

// CopyCluster is one history entry of the source and its place in the target.
type CopyCluster struct {
	From     string `json:"from"` // archive id
	To       string `json:"to"`
	SystemID uint64 `json:"system_id"`
	New      bool   `json:"new"` // not in the target's history yet

	from, to repo.DB
	cut      *walCut // what the target's retention keeps of its WAL; nil: all
}

// CopyWAL is the WAL of one cluster in a CopyPlan.
type CopyWAL struct {
	From     string `json:"from"` // archive ids
	To       string `json:"to"`
	First    string `json:"first,omitempty"` // of the segments that the target has to have, those that are there included
	Last     string `json:"last,omitempty"`
	There    int    `json:"there"`    // segments that are in the target already
	Segments int    `json:"segments"` // to be copied
	Files    int    `json:"files"`    // timeline histories and .backup files to be copied
	Bytes    int64  `json:"bytes"`    // of both, as stored in the source

	objects []walObject
}

// CopyPlan is what a copy would do.
type CopyPlan struct {
	Stanza   string        `json:"stanza"`    // in the source
	ToStanza string        `json:"to_stanza"` // in the target
	Creates  bool          `json:"creates"`   // the target has no such stanza yet
	Cipher   string        `json:"cipher"`    // what becomes of the encryption, in a few words
	Clusters []CopyCluster `json:"clusters"`
	Backups  []CopyBackup  `json:"backups"`          // oldest first
	Others   []repo.Label  `json:"others,omitempty"` // backups that only the target has
	WAL      []CopyWAL     `json:"wal"`
	Objects  int           `json:"objects"` // to be copied, WAL included
	Bytes    int64         `json:"bytes"`   // as stored in the source
	Warnings []string      `json:"warnings,omitempty"`

	from, to *Stanza
	o        CopyOptions
	src      infos
	dst      infos                      // what the target will have before the first backup; in a new stanza not yet written
	wal      map[string]*CopyWAL        // by source archive id
	passes   map[repo.Label]repo.Secret // of the files of a set in the target, by the set's full backup
}

// infos are the two info files of a stanza.
type infos struct {
	ai *repo.ArchiveInfo
	bi *repo.BackupInfo
}

// ErrCopyConflict says that the target has something else under a name that the copy would use.
var ErrCopyConflict = errors.New("the target has another content under the same name")

// ErrNotClosed says that a backup cannot be copied whole.
var ErrNotClosed = errors.New("not everything that a restore needs is there")

// PlanCopy works out what has to be copied from one stanza to another, which may be the same in another repository. It changes
// nothing; a dry run ends here. A backup that can't be copied is CopyRefused in the plan, with the reason.
//
// Errors: ErrStanzaMissing and ErrPassphrase of either side; ErrStanzaMismatch when the target is of another cluster;
// ErrCopyConflict when it is of a cluster that went another way; ErrNoBackup when what is asked for is not there.
func PlanCopy(ctx context.Context, from, to *Stanza, o CopyOptions) (*CopyPlan, error) {
	p := &CopyPlan{Stanza: from.o.Stanza, ToStanza: to.o.Stanza, from: from, to: to, o: o, wal: map[string]*CopyWAL{}, passes: map[repo.Label]repo.Secret{},
		Clusters: []CopyCluster{}, Backups: []CopyBackup{}, WAL: []CopyWAL{}}
	if err := p.plan(ctx); err != nil {
		return nil, fmt.Errorf("copy stanza %s: %w", from.o.Stanza, err)
	}
	return p, nil
}

func (p *CopyPlan) plan(ctx context.Context) error {
	if err := p.check(); err != nil {
		return err
	}
	p.from.step("copy", "plan", p.Stanza)
	var err error
	if p.src.ai, p.src.bi, err = p.from.loadInfos(ctx); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := sameHistory(p.src.ai, p.src.bi); err != nil {
		return fmt.Errorf("source: %w", err)
	}
	if err := p.choose(); err != nil {
		return err
	}
	if err := p.target(ctx); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if err := p.there(ctx); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if err := p.recheck(ctx); err != nil {
		return fmt.Errorf("target: %w", err)
	}
	if err := p.files(ctx); err != nil {
		return err
	}
	if err := p.archive(ctx); err != nil {
		return err
	}
	p.closed()
	for i := range p.Backups {
		if b := &p.Backups[i]; b.State != CopyRefused {
			p.Objects, p.Bytes = p.Objects+b.Objects, p.Bytes+b.Bytes
		}
	}
	for _, c := range p.Clusters {
		w := p.wal[c.From]
		if w == nil {
			continue
		}
		p.WAL = append(p.WAL, *w)
		p.Objects, p.Bytes = p.Objects+w.Segments+w.Files, p.Bytes+w.Bytes
	}
	return nil
}

func (p *CopyPlan) warn(format string, a ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, a...))
}

// check refuses options that contradict each other.
func (p *CopyPlan) check() error {
	o := &p.o
	window := !o.Since.IsZero() || !o.Until.IsZero()
	which := 0
	for _, is := range []bool{len(o.Sets) > 0, o.All, window} {
		if is {
			which++
		}
	}
	switch {
	case which != 1:
		return errors.New("say which backups to copy: labels, all of them, or a window of time; one of the three")
	case len(o.Segments) > 0 && len(o.Sets) != 1:
		return errors.New("WAL segments can be named together with one label only")
	case o.Dependents && len(o.Sets) == 0:
		return errors.New("what is built on a backup can be asked for only together with its label")
	case window && o.Since.IsZero():
		return errors.New("a window of time needs its beginning")
	case window && !o.Until.IsZero() && o.Until.Before(o.Since):
		return errors.New("the window of time ends before it begins")
	case p.from.o.Storage == p.to.o.Storage && p.Stanza == p.ToStanza:
		return errors.New("source and target are the same")
	case p.from.o.Pass != "" && p.to.o.Pass == "" && !o.Decrypt:
		return fmt.Errorf("%w: the source is encrypted, and no passphrase is given for the target: its copy would be readable for everybody who can read the target; give a passphrase, or permit it in so many words", ErrPassphrase)
	}
	if window {
		o.WAL, o.WALUntil = WALAll, o.Until
	}
	switch o.WAL {
	case "":
		o.WAL = WALNeeded
	case WALNeeded, WALAll:
	default:
		return fmt.Errorf("WAL %q: needed or all", o.WAL)
	}
	if o.Keep != nil {
		if err := o.Keep.check(); err != nil {
			return err
		}
	}
	o.ProcessMax = max(o.ProcessMax, 1)
	p.Cipher = o.cipherWords(p.from.o.Pass != "", p.to.o.Pass != "")
	return nil
}

// cipherWords says what becomes of the encryption of files.
func (o *CopyOptions) cipherWords(from, to bool) string {
	switch {
	case !from && !to:
		return "none"
	case !from:
		return "encrypted on the way"
	case !to:
		return "decrypted on the way"
	case o.Reencrypt:
		return "files re-encrypted with new passphrases"
	}
	return "files stay encrypted as they are, info files and manifests with the target's passphrase"
}

// choose fills Backups with what is asked for and what that is built on, oldest first.
func (p *CopyPlan) choose() error {
	why := map[repo.Label]string{}
	lines := p.src.bi.Backups
	add := func(l repo.Label, reason string) error {
		for {
			line := p.src.bi.Find(l)
			if line == nil {
				return fmt.Errorf("%w: there is no backup %s in the source (%s)", ErrNoBackup, l, reason)
			}
			if _, known := why[l]; !known {
				why[l] = reason
			}
			if line.Type == repo.Full || line.Prior == "" {
				return nil
			}
			l, reason = line.Prior, string(l)+" is built on it"
		}
	}
	const asked = "asked for"
	for _, l := range p.o.Sets {
		chosen := []repo.Label{l}
		if p.o.Dependents && p.src.bi.Find(l) != nil {
			chosen = dependents(p.src.bi, l)
		}
		for _, l := range chosen {
			if err := add(l, asked); err != nil {
				return err
			}
		}
	}
	if len(p.o.Sets) == 0 {
		for _, l := range p.inWindow(lines) {
			if err := add(l, asked); err != nil {
				p.warn("%v: it is left out", err)
				delete(why, l)
			}
		}
	}
	for i := range lines {
		if reason, in := why[lines[i].Label]; in {
			if len(p.o.Sets) > 0 && slices.Contains(p.o.Sets, lines[i].Label) {
				reason = asked
			}
			p.Backups = append(p.Backups, CopyBackup{Label: lines[i].Label, Type: lines[i].Type, Why: reason, State: CopyNew, line: lines[i]})
		}
	}
	if len(p.Backups) == 0 {
		return fmt.Errorf("%w that is asked for is in the source", ErrNoBackup)
	}
	return nil
}

// inWindow lists the backups with which every moment of the window can be reached; without a window all.
func (p *CopyPlan) inWindow(lines []repo.BackupLine) (out []repo.Label) {
	before := repo.Label("")
	for i := range lines {
		stop := time.Unix(lines[i].TimeStop, 0)
		switch {
		case p.o.All:
		case !stop.After(p.o.Since):
			before = lines[i].Label // a later one comes later
			continue
		case !p.o.Until.IsZero() && stop.After(p.o.Until):
			continue
		}
		out = append(out, lines[i].Label)
	}
	switch {
	case before != "":
		out = slices.Insert(out, 0, before)
	case !p.o.All:
		p.warn("no backup had ended by %s: the target will reach back only to the end of the first one after it", p.o.Since.Format(time.RFC3339))
	}
	return out
}

// closed refuses what is built on a backup that is refused.
func (p *CopyPlan) closed() {
	for i := range p.Backups {
		b := &p.Backups[i]
		if b.State == CopyRefused || b.State == CopyThere || b.Type == repo.Full {
			continue
		}
		if prior := p.find(b.line.Prior); prior != nil && prior.State == CopyRefused {
			b.refuse("it is built on %s, which can't be copied", prior.Label)
		}
	}
}

func (p *CopyPlan) find(l repo.Label) *CopyBackup {
	for i := range p.Backups {
		if p.Backups[i].Label == l {
			return &p.Backups[i]
		}
	}
	return nil
}

func (b *CopyBackup) refuse(format string, a ...any) {
	b.State, b.Reason, b.Objects, b.Bytes = CopyRefused, fmt.Sprintf(format, a...), 0, 0
}

// position is where in the WAL a segment lies, its timeline left out: names of one timeline, and positions of all, sort.
func position(segment string) string {
	if len(segment) < 24 || !pg.IsSegmentName(segment[:24]) {
		return ""
	}
	return segment[8:24]
}
