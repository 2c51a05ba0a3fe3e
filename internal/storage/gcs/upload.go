package gcs

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"holdfast/internal/storage"
	"holdfast/internal/storage/transport"
)

// metadata is what a new object is told about itself.
type metadata struct {
	Name        string            `json:"name"`
	ContentType string            `json:"contentType"`
	CRC32C      string            `json:"crc32c,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
}

// describe is the JSON of a new object; sum is empty when it is not known yet.
func (s *Store) describe(name, sum string) ([]byte, error) {
	return json.Marshal(metadata{s.Key(name), "application/octet-stream", sum, s.o.Tags})
}

func sumText(crc uint32) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc))
}

// uploadPath is where objects are sent to.
func (s *Store) uploadPath() string {
	return "/upload/storage/v1/b/" + url.PathEscape(s.o.Bucket) + "/o"
}

// Put implements storage.Uploader. When an answer is lost, the object is looked at before it is sent again: it may be there.
// The repetition then replaces only what was seen, so that it cannot undo what somebody else has committed meanwhile.
func (s objects) Put(ctx context.Context, name string, body *storage.Body) error {
	first, generation := true, ""
	err := s.o.Backoff.Do(ctx, func() error {
		if !first {
			r, err := s.stat(ctx, name)
			switch {
			case err == nil && r.Size == body.Size() && r.CRC32C == sumText(body.CRC32C()):
				return nil
			case err == nil:
				generation = r.Generation
			case errors.Is(err, fs.ErrNotExist):
				generation = "0"
			default:
				return err
			}
		}
		first = false
		return s.put(ctx, name, body, generation)
	})
	return s.Fail("write", name, lasting(err))
}

// lasting takes fs.ErrNotExist away from an error that says 404 of a bucket or an upload: no object is missing.
func lasting(err error) error {
	if status(err) == http.StatusNotFound && errors.Is(err, fs.ErrNotExist) {
		return storage.Unavailable(errors.New(strings.TrimPrefix(err.Error(), fs.ErrNotExist.Error()+" ")))
	}
	return err
}

// put sends a whole object in one request: its description with the checksum, then its bytes.
func (s objects) put(ctx context.Context, name string, body *storage.Body, generation string) error {
	const boundary = "holdfast-object-8d1f0b5e"
	sum := sumText(body.CRC32C())
	about, err := s.describe(name, sum)
	if err != nil {
		return err
	}
	head := "--" + boundary + "\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n" + string(about) +
		"\r\n--" + boundary + "\r\nContent-Type: application/octet-stream\r\n\r\n"
	tail := "\r\n--" + boundary + "--\r\n"
	q := url.Values{"uploadType": {"multipart"}, "fields": {resourceFields}, "name": {s.Key(name)}}
	if generation != "" {
		q.Set("ifGenerationMatch", generation)
	}
	resp, err := s.do(ctx, request{method: "POST", path: s.uploadPath(), query: q,
		header: map[string]string{"Content-Type": "multipart/related; boundary=" + boundary},
		body:   io.MultiReader(strings.NewReader(head), body.Reader(), strings.NewReader(tail)), length: int64(len(head)+len(tail)) + body.Size()}, http.StatusOK)
	if status(err) == http.StatusPreconditionFailed {
		return storage.Temporary(err) // our own lost request, or another writer: look again
	}
	if err != nil {
		return err
	}
	return accepted(resp, body.Size(), sum)
}

// accepted checks that the store has what was sent.
func accepted(resp *http.Response, size int64, sum string) error {
	var r resource
	if err := decode(resp, &r); err != nil {
		return err
	}
	if r.Size != size || r.CRC32C != sum {
		return storage.Temporary(fmt.Errorf("the store has %d bytes with checksum %s, sent were %d with %s: %w", r.Size, r.CRC32C, size, sum, storage.ErrCorrupt))
	}
	return nil
}

// Begin implements storage.Uploader: it opens a resumable upload.
func (s objects) Begin(ctx context.Context, name string) (storage.PartUpload, error) {
	about, err := s.describe(name, "")
	if err != nil {
		return nil, err
	}
	up := &session{s: s.Store, name: name}
	err = s.o.Backoff.Do(ctx, func() error {
		resp, err := s.do(ctx, request{method: "POST", path: s.uploadPath(), query: url.Values{"uploadType": {"resumable"}, "name": {s.Key(name)}, "fields": {resourceFields}},
			header: map[string]string{"Content-Type": "application/json; charset=UTF-8"}, body: bytes.NewReader(about), length: int64(len(about))}, http.StatusOK, http.StatusCreated)
		if err != nil {
			return err
		}
		defer transport.Drain(resp.Body)
		// Only path and query are taken: the credentials go to no other host than the endpoint.
		to, err := url.Parse(resp.Header.Get("Location"))
		if err != nil || to.RawQuery == "" {
			return errors.New("the store did not say where to send the parts")
		}
		up.path, up.query = to.EscapedPath(), to.Query()
		return nil
	})
	if err != nil {
		return nil, s.Fail("write", name, lasting(err))
	}
	return up, nil
}

// session is one resumable upload. The store takes its bytes in order, in multiples of chunkUnit but for the last ones.
type session struct {
	s     *Store
	name  string
	path  string
	query url.Values // holds the upload's id, which is a credential
	at    int64      // bytes that the store has
	rest  []byte     // bytes after them that do not make up a unit
}

// Put implements storage.PartUpload. Parts come one after the other, since one is allowed in flight.
func (up *session) Put(ctx context.Context, number int, body *storage.Body) error {
	data := &joined{head: up.rest, tail: body.Reader(), size: int64(len(up.rest)) + body.Size()}
	send := data.size / chunkUnit * chunkUnit
	if send > 0 {
		if err := up.send(ctx, data, send, "*", nil); err != nil {
			return up.s.Fail("write", up.name, lasting(err))
		}
	}
	rest := make([]byte, data.size-send)
	if err := data.from(send); err != nil {
		return err
	}
	if _, err := io.ReadFull(data, rest); err != nil {
		return err
	}
	up.at, up.rest = up.at+send, rest
	return nil
}

// Finish implements storage.PartUpload.
func (up *session) Finish(ctx context.Context, size int64, crc uint32) error {
	data := &joined{head: up.rest, tail: bytes.NewReader(nil), size: int64(len(up.rest))}
	sum := sumText(crc)
	err := up.send(ctx, data, data.size, strconv.FormatInt(size, 10), func(resp *http.Response) error {
		err := accepted(resp, size, sum)
		if errors.Is(err, storage.ErrCorrupt) { // it is visible already: away with it
			return fmt.Errorf("%w; removed again: %v", storage.ErrCorrupt, up.s.remove(ctx, up.name))
		}
		return err
	})
	if code := status(err); code == http.StatusNotFound || code == http.StatusGone {
		// The store has forgotten the upload, as it does some time after the end: was that it?
		if r, serr := up.s.stat(ctx, up.name); serr == nil && r.Size == size && r.CRC32C == sum {
			return nil
		}
	}
	return up.s.Fail("write", up.name, lasting(err))
}

// send sends n bytes of data, which come after those that the store has; total is the object's size, or "*" when more
// follows. After a failure it asks the store how much has arrived, and goes on from there.
func (up *session) send(ctx context.Context, data *joined, n int64, total string, done func(*http.Response) error) error {
	arrived := int64(0) // of data
	ask := false        // how much has arrived
	return up.s.o.Backoff.Do(ctx, func() error {
		for {
			span, length := fmt.Sprintf("bytes %d-%d/%s", up.at+arrived, up.at+n-1, total), n-arrived
			if ask || n == 0 { // with the total known, this also ends an upload of which everything has arrived
				span, length = "bytes */"+total, 0
			}
			if err := data.from(arrived); err != nil {
				return err
			}
			resp, err := up.s.do(ctx, request{method: "PUT", path: up.path, query: up.query, header: map[string]string{"Content-Range": span},
				body: io.LimitReader(data, length), length: length}, http.StatusOK, http.StatusCreated, http.StatusPermanentRedirect)
			if err != nil {
				ask = true
				return err
			}
			if resp.StatusCode != http.StatusPermanentRedirect && done != nil {
				return done(resp)
			}
			transport.Drain(resp.Body)
			has := received(resp.Header) - up.at
			switch {
			case resp.StatusCode != http.StatusPermanentRedirect:
				return errors.New("the store ended the upload before the last part")
			case has < 0 || has > n:
				return fmt.Errorf("the store has %d bytes of the upload, which cannot be", has+up.at)
			case has == n && done == nil:
				return nil
			case has == n || has == arrived && !ask:
				ask = true
				return storage.Temporary(fmt.Errorf("the store has taken %d of %d bytes", has, n))
			}
			arrived, ask = has, false
		}
	})
}

// received reads how many bytes the store has out of its answer to a part.
func received(h http.Header) int64 {
	_, last, ok := strings.Cut(h.Get("Range"), "-")
	if !ok {
		return 0
	}
	n, err := strconv.ParseInt(last, 10, 64)
	if err != nil {
		return 0
	}
	return n + 1
}

// Cancel implements storage.PartUpload.
func (up *session) Cancel(ctx context.Context) error {
	const clientClosed = 499 // the store's way to say that it has given up
	resp, err := up.s.do(ctx, request{method: "DELETE", path: up.path, query: up.query}, clientClosed, http.StatusNoContent, http.StatusOK, http.StatusGone)
	if err != nil {
		return err
	}
	transport.Drain(resp.Body)
	return nil
}

// joined is bytes in memory followed by a reader, with a place to go on from.
type joined struct {
	head []byte
	tail io.ReadSeeker
	size int64
	at   int64
}

// from goes to a place.
func (j *joined) from(at int64) error {
	j.at = at
	_, err := j.tail.Seek(max(at-int64(len(j.head)), 0), io.SeekStart)
	return err
}

// Read implements io.Reader.
func (j *joined) Read(p []byte) (int, error) {
	if j.at < int64(len(j.head)) {
		n := copy(p, j.head[j.at:])
		j.at += int64(n)
		return n, nil
	}
	n, err := j.tail.Read(p)
	j.at += int64(n)
	return n, err
}
