package engine

import (
	"context"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io/fs"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
)

// perFile is how many bytes a backup may hold for each file of the cluster.
const perFile = 1024

// TestMemoryPerFile holds full and incremental backups of many small files to perFile.
func TestMemoryPerFile(t *testing.T) {
	measureScale(t, 100_000, func(what string, bytes float64) {
		t.Logf("%s: %.0f bytes per file", what, bytes)
		if bytes > perFile {
			t.Errorf("%s holds %.0f bytes per file, more than %d", what, bytes, perFile)
		}
	})
}

// BenchmarkMillionFiles prints what a backup of a cluster with a million files holds in memory.
func BenchmarkMillionFiles(b *testing.B) {
	for b.Loop() {
		measureScale(b, 1_000_000, func(what string, bytes float64) {
			b.ReportMetric(bytes, strings.ReplaceAll(what, " ", "-")+"-B/file")
		})
	}
}

// measureScale plans and saves a full and an incremental backup of n synthetic files, through the code of the real ones
// except that nothing is read and no file stored, and reports bytes in use per file: held (what stays after a garbage
// collection once all is known), and the peak (garbage included, as the collector lets it grow).
func measureScale(t testing.TB, n int, report func(what string, bytesPerFile float64)) {
	st, err := storage.NewPosix(t.TempDir(), storage.PosixOptions{})
	noError(t, err)
	defer func() { noError(t, st.Close()) }()
	p := &BackupPlan{
		Stanza: "scale", s: &Stanza{o: Options{Stanza: "scale", Storage: st, Now: time.Now}},
		o:        BackupOptions{Bundle: true, BundleSize: defaultBundleSize, BundleLimit: defaultBundleLimit},
		Compress: repo.ZST,
	}
	// Garbage of earlier tests is not ours.
	before := inUse()
	for _, kind := range []repo.BackupType{repo.Full, repo.Incr} {
		p.Type = kind
		watch := watchHeap()
		m, jobs := planSynthetic(t, p, n)
		held := inUse() - before
		noError(t, repo.PublishManifest(t.Context(), st, "scale", m, ""))
		peak := watch() - before
		runtime.KeepAlive(jobs)
		runtime.KeepAlive(p.prior)
		report(string(kind)+" held", float64(held)/float64(n))
		if n >= 1_000_000 { // of fewer files the fixed part of a process would be counted
			report(string(kind)+" peak", float64(peak)/float64(n))
		}
		p.Prior = m.Label
		if p.prior, err = repo.LoadManifest(context.Background(), st, "scale", m.Label, ""); err != nil {
			t.Fatal(err)
		}
		if len(p.prior.Files) != n {
			t.Fatalf("%d files came back, want %d", len(p.prior.Files), n)
		}
	}
}

// planSynthetic does what a backup does up to the list of jobs, and fills in what copying would find out.
func planSynthetic(t testing.TB, p *BackupPlan, n int) (*repo.Manifest, []job) {
	t.Helper()
	r := &backupRun{BackupPlan: p, db: repo.DB{ID: 1, SystemID: 1, Version: "15", CatalogVersion: 1, ControlVersion: 1}}
	r.start.Time, r.start.LSN, r.start.Segment = time.Unix(1_700_000_000, 0), pg.LSN(1<<24), "000000010000000000000001"
	full := repo.Label("20231114-221320F")
	r.m = r.newManifest(nil)
	r.m.Label = full
	if p.Type == repo.Incr {
		r.m.Label = full + "_20231115-221320I"
		r.m.References = slices.Clone(p.prior.References)
	}
	r.m.References = append(r.m.References, r.m.Label)
	sc := &scan{m: r.m, names: newOwnerNames()}
	r.m.Targets = append(r.m.Targets, repo.Target{Name: "pg_data", Path: "/data"})
	for dir := range (n + 999) / 1000 { // in the order of names, as directories are read
		name := fmt.Sprintf("pg_data/base/%d", 100_000+dir)
		r.m.Paths = append(r.m.Paths, repo.Path{Name: name, Owner: repo.Owner{Mode: 0o700}})
		for i := range min(1000, n-dir*1000) {
			stamp := time.Unix(1_690_000_000, 0)
			if p.Type == repo.Incr && i%100 == 7 { // 1 % changed
				stamp = stamp.Add(time.Hour)
			}
			sc.file(name+"/"+strconv.Itoa(16_384+i), syntheticInfo{stamp})
		}
	}
	r.m.TimeCopyStart, r.m.TimeStop = 1_700_000_001, 1_700_000_100
	r.m.LSNStop, r.m.ArchiveStop = r.m.LSNStart, r.m.ArchiveStart
	work, _ := p.merge(r.m, "00000001", r.m.TimeCopyStart, false, t.Logf)
	jobs := r.jobs(work)
	for _, j := range jobs {
		var offset int64
		for _, w := range j.files {
			f := &r.m.Files[w.index]
			sum, stored := sha1.Sum([]byte(f.Name)), sha1.Sum([]byte(f.Name+"stored"))
			f.SHA1, f.RepoSHA1, f.RepoSize = hex.EncodeToString(sum[:]), hex.EncodeToString(stored[:]), 700
			f.BundleID, f.BundleOffset, f.PageChecked, f.PageOK = j.bundle, offset, true, true
			offset += f.RepoSize
		}
	}
	return r.m, jobs
}

// syntheticInfo is a regular file of one page.
type syntheticInfo struct{ stamp time.Time }

func (i syntheticInfo) Name() string       { return "" }
func (i syntheticInfo) Size() int64        { return 8192 }
func (i syntheticInfo) Mode() fs.FileMode  { return 0o600 }
func (i syntheticInfo) ModTime() time.Time { return i.stamp }
func (i syntheticInfo) IsDir() bool        { return false }
func (i syntheticInfo) Sys() any           { return &syscall.Stat_t{} }

// inUse is the memory of live objects, bytes.
func inUse() int64 {
	runtime.GC()
	runtime.GC() // what finalizers and pools held goes with the second
	return heapBytes()
}

func heapBytes() int64 {
	sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	metrics.Read(sample)
	return int64(sample[0].Value.Uint64())
}

// watchHeap looks at the heap every few milliseconds until the function that it returns asks for the largest size seen.
func watchHeap() (largest func() int64) {
	stop, result := make(chan struct{}), make(chan int64)
	go func() {
		var most int64
		for {
			most = max(most, heapBytes())
			select {
			case <-stop:
				result <- most
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	return func() int64 {
		close(stop)
		return <-result
	}
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
