package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awsmiddleware "github.com/aws/aws-sdk-go-v2/aws/middleware"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"holdfast/internal/storage"
)

// maxSkew is by how much clocks may differ before it is worth a word; stores refuse requests that are 15 minutes off.
const maxSkew = time.Minute

// Protection implements storage.Protector. What the store says is asked for; what these credentials may do is tried on an object of
// its own, since policies can't be read from outside.
func (s *S3) Protection(ctx context.Context, probe string) ([]storage.Fact, error) {
	if err := storage.CheckName(probe); err != nil {
		return nil, err
	}
	p := &protection{s: s, name: probe}
	if err := p.look(ctx); err != nil {
		return nil, err
	}
	p.versioning(ctx)
	p.objectLock(ctx)
	if err := p.try(ctx); err != nil {
		return nil, err
	}
	p.public(ctx)
	return p.facts, ctx.Err()
}

type protection struct {
	s         *S3
	name      string
	facts     []storage.Fact
	versioned bool
	locked    bool // what is written is locked, by us or by the bucket
}

func (p *protection) add(name string, grade storage.Grade, text, advice string) {
	p.facts = append(p.facts, storage.Fact{Name: name, Grade: grade, Text: text, Advice: advice})
}

// unknown notes what could not be asked.
func (p *protection) unknown(name string, err error) {
	text := "the store does not say"
	if denied(err) {
		text = "these credentials may not ask"
	}
	p.add(name, storage.Unknown, text, "look it up at the store")
}

// denied says that the credentials are good and not enough.
func denied(err error) bool {
	switch code(err) {
	case "AccessDenied", "Forbidden", "AllAccessDisabled", "MethodNotAllowed":
		return true
	}
	return errors.Is(err, fs.ErrPermission) || status(err) == http.StatusForbidden && code(err) == ""
}

// look makes the first request, which has to work, and compares the clocks.
func (p *protection) look(ctx context.Context) error {
	s := p.s
	var skew time.Duration
	err := s.try(ctx, storage.OpList, "", func(ctx context.Context) error {
		out, err := s.client.ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.o.Bucket, Prefix: aws.String(s.prefix), MaxKeys: aws.Int32(1), RequestPayer: s.payer()})
		if err != nil {
			return err
		}
		if at, ok := awsmiddleware.GetServerTime(out.ResultMetadata); ok {
			skew = s.o.Now().Sub(at).Round(time.Second)
		}
		return nil
	})
	if err != nil {
		return err
	}
	switch {
	case skew.Abs() > maxSkew && skew > 0:
		p.add("clock", storage.Weak, fmt.Sprintf("this host's clock is %s ahead of the store's", skew), "set the clock: requests that are 15 minutes off are refused")
	case skew.Abs() > maxSkew:
		p.add("clock", storage.Weak, fmt.Sprintf("this host's clock is %s behind the store's", -skew), "set the clock: requests that are 15 minutes off are refused")
	default:
		p.add("clock", storage.Good, "as the store's", "")
	}
	return nil
}

func (p *protection) versioning(ctx context.Context) {
	s := p.s
	var out *s3.GetBucketVersioningOutput
	err := s.try(ctx, storage.OpStat, "", func(ctx context.Context) (err error) {
		out, err = s.client.GetBucketVersioning(ctx, &s3.GetBucketVersioningInput{Bucket: &s.o.Bucket})
		return err
	})
	const advice = "switch versioning on for the bucket: what is removed or overwritten can then be read with --as-of"
	switch {
	case err != nil:
		p.unknown("versioning", err)
	case out.Status == types.BucketVersioningStatusEnabled:
		p.versioned = true
		p.add("versioning", storage.Good, "on: what is removed or overwritten stays readable with --as-of", "")
	case out.Status == types.BucketVersioningStatusSuspended:
		p.add("versioning", storage.Weak, "suspended", advice)
	default:
		p.add("versioning", storage.Weak, "off", advice)
	}
}

