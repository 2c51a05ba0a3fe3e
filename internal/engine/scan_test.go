package engine_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// taken makes one uncompressed backup on a new repository and returns it.
func (r *rig) taken(o engine.BackupOptions) (*storage.Mem, *engine.BackupResult, *repo.Manifest, error) {
	r.t.Helper()
	m := storage.NewMem(nil)
	must(r.t, r.create(r.t.Context(), m))
	res, err := r.backupWith(r.t.Context(), m, m, o)
	if err != nil {
		return m, nil, nil, err
	}
	must(r.t, r.verified(m))
	return m, res, r.manifest(m, res.Label), nil
}

// The list is that of the format page, section 14, for an online backup. Every name is made as a file.
var (
	leftOut = []string{
		"postmaster.pid", "postmaster.opts", "backup_label", "backup_label.old", "postgresql.auto.conf.tmp", "recovery.signal", "standby.signal",
		"backup_manifest", "backup_manifest.tmp",
		// Not on the list: what an earlier exclusive backup or a died restore of pgbackrest leaves. The backup brings its own map.
		"tablespace_map", "tablespace_map.old", "backup.manifest",
		"pg_dynshmem/mmap.1", "pg_notify/0000", "pg_replslot/slot/state", "pg_serial/0000", "pg_snapshots/1", "pg_stat_tmp/global.stat", "pg_subtrans/0000",
		"pg_wal/000000010000000000000001", "pg_wal/00000002.history", "pg_wal/archive_status/000000010000000000000001.ready",
		"pgsql_tmp1", "base/pgsql_tmp/pgsql_tmp9.0", "base/16384/pgsql_tmp7.0", "log/pgsql_tmp_log",
		"global/pg_internal.init", "base/5/pg_internal.init", "base/5/pg_internal.init.4711",
		"base/5/t3_16390", "base/5/t3_16390_fsm", "base/5/t3_16390_vm", "base/5/t3_16390.1", "base/5/t3_16390_fsm.2", "global/t5_1",
		"base/5/20000", "base/5/20000.1", "base/5/20000_fsm", "base/5/20000_vm", "base/5/20000_fsm.1",
		// Temporary files of ours and of pgbackrest: an object cannot have such a name, a restore would trip over the second.
		"base/5/16400.pgbackrest.tmp", "global/pg_control.pgbackrest.tmp", "global/pg_control.holdfast.tmp", "pg_xact/.0000.holdfast-tmp-1f",
	}
	takenAlong = []string{
		"PG_VERSION", "postgresql.auto.conf", "global/pg_control", "base/5/PG_VERSION", "base/5/pg_filenode.map",
		"base/5/20000_init", "base/5/20001", "base/5/20001_fsm", "base/5/20002_init", "base/16384/20000", "base/5/20000_main",
		"base/5/t3_x", "t3_16390", "pg_internal.init", "base/5/postmaster.pid", "log/backup_label", "global/recovery.signal",
		"recovery.conf", "recovery.done", "backup_manifest.bak", "backup_label.older",
		"log/postgresql.log", "pg_logical/replorigin_checkpoint", "current_logfiles", "pg_stat/pgstat.stat", "pg_wal/summaries/a.summary",
		"pg_multixact/members/0000", "pg_twophase/1", "odd=name", `quote"and\backslash`, "tab\there", "Ünïcode", "#hash", "[bracket]", "space at end ", "archive_status/x",
	}
)

