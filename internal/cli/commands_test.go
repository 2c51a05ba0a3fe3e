package cli

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/catalog"
	"holdfast/internal/pg/pgtest"
)

// TestTreeRefuses: bad use is code 2, says what is wrong and where to look, and prints no result.
func TestTreeRefuses(t *testing.T) {
	for _, c := range []struct{ line, want string }{
		{"holdfast nosuch", `holdfast has no command "nosuch"; see: holdfast --help`},
		{"holdfast restor", "did you mean: holdfast restore"},
		{"holdfast sets", ""},
		{"holdfast sets lst", "did you mean: holdfast sets list"},
		{"holdfast pg bakcup", "did you mean: holdfast pg backup"},
		{"holdfast sets show", "holdfast sets show needs a set's ID"},
		{"holdfast sets show a b", "holdfast sets show needs a set's ID"},
		{"holdfast backup now", `"now" is not understood; see: holdfast backup --help`},
		{"holdfast backup --dryrun", "unknown flag: --dryrun; see: holdfast backup --help"},
		{"holdfast init /one", "needs DATA_DISK and BACKUP_DISK"},
		{"holdfast restore --set 1 --file x", "--set and --file exclude each other"},
		{"holdfast restore --eb-file x", "--eb-file goes with --file"},
		{"holdfast restore --give-back --dry-run", "takes no other option"},
		{"holdfast restore --give-back --until x", "takes no other option"},
		{"holdfast pg info", "--repo1-path is missing"},
		{"holdfast pg backup --repo1-path /r", "--stanza is missing"},
		{"holdfast pg verify --stanza s", "--repo1-path is missing"},
		{"holdfast pg stanza-create --stanza s --repo1-path /r", "--pg1-path is missing"},
		{"holdfast pg backup --process-max many", "see: holdfast pg backup --help"},
		{"alation_action", "no action named"},
		{"alation_action backup", `there is no action "backup"; there are backup_all`},
		{"alation_action backup_all restore", `"restore" is not understood`},
		{"alation_action --fast", `"--fast" is not understood`},
		{"alation_action backup_all --root", `"--root" is not understood`},
	} {
		got := bare(t, "", strings.Fields(c.line)...)
		if c.want == "" { // a group alone shows what there is
			got.has(t, exitOK, "Available Commands")
			continue
		}
		got.has(t, exitUsage, c.want)
		if got.out != "" || strings.Count(got.errs, "\n") != 1 {
			t.Errorf("%s: want one line on standard error:\n%s%s", c.line, got.out, got.errs)
		}
	}
}

// TestHelpWorksAnywhere: help and version need no instance, under every name.
func TestHelpWorksAnywhere(t *testing.T) {
	for line, want := range map[string]string{
		"holdfast":                             "Available Commands",
		"holdfast --help":                      "126 archive-get could not look",
		"holdfast version":                     "Holdfast " + Version,
		"holdfast help pg backup":              "--compress-type",
		"holdfast conf --help":                 "usage: alation_conf KEY",
		"alation_conf --help":                  "usage: alation_conf KEY",
		"alation_action --help":                "destructive_restore_all",
		"alation_action backup_all --help":     "130 interrupted",
		"holdfast backup_all --help":           "alation_action backup_all",
		"holdfast destructive_restore_all -h":  "--give-back",
		"holdfast enable_backupv2 --help":      "WAL archiving",
		"/usr/local/bin/alation_action --help": "exit codes",
	} {
		bare(t, "", strings.Fields(line)...).has(t, exitOK, want)
	}
}

