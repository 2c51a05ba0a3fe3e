package repo

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// parseBackupLine reads one line of [backup:current]. The keys that pgBackRest requires are required here, the others may
// be absent (format page, section 6).
func parseBackupLine(key string, value []byte) (BackupLine, error) {
	label, err := ParseLabel(key)
	if err != nil {
		return BackupLine{}, err
	}
	p := lineParser{j: jsonReader{b: value}, l: BackupLine{Label: label}}
	p.j.object(p.member)
	if err := p.j.done(); err != nil {
		return BackupLine{}, err
	}
	if p.found != lineRequired {
		return BackupLine{}, fmt.Errorf("%w: a required key is missing from the line (found %b of %b)", ErrFormat, p.found, lineRequired)
	}
	if p.l.Type != label.Type() {
		return BackupLine{}, fmt.Errorf("%w: backup-type %.20q does not fit the label", ErrFormat, p.l.Type)
	}
	return p.l, nil
}

type lineParser struct {
	j     jsonReader
	l     BackupLine
	found int // one bit per required key
}

const lineRequired = 1<<17 - 1

func (p *lineParser) member(key []byte) {
	j, l := &p.j, &p.l
	switch string(key) {
	case "backup-annotation":
		l.Annotations = j.stringMap()
	case "backup-archive-start":
		l.ArchiveStart = j.nullable()
	case "backup-archive-stop":
		l.ArchiveStop = j.nullable()
	case "backup-error":
		if !j.accept("null") {
			v := j.boolean()
			l.Error = &v
		}
	case "backup-info-repo-size-map":
		v := j.size()
		l.RepoSizeMap = &v
	case "backup-info-repo-size-map-delta":
		v := j.size()
		l.RepoSizeMapDelta = &v
	case "backup-lsn-start":
		l.LSNStart = j.nullable()
	case "backup-lsn-stop":
		l.LSNStop = j.nullable()
	case "backup-prior":
		if !j.accept("null") {
			l.Prior = j.label()
		}
	case "backup-reference":
		if !j.accept("null") {
			j.array(func() { l.References = append(l.References, j.label()) })
		}
	default:
		p.required(key)
	}
}

// required reads the keys that every line has.
func (p *lineParser) required(key []byte) {
	j, l := &p.j, &p.l
	bit := 0
	switch string(key) {
	case formatKey:
		bit = 0
		j.integer(FormatNumber, FormatNumber)
	case versionKey:
		bit = 1
		l.BackrestVersion = string(j.str())
	case "backup-info-repo-size":
		bit = 2
		l.RepoSize = j.size()
	case "backup-info-repo-size-delta":
		bit = 3
		l.RepoSizeDelta = j.size()
	case "backup-info-size":
		bit = 4
		l.Size = j.size()
	case "backup-info-size-delta":
		bit = 5
		l.SizeDelta = j.size()
	case "backup-timestamp-start":
		bit = 6
		l.TimeStart = j.size()
	case "backup-timestamp-stop":
		bit = 7
		l.TimeStop = j.size()
	case "backup-type":
		bit = 8
		l.Type = BackupType(j.str())
	default:
		p.options(key)
		return
	}
	p.found |= 1 << bit
}

func (p *lineParser) options(key []byte) {
	j, l := &p.j, &p.l
	bit := 0
	switch string(key) {
	case "db-id":
		bit = 9
		l.DBID = int(j.integer(1, math.MaxInt32))
	case "option-archive-check":
		bit = 10
		l.ArchiveCheck = j.boolean()
	case "option-archive-copy":
		bit = 11
		l.ArchiveCopy = j.boolean()
	case "option-backup-standby":
		bit = 12
		l.BackupStandby = j.boolean()
	case "option-checksum-page":
		bit = 13
		l.ChecksumPage = j.boolean()
	case "option-compress":
		bit = 14
		l.Compress = j.boolean()
	case "option-hardlink":
		bit = 15
		l.Hardlink = j.boolean()
	case "option-online":
		bit = 16
		l.Online = j.boolean()
	default:
		j.skip(0)
		return
	}
	p.found |= 1 << bit
}

// label reads a backup label.
func (j *jsonReader) label() Label {
	s := j.str()
	l, err := ParseLabel(string(s))
	if j.err == nil && err != nil {
		j.fail(fmt.Sprintf("%.60q is not a backup label", s))
	}
	return l
}

// stringMap reads an object of strings; nil when it is empty.
func (j *jsonReader) stringMap() map[string]string {
	var m map[string]string
	j.object(func(key []byte) {
		if m == nil {
			m = map[string]string{}
		}
		m[string(key)] = string(j.str())
	})
	return m
}

// append writes the line's value, keys in byte order.
func (l *BackupLine) append(dst []byte) []byte {
	o := newJSONObject(dst)
	o.integer(formatKey, FormatNumber)
	o.str(versionKey, l.BackrestVersion)
	if len(l.Annotations) > 0 {
		o.key("backup-annotation")
		o.b = appendStringMap(o.b, l.Annotations)
	}
	o.nullable("backup-archive-start", l.ArchiveStart)
	o.nullable("backup-archive-stop", l.ArchiveStop)
	if l.Error != nil {
		o.boolean("backup-error", *l.Error)
	}
	o.integer("backup-info-repo-size", l.RepoSize)
	o.integer("backup-info-repo-size-delta", l.RepoSizeDelta)
	if l.RepoSizeMap != nil {
		o.integer("backup-info-repo-size-map", *l.RepoSizeMap)
	}
	if l.RepoSizeMapDelta != nil {
		o.integer("backup-info-repo-size-map-delta", *l.RepoSizeMapDelta)
	}
	o.integer("backup-info-size", l.Size)
	o.integer("backup-info-size-delta", l.SizeDelta)
	o.optional("backup-lsn-start", l.LSNStart)
	o.optional("backup-lsn-stop", l.LSNStop)
	o.optional("backup-prior", string(l.Prior))
	if len(l.References) > 0 {
		o.key("backup-reference")
		o.b = append(o.b, '[')
		for i, ref := range l.References {
			if i > 0 {
				o.b = append(o.b, ',')
			}
			o.b = appendJSONString(o.b, []byte(ref))
		}
		o.b = append(o.b, ']')
	}
	o.integer("backup-timestamp-start", l.TimeStart)
	o.integer("backup-timestamp-stop", l.TimeStop)
	o.str("backup-type", string(l.Type))
	o.integer("db-id", int64(l.DBID))
	o.boolean("option-archive-check", l.ArchiveCheck)
	o.boolean("option-archive-copy", l.ArchiveCopy)
	o.boolean("option-backup-standby", l.BackupStandby)
	o.boolean("option-checksum-page", l.ChecksumPage)
	o.boolean("option-compress", l.Compress)
	o.boolean("option-hardlink", l.Hardlink)
	o.boolean("option-online", l.Online)
	return o.close()
}

// appendStringMap writes an object of strings, sorted.
func appendStringMap(dst []byte, m map[string]string) []byte {
	dst = append(dst, '{')
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendJSONString(dst, []byte(k))
		dst = append(dst, ':')
		dst = appendJSONString(dst, []byte(m[k]))
	}
	return append(dst, '}')
}
