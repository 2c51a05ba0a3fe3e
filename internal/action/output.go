package action

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"holdfast/internal/catalog"
	"holdfast/internal/durable"
	"holdfast/internal/tarball"
)

// Members of the tarballs beside the components'.
const (
	identityName = "holdfast.json" // first: which set, which kind
	setName      = "set.json"      // last of the application tarball: the whole set document
	paramsPrefix = "params/"
)

// identityDoc is the first member of either tarball.
type identityDoc struct {
	Format int          `json:"format"`
	Set    string       `json:"set"`
	Run    string       `json:"run"`
	Kind   catalog.Kind `json:"kind"`
	Mode   catalog.Mode `json:"mode"`
}

func identity(s *catalog.Set, k catalog.Kind) []byte {
	b, err := json.Marshal(identityDoc{1, s.ID, s.Run, k, s.Mode})
	if err != nil {
		panic("identity of a set: " + err.Error()) // strings and an integer
	}
	return append(b, '\n')
}

// hiddenPrefix marks a tarball that has not got its final name.
const hiddenPrefix = ".holdfast-unfinished-"

func hiddenName(final string) string {
	return filepath.Join(filepath.Dir(final), hiddenPrefix+filepath.Base(final))
}

// outFile is a tarball on its way: written under a hidden name, Finish makes its bytes durable, Publish names it. Abort
// removes it unless it is published.
type outFile struct {
	final string
	f     *os.File
	done  bool
}

func (a *App) createOut(name string) (*outFile, error) {
	o := &outFile{final: filepath.Join(a.o.DumpDir, name)}
	f, err := os.OpenFile(hiddenName(o.final), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("tarball: %w", err)
	}
	o.f = f
	if a.o.Owner != nil {
		if err := f.Chown(a.o.Owner.UID, a.o.Owner.GID); err != nil {
			return nil, errors.Join(fmt.Errorf("tarball: %w", err), o.Abort())
		}
	}
	return o, nil
}

func (o *outFile) Write(p []byte) (int, error) { return o.f.Write(p) }

// Finish syncs and closes; a tarball that is not on the disk is no backup.
func (o *outFile) Finish() error {
	f := o.f
	o.f = nil
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("tarball: %w", err)
	}
	return nil
}

// Publish gives the final name, never over an existing file.
func (o *outFile) Publish() error {
	if err := unix.Renameat2(unix.AT_FDCWD, hiddenName(o.final), unix.AT_FDCWD, o.final, unix.RENAME_NOREPLACE); err != nil {
		return fmt.Errorf("tarball: rename to %s: %w", o.final, err)
	}
	o.done = true
	return durable.SyncDir(filepath.Dir(o.final))
}

// Abort removes the unfinished file; after Publish it does nothing.
func (o *outFile) Abort() error {
	if o.done {
		return nil
	}
	o.done = true
	var err error
	if o.f != nil {
		err = o.f.Close()
		o.f = nil
	}
	if rerr := os.Remove(hiddenName(o.final)); !errors.Is(rerr, os.ErrNotExist) {
		err = errors.Join(err, rerr)
	}
	return err
}

func abortOut(o *outFile) error {
	if o == nil {
		return nil
	}
	return o.Abort()
}

// tarSink makes the event bus's chunks members of its tarball.
type tarSink struct{ w *tarball.Writer }

func (s tarSink) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.w.AddBytes(name, 0o600, data)
}

func freeBytes(dir string) (uint64, error) {
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			return st.Bavail * uint64(st.Bsize), nil
		}
		parent := filepath.Dir(dir)
		if !errors.Is(err, unix.ENOENT) || parent == dir {
			return 0, fmt.Errorf("free space of %s: %w", dir, err)
		}
		dir = parent
	}
}
