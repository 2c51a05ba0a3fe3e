package engine_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"

	"holdfast/internal/engine"
	"holdfast/internal/pg"
	"holdfast/internal/repo"
	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
	"holdfast/test/stores"
)

// bucket is a repository behind a proxy that counts.
type bucket struct {
	*stores.Proxy
	srv  *stores.S3
	name string
}

func newBucket(t testing.TB, kind string) *bucket {
	t.Helper()
	srv := stores.StartS3(t, kind)
	return &bucket{srv.NewProxy(t), srv, srv.Bucket(t)}
}

// open opens it as a process of its own would; change may be nil.
func (b *bucket) open(t testing.TB, change func(*s3.Options)) *s3.S3 {
	t.Helper()
	o := s3.Options{Bucket: b.name, Region: b.srv.Region, Endpoint: b.Endpoint, PathStyle: true, CAFile: b.srv.CA.File, Prefix: "repo",
		Credentials: s3.Credentials{Key: storage.Secret(b.srv.Key), Secret: storage.Secret(b.srv.Secret)}}
	if change != nil {
		change(&o)
	}
	s, err := s3.New(o)
	must(t, err)
	t.Cleanup(func() { must(t, s.Close()) })
	return s
}

// asked are the counts as text, for a log.
func (b *bucket) asked() string {
	counts := b.Counts()
	var out []string
	total := 0
	for _, op := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, fmt.Sprint(op, " ", counts[op]))
		total += counts[op]
	}
	return fmt.Sprintf("%d: %s", total, strings.Join(out, ", "))
}

// TestS3Requests counts what each verb asks a bucket for. The bounds leave little room: one more list for each backup, or a request
// for each file of a bundle, is over them.
func TestS3Requests(t *testing.T) {
	const files, backups = 60, 4
	for _, bundled := range []bool{false, true} {
		t.Run(fmt.Sprint("bundle=", bundled), func(t *testing.T) {
			r := newRig(t, 15)
			began := time.Now()
			// Were it the machine's, a slow one would look once more before it publishes.
			r.clock = func() time.Time { return began.Add(time.Duration(r.looks.Add(1)) * time.Second) }
			b := newBucket(t, "versitygw")
			ctx := t.Context()
			for i := range files {
				r.touch(fmt.Sprintf("base/16384/4%03d", i), scribble(uint64(i), 3000+i*100), 9*time.Hour)
			}
			// each is 0 for a bundled repository: a file costs a share of a bundle only
			each := func(n int) int {
				if bundled {
					return 0
				}
				return n
			}
			step := func(name string, bounds map[string]int, do func(st storage.Storage) error) {
				t.Helper()
				b.Trouble(nil)
				must(t, do(b.open(t, nil)))
				t.Logf("%s: %s", name, b.asked())
				for op, n := range b.Counts() {
					if n > bounds[op] {
						t.Errorf("%s: %d times %s, at most %d are needed\n%s", name, n, op, bounds[op], strings.Join(b.Requests(), "\n"))
					}
				}
			}
			backup := func(typ repo.BackupType) func(st storage.Storage) error {
				return func(st storage.Storage) error {
					_, err := r.backupWith(ctx, st, st, engine.BackupOptions{Type: typ, Compress: repo.ZST, Level: 1, Bundle: bundled, ProcessMax: 2})
					return err
				}
			}
			segment := pg.SegmentName(1, 64*segmentSize, segmentSize)
			step("stanza-create", map[string]int{"GetObject": 10, "ListObjectsV2": 2, "PutObject": 4}, func(st storage.Storage) error { return r.create(ctx, st) })
			// A backup archives two segments on its way.
			step("full", map[string]int{"GetObject": 9, "HeadObject": 1, "ListObjectsV2": 11, "PutObject": 14 + each(files+15)}, backup(repo.Full))
			for i := range backups - 1 {
				r.touch(fmt.Sprintf("base/16384/5%03d", i), scribble(uint64(100+i), 5000), time.Duration(8-i)*time.Hour)
				// Directories of backups are looked at for the plan, under the lock, and before it is published; its own also for what it
				// stored.
				step("incr", map[string]int{"GetObject": 11, "HeadObject": 1, "ListObjectsV2": 12 + 3*(i+1), "PutObject": 14}, backup(repo.Incr))
			}
			step("verify", map[string]int{"GetObject": 14 + 3*backups + 2*backups + 3*backups + each(files+20), "ListObjectsV2": 3 + backups}, func(st storage.Storage) error {
				res, err := r.stanza(st).Verify(ctx, engine.VerifyOptions{ProcessMax: 2})
				if err == nil && len(res.Findings) > 0 {
					err = fmt.Errorf("%v", res.Findings)
				}
				return err
			})
			step("info", map[string]int{"GetObject": 1, "ListObjectsV2": 3}, func(st storage.Storage) error { _, err := r.stanza(st).Info(ctx, ""); return err })
			step("restore", map[string]int{"GetObject": 4 + backups + each(files+20), "ListObjectsV2": 1}, func(st storage.Storage) error {
				return r.restore(ctx, st, filepath.Join(scratch(t), "r"), "")
			})
			step("archive-push", map[string]int{"GetObject": 1, "ListObjectsV2": 1, "PutObject": 1}, func(st storage.Storage) error {
				file, err := r.server.segment(segment)
				must(t, err)
				_, err = r.stanza(st).Push(ctx, engine.PushOptions{Path: file, DataDir: r.server.dir, HeaderCheck: true, Compress: repo.ZST})
				return err
			})
			step("archive-get", map[string]int{"GetObject": 2, "ListObjectsV2": 1}, func(st storage.Storage) error {
				return r.stanza(st).Get(ctx, engine.GetOptions{Name: segment, Dest: filepath.Join(scratch(t), "w"), DataDir: r.server.dir})
			})
			step("full again", map[string]int{"GetObject": 9, "HeadObject": 1, "ListObjectsV2": 12 + 3*backups, "PutObject": 14 + each(files+20)}, backup(repo.Full))
			step("expire", map[string]int{"DeleteObject": 2 * backups, "DeleteObjects": 1 + backups, "GetObject": 4, "ListObjectsV2": 8 + 3*backups + 2, "ListMultipartUploads": 2, "PutObject": 2}, func(st storage.Storage) error {
				plan, err := r.stanza(st).PlanExpire(ctx, engine.ExpireOptions{Full: 1})
				must(t, err)
				return plan.Run(ctx)
			})
		})
	}
}

