package catalog

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Format is the version of the document; a reader refuses a greater one.
const Format = 1

// State is how far a set came.
type State string

const (
	Running    State = "running"    // being made, or its maker died
	Publishing State = "publishing" // every piece is complete and on disk; only the final names are missing
	Complete   State = "complete"
	Failed     State = "failed"
)

// Mode is where PostgreSQL is.
type Mode string

const (
	Included Mode = "included" // inside the application tarball
	Apart    Mode = "apart"    // in its own repository
)

// Kind is what a piece holds.
type Kind string

const (
	Application Kind = "application"
	EventBus    Kind = "eventbus"
	Postgres    Kind = "postgres"
)

// Piece is one part of a set.
type Piece struct {
	Kind   Kind   `json:"kind"`
	Path   string `json:"path"`             // tarball, repository directory, or rds:REGION/SNAPSHOT
	Size   int64  `json:"size"`             // bytes
	SHA256 string `json:"sha256,omitempty"` // of the tarball
	Stanza string `json:"stanza,omitempty"`
	Label  string `json:"label,omitempty"`  // backup label in the repository, or the name of the DB snapshot
	Region string `json:"region,omitempty"` // of the DB snapshot; empty: it is none
	Tool   string `json:"tool,omitempty"`   // what made a postgres piece; empty: it is in pgBackRest's format
}

// Probackup is the Tool of a backup by pg_probackup: Label is its ID, and Path a backup catalog.
const Probackup = "pg_probackup"

// OnRDS says whether the piece is a DB snapshot of Amazon RDS.
func (p *Piece) OnRDS() bool { return p.Region != "" }

// Interval is when something was true, on this host's clock.
type Interval struct {
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
}

// Backup is a PostgreSQL backup that a run made, known from the moment it is in its repository. In mode included that is the
// staging repository, or the tarball itself.
type Backup struct {
	Stanza string   `json:"stanza"`
	Label  string   `json:"label"`
	Type   string   `json:"type"`            // full, diff or incr
	Prior  string   `json:"prior,omitempty"` // the backup that a diff or incr was built on
	Needs  []string `json:"needs,omitempty"` // labels: what a restore of it reads besides, from the same repository
	Why    string   `json:"why,omitempty"`   // why it is of this type
}

// PostgresPoint is one cluster at the recovery point.
type PostgresPoint struct {
	Stanza     string   `json:"stanza"`
	Label      string   `json:"label"`
	Tool       string   `json:"tool,omitempty"` // what made the backup; empty: it is in pgBackRest's format
	Version    string   `json:"pg_version"`
	SystemID   uint64   `json:"system_id"`
	HistoryID  int      `json:"history_id"`
	Timeline   uint32   `json:"timeline"`
	LSN        string   `json:"lsn"`
	Segment    string   `json:"segment"`               // WAL segment that holds the restore point
	WALStart   string   `json:"wal_start"`             // first segment that a restore needs
	DataDir    string   `json:"data_dir"`              // on the host of the backup
	ConfigFile string   `json:"config_file,omitempty"` // postgresql.conf where it is outside DataDir: in no backup of the cluster
	Bytes      int64    `json:"bytes"`                 // original bytes of the backup
	RepoBytes  int64    `json:"repo_bytes"`            // stored bytes
	Databases  []string `json:"databases"`
	Taken      Interval `json:"taken"`
	PageErrors []string `json:"page_errors,omitempty"` // files with bad page checksums

	Compress string        `json:"compress,omitempty"` // compression of the backup; empty: the set was made before this was noted
	Host     *PostgresHost `json:"host,omitempty"`     // nil: likewise

	// RDS is where the database is when it is a DB instance of Amazon RDS; nil: on the host. Then label, history_id, segment,
	// wal_start and data_dir are empty, lsn is what the snapshot has reached at least, and what only SQL can tell may be empty.
	RDS *RDSPoint `json:"rds,omitempty"`
}

// RDSPoint is a DB snapshot of Amazon RDS, and what of its DB instance a new one needs.
type RDSPoint struct {
	Region         string    `json:"region"`
	Instance       string    `json:"instance"` // identifier of the DB instance
	Snapshot       string    `json:"snapshot"` // identifier of the DB snapshot
	ARN            string    `json:"arn"`      // of the snapshot
	Engine         string    `json:"engine"`
	EngineVersion  string    `json:"engine_version"`
	Class          string    `json:"class"`
	StorageGiB     int       `json:"allocated_gib"`
	StorageType    string    `json:"storage_type,omitempty"`
	Encrypted      bool      `json:"encrypted"`
	KMSKey         string    `json:"kms_key,omitempty"`
	Port           int       `json:"port,omitempty"`
	SubnetGroup    string    `json:"subnet_group,omitempty"`
	SecurityGroups []string  `json:"security_groups,omitempty"`
	ParameterGroup string    `json:"parameter_group,omitempty"`
	OptionGroup    string    `json:"option_group,omitempty"`
	MultiAZ        bool      `json:"multi_az"`
	Public         bool      `json:"public"`
	SnapshotTime   time.Time `json:"snapshot_time"`        // when it was taken, on the service's clock
	LastChange     time.Time `json:"last_change,omitzero"` // the last transaction in it, if the service tells
	ClockMS        int64     `json:"clock_ms"`             // the service's clock less the host's, told in whole seconds
	SQL            string    `json:"sql,omitempty"`        // why the database was not asked by SQL; empty: it was
}

