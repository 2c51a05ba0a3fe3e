package engine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"sync"
)

var oldTarget = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[\t ]*recovery_target[_a-z]*[\t ]*=`) })

// settingName is what PostgreSQL takes as the name of a setting, an extension's included.
var settingName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*$`)
})

// parseTimeline reads a number as recovery_target_timeline does: decimal, 0x hexadecimal or 0 octal.
func parseTimeline(text string) (uint32, error) {
	if strings.ContainsAny(text, "_bBoO") { // Go knows more notations
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(text, 0, 32)
	return uint32(n), err
}

// checkTimeline refuses a backup from which recovery can't get to the target timeline, which PostgreSQL would say only
// after everything has been copied (format page, section 16.2).
func (p *RestorePlan) checkTimeline(ctx context.Context, ai *repo.ArchiveInfo) error {
	if p.m.ArchiveStart == "" || p.Type == TargetNone || p.Type == TargetPreserve {
		return nil
	}
	from, err := strconv.ParseUint(p.m.ArchiveStart[:min(8, len(p.m.ArchiveStart))], 16, 32)
	if err != nil {
		return fmt.Errorf("the backup's first WAL segment %q is no segment name", p.m.ArchiveStart)
	}
	start, err := pg.ParseLSN(p.m.LSNStart)
	if err != nil {
		return err
	}
	base := repo.ArchiveDir(p.Stanza) + "/" + repo.ArchiveID(p.Version, p.m.DB.ID)
	to := uint32(from)
	known := map[uint32]bool{to: true}
	switch target := p.o.Timeline; {
	case target == "current", target == "" && p.Type == TargetImmediate:
		return nil
	case target == "", target == "latest":
		for info, err := range p.s.o.Storage.List(ctx, base, storage.ListOptions{}) {
			if err != nil {
				return fmt.Errorf("list %s: %w", base, err)
			}
			if name := path.Base(info.Name); !info.Dir && pg.IsHistoryName(name) {
				if n, err := strconv.ParseUint(name[:8], 16, 32); err == nil {
					to, known[uint32(n)] = max(to, uint32(n)), true
				}
			}
		}
		for n := uint32(from); n < to; n++ {
			if !known[n] {
				p.warnOnce(fmt.Sprintf("the archive has no %08X.history: PostgreSQL looks for timelines one after the other and will not find the latest, %d; to get there give --target-timeline=%[2]d", n, to))
				break
			}
		}
	default:
		if to, err = parseTimeline(target); err != nil {
			return err
		}
	}
	if to == uint32(from) {
		return nil
	}
	const hint = "choose another backup with --set, or --target-timeline=current to stay on the backup's"
	history, err := p.history(ctx, ai, fmt.Sprintf("%s/%08X.history", base, to))
	if errors.Is(err, fs.ErrNotExist) {
		if _, own := p.o.RecoveryOptions["restore_command"]; own {
			p.warnOnce(fmt.Sprintf("timeline %d is not in this archive: whether the backup leads to it was not checked, the restore_command is not ours", to))
			return nil
		}
		return fmt.Errorf("%w %d: the archive has no %08X.history; %s", ErrTimeline, to, to, hint)
	}
	if err != nil {
		return err
	}
	for _, h := range history {
		if h.Timeline != uint32(from) {
			continue
		}
		if h.Switch > start {
			return nil
		}
		return fmt.Errorf("%w %d: that left the backup's timeline %d at %s, before the backup began at %s; %s", ErrTimeline, to, from, h.Switch, start, hint)
	}
	return fmt.Errorf("%w %d: that does not come from the backup's timeline %d; %s", ErrTimeline, to, from, hint)
}

// history reads a timeline history file of the archive; missing is fs.ErrNotExist.
func (p *RestorePlan) history(ctx context.Context, ai *repo.ArchiveInfo, object string) ([]pg.TimelineEntry, error) {
	in, err := p.s.o.Storage.Open(ctx, object, 0, -1)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	sr, err := repo.NewStreamReader(in, repo.StreamSpec{Compress: repo.None, Pass: ai.CipherPass})
	if err != nil {
		return nil, err
	}
	defer sr.Close()
	entries, err := pg.ParseHistory(sr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", object, err)
	}
	return entries, nil
}

// signalsNone: the program that made a backup is no pgbackrest that leaves recovery.signal out of a restore without recovery,
// as it does from 2.47 on.
func signalsNone(version string) bool {
	var major, minor int
	n, _ := fmt.Sscanf(version, "%d.%d", &major, &minor) // anything else is another program
	return n < 2 || major < 2 || major == 2 && minor < 47
}

// writeRecovery writes the recovery settings of PostgreSQL 12 and later: postgresql.auto.conf and a signal file (format
// page, section 16.7; PostgreSQL manual, "Archive Recovery").
func (p *RestorePlan) writeRecovery(own *restoreOwners) error {
	if p.Type == TargetPreserve {
		return nil
	}
	place, auto := p.place(autoConfName)
	old, err := readRoot(place.root, auto)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if text := p.recoverySettings(string(old)); text != string(old) { // else type none, and nothing to take out
		if err := p.replace(own, autoConfName, text); err != nil {
			return err
		}
	}
	switch {
	case p.Type == TargetNone && !(p.o.NoneRecovers && p.m.Options.Online && signalsNone(p.m.BackrestVersion)):
		return nil
	case p.Type == TargetStandby:
		return p.replace(own, "pg_data/standby.signal", "")
	}
	return p.replace(own, "pg_data/recovery.signal", "")
}

// recoverySettings returns the new text of postgresql.auto.conf.
func (p *RestorePlan) recoverySettings(old string) string {
	stamp := p.s.o.Now().In(p.s.o.Local).Format("2006-01-02 15:04:05")
	var b strings.Builder
	for line := range strings.Lines(old) {
		line = strings.TrimRight(line, "\n")
		if oldTarget().MatchString(line) {
			line = "# Removed by Holdfast restore on " + stamp + " # " + line
		}
		b.WriteString(line + "\n")
	}
	if p.Type == TargetNone {
		return b.String()
	}
	text := strings.TrimSpace(b.String())
	b.Reset()
	if text != "" {
		b.WriteString(text + "\n\n")
	}
	b.WriteString("# Recovery settings generated by Holdfast restore on " + stamp + "\n")
	// As guc-file.l reads them: backslashes escape, and a string ends with its line.
	quoted := strings.NewReplacer("'", "''", `\`, `\\`, "\n", `\n`)
	set := func(k, v string) { fmt.Fprintf(&b, "%s = '%s'\n", k, quoted.Replace(v)) }
	options := make(map[string]string, len(p.o.RecoveryOptions))
	for k, v := range p.o.RecoveryOptions {
		options[strings.ReplaceAll(k, "-", "_")] = v
	}
	for _, k := range slices.Sorted(maps.Keys(options)) {
		set(k, options[k])
	}
	if p.o.ArchiveModeOff {
		set("archive_mode", "off")
	}
	if _, given := options["restore_command"]; !given {
		set("restore_command", p.o.RestoreCommand)
	}
	timeline := p.o.Timeline
	switch p.Type {
	case TargetTime, TargetXID, TargetLSN, TargetName:
		set("recovery_target_"+string(p.Type), p.target())
		if p.o.Exclusive {
			set("recovery_target_inclusive", "false")
		}
	case TargetImmediate:
		set("recovery_target", "immediate")
		if timeline == "" {
			timeline = "current"
		}
	}
	if p.o.Action != "" && p.o.Action != "pause" {
		set("recovery_target_action", p.o.Action)
	}
	if timeline != "" {
		set("recovery_target_timeline", timeline)
	}
	return b.String()
}

// target is the recovery target as PostgreSQL is told it.
func (p *RestorePlan) target() string {
	if p.Type == TargetTime {
		if _, told, err := parseTargetTime(p.o.Target, p.s.o.Local); err == nil {
			return told
		}
	}
	return p.o.Target
}

func readRoot(root *os.Root, name string) ([]byte, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 16<<20))
	return b, errors.Join(err, f.Close())
}

// replace writes a file of the data directory that is being restored; the final sync makes it durable.
func (p *RestorePlan) replace(own *restoreOwners, name, text string) error {
	place, rel := p.place(name)
	f, err := place.root.OpenFile(rel, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := place.root.Chmod(rel, fs.FileMode(p.m.PathDefault.Mode&0o644|0o600)); err != nil {
		return err
	}
	return own.lchown(place.root, rel, p.m.FileDefault)
}
