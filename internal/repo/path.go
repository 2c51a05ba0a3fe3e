package repo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"holdfast/internal/storage"
)

const (
	manifestName = "backup.manifest"
	copySuffix   = ".copy"
	historyDir   = "backup.history"

	segmentLen    = 24 // hex digits of a WAL segment name
	segmentDirLen = 16
	sha1Len       = 40 // hex digits
)

// BackupDir is the directory of a stanza's backups.
func BackupDir(stanza string) string { return "backup/" + stanza }

// ArchiveDir is the directory of a stanza's WAL archive.
func ArchiveDir(stanza string) string { return "archive/" + stanza }

// ManifestPath is the object whose existence makes a backup exist.
func ManifestPath(stanza string, l Label) string {
	return BackupDir(stanza) + "/" + string(l) + "/" + manifestName
}

// HistoryManifestPath is the manifest's compressed copy that outlives the backup: backup.history/<YYYY>/<label>.manifest.gz.
func HistoryManifestPath(stanza string, l Label) string {
	year := string(l)
	if len(year) > 4 {
		year = year[:4]
	}
	return BackupDir(stanza) + "/" + historyDir + "/" + year + "/" + string(l) + ".manifest.gz"
}

// ArchiveID names the archive directory of one history entry: version "15" and id 1 give "15-1".
func ArchiveID(version string, historyID int) string {
	return version + "-" + strconv.Itoa(historyID)
}

// ParseArchiveID is the way back; ok is false for a name of another form.
func ParseArchiveID(name string) (version string, historyID int, ok bool) {
	version, id, found := strings.Cut(name, "-")
	if !found || !isVersion(version) {
		return "", 0, false
	}
	historyID, err := strconv.Atoi(id)
	if err != nil || historyID < 1 || strconv.Itoa(historyID) != id {
		return "", 0, false
	}
	return version, historyID, true
}

// isVersion reports whether s is a PostgreSQL version as the files write it: "9.6", "15". It stands in directory names.
func isVersion(s string) bool {
	for part := range strings.SplitSeq(s, ".") {
		if part == "" || len(part) > 6 || strings.Trim(part, "0123456789") != "" {
			return false
		}
	}
	return true
}

// SegmentDir is the directory of a WAL segment: archive/demo/15-1/0000000100000000. Shorter names, those of timeline
// history files, lie directly in the directory of the archive id.
func SegmentDir(stanza, archiveID, segment string) string {
	dir := ArchiveDir(stanza) + "/" + archiveID
	if len(segment) < segmentLen {
		return dir
	}
	return dir + "/" + segment[:segmentDirLen]
}

// SegmentPath is the object of a WAL segment (or .partial segment) with the SHA-1 of its uncompressed content.
func SegmentPath(stanza, archiveID, segment string, sha1hex string, c CompressType) string {
	return SegmentDir(stanza, archiveID, segment) + "/" + segment + "-" + sha1hex + c.Ext()
}

// ParseSegmentObject splits the last element of a segment's path, "000000010000000000000001-<sha1>.zst", also with
// .partial behind the segment, which then belongs to segment. ok is false for every other name. The extension .xz is a
// segment in the format although no released version writes it; it gives the compression type "xz", which no stream reads.
func ParseSegmentObject(name string) (segment string, sha1hex string, c CompressType, ok bool) {
	segment, rest, found := strings.Cut(name, "-")
	if !found || len(rest) < sha1Len || !isSegment(strings.TrimSuffix(segment, ".partial")) || !isSHA1(rest[:sha1Len]) {
		return "", "", "", false
	}
	sha1hex = rest[:sha1Len]
	switch ext := rest[sha1Len:]; ext {
	case "":
		c = None
	case ".gz":
		c = GZ
	case ".lz4":
		c = LZ4
	case ".zst":
		c = ZST
	case ".bz2":
		c = BZ2
	case ".xz":
		c = "xz"
	default:
		return "", "", "", false
	}
	return segment, sha1hex, c, true
}

// isSegment reports whether s is a WAL segment name: 24 upper-case hex digits.
func isSegment(s string) bool {
	return len(s) == segmentLen && strings.Trim(s, "0123456789ABCDEF") == ""
}

