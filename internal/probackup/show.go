package probackup

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Backup is one backup as show --format=json describes it. Times are zero where it names none.
type Backup struct {
	ID          string
	Parent      string // ID; empty: a full backup
	Mode        string // FULL, PAGE, DELTA, PTRACK
	WAL         string // ARCHIVE or STREAM
	Status      string // OK, DONE, CORRUPT, ORPHAN, ERROR, RUNNING, DELETING, …
	Program     string // version of pg_probackup
	Server      string // major version of PostgreSQL
	Timeline    uint32
	StartLSN    string
	StopLSN     string
	Start, End  time.Time
	DataBytes   int64 // stored
	PGDataBytes int64 // original bytes
	Note        string
}

// Valid says whether the backup is whole as far as is known: DONE is one that has not been validated yet.
func (b *Backup) Valid() bool { return b.Status == "OK" || b.Status == "DONE" }

// Full says whether the backup stands alone.
func (b *Backup) Full() bool { return b.Mode == "FULL" }

// shown is the document's form of a backup.
type shown struct {
	ID          string `json:"id"`
	Parent      string `json:"parent-backup-id"`
	Mode        string `json:"backup-mode"`
	WAL         string `json:"wal"`
	Status      string `json:"status"`
	Program     string `json:"program-version"`
	Server      string `json:"server-version"`
	Timeline    uint32 `json:"current-tli"`
	StartLSN    string `json:"start-lsn"`
	StopLSN     string `json:"stop-lsn"`
	Start       string `json:"start-time"`
	End         string `json:"end-time"`
	DataBytes   int64  `json:"data-bytes"`
	PGDataBytes int64  `json:"pgdata-bytes"`
	Note        string `json:"note"`
}

// ParseShow reads what show --format=json prints for one instance and returns its backups, oldest first.
func ParseShow(text []byte, instance string) ([]Backup, error) {
	var doc []struct {
		Instance string  `json:"instance"`
		Backups  []shown `json:"backups"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("pg_probackup show: %w", err)
	}
	if len(doc) != 1 || doc[0].Instance != instance {
		return nil, fmt.Errorf("pg_probackup show: the answer is not about the instance %q alone", instance)
	}
	backups := make([]Backup, 0, len(doc[0].Backups))
	for _, s := range doc[0].Backups {
		b := Backup{ID: s.ID, Parent: s.Parent, Mode: s.Mode, WAL: s.WAL, Status: s.Status, Program: s.Program, Server: s.Server, Timeline: s.Timeline,
			StartLSN: s.StartLSN, StopLSN: s.StopLSN, DataBytes: s.DataBytes, PGDataBytes: s.PGDataBytes, Note: s.Note}
		err := errors.Join(CheckID(b.ID), parentID(b.Parent))
		for _, t := range []struct {
			text string
			to   *time.Time
		}{{s.Start, &b.Start}, {s.End, &b.End}} {
			if t.text != "" && err == nil {
				*t.to, err = parseTime(t.text)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("pg_probackup show: %w", err)
		}
		backups = append(backups, b)
	}
	slices.SortFunc(backups, func(a, b Backup) int { return compareIDs(a.ID, b.ID) })
	return backups, nil
}

func parentID(id string) error {
	if id == "" {
		return nil
	}
	return CheckID(id)
}

// CheckID says whether s is the ID of a backup: a number in base 36, upper case.
func CheckID(s string) error {
	if s == "" || len(s) > 13 || strings.Trim(s, "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
		return fmt.Errorf("%.40q is not the ID of a backup of pg_probackup", s)
	}
	return nil
}

// compareIDs orders IDs by the time that they stand for.
func compareIDs(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

// parseTime reads a time as pg_probackup prints it: the zone is hours, with minutes where it has some.
func parseTime(s string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02 15:04:05-07", "2006-01-02 15:04:05-07:00", "2006-01-02 15:04:05-0700"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%.60q is not a time", s)
}

// ErrChain says that a backup builds on one that is missing or not valid.
var ErrChain = errors.New("the backup's chain is not whole")

// Chain returns the backups that a restore of id needs, the full one first. The error is ErrChain where one is missing.
func Chain(backups []Backup, id string) ([]Backup, error) {
	var chain []Backup
	for next := id; ; {
		i := slices.IndexFunc(backups, func(b Backup) bool { return b.ID == next })
		if i < 0 {
			return nil, fmt.Errorf("%w: %s needs %s, which is missing", ErrChain, id, next)
		}
		if len(chain) > len(backups) {
			return nil, fmt.Errorf("%w: %s builds on itself", ErrChain, id)
		}
		chain = append(chain, backups[i])
		if backups[i].Parent == "" {
			break
		}
		next = backups[i].Parent
	}
	slices.Reverse(chain)
	if !chain[0].Full() {
		return nil, fmt.Errorf("%w: it begins with %s, which is a %s backup", ErrChain, chain[0].ID, chain[0].Mode)
	}
	return chain, nil
}

// Descendants returns the IDs of id and of every backup that builds on it, oldest first: what pg_probackup's delete removes.
func Descendants(backups []Backup, id string) []string {
	gone := map[string]bool{id: true}
	ids := []string{}
	for _, b := range backups { // oldest first: a parent comes before its children
		if b.ID == id || b.Parent != "" && gone[b.Parent] {
			gone[b.ID] = true
			ids = append(ids, b.ID)
		}
	}
	return ids
}

// Config is what show-config says of an instance.
type Config struct {
	DataDir  string
	SystemID uint64
}

// ParseConfig reads what show-config --format=json prints. Numbers come as text from some versions and as numbers from others.
func ParseConfig(text []byte) (Config, error) {
	var doc struct {
		DataDir  string          `json:"pgdata"`
		SystemID json.RawMessage `json:"system-identifier"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		return Config{}, fmt.Errorf("pg_probackup show-config: %w", err)
	}
	id, err := strconv.ParseUint(strings.Trim(string(doc.SystemID), `"`), 10, 64)
	if err != nil {
		return Config{}, fmt.Errorf("pg_probackup show-config: system-identifier: %w", err)
	}
	return Config{DataDir: doc.DataDir, SystemID: id}, nil
}

