package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// entry is a line of backup_content.control. A size of -1: the file is as in the parent.
type entry struct {
	Path   string `json:"path"`
	Size   string `json:"size"`
	Mode   string `json:"mode"`
	CRC    string `json:"crc"`
	Linked string `json:"linked,omitempty"`
}

const segmentSize = 16 << 20

func parseLSN(s string) (uint64, error) {
	hi, lo, ok := strings.Cut(s, "/")
	h, err1 := strconv.ParseUint(hi, 16, 32)
	l, err2 := strconv.ParseUint(lo, 16, 32)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("%q is no LSN", s)
	}
	return h<<32 | l, nil
}

func segment(tli uint32, lsn uint64) string {
	n := lsn / segmentSize
	return fmt.Sprintf("%08X%08X%08X", tli, n/256, n%256)
}

// backup makes one, as do_backup does: the clocks tick once a second, and an ID is one.
func backup(c *call) (err error) {
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
	var now time.Time
	b := control{"backup-mode": c.opts["backup-mode"], "stream": "false", "compress-alg": c.opts["compress-algorithm"], "program-version": version, "server-version": "15",
		"status": "RUNNING", "note": c.opts["note"]}
	for ; ; time.Sleep(100 * time.Millisecond) {
		now = time.Now()
		b["id"] = strings.ToUpper(strconv.FormatInt(now.Unix(), 36))
		if err = os.Mkdir(c.backupDir(b["id"]), 0o700); !os.IsExist(err) {
			break
		}
	}
	if err != nil {
		return fail("Can't create backup directory: %v", err)
	}
	b["start-time"] = stamp(now)
	say("INFO", "Backup start, pg_probackup version: %s, instance: %s, backup ID: %s, backup mode: %s, wal mode: ARCHIVE, remote: false", version, c.instance(), b["id"], b["backup-mode"])
	if err := os.WriteFile(filepath.Join(c.backupDir(b["id"]), "backup.pid"), fmt.Appendf(nil, "%d", os.Getpid()), 0o600); err != nil {
		return err
	}
	if err := c.write(b["id"], b); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			say("WARNING", "Backup %s is running, setting its status to ERROR", b["id"])
			err = errors.Join(err, c.setStatus(b, "ERROR"))
		}
		err = errors.Join(err, os.Remove(filepath.Join(c.backupDir(b["id"]), "backup.pid")))
	}()
	if err := c.copyCluster(all, b); err != nil {
		return err
	}
	b["end-time"], b["recovery-time"] = stamp(time.Now()), stamp(time.Now())
	if err := c.setStatus(b, "DONE"); err != nil {
		return err
	}
	if err := c.step("end"); err != nil {
		return err
	}
	if err := c.validateFiles(b); err != nil {
		return err
	}
	say("INFO", "Backup %s completed", b["id"])
	return nil
}

// copyCluster copies the files of the running cluster.
func (c *call) copyCluster(all []control, b control) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close(context.Background())) }()
	say("WARNING", "Current PostgreSQL role is superuser. It is not recommended to run pg_probackup under superuser.")
	say("INFO", "Database backup start")
	var start, timeline string
	if err := conn.QueryRow(ctx, "select pg_backup_start($1, true)::text", b["start-time"]+" with pg_probackup").Scan(&start); err != nil {
		return fail("%v", err)
	}
	if err := conn.QueryRow(ctx, "select substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)").Scan(&timeline); err != nil {
		return fail("%v", err)
	}
	tli, err := strconv.ParseUint(timeline, 16, 32)
	if err != nil {
		return err
	}
	b["timelineid"], b["start-lsn"] = strconv.FormatUint(tli, 10), start
	if _, err := conn.Exec(ctx, "select pg_switch_wal()"); err != nil {
		return fail("%v", err)
	}
	parent, err := c.parent(all, b)
	if err != nil {
		return err
	}
	if parent != nil {
		b["parent-backup-id"] = parent["id"]
		say("INFO", "Parent backup: %s", parent["id"])
	}
	if err := errors.Join(c.write(b["id"], b), c.awaitSegment(uint32(tli), start)); err != nil {
		return err
	}
	if err := c.step("copy"); err != nil {
		return err
	}
	entries, err := c.copyFiles(all, b, parent)
	if err != nil {
		return err
	}
	if err := c.step("stop"); err != nil {
		return err
	}
	var stop, label, spaces string
	if err := conn.QueryRow(ctx, "select lsn::text, labelfile, spcmapfile from pg_backup_stop(true)").Scan(&stop, &label, &spaces); err != nil {
		return fail("%v", err)
	}
	b["stop-lsn"] = stop
	for name, text := range map[string]string{"backup_label": label, "tablespace_map": spaces} {
		if text == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(c.database(b["id"]), name), []byte(text), 0o600); err != nil {
			return err
		}
		entries = append(entries, entry{Path: name, Size: strconv.Itoa(len(text)), Mode: strconv.FormatUint(syscall.S_IFREG|0o600, 10), CRC: strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte(text))), 10)})
	}
	if err := c.awaitSegment(uint32(tli), stop); err != nil {
		return err
	}
	return c.writeContents(b, entries)
}

