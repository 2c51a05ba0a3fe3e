package action

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"holdfast/internal/catalog"
	"holdfast/internal/eventbus"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/tarball"
)

// inspectShares adds up a tarball's members by the first two elements of their names; in the repository a third tells the cluster.
func inspectShares(ctx context.Context, p catalog.Piece) ([]Part, error) {
	f, err := os.Open(p.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading: nothing to lose
	sum := map[string]*Part{}
	err = eachMember(ctx, f, func(m *tarball.Member) error {
		most := 2
		if strings.HasPrefix(m.Name, repoPrefix) {
			most = 3
		}
		elements := strings.SplitN(m.Name, "/", most+1)
		name := strings.Join(elements[:min(most, len(elements))], "/")
		part := sum[name]
		if part == nil {
			part = &Part{Piece: p.Kind, Name: name}
			sum[name] = part
		}
		n, err := io.Copy(io.Discard, m)
		part.Count, part.Bytes = part.Count+1, part.Bytes+n
		return err
	}, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p.Path, err)
	}
	var parts []Part
	for _, part := range sum {
		parts = append(parts, *part)
	}
	slices.SortFunc(parts, func(a, b Part) int { return int(min(max(b.Bytes-a.Bytes, -1), 1)) })
	return parts, nil
}

// verifyTarball reads one tarball to its end and compares it with the set.
func (a *App) verifyTarball(ctx context.Context, set *catalog.Set, p catalog.Piece) ([]string, error) {
	in, err := inspect(ctx, p.Path, nil)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil {
		return []string{err.Error()}, nil
	}
	var found []string
	if in.size != p.Size || in.sha256 != p.SHA256 {
		found = append(found, fmt.Sprintf("%s: SHA-256 %s and %d bytes; the run wrote %s and %d", p.Path, in.sha256, in.size, p.SHA256, p.Size))
	}
	if in.id.Set != set.ID || in.id.Kind != p.Kind {
		found = append(found, fmt.Sprintf("%s: holds the %s of set %s", p.Path, in.id.Kind, in.id.Set))
	}
	if p.Kind == catalog.EventBus {
		if _, err := verifyBus(ctx, p.Path); err != nil {
			found = append(found, err.Error())
		}
		return found, ctx.Err()
	}
	if f := filesOf(set); f != nil && f.IndexSHA256 != in.index {
		found = append(found, fmt.Sprintf("%s: the index of files has the SHA-256 %s, the set says %s", p.Path, in.index, f.IndexSHA256))
	}
	if set.Mode == catalog.Included && toolOf(set) == catalog.Probackup {
		more, err := a.verifyIncludedProbackup(ctx, set, p.Path)
		return append(found, more...), err
	}
	if set.Mode == catalog.Included {
		more, err := a.verifyIncluded(ctx, set, p.Path)
		return append(found, more...), err
	}
	return found, nil
}

// verifyIncluded checks the repository inside a tarball without unpacking it: info files and manifests are collected in
// a first reading, every other object's checksum is compared in a second.
func (a *App) verifyIncluded(ctx context.Context, set *catalog.Set, file string) ([]string, error) {
	mem := storage.NewMem(a.o.Now)
	if err := a.readRepo(ctx, file, outlineInto(ctx, mem)); err != nil {
		return []string{err.Error()}, ctx.Err()
	}
	c := &includedCheck{want: map[string]wantObject{}}
	for _, point := range pointsOf(set) {
		if err := c.expect(ctx, mem, point, a.o.RepoPass); err != nil {
			c.find("stanza %s: %v", point.Stanza, err)
		}
	}
	if err := a.readRepo(ctx, file, func(name string, r io.Reader) error { return c.object(name, r) }); err != nil {
		return append(c.found, err.Error()), ctx.Err()
	}
	for name, w := range c.want {
		if !w.seen {
			c.find("%s: missing in %s", name, file)
		}
	}
	slices.Sort(c.found)
	return c.found, nil
}

// maxOutline bounds the info files and manifests of one tarball, in bytes: they are held in memory.
const maxOutline = 1 << 30

