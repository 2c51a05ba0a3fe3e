package engine

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"holdfast/internal/repo"
)

// Codes of InfoStatus and InfoResult.
const (
	InfoOK           = 0
	InfoNoPath       = 1 // nothing of the stanza is in the repository
	InfoNoData       = 3
	InfoNoBackup     = 2
	InfoMixed        = 4  // not the same in every repository
	InfoMismatch     = 5  // the current cluster is not the same in every repository
	InfoBackupAbsent = 6  // the one that was asked for
	InfoOther        = 99 // an error, which the repository's message tells
)

// InfoRepository is one repository that a stanza is looked for in.
type InfoRepository struct {
	Key    int
	Cipher string // "none" or "aes-256-cbc"
	Stanza *Stanza
	Err    error // the repository could not be opened, or listed: Stanza may then be nil
}

// InvalidStanza stands for the name of a stanza where no repository could be asked for names.
const InvalidStanza = "[invalid]"

// InfoAcross describes a stanza as its repositories have it; set (may be empty) narrows it to one backup with details. What
// is wrong with a repository is its status and keeps no other from being shown. The error is that of ctx, or about the lock
// file.
func InfoAcross(ctx context.Context, name string, repos []InfoRepository, set repo.Label) (*StanzaInfo, error) {
	out := &StanzaInfo{Archive: []ArchiveRange{}, Backup: []BackupInfo{}, DB: []InfoDB{}, Name: name}
	held, first := false, true
	var current, other InfoDB
	for _, r := range repos {
		one := &StanzaInfo{Cipher: r.Cipher, Archive: []ArchiveRange{}, DB: []InfoDB{}}
		err := r.Err
		if err == nil && r.Stanza != nil {
			var locked bool
			if locked, err = r.Stanza.backupRuns(); err != nil {
				return nil, err
			}
			held = held || locked
			err = r.Stanza.fillInfo(ctx, one, set)
		} else if err == nil {
			one.Status.Code, one.Status.Message = InfoNoPath, "missing stanza path"
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			one = &StanzaInfo{Cipher: r.Cipher, Status: InfoStatus{Code: InfoOther, Message: err.Error()}}
		}
		out.Repo = append(out.Repo, InfoRepo{Cipher: r.Cipher, Key: r.Key, Status: InfoResult{one.Status.Code, one.Status.Message}, cause: err})
		out.DB, out.Archive, out.Backup = append(out.DB, one.DB...), append(out.Archive, one.Archive...), append(out.Backup, one.Backup...)
		if n := len(one.DB); n > 0 {
			if last := one.DB[n-1]; first {
				current, first = last, false
			} else if last.SystemID != current.SystemID || last.Version != current.Version {
				other = last
			}
		}
	}
	slices.SortStableFunc(out.Backup, func(a, b BackupInfo) int { return strings.Compare(a.Label, b.Label) })
	out.settle(set)
	if other.Version != "" {
		out.Status.Code, out.Status.Message = InfoMismatch, "database mismatch across repos"
	}
	out.Status.Lock = map[string]InfoLock{"backup": {Held: held}}
	return out, nil
}

// settle makes one status and one cipher of those of the repositories.
func (st *StanzaInfo) settle(set repo.Label) {
	if set != "" && len(st.Backup) > 0 { // it is somewhere, so that nothing is wrong where it is not
		for i := range st.Repo {
			if s := &st.Repo[i].Status; s.Code == InfoBackupAbsent {
				*s = InfoResult{InfoOK, "ok"}
			}
		}
	} else if set != "" {
		st.DB, st.Archive = []InfoDB{}, []ArchiveRange{}
	}
	for i, r := range st.Repo {
		if i == 0 {
			st.Status.Code, st.Status.Message, st.Cipher = r.Status.Code, r.Status.Message, r.Cipher
			if r.Status.Code == InfoOther {
				st.Status.Message = "other"
			}
			continue
		}
		if r.Status.Code != st.Status.Code {
			st.Status.Code, st.Status.Message = InfoMixed, "different across repos"
		}
		if r.Cipher != st.Cipher {
			st.Cipher = "mixed"
		}
	}
}

// backupRuns says whether a backup or expire of this stanza is at work on this host.
func (s *Stanza) backupRuns() (bool, error) {
	if s.o.LockDir == "" {
		return false, nil
	}
	_, held, err := repo.ReadLock(s.o.LockDir, s.o.Stanza, "backup", s.o.RepoKey)
	return held, wrap(err, "stanza %s", s.o.Stanza)
}

