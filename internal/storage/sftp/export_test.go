package sftp

import "context"

// FsyncDir asks the server to sync a directory, and does not overlook that it cannot.
func (s *Store) FsyncDir(ctx context.Context, dir string) error {
	return s.call(ctx, func(c *conn) error {
		d, err := c.sftp.Open(s.path(dir))
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Sync()
	})
}
