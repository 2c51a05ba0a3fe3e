package main

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// control is one backup.control.
type control map[string]string

func (c *call) backups() string            { return filepath.Join(c.dir(), "backups", c.instance()) }
func (c *call) wal() string                { return filepath.Join(c.dir(), "wal", c.instance()) }
func (c *call) backupDir(id string) string { return filepath.Join(c.backups(), id) }
func (c *call) configFile() string         { return filepath.Join(c.backups(), "pg_probackup.conf") }
func (c *call) database(id string) string  { return filepath.Join(c.backupDir(id), "database") }
func (c *call) controlOf(id string) string { return filepath.Join(c.backupDir(id), "backup.control") }
func (c *call) contentsOf(id string) string {
	return filepath.Join(c.backupDir(id), "backup_content.control")
}

func (c *call) hasInstance() error {
	if info, err := os.Stat(c.backups()); err != nil || !info.IsDir() {
		say("WARNING", "Failed to access directory %q: No such file or directory", c.backups())
		return fail("Instance '%s' does not exist in this backup catalog", c.instance())
	}
	return nil
}

func initCatalog(c *call) error {
	if entries, err := os.ReadDir(c.dir()); err == nil && len(entries) > 0 {
		return fail("The backup catalog already exists and is not empty")
	}
	if err := c.step("start"); err != nil {
		return err
	}
	for _, d := range []string{"", "backups", "wal"} {
		if err := os.MkdirAll(filepath.Join(c.dir(), d), 0o700); err != nil {
			return err
		}
	}
	say("INFO", "Backup catalog '%s' successfully initialized", c.dir())
	return nil
}

func addInstance(c *call) error {
	system, err := systemID(c.opts["pgdata"])
	if err != nil {
		return err
	}
	for _, d := range []string{c.backups(), c.wal()} {
		if err := os.Mkdir(d, 0o700); os.IsExist(err) {
			return fail("Instance '%s' directory already exists: '%s'", c.instance(), d)
		} else if err != nil {
			return fail("%v", err)
		}
	}
	if err := c.step("start"); err != nil {
		return err
	}
	text := fmt.Sprintf("# Backup instance information\npgdata = %s\nsystem-identifier = %d\nxlog-seg-size = 16777216\n", c.opts["pgdata"], system)
	if err := os.WriteFile(c.configFile(), []byte(text), 0o600); err != nil {
		return err
	}
	say("INFO", "Instance '%s' successfully initialized", c.instance())
	return nil
}

// systemID is the first field of pg_control.
func systemID(dataDir string) (uint64, error) {
	b, err := os.ReadFile(filepath.Join(dataDir, "global/pg_control"))
	if err != nil || len(b) < 8 {
		return 0, fail("Could not open file %q for reading: %v", filepath.Join(dataDir, "global/pg_control"), err)
	}
	return binary.LittleEndian.Uint64(b), nil
}

func readPairs(file string) (control, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pairs := control{}
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " = "); ok && !strings.HasPrefix(line, "#") {
			pairs[k] = strings.Trim(v, "'")
		}
	}
	return pairs, nil
}

func (c *call) configured() (system uint64, err error) {
	conf, err := readPairs(c.configFile())
	if err != nil {
		return 0, fail("Cannot read pg_probackup.conf for this instance: %v", err)
	}
	return strconv.ParseUint(conf["system-identifier"], 10, 64)
}

func showConfig(c *call) error {
	if err := c.hasInstance(); err != nil {
		return err
	}
	conf, err := readPairs(c.configFile())
	if err != nil {
		return fail("%v", err)
	}
	fmt.Printf("{\n    \"pgdata\": %s,\n    \"system-identifier\": \"%s\",\n    \"xlog-seg-size\": \"%s\",\n    \"log-level-console\": \"INFO\"\n}\n", quote(conf["pgdata"]), conf["system-identifier"], conf["xlog-seg-size"])
	return nil
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// list reads every backup's control file, newest first.
func (c *call) list() ([]control, error) {
	entries, err := os.ReadDir(c.backups())
	if err != nil {
		return nil, err
	}
	var all []control
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		b, err := readPairs(c.controlOf(e.Name()))
		if err != nil {
			return nil, fail("Control file %q: %v", c.controlOf(e.Name()), err)
		}
		b["id"] = e.Name()
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b control) int { return strings.Compare(b["id"], a["id"]) }) // of one length until 2059
	return all, nil
}

func (b control) valid() bool { return b["status"] == "OK" || b["status"] == "DONE" }

func find(all []control, id string) control {
	for _, b := range all {
		if b["id"] == id {
			return b
		}
	}
	return nil
}

// chain is the backup with its parents, itself first.
func chain(all []control, id string) ([]control, error) {
	var found []control
	for id != "" {
		b := find(all, id)
		if b == nil {
			return nil, fail("Backup %s has missing parent", id)
		}
		found = append(found, b)
		id = b["parent-backup-id"]
	}
	return found, nil
}

