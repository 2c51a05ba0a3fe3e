package probackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Server says how the program reaches PostgreSQL.
type Server struct {
	DataDir string
	Host    string // name or socket directory; empty: the library's default
	Port    int    // 0: the library's default
	User    string
}

func (s Server) words() []string {
	words := []string{"--pgdata=" + s.DataDir, "--pgdatabase=postgres", "--no-password"}
	if s.Host != "" {
		words = append(words, "--pghost="+s.Host)
	}
	if s.Port != 0 {
		words = append(words, "--pgport="+strconv.Itoa(s.Port))
	}
	if s.User != "" {
		words = append(words, "--pguser="+s.User)
	}
	return words
}

// Compression of data files and WAL: level 1 to 9 of zlib; 0: none.
type Compression int

func (c Compression) words() []string {
	if c == 0 {
		return []string{"--compress-algorithm=none"}
	}
	return []string{"--compress-algorithm=zlib", "--compress-level=" + strconv.Itoa(int(c))}
}

// What keeps settings of the instance, which others may have made, from changing what is done: other hosts, a silent log.
const (
	local = "--remote-proto=none"
	loud  = "--log-level-console=info"
)

func (t *Tool) on(instance string) []string {
	return []string{"--backup-path=" + t.Dir, "--instance=" + instance}
}

// Version asks the program. An answer that is not pg_probackup's is ErrNotProbackup.
func (t *Tool) Version(ctx context.Context) (Version, error) {
	out, err := t.run(ctx, "", "version")
	var e *Error
	if errors.As(err, &e) && e.Code > 0 {
		return Version{}, fmt.Errorf("%w: %s", ErrNotProbackup, e.Error())
	}
	if err != nil {
		return Version{}, err
	}
	return ParseVersion(out)
}

// Initialized says whether there is a backup catalog in the directory. One that is missing or empty can become one.
func (t *Tool) Initialized() (bool, error) {
	entries, err := os.ReadDir(t.Dir)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(entries) == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, name := range []string{"backups", "wal"} {
		if info, err := os.Stat(filepath.Join(t.Dir, name)); err != nil || !info.IsDir() {
			return false, fmt.Errorf("%s is neither empty nor a backup catalog of pg_probackup: it has no directory %s", t.Dir, name)
		}
	}
	return true, nil
}

// Init makes the backup catalog in a directory that is missing or empty.
func (t *Tool) Init(ctx context.Context) error {
	_, err := t.run(ctx, "", "init", "--backup-path="+t.Dir)
	return err
}

// HasInstance says whether the catalog knows an instance.
func (t *Tool) HasInstance(instance string) (bool, error) {
	info, err := os.Stat(filepath.Join(t.Dir, "backups", instance))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && info.IsDir(), err
}

// AddInstance makes an instance of a data directory, whose system identifier it keeps.
func (t *Tool) AddInstance(ctx context.Context, instance, dataDir string) error {
	_, err := t.run(ctx, instance, "add-instance", append(t.on(instance), "--pgdata="+dataDir, local, loud)...)
	return err
}

// Config is what the catalog says of an instance.
func (t *Tool) Config(ctx context.Context, instance string) (Config, error) {
	out, err := t.run(ctx, instance, "show-config", append(t.on(instance), "--format=json")...)
	if err != nil {
		return Config{}, err
	}
	return ParseConfig(out)
}

// Show lists an instance's backups, oldest first.
func (t *Tool) Show(ctx context.Context, instance string) ([]Backup, error) {
	out, err := t.run(ctx, instance, "show", append(t.on(instance), "--format=json")...)
	if err != nil {
		return nil, err
	}
	return ParseShow(out, instance)
}

// BackupOptions says how a backup is made.
type BackupOptions struct {
	Mode           string // FULL, DELTA or PAGE; the parent of the latter two is the newest valid backup of the timeline
	Server         Server
	Compression    Compression
	Threads        int
	ArchiveTimeout time.Duration // how long it waits for a WAL segment to reach the archive
	Note           string
}

