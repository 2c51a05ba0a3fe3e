package s3

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"

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
// the first that is not younger than AsOf counts, and when that is a delete marker the object was not there. Of several within
// one second the order in the list decides.
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
			var markers []bool
			err := s.try(ctx, op, name, func(ctx context.Context) (err error) {
				out, err = s.client.ListObjectVersions(ctx, in, withOrder(&markers))
				return err
			})
			if err == nil && len(markers) != len(out.Versions)+len(out.DeleteMarkers) {
				err = s.fail(op, name, errors.New("the store's list of versions is not what the library read of it"))
			}
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
			if done, err = s.decide(out, markers, done, yield); err != nil {
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

// decide yields the version that counts of every key of a page. markers says in the page's order which entries are delete markers.
func (s *S3) decide(out *s3.ListObjectVersionsOutput, markers []bool, done string, yield func(version, error) bool) (string, error) {
	versions, deleted := out.Versions, out.DeleteMarkers
	for _, marker := range markers {
		var key string
		var at time.Time
		v := version{}
		switch {
		case marker && len(deleted) > 0:
			key, at = aws.ToString(deleted[0].Key), aws.ToTime(deleted[0].LastModified)
			deleted = deleted[1:]
		case !marker && len(versions) > 0:
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

// withOrder notes in what order a list of versions has versions and delete markers: the library tells the two apart and loses it,
// and time stamps of a second do not bring it back.
func withOrder(markers *[]bool) func(*s3.Options) {
	return func(o *s3.Options) {
		o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error {
			return stack.Deserialize.Insert(middleware.DeserializeMiddlewareFunc("holdfast:OrderOfVersions", func(ctx context.Context, in middleware.DeserializeInput, next middleware.DeserializeHandler) (middleware.DeserializeOutput, middleware.Metadata, error) {
				out, meta, err := next.HandleDeserialize(ctx, in)
				resp, ok := out.RawResponse.(*smithyhttp.Response)
				if err != nil || !ok || resp.StatusCode != http.StatusOK {
					return out, meta, err
				}
				page, err := io.ReadAll(io.LimitReader(resp.Body, maxPage))
				_ = resp.Body.Close() // what could fail has been seen by the reader
				if err != nil {
					return out, meta, &smithyhttp.RequestSendError{Err: err}
				}
				resp.Body = io.NopCloser(bytes.NewReader(page))
				*markers = orderOf(page)
				return out, meta, nil
			}), "OperationDeserializer", middleware.After)
		})
	}
}

// maxPage is more than a page of a thousand versions can have, in bytes.
const maxPage = 16 << 20

// orderOf says of each entry of a page whether it is a delete marker. A page that is no XML the library will refuse.
func orderOf(page []byte) (markers []bool) {
	d := xml.NewDecoder(bytes.NewReader(page))
	depth := 0
	for {
		token, err := d.Token()
		if err != nil {
			return markers
		}
		switch e := token.(type) {
		case xml.StartElement:
			if depth++; depth == 2 && (e.Name.Local == "Version" || e.Name.Local == "DeleteMarker") {
				markers = append(markers, e.Name.Local == "DeleteMarker")
			}
		case xml.EndElement:
			depth--
		}
	}
}
