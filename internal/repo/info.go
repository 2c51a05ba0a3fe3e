package repo

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// FormatNumber is the repository format, the same since pgBackRest 1.0 (format page, section 1).
const FormatNumber = 5

// What may be wrong with an info file or a manifest. A missing one is fs.ErrNotExist.
var (
	ErrFormat   = errors.New("format error")
	ErrChecksum = errors.New("checksum mismatch")
)

// DB is one cluster that a stanza has had: an entry of [db:history], or the [backup:db] of a manifest.
type DB struct {
	ID             int // history id, from 1, one more with each stanza-upgrade
	SystemID       uint64
	Version        string // "15"
	ControlVersion uint32 // backup.info and manifest only
	CatalogVersion uint32 // backup.info and manifest only
}

// ArchiveInfo is archive.info (format page, section 5).
type ArchiveInfo struct {
	BackrestVersion string
	CipherPass      Secret // pass of WAL; empty = not encrypted
	Current         int    // history id of [db]
	History         []DB   // sorted by ID
}

// BackupInfo is backup.info (format page, section 6).
type BackupInfo struct {
	BackrestVersion string
	CipherPass      Secret // pass of manifests; empty = not encrypted
	Current         int
	History         []DB         // sorted by ID
	Backups         []BackupLine // sorted by label
}

// BackupLine is one line of [backup:current] (format page, section 6).
type BackupLine struct {
	Label           Label
	BackrestVersion string
	Type            BackupType
	Prior           Label   // "" = absent (full)
	References      []Label // without the backup itself; nil = absent
	DBID            int     // history id

	TimeStart, TimeStop       int64  // Unix seconds
	ArchiveStart, ArchiveStop string // WAL segments; "" = null (offline)
	LSNStart, LSNStop         string // "" = absent

	Error *bool // page checksum errors were found; nil = absent (before 2.36)

	Size, SizeDelta         int64 // original bytes: all files, those stored in this backup
	RepoSize, RepoSizeDelta int64 // stored bytes
	// Bytes of the block maps; nil = absent (no block incremental).
	RepoSizeMap, RepoSizeMapDelta *int64

	Annotations map[string]string

	ArchiveCheck, ArchiveCopy, BackupStandby, ChecksumPage, Compress, Hardlink, Online bool
}

const (
	sectionCurrent = "backup:current"
	sectionCipher  = "cipher"
	sectionDB      = "db"
	sectionHistory = "db:history"

	keyCipherPass = "cipher-pass"
)

// ParseArchiveInfo reads archive.info. Unknown keys are dropped. Errors: ErrFormat, ErrChecksum.
func ParseArchiveInfo(b []byte) (*ArchiveInfo, error) {
	a := &ArchiveInfo{}
	var dbs dbSections
	head, err := readINI(bytes.NewReader(b), func(section string, key, value []byte) error {
		return dbs.key(section, key, value)
	})
	if err != nil {
		return nil, err
	}
	a.BackrestVersion, a.CipherPass = head.version, dbs.pass
	a.Current, a.History, err = dbs.finish(false)
	if err != nil {
		return nil, err
	}
	return a, nil
}

