package gcs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"mime/multipart"
	"net/http"
	"strings"

	"holdfast/internal/storage"
	"holdfast/internal/storage/transport"
)

// Batch implements bucket.Protocol.
func (s objects) Batch() int { return min(batchSize, s.page) }

// Remove implements bucket.Protocol.
func (s objects) Remove(ctx context.Context, names []string) error {
	if len(names) == 1 {
		return s.Fail("remove", names[0], s.remove(ctx, names[0]))
	}
	return s.removeBatch(ctx, names)
}

// remove removes one object.
func (s *Store) remove(ctx context.Context, name string) error {
	resp, err := s.do(ctx, request{method: "DELETE", path: s.object(name)}, http.StatusNoContent, http.StatusOK)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	transport.Drain(resp.Body)
	return nil
}

// removeBatch removes several objects with one request, which holds a small request for each.
func (s *Store) removeBatch(ctx context.Context, names []string) error {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for i, name := range names {
		part, err := w.CreatePart(map[string][]string{"Content-Type": {"application/http"}, "Content-Id": {fmt.Sprintf("<holdfast+%d>", i)}})
		if err != nil {
			return err
		}
		if _, err := io.WriteString(part, "DELETE "+s.object(name)+" HTTP/1.1\r\n\r\n"); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	resp, err := s.do(ctx, request{method: "POST", path: "/batch/storage/v1", header: map[string]string{"Content-Type": "multipart/mixed; boundary=" + w.Boundary()},
		body: &body, length: int64(body.Len())}, http.StatusOK)
	if err != nil {
		return s.Fail("remove", names[0], err)
	}
	defer transport.Drain(resp.Body)
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil {
		return s.Fail("remove", names[0], fmt.Errorf("the store's answer to a batch: %w", err))
	}
	parts := multipart.NewReader(resp.Body, params["boundary"])
	for i := range names {
		if err := batchAnswer(ctx, parts); err != nil {
			return s.Fail("remove", names[i], err)
		}
	}
	return nil
}

// batchAnswer reads what became of one request of a batch; they come in order.
func batchAnswer(ctx context.Context, parts *multipart.Reader) error {
	part, err := parts.NextPart()
	if errors.Is(err, io.EOF) {
		return storage.Temporary(errors.New("the store's answer to a batch ends early"))
	}
	if err != nil {
		return transport.Error(ctx, err)
	}
	text, err := io.ReadAll(io.LimitReader(part, 64<<10))
	if err != nil {
		return transport.Error(ctx, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(strings.NewReader(strings.TrimLeft(string(text), "\r\n"))), nil)
	if err != nil {
		return fmt.Errorf("the store's answer to a batch: %w", err)
	}
	defer transport.Drain(resp.Body)
	if resp.StatusCode/100 == 2 {
		return nil
	}
	if err := refusal(resp); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
