package engine_test

import (
	"os"
	"path/filepath"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// FuzzBundle damages a bundle, and what the manifest says of the place of a file in it: whole files and block images, of every
// compression, plain and encrypted. A restore gives the right files or an error and no pg_control, never wrong files; what a
// restore can't read, Verify names.
func FuzzBundle(f *testing.F) {
	type kept struct {
		*shelf
		files map[string]string
	}
	var shelves []kept
	for _, compress := range []repo.CompressType{repo.None, repo.GZ, repo.LZ4, repo.ZST, repo.BZ2} {
		for _, pass := range []repo.Secret{"", "secret"} {
			for _, block := range []int64{0, 8192} {
				s := newShelf(f, pass)
				s.compress, s.bundle, s.block = compress, true, block
				states := s.states()[:2]
				s.backup(repo.Full, day, states[0])
				s.backup(repo.Incr, day.AddDate(0, 0, 1), states[1])
				shelves = append(shelves, kept{s, states[1]})
			}
		}
	}
	for i := range shelves {
		f.Add(uint8(i), uint8(i), uint32(1000*i), []byte("x"), int16(0), int16(0), int16(0))
		f.Add(uint8(i), uint8(i), uint32(0), []byte(nil), int16(i-8), int16(8-i), int16(i%3-1))
	}
	f.Fuzz(func(t *testing.T, which, file uint8, at uint32, patch []byte, offset, size, mapSize int16) {
		k := shelves[int(which)%len(shelves)]
		s := *k.shelf
		s.t, s.st = t, k.st.CrashClone()
		bundle := "backup/demo/" + string(s.newest.References[int(at)%2]) + "/bundle/1"
		b, err := storage.ReadAll(t.Context(), s.st, bundle, 8<<20)
		must(t, err)
		copy(b[int(at/2)%len(b):], patch)
		must(t, storage.WriteAll(t.Context(), s.st, bundle, b))
		m := *s.newest
		m.Files = append([]repo.File(nil), m.Files...)
		entry := &m.Files[int(file)%len(m.Files)]
		if entry.BundleID > 0 {
			entry.BundleOffset += int64(offset)
			entry.RepoSize += int64(size)
			if entry.BlockMapSize > 0 {
				entry.BlockMapSize += int64(mapSize)
			}
		}
		if err := repo.PublishManifest(t.Context(), s.st, "demo", &m, s.info.CipherPass); err != nil {
			return // no manifest that could be in a repository
		}
		dir := filepath.Join(scratch(t), "data")
		_, _, err = s.restore(t.Context(), s.st, engine.RestoreOptions{Set: m.Label, DataDir: dir})
		if err == nil {
			if err := s.compare(dir, k.files); err != nil {
				t.Errorf("restored without an error, and wrong: %v", err)
			}
			return
		}
		if _, serr := os.Lstat(filepath.Join(dir, "global/pg_control")); serr == nil {
			t.Errorf("there is a pg_control after %v", err)
		}
		res, verr := s.open(s.st).Verify(t.Context(), engine.VerifyOptions{Set: m.Label})
		if verr == nil && len(res.Findings) == 0 {
			t.Errorf("verify finds nothing, a restore says: %v", err)
		}
	})
}