func TestScanRules(t *testing.T) {
	for version := pg.Version(13); version <= 18; version++ {
		t.Run(version.String(), func(t *testing.T) {
			r := newRig(t, version)
			for _, name := range slices.Concat(leftOut, takenAlong) {
				if _, err := os.Stat(filepath.Join(r.server.dir, name)); err != nil {
					r.server.write(t, name, "content of "+name)
				}
			}
			mem, res, m, err := r.taken(engine.BackupOptions{Compress: repo.None})
			must(t, err)
			want := []string{"backup_label", "base/1/PG_VERSION", "base/16384/16385", "base/16384/16386", "pg_xact/0000"} // of the rig
			want = slices.Concat(want, takenAlong)
			slices.Sort(want)
			var names []string
			for _, f := range m.Files {
				names = append(names, strings.TrimPrefix(f.Name, "pg_data/"))
			}
			for _, name := range names {
				if !slices.Contains(want, name) {
					t.Errorf("%s should be left out", name)
				}
			}
			for _, name := range want {
				if !slices.Contains(names, name) {
					t.Errorf("%s should be in the backup", name)
				}
			}
			for _, dir := range []string{"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans", "pg_wal", "pg_wal/archive_status", "pg_wal/summaries", "pg_tblspc"} {
				if !slices.ContainsFunc(m.Paths, func(p repo.Path) bool { return p.Name == "pg_data/"+dir }) {
					t.Errorf("the directory %s should be in the backup", dir)
				}
			}
			for _, dir := range []string{"pg_replslot/slot", "base/pgsql_tmp"} {
				if slices.ContainsFunc(m.Paths, func(p repo.Path) bool { return p.Name == "pg_data/"+dir }) {
					t.Errorf("the directory %s should be left out", dir)
				}
			}
			got, err := r.restored(mem, res.Label)
			must(t, err)
			for _, name := range takenAlong {
				want, err := os.ReadFile(filepath.Join(r.server.dir, name))
				must(t, err)
				if name != "global/pg_control" && name != "postgresql.auto.conf" && got[name] != string(want) {
					t.Errorf("%s: restored as %.40q", name, got[name])
				}
			}
			if !strings.HasPrefix(got["backup_label"], "START WAL LOCATION") {
				t.Errorf("backup_label is not the server's: %q", got["backup_label"])
			}
		})
	}
}

func TestScanExclude(t *testing.T) {
	r := newRig(t, 15)
	for _, name := range []string{"log/a", "log/sub/b", "extra/c", "one", "one_more", "base/5/log/d"} {
		r.server.write(t, name, "x")
	}
	_, _, m, err := r.taken(engine.BackupOptions{Compress: repo.None, Exclude: []string{"log/", "extra", "one"}})
	must(t, err)
	for name, want := range map[string]bool{"log/a": false, "log/sub/b": false, "extra/c": false, "one": false, "one_more": true, "base/5/log/d": true} {
		if m.HasFile("pg_data/"+name) != want {
			t.Errorf("%s: in the backup is %t", name, !want)
		}
	}
	for name, want := range map[string]bool{"log": true, "log/sub": false, "extra": false} {
		if slices.ContainsFunc(m.Paths, func(p repo.Path) bool { return p.Name == "pg_data/"+name }) != want {
			t.Errorf("directory %s: in the backup is %t", name, !want)
		}
	}
}

func link(t testing.TB, dest, name string) {
	t.Helper()
	mkdir(t, filepath.Dir(name))
	must(t, os.Symlink(dest, name))
}

