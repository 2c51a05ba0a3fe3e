package tarball

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ordinaryUser is an account with a second group. Root runs the restore as it; an ordinary user runs it himself, and has to be
// in a second group for the half of the test that is about it.
func ordinaryUser(t *testing.T) (uid, gid, second int) {
	t.Helper()
	if os.Geteuid() != 0 {
		groups, err := os.Getgroups()
		must(t, err)
		second := os.Getegid()
		for _, g := range groups {
			if g != second {
				return os.Geteuid(), os.Getegid(), g
			}
		}
		return os.Geteuid(), second, second
	}
	u, err := user.Lookup("postgres")
	must(t, err)
	g, err := user.LookupGroup("ssl-cert")
	must(t, err)
	for _, n := range []struct {
		text string
		to   *int
	}{{u.Uid, &uid}, {u.Gid, &gid}, {g.Gid, &second}} {
		*n.to, err = strconv.Atoi(n.text)
		must(t, err)
	}
	return uid, gid, second
}

// TestOrdinaryUserKeepsWhatHeMay: a restore by somebody who is not root keeps groups that he is a member of, and set-id and
// sticky bits wherever owner and group are right; the rest is named.
func TestOrdinaryUserKeepsWhatHeMay(t *testing.T) {
	uid, gid, second := ordinaryUser(t)
	src := t.TempDir()
	for _, o := range []struct {
		name     string
		dir      bool
		uid, gid int
		mode     uint32
	}{
		{"", true, uid, second, 0o2750},
		{"setuid", false, uid, gid, 0o4755},
		{"setgid", false, uid, second, 0o2755},
		{"both", false, uid, second, 0o6711},
		{"shared", true, uid, second, 0o3775},
		{"shared/inside", false, uid, gid, 0o1640},
		{"foreign", false, 0, second, 0o6755},
		{"theirs", false, uid, 0, 0o6750},
		{"all theirs", false, 0, 0, 0o6755},
	} {
		if os.Geteuid() != 0 && (o.uid == 0 || o.gid == 0) {
			continue // only root can make it
		}
		path := filepath.Join(src, o.name)
		if o.dir && o.name != "" {
			must(t, os.Mkdir(path, 0o700))
		} else if !o.dir {
			must(t, os.WriteFile(path, []byte(o.name), 0o600))
		}
		must(t, os.Lchown(path, o.uid, o.gid))
		must(t, unix.Chmod(path, o.mode))
	}
	must(t, os.Symlink("setuid", filepath.Join(src, "link")))
	must(t, os.Lchown(filepath.Join(src, "link"), uid, second))
	if os.Geteuid() == 0 {
		capable := filepath.Join(src, "capable")
		must(t, os.WriteFile(capable, nil, 0o755))
		must(t, os.Lchown(capable, uid, gid))
		must(t, unix.Lsetxattr(capable, "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	}
	ball, _ := capture(t, CaptureOptions{Now: aged()}, src, nil)
	dst, res := restoreAs(t, uid, gid, second, ball)

	want := map[string]string{"": "2750 U:S", "setuid": "4755 U:G", "setgid": "2755 U:S", "both": "6711 U:S", "shared": "3775 U:S",
		"shared/inside": "1640 U:G", "link": "777 U:S"}
	var unkept []string
	if os.Geteuid() == 0 {
		want["foreign"], want["theirs"], want["all theirs"], want["capable"] = "2755 U:S", "4750 U:G", "755 U:G", "755 U:G"
		unkept = []string{
			"t/all theirs: owner root, group root, mode 6755 (now 755)",
			"t/capable: extended attribute security.capability",
			"t/foreign: owner root, mode 6755 (now 2755)",
			"t/theirs: group root, mode 6750 (now 4750)",
		}
	}
	names := strings.NewReplacer("U", strconv.Itoa(uid), "G", strconv.Itoa(gid), "S", strconv.Itoa(second))
	for name, text := range want {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(dst, name), &st))
		got := strconv.FormatUint(uint64(st.Mode&0o7777), 8) + " " + strconv.Itoa(int(st.Uid)) + ":" + strconv.Itoa(int(st.Gid))
		if got != names.Replace(text) {
			t.Errorf("%q is %s, want %s", name, got, names.Replace(text))
		}
	}
	var got []string
	for _, is := range res.Unkept {
		got = append(got, is.Path+": "+is.Reason)
	}
	if !slices.Equal(got, unkept) || res.UnkeptCount != int64(len(unkept)) {
		t.Errorf("named as not kept (%d):\n%s\nwant:\n%s", res.UnkeptCount, strings.Join(got, "\n"), strings.Join(unkept, "\n"))
	}
}

const ordinaryEnv = "TARBALL_TEST_RESTORE"

// restoreAs restores in a process of the user, who is this one unless root runs the test.
func restoreAs(t *testing.T, uid, gid, second int, ball []byte) (string, *ExtractResult) {
	t.Helper()
	dir, err := os.MkdirTemp("", "ordinary-") // a t.TempDir lets no other user through
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	must(t, os.Chown(dir, uid, gid))
	must(t, os.WriteFile(filepath.Join(dir, "ball"), ball, 0o644))
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperOrdinary$") // its own path is closed to others
	cmd.Dir, cmd.Env = dir, append(os.Environ(), ordinaryEnv+"="+dir)
	if os.Geteuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{uint32(second)}}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("restore as %d: %v\n%s", uid, err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "result"))
	must(t, err)
	var res ExtractResult
	must(t, json.Unmarshal(text, &res))
	return filepath.Join(dir, "new"), &res
}

// TestHelperOrdinary is the other process of restoreAs.
func TestHelperOrdinary(t *testing.T) {
	dir := os.Getenv(ordinaryEnv)
	if dir == "" {
		return // not asked for: there is nothing to test
	}
	ball, err := os.ReadFile(filepath.Join(dir, "ball"))
	must(t, err)
	res, index, err := restoreSynced(t.Context(), bytes.NewReader(ball), ExtractOptions{Dest: map[string]string{"t": filepath.Join(dir, "new")}})
	must(t, err)
	report, err := CheckTree(t.Context(), bytes.NewReader(index), CheckOptions{Dest: map[string]string{"t": filepath.Join(dir, "new")}})
	must(t, err)
	if !report.Equal() {
		t.Errorf("%+v", report)
	}
	text, err := json.Marshal(res)
	must(t, errors.Join(err, os.WriteFile(filepath.Join(dir, "result"), text, 0o600)))
}
