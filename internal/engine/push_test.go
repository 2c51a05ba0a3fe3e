package engine_test

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// archiveRig is an empty stanza and one segment to push.
func archiveRig(t testing.TB, pass repo.Secret) (*rig, *storage.Mem, string) {
	t.Helper()
	r := newRig(t, 15)
	r.pass = pass
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	file, err := r.server.segment(segmentA)
	must(t, err)
	return r, m, file
}

const segmentA = "0000000100000000000000AA"

// push is archive_command with every check on.
func (r *rig) push(st storage.Storage, file string, c repo.CompressType) (engine.PushOutcome, error) {
	return r.stanza(st).Push(r.t.Context(), engine.PushOptions{Path: file, DataDir: r.server.dir, HeaderCheck: true, Compress: c})
}

// patched is a copy of a segment under another name or with other bytes from offset at.
func patched(t testing.TB, file, name string, at int, b ...byte) string {
	t.Helper()
	data, err := os.ReadFile(file)
	must(t, err)
	copy(data[at:], b)
	out := filepath.Join(scratch(t), name)
	must(t, os.WriteFile(out, data, 0o600))
	return out
}

func sum(t testing.TB, file string) string {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	h := sha1.Sum(b)
	return hex.EncodeToString(h[:])
}

func TestPushTwice(t *testing.T) {
	r, m, file := archiveRig(t, "secret")
	first, err := r.push(m, file, repo.LZ4)
	must(t, err)
	if want := "archive/demo/15-1/0000000100000000/" + segmentA + "-" + sum(t, file) + ".lz4"; first.Object != want || first.Existed {
		t.Errorf("first push: %+v, want %s", first, want)
	}
	again, err := r.push(m, file, repo.GZ) // another compression is the same content all the same
	must(t, err)
	if !again.Existed || again.Object != first.Object || !strings.Contains(r.warned(), segmentA) {
		t.Errorf("second push: %+v", again)
	}
	other := patched(t, file, segmentA, 5000, 'x')
	before := contents(t, m)
	_, err = r.push(m, other, repo.LZ4)
	if !errors.Is(err, engine.ErrArchiveConflict) {
		t.Errorf("other content: %v", err)
	}
	for _, name := range []string{first.Object, sum(t, file), sum(t, other), "demo"} {
		if !strings.Contains(fmt.Sprint(err), name) {
			t.Errorf("other content: the message lacks %s: %v", name, err)
		}
	}
	if err := lost(t, before, m); err != nil || len(m.Names()) != len(before) {
		t.Errorf("other content: the archive changed: %v", err)
	}
	// A .partial of the same number is another file, and never delivered under the segment's name.
	partial := patched(t, file, segmentA+".partial", 9000, 'p')
	out, err := r.push(m, partial, repo.LZ4)
	must(t, err)
	if want := segmentA + ".partial-" + sum(t, partial) + ".lz4"; path.Base(out.Object) != want {
		t.Errorf("partial: %s, want %s", out.Object, want)
	}
	for name, want := range map[string]string{segmentA: file, segmentA + ".partial": partial} {
		dest := filepath.Join(scratch(t), "got")
		must(t, r.stanza(m).Get(t.Context(), engine.GetOptions{Name: name, Dest: dest}))
		if sum(t, dest) != sum(t, want) {
			t.Errorf("get %s gives another file", name)
		}
	}
}

// TestPushOtherFiles: history and backup history files are stored as they are, and written over when they come again.
func TestPushOtherFiles(t *testing.T) {
	r, m, _ := archiveRig(t, "")
	for name, object := range map[string]string{
		"00000002.history":                         "archive/demo/15-1/00000002.history",
		segmentA + ".00000028.backup":              "archive/demo/15-1/0000000100000000/" + segmentA + ".00000028.backup",
		"0000000200000000000000AB.00000028.backup": "archive/demo/15-1/0000000200000000/0000000200000000000000AB.00000028.backup",
	} {
		for _, content := range []string{"first", "second, longer"} {
			out, err := r.push(m, r.server.write(t, "pg_wal/"+name, content), repo.GZ)
			must(t, err)
			b, err := storage.ReadAll(t.Context(), m, out.Object, 1000)
			if out.Object != object || string(b) != content {
				t.Errorf("%s: %s holds %q, %v", name, out.Object, b, err)
			}
			dest := filepath.Join(scratch(t), "got")
			must(t, r.stanza(m).Get(t.Context(), engine.GetOptions{Name: name, Dest: dest, DataDir: r.server.dir}))
			if b, err := os.ReadFile(dest); string(b) != content {
				t.Errorf("get %s: %q, %v", name, b, err)
			}
		}
	}
}

