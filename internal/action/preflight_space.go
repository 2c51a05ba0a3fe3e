package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"holdfast/internal/catalog"
	"holdfast/internal/engine"
	"holdfast/internal/eventbus"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/tarball"
)

// How much space a run needs is estimated from what the last sets took: for each of them and each component, what was stored for what
// was there, times what is there now. Sets compress differently, and a run may write an increment; so there are two numbers.
//
//	likely  what the largest of these sets would take now. Less is free: a warning.
//	sure    half of what the smallest would take. Less is free: the run is not begun.
//
// The second counts only what surely is comparable: PostgreSQL's part if the same clusters are as large as then, or larger, the
// compression is the same, every backup was a full one, as the next is, none was or is pg_probackup's, and no interrupted copy lies there to be gone on with; the
// files' part if a look at them, of two seconds at most, finds as much as was there then. Data as large as before that takes less
// than half of the least that it ever took is what --skip-preflight is for.

// ErrNoSpace says that a run was not begun, because what it has to write has no room.
var ErrNoSpace = errors.New("not enough space")

// Bounds of the estimate.
const (
	spaceSets   = 8               // complete sets that are looked at
	filesTime   = 2 * time.Second // for a look at the files
	unshrunk    = 0.9             // what is nine tenths of then has not shrunk
	smallInodes = 1000
)

// need is what a run writes into one directory, in bytes.
type need struct {
	dir    string
	likely int64
	sure   int64 // 0: nothing is known for sure
}

// estimate is what a run needs, and how that is known.
type estimate struct {
	needs []need
	basis string
}

// checkSpace compares what a run will write with what is free. Directories on one file system share it.
func (a *App) checkSpace(ctx context.Context) []Finding {
	est, err := a.estimateRun(ctx)
	if err != nil {
		return []Finding{warns(AreaDisks, "space", "holdfast sets list", "how much space a run needs can't be estimated: %v", err)}
	}
	volumes, err := volumesOf(est.dirs()...)
	if err != nil {
		return []Finding{warns(AreaDisks, a.o.DumpDir, "look whether the disk is there and can be read", "how much space is free can't be found out: %v", err)}
	}
	var found []Finding
	for _, v := range volumes {
		found = append(found, est.judge(v))
	}
	return found
}

func (e estimate) dirs() (dirs []string) {
	for _, n := range e.needs {
		dirs = append(dirs, n.dir)
	}
	return dirs
}

// judge says whether a volume has room for what goes there.
func (e estimate) judge(v volume) Finding {
	var likely, sure int64
	for _, n := range e.needs {
		if slices.Contains(v.dirs, n.dir) {
			likely, sure = likely+n.likely, sure+n.sure
		}
	}
	object := strings.Join(v.dirs, ", ")
	const do = "make room there, keep fewer sets (holdfast sets list, holdfast sets delete SET), or use another disk: alation_conf alation.backup.data_dump_dir -s DIR"
	switch {
	case sure > 0 && v.free < uint64(sure):
		return blocked(AreaDisks, object, do+"; to try it all the same: holdfast backup --skip-preflight",
			fmt.Errorf("%w for the backup: %s free, about %s needed (%s), at least %s", ErrNoSpace, engine.Size(v.freeBytes()), engine.Size(likely), e.basis, engine.Size(sure)))
	case v.free < uint64(likely):
		return warns(AreaDisks, object, do, "space may not suffice for the backup: %s free, about %s needed (%s)", engine.Size(v.freeBytes()), engine.Size(likely), e.basis)
	}
	return fine(AreaDisks, object, "%s free, about %s needed by a backup (%s)", engine.Size(v.freeBytes()), engine.Size(likely), e.basis)
}

// estimateRun works out what a run will write where.
func (a *App) estimateRun(ctx context.Context) (estimate, error) {
	sets, _, err := a.o.Catalog.List(ctx)
	if err != nil {
		return estimate{}, err
	}
	sets = slices.DeleteFunc(sets, func(s *catalog.Set) bool { return s.Run == a.o.ExecID }) // the one that is being made
	sizes := a.clusterSizes(ctx)
	history := comparable(sets)
	if len(history) == 0 {
		return a.estimateAnew(ctx, sizes), nil
	}
	var files int64
	for _, s := range history {
		if f := filesOf(s); f != nil {
			files = max(files, f.Bytes)
		}
	}
	files = a.lookAtFiles(ctx, files)
	resumes := a.o.Mode == catalog.Apart && sets[len(sets)-1] != history[len(history)-1]
	var all []shares
	for _, s := range history {
		all = append(all, a.scale(s, sizes, files, resumes))
	}
	e := estimate{basis: fmt.Sprintf("by the last %d sets", len(all))}
	if len(all) == 1 {
		e.basis = "by the last set"
	}
	e.needs = a.placed(all)
	return e, nil
}