// Version is what the program says of itself.
type Version struct {
	Major, Minor, Patch int
	Server              string // major version of the PostgreSQL that it was built for
	Edition             string // "PostgreSQL" or "Postgres Pro"
}

func (v Version) String() string {
	return fmt.Sprintf("pg_probackup %d.%d.%d for %s %s", v.Major, v.Minor, v.Patch, v.Edition, v.Server)
}

// ErrNotProbackup says that a program is not pg_probackup.
var ErrNotProbackup = errors.New("the program is not pg_probackup")

// ParseVersion reads what version prints: "pg_probackup 2.5.16 (PostgreSQL 15.4)". The first word is the name that the program was
// called by, so that it says nothing.
func ParseVersion(text []byte) (Version, error) {
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	wrong := fmt.Errorf("%w: asked for its version it says %.100q", ErrNotProbackup, line)
	name, rest, ok1 := strings.Cut(line, " ")
	number, rest, ok2 := strings.Cut(rest, " (")
	rest, ok3 := strings.CutSuffix(rest, ")")
	parts := strings.Split(number, ".")
	if !ok1 || !ok2 || !ok3 || name == "" || len(parts) != 3 {
		return Version{}, wrong
	}
	var v Version
	for i, to := range []*int{&v.Major, &v.Minor, &v.Patch} {
		n, err := strconv.ParseUint(parts[i], 10, 16)
		if err != nil {
			return Version{}, wrong
		}
		*to = int(n)
	}
	for _, edition := range []string{"PostgreSQL", "Postgres Pro"} {
		if server, ok := strings.CutPrefix(rest, edition+" "); ok {
			v.Edition = edition
			v.Server = server[:len(server)-len(strings.TrimLeft(server, "0123456789"))]
		}
	}
	if v.Server == "" {
		return Version{}, wrong
	}
	return v, nil
}
