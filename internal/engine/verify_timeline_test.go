package engine_test

import (
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// TestVerifyTimelineSwitch: the WAL of a promoted server goes on from that of the old one. What the old one did not archive
// before it was lost is missing there for good, and no recovery from a backup of before gets past it.
func TestVerifyTimelineSwitch(t *testing.T) {
	seg := func(timeline, n string) string { return "0000000" + timeline + "00000000000000" + n }
	for name, c := range map[string]struct {
		segments []string // archived after the backup, whose WAL ends in segment 21 of timeline 1
		history  string   // of timeline 2; "" none
		want     string   // "" nothing wrong
	}{
		"whole":                            {[]string{seg("1", "22"), seg("1", "23"), seg("2", "24"), seg("2", "25")}, "1\t0/2480000\tx\n", ""},
		"the old one wrote on":             {[]string{seg("1", "22"), seg("1", "23"), seg("1", "24"), seg("1", "25"), seg("2", "24")}, "1\t0/2480000\tx\n", ""},
		"at once":                          {[]string{seg("2", "22")}, "1\t0/2280000\tx\n", ""},
		"at the end of a segment":          {[]string{seg("1", "22"), seg("2", "23")}, "1\t0/2300000\tx\n", ""},
		"nothing of the new one":           {[]string{seg("1", "22"), seg("1", "23")}, "1\t0/2480000\tx\n", ""},
		"left before the backup":           {[]string{seg("1", "22"), seg("2", "1E"), seg("2", "1F")}, "1\t0/1E80000\tx\n", ""},
		"last of the old one":              {[]string{seg("1", "22"), seg("2", "24"), seg("2", "25")}, "1\t0/2480000\tx\n", seg("1", "23")},
		"all of the old one":               {[]string{seg("2", "24")}, "1\t0/2480000\tx\n", seg("1", "22")},
		"last, at the end of a segment":    {[]string{seg("1", "22"), seg("2", "24")}, "1\t0/2400000\tx\n", seg("1", "23")},
		"first of the new one":             {[]string{seg("1", "22"), seg("1", "23"), seg("2", "25")}, "1\t0/2480000\tx\n", seg("2", "24")},
		"no history":                       {[]string{seg("1", "22"), seg("1", "23"), seg("2", "24")}, "", "00000002.history"},
		"history without content":          {[]string{seg("1", "22")}, " ", "00000002.history"},
		"history of a later timeline":      {[]string{seg("1", "22")}, "1\t0/2280000\tx\n2\t0/2290000\tx\n", "00000002.history"},
		"two switches, between is missing": {[]string{seg("1", "22"), seg("2", "22"), seg("3", "25")}, "1\t0/2280000\tx\n", seg("2", "23")},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 15)
			m, _ := r.withBackups(1)
			push := func(file string) {
				t.Helper()
				_, err := r.stanza(m).Push(t.Context(), engine.PushOptions{Path: file, DataDir: r.server.dir, HeaderCheck: true})
				must(t, err)
			}
			for _, s := range c.segments {
				file, err := r.server.segment(s)
				must(t, err)
				push(file)
			}
			if c.history != "" {
				push(r.server.write(t, "pg_wal/00000002.history", strings.TrimPrefix(c.history, " ")))
			}
			if strings.HasPrefix(name, "two") {
				push(r.server.write(t, "pg_wal/00000003.history", c.history+"2\t0/2580000\ty\n"))
			}
			err := r.verify(m, "")
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("findings %v, want %q", err, c.want)
			}
			if c.want == "" || strings.HasPrefix(name, "history") {
				return
			}
			if n := len(strings.Split(err.Error(), "\n")); n != 1 {
				t.Errorf("%d findings: %v", n, err)
			}
			// A backup of the new timeline does not need to get past it.
			r.server.timeline, r.server.position = 3, 0x3000000
			r.server.write(t, "pg_wal/00000003.history", "1\t0/2480000\tx\n2\t0/2580000\ty\n")
			must(t, r.server.checkpoint())
			_, err = r.backup(t.Context(), m, m)
			must(t, errors.Join(err, r.verify(m, "")))
		})
	}
}

// TestVerifyRetentionIsNoGap: with the archive's retention by diff or incr backups WAL goes that lies behind the newest full
// backup. That is no damage; WAL that is missing elsewhere is.
func TestVerifyRetentionIsNoGap(t *testing.T) {
	for _, c := range []struct {
		types []repo.BackupType
		o     engine.ExpireOptions
	}{
		{[]repo.BackupType{repo.Full, repo.Incr, repo.Incr, repo.Incr}, engine.ExpireOptions{Archive: 1, ArchiveType: repo.Incr}},
		{[]repo.BackupType{repo.Full, repo.Incr, repo.Diff, repo.Incr}, engine.ExpireOptions{Archive: 1, ArchiveType: repo.Diff}},
		{[]repo.BackupType{repo.Full, repo.Diff, repo.Diff}, engine.ExpireOptions{Archive: 2, ArchiveType: repo.Diff}},
	} {
		r := newRig(t, 15)
		m := storage.NewMem(nil)
		must(t, r.create(t.Context(), m))
		var last *engine.BackupResult
		for _, typ := range c.types {
			last, _ = r.mustBackup(m, engine.BackupOptions{Type: typ})
			for range 3 { // archived between the backups
				r.server.mu.Lock()
				err := r.server.switchWAL()
				r.server.mu.Unlock()
				must(t, err)
			}
		}
		must(t, r.verified(m))
		plan, err := r.expire(t.Context(), m, c.o)
		must(t, err)
		if plan.WALFiles == 0 {
			t.Fatal("no WAL went")
		}
		must(t, r.verified(m))
		// One that retention did not take.
		names := m.Names()
		i := slices.IndexFunc(names, func(n string) bool {
			return path.Base(n) > last.ArchiveStop && strings.HasPrefix(n, "archive/demo/15-1/0000")
		})
		must(t, m.Remove(t.Context(), names[i+1]))
		if err := r.verify(m, ""); err == nil || !strings.Contains(err.Error(), "gap") {
			t.Errorf("%v: a missing segment: %v", c.types, err)
		}
	}
}
