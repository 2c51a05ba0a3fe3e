package instance

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestAccounts: a chroot's owners have the names of the chroot, others those of the host.
func TestAccounts(t *testing.T) {
	dir := t.TempDir()
	i := &Instance{dir: dir}
	if a, err := i.Accounts(); a != nil || err != nil {
		t.Errorf("no chroot: %v %v", a, err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "bin"), 0o755), os.MkdirAll(filepath.Join(dir, "etc"), 0o755), os.Symlink("busybox", filepath.Join(dir, "bin/sh"))); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0::/root:/bin/sh\n# comment:x:7:7\nalation:x:1234:1235::/home:/bin/sh\nalias:x:1234:1::/:/bin/sh\n+::::::\nbad:x:-3:1::/:\n", 0o644)
	a, err := i.Accounts()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := a.UserID("alation")
	alias, aliasOK := a.UserID("alias")
	if a.UserName(1234) != "alation" || id != 1234 || !ok || alias != 1234 || !aliasOK || a.UserName(7) != "" || a.GroupName(0) != "" {
		t.Errorf("%+v", a)
	}
	for _, name := range []string{"bad", "nobody", "+", ""} {
		if id, ok := a.UserID(name); ok {
			t.Errorf("%q is %d", name, id)
		}
	}
	write(t, filepath.Join(dir, "etc/group"), "staff:x:50:alation\n", 0o644)
	if a, err = i.Accounts(); err != nil || a.GroupName(50) != "staff" {
		t.Errorf("%v %v", a, err)
	}
	if id, ok := a.GroupID("staff"); id != 50 || !ok {
		t.Errorf("group staff: %d %t", id, ok)
	}
}
