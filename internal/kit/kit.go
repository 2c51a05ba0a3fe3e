// Package kit is the recovery kit: one file, encrypted with age, with which a bare machine gets a whole application back from
// external storage. It holds what the backup itself can't hold or should not be needed to find it: the instance's parameters with
// their secrets, the key that seals them, the certificates and key files that they name, and the list of sets.
//
// The document is JSON (docs/format/recovery-kit.md). Its secrets are of the type Secret, which nothing prints; only Encode, whose
// bytes go into Seal and nowhere else, writes them. Parse trusts nothing: a kit may be damaged or somebody else's.
package kit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Format is the version of the document; a reader refuses a greater one.
const Format = 1

// Bounds of a document. Encode leaves the oldest sets out, and refuses what is still too large.
const (
	MaxSize     = 8 << 20 // bytes, in clear
	MaxSets     = 1000    // newest ones
	MaxFile     = 1 << 20 // bytes of one carried file
	maxFiles    = 100
	maxSettings = 10000
	KeySize     = 32 // bytes of the key that seals parameters
)

// ErrFormat says that a document is no recovery kit, or one that this program can't read.
var ErrFormat = errors.New("not a recovery kit that this program can read")

// Instance is the place that the kit was made on.
type Instance struct {
	Root       string `json:"root"`       // that path parameters are seen from; "/" when they are the host's own
	DataDir    string `json:"data_dir"`   // where its two disks were seen on the host
	BackupDir  string `json:"backup_dir"` //
	User       string `json:"user"`
	AppVersion string `json:"app_version"` // major.minor.patch.build
}

// File is a file that a parameter names and without which external storage or the event bus can't be reached.
type File struct {
	Parameter string
	Mode      uint32 // permission bits
	Data      Secret
}

// Store is where the sets are.
type Store struct {
	Kind       string `json:"kind"`       // the type of storage, as its parameter has it
	Name       string `json:"name"`       // s3://bucket/path, or a directory
	Repository string `json:"repository"` // of PostgreSQL, below it
	Sets       string `json:"sets"`       // of the tarballs, below it
}

// Stanza is one PostgreSQL cluster as the repository knows it.
type Stanza struct {
	Name     string `json:"name"`
	Version  string `json:"pg_version"`
	SystemID uint64 `json:"system_id"`
}

// Set is a line of the list of sets.
type Set struct {
	ID       string    `json:"id"`
	Mode     string    `json:"mode"`
	Began    time.Time `json:"began"`
	Size     int64     `json:"size"`               // bytes of all pieces
	Tarballs []string  `json:"tarballs"`           // names
	Backups  []string  `json:"backups,omitempty"`  // stanza and label of backups in a repository
	InStore  bool      `json:"in_store,omitempty"` // it was there whole when the kit was written
}

// Kit is the document.
type Kit struct {
	Made       time.Time
	Program    string // version of Holdfast
	Host       string
	Set        string // the run that wrote it
	Instance   Instance
	Key        Secret            // that seals the parameter store: KeySize bytes, or empty
	Parameters map[string]Secret // those that were set, secrets among them
	Files      []File
	Store      *Store // nil: there is no external storage
	Stanzas    []Stanza
	Sets       []Set // oldest first
}

// wire is the document as it is encrypted: the one place where secrets are text.
type wire struct {
	Format     int               `json:"format"`
	Kind       string            `json:"kind"`
	Made       time.Time         `json:"made"`
	Program    string            `json:"program"`
	Host       string            `json:"host"`
	Set        string            `json:"set"`
	Instance   Instance          `json:"instance"`
	Key        []byte            `json:"key,omitempty"`
	Parameters map[string]string `json:"parameters"`
	Files      []wireFile        `json:"files,omitempty"`
	Store      *Store            `json:"store,omitempty"`
	Stanzas    []Stanza          `json:"stanzas,omitempty"`
	Sets       []Set             `json:"sets"`
}

type wireFile struct {
	Parameter string `json:"parameter"`
	Mode      uint32 `json:"mode"`
	Data      []byte `json:"data"`
}

// kind tells the document from any other JSON.
const kind = "holdfast recovery kit"

