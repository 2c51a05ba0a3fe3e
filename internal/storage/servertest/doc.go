// Package servertest starts, for one test each, the servers that the storage adapters talk to, and a file system that can do
// as little as a network mount. Every server is an ordinary process on a free port of 127.0.0.1 with its files in a
// directory of its own, and ends with the test. The programs are put in place by scripts/setup; tests that start one are
// skipped by go test -short.
package servertest
