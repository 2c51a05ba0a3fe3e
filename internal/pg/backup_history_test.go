package pg

import (
	"strings"
	"testing"
)

const (
	backupHistoryName = "0000000100000000000000AA.00000028.backup"
	backupHistoryText = "START WAL LOCATION: 0/AA000028 (file 0000000100000000000000AA)\nSTOP WAL LOCATION: 0/AA000100 (file 0000000100000000000000AA)\n" +
		"CHECKPOINT LOCATION: 0/AA000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\nSTART TIME: 2026-03-01 12:00:00 UTC\n" +
		"LABEL: pgBackRest backup started at 2026-03-01 12:00:00\nSTART TIMELINE: 1\nSTOP TIME: 2026-03-01 12:00:05 UTC\nSTOP TIMELINE: 1\n"
)

func TestCheckBackupHistory(t *testing.T) {
	for name, text := range map[string]string{
		"as it is":          backupHistoryText,
		"label of lines":    strings.Replace(backupHistoryText, "LABEL: ", "LABEL: one\ntwo\nSTART TIMELINE: 7\n", 1),
		"empty label":       strings.Replace(backupHistoryText, "pgBackRest backup started at 2026-03-01 12:00:00", "", 1),
		"PostgreSQL 13":     strings.NewReplacer("streamed", "pg_start_backup", "primary", "master").Replace(backupHistoryText),
		"time zone":         strings.ReplaceAll(backupHistoryText, "UTC", "<+0530>"),
		"incremental of 17": backupHistoryText + "INCREMENTAL FROM LSN: 0/A9000028\nINCREMENTAL FROM TLI: 1\n",
	} {
		if err := CheckBackupHistory(backupHistoryName, strings.NewReader(text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, c := range map[string]struct{ name, text, want string }{
		"empty":            {backupHistoryName, "", "empty"},
		"appended":         {backupHistoryName, backupHistoryText + "x", "lines"},
		"cut":              {backupHistoryName, backupHistoryText[:len(backupHistoryText)-1], "lines"},
		"a line is gone":   {backupHistoryName, strings.Replace(backupHistoryText, "STOP TIMELINE: 1\n", "", 1), "lines"},
		"flipped":          {backupHistoryName, strings.Replace(backupHistoryText, "METHOD", "METHOE", 1), "lines"},
		"other segment":    {"0000000100000000000000AB.00000028.backup", backupHistoryText, "0/AA000028"},
		"other offset":     {"0000000100000000000000AA.00000030.backup", backupHistoryText, "0/AA000028"},
		"other timeline":   {backupHistoryName, strings.Replace(backupHistoryText, "START TIMELINE: 1", "START TIMELINE: 2", 1), "timeline 2"},
		"ends before":      {backupHistoryName, strings.Replace(backupHistoryText, "0/AA000100", "0/AA000010", 1), "before it began"},
		"too long":         {backupHistoryName, strings.Replace(backupHistoryText, "LABEL: ", "LABEL: "+strings.Repeat("x", maxBackupHistory), 1), "longer"},
		"name of anything": {"00000002.history", backupHistoryText, "not the name"},
	} {
		if err := CheckBackupHistory(c.name, strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
}

func FuzzBackupHistory(f *testing.F) {
	f.Add(backupHistoryName, backupHistoryText)
	f.Add(backupHistoryName, backupHistoryText+"INCREMENTAL FROM LSN: 0/A9000028\nINCREMENTAL FROM TLI: 1\n")
	f.Add("00000002.history", "")
	f.Fuzz(func(t *testing.T, name, text string) {
		if CheckBackupHistory(name, strings.NewReader(text)) == nil && !strings.Contains(text, "(file "+name[:24]+")\nSTOP WAL LOCATION: ") {
			t.Errorf("%q is right for %s", text, name)
		}
	})
}
