package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"strings"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/internal/storage"
)

// Error is what a request ended with, as an operator can use it: what failed, on which object of which bucket, what the
// store said, and what to do next.
type Error struct {
	Op     storage.Op
	Bucket string
	Key    string // in the bucket; empty: the bucket itself
	Code   string // the store's name for it; may be empty
	Status int    // HTTP; 0: no answer
	Err    error
	text   string
}

func (e *Error) Error() string { return e.text }
func (e *Error) Unwrap() error { return e.Err }

// Is makes every failure storage.ErrUnavailable that says nothing about the object itself.
func (e *Error) Is(target error) bool {
	if target != storage.ErrUnavailable {
		return false
	}
	for _, known := range []error{fs.ErrNotExist, storage.ErrChanged, storage.ErrCorrupt, ErrReadOnly} {
		if errors.Is(e.Err, known) {
			return false
		}
	}
	switch e.Code {
	case "InvalidObjectState", "EntityTooLarge", "InvalidRange":
		return false
	}
	return true
}

// fail makes err the operator's. Errors of contexts and those that are an Error already stay as they are.
func (s *S3) fail(op storage.Op, name string, err error) error {
	var done *Error
	if errors.As(err, &done) || errors.Is(err, context.Canceled) {
		return err
	}
	e := &Error{Op: op, Bucket: s.o.Bucket, Code: code(err), Status: status(err), Err: err}
	at := s.o.Bucket
	if name != "" || op != storage.OpList && op != storage.OpSweep {
		e.Key = s.key(name)
		at += "/" + e.Key
	} else if s.prefix != "" {
		at += "/" + strings.TrimSuffix(s.prefix, "/")
	}
	if isMissing(err) {
		e.Err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
		e.text = fmt.Sprintf("%s s3 object %s: %v", op, at, fs.ErrNotExist)
		return e
	}
	if denied(err) {
		e.Err = fmt.Errorf("%w: %w", fs.ErrPermission, err)
	}
	e.text = fmt.Sprintf("%s s3 object %s: %s", op, at, s.scrub(said(err)))
	if hint := s.hint(e); hint != "" {
		e.text += "; " + hint
	}
	return e
}

// isMissing says that the object is not there. A bucket that is not there is another matter.
func isMissing(err error) bool {
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	switch code(err) {
	case "NoSuchKey", "NotFound", "NoSuchVersion":
		return true
	case "":
		return status(err) == http.StatusNotFound
	}
	return false
}

// isCredentials says that the request was never sent, for want of credentials.
func isCredentials(err error) bool {
	var c *credentialsError
	return errors.As(err, &c)
}

// said is the core of an error, without the SDK's layers around it.
func said(err error) string {
	var c *credentialsError
	if errors.As(err, &c) {
		return lead(err) + c.Error()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		text := api.ErrorCode()
		if m := api.ErrorMessage(); m != "" && m != text {
			text += ": " + m
		}
		if n := status(err); n != 0 {
			text += fmt.Sprintf(" (HTTP %d", n)
			var r interface{ ServiceRequestID() string }
			if errors.As(err, &r) && r.ServiceRequestID() != "" {
				text += ", request " + r.ServiceRequestID()
			}
			text += ")"
		}
		return lead(err) + text
	}
	if n := status(err); n != 0 {
		return lead(err) + fmt.Sprintf("HTTP %d %s", n, http.StatusText(n))
	}
	var send *smithyhttp.RequestSendError
	if errors.As(err, &send) {
		return lead(err) + "no answer: " + send.Err.Error()
	}
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return lead(err) + op.Err.Error()
	}
	return err.Error()
}

// lead is what try has put before an error.
func lead(err error) string {
	if i := strings.Index(err.Error(), "tried "); i == 0 {
		if j := strings.Index(err.Error(), ": "); j > 0 {
			return err.Error()[:j+2]
		}
	}
	return ""
}

// scrub hides secrets that another program's words may contain.
func (s *S3) scrub(text string) string {
	c := s.o.Credentials
	for _, secret := range []storage.Secret{c.Secret, c.Token, s.o.Encryption.CustomerKey} {
		if secret != "" {
			text = strings.ReplaceAll(text, string(secret), secret.String())
		}
	}
	return text
}

// hint is what to do next; empty when the error says it all.
func (s *S3) hint(e *Error) string {
	var (
		auth *x509.UnknownAuthorityError
		host *x509.HostnameError
		dns  *net.DNSError
		r    *smithyhttp.ResponseError
	)
	if isCredentials(e.Err) {
		return "see that the credentials of the configured key type can be had on this host, as this user"
	}
	switch e.Code {
	case "NoSuchBucket":
		return "make the bucket, or correct its name"
	case "AccessDenied", "Forbidden", "AllAccessDisabled":
		return "see that the credentials may do this in the bucket's policy (s3:ListBucket, s3:GetObject, s3:PutObject, s3:DeleteObject, s3:AbortMultipartUpload); without s3:ListBucket an object that is not there looks like this too"
	case "InvalidAccessKeyId":
		return "the store does not know the key: correct it"
	case "SignatureDoesNotMatch":
		return "the secret does not belong to the key, or the region is another one: correct them"
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired":
		return "the session has ended: set a new key, secret and token, or a key type that renews them (auto, web-id, process)"
	case "RequestTimeTooSkewed", "RequestExpired":
		return "this host's clock is wrong: set it"
	case "AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect", "MovedPermanently", "IllegalLocationConstraintException":
		if errors.As(e.Err, &r) && r.Response != nil && r.Response.Header.Get("X-Amz-Bucket-Region") != "" {
			return "the bucket is in region " + r.Response.Header.Get("X-Amz-Bucket-Region") + ": set it"
		}
		return "the region or the endpoint is not the bucket's: correct them"
	case "SlowDown", "ServiceUnavailable", "Throttling", "TooManyRequests":
		return "the store is overloaded: run it again later, or with a smaller process-max"
	case "InvalidBucketName":
		return "correct the bucket's name"
	case "InvalidObjectState":
		return "the object is in an archive class of the store: bring it back there before"
	case "ObjectLockConfigurationNotFoundError", "InvalidRequest":
		if s.o.Lock != Unlocked {
			return "object lock is asked for: see that it is on for the bucket"
		}
	case "EntityTooLarge":
		return "the object is larger than the store takes"
	}
	switch {
	case errors.As(e.Err, &auth):
		return "the server's certificate is not signed by a known authority: name the file of the right one as CA file"
	case errors.As(e.Err, &host):
		return "the server's certificate is for another host: correct the endpoint or the URI style"
	case errors.As(e.Err, &dns):
		return "correct the endpoint, the region or the URI style, or see to name resolution on this host"
	case e.Status == http.StatusForbidden:
		return "see that the credentials may do this; without s3:ListBucket an object that is not there looks like this too"
	case e.Status == http.StatusMovedPermanently:
		return "the region or the endpoint is not the bucket's: correct them"
	case e.Status == 0:
		return "see that the store can be reached from this host, then run it again"
	}
	return ""
}
