package engine_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// touch rewrites a file of the fake server's data directory with a time stamp of its own, in the past.
func (r *rig) touch(name, content string, age time.Duration) {
	r.t.Helper()
	file := filepath.Join(r.server.dir, name)
	mkdir(r.t, filepath.Dir(file))
	must(r.t, os.WriteFile(file, []byte(content), 0o600))
	at := time.Now().Add(-age)
	must(r.t, os.Chtimes(file, at, at))
}

// scribble is text that does not compress to nothing.
func scribble(seed uint64, n int) string {
	rnd := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[rnd.IntN(36)]
	}
	return string(b)
}

// mutationRepo is a repository with a chain of four backups, with files of every kind.
func (r *rig) mutationRepo(o engine.BackupOptions) *storage.Mem {
	m := storage.NewMem(nil)
	must(r.t, r.create(r.t.Context(), m))
	r.touch("base/16384/2000", scribble(1, 300_000), 9*time.Hour)
	r.touch("base/16384/2001", scribble(2, 60_000), 9*time.Hour)
	r.touch("base/16384/2002", scribble(3, 5_000), 9*time.Hour)
	r.touch("base/16384/2003", scribble(4, 5_000), 9*time.Hour)
	for i, typ := range []repo.BackupType{repo.Full, repo.Incr, repo.Diff, repo.Incr} {
		o.Type = typ
		if i > 0 {
			big := []byte(scribble(1, 300_000))
			copy(big[i*40_000:], fmt.Sprintf("change %d", i))
			r.touch("base/16384/2000", string(big), time.Duration(9-i)*time.Hour)
			r.touch(fmt.Sprintf("base/16384/30%02d", i), scribble(uint64(10+i), 20_000), time.Duration(9-i)*time.Hour)
		}
		_, err := r.backupWith(r.t.Context(), m, m, o)
		must(r.t, err)
	}
	r.mutationArchive(m)
	must(r.t, m.Sync(r.t.Context()))
	return m
}

// mutationArchive archives what a promotion and a backup leave beside the segments: two histories, the first segment of each
// new timeline, the unfinished last one of the old, and a backup history file of each.
func (r *rig) mutationArchive(m *storage.Mem) {
	push := func(file string, err error) {
		must(r.t, err)
		_, err = r.push(m, file, repo.LZ4)
		must(r.t, err)
	}
	reason, history := []string{"", "no recovery target specified", "before 2026-03-01 12:00:00+00"}, ""
	for timeline := uint32(1); timeline <= 2; timeline++ {
		at := r.server.position
		last := pg.SegmentName(timeline, at, segmentSize)
		file, err := r.server.segment(last)
		must(r.t, err)
		push(patched(r.t, file, last+".partial", 9000, 'p', byte(timeline)), nil)
		must(r.t, os.Remove(file))
		history += fmt.Sprintf("%d\t%s\t%s\n", timeline, at, reason[timeline])
		push(r.server.write(r.t, fmt.Sprintf("pg_wal/%08X.history", timeline+1), history), nil)
		r.server.timeline = timeline + 1
		r.server.position += 0x28
		first := pg.SegmentName(timeline+1, r.server.position, segmentSize)
		push(r.server.write(r.t, fmt.Sprintf("pg_wal/%s.%08X.backup", first, uint64(r.server.position)%segmentSize),
			fmt.Sprintf("START WAL LOCATION: %s (file %s)\nSTOP WAL LOCATION: %s (file %s)\nCHECKPOINT LOCATION: %[1]s\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n"+
				"START TIME: 2026-03-01 12:00:00 UTC\nLABEL: backup %[5]d\nSTART TIMELINE: %[5]d\nSTOP TIME: 2026-03-01 12:00:05 UTC\nSTOP TIMELINE: %[5]d\n",
				r.server.position, first, r.server.position+0x100, first, timeline+1)), nil)
		must(r.t, r.server.switchWAL())
	}
}

// kindOf names what an object is, for the count.
func kindOf(name string) string {
	base := path.Base(name)
	switch {
	case strings.HasPrefix(base, "archive.info"), strings.HasPrefix(base, "backup.info"):
		return "info file"
	case strings.HasPrefix(base, "backup.manifest"):
		return "manifest"
	case strings.Contains(name, "backup.history"):
		return "history manifest"
	case strings.HasSuffix(base, ".backup"):
		return "backup history file"
	case strings.HasSuffix(base, ".history"):
		return "timeline history file"
	case strings.Contains(base, ".partial-"):
		return "partial WAL segment"
	case strings.HasPrefix(name, "archive/"):
		return "WAL segment"
	case strings.Contains(name, "/bundle/"):
		return "bundle"
	case strings.HasSuffix(base, ".pgbi"):
		return "block image"
	}
	return "file"
}

