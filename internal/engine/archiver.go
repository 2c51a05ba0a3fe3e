package engine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
)

// await is WaitForSegments for a cluster that can be asked: an error of time then says what the archiver is doing.
func (s *Stanza) await(ctx context.Context, db repo.DB, segments []string, timeout time.Duration, conn pg.ConnOptions, dataDir string) error {
	err := s.WaitForSegments(ctx, db, segments, timeout)
	if !errors.Is(err, ErrArchiveTimeout) {
		return err
	}
	why := explainArchiver(ctx, conn, dataDir)
	if len(why) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, strings.Join(why, "\n"))
}

// explainArchiver says in lines what is known of a server's archiving. What can't be asked is left out: the question comes
// up when something else has failed.
func explainArchiver(ctx context.Context, o pg.ConnOptions, dataDir string) []string {
	var why []string
	if conn, err := pg.Connect(ctx, o); err == nil {
		a, aerr := conn.Archiver(ctx)
		if aerr == nil {
			why = append(why, archiverLines(a)...)
		}
		if cerr := conn.Close(); aerr != nil || cerr != nil {
			why = append(why, fmt.Sprintf("pg_stat_archiver: %v", errors.Join(aerr, cerr)))
		}
	}
	if dataDir == "" {
		return why
	}
	ready, err := readySegments(filepath.Join(dataDir, "pg_wal"))
	if err == nil && len(ready) > 0 {
		i := slices.IndexFunc(ready, func(n string) bool { return !pg.IsHistoryName(n) })
		why = append(why, fmt.Sprintf("%d WAL file(s) wait to be archived in %s, the first is %s", len(ready), filepath.Join(dataDir, "pg_wal"), ready[max(i, 0)]))
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		why = append(why, err.Error())
	}
	return why
}

func archiverLines(a pg.Archiver) []string {
	var lines []string
	switch {
	case a.Command == "(disabled)":
		lines = append(lines, "archive_mode is off")
	case a.Command == "" && a.Library == "":
		lines = append(lines, "archive_command is empty")
	case a.Library != "":
		lines = append(lines, "archive_library is "+a.Library)
	default:
		lines = append(lines, "archive_command is "+a.Command)
	}
	if a.LastFailed > a.LastDone {
		lines = append(lines, fmt.Sprintf("archiving of %s failed last, at %s (%d failures so far): the reason is in the PostgreSQL log", a.LastFailed, a.FailedAt.Format(time.RFC3339), a.Failed))
	}
	if a.LastDone != "" {
		lines = append(lines, "the last file archived is "+a.LastDone)
	}
	return lines
}
