package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// StanzaInfo is one element of the JSON that pgbackrest's info prints (format page, section 21.1). encoding/json writes
// struct fields in order; they stand in the byte order of their names.
type StanzaInfo struct {
	Archive []ArchiveRange `json:"archive"`
	Backup  []BackupInfo   `json:"backup"`
	Cipher  string         `json:"cipher"`
	DB      []InfoDB       `json:"db"`
	Name    string         `json:"name"`
	Repo    []InfoRepo     `json:"repo"`
	Status  InfoStatus     `json:"status"`
}

type ArchiveRange struct {
	Database InfoDBRef `json:"database"`
	ID       string    `json:"id"`
	Max      *string   `json:"max"`
	Min      *string   `json:"min"`
}

type InfoDBRef struct {
	ID      int `json:"id"`
	RepoKey int `json:"repo-key"`
}

type InfoDB struct {
	ID       int    `json:"id"`
	RepoKey  int    `json:"repo-key"`
	SystemID uint64 `json:"system-id"`
	Version  string `json:"version"`
}

type InfoRepo struct {
	Cipher string     `json:"cipher"`
	Key    int        `json:"key"`
	Status InfoResult `json:"status"`

	cause error // of InfoOther
}

type InfoResult struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

type InfoStatus struct {
	Code    int                 `json:"code"`
	Lock    map[string]InfoLock `json:"lock"`
	Message string              `json:"message"`
}

type InfoLock struct {
	Held bool `json:"held"`
}

// BackupInfo is one backup in the JSON.
type BackupInfo struct {
	Annotation map[string]string `json:"annotation,omitempty"`
	Archive    struct {
		Start *string `json:"start"`
		Stop  *string `json:"stop"`
	} `json:"archive"`
	Backrest struct {
		Format  int    `json:"format"`
		Version string `json:"version"`
	} `json:"backrest"`
	Database    InfoDBRef          `json:"database"`
	DatabaseRef *[]InfoDatabaseRef `json:"database-ref,omitempty"`
	Error       *bool              `json:"error"`
	ErrorList   []string           `json:"error-list,omitempty"`
	Info        struct {
		Delta      int64 `json:"delta"`
		Repository struct {
			Delta    int64  `json:"delta"`
			DeltaMap *int64 `json:"delta-map,omitempty"`
			Size     *int64 `json:"size,omitempty"`
			SizeMap  *int64 `json:"size-map,omitempty"`
		} `json:"repository"`
		Size int64 `json:"size"`
	} `json:"info"`
	Label string      `json:"label"`
	Link  *[]InfoLink `json:"link,omitempty"`
	LSN   *struct {
		Start string `json:"start"`
		Stop  string `json:"stop"`
	} `json:"lsn,omitempty"`
	Prior      *string           `json:"prior"`
	Reference  []string          `json:"reference"`
	Tablespace *[]InfoTablespace `json:"tablespace,omitempty"`
	Timestamp  struct {
		Start int64 `json:"start"`
		Stop  int64 `json:"stop"`
	} `json:"timestamp"`
	Type string `json:"type"`
}

type InfoDatabaseRef struct {
	Name string `json:"name"`
	OID  uint32 `json:"oid"`
}

type InfoLink struct {
	Destination string `json:"destination"`
	Name        string `json:"name"`
}

type InfoTablespace struct {
	Destination string `json:"destination"`
	Name        string `json:"name"`
	OID         uint32 `json:"oid"`
}

