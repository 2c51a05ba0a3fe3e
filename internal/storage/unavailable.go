package storage

import (
	"errors"
	"slices"
	"syscall"
)

// ErrUnavailable says that a store could not be asked, after all repetitions: it did not answer, broke off, is overloaded,
// does not know or admit us, or has no such bucket. That says nothing about the object: it is no damage, and nothing may be
// concluded from it. Adapters mark such errors with Unavailable; one that is Temporary is marked by that. Ask IsUnavailable.
var ErrUnavailable = errors.New("the storage is unavailable")

// Unavailable marks err as ErrUnavailable; its text stays. nil stays nil.
func Unavailable(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) {
		return err
	}
	return unavailableError{err}
}

type unavailableError struct{ error }

func (unavailableError) Is(target error) bool { return target == ErrUnavailable }
func (e unavailableError) Unwrap() error      { return e.error }

// IsUnavailable reports whether err says that a store could not be asked: ErrUnavailable, or what the kernel says of a mount
// whose server is away.
func IsUnavailable(err error) bool {
	if errors.Is(err, ErrUnavailable) {
		return true
	}
	return slices.ContainsFunc(mountAway, func(e syscall.Errno) bool { return errors.Is(err, e) })
}

// mountAway are the errors of a file system whose server does not answer (errno(3); EIO is a bad disk's too and not among them).
var mountAway = []syscall.Errno{syscall.ESTALE, syscall.ENOTCONN, syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ENETDOWN, syscall.ENETUNREACH, syscall.ENOLINK}
