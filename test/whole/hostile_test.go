package whole

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"holdfast/test/world"
)

// member is one member of a tarball, in memory.
type member struct {
	tar.Header
	body []byte
	raw  []byte // headers, map of holes and content as they were; nil for a new or changed member
}

func readTarball(t *testing.T, path string) []member {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	must(t, err)
	all, err := io.ReadAll(z)
	must(t, err)
	src := bytes.NewReader(all)
	var ball []member
	for r, begin := tar.NewReader(src), 0; ; {
		h, err := r.Next()
		if err == io.EOF {
			return ball
		}
		must(t, err)
		body, err := io.ReadAll(r)
		must(t, err)
		end := (len(all) - src.Len() + 511) / 512 * 512
		ball = append(ball, member{tar.Header{Name: h.Name, Typeflag: h.Typeflag, Linkname: h.Linkname, Mode: h.Mode, ModTime: h.ModTime}, body, all[begin:end]})
		begin = end
	}
}

func writeTarball(t *testing.T, path string, ball []member) {
	t.Helper()
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	must(t, err)
	for _, m := range ball {
		if m.raw != nil {
			_, werr := z.Write(m.raw)
			err = errors.Join(err, werr)
			continue
		}
		m.Size, m.Format = int64(len(m.body)), tar.FormatPAX
		w := tar.NewWriter(z)
		err = errors.Join(err, w.WriteHeader(&m.Header))
		_, werr := w.Write(m.body)
		err = errors.Join(err, werr, w.Flush())
	}
	_, werr := z.Write(make([]byte, 1024)) // the end of a tar stream
	must(t, err, werr, z.Close(), os.WriteFile(path, b.Bytes(), 0o600))
}

const siteFiles = "files/data1_site_data/" // the tree of World.Files in the tarball

// add puts members before the index of the files.
func add(extra ...member) func([]member) []member {
	return func(ball []member) []member {
		at := slices.IndexFunc(ball, func(m member) bool { return m.Name == "files.index.jsonl" })
		return slices.Insert(slices.Clone(ball), at, extra...)
	}
}

func entry(kind byte, name, link string) member {
	return member{tar.Header{Typeflag: kind, Name: name, Linkname: link, Mode: 0o777}, nil, nil}
}

// edit changes the content of every member whose name ends so.
func edit(ending string, change func(string) string) func([]member) []member {
	return func(ball []member) []member {
		ball = slices.Clone(ball)
		for i := range ball {
			if strings.HasSuffix(ball[i].Name, ending) || strings.HasSuffix(ball[i].Name, ending+".copy") {
				ball[i].body, ball[i].raw = []byte(change(string(ball[i].body))), nil
			}
		}
		return ball
	}
}

// manifest doctors the manifest of the PostgreSQL backup.
func manifest(lines ...string) func([]member) []member {
	return edit("/backup.manifest", doctored(lines...))
}

// doctored puts lines behind others into a manifest and makes its checksum right again, as who means harm would.
func doctored(lines ...string) func(string) string {
	return func(text string) string {
		for i := 0; i < len(lines); i += 2 {
			text = strings.Replace(text, lines[i]+"\n", lines[i]+"\n"+strings.ReplaceAll(lines[i+1], "|", "\n")+"\n", 1)
		}
		text, _, _ = strings.Cut(text, "\n[backrest]\nbackrest-checksum=")
		var sum strings.Builder
		section := ""
		for line := range strings.Lines(text) {
			line = strings.TrimSuffix(line, "\n")
			if strings.HasPrefix(line, "[") {
				section = strings.Trim(line, "[]")
				continue
			}
			key, value, ok := strings.Cut(line, "=")
			if !ok {
				continue
			}
			if section != "" {
				sum.WriteString(map[bool]string{true: "{", false: "},"}[sum.Len() == 0] + `"` + section + `":{`)
				section = ""
			} else {
				sum.WriteString(",")
			}
			sum.WriteString(`"` + key + `":` + value)
		}
		return text + fmt.Sprintf("\n[backrest]\nbackrest-checksum=\"%x\"\n", sha1.Sum([]byte(sum.String()+"}}")))
	}
}