func (c *call) connect(ctx context.Context) (*pgx.Conn, error) {
	config, err := pgx.ParseConfig(fmt.Sprintf("host='%s' port=%s user=%s dbname=postgres sslmode=disable", c.opts["pghost"], c.opts["pgport"], c.opts["pguser"]))
	if err != nil {
		return nil, err
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, fail("could not connect to database postgres: %v", err)
	}
	var system int64
	var dir string
	if err := conn.QueryRow(ctx, "select system_identifier, current_setting('data_directory') from pg_control_system()").Scan(&system, &dir); err != nil {
		return nil, err
	}
	want, err := c.configured()
	if err != nil {
		return nil, err
	}
	if uint64(system) != want || dir != c.opts["pgdata"] {
		return nil, fail("Backup data directory was initialized for system id %d, but connected instance system id is %d (of %s)", want, uint64(system), dir)
	}
	return conn, nil
}

// parent is the newest valid backup that builds on the newest valid full one of the timeline.
func (c *call) parent(all []control, b control) (control, error) {
	if b["backup-mode"] == "FULL" {
		return nil, nil
	}
	var full control
	for _, x := range all {
		if full == nil && x["backup-mode"] == "FULL" && x.valid() && x["timelineid"] == b["timelineid"] {
			full = x
		}
	}
	if full == nil {
		say("WARNING", "Valid full backup on current timeline %s is not found, trying to look up on previous timelines", b["timelineid"])
		return nil, fail("Create new full backup before an incremental one")
	}
	for _, x := range all {
		if x.valid() && descends(all, x["id"], full["id"]) {
			return x, c.pagemap(x, b)
		}
	}
	return nil, fail("Create new full backup before an incremental one")
}

// pagemap: PAGE reads all WAL since its parent.
func (c *call) pagemap(parent, b control) error {
	if b["backup-mode"] != "PAGE" {
		return nil
	}
	from, err1 := parseLSN(parent["start-lsn"])
	to, err2 := parseLSN(b["start-lsn"])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	for lsn := from / segmentSize * segmentSize; lsn < to/segmentSize*segmentSize; lsn += segmentSize {
		if _, err := c.walFile(segment(number32(b["timelineid"]), lsn)); err != nil {
			return fail("WAL segment %s is absent", segment(number32(b["timelineid"]), lsn))
		}
	}
	return nil
}

func (c *call) awaitSegment(tli uint32, lsn string) error {
	n, err := parseLSN(lsn)
	if err != nil {
		return err
	}
	timeout, err := strconv.Atoi(c.opts["archive-timeout"])
	if err != nil {
		return err
	}
	name := segment(tli, n)
	for end := time.Now().Add(time.Duration(timeout) * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := c.walFile(name); err == nil {
			return nil
		}
		if err := stopped(); err != nil {
			return err
		}
		if time.Now().After(end) {
			return fail("WAL segment %s could not be archived in %d seconds", name, timeout)
		}
	}
}

// Directories whose content is not copied, and files that are not.
var (
	emptied = map[string]bool{"pg_wal": true, "pg_stat_tmp": true, "pg_replslot": true, "pg_dynshmem": true, "pg_notify": true, "pg_serial": true, "pg_snapshots": true, "pg_subtrans": true, "log": true}
	skipped = map[string]bool{"postmaster.pid": true, "postmaster.opts": true, "recovery.signal": true, "standby.signal": true, "backup_label.old": true, "tablespace_map.old": true}
)