// comparable are the last complete sets, oldest first.
func comparable(sets []*catalog.Set) []*catalog.Set {
	var history []*catalog.Set
	for _, s := range sets {
		if s.State == catalog.Complete && s.Recovery != nil && s.Piece(catalog.Application) != nil {
			history = append(history, s)
		}
	}
	return history[max(0, len(history)-spaceSets):]
}

// shares is what the components of one set would take now.
type shares struct {
	postgres, files, bus   int64
	surePostgres, sureFile int64 // 0: not known for sure
}

// scale works out what a set like s would take now. sizes are those of the clusters by stanza, 0 where unknown; files is what was seen of them.
func (a *App) scale(s *catalog.Set, sizes map[string]int64, files int64, resumes bool) shares {
	var sh shares
	sure, stored, chain := !resumes && !a.mayBeIncremental(), int64(0), false
	for _, p := range pointsOf(s) {
		stored += p.RepoBytes
		chain = chain || s.Mode == catalog.Included && p.Tool == "" && !strings.HasSuffix(p.Label, "F")
		now, known := sizes[p.Stanza]
		switch {
		case !known: // the cluster is none of ours any more
			continue
		case now == 0 || p.Bytes == 0:
			sh.postgres += p.RepoBytes
		default:
			sh.postgres += int64(float64(p.RepoBytes) * float64(now) / float64(p.Bytes))
		}
		if p.Tool == "" && !a.useProbackup() && p.Compress == string(a.o.Compress) && strings.HasSuffix(p.Label, "F") && float64(now) >= unshrunk*float64(p.Bytes) {
			sh.surePostgres += p.RepoBytes
		}
	}
	if !sure {
		sh.surePostgres = 0
	}
	sh.files = s.Piece(catalog.Application).Size
	if s.Mode == catalog.Included {
		sh.files = max(0, sh.files-stored)
	}
	// A tarball with a chain has more of PostgreSQL than its last backup: what is left is not of files alone.
	if f := filesOf(s); f != nil && !chain && float64(files) >= unshrunk*float64(f.Bytes) {
		sh.sureFile = sh.files
	}
	if p := s.Piece(catalog.EventBus); p != nil && a.o.Bus != nil {
		sh.bus = p.Size
	}
	return sh
}

// mayBeIncremental says whether the next run may copy less than everything of PostgreSQL.
func (a *App) mayBeIncremental() bool {
	return a.o.Incremental.Enabled || a.o.Type != "" && a.o.Type != repo.Full
}

// placed says what goes where: the most of what the sets would take, and half of the least.
func (a *App) placed(all []shares) []need {
	dump, apart, staged := need{dir: a.o.DumpDir}, need{dir: a.o.RepoDir}, need{dir: a.o.TempDir}
	if a.useProbackup() {
		apart.dir = a.probackupDir()
	}
	lowest := func(of func(shares) int64) int64 {
		least := int64(math.MaxInt64)
		for _, s := range all {
			least = min(least, of(s))
		}
		return least / 2
	}
	for _, s := range all {
		if a.o.Mode == catalog.Included {
			dump.likely = max(dump.likely, s.postgres+s.files+s.bus)
		} else {
			dump.likely, apart.likely = max(dump.likely, s.files+s.bus), max(apart.likely, s.postgres)
		}
	}
	postgres, files := lowest(func(s shares) int64 { return s.surePostgres }), lowest(func(s shares) int64 { return s.sureFile })
	if a.o.Mode == catalog.Included {
		dump.sure = postgres + files
		if a.o.Tool != nil || a.useProbackup() { // an external program makes its backup beside the tarball first
			for _, s := range all {
				apart.likely = max(apart.likely, s.postgres)
			}
			apart.sure = postgres
		}
	} else {
		dump.sure, apart.sure = files, postgres
	}
	return []need{dump, apart, staged}
}

