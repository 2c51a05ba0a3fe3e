package whole

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"holdfast/test/world"
)

// newHost is an application on an ordinary host: the root is "/", its directories are the operator's choice, nobody is root.
func newHost(t *testing.T) *world.World {
	t.Helper()
	if testing.Short() {
		t.Skip("needs PostgreSQL; run make test")
	}
	return fill(t, startWorld(t, world.Options{Brokers: newBus(t).ListenAddrs(), Host: true}))
}

// TestOrdinaryHost: without a chroot and without root everything works, from init to destructive_restore_all, in both modes.
func TestOrdinaryHost(t *testing.T) {
	w := newHost(t)
	var status struct {
		Root      string `json:"root"`
		HostPaths bool   `json:"host_paths"`
		DataDisk  struct{ Path string }
	}
	must(t, json.Unmarshal([]byte(ok(t, w, "holdfast", "status", "--json")), &status))
	if status.Root != "/" || !status.HostPaths {
		t.Errorf("status says %+v", status)
	}
	if got := hostShell(t, w, "id -u; pwd; alation_conf files.paths"); !strings.Contains(got, "files.paths = "+w.Files) || strings.HasPrefix(got, "0\n") {
		t.Errorf("the shell says %s", got)
	}
	for _, apart := range []string{"False", "True"} {
		hostShell(t, w, "alation_conf alation.backup_v2.pgbackup_compression -s "+apart, "alation_action enable_backupv2")
		want := prove(t, w)
		hostShell(t, w, "alation_action backup_all")
		all := sets(t, w)
		s := all[len(all)-1]
		ok(t, w, "holdfast", "sets", "verify", s.ID)
		must(t, w.Lose(t.Context()), w.DeleteTopics(t.Context(), "events"))
		for _, p := range s.Pieces {
			if key := map[string]string{"application": "alation.backup.restore_file", "eventbus": "alation.backup.eb_restore_file"}[p.Kind]; key != "" {
				hostShell(t, w, "alation_conf "+key+" -s "+p.Path)
			}
		}
		hostShell(t, w, "echo YES | alation_action destructive_restore_all")
		same(t, "PostgreSQL inside: "+apart, want, prove(t, w))
	}
	nothingOfRoot(t, w)
	foreignOwners(t, w)
}

// hostShell types lines into the Alation shell, entered by the instance's init script as its user.
func hostShell(t *testing.T, w *world.World, lines ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(w.Root, "etc/init.d/alation"), "shell")
	cmd.Env = os.Environ()
	w.AsOwner(cmd)
	out, err := world.Run(cmd, "set -e\n"+strings.Join(lines, "\n")+"\nexit\n")
	if err != nil || out.Code != 0 {
		t.Fatalf("code %d, %v\n%s%s", out.Code, err, out.Stdout, out.Stderr)
	}
	return out.Stdout
}

// nothingOfRoot: whatever the program made belongs to the user that ran it.
func nothingOfRoot(t *testing.T, w *world.World) {
	t.Helper()
	uid := os.Geteuid()
	if uid == 0 {
		uid, _, _ = ownerOf(t, w.Data)
	}
	must(t, filepath.WalkDir(w.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && int(info.Sys().(*syscall.Stat_t).Uid) != uid {
			t.Errorf("%s belongs to %d, not to %d", path, info.Sys().(*syscall.Stat_t).Uid, uid)
		}
		return err
	}))
}

// foreignOwners: what only root could give back is named, and everything else comes back.
func foreignOwners(t *testing.T, w *world.World) {
	t.Helper()
	if os.Geteuid() != 0 {
		return // only root can make such a file
	}
	file := filepath.Join(w.Files, "foreign")
	must(t, os.WriteFile(file, []byte("of another user"), 0o644), os.Lchown(file, 31001, 31002), os.Chmod(file, 0o755|fs.ModeSetuid))
	want := prove(t, w)
	s := backup(t, w)
	out, err := w.Holdfast(t.Context(), "restore", "--set", s.ID, "--yes", "--json")
	var res struct {
		Unkept []struct{ Path, Reason string }
	}
	if err := errors.Join(err, json.Unmarshal([]byte(out.Stdout), &res)); err != nil || out.Code != 3 {
		t.Fatalf("code %d, %v\n%s%s", out.Code, err, out.Stdout, out.Stderr)
	}
	if len(res.Unkept) != 1 || !strings.HasSuffix(res.Unkept[0].Path, "/foreign") || res.Unkept[0].Reason != "owner 31001, group 31002, mode 4755 (now 755)" {
		t.Errorf("named are %+v", res.Unkept)
	}
	if diff := want.Diff(prove(t, w)); len(diff) != 1 || !strings.Contains(diff[0], "foreign") {
		t.Errorf("not equal:\n%s", strings.Join(diff, "\n"))
	}
}
