package engine

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"holdfast/internal/repo"
)

// ListManifestOptions says which files of which backup to list.
type ListManifestOptions struct {
	Set       repo.Label // empty: the newest
	File      string     // one file by its name in the manifest, with what is in its block map; empty: all
	Reference string     // only files stored in this backup; "latest": in the one listed; empty: all
	JSON      bool       // as pgbackrest's manifest command prints it (format page, section 21.3)
	Local     *time.Location
}

// manifestFile is one file in the JSON.
type manifestFile struct {
	Name      string     `json:"name"`
	Reference repo.Label `json:"reference,omitempty"`
	Size      int64      `json:"size"`
	Checksum  string     `json:"checksum"`
	Repo      struct {
		Size int64 `json:"size"`
	} `json:"repo"`
	Bundle *struct {
		ID     int64 `json:"id"`
		Offset int64 `json:"offset"`
	} `json:"bundle,omitempty"`
	Block *struct {
		Size int64 `json:"size"`
		Map  struct {
			Size  int64       `json:"size"`
			Delta []blockPart `json:"delta,omitempty"`
		} `json:"map"`
		Checksum struct {
			Size int `json:"size"`
		} `json:"checksum"`
	} `json:"block,omitempty"`
}

// blockPart is what a restore of one file reads from one backup.
type blockPart struct {
	Reference  int    `json:"reference"`
	Read       volume `json:"read"`
	SuperBlock volume `json:"superBlock"`
	Block      struct {
		Total int `json:"total"`
	} `json:"block"`
}

type volume struct {
	Total int   `json:"total"`
	Size  int64 `json:"size"`
}

// ListManifest writes what the manifest of a backup says. It changes nothing.
func (s *Stanza) ListManifest(ctx context.Context, w io.Writer, o ListManifestOptions) error {
	_, bi, err := s.loadInfos(ctx)
	if err != nil {
		return err
	}
	if n := len(bi.Backups); o.Set == "" && n > 0 {
		o.Set = bi.Backups[n-1].Label
	}
	if o.Set == "" || bi.Find(o.Set) == nil {
		return fmt.Errorf("stanza %s: %w: there is no backup %s", s.o.Stanza, ErrNoBackup, o.Set)
	}
	m, err := repo.LoadManifest(ctx, s.o.Storage, s.o.Stanza, o.Set, bi.CipherPass)
	if err != nil {
		return fmt.Errorf("stanza %s: backup %s: load the manifest: %w", s.o.Stanza, o.Set, err)
	}
	b := bufio.NewWriter(w)
	l := manifestList{s, m, o, b}
	err = l.head()
	if err == nil {
		err = l.files(ctx)
	}
	if err == nil && o.JSON {
		_, err = b.WriteString("]}")
	}
	return errors.Join(err, b.Flush())
}

type manifestList struct {
	s *Stanza
	m *repo.Manifest
	o ListManifestOptions
	w *bufio.Writer
}

func (l *manifestList) head() error {
	m := l.m
	if !l.o.JSON {
		at := func(t int64) string { return time.Unix(t, 0).In(l.o.Local).Format("2006-01-02 15:04:05") }
		var refs []string
		for _, r := range m.References {
			refs = append(refs, string(r))
		}
		took := m.TimeStop - m.TimeStart
		_, err := fmt.Fprintf(l.w, "label: %s\nreference: %s\ntype: %s\ntime: start: %s, stop: %s, duration: %d:%02d:%02d\nbundle: %t\nblock: %t\n\nfile list:\n",
			m.Label, strings.Join(refs, ", "), m.Type, at(m.TimeStart), at(m.TimeStop), took/3600, took%3600/60, took%60, m.Bundle, m.BlockIncr)
		return err
	}
	type times struct {
		Start int64 `json:"start"`
		Copy  int64 `json:"copy"`
		Stop  int64 `json:"stop"`
	}
	type bundle struct {
		Bundle bool `json:"bundle"`
		Raw    bool `json:"raw"`
	}
	type block struct {
		Block bool `json:"block"`
	}
	text, err := json.Marshal(struct {
		Label     repo.Label      `json:"label"`
		Reference []repo.Label    `json:"reference"`
		Type      repo.BackupType `json:"type"`
		Time      times           `json:"time"`
		Bundle    bundle          `json:"bundle"`
		Block     block           `json:"block"`
	}{m.Label, m.References, m.Type, times{m.TimeStart, m.TimeCopyStart, m.TimeStop}, bundle{m.Bundle, m.BundleRaw}, block{m.BlockIncr}})
	if err == nil {
		_, err = fmt.Fprintf(l.w, "%s,\"fileList\":[", text[:len(text)-1])
	}
	return err
}