// Encode writes the document, secrets in clear: for Seal only. Of more than MaxSets sets the newest are written.
func (k *Kit) Encode() ([]byte, error) {
	w := wire{Format: Format, Kind: kind, Made: k.Made, Program: k.Program, Host: k.Host, Set: k.Set, Instance: k.Instance, Key: []byte(k.Key),
		Parameters: map[string]string{}, Store: k.Store, Stanzas: k.Stanzas, Sets: k.Sets[max(0, len(k.Sets)-MaxSets):]}
	for name, v := range k.Parameters {
		w.Parameters[name] = string(v)
	}
	for _, f := range k.Files {
		w.Files = append(w.Files, wireFile{f.Parameter, f.Mode, []byte(f.Data)})
	}
	if w.Sets == nil {
		w.Sets = []Set{}
	}
	b, err := json.Marshal(w)
	if err == nil {
		err = w.check()
	}
	if err == nil && len(b) > MaxSize {
		err = fmt.Errorf("%d bytes, at most %d may be", len(b), MaxSize)
	}
	if err != nil {
		return nil, fmt.Errorf("recovery kit: %w", err)
	}
	return b, nil
}

// Parse reads a document. Errors answer to ErrFormat and show nothing of its content.
func Parse(b []byte) (*Kit, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("%w: it is larger than %d bytes", ErrFormat, MaxSize)
	}
	var head struct {
		Format int    `json:"format"`
		Kind   string `json:"kind"`
	}
	if err := json.Unmarshal(b, &head); err != nil || head.Kind != kind {
		return nil, fmt.Errorf("%w: it holds something else", ErrFormat)
	}
	if head.Format < 1 || head.Format > Format {
		return nil, fmt.Errorf("%w: it has format %d, this program reads up to %d: use a newer one", ErrFormat, head.Format, Format)
	}
	var w wire
	d := json.NewDecoder(bytes.NewReader(b))
	if err := d.Decode(&w); err != nil { // an error of encoding/json may quote what it read
		return nil, fmt.Errorf("%w: its document is malformed", ErrFormat)
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("%w: something follows its document", ErrFormat)
	}
	if err := w.check(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	k := &Kit{Made: w.Made, Program: w.Program, Host: w.Host, Set: w.Set, Instance: w.Instance, Key: Secret(w.Key), Parameters: map[string]Secret{},
		Store: w.Store, Stanzas: w.Stanzas, Sets: w.Sets}
	for name, v := range w.Parameters {
		k.Parameters[name] = Secret(v)
	}
	for _, f := range w.Files {
		k.Files = append(k.Files, File{f.Parameter, f.Mode, Secret(f.Data)})
	}
	return k, nil
}

// ids are names of parameters, sets and files in a kit: they are shown, and become parts of paths.
var ids = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,254}$`) }) // when first used: each start of the program pays for what is made before

// check holds a document to its bounds and its names to what they may be.
func (w *wire) check() error {
	switch {
	case len(w.Parameters) > maxSettings || len(w.Files) > maxFiles || len(w.Sets) > MaxSets || len(w.Stanzas) > maxSettings:
		return errors.New("it lists more than any instance has")
	case len(w.Key) != 0 && len(w.Key) != KeySize:
		return fmt.Errorf("its key has %d bytes, not %d", len(w.Key), KeySize)
	case !ids().MatchString(w.Set):
		return errors.New("it names no set")
	}
	for name := range w.Parameters {
		if !ids().MatchString(name) {
			return errors.New("a parameter has a name that none can have")
		}
	}
	for _, f := range w.Files {
		if !ids().MatchString(f.Parameter) || f.Mode&^0o777 != 0 || len(f.Data) > MaxFile {
			return errors.New("a file has a name, mode or size that none can have")
		}
	}
	for _, s := range w.Sets {
		if !ids().MatchString(s.ID) || s.Size < 0 {
			return errors.New("a set has a name or size that none can have")
		}
		for _, t := range s.Tarballs {
			if !ids().MatchString(t) {
				return errors.New("a tarball has a name that none can have")
			}
		}
	}
	for _, text := range []string{w.Program, w.Host, w.Instance.Root, w.Instance.DataDir, w.Instance.BackupDir, w.Instance.User, w.Instance.AppVersion} {
		if len(text) > 4096 || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) { // they are shown on a terminal
			return errors.New("a text in it can't be shown")
		}
	}
	if s := w.Store; s != nil && (len(s.Name) > 4096 || strings.ContainsFunc(s.Name+s.Kind+s.Repository+s.Sets, func(r rune) bool { return r < ' ' || r == 0x7f })) {
		return errors.New("the name of its external storage can't be shown")
	}
	return nil
}
