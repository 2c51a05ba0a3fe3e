// Package tarball writes and reads the .tar.gz files of a backup set, and captures and restores the file trees of an
// application inside them.
//
// # The file
//
// A tarball is one tar stream in PAX format (POSIX.1-2001, pax Interchange Format), cut into gzip members (RFC 1952,
// section 2.2: a gzip file is a series of members, one after the other). `tar xzf` reads it. Content that compresses goes
// into members made by several cores; content that is compressed already goes into members of stored deflate blocks.
//
//	┌ gzip member (deflate) ┐┌ gzip member (stored) ─────┐┌ gzip member (deflate) ───────────┐
//	│ hdr a │ a │ hdr b │ b ││ hdr base.tar │ base.tar   ││ hdr c │ c │ 1024 zero bytes: end │
//	└───────────────────────┘└───────────────────────────┘└──────────────────────────────────┘
//
// A tarball without the two zero blocks at its end is truncated, even where it ends between two gzip members.
//
// # The files component
//
//	files/<tree>/            the directory of a tree, then everything in it, a directory before what it holds
//	files/<tree>/<path>      files, directories, symbolic and hard links, FIFOs; xattrs as SCHILY.xattr.* records;
//	                         files with holes in GNU sparse format 1.0 (GNU tar manual, "Storing Sparse Files")
//	files/<tree>/<path>      again, where it changed after it was first written: the later member counts
//	files.index.jsonl        the index: what the trees hold at the recovery point
//
// The index is the truth. A member that it does not name is removed at restore (the file had been deleted by the recovery
// point); whatever it names must be there, with the SHA-256 it gives. Its lines are JSON objects:
//
//	{"format":"holdfast-files-index","version":1,"trees":["site"]}
//	{"tree":"site","path":"","type":"dir","mode":493,"uid":1000,…,"mtime":[seconds,nanoseconds]}
//	{"tree":"site","path":"a/b","type":"file","mode":420,"size":5,"sha256":"…",…}
//	{"end":true,"entries":2}
//
// Entries stand tree by tree, in the order of a walk which visits a directory before its contents and names in byte order;
// that is the order of the paths when "/" sorts before every other byte. A path or link target that is not valid UTF-8 is
// written as {"b64":"…"}. Hard links never cross trees: a file linked into two trees is stored in both.
//
// # Two passes
//
// Capture.First writes everything while the application runs. Capture.Final, at the recovery point, walks again and writes
// only what changed. A file counts as unchanged if size, mtime, ctime, device and inode are those of the first pass, and
// the ctime was at least two seconds old when the first pass read it; a younger one is compared by content. In the final
// pass a file whose ctime is younger than the kernel's clock tick is read only after some milliseconds, so that a change
// while it is read must show.
// A writer that changes a file through a shared memory mapping is seen only when the kernel updates the times (mmap(2)).
package tarball