// TestNoInstance: what a command says where there is none.
func TestNoInstance(t *testing.T) {
	dir := t.TempDir()
	for _, line := range []string{"holdfast status", "holdfast backup --dry-run", "holdfast sets list", "alation_conf snapshot.enabled", "alation_action backup_all"} {
		words := strings.Fields(line)
		words = slices.Insert(words, 1, "--root", dir)
		bare(t, "", words...).has(t, exitRefused, dir, "--root", "holdfast init DATA_DISK BACKUP_DISK")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

var evening = time.Date(2026, 11, 23, 18, 0, 0, 0, time.UTC)

func someSet(id string) *catalog.Set {
	return &catalog.Set{ID: id, Run: "1-00000001", State: catalog.Complete, Mode: catalog.Included, Began: evening, Ended: evening.Add(90 * time.Second), Host: "h", Root: "/", AppVersion: "1",
		Program: "Holdfast 0", Pieces: []catalog.Piece{{Kind: catalog.Application, Path: "/nowhere/" + id + "_alation_backup.tar.gz", Size: 2048}},
		Recovery: &catalog.Recovery{Name: "holdfast_x", Skew: catalog.Skew{Interval: catalog.Interval{From: evening, To: evening.Add(time.Second)}, Milliseconds: 1000}}}
}

// TestSets drives the catalogue's commands on sets whose tarballs are not there.
func TestSets(t *testing.T) {
	r := newRig(t)
	r.run("holdfast", "status").has(t, exitOK, r.root, "no backup set yet")
	if got := r.run("holdfast", "sets", "list", "--json"); got.out != "[]\n" {
		t.Errorf("no sets as JSON: %q", got.out)
	}
	const first, second = "202611231800_10-0-0-1", "202611241800_10-0-0-1"
	r.put(someSet(second), someSet(first))
	r.run("holdfast", "sets", "list").has(t, exitOK, first+"  complete  included    2KB   1m30s  1000 ms")
	r.run("holdfast", "status").has(t, exitOK, "newest set "+second+": complete")
	r.run("holdfast", "sets", "show", first).has(t, exitOK, "set "+first+": complete", "recovery point holdfast_x", "took 1m30s")
	for _, id := range []string{"202611231801_10-0-0-1", "latest", "../x"} {
		for _, verb := range []string{"show", "inspect", "verify", "delete"} {
			r.run("holdfast", "sets", verb, id).has(t, exitUsage, id, "see: holdfast sets list")
		}
	}
	// A damaged entry is named and the rest is listed.
	if err := os.WriteFile(filepath.Join(r.in.CatalogDir(), "202611230000_1.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.run("holdfast", "sets", "list").has(t, exitWarnings, first, second, "warning: catalogue: 202611230000_1.json: ")
	// Deleting asks, and takes YES only.
	for _, answer := range []string{"", "yes\n", "\n"} {
		r.typed(answer, "holdfast", "sets", "delete", first).has(t, exitRefused, "deleting set "+first, "nothing was changed")
	}
	r.run("holdfast", "sets", "delete", first, "--dry-run").has(t, exitOK, "deleting set "+first)
	r.run("holdfast", "sets", "show", first).has(t, exitOK)
	got := r.typed("no\n", "holdfast", "sets", "delete", "--json", first) // the document alone on one stream, what is asked about on the other
	if got.code != exitRefused || !strings.Contains(got.errs, "deleting set "+first) || !strings.HasPrefix(got.out, `{"code":5,`) {
		t.Errorf("code %d\n%s\n%s", got.code, got.out, got.errs)
	}
	r.typed("YES\n", "holdfast", "sets", "delete", first).has(t, exitOK, "set "+first+" is deleted")
	r.run("holdfast", "sets", "show", first).has(t, exitUsage, "no such backup set")
	r.run("holdfast", "restore", "--set", first, "--yes").has(t, exitUsage, "no such backup set")
}

// shape is a JSON document with every value replaced by the name of its kind.
func shape(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, x := range v {
			out[k] = shape(x)
		}
		return out
	case []any:
		if len(v) == 0 {
			return []any{}
		}
		return []any{shape(v[0])}
	case nil:
		return "null"
	}
	return reflect.TypeOf(v).String()
}

// TestJSONShapes holds what programs read: names and kinds. A member may be added here; one that goes is a break.
func TestJSONShapes(t *testing.T) {
	r := newRig(t)
	const id = "202611231800_10-0-0-1"
	there := someSet(id)
	there.Pieces[0].Path = filepath.Join(r.in.BackupDir(), "backup/x.tar.gz")
	if err := os.WriteFile(there.Pieces[0].Path, []byte("no tarball"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.put(there, someSet("202611241800_10-0-0-1"))
	set := `{"format":1,"id":"","run":"","state":"","mode":"","began":"","ended":"","host":"","root":"","app_version":"","program":"",
		"pieces":[{"kind":"","path":"","size":1}],"recovery":{"name":"","postgres":null,"skew":{"from":"","to":"","ms":1}}}`
	entry := `{"name":"","type":"","value":"","default":"","set":true,"secret":true}`
	for _, c := range []struct {
		line string
		code int
		want string
	}{
		{"holdfast sets list --json", 0, "[" + set + "]"},
		{"holdfast --json sets show " + id, 0, set},
		{"holdfast sets show 202601010000_1 --json", 2, `{"code":2,"error":""}`},
		{"holdfast sets nosuch --json", 2, `{"code":2,"error":""}`},
		{"holdfast sets delete --json --dry-run " + id, 0, `{"set":` + set + `,"files":[""],"backups":null,"bytes":1,"last":true}`},
		{"holdfast sets verify --json " + id, 6, `{"at":"","check":"","ok":false,"findings":[""]}`},
		{"alation_conf --json snapshot.enabled", 0, entry},
		{"alation_conf --json --list", 0, "[" + entry + "]"},
		{"alation_action backup_all --json --nonsense", 2, `{"code":2,"error":""}`},
	} {
		got := r.run(strings.Fields(c.line)...)
		var have, want any
		if err := json.Unmarshal([]byte(got.out), &have); err != nil || got.code != c.code {
			t.Errorf("%s: code %d, want %d; %v\n%s%s", c.line, got.code, c.code, err, got.out, got.errs)
			continue
		}
		if err := json.Unmarshal([]byte(c.want), &want); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(shape(have), shape(want)) {
			t.Errorf("%s:\nwant %v\n got %v", c.line, shape(want), shape(have))
		}
	}
}

// TestRunLog: a log that cannot be written is said once and stops nothing; a link in its place is not followed.
func TestRunLog(t *testing.T) {
	dir := t.TempDir()
	env, _, errs := bareEnv(strings.NewReader(""))
	l := newRunLog(env, filepath.Join(dir, "new/logs"), nil)
	l.line("first")
	l.line("second")
	text, err := os.ReadFile(filepath.Join(dir, "new/logs/alation_backup.log"))
	if err != nil || string(text) != "2026-11-24T03:00:00.000Z 41-0badcafe first\n2026-11-24T03:00:00.000Z 41-0badcafe second\n" || errs.Len() > 0 {
		t.Errorf("%v %q %s", err, text, errs)
	}
	victim := filepath.Join(dir, "victim")
	if err := os.Symlink(victim, filepath.Join(dir, "alation_backup.log")); err != nil {
		t.Fatal(err)
	}
	l = newRunLog(env, dir, nil)
	l.line("third")
	l.line("fourth")
	if n := strings.Count(errs.String(), "can't be written"); n != 1 {
		t.Errorf("said %d times: %s", n, errs)
	}
	if _, err := os.Lstat(victim); !os.IsNotExist(err) {
		t.Errorf("the link was followed: %v", err)
	}
}

// TestStanzaCreateAsksTheServer: with the flags that name a server, the one that answers has to run on the directory.
func TestStanzaCreateAsksTheServer(t *testing.T) {
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	c := pgtest.New(t, pgtest.Options{})
	conn := c.ConnOptions()
	dir := t.TempDir()
	create := func(more ...string) said {
		return bare(t, "", slices.Concat([]string{"holdfast", "pg", "stanza-create", "--stanza=main", "--repo1-path=" + filepath.Join(dir, "repo"), "--pg1-path=" + c.DataDir(),
			"--lock-path=" + filepath.Join(dir, "lock"), "--pg1-socket-path=" + conn.Host, "--pg1-user=" + conn.User}, more)...)
	}
	port := func(n int) string { return "--pg1-port=" + strconv.Itoa(n) }
	create(port(conn.Port+1)).has(t, exitFailed, "connect to PostgreSQL")
	other := pgtest.New(t, pgtest.Options{})
	create(port(other.Port()), "--pg1-socket-path="+other.SocketDir()).has(t, exitUsage, "name the server that runs on that directory", other.DataDir())
	if _, err := os.Stat(filepath.Join(dir, "repo/archive")); !os.IsNotExist(err) {
		t.Errorf("a refused stanza-create left something: %v", err)
	}
	create(port(conn.Port)).has(t, exitOK, "stanza main: created")
	create(port(conn.Port)).has(t, exitOK, "stanza main: exists and is valid")
	found := false
	err := filepath.WalkDir(filepath.Join(dir, "repo"), func(p string, _ fs.DirEntry, err error) error {
		found = found || filepath.Base(p) == "archive.info"
		return err
	})
	if err != nil || !found {
		t.Errorf("archive.info: %v, %v", found, err)
	}
}
