package rds

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// Sentinels that callers go by.
var (
	ErrNotFound    = errors.New("there is none of that name")
	ErrNotOurs     = errors.New("it was not made by this run")
	ErrUnavailable = errors.New("the service can't be asked now") // says nothing about a snapshot or instance
	ErrState       = errors.New("its state does not permit it")
)

// Error is what a request ended with, as an operator can use it.
type Error struct {
	Op   string // "take snapshot X", …
	Code string // the service's name for it; may be empty
	Err  error
	text string
}

func (e *Error) Error() string { return e.text }
func (e *Error) Unwrap() error { return e.Err }

// credentialsError says that a request was never sent, for want of credentials.
type credentialsError struct{ err error }

func (e *credentialsError) Error() string { return "no credentials: " + e.err.Error() }
func (e *credentialsError) Unwrap() error { return e.err }

// code is the service's name for an error; empty: it gave none. Some names have the word Fault behind them, some have not.
func code(err error) string {
	var a smithy.APIError
	if errors.As(err, &a) {
		return strings.TrimSuffix(a.ErrorCode(), "Fault")
	}
	return ""
}

// fail makes err the operator's. Cancelled stays what it is; the end of ctx's time in the middle of a request is told as that, not
// as a service that does not answer.
func (c *Client) fail(ctx context.Context, op string, err error) error {
	var done *Error
	if err == nil || errors.As(err, &done) || errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) && errors.Is(err, context.DeadlineExceeded) {
		return c.ended(ctx, op, ErrUnavailable)
	}
	e := &Error{Op: op, Code: code(err)}
	switch e.Code {
	case "DBSnapshotNotFound", "DBInstanceNotFound":
		e.Err = fmt.Errorf("%w: %w", ErrNotFound, err)
	case "InvalidDBInstanceState", "InvalidDBSnapshotState":
		e.Err = fmt.Errorf("%w: %w", ErrState, err)
	default:
		e.Err = err
		if passing(err) {
			e.Err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	e.text = fmt.Sprintf("rds in %s: %s: %s", c.o.Region, op, c.scrub(said(err)))
	if hint := hint(e.Code, err); hint != "" {
		e.text += "; " + hint
	}
	return e
}

// passing says whether the same request may succeed later.
func passing(err error) bool {
	var creds *credentialsError
	if errors.As(err, &creds) {
		return false
	}
	for _, r := range retry.DefaultRetryables {
		if r.IsErrorRetryable(err) == aws.TrueTernary {
			return true
		}
	}
	var resp *smithyhttp.ResponseError
	var send *smithyhttp.RequestSendError
	return errors.As(err, &send) || errors.As(err, &resp) && resp.HTTPStatusCode() >= http.StatusInternalServerError || errors.Is(err, context.DeadlineExceeded)
}

// said is the core of an error, without the SDK's layers around it.
func said(err error) string {
	var creds *credentialsError
	if errors.As(err, &creds) {
		return creds.Error()
	}
	var api smithy.APIError
	if errors.As(err, &api) {
		text := api.ErrorCode()
		if m := api.ErrorMessage(); m != "" && m != text {
			text += ": " + m
		}
		var r interface{ ServiceRequestID() string }
		if errors.As(err, &r) && r.ServiceRequestID() != "" {
			text += " (request " + r.ServiceRequestID() + ")"
		}
		return text
	}
	var send *smithyhttp.RequestSendError
	if errors.As(err, &send) {
		return "no answer: " + send.Err.Error()
	}
	var op *smithy.OperationError
	if errors.As(err, &op) {
		return op.Err.Error()
	}
	return err.Error()
}

// scrub hides the secret, should another program's words contain it.
func (c *Client) scrub(text string) string {
	if c.o.Secret != "" {
		text = strings.ReplaceAll(text, string(c.o.Secret), hidden)
	}
	return text
}

// hint is what to do next; empty when the error says it all.
func hint(code string, err error) string {
	var creds *credentialsError
	if errors.As(err, &creds) {
		return "set pgsql.rds.key and pgsql.rds.secret, or give this host a role or a profile that this user can read"
	}
	switch code {
	case "AccessDenied", "UnauthorizedOperation", "AuthFailure", "NotAuthorized":
		return "give the credentials the rights that docs/rds.md lists"
	case "InvalidClientTokenId", "InvalidAccessKeyId":
		return "the service does not know the key: correct pgsql.rds.key"
	case "SignatureDoesNotMatch":
		return "the secret does not belong to the key: correct pgsql.rds.secret"
	case "ExpiredToken", "ExpiredTokenException":
		return "the session has ended: renew it"
	case "SnapshotQuotaExceeded":
		return "remove manual snapshots that are not needed (holdfast rds snapshots names orphans), or have the quota raised"
	case "InstanceQuotaExceeded", "StorageQuotaExceeded":
		return "remove DB instances that are not needed, or have the quota raised"
	case "Throttling", "ThrottlingException", "RequestLimitExceeded", "ServiceUnavailable":
		return "the service is overloaded: run it again later"
	case "RequestExpired", "RequestTimeTooSkewed":
		return "this host's clock is wrong: set it"
	case "KMSKeyNotAccessible":
		return "the key that encrypts the data can't be used: see to its state and its policy"
	case "DBSubnetGroupNotFound":
		return "set pgsql.rds.restore.subnet_group to one that is there"
	case "DBParameterGroupNotFound":
		return "set pgsql.rds.restore.parameter_group to one that is there"
	case "DBSnapshotNotFound", "DBInstanceNotFound", "InvalidDBInstanceState", "InvalidDBSnapshotState":
		return ""
	}
	var send *smithyhttp.RequestSendError
	if errors.As(err, &send) {
		return "see that the service can be reached from this host (pgsql.rds.endpoint, pgsql.rds.region), then run it again"
	}
	return ""
}