// leftOvers fails when a restore that ended left anything of its own behind.
func leftOvers(t *testing.T, w *world.World) {
	t.Helper()
	for _, pattern := range []string{"data1/?*.holdfast-*", "data1/pgsql/*.holdfast-*", "data1/lineage/*.holdfast-*", "opt/alation/*.holdfast-*", "data2/tmp/*", "var/lib/holdfast/lock/restore.json"} {
		if names, err := filepath.Glob(filepath.Join(w.Root, pattern)); err != nil || len(names) > 0 {
			t.Errorf("left over: %v %v", names, err)
		}
	}
}

// TestHostileSet restores sets that somebody has doctored: nothing outside the application is touched, and what was there
// is there.
func TestHostileSet(t *testing.T) {
	w := newWorld(t, false)
	s := backup(t, w)
	want := prove(t, w)
	canary := filepath.Join(w.Dir, "data", "canary") // below the disk, beside files and clusters
	for _, d := range []string{canary, filepath.Join(canary, "PG_15_202209061"), filepath.Join(w.Dir, "backup", "incoming")} {
		if err := w.MakeOwned(d, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.WriteFile(filepath.Join(canary, "secret"), []byte("mine"), 0o666), os.WriteFile(filepath.Join(canary, "PG_15_202209061", "x"), nil, 0o666)); err != nil {
		t.Fatal(err)
	}
	outside, err := world.Listing(canary)
	if err != nil {
		t.Fatal(err)
	}
	good := readTarball(t, filepath.Join(w.Dump, s.ID+"_alation_backup.tar.gz"))
	ok(t, w, "alation_conf", "alation.backup.restore_file", "-s", "/data2/incoming/app.tar.gz", "alation.backup.eb_restore_file", "-s", "/data2/backup/"+s.ID+"_alation_eb_backup.tar.gz")
	link := fmt.Sprintf(`{"path":%q,"type":"link"}`, canary)
	empty := `{"checksum":"da39a3ee5e6b4b0d3255bfef95601890afd80709","size":0,"timestamp":1795490143}`
	for _, c := range []struct {
		name string
		edit func([]member) []member
		code int
		what string // in the message; of a restore that ends well: nothing
	}{
		{"climbing", add(entry(tar.TypeReg, siteFiles+"../canary/new", "")), 5, `climbs with ".."`},
		{"climbing at the top", add(entry(tar.TypeReg, "../data/canary/new", "")), 5, `climbs with ".."`},
		{"absolute", add(entry(tar.TypeReg, canary+"/new", "")), 5, "absolute"},
		{"through a link", add(entry(tar.TypeSymlink, siteFiles+"out", canary), entry(tar.TypeReg, siteFiles+"out/new", "")), 1, "nothing is written through it; nothing was changed"},
		{"hard link out", add(entry(tar.TypeLink, siteFiles+"hard", canary+"/secret")), 5, "absolute"},
		{"hard link through a link", add(entry(tar.TypeSymlink, siteFiles+"out", canary), entry(tar.TypeLink, siteFiles+"hard", siteFiles+"out/secret")), 1, "nothing is written through it; nothing was changed"},
		{"device", add(entry(tar.TypeBlock, siteFiles+"sda", "")), 5, "not allowed"},
		{"FIFO for a file", func(ball []member) []member {
			return add(entry(tar.TypeFifo, siteFiles+"empty", ""))(ball)
		}, 1, "the tarball has a fifo, the index a file; nothing was changed"},
		{"FIFO beside the files", add(entry(tar.TypeFifo, siteFiles+"fifo", "")), 0, ""},
		{"logs as a link", func(ball []member) []member {
			var was, is [32]byte
			ball = edit("files.index.jsonl", func(text string) string {
				was = sha256.Sum256([]byte(text))
				text, end, _ := strings.Cut(text, `{"end":true,"entries":`)
				n, err := strconv.Atoi(strings.Trim(end, "}\n"))
				must(t, err)
				text += fmt.Sprintf(`{"tree":"opt_alation_site","path":"logs","type":"symlink","mode":511,"link":%q}`+"\n"+`{"end":true,"entries":%d}`+"\n", canary, n+1)
				is = sha256.Sum256([]byte(text))
				return text
			})(add(entry(tar.TypeSymlink, "files/opt_alation_site/logs", canary))(ball))
			return edit("set.json", func(text string) string {
				return strings.ReplaceAll(text, hex.EncodeToString(was[:]), hex.EncodeToString(is[:]))
			})(ball)
		}, 1, "is a symbolic link; logs must be in a directory; nothing was changed"},
		{"tree outside", edit("set.json", func(s string) string {
			return strings.ReplaceAll(s, `"data1/site_data"`, `"../canary"`)
		}), 5, "not among this instance's files.paths"},
		{"restore point that is a setting", edit("set.json", func(text string) string {
			return strings.ReplaceAll(text, `"holdfast_`+s.ID+`"`, `"x\\'\nwork_mem = 7777 # "`)
		}), 5, "restore point"},
		{"manifest: file outside", manifest("[target:file]", `pg_data/../../canary/new=`+empty), 5, "not a clean path"},
		{"manifest: path outside", manifest("[target:path]", `pg_data/../canary={}`), 5, "not a clean path"},
		{"manifest: link outside", manifest("[backup:target]", `pg_data/aaa=`+link, "pg_data={}", "pg_data/aaa={}", "[target:file]", "pg_data/aaa/new="+empty,
			`mode="0600"|user="postgres"|`, ""), 0, ""},
		{"manifest: tablespace of somebody else", func(ball []member) []member {
			space := `pg_tblspc/16400={"path":"` + canary + `","tablespace-id":"16400","tablespace-name":"evil","type":"link"}`
			return manifest("[backup:target]", space, "[target:path]", "pg_tblspc={}|pg_tblspc/16400={}|pg_tblspc/16400/PG_15_202209061={}")(ball)
		}, 5, "may be another cluster's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := os.Remove(filepath.Join(w.Root, "data2/holdfast/catalog", s.ID+".json")); err != nil && !os.IsNotExist(err) { // as on another host
				t.Fatal(err)
			}
			writeTarball(t, filepath.Join(w.Dir, "backup/incoming/app.tar.gz"), c.edit(good))
			out, err := w.As(t.Context(), "alation_action", "YES\n", "destructive_restore_all")
			if out.Code != c.code || (err == nil) != (c.code == 0) || !strings.Contains(out.Stderr, c.what) {
				t.Errorf("code %d (want %d), want %q in:\n%s%s", out.Code, c.code, c.what, out.Stdout, out.Stderr)
			}
			same(t, "after the hostile set", want, prove(t, w))
			now, err := world.Listing(canary)
			if err != nil {
				t.Fatal(err)
			}
			if diff := (&world.Proof{Files: outside}).Diff(&world.Proof{Files: now}); len(diff) > 0 {
				t.Errorf("outside was touched:\n%s", strings.Join(diff, "\n"))
			}
			leftOvers(t, w)
		})
	}
	ok(t, w, "holdfast", "sets", "verify", backup(t, w).ID)
}

