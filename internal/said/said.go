// Package said takes apart what another program prints on its standard error: line by line, bounded, and with nothing in it that a log
// or a terminal would take for more than text.
package said

import (
	"bytes"
	"io"
	"strings"
	"unicode"
)

// Bounds of what is kept: lines, and bytes of one line.
const (
	MaxLines = 12
	MaxLine  = 400
)

// Lines is the writer for a program's standard error. It is not for several goroutines.
type Lines struct {
	Each func(line string) // may be nil; not called for empty lines
	Last []string          // the last MaxLines lines

	part []byte // of a line that has not ended
}

var _ io.Writer = (*Lines)(nil)

// Write takes the next piece. It never fails.
func (l *Lines) Write(p []byte) (int, error) {
	n := len(p)
	for {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		l.part = append(l.part, line[:min(len(line), max(0, MaxLine-len(l.part)))]...)
		if !ended {
			return n, nil
		}
		l.line()
		p = rest
	}
}

// End takes what is left when the program has ended.
func (l *Lines) End() { l.line() }

// line takes the line that has ended. A program may quote what it could not decrypt.
func (l *Lines) line() {
	s := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.TrimRight(string(l.part), "\r"))
	l.part = l.part[:0]
	if s == "" {
		return
	}
	if len(l.Last) == MaxLines {
		l.Last = append(l.Last[:0], l.Last[1:]...)
	}
	l.Last = append(l.Last, s)
	if l.Each != nil {
		l.Each(s)
	}
}
