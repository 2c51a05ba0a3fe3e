package s3_test

import (
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/storage"
	"holdfast/internal/storage/s3"
	"holdfast/test/stores"
)

// grades are the facts by name; several of one name are joined.
func grades(t *testing.T, o s3.Options) map[string]storage.Fact {
	t.Helper()
	facts, err := open(t, o).Protection(t.Context(), "holdfast-check/probe")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]storage.Fact{}
	for _, f := range facts {
		if f.Text == "" || f.Grade == storage.Weak && f.Advice == "" {
			t.Errorf("%+v says nothing", f)
		}
		all[f.Name] = f
	}
	return all
}

// TestProtection: what the check says of buckets of every kind, on both servers, and that it leaves nothing that can be removed.
func TestProtection(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		t.Run(kind, func(t *testing.T) {
			srv := stores.StartS3(t, kind)
			expect := func(what string, o s3.Options, want map[string]storage.Grade) {
				t.Helper()
				got := grades(t, o)
				for name, grade := range want {
					if got[name].Grade != grade {
						t.Errorf("%s: %s is %+v, want %s", what, name, got[name], grade)
					}
				}
			}
			plain, versioned := srv.Bucket(t), srv.VersionedBucket(t)
			expect("a plain bucket", options(srv, plain), map[string]storage.Grade{"versioning": storage.Weak, "object-lock": storage.Weak, "removal": storage.Weak, "clock": storage.Good, "public-access": storage.Good})
			for in, err := range open(t, options(srv, plain)).List(t.Context(), "", storage.ListOptions{Recursive: true}) {
				t.Errorf("%s is left, %v", in.Name, err)
			}
			expect("a bucket that keeps versions", options(srv, versioned), map[string]storage.Grade{"versioning": storage.Good, "object-lock": storage.Weak, "removal": storage.Good, "version-removal": storage.Weak})
			left, err := srv.Client().ListObjectVersions(t.Context(), &awss3.ListObjectVersionsInput{Bucket: &versioned})
			if err != nil || len(left.Versions)+len(left.DeleteMarkers) > 0 {
				t.Errorf("%v, %d versions and %d markers are left", err, len(left.Versions), len(left.DeleteMarkers))
			}
			locked := options(srv, versioned)
			locked.Lock, locked.LockPeriod = s3.Compliance, 48*time.Hour
			expect("a lock of ours", locked, map[string]storage.Grade{"object-lock": storage.Good, "version-removal": storage.Good})
			if _, err := srv.Client().PutObjectLockConfiguration(t.Context(), &awss3.PutObjectLockConfigurationInput{Bucket: &versioned, ObjectLockConfiguration: &types.ObjectLockConfiguration{
				ObjectLockEnabled: types.ObjectLockEnabledEnabled, Rule: &types.ObjectLockRule{DefaultRetention: &types.DefaultRetention{Mode: types.ObjectLockRetentionModeCompliance, Days: aws.Int32(1)}}}}); err != nil {
				t.Fatal(err)
			}
			expect("a default lock", options(srv, versioned), map[string]storage.Grade{"object-lock": storage.Good, "version-removal": storage.Good})
			late := options(srv, plain)
			late.Now = func() time.Time { return time.Now().Add(5 * time.Minute) }
			expect("a clock that is ahead", late, map[string]storage.Grade{"clock": storage.Weak})
			policy := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":["s3:GetObject"],"Resource":["arn:aws:s3:::` + plain + `/*"]},` +
				`{"Effect":"Allow","Principal":"*","Action":["s3:ListBucket"],"Resource":["arn:aws:s3:::` + plain + `"]}]}`
			if _, err := srv.Client().PutBucketPolicy(t.Context(), &awss3.PutBucketPolicyInput{Bucket: &plain, Policy: &policy}); err != nil {
				t.Fatal(err)
			}
			expect("a public bucket", options(srv, plain), map[string]storage.Grade{"public-access": storage.Weak})
			if _, err := open(t, options(srv, "not-there")).Protection(t.Context(), "probe"); err == nil || !strings.Contains(err.Error(), "make the bucket") {
				t.Errorf("a bucket that is not there: %v", err)
			}
		})
	}
}

// TestLockAndAsOf: what is written under a lock can't be removed for good, whatever is tried, and a bucket that keeps versions shows
// what was there before it was overwritten and removed.
func TestLockAndAsOf(t *testing.T) {
	for _, kind := range stores.S3Kinds {
		t.Run(kind, func(t *testing.T) {
			srv := stores.StartS3(t, kind)
			bucket := srv.VersionedBucket(t)
			o := options(srv, bucket)
			o.Lock, o.LockPeriod, o.PartSize = s3.Compliance, 24*time.Hour, 5<<20
			s := open(t, o)
			ctx := t.Context()
			big := strings.Repeat("b", 11<<20) // in parts
			write := func(name, text string) {
				t.Helper()
				if err := storage.WriteAll(ctx, s, name, []byte(text)); err != nil {
					t.Fatal(err)
				}
			}
			write("dir/a", "first")
			write("dir/big", big)
			write("gone", "was here")
			for _, name := range []string{"dir/a", "dir/big"} {
				out, err := srv.Client().HeadObject(ctx, &awss3.HeadObjectInput{Bucket: &bucket, Key: aws.String("var/lib/pgbackrest/" + name)})
				if err != nil || out.ObjectLockMode != types.ObjectLockModeCompliance || out.ObjectLockRetainUntilDate == nil || time.Until(*out.ObjectLockRetainUntilDate) < 23*time.Hour {
					t.Fatalf("%s is not locked: %v %+v", name, err, out)
				}
				if _, err := srv.Client().DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: &bucket, Key: aws.String("var/lib/pgbackrest/" + name), VersionId: out.VersionId, BypassGovernanceRetention: aws.Bool(true)}); err == nil {
					t.Fatalf("%s was removed for good", name)
				}
			}
			if kind == "versitygw" { // it dates a version by when it was overwritten: the past can't be told from it
				return
			}
			time.Sleep(1100 * time.Millisecond) // stores note whole seconds
			then := time.Now()
			time.Sleep(1100 * time.Millisecond)
			write("dir/a", "overwritten by an intruder")
			write("dir/new", "later")
			if err := s.Remove(ctx, "gone", "dir/big"); err != nil {
				t.Fatal(err)
			}
			o.AsOf = then
			was := open(t, o)
			read := func(name, want string) {
				t.Helper()
				if b, err := storage.ReadAll(ctx, was, name, 20<<20); err != nil || string(b) != want {
					t.Errorf("%s as of then: %.40q, %v", name, b, err)
				}
			}
			read("dir/a", "first")
			read("dir/big", big)
			read("gone", "was here")
			if _, err := was.Stat(ctx, "dir/new"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("what came later: %v", err)
			}
			var names []string
			for in, err := range was.List(ctx, "", storage.ListOptions{Recursive: true}) {
				if err != nil {
					t.Fatal(err)
				}
				names = append(names, in.Name)
			}
			if strings.Join(names, " ") != "dir/a dir/big gone" {
				t.Errorf("listed: %v", names)
			}
			if err := storage.WriteAll(ctx, was, "x", nil); !errors.Is(err, s3.ErrReadOnly) {
				t.Errorf("written: %v", err)
			}
			if err := was.Remove(ctx, "dir/a"); !errors.Is(err, s3.ErrReadOnly) {
				t.Errorf("removed: %v", err)
			}
		})
	}
}

// TestDenied: credentials that may only add are told apart from ones that don't work.
func TestDenied(t *testing.T) {
	srv := stores.StartS3(t, "versitygw")
	bucket := srv.Bucket(t)
	limited, _ := srv.AppendOnly(t)
	o := options(limited, bucket)
	s := open(t, o)
	if err := storage.WriteAll(t.Context(), s, "a", []byte("text")); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), "a"); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("removed: %v", err)
	}
	if got := grades(t, o); got["removal"].Grade != storage.Good || !strings.Contains(got["removal"].Text, "may not remove") {
		t.Errorf("%+v", got["removal"])
	}
}