func (p *protection) objectLock(ctx context.Context) {
	s := p.s
	var out *s3.GetObjectLockConfigurationOutput
	err := s.try(ctx, storage.OpStat, "", func(ctx context.Context) (err error) {
		out, err = s.client.GetObjectLockConfiguration(ctx, &s3.GetObjectLockConfigurationInput{Bucket: &s.o.Bucket})
		return err
	})
	own := ""
	if s.o.Lock != Unlocked {
		p.locked = true
		own = fmt.Sprintf("%s for %d days on what is written here", strings.ToLower(string(s.o.Lock)), int(s.o.LockPeriod.Hours()/24))
	}
	if err == nil && out.ObjectLockConfiguration != nil && out.ObjectLockConfiguration.Rule != nil && out.ObjectLockConfiguration.Rule.DefaultRetention != nil {
		r := out.ObjectLockConfiguration.Rule.DefaultRetention
		p.locked = true
		text := fmt.Sprintf("the bucket's default: %s for %d days", strings.ToLower(string(r.Mode)), aws.ToInt32(r.Days)+365*aws.ToInt32(r.Years))
		if own != "" {
			text = own + "; " + text
		}
		p.add("object-lock", storage.Good, text, "")
		return
	}
	on := err == nil && out.ObjectLockConfiguration != nil && out.ObjectLockConfiguration.ObjectLockEnabled == types.ObjectLockEnabledEnabled
	switch {
	case own != "" && (on || denied(err)):
		p.add("object-lock", storage.Good, own, "")
	case own != "":
		p.add("object-lock", storage.Weak, own+", but the bucket was not made for it", "make the bucket anew with object lock on, and copy there")
	case on:
		p.add("object-lock", storage.Weak, "the bucket knows it, but nothing that is written is locked", "set pgsql.pgbackrest.redundancy.s3.object_lock_mode and .object_lock_days, or the bucket's default retention")
	case err != nil && denied(err):
		p.unknown("object-lock", err)
	default:
		p.add("object-lock", storage.Weak, "off", "make the bucket anew with object lock on: then nobody can remove a backup before its time")
	}
}

// try writes an object as no backup is written, without a lock of its own, and looks what these credentials may do to it.
func (p *protection) try(ctx context.Context) error {
	s := p.s
	key := aws.String(s.key(p.name))
	var put *s3.PutObjectOutput
	err := s.try(ctx, storage.OpCommit, p.name, func(ctx context.Context) (err error) {
		text := []byte("written to see what may be done to it; may be removed\n")
		in := &s3.PutObjectInput{Bucket: &s.o.Bucket, Key: key, Body: bytes.NewReader(text), RequestPayer: s.payer()}
		in.ServerSideEncryption, in.SSEKMSKeyId = s.o.Encryption.atRest()
		in.SSECustomerAlgorithm, in.SSECustomerKey, in.SSECustomerKeyMD5 = s.o.Encryption.customer()
		put, err = s.client.PutObject(ctx, in, withMD5)
		return err
	})
	if err != nil {
		return err
	}
	p.encryption(put)
	p.readable(ctx)
	var del *s3.DeleteObjectOutput
	err = s.try(ctx, storage.OpRemove, p.name, func(ctx context.Context) (err error) {
		del, err = s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.o.Bucket, Key: key, RequestPayer: s.payer()})
		return err
	})
	switch {
	case err != nil && denied(err):
		p.add("removal", storage.Good, "these credentials may not remove objects", "")
	case err != nil:
		p.unknown("removal", err)
	case p.versioned:
		p.add("removal", storage.Good, "these credentials may remove objects; the versions stay", "")
	default:
		p.add("removal", storage.Weak, "these credentials may remove objects, and then they are gone", "versioning, and credentials without s3:DeleteObject here (pgsql.pgbackrest.redundancy.append_only)")
	}
	if p.versioned && aws.ToString(put.VersionId) != "" {
		p.versionRemoval(ctx, put.VersionId, del)
	}
	return nil
}

