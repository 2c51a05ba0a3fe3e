package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// variants are the tools as the full backups are measured with them.
func (w *world) variants() []tool {
	with := func(t tool, suffix string, opts ...string) tool {
		t.name, t.repo, t.backup = t.name+suffix, t.repo+strings.ReplaceAll(suffix, " ", "-"), opts
		return t
	}
	bundle := "--repo1-bundle"
	list := []tool{
		with(w.ours, "", bundle), with(w.theirs, "", bundle), with(w.ours, " block", bundle, "--repo1-block"),
	}
	if w.set.plain {
		list = append(list, with(w.ours, " plain"), with(w.theirs, " plain"))
	}
	return list
}

// measureBackups takes full backups and restores them, in turns; with the first compression type also what follows a full.
func (w *world) measureBackups(ctx context.Context) error {
	for i, kind := range w.set.types {
		for round := range w.set.rounds {
			tools := order(round, w.variants()...)
			for _, t := range tools {
				if err := w.fullAndRestore(ctx, t, kind, round); err != nil {
					return err
				}
			}
			if i == 0 {
				if err := w.followUp(ctx, tools, kind, round); err != nil {
					return err
				}
			}
			for _, t := range tools {
				if err := os.RemoveAll(t.repo); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (w *world) fullAndRestore(ctx context.Context, t tool, kind string, round int) error {
	if err := w.freshStanza(ctx, t); err != nil {
		return err
	}
	if err := w.backup(ctx, t, "full", kind, round); err != nil {
		return err
	}
	if err := w.fresh(w.restored()); err != nil {
		return err
	}
	if err := w.restore(ctx, t, "restore "+kind, round); err != nil {
		return err
	}
	if err := w.compareRestored(false); err != nil {
		return fmt.Errorf("what %s restored: %w", t.name, err)
	}
	return os.RemoveAll(w.restored())
}

func (w *world) processes() string { return fmt.Sprintf("--process-max=%d", w.set.processes) }

// backup measures one backup and how much the repository grew by it.
func (w *world) backup(ctx context.Context, t tool, backupType, kind string, round int) error {
	opts := append(w.stanza(t), w.server()...)
	opts = append(opts, "--type="+backupType, "--start-fast", "--no-archive-check", w.locks, w.processes())
	opts = append(opts, compression(kind)...)
	opts = append(opts, t.backup...)
	_, before, err := measureTree(cmp.Or(t.kept, t.repo))
	if err != nil {
		return err
	}
	if err := w.cold(); err != nil {
		return err
	}
	s, err := w.exec(ctx, t.command("backup", opts...))
	if err != nil {
		return err
	}
	_, after, err := measureTree(cmp.Or(t.kept, t.repo))
	if err != nil {
		return err
	}
	s.Stored = after - before
	w.record(backupType+" "+kind, t.name, round, s)
	return nil
}

// restored is the directory that restores go to.
func (w *world) restored() string { return filepath.Join(w.dir, "restored") }

// restore restores; what = "" means without measuring.
func (w *world) restore(ctx context.Context, t tool, what string, round int, opts ...string) error {
	if what != "" {
		if err := w.cold(); err != nil {
			return err
		}
	}
	argv := t.command("restore", "--stanza=bench", "--repo1-path="+t.repo, "--pg1-path="+w.restored(), "--type=none", w.locks, w.processes())
	s, err := w.exec(ctx, append(argv, opts...))
	if err == nil && what != "" {
		w.record(what, t.name, round, s)
	}
	return err
}

// followUp changes 1 % of the pages, takes an incremental backup with each tool, and measures delta restores onto one
// directory: of the full backup that it holds already, and of the incremental one.
func (w *world) followUp(ctx context.Context, tools []tool, kind string, round int) error {
	if err := w.changePages(ctx); err != nil {
		return err
	}
	for _, t := range tools {
		if err := w.backup(ctx, t, "incr", kind, round); err != nil {
			return err
		}
	}
	if err := w.fresh(w.restored()); err != nil {
		return err
	}
	for _, t := range tools {
		full, err := filepath.Glob(filepath.Join(t.repo, "backup", "bench", "*F"))
		if err != nil || len(full) != 1 {
			return errors.Join(err, fmt.Errorf("%d full backups in %s, want one", len(full), t.repo))
		}
		set := "--set=" + filepath.Base(full[0])
		// The tool before left the state of the incremental backup.
		if err := w.restore(ctx, t, "", round, "--delta", set); err != nil {
			return err
		}
		if err := w.restore(ctx, t, "delta restore, nothing changed", round, "--delta", set); err != nil {
			return err
		}
		if err := w.restore(ctx, t, "delta restore, 1 % changed", round, "--delta"); err != nil {
			return err
		}
		if err := w.compareRestored(true); err != nil {
			return fmt.Errorf("what %s's delta restore left: %w", t.name, err)
		}
	}
	return os.RemoveAll(w.restored())
}

// changePages locks rows at random, which changes a page in place and nothing else: 1 % of the pages of the largest table.
func (w *world) changePages(ctx context.Context) error {
	rows := w.set.scale * 100_000
	const rowsPerPage = 61
	return w.psql(ctx, fmt.Sprintf(`begin;
		select count(*) from (select 1 from pgbench_accounts
			where aid in (select 1 + (random()*%d)::int from generate_series(1, %d)) for update) as locked;
		commit; checkpoint`, rows-1, rows/rowsPerPage/100))
}

// compareRestored holds every relation file of the idle cluster to be there with its size, and if asked for with its
// contents. The interop suite proves more; this keeps a bench run from praising a restore that left something out.
func (w *world) compareRestored(contents bool) error {
	base := filepath.Join(w.data, "base")
	return filepath.WalkDir(base, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.HasPrefix(d.Name(), "pgsql_tmp") || strings.HasPrefix(d.Name(), "pg_internal.init") {
			return err
		}
		rel, err := filepath.Rel(w.data, name)
		if err != nil {
			return err
		}
		want, err := d.Info()
		if err != nil {
			return err
		}
		got, err := os.Stat(filepath.Join(w.restored(), rel))
		if err != nil {
			return err
		}
		if got.Size() != want.Size() {
			return fmt.Errorf("%s has %d bytes, the cluster's has %d", rel, got.Size(), want.Size())
		}
		if contents {
			return sameFile(name, filepath.Join(w.restored(), rel))
		}
		return nil
	})
}