// Stanzas names the stanzas of a repository.
func Stanzas(ctx context.Context, st storage.Storage) ([]string, error) {
	var names []string
	for _, top := range []string{"archive", "backup"} {
		for info, err := range st.List(ctx, top, storage.ListOptions{}) {
			if err != nil {
				return nil, fmt.Errorf("list %s: %w", top, err)
			}
			if info.Dir {
				names = append(names, path.Base(info.Name))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Labels are the backups that the repository lists, oldest first.
func (s *Stanza) Labels(ctx context.Context) ([]repo.Label, error) {
	_, bi, err := s.loadInfos(ctx)
	if err != nil {
		return nil, err
	}
	var labels []repo.Label
	for _, l := range bi.Backups {
		labels = append(labels, l.Label)
	}
	return labels, nil
}

// Cluster is the history entry that a cluster has in this repository; another one may have it under another id.
// ErrStanzaMismatch: none.
func (s *Stanza) Cluster(ctx context.Context, systemID uint64, version string) (repo.DB, error) {
	ai, err := s.loadArchiveInfo(ctx)
	if err != nil {
		return repo.DB{}, err
	}
	db := findCluster(ai.History, repo.DB{SystemID: systemID, Version: version})
	if db.ID == 0 {
		return db, fmt.Errorf("stanza %s: %w: it has nothing of system identifier %d, version %s", s.o.Stanza, ErrStanzaMismatch, systemID, version)
	}
	return db, nil
}

// Info describes the stanza as the repository has it; set (may be empty) narrows it to one backup with details. A stanza
// that is not there is no error but a status, as with pgbackrest.
func (s *Stanza) Info(ctx context.Context, set repo.Label) (*StanzaInfo, error) {
	cipher := "none"
	if s.o.Pass != "" {
		cipher = "aes-256-cbc"
	}
	out, err := InfoAcross(ctx, s.o.Stanza, []InfoRepository{{Key: s.o.RepoKey, Cipher: cipher, Stanza: s}}, set)
	if err == nil && out.Status.Code == InfoOther {
		err = out.Repo[0].cause
	}
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (s *Stanza) fillInfo(ctx context.Context, out *StanzaInfo, set repo.Label) error {
	status := func(code int, message string) error {
		out.Status.Code, out.Status.Message = code, message
		return nil
	}
	bi, err := repo.LoadBackupInfo(ctx, s.o.Storage, s.o.Stanza, s.o.Pass)
	if errors.Is(err, fs.ErrNotExist) {
		for _, dir := range []string{repo.BackupDir(s.o.Stanza), repo.ArchiveDir(s.o.Stanza)} {
			if some, err := s.holds(ctx, dir); err != nil {
				return err
			} else if some {
				return status(InfoNoData, "missing stanza data")
			}
		}
		return status(InfoNoPath, "missing stanza path")
	}
	if err != nil {
		return s.notLoaded(ctx, repo.BackupDir(s.o.Stanza)+"/backup.info", err)
	}
	for _, db := range bi.History {
		out.DB = append(out.DB, InfoDB{db.ID, s.o.RepoKey, db.SystemID, db.Version})
		r, err := s.archiveRange(ctx, db)
		if err != nil {
			return err
		}
		if r.Min != nil || db.ID == bi.Current {
			out.Archive = append(out.Archive, r)
		}
	}
	for i := range bi.Backups {
		l := &bi.Backups[i]
		if set != "" && l.Label != set {
			continue
		}
		b := s.backupInfo(l)
		if set != "" {
			if err := s.details(ctx, &b, bi.CipherPass); err != nil {
				return err
			}
		}
		out.Backup = append(out.Backup, b)
	}
	switch {
	case set != "" && len(out.Backup) == 0:
		return status(InfoBackupAbsent, "requested backup not found")
	case len(out.Backup) == 0:
		return status(InfoNoBackup, "no valid backups")
	}
	return status(InfoOK, "ok")
}

// archiveRange finds the first and last segment of one archive id.
func (s *Stanza) archiveRange(ctx context.Context, db repo.DB) (ArchiveRange, error) {
	id := repo.ArchiveID(db.Version, db.ID)
	r := ArchiveRange{Database: InfoDBRef{db.ID, s.o.RepoKey}, ID: id}
	base := repo.ArchiveDir(s.o.Stanza) + "/" + id
	var dirs []string
	for info, err := range s.o.Storage.List(ctx, base, storage.ListOptions{}) {
		if err != nil {
			return r, fmt.Errorf("list %s: %w", base, err)
		}
		if info.Dir {
			dirs = append(dirs, info.Name)
		}
	}
	edge := func(dirs []string, better func(a, b string) bool) (*string, error) {
		for _, d := range dirs {
			have, err := s.segmentSet(ctx, d)
			if err != nil {
				return nil, err
			}
			best := ""
			for seg := range have {
				if pg.IsSegmentName(seg) && (best == "" || better(seg, best)) {
					best = seg
				}
			}
			if best != "" {
				return &best, nil
			}
		}
		return nil, nil
	}
	slices.Sort(dirs)
	var err error
	if r.Min, err = edge(dirs, func(a, b string) bool { return a < b }); err != nil {
		return r, err
	}
	slices.Reverse(dirs)
	r.Max, err = edge(dirs, func(a, b string) bool { return a > b })
	return r, err
}

func (s *Stanza) backupInfo(l *repo.BackupLine) BackupInfo {
	b := BackupInfo{Annotation: l.Annotations, Database: InfoDBRef{l.DBID, s.o.RepoKey}, Error: l.Error, Label: string(l.Label), Type: string(l.Type)}
	optional := func(v string) *string {
		if v == "" {
			return nil
		}
		return &v
	}
	b.Archive.Start, b.Archive.Stop = optional(l.ArchiveStart), optional(l.ArchiveStop)
	b.Backrest.Format, b.Backrest.Version = repo.FormatNumber, l.BackrestVersion
	b.Info.Size, b.Info.Delta = l.Size, l.SizeDelta
	b.Info.Repository.Delta = l.RepoSizeDelta
	if l.RepoSizeMap != nil {
		b.Info.Repository.SizeMap, b.Info.Repository.DeltaMap = l.RepoSizeMap, l.RepoSizeMapDelta
	} else {
		size := l.RepoSize
		b.Info.Repository.Size = &size
	}
	if l.LSNStart != "" {
		b.LSN = &struct {
			Start string `json:"start"`
			Stop  string `json:"stop"`
		}{l.LSNStart, l.LSNStop}
	}
	b.Prior = optional(string(l.Prior))
	for _, r := range l.References {
		b.Reference = append(b.Reference, string(r))
	}
	b.Timestamp.Start, b.Timestamp.Stop = l.TimeStart, l.TimeStop
	return b
}

// details adds what only the manifest knows.
func (s *Stanza) details(ctx context.Context, b *BackupInfo, pass repo.Secret) error {
	m, err := repo.LoadManifest(ctx, s.o.Storage, s.o.Stanza, repo.Label(b.Label), pass)
	if err != nil {
		return fmt.Errorf("stanza %s: backup %s: load the manifest: %w", s.o.Stanza, b.Label, err)
	}
	dbs := []InfoDatabaseRef{}
	for _, d := range m.Databases {
		if d.Name != "template0" && d.Name != "template1" {
			dbs = append(dbs, InfoDatabaseRef{d.Name, d.OID})
		}
	}
	slices.SortFunc(dbs, func(a, b InfoDatabaseRef) int { return strings.Compare(a.Name, b.Name) })
	var links []InfoLink
	var spaces []InfoTablespace
	for _, t := range m.Targets {
		switch {
		case t.TablespaceID != "":
			var oid uint32
			if _, err := fmt.Sscanf(t.TablespaceID, "%d", &oid); err != nil {
				return fmt.Errorf("tablespace number %q: %w", t.TablespaceID, err)
			}
			spaces = append(spaces, InfoTablespace{t.Path, t.TablespaceName, oid})
		case t.Link:
			links = append(links, InfoLink{path.Join(t.Path, t.File), strings.TrimPrefix(t.Name, "pg_data/")})
		}
	}
	b.DatabaseRef, b.Link, b.Tablespace = &dbs, &links, &spaces
	for i := range m.Files {
		if m.Files[i].PageChecked && !m.Files[i].PageOK {
			b.ErrorList = append(b.ErrorList, strings.TrimPrefix(m.Files[i].Name, "pg_data/"))
		}
	}
	return nil
}

func writeInfoBackup(b *strings.Builder, k BackupInfo, local *time.Location) {
	at := func(t int64) string { return time.Unix(t, 0).In(local).Format("2006-01-02 15:04:05") }
	fmt.Fprintf(b, "\n        %s backup: %s\n", k.Type, k.Label)
	fmt.Fprintf(b, "            timestamp start/stop: %s / %s\n", at(k.Timestamp.Start), at(k.Timestamp.Stop))
	if k.Archive.Start != nil && k.Archive.Stop != nil {
		fmt.Fprintf(b, "            wal start/stop: %s / %s\n", *k.Archive.Start, *k.Archive.Stop)
	} else {
		b.WriteString("            wal start/stop: n/a\n")
	}
	if k.DatabaseRef != nil && k.LSN != nil {
		fmt.Fprintf(b, "            lsn start/stop: %s / %s\n", k.LSN.Start, k.LSN.Stop)
	}
	fmt.Fprintf(b, "            database size: %s, database backup size: %s\n", Size(k.Info.Size), Size(k.Info.Delta))
	if k.Info.Repository.Size != nil {
		fmt.Fprintf(b, "            repo%d: backup set size: %s, backup size: %s\n", k.Database.RepoKey, Size(*k.Info.Repository.Size), Size(k.Info.Repository.Delta))
	} else {
		fmt.Fprintf(b, "            repo%d: backup size: %s\n", k.Database.RepoKey, Size(k.Info.Repository.Delta))
	}
	if len(k.Reference) > 0 {
		fmt.Fprintf(b, "            backup reference list: %s\n", strings.Join(k.Reference, ", "))
	}
	if k.DatabaseRef != nil {
		writeInfoDetails(b, k)
	} else if k.Error != nil && *k.Error {
		b.WriteString("            error(s) detected during backup\n")
	}
}

func writeInfoDetails(b *strings.Builder, k BackupInfo) {
	var dbs []string
	for _, d := range *k.DatabaseRef {
		dbs = append(dbs, fmt.Sprintf("%s (%d)", d.Name, d.OID))
	}
	if len(dbs) == 0 {
		dbs = []string{"none"}
	}
	fmt.Fprintf(b, "            database list: %s\n", strings.Join(dbs, ", "))
	if len(*k.Link) > 0 {
		b.WriteString("            symlinks:\n")
		for _, l := range *k.Link {
			fmt.Fprintf(b, "                %s => %s\n", l.Name, l.Destination)
		}
	}
	if len(*k.Tablespace) > 0 {
		b.WriteString("            tablespaces:\n")
		for _, t := range *k.Tablespace {
			fmt.Fprintf(b, "                %s (%d) => %s\n", t.Name, t.OID, t.Destination)
		}
	}
	if len(k.ErrorList) > 0 {
		fmt.Fprintf(b, "            error list: %s\n", strings.Join(k.ErrorList, ", "))
	}
	if len(k.Annotation) > 0 {
		b.WriteString("            annotation(s)\n")
		keys := make([]string, 0, len(k.Annotation))
		for a := range k.Annotation {
			keys = append(keys, a)
		}
		slices.Sort(keys)
		for _, a := range keys {
			fmt.Fprintf(b, "                %s: %s\n", a, k.Annotation[a])
		}
	}
}

// Size prints bytes as pgbackrest does: 512B, 1.5KB, 31MB.
func Size(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%dB", n)
	}
	unit, name := int64(1<<10), "KB"
	switch {
	case n >= 1<<30:
		unit, name = 1<<30, "GB"
	case n >= 1<<20:
		unit, name = 1<<20, "MB"
	}
	if v := float64(n) / float64(unit); int64(v*10)%10 != 0 {
		return fmt.Sprintf("%.1f%s", v, name)
	}
	return fmt.Sprintf("%d%s", n/unit, name)
}