// TestSweep: expire, and a copy on its target, remove uploads in parts that were begun more than a day ago below the stanza, and
// no others: neither those of a living writer nor what another stanza has.
func TestSweep(t *testing.T) {
	b := newBucket(t, "versitygw")
	client := b.srv.Client()
	begin := func(key string) {
		t.Helper()
		_, err := client.CreateMultipartUpload(t.Context(), &awss3.CreateMultipartUploadInput{Bucket: &b.name, Key: &key})
		must(t, err)
	}
	left := func() (keys []string) {
		t.Helper()
		out, err := client.ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: &b.name})
		must(t, err)
		for _, u := range out.Uploads {
			keys = append(keys, *u.Key)
		}
		slices.Sort(keys)
		return keys
	}
	r := newRig(t, 15)
	st := b.open(t, nil)
	must(t, r.create(t.Context(), st))
	_, err := r.backup(t.Context(), st, st)
	must(t, err)
	for name, verb := range map[string]func(now func() time.Time) error{
		"expire": func(now func() time.Time) error {
			plan, err := r.stanzaAt(st, now).PlanExpire(t.Context(), engine.ExpireOptions{Full: 1})
			must(t, err)
			return plan.Run(t.Context())
		},
		"copy": func(now func() time.Time) error {
			_, err := r.copyTo(t.Context(), r.stanza(storageOf(t, r)), r.stanzaAt(st, now), engine.CopyOptions{All: true, WAL: engine.WALAll})
			return err
		},
	} {
		begin("repo/backup/demo/x/pg_data/1")
		begin("repo/archive/demo/15-1/y")
		begin("repo/backup/other/x")
		begin("elsewhere/backup/demo/x")
		all := left()
		must(t, verb(time.Now))
		if got := left(); !slices.Equal(got, all) {
			t.Errorf("%s: of uploads that are a moment old %v are left", name, got)
		}
		must(t, verb(func() time.Time { return time.Now().Add(25 * time.Hour) })) // by our clock, which does not count
		if got := left(); !slices.Equal(got, all) {
			t.Errorf("%s: with a clock that is a day ahead %v are left", name, got)
		}
		for _, dir := range []string{"archive/demo", "backup/demo"} { // the store has no older ones: as if they were
			_, err := st.Sweep(t.Context(), dir, -time.Hour)
			must(t, err)
		}
		if got := left(); !slices.Equal(got, []string{"elsewhere/backup/demo/x", "repo/backup/other/x"}) {
			t.Errorf("%s: of uploads that are more than a day old %v are left", name, got)
		}
		for _, key := range left() {
			out, err := client.ListMultipartUploads(t.Context(), &awss3.ListMultipartUploadsInput{Bucket: &b.name, Prefix: &key})
			must(t, err)
			for _, u := range out.Uploads {
				_, err := client.AbortMultipartUpload(t.Context(), &awss3.AbortMultipartUploadInput{Bucket: &b.name, Key: u.Key, UploadId: u.UploadId})
				must(t, err)
			}
		}
	}
	// Who may not list uploads is told, and everything else is done.
	b.Trouble(func(q stores.Request) stores.Fault {
		if q.Op == "ListMultipartUploads" {
			return stores.Denied
		}
		return stores.None
	})
	r.warned()
	plan, err := r.stanza(st).PlanExpire(t.Context(), engine.ExpireOptions{Full: 1})
	must(t, err)
	must(t, plan.Run(t.Context()))
	if w := r.warned(); !strings.Contains(w, "unfinished uploads below archive/demo") {
		t.Errorf("warned %q", w)
	}
}

// storageOf is a copy of the rig's repository in memory, with the same stanza.
func storageOf(t testing.TB, r *rig) storage.Storage {
	t.Helper()
	m := storage.NewMem(nil)
	must(t, r.create(t.Context(), m))
	_, err := r.backup(t.Context(), m, m)
	must(t, err)
	return m
}