func TestScanLinks(t *testing.T) {
	r := newRig(t, 15)
	outside := scratch(t)
	data := r.server.dir
	file := r.server.write(t, filepath.Join(outside, "etc/postgresql.conf"), "port = 1")
	r.server.write(t, filepath.Join(outside, "logs/today"), "hello")
	r.server.write(t, filepath.Join(outside, "wal/000000010000000000000020"), "segment")
	r.server.write(t, filepath.Join(outside, "wal/summaries/s"), "summary")
	r.server.write(t, filepath.Join(outside, "space/PG_15_202209061/16384/30000"), "in a tablespace")
	r.server.write(t, filepath.Join(outside, "space/PG_15_202209061/16384/t1_2"), "temporary")
	r.server.write(t, filepath.Join(outside, "space/PG_14_202107181/16384/30000"), "another version's")
	link(t, file, filepath.Join(data, "postgresql.conf"))
	link(t, filepath.Join(outside, "logs"), filepath.Join(data, "log"))
	must(t, os.RemoveAll(filepath.Join(data, "pg_wal")))
	link(t, filepath.Join(outside, "wal"), filepath.Join(data, "pg_wal"))
	link(t, filepath.Join(outside, "space"), filepath.Join(data, "pg_tblspc/24576"))
	must(t, syscall.Mkfifo(filepath.Join(data, "fifo"), 0o600))
	r.server.spaces = []pg.Tablespace{{OID: 24576, Name: "fast", Path: filepath.Join(outside, "space")}}
	mem, res, m, err := r.taken(engine.BackupOptions{Compress: repo.None})
	must(t, err)
	if w := r.warned(); !strings.Contains(w, data+"/fifo") || strings.Count(w, "\n") != 0 {
		t.Errorf("one warning about the fifo was expected: %s", w)
	}
	var names []string
	for _, f := range m.Files {
		if strings.HasPrefix(f.Name, "pg_tblspc") || strings.HasPrefix(f.Name, "pg_data/log") || strings.HasPrefix(f.Name, "pg_data/pg_wal") || path.Base(f.Name) == "postgresql.conf" {
			names = append(names, f.Name)
		}
	}
	want := []string{"pg_data/log/today", "pg_data/pg_wal/summaries/s", "pg_data/postgresql.conf", "pg_tblspc/24576/PG_15_202209061/16384/30000"}
	if !slices.Equal(names, want) {
		t.Errorf("behind links: %v, want %v", names, want)
	}
	targets := map[string]string{}
	for _, tg := range m.Targets {
		targets[tg.Name] = path.Join(tg.Path, tg.File) + " " + tg.TablespaceName
	}
	for name, want := range map[string]string{"pg_data": data + " ", "pg_data/log": outside + "/logs ", "pg_data/pg_wal": outside + "/wal ",
		"pg_data/postgresql.conf": file + " ", "pg_tblspc/24576": outside + "/space fast"} {
		if targets[name] != want {
			t.Errorf("target %s: %q, want %q", name, targets[name], want)
		}
	}
	// Restored without --link-all they are plain files, and the tablespace goes where it is mapped to.
	dir := filepath.Join(scratch(t), "data")
	plan, err := r.stanza(mem).PlanRestore(t.Context(), engine.RestoreOptions{Set: res.Label, DataDir: dir, Type: engine.TargetNone, TablespaceMap: map[string]string{"fast": dir + "-fast"}})
	must(t, err)
	if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0], "3 link(s)") {
		t.Errorf("warnings of the plan: %v", plan.Warnings)
	}
	_, err = plan.Run(t.Context())
	must(t, err)
	got := tree(t, dir)
	for name, want := range map[string]string{"log": "dir", "log/today": "hello", "postgresql.conf": "port = 1", "pg_wal/summaries": "dir", "pg_tblspc/24576": "-> " + dir + "-fast"} {
		if got[name] != want {
			t.Errorf("restored %s: %q", name, got[name])
		}
	}
	if s := tree(t, dir+"-fast"); s["PG_15_202209061/16384/30000"] != "in a tablespace" {
		t.Errorf("restored tablespace: %v", s)
	}
}