func (l *manifestList) files(ctx context.Context) error {
	n := 0
	for i := range l.m.Files {
		f := &l.m.Files[i]
		stored := cmp.Or(f.Reference, l.m.Label)
		if l.o.File != "" && f.Name != l.o.File || l.o.Reference == "latest" && f.Reference != "" ||
			l.o.Reference != "" && l.o.Reference != "latest" && string(stored) != l.o.Reference {
			continue
		}
		if n++; n > 1 {
			l.w.WriteByte(map[bool]byte{true: ',', false: '\n'}[l.o.JSON]) // the first error comes again from Flush
		}
		var parts []blockPart
		if l.o.File != "" && f.BlockMapSize > 0 {
			var err error
			if parts, err = l.blocks(ctx, f); err != nil {
				return fmt.Errorf("stanza %s: backup %s: block map of %s: %w", l.s.o.Stanza, l.m.Label, f.Name, err)
			}
		}
		if err := l.file(f, parts); err != nil {
			return err
		}
	}
	if n == 0 && l.o.File != "" {
		return fmt.Errorf("stanza %s: backup %s has no file %q; names are as in the manifest, pg_data/…", l.s.o.Stanza, l.m.Label, l.o.File)
	}
	return nil
}

func (l *manifestList) file(f *repo.File, parts []blockPart) error {
	if l.o.JSON {
		text, err := json.Marshal(jsonFile(f, parts))
		if err == nil {
			_, err = l.w.Write(text)
		}
		return err
	}
	fmt.Fprintf(l.w, "  - %s\n", f.Name)
	if f.Reference != "" {
		fmt.Fprintf(l.w, "      reference: %s\n", f.Reference)
	}
	fmt.Fprintf(l.w, "      size: %s, repo %s\n      checksum: %s\n", Size(f.Size), Size(f.RepoSize), f.SHA1)
	if f.BundleID != 0 {
		fmt.Fprintf(l.w, "      bundle: %d\n", f.BundleID)
	}
	if f.BlockSize != 0 {
		fmt.Fprintf(l.w, "      block: size %s, map size %s, checksum size %s\n", Size(f.BlockSize), Size(f.BlockMapSize), Size(int64(f.BlockSumSize)))
	}
	if parts != nil {
		fmt.Fprintln(l.w, "      block delta:")
	}
	for _, p := range parts {
		fmt.Fprintf(l.w, "        reference: %s, read: %d/%s, superBlock: %d/%s, block: %d/%s\n", l.m.References[p.Reference], p.Read.Total, Size(p.Read.Size),
			p.SuperBlock.Total, Size(p.SuperBlock.Size), p.Block.Total, Size(int64(p.Block.Total)*f.BlockSize))
	}
	return nil
}

func jsonFile(f *repo.File, parts []blockPart) manifestFile {
	out := manifestFile{Name: f.Name, Reference: f.Reference, Size: f.Size, Checksum: f.SHA1}
	out.Repo.Size = f.RepoSize
	if f.BundleID != 0 {
		out.Bundle = &struct {
			ID     int64 `json:"id"`
			Offset int64 `json:"offset"`
		}{f.BundleID, f.BundleOffset}
	}
	if f.BlockSize != 0 {
		out.Block = new(struct {
			Size int64 `json:"size"`
			Map  struct {
				Size  int64       `json:"size"`
				Delta []blockPart `json:"delta,omitempty"`
			} `json:"map"`
			Checksum struct {
				Size int `json:"size"`
			} `json:"checksum"`
		})
		out.Block.Size, out.Block.Map.Size, out.Block.Map.Delta, out.Block.Checksum.Size = f.BlockSize, f.BlockMapSize, parts, f.BlockSumSize
	}
	return out
}

// blocks reads a file's block map and sums up what a restore reads of each backup: neighbouring super blocks in one go.
func (l *manifestList) blocks(ctx context.Context, f *repo.File) ([]blockPart, error) {
	object, offset, length, spec := l.m.Object(l.s.o.Stanza, f)
	in, err := l.s.o.Storage.Open(ctx, object, offset+length-f.BlockMapSize, f.BlockMapSize)
	if err != nil {
		return nil, err
	}
	defer in.Close() // opened for reading: nothing to lose
	m, err := repo.ReadBlockMap(in, f.BlockSize, f.BlockSumSize, spec.Pass)
	if err != nil {
		return nil, err
	}
	var parts []blockPart
	last := map[int]repo.BlockRef{}
	for _, b := range m.Blocks {
		if b.Reference >= len(l.m.References) {
			return nil, fmt.Errorf("it names backup %d of %d", b.Reference, len(l.m.References))
		}
		i := slices.IndexFunc(parts, func(p blockPart) bool { return p.Reference == b.Reference })
		if i < 0 {
			i = len(parts)
			parts = append(parts, blockPart{Reference: b.Reference})
		}
		p := &parts[i]
		p.Block.Total++
		was, seen := last[b.Reference]
		last[b.Reference] = b
		if seen && was.Offset == b.Offset {
			continue
		}
		p.SuperBlock.Total++
		p.SuperBlock.Size += b.SuperSize
		p.Read.Size += b.Size
		if !seen || was.Offset+was.Size != b.Offset {
			p.Read.Total++
		}
	}
	slices.SortFunc(parts, func(a, b blockPart) int { return a.Reference - b.Reference })
	return parts, nil
}