// estimateAnew is for an instance without a set: nothing is sure.
func (a *App) estimateAnew(ctx context.Context, sizes map[string]int64) estimate {
	var sh shares
	for _, n := range sizes {
		sh.postgres += n
	}
	if a.o.Compress != repo.None {
		sh.postgres /= 2
	}
	sh.files = a.lookAtFiles(ctx, math.MaxInt64)
	if a.o.Bus != nil {
		sh.bus = busSize(ctx, *a.o.Bus)
	}
	return estimate{needs: a.placed([]shares{sh}), basis: "there is no set yet to go by: half of the databases, the files that were seen, and the event bus"}
}

// busSize is what the brokers say; 0 when they do not.
func busSize(ctx context.Context, o eventbus.Options) int64 {
	b, err := eventbus.Open(ctx, o)
	if err != nil {
		return 0 // that it does not answer is a finding of its own
	}
	defer b.Close()
	n, err := b.Size(ctx)
	if err != nil {
		return 0
	}
	return n
}

// clusterSizes asks the servers how large their databases are; 0 where one does not say.
func (a *App) clusterSizes(ctx context.Context) map[string]int64 {
	sizes := map[string]int64{}
	for _, c := range a.o.Clusters {
		sizes[c.Stanza] = 0
		o := c.Conn
		o.Query = preflightTime / 2
		conn, err := pg.Connect(ctx, o)
		if err != nil {
			continue // which is a finding of its own
		}
		if s, err := conn.Sizes(ctx); err == nil {
			sizes[c.Stanza] = s.Databases
		}
		_ = conn.Close() // a session that only read
	}
	return sizes
}

// lookAtFiles adds up the files as a run would take them, until it has seen enough or its time is over.
func (a *App) lookAtFiles(ctx context.Context, enough int64) int64 {
	ctx, cancel := context.WithTimeout(ctx, filesTime)
	defer cancel()
	excluded, err := tarball.Excludes(a.o.Files.Exclude)
	if err != nil {
		return 0
	}
	skip := a.skipDirs()
	var seen int64
	for _, t := range a.o.Files.Trees {
		dir, err := filepath.EvalSymlinks(filepath.Join(a.o.Root, t.Path))
		if err != nil {
			continue
		}
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error { // what can't be read counts as nothing
			if ctx.Err() != nil || seen >= enough {
				return fs.SkipAll
			}
			rel, rerr := filepath.Rel(dir, path)
			if err != nil || rerr != nil || slices.Contains(skip, path) || rel != "." && excluded(rel) {
				if d != nil && d.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if info, err := d.Info(); err == nil && info.Mode().IsRegular() {
				seen += onDisk(info)
			}
			return nil
		})
	}
	return seen
}

// onDisk is the content of a file without its holes.
func onDisk(info fs.FileInfo) int64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return min(info.Size(), st.Blocks*512)
	}
	return info.Size()
}

// volume is one file system with the directories that lie on it.
type volume struct {
	dirs   []string
	free   uint64 // bytes for this user
	total  uint64
	inodes uint64 // free
	counts bool   // it has a number of inodes at all
	fixed  bool   // read-only
}

func (v volume) freeBytes() int64 { return int64(min(v.free, 1<<62)) }

// volumesOf groups directories by file system. One that is not there yet counts where it will be.
func volumesOf(dirs ...string) ([]volume, error) {
	byDevice := map[uint64]*volume{}
	var order []uint64
	for _, dir := range dirs {
		if dir == "" {
			continue
		}
		at := dir
		info, err := os.Stat(at)
		for errors.Is(err, fs.ErrNotExist) && filepath.Dir(at) != at {
			at = filepath.Dir(at)
			info, err = os.Stat(at)
		}
		if err != nil {
			return nil, err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return nil, fmt.Errorf("%s: the file system does not say which device it is", at)
		}
		v := byDevice[st.Dev]
		if v == nil {
			var s unix.Statfs_t
			if err := unix.Statfs(at, &s); err != nil {
				return nil, fmt.Errorf("free space of %s: %w", at, err)
			}
			v = &volume{free: s.Bavail * uint64(s.Bsize), total: s.Blocks * uint64(s.Bsize), inodes: s.Ffree, counts: s.Files > 0, fixed: s.Flags&unix.ST_RDONLY != 0}
			byDevice[st.Dev] = v
			order = append(order, st.Dev)
		}
		if !slices.Contains(v.dirs, dir) {
			v.dirs = append(v.dirs, dir)
		}
	}
	all := make([]volume, 0, len(order))
	for _, d := range order {
		all = append(all, *byDevice[d])
	}
	return all, nil
}
