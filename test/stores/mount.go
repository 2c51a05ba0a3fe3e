package stores

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Mount mounts a file system that refuses what CIFS and some NFS servers refuse (links of both kinds, fsync of a
// directory, changes of owner and mode) and stores everything else in a temporary directory. It returns the mount point,
// which every user may reach.
func Mount(t testing.TB) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs FUSE; run make test")
	}
	below, at := publicDir(t), publicDir(t)
	data := &fs.LoopbackRoot{Path: below}
	root := &poorNode{&fs.LoopbackNode{RootData: data}}
	data.RootNode = root
	o := &fs.Options{MountOptions: fuse.MountOptions{FsName: "poor", DirectMount: true, AllowOther: os.Geteuid() == 0}}
	server, err := fs.Mount(at, root, o)
	if err != nil {
		t.Fatalf("mount a FUSE file system on %s: %v; without root it needs fusermount3 (apt-get install fuse3)", at, err)
	}
	t.Cleanup(func() {
		err := server.Unmount()
		if err != nil { // a program that the test ran in this process may have left a directory open, which ends with the process
			if os.Geteuid() == 0 {
				err = syscall.Unmount(at, syscall.MNT_DETACH)
			} else {
				err = exec.Command("fusermount3", "-u", "-z", at).Run()
			}
		}
		if err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
	return at
}

// publicDir is a directory that every user may use: servers and PostgreSQL run as users of their own.
func publicDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hf-stores-")
	if err == nil {
		err = os.Chmod(dir, 0o777)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// poorNode is a file or directory of the poor file system.
type poorNode struct{ *fs.LoopbackNode }

// WrapChild implements fs.NodeWrapChilder.
func (*poorNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	return &poorNode{child.(*fs.LoopbackNode)}
}

// Symlink implements fs.NodeSymlinker as CIFS does without its extensions.
func (*poorNode) Symlink(context.Context, string, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EOPNOTSUPP
}

// Link implements fs.NodeLinker.
func (*poorNode) Link(context.Context, fs.InodeEmbedder, string, *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, syscall.EOPNOTSUPP
}

// Setattr implements fs.NodeSetattrer: sizes and times may be set, owner and mode not.
func (n *poorNode) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if in.Valid&(fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID) != 0 {
		return syscall.EPERM
	}
	return n.LoopbackNode.Setattr(ctx, f, in, out)
}

// OpendirHandle implements fs.NodeOpendirHandler.
func (n *poorNode) OpendirHandle(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, more, errno := n.LoopbackNode.OpendirHandle(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	return poorDir{h.(fs.FileReaddirenter), h.(fs.FileSeekdirer), h.(fs.FileReleasedirer)}, more, 0
}

// poorDir is an open directory.
type poorDir struct {
	fs.FileReaddirenter
	fs.FileSeekdirer
	fs.FileReleasedirer
}

// Fsyncdir implements fs.FileFsyncdirer.
func (poorDir) Fsyncdir(context.Context, uint32) syscall.Errno { return syscall.EINVAL }