// Encode writes archive.info. It fails with ErrFormat when Current is not in History.
func (a *ArchiveInfo) Encode() ([]byte, error) {
	var buf bytes.Buffer
	w := newINIWriter(&buf, a.BackrestVersion)
	w.optional(sectionCipher, keyCipherPass, string(a.CipherPass))
	if err := writeDBs(w, a.Current, a.History, false); err != nil {
		return nil, err
	}
	if err := w.close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// DB returns the current history entry.
func (a *ArchiveInfo) DB() DB { return findDB(a.History, a.Current) }

// ParseBackupInfo reads backup.info. Unknown keys are dropped. Errors: ErrFormat, ErrChecksum.
func ParseBackupInfo(b []byte) (*BackupInfo, error) {
	info := &BackupInfo{}
	var dbs dbSections
	head, err := readINI(bytes.NewReader(b), func(section string, key, value []byte) error {
		if section != sectionCurrent {
			return dbs.key(section, key, value)
		}
		line, err := parseBackupLine(string(key), value)
		info.Backups = append(info.Backups, line)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(info.Backups, func(a, b BackupLine) int { return strings.Compare(string(a.Label), string(b.Label)) })
	for i := 1; i < len(info.Backups); i++ {
		if info.Backups[i].Label == info.Backups[i-1].Label {
			return nil, fmt.Errorf("%w: [%s] %s: label appears twice", ErrFormat, sectionCurrent, info.Backups[i].Label)
		}
	}
	info.BackrestVersion, info.CipherPass = head.version, dbs.pass
	info.Current, info.History, err = dbs.finish(true)
	if err != nil {
		return nil, err
	}
	return info, nil
}

// Encode writes backup.info, the backups in the order of their labels. It fails with ErrFormat when Current is not in
// History, or when a label is none or appears twice.
func (b *BackupInfo) Encode() ([]byte, error) {
	var buf bytes.Buffer
	w := newINIWriter(&buf, b.BackrestVersion)
	lines := make([]*BackupLine, len(b.Backups))
	for i := range b.Backups {
		lines[i] = &b.Backups[i]
	}
	slices.SortFunc(lines, func(a, b *BackupLine) int { return strings.Compare(string(a.Label), string(b.Label)) })
	for _, line := range lines {
		if _, err := ParseLabel(string(line.Label)); err != nil {
			return nil, err
		}
		w.put(sectionCurrent, string(line.Label), line.append(nil))
	}
	w.optional(sectionCipher, keyCipherPass, string(b.CipherPass))
	if err := writeDBs(w, b.Current, b.History, true); err != nil {
		return nil, err
	}
	if err := w.close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// DB returns the current history entry.
func (b *BackupInfo) DB() DB { return findDB(b.History, b.Current) }

// Find returns the line of a label, nil when it is not listed. The pointer is into Backups.
func (b *BackupInfo) Find(l Label) *BackupLine {
	for i := range b.Backups {
		if b.Backups[i].Label == l {
			return &b.Backups[i]
		}
	}
	return nil
}

// Put adds a line or replaces the one of the same label, and keeps Backups sorted.
func (b *BackupInfo) Put(line BackupLine) {
	i, found := slices.BinarySearchFunc(b.Backups, line.Label, func(x BackupLine, l Label) int {
		return strings.Compare(string(x.Label), string(l))
	})
	if found {
		b.Backups[i] = line
		return
	}
	b.Backups = slices.Insert(b.Backups, i, line)
}

func findDB(history []DB, id int) DB {
	for _, db := range history {
		if db.ID == id {
			return db
		}
	}
	return DB{}
}

// dbSections collects [cipher], [db] and [db:history], which archive.info and backup.info share.
type dbSections struct {
	pass    Secret
	current DB
	history []DB
}

func (d *dbSections) key(section string, key, value []byte) error {
	j := jsonReader{b: value}
	switch section {
	case sectionCipher:
		if string(key) != keyCipherPass {
			return nil
		}
		d.pass = Secret(j.str())
	case sectionDB:
		j.dbKey(key, &d.current)
	case sectionHistory:
		db, err := parseHistory(string(key), &j)
		if err != nil {
			return err
		}
		d.history = append(d.history, db)
	default:
		return nil
	}
	return j.done()
}

// dbKey reads one of the keys that [db] and [backup:db] have as lines.
func (j *jsonReader) dbKey(key []byte, db *DB) {
	switch string(key) {
	case "db-id":
		db.ID = int(j.integer(0, math.MaxInt32))
	case "db-system-id":
		db.SystemID = j.unsigned()
	case "db-version":
		db.Version = j.version()
	case "db-control-version":
		db.ControlVersion = uint32(j.integer(0, math.MaxUint32))
	case "db-catalog-version":
		db.CatalogVersion = uint32(j.integer(0, math.MaxUint32))
	default:
		j.skip(0)
	}
}

// version reads a PostgreSQL version.
func (j *jsonReader) version() string {
	v := string(j.str())
	if j.err == nil && !isVersion(v) {
		j.fail(fmt.Sprintf("%.30q is not a PostgreSQL version", v))
	}
	return v
}

// parseHistory reads one line of [db:history]. In archive.info "db-id" is the system identifier there.
func parseHistory(key string, j *jsonReader) (DB, error) {
	id, err := strconv.ParseInt(key, 10, 32)
	if err != nil || id < 1 || strconv.FormatInt(id, 10) != key {
		return DB{}, fmt.Errorf("%w: a history id is a number from 1", ErrFormat)
	}
	db := DB{ID: int(id)}
	named := false // db-system-id was there
	j.object(func(k []byte) {
		switch string(k) {
		case "db-id":
			if n := j.unsigned(); !named {
				db.SystemID = n
			}
		case "db-system-id":
			db.SystemID, named = j.unsigned(), true
		default:
			j.dbKey(k, &db)
		}
	})
	if j.err == nil && db.Version == "" {
		return db, fmt.Errorf("%w: no db-version", ErrFormat)
	}
	return db, nil
}

// finish checks that [db] is the history entry it names. catalog says that control and catalog version count too.
func (d *dbSections) finish(catalog bool) (current int, history []DB, err error) {
	slices.SortFunc(d.history, func(a, b DB) int { return a.ID - b.ID })
	for i := range d.history {
		if !catalog { // archive.info does not have them
			d.history[i].ControlVersion, d.history[i].CatalogVersion = 0, 0
		}
		if i > 0 && d.history[i].ID == d.history[i-1].ID {
			return 0, nil, fmt.Errorf("%w: [%s] %d: history id appears twice", ErrFormat, sectionHistory, d.history[i].ID)
		}
	}
	db := findDB(d.history, d.current.ID)
	if db.ID == 0 {
		return 0, nil, fmt.Errorf("%w: [%s] db-id: %d is not in [%s]", ErrFormat, sectionDB, d.current.ID, sectionHistory)
	}
	if db.SystemID != d.current.SystemID || db.Version != d.current.Version || (catalog &&
		(db.ControlVersion != d.current.ControlVersion || db.CatalogVersion != d.current.CatalogVersion)) {
		return 0, nil, fmt.Errorf("%w: [%s] differs from entry %d of [%s]", ErrFormat, sectionDB, db.ID, sectionHistory)
	}
	return db.ID, d.history, nil
}

// writeDBs writes [db] and [db:history]. History ids are keys and therefore in byte order: 1, 10, 2.
func writeDBs(w *iniWriter, current int, history []DB, catalog bool) error {
	db := findDB(history, current)
	if db.ID < 1 {
		return fmt.Errorf("%w: current history id %d is not in the history", ErrFormat, current)
	}
	if catalog {
		w.integer(sectionDB, "db-catalog-version", int64(db.CatalogVersion))
		w.integer(sectionDB, "db-control-version", int64(db.ControlVersion))
	}
	w.integer(sectionDB, "db-id", int64(db.ID))
	w.put(sectionDB, "db-system-id", strconv.AppendUint(nil, db.SystemID, 10))
	w.str(sectionDB, "db-version", db.Version)

	type entry struct {
		key   string
		value []byte
	}
	entries := make([]entry, len(history))
	for i, h := range history {
		if h.ID < 1 || !isVersion(h.Version) {
			return fmt.Errorf("%w: history entry %d with version %.30q cannot be written", ErrFormat, h.ID, h.Version)
		}
		o := newJSONObject(nil)
		if catalog {
			o.integer("db-catalog-version", int64(h.CatalogVersion))
			o.integer("db-control-version", int64(h.ControlVersion))
			o.unsigned("db-system-id", h.SystemID)
		} else {
			o.unsigned("db-id", h.SystemID)
		}
		o.str("db-version", h.Version)
		entries[i] = entry{strconv.Itoa(h.ID), o.close()}
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.key, b.key) })
	for _, e := range entries {
		w.put(sectionHistory, e.key, e.value)
	}
	return nil
}

// jsonObject appends an object; keys are given in byte order and need no escapes.
type jsonObject struct {
	b   []byte
	any bool
}

func newJSONObject(dst []byte) jsonObject { return jsonObject{b: append(dst, '{')} }

func (o *jsonObject) key(name string) {
	if o.any {
		o.b = append(o.b, ',')
	}
	o.any = true
	o.b = append(o.b, '"')
	o.b = append(o.b, name...)
	o.b = append(o.b, '"', ':')
}

func (o *jsonObject) integer(name string, v int64) {
	o.key(name)
	o.b = strconv.AppendInt(o.b, v, 10)
}

func (o *jsonObject) unsigned(name string, v uint64) {
	o.key(name)
	o.b = strconv.AppendUint(o.b, v, 10)
}

func (o *jsonObject) boolean(name string, v bool) {
	o.key(name)
	o.b = strconv.AppendBool(o.b, v)
}

func (o *jsonObject) str(name, v string) {
	o.key(name)
	o.b = appendJSONString(o.b, []byte(v))
}

// optional writes nothing for an empty string.
func (o *jsonObject) optional(name, v string) {
	if v != "" {
		o.str(name, v)
	}
}

// nullable writes null for an empty string.
func (o *jsonObject) nullable(name, v string) {
	if v != "" {
		o.str(name, v)
		return
	}
	o.key(name)
	o.b = append(o.b, "null"...)
}

func (o *jsonObject) close() []byte { return append(o.b, '}') }