func (c *call) copyFiles(all []control, b, parent control) ([]entry, error) {
	before := map[string]entry{}
	if parent != nil {
		var err error
		if before, err = c.merged(all, parent["id"]); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(c.database(b["id"]), 0o700); err != nil {
		return nil, err
	}
	say("INFO", "Start transferring data files")
	var entries []entry
	total := int64(0)
	var walk func(rel string) error
	walk = func(rel string) error {
		list, err := os.ReadDir(filepath.Join(c.opts["pgdata"], rel))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, e := range list {
			name := filepath.Join(rel, e.Name())
			if skipped[name] || strings.HasPrefix(e.Name(), "pgsql_tmp") || emptied[rel] {
				continue
			}
			if err := stopped(); err != nil {
				return err
			}
			one, deeper, n, err := c.copyOne(b, name, before)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it is gone, and WAL knows
			}
			if err != nil {
				return err
			}
			entries, total = append(entries, one), total+n
			if deeper {
				if err := walk(name); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk(""); err != nil {
		return nil, err
	}
	b["pgdata-bytes"] = strconv.FormatInt(total, 10)
	say("INFO", "Data files are transferred, time elapsed: 0")
	return entries, nil
}

// copyOne copies one file of the cluster, or makes its directory.
func (c *call) copyOne(b control, name string, before map[string]entry) (one entry, deeper bool, size int64, err error) {
	from, to := filepath.Join(c.opts["pgdata"], name), filepath.Join(c.database(b["id"]), name)
	info, err := os.Lstat(from)
	if err != nil {
		return one, false, 0, err
	}
	one = entry{Path: name, Size: "0", CRC: "0"}
	if info.Mode()&fs.ModeSymlink != 0 { // a tablespace
		if one.Linked, err = os.Readlink(from); err != nil {
			return one, false, 0, err
		}
		if info, err = os.Stat(from); err != nil {
			return one, false, 0, err
		}
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return one, false, 0, errors.New("no stat")
	}
	one.Mode = strconv.FormatUint(uint64(st.Mode), 10)
	if info.IsDir() {
		return one, true, 0, os.MkdirAll(to, 0o700)
	}
	data, err := os.ReadFile(from)
	if err != nil {
		return one, false, 0, err
	}
	one.Size, one.CRC = strconv.Itoa(len(data)), strconv.FormatUint(uint64(crc32.ChecksumIEEE(data)), 10)
	if old, ok := before[name]; ok && old.CRC == one.CRC && old.Size == one.Size && name != "global/pg_control" {
		one.Size = "-1"
		return one, false, int64(len(data)), nil
	}
	if len(data) == 0 {
		return one, false, 0, nil // as the real one: there is no file
	}
	return one, false, int64(len(data)), os.WriteFile(to, data, 0o600)
}

func (c *call) writeContents(b control, entries []entry) error {
	var text strings.Builder
	stored := int64(0)
	for _, e := range entries {
		line, err := json.Marshal(e)
		if err != nil {
			return err
		}
		text.Write(append(line, '\n'))
		if n, err := strconv.ParseInt(e.Size, 10, 64); err == nil && n > 0 {
			stored += n
		}
	}
	b["data-bytes"] = strconv.FormatInt(stored, 10)
	b["content-crc"] = strconv.FormatUint(uint64(crc32.ChecksumIEEE([]byte(text.String()))), 10)
	return os.WriteFile(c.contentsOf(b["id"]), []byte(text.String()), 0o600)
}

func (c *call) contents(b control) ([]entry, error) {
	text, err := os.ReadFile(c.contentsOf(b["id"]))
	if err != nil {
		return nil, err
	}
	if strconv.FormatUint(uint64(crc32.ChecksumIEEE(text)), 10) != b["content-crc"] {
		return nil, fail("Invalid CRC of backup control file %q", c.contentsOf(b["id"]))
	}
	var entries []entry
	for dec := json.NewDecoder(strings.NewReader(string(text))); ; {
		var e entry
		if err := dec.Decode(&e); err == io.EOF {
			return entries, nil
		} else if err != nil {
			return nil, err
		}
		entries = append(entries, e)
	}
}

// merged is what a backup holds, with the sizes of files that are in its parents.
func (c *call) merged(all []control, id string) (map[string]entry, error) {
	parts, err := chain(all, id)
	if err != nil {
		return nil, err
	}
	whole := map[string]entry{}
	for i := len(parts) - 1; i >= 0; i-- {
		entries, err := c.contents(parts[i])
		if err != nil {
			return nil, err
		}
		now := map[string]entry{}
		for _, e := range entries {
			if e.Size == "-1" {
				old, ok := whole[e.Path]
				if !ok {
					return nil, fail("file %s of backup %s is in none of its parents", e.Path, parts[i]["id"])
				}
				e.Size = old.Size
			}
			now[e.Path] = e
		}
		whole = now
	}
	return whole, nil
}
