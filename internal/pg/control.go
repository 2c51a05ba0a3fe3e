package pg

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"time"
)

// ControlFileSize is the size of global/pg_control in bytes; only the first 512 are ever used.
const ControlFileSize = 8192

// Offsets in pg_control, the same from 13 to 18 (package comment).
const (
	controlSignificant  = 512
	controlSystemID     = 0
	controlVersion      = 8
	controlCatalog      = 12
	controlState        = 16
	controlCheckpoint   = 32
	controlTimeline     = 48
	controlPageSize     = 216
	controlWALPageSize  = 224
	controlWALSegSize   = 228
	controlDataChecksum = 252
)

// invalidCheckpoint is a position before the first that a cluster can have: PostgreSQL refuses to start from it
// unless backup_label names another checkpoint (format page, section 16.6).
const invalidCheckpoint LSN = 0xDEAD

// State of a cluster as its control file tells it (PostgreSQL's DBState).
const (
	StateStartingUp         uint32 = 0
	StateShutDown           uint32 = 1
	StateShutDownInRecovery uint32 = 2
	StateShuttingDown       uint32 = 3
	StateCrashRecovery      uint32 = 4
	StateArchiveRecovery    uint32 = 5
	StateInProduction       uint32 = 6
)

// ErrControlChecksum says that the bytes of a control file do not fit their CRC32C: the file is damaged, or was read
// while the server was writing it.
var ErrControlChecksum = errors.New("checksum of pg_control is wrong")

// Control is what Holdfast reads from global/pg_control.
type Control struct {
	SystemID            uint64
	ControlVersion      uint32
	CatalogVersion      uint32
	Version             Version
	State               uint32 // one of the State constants
	Checkpoint          LSN
	CheckpointTimeline  uint32
	PageSize            uint32 // bytes
	WALSegmentSize      uint32 // bytes
	DataChecksumVersion uint32 // 0 = checksums off
}

// Invalidated reports whether InvalidateCheckpoint was applied: the cluster was restored and may only be started with
// its backup_label.
func (c Control) Invalidated() bool { return c.Checkpoint == invalidCheckpoint }

// controlCRCOffset is where the CRC32C of everything before it stands.
func controlCRCOffset(v Version) int {
	if v >= 18 {
		return 292
	}
	return 288
}

// ParseControl is ParseControlAs for PostgreSQL's own control files.
func ParseControl(b []byte) (Control, error) { return ParseControlAs(b, 0) }

// ParseControlAs reads the first 512 bytes of a control file. force (0: none) is the version that a fork is built on, whose
// own numbers are then not looked up. It fails with *UnsupportedVersionError if the version
// numbers are none of the version table, with ErrControlChecksum if the CRC32C is wrong, and with a plain error on
// sizes that PostgreSQL does not allow.
func ParseControlAs(b []byte, force Version) (Control, error) {
	f := fields{b: b}
	c := Control{
		SystemID:            f.u64(controlSystemID),
		ControlVersion:      f.u32(controlVersion),
		CatalogVersion:      f.u32(controlCatalog),
		State:               f.u32(controlState),
		Checkpoint:          LSN(f.u64(controlCheckpoint)),
		CheckpointTimeline:  f.u32(controlTimeline),
		PageSize:            f.u32(controlPageSize),
		WALSegmentSize:      f.u32(controlWALSegSize),
		DataChecksumVersion: f.u32(controlDataChecksum),
	}
	walPageSize := f.u32(controlWALPageSize)
	if f.short || len(b) < controlSignificant {
		return Control{}, fmt.Errorf("pg_control has %d bytes, expected at least %d", len(b), controlSignificant)
	}
	var err error
	if c.Version = force; force == 0 {
		if c.Version, err = versionOfControl(c.ControlVersion, c.CatalogVersion); err != nil {
			return Control{}, fmt.Errorf("pg_control: %w", err)
		}
	}
	crc := controlCRCOffset(c.Version)
	if controlCRC(b[:crc]) != f.u32(crc) {
		return Control{}, ErrControlChecksum
	}
	switch {
	case !powerOfTwoIn(c.PageSize, minPageSize, maxPageSize):
		return Control{}, fmt.Errorf("pg_control: page size %d is not allowed", c.PageSize)
	case !powerOfTwoIn(walPageSize, minPageSize, maxWALPageSize):
		return Control{}, fmt.Errorf("pg_control: WAL page size %d is not allowed", walPageSize)
	case !ValidSegmentSize(c.WALSegmentSize):
		return Control{}, fmt.Errorf("pg_control: WAL segment size %d is not allowed", c.WALSegmentSize)
	}
	return c, nil
}

// The table is looked up per call: crc32 keeps Castagnoli's after the first use, and only then.
func controlCRC(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// A read of pg_control is torn for the microseconds of one write; a file that stays wrong this long is damaged.
const (
	controlAttempts = 100
	controlPause    = 20 * time.Millisecond
)

// ReadControl is ReadControlAs for PostgreSQL's own control files.
func ReadControl(ctx context.Context, dataDir string) (Control, []byte, error) {
	return ReadControlAs(ctx, dataDir, 0)
}

// ReadControlAs reads dataDir/global/pg_control, again while it is torn (being written), and returns it with its
// significant 512 bytes padded with zeros to ControlFileSize. It gives up with ErrControlChecksum after about two
// seconds, and with the context's error when that ends first. force is as in ParseControlAs.
func ReadControlAs(ctx context.Context, dataDir string, force Version) (Control, []byte, error) {
	path := filepath.Join(dataDir, "global", "pg_control")
	return readControl(ctx, path, force, controlAttempts, readHead)
}

func readControl(ctx context.Context, path string, force Version, attempts int, read func(path string, n int) ([]byte, error)) (Control, []byte, error) {
	pause := time.NewTicker(controlPause)
	defer pause.Stop()
	for attempt := 1; ; attempt++ {
		b, err := read(path, controlSignificant)
		if err != nil {
			return Control{}, nil, fmt.Errorf("read control file: %w", err)
		}
		c, err := ParseControlAs(b, force)
		if err == nil {
			return c, append(b, make([]byte, ControlFileSize-len(b))...), nil
		}
		if !errors.Is(err, ErrControlChecksum) || attempt == attempts {
			return Control{}, nil, fmt.Errorf("read %s: %w", path, err)
		}
		select {
		case <-ctx.Done():
			return Control{}, nil, fmt.Errorf("read %s: %w", path, ctx.Err())
		case <-pause.C:
		}
	}
}

// readHead reads the first n bytes of a file, fewer if it is shorter.
func readHead(path string, n int) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only: nothing to lose
	b := make([]byte, n)
	got, err := io.ReadFull(f, b)
	if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
		return nil, err
	}
	return b[:got], nil
}

// InvalidateCheckpoint replaces the checkpoint LSN by 0xDEAD and recomputes the CRC, in place, so that the cluster
// cannot be started without its backup_label (format page, section 16.6). b must be a valid control file; force is as in
// ParseControlAs.
func InvalidateCheckpoint(b []byte, force Version) error {
	c, err := ParseControlAs(b, force)
	if err != nil {
		return fmt.Errorf("invalidate checkpoint: %w", err)
	}
	binary.LittleEndian.PutUint64(b[controlCheckpoint:], uint64(invalidCheckpoint))
	crc := controlCRCOffset(c.Version)
	binary.LittleEndian.PutUint32(b[crc:], controlCRC(b[:crc]))
	return nil
}
