package engine_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"holdfast/internal/engine"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/test/tally"
)

// backrestExpire runs the real expire on a repository. Its dry run prints what it would remove, but not by object, so it
// is let loose on a repository made up for it.
func backrestExpire(t *testing.T, dir string, o engine.ExpireOptions) (code int, out string) {
	t.Helper()
	conf := filepath.Join(dir, "..", "pgbackrest.conf")
	must(t, os.WriteFile(conf, []byte("[global]\n"), 0o600))
	args := []string{"--config=" + conf, "--stanza=demo", "--repo1-path=" + dir, "--lock-path=" + filepath.Join(dir, "../lock"), "--log-level-file=off", "--log-level-stderr=off", "--log-level-console=detail"}
	number := func(option string, n int) {
		if n > 0 {
			args = append(args, "--repo1-retention-"+option+"="+strconv.Itoa(n))
		}
	}
	text := func(option, value string) {
		if value != "" {
			args = append(args, "--"+option+"="+value)
		}
	}
	number("full", o.Full)
	number("diff", o.Diff)
	number("archive", o.Archive)
	text("repo1-retention-full-type", string(o.FullType))
	text("repo1-retention-archive-type", string(o.ArchiveType))
	text("set", string(o.Set))
	if o.HistoryDays != nil {
		text("repo1-retention-history", strconv.Itoa(*o.HistoryDays))
	}
	cmd := exec.Command("pgbackrest", append(args, "expire")...)
	cmd.Env = []string{"TZ=UTC", "PATH=" + os.Getenv("PATH")}
	b, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("pgbackrest: %v: run make setup", err)
	}
	return cmd.ProcessState.ExitCode(), strings.Join(args, " ") + "\n" + string(b)
}

// objectsOf lists a repository without its info files, and the backups that backup.info has.
func objectsOf(t *testing.T, st storage.Storage) (map[string]bool, []repo.Label) {
	t.Helper()
	all := map[string]bool{}
	for info, err := range st.List(t.Context(), "", storage.ListOptions{Recursive: true}) {
		must(t, err)
		if !strings.HasSuffix(info.Name, ".info") && !strings.HasSuffix(info.Name, ".info.copy") {
			all[info.Name] = true
		}
	}
	bi, err := repo.LoadBackupInfo(t.Context(), st, "demo", "")
	must(t, err)
	var labels []repo.Label
	for _, l := range bi.Backups {
		labels = append(labels, l.Label)
	}
	return all, labels
}

// TestExpireTheirs: on copies of one random history pgbackrest 2.45 and we leave the same.
func TestExpireTheirs(t *testing.T) {
	if testing.Short() {
		t.Skip("needs pgbackrest; run make test")
	}
	const n = 100
	now := time.Now().UTC() // retention by time goes by pgbackrest's clock
	var removed, refused, set, kept, histories int
	for seed := range n {
		rnd := rand.New(rand.NewPCG(uint64(seed), 45))
		h := randomHistory(rnd, now, false)
		o := randomExpire(rnd, h, false)
		where := fmt.Sprintf("seed %d: %+v", seed, o)
		base := scratch(t)
		theirs, ours := posix(t, filepath.Join(base, "theirs")), posix(t, filepath.Join(base, "ours"))
		h.store(t, theirs)
		h.store(t, ours)
		before, _ := objectsOf(t, theirs)
		code, out := backrestExpire(t, filepath.Join(base, "theirs"), o)
		plan, err := h.expireOn(t, ours).PlanExpire(t.Context(), o)
		if errors.Is(err, engine.ErrLastBackup) && strings.Contains(out, "[075]") {
			refused++
			continue
		}
		if err != nil || code != 0 {
			t.Fatalf("%s: ours %v; theirs ended with code %d: %s", where, err, code, out)
		}
		must(t, plan.Run(t.Context()))
		gotObjects, got := objectsOf(t, ours)
		wantObjects, want := objectsOf(t, theirs)
		if !slices.Equal(got, want) {
			t.Errorf("%s: backups\n%v, theirs\n%v", where, got, want)
		}
		if o.FullType == engine.RetainTime && o.Archive == 0 && (o.ArchiveType == "" || o.ArchiveType == repo.Full) && o.Set == "" {
			// Since 2.47 WAL older than the oldest full goes whenever there is a full old enough; 2.45 asks for a full to go.
			dropWAL(gotObjects)
			dropWAL(wantObjects)
			kept++
		}
		histories += moreHistories(t, ours, gotObjects, wantObjects)
		compareSets(t, where, gotObjects, wantObjects)
		if t.Failed() {
			t.Fatalf("pgbackrest: %s", out)
		}
		removed += len(before) - len(wantObjects)
		if o.Set != "" {
			set++
		}
	}
	t.Logf("%d random histories alike: %d objects removed, %d times one backup, %d refused by both; in %d the archive was not compared; we kept %d history files more", n, removed, set, refused, kept, histories)
	tally.Count(t, "histories expired as pgbackrest does", n)
	if removed == 0 || refused == 0 || set == 0 || kept > n/2 {
		t.Error("the histories do not show enough")
	}
}

// dropWAL leaves the WAL out of a set of objects.
func dropWAL(objects map[string]bool) {
	maps.DeleteFunc(objects, func(name string, _ bool) bool { return strings.HasPrefix(name, "archive/") })
}

// moreHistories takes out of got the timeline history files that we keep beyond the other program, for a backup that stays on
// that timeline or an earlier one, and counts them.
func moreHistories(t *testing.T, ours storage.Storage, got, want map[string]bool) (n int) {
	bi, err := repo.LoadBackupInfo(t.Context(), ours, "demo", "")
	must(t, err)
	needed := func(name, timeline string) bool {
		return slices.ContainsFunc(bi.Backups, func(l repo.BackupLine) bool {
			db := bi.History[l.DBID-1]
			return strings.HasPrefix(name, "archive/demo/"+repo.ArchiveID(db.Version, db.ID)+"/") && l.ArchiveStart != "" && l.ArchiveStart[:8] <= timeline
		})
	}
	for name := range got {
		if timeline, ok := strings.CutSuffix(path.Base(name), ".history"); ok && !want[name] && needed(name, timeline) {
			delete(got, name)
			n++
		}
	}
	return n
}
