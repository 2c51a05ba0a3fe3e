package main

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// validateFiles compares a backup's files with its list and writes its status.
func (c *call) validateFiles(b control) error {
	say("INFO", "Validating backup %s", b["id"])
	entries, err := c.contents(b)
	if err != nil {
		say("WARNING", "Backup %s file list is corrupted", b["id"])
		return errors.Join(c.setStatus(b, "CORRUPT"), fail("Backup %s is corrupt.", b["id"]))
	}
	corrupt := false
	for _, e := range entries {
		size, err := strconv.ParseInt(e.Size, 10, 64)
		if err != nil {
			return err
		}
		if size <= 0 {
			continue
		}
		file := filepath.Join(c.database(b["id"]), e.Path)
		data, err := os.ReadFile(file)
		switch {
		case err != nil:
			say("WARNING", "Backup file %q is not found", file)
		case int64(len(data)) != size:
			say("WARNING", "Invalid size of backup file %q : %d. Expected %d", file, len(data), size)
		case strconv.FormatUint(uint64(crc32.ChecksumIEEE(data)), 10) != e.CRC:
			say("WARNING", "Invalid CRC of backup file %q", file)
		default:
			continue
		}
		corrupt = true
	}
	if corrupt {
		say("WARNING", "Backup %s data files are corrupted", b["id"])
		return errors.Join(c.setStatus(b, "CORRUPT"), fail("Backup %s is corrupt.", b["id"]))
	}
	say("INFO", "Backup %s data files are valid", b["id"])
	return c.setStatus(b, "OK")
}

// validate is one backup, its parents, and the WAL from its start to its stop.
func validate(c *call) error {
	if err := c.hasInstance(); err != nil {
		return err
	}
	if err := c.step("start"); err != nil {
		return err
	}
	all, err := c.list()
	if err != nil {
		return err
	}
	b := find(all, c.opts["backup-id"])
	if b == nil {
		return fail("Requested backup %s is not found.", c.opts["backup-id"])
	}
	parts, err := chain(all, b["id"])
	if err != nil {
		return err
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if s := parts[i]["status"]; s != "OK" && s != "DONE" && s != "CORRUPT" && s != "ORPHAN" {
			return fail("Backup %s has status: %s", parts[i]["id"], s)
		}
		if err := c.validateFiles(parts[i]); err != nil {
			return err
		}
	}
	from, err1 := parseLSN(b["start-lsn"])
	to, err2 := parseLSN(b["stop-lsn"])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for lsn := from / segmentSize * segmentSize; lsn <= to; lsn += segmentSize {
		name := segment(number32(b["timelineid"]), lsn)
		if _, err := c.readWAL(name); err != nil {
			say("WARNING", "WAL segment %q is absent", filepath.Join(c.wal(), name))
			return errors.Join(c.setStatus(b, "CORRUPT"), fail("Not enough WAL records to LSN %s", b["stop-lsn"]))
		}
	}
	say("INFO", "Backup %s is valid.", b["id"])
	say("INFO", "Validate of backup %s completed.", b["id"])
	return nil
}

func restore(c *call) error {
	if err := c.hasInstance(); err != nil {
		return err
	}
	data := c.opts["pgdata"]
	if entries, err := os.ReadDir(data); err == nil && len(entries) > 0 {
		return fail("Restore destination is not empty: %q", data)
	}
	all, err := c.list()
	if err != nil {
		return err
	}
	b := find(all, c.opts["backup-id"])
	if b == nil {
		return fail("Requested backup %s is not found.", c.opts["backup-id"])
	}
	if !b.valid() {
		return fail("Backup %s has status: %s", b["id"], b["status"])
	}
	if tli := c.opts["recovery-target-timeline"]; tli != "1" {
		n, err := strconv.ParseUint(tli, 10, 32)
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(c.wal(), fmt.Sprintf("%08X.history", n))); err != nil {
			return fail("Recovery target timeline %s does not exist", tli)
		}
	}
	say("WARNING", "Backup %s is used without validation.", b["id"])
	spaces, err := c.spaces(b)
	if err != nil {
		return err
	}
	if err := c.step("copy"); err != nil {
		return err
	}
	if err := c.putFiles(all, b, spaces); err != nil {
		return err
	}
	if err := c.step("settings"); err != nil {
		return err
	}
	if err := c.recoverySettings(b); err != nil {
		return err
	}
	say("INFO", "Restore of backup %s completed.", b["id"])
	return nil
}