// isSHA1 reports whether s is a hash as the files write it: 40 lower-case hex digits.
func isSHA1(s string) bool {
	if len(s) != sha1Len {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// LabelDir is one directory of a stanza whose name is a label.
type LabelDir struct {
	Label    Label
	Manifest bool // backup.manifest is there: the backup exists
	Copy     bool // backup.manifest.copy is there: alone, the backup is running or was interrupted
}

// Labels yields the label directories of a stanza in order and whether each has a manifest. One listing per directory, many at
// once where a store is remote. Directories of other names are passed over. An error, also a cancelled context, ends the sequence.
func Labels(ctx context.Context, s storage.Storage, stanza string) iter.Seq2[LabelDir, error] {
	return func(yield func(LabelDir, error) bool) {
		if s.Abilities().Remote {
			dirs, err := remoteLabels(ctx, s, stanza)
			for _, d := range dirs {
				if !yield(d, nil) {
					return
				}
			}
			if err != nil {
				yield(LabelDir{}, err)
			}
			return
		}
		for info, err := range s.List(ctx, BackupDir(stanza), storage.ListOptions{}) {
			if err != nil {
				yield(LabelDir{}, err)
				return
			}
			label, err := ParseLabel(path.Base(info.Name))
			if err != nil || !info.Dir {
				continue
			}
			d, err := labelDir(ctx, s, stanza, label)
			if !yield(d, err) || err != nil {
				return
			}
		}
	}
}

// remoteLabels asks for all directories at once: each question takes as long as the way there and back.
func remoteLabels(ctx context.Context, s storage.Storage, stanza string) ([]LabelDir, error) {
	var dirs []LabelDir
	for info, err := range s.List(ctx, BackupDir(stanza), storage.ListOptions{}) {
		if err != nil {
			return nil, err
		}
		if label, err := ParseLabel(path.Base(info.Name)); err == nil && info.Dir {
			dirs = append(dirs, LabelDir{Label: label})
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(s.Abilities().Connections, 1))
	for i := range dirs {
		g.Go(func() (err error) {
			dirs[i], err = labelDir(ctx, s, stanza, dirs[i].Label)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return dirs, nil
}

// ReadLabels is Labels as a list, for who needs it more than once.
func ReadLabels(ctx context.Context, s storage.Storage, stanza string) ([]LabelDir, error) {
	var dirs []LabelDir
	for d, err := range Labels(ctx, s, stanza) {
		if err != nil {
			return nil, fmt.Errorf("list backups of stanza %s: %w", stanza, err)
		}
		dirs = append(dirs, d)
	}
	return dirs, nil
}

func labelDir(ctx context.Context, s storage.Storage, stanza string, label Label) (LabelDir, error) {
	d := LabelDir{Label: label}
	for info, err := range s.List(ctx, BackupDir(stanza)+"/"+string(label), storage.ListOptions{Prefix: manifestName}) {
		if err != nil {
			return d, err
		}
		switch path.Base(info.Name) {
		case manifestName:
			d.Manifest = !info.Dir
		case manifestName + copySuffix:
			d.Copy = !info.Dir
		}
	}
	return d, nil
}

// NewestLabel is the greatest label that a new one must sort after (NewLabel): of the label directories, with or without
// a manifest, and of the newest year of the manifest history. With full given only labels of that set count. "" when
// there is none.
func NewestLabel(ctx context.Context, s storage.Storage, stanza string, full Label) (Label, error) {
	newest := Label("")
	consider := func(name string) {
		if l, err := ParseLabel(name); err == nil && (full == "" || l.FullLabel() == full) {
			newest = max(newest, l)
		}
	}
	year := ""
	for info, err := range s.List(ctx, BackupDir(stanza), storage.ListOptions{}) {
		if err != nil {
			return "", err
		}
		consider(path.Base(info.Name))
	}
	for info, err := range s.List(ctx, BackupDir(stanza)+"/"+historyDir, storage.ListOptions{}) {
		if err != nil {
			return "", err
		}
		if base := path.Base(info.Name); info.Dir && len(base) == 4 && strings.Trim(base, "0123456789") == "" {
			year = max(year, base)
		}
	}
	if full != "" {
		year = string(full[:min(4, len(full))])
	}
	if year == "" {
		return newest, nil
	}
	for info, err := range s.List(ctx, BackupDir(stanza)+"/"+historyDir+"/"+year, storage.ListOptions{}) {
		if err != nil {
			return "", err
		}
		consider(strings.TrimSuffix(path.Base(info.Name), ".manifest.gz"))
	}
	return newest, nil
}

// exists asks for one object; only fs.ErrNotExist is "no".
func exists(ctx context.Context, s storage.Storage, name string) (bool, error) {
	_, err := s.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