// TestMutations damages one object at a time, of every kind and in every way, and holds Verify to name it. A restore of any
// backup afterwards gives the right files or an error, never wrong files.
func TestMutations(t *testing.T) {
	for name, o := range map[string]engine.BackupOptions{
		"plain":        {Compress: repo.None},
		"bundle-block": {Compress: repo.ZST, Level: 1, Bundle: true, BundleLimit: 64 << 10, Block: true},
		"gz-block":     {Compress: repo.GZ, Level: 1, Block: true},
		"lz4-bundle":   {Compress: repo.LZ4, Level: 1, Bundle: true, BundleLimit: 64 << 10},
		"bz2":          {Compress: repo.BZ2, Level: 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			if name == "plain" {
				r.pass = ""
			}
			base := r.mutationRepo(o)
			must(t, r.verified(base))
			labels := r.labels(base)
			right := map[repo.Label]map[string]string{}
			for _, l := range labels {
				dir := filepath.Join(scratch(t), "right")
				must(t, r.restore(t.Context(), base, dir, l))
				right[l] = tree(t, dir)
			}
			all := contents(t, base)
			var names []string
			for n := range all {
				if kind := kindOf(n); kind != "" && (kind == "file" || name != "bz2") { // the rest is as in the other variants
					names = append(names, n)
				}
			}
			slices.Sort(names)
			rnd := rand.New(rand.NewPCG(3, 4))
			count := map[string]int{}
			for i, object := range names {
				for _, how := range []string{"flip", "truncate", "empty", "append", "delete", "swap", "swap alike"} {
					if testing.Short() && (i+len(how))%7 != 0 {
						continue
					}
					m := base.CrashClone()
					if !mutate(t, m, names, all, object, how, rnd) {
						continue
					}
					count[kindOf(object)]++
					r.checkMutation(m, object, how, labels, right, i%5 == 0)
				}
			}
			total := 0
			for _, n := range count {
				total += n
			}
			t.Log(count)
			if !t.Failed() {
				tally.Count(t, "mutations of stored objects, all found", total)
			}
			if total < 10 {
				t.Errorf("only %d mutations", total)
			}
		})
	}
}

// lastOf is the last object of a kind.
func lastOf(names []string, kind string) string {
	last := ""
	for _, n := range names {
		if kindOf(n) == kind {
			last = n
		}
	}
	return last
}

// mutate damages one object; false: this way of damage changes nothing.
func mutate(t *testing.T, m *storage.Mem, names []string, all map[string]string, object, how string, rnd *rand.Rand) bool {
	t.Helper()
	content := []byte(all[object])
	put := func(name string, b []byte) { must(t, storage.WriteAll(context.Background(), m, name, b)) }
	kind, alike := kindOf(object), how == "swap alike"
	switch how {
	case "delete":
		if kind == "backup history file" || kind == "partial WAL segment" || kind == "WAL segment" && object == lastOf(names, kind) {
			return false // nothing says that there was one
		}
		must(t, m.Remove(context.Background(), object))
		return true
	case "empty":
		put(object, nil)
		return len(content) > 0
	case "append":
		put(object, append(content, "garbage"...))
		return kind != "bundle" // what no manifest names harms nobody, and the original leaves such bytes, too
	case "truncate":
		if len(content) == 0 {
			return false
		}
		put(object, content[:rnd.IntN(len(content))])
		return true
	case "flip":
		if len(content) == 0 {
			return false
		}
		content[rnd.IntN(len(content))] ^= 1 << rnd.IntN(8)
		put(object, content)
		return kind != "backup history file" && kind != "timeline history file" // the format keeps no checksum of their text
	}
	for _, other := range names {
		// Encrypted, two files of one content differ, too.
		if other != object && kindOf(other) == kind && path.Ext(other) == path.Ext(object) && all[other] != all[object] && (len(all[other]) == len(all[object])) == alike {
			if alike && strings.HasPrefix(string(content), "Salted__") {
				continue
			}
			put(object, []byte(all[other]))
			put(other, content)
			return true
		}
	}
	return false
}

func (r *rig) checkMutation(m *storage.Mem, object, how string, labels []repo.Label, right map[repo.Label]map[string]string, restore bool) {
	t := r.t
	t.Helper()
	res, err := r.stanza(m).Verify(t.Context(), engine.VerifyOptions{ProcessMax: 2})
	named := err != nil && strings.Contains(err.Error(), path.Base(object))
	if err == nil {
		for _, f := range res.Findings {
			text := f.String()
			named = named || strings.Contains(text, object) || strings.Contains(text, strings.TrimSuffix(path.Base(object), path.Ext(object))) ||
				how == "delete" && len(path.Base(object)) > 24 && strings.Contains(text, path.Base(object)[:24])
		}
	}
	if !named {
		var all []string
		if res != nil {
			for _, f := range res.Findings {
				all = append(all, f.String())
			}
		}
		t.Errorf("%s of %s: not found; err %v, findings %q", how, object, err, all)
	}
	if !restore {
		return
	}
	for _, l := range labels {
		dir := filepath.Join(scratch(t), "restored")
		if err := r.restore(t.Context(), m, dir, l); err != nil {
			continue
		}
		if diff := differ(right[l], tree(t, dir)); diff != "" {
			t.Errorf("%s of %s: backup %s restores without an error and wrongly: %s", how, object, l, diff)
		}
	}
}

// differ names the first difference of two trees.
func differ(a, b map[string]string) string {
	for k, v := range a {
		if b[k] != v {
			return k
		}
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			return k + " (extra)"
		}
	}
	return ""
}
