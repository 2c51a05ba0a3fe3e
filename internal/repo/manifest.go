package repo

import (
	"fmt"
	"slices"
	"strings"
)

// Manifest is backup.manifest, section 7 of the format page. Every key of that section has a home here, those of later
// issues (bundles, block incremental, references, cipher) included, so that reading and writing back loses nothing.
type Manifest struct {
	BackrestVersion string

	Label         Label
	Type          BackupType
	Prior         Label
	References    []Label // position = reference number of block maps; ends with Label
	ArchiveStart  string  // WAL segment; empty = offline
	ArchiveStop   string
	LSNStart      string
	LSNStop       string
	TimeStart     int64 // Unix seconds
	TimeCopyStart int64
	TimeStop      int64
	BlockIncr     bool
	Bundle        bool
	BundleRaw     bool

	DB DB // [backup:db]

	Options ManifestOptions

	Annotations map[string]string
	CipherPass  Secret

	Targets   []Target   // sorted by name; pg_data first by nature
	Databases []Database // [db]
	Paths     []Path     // sorted by name
	Links     []Link
	Files     []File // sorted by name

	// Defaults of the three sections, applied on reading and factored out on writing.
	FileDefault, PathDefault, LinkDefault Owner
}

type ManifestOptions struct {
	ArchiveCheck, ArchiveCopy, BackupStandby, ChecksumPage, Compress, Delta, Hardlink, Online bool
	BufferSize                                                                                int64
	CompressLevel, CompressLevelNetwork                                                       int // as on the command line; may be negative
	CompressType                                                                              CompressType
	ProcessMax                                                                                int
}

// Owner: User/Group empty = unmapped (the JSON false). Mode in permission bits; not used for links.
type Owner struct {
	User, Group string
	Mode        uint32
}

type Target struct {
	Name           string // "pg_data", "pg_data/<link>", "pg_tblspc/<oid>"
	Path           string
	File           string // base name, for a file link
	Link           bool
	TablespaceID   string
	TablespaceName string
}

type Database struct {
	Name         string
	OID          uint32
	LastSystemID uint32
}

type Path struct {
	Name string
	Owner
}

type Link struct {
	Name        string // "pg_data/…", tablespaces as "pg_data/pg_tblspc/<oid>"
	Destination string
	Owner
}

type File struct {
	Name string
	Owner
	Size      int64 // as copied
	SizeOrig  int64 // szo: size at manifest build when different; -1 = absent
	Timestamp int64 // mtime, Unix seconds

	SHA1      string // of the original; "" only before copying (size 0: the SHA-1 of nothing on reading)
	RepoSize  int64  // stored size; equal to Size when stored as is
	RepoSHA1  string // rck, "" = absent
	Reference Label  // "" = stored in this backup

	BundleID     int64 // 0 = not bundled
	BundleOffset int64
	BlockSize    int64 // bytes; 0 = no block incremental
	BlockSumSize int   // bic
	BlockMapSize int64 // bim

	PageChecked bool        // checksum-page present
	PageOK      bool        // its value
	PageErrors  []PageRange // nil with PageOK false: size is no multiple of the page size
}

// PageRange is an inclusive range of page numbers from the start of the relation.
type PageRange struct{ First, Last uint32 }

// emptySHA1 is the hash of nothing, which files of size 0 have without it being written.
const emptySHA1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709"

// defaultBlockSum is the number of checksum bytes per block that is not written (key bic).
const defaultBlockSum = 6

// baseTarget is the name of the data directory: the first target and the first path.
const baseTarget = "pg_data"

// Sort brings targets, databases, paths, links and files into the order of their names. ParseManifest returns them so, and
// Encode calls it; pointers into the lists are void after a call that moved something.
func (m *Manifest) Sort() {
	sortNames(m.Targets, func(t *Target) string { return t.Name })
	sortNames(m.Databases, func(d *Database) string { return d.Name })
	sortNames(m.Paths, func(p *Path) string { return p.Name })
	sortNames(m.Links, func(l *Link) string { return l.Name })
	sortNames(m.Files, func(f *File) string { return f.Name })
}

func sortNames[T any](list []T, name func(*T) string) {
	for i := 1; i < len(list); i++ {
		if name(&list[i-1]) > name(&list[i]) {
			slices.SortFunc(list, func(a, b T) int { return strings.Compare(name(&a), name(&b)) })
			return
		}
	}
}

// File returns the file of that name, nil when there is none. The list must be sorted. The pointer is into Files.
func (m *Manifest) File(name string) *File {
	i, found := m.FileIndex(name)
	if !found {
		return nil
	}
	return &m.Files[i]
}

