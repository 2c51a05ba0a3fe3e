package gcs

// SetPage makes lists and batches small, so that a few objects need several requests.
func (s *Store) SetPage(n int) { s.page = n }
