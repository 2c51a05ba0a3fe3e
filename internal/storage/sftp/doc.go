// Package sftp keeps a repository on a server that speaks SFTP, laid out as on a local file system.
//
// A new object is written to "<name>.<random>.pgbackrest.tmp" next to it, then fsync@openssh.com, posix-rename@openssh.com,
// and an fsync of the directory. A server without posix-rename is refused, since it cannot replace an object in one step;
// one without fsync makes objects as durable as its answer to "close" is.
//
// Several connections are opened as they are needed. What a lost connection interrupted is temporary in the sense of
// package storage where it may be repeated: everything but the bytes of an object that was being written. Those are given
// up, because a server that has restarted may have lost bytes that it had acknowledged before the fsync.
package sftp