func TestPushRefuses(t *testing.T) {
	r, m, file := archiveRig(t, "secret")
	foreign := newRig(t, 16)
	empty := filepath.Join(scratch(t), segmentA)
	must(t, os.WriteFile(empty, nil, 0o600))
	s := func(o engine.Options) *engine.Stanza {
		st, err := engine.New(o)
		must(t, err)
		return st
	}
	nowhere := posix(t, filepath.Join(scratch(t), "no-such-repository"))
	seen := map[string]string{}
	for _, c := range []struct {
		name string
		s    *engine.Stanza
		o    engine.PushOptions
		is   error    // nil: any
		say  []string // all in the message
	}{
		{"no such stanza", s(engine.Options{Stanza: "other", Storage: m, Pass: "secret"}), engine.PushOptions{Path: file}, engine.ErrStanzaMissing, []string{"other", "stanza-create --stanza=other"}},
		{"wrong passphrase", s(engine.Options{Stanza: "demo", Storage: m, Pass: "wrong"}), engine.PushOptions{Path: file}, engine.ErrPassphrase, []string{"archive.info", "with another one"}},
		{"no passphrase", s(engine.Options{Stanza: "demo", Storage: m}), engine.PushOptions{Path: file}, engine.ErrPassphrase, []string{"archive.info", "is encrypted"}},
		{"no repository", s(engine.Options{Stanza: "demo", Storage: nowhere, Pass: "secret"}), engine.PushOptions{Path: file}, engine.ErrStanzaMissing, []string{nowhere.Root()}},
		{"no such file", r.stanza(m), engine.PushOptions{Path: "pg_wal/0000000100000000000000FF", DataDir: r.server.dir}, os.ErrNotExist, []string{r.server.dir + "/pg_wal/0000000100000000000000FF"}},
		{"no WAL", r.stanza(m), engine.PushOptions{Path: r.server.dir + "/PG_VERSION"}, nil, []string{"PG_VERSION", "not the name"}},
		{"lower case", r.stanza(m), engine.PushOptions{Path: r.server.dir + "/pg_wal/0000000100000000000000aa"}, nil, []string{"not the name"}},
		{"another cluster's directory", r.stanza(m), engine.PushOptions{Path: file, DataDir: foreign.server.dir}, engine.ErrArchiveMismatch, []string{"version 16", "15", "stanza-upgrade"}},
		{"another cluster's segment", r.stanza(m), engine.PushOptions{Path: patched(t, file, segmentA, 24, 1, 2, 3), HeaderCheck: true}, engine.ErrArchiveMismatch, []string{segmentA, "system identifier"}},
		{"another version's segment", r.stanza(m), engine.PushOptions{Path: patched(t, file, segmentA, 0, 0x13, 0xD1), HeaderCheck: true}, engine.ErrArchiveMismatch, []string{"version 16"}},
		{"not a first page", r.stanza(m), engine.PushOptions{Path: patched(t, file, segmentA, 2, 5), HeaderCheck: true}, nil, []string{segmentA, "header"}},
		{"empty", r.stanza(m), engine.PushOptions{Path: empty, HeaderCheck: true}, nil, []string{segmentA, "0 bytes"}},
	} {
		before := len(m.Names())
		_, err := c.s.Push(t.Context(), c.o)
		if err == nil || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		for _, word := range c.say {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: the message lacks %q: %v", c.name, word, err)
			}
		}
		if other, twice := seen[err.Error()]; twice {
			t.Errorf("%s and %s have one message: %v", c.name, other, err)
		}
		seen[err.Error()] = c.name
		if len(m.Names()) != before {
			t.Errorf("%s: something was stored", c.name)
		}
	}
	// Without the header check the same segments are archived: that is what the option is for.
	if _, err := r.stanza(m).Push(t.Context(), engine.PushOptions{Path: patched(t, file, segmentA, 24, 1)}); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.stanza(m).Push(ctx, engine.PushOptions{Path: file}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestGetNeverDeliversDamage flips bytes of stored segments of every kind: what is delivered is right or nothing.
func TestGetNeverDeliversDamage(t *testing.T) {
	for _, pass := range []repo.Secret{"", "secret"} {
		for _, c := range []repo.CompressType{repo.None, repo.GZ, repo.LZ4, repo.ZST} {
			r, m, file := archiveRig(t, pass)
			out, err := r.push(m, file, c)
			must(t, err)
			stored, err := storage.ReadAll(t.Context(), m, out.Object, 4<<20)
			must(t, err)
			damaged := map[string][]byte{"half": stored[:len(stored)/2], "nothing": nil, "longer": append(stored[:len(stored):len(stored)], "more"...)}
			for at := 0; at < len(stored); at += 1 + len(stored)/17 {
				b := append([]byte(nil), stored...)
				b[at] ^= 0x10
				damaged[fmt.Sprintf("byte %d", at)] = b
			}
			for what, b := range damaged {
				must(t, storage.WriteAll(t.Context(), m, out.Object, b))
				dest := filepath.Join(scratch(t), "got")
				must(t, os.WriteFile(dest, []byte("as before"), 0o600))
				err := r.stanza(m).Get(t.Context(), engine.GetOptions{Name: segmentA, Dest: dest})
				got, readErr := os.ReadFile(dest)
				must(t, readErr)
				switch {
				case err == nil && sum(t, dest) != sum(t, file):
					t.Errorf("%s, pass %t, %s: damage was delivered", c, pass != "", what)
				case err != nil && (string(got) != "as before" || errors.Is(err, engine.ErrWALMissing) || !strings.Contains(err.Error(), segmentA)):
					t.Errorf("%s, pass %t, %s: %v; the destination holds %d bytes", c, pass != "", what, err, len(got))
				}
			}
			// Stored plain, a wrong byte is nothing but a wrong sum.
			if c == repo.None && pass == "" {
				must(t, storage.WriteAll(t.Context(), m, out.Object, damaged["byte 0"]))
				if err := r.stanza(m).Get(t.Context(), engine.GetOptions{Name: segmentA, Dest: filepath.Join(scratch(t), "got")}); !errors.Is(err, engine.ErrCorrupt) {
					t.Errorf("wrong sum: %v", err)
				}
			}
		}
	}
}

func TestGet(t *testing.T) {
	r, m, file := archiveRig(t, "")
	out, err := r.push(m, file, repo.None)
	must(t, err)
	dir := path.Dir(out.Object)
	stored, err := storage.ReadAll(t.Context(), m, out.Object, 4<<20)
	must(t, err)
	get := func(o engine.GetOptions) error {
		if o.Dest == "" {
			o.Dest = filepath.Join(scratch(t), "got")
		}
		return r.stanza(m).Get(t.Context(), o)
	}
	foreign := newRig(t, 16)
	for _, c := range []struct {
		name string
		o    engine.GetOptions
		is   error
	}{
		{"segment never archived", engine.GetOptions{Name: "0000000100000000000000AB"}, engine.ErrWALMissing},
		{"history never archived", engine.GetOptions{Name: "00000002.history"}, engine.ErrWALMissing},
		{"only the whole segment", engine.GetOptions{Name: segmentA + ".partial"}, engine.ErrWALMissing},
		{"another cluster", engine.GetOptions{Name: segmentA, DataDir: foreign.server.dir}, engine.ErrArchiveMismatch},
	} {
		if err := get(c.o); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for _, name := range []string{"", ".", "..", "../archive.info", "a/b"} {
		if err := get(engine.GetOptions{Name: name}); err == nil || errors.Is(err, engine.ErrWALMissing) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	// Recovery would take "not in the archive" for the end of the WAL.
	for _, name := range []string{segmentA, "00000003.history"} {
		must(t, storage.WriteAll(t.Context(), m, "archive/demo/15-1/00000003.history", []byte("1\t0/1\tx\n")))
		if err := get(engine.GetOptions{Name: name, Dest: filepath.Join(scratch(t), "missing", "got")}); err == nil || errors.Is(err, engine.ErrWALMissing) || !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s to a missing directory: %v", name, err)
		}
	}
	// A second copy helps when the first is damaged; one of other content is a conflict.
	must(t, storage.WriteAll(t.Context(), m, dir+"/"+segmentA+"-"+sum(t, file)+".gz", []byte("no gzip")))
	dest := filepath.Join(scratch(t), "got")
	must(t, get(engine.GetOptions{Name: segmentA, Dest: dest}))
	if sum(t, dest) != sum(t, file) {
		t.Error("a damaged second copy spoils the first")
	}
	must(t, storage.WriteAll(t.Context(), m, out.Object, []byte("damaged")))
	if err := get(engine.GetOptions{Name: segmentA}); !errors.Is(err, engine.ErrCorrupt) || !strings.Contains(err.Error(), ".gz") {
		t.Errorf("both damaged: %v", err)
	}
	must(t, storage.WriteAll(t.Context(), m, dir+"/"+segmentA+"-"+strings.Repeat("0", 40), stored))
	if err := get(engine.GetOptions{Name: segmentA}); !errors.Is(err, engine.ErrArchiveConflict) {
		t.Errorf("two contents: %v", err)
	}
}

// TestGetAfterUpgrade: the cluster that asks decides which archive answers, and the newest entry of a cluster comes first.
func TestGetAfterUpgrade(t *testing.T) {
	r, m, file := archiveRig(t, "secret")
	_, err := r.push(m, file, repo.GZ)
	must(t, err)
	next := newRig(t, 16)
	next.pass = "secret"
	if out, err := next.stanza(m).Upgrade(t.Context(), next.control); out != engine.Upgraded {
		t.Fatal(out, err)
	}
	newer, err := next.server.segment(segmentA)
	must(t, err)
	out, err := next.push(m, newer, repo.GZ)
	must(t, err)
	if !strings.HasPrefix(out.Object, "archive/demo/16-2/") {
		t.Error(out.Object)
	}
	for dir, want := range map[string]string{r.server.dir: file, next.server.dir: newer, "": newer} {
		dest := filepath.Join(scratch(t), "got")
		must(t, next.stanza(m).Get(t.Context(), engine.GetOptions{Name: segmentA, Dest: dest, DataDir: dir}))
		if sum(t, dest) != sum(t, want) {
			t.Errorf("asked by %q: another cluster's segment", dir)
		}
	}
	// The old cluster cannot archive any more; its WAL is not the stanza's.
	if _, err := r.push(m, file, repo.GZ); !errors.Is(err, engine.ErrArchiveMismatch) {
		t.Errorf("push from the old cluster: %v", err)
	}
	if c, _, err := pg.ReadControl(t.Context(), next.server.dir); err != nil || c.Version != 16 {
		t.Error(c.Version, err)
	}
}

// TestPushHistoryConflict: two servers that were promoted apart from each other may both begin a timeline of the same number.
// The history file of the second would make the WAL of the first worthless.
func TestPushHistoryConflict(t *testing.T) {
	for _, pass := range []repo.Secret{"", "secret"} {
		r, m, _ := archiveRig(t, pass)
		const first, other = "1\t0/2000000\tno recovery target specified\n", "1\t0/3000000\tno recovery target specified\n"
		push := func(content string) error {
			_, err := r.push(m, r.server.write(t, "pg_wal/00000002.history", content), repo.None)
			return err
		}
		holds := func(content string) {
			t.Helper()
			dest := filepath.Join(scratch(t), "got")
			must(t, r.stanza(m).Get(t.Context(), engine.GetOptions{Name: "00000002.history", Dest: dest}))
			if b, err := os.ReadFile(dest); string(b) != content {
				t.Errorf("the archive has %q, %v", b, err)
			}
		}
		must(t, push(other))
		must(t, push(first)) // nothing went on from the other one
		holds(first)
		wal, err := r.server.segment("000000020000000000000020")
		must(t, err)
		_, err = r.push(m, wal, repo.LZ4)
		must(t, err)
		must(t, push(first))
		must(t, push(strings.ReplaceAll(first, "no recovery target", "a reason not")))
		must(t, push(first))
		if err := push(other); !errors.Is(err, engine.ErrArchiveConflict) || !strings.Contains(err.Error(), "00000002.history") {
			t.Errorf("another beginning of timeline 2: %v", err)
		}
		holds(first)
		// What is damaged tells nothing and is written over.
		must(t, storage.WriteAll(t.Context(), m, "archive/demo/15-1/00000002.history", []byte("junk")))
		must(t, push(other))
		holds(other)
	}
}

// TestPushCutShort: a segment that is shorter than its header says (a disk that was full, a copy by hand) is refused; in the
// archive it would be the end of every recovery.
func TestPushCutShort(t *testing.T) {
	r, m, file := archiveRig(t, "")
	whole, err := os.ReadFile(file)
	must(t, err)
	for _, name := range []string{segmentA, segmentA + ".partial"} {
		for _, size := range []int{8192, len(whole) / 2, len(whole) + 1} {
			short := filepath.Join(scratch(t), name)
			must(t, os.WriteFile(short, append([]byte(nil), append(whole, 0)[:size]...), 0o600))
			if _, err := r.push(m, short, repo.LZ4); err == nil || !strings.Contains(err.Error(), fmt.Sprint(size)) {
				t.Errorf("%s with %d bytes: %v", name, size, err)
			}
		}
	}
	for name := range contents(t, m) {
		if strings.Contains(name, segmentA) {
			t.Errorf("%s was stored", name)
		}
	}
	_, err = r.push(m, file, repo.LZ4)
	must(t, err)
}
