package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"golang.org/x/sync/errgroup"

	"holdfast/internal/storage"
)

// dirPrefix is what the keys below a directory begin with.
func (s *S3) dirPrefix(ctx context.Context, dir string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if dir == "" {
		return s.prefix, nil
	}
	if err := storage.CheckName(dir); err != nil {
		return "", err
	}
	return s.key(dir) + "/", nil
}

// List implements storage.Storage. One level is collected before the first entry is yielded, since the store sorts
// directories with a slash behind them; a recursive listing goes page by page.
func (s *S3) List(ctx context.Context, dir string, opts storage.ListOptions) iter.Seq2[storage.Info, error] {
	return func(yield func(storage.Info, error) bool) {
		prefix, err := s.dirPrefix(ctx, dir)
		if err == nil {
			err = s.WaitAll(ctx)
		}
		if err != nil {
			yield(storage.Info{}, err)
			return
		}
		prefix += opts.Prefix
		if opts.Recursive {
			s.fresh(ctx, prefix, s.pages(ctx, dir, prefix, ""))(yield)
			return
		}
		level, err := s.level(ctx, dir, prefix)
		if err != nil {
			yield(storage.Info{}, err)
			return
		}
		for _, in := range level {
			if err := ctx.Err(); err != nil {
				yield(storage.Info{}, err)
				return
			}
			if !yield(in, nil) {
				return
			}
		}
	}
}

// level collects one level.
func (s *S3) level(ctx context.Context, dir, prefix string) ([]storage.Info, error) {
	var all []storage.Info
	deep := len(dir)
	if dir != "" {
		deep++
	}
	for in, err := range s.fresh(ctx, prefix, s.pages(ctx, dir, prefix, "/")) {
		if err != nil {
			return nil, err
		}
		if i := strings.IndexByte(in.Name[deep:], '/'); i >= 0 { // only of a name that the store did not list yet
			in = storage.Info{Name: in.Name[:deep+i], Dir: true}
		}
		all = append(all, in)
	}
	slices.SortFunc(all, func(a, b storage.Info) int { return cmp.Compare(a.Name, b.Name) })
	return slices.CompactFunc(all, func(a, b storage.Info) bool { return a.Name == b.Name }), nil
}