// versionRemoval tries to remove a version for good, which is what an intruder would do; the marker that try has left goes too.
func (p *protection) versionRemoval(ctx context.Context, version *string, del *s3.DeleteObjectOutput) {
	s := p.s
	remove := func(id *string, bypass *bool) error {
		return s.try(ctx, storage.OpRemove, p.name, func(ctx context.Context) error {
			_, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.o.Bucket, Key: aws.String(s.key(p.name)), VersionId: id, BypassGovernanceRetention: bypass, RequestPayer: s.payer()})
			return err
		})
	}
	const advice = "take s3:DeleteObjectVersion and s3:BypassGovernanceRetention from these credentials; lifecycle rules of the bucket remove old versions"
	err := remove(version, nil)
	lifted := false
	if err != nil {
		lifted = remove(version, aws.Bool(true)) == nil
	}
	switch {
	case lifted:
		p.add("version-removal", storage.Weak, "these credentials may lift a lock in governance mode and remove versions for good", advice)
	case err == nil && p.locked:
		p.add("version-removal", storage.Good, "these credentials may remove versions for good when their lock has ended, not before", advice)
	case err == nil:
		p.add("version-removal", storage.Weak, "these credentials may remove versions for good", advice)
	default:
		p.add("version-removal", storage.Good, "these credentials can't remove versions for good", "")
	}
	if del != nil && aws.ToBool(del.DeleteMarker) && aws.ToString(del.VersionId) != "" {
		_ = remove(del.VersionId, nil) // the marker of an object that nobody looks for; where it must stay it stays
	}
}

// encryption reads from the answer how the store has encrypted the object.
func (p *protection) encryption(put *s3.PutObjectOutput) {
	switch {
	case aws.ToString(put.SSECustomerAlgorithm) != "":
		p.add("encryption", storage.Good, "the store encrypts with the key that we send (SSE-C)", "")
	case put.ServerSideEncryption == types.ServerSideEncryptionAwsKms || put.ServerSideEncryption == types.ServerSideEncryptionAwsKmsDsse:
		p.add("encryption", storage.Good, "the store encrypts with a key of its key service", "")
	case put.ServerSideEncryption != "":
		p.add("encryption", storage.Good, "the store encrypts with its own keys", "")
	default:
		p.add("encryption", storage.Unknown, "the store does not say that it encrypts", "the repository's own encryption (pgsql.pgbackrest.cipher_pass) does not depend on it")
	}
}

// anonymous is a client without credentials.
func (p *protection) anonymous() *s3.Client {
	o := p.s.client.Options()
	o.Credentials = aws.AnonymousCredentials{}
	return s3.New(o)
}

// readable tries to read the object as anybody.
func (p *protection) readable(ctx context.Context) {
	out, err := p.anonymous().GetObject(ctx, &s3.GetObjectInput{Bucket: &p.s.o.Bucket, Key: aws.String(p.s.key(p.name))})
	if err == nil {
		out.Body.Close() // nothing of it was wanted
		p.add("public-access", storage.Weak, "anybody can read objects, without credentials", "block public access to the bucket, now")
	}
}

// public tries to list the bucket as anybody, and asks for the block of public access.
func (p *protection) public(ctx context.Context) {
	s := p.s
	if _, err := p.anonymous().ListObjectsV2(ctx, &s3.ListObjectsV2Input{Bucket: &s.o.Bucket, MaxKeys: aws.Int32(1)}); err == nil {
		p.add("public-access", storage.Weak, "anybody can list the bucket, without credentials", "block public access to the bucket, now")
	}
	for _, f := range p.facts {
		if f.Name == "public-access" {
			return
		}
	}
	out, err := s.client.GetPublicAccessBlock(ctx, &s3.GetPublicAccessBlockInput{Bucket: &s.o.Bucket})
	if b := func() *types.PublicAccessBlockConfiguration {
		if err != nil {
			return nil
		}
		return out.PublicAccessBlockConfiguration
	}(); b != nil && aws.ToBool(b.BlockPublicAcls) && aws.ToBool(b.BlockPublicPolicy) && aws.ToBool(b.IgnorePublicAcls) && aws.ToBool(b.RestrictPublicBuckets) {
		p.add("public-access", storage.Good, "blocked for the bucket", "")
		return
	}
	p.add("public-access", storage.Good, "nobody without credentials can list it or read from it now", "")
}