// spaces says where tablespaces go; their directories must be empty.
func (c *call) spaces(b control) (map[string]string, error) {
	spaces := map[string]string{}
	text, err := os.ReadFile(filepath.Join(c.database(b["id"]), "tablespace_map"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	mapped := map[string]string{}
	for _, m := range c.many {
		from, to, _ := strings.Cut(strings.ReplaceAll(m, `\=`, "\x00"), "=")
		mapped[strings.ReplaceAll(from, "\x00", "=")] = strings.ReplaceAll(to, "\x00", "=")
	}
	for line := range strings.Lines(string(text)) {
		oid, dir, _ := strings.Cut(strings.TrimRight(line, "\n"), " ")
		to, ok := mapped[dir]
		if !ok {
			to = dir
		}
		delete(mapped, dir)
		if entries, err := os.ReadDir(to); err == nil && len(entries) > 0 {
			return nil, fail("Restore tablespace destination is not empty: %q", to)
		}
		spaces[oid] = to
	}
	for from := range mapped {
		return nil, fail("--tablespace-mapping option's old directory doesn't have an entry in tablespace_map file: %q", from)
	}
	return spaces, nil
}

// putFiles writes the files of the backup, each from the youngest of the chain that has it.
func (c *call) putFiles(all []control, b control, spaces map[string]string) error {
	parts, err := chain(all, b["id"])
	if err != nil {
		return err
	}
	lists := make([]map[string]entry, len(parts))
	for i, p := range parts {
		entries, err := c.contents(p)
		if err != nil {
			return err
		}
		lists[i] = map[string]entry{}
		for _, e := range entries {
			lists[i][e.Path] = e
		}
	}
	entries, err := c.contents(b)
	if err != nil {
		return err
	}
	data := c.opts["pgdata"]
	if err := os.MkdirAll(data, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		mode, err := strconv.ParseUint(e.Mode, 10, 32)
		if err != nil {
			return err
		}
		to := filepath.Join(data, e.Path)
		switch {
		case e.Linked != "":
			dir := spaces[filepath.Base(e.Path)]
			if dir == "" {
				return fail("tablespace_map does not have %s", e.Path)
			}
			err = errors.Join(os.MkdirAll(dir, 0o700), os.Symlink(dir, to))
		case mode&0o170000 == 0o040000:
			err = os.MkdirAll(to, os.FileMode(mode&0o777))
		case e.Path != "tablespace_map": // the links are made
			err = c.putFile(parts, lists, e, to, os.FileMode(mode&0o777))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *call) putFile(parts []control, lists []map[string]entry, e entry, to string, mode os.FileMode) error {
	for i := range parts {
		have, ok := lists[i][e.Path]
		if !ok {
			break
		}
		if have.Size == "-1" {
			continue
		}
		if have.Size == "0" {
			return os.WriteFile(to, nil, mode)
		}
		data, err := os.ReadFile(filepath.Join(c.database(parts[i]["id"]), e.Path))
		if err != nil {
			return fail("%v", err)
		}
		return os.WriteFile(to, data, mode)
	}
	return fail("file %s is in no backup of the chain", e.Path)
}

// recoverySettings drops old ones and adds the new, as PostgreSQL 12 and later want them.
func (c *call) recoverySettings(b control) error {
	file := filepath.Join(c.opts["pgdata"], "postgresql.auto.conf")
	old, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	var text strings.Builder
	for line := range strings.Lines(string(old)) {
		if !strings.Contains(line, "restore_command") && !strings.Contains(line, "recovery_target") {
			text.WriteString(line)
		}
	}
	fmt.Fprintf(&text, "\n# recovery settings added by pg_probackup restore of backup %s\n## recovery settings\n", b["id"])
	if n := c.opts["recovery-target-name"]; n != "" {
		fmt.Fprintf(&text, "recovery_target_name = '%s'\n", n)
	}
	if t := c.opts["recovery-target-time"]; t != "" {
		fmt.Fprintf(&text, "recovery_target_time = '%s'\n", t)
	}
	fmt.Fprintf(&text, "recovery_target_timeline = '%s'\nrecovery_target_action = '%s'\nrestore_command = '%s'\n", c.opts["recovery-target-timeline"], c.opts["recovery-target-action"], c.opts["restore-command"])
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(c.opts["pgdata"], "recovery.signal"), nil, 0o600)
}

// walFile finds a file of the archive.
func (c *call) walFile(name string) (string, error) {
	file := filepath.Join(c.wal(), name)
	for _, f := range []string{file, file + ".gz"} {
		if _, err := os.Stat(f); err == nil {
			return f, nil
		}
	}
	return "", os.ErrNotExist
}

func (c *call) readWAL(name string) ([]byte, error) {
	file, err := c.walFile(name)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(file)
	if err != nil || !strings.HasSuffix(file, ".gz") {
		return data, err
	}
	gz, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(gz)
}

// archivePush archives one file. It is run in the data directory, whose cluster must be the instance's.
func archivePush(c *call) error {
	if err := c.hasInstance(); err != nil {
		return err
	}
	if err := c.step("start"); err != nil {
		return err
	}
	name := c.opts["wal-file-name"]
	if c.opts["wal-file-path"] != "pg_wal/"+name {
		return fail("stand-in: --wal-file-path=%s", c.opts["wal-file-path"])
	}
	system, err := systemID(".")
	if err != nil {
		return err
	}
	want, err := c.configured()
	if err != nil {
		return err
	}
	if system != want {
		return fail("Refuse to push WAL segment %s into archive. Instance parameters mismatch. Instance '%s' should have SYSTEM_ID = %d instead of %d", name, c.instance(), want, system)
	}
	data, err := os.ReadFile(c.opts["wal-file-path"])
	if err != nil {
		return fail("%v", err)
	}
	if old, err := c.readWAL(name); err == nil {
		if !bytes.Equal(old, data) {
			return fail("WAL file already exists in archive with different checksum: %q", filepath.Join(c.wal(), name))
		}
		return nil
	}
	to := filepath.Join(c.wal(), name)
	if c.opts["compress-algorithm"] == "zlib" && len(name) == 24 {
		var buf bytes.Buffer
		gz := gzip.NewWriter(&buf)
		if _, err := gz.Write(data); err != nil {
			return err
		}
		if err := gz.Close(); err != nil {
			return err
		}
		to, data = to+".gz", buf.Bytes()
	}
	if err := os.WriteFile(to+".part", data, 0o600); err != nil {
		return fail("%v", err)
	}
	return os.Rename(to+".part", to)
}

func archiveGet(c *call) error {
	data, err := c.readWAL(c.opts["wal-file-name"])
	if err != nil {
		return fail("pg_probackup archive-get failed to deliver WAL file: %s", c.opts["wal-file-name"])
	}
	return os.WriteFile(c.opts["wal-file-path"], data, 0o600)
}