// pages yields what the store lists, in its order.
func (s *S3) pages(ctx context.Context, dir, prefix, delimiter string) iter.Seq2[storage.Info, error] {
	if !s.o.AsOf.IsZero() {
		return s.versionPages(ctx, dir, prefix, delimiter)
	}
	return func(yield func(storage.Info, error) bool) {
		in := &s3.ListObjectsV2Input{Bucket: &s.o.Bucket, Prefix: aws.String(prefix), RequestPayer: s.payer()}
		if delimiter != "" {
			in.Delimiter = &delimiter
		}
		for {
			var out *s3.ListObjectsV2Output
			err := s.try(ctx, storage.OpList, dir, func(ctx context.Context) (err error) {
				out, err = s.client.ListObjectsV2(ctx, in)
				return err
			})
			if err != nil {
				yield(storage.Info{}, err)
				return
			}
			for in := range s.entries(out.Contents, out.CommonPrefixes) {
				if err := ctx.Err(); err != nil {
					yield(storage.Info{}, err)
					return
				}
				if !yield(in, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) {
				return
			}
			if aws.ToString(out.NextContinuationToken) == "" {
				yield(storage.Info{}, s.fail(storage.OpList, dir, errors.New("the store says that there is more and not where it goes on")))
				return
			}
			in.ContinuationToken = out.NextContinuationToken
		}
	}
}

// entries are the objects and directories of one page, both in the store's order.
func (s *S3) entries(objects []types.Object, dirs []types.CommonPrefix) iter.Seq[storage.Info] {
	return func(yield func(storage.Info) bool) {
		for len(objects) > 0 || len(dirs) > 0 {
			var in storage.Info
			if len(dirs) == 0 || len(objects) > 0 && aws.ToString(objects[0].Key) < aws.ToString(dirs[0].Prefix) {
				o := objects[0]
				objects = objects[1:]
				in = storage.Info{Name: strings.TrimPrefix(aws.ToString(o.Key), s.prefix), Size: aws.ToInt64(o.Size), ModTime: aws.ToTime(o.LastModified).Truncate(time.Second)}
			} else {
				in = storage.Info{Name: strings.TrimSuffix(strings.TrimPrefix(aws.ToString(dirs[0].Prefix), s.prefix), "/"), Dir: true}
				dirs = dirs[1:]
			}
			// Markers of directories and what no storage could have written are not ours.
			if !fs.ValidPath(in.Name) || in.Name == "." || !in.Dir && storage.IsTemp(in.Name) {
				continue
			}
			if !yield(in) {
				return
			}
		}
	}
}

// fresh mends a listing that lags behind what this process did a moment ago: what it removed and the store still lists,
// and what it wrote and the store does not list yet, is asked for by name.
func (s *S3) fresh(ctx context.Context, prefix string, list iter.Seq2[storage.Info, error]) iter.Seq2[storage.Info, error] {
	if !s.o.AsOf.IsZero() {
		return list
	}
	return func(yield func(storage.Info, error) bool) {
		now := s.o.Now()
		wrote := s.recent.writtenBelow(strings.TrimPrefix(prefix, s.prefix), now)
		// missed yields what we wrote and the listing has passed by.
		missed := func(before string) bool {
			for len(wrote) > 0 && (before == "" || wrote[0] < before) {
				name := wrote[0]
				wrote = wrote[1:]
				in, err := s.Stat(ctx, name)
				if errors.Is(err, fs.ErrNotExist) {
					continue
				}
				if !yield(in, err) || err != nil {
					return false
				}
			}
			return true
		}
		for in, err := range list {
			if err != nil {
				yield(in, err)
				return
			}
			if in.Dir { // names below it are listed by it
				below := in.Name + "/"
				if !missed(below) {
					return
				}
				for len(wrote) > 0 && strings.HasPrefix(wrote[0], below) {
					wrote = wrote[1:]
				}
			} else {
				if !missed(in.Name) {
					return
				}
				if len(wrote) > 0 && wrote[0] == in.Name {
					wrote = wrote[1:]
				}
				if s.recent.removed(in.Name, now) {
					if _, err := s.Stat(ctx, in.Name); errors.Is(err, fs.ErrNotExist) {
						continue
					}
				}
			}
			if !yield(in, nil) {
				return
			}
		}
		missed("")
	}
}

// deleteBatch is how many objects one request removes.
const deleteBatch = 1000

// Remove implements storage.Storage. On a versioned bucket the older versions stay, as long as its rules keep them.
func (s *S3) Remove(ctx context.Context, names ...string) error {
	for _, name := range names {
		if err := storage.CheckName(name); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(names) == 0 {
		return nil
	}
	if !s.o.AsOf.IsZero() {
		return s.fail(storage.OpRemove, names[0], ErrReadOnly)
	}
	if err := s.WaitAll(ctx); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for batch := range slices.Chunk(names, deleteBatch) {
		g.Go(func() error { return s.removeBatch(ctx, batch) })
	}
	return g.Wait()
}

// removeBatch removes up to deleteBatch objects with one request, and again those that it failed for.
func (s *S3) removeBatch(ctx context.Context, names []string) error {
	if len(names) == 1 || s.singly.Load() {
		return s.removeSingly(ctx, names)
	}
	left := make([]types.ObjectIdentifier, len(names))
	for i, name := range names {
		left[i].Key = aws.String(s.key(name))
	}
	err := s.try(ctx, storage.OpRemove, names[0], func(ctx context.Context) error {
		out, err := s.client.DeleteObjects(ctx, &s3.DeleteObjectsInput{Bucket: &s.o.Bucket, RequestPayer: s.payer(), Delete: &types.Delete{Objects: left, Quiet: aws.Bool(true)}}, withMD5)
		if err != nil {
			return err
		}
		if left = left[:0]; len(out.Errors) == 0 {
			return nil
		}
		for _, e := range out.Errors {
			switch aws.ToString(e.Code) {
			case "NoSuchKey", "NotFound", "NoSuchVersion":
			case "AccessDenied":
				return fmt.Errorf("%s: %s: %w", aws.ToString(e.Key), aws.ToString(e.Message), fs.ErrPermission)
			case "AllAccessDisabled", "MethodNotAllowed", "InvalidRequest", "InvalidArgument":
				return fmt.Errorf("%s: %s: %s", aws.ToString(e.Key), aws.ToString(e.Code), aws.ToString(e.Message))
			default:
				left = append(left, types.ObjectIdentifier{Key: e.Key})
			}
		}
		if len(left) == 0 {
			return nil
		}
		e := out.Errors[0]
		return &passing{fmt.Errorf("%d of the objects, such as %s: %s: %s", len(left), aws.ToString(e.Key), aws.ToString(e.Code), aws.ToString(e.Message))}
	})
	if n := status(err); n == 501 || n == 405 || code(err) == "NotImplemented" { // a store without this request
		s.singly.Store(true)
		return s.removeSingly(ctx, names)
	}
	if err == nil {
		for _, name := range names {
			s.recent.note(name, true, s.o.Now())
		}
	}
	return err
}

// removeSingly removes objects with one request each.
func (s *S3) removeSingly(ctx context.Context, names []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(s.o.Connections)
	for _, name := range names {
		g.Go(func() error {
			err := s.try(ctx, storage.OpRemove, name, func(ctx context.Context) error {
				_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(name)), RequestPayer: s.payer()})
				if err != nil && isMissing(err) {
					return nil
				}
				return err
			})
			if err == nil {
				s.recent.note(name, true, s.o.Now())
			}
			return err
		})
	}
	return g.Wait()
}

// withMD5 adds the Content-MD5 that stores of the S3 kind want with a list of objects to remove.
func withMD5(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, func(stack *middleware.Stack) error { return smithyhttp.AddContentChecksumMiddleware(stack) })
}
