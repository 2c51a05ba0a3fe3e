package s3

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"holdfast/internal/storage"
)

// again says how a failed request is to be treated.
type again int

const (
	never   again = iota // the answer will not change
	later                // the same request may succeed after a pause
	renewed              // with new credentials, or the clock set by the answer
)

// renewals is how often in a row credentials or the clock are set anew before the answer is taken for final.
const renewals = 3

// try makes one request, again and again while its failure may pass: at growing pauses with a random part, no earlier
// than the store asks, until Options.RetryFor has gone by since the first failure. The end of the context wins at once.
// Its error is the operator's: see fail.
func (s *S3) try(ctx context.Context, op storage.Op, name string, call func(context.Context) error) error {
	var first time.Time
	renewed1 := 0
	for attempt := 1; ; attempt++ {
		err := call(ctx)
		if err == nil {
			s.seen.Store(true)
			return nil
		}
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		now := s.o.Now()
		if first.IsZero() {
			first = now
		}
		pause := s.o.Backoff.Pause(attempt)
		switch s.judge(err) {
		case never:
			return s.fail(op, name, err)
		case renewed:
			if renewed1++; renewed1 > renewals {
				return s.fail(op, name, err)
			}
			s.creds.Invalidate()
			pause = 0
		case later:
			renewed1 = 0
			pause = max(pause, asked(err))
		}
		if left := s.o.RetryFor - now.Sub(first); pause > left {
			if attempt > 1 {
				err = fmt.Errorf("tried %d times in %s: %w", attempt, now.Sub(first).Round(time.Second), err)
			}
			return s.fail(op, name, err)
		}
		if s.o.OnRepeat != nil {
			s.o.OnRepeat(storage.Repetition{Op: op, Name: name, Attempt: attempt, Err: errors.New(s.scrub(said(err))), Pause: pause})
		}
		if err := s.o.Backoff.Wait(ctx, pause); err != nil {
			return err
		}
	}
}

// skewMax is how far apart the clocks may be, with room to spare: S3 refuses what is more than 15 minutes off.
const skewMax = 5 * time.Minute

// skewed says whether the store's clock, as an answer gives it, is another than ours.
func (s *S3) skewed(err error) bool {
	var r *smithyhttp.ResponseError
	if !errors.As(err, &r) || r.Response == nil || r.Response.Response == nil {
		return false
	}
	at, perr := http.ParseTime(r.Response.Header.Get("Date"))
	return perr == nil && at.Sub(s.o.Now()).Abs() > skewMax
}

// status is the HTTP status of an answer; 0: there was none.
func status(err error) int {
	var r *smithyhttp.ResponseError
	if errors.As(err, &r) && r.Response != nil && r.Response.Response != nil {
		return r.HTTPStatusCode()
	}
	return 0
}

// code is the store's name for an error; empty: it gave none.
func code(err error) string {
	var a smithy.APIError
	if errors.As(err, &a) {
		return a.ErrorCode()
	}
	return ""
}

// judge says whether a request that failed with err is worth repeating.
func (s *S3) judge(err error) again {
	var own *passing
	var auth *x509.UnknownAuthorityError
	var cert *x509.CertificateInvalidError
	var host *x509.HostnameError
	var dns *net.DNSError
	if errors.As(err, &own) {
		return later
	}
	if isCredentials(err) {
		if s.seen.Load() { // there were some: the service that gives them out is away
			return later
		}
		return never
	}
	switch code(err) {
	case "ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired":
		if s.o.Credentials.Type == Shared || s.o.Credentials.Type == "" {
			return never
		}
		return renewed
	case "RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture": // the SDK has learned the store's clock from the answer
		return renewed
	case "SlowDown", "SlowDownRead", "SlowDownWrite", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException", "Throttling", "ThrottlingException",
		"RequestLimitExceeded", "TooManyRequests", "BandwidthLimitExceeded", "OperationAborted", "ConditionalRequestConflict", "Busy",
		"BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch", "IncompleteBody":
		return later
	}
	switch n := status(err); {
	case n == http.StatusForbidden && s.skewed(err): // the answer to a HEAD does not say why
		return renewed
	case n == http.StatusRequestTimeout || n == http.StatusTooManyRequests:
		return later
	case n >= 500:
		if n == http.StatusNotImplemented || n == http.StatusHTTPVersionNotSupported {
			return never
		}
		return later
	case n >= 300:
		return never
	}
	if errors.As(err, &auth) || errors.As(err, &cert) || errors.As(err, &host) || errors.As(err, &dns) && dns.IsNotFound {
		return never
	}
	var n net.Error
	var send *smithyhttp.RequestSendError
	if errors.As(err, &n) || errors.As(err, &send) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		return later
	}
	var broken *smithy.DeserializationError // an answer that broke off or is not S3's
	if errors.As(err, &broken) {
		return later
	}
	return never
}

// uncertain says that a request may have had its effect although it failed: the answer was lost or says so little.
func uncertain(err error) bool {
	switch n := status(err); {
	case n == 0, n == http.StatusInternalServerError, n == http.StatusBadGateway, n == http.StatusGatewayTimeout, n >= 200 && n < 300:
		return !isCredentials(err)
	}
	return false
}

// asked is the pause that the store wants.
func asked(err error) time.Duration {
	var r *smithyhttp.ResponseError
	if !errors.As(err, &r) || r.Response == nil || r.Response.Response == nil {
		return 0
	}
	text := r.Response.Header.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil && n > 0 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		if now, err := http.ParseTime(r.Response.Header.Get("Date")); err == nil {
			return max(at.Sub(now), 0)
		}
	}
	return 0
}

// passing is a failure that we saw ourselves and that a repetition may mend.
type passing struct{ err error }

func (p *passing) Error() string { return p.err.Error() }
func (p *passing) Unwrap() error { return p.err }