// outlineInto keeps of a repository what says what is in it: info files, the names of its WAL, and of each stanza the manifest of
// the newest backup, which is the set's. Those that it is built on are told by the members that it names.
func outlineInto(ctx context.Context, mem *storage.Mem) func(name string, r io.Reader) error {
	left := int64(maxOutline)
	newest := map[string]string{} // by directory of a stanza: of a label
	drop := func(name string) error {
		info, err := mem.Stat(ctx, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		left += info.Size
		return errors.Join(err, mem.Remove(ctx, name))
	}
	keep := func(name string, r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, left))
		if err != nil {
			return err
		}
		if left -= int64(len(b)); left <= 0 {
			return fmt.Errorf("info files and manifests of more than %d bytes", int64(maxOutline))
		}
		return storage.WriteAll(ctx, mem, name, b)
	}
	return func(name string, r io.Reader) error {
		if handled, err := probackupOutline(ctx, mem, name, r); handled {
			return err
		}
		switch base := strings.TrimSuffix(path.Base(name), ".copy"); {
		case base == "backup.manifest":
			dir := path.Dir(name)
			stanza, label := path.Split(dir)
			was := newest[stanza]
			switch {
			case label < was:
				return nil
			case label > was && was != "":
				old := stanza + was + "/backup.manifest"
				if err := errors.Join(drop(old), drop(old+".copy")); err != nil {
					return err
				}
			}
			newest[stanza] = label
			return keep(name, r)
		case base == "backup.info" || base == "archive.info":
			return keep(name, r)
		case strings.HasPrefix(name, "archive/"):
			return storage.WriteAll(ctx, mem, name, nil)
		}
		return nil
	}
}

func (a *App) readRepo(ctx context.Context, file string, each func(name string, r io.Reader) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	err = eachMember(ctx, f, func(m *tarball.Member) error {
		if name, ok := repoMember(m.Name); ok {
			return each(name, m)
		}
		return nil
	}, nil)
	return errors.Join(err, f.Close())
}

type wantObject struct {
	spec repo.StreamSpec
	sha1 string
	size int64 // original bytes; -1: not known
	seen bool
}

type includedCheck struct {
	want  map[string]wantObject // by object name
	found []string
}

func (c *includedCheck) find(format string, args ...any) {
	c.found = append(c.found, fmt.Sprintf(format, args...))
}

// expect lists what one cluster's backup and WAL must be.
func (c *includedCheck) expect(ctx context.Context, st storage.Storage, point catalog.PostgresPoint, pass repo.Secret) error {
	bi, err := repo.LoadBackupInfo(ctx, st, point.Stanza, pass)
	if err != nil {
		return err
	}
	ai, err := repo.LoadArchiveInfo(ctx, st, point.Stanza, pass)
	if err != nil {
		return err
	}
	m, err := repo.LoadManifest(ctx, st, point.Stanza, repo.Label(point.Label), bi.CipherPass)
	if err != nil {
		return err
	}
	for i := range m.Files {
		f := &m.Files[i]
		if f.Size == 0 {
			continue
		}
		object, _, _, spec := m.Object(point.Stanza, f)
		c.want[object] = wantObject{spec: spec, sha1: f.SHA1, size: f.Size}
	}
	segments, err := segmentRange(point)
	if err != nil {
		return err
	}
	for _, seg := range segments {
		dir := repo.SegmentDir(point.Stanza, repo.ArchiveID(point.Version, point.HistoryID), seg)
		c.want[dir+"/"+seg] = wantObject{spec: repo.StreamSpec{Pass: ai.CipherPass}, size: -1}
	}
	return nil
}

// object compares one member; WAL members are found by the segment in their name.
func (c *includedCheck) object(name string, r io.Reader) error {
	key, w := name, c.want[name]
	if seg, sum, compress, ok := repo.ParseSegmentObject(path.Base(name)); ok {
		key = path.Dir(name) + "/" + seg
		w = c.want[key]
		w.sha1, w.spec.Compress = sum, compress
	}
	if _, wanted := c.want[key]; !wanted {
		return nil
	}
	w.seen = true
	c.want[key] = w
	sums, err := repo.Decode(io.Discard, r, w.spec)
	switch {
	case err != nil:
		c.find("%s: %v", name, err)
	case sums.SHA1 != w.sha1:
		c.find("%s: SHA-1 is %s, should be %s", name, sums.SHA1, w.sha1)
	case w.size >= 0 && sums.Size != w.size:
		c.find("%s: size is %d, should be %d", name, sums.Size, w.size)
	}
	return nil
}

var (
	_ eventbus.Source = (*busSource)(nil)
	_ eventbus.Source = (*dirSource)(nil)
	_ eventbus.Sink   = tarSink{}
)
