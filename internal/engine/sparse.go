package engine

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// readerOf reads a file from its beginning. The holes of a sparse one are not read but made up: the kernel would fill its
// page cache with their zeros, which costs more than to hash them and drives out what is worth keeping. Only where the file
// system is known to count what is written and not yet on disk as data: others have taken it for a hole (OpenZFS 2.1 and 2.2,
// issue 15526), and a page of zeros passes every check.
func readerOf(f *os.File) io.Reader {
	info, err := f.Stat()
	if err != nil {
		return f // reading it will say what is wrong
	}
	if st, ok := info.Sys().(*syscall.Stat_t); !ok || st.Blocks*512 >= st.Size {
		return f
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return f
	}
	switch int64(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return &sparseReader{file: f}
	}
	return f
}

// sparseReader looks for the next data at each Read, so that what a running server writes into a hole is seen as late as
// without it. On a file system that does not know its holes everything is data.
type sparseReader struct {
	file    *os.File
	at      int64
	skipped int64 // bytes of holes
}

func (s *sparseReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	data, err := unix.Seek(int(s.file.Fd()), s.at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO): // no more data: a hole up to the end, or the end
		info, err := s.file.Stat()
		if err != nil {
			return 0, err
		}
		if data = info.Size(); data <= s.at {
			return 0, io.EOF
		}
	case err != nil: // not known here
		data = s.at
	}
	if data > s.at {
		n := int(min(int64(len(p)), data-s.at))
		clear(p[:n])
		s.at, s.skipped = s.at+int64(n), s.skipped+int64(n)
		return n, nil
	}
	n, err := s.file.ReadAt(p, s.at)
	s.at += int64(n)
	if n > 0 {
		return n, nil // an error comes again with the next Read
	}
	return 0, err
}