// Backup makes a backup that needs the WAL archive (not a streaming one), and has it validated by the program. It waits until the
// WAL up to its end is in the archive.
func (t *Tool) Backup(ctx context.Context, instance string, o BackupOptions) error {
	words := append(t.on(instance), "--backup-mode="+o.Mode, "--threads="+strconv.Itoa(max(o.Threads, 1)),
		"--archive-timeout="+strconv.Itoa(max(1, int(o.ArchiveTimeout/time.Second))), "--external-dirs=none", local, loud, "--note="+o.Note)
	_, err := t.run(ctx, instance, "backup", append(append(words, o.Server.words()...), o.Compression.words()...)...)
	return err
}

// Validate reads a backup, those that it builds on, and the WAL that it needs to become consistent. What is wrong with them is an
// *Error with exit code 1.
func (t *Tool) Validate(ctx context.Context, instance, id string, threads int) error {
	_, err := t.run(ctx, instance, "validate", append(t.on(instance), "--backup-id="+id, "--threads="+strconv.Itoa(max(threads, 1)), loud)...)
	return err
}

// Delete removes a backup and every one that builds on it; with wal also the WAL that is then before the oldest that is left.
func (t *Tool) Delete(ctx context.Context, instance, id string, wal bool) error {
	words := append(t.on(instance), "--backup-id="+id, loud)
	if wal {
		words = append(words, "--delete-wal", "--wal-depth=0")
	}
	_, err := t.run(ctx, instance, "delete", words...)
	return err
}

// PurgeWAL removes the WAL before the oldest backup that is left.
func (t *Tool) PurgeWAL(ctx context.Context, instance string) error {
	_, err := t.run(ctx, instance, "delete", append(t.on(instance), "--delete-wal", "--wal-depth=0", loud)...)
	return err
}

// RestoreOptions says what is restored and how far it is recovered.
type RestoreOptions struct {
	ID             string
	DataDir        string // missing or empty
	TargetName     string // or
	TargetTime     string
	Timeline       uint32
	RestoreCommand string            // for PostgreSQL
	Tablespaces    map[string]string // where a tablespace was → where it goes, missing or empty
	Threads        int
}

// Restore restores a backup that has been validated before, and writes the settings of the recovery, which ends in promotion.
func (t *Tool) Restore(ctx context.Context, instance string, o RestoreOptions) error {
	words := append(t.on(instance), "--backup-id="+o.ID, "--pgdata="+o.DataDir, "--threads="+strconv.Itoa(max(o.Threads, 1)), "--no-validate", "--skip-external-dirs", local, loud,
		"--recovery-target-action=promote", "--recovery-target-timeline="+strconv.FormatUint(uint64(o.Timeline), 10),
		// It puts the command between quotes as it is, where PostgreSQL reads doubled quotes and escapes.
		"--restore-command="+strings.NewReplacer("'", "''", `\`, `\\`).Replace(o.RestoreCommand))
	if o.TargetTime != "" {
		words = append(words, "--recovery-target-time="+o.TargetTime)
	} else {
		words = append(words, "--recovery-target-name="+o.TargetName)
	}
	for from, to := range o.Tablespaces {
		escape := strings.NewReplacer("=", `\=`)
		words = append(words, "--tablespace-mapping="+escape.Replace(from)+"="+escape.Replace(to))
	}
	_, err := t.run(ctx, instance, "restore", words...)
	return err
}

// PushWords begins the command line that archives a segment; Segment ends it.
func (t *Tool) PushWords(instance string, c Compression) []string {
	return append(append(append([]string{t.Program, "archive-push"}, t.on(instance)...), c.words()...), local)
}

// GetWords begins the command line that fetches a file of the archive; Segment ends it.
func (t *Tool) GetWords(instance string) []string {
	return append(append([]string{t.Program, "archive-get"}, t.on(instance)...), local)
}

// Segment ends archive_command and restore_command, as PostgreSQL is told them: it fills %p and %f in.
const Segment = `--wal-file-path="%p" --wal-file-name=%f`

// WALDir is the directory of an instance's WAL archive.
func (t *Tool) WALDir(instance string) string { return filepath.Join(t.Dir, "wal", instance) }

// WALFile finds a file of the archive, compressed or not; fs.ErrNotExist where it has not arrived.
func (t *Tool) WALFile(instance, name string) (string, error) {
	path := filepath.Join(t.WALDir(instance), name)
	for _, p := range []string{path, path + ".gz"} {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p, nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", &fs.PathError{Op: "find", Path: path, Err: fs.ErrNotExist}
}
