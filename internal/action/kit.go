package action

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"holdfast/internal/catalog"
)

// kitSuffix ends the name of a set's recovery kit, which lies beside its tarballs.
const kitSuffix = "_recovery_kit.age"

// KitOptions is the recovery kit that each run writes.
type KitOptions struct {
	// Seal makes the encrypted kit of a run. sets are the complete ones of the catalogue, oldest first, the run's own among them.
	// lacks says, for an operator, what the kit does not hold that it should.
	Seal func(ctx context.Context, run *catalog.Set, sets []*catalog.Set) (sealed []byte, lacks []string, err error)
}

// writeKit writes the recovery kit of a complete set, whole and for its owner only, or not at all. That it could not is a warning:
// the set restores without it.
func (a *App) writeKit(ctx context.Context, set *catalog.Set) {
	if a.o.Kit == nil {
		return
	}
	a.step("backup_all", "recovery-kit", set.ID)
	if err := a.makeKit(ctx, set); err != nil {
		a.warn("set %s is complete, but its recovery kit could not be written: %v", set.ID, err)
	}
}

func (a *App) makeKit(ctx context.Context, set *catalog.Set) error {
	if set.Unsettled { // the run that died may have come as far as to write it, whole, but not to enter it
		final := filepath.Join(a.o.DumpDir, set.ID+kitSuffix)
		sealed, err := os.ReadFile(final)
		if err == nil {
			enterKit(set, final, sealed)
			return nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	all, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return err
	}
	sealed, lacks, err := a.o.Kit.Seal(ctx, set, complete(all))
	if err != nil {
		return err
	}
	for _, l := range lacks {
		a.warn("the recovery kit of set %s lacks %s", set.ID, l)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	name := set.ID + kitSuffix
	if err := os.Remove(hiddenName(filepath.Join(a.o.DumpDir, name))); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := a.createOut(name)
	if err != nil {
		return err
	}
	defer func() { _ = out.Abort() }() // after Publish it does nothing; else the error at hand counts
	if _, err := out.Write(sealed); err != nil {
		return fmt.Errorf("recovery kit: %w", err)
	}
	if err := out.Finish(); err != nil {
		return err
	}
	if err := out.Publish(); err != nil {
		return err
	}
	enterKit(set, out.final, sealed)
	return nil
}

func enterKit(set *catalog.Set, final string, sealed []byte) {
	sum := sha256.Sum256(sealed)
	set.Kit = &catalog.Kit{Path: final, Size: int64(len(sealed)), SHA256: hex.EncodeToString(sum[:])}
}