// TestHostileRepository is the same for a repository that is kept apart.
func TestHostileRepository(t *testing.T) {
	w := newWorld(t, true)
	s := backup(t, w)
	want := prove(t, w)
	canary := filepath.Join(w.Dir, "data", "canary")
	must(t, w.MakeOwned(canary, 0o777))
	names, err := filepath.Glob(filepath.Join(w.Repo, "backup", world.Stanza, "2*", "backup.manifest*"))
	if err != nil || len(names) != 2 {
		t.Fatalf("manifests %v %v", names, err)
	}
	good, err := os.ReadFile(names[0])
	must(t, err)
	for _, c := range [][]string{
		{"[target:file]", `pg_data/../../canary/new={"checksum":"da39a3ee5e6b4b0d3255bfef95601890afd80709","size":0,"timestamp":1795490143}`},
		{"[target:path]", "pg_data/../canary={}"},
		{"[target:path]", canary + "={}"},
	} {
		for _, n := range names {
			must(t, os.WriteFile(n, []byte(doctored(c...)(string(good))), 0o640))
		}
		fails(t, w, 5, "nothing was changed", "holdfast", "restore", "--set", s.ID, "--yes")
		fails(t, w, 6, "finding", "holdfast", "sets", "verify", s.ID)
		if entries, err := os.ReadDir(canary); err != nil || len(entries) > 0 {
			t.Errorf("outside: %v %v", entries, err)
		}
		same(t, "after the hostile repository", want, prove(t, w))
		leftOvers(t, w)
	}
	for _, n := range names {
		must(t, os.WriteFile(n, good, 0o640))
	}
	change(t, w)
	restore(t, w, s.ID)
	same(t, "with the good manifest", want, prove(t, w))
}
