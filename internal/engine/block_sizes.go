package engine

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"holdfast/internal/repo"
)

// BlockSizes says how files are cut for block incremental. What is left empty is as we choose it: blocks of one page
// (8 KiB), of four pages for a file that nobody changed for 28 days, and a checksum that grows with the block.
type BlockSizes struct {
	Files     []BlockStep // bytes of a file → bytes of a block; smaller files are stored whole
	Ages      []BlockStep // seconds since a file was changed → factor of its blocks' size; 0: the file is stored whole
	Checksums []BlockStep // bytes of a block → bytes kept of its checksum
	SuperFull int64       // bytes compressed as one piece in a full backup; 0: 1 MiB
	SuperDiff int64       // … in a diff or incr; 0: 256 KiB
}

// BlockStep gives a value to everything from From on, up to the next step.
type BlockStep struct{ From, Value int64 }

const (
	blockPage   = 8192
	blockMax    = 16 << 20
	blockOldAge = 28 * 24 * time.Hour
	factorMax   = 1024
)

// Check refuses what a backup with these sizes would refuse.
func (b BlockSizes) Check() error { return b.complete() }

// complete sets defaults and refuses sizes that the repository format can't express.
func (b *BlockSizes) complete() error {
	if b.SuperFull == 0 {
		b.SuperFull = superBlockFull
	}
	if b.SuperDiff == 0 {
		b.SuperDiff = superBlockDiff
	}
	if b.SuperFull < blockPage || b.SuperDiff < blockPage {
		return fmt.Errorf("super blocks of %d and %d bytes: they must hold a block, %d bytes at least", b.SuperFull, b.SuperDiff, blockPage)
	}
	for _, s := range b.Files {
		if s.From < 1 || s.Value < blockPage || s.Value > blockMax || s.Value%blockPage != 0 {
			return fmt.Errorf("blocks of %d bytes for files from %d bytes on: the size of a block is a multiple of %d, up to %d", s.Value, s.From, blockPage, blockMax)
		}
	}
	for _, s := range b.Ages {
		if s.From < 0 || s.Value < 0 || s.Value > factorMax {
			return fmt.Errorf("factor %d for files unchanged for %d seconds: allowed are 0 to %d", s.Value, s.From, factorMax)
		}
	}
	for _, s := range b.Checksums {
		if s.From < 1 || s.Value < repo.MinBlockChecksum || s.Value > repo.MaxBlockChecksum {
			return fmt.Errorf("checksums of %d bytes for blocks from %d bytes on: allowed are %d to %d", s.Value, s.From, repo.MinBlockChecksum, repo.MaxBlockChecksum)
		}
	}
	for _, steps := range []*[]BlockStep{&b.Files, &b.Ages, &b.Checksums} {
		*steps = slices.Clone(*steps)
		slices.SortFunc(*steps, func(a, b BlockStep) int { return cmp.Compare(a.From, b.From) })
	}
	return nil
}

// step is the value that holds for n; below the first step it is low.
func step(steps []BlockStep, n, low int64) int64 {
	for _, s := range steps {
		if n < s.From {
			break
		}
		low = s.Value
	}
	return low
}

// of is the size of the blocks of a file, 0 for one that is stored whole, and the bytes kept of their checksums.
func (b *BlockSizes) of(size int64, age time.Duration) (block int64, sum int) {
	if block = blockPage; len(b.Files) > 0 {
		block = step(b.Files, size, 0)
	} else if size < 2*blockPage {
		block = 0
	}
	switch {
	case len(b.Ages) > 0:
		block *= step(b.Ages, int64(age/time.Second), 1)
	case age >= blockOldAge:
		block *= 4
	}
	if block = min(block, blockMax); block == 0 {
		return 0, 0
	}
	if len(b.Checksums) > 0 {
		return block, int(step(b.Checksums, block, repo.MinBlockChecksum))
	}
	return block, repo.BlockChecksumSize(block)
}