func TestScanRefuses(t *testing.T) {
	outside := scratch(t)
	for name, c := range map[string]struct {
		lay func(r *rig, data string)
		say string
	}{
		"link to a link": {func(r *rig, data string) {
			r.server.write(t, outside+"/a/x", "")
			link(t, outside+"/a", outside+"/b")
			link(t, outside+"/b", data+"/log")
		}, "link to a link"},
		"into the data directory":  {func(r *rig, data string) { link(t, data+"/base", data+"/log") }, "overlaps"},
		"above the data directory": {func(r *rig, data string) { link(t, filepath.Dir(data), data+"/log") }, "contains the data directory"},
		"nowhere":                  {func(r *rig, data string) { link(t, outside+"/missing", data+"/log") }, "follow the link"},
		"a device":                 {func(r *rig, data string) { link(t, "/dev/null", data+"/log") }, "neither a file nor a directory"},
		"one place by two links": {func(r *rig, data string) {
			mkdir(t, outside+"/c/d")
			link(t, outside+"/c", data+"/log")
			link(t, outside+"/c/d", data+"/xlog")
		}, "overlaps"},
		"a directory in pg_tblspc":   {func(r *rig, data string) { mkdir(t, data+"/pg_tblspc/24576") }, "only symbolic links"},
		"a strange name in it":       {func(r *rig, data string) { mkdir(t, outside+"/e"); link(t, outside+"/e", data+"/pg_tblspc/fast") }, "not a tablespace number"},
		"a tablespace unknown there": {func(r *rig, data string) { mkdir(t, outside+"/f"); link(t, outside+"/f", data+"/pg_tblspc/24577") }, "run the backup again"},
		"a line break in a name":     {func(r *rig, data string) { r.server.write(t, "base/5/a\nb", "x") }, "line break"},
		"a directory nobody reads": {func(r *rig, data string) {
			must(t, os.WriteFile(data+"/pg_xact/0001", nil, 0o600))
			link(t, data, data+"/pg_xact/loop")
		}, "overlaps"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			r.server.spaces = []pg.Tablespace{{OID: 1, Name: "other", Path: "/elsewhere"}}
			c.lay(r, r.server.dir)
			mem, _, _, err := r.taken(engine.BackupOptions{Compress: repo.None})
			if err == nil || !strings.Contains(err.Error(), c.say) || !strings.Contains(err.Error(), r.server.dir) {
				t.Errorf("want %q and the path in: %v", c.say, err)
			}
			if n := len(r.labels(mem)); n != 0 || r.server.waitIdle() != nil {
				t.Errorf("%d backups; the server is in backup mode in %d sessions", n, r.server.inBackup())
			}
		})
	}
}

// hooked calls at before an object of that base name is made.
type hooked struct {
	storage.Storage
	name string
	at   func()
}

func (h *hooked) Create(ctx context.Context, name string, o storage.CreateOptions) (storage.Writer, error) {
	if path.Base(name) == h.name && h.at != nil {
		h.at()
		h.at = nil
	}
	return h.Storage.Create(ctx, name, o)
}

// hookedLater is hooked, once the object was made so often.
type hookedLater struct {
	hooked
	after int
}

func (h *hookedLater) Create(ctx context.Context, name string, o storage.CreateOptions) (storage.Writer, error) {
	if path.Base(name) == h.name && h.after > 0 {
		h.after--
		return h.Storage.Create(ctx, name, o)
	}
	return h.hooked.Create(ctx, name, o)
}

