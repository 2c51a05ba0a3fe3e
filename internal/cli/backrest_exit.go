package cli

import (
	"context"
	"errors"
	"io/fs"

	"holdfast/internal/backrest"
	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// Exit codes of the original that errors of ours are mapped to (format page, section 23).
const (
	codeChecksum   = 26
	codeConfig     = 27
	codeInvalid    = 28
	codeFormat     = 29
	codeOption     = 31
	codeValue      = 32
	codeRequired   = 37
	codeRunning    = 38
	codeProtocol   = 39
	codeNotEmpty   = 40
	codeOpen       = 41
	codeParam      = 43
	codeMismatch   = 44
	codeDuplicate  = 45
	codeVersion    = 46
	codeLock       = 50
	codeMissing    = 55
	codeConnect    = 56
	codeQuery      = 57
	codePathOpen   = 53
	codeStop       = 62
	codeTerm       = 63
	codeFeature    = 67
	codeCommandSet = 68 // archive_command
	codeLinkTarget = 70
	codeBackupSet  = 75
	codeTablespace = 76
	codeLinkMap    = 78
	codeDBMissing  = 80
	codeDBInvalid  = 81
	codeTimeout    = 82
	codeArchiveOff = 87
	codeCrypto     = 95
	codeKernel     = 100
	codeRepo       = 103
	codeCommand    = 104
	codeClock      = 106
	codeUnknown    = 125
)

// backrestCodes maps what may be asked of an error to the code of the original, the first that fits.
var backrestCodes = []struct {
	err  error
	code int
}{
	{context.Canceled, codeTerm},
	{engine.ErrStopped, codeStop},
	{repo.ErrLocked, codeLock},
	{engine.ErrPartly, codeCommand},
	{storage.ErrUnavailable, codeProtocol}, // before everything that is about what is stored
	{engine.ErrPassphrase, codeCrypto},
	{repo.ErrCipher, codeCrypto},
	{pg.ErrConnect, codeConnect}, // before fs.ErrNotExist: a socket that is not there is no missing file
	{pg.ErrNoAnswer, codeQuery},
	{engine.ErrStanzaMissing, codeMissing},
	{engine.ErrStanzaMismatch, codeInvalid},
	{engine.ErrArchiveMismatch, codeMismatch},
	{engine.ErrArchiveConflict, codeDuplicate},
	{engine.ErrArchiveTimeout, codeTimeout},
	{engine.ErrWALMissing, codeMissing},
	{engine.ErrNoBackup, codeBackupSet},
	{engine.ErrLastBackup, codeBackupSet},
	{engine.ErrTarget, codeFormat},
	{engine.ErrTargetOwner, codePathOpen},
	{engine.ErrTimeline, codeDBMismatch},
	{engine.ErrWALName, backrest.CodeParamInvalid},
	{engine.ErrOtherServer, codeDBMismatch},
	{engine.ErrArchiveOff, codeArchiveOff},
	{engine.ErrArchiveAlways, codeFeature},
	{engine.ErrArchiveCommand, codeCommandSet},
	{engine.ErrTargetNotEmpty, codeNotEmpty},
	{engine.ErrTargetRunning, codeRunning},
	{engine.ErrTablespaceMap, codeTablespace},
	{engine.ErrLinkMap, codeLinkMap},
	{engine.ErrLinkInside, codeLinkTarget},
	{engine.ErrDBMissing, codeDBMissing},
	{engine.ErrDBInvalid, codeDBInvalid},
	{engine.ErrNotClosed, codeBackupSet},
	{engine.ErrCopyConflict, codeDuplicate},
	{engine.ErrCorrupt, codeChecksum},
	{repo.ErrChecksum, codeChecksum},
	{repo.ErrCorrupt, codeChecksum},
	{repo.ErrTrailingData, codeFormat},
	{repo.ErrClock, codeClock},
	{pg.ErrControlChecksum, codeChecksum},
	{pg.ErrServerRunning, codeRunning},
	{repo.ErrSealed, codeFormat},
	{repo.ErrFormat, codeFormat},
	{fs.ErrNotExist, codeMissing},
	{fs.ErrPermission, codeOpen},
}

// codeError is an error that ends with a code of its own.
type codeError struct {
	code int
	err  error
}

func (e *codeError) Error() string { return e.err.Error() }
func (e *codeError) Unwrap() error { return e.err }

// coded says what went wrong, with the code of the original.
func coded(code int, text string) error { return &codeError{code, errors.New(text)} }

// backrestCode is the one place where errors become pgBackRest's exit codes.
func backrestCode(err error) int {
	var reading *backrest.Error
	var own *codeError
	var findings *findingsError
	var usage *usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &own):
		return own.code
	case errors.As(err, &reading):
		return reading.Code
	case errors.As(err, &findings):
		return codeRepo
	case errors.As(err, &usage):
		return codeValue
	}
	for _, c := range backrestCodes {
		if errors.Is(err, c.err) {
			return c.code
		}
	}
	var path *fs.PathError
	var version *pg.UnsupportedVersionError
	var query interface{ SQLState() string } // of the server
	switch {
	case errors.As(err, &version):
		return codeVersion
	case errors.As(err, &query):
		return codeQuery
	case errors.As(err, &path):
		return codeOpen
	}
	return codeUnknown
}
