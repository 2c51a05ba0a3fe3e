package pg_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"holdfast/internal/pg"
	"holdfast/internal/pg/pgtest"
)

// TestPeer: root gets into a cluster that lets in only who is called as the role is, as Debian sets clusters up; and one that
// maps root to the role lets it in, too.
func TestPeer(t *testing.T) {
	c := pgtest.New(t, pgtest.Options{})
	hba := func(text, ident string) {
		t.Helper()
		for name, text := range map[string]string{"pg_hba.conf": text, "pg_ident.conf": ident} {
			if err := os.WriteFile(filepath.Join(c.DataDir(), name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		c.Exec(t, "select pg_reload_conf()")
	}
	connects := func(role string) error {
		conn, err := pg.Connect(t.Context(), pg.ConnOptions{Host: c.SocketDir(), Port: c.Port(), User: role})
		if err == nil {
			err = conn.Close()
		}
		return err
	}
	c.Exec(t, "create role nobody login", "create role nosuchuser login")
	for _, role := range []string{"postgres", "nosuchuser", "nobody"} { // trust, in a directory that is closed to nobody
		if err := connects(role); err != nil {
			t.Errorf("%s: %v", role, err)
		}
	}
	for _, dir := range []string{c.SocketDir(), filepath.Dir(c.SocketDir())} {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	hba("local all all peer\n", "")
	if err := connects("postgres"); err != nil {
		t.Errorf("peer: %v", err)
	}
	if err := connects("nobody"); (err == nil) != (os.Geteuid() == 0) {
		t.Errorf("peer, another user: %v", err)
	}
	if err := connects("nosuchuser"); err == nil || !strings.Contains(err.Error(), "Peer authentication failed") {
		t.Errorf("peer, a role without a namesake: %v", err)
	}
	if os.Geteuid() != 0 {
		return
	}
	hba("local all all peer map=ours\n", "ours root postgres\n")
	if err := connects("postgres"); err != nil {
		t.Errorf("peer with a map of root: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Error("this process is somebody else now")
	}
}