func (c *call) write(id string, b control) error {
	var text strings.Builder
	text.WriteString("#Configuration\n")
	for _, k := range sortedKeys(b) {
		if k != "id" {
			fmt.Fprintf(&text, "%s = '%s'\n", k, b[k])
		}
	}
	file := c.controlOf(id)
	if err := os.WriteFile(file+".tmp", []byte(text.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(file+".tmp", file)
}

func (c *call) setStatus(b control, status string) error {
	b["status"] = status
	return c.write(b["id"], b)
}

func show(c *call) error {
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
	out := bufio.NewWriter(os.Stdout)
	fmt.Fprintf(out, "[\n    {\n        \"instance\": %s,\n        \"backups\": [\n", quote(c.instance()))
	for i, b := range all {
		if i > 0 {
			fmt.Fprintf(out, ",\n")
		}
		fmt.Fprintf(out, "            {\n                \"id\": %s,\n", quote(b["id"]))
		tli := "0"
		if p := b["parent-backup-id"]; p != "" {
			fmt.Fprintf(out, "                \"parent-backup-id\": %s,\n", quote(p))
			if parent := find(all, p); parent != nil {
				tli = parent["timelineid"]
			}
		}
		fmt.Fprintf(out, "                \"backup-mode\": %s,\n                \"wal\": \"ARCHIVE\",\n                \"compress-alg\": %s,\n                \"compress-level\": 1,\n", quote(b["backup-mode"]), quote(b["compress-alg"]))
		fmt.Fprintf(out, "                \"from-replica\": \"false\",\n                \"block-size\": 8192,\n                \"xlog-block-size\": 8192,\n                \"checksum-version\": 1,\n")
		fmt.Fprintf(out, "                \"program-version\": %s,\n                \"server-version\": %s,\n", quote(b["program-version"]), quote(b["server-version"]))
		fmt.Fprintf(out, "                \"current-tli\": %s,\n                \"parent-tli\": %s,\n", orZero(b["timelineid"]), tli)
		fmt.Fprintf(out, "                \"start-lsn\": %s,\n                \"stop-lsn\": %s,\n", quote(b["start-lsn"]), quote(b["stop-lsn"]))
		for _, k := range []string{"start-time", "end-time", "recovery-time"} {
			if b[k] != "" {
				fmt.Fprintf(out, "                %s: %s,\n", quote(k), quote(b[k]))
			}
		}
		for _, k := range []string{"data-bytes", "pgdata-bytes"} {
			if b[k] != "" {
				fmt.Fprintf(out, "                %s: %s,\n", quote(k), b[k])
			}
		}
		fmt.Fprintf(out, "                \"status\": %s,\n                \"note\": %s\n            }", quote(b["status"]), quote(b["note"]))
	}
	fmt.Fprintf(out, "\n        ]\n    }\n]\n")
	return out.Flush()
}

func orZero(s string) string {
	if s == "" {
		return "0"
	}
	return s
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05") + "+00" }

func remove(c *call) error {
	if err := c.hasInstance(); err != nil {
		return err
	}
	all, err := c.list()
	if err != nil {
		return err
	}
	_, wal := c.opts["delete-wal"]
	target := c.opts["backup-id"]
	if target == "" && !wal {
		return fail("You must specify at least one of the delete options: --delete-expired |--delete-wal |--merge-expired |--status |(-i, --backup-id)")
	}
	if target != "" && find(all, target) == nil {
		return fail("Failed to find backup %s, cannot delete", target)
	}
	if err := c.step("start"); err != nil {
		return err
	}
	for _, b := range all { // newest first: descendants before what they build on
		if target == "" || !descends(all, b["id"], target) {
			continue
		}
		say("INFO", "Delete: %s %s", b["id"], b["start-time"])
		if err := c.setStatus(b, "DELETING"); err != nil {
			return err
		}
		if err := c.step("files"); err != nil {
			return err
		}
		if err := os.RemoveAll(c.backupDir(b["id"])); err != nil {
			return err
		}
	}
	if wal {
		return c.purge()
	}
	return nil
}

func descends(all []control, id, from string) bool {
	for id != "" {
		if id == from {
			return true
		}
		b := find(all, id)
		if b == nil {
			return false
		}
		id = b["parent-backup-id"]
	}
	return false
}

// purge removes WAL before the oldest backup of its timeline, and all of a timeline that no backup is on or before.
func (c *call) purge() error {
	all, err := c.list()
	if err != nil {
		return err
	}
	oldest := map[uint32]string{} // timeline → first segment that is needed
	first := uint32(1<<32 - 1)
	for _, b := range all {
		lsn, err := parseLSN(b["start-lsn"])
		if err != nil {
			continue
		}
		tli := number32(b["timelineid"])
		if seg := segment(tli, lsn); oldest[tli] == "" || seg < oldest[tli] {
			oldest[tli] = seg
		}
		first = min(first, tli)
	}
	entries, err := os.ReadDir(c.wal())
	if err != nil {
		return err
	}
	for _, e := range entries {
		base := strings.TrimSuffix(e.Name(), ".gz")
		if len(base) != 24 {
			continue
		}
		n, err := strconv.ParseUint(base[:8], 16, 32)
		if err != nil {
			continue
		}
		keep, on := oldest[uint32(n)]
		if on && base < keep || !on && uint32(n) < first {
			say("INFO", "Removed WAL segment %s", e.Name())
			if err := os.Remove(filepath.Join(c.wal(), e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func number32(s string) uint32 {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0
	}
	return uint32(n)
}