// WriteInfo prints stanzas as pgbackrest's info does for people.
func WriteInfo(w io.Writer, stanzas []*StanzaInfo, local *time.Location) error {
	var b strings.Builder
	for i, st := range stanzas {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "stanza: %s\n", st.Name)
		st.writeStatus(&b)
		if st.Status.Code == InfoNoPath {
			continue
		}
		fmt.Fprintf(&b, "    cipher: %s\n", st.Cipher)
		if st.Cipher == "mixed" {
			for _, r := range st.Repo {
				fmt.Fprintf(&b, "        repo%d: %s\n", r.Key, r.Cipher)
			}
		}
		st.writeClusters(&b, local)
	}
	if len(stanzas) == 0 {
		b.WriteString("No stanzas exist in the repository.\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (st *StanzaInfo) writeStatus(b *strings.Builder) {
	const running = "backup/expire running"
	held := st.Status.Lock["backup"].Held
	text := "error (" + st.Status.Message + ")"
	switch st.Status.Code {
	case InfoOK:
		text = "ok"
	case InfoMixed:
		text = "mixed"
	case InfoMismatch, InfoOther:
	default:
		if held {
			text = "error (" + st.Status.Message + ", " + running + ")"
		}
		fmt.Fprintf(b, "    status: %s\n", text)
		return
	}
	if held {
		text += " (" + running + ")"
	}
	fmt.Fprintf(b, "    status: %s\n", text)
	if st.Status.Code == InfoOK {
		return
	}
	for _, r := range st.Repo {
		indent := strings.Repeat(" ", 12)
		if len(st.Repo) > 1 {
			fmt.Fprintf(b, "        repo%d: ", r.Key)
			indent += "   "
		}
		switch message := strings.ReplaceAll(r.Status.Message, "\n", "\n"+indent); {
		case r.Status.Code == InfoOK:
			b.WriteString("ok\n")
		case r.Status.Code == InfoOther && len(st.Repo) > 1:
			fmt.Fprintf(b, "error (other)\n%s%s\n", indent, message)
		case r.Status.Code == InfoOther:
			fmt.Fprintf(b, "%s%s\n", indent, message)
		default:
			fmt.Fprintf(b, "error (%s)\n", r.Status.Message)
		}
	}
}

// infoCluster is one cluster as all repositories together know it.
type infoCluster struct {
	db       InfoDB
	min, max string
	backups  []BackupInfo
}

// writeClusters prints every cluster with its backups, the current one last.
func (st *StanzaInfo) writeClusters(b *strings.Builder, local *time.Location) {
	var clusters []*infoCluster
	of := map[InfoDBRef]*infoCluster{}
	current := -1
	for i, db := range st.DB {
		at := slices.IndexFunc(clusters, func(c *infoCluster) bool { return c.db.SystemID == db.SystemID && c.db.Version == db.Version })
		if at < 0 {
			at = len(clusters)
			clusters = append(clusters, &infoCluster{db: db})
		}
		of[InfoDBRef{db.ID, db.RepoKey}] = clusters[at]
		if current < 0 && (i == len(st.DB)-1 || st.DB[i+1].RepoKey != db.RepoKey) { // as the first repository has it
			current = at
		}
	}
	for _, a := range st.Archive {
		c := of[a.Database]
		if c == nil || a.Min == nil {
			continue
		}
		if c.min == "" || *a.Min < c.min {
			c.min = *a.Min
		}
		c.max = max(c.max, *a.Max)
	}
	one := false
	for _, k := range st.Backup {
		if c := of[k.Database]; c != nil {
			c.backups = append(c.backups, k)
		}
		one = one || k.DatabaseRef != nil
	}
	for i, c := range clusters {
		// Of an earlier cluster nothing may be left; and where one backup was asked for, only its cluster is of interest.
		if i != current && len(c.backups) > 0 || i != current && !one && c.min != "" {
			c.write(b, "prior", local)
		}
	}
	if current >= 0 && (!one || len(clusters[current].backups) > 0) {
		clusters[current].write(b, "current", local)
	}
}

func (c *infoCluster) write(b *strings.Builder, name string, local *time.Location) {
	span := "none present"
	if c.min != "" {
		span = c.min + "/" + c.max
	}
	fmt.Fprintf(b, "\n    db (%s)\n        wal archive min/max (%s): %s\n", name, c.db.Version, span)
	for _, k := range c.backups {
		writeInfoBackup(b, k, local)
	}
}
