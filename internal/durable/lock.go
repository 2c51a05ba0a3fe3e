package durable

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// lockInfoMax bounds what is read from another holder's lock file, in bytes.
const lockInfoMax = 64 << 10

// lockMode lets the group see who holds a lock; it does not have to be able to take it.
const lockMode = 0o640

// ErrLocked is what errors.Is finds in the error of a TryLock that came too late.
var ErrLocked = errors.New("locked by another process")

// LockedError says that somebody else holds a lock, and what they wrote about themselves.
type LockedError struct {
	Path string
	Info []byte // the holder's info; empty in the instant before the holder has written it
}

// Error names the lock file; Info is for the caller to interpret.
func (e *LockedError) Error() string { return fmt.Sprintf("%s: %v", e.Path, ErrLocked) }

// Unwrap makes errors.Is(err, ErrLocked) true.
func (e *LockedError) Unwrap() error { return ErrLocked }

// Lock is held until Unlock or the end of the process, whichever comes first; a crash leaves nothing to clean up.
type Lock struct{ f *os.File }

// TryLock takes the exclusive advisory lock (flock) on the file path without waiting, makes the file if needed and
// writes info into it. If another holder has it, also in this process, the error is a *LockedError and ErrLocked.
// The file stays after Unlock: removing it would let two holders lock two different files of one name.
func TryLock(path string, info []byte) (*Lock, error) {
	return TryLockOwned(path, info, nil)
}

// TryLockOwned is TryLock for a lock file that is to belong to owner (nil: the process's own), so that root and a service
// account can take the same lock. The owner is set when the lock is taken.
func TryLockOwned(path string, info []byte, owner *Owner) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, lockMode)
	if err != nil {
		return nil, fmt.Errorf("lock: %w", err)
	}
	l := &Lock{f: f}
	if err := l.take(path, info, owner); err != nil {
		f.Close() // releases the lock if it was taken; the error above is the one to report
		return nil, err
	}
	return l, nil
}

// take locks the open file and writes info.
func (l *Lock) take(path string, info []byte, owner *Owner) error {
	err := flock(l.f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		held, rerr := io.ReadAll(io.LimitReader(l.f, lockInfoMax))
		if rerr != nil {
			held = nil // who holds it is a courtesy; that it is held is the answer
		}
		return &LockedError{Path: path, Info: held}
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	if owner != nil {
		if err := l.f.Chown(owner.UID, owner.GID); err != nil {
			return fmt.Errorf("lock %s: %w", path, err)
		}
	}
	if err := l.f.Truncate(0); err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	_, err = l.f.WriteAt(info, 0)
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return nil // the lock holds without its info, and what runs under it may be what frees the disk
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", path, err)
	}
	return nil
}

// Unlock empties the lock file and gives the lock back. A second call does nothing.
func (l *Lock) Unlock() error {
	if l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	err := f.Truncate(0)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("unlock: %w", err)
	}
	return nil
}

// flock asks for the exclusive lock without waiting and repeats when a signal interrupts it.
func flock(f *os.File) error {
	for {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EINTR {
			return err
		}
	}
}
