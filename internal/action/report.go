package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/storage"
)

// Times that a report gives a server.
const (
	reportConnect = 5 * time.Second
	reportQuery   = 10 * time.Second
)

// reportedSettings are PostgreSQL's parameters that have to do with archiving and backups. None of them holds a password as it is
// meant to be used; primary_conninfo does.
func reportedSettings() []string {
	return []string{"archive_command", "archive_library", "archive_mode", "archive_timeout", "block_size", "checkpoint_timeout", "config_file", "data_checksums", "data_directory",
		"fsync", "full_page_writes", "hot_standby", "max_slot_wal_keep_size", "max_wal_senders", "max_wal_size", "min_wal_size", "restore_command", "server_version", "summarize_wal",
		"track_commit_timestamp", "wal_compression", "wal_keep_size", "wal_level", "wal_log_hints", "wal_segment_size"}
}

// ServerReport is what can be said of one cluster's archiving.
type ServerReport struct {
	Stanza   string            `json:"stanza"`
	DataDir  string            `json:"data_dir"`
	Settings map[string]string `json:"settings,omitempty"`
	Restart  []string          `json:"wait_for_restart,omitempty"` // settings that do
	Archiver *pg.Archiver      `json:"archiver,omitempty"`
	Control  *pg.Control       `json:"control,omitempty"`
	WAL      *WALReport        `json:"wal,omitempty"`
	Problems []string          `json:"problems,omitempty"` // what could not be found out
}

// WALReport is how full pg_wal is and what waits there to be archived.
type WALReport struct {
	Files    int    `json:"files"`
	Bytes    int64  `json:"bytes"`
	Ready    int    `json:"ready"`                 // waiting for archive_command
	First    string `json:"first_ready,omitempty"` // the first of them by name
	FirstAge string `json:"first_since,omitempty"` // how long it has been
	Archived int    `json:"archived_not_recycled"` // done, and still there
	Place    string `json:"link_target,omitempty"` // where pg_wal is a link to
}

// ReportServers asks every cluster how its archiving is. What does not answer is noted in the report.
func (a *App) ReportServers(ctx context.Context) []ServerReport {
	all := []ServerReport{}
	for _, c := range a.o.Clusters {
		r := ServerReport{Stanza: c.Stanza, DataDir: c.DataDir}
		note := func(what string, err error) {
			if err != nil {
				r.Problems = append(r.Problems, what+": "+err.Error())
			}
		}
		control, _, err := pg.ReadControl(ctx, c.DataDir)
		if err == nil {
			r.Control = &control
		}
		note("control file", err)
		r.WAL, err = reportWAL(c.DataDir, a.o.Now())
		note("pg_wal", err)
		note("server", r.ask(ctx, c.Conn))
		all = append(all, r)
	}
	return all
}

// ask asks the server.
func (r *ServerReport) ask(ctx context.Context, o pg.ConnOptions) error {
	o.Timeout, o.Query = reportConnect, reportQuery
	conn, err := pg.Connect(ctx, o)
	if err != nil {
		return err
	}
	r.Settings = map[string]string{}
	var all []error
	for _, name := range reportedSettings() {
		value, restart, err := conn.Setting(ctx, name)
		switch {
		case err != nil && strings.Contains(err.Error(), "has no parameter"): // of another version
		case err != nil:
			all = append(all, err)
		default:
			r.Settings[name] = value
			if restart {
				r.Restart = append(r.Restart, name)
			}
		}
	}
	if archiver, err := conn.Archiver(ctx); err != nil {
		all = append(all, err)
	} else {
		r.Archiver = &archiver
	}
	return errors.Join(append(all, conn.Close())...)
}

// reportWAL counts what is in pg_wal.
func reportWAL(dataDir string, now time.Time) (*WALReport, error) {
	dir := filepath.Join(dataDir, "pg_wal")
	r := &WALReport{}
	if target, err := os.Readlink(dir); err == nil {
		r.Place = target
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() { // else it has gone meanwhile
			r.Files++
			r.Bytes += info.Size()
		}
	}
	status, err := os.ReadDir(filepath.Join(dir, "archive_status"))
	if err != nil {
		return r, err
	}
	for _, e := range status {
		switch name, ready := strings.CutSuffix(e.Name(), ".ready"); {
		case ready:
			if r.Ready++; r.Ready == 1 {
				r.First = name
				if info, err := e.Info(); err == nil {
					r.FirstAge = now.Sub(info.ModTime()).Round(time.Second).String()
				}
			}
		case strings.HasSuffix(e.Name(), ".done"):
			r.Archived++
		}
	}
	return r, nil
}

// RepoReport is what one repository holds.
type RepoReport struct {
	Where    string               `json:"where"`
	Stanzas  []*engine.StanzaInfo `json:"stanzas"`
	Problems []string             `json:"problems,omitempty"`
}

// ReportRepositories says what the repository here and the one on external storage hold. What can't be read is noted in the report.
func (a *App) ReportRepositories(ctx context.Context) []RepoReport {
	all := []RepoReport{a.reportRepository(ctx, a.o.RepoDir, a.repository)}
	if s := a.o.Store; s != nil {
		all = append(all, a.reportRepository(ctx, s.Name, s.OpenRepo))
	}
	return all
}

func (a *App) reportRepository(ctx context.Context, where string, open func() (storage.Storage, error)) RepoReport {
	r := RepoReport{Where: where, Stanzas: []*engine.StanzaInfo{}}
	note := func(err error) {
		if err != nil {
			r.Problems = append(r.Problems, err.Error())
		}
	}
	st, err := open()
	if err != nil {
		note(err)
		return r
	}
	names, err := engine.Stanzas(ctx, st)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	note(err)
	for _, n := range names {
		s, err := a.stanza(n, st)
		if err == nil {
			var info *engine.StanzaInfo
			if info, err = s.Info(ctx, ""); err == nil {
				r.Stanzas = append(r.Stanzas, info)
			}
		}
		if err != nil {
			note(fmt.Errorf("stanza %s: %w", n, err))
		}
	}
	return r
}

// Place is a directory of the application's.
type Place struct {
	Name string `json:"name"`
	Path string `json:"path"`
}

// Places lists the directories whose disks a backup or a restore may fill.
func (a *App) Places() []Place {
	all := []Place{{"tarballs", a.o.DumpDir}, {"staging", a.o.TempDir}, {"repository", a.o.RepoDir}}
	for _, c := range a.o.Clusters {
		all = append(all, Place{"data of " + c.Stanza, c.DataDir}, Place{"WAL of " + c.Stanza, filepath.Join(c.DataDir, "pg_wal")})
	}
	for _, t := range a.o.Files.Trees {
		all = append(all, Place{"files " + t.Name, filepath.Join(a.o.Root, t.Path)})
	}
	return all
}

// Stanzas names the clusters.
func (a *App) Stanzas() []string {
	var all []string
	for _, c := range a.o.Clusters {
		all = append(all, c.Stanza)
	}
	return all
}