// ValidateComplete says what keeps the manifest from being that of a finished backup: the checks of section 7.10, and
// that the values which a manifest saved during the backup lacks are there. The error is ErrFormat and names the key.
func (m *Manifest) ValidateComplete() error {
	fail := func(key, what string) error {
		return fmt.Errorf("%w: manifest of %s is not complete: %s: %s", ErrFormat, m.Label, key, what)
	}
	switch {
	case m.TimeStart == 0 || m.TimeStop == 0:
		return fail("[backup] backup-timestamp-stop", "the backup has no start or stop time")
	case m.DB.ID < 1 || m.DB.SystemID == 0:
		return fail("[backup:db] db-id", "the cluster is not known")
	case m.Options.Online && (m.ArchiveStart == "" || m.ArchiveStop == "" || m.LSNStart == "" || m.LSNStop == ""):
		return fail("[backup] backup-archive-start", "an online backup needs its WAL range")
	case len(m.Targets) == 0 || m.Targets[0].Name != baseTarget:
		return fail("[backup:target] "+baseTarget, "the data directory is missing")
	case len(m.Files) == 0:
		return fail("[target:file]", "there are no files")
	}
	for i := range m.Files {
		f := &m.Files[i]
		switch {
		case f.Size > 0 && !isSHA1(f.SHA1):
			return fail("[target:file] "+f.Name, "no checksum")
		case f.Size > 0 && f.RepoSize <= 0:
			return fail("[target:file] "+f.Name, "nothing is stored of it")
		}
	}
	return nil
}

// BackupLine is what backup.info says of this backup (format page, section 6).
func (m *Manifest) BackupLine() BackupLine {
	damaged := false
	l := BackupLine{
		Label: m.Label, BackrestVersion: m.BackrestVersion, Type: m.Type, Prior: m.Prior, DBID: m.DB.ID,
		TimeStart: m.TimeStart, TimeStop: m.TimeStop, ArchiveStart: m.ArchiveStart, ArchiveStop: m.ArchiveStop,
		LSNStart: m.LSNStart, LSNStop: m.LSNStop, Annotations: m.Annotations,
		ArchiveCheck: m.Options.ArchiveCheck, ArchiveCopy: m.Options.ArchiveCopy, BackupStandby: m.Options.BackupStandby,
		ChecksumPage: m.Options.ChecksumPage, Compress: m.Options.Compress, Hardlink: m.Options.Hardlink, Online: m.Options.Online,
	}
	if m.Type != Full {
		for _, ref := range m.References {
			if ref != m.Label {
				l.References = append(l.References, ref)
			}
		}
		slices.Sort(l.References)
	}
	var maps, mapsDelta int64
	for i := range m.Files {
		f := &m.Files[i]
		stored := f.RepoSize
		if stored == 0 {
			stored = f.Size
		}
		l.Size += f.Size
		l.RepoSize += stored
		maps += f.BlockMapSize
		if f.Reference == "" {
			l.SizeDelta += f.Size
			l.RepoSizeDelta += stored
			mapsDelta += f.BlockMapSize
		}
		damaged = damaged || f.PageChecked && !f.PageOK
	}
	l.Error = &damaged
	if m.BlockIncr {
		l.RepoSizeMap, l.RepoSizeMapDelta = &maps, &mapsDelta
	}
	return l
}

// Object says where the data of a file is: the object, the range of it, and how to read it (format page, section 7.8).
// It also says where to write a file of this backup. For a block incremental file (BlockMapSize > 0) the range is that of
// its image, and spec is how its super blocks are stored; the map is at the end. A file of size 0 is not to be read: in a
// bundled backup there is no object.
func (m *Manifest) Object(stanza string, f *File) (name string, offset, length int64, spec StreamSpec) {
	label := f.Reference
	if label == "" {
		label = m.Label
	}
	dir := BackupDir(stanza) + "/" + string(label) + "/"
	spec = StreamSpec{Compress: m.Options.CompressType, Level: m.Options.CompressLevel, Pass: m.CipherPass}
	switch {
	case f.BundleID > 0:
		spec.Raw = m.BundleRaw || f.BlockMapSize > 0
		return fmt.Sprintf("%sbundle/%d", dir, f.BundleID), f.BundleOffset, f.RepoSize, spec
	case f.BlockMapSize > 0:
		spec.Raw = true
		return dir + f.Name + ".pgbi", 0, f.RepoSize, spec
	}
	return dir + f.Name + m.Options.CompressType.Ext(), 0, f.RepoSize, spec
}
