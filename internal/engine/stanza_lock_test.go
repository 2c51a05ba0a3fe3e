package engine_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"holdfast/internal/durable"
	"holdfast/internal/engine"
	"holdfast/internal/storage"
)

// TestLockDirBelongsToPostgres: when root is the first to need the lock path, PostgreSQL's user must get into it.
func TestLockDirBelongsToPostgres(t *testing.T) {
	owner := &durable.Owner{UID: os.Getuid(), GID: os.Getgid()}
	if owner.UID == 0 {
		owner = &durable.Owner{UID: 65534, GID: 65534}
	}
	r := newRig(t, 15)
	dir := filepath.Join(scratch(t), "lock")
	s, err := engine.New(engine.Options{Stanza: "demo", Storage: storage.NewMem(nil), LockDir: dir, LockOwner: owner, ExecID: "1-00000000"})
	must(t, err)
	_, err = s.Create(t.Context(), r.control)
	must(t, err)
	info, err := os.Stat(dir)
	must(t, err)
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != owner.UID || info.Mode().Perm() != 0o770 {
		t.Errorf("lock path: %v, %+v", info.Mode(), info.Sys())
	}
}
