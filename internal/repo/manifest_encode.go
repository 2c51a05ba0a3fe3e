package repo

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// Encode writes the manifest, complete or not, after sorting it (Sort). It fails with ErrFormat for everything that
// ParseManifest would refuse, so that nothing is ever stored that cannot be read back.
func (m *Manifest) Encode() ([]byte, error) {
	var buf bytes.Buffer
	if err := m.encode(&buf); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// encode writes to w in pieces; memory does not grow with the manifest.
func (m *Manifest) encode(out io.Writer) error {
	m.Sort()
	if err := m.check(); err != nil {
		return fmt.Errorf("manifest of %s: %w", m.Label, err)
	}
	w := newINIWriter(out, m.BackrestVersion)
	m.encodeBackup(w)
	m.encodeOptions(w)
	m.encodeTargets(w)
	w.optional(sectionCipher, keyCipherPass, string(m.CipherPass))
	for i := range m.Databases {
		d := &m.Databases[i]
		o := newJSONObject(nil)
		o.integer("db-id", int64(d.OID))
		o.integer("db-last-system-id", int64(d.LastSystemID))
		w.put(sectionDB, d.Name, o.close())
	}
	if len(m.Annotations) > 0 {
		w.put(sectionMetadata, "annotation", appendStringMap(nil, m.Annotations))
	}
	m.encodeTree(w)
	if err := w.close(); err != nil {
		return fmt.Errorf("manifest of %s: %w", m.Label, err)
	}
	return nil
}

func (m *Manifest) encodeBackup(w *iniWriter) {
	const s = sectionBackup
	w.optional(s, "backup-archive-start", m.ArchiveStart)
	w.optional(s, "backup-archive-stop", m.ArchiveStop)
	if m.BlockIncr {
		w.boolean(s, "backup-block-incr", true)
	}
	if m.Bundle {
		w.boolean(s, "backup-bundle", true)
	}
	if m.BundleRaw {
		w.boolean(s, "backup-bundle-raw", true)
	}
	w.str(s, "backup-label", string(m.Label))
	w.optional(s, "backup-lsn-start", m.LSNStart)
	w.optional(s, "backup-lsn-stop", m.LSNStop)
	w.optional(s, "backup-prior", string(m.Prior))
	refs := make([]string, len(m.References))
	for i, ref := range m.References {
		refs[i] = string(ref)
	}
	w.str(s, "backup-reference", strings.Join(refs, ","))
	w.integer(s, "backup-timestamp-copy-start", m.TimeCopyStart)
	w.integer(s, "backup-timestamp-start", m.TimeStart)
	w.integer(s, "backup-timestamp-stop", m.TimeStop)
	w.str(s, "backup-type", string(m.Type))

	w.integer(sectionBackupDB, "db-catalog-version", int64(m.DB.CatalogVersion))
	w.integer(sectionBackupDB, "db-control-version", int64(m.DB.ControlVersion))
	w.integer(sectionBackupDB, "db-id", int64(m.DB.ID))
	w.put(sectionBackupDB, "db-system-id", strconv.AppendUint(nil, m.DB.SystemID, 10))
	w.str(sectionBackupDB, "db-version", m.DB.Version)
}

func (m *Manifest) encodeOptions(w *iniWriter) {
	const s = sectionOption
	o := &m.Options
	w.boolean(s, "option-archive-check", o.ArchiveCheck)
	w.boolean(s, "option-archive-copy", o.ArchiveCopy)
	w.boolean(s, "option-backup-standby", o.BackupStandby)
	w.integer(s, "option-buffer-size", o.BufferSize)
	w.boolean(s, "option-checksum-page", o.ChecksumPage)
	w.boolean(s, "option-compress", o.CompressType != None)
	w.integer(s, "option-compress-level", int64(uint32(int32(o.CompressLevel))))
	w.integer(s, "option-compress-level-network", int64(uint32(int32(o.CompressLevelNetwork))))
	w.str(s, "option-compress-type", string(o.CompressType))
	w.boolean(s, "option-delta", o.Delta)
	w.boolean(s, "option-hardlink", o.Hardlink)
	w.boolean(s, "option-online", o.Online)
	w.integer(s, "option-process-max", int64(o.ProcessMax))
}

func (m *Manifest) encodeTargets(w *iniWriter) {
	for i := range m.Targets {
		t := &m.Targets[i]
		o := newJSONObject(nil)
		o.optional("file", t.File)
		o.str("path", t.Path)
		o.optional("tablespace-id", t.TablespaceID)
		if t.TablespaceID != "" {
			o.str("tablespace-name", t.TablespaceName)
		}
		kind := "path"
		if t.Link {
			kind = "link"
		}
		o.str("type", kind)
		w.put(sectionTarget, t.Name, o.close())
	}
}

// encodeTree writes files, links and paths with their defaults.
func (m *Manifest) encodeTree(w *iniWriter) {
	var line []byte
	for i := range m.Files {
		line = m.Files[i].append(line[:0], &m.FileDefault)
		w.put(sectionFile, m.Files[i].Name, line)
	}
	encodeDefault(w, sectionFileDefault, &m.FileDefault, true)
	for i := range m.Links {
		l := &m.Links[i]
		o := newJSONObject(line[:0])
		o.str("destination", l.Destination)
		o.ident("group", l.Group, m.LinkDefault.Group)
		o.ident("user", l.User, m.LinkDefault.User)
		line = o.close()
		w.put(sectionLink, l.Name, line)
	}
	if len(m.Links) > 0 {
		encodeDefault(w, sectionLinkDefault, &m.LinkDefault, false)
	}
	for i := range m.Paths {
		p := &m.Paths[i]
		o := newJSONObject(line[:0])
		o.ident("group", p.Group, m.PathDefault.Group)
		o.mode(p.Mode, m.PathDefault.Mode)
		o.ident("user", p.User, m.PathDefault.User)
		line = o.close()
		w.put(sectionPath, p.Name, line)
	}
	encodeDefault(w, sectionPathDefault, &m.PathDefault, true)
}

func encodeDefault(w *iniWriter, section string, o *Owner, mode bool) {
	w.put(section, "group", appendIdent(nil, o.Group))
	if mode {
		w.put(section, "mode", appendMode(nil, o.Mode))
	}
	w.put(section, "user", appendIdent(nil, o.User))
}

// append writes a file's value, keys in byte order.
func (f *File) append(dst []byte, def *Owner) []byte {
	o := newJSONObject(dst)
	o.nonzero("bi", f.BlockSize/blockUnit)
	if f.BlockSize > 0 && f.BlockSumSize != defaultBlockSum {
		o.nonzero("bic", int64(f.BlockSumSize))
	}
	o.nonzero("bim", f.BlockMapSize)
	o.nonzero("bni", f.BundleID)
	o.nonzero("bno", f.BundleOffset)
	if f.Size > 0 {
		o.optional("checksum", f.SHA1)
	}
	if f.PageChecked {
		o.boolean("checksum-page", f.PageOK)
		if !f.PageOK && len(f.PageErrors) > 0 {
			o.pages("checksum-page-error", f.PageErrors)
		}
	}
	o.ident("group", f.Group, def.Group)
	o.mode(f.Mode, def.Mode)
	o.optional("rck", f.RepoSHA1)
	o.optional("reference", string(f.Reference))
	if f.RepoSize != f.Size {
		o.integer("repo-size", f.RepoSize)
	}
	o.integer("size", f.Size)
	if f.SizeOrig >= 0 && f.SizeOrig != f.Size {
		o.integer("szo", f.SizeOrig)
	}
	o.integer("timestamp", f.Timestamp)
	o.ident("user", f.User, def.User)
	return o.close()
}

func (o *jsonObject) nonzero(name string, v int64) {
	if v != 0 {
		o.integer(name, v)
	}
}

// ident writes a user or group that differs from the default.
func (o *jsonObject) ident(name, v, def string) {
	if v != def {
		o.key(name)
		o.b = appendIdent(o.b, v)
	}
}

func appendIdent(dst []byte, v string) []byte {
	if v == "" {
		return append(dst, "false"...)
	}
	return appendJSONString(dst, []byte(v))
}

// mode writes a mode that differs from the default.
func (o *jsonObject) mode(v, def uint32) {
	if v != def {
		o.key("mode")
		o.b = appendMode(o.b, v)
	}
}

func appendMode(dst []byte, v uint32) []byte { return fmt.Appendf(dst, `"%04o"`, v) }

func (o *jsonObject) pages(name string, list []PageRange) {
	o.key(name)
	o.b = append(o.b, '[')
	for i, r := range list {
		if i > 0 {
			o.b = append(o.b, ',')
		}
		if r.First == r.Last {
			o.b = strconv.AppendUint(o.b, uint64(r.First), 10)
			continue
		}
		o.b = fmt.Appendf(o.b, "[%d,%d]", r.First, r.Last)
	}
	o.b = append(o.b, ']')
}
