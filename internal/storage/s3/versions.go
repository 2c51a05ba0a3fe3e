package s3

import (
	"context"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"holdfast/internal/storage"
)

// version is one version of an object: that which was the current one at Options.AsOf.
type version struct {
	info storage.Info
	id   string
}

// version finds what was the object at Options.AsOf.
func (s *S3) version(ctx context.Context, op storage.Op, name string) (version, error) {
	for v, err := range s.versions(ctx, op, name, s.key(name), "") {
		if err != nil {
			return version{}, err
		}
		if v.info.Name == name && !v.info.Dir {
			return v, nil
		}
		if v.info.Name > name {
			break
		}
	}
	return version{}, s.fail(op, name, fs.ErrNotExist)
}

// versionPages is pages as of Options.AsOf.
func (s *S3) versionPages(ctx context.Context, dir, prefix, delimiter string) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		for v, err := range s.versions(ctx, storage.OpList, dir, prefix, delimiter) {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(storage.Info{}, err)
				return
			}
			if storage.IsTemp(v.info.Name) && !v.info.Dir {
				continue
			}
			if !yield(v.info, nil) {
				return
			}
		}
	}
}

// versions yields the objects whose keys begin with prefix as they were at Options.AsOf, in the order of keys; with a
// delimiter the directories of each page come before its objects. The store lists the versions of a key the newest first:
// the first that is not younger than AsOf counts, and when that is a delete marker the object was not there.
//
// A directory is shown although everything below it may be younger: to know, everything would have to be listed.
func (s *S3) versions(ctx context.Context, op storage.Op, name, prefix, delimiter string) iter.Seq2[version, error] {
	return func(yield func(version, error) bool) {
		in := &s3.ListObjectVersionsInput{Bucket: &s.o.Bucket, Prefix: aws.String(prefix), RequestPayer: s.payer()}
		if delimiter != "" {
			in.Delimiter = &delimiter
		}
		done := "" // the key whose version has been decided
		for {
			var out *s3.ListObjectVersionsOutput
			err := s.try(ctx, op, name, func(ctx context.Context) (err error) {
				out, err = s.client.ListObjectVersions(ctx, in)
				return err
			})
			if err != nil {
				yield(version{}, err)
				return
			}
			for _, p := range out.CommonPrefixes {
				dir := strings.TrimSuffix(strings.TrimPrefix(aws.ToString(p.Prefix), s.prefix), "/")
				if fs.ValidPath(dir) && !yield(version{info: storage.Info{Name: dir, Dir: true}}, nil) {
					return
				}
			}
			if done, err = s.decide(out, done, yield); err != nil {
				return
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			in.KeyMarker, in.VersionIdMarker = out.NextKeyMarker, out.NextVersionIdMarker
		}
	}
}

// errStop says that the caller wants no more.
var errStop = fmt.Errorf("no more wanted")

// decide yields the version that counts of every key of a page.
func (s *S3) decide(out *s3.ListObjectVersionsOutput, done string, yield func(version, error) bool) (string, error) {
	versions, markers := out.Versions, out.DeleteMarkers
	for len(versions) > 0 || len(markers) > 0 {
		var key string
		var at time.Time
		v := version{}
		marker := len(versions) == 0 || len(markers) > 0 && before(markers[0].Key, markers[0].LastModified, versions[0].Key, versions[0].LastModified)
		if marker {
			m := markers[0]
			markers = markers[1:]
			key, at = aws.ToString(m.Key), aws.ToTime(m.LastModified)
		} else {
			o := versions[0]
			versions = versions[1:]
			key, at = aws.ToString(o.Key), aws.ToTime(o.LastModified)
			v = version{id: aws.ToString(o.VersionId), info: storage.Info{Name: strings.TrimPrefix(key, s.prefix), Size: aws.ToInt64(o.Size), ModTime: at.Truncate(time.Second)}}
		}
		if key == done || at.After(s.o.AsOf) {
			continue
		}
		done = key
		if marker || !fs.ValidPath(v.info.Name) {
			continue
		}
		if !yield(v, nil) {
			return done, errStop
		}
	}
	return done, nil
}

// before says whether a version stands before another in the store's order: by key, then the younger first.
func before(keyA *string, atA *time.Time, keyB *string, atB *time.Time) bool {
	if a, b := aws.ToString(keyA), aws.ToString(keyB); a != b {
		return a < b
	}
	return !aws.ToTime(atA).Before(aws.ToTime(atB))
}