// FilesPoint is the files at the recovery point.
type FilesPoint struct {
	Taken        Interval `json:"taken"`
	Files        int64    `json:"files"`
	Bytes        int64    `json:"bytes"`
	IndexSHA256  string   `json:"index_sha256"`
	Trees        []Tree   `json:"trees"`
	Inconsistent []string `json:"inconsistent,omitempty"` // what changed while it was read, every time
}

// Tree is one captured directory: its name in the tarball and where it was.
type Tree struct {
	Name string `json:"name"`
	Path string `json:"path"` // below the instance's root
}

// BusPoint is the event bus at the recovery point.
type BusPoint struct {
	Taken      Interval `json:"taken"`
	Topics     int      `json:"topics"`
	Partitions int      `json:"partitions"`
	Records    int64    `json:"records"`
	Lost       []string `json:"lost,omitempty"` // ranges that retention removed before they were read
}

// Skew is how far apart in time the components were taken: the whole span from the first to the last look.
type Skew struct {
	Interval
	Milliseconds int64 `json:"ms"`
}

// Recovery is the point that all pieces share.
type Recovery struct {
	Name     string          `json:"name"` // PostgreSQL restore point
	Postgres []PostgresPoint `json:"postgres"`
	Files    *FilesPoint     `json:"files,omitempty"`
	EventBus *BusPoint       `json:"eventbus,omitempty"`
	Skew     Skew            `json:"skew"`
}

// Verdict is what one check of a set found.
type Verdict struct {
	At       time.Time `json:"at"`
	Check    string    `json:"check"` // "verify", "restore", …
	OK       bool      `json:"ok"`
	Findings []string  `json:"findings,omitempty"`
}

// Copy is what is known of a set's copy on external storage.
type Copy struct {
	Store    string      `json:"store"`              // where
	At       time.Time   `json:"at"`                 // when this was written
	Postgres bool        `json:"postgres"`           // the PostgreSQL backup is there, with the WAL up to the recovery point
	Tarballs bool        `json:"tarballs,omitempty"` // both are there
	WAL      []CopiedWAL `json:"wal,omitempty"`      // how far beyond
	LastSet  string      `json:"last_set,omitempty"` // the newest set whose PostgreSQL backup is there
	Error    string      `json:"error,omitempty"`    // why something is not there
}

// CopiedWAL is how far the WAL of one cluster reaches on external storage.
type CopiedWAL struct {
	Stanza string `json:"stanza"`
	Last   string `json:"last"` // segment
}

// PostScript is how the program that relocates the tarballs ended.
type PostScript struct {
	Program string   `json:"program"`
	Ran     Interval `json:"ran"`
	Code    int      `json:"code"`            // exit code; -1: it was ended, or did not start
	Error   string   `json:"error,omitempty"` // empty: it ended well
}

// Kit is the recovery kit that the run wrote beside the tarballs.
type Kit struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// Pin keeps a set from the retention, and from being deleted.
type Pin struct {
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`             // when it was pinned
	Until  time.Time `json:"until,omitzero"` // from then on it keeps nothing; zero: it has no end
}

// Removal says that a set is being removed. It is in the set's entry before anything goes, and the entry goes last: a removal that died
// is seen and completed. The state is then Failed, as for programs that do not know this member.
type Removal struct {
	Reason string    `json:"reason"`
	At     time.Time `json:"at"` // when it was begun
}

// Retention is what the retention did at the end of a run, or when it was asked to: in the entry of the newest complete set.
type Retention struct {
	At      time.Time `json:"at"`
	Removed []string  `json:"removed,omitempty"` // sets
	Bytes   int64     `json:"bytes"`             // freed here
	Error   string    `json:"error,omitempty"`   // what could not be removed, and why
}

// Set is one run's backup.
type Set struct {
	Format     int       `json:"format"`
	ID         string    `json:"id"` // <timestamp_version>
	Run        string    `json:"run"`
	State      State     `json:"state"`
	Error      string    `json:"error,omitempty"`
	Mode       Mode      `json:"mode"`
	Began      time.Time `json:"began"`
	Ended      time.Time `json:"ended,omitzero"`
	Host       string    `json:"host"`
	Root       string    `json:"root"` // of the instance that was backed up
	AppVersion string    `json:"app_version"`
	Program    string    `json:"program"` // version of Holdfast
	Pieces     []Piece   `json:"pieces"`
	Backups    []Backup  `json:"backups,omitempty"`
	Recovery   *Recovery `json:"recovery,omitempty"`
	Warnings   []string  `json:"warnings,omitempty"`
	Verdicts   []Verdict `json:"verdicts,omitempty"`

	// Unsettled: its recovery kit and the program that may relocate its tarballs are still to come. The run that made it goes on, or
	// has died; then the next one does it.
	Unsettled  bool        `json:"unsettled,omitempty"`
	Kit        *Kit        `json:"recovery_kit,omitempty"` // nil: none is configured, or it could not be written
	Copy       *Copy       `json:"copy,omitempty"`         // nil: nothing was to be copied
	PostScript *PostScript `json:"post_script,omitempty"`
	Pin        *Pin        `json:"pin,omitempty"`       // nil: it is not pinned
	Removal    *Removal    `json:"removal,omitempty"`   // nil: it is not being removed
	Retention  *Retention  `json:"retention,omitempty"` // nil: none was applied after it

	// extra are members of the document that this version does not know, by their names. Encode writes them back, so that
	// a verdict added by an older program does not take away what a newer one noted.
	extra map[string]json.RawMessage
}

var idPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9]{12}_[0-9A-Za-z]+(-[0-9A-Za-z]+)*$`) })