// TestFilesChangeDuringCopy: between the walk and the copy, files vanish, grow, shrink and become empty.
func TestFilesChangeDuringCopy(t *testing.T) {
	r := newRig(t, 15)
	for _, name := range []string{"vanishes", "grows", "shrinks", "empties", "stays"} {
		r.server.write(t, "base/5/"+name, strings.Repeat("0123456789", 1000))
	}
	r.server.write(t, "base/7/whole_directory", "vanishes too")
	change := func() {
		dir := filepath.Join(r.server.dir, "base/5")
		must(t, os.Remove(filepath.Join(dir, "vanishes")))
		must(t, os.RemoveAll(filepath.Join(r.server.dir, "base/7")))
		r.server.write(t, "base/5/grows", strings.Repeat("0123456789", 2000))
		must(t, os.Truncate(filepath.Join(dir, "shrinks"), 4321))
		must(t, os.Truncate(filepath.Join(dir, "empties"), 0))
	}
	for _, c := range []repo.CompressType{repo.None, repo.ZST} {
		m := storage.NewMem(nil)
		must(t, r.create(t.Context(), m))
		for _, name := range []string{"vanishes", "grows", "shrinks", "empties"} {
			r.server.write(t, "base/5/"+name, strings.Repeat("0123456789", 1000))
		}
		r.server.write(t, "base/7/whole_directory", "vanishes too")
		res, err := r.backupWith(t.Context(), &hooked{m, "backup.manifest.copy", change}, m, engine.BackupOptions{Compress: c})
		must(t, err)
		must(t, r.verified(m))
		if res.Vanished != 2 {
			t.Errorf("%d files vanished, not 2", res.Vanished)
		}
		man := r.manifest(m, res.Label)
		got, err := r.restored(m, res.Label)
		must(t, err)
		for name, size := range map[string]int{"vanishes": -1, "grows": 10000, "shrinks": 4321, "empties": 0, "stays": 10000} {
			f := man.File("pg_data/base/5/" + name)
			content, there := got["base/5/"+name]
			if size < 0 {
				if f != nil || there {
					t.Errorf("%s is in the backup", name)
				}
				continue
			}
			if f == nil || f.Size != int64(size) || content != strings.Repeat("0123456789", 1000)[:size] {
				t.Errorf("%s: %+v, restored %d bytes", name, f, len(content))
			}
			if f != nil && (f.SizeOrig >= 0) != (size != 10000) {
				t.Errorf("%s: original size %d", name, f.SizeOrig)
			}
		}
		if man.HasFile("pg_data/base/7/whole_directory") {
			t.Error("a file of a dropped database is in the backup")
		}
	}
	// The one file that may not vanish.
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	_, err := r.backupWith(t.Context(), &hooked{m, "backup.manifest.copy", func() { must(t, os.Remove(filepath.Join(r.server.dir, "global/pg_control"))) }}, m, engine.BackupOptions{Compress: repo.None})
	if err == nil || !strings.Contains(err.Error(), "pg_control") {
		t.Errorf("without pg_control: %v", err)
	}
	must(t, r.server.checkpoint())
}

// TestDatabaseNames: a name that the manifest cannot hold is left out of the list, which only serves to select databases
// at a restore; all others are in it.
func TestDatabaseNames(t *testing.T) {
	r := newRig(t, 15)
	names := []string{"\nfirst", "a=b", `a={"db-id":1}`, "line\nbreak", `q"uote\`, "Ünïcode", "[db]", "template0"}
	r.server.databases = nil
	for i, n := range names {
		r.server.databases = append(r.server.databases, pg.Database{Name: n, OID: uint32(20000 + i), LastSystemID: 4})
	}
	mem, res, m, err := r.taken(engine.BackupOptions{Compress: repo.GZ})
	must(t, err)
	var got []string
	for _, d := range m.Databases {
		got = append(got, fmt.Sprintf("%d %s", d.OID, d.Name))
	}
	slices.Sort(got)
	if want := []string{"20001 a=b", `20002 a={"db-id":1}`, `20004 q"uote\`, "20005 Ünïcode", "20006 [db]", "20007 template0"}; !slices.Equal(got, want) {
		t.Errorf("databases %q, want %q", got, want)
	}
	if w := r.warned(); !strings.Contains(w, `"line\nbreak"`) || !strings.Contains(w, `"\nfirst"`) || strings.Contains(w, "template0") {
		t.Errorf("warnings: %s", w)
	}
	if _, err := r.restored(mem, res.Label); err != nil {
		t.Error(err)
	}
}

