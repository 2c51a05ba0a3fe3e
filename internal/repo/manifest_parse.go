package repo

import (
	"bytes"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// ParseManifest reads a manifest and checks it as hostile input: names that climb out or collide, references that are not
// listed, sizes and offsets that cannot be. Every error is ErrFormat or ErrChecksum and names the key. Keys that this
// program does not know are dropped. What old versions left out is filled in: the reference list, repo-size, the
// compression type (format page, section 24, reader).
func ParseManifest(b []byte) (*Manifest, error) { return parseManifest(bytes.NewReader(b)) }

// parseManifest reads line by line, so that the text is never whole in memory.
func parseManifest(r io.Reader) (*Manifest, error) {
	p := manifestParser{m: &Manifest{}, seen: map[string]bool{}, interned: map[string]string{}}
	p.onFile, p.onPath, p.onLink = p.fileMember, p.pathMember, p.linkMember
	p.m.Options.CompressType = None
	head, err := readINI(r, p.key)
	if err != nil {
		return nil, err
	}
	p.m.BackrestVersion = head.version
	if err := p.finish(); err != nil {
		return nil, err
	}
	if err := p.m.check(); err != nil {
		return nil, err
	}
	return p.m, nil
}

const (
	sectionBackup      = "backup"
	sectionBackupDB    = "backup:db"
	sectionOption      = "backup:option"
	sectionTarget      = "backup:target"
	sectionMetadata    = "metadata"
	sectionFile        = "target:file"
	sectionFileDefault = "target:file:default"
	sectionLink        = "target:link"
	sectionLinkDefault = "target:link:default"
	sectionPath        = "target:path"
	sectionPathDefault = "target:path:default"
)

// given says which of the keys that have defaults stood in a line.
type given uint8

const (
	givenUser given = 1 << iota
	givenGroup
	givenMode
)

type manifestParser struct {
	m        *Manifest
	j        jsonReader
	seen     map[string]bool   // keys of the sections with fixed keys
	interned map[string]string // labels, users, groups
	text     arena             // names and hashes

	onFile, onPath, onLink func(key []byte)

	// The line being read.
	file                      File
	path                      Path
	link                      Link
	set                       given
	size, stamp, repoSize     bool
	files, paths, links       []given // beside the lists of m, until the defaults are known
	fileDef, pathDef, linkDef given
	compressType              bool
}

func (p *manifestParser) key(section string, key, value []byte) error {
	p.j = jsonReader{b: value}
	switch section {
	case sectionFile:
		return p.fileLine(key)
	case sectionPath:
		p.path, p.set = Path{Name: p.text.add(key)}, 0
		p.j.object(p.onPath)
		p.m.Paths, p.paths = append(p.m.Paths, p.path), append(p.paths, p.set)
		return p.j.done()
	case sectionLink:
		p.link, p.set = Link{Name: p.text.add(key)}, 0
		p.j.object(p.onLink)
		p.m.Links, p.links = append(p.m.Links, p.link), append(p.links, p.set)
		return p.j.done()
	}
	id := section + "\n" + string(key)
	if p.seen[id] {
		return fmt.Errorf("%w: key appears twice", ErrFormat)
	}
	p.seen[id] = true
	switch section {
	case sectionBackup:
		p.backup(string(key))
	case sectionBackupDB:
		p.j.dbKey(key, &p.m.DB)
	case sectionOption:
		p.option(string(key))
	case sectionTarget:
		p.target(string(key))
	case sectionCipher:
		if string(key) == keyCipherPass {
			p.m.CipherPass = Secret(p.j.str())
			break
		}
		p.j.skip(0)
	case sectionDB:
		p.database(string(key))
	case sectionMetadata:
		if string(key) == "annotation" {
			p.m.Annotations = p.j.stringMap()
			break
		}
		p.j.skip(0)
	case sectionFileDefault:
		p.owner(key, &p.m.FileDefault, &p.fileDef)
	case sectionPathDefault:
		p.owner(key, &p.m.PathDefault, &p.pathDef)
	case sectionLinkDefault:
		p.owner(key, &p.m.LinkDefault, &p.linkDef)
	default:
		p.j.skip(0)
	}
	return p.j.done()
}

func (p *manifestParser) backup(key string) {
	m, j := p.m, &p.j
	switch key {
	case "backup-archive-start":
		m.ArchiveStart = j.nullable()
	case "backup-archive-stop":
		m.ArchiveStop = j.nullable()
	case "backup-block-incr":
		m.BlockIncr = j.boolean()
	case "backup-bundle":
		m.Bundle = j.boolean()
	case "backup-bundle-raw":
		m.BundleRaw = j.boolean()
	case "backup-label":
		m.Label = j.label()
	case "backup-lsn-start":
		m.LSNStart = j.nullable()
	case "backup-lsn-stop":
		m.LSNStop = j.nullable()
	case "backup-prior":
		if !j.accept("null") {
			m.Prior = j.label()
		}
	case "backup-reference":
		p.references(string(j.str()))
	case "backup-timestamp-copy-start":
		m.TimeCopyStart = j.size()
	case "backup-timestamp-start":
		m.TimeStart = j.size()
	case "backup-timestamp-stop":
		m.TimeStop = j.size()
	case "backup-type":
		m.Type = BackupType(j.str())
	default:
		j.skip(0)
	}
}

func (p *manifestParser) references(list string) {
	for s := range strings.SplitSeq(list, ",") {
		l, err := ParseLabel(s)
		if p.j.err == nil && err != nil {
			p.j.fail(fmt.Sprintf("%.60q is not a backup label", s))
		}
		p.m.References = append(p.m.References, Label(p.intern([]byte(l))))
	}
}

func (p *manifestParser) option(key string) {
	o, j := &p.m.Options, &p.j
	switch key {
	case "option-archive-check":
		o.ArchiveCheck = j.boolean()
	case "option-archive-copy":
		o.ArchiveCopy = j.boolean()
	case "option-backup-standby":
		o.BackupStandby = j.boolean()
	case "option-buffer-size":
		o.BufferSize = j.size()
	case "option-checksum-page":
		o.ChecksumPage = j.boolean()
	case "option-compress":
		o.Compress = j.boolean()
	case "option-compress-level":
		o.CompressLevel = j.level()
	case "option-compress-level-network":
		o.CompressLevelNetwork = j.level()
	case "option-compress-type":
		o.CompressType, p.compressType = CompressType(j.str()), true
	case "option-delta":
		o.Delta = j.boolean()
	case "option-hardlink":
		o.Hardlink = j.boolean()
	case "option-online":
		o.Online = j.boolean()
	case "option-process-max":
		o.ProcessMax = int(j.integer(0, math.MaxInt32))
	default:
		j.skip(0)
	}
}

// level reads a compression level: negative ones are stored as the unsigned number of the same 32 bits.
func (j *jsonReader) level() int {
	return int(int32(uint32(j.integer(math.MinInt32, math.MaxUint32))))
}

func (p *manifestParser) target(name string) {
	t := Target{Name: name}
	j := &p.j
	j.object(func(key []byte) {
		switch string(key) {
		case "file":
			t.File = string(j.str())
		case "path":
			t.Path = string(j.str())
		case "tablespace-id":
			t.TablespaceID = string(j.str())
		case "tablespace-name":
			t.TablespaceName = string(j.str())
		case "type":
			switch kind := j.str(); string(kind) {
			case "link":
				t.Link = true
			case "path":
			default:
				j.fail(fmt.Sprintf("%.20q is not a type of target", kind))
			}
		default:
			j.skip(0)
		}
	})
	p.m.Targets = append(p.m.Targets, t)
}

func (p *manifestParser) database(name string) {
	d := Database{Name: name}
	j := &p.j
	j.object(func(key []byte) {
		switch string(key) {
		case "db-id":
			d.OID = uint32(j.integer(0, math.MaxUint32))
		case "db-last-system-id":
			d.LastSystemID = uint32(j.integer(0, math.MaxUint32))
		default:
			j.skip(0)
		}
	})
	p.m.Databases = append(p.m.Databases, d)
}

// owner reads user, group or mode; every other key is passed over.
func (p *manifestParser) owner(key []byte, o *Owner, set *given) {
	j := &p.j
	switch string(key) {
	case "group":
		o.Group = p.intern(j.ident())
		*set |= givenGroup
	case "user":
		o.User = p.intern(j.ident())
		*set |= givenUser
	case "mode":
		s := j.str()
		n, err := strconv.ParseUint(string(s), 8, 12)
		if j.err == nil && err != nil {
			j.fail(fmt.Sprintf("%.20q is not a mode", s))
		}
		o.Mode = uint32(n)
		*set |= givenMode
	default:
		j.skip(0)
	}
}

func (p *manifestParser) pathMember(key []byte) { p.owner(key, &p.path.Owner, &p.set) }

func (p *manifestParser) linkMember(key []byte) {
	if string(key) == "destination" {
		p.link.Destination = string(p.j.str())
		return
	}
	p.owner(key, &p.link.Owner, &p.set)
}

func (p *manifestParser) fileLine(key []byte) error {
	p.file = File{Name: p.text.add(key), SizeOrig: -1}
	p.set, p.size, p.stamp, p.repoSize = 0, false, false, false
	p.j.object(p.onFile)
	if err := p.j.done(); err != nil {
		return err
	}
	f := &p.file
	if !p.size || !p.stamp {
		return fmt.Errorf("%w: size or timestamp is missing", ErrFormat)
	}
	if !p.repoSize {
		f.RepoSize = f.Size
	}
	if f.Size == 0 {
		f.SHA1 = emptySHA1
	}
	if f.SizeOrig == f.Size {
		f.SizeOrig = -1
	}
	if f.BlockSize > 0 && f.BlockSumSize == 0 {
		f.BlockSumSize = defaultBlockSum
	}
	if f.PageOK || !f.PageChecked {
		f.PageErrors = nil
	}
	p.m.Files, p.files = append(p.m.Files, *f), append(p.files, p.set)
	return nil
}

func (p *manifestParser) fileMember(key []byte) {
	f, j := &p.file, &p.j
	switch string(key) {
	case "bi":
		f.BlockSize = blockUnit * j.integer(0, maxBlock/blockUnit)
	case "bic":
		f.BlockSumSize = int(j.integer(defaultBlockSum, 16))
	case "bim":
		f.BlockMapSize = j.size()
	case "bni":
		f.BundleID = j.size()
	case "bno":
		f.BundleOffset = j.size()
	case "checksum":
		f.SHA1 = p.text.add(j.hash())
	case "checksum-page":
		f.PageChecked, f.PageOK = true, j.boolean()
	case "checksum-page-error":
		f.PageErrors = j.pages()
	case "rck":
		f.RepoSHA1 = p.text.add(j.hash())
	case "reference":
		f.Reference = Label(p.intern(j.str()))
	case "repo-size":
		f.RepoSize, p.repoSize = j.size(), true
	case "size":
		f.Size, p.size = j.size(), true
	case "szo":
		f.SizeOrig = j.size()
	case "timestamp":
		f.Timestamp, p.stamp = j.integer(math.MinInt64, math.MaxInt64), true
	default:
		p.owner(key, &f.Owner, &p.set)
	}
}

const (
	blockUnit = 8192    // what bi counts in
	maxBlock  = 1 << 30 // no reader should have to hold a larger block
)

// pages reads a list of page numbers and [first,last] pairs; nil when it is empty.
func (j *jsonReader) pages() []PageRange {
	var list []PageRange
	j.array(func() {
		var r PageRange
		if j.peek() != '[' {
			r.First = uint32(j.integer(0, math.MaxUint32))
			r.Last = r.First
		} else {
			j.pos++
			r.First = uint32(j.integer(0, math.MaxUint32))
			j.want(',')
			r.Last = uint32(j.integer(int64(r.First), math.MaxUint32))
			j.want(']')
		}
		list = append(list, r)
	})
	return list
}

// finish fills in defaults and what old versions did not write.
func (p *manifestParser) finish() error {
	m := p.m
	for _, key := range []string{"backup-label", "backup-timestamp-start", "backup-type"} {
		if !p.seen[sectionBackup+"\n"+key] {
			return fmt.Errorf("%w: [%s] %s: key is missing", ErrFormat, sectionBackup, key)
		}
	}
	if !p.compressType && m.Options.Compress {
		m.Options.CompressType = GZ
	}
	m.Options.Compress = m.Options.CompressType != None
	for i, set := range p.files {
		if (set|p.fileDef)&givenMode == 0 {
			return fmt.Errorf("%w: [%s] %.200s: no mode and no default", ErrFormat, sectionFile, m.Files[i].Name)
		}
		m.Files[i].fill(set, &m.FileDefault)
	}
	for i, set := range p.paths {
		if (set|p.pathDef)&givenMode == 0 {
			return fmt.Errorf("%w: [%s] %.200s: no mode and no default", ErrFormat, sectionPath, m.Paths[i].Name)
		}
		m.Paths[i].fill(set, &m.PathDefault)
	}
	for i, set := range p.links {
		m.Links[i].fill(set, &m.LinkDefault)
		m.Links[i].Mode = 0
	}
	m.LinkDefault.Mode = 0
	if len(m.Links) == 0 {
		m.LinkDefault = Owner{}
	}
	m.Sort()
	if m.References == nil {
		m.collectReferences()
	}
	return nil
}

// fill takes what a line did not give from the default.
func (o *Owner) fill(set given, def *Owner) {
	if set&givenUser == 0 {
		o.User = def.User
	}
	if set&givenGroup == 0 {
		o.Group = def.Group
	}
	if set&givenMode == 0 {
		o.Mode = def.Mode
	}
}

// collectReferences builds the list that manifests before 2.42 do not have: labels in file order, the own one last.
func (m *Manifest) collectReferences() {
	found := map[Label]bool{m.Label: true}
	for i := range m.Files {
		if ref := m.Files[i].Reference; ref != "" && !found[ref] {
			found[ref] = true
			m.References = append(m.References, ref)
		}
	}
	m.References = append(m.References, m.Label)
}

// intern returns one string for equal bytes: labels and owners repeat on every line.
func (p *manifestParser) intern(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := p.interned[string(b)]; ok {
		return s
	}
	s := string(b)
	p.interned[s] = s
	return s
}

// arena gives strings out of large pieces: three small allocations per file would be most of the time of parsing.
type arena struct{ b strings.Builder }

const arenaPiece = 64 << 10

func (a *arena) add(s []byte) string {
	if a.b.Cap()-a.b.Len() < len(s) {
		a.b = strings.Builder{}
		a.b.Grow(max(arenaPiece, len(s)))
	}
	start := a.b.Len()
	a.b.Write(s)
	return a.b.String()[start:]
}
