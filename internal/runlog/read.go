package runlog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"
)

const (
	lineMax    = 64 << 10 // bytes of a line that are read
	followPoll = 200 * time.Millisecond
	dayLength  = 24 * time.Hour
)

// Log is a log with what was rotated away from it.
type Log struct {
	Path    string
	Problem func(error) // told of a file that can't be read; the others are. May be nil
}

// Scan calls f with the entries in the order in which they were written, from all files that may have some of since or later, and
// passes over those that are earlier. Lines that are written while it reads may be among them or not; a rotation in the middle loses
// none and shows none twice. It ends with the first error of f, or with ctx.
func (l Log) Scan(ctx context.Context, since time.Time, f func(Entry) error) error {
	live, err := l.scanRotated(ctx, since, f)
	if err != nil || live == nil {
		return err
	}
	defer live.Close() // opened for reading: nothing to lose
	return l.lines(ctx, live, since, f)
}

// Follow is Scan that goes on as the log grows, through rotations, until ctx ends, which is no error.
func (l Log) Follow(ctx context.Context, since time.Time, f func(Entry) error) error {
	live, err := l.scanRotated(ctx, since, f)
	if err != nil {
		return ended(ctx, err)
	}
	for {
		if live != nil {
			err = l.tail(ctx, live, since, f)
			live.Close() // as in Scan
			if err != nil {
				return ended(ctx, err)
			}
		}
		if err := pause(ctx); err != nil {
			return nil
		}
		if live, err = OpenRegular(l.Path); err != nil {
			live = nil
			if !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("logs: %w", err)
			}
		}
	}
}

func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func pause(ctx context.Context) error {
	timer := time.NewTimer(followPoll)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// scanRotated opens the log and then reads what was rotated away: a log that is rotated in between is the one that was opened,
// and is not read twice. nil: there is no log at the moment.
func (l Log) scanRotated(ctx context.Context, since time.Time, f func(Entry) error) (*os.File, error) {
	live, rotated, err := l.open()
	if err != nil {
		return nil, err
	}
	for _, r := range rotated {
		if !since.IsZero() && r.Day.Add(2*dayLength).Before(since) || r.is(live) {
			continue
		}
		if err = l.scanOne(ctx, r, since, f); err != nil {
			if live != nil {
				live.Close() // as in Scan
			}
			return nil, err
		}
	}
	return live, nil
}

// openTries is how often the log is opened anew because it was rotated in that moment. It is rotated once a day.
const openTries = 100

// open opens the log and lists what was rotated away from it, as of one moment.
func (l Log) open() (*os.File, []Rotated, error) {
	for try := 1; ; try++ {
		live, err := OpenRegular(l.Path)
		if err != nil {
			live = nil
			if !errors.Is(err, fs.ErrNotExist) {
				l.problem(err)
			}
		}
		rotated, err := RotatedOf(l.Path)
		if err == nil && (try == openTries || l.still(live)) {
			return live, rotated, nil
		}
		if live != nil {
			live.Close() // as in Scan
		}
		if err != nil {
			return nil, nil, err
		}
	}
}

// still reports whether the log is the file that was opened, or is not there as before.
func (l Log) still(live *os.File) bool {
	now, err := os.Lstat(l.Path)
	if live == nil {
		return err != nil || !now.Mode().IsRegular()
	}
	if err != nil {
		return false
	}
	info, err := live.Stat()
	return err == nil && os.SameFile(info, now)
}

// is reports whether r was the open file f when it was listed.
func (r Rotated) is(f *os.File) bool {
	if f == nil || r.info == nil {
		return false
	}
	info, err := f.Stat()
	return err == nil && os.SameFile(info, r.info)
}

// scanOne reads one rotated file.
func (l Log) scanOne(ctx context.Context, r Rotated, since time.Time, f func(Entry) error) error {
	in, err := r.Open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // its time was over
	}
	if err != nil {
		l.problem(err)
		return nil
	}
	defer in.Close() // as in Scan
	err = l.lines(ctx, in, since, f)
	var read *readError
	if errors.As(err, &read) {
		l.problem(fmt.Errorf("%s: %w", r.Path, read.err))
		return nil
	}
	return err
}

func (l Log) problem(err error) {
	if l.Problem != nil {
		l.Problem(fmt.Errorf("logs: %w", err))
	}
}

// readError is an error of the file, not of who reads it.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// lines reads to the end.
func (l Log) lines(ctx context.Context, r io.Reader, since time.Time, f func(Entry) error) error {
	in, p := bufio.NewReaderSize(r, lineMax), parser{since: since, f: f}
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := p.more(in)
		if errors.Is(err, io.EOF) {
			return p.flush()
		}
		if err != nil {
			return err
		}
	}
}

// tail reads to the end and waits for more, until the log is another file, or a shorter one.
func (l Log) tail(ctx context.Context, live *os.File, since time.Time, f func(Entry) error) error {
	in, p := bufio.NewReaderSize(live, lineMax), parser{since: since, f: f}
	last := false
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := p.more(in)
		if err == nil {
			continue
		}
		if !errors.Is(err, io.EOF) {
			return err
		}
		if last {
			return p.flush()
		}
		last = l.replaced(live) // who had it open may still write a line: one more look
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

// replaced reports whether live is not the log any more.
func (l Log) replaced(live *os.File) bool {
	a, err1 := live.Stat()
	b, err2 := os.Lstat(l.Path)
	if err1 != nil || err2 != nil {
		return true
	}
	at, err := live.Seek(0, io.SeekCurrent)
	return !os.SameFile(a, b) || err == nil && b.Size() < at
}

// parser makes entries of lines.
type parser struct {
	since time.Time
	f     func(Entry) error

	part []byte // of a line whose end has not been read
	long bool   // and more of it was passed over
	last Entry
}

// more reads up to the next line break. io.EOF: there is none yet.
func (p *parser) more(in *bufio.Reader) error {
	piece, err := in.ReadSlice('\n')
	room := max(lineMax-len(p.part), 0)
	if len(piece) > room {
		p.long = p.long || len(piece) > room+1 || piece[len(piece)-1] != '\n'
		p.part = append(p.part, piece[:room]...)
	} else {
		p.part = append(p.part, piece...)
	}
	switch {
	case err == nil:
		return p.flush()
	case errors.Is(err, bufio.ErrBufferFull):
		return nil
	case errors.Is(err, io.EOF):
		return io.EOF
	}
	return &readError{err}
}

// flush hands the line over that has been read.
func (p *parser) flush() error {
	if len(p.part) == 0 {
		return nil
	}
	text := string(p.part)
	if text[len(text)-1] == '\n' {
		text = text[:len(text)-1]
	}
	if p.long {
		text += "…"
	}
	p.part, p.long = p.part[:0], false
	e, ok := Parse(text)
	if ok {
		p.last = e
	} else if text == "" {
		return nil
	} else { // the rest of an entry of several lines
		e = Entry{Time: p.last.Time, Run: p.last.Run, Level: p.last.Level, Text: oneLine(text)}
		if e.Level == "" {
			e.Level = Info
		}
	}
	if e.Time.Before(p.since) {
		return nil
	}
	return p.f(e)
}