// TestPageErrors: bad pages are named and do not keep the backup from being made.
func TestPageErrors(t *testing.T) {
	r := newRig(t, 15)
	r.server.checksums = 1
	must(t, r.server.checkpoint())
	good, err := os.ReadFile(filepath.Join("..", "pg", "testdata", "page-0"))
	must(t, err)
	bad := []byte(string(good))
	bad[5000] ^= 1
	r.server.write(t, "base/16384/16385", string(good)+strings.Repeat("\x00", 8192))
	r.server.write(t, "base/16384/40000", string(bad))
	r.server.write(t, "base/16384/40001", string(good)[:5000])
	_, res, m, err := r.taken(engine.BackupOptions{Compress: repo.GZ})
	must(t, err)
	if want := []string{"pg_data/base/16384/40000", "pg_data/base/16384/40001"}; !slices.Equal(res.PageErrors, want) {
		t.Errorf("page errors %v, want %v", res.PageErrors, want)
	}
	if f := m.File("pg_data/base/16384/16385"); !f.PageChecked || !f.PageOK {
		t.Errorf("good page and new page: %+v", f)
	}
	if f := m.File("pg_data/base/16384/40000"); !f.PageChecked || f.PageOK || len(f.PageErrors) != 1 || f.PageErrors[0].First != 0 {
		t.Errorf("bad page: %+v", f)
	}
	if w := r.warned(); !strings.Contains(w, "40000") || !strings.Contains(w, "40001") || res.Line.Error == nil || !*res.Line.Error {
		t.Errorf("warnings %q, line %+v", w, res.Line)
	}
	off := false
	_, res, m, err = r.taken(engine.BackupOptions{Compress: repo.GZ, ChecksumPage: &off})
	must(t, err)
	if f := m.File("pg_data/base/16384/40000"); f.PageChecked || len(res.PageErrors) != 0 {
		t.Errorf("with page checks off: %+v", f)
	}
}

// TestPagesOfLaterSegments: pages count from the begin of the relation, also in its second file.
func TestPagesOfLaterSegments(t *testing.T) {
	r := newRig(t, 15)
	r.server.checksums = 1
	must(t, r.server.checkpoint())
	first, err := os.ReadFile(filepath.Join("..", "pg", "testdata", "page-0"))
	must(t, err)
	second := slices.Clone(first)
	binary.LittleEndian.PutUint16(second[8:], pg.PageChecksum(second, 131072))
	r.server.write(t, "base/16384/16385", string(first))
	r.server.write(t, "base/16384/16385.1", string(second))
	r.server.write(t, "base/16384/40000.1", string(first))
	_, res, m, err := r.taken(engine.BackupOptions{Compress: repo.None})
	must(t, err)
	if want := []string{"pg_data/base/16384/40000.1"}; !slices.Equal(res.PageErrors, want) {
		t.Errorf("page errors %v, want %v", res.PageErrors, want)
	}
	if f := m.File("pg_data/base/16384/40000.1"); len(f.PageErrors) != 1 || f.PageErrors[0].First != 131072 {
		t.Errorf("bad pages %v", f.PageErrors)
	}
}

// TestPageWrittenMeanwhile: a page that is read while the server writes it is no damage: on disk it is another one by now.
func TestPageWrittenMeanwhile(t *testing.T) {
	r := newRig(t, 15)
	r.server.checksums = 1
	must(t, r.server.checkpoint())
	good, err := os.ReadFile(filepath.Join("..", "pg", "testdata", "page-0"))
	must(t, err)
	torn := append(slices.Clone(good[:4096]), make([]byte, 4096)...)
	r.server.write(t, "base/16384/16385", string(good))
	r.server.write(t, "base/16384/40000", string(torn))
	r.server.write(t, "base/16384/40001", string(torn))
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	written := func() { r.server.write(t, "base/16384/40000", string(good)) } // its bytes have been read by now
	res, err := r.backupWith(t.Context(), &hooked{m, "40000", written}, m, engine.BackupOptions{Compress: repo.None})
	must(t, err)
	if want := []string{"pg_data/base/16384/40001"}; !slices.Equal(res.PageErrors, want) {
		t.Errorf("page errors %v, want %v", res.PageErrors, want)
	}
}