// CheckID says whether s is a <timestamp_version>.
func CheckID(s string) error {
	if !idPattern().MatchString(s) || len(s) > 128 {
		return fmt.Errorf("%q is not the id of a backup set (YYYYMMDDHHMM_major-minor-patch-build); see: holdfast sets list", s)
	}
	return nil
}

// Parse reads a set document. Members that this version does not know are kept for Encode, at the top level.
func Parse(b []byte) (*Set, error) {
	var s Set
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("parse a backup set: %w", err)
	}
	if s.Format < 1 || s.Format > Format {
		return nil, fmt.Errorf("parse a backup set: format %d; this program reads up to %d", s.Format, Format)
	}
	if err := CheckID(s.ID); err != nil {
		return nil, err
	}
	if s.Mode != Included && s.Mode != Apart {
		return nil, fmt.Errorf("backup set %s: mode %q", s.ID, s.Mode)
	}
	if err := s.keepExtra(b); err != nil {
		return nil, fmt.Errorf("backup set %s: %w", s.ID, err)
	}
	return &s, nil
}

// keepExtra notes the members that are no field of Set. Like encoding/json it takes names for equal in any case.
func (s *Set) keepExtra(b []byte) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(b, &members); err != nil {
		return err
	}
	t := reflect.TypeFor[Set]()
	for name, value := range members {
		known := false
		for i := range t.NumField() {
			tag, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
			known = known || tag != "" && strings.EqualFold(tag, name)
		}
		if known {
			continue
		}
		if s.extra == nil {
			s.extra = map[string]json.RawMessage{}
		}
		s.extra[name] = value
	}
	return nil
}

// Encode writes a set document, indented for people.
func (s *Set) Encode() ([]byte, error) {
	if err := CheckID(s.ID); err != nil {
		return nil, err
	}
	s.Format = Format
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	if len(s.extra) > 0 {
		more, err := json.Marshal(s.extra) // in the order of the names
		if err != nil {
			return nil, err
		}
		b = append(append(b[:len(b)-1], ','), more[1:]...)
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		return nil, err
	}
	out.WriteByte('\n')
	return out.Bytes(), nil
}

// Piece returns the first piece of a kind, nil without.
func (s *Set) Piece(k Kind) *Piece {
	for i := range s.Pieces {
		if s.Pieces[i].Kind == k {
			return &s.Pieces[i]
		}
	}
	return nil
}

// Local are the clusters at the recovery point that are not on Amazon RDS.
func (s *Set) Local() []PostgresPoint {
	if s.Recovery == nil {
		return nil
	}
	var out []PostgresPoint
	for _, p := range s.Recovery.Postgres {
		if p.RDS == nil {
			out = append(out, p)
		}
	}
	return out
}

// OnRDS are those that are.
func (s *Set) OnRDS() []PostgresPoint {
	if s.Recovery == nil {
		return nil
	}
	var out []PostgresPoint
	for _, p := range s.Recovery.Postgres {
		if p.RDS != nil {
			out = append(out, p)
		}
	}
	return out
}

// Pinned reports whether the set has a pin that has not ended.
func (s *Set) Pinned(now time.Time) bool {
	return s.Pin != nil && (s.Pin.Until.IsZero() || now.Before(s.Pin.Until))
}

// Good reports whether a set is complete and its last check, if there was one, found nothing.
func (s *Set) Good() bool {
	n := len(s.Verdicts)
	return s.State == Complete && (n == 0 || s.Verdicts[n-1].OK)
}

// Backup returns what is noted of a PostgreSQL backup of this set, nil without.
func (s *Set) Backup(stanza, label string) *Backup {
	for i := range s.Backups {
		if b := &s.Backups[i]; b.Stanza == stanza && b.Label == label {
			return b
		}
	}
	return nil
}

// Size is the bytes of all pieces.
func (s *Set) Size() int64 {
	var n int64
	for _, p := range s.Pieces {
		n += p.Size
	}
	return n
}

// ErrUnknown says that no set has the id.
var ErrUnknown = errors.New("no such backup set")
